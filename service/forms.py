"""The three forms of a /predict body, split into encoded images. No image is decoded here, and nothing is
fetched.
"""

import binascii

import pydantic_core
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from detrigger.service.images import MEDIA_TYPES
from detrigger.service.problem import Problem

ACCEPTED = f"{', '.join(MEDIA_TYPES)}, multipart/form-data or application/json"
_FIELD = b"file"


def split(content_type: str, body: bytes, max_images: int) -> list[bytes]:
    """The images of a body, in the order sent; at least one and at most `max_images`.

    Raises:
        Problem: another content type, a body that does not parse, none or too many images.
    """
    if content_type in MEDIA_TYPES:  # the usual case, without parameters
        images = [body] if body else []
    else:
        kind, parameters = parse_options_header(content_type)
        if kind == b"multipart/form-data":
            images = _multipart(parameters.get(b"boundary", b""), body, max_images)
        elif kind == b"application/json":
            images = _json(body, max_images)
        elif kind.decode("latin-1") in MEDIA_TYPES:
            images = [body] if body else []
        else:
            raise Problem("unsupported_media_type", f"the content type must be {ACCEPTED}")
    if not images:
        raise Problem("empty_body", "send at least one image")
    return images


def _multipart(boundary: bytes, body: bytes, max_images: int) -> list[bytes]:
    """The parts named `file`."""
    if not boundary:
        raise Problem("malformed_body", "the content type names no multipart boundary")
    parts: list[bytes] = []
    header = bytearray()
    value = bytearray()
    data: list[memoryview] = []
    named: list[bool] = []
    view = memoryview(body)
    ended = False

    def on_part_begin() -> None:
        if len(named) > max_images:
            raise _too_many(max_images)
        named.append(False)
        data.clear()

    def on_header_field(chunk: bytes, start: int, end: int) -> None:
        header.extend(chunk[start:end])

    def on_header_value(chunk: bytes, start: int, end: int) -> None:
        value.extend(chunk[start:end])

    def on_header_end() -> None:
        if bytes(header).lower() == b"content-disposition":
            kind, options = parse_options_header(bytes(value))
            named[-1] = kind == b"form-data" and options.get(b"name") == _FIELD
        elif bytes(header).lower() == b"content-transfer-encoding" and bytes(value).strip().lower() not in (
            b"binary", b"8bit", b"7bit",
        ):  # fmt: skip
            raise Problem("malformed_body", "parts with a Content-Transfer-Encoding are not accepted")
        header.clear()
        value.clear()

    def on_part_data(chunk: bytes, start: int, end: int) -> None:
        data.append(view[start:end] if chunk is body else memoryview(chunk[start:end]))

    def on_part_end() -> None:
        if not named[-1]:
            raise Problem("malformed_body", "every part must be named `file`")
        parts.append(b"".join(data))

    def on_end() -> None:
        nonlocal ended
        ended = True

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": on_part_begin,
                "on_header_field": on_header_field,
                "on_header_value": on_header_value,
                "on_header_end": on_header_end,
                "on_part_data": on_part_data,
                "on_part_end": on_part_end,
                "on_end": on_end,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Problem("malformed_body", "the body is no well-formed multipart/form-data") from error
    if not ended:
        raise Problem("malformed_body", "the multipart body is cut short")
    if len(parts) > max_images:
        raise _too_many(max_images)
    return parts


def _json(body: bytes, max_images: int) -> list[bytes]:
    """`{"images": ["<base64>", ...]}`."""
    if body.count(b",") > 4 * max_images:  # millions of values would take the interpreter from everybody
        raise _too_many(max_images)
    try:
        content = pydantic_core.from_json(body)
    except ValueError as error:
        raise Problem("malformed_body", "the body is no valid JSON") from error
    texts = content.get("images") if isinstance(content, dict) else None
    if not isinstance(texts, list) or set(content) != {"images"}:
        raise Problem("malformed_body", 'the JSON must be {"images": ["<base64>", ...]}')
    if len(texts) > max_images:
        raise _too_many(max_images)
    images: list[bytes] = []
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise Problem("malformed_body", f"images[{position}] must be a string of base64")
        if text[:8].lower().startswith(("http:", "https:", "data:", "file:", "ftp:", "s3:")):
            raise Problem(
                "url_not_accepted", f"images[{position}] is a URL; send the image itself as plain base64"
            )
        try:
            images.append(binascii.a2b_base64(text, strict_mode=True))
        except ValueError as error:
            raise Problem("malformed_body", f"images[{position}] is not valid base64") from error
    return images


def _too_many(limit: int) -> Problem:
    return Problem("too_many_images", f"a request may hold {limit} images at most")
