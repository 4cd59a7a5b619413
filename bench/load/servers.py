"""The servers of the front-end benchmark: how each starts, and that each is always stopped."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import identity

__all__ = ["Peer", "Server", "ServerFailedError", "free_port", "peers", "running"]

HERE = Path(__file__).resolve().parent
OURS = ("headrace-openvino", "headrace-callback")


class ServerFailedError(Exception):
    """A server did not come up, or died."""


@dataclass(frozen=True)
class Peer:
    name: str
    what: str  # one line for the report
    command: Callable[[int, Path], list[str]]  # (port, empty work folder) -> argv
    missing: str = ""  # why it cannot run here and what to do; "" when it can
    live: bool = False  # answers ServerLive
    infers: bool = True  # answers ModelInfer

    @property
    def ours(self) -> bool:
        return self.name in OURS


@dataclass(frozen=True)
class Server:
    peer: Peer
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def tail(self) -> str:
        """The end of its log, for error messages."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


def _headrace(model: str, headrace: Path | None) -> Peer:
    missing = ""
    if headrace is None:
        missing = "no headrace command found (pip install . here, or give --headrace PATH)"
    elif model == "openvino" and importlib.util.find_spec("onnx") is None:
        missing = f"{sys.executable} has no onnx to write the model with (pip install onnx)"

    def command(port: int, work: Path) -> list[str]:
        identity.write_repository(work / "models", model)
        return [
            str(headrace),
            "serve",
            f"--model-repository={work / 'models'}",
            f"--grpc-port={port}",
            "--metrics-port=-1",
        ]

    what = {
        "openvino": "Headrace, ONNX model on OpenVINO, dynamic batching",
        "callback": "Headrace, plain Python callable, dynamic batching",
    }[model]
    return Peer(f"headrace-{model}", what, command, missing, live=True)


def _triton(name: str, mode: str, what: str, venv: Path | None, infers: bool = True) -> Peer:
    missing = ""
    if venv is None:
        missing = "give --triton-venv, a venv with nvidia-pytriton==0.7.0 (bench/README.md)"
    elif not (venv / "bin" / "python").exists():
        missing = f"{venv} is not a venv"
    elif not list(venv.glob("lib/python3*/site-packages/pytriton")):
        missing = f"{venv} has no pytriton: {venv}/bin/pip install nvidia-pytriton==0.7.0"

    def command(port: int, work: Path) -> list[str]:
        script = HERE / "peers" / "triton_server.py"
        arguments = ["--port", str(port), "--mode", mode, "--work", str(work)]
        return [f"{venv}/bin/python", str(script), *arguments]

    return Peer(name, what, command, missing, live=True, infers=infers)


def _grpcio(name: str, mode: str, what: str, python: Path) -> Peer:
    missing = ""
    probe = [str(python), "-c", "import grpc, tritonclient.grpc.service_pb2"]
    try:
        subprocess.run(probe, check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        missing = f"{python} lacks grpcio or the stubs: pip install grpcio 'tritonclient[grpc]'"

    def command(port: int, work: Path) -> list[str]:
        script = HERE / "peers" / "grpcio_server.py"
        return [str(python), str(script), "--port", str(port), "--mode", mode]

    return Peer(name, what, command, missing, live=True)


def _echo(binary: Path) -> Peer:
    def command(port: int, work: Path) -> list[str]:
        response = work / "response.bin"
        response.write_bytes(identity.infer_response("identity"))
        return [str(binary), "--port", str(port), "--response", str(response)]

    missing = "" if binary.exists() else f"{binary} is not built"
    return Peer("nghttp2-echo", "bare limit: nghttp2, one thread, fixed answer", command, missing)


def peers(
    binaries: Path, headrace: Path | None, triton_venv: Path | None, grpcio_python: Path
) -> list[Peer]:
    """All servers, in the order in which a round runs them; the missing ones say why."""
    return [
        _headrace("openvino", headrace),
        _triton("triton", "python", "Triton, its Python backend, dynamic batching", triton_venv),
        _grpcio("grpcio", "sync", "grpcio sync server, protobuf parse and build", grpcio_python),
        _echo(binaries / "nghttp2_echo"),
        _headrace("callback", headrace),
        _triton(
            "triton-cached", "cached", "Triton, every answer from its response cache", triton_venv
        ),
        _triton("pytriton", "pytriton", "Triton, numpy function through PyTriton", triton_venv),
        _grpcio("grpcio-aio", "aio", "grpcio asyncio server, protobuf", grpcio_python),
        _triton(
            "triton-no-model", "no-model", "Triton with no model at all", triton_venv, infers=False
        ),
    ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start_time(pid: int) -> str:
    """A process's start in clock ticks, "" when it is gone: tells a pid from its successor."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return text[text.rindex(")") :].split()[20]


def _family(pid: int) -> dict[int, str]:
    """The process and its living descendants (some peers start theirs in sessions of their own)."""
    found = {pid: _start_time(pid)}
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found |= _family(int(child))
    return found


def _stop(process: subprocess.Popen[bytes]) -> None:
    family = _family(process.pid)
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=15)
    for pid, started in family.items():
        if started and _start_time(pid) == started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def running(
    peer: Peer, work: Path, ready: Callable[[Server], bool], patience_s: float = 60
) -> Iterator[Server]:
    """Starts a peer in an empty folder ``work`` and waits until ``ready``; stops it on leaving.

    Raises ServerFailedError with the end of the server's log.
    """
    work.mkdir(parents=True)
    port = free_port()
    log = work / "log.txt"
    with log.open("wb") as out:
        process = subprocess.Popen(
            peer.command(port, _fresh(work / "files")), stdout=out, stderr=subprocess.STDOUT
        )
    server = Server(peer, port, process, log)
    try:
        deadline = time.monotonic() + patience_s
        while not ready(server):
            if process.poll() is not None:
                raise ServerFailedError(f"{peer.name} ended by itself\n{server.tail()}")
            if time.monotonic() > deadline:
                raise ServerFailedError(
                    f"{peer.name} not ready after {patience_s:.0f} s\n{server.tail()}"
                )
            time.sleep(0.05)
        yield server
    finally:
        _stop(process)
        shutil.rmtree(work / "files", ignore_errors=True)


def _fresh(folder: Path) -> Path:
    folder.mkdir()
    return folder
