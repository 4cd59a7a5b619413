"""`headrace serve` as a child process on free ports."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException


def two_free_ports() -> tuple[int, int]:
    """Both are held while they are chosen, so they differ."""
    with socket.socket() as one, socket.socket() as other:
        for probe in (one, other):
            probe.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


class ServerProcess:
    """Starts on entry, is stopped with SIGTERM on exit; `returncode` then says how it ended."""

    def __init__(self, repository: Path, *options: str) -> None:
        self.port, metrics_port = two_free_ports()
        self.address = f"127.0.0.1:{self.port}"
        self.command = [
            str(Path(sys.executable).with_name("headrace")),
            "serve",
            "--model-repository",
            os.path.relpath(repository),
            "--grpc-port",
            str(self.port),
            "--metrics-port",
            str(metrics_port),
            *options,
        ]
        self.start_seconds = 0.0
        self.returncode: int | None = None
        self._started = 0.0
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process

    def __enter__(self) -> ServerProcess:
        self._started = time.monotonic()
        self._process = subprocess.Popen(self.command, stdout=self._log, stderr=self._log)
        return self

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def wait_ready(self, timeout_s: float = 120) -> None:
        """Returns when every model is loaded. Exits with the server's log when it fails."""
        with triton.InferenceServerClient(self.address) as client:
            while time.monotonic() < self._started + timeout_s:
                if self._process.poll() is not None:
                    sys.exit(f"the server ended while starting:\n{self.log()}")
                try:
                    if client.is_server_ready(client_timeout=1):
                        self.start_seconds = time.monotonic() - self._started
                        return
                except InferenceServerException:
                    pass  # not listening yet
                time.sleep(0.05)
        sys.exit(f"not ready after {timeout_s:.0f} s:\n{self.log()}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self.returncode = self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self.returncode = self._process.wait()
        if error is not None or self.returncode != 0:
            print(f"--- the server's log\n{self.log()}", file=sys.stderr)
        self._log.close()
