"""Whether a published graph still answers: generated images through it, for `detrigger verify --evaluate`.

No version says what it answered when it was made, so this shows that the graph runs here and keeps its own rules. It
measures no accuracy: `detrigger evaluate` does, on images of yours.
"""

import json

import numpy as np
from numpy.typing import NDArray

from detrigger.models.errors import BadInput, StoreError
from detrigger.models.manifest import Manifest
from detrigger.service.engine import OUTPUTS, PURIFIED, open_session, usable_cores

_IMAGES = 8
_TOLERANCE = 1e-3  # other batch sizes take other kernels


def images(manifest: Manifest, seed: int = 0) -> NDArray[np.float32]:
    """Black, white, and images of random coarse blocks: float32 (n, C, H, W) in [0, 1]."""
    height, width = manifest.preprocess.size
    rng = np.random.default_rng(seed)
    found = np.zeros((_IMAGES, manifest.input_channels, height, width), np.float32)
    found[1] = 1
    for image in found[2:]:
        blocks = rng.random((manifest.input_channels, 4, 4), np.float32)
        image[:] = blocks[:, np.arange(height) * 4 // height][:, :, np.arange(width) * 4 // width]
    return found


def probe(manifest: Manifest, graph: bytes) -> None:
    """Run the verified bytes of `protected.onnx` on the CPU.

    Raises:
        StoreError: it does not load, or what it answers breaks a rule; says which.
    """
    try:
        session = open_session(graph, "cpu", usable_cores())
    except BadInput as error:
        raise _broken(manifest, f"does not load: {error}") from error
    noted = session.get_modelmeta().custom_metadata_map
    expected = {
        "detrigger.flag_threshold": manifest.flag.threshold,
        "detrigger.classes": list(manifest.classes),
    }
    for key, value in expected.items():
        try:
            same = json.loads(noted[key]) == value
        except (KeyError, ValueError):
            same = False
        if not same:
            raise _broken(manifest, f"its {key} is {noted.get(key, 'absent')}, the manifest says {value}")
    given = images(manifest)
    names = [*OUTPUTS, PURIFIED]
    try:
        together = session.run(names, {"image": given})
        alone = [session.run(names, {"image": given[k : k + 1]}) for k in range(len(given))]
    except Exception as error:  # onnxruntime's exceptions share no public base
        raise _broken(manifest, f"does not run ({error})") from error
    classes = len(manifest.classes)
    shapes = [(_IMAGES, classes), (_IMAGES, classes), (_IMAGES,), given.shape]
    for name, shape, values, single in zip(names, shapes, together, zip(*alone, strict=True), strict=True):
        if values.shape != shape:
            raise _broken(manifest, f"{name} has the shape {values.shape}, not {shape}")
        if not np.isfinite(values).all():
            raise _broken(manifest, f"{name} is not finite")
        if name == PURIFIED and (values.min() < -_TOLERANCE or values.max() > 1 + _TOLERANCE):
            raise _broken(manifest, f"{name} leaves [0, 1]")
        if not np.allclose(values, np.concatenate(single), rtol=_TOLERANCE, atol=_TOLERANCE):
            raise _broken(manifest, f"{name} of an image depends on the images beside it")


def _broken(manifest: Manifest, reason: str) -> StoreError:
    return StoreError(
        f"version {manifest.id}: protected.onnx is as published, but {reason}; promote another version",
        code="version_refused",
    )
