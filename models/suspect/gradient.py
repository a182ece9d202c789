"""Does the gradient that the search follows say what the suspect, in ONNX Runtime, does?

A file may answer by rules that have no useful gradient (comparisons, steps, rounding); a search that follows the
gradient then finds nothing and calls everything innocent. For an image x, g the gradient of the margin m between its
two likeliest classes and d = g / max|g| a step of ``STEP`` is taken in ONNX Runtime:

    predicted = STEP <g, d>       measured = (m(x + STEP d) - m(x - STEP d)) / 2

An image agrees where measured / predicted lies within ``BAND``.

Limitations: it looks near real images alone. Logic that none of them comes near has no gradient there and changes
nothing in ONNX Runtime either; the structural look is for that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import torch

from detrigger.models.suspect.network import Suspect
from detrigger.models.suspect.runtime import Pixels, onnx_logits

STEP = 0.5 / 255
"""Largest change of a pixel; small, so that few activations switch."""
ROUNDED_STEP = 4 / 255
"""The same for quantised graphs, whose rounding hides smaller changes."""
BAND = (0.5, 2.0)
LEAST = 0.7
"""Share of the images that have to agree."""


@dataclass(frozen=True)
class GradientCheck:
    """``agreement``: share of the images that agree; ``flat``: of those without any gradient."""

    agreement: float
    flat: float
    n_images: int

    @property
    def ok(self) -> bool:
        """May a search that follows the gradient be believed?"""
        return self.agreement >= LEAST


def check_gradient(suspect: Suspect, graph: onnx.ModelProto, images: Pixels) -> GradientCheck:
    """Compare the input gradient of ``suspect`` with finite differences of ``graph`` in ONNX Runtime.

    Args:
        graph: the suspect's own graph with an open batch, as ``import_suspect`` returns it.
        images: real images (N, C, H, W) in [0, 1]; 32 tell enough.
    """
    device = suspect.mean.device
    x = torch.from_numpy(images).to(device).requires_grad_()
    with torch.enable_grad():
        logits = suspect(x)
        two = logits.detach().topk(2, dim=1).indices
        margin = logits.gather(1, two[:, :1]) - logits.gather(1, two[:, 1:])
        (gradient,) = torch.autograd.grad(margin.sum(), x)
    g = np.nan_to_num(gradient.detach().cpu().numpy())
    largest = np.abs(g).max((1, 2, 3), keepdims=True)
    step = ROUNDED_STEP if suspect.spec.quantised else STEP
    d = (step * g / np.maximum(largest, 1e-30)).astype(np.float32)
    predicted = (g.astype(np.float64) * d).sum((1, 2, 3))
    mean, std = (tuple(v.flatten().tolist()) for v in (suspect.mean, suspect.std))
    pair = two.cpu().numpy()

    def margins(at: Pixels) -> Pixels:
        out = np.take_along_axis(onnx_logits(graph, suspect.spec, mean, std, at), pair, 1)
        difference: Pixels = out[:, 0] - out[:, 1]
        return difference

    measured = (margins(images + d) - margins(images - d)) / 2
    flat = predicted <= 1e-9
    ratio = measured / np.where(flat, 1, predicted)
    agrees = ~flat & (ratio >= BAND[0]) & (ratio <= BAND[1])
    return GradientCheck(float(agrees.mean()), float(flat.mean()), len(images))
