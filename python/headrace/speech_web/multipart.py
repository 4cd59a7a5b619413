"""multipart/form-data (RFC 7578): a body's parts by name."""

from __future__ import annotations

from dataclasses import dataclass
from email.message import Message
from email.parser import BytesHeaderParser

from headrace.errors import InvalidArgumentError

__all__ = ["Part", "parse_form"]

_MOST_PARTS = 64


@dataclass(frozen=True)
class Part:
    name: str
    filename: str
    data: bytes

    @property
    def text(self) -> str:
        try:
            return self.data.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise InvalidArgumentError(f"field '{self.name}' is not UTF-8") from None


def parse_form(content_type: str, body: bytes) -> list[Part]:
    """InvalidArgumentError when it is none."""
    about = Message()
    about["Content-Type"] = content_type
    boundary = about.get_param("boundary")
    if about.get_content_type() != "multipart/form-data" or not isinstance(boundary, str):
        raise InvalidArgumentError("the body must be multipart/form-data with a boundary")
    mark = b"--" + boundary.encode("latin-1", "replace")
    at = 0 if body.startswith(mark) else body.find(b"\r\n" + mark) + 2
    if at == 1:
        raise InvalidArgumentError("the body does not have its boundary")
    parts: list[Part] = []
    while True:
        at += len(mark)
        if body.startswith(b"--", at):
            return parts
        start = body.find(b"\r\n", at)
        end = body.find(b"\r\n" + mark, start if start >= 0 else at)
        if start < 0 or end < 0:
            raise InvalidArgumentError("the body ends before its last boundary")
        if len(parts) == _MOST_PARTS:
            raise InvalidArgumentError(f"the body has more than {_MOST_PARTS} parts")
        parts.append(_part(body, start + 2, end))
        at = end + 2


def _part(body: bytes, start: int, end: int) -> Part:
    split = body.find(b"\r\n\r\n", start, end)
    if split < 0 or split - start > 8192:
        raise InvalidArgumentError("a part of the body has no headers")
    headers = BytesHeaderParser().parsebytes(body[start : split + 4])
    name = headers.get_param("name", header="content-disposition")
    if not isinstance(name, str):
        raise InvalidArgumentError("a part of the body has no name")
    return Part(name, headers.get_filename() or "", body[split + 4 : end])
