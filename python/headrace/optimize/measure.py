"""How a quantised model's answers and speed compare with the float one's. Needs onnxruntime and
OpenVINO.

Accuracy is that of the arithmetic the file describes: onnxruntime without its optimisations runs
each Q and DQ as written, in float, so no machine's saturating instructions count. What this
machine's OpenVINO makes of the same file is measured apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.errors import InvalidArgumentError
from headrace.optimize.samples import Chunk

__all__ = [
    "Difference",
    "Speed",
    "answers",
    "compare",
    "interleaved",
    "on_openvino",
    "session",
    "speed",
    "worst",
]

Array = npt.NDArray[Any]
Answers = Mapping[str, list[Array]]  # by output, an array a chunk


@dataclass(frozen=True)
class Difference:
    """Of one output, over all chunks."""

    output: str
    relative_l2: float  # |got - float| / |float|
    max_abs: float
    agreement: float  # share of the rows with the same largest number; of equal integers
    cosine: float | None  # the least of any row; None for integers
    accuracy: tuple[float, float] | None  # of float and of got, when there are labels


@dataclass(frozen=True)
class Speed:
    """Median seconds of one inference of `rows` rows."""

    rows: int
    before: float
    after: float

    @property
    def ratio(self) -> float:
        return self.before / self.after


def session(model: bytes, *, exact: bool) -> Any:
    """An onnxruntime session. `exact`: every node as it is written."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Spinning workers would take the cores of whatever else runs here.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_DISABLE_ALL if exact else levels.ORT_ENABLE_BASIC
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class but this
        raise InvalidArgumentError(f"onnxruntime cannot load the model: {error}") from error


def answers(
    running: Any, chunks: Sequence[Chunk], tick: Callable[[int], None] = lambda done: None
) -> dict[str, list[Array]]:
    names = [o.name for o in running.get_outputs()]
    found: dict[str, list[Array]] = {name: [] for name in names}
    for done, chunk in enumerate(chunks):
        try:
            results = running.run(names, chunk.inputs)
        except Exception as error:
            raise InvalidArgumentError(f"the model fails on the samples: {error}") from error
        for name, result in zip(names, results, strict=True):
            found[name].append(np.asarray(result))
        tick(done + 1)
    return found


def compare(reference: Answers, got: Answers, chunks: Sequence[Chunk]) -> list[Difference]:
    return [
        _difference(name, reference[name], got[name], [c.labels for c in chunks])
        for name in reference
        if reference[name][0].dtype.kind in "fiub"
    ]


def worst(differences: Sequence[Difference], outputs: Collection[str] = ()) -> float:
    """The error that a budget is about: the largest relative L2 of a float output; where there is
    none, the share of integers that differ. Of those `outputs`, or of all."""
    differences = [d for d in differences if not outputs or d.output in outputs]
    floats = [d.relative_l2 for d in differences if d.cosine is not None]
    return max(floats or [1 - d.agreement for d in differences], default=0.0)


def _difference(
    name: str, reference: list[Array], got: list[Array], labels: Sequence[Array | None]
) -> Difference:
    if reference[0].dtype.kind != "f":
        total = sum(a.size for a in reference)
        equal = sum(int((a == b).sum()) for a, b in zip(reference, got, strict=True))
        return Difference(name, 0.0, 0.0, equal / max(1, total), None, None)
    squares = norm = largest = 0.0
    rows = agreeing = 0
    right = [0, 0]
    least = 1.0
    for a, b in zip(reference, got, strict=True):
        a, b = a.astype(np.float64), b.astype(np.float64)
        squares += float(np.square(a - b).sum())
        norm += float(np.square(a).sum())
        largest = max(largest, float(np.abs(a - b).max(initial=0.0)))
    for a, b, label in zip(reference, got, labels, strict=True):
        if a.size == 0 or a.ndim == 0:
            continue
        a, b = a.reshape(-1, a.shape[-1]).astype(np.float64), b.reshape(-1, b.shape[-1])
        rows += len(a)
        agreeing += int((a.argmax(axis=1) == b.argmax(axis=1)).sum())
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosines = np.divide((a * b).sum(axis=1), lengths, where=lengths > 0, out=np.ones(len(a)))
        least = min(least, float(cosines.min()))
        if label is not None and len(label) == len(a):
            right[0] += int((a.argmax(axis=1) == label).sum())
            right[1] += int((b.argmax(axis=1) == label).sum())
    relative = float(np.sqrt(squares / norm)) if norm else float(squares > 0)
    labelled = all(x is not None for x in labels) and rows == sum(map(_length, labels))
    return Difference(
        name,
        relative if np.isfinite(relative) else float("inf"),
        largest,
        agreeing / rows if rows else 1.0,
        least,
        (right[0] / rows, right[1] / rows) if labelled and rows else None,
    )


def _length(labels: Array | None) -> int:
    return 0 if labels is None else len(labels)


def _compiled(model: bytes) -> Any:
    """As the server compiles it: for one request at a time, float32 where it is float."""
    import openvino as ov

    core = ov.Core()
    return core.compile_model(
        core.read_model(model),
        "CPU",
        {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"},
    )


def on_openvino(
    model: bytes, reference: Answers, chunks: Sequence[Chunk]
) -> list[Difference] | None:
    """None when OpenVINO does not take the model."""
    try:
        compiled = _compiled(model)
        request = compiled.create_infer_request()
        got: dict[str, list[Array]] = {name: [] for name in reference}
        for chunk in chunks:
            request.infer(chunk.inputs)
            for name in reference:
                got[name].append(np.array(request.get_tensor(name).data))
    except RuntimeError:  # OpenVINO's own, whatever it does not know
        return None
    return compare(reference, got, chunks)


def interleaved(
    first: Callable[[], object],
    second: Callable[[], object],
    *,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float]:
    """Median seconds of each, run in turns, so that what else happens on the machine meets both."""
    calls = (first, second)
    for call in calls:  # memory, threads
        call()
        call()
    start = clock()
    first()
    # A slice is long enough to be timed.
    inner = max(1, int(1e-3 / max(clock() - start, 1e-7)))
    times: tuple[list[float], list[float]] = ([], [])
    begin = clock()
    while len(times[0]) < 5 or (clock() - begin < seconds and len(times[0]) < 1000):
        turn = len(times[0]) % 2
        for at in (turn, 1 - turn):
            start = clock()
            for _ in range(inner):
                calls[at]()
            times[at].append((clock() - start) / inner)
    return float(np.median(times[0])), float(np.median(times[1]))


def speed(before: bytes, after: bytes, chunk: Chunk, *, seconds: float = 2.0) -> list[Speed]:
    """On OpenVINO, for one row and for the chunk. Empty when it does not take one of them."""
    sizes = [chunk]
    if chunk.joinable and chunk.rows > 1:
        sizes.insert(0, Chunk({name: a[:1] for name, a in chunk.inputs.items()}))
    found = []
    try:
        requests = [_compiled(m).create_infer_request() for m in (before, after)]
        for one in sizes:
            timed = interleaved(
                lambda one=one: requests[0].infer(one.inputs),  # type: ignore[misc]
                lambda one=one: requests[1].infer(one.inputs),  # type: ignore[misc]
                seconds=seconds,
            )
            found.append(Speed(one.rows, *timed))
    except RuntimeError:
        return []
    return found
