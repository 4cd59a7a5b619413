"""RFC 7541."""

from __future__ import annotations

import json

import hpack
from conformance.registry import MUST, case
from conformance.target import ECHO, METADATA, Target
from conformance.wire import (
    COMPRESSION_ERROR,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    HEADER_TABLE_SIZE,
    HEADERS,
    Connection,
    block,
    grpc_fields,
    integer,
    literal,
    message,
)

REQUEST = block(grpc_fields(ECHO))


def breaks(server: Target, header_block: bytes) -> None:
    with server.connect() as to:
        to.frame(HEADERS, END_HEADERS | END_STREAM, 1, header_block)
        to.dies(COMPRESSION_ERROR)


def send_block(to: Connection, header_block: bytes) -> int:
    stream = to.new_stream()
    to.frame(HEADERS, END_HEADERS, stream, header_block)
    to.data(stream, message(b""), end=True)
    return stream


def metadata_of(to: Connection, header_block: bytes) -> list[list[str]]:
    answer = to.answer(send_block(to, header_block))
    assert answer.status == 0, answer
    return [pair for pair in json.loads(answer.messages[0]) if pair[0].startswith("k")]


def huffman(text: bytes) -> bytes:
    table = hpack.huffman.HuffmanEncoder(
        hpack.huffman_constants.REQUEST_CODES, hpack.huffman_constants.REQUEST_CODES_LENGTH
    )
    coded = table.encode(text)
    return integer(len(coded), 7, 0x80) + bytes(coded)


@case(
    MUST,
    "7541 2.3.3, 6.1",
    "an index that names nothing is a COMPRESSION_ERROR",
    values={
        "zero": b"\x80",
        "over_both_tables": integer(70, 7, 0x80),
        "far_over": integer(2**20, 7, 0x80),
        "of_a_name": integer(70, 6, 0x40) + b"\x01v",
    },
)
def invalid_index(server: Target, field: bytes) -> None:
    breaks(server, REQUEST + field)


@case(
    MUST,
    "7541 5.1",
    "an integer without end or beyond 32 bits is a COMPRESSION_ERROR",
    values={
        "endless": b"\xff" + b"\xff" * 20 + b"\x00",
        "long_name": b"\x00\x7f" + b"\xff" * 10 + b"\x01",
    },
)
def integer_overflow(server: Target, field: bytes) -> None:
    breaks(server, REQUEST + field)


@case(
    MUST,
    "7541 5.2",
    "wrong Huffman padding and the EOS symbol are COMPRESSION_ERRORs",
    values={
        "padding_over_7_bits": b"\x00\x85\xf2\xb2\x4a\x84\xff\x84\x49\x50\x9f\xff",
        "padding_not_ones": b"\x00\x85\xf2\xb2\x4a\x84\xff\x83\x49\x50\x90",
        "eos": b"\x00\x85\xf2\xb2\x4a\x84\xff\x87\x49\x51\xff\xff\xff\xfa\x7f",
    },
)
def huffman_errors(server: Target, field: bytes) -> None:
    breaks(server, REQUEST + field)


@case(
    MUST,
    "7541 5.2",
    "a string longer than its block is a COMPRESSION_ERROR",
    values={"name": b"\x00\x7e", "value": b"\x00\x01k\x64v"},
)
def string_cut(server: Target, field: bytes) -> None:
    breaks(server, REQUEST + field)


@case(MUST, "7541 4.2", "a table size update behind a field is a COMPRESSION_ERROR")
def size_update_late(server: Target) -> None:
    breaks(server, REQUEST + b"\x20")


@case(
    MUST, "7541 6.3", "a table size update over SETTINGS_HEADER_TABLE_SIZE is a COMPRESSION_ERROR"
)
def size_update_too_large(server: Target) -> None:
    breaks(server, integer(2**20, 5, 0x20) + REQUEST)


@case(MUST, "7541 6.3", "table size updates at the start of a block are taken")
def size_update(server: Target) -> None:
    with server.connect() as to:
        to.answer(send_block(to, REQUEST + literal("kept", "1", 0x40)))
        to.answer(send_block(to, b"\x20" + integer(4096, 5, 0x20) + REQUEST))
        # The table was emptied by the update to 0.
        to.frame(HEADERS, END_HEADERS | END_STREAM, to.new_stream(), REQUEST + b"\xbe")
        to.dies(COMPRESSION_ERROR)


