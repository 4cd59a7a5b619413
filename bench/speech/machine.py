"""What there is to know of the machine, a server of our own for a benchmark, and its results'
file."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import grpc

ROOT = Path(__file__).resolve().parents[2]


def describe() -> dict[str, Any]:
    cpu = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    versions = {}
    for name in ("openvino", "onnxruntime", "grpcio", "nvidia-riva-client", "faster-whisper"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit,
        "load": load(),
    }


def load() -> float:
    """Processes that ran or wanted to, on average of the last minute; the server's and the clients'
    own are among them while they run."""
    return round(os.getloadavg()[0], 2)


def busy_seconds() -> float:
    """CPU seconds of everything on this machine, since it started."""
    fields = [int(x) for x in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    return sum(fields[:3] + fields[5:8]) / os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serve(repository: Path, log: Path) -> Iterator[tuple[str, int]]:
    """(address, process id) of a server that is ready."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "headrace", "serve", "--model-repository", str(repository)]
    command += ["--host", "127.0.0.1", "--grpc-port", str(port), "--no-metrics"]
    command += ["--admin-socket", "", "--state-dir", ""]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        address = f"127.0.0.1:{port}"
        _wait_ready(address, process, log)
        yield address, process.pid
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait_ready(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    from headrace.client import Client
    from headrace.errors import HeadraceError

    end = time.monotonic() + 300
    with Client(address) as client:
        while time.monotonic() < end:
            if process.poll() is not None:
                raise SystemExit(f"the server did not start:\n{log.read_text()[-2000:]}")
            try:
                if client.server_ready():
                    return
            except (HeadraceError, grpc.RpcError):
                pass
            time.sleep(0.1)
    raise SystemExit(f"the server was not ready:\n{log.read_text()[-2000:]}")


def write(name: str, results: dict[str, Any], folder: Path | None) -> None:
    """JSON into `folder`, bench/results when it is None."""
    folder = folder or ROOT / "bench" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now(timezone.utc).strftime("%Y-%m-%d-%H%M%S")
    path = folder / f"{name}-{stamp}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{path}")
