"""Writes the seeds of corpus/<target>/ that are made by hand; the others were found by running.

python tests/fuzz/make_corpus.py
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"


def seed(target: str, name: str, content: bytes) -> None:
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"seed-{name}").write_bytes(content)


# --- connection: see Session::act() --------------------------------------------------------------


def request(path: int, form: int = 0, end: bool = False, more: bytes = b"") -> bytes:
    return bytes([2, form, path]) + more + bytes([int(end)])


def message(back: int, text: bytes, form: int = 1) -> bytes:
    return bytes([5, back, form, len(text)]) + text


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return bytes([1, kind, flags, stream, len(payload)]) + payload


WHOLE, AND_STOP = b"\0", b"\2"
ECHO, HOLD, CHAT, LAZY, NONE, ROOT = range(6)
GRANT, ANSWER, TIME = 13, 12, 11

seed("connection", "unary", WHOLE + request(ECHO) + message(0, b"hello"))
seed(
    "connection",
    "two-at-once",
    WHOLE + request(ECHO) + request(ECHO) + message(1, b"a") + message(0, b"b"),
)
seed("connection", "hold-answer", WHOLE + request(HOLD) + message(0, b"x") + bytes([ANSWER, 0, 1]))
seed(
    "connection",
    "hold-stream",
    WHOLE + request(HOLD) + message(0, b"x") + bytes([ANSWER, 0, 4, ANSWER, 0, 8, ANSWER, 0, 2]),
)
seed("connection", "hold-stop", AND_STOP + request(HOLD) + message(0, b"x"))
seed(
    "connection",
    "chat",
    WHOLE + request(CHAT) + message(0, b"one", 0) + message(0, b"two", 0) + message(0, b"", 1),
)
seed(
    "connection",
    "lazy",
    WHOLE
    + request(LAZY)
    + message(0, b"one", 0)
    + message(0, b"two", 1)
    + bytes([GRANT, 0, GRANT, 0]),
)
seed(
    "connection",
    "lazy-stop",
    AND_STOP + request(LAZY) + message(0, b"one", 0) + bytes([14, 1, 0x40, 0, 7]),
)
seed(
    "connection",
    "deadline",
    WHOLE + request(HOLD, 4, more=b"\x0310m") + message(0, b"x") + bytes([TIME, 0, 200]),
)
seed("connection", "reset", WHOLE + request(CHAT) + message(0, b"x", 0) + bytes([8, 1]))
seed(
    "connection",
    "gzip",
    WHOLE + request(ECHO, 24) + message(0, gzip.compress(b"x" * 50, mtime=0), 0x43),
)
seed("connection", "deflate", WHOLE + request(ECHO, 8) + message(0, zlib.compress(b"x" * 50), 0x43))
seed(
    "connection",
    "unknown",
    WHOLE + request(NONE, end=True) + request(ROOT, 1, end=True) + request(ECHO, 2, end=True),
)
seed(
    "connection",
    "metadata",
    WHOLE + request(ECHO, 32, more=b"\x05k-bin\x04AQ==") + message(0, b"x"),
)
seed(
    "connection",
    "hpack",
    WHOLE + request(ECHO, 64, more=b"\x06\x40\x01k\x01v\xbe") + message(0, b"x"),
)
seed(
    "connection",
    "windows",
    WHOLE
    + bytes([10, 4, 0, 0, 0, 1])
    + request(ECHO)
    + message(0, b"abc")
    + bytes([9, 1, 0, 0, 0, 9, 9, 0, 0, 0, 0, 9]),
)
seed(
    "connection",
    "ping-goaway",
    WHOLE + frame(6, 0, 0, b"12345678") + frame(7, 0, 0, bytes(8)) + frame(4, 1, 0, b""),
)
seed("connection", "priority-push", WHOLE + frame(2, 0, 1, bytes(5)) + frame(5, 4, 1, bytes(8)))
seed("connection", "continuation", WHOLE + frame(1, 0, 1, b"\x82") + frame(9, 4, 1, b"\x86\x84"))
seed("connection", "padding", WHOLE + request(ECHO) + bytes([7, 1, 9, 8, 2]) + b"\0\0\0\0\0\0\0")
seed(
    "connection",
    "shutdown",
    WHOLE + request(HOLD) + message(0, b"x") + bytes([15, 0]) + request(ECHO) + message(0, b"y"),
)
seed("connection", "no-preface", b"\1" + bytes([0, 18]) + b"GET / HTTP/1.1\r\n\r\n")
seed(
    "connection",
    "long-message",
    WHOLE
    + request(ECHO)
    + bytes([0, 14])
    + frame(0, 0, 1, b"\0\0\0\x40\0")[5:]
    + bytes([14, 1, 0x40, 0, 1]),
)

# --- infer_decode --------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    out = bytearray()
    value &= 2**64 - 1
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def text(field: int, value: bytes | str) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(value)) + value


def tensor(
    datatype: str, shape: list[int], contents: bytes | None = None, name: str = "X"
) -> bytes:
    body = text(1, name) + text(2, datatype) + text(3, b"".join(map(varint, shape)))
    return text(5, body + (b"" if contents is None else text(5, contents)))


def parameter(key: str, choice: bytes) -> bytes:
    return text(1, key) + text(2, choice)


HEAD = text(1, "model") + text(2, "1") + text(3, "id")
seed("infer_decode", "raw", HEAD + tensor("FP32", [1, 2]) + text(7, bytes(8)))
seed(
    "infer_decode",
    "two-raw",
    HEAD
    + tensor("FP32", [2])
    + tensor("INT8", [3], name="Y")
    + text(6, text(1, "O"))
    + text(7, bytes(8))
    + text(7, b"abc"),
)
for field, datatype, values in (
    (1, "BOOL", [1, 0]),
    (2, "INT32", [-1, 5]),
    (2, "INT8", [-1, 300]),
    (3, "INT64", [2**62, -2]),
    (4, "UINT16", [65535, 1]),
    (5, "UINT64", [2**64 - 1]),
):
    packed = b"".join(map(varint, values))
    seed(
        "infer_decode",
        f"typed-{datatype.lower()}",
        HEAD + tensor(datatype, [len(values)], text(field, packed)),
    )
    unpacked = b"".join(number(field, v) for v in values)
    seed(
        "infer_decode",
        f"unpacked-{datatype.lower()}",
        HEAD + tensor(datatype, [len(values)], unpacked),
    )
seed("infer_decode", "typed-fp32", HEAD + tensor("FP32", [2], text(6, struct.pack("<2f", 1, -2))))
seed(
    "infer_decode",
    "split-fp32",
    HEAD + tensor("FP32", [2], text(6, struct.pack("<f", 1)) + b"\x35" + struct.pack("<f", 2)),
)
seed("infer_decode", "typed-fp64", HEAD + tensor("FP64", [1], text(7, struct.pack("<d", 1))))
seed("infer_decode", "typed-bytes", HEAD + tensor("BYTES", [2], text(8, b"ab") + text(8, b"")))
seed(
    "infer_decode",
    "two-contents",
    HEAD
    + text(
        5,
        text(1, "X")
        + text(2, "FP32")
        + number(3, 2)
        + text(5, text(6, bytes(4)))
        + text(5, text(6, bytes(4))),
    ),
)
seed("infer_decode", "wrong-field", HEAD + tensor("FP32", [1], text(7, bytes(8))))
choices = [
    number(1, 1),
    number(2, -3),
    text(3, "s"),
    b"\x21" + struct.pack("<d", 2.5),
    number(5, 7),
]
seed(
    "infer_decode",
    "parameters",
    HEAD + b"".join(text(4, parameter(f"k{i}", c)) for i, c in enumerate(choices)),
)
own = [
    ("priority", choices[1]),
    ("timeout", number(2, 5)),
    ("sequence_id", choices[2]),
    ("sequence_start", choices[0]),
]
seed("infer_decode", "own-parameters", HEAD + b"".join(text(4, parameter(k, c)) for k, c in own))
seed(
    "infer_decode",
    "classification",
    HEAD + text(6, text(1, "O") + text(2, parameter("classification", number(2, 3)))),
)
seed(
    "infer_decode",
    "utf8",
    text(1, "h\u00e9\u20ac\U0001f608" * 3) + tensor("FP32", [0]) + text(7, b""),
)
seed("infer_decode", "bad-utf8", text(1, b"\xed\xa0\x80"))
seed(
    "infer_decode",
    "unknown-fields",
    HEAD + number(99, 5) + text(100, "x") + b"\x85\x06abcd" + b"\x81\x06abcdefgh",
)
seed("infer_decode", "wrong-wire-type", number(1, 5) + text(1, "model") + number(5, 1))
seed("infer_decode", "long-bool", HEAD + text(4, parameter("b", b"\x08\x80\x00")))

# --- codecs: the first byte chooses ---------------------------------------------------------

for value in ("100m", "1S", "99999999H", "0n", "123456789S", "x", ""):
    seed("codecs", f"timeout-{value or 'empty'}", b"\0" + value.encode())
for i, value in enumerate(
    (b"plain", b"100%", "\u00e9\r\n \U0001f608".encode(), b" x ", bytes(range(256)))
):
    seed("codecs", f"percent-{i}", b"\1" + value)
for i, value in enumerate((b"AQ", b"AQ==", b"AQID", b"+/+/", b"A", b"=", bytes(range(256)))):
    seed("codecs", f"base64-{i}", b"\2" + value)
many = b"inflate me " * 20
for name, kind, packed in (
    ("gzip", 0, gzip.compress(many, mtime=0)),
    ("deflate", 1, zlib.compress(many)),
):
    seed("codecs", f"inflate-{name}", bytes([3, kind]) + struct.pack(">HH", 4096, 65535) + packed)
    seed(
        "codecs",
        f"inflate-{name}-small-limit",
        bytes([3, kind]) + struct.pack(">HH", 100, 65535) + packed,
    )
    seed("codecs", f"compress-{name}", bytes([4, kind, 5, 100]) + many)
