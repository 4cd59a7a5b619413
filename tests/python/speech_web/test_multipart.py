from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import InvalidArgumentError
from headrace.speech_web.multipart import Part, parse_form

TYPE = "multipart/form-data; boundary=xyz"


def form(*parts: tuple[str, bytes]) -> bytes:
    out = b""
    for head, data in parts:
        out += b"--xyz\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + data
        out += b"\r\n"
    return out + b"--xyz--\r\n"


@settings(max_examples=30)
@given(st.lists(st.binary(), max_size=4))
def test_any_bytes_come_through(contents: list[bytes]) -> None:
    contents = [data for data in contents if b"\r\n--xyz" not in data]
    body = form(*((f'name="f{n}"', data) for n, data in enumerate(contents)))
    assert parse_form(TYPE, body) == [Part(f"f{n}", "", data) for n, data in enumerate(contents)]


def test_names() -> None:
    body = b"preamble\r\n" + form(
        ('name="file"; filename="a \\"b\\".wav"', b"\0\r\n\r\n"), ("name=x", b"1")
    )
    file, other = parse_form('multipart/form-data; boundary="xyz"', body)
    assert (file.name, file.filename, file.data) == ("file", 'a "b".wav', b"\0\r\n\r\n")
    assert other.text == "1"
    with pytest.raises(InvalidArgumentError, match="UTF-8"):
        _ = Part("x", "", b"\xff").text


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", form()),
        ("", b""),
        (TYPE, b""),
        (TYPE, b"--xyz"),
        (TYPE, b"--xyz\r\n"),
        (TYPE, b"--xyz\r\nContent-Disposition: form-data; name=a\r\n\r\nendless"),
        (TYPE, b"--xyz\r\nno headers\r\n--xyz--"),
        (TYPE, form(("filename=a", b"1"))),
        (TYPE, form(*[("name=a", b"1")] * 65)),
    ],
)
def test_what_is_no_form(kind: str, body: bytes) -> None:
    with pytest.raises(InvalidArgumentError):
        parse_form(kind, body)


@settings(max_examples=30)
@given(st.binary(max_size=200))
def test_noise(noise: bytes) -> None:
    for body in (noise, b"--xyz\r\n" + noise, form(("name=a", b"1"))[: len(noise)] + noise):
        with contextlib.suppress(InvalidArgumentError):
            parse_form(TYPE, body)
