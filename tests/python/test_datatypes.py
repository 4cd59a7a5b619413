"""Raw tensor bytes: what we write, tritonclient reads, and the other way round."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.utils import deserialize_bytes_tensor, np_to_triton_dtype, serialize_byte_tensor

from headrace.datatypes import DATATYPES, datatype_of, decode, dtype_of, encode
from headrace.errors import InvalidArgumentError

DENSE = [d for d in DATATYPES if d != "BYTES"]


@settings(deadline=None)
@given(st.data(), st.sampled_from(DENSE))
def test_dense_tensors_survive(data: st.DataObject, datatype: str) -> None:
    shapes = hnp.array_shapes(min_dims=0, min_side=0, max_side=4)
    array = data.draw(hnp.arrays(dtype_of(datatype), shapes))
    raw = encode(array, datatype)
    assert raw == array.tobytes()
    again = decode(raw, datatype, array.shape)
    assert again.tobytes() == raw
    assert again.shape == array.shape


@settings(deadline=None)
@given(st.lists(st.binary(max_size=20), max_size=8))
def test_bytes_tensors_are_tritons(items: list[bytes]) -> None:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    raw = encode(array, "BYTES")
    expected = serialize_byte_tensor(array).item() if items else b""
    assert raw == expected
    assert deserialize_bytes_tensor(raw).tolist() == items
    assert decode(raw, "BYTES", [len(items)]).tolist() == items


@settings(deadline=None)
@given(st.binary(max_size=40), st.integers(0, 5))
def test_any_bytes_decode_or_are_refused(raw: bytes, count: int) -> None:
    for datatype in ("BYTES", "FP32", "BOOL"):
        try:
            array = decode(raw, datatype, [count])
        except InvalidArgumentError:
            continue
        assert encode(array, datatype) == raw


@pytest.mark.parametrize("datatype", [d for d in DATATYPES if d != "BF16"])
def test_names_are_tritons(datatype: str) -> None:
    assert np_to_triton_dtype(dtype_of(datatype)) == datatype
    assert datatype_of(dtype_of(datatype)) == datatype


def test_what_has_no_datatype() -> None:
    assert datatype_of("U5") == datatype_of("S3") == "BYTES"
    with pytest.raises(InvalidArgumentError, match="complex64"):
        datatype_of(np.complex64)
    with pytest.raises(InvalidArgumentError, match="FP8"):
        dtype_of("FP8")
