"""What one writes first: a FastAPI handler around the protected graph, one image a request.

Decoding and inference run in FastAPI's thread pool (a `def` handler), so that the event loop stays free; the
graph, its threads, uvicorn's loop and parser, and what is answered are those of the service.

    python -m benchmarks.serving.plain_fastapi GRAPH PORT THREADS THRESHOLD
"""

from __future__ import annotations

import io
import sys
from typing import Annotated, Any

import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import Body, FastAPI
from PIL import Image

SIDE = 32


def open_graph(path: str, threads: int) -> ort.InferenceSession:
    """The graph on the CPU with ONNX Runtime's own defaults, except the number of threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def pixels_of(data: bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
    """One encoded image, brought to the graph's size, as (C, H, W) in [0, 1]."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(image, np.float32).transpose(2, 0, 1) / np.float32(255)


def answer_of(logits: Any, score: float, threshold: float) -> dict[str, Any]:
    """The answer for one image."""
    exponentials = np.exp(logits - logits.max())
    index = int(logits.argmax())
    return {
        "index": index,
        "label": f"class {index}",
        "score": float(exponentials[index] / exponentials.sum()),
        "flagged": bool(score > threshold),
        "flag_score": float(score),
    }


def main() -> None:
    """Serve until interrupted."""
    graph, port, threads, threshold = sys.argv[1:5]
    session, limit = open_graph(graph, int(threads)), float(threshold)
    app = FastAPI()

    @app.post("/predict")
    def predict(body: Annotated[bytes, Body(media_type="image/png")]) -> dict[str, Any]:
        logits, score = session.run(["logits", "flag_score"], {"image": pixels_of(body)[None]})
        return answer_of(logits[0], score[0], limit)

    @app.get("/health")
    def health() -> str:
        return "ok"

    uvicorn.run(app, port=int(port), access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
