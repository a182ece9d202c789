"""The protected graph behind LitServe, batching on, set up as its documentation advises for many requests a second:
ZeroMQ queue, a body that is not parsed before the worker; as many workers as the cores have room for.

    python -m benchmarks.serving.litserve_app GRAPH PORT THREADS THRESHOLD
"""

# No `from __future__ import annotations`: LitServe reads the annotation of `decode_request` as it stands.
import sys
from typing import Annotated, Any

import litserve  # type: ignore[import-not-found, import-untyped, unused-ignore]
import numpy as np
from fastapi import Body

from benchmarks.serving.plain_fastapi import answer_of, open_graph, pixels_of
from detrigger.service.engine import usable_cores

BATCH = 32
WAIT = 0.002


class Protected(litserve.LitAPI):  # type: ignore[misc, unused-ignore]
    """Decode, stack, run, take apart."""

    def __init__(self, graph: str, threads: int, threshold: float) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=WAIT)
        self.graph, self.threads, self.threshold = graph, threads, threshold

    def setup(self, device: str) -> None:  # noqa: ARG002 - given by LitServe
        """Open the graph in the worker."""
        self.session = open_graph(self.graph, self.threads)

    def decode_request(self, request: Annotated[bytes, Body(media_type="image/png")]) -> Any:
        """One encoded image as pixels."""
        return pixels_of(request)

    def batch(self, inputs: list[Any]) -> Any:
        """(n, C, H, W)."""
        return np.stack(inputs)

    def predict(self, x: Any) -> Any:
        """Logits and flag scores."""
        return self.session.run(["logits", "flag_score"], {"image": x})

    def unbatch(self, output: Any) -> Any:
        """A pair for each image."""
        return list(zip(*output, strict=True))

    def encode_response(self, output: Any) -> dict[str, Any]:
        """The answer for one image."""
        logits, score = output
        return answer_of(logits, score, self.threshold)


def main() -> None:
    """Serve until interrupted."""
    graph, port, threads, threshold = sys.argv[1:5]
    api = Protected(graph, int(threads), float(threshold))
    workers = max(1, usable_cores() // int(threads))
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=workers, fast_queue=True)
    server.run(
        host="127.0.0.1", port=int(port), num_api_servers=1, log_level="warning", generate_client_file=False
    )


if __name__ == "__main__":
    main()
