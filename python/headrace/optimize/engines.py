"""Engines of TensorRT and TensorRT-RTX, built from ONNX files by NVIDIA's Python packages.

    spec = EngineSpec(batch_sizes=(1, 8), targets=("SM86",))
    built = build(Path("model.onnx"), spec, find_builder("tensorrt_rtx"))
    Path("model.plan").write_bytes(built.plan)

Networks are strongly typed: an engine computes in the types that the model has (fp32, fp16, int8
through Q and DQ). TensorRT times kernels on the GPU it builds for; TensorRT-RTX needs none.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from headrace.errors import (
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    UnimplementedError,
)

__all__ = [
    "PACKAGES",
    "Builder",
    "Built",
    "EngineSpec",
    "Range",
    "TensorShape",
    "build",
    "find_builder",
    "profiles_of",
]

# Import name -> what pip installs.
PACKAGES = {"tensorrt_rtx": "tensorrt-rtx", "tensorrt": "tensorrt"}

# What dimensions beside the batch may be, where nobody says: least, usual, most.
FREE = (1, 64, 256)
# More profiles cost memory and time to build.
MAX_PROFILES = 8

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Range:
    """Shapes of an input: what an optimisation profile takes, and what it is fastest for."""

    least: tuple[int, ...]
    usual: tuple[int, ...]
    most: tuple[int, ...]


class TensorShape(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def dims(self) -> Sequence[int]: ...


@dataclass(frozen=True)
class EngineSpec:
    """What an engine is to take and to run on."""

    # A profile up to each: 1 to the first, from there to the second, ... () = there is no batch
    # dimension.
    batch_sizes: tuple[int, ...] = ()
    # Of dimensions that are -1, but the batch: least, usual, most.
    free: tuple[int, int, int] = FREE
    # Dims of inputs that are known better than the model does, batch dimension included.
    dims: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    # TensorRT-RTX: compute capabilities ("SM86"); () = the GPU that is there.
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if list(self.batch_sizes) != sorted(set(self.batch_sizes)) or any(
            size < 1 for size in self.batch_sizes
        ):
            raise InvalidArgumentError(
                f"batch sizes {list(self.batch_sizes)} must be positive and ascending"
            )
        if len(self.batch_sizes) > MAX_PROFILES:
            raise InvalidArgumentError(
                f"{len(self.batch_sizes)} batch sizes: an engine has at most {MAX_PROFILES} "
                "optimisation profiles"
            )
        least, usual, most = self.free
        if not 1 <= least <= usual <= most:
            raise InvalidArgumentError(
                f"free dimensions {least},{usual},{most} must be least, usual and most, from 1 on"
            )


@dataclass(frozen=True)
class Builder:
    """NVIDIA's package, imported."""

    runtime: str  # "tensorrt" or "tensorrt_rtx"
    version: str
    module: Any = field(repr=False)


@dataclass(frozen=True)
class Built:
    plan: bytes
    seconds: float
    profiles: int
    quantize_layers: int
    dequantize_layers: int
    timing_cache: bytes  # what was found out about kernels; b"" when nothing was


def find_builder(runtime: str = "auto") -> Builder:
    """`runtime`: "tensorrt", "tensorrt_rtx" or "auto", the first that is installed. Raises
    UnavailableError naming the package."""
    names = list(PACKAGES) if runtime == "auto" else [runtime]
    if unknown := [name for name in names if name not in PACKAGES]:
        raise InvalidArgumentError(
            f"no TensorRT is called '{unknown[0]}'; it must be auto, {' or '.join(PACKAGES)}"
        )
    for name in names:
        if importlib.util.find_spec(name) is None:
            continue
        try:
            module = importlib.import_module(name)
        except Exception as error:  # its libraries may be missing or not of this driver
            raise UnavailableError(f"{PACKAGES[name]} cannot be used: {error}") from error
        return Builder(name, str(module.__version__), module)
    package = " or ".join(PACKAGES[name] for name in names)
    raise UnavailableError(
        f"building engines needs {package}, which is not installed: pip install "
        + " or ".join(f"headrace[{PACKAGES[name]}]" for name in names)
    )


def profiles_of(inputs: Sequence[TensorShape], spec: EngineSpec) -> list[dict[str, Range]]:
    """An optimisation profile a batch size; one for models that do not batch. No profile when all
    shapes are fixed. Raises InvalidArgumentError for a spec that does not fit the inputs."""
    known = {tensor.name for tensor in inputs}
    if wrong := sorted(set(spec.dims) - known):
        raise InvalidArgumentError(
            f"the model has no input '{wrong[0]}'; it has {', '.join(sorted(known))}"
        )
    shapes = {tensor.name: _known_dims(tensor, spec) for tensor in inputs}
    if all(d >= 0 for dims in shapes.values() for d in dims):
        return []
    ranges: list[tuple[int | None, int | None]] = [(None, None)]  # no batch dimension
    if spec.batch_sizes:
        lows = [1, *(size + 1 for size in spec.batch_sizes[:-1])]
        ranges = [*zip(lows, spec.batch_sizes, strict=True)]

    def filled(dims: Sequence[int], batch: int | None, free: int) -> tuple[int, ...]:
        return tuple(
            d if d >= 0 else batch if batch is not None and at == 0 else free
            for at, d in enumerate(dims)
        )

    return [
        {
            name: Range(
                filled(dims, low, spec.free[0]),
                filled(dims, high, spec.free[1]),
                filled(dims, high, spec.free[2]),
            )
            for name, dims in shapes.items()
        }
        for low, high in ranges
    ]


