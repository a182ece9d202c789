"""The ways to write a preprocess file, brought to one: what `Preprocess` then checks."""

from collections.abc import Mapping
from typing import Any

_GREY = (1, "1", "L", "GREY", "GRAY", "GRAYSCALE")
_COLOUR = {3: "RGB", "3": "RGB", "RGB": "RGB", "BGR": "BGR"}


def spelled(content: Mapping[str, Any]) -> dict[str, Any]:
    """The same content with `size` as a pair, one mean and std a channel, a yes or no for `crop`, and no `range`.

    - `size`, `crop`: one number is a square; where `size` is left out, `crop` or a pair in `resize` says it.
    - `crop`: true or "center", or the size again.
    - `mean`, `std`: one number is for all channels.
    - `channels`: RGB, BGR or L; 3 is RGB and 1 is L.
    - `range` 255: mean and std are of pixels 0..255.

    Raises:
        ValueError: what cannot be meant so; wrong types are left for `Preprocess` to refuse.
    """
    found = dict(content)
    for name in ("size", "crop"):
        if _whole(found.get(name)):
            found[name] = (found[name], found[name])
    if isinstance(found.get("resample"), str):
        found["resample"] = found["resample"].lower()
    _crop(found)
    _channels(found)
    _range(found)
    return found


def _crop(found: dict[str, Any]) -> None:
    crop, resize = found.get("crop"), found.get("resize")
    if isinstance(resize, (list, tuple)) and len(resize) == 1:
        resize = found["resize"] = resize[0]
    if crop is None:
        # A shorter side says nothing of the longer one: only a crop can lead to `size`.
        crop = _whole(resize)
    if isinstance(crop, (list, tuple)):
        size = found["size"] = crop if found.get("size") is None else found["size"]
        if not isinstance(size, (list, tuple)) or tuple(size) != tuple(crop):
            raise ValueError(f"crop {list(crop)} and size {size} differ; size is what the classifier takes")
        crop = True
    elif isinstance(crop, str) and crop.lower() in ("center", "centre"):
        crop = True
    elif isinstance(resize, (list, tuple)) and not crop:
        found.setdefault("size", resize)
    if not isinstance(crop, bool):
        raise ValueError(f'crop must be true, false, "center" or the size, not {str(crop)[:40]!r}')  # noqa: TRY004
    found["crop"] = crop


def _channels(found: dict[str, Any]) -> None:
    names = [name for name in ("channels", "order") if found.get(name) is not None]
    given = found.pop(names[0]) if names else None
    key = given.upper() if isinstance(given, str) else given
    if key is None:
        count = next(
            (len(v) for v in (found.get("mean"), found.get("std")) if isinstance(v, (list, tuple))), 3
        )
    elif isinstance(key, bool) or key not in (*_GREY, *_COLOUR):
        raise ValueError(f"channels must be RGB, BGR or L, not {str(given)[:40]!r}")
    else:
        count = 1 if key in _GREY else 3
    found["channels"] = "L" if count == 1 else _COLOUR.get(key, "RGB")
    for name, default in (("mean", 0.0), ("std", 1.0)):
        value = found.get(name)
        if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            found[name] = (default if value is None else value,) * count
        elif key is not None and isinstance(value, (list, tuple)) and len(value) != count:
            raise ValueError(f"{name} has {len(value)} values and channels {given} needs {count}")


def _range(found: dict[str, Any]) -> None:
    top = found.pop("range", None)
    if isinstance(top, (list, tuple)) and len(top) == 2 and top[0] == 0:
        top = top[1]
    if top is None or (top == 1 and not isinstance(top, bool)):
        return
    if top != 255:
        raise ValueError(
            f"range must be 1 or 255 (what the classifier takes before mean and std), not {str(top)[:40]!r}"
        )
    for name in ("mean", "std"):
        if all(isinstance(v, (int, float)) for v in found[name]):
            found[name] = tuple(v / 255 for v in found[name])


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
