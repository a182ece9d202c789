"""Buffers on the GPU for one batch size, made once: nothing is allocated in a run, purified images leave the GPU only
where somebody asked for them, and since no address ever changes, the run can be replayed as a CUDA graph.

Tested with buffers in the CPU's memory. No GPU was at hand: on one, this has never run.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

Shape = tuple[int, ...]


class Bound:
    """A session with its input and outputs bound to buffers for batches of `size` images."""

    def __init__(
        self,
        session: ort.InferenceSession,
        size: int,
        shape: Shape,
        outputs: Sequence[tuple[str, Shape]],
        *,
        device: str,
        replay: bool,
    ) -> None:
        """Allocate.

        Args:
            session: with the input `image`, float32 (n, *shape).
            size: images in every run.
            shape: of one image.
            outputs: name and shape for one image of each float32 output.
            device: where the buffers are, "cuda" or "cpu".
            replay: whether the session records CUDA graphs; each size is a graph of its own.
        """

        def buffer(one: Shape) -> Any:
            return ort.OrtValue.ortvalue_from_shape_and_type((size, *one), np.float32, device, 0)

        self._session = session
        self._image = buffer(shape)
        self._outputs = [buffer(one) for _, one in outputs]
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input("image", self._image)
        for (name, _), value in zip(outputs, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(name, value)
        self._options = ort.RunOptions()
        if replay:
            self._options.add_run_config_entry("gpu_graph_id", str(size))

    def run(self, batch: NDArray[np.float32], wanted: int) -> list[NDArray[np.float32]]:
        """The first `wanted` outputs for a contiguous batch (size, ...). One run at a time."""
        self._image.update_inplace(batch)
        self._session.run_with_iobinding(self._binding, self._options)
        return [value.numpy() for value in self._outputs[:wanted]]
