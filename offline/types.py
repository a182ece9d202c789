"""What the arrays of the job are: names for NumPy and torch types that stand in many signatures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from torch import Tensor

Pixels = npt.NDArray[np.float32]
"""Images (N, C, H, W) in [0, 1], or logits and scores of them."""
Labels = npt.NDArray[np.int64]
"""(N,) class indices."""
Hits = npt.NDArray[np.bool_]
"""(N,) whether something holds for each image."""
Labelled = tuple[Tensor, Tensor]
"""Images (N, C, H, W) in [0, 1] and their labels (N,)."""
Answer = Callable[[Tensor], Tensor]
"""Images (N, C, H, W) in [0, 1] to logits (N, K)."""