def _known_dims(tensor: TensorShape, spec: EngineSpec) -> tuple[int, ...]:
    dims = tuple(tensor.dims)
    if spec.batch_sizes and (not dims or dims[0] != -1):
        raise InvalidArgumentError(
            f"input '{tensor.name}' {list(dims)} has no batch dimension that is free; export the "
            "model with one, or build it without batch sizes"
        )
    better = spec.dims.get(tensor.name, dims)
    if len(better) != len(dims) or any(b != d for b, d in zip(better, dims, strict=True) if d >= 0):
        raise InvalidArgumentError(
            f"input '{tensor.name}' is {list(dims)} in the model, which {list(better)} does not fit"
        )
    return better


def build(
    path: Path,
    spec: EngineSpec,
    builder: Builder,
    *,
    timing_cache: bytes = b"",
    threads: int = 0,
    progress: Progress = lambda what, done, of: None,
) -> Built:
    """Blocks for seconds to minutes. `threads` that it may use, 0: as it likes. Raises
    NotFoundError, InvalidArgumentError (damaged, or shapes that do not fit) and UnimplementedError
    (an operator that TensorRT lacks), with the nodes' names."""
    if not path.is_file():
        raise NotFoundError(f"{path} does not exist")
    trt = builder.module
    log = _log(trt)
    made = trt.Builder(log)
    if threads > 0:
        made.max_threads = threads
    network = made.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    progress("parsing", 0, 1)
    if not parser.parse_from_file(str(path)):
        raise _parse_error(path, trt, parser, log.errors)
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    config = made.create_builder_config()
    specs = [_Input(tensor.name, tuple(tensor.shape)) for tensor in inputs]
    profiles = profiles_of(specs, spec)
    for ranges in profiles:
        profile = made.create_optimization_profile()
        for tensor in specs:
            if -1 in tensor.dims:
                wanted = ranges[tensor.name]
                profile.set_shape(tensor.name, wanted.least, wanted.usual, wanted.most)
        config.add_optimization_profile(profile)
    _set_targets(trt, builder, config, spec.targets)
    _set_timing_cache(config, timing_cache)
    config.progress_monitor = _monitor(trt, progress)
    start = time.perf_counter()
    plan = made.build_serialized_network(network, config)
    seconds = time.perf_counter() - start
    if plan is None:
        raise InvalidArgumentError(
            f"{builder.runtime} {builder.version} builds no engine of {path}: "
            + ("; ".join(log.errors) or "it does not say why")
        )
    kinds = [network.get_layer(i).type for i in range(network.num_layers)]
    return Built(
        plan=bytes(memoryview(plan)),
        seconds=seconds,
        profiles=max(1, len(profiles)),
        quantize_layers=kinds.count(trt.LayerType.QUANTIZE),
        dequantize_layers=kinds.count(trt.LayerType.DEQUANTIZE),
        timing_cache=_timing_cache(config),
    )


@dataclass(frozen=True)
class _Input:
    name: str
    dims: tuple[int, ...]


def _log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        """Keeps what is wrong, instead of printing it."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    return Log()


def _monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Of phases within phases, the outermost that has steps is told."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps
            if not parent:
                progress(phase, 0, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            if phase == next(iter(self.steps), ""):
                progress(phase, step + 1, self.steps[phase])
            return True  # go on

        def phase_finish(self, phase: str) -> None:
            steps = self.steps.pop(phase, 1)
            if not self.steps:
                progress(phase, steps, steps)

    return Monitor()


def _set_targets(trt: Any, builder: Builder, config: Any, targets: Sequence[str]) -> None:
    if not targets:
        return
    if builder.runtime != "tensorrt_rtx":
        raise InvalidArgumentError(
            "TensorRT builds for the GPU that is there; only TensorRT-RTX builds for others"
        )
    known = trt.ComputeCapability.__members__
    for target in targets:
        if target not in known:
            raise InvalidArgumentError(
                f"{builder.runtime} {builder.version} has no target '{target}'; it must be of "
                f"{', '.join(name for name in known if name.startswith('SM'))}"
            )
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        config.set_compute_capability(known[target], index)


def _set_timing_cache(config: Any, content: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TensorRT-RTX, which times nothing
        cache = config.create_timing_cache(content)
        if cache is None or not config.set_timing_cache(
            cache, False
        ):  # another GPU's, or version's
            cache = config.create_timing_cache(b"")
            if cache is not None:
                config.set_timing_cache(cache, False)


def _timing_cache(config: Any) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        cache = config.get_timing_cache()
        return bytes(memoryview(cache.serialize())) if cache is not None else b""


def _parse_error(path: Path, trt: Any, parser: Any, logged: Sequence[str]) -> HeadraceError:
    texts: list[str] = []
    missing = False
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        node = error.node_name() or error.node_operator()
        where = f"node '{node}' ({error.node_operator()}): " if node else ""
        texts.append(where + " ".join(error.desc().split()))
        missing = missing or "UNSUPPORTED" in str(error.code()) or "Plugin not found" in texts[-1]
    text = f"TensorRT cannot read {path}: " + (
        "; ".join(dict.fromkeys(texts)) or "; ".join(logged) or "it is no ONNX model"
    )
    return UnimplementedError(text) if missing else InvalidArgumentError(text)
