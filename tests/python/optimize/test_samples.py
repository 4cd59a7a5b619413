from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headrace.errors import InvalidArgumentError, NotFoundError
from headrace.optimize.samples import Division, Input, divide, read_chunks

X = Input("x", np.float32, (None, 4))
MASK = Input("mask", np.int64, (None, None))


def save(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def rows_of(count: int) -> np.ndarray:
    return np.arange(count * 4, dtype=np.float32).reshape(count, 4)


def test_every_row_is_used_once_and_the_parts_are_the_same_each_time(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", x=rows_of(100), labels=np.arange(100))
    division = divide(read_chunks(path, [X]))
    parts = (division.observe, division.search, division.held_out)
    assert [Division.rows(part) for part in parts] == [57, 18, 25]
    found = np.concatenate([c.inputs["x"] for part in parts for c in part])
    assert sorted(found[:, 0].tolist()) == rows_of(100)[:, 0].tolist()
    for part in parts:
        for chunk in part:
            assert len(chunk.inputs["x"]) == chunk.rows <= 32
            assert chunk.labels is not None
            assert (chunk.inputs["x"][:, 0] == chunk.labels * 4).all()
    again = divide(read_chunks(path, [X]))
    assert (again.held_out[0].inputs["x"] == division.held_out[0].inputs["x"]).all()


def test_rows_of_different_shapes_run_apart(tmp_path: Path) -> None:
    for at, length in enumerate((3, 3, 5)):
        save(tmp_path / f"{at}.npz", mask=np.ones((2, length), np.int64))
    chunks = read_chunks(tmp_path, [MASK])
    assert [c.inputs["mask"].shape for c in chunks] == [(1, 3)] * 4 + [(1, 5)] * 2
    division = divide(chunks)
    for part in (division.observe, division.search, division.held_out):
        assert all(len(c.inputs["mask"]) == c.rows for c in part)


def test_a_fixed_batch_stays_whole(tmp_path: Path) -> None:
    fixed = Input("x", np.float32, (2, 4))
    chunks = read_chunks(save(tmp_path / "a.npz", x=rows_of(6)), [fixed])
    assert [c.inputs["x"].shape for c in chunks] == [(2, 4)] * 3
    division = divide(chunks)
    assert {c.inputs["x"].shape for c in division.observe + division.held_out} == {(2, 4)}
    with pytest.raises(InvalidArgumentError, match=r"has 5 rows; the model takes 2 at a time"):
        read_chunks(save(tmp_path / "b.npz", x=rows_of(5)), [fixed])


def test_one_sample_serves_all_purposes(tmp_path: Path) -> None:
    division = divide(read_chunks(save(tmp_path / "a.npz", x=rows_of(1)), [X]))
    assert len(division.observe) == len(division.search) == len(division.held_out) == 1


def test_held_out_samples_can_be_given(tmp_path: Path) -> None:
    chunks = read_chunks(save(tmp_path / "a.npz", x=rows_of(40)), [X])
    other = read_chunks(save(tmp_path / "b.npz", x=rows_of(3) + 1000), [X])
    division = divide(chunks, other)
    assert Division.rows(division.held_out) == 3
    assert Division.rows(division.observe) + Division.rows(division.search) == 40


def test_models_without_a_batch_take_a_file_a_sample(tmp_path: Path) -> None:
    scalar = Input("rate", np.int64, ())
    path = save(tmp_path / "a.npz", x=rows_of(2), rate=np.int64(16000))
    (chunk,) = read_chunks(path, [Input("x", np.float32, (None, 4)), scalar])
    assert chunk.inputs["rate"] == 16000
    assert not chunk.joinable


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({}, r"a.npz has no array 'x', which the model takes; it has nothing"),
        ({"y": rows_of(2)}, r"has no array 'x', which the model takes; it has y"),
        ({"x": rows_of(2), "y": rows_of(2)}, r"has an array 'y'; the model takes x"),
        ({"x": rows_of(2).astype(np.float64)}, r"'x' is float64; the model takes float32 \(astype"),
        (
            {"x": rows_of(2)[:, :3]},
            r"'x' has shape \[2, 3\]; the model takes \[any, 4\], where the",
        ),
        ({"x": rows_of(2)[0]}, r"'x' has shape \[4\]; the model takes \[any, 4\]"),
        ({"x": np.full((1, 4), np.nan, np.float32)}, r"'x' has nan at \[0, 0\]"),
        ({"x": rows_of(0)}, r"has no samples: the arrays have no rows"),
        ({"x": rows_of(2), "labels": np.arange(3)}, r"'labels' are 3 of int64; expected 2 class"),
        ({"x": rows_of(2), "labels": np.ones(2)}, r"'labels' are 2 of float64; expected 2 class"),
        ({"x": np.array([{}])}, r"is no .npz file of numbers"),
    ],
)
def test_what_does_not_fit_is_told(
    tmp_path: Path, arrays: dict[str, np.ndarray], text: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        read_chunks(save(tmp_path / "a.npz", **arrays), [X])


def test_arrays_of_different_lengths_are_told(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", x=rows_of(2), mask=np.ones((3, 4), np.int64))
    with pytest.raises(InvalidArgumentError, match="different numbers of rows: "):
        read_chunks(path, [X, MASK])


def test_files_that_are_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"has no .npz files; write them with numpy.savez"):
        read_chunks(tmp_path, [X])
    with pytest.raises(NotFoundError, match="does not exist"):
        read_chunks(tmp_path / "none.npz", [X])
    for content in (b"", b"PK\x03\x04 broken", b"hello"):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(InvalidArgumentError, match=r"is no .npz file"):
            read_chunks(tmp_path / "bad.npz", [X])
    np.save(tmp_path / "one.npy", rows_of(2))
    with pytest.raises(InvalidArgumentError, match=r"is no .npz file"):
        read_chunks(tmp_path / "one.npy", [X])
