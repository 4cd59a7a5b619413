"""NumPy arrays <-> tensors, through a model that answers what it was asked."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from headrace import errors

DTYPES = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BF16": np.uint16,
}


def objects(*elements: Any) -> Any:
    array = np.empty(len(elements), object)
    array[:] = elements
    return array


@pytest.mark.parametrize("datatype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 1000])
def test_dense_arrays_come_back_the_same(
    datatype: str, size: int, identity_version: Callable[..., Any]
) -> None:
    version = identity_version(datatype)
    bits = np.random.default_rng(size).integers(0, 256, size * np.dtype(DTYPES[datatype]).itemsize)
    array = bits.astype(np.uint8).view(DTYPES[datatype])
    if datatype == "BOOL":
        array = bits > 127
    answer = version.infer({"X": array})["Y"]
    assert answer.dtype == array.dtype
    assert answer.shape == array.shape
    assert answer.tobytes() == array.tobytes()
    version.close()


@pytest.mark.parametrize(
    "elements",
    [
        [],
        [b""],
        [b"a", b"\x00", b"\xff" * 1000, b""],
        [b"x\x00", b"\x00y"],
    ],
)
def test_bytes_come_back_the_same(
    elements: list[bytes], identity_version: Callable[..., Any]
) -> None:
    version = identity_version("BYTES")
    answer = version.infer({"X": objects(*elements)})["Y"]
    assert answer.dtype == object
    assert answer.tolist() == elements
    version.close()


def test_str_is_encoded_as_utf8(identity_version: Callable[..., Any]) -> None:
    version = identity_version("BYTES")
    for array in (
        objects("é", b"\xc3", "\U0001f3c1"),
        ["é", "\U0001f3c1"],
        np.array(["é", "b"]),
        np.array([b"c", b"d"]),
    ):
        expected = [e if isinstance(e, bytes) else e.encode() for e in np.asarray(array).tolist()]
        assert version.infer({"X": array})["Y"].tolist() == expected
    with pytest.raises(UnicodeEncodeError):
        version.infer({"X": objects("\ud800")})
    with pytest.raises(errors.InvalidArgumentError, match="neither bytes nor str"):
        version.infer({"X": objects(b"a", 1)})
    version.close()


def test_shapes_of_any_rank(make_version: Callable[..., Any]) -> None:
    for shape in ((), (0,), (0, 3), (2, 0, 2), (1,) * 16, (2, 3, 4)):
        for datatype in ("FP32", "BYTES"):
            dims = [-1] * len(shape)
            version = make_version(
                lambda a: {"Y": a["X"]}, {"X": (datatype, dims)}, {"Y": (datatype, dims)}
            )
            array = np.zeros(shape, np.float32)
            if datatype == "BYTES":
                array = np.empty(shape, object)
                array[...] = b"e"
            answer = version.infer({"X": array})["Y"]
            assert answer.shape == shape
            assert np.array_equal(answer, array)
            version.close()


def test_arrays_that_are_not_contiguous_are_taken(identity_version: Callable[..., Any]) -> None:
    version = identity_version("INT32")
    base = np.arange(20, dtype=np.int32)
    for array in (base[::2], base[::-1], base[3:15:4], base.reshape(4, 5).T[1]):
        assert np.array_equal(version.infer({"X": array})["Y"], array)
    version.close()
    words = identity_version("BYTES")
    strings = objects(*[str(i).encode() for i in range(10)])
    assert words.infer({"X": strings[::-3]})["Y"].tolist() == strings[::-3].tolist()
    words.close()


def test_fortran_order_keeps_its_elements_in_place(make_version: Callable[..., Any]) -> None:
    seen = []

    def model(arrays: dict[str, Any]) -> dict[str, Any]:
        seen.append(arrays["X"].copy())
        return {"Y": np.asfortranarray(arrays["X"])}

    version = make_version(model, {"X": ("FP32", [2, 3])}, {"Y": ("FP32", [2, 3])})
    array = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert np.array_equal(version.infer({"X": array})["Y"], array)
    assert np.array_equal(seen[0], array)
    version.close()


def test_another_dtype_is_refused(identity_version: Callable[..., Any]) -> None:
    version = identity_version("FP32")
    for array in (
        np.zeros(1),
        np.zeros(1, np.int32),
        np.zeros(1, ">f4"),
        np.zeros(1, complex),
        objects(b"x"),
        np.array(["x"]),
        [1.0],
        np.zeros(1, [("a", "f4")]),
        np.zeros(1, "M8[s]"),
    ):
        with pytest.raises(
            errors.InvalidArgumentError, match=r"input 'X' has dtype .*, expected FP32"
        ):
            version.infer({"X": array})
    version.close()
    words = identity_version("BYTES")
    with pytest.raises(errors.InvalidArgumentError, match="expected an object array of bytes"):
        words.infer({"X": np.zeros(1, np.uint8)})
    words.close()


def test_too_many_dimensions_are_refused(identity_version: Callable[..., Any]) -> None:
    version = identity_version("FP32")
    with pytest.raises(errors.InvalidArgumentError, match="more than 16 dimensions"):
        version.infer({"X": np.zeros((1,) * 17, np.float32)})
    version.close()


def test_a_model_may_write_into_its_inputs(make_version: Callable[..., Any]) -> None:
    def model(arrays: dict[str, Any]) -> dict[str, Any]:
        arrays["X"] += 1
        return {"Y": arrays["X"]}

    version = make_version(model, {"X": ("FP32", [-1])}, {"Y": ("FP32", [-1])})
    mine = np.zeros(3, np.float32)
    assert version.infer({"X": mine})["Y"].tolist() == [1, 1, 1]
    assert mine.tolist() == [0, 0, 0]
    version.close()


def test_arrays_that_a_model_keeps_stay_as_they_were(make_version: Callable[..., Any]) -> None:
    kept: list[Any] = []

    def model(arrays: dict[str, Any]) -> dict[str, Any]:
        kept.append(arrays["X"])
        kept.append(arrays["X"][1:])  # a view of a view
        return {"Y": arrays["X"]}

    version = make_version(model, {"X": ("INT64", [-1])}, {"Y": ("INT64", [-1])})
    for i in range(50):
        version.infer({"X": np.full(2000, i, np.int64)})
    version.close()
    del version
    gc.collect()
    for i in range(50):
        assert (kept[2 * i] == i).all()
        assert (kept[2 * i + 1] == i).all()


def test_outputs_outlive_their_version(identity_version: Callable[..., Any]) -> None:
    version = identity_version("INT64")
    answers = [version.infer({"X": np.full(2000, i, np.int64)})["Y"] for i in range(50)]
    tails = [answer[5:] for answer in answers]
    version.close()
    del version, answers
    gc.collect()
    for i, tail in enumerate(tails):
        assert (tail == i).all()
        with pytest.raises(ValueError):
            tail[0] = 1  # it may be shared with others of the batch


def test_an_output_that_a_model_keeps_may_change_later(make_version: Callable[..., Any]) -> None:
    mine = np.zeros(4, np.float32)

    def model(arrays: dict[str, Any]) -> dict[str, Any]:
        mine[:] = arrays["X"]
        return {"Y": mine}

    version = make_version(model, {"X": ("FP32", [-1])}, {"Y": ("FP32", [-1])})
    first = version.infer({"X": np.ones(4, np.float32)})["Y"]
    version.infer({"X": np.zeros(4, np.float32)})
    assert first.tolist() == [1, 1, 1, 1]
    version.close()


def test_inputs_are_copied_before_infer_answers(make_version: Callable[..., Any]) -> None:
    """The caller's array is not kept."""

    class Watched(np.ndarray):
        pass

    version = make_version(lambda a: {"Y": a["X"]}, {"X": ("FP32", [-1])}, {"Y": ("FP32", [-1])})
    array = np.zeros(10, np.float32).view(Watched)
    gone = weakref.ref(array)
    version.infer({"X": array})
    del array
    assert gone() is None
    version.close()
