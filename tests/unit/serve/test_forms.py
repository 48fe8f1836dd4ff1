"""Bodies become fields, or a sentence about what is wrong with them; nothing else."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from urllib3 import encode_multipart_formdata

from forwardpass.core.uploads import Upload
from forwardpass.errors import MalformedRequest, RequestError, UnsupportedMediaType
from forwardpass.serve.forms import MAX_PARTS, decode_fields
from forwardpass.serve.streaming import wants_events

FILES = {"image": ("image/png", "image/jpeg")}
BOUNDARY = "xyz"
TYPE = f"multipart/form-data; boundary={BOUNDARY}"


def part(name: str, content: bytes, *headers: str, extra: str = "") -> bytes:
    lines = [f'Content-Disposition: form-data; name="{name}"{extra}', *headers]
    return f"--{BOUNDARY}\r\n".encode() + "\r\n".join(lines).encode() + b"\r\n\r\n" + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def test_files_texts_and_json_of_a_form() -> None:
    body = form(
        part("image", b"\x89PNG\r\n--xy", "Content-Type: image/png", extra='; filename="../../etc/passwd"'),
        part("note", "grüße".encode()),
        part("options", b'{"top": 3}', "Content-Type: application/json"),
    )
    assert decode_fields(body, TYPE, FILES) == {
        "image": Upload(content=b"\x89PNG\r\n--xy", media_type="image/png"),
        "note": "grüße",
        "options": {"top": 3},
    }


def test_a_name_that_stands_at_several_parts_becomes_a_list_in_their_order() -> None:
    body = form(part("text", b"one"), part("text", b"two"))
    assert decode_fields(body, TYPE, {}) == {"text": ["one", "two"]}


@pytest.mark.parametrize(
    ("content_type", "fields"),
    [
        ("image/png", {"image": Upload(content=b'{"a": 1}', media_type="image/png")}),
        ("IMAGE/PNG; x=y", {"image": Upload(content=b'{"a": 1}', media_type="image/png")}),
        ("application/octet-stream", {"image": Upload(content=b'{"a": 1}')}),
        ("application/json", {"a": 1}),
        ("application/x-www-form-urlencoded", {"a": 1}),
        ("", {"a": 1}),
    ],
)
def test_a_bare_body_is_what_its_type_says(content_type: str, fields: object) -> None:
    assert decode_fields(b'{"a": 1}', content_type, FILES) == fields


@pytest.mark.parametrize("content_type", ["image/gif", "audio/wav", "multipart/mixed; boundary=a", "video/mp4"])
def test_a_body_of_another_kind_is_refused_with_what_is_taken(content_type: str) -> None:
    with pytest.raises(UnsupportedMediaType) as refusal:
        decode_fields(b"", content_type, FILES)
    assert str(refusal.value) == (
        f"The media type '{content_type.partition(';')[0]}' is not taken here; expected application/json or "
        "multipart/form-data or image/jpeg or image/png."
    )


def test_a_bare_file_without_its_type_gets_a_hint() -> None:
    with pytest.raises(MalformedRequest, match="a file is sent as multipart/form-data, or as the whole body with its"):
        decode_fields(b"\x89PNG", "", FILES)
    with pytest.raises(MalformedRequest, match=r"\(byte 0\)\.$"):
        decode_fields(b"\x89PNG", "", {})


HOSTILE = {
    "no boundary": ("multipart/form-data", form(part("a", b"")), "empty boundary"),
    "another boundary": (f"{TYPE}z", form(part("a", b"")), "boundary not found"),
    "cut off": (TYPE, part("a", b"b"), "unexpected end"),
    "nothing": (TYPE, b"", "unexpected end"),
    "no name": (TYPE, form(part("", b"")), "has no name"),
    "an unprintable name": (TYPE, form(part("a\x07", b"")), "unprintable"),
    "10 000 parts": (TYPE, form(*[part("a", b"")] * 10_000), "segment count exceeded"),
    "a huge header": (TYPE, form(part("a", b"", f"X-Long: {'x' * 100_000}")), "header length exceeded"),
    "many headers": (TYPE, form(part("a", b"", *["X: y"] * 100)), "header count exceeded"),
    "no text": (TYPE, form(part("a", b"\xff")), "the text of 'a' is not UTF-8"),
    "no JSON": (TYPE, form(part("a", b"{", "Content-Type: application/json")), "truncated"),
    "deep JSON": (TYPE, form(part("a", b"[" * 10**6, "Content-Type: application/json")), "nested too deeply"),
    "an unwanted file": (TYPE, form(part("a", b"", extra='; filename="f"')), "'a' is not a file of this model"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_forms_are_named(case: str) -> None:
    content_type, body, said = HOSTILE[case]
    with pytest.raises(MalformedRequest, match=said):
        decode_fields(body, content_type, FILES)


def test_a_part_that_is_a_form_itself_is_refused() -> None:
    nested = part("a", form(part("b", b"")), "Content-Type: multipart/mixed; boundary=abc")
    with pytest.raises((UnsupportedMediaType, MalformedRequest)):
        decode_fields(form(nested), TYPE, FILES)
    with pytest.raises(UnsupportedMediaType, match="'image/gif' is not taken here; expected image/png or image/jpeg"):
        decode_fields(form(part("image", b"", "Content-Type: image/gif")), TYPE, FILES)


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "ü-c", 'q"d']), st.binary(max_size=200)), max_size=8),
    st.from_regex(r"[A-Za-z0-9'()+_,./:=?-]{1,70}", fullmatch=True),
)
def test_what_urllib3_writes_is_read_back(parts: list[tuple[str, bytes]], boundary: str) -> None:
    assume(not any(b"--" + boundary.encode() in content for _, content in parts))
    files = [(name, ("f.png", content, "image/png")) for name, content in parts]
    body, _ = encode_multipart_formdata(files, boundary)
    names = [name for name, _ in parts]
    read = decode_fields(body, f'multipart/form-data; boundary="{boundary}"', dict.fromkeys(names, ("image/png",)))
    flat = {name: value if isinstance(value, list) else [value] for name, value in read.items()}
    assert flat == {
        name: [Upload(content=content, media_type="image/png") for other, content in parts if other == name]
        for name in names
    }


@given(st.binary(max_size=400), st.lists(st.sampled_from([b"--xyz", b"\r\n", b"--", b":", b"\r\n--xyz--"])), st.text())
def test_any_bytes_are_fields_or_a_request_error(noise: bytes, pieces: list[bytes], content_type: str) -> None:
    for kind in (TYPE, content_type):
        for body in (noise, noise.join(pieces), form(part("image", noise, "Content-Type: image/png"))):
            try:
                fields = decode_fields(body, kind, FILES)
            except RequestError:
                continue
            assert isinstance(fields, dict)
            assert len(fields) <= MAX_PARTS


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("text/event-stream", True),
        ("Text/Event-Stream;q=0.5, */*", True),
        ("application/json, text/event-stream", True),
        ("text/event-stream;q=0, application/json", False),
        ("text/event-stream; q=0.00", False),
    ],
)
def test_who_gets_events(accept: str, wanted: bool) -> None:
    assert wants_events(accept, are_available=True) is wanted
