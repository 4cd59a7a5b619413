"""`backend: "auto"`: whatever can execute a model is measured when it is loaded, and the fastest
whose answers agree with the reference's is kept.

    opened = OpenedAuto(source, candidates, Decisions(cache_dir), given)
    loaded = opened.load(config, instances=1, threads=2)    # loaded.why: "fastest of 3 at ..."

Measured are executions at batch 1, at the preferred batch sizes and at max_batch_size, of
`model_warmup`'s samples or of random ones, without the queue. One candidate after the other is in
memory. One of them executes all batch sizes: the one with the least geometric mean of the times.

The first candidate is the reference. What is not clearly faster does not take its place, so that
two starts choose the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from headrace import runtime
from headrace.control.decisions import Decision, Decisions, Measured, decision_key
from headrace.control.loaders import LoadedModel, OpenedModel, Source
from headrace.control.signature import model_spec
from headrace.control.warmup import Sample, telling_samples
from headrace.errors import HeadraceError, InvalidArgumentError
from headrace.logs import get_logger
from headrace.protocol import model_config

__all__ = ["Candidate", "OpenedAuto", "relative_error", "tolerance", "worst_error"]

_log = get_logger("control")

# What float arithmetic in another order may differ by, and no more: relative, of the whole output.
_STRICT = 1e-4
# How much faster than the reference another one must be.
_CLEARLY = 0.95
_BF16_ROUNDING = 2**-8
_SECONDS = 0.1  # a batch size and candidate
_MIN_RUNS, _MAX_RUNS = 3, 100


@dataclass(frozen=True)
class Candidate:
    name: str
    open: Callable[[], OpenedModel]


def tolerance(source: Source) -> float | None:
    """`parameters { key: "auto_tolerance" }`; None when it is not given."""
    if "auto_tolerance" not in source.config.parameters:
        return None
    text = source.config.parameters["auto_tolerance"].string_value
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise InvalidArgumentError(
            f'{source}: parameters["auto_tolerance"] is "{text}"; it must be a relative error, '
            "0 to 1"
        )
    return value


class OpenedAuto:
    """Its signature is the first candidate's that can read the model."""

    runs_user_code = False

    def __init__(
        self,
        source: Source,
        candidates: Sequence[Candidate],
        decisions: Decisions,
        tolerance: float | None,
    ) -> None:
        """`candidates`: at least one. `tolerance`: of relative errors, None: strict."""
        self._source = source
        self._decisions = decisions
        self._tolerance = _STRICT if tolerance is None else tolerance
        self._unread: list[Measured] = []
        first: OpenedModel | None = None
        failure: HeadraceError | None = None
        self._candidates: list[Candidate] = []
        for candidate in candidates:
            if first is None:
                try:
                    first = candidate.open()
                except HeadraceError as error:
                    failure = failure or error
                    self._unread.append(Measured(candidate.name, left_out=_short(error)))
                    continue
            self._candidates.append(candidate)
        if first is None:
            assert failure is not None
            raise failure
        self.config = first.config
        self.inputs = first.inputs
        self.outputs = first.outputs

    def load(
        self, config: model_config.ModelConfig, *, instances: int, threads: int
    ) -> LoadedModel:
        key = decision_key(self._source.artifact.path, config, threads)
        kept = self._decisions.find(key)
        if kept is not None:
            try:
                return self._loaded(kept, config, instances, threads)
            except HeadraceError as error:
                _log.warning(
                    "%s: %s was the fastest once and cannot be loaded now (%s): measuring again",
                    self._source,
                    kept.chosen,
                    _short(error),
                )
        decision = self._decide(config, threads)
        self._decisions.keep(key, decision)
        return self._loaded(decision, config, instances, threads)

    def _loaded(
        self, decision: Decision, config: model_config.ModelConfig, instances: int, threads: int
    ) -> LoadedModel:
        chosen = next((c for c in self._candidates if c.name == decision.chosen), None)
        if chosen is None:
            raise InvalidArgumentError(f"'{decision.chosen}' is no candidate any more")
        loaded = chosen.open().load(config, instances=instances, threads=threads)
        _log.info("%s runs on %s: %s", self._source, decision.chosen, decision.text())
        return replace(loaded, why=decision.text())

    def _decide(self, config: model_config.ModelConfig, threads: int) -> Decision:
        """Raises the first candidate's error when none can execute the model."""
        measured = list(self._unread)
        half = {out.name for out in config.output if out.data_type == model_config.TYPE_BF16}
        samples: list[Sample] | None = None  # those that the reference took
        reference: list[Mapping[str, runtime.Array]] = []
        failure: HeadraceError | None = None
        for candidate in self._candidates:
            try:
                taken, answers, seconds = self._measure(candidate, config, threads, samples)
            except HeadraceError as error:
                failure = failure or error
                measured.append(Measured(candidate.name, left_out=_short(error)))
                continue
            if samples is None:
                samples, reference = taken, answers
            found = [
                worst_error(one, other, self._tolerance, half)
                for one, other in zip(reference, answers, strict=True)
            ]
            error_found, allowed = max(found, key=_badness, default=(0.0, 0.0))
            left_out = ""
            if error_found > allowed:
                left_out = f"its answers differ by {error_found:.2g} of {allowed:g}"
            measured.append(Measured(candidate.name, tuple(seconds), error_found, left_out))
        if samples is None:
            assert failure is not None
            raise failure
        taken_in = [m for m in measured if not m.left_out]
        best = min(taken_in, key=lambda m: _mean(m.seconds))
        if _mean(best.seconds) > _CLEARLY * _mean(taken_in[0].seconds):
            best = taken_in[0]
        batches = config.max_batch_size > 0
        rows = tuple(_rows(sample) if batches else 0 for sample in samples)
        return Decision(best.name, rows, tuple(measured))

    def _measure(
        self,
        candidate: Candidate,
        config: model_config.ModelConfig,
        threads: int,
        samples: list[Sample] | None,
    ) -> tuple[list[Sample], list[Mapping[str, runtime.Array]], list[float]]:
        """The samples it was given (None: that it took), its answers and times."""
        loaded = candidate.open().load(config, instances=1, threads=threads)
        version: runtime.ModelVersion | None = None
        try:
            version = runtime.ModelVersion(
                model_spec(config, self._source.version, lambda _: ()),
                loaded.model,
                policy=runtime.BatchPolicy(max_rows=max(1, config.max_batch_size)),
                instances=1,
            )
            refused: HeadraceError | None = None
            seconds: list[float] = []
            guesses = [samples] if samples else telling_samples(config, self._source.model_path)
            for guess in guesses:
                try:
                    seconds = [self._time(version, sample) for sample in guess]
                except HeadraceError as error:
                    refused = refused or error
                    continue
                version.start()
                answers = [version.infer(sample.inputs) for sample in guess]
                return guess, [{n: np.array(a) for n, a in one.items()} for one in answers], seconds
            assert refused is not None
            if samples:
                raise refused
            raise InvalidArgumentError(
                f"{self._source}: {candidate.name} takes no random inputs "
                f"({_short(refused)}); give it a model_warmup sample in config.pbtxt"
            )
        finally:
            if version is not None:
                version.close(drain=False)
            for close in loaded.closers:
                close()

    def _time(self, version: runtime.ModelVersion, sample: Sample) -> float:
        """Seconds of the best of some runs, before the version is started."""

        def once() -> float:
            began = time.perf_counter()
            version.warm_up(sample.inputs, low_priority=self._source.low_priority)
            return time.perf_counter() - began

        once()  # the first run of a shape is another one
        end = time.perf_counter() + _SECONDS
        best, runs = math.inf, 0
        while runs < _MIN_RUNS or (runs < _MAX_RUNS and time.perf_counter() < end):
            best, runs = min(best, once()), runs + 1
        return best


