"""Hugging Face's `preprocessor_config.json` and timm's `config.json`, said in the keys of `Preprocess`.

What they ask for beyond that is refused, never left out: a wrong picture would give a wrong verdict. A processor
that is not in the table below is refused as well, since each class of theirs has steps of its own.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

_RESAMPLE = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
_MEND = "write a preprocess.json by hand, with size, resize, crop, mean and std"


class _Processor(NamedTuple):
    """Defaults of a processor for what old files leave out; `square`: whether one number in `size` is both sides."""

    crop: bool
    square: bool
    resample: int = 3


_PROCESSORS = {
    "": _Processor(crop=False, square=True, resample=2),
    "Beit": _Processor(crop=False, square=True),
    "Bit": _Processor(crop=True, square=False),
    "CLIP": _Processor(crop=True, square=False),
    "ConvNext": _Processor(crop=False, square=False),
    "DeiT": _Processor(crop=True, square=True),
    "EfficientFormer": _Processor(crop=True, square=False),
    "EfficientNet": _Processor(crop=False, square=True),
    "Levit": _Processor(crop=True, square=False),
    "MobileNetV1": _Processor(crop=True, square=False, resample=2),
    "MobileNetV2": _Processor(crop=True, square=False, resample=2),
    "MobileViT": _Processor(crop=True, square=False),
    "PoolFormer": _Processor(crop=True, square=False),
    "Pvt": _Processor(crop=False, square=True),
    "Siglip": _Processor(crop=False, square=True),
    "ViT": _Processor(crop=False, square=True, resample=2),
}
_RESIZED = ("do_resize", "size", "resample", "crop_pct", "do_center_crop", "crop_size")
_SCALED = (
    "do_rescale",
    "rescale_factor",
    "rescale_offset",
    "do_normalize",
    "image_mean",
    "image_std",
    "include_top",
)
_NAMED = ("image_processor_type", "feature_extractor_type")
_READ = frozenset((*_RESIZED, *_SCALED, *_NAMED, "do_flip_channel_order"))
_OF_NO_MATTER = frozenset(
    (
        "_valid_processor_keys",
        "data_format",
        "default_to_square",
        "device",
        "disable_grouping",
        "do_convert_rgb",
        "do_reduce_labels",
        "input_data_format",
        "pad_size",
        "processor_class",
        "return_tensors",
    )
)


def translated(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a JSON file in our keys, or unchanged where the file is not theirs.

    Raises:
        ValueError: what it asks for cannot be done, or it is another of their files.
    """
    try:
        if "pretrained_cfg" in content or ("architecture" in content and "input_size" in content):
            return _timm(content)
        if (_READ - {"size", "resample"}) & content.keys():
            return _hugging_face(content)
    except (TypeError, KeyError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"one of its values is not of the kind that it should be ({error})") from error
    if "model_type" in content or "architectures" in content:
        raise ValueError(
            "it describes a network (Hugging Face's config.json), not its images; give the preprocessor_config.json"
            " that stands beside it"
        )
    return content


def _hugging_face(content: Mapping[str, Any]) -> dict[str, Any]:
    kind = str(content.get("image_processor_type") or content.get("feature_extractor_type") or "")
    name = (
        kind.removesuffix("Pil")
        .removesuffix("Fast")
        .removesuffix("ImageProcessor")
        .removesuffix("FeatureExtractor")
    )
    processor = _PROCESSORS.get(name)
    if processor is None:
        raise ValueError(f"the steps of {kind[:60]!r} are not known here; {_MEND}")
    for key, value in content.items():
        if key not in _READ | _OF_NO_MATTER and value not in (None, False):
            raise ValueError(f"it asks for {key[:60]!r}, which cannot be done here; {_MEND}")
    found: dict[str, Any] = {"crop_rest": "down"}
    resample = content.get("resample", processor.resample)
    if resample not in _RESAMPLE:
        raise ValueError(f"resample {resample!r} cannot be done here, only {_RESAMPLE}; {_MEND}")
    found["resample"] = _RESAMPLE[resample]
    if content.get("do_resize", True):
        found["resize"] = _resize(name, processor, content)
    shorter = found.get("resize")
    if name == "ConvNext" and isinstance(shorter, int):
        if content.get("do_center_crop"):
            raise ValueError(f"it asks for a second crop; {_MEND}")
        size: Any = content["size"]
        found["size"], found["crop"] = size["shortest_edge"] if isinstance(size, Mapping) else size, True
    elif content.get("do_center_crop", processor.crop):
        found["size"], found["crop"] = _sides(content.get("crop_size"), "crop_size"), True
    elif isinstance(shorter, list):
        found["size"], found["crop"] = shorter, False
    else:
        raise ValueError(f"it brings images to no fixed height and width; {_MEND}")
    if content.get("do_flip_channel_order", name == "MobileViT"):
        found["channels"] = "BGR"
    return found | _affine(name, content)


