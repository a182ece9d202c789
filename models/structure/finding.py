"""What the look finds, and what it suspects before it has forced it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx

from detrigger.models.structure.trigger import Sign

Array = np.ndarray


@dataclass(frozen=True)
class Finding:
    """Logic that decides on the answer.

    ``node``/``op`` name where the sign is decided on, ``nodes`` what lies between the image and there and is used by
    nothing else; ``effect`` is the share of clean images of other classes whose answer changes to ``target`` (None:
    to another one for each class) when the node's result ``output`` is forced, NaN where that was not measured;
    ``sign`` is what to put into an image so that it happens, tried on clean images, where such a thing was found.
    ``usual`` is the result that the node has on clean images.
    """

    node: str
    op: str
    why: str
    effect: float
    target: int | None
    output: str
    nodes: tuple[str, ...] = ()
    sign: Sign | None = None
    usual: Array | None = field(default=None, repr=False, compare=False)


@dataclass
class Suspicion:
    """A value to force: ``usual`` is what it is on clean images, ``levels`` what it might be."""

    node: onnx.NodeProto
    name: str
    usual: Array
    levels: list[Array]
    whole: bool
    why: str
