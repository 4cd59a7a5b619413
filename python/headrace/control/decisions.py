"""Decisions: which backend was measured to be the fastest for a model, kept from start to start.

    decisions = Decisions("/home/me/.cache/headrace")
    key = decision_key(source, config, threads)
    decision = decisions.find(key)              # None: not measured yet, or the file is damaged
    decisions.keep(key, Decision(...))

A file a decision, in the folder `auto` of the cache folder. The key is of all that the times depend
on: the model's bytes, its configuration, threads, processor, versions of the runtimes.

Threads: every method from any thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from headrace import runtime
from headrace.logs import get_logger
from headrace.protocol import model_config
from headrace.repository.digest import content_digest

__all__ = ["Decision", "Decisions", "Measured", "decision_key"]

_log = get_logger("control")

_FORMAT = 1
_MAX_BYTES = 1 << 20
_RUNTIMES = ("openvino", "onnxruntime", "torch")


@dataclass(frozen=True)
class Measured:
    """One candidate. `left_out`: why it was not taken into account; "" when it was."""

    name: str
    seconds: tuple[float, ...] = ()  # an execution, by Decision.rows
    error: float = 0.0  # the largest relative one, against the reference
    left_out: str = ""


@dataclass(frozen=True)
class Decision:
    chosen: str
    rows: tuple[int, ...]  # the batch sizes that were measured; 0: the model does not batch
    measured: tuple[Measured, ...]  # the reference first

    def text(self) -> str:
        """For people: "fastest of 2 at batches of 1, 32: openvino 12/180 us; ..."."""
        taken = [m for m in self.measured if not m.left_out]
        out = "; ".join(f"not {m.name}: {m.left_out}" for m in self.measured if m.left_out)
        if len(taken) == 1:
            return f"the only one of {len(self.measured)} that can" + (f"; {out}" if out else "")
        at = f" at batches of {', '.join(map(str, self.rows))}" if any(self.rows) else ""
        times = ", ".join(f"{m.name} {_times(m.seconds)}" for m in taken)
        return f"fastest of {len(taken)}{at}: {times}" + (f"; {out}" if out else "")


def _times(seconds: tuple[float, ...]) -> str:
    scale, unit = (1e6, "us") if max(seconds) < 1e-3 else (1e3, "ms")
    return "/".join(f"{s * scale:.3g}" for s in seconds) + f" {unit}"


def decision_key(path: Path, config: model_config.ModelConfig, threads: int) -> str:
    """`path`: of the model file. Raises InvalidArgumentError when it cannot be read."""
    said = model_config.ModelConfig()
    said.CopyFrom(config)
    said.ClearField("name")
    said.ClearField("version_policy")
    # How many instances there are changes no time of one.
    groups = said.instance_group
    devices: list[object] = [*sorted({(group.kind, *group.gpus) for group in groups})]
    if any(group.kind == model_config.ModelInstanceGroup.KIND_GPU for group in groups):
        devices.append(_gpus())
    said.ClearField("instance_group")
    for name in [n for n in said.parameters if n.startswith("headrace.")]:
        del said.parameters[name]
    parts = {
        "model": content_digest(path),
        "devices": devices,
        "configuration": said.SerializeToString(deterministic=True).hex(),
        "threads": threads,
        "processor": _processor(),
        "versions": _versions(),
    }
    text = json.dumps(parts, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _versions() -> Mapping[str, str]:
    found = {"headrace": runtime.__version__}
    for name in _RUNTIMES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@cache
def _processor() -> str:
    """Model and instruction sets; how many of them this process may use."""
    lines = []
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0]
        wanted = ("model name", "flags", "Features", "CPU part")
        lines = [line for line in first.splitlines() if line.split("\t")[0].strip() in wanted]
    return "\n".join([platform.machine(), str(runtime.available_cores()), *lines])


@cache
def _gpus() -> list[str]:
    """NVIDIA's names of those that are there."""
    names = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        with contextlib.suppress(OSError):
            lines = path.read_text(errors="replace").splitlines()
            names += [line.split(":", 1)[1].strip() for line in lines if line.startswith("Model:")]
    return names


class Decisions:
    def __init__(self, cache_dir: str) -> None:
        """ "" keeps nothing."""
        self._folder = Path(cache_dir) / "auto" if cache_dir else None

    def find(self, key: str) -> Decision | None:
        if self._folder is None:
            return None
        path = self._folder / f"{key}.json"
        try:
            with path.open("rb") as file:
                data = file.read(_MAX_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("%s: %s; it is measured again", path, error.strerror)
            return None
        try:
            return _decision(json.loads(data))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            _log.warning("%s is damaged (%s); it is measured again", path, error)
            return None

    def keep(self, key: str, decision: Decision) -> None:
        """Whole or not at all. What cannot be written is logged."""
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._folder, prefix=f".{key}.")
            try:
                with os.fdopen(handle, "w") as file:
                    json.dump({"format": _FORMAT, **asdict(decision)}, file, indent=1)
                Path(name).replace(self._folder / f"{key}.json")
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            _log.warning("the choice of a backend is not kept: %s", error)


def _decision(read: Any) -> Decision:
    if read["format"] != _FORMAT:
        raise ValueError(f"format {read['format']!r}")
    measured = tuple(
        Measured(str(m["name"]), tuple(map(float, m["seconds"])), float(m["error"]), m["left_out"])
        for m in read["measured"]
    )
    decision = Decision(str(read["chosen"]), tuple(map(int, read["rows"])), measured)
    known = {m.name: m for m in measured}
    if decision.chosen not in known or known[decision.chosen].left_out:
        raise ValueError(f"'{decision.chosen}' was not measured")
    for one in measured:
        if not isinstance(one.left_out, str):
            raise TypeError("left_out is no text")
        if one.left_out:
            continue
        if len(one.seconds) != len(decision.rows) or not all(map(math.isfinite, one.seconds)):
            raise ValueError(f"times of '{one.name}'")
    return decision