def _resize(name: str, processor: _Processor, content: Mapping[str, Any]) -> int | list[int]:
    """One number for the shorter side, or [height, width]."""
    size: Any = content.get("size")
    side: int | list[int]
    if _is_shortest(size):
        side = int(size["shortest_edge"])
    else:
        side = int(size) if _whole(size) and not processor.square else _sides(size, "size")
    if name == "ConvNext" and isinstance(side, int):
        # Cropped below 384 pixels only.
        return int(side / content.get("crop_pct", 224 / 256)) if side < 384 else [side, side]
    if name == "PoolFormer":
        share = content.get("crop_pct", 0.9)
        if isinstance(side, list) and side[0] == side[1]:
            side = side[0]
        return int(side / share) if isinstance(side, int) else [int(part / share) for part in side]
    return int(256 / 224 * side) if name == "Levit" and isinstance(side, int) else side


def _affine(name: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Mean and std of pixels scaled to [0, 1]: theirs are of pixels times a factor, less an offset."""
    scale = 255 * content.get("rescale_factor", 1 / 255) if content.get("do_rescale", True) else 255.0
    offset = 1.0 if content.get("rescale_offset") else 0.0
    mean, std = [0.0] * 3, [1.0] * 3
    given = _numbers(content.get("image_std")) if content.get("image_std") is not None else None
    if content.get("do_normalize", name != "MobileViT") and name != "MobileViT":
        if given is None or content.get("image_mean") is None:
            raise ValueError("it says neither image_mean nor image_std, nor that they are not used")
        mean, std = _numbers(content["image_mean"]), given
    if name == "EfficientNet" and content.get("include_top", True) and given is not None:
        std = [first * second for first, second in zip(std, given, strict=True)]
    return {"mean": [(m + offset) / scale for m in mean], "std": [s / scale for s in std]}


def _timm(content: Mapping[str, Any]) -> dict[str, Any]:
    own = content.get("pretrained_cfg", content)
    size = own.get("input_size") if isinstance(own, Mapping) else None
    if not (isinstance(size, (list, tuple)) and len(size) == 3 and all(map(_whole, size))):
        raise ValueError("its input_size is not [channels, height, width]")
    height, width = size[1:]
    mode, share = own.get("crop_mode") or "center", own.get("crop_pct") or 0.875
    if not isinstance(share, (int, float)) or not 0 < share <= 4:
        raise ValueError(f"crop_pct {share!r} is no share of the image")
    scaled = [math.floor(height / share), math.floor(width / share)]
    mean, std = own.get("mean") or [0.485, 0.456, 0.406], own.get("std") or [0.229, 0.224, 0.225]
    found: dict[str, Any] = {"size": [height, width], "mean": mean, "std": std}
    found["resample"] = own.get("interpolation") or "bicubic"
    if found["resample"] not in _RESAMPLE.values():
        raise ValueError(f"interpolation {found['resample']!r} cannot be done here; {_MEND}")
    if mode == "squash":
        found |= {"resize": scaled, "crop": True}
    elif mode == "center" and height == width:
        found |= {"resize": scaled[0], "crop": True}
    elif mode == "border" and share == 1:
        found["padding"] = [round(255 * value) for value in mean]
    else:
        raise ValueError(
            f"crop_mode {mode!r} with {height}x{width} pixels and crop_pct {share:g} cannot be done; {_MEND}"
        )
    if names := own.get("label_names", content.get("label_names")):
        found["classes"] = names
    return found


def _is_shortest(size: Any) -> bool:
    return (
        isinstance(size, Mapping)
        and _whole(size.get("shortest_edge"))
        and not (size.keys() - {"shortest_edge"})
    )


def _sides(size: Any, key: str) -> list[int]:
    if _whole(size):
        return [size, size]
    if isinstance(size, Mapping) and size.keys() == {"height", "width"}:
        return [size["height"], size["width"]]
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return list(size)
    raise ValueError(f"{key} {str(size)[:60]!r} is no height and width; {_MEND}")


def _numbers(value: Any) -> list[float]:
    found = [value] * 3 if isinstance(value, (int, float)) else value
    if not isinstance(found, list) or not all(isinstance(v, (int, float)) for v in found):
        raise ValueError(f"image_mean and image_std must be numbers, not {str(value)[:60]!r}")
    return found


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