@case(
    MUST, "7541 2.3.2", "fields enter the dynamic table, are found there, and the oldest leave it"
)
def dynamic_table(server: Target) -> None:
    request = block(grpc_fields(METADATA))
    with server.connect() as to:
        first = literal("k1", "a", 0x40) + literal("k2", "b", 0x40)
        assert metadata_of(to, request + first) == [["k1", "a"], ["k2", "b"]]
        assert metadata_of(to, request + b"\xbe\xbf") == [["k2", "b"], ["k1", "a"]]
        # By name only, and an entry of its own.
        again = integer(63, 6, 0x40) + b"\x01c"
        assert metadata_of(to, request + again + b"\xbe") == [["k1", "c"], ["k1", "c"]]
        # 4,096 bytes hold one of these and nothing else.
        huge = literal("k3", "x" * 4050, 0x40)
        assert metadata_of(to, request + huge) == [["k3", "x" * 4050]]
        assert metadata_of(to, request + b"\xbe") == [["k3", "x" * 4050]]
        to.frame(HEADERS, END_HEADERS | END_STREAM, to.new_stream(), request + b"\xbf")
        to.dies(COMPRESSION_ERROR)


@case(MUST, "7541 4.4", "a field larger than the table empties it and is read")
def entry_over_the_table(server: Target) -> None:
    request = block(grpc_fields(METADATA))
    with server.connect() as to:
        metadata_of(to, request + literal("k1", "a", 0x40))
        assert metadata_of(to, request + literal("k2", "y" * 5000, 0x40)) == [["k2", "y" * 5000]]
        to.frame(HEADERS, END_HEADERS | END_STREAM, to.new_stream(), request + b"\xbe")
        to.dies(COMPRESSION_ERROR)


@case(
    MUST,
    "7541 6.2",
    "every literal form is read",
    values={"not_indexed": 0x00, "never": 0x10, "indexed": 0x40},
)
def literal_forms(server: Target, first: int) -> None:
    request = block(grpc_fields(METADATA))
    with server.connect() as to:
        assert metadata_of(to, request + literal("k1", "v", first)) == [["k1", "v"]]


@case(MUST, "7541 5.2", "Huffman-coded names and values are read")
def huffman_strings(server: Target) -> None:
    request = block(grpc_fields(METADATA))
    text = bytes(range(0x21, 0x7F))
    with server.connect() as to:
        field = b"\x00" + huffman(b"key-of-many") + huffman(text)
        assert metadata_of(to, request + field) == [["key-of-many", text.decode()]]


@case(MUST, "7541 2.2", "a header block of a refused or malformed request still updates the table")
def table_survives_refusals(server: Target) -> None:
    request = block(grpc_fields(METADATA))
    with server.connect() as to:
        stream = to.new_stream()
        bad = literal("k1", "a", 0x40) + literal("Upper", "x")
        to.frame(HEADERS, END_HEADERS, stream, request + bad)
        while to.answers[stream].reset is None:
            to.take()
        assert metadata_of(to, request + b"\xbe") == [["k1", "a"]]


@case(
    MUST,
    "7541 4.2",
    "the server's encoder follows SETTINGS_HEADER_TABLE_SIZE",
    values=[0, 64, 4096, 65536],
)
def encoder_follows_table_size(server: Target, size: int) -> None:
    with server.connect((HEADER_TABLE_SIZE, size)) as to:
        to.decoder.max_allowed_table_size = size
        for _ in range(5):
            to.lives()


@case(
    MUST,
    "7541 7.3",
    "a bomb of indexed fields is bounded by the header list limit, the connection or the call ends",
)
def header_bomb(server: Target) -> None:
    with server.connect() as to:
        stream = send_block(to, REQUEST + literal("k", "x" * 4000, 0x40) + b"\xbe" * 10000)
        answer = to.answer(stream)
        assert answer.status == 8 or answer.reset == ENHANCE_YOUR_CALM or answer.goaway is not None
