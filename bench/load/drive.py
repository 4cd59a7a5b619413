"""Drives one running server through all measurements, each from a process of its own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import identity
from servers import Server, ServerFailedError

__all__ = ["Driver", "Load"]

INFER = "/inference.GRPCInferenceService/ModelInfer"
LIVE = "/inference.GRPCInferenceService/ServerLive"


@dataclass(frozen=True)
class Load:
    """How much and how long."""

    duration_s: float
    warm_up_s: float
    common_rate: float  # open loop, calls/s, the same for every server
    connections: int = 8
    streams: int = 32


@dataclass
class Driver:
    loadgen: Path
    load: Load
    folder: Path  # for the request files; exists
    h2load: str | None = field(default_factory=lambda: shutil.which("h2load"))

    def __post_init__(self) -> None:
        request = identity.infer_request("identity")
        self._request = self.folder / "request.bin"
        self._request.write_bytes(request)
        self._framed = self.folder / "request.framed"  # with gRPC's prefix, for h2load
        self._framed.write_bytes(b"\0" + len(request).to_bytes(4, "big") + request)
        self._values = self.folder / "values.bin"
        self._values.write_bytes(identity.VALUES)
        self._live = self.folder / "live.bin"
        self._live.write_bytes(b"\x08\x01")  # ServerLiveResponse{live: true}

    def ready(self, server: Server) -> bool:
        """True when the server answers the measured call rightly."""
        try:
            result = self._run(server, "--requests=1", "--warm-up=0", infer=server.peer.infers)
        except (ServerFailedError, subprocess.TimeoutExpired):
            return False
        return bool(result["right"] > 0 and result["wrong"] == 0)

    def measure(self, server: Server) -> dict[str, Any]:
        """All figures of one round; a step that breaks the server stands as {"failed": why}."""
        load = self.load
        full = [f"--connections={load.connections}", f"--streams={load.streams}"]
        results: dict[str, Any] = {}
        if server.peer.infers:
            results["single"] = self._attempt(server, "--connections=1", "--streams=1")
            results["full"] = self._attempt(server, *full)
            spread = f"--connections={load.connections}"
            results["open_common"] = self._attempt(server, spread, f"--rate={load.common_rate}")
            top = results["full"].get("requests_per_s", 0)
            if top:
                results["open_half"] = self._attempt(server, spread, f"--rate={top / 2:.1f}")
        if server.peer.live:
            results["live"] = self._attempt(server, *full, infer=False)
        if self.h2load and server.peer.infers:  # last: it cuts its calls off when its time is over
            results["h2load"] = self._h2load(server)
        return results

    def _attempt(self, server: Server, *arguments: str, infer: bool = True) -> dict[str, Any]:
        load = self.load
        times = [f"--duration={load.duration_s}", f"--warm-up={load.warm_up_s}"]
        pid = [f"--server-pid={server.process.pid}"]
        try:
            return self._run(server, *times, *pid, *arguments, infer=infer)
        except (ServerFailedError, subprocess.TimeoutExpired) as error:
            return {"failed": str(error)}

    def _run(self, server: Server, *arguments: str, infer: bool = True) -> dict[str, Any]:
        if infer:
            what = ["--path", INFER, "--message", str(self._request)]
            what += ["--expect-contains", str(self._values)]
        else:
            what = ["--path", LIVE, "--expect-equal", str(self._live)]
        flat = [word for argument in arguments for word in argument.split("=", 1)]
        done = subprocess.run(
            [str(self.loadgen), "--target", f"127.0.0.1:{server.port}", *what, *flat],
            capture_output=True,
            text=True,
            timeout=self.load.duration_s + self.load.warm_up_s + 30,
        )
        if done.returncode != 0:
            raise ServerFailedError(done.stderr.strip() or f"loadgen exit status {done.returncode}")
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def _h2load(self, server: Server) -> dict[str, Any]:
        load = self.load
        command = [
            str(self.h2load),
            f"--clients={load.connections}",
            f"--max-concurrent-streams={load.streams}",
            f"--duration={max(1, round(load.duration_s))}",
            f"--warm-up-time={max(1, round(load.warm_up_s))}",
            f"--data={self._framed}",
            "--header=content-type: application/grpc",
            "--header=te: trailers",
            f"http://127.0.0.1:{server.port}{INFER}",
        ]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=load.duration_s + 60
            )
        except subprocess.TimeoutExpired:
            return {"failed": "h2load did not end"}
        rate = re.search(r"finished in .*?, ([\d.]+) req/s", done.stdout)
        counts = re.search(r"(\d+) succeeded, (\d+) failed", done.stdout)
        if rate is None or counts is None:
            return {"failed": (done.stderr or done.stdout).strip()[-300:]}
        # h2load sees HTTP statuses only: a gRPC error is a success to it. The load client checks.
        return {
            "requests_per_s": float(rate[1]),
            "succeeded": int(counts[1]),
            "failed_requests": int(counts[2]),
        }