def _rows(sample: Sample) -> int:
    return max((len(array) for array in sample.inputs.values()), default=0)


def _mean(seconds: Sequence[float]) -> float:
    """Geometric: halving the time counts as much at every batch size."""
    return math.exp(sum(math.log(max(s, 1e-9)) for s in seconds) / max(1, len(seconds)))


def worst_error(
    reference: Mapping[str, runtime.Array],
    got: Mapping[str, runtime.Array],
    tolerance: float,
    half: Collection[str] = (),
) -> tuple[float, float]:
    """The relative error of the worst output, and what is allowed there: `tolerance`, and at least
    a rounding for outputs in `half`, which are BF16."""
    found: list[tuple[float, float]] = []
    for name, expected in reference.items():
        if name in half:
            error = relative_error(_from_bf16(expected), _from_bf16(got[name]))
            found.append((error, max(tolerance, _BF16_ROUNDING)))
        else:
            found.append((relative_error(expected, got[name]), tolerance))
    return max(found, key=_badness, default=(0.0, tolerance))


def _badness(error_and_allowed: tuple[float, float]) -> tuple[bool, float]:
    error, allowed = error_and_allowed
    return error > allowed, error


def _from_bf16(bits: runtime.Array) -> runtime.Array:
    return (bits.astype("<u4") << 16).view("<f4")


def relative_error(reference: runtime.Array, got: runtime.Array) -> float:
    """Floats: |got - reference| / |reference| (of the finite numbers; infinite where others are not
    finite); anything else: the share of the elements that differ."""
    if reference.shape != got.shape or reference.dtype != got.dtype:
        return math.inf
    if reference.dtype.kind != "f":
        return float(np.mean(reference != got)) if reference.size else 0.0
    a, b = reference.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(a)
    if (
        not np.array_equal(a[~finite], b[~finite], equal_nan=True)
        or not np.isfinite(b[finite]).all()
    ):
        return math.inf
    norm = float(np.linalg.norm(a[finite]))
    difference = float(np.linalg.norm(b[finite] - a[finite]))
    return difference / norm if norm else (math.inf if difference else 0.0)


def _short(error: HeadraceError) -> str:
    return " ".join(error.details.split())[:200]
