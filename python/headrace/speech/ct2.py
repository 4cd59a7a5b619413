"""CTranslate2's model.bin (version 6 of the format), and Whisper out of it.

Little-endian: u32 version, string spec, u32 revision, u32 count; a variable: string name, u8 rank,
u32 sizes, u8 type, u32 bytes, the bytes; then u32 count of aliases, two strings each. A string is
u16 length with its NUL, then the bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.errors import InvalidArgumentError
from headrace.speech.whisper import WhisperWeights

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Ct2Model", "read_ct2", "whisper_from_ct2"]

_DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)


@dataclass(frozen=True)
class Ct2Model:
    spec: str
    revision: int
    variables: dict[str, NDArray[Any]]


class _Reader:
    def __init__(self, data: memoryview, path: Path) -> None:
        self._data, self._path, self._at = data, path, 0

    def take(self, count: int) -> memoryview:
        if self._at + count > len(self._data):
            raise InvalidArgumentError(f"{self._path} ends early: its copy is not whole")
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, form: str) -> int:
        value = struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0]
        return int(value)

    def string(self) -> str:
        return bytes(self.take(self.number("H"))).rstrip(b"\0").decode("utf-8", "replace")


def read_ct2(path: Path) -> Ct2Model:
    """Variables are views into the file's bytes. InvalidArgumentError for other formats."""
    reader = _Reader(memoryview(path.read_bytes()), path)
    version = reader.number("I")
    if version != 6:
        raise InvalidArgumentError(f"{path} is no CTranslate2 model of format 6 (found {version})")
    spec, revision = reader.string(), reader.number("I")
    variables: dict[str, NDArray[Any]] = {}
    for _ in range(reader.number("I")):
        name = reader.string()
        sizes = [reader.number("I") for _ in range(reader.number("B"))]
        kind = reader.number("B")
        data = reader.take(reader.number("I"))
        if kind >= len(_DTYPES):
            raise InvalidArgumentError(f"{path}: '{name}' has the unknown type {kind}")
        dtype = np.dtype(_DTYPES[kind]).newbyteorder("<")
        if len(data) != dtype.itemsize * int(np.prod(sizes, dtype=np.int64)):
            raise InvalidArgumentError(f"{path}: '{name}' has {len(data)} bytes for {sizes}")
        variables[name] = np.frombuffer(data, dtype).reshape(sizes)
    for _ in range(reader.number("I")):
        alias, name = reader.string(), reader.string()
        if name in variables:
            variables[alias] = variables[name]
    return Ct2Model(spec, revision, variables)


def whisper_from_ct2(
    model: Ct2Model, alignment_heads: tuple[tuple[int, int], ...] = ()
) -> WhisperWeights:
    """InvalidArgumentError when it is not Whisper with float weights."""
    if model.spec != "WhisperSpec":
        raise InvalidArgumentError(f"a CTranslate2 model of kind {model.spec}, not Whisper")
    variables = model.variables
    if any(name.endswith("weight_scale") for name in variables):
        raise InvalidArgumentError("its weights are quantized; take the float16 or float32 model")
    try:
        encoder, encoder_layers = _side(variables, "encoder")
        decoder, decoder_layers = _side(variables, "decoder")
        for name in ("conv1", "conv2"):
            for part in ("weight", "bias"):
                encoder[f"{name}.{part}"] = _f32(variables[f"encoder/{name}/{part}"])
        decoder["embedding"] = _f32(variables["decoder/embeddings/weight"])
        heads = int(variables["encoder/num_heads"])
    except KeyError as error:
        raise InvalidArgumentError(f"a Whisper model without {error}") from None
    return WhisperWeights(
        encoder, decoder, encoder_layers, decoder_layers, heads, tuple(alignment_heads)
    )


def _f32(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float32)


def _side(variables: dict[str, NDArray[Any]], side: str) -> tuple[dict[str, NDArray[Any]], int]:
    found: dict[str, NDArray[Any]] = {
        "positions": _f32(variables[f"{side}/position_encodings/encodings"])
    }
    _norm(variables, f"{side}/layer_norm", found, "norm")
    layers = 0
    while f"{side}/layer_{layers}/ffn/linear_0/weight" in variables:
        source, target = f"{side}/layer_{layers}", f"layers.{layers}"
        _linear(variables, f"{source}/self_attention/linear_0", found, target, "self_attn", "qkv")
        _linear(variables, f"{source}/self_attention/linear_1", found, target, "self_attn", "o")
        _norm(variables, f"{source}/self_attention/layer_norm", found, f"{target}.norm1")
        last = "norm2"
        if side == "decoder":
            for number, parts in enumerate(("q", "kv", "o")):
                name = f"{source}/attention/linear_{number}"
                _linear(variables, name, found, target, "encoder_attn", parts)
            _norm(variables, f"{source}/attention/layer_norm", found, f"{target}.norm2")
            last = "norm3"
        _norm(variables, f"{source}/ffn/layer_norm", found, f"{target}.{last}")
        for number, name in enumerate(("fc1", "fc2")):
            linear = f"{source}/ffn/linear_{number}"
            found[f"{target}.{name}"] = _f32(variables[f"{linear}/weight"]).T
            found[f"{target}.{name}.bias"] = _f32(variables[f"{linear}/bias"])
        layers += 1
    return found, layers


def _norm(
    variables: dict[str, NDArray[Any]], source: str, found: dict[str, NDArray[Any]], target: str
) -> None:
    found[f"{target}.weight"] = _f32(variables[f"{source}/gamma"])
    found[f"{target}.bias"] = _f32(variables[f"{source}/beta"])


def _linear(
    variables: dict[str, NDArray[Any]],
    source: str,
    found: dict[str, NDArray[Any]],
    layer: str,
    attention: str,
    parts: str,
) -> None:
    """Projections that CTranslate2 keeps in one matrix, a row an output, apart."""
    weight = _f32(variables[f"{source}/weight"])
    bias = _f32(variables[f"{source}/bias"])
    for part, rows, some in zip(
        parts, np.split(weight, len(parts)), np.split(bias, len(parts)), strict=True
    ):
        found[f"{layer}.{attention}.{part}"] = rows.T
        found[f"{layer}.{attention}.{part}.bias"] = some
