"""Bodies of /predict as clients write them, split into images."""

import base64
import json
import textwrap
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detrigger.service.forms import MAX_TEXT_FIELDS, split
from detrigger.service.images import FORMATS
from detrigger.service.problem import Problem
from tests.toys import png, toy_image

IMAGE = png(toy_image(0))
OTHER = png(toy_image(1), "JPEG")
Part = tuple[str, bytes]


def form(parts: Sequence[Part]) -> bytes:
    """A multipart body with the boundary `b`, of headers and contents."""
    return (
        b"".join(b"--b\r\n" + head.encode() + b"\r\n\r\n" + data + b"\r\n" for head, data in parts)
        + b"--b--\r\n"
    )


def named(name: str, data: bytes = IMAGE, filename: str | None = "a.png") -> Part:
    return f'Content-Disposition: form-data; name="{name}"' + (
        f'; filename="{filename}"' if filename else ""
    ), data


def refused(content_type: str, body: bytes, max_images: int = 32) -> Problem:
    with pytest.raises(Problem) as caught:
        split(content_type, body, max_images)
    return caught.value


CONTENT_TYPES = [
    "", "image/jpg", "image/pjpeg", "image/*", "application/octet-stream", "application/x-www-form-urlencoded",
    "binary/octet-stream", "text/plain", "image/png; charset=utf-8", "IMAGE/PNG", "nonsense",
]  # fmt: skip


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
@pytest.mark.parametrize("image_format", FORMATS)
def test_an_image_is_known_by_its_bytes(content_type: str, image_format: str) -> None:
    data = png(toy_image(0), image_format)
    assert split(content_type, data, 1) == [data]


