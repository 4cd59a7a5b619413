"""`headrace build`: engines of TensorRT or TensorRT-RTX from ONNX files, for a model repository or
of one file."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from headrace.errors import AbortedError, HeadraceError, InvalidArgumentError, UnavailableError

if TYPE_CHECKING:
    from headrace.control.engine_builds import Device
    from headrace.optimize.engine_cache import EngineCache
    from headrace.optimize.engines import Builder, Built, EngineSpec
    from headrace.repository.completion import Defaults
    from headrace.repository.scan import ModelEntry

__all__ = ["build"]

# typer reads annotations at run time and Python 3.10 has no `X | None` in Annotated there.
OptionalPath = Optional[Path]  # noqa: UP045
OptionalStr = Optional[str]  # noqa: UP045
OptionalStrs = Optional[list[str]]  # noqa: UP045


def build(
    model_repository: Annotated[
        OptionalPath, typer.Argument(help="Folder of models in Triton's layout.")
    ] = None,
    models: Annotated[
        OptionalStrs, typer.Argument(help='Models in it. [default: all with backend: "tensorrt"]')
    ] = None,
    onnx: Annotated[OptionalPath, typer.Option(help="One file, instead of a repository.")] = None,
    plan: Annotated[OptionalPath, typer.Option(help="The engine to write of it.")] = None,
    batch: Annotated[
        OptionalStr,
        typer.Option(help="With --onnx: batch sizes, a profile up to each, as 1,8,32."),
    ] = None,
    free: Annotated[
        OptionalStr,
        typer.Option(
            help="With --onnx: other free dimensions: least, usual, most. [default: 1,64,256]"
        ),
    ] = None,
    runtime: Annotated[
        str, typer.Option(help="tensorrt, tensorrt_rtx, or auto: what is installed.")
    ] = "auto",
    target: Annotated[
        OptionalStrs,
        typer.Option(
            help="TensorRT-RTX: a compute capability to build for, as SM86; needs no GPU. "
            "Repeatable. [default: the GPU that is there]"
        ),
    ] = None,
    place: Annotated[
        bool,
        typer.Option("--place", help="Write each model's model.plan beside its model.onnx, too."),
    ] = False,
    cache_dir: Annotated[
        OptionalStr, typer.Option(help="The server's. [default: ~/.cache/headrace]")
    ] = None,
    default_max_batch_size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, help="The server's. [default: 32]"),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Build again, and replace what is there.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Build TensorRT engines from ONNX files, as their models are configured."""
    from headrace.config import ServerConfig
    from headrace.optimize.engines import find_builder
    from headrace.repository.completion import Defaults

    targets = tuple(target or ())
    if onnx is not None:
        if model_repository is not None:
            raise InvalidArgumentError("give a model repository or --onnx, not both")
        if plan is None:
            raise InvalidArgumentError("--onnx needs --plan, the file to write")
        row = _build_file(onnx, plan, _spec(batch, free, targets), find_builder(runtime), force)
        _show([row], as_json)
        return
    if model_repository is None or plan is not None:
        raise InvalidArgumentError("give a model repository, or --onnx FILE --plan FILE")
    if batch is not None or free is not None:
        raise InvalidArgumentError(
            "--batch and --free are for --onnx; a model's are those of its config.pbtxt "
            '(max_batch_size, preferred_batch_size, parameters["engine_free_dims"])'
        )
    if targets and not place:
        raise InvalidArgumentError(
            "a server looks for engines of its own GPU; to have it take one that was built for "
            "--target, add --place"
        )
    _show(
        _build_repository(
            model_repository,
            models or [],
            runtime,
            targets,
            place,
            ServerConfig().cache_dir if cache_dir is None else cache_dir,
            Defaults(gpus=1)
            if default_max_batch_size is None
            else Defaults(max_batch_size=default_max_batch_size, gpus=1),
            force,
            as_json,
        ),
        as_json,
    )


