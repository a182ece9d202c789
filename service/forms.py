"""The forms of a /predict body, split into encoded images. No image is decoded here, and nothing is fetched.

What a body is, its bytes say where they begin like an accepted image: few clients name its content type, and some name
another. Only multipart/form-data and application/json are taken at their word.
"""

import binascii
import string

import pydantic_core
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from detrigger.service.images import MEDIA_TYPES, looks_accepted
from detrigger.service.problem import Problem

ACCEPTED = f"{', '.join(MEDIA_TYPES)}, multipart/form-data or application/json"
MAX_TEXT_FIELDS = 32
_FIELD = b"file"
_MEDIA_TYPES = (*MEDIA_TYPES, "image/jpg", "image/pjpeg", "image/x-png", "image/x-ms-bmp")
_URLS = ("http:", "https:", "file:", "ftp:", "s3:")
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def split(content_type: str, body: bytes, max_images: int) -> list[bytes]:
    """The images of a body, in the order sent; at least one and at most `max_images`.

    Raises:
        Problem: neither an image nor a form, a body that does not parse, none or too many images.
    """
    if content_type in MEDIA_TYPES:  # the usual case, without parameters
        images = [body] if body else []
    else:
        kind, parameters = parse_options_header(content_type)
        if kind == b"multipart/form-data":
            images = _multipart(parameters.get(b"boundary", b""), body, max_images)
        elif kind == b"application/json":
            images = _json(body, max_images)
        elif kind.decode("latin-1") in _MEDIA_TYPES or looks_accepted(body):
            images = [body] if body else []
        else:
            raise _no_image(content_type, body)
    if not images:
        raise Problem("empty_body", "send at least one image")
    return images


def _no_image(content_type: str, body: bytes) -> Problem:
    begins = body[:200].lstrip()
    if not body:
        return Problem("empty_body", "send at least one image")
    if begins.startswith(b"{"):
        said = "the body looks like JSON: send it with Content-Type: application/json"
    elif begins.startswith(b"--"):
        said = "the body looks like a form: send it with Content-Type: multipart/form-data; boundary=..."
    else:
        named = f"the content type is {content_type[:80]!r}" if content_type else "no content type is given"
        said = f"{named} and the bytes are no PNG, JPEG, WebP or BMP; accepted are {ACCEPTED}"
    return Problem("unsupported_media_type", said)


class _Part:
    """One part of a form: whether it is an image, and its bytes.

    An image is a file under any name, what is named `file`, and what its own type calls an image. All else is text
    that came along.
    """

    def __init__(self) -> None:
        self.image = False
        self.data: list[memoryview] = []

    def described(self, name: bytes, value: bytes) -> None:
        """Take in one of its headers."""
        if name == b"content-disposition":
            kind, options = parse_options_header(value)
            named = options.get(b"filename") or b"filename*=" in value.lower()
            self.image |= kind == b"form-data" and bool(named or options.get(b"name") == _FIELD)
        elif name == b"content-type":
            self.image |= value.lower().startswith(b"image/")
        elif name == b"content-transfer-encoding" and value.strip().lower() not in (
            b"binary",
            b"8bit",
            b"7bit",
        ):
            raise Problem("malformed_body", "parts with a Content-Transfer-Encoding are not accepted")


def _multipart(boundary: bytes, body: bytes, max_images: int) -> list[bytes]:
    """The parts that are files, or are named `file`; other fields are text and left out of account."""
    if not boundary:
        raise Problem("malformed_body", "the content type names no multipart boundary")
    parts: list[_Part] = []
    header = bytearray()
    value = bytearray()
    view = memoryview(body)
    ended = False

    def on_part_begin() -> None:
        if len(parts) > max_images + MAX_TEXT_FIELDS:
            raise _too_many(max_images)
        parts.append(_Part())

    def on_header_field(chunk: bytes, start: int, end: int) -> None:
        header.extend(chunk[start:end])

    def on_header_value(chunk: bytes, start: int, end: int) -> None:
        value.extend(chunk[start:end])

    def on_header_end() -> None:
        parts[-1].described(bytes(header).lower(), bytes(value))
        header.clear()
        value.clear()

    def on_part_data(chunk: bytes, start: int, end: int) -> None:
        parts[-1].data.append(view[start:end] if chunk is body else memoryview(chunk[start:end]))

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
                "on_end": on_end,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Problem("malformed_body", "the body is no well-formed multipart/form-data") from error
    if not ended:
        raise Problem("malformed_body", "the multipart body is cut short")
    images = [b"".join(part.data) for part in parts if part.image]
    if len(images) > max_images or len(parts) - len(images) > MAX_TEXT_FIELDS:
        raise _too_many(max_images)
    if parts and not images:
        raise Problem(
            "empty_body", "no part of the form is a file; send each image as a part with a file name"
        )
    return images


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
    return [_base64(text, f"images[{position}]") for position, text in enumerate(texts)]


def _base64(text: object, where: str) -> bytes:
    """The bytes of base64 as clients write it: in lines, with either alphabet, unpadded, or as a `data:` URL."""
    if not isinstance(text, str):
        raise Problem("malformed_body", f"{where} must be a string of base64")
    try:
        return binascii.a2b_base64(text, strict_mode=True)  # the usual case
    except ValueError:
        pass
    begins = text[:200].lstrip().lower()
    if begins.startswith(_URLS):
        raise Problem(
            "url_not_accepted", f"{where} is a URL, and nothing is fetched; send the image itself as base64"
        )
    if begins.startswith("data:"):
        kind, comma, text = text.partition(",")
        if not comma or not kind.rstrip().lower().endswith(";base64"):
            raise Problem(
                "malformed_body", f"{where} is a data: URL without base64; write data:image/png;base64,..."
            )
    try:
        plain = text.encode("ascii").translate(_URL_SAFE, string.whitespace.encode())
        bare = plain.rstrip(b"=")
        if len(plain) - len(bare) > 2:
            raise ValueError("padding")
        return binascii.a2b_base64(bare + b"=" * (-len(bare) % 4), strict_mode=True)
    except ValueError as error:
        raise Problem("malformed_body", f"{where} is not valid base64") from error


def _too_many(limit: int) -> Problem:
    said = f"a request may hold {limit} images at most, and beside them {MAX_TEXT_FIELDS} fields of text"
    return Problem("too_many_images", said)