@pytest.mark.parametrize(
    ("content_type", "body", "code", "says"),
    [
        ("", b"", "empty_body", "at least one"),
        ("application/octet-stream", b"", "empty_body", "at least one"),
        ("", b"hello", "unsupported_media_type", "no content type is given"),
        ("application/octet-stream", b"GIF89a", "unsupported_media_type", "PNG, JPEG, WebP or BMP"),
        ("application/x-www-form-urlencoded", b' {"images": []}', "unsupported_media_type", "application/json"),
        ("application/x-www-form-urlencoded", b"file=%89PNG", "unsupported_media_type", "no PNG"),
        ("text/plain", form([named("file")]), "unsupported_media_type", "boundary"),
        ("multipart/form-data; boundary=b", form([named("comment", b"hi", None)]), "empty_body", "no part"),
        ("multipart/form-data; boundary=b", b"--b--\r\n", "empty_body", "at least one"),
        ("multipart/form-data; boundary=b", form([named("a")] * 3), "too_many_images", "2 images"),
        (
            "multipart/form-data; boundary=b",
            form([named("a"), *[named("t", b"x", None)] * (MAX_TEXT_FIELDS + 1)]),
            "too_many_images", "fields of text",
        ),
        (
            "multipart/form-data; boundary=b",
            form([("Content-Disposition: form-data; name=file\r\nContent-Transfer-Encoding: base64", b"AAAA")]),
            "malformed_body", "Transfer-Encoding",
        ),
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused(content_type: str, body: bytes, code: str, says: str) -> None:
    problem = refused(content_type, body, 2)
    assert problem.code == code
    assert says in str(problem.detail)


@pytest.mark.parametrize(
    "part",
    [
        named("file"),
        named("file", filename=None),
        named("image"),
        named("files"),
        named("file[]"),
        named("", filename="x"),
        ("Content-Disposition: form-data; name=upload; filename*=UTF-8''na%C3%AFve.png", IMAGE),
        ("content-disposition: form-data; name=picture\r\ncontent-type: image/png", IMAGE),
    ],
)
def test_a_file_counts_under_any_name_and_text_does_not(part: Part) -> None:
    kind = "multipart/form-data; boundary=b"
    assert split(kind, form([part]), 1) == [IMAGE]
    around = [named("comment", b"hello", None), part, named("top_k", b"3", None), named("file", OTHER)]
    assert split(kind, form(around), 2) == [IMAGE, OTHER]
    assert split(kind, form([part, *[named("t", b"x", None)] * MAX_TEXT_FIELDS]), 1) == [IMAGE]


def spellings() -> dict[str, str]:
    """The same image in base64 as encoders write it."""
    plain, safe = base64.b64encode(OTHER).decode(), base64.urlsafe_b64encode(OTHER).decode()
    assert plain != safe
    return {
        "plain": plain,
        "mime": base64.encodebytes(OTHER).decode(),
        "pem": "\r\n".join(textwrap.wrap(plain, 64)),
        "url-safe": safe,
        "unpadded": plain.rstrip("="),
        "both": safe.rstrip("=") + "\n",
        "spaces": f"  {plain[:40]} {plain[40:]}\t",
        "data": f"data:image/jpeg;base64,{plain}",
        "bare data": f"data:;base64,{plain}",
        "long data": f"data:image/jpeg;name=a.jpg;charset=x;base64,{safe.rstrip('=')}",
        "shouting": f" DATA:IMAGE/JPEG;BASE64,{plain}",
    }


@pytest.mark.parametrize("name", spellings())
def test_base64_is_read_however_it_is_written(name: str) -> None:
    body = json.dumps({"images": [spellings()[name]] * 2}).encode()
    assert split("application/json; charset=utf-8", body, 2) == [OTHER, OTHER]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("@@@@", "malformed_body"),
        ("AAAAA", "malformed_body"),
        ("AA=AA", "malformed_body"),
        ("\u00e9AAA", "malformed_body"),
        ("data:image/png,AAAA", "malformed_body"),
        ("data:image/png;base64", "malformed_body"),
        ("data:image/svg+xml;utf8,<svg/>", "malformed_body"),
        ("http://127.0.0.1/a.png", "url_not_accepted"),
        (" HTTPS://example.org/a.png", "url_not_accepted"),
        ("file:///etc/passwd", "url_not_accepted"),
        ("s3://bucket/a.png", "url_not_accepted"),
    ],
)
def test_what_is_no_base64_is_refused_and_nothing_is_fetched(text: str, code: str) -> None:
    problem = refused("application/json", json.dumps({"images": ["AAAA", text]}).encode())
    assert problem.code == code
    assert "images[1]" in str(problem.detail)


@settings(deadline=None)
@given(
    st.binary(max_size=300),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["", "data:image/png;base64,", "data:;base64,"]),
    st.integers(1, 80),
    st.sampled_from(["", "\n", "\r\n", " "]),
)
def test_every_way_to_write_base64_gives_the_bytes_back(
    data: bytes, safe: bool, padded: bool, before: str, width: int, between: str
) -> None:
    text = (base64.urlsafe_b64encode if safe else base64.b64encode)(data).decode()
    text = text if padded else text.rstrip("=")
    text = before + between.join(textwrap.wrap(text, width))
    assert split("application/json", json.dumps({"images": [text]}).encode(), 1) == [data]


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(
        [*CONTENT_TYPES, "multipart/form-data; boundary=b", "multipart/form-data", "application/json"]
    )
    | st.text(st.characters(max_codepoint=255), max_size=30),  # headers are Latin-1
    st.binary(max_size=200)
    | st.lists(
        st.tuples(st.sampled_from([named("f")[0], named("t", b"", None)[0], "X: y"]), st.binary(max_size=20))
    ).map(form)
    | st.lists(st.text(max_size=20), max_size=5).map(lambda texts: json.dumps({"images": texts}).encode()),
)
def test_whatever_the_body_images_or_a_problem(content_type: str, body: bytes) -> None:
    try:
        images = split(content_type, body, 3)
    except Problem as problem:
        assert 400 <= problem.status_code < 500  # noqa: PT017 - most are answered
        return
    assert 1 <= len(images) <= 3
    assert sum(map(len, images)) <= len(body)
