"""A float ONNX model to an INT8 one: observe, smooth, choose how to clip, measure each layer's
effect, keep in float what the budget asks for, measure the result. Needs onnx and onnxruntime
(`pip install headrace[optimize]`).
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from headrace.errors import FailedPreconditionError, InvalidArgumentError, UnimplementedError
from headrace.optimize import measure, qdq, ranges, sensitivity, smooth
from headrace.optimize.layers import Layer, Left, constants, find_layers, open_model, weight_array
from headrace.optimize.observe import Observed, observe
from headrace.optimize.samples import Chunk, Division

__all__ = ["Options", "Progress", "Quantized", "check_packages", "quantize"]

Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much


@dataclass(frozen=True)
class Options:
    max_error: float = 0.02  # relative L2 against float, on the held-out samples
    calibration: str = "auto"  # or one of ranges.METHODS
    percentile: float = 99.99
    weight_bits: int = 8  # or 7: exact also where x86 without VNNI would saturate
    smooth: str = "auto"  # off, or a strength, as "0.5"
    keep_float: tuple[str, ...] = ()  # patterns of layers' names
    outputs: tuple[str, ...] = ()  # that the error is of; all

    def __post_init__(self) -> None:
        if not 0 < self.max_error < float("inf"):
            raise InvalidArgumentError(f"max-error is {self.max_error}; expected as 0.01")
        if self.calibration not in ("auto", *ranges.METHODS):
            raise InvalidArgumentError(
                f"calibration is '{self.calibration}'; say auto, {', '.join(ranges.METHODS)}"
            )
        if not 50 <= self.percentile <= 100:
            raise InvalidArgumentError(f"percentile is {self.percentile}; expected as 99.99")
        if self.weight_bits not in (7, 8):
            raise InvalidArgumentError(f"weight-bits is {self.weight_bits}; say 8 or 7")
        if self.smooth not in ("auto", "off"):
            try:
                strength = float(self.smooth)
            except ValueError:
                strength = -1.0
            if not 0 < strength < 1:
                raise InvalidArgumentError(
                    f"smooth is '{self.smooth}'; say auto, off or a strength, as 0.5"
                )

    @property
    def strengths(self) -> tuple[float, ...]:
        if self.smooth == "off":
            return ()
        return smooth.STRENGTHS if self.smooth == "auto" else (float(self.smooth),)


@dataclass(frozen=True)
class Quantized:
    """The result and what was measured, all against the float model on the held-out samples."""

    float_model: bytes  # as it came, in the opset of the result
    model: bytes
    layers: int  # that are INT8
    left: tuple[Left, ...]  # that are float, and why
    effects: dict[str, float]  # of each layer alone, by name; empty when nothing had to be ranked
    calibration: str
    smoothed: int  # tensors
    differences: tuple[measure.Difference, ...]
    error: float  # that the budget is about
    on_this_machine: tuple[measure.Difference, ...] | None  # OpenVINO's


def check_packages() -> None:
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UnimplementedError(
                f"quantising needs the package {package}: pip install 'headrace[optimize]'"
            )


def quantize(
    path: Path,
    samples: Division,
    options: Options,
    progress: Progress = lambda what, done, of: None,
) -> Quantized:
    """Raises InvalidArgumentError for a file or samples that are wrong, FailedPreconditionError
    when no layer can be INT8 within the budget."""
    check_packages()
    given = open_model(path)
    names = [o.name for o in given.graph.output]
    if unknown := sorted(set(options.outputs) - set(names)):
        raise InvalidArgumentError(
            f"{path} has no output '{unknown[0]}'; it has {', '.join(names)}"
        )
    original = _clean(given)
    layers, left = find_layers(original)
    kept = [x for x in layers if any(fnmatchcase(x.name, p) for p in options.keep_float)]
    left += [Left(x.name, x.op, "asked for") for x in kept]
    layers = [x for x in layers if x not in kept]
    if not layers:
        why = "; ".join(sorted({f"{x.op}: {x.reason}" for x in left})) or "it has none"
        raise FailedPreconditionError(
            f"{path} has no Conv, MatMul or Gemm that can be quantised ({why})"
        )
    float_bytes = given.SerializeToString()
    running = measure.session(float_bytes, exact=True)
    held_out = samples.held_out
    reference = measure.answers(running, held_out, _ticks(progress, "float answers", held_out))
    search = _Search(original, layers, samples, options, progress)
    search.observe()
    search.choose_thresholds()
    choice = search.choose_layers(held_out, reference)
    in_float = set(choice.in_float)
    budget = f"the budget of {options.max_error:g}"
    if not choice.reached:
        raise FailedPreconditionError(
            f"no layer of {path} can be INT8 within {budget}: the least error of any choice is "
            f"{choice.error:.3g}. Allow more with --max-error"
        )
    left += [
        Left(x.name, x.op, f"alone in INT8 it gives {search.effects[x.name]:.2g}; {budget} is met")
        for x in layers
        if x.name in in_float
    ]
    final = search.build(frozenset(in_float))
    done = measure.answers(measure.session(final, exact=True), held_out)
    differences = measure.compare(reference, done, held_out)
    progress("this machine's answers", 0, 1)
    here = measure.on_openvino(final, reference, held_out)
    return Quantized(
        float_bytes,
        final,
        len(layers) - len(in_float),
        tuple(left),
        search.effects,
        search.method,
        len(search.active(frozenset(in_float))),
        tuple(differences),
        measure.worst(differences, options.outputs),
        None if here is None else tuple(here),
    )


def _ticks(progress: Progress, what: str, chunks: Sequence[Chunk]) -> Callable[[int], None]:
    progress(what, 0, len(chunks))
    return lambda done: progress(what, done, len(chunks))


def _clean(model: Any) -> Any:
    """Constants folded and batch normalisations merged into convolutions, by onnxruntime; the model
    itself where that writes operators of its own."""
    import onnx
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        try:
            ort.InferenceSession(
                model.SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
                # Reshapes around it, where bias adds are as good.
                disabled_optimizers=["MatMulAddFusion"],
            )
        except Exception as error:  # onnxruntime's exceptions share no base class but this
            raise InvalidArgumentError(f"onnxruntime cannot load the model: {error}") from error
        cleaned = onnx.load(str(path))
    before = {(n.domain or "ai.onnx") for n in model.graph.node}
    if any((n.domain or "ai.onnx") not in before for n in cleaned.graph.node):
        return model
    used = {n.domain or "" for n in cleaned.graph.node}
    wanted = [o for o in cleaned.opset_import if (o.domain or "") in used]
    kept = [type(o).FromString(o.SerializeToString()) for o in wanted]
    del cleaned.opset_import[:]
    cleaned.opset_import.extend(kept)
    return cleaned


# Error on the search samples, method, groups that are smoothed, thresholds by layer's key.
_Clipping = tuple[float, str, list[qdq.Group], dict[str, float]]


class _Search:
    """The state of one quantisation. Layers are known by their names to people, which are made
    distinct here."""

    def __init__(
        self,
        model: Any,
        layers: Sequence[Layer],
        samples: Division,
        options: Options,
        progress: Progress,
    ) -> None:
        self.model = model
        self.samples = samples
        running = measure.session(model.SerializeToString(), exact=True)
        self.exact = measure.answers(running, samples.search)
        self.options = options
        self.progress = progress
        self.layers = _distinct(layers)
        self.groups: list[qdq.Group] = []
        self.plain: dict[str, Observed] = {}  # by layer's key
        self.smoothed: dict[str, Observed] = {}  # the same in the smoothed model
        self.thresholds: dict[str, float] = {}
        self.method = options.calibration
        self.rival: _Clipping | None = None  # the smoothed one, when there is a choice
        self.plain_thresholds: dict[str, float] = {}
        self.effects: dict[str, float] = {}

    def observe(self) -> None:
        chunks = self.samples.observe
        linear = {x.x for x in self.layers if x.op != "Conv"}
        tensors = {x.x for x in self.layers}
        tick = _ticks(self.progress, "observing activations", chunks)
        seen = observe(self.model, tensors, linear, chunks, tick)
        self.plain = {x.key: seen[x.x] for x in self.layers}
        if self.options.strengths:
            # Judged on other rows than those that the factors come from: the more even the
            # channels, the more of them exceed on other data what they reached on this.
            chunks = self.samples.search
            tick = _ticks(self.progress, "observing rows", chunks)
            self._choose_groups(seen, observe(self.model, linear, linear, chunks, tick))
        if not self.groups:
            return
        chunks = self.samples.observe
        smoothed = qdq.smooth(self.model, self.groups)
        now = {x.key: x for x in find_layers(smoothed)[0]}
        tick = _ticks(self.progress, "observing smoothed activations", chunks)
        seen = observe(smoothed, {now[x.key].x for x in self.layers}, (), chunks, tick)
        self.smoothed = {x.key: seen[now[x.key].x] for x in self.layers}

    def _choose_groups(self, seen: dict[str, Observed], others: dict[str, Observed]) -> None:
        import numpy as np

        known = constants(self.model)
        by_tensor: dict[str, list[Layer]] = {}
        for layer in self.layers:
            if layer.op != "Conv":
                by_tensor.setdefault(layer.x, []).append(layer)
        for done, (x, readers) in enumerate(by_tensor.items()):
            self.progress("smoothing", done, len(by_tensor))
            weights = np.concatenate(
                [
                    array if layer.axis == 1 else array.T
                    for layer in readers
                    for array in [weight_array(known, layer.weight)]
                ],
                axis=1,
            )
            channel_max = seen[x].channel_max
            if channel_max is None or len(channel_max) != len(weights) or not channel_max.any():
                continue
            keys = tuple(layer.key for layer in readers)
            chosen = smooth.choose(
                others[x].sample(),
                channel_max,
                weights,
                bits=self.options.weight_bits,
                free=qdq.foldable(self.model, x, keys, len(weights)),
                strengths=self.options.strengths,
            )
            if chosen is not None:
                self.groups.append(qdq.Group(x, keys, chosen.divide_by))

    def choose_thresholds(self) -> None:
        """How to clip, of every way; smoothed or not, where that is left to us. All layers at once:
        `_choose_by_group` looks closer when that is not enough."""
        variants = [(self.groups, self.smoothed)] if self.groups else [([], self.plain)]
        if self.groups and self.options.smooth == "auto":
            variants.append(([], self.plain))
        found = [self._best_method(groups, observed) for groups, observed in variants]
        if len(found) == 2:
            self.rival, self.plain_thresholds = found[0], found[1][3]
        best = min(found, key=lambda one: one[0])
        _, self.method, self.groups, self.thresholds = best

    def _best_method(self, groups: list[qdq.Group], observed: dict[str, Observed]) -> _Clipping:
        auto = self.options.calibration == "auto"
        methods = ranges.METHODS if auto else (self.options.calibration,)
        tried: list[_Clipping] = []
        for done, method in enumerate(methods):
            self.progress("choosing how to clip", done, len(methods))
            self.groups = groups
            self.thresholds = {
                key: ranges.threshold(one.histogram, method, share=self.options.percentile)
                for key, one in observed.items()
            }
            single = len(methods) == 1 and self.options.smooth != "auto"
            error = 0.0 if single else self._search_error(frozenset())
            tried.append((error, method, groups, self.thresholds))
        return min(tried, key=lambda one: one[0])

    def choose_layers(
        self, chunks: Sequence[Chunk], reference: measure.Answers
    ) -> sensitivity.Choice:
        """First all layers; only when that is over the budget each is measured alone."""
        budget = self.options.max_error
        self.progress("measuring", 0, 1)
        error = self._error(self.build(frozenset()), chunks, reference)
        if error <= budget:
            return sensitivity.Choice((), error, True, 1)
        if self.rival is not None:
            self._choose_by_group(self.rival)
        names = [x.name for x in self.layers]
        for done, name in enumerate(names):
            self.progress("measuring each layer", done, len(names))
            self.effects[name] = self._search_error(frozenset(names) - {name})

        def error_of(in_float: frozenset[str]) -> float:
            self.progress(f"measuring with {len(in_float)} of {len(names)} in float", 0, 1)
            return self._error(self.build(in_float), chunks, reference)

        return sensitivity.choose(sensitivity.rank(self.effects), error_of, budget)

    def _choose_by_group(self, smoothed: _Clipping) -> None:
        """Of each group, smoothed or not, what does less harm when it alone is quantised: with all
        quantised one bad layer hides what the others gain."""
        _, _, groups, thresholds = smoothed
        plain = self.plain_thresholds
        names = frozenset(x.name for x in self.layers)
        chosen: list[qdq.Group] = []
        final = dict(plain)
        for done, group in enumerate(groups):
            self.progress("smoothing each layer or not", done, len(groups))
            others = names - {x.name for x in self.layers if x.key in group.keys}
            self.groups, self.thresholds = [], plain
            before = self._search_error(others)
            self.groups, self.thresholds = groups, thresholds
            if self._search_error(others) < before:
                chosen.append(group)
                final |= {key: thresholds[key] for key in group.keys}
        self.groups, self.thresholds = chosen, final

    def active(self, in_float: frozenset[str]) -> list[qdq.Group]:
        """Groups with a layer that is quantised, and of their layers those only."""
        keys = {x.key for x in self.layers if x.name not in in_float}
        return [group for group in self.groups if keys & set(group.keys)]

    def build(self, in_float: frozenset[str]) -> bytes:
        groups = self.active(in_float)
        model = qdq.smooth(self.model, groups) if groups else self.model
        now = {x.key: x for x in find_layers(model)[0]}
        chosen = [now[x.key] for x in self.layers if x.name not in in_float]
        result = qdq.insert(model, chosen, self.thresholds, self.options.weight_bits)
        result.producer_name = "headrace"
        return bytes(result.SerializeToString())

    def _search_error(self, in_float: frozenset[str]) -> float:
        return self._error(self.build(in_float), self.samples.search, self.exact)

    def _error(self, model: bytes, chunks: Sequence[Chunk], reference: measure.Answers) -> float:
        got = measure.answers(measure.session(model, exact=True), chunks)
        return measure.worst(measure.compare(reference, got, chunks), self.options.outputs)


def _distinct(layers: Sequence[Layer]) -> list[Layer]:
    names: set[str] = set()
    found = []
    for layer in layers:
        name, count = layer.name, 1
        while name in names:
            count += 1
            name = f"{layer.name}#{count}"
        names.add(name)
        found.append(replace(layer, name=name))
    return found
