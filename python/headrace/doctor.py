"""`headrace doctor`: what hardware, backends and versions were found, what is missing, and the
command that fixes it. Looks only; changes nothing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

__all__ = ["Finding", "examine"]

State = Literal["ok", "missing", "broken", "info"]

# /proc/cpuinfo flags worth knowing, in the order they are shown.
_ISA = {
    "avx2": "AVX2",
    "fma": "FMA",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_tile": "AMX",
    "amx_int8": "AMX INT8",
    "amx_bf16": "AMX BF16",
    "asimd": "NEON",
    "sve": "SVE",
}


@dataclass(frozen=True)
class Finding:
    """One line of the report. `fix` is a command or a sentence; "" when there is nothing to fix."""

    section: str
    name: str
    state: State
    text: str
    fix: str = ""

    def as_json(self) -> dict[str, str]:
        return asdict(self)


def examine(root: Path = Path("/")) -> list[Finding]:
    """Everything, in the order it is shown. `root` is where /proc and /sys are looked for."""
    return [*_machine(root), *_software(), *_backends()]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _machine(root: Path) -> list[Finding]:
    cpuinfo = _read(root / "proc/cpuinfo")
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    model = fields.get("model name") or platform.processor() or platform.machine()
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    found = [label for flag, label in _ISA.items() if flag in flags]
    return [
        Finding("hardware", "cpu", "info", f"{model} ({platform.machine()})"),
        Finding("hardware", "isa", "info", ", ".join(found) or "baseline only"),
        Finding("hardware", "cores", "info", _cores(root)),
        Finding("hardware", "memory", "info", _memory(root)),
        _gpu(root),
    ]


def _cores(root: Path) -> str:
    text = f"{os.cpu_count() or 1} in the machine"
    if hasattr(os, "sched_getaffinity"):
        text += f", {len(os.sched_getaffinity(0))} by affinity"
    quota, _, period = _read(root / "sys/fs/cgroup/cpu.max").strip().partition(" ")
    if quota.isdigit() and period.isdigit() and int(period) > 0:
        text += f", {int(quota) / int(period):g} by cgroup quota"
    try:
        from headrace import runtime
    except ImportError:
        return text
    return f"{text}; Headrace divides {runtime.available_cores()} over model instances"


def _memory(root: Path) -> str:
    values: dict[str, int] = {}
    for line in _read(root / "proc/meminfo").splitlines():
        key, _, rest = line.partition(":")
        number = rest.split()[:1]
        if number and number[0].isdigit():
            values[key] = int(number[0]) * 1024
    if "MemTotal" not in values:
        return "unknown"
    text = f"{values['MemTotal'] / 2**30:.1f} GiB"
    if "MemAvailable" in values:
        text += f", {values['MemAvailable'] / 2**30:.1f} GiB available"
    limit = _read(root / "sys/fs/cgroup/memory.max").strip()
    if limit.isdigit():
        text += f", limited to {int(limit) / 2**30:.1f} GiB by cgroup"
    return text


def _gpu(root: Path) -> Finding:
    driver = _read(root / "proc/driver/nvidia/version").split("\n")[0]
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        try:
            listed = subprocess.run(
                [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"],
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError) as error:
            return Finding(
                "hardware",
                "gpu",
                "broken",
                f"nvidia-smi fails: {error}",
                "reinstall the NVIDIA driver, or start the container with --gpus all",
            )
        if listed:
            return Finding("hardware", "gpu", "info", "; ".join(listed.splitlines()))
    if driver:
        return Finding("hardware", "gpu", "info", f"NVIDIA driver without nvidia-smi: {driver}")
    return Finding("hardware", "gpu", "info", "no NVIDIA GPU found; models run on the CPU")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _software() -> list[Finding]:
    python = Finding(
        "software",
        "python",
        "ok",
        f"{platform.python_version()} ({platform.python_implementation()}) at {sys.executable}",
    )
    return [python, _core(), *(_package(name, why) for name, why in _NEEDED)]


_NEEDED = (
    ("numpy", "arrays"),
    ("protobuf", "messages"),
    ("grpcio", "headrace models, headrace infer"),
    ("prometheus-client", "metrics"),
    ("pydantic", "configuration files"),
    ("pyyaml", "configuration files"),
)


def _package(name: str, why: str) -> Finding:
    version = _version(name)
    if version is None:
        return Finding(
            "software", name, "missing", f"not installed; needed for {why}", f"pip install {name}"
        )
    return Finding("software", name, "ok", version)


def _core() -> Finding:
    try:
        from headrace import runtime
    except ImportError as error:
        return Finding(
            "software", "headrace core", "broken", str(error.__cause__ or error), "pip install ."
        )
    return Finding("software", "headrace core", "ok", runtime.__version__)


def _backends() -> list[Finding]:
    return [
        _backend("openvino", "ONNX and OpenVINO IR on the CPU", _openvino),
        _optional("onnxruntime", "ONNX models that OpenVINO cannot compile", "onnxruntime"),
        _optional("torch", "TorchScript and torch.export models", "headrace[torch]"),
        _tensorrt(),
        Finding("backends", "python", "ok", f"model.py, Python {platform.python_version()}"),
    ]


def _backend(name: str, what: str, probe: Callable[[], str]) -> Finding:
    try:
        return Finding("backends", name, "ok", f"{probe()}: {what}")
    except Exception as error:  # whatever is wrong is the finding
        return Finding(
            "backends", name, "broken", f"{type(error).__name__}: {error}", "pip install headrace"
        )


def _openvino() -> str:
    from headrace import runtime

    devices = ", ".join(runtime.OpenVinoBackend().devices())
    return f"{runtime.OpenVinoBackend.version()}, devices {devices or 'none'}"


def _optional(module: str, what: str, package: str) -> Finding:
    if importlib.util.find_spec(module) is None:
        return Finding(
            "backends", module, "missing", f"not installed: {what}", f"pip install '{package}'"
        )
    return Finding("backends", module, "ok", f"{_version(module) or 'installed'}: {what}")


def _tensorrt() -> Finding:
    installed = [f"{name} {v}" for name in ("tensorrt", "tensorrt-rtx") if (v := _version(name))]
    builder = f"engines are built by {', '.join(installed)}" if installed else "builds no engines"
    try:
        from headrace.control.tensorrt_models import TensorRt

        device = TensorRt().device()
    except Exception as error:  # whatever is missing is the finding
        text = str(getattr(error, "details", error)).split(". ")[0]
        return Finding("backends", "tensorrt", "info", f"executes no engines ({text}); {builder}")
    text = f"{device.runtime} {device.version} on {device.name}; {builder}"
    return Finding("backends", "tensorrt", "ok", text)