def _numbers(text: str, option: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InvalidArgumentError(f"{option} is '{text}'; it must be numbers, as 1,8") from None


def _spec(batch: str | None, free: str | None, targets: tuple[str, ...]) -> EngineSpec:
    from headrace.optimize.engines import FREE, EngineSpec

    sizes = _numbers(batch, "--batch") if batch is not None else ()
    dims = _numbers(free, "--free") if free is not None else FREE
    if len(dims) != 3:
        raise InvalidArgumentError(f"--free is '{free}'; it must be least, usual, most")
    return EngineSpec(sizes, (dims[0], dims[1], dims[2]), targets=targets)


def _build_file(
    onnx: Path, plan: Path, spec: EngineSpec, builder: Builder, force: bool
) -> dict[str, Any]:
    from headrace.optimize.engines import build
    from headrace.optimize.place import check_file, place_file
    from headrace.progress import StepProgress

    check_file(plan, force=force)
    with StepProgress() as progress:
        built = build(onnx, spec, builder, progress=progress)
    place_file(plan, built.plan)
    return {"onnx": str(onnx), **_about(built, builder, plan)}


def _about(built: Built, builder: Builder, plan: Path) -> dict[str, Any]:
    return {
        "plan": str(plan),
        "bytes": len(built.plan),
        "seconds": round(built.seconds, 2),
        "profiles": built.profiles,
        "quantize_layers": built.quantize_layers,
        "dequantize_layers": built.dequantize_layers,
        "runtime": builder.runtime,
        "version": builder.version,
    }


@dataclass(frozen=True)
class _Wanted:
    """An engine to build."""

    model: str
    version: int
    onnx: Path
    spec: EngineSpec
    key: str


def _build_repository(
    repository: Path,
    names: list[str],
    runtime: str,
    targets: tuple[str, ...],
    place: bool,
    cache_dir: str,
    defaults: Defaults,
    force: bool,
    as_json: bool,
) -> list[dict[str, Any]]:
    from headrace.control.engine_builds import Device, same_version
    from headrace.control.tensorrt_models import TensorRt
    from headrace.optimize.engine_cache import EngineCache
    from headrace.optimize.engines import find_builder
    from headrace.optimize.place import check_file

    if targets:
        builder = find_builder("tensorrt_rtx" if runtime == "auto" else runtime)
        device = Device(builder.runtime, ".".join(builder.version.split(".")[:3]), "", "")
    else:
        try:
            device = TensorRt().device()
        except UnavailableError as error:
            raise UnavailableError(
                f"{error.details}. Without it, --target SM86 --place builds with TensorRT-RTX for "
                "a GPU that is not here"
            ) from None
        builder = find_builder(device.runtime if runtime == "auto" else runtime)
        if builder.runtime != device.runtime or not same_version(builder.version, device.version):
            raise InvalidArgumentError(
                f"the server here executes engines of {device.runtime} {device.version}, and "
                f"{builder.runtime} {builder.version} builds for itself: install that version of "
                f"{device.runtime}, or build a file for others with --onnx and --plan"
            )
    if not cache_dir:
        raise InvalidArgumentError("--cache-dir '' keeps nothing")
    cache = EngineCache(Path(cache_dir) / "engines")
    rows: list[dict[str, Any]] = []
    for wanted in _wanted(repository, names, targets, device, defaults):
        placed = wanted.onnx.with_name("model.plan")
        if place:
            check_file(placed, force=force or not placed.exists())
        if not as_json:
            print(f"{wanted.model} version {wanted.version}: {wanted.onnx}", flush=True)
        row: dict[str, Any] = {"model": wanted.model, "version": wanted.version}
        path = None if force else cache.find(wanted.key)
        if path is None:
            built, path = _build_cached(wanted, builder, cache, device)
            row |= {"onnx": str(wanted.onnx), **_about(built, builder, path)}
        else:
            row |= {"onnx": str(wanted.onnx), "plan": str(path), "bytes": path.stat().st_size}
        if place:
            from headrace.optimize.place import place_file

            place_file(placed, path.read_bytes())
            row["plan"] = str(placed)
        rows.append(row)
    return rows


def _build_cached(
    wanted: _Wanted, builder: Builder, cache: EngineCache, device: Device
) -> tuple[Built, Path]:
    from headrace.control.engine_builds import key_of
    from headrace.optimize.engines import build
    from headrace.optimize.place import place_file
    from headrace.progress import StepProgress

    timing = cache.timing(builder.runtime, builder.version, device.name)
    known = b""
    with suppress(OSError):
        known = timing.read_bytes()
    with StepProgress() as progress:
        built = build(wanted.onnx, wanted.spec, builder, timing_cache=known, progress=progress)
    if wanted.key != key_of(wanted.onnx, wanted.spec, device):
        raise AbortedError(f"{wanted.onnx} changed while its engine was built")
    path = cache.keep(wanted.key, built.plan, {"model": wanted.model, "gpu": device.name})
    if built.timing_cache not in (b"", known):
        with suppress(HeadraceError):  # the engine is built
            place_file(timing, built.timing_cache)
    return built, path


def _wanted(
    repository: Path,
    names: list[str],
    targets: tuple[str, ...],
    device: Device,
    defaults: Defaults,
) -> list[_Wanted]:
    from headrace.repository.artifact import backend_of
    from headrace.repository.model_config import read_config, select_versions
    from headrace.repository.scan import find_model, scan

    entries: list[ModelEntry] = []
    if names:
        entries = [find_model((repository,), name) for name in names]
    else:
        found = scan((repository,))
        for name, reason in sorted(found.problems.items()):
            raise InvalidArgumentError(f"model '{name}': {reason}")
        entries = [entry for _, entry in sorted(found.entries.items())]
    wanted: list[_Wanted] = []
    for entry in entries:
        config = read_config(entry)
        if backend_of(config) != "tensorrt":
            if names:
                raise InvalidArgumentError(
                    f"model '{entry.name}' is not to run on TensorRT: set backend: \"tensorrt\" "
                    "in its config.pbtxt, or build a file with --onnx and --plan"
                )
            continue
        for version in select_versions(config, entry.versions, entry.name):
            onnx = entry.path / str(version) / "model.onnx"
            if not onnx.is_file():
                raise InvalidArgumentError(
                    f"model '{entry.name}' version {version} has no model.onnx to build from"
                )
            wanted.append(_engine(entry, version, onnx, config, targets, device, defaults))
    if not wanted:
        raise InvalidArgumentError(
            f'{repository} has no model with backend: "tensorrt" in its config.pbtxt'
        )
    return wanted


def _engine(
    entry: ModelEntry,
    version: int,
    onnx: Path,
    config: Any,
    targets: tuple[str, ...],
    device: Device,
    defaults: Defaults,
) -> _Wanted:
    """As the server would ask for it."""
    from headrace.control.engine_builds import key_of
    from headrace.control.loaders import Loaders, Source
    from headrace.control.tensorrt_models import engine_spec
    from headrace.repository.artifact import Artifact
    from headrace.repository.model_config import complete, validate

    as_onnx = Artifact("onnxruntime", onnx)
    source = Source(entry.name, version, as_onnx, entry.path, onnx.parent, config)
    try:
        opened = Loaders().open(source)
        completed = complete(
            config,
            entry.name,
            Artifact("tensorrt", onnx),
            opened.inputs,
            opened.outputs,
            defaults,
        )
        validate(completed)
    except HeadraceError as error:
        raise type(error)(f"model '{entry.name}' version {version}: {error.details}") from error
    spec = replace(engine_spec(completed, opened.inputs), targets=targets)
    return _Wanted(entry.name, version, onnx, spec, key_of(onnx, spec, device))


def _show(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        json.dump({"engines": rows}, sys.stdout, indent=2)
        print()
        return
    for row in rows:
        text = f"{row['plan']}: {row['bytes'] / 1e6:.2f} MB"
        if "seconds" not in row:
            print(f"{text}, was built before")
            continue
        q, dq = row["quantize_layers"], row["dequantize_layers"]
        print(
            f"{text} of {row['onnx']} in {row['seconds']} s by {row['runtime']} {row['version']}, "
            f"{row['profiles']} profile{'s' if row['profiles'] > 1 else ''}"
            + (f", {q} Q, {dq} DQ" if q or dq else "")
        )
