"""TlsReload: certificate, key and CA files are read again when they change; no call is dropped.

The core does the work (new connections get the new certificate, others go on; files that are no
good change nothing); this decides when, and says how it went.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from headrace.errors import HeadraceError
from headrace.logs import get_logger

__all__ = ["TlsReload"]

_log = get_logger("tls")

_Fingerprint = tuple[tuple[int, int, int, int] | None, ...]


class TlsReload:
    """reload() and look() from any thread; start() and stop() once."""

    def __init__(self, reload: Callable[[], None], files: Sequence[Path], poll_secs: float) -> None:
        """`reload` is the core's Server.reload_tls. `poll_secs` 0: only when reload() is called."""
        self._reload = reload
        self._files = tuple(files)
        self._poll_secs = poll_secs
        self._lock = threading.Lock()
        self._seen = self._fingerprint()  # guarded by _lock
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._files and self._poll_secs > 0:
            self._thread = threading.Thread(target=self._run, name="tls-reload", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def reload(self) -> bool:
        """Whether the files were good; logged either way."""
        with self._lock:
            return self._read_again()

    def look(self) -> bool:
        """reload() if a file has changed. Whether new files are in use."""
        with self._lock:
            return self._fingerprint() != self._seen and self._read_again()

    def _read_again(self) -> bool:
        # Looked at first: a file that changes while it is read is found changed the next time.
        self._seen = self._fingerprint()
        try:
            self._reload()
        except HeadraceError as error:
            # Between the writing of a certificate and of its key this is to be expected.
            _log.warning("TLS files cannot be used, the old ones stay: %s", error.details)
            return False
        _log.info("TLS files read again: %s", ", ".join(str(path) for path in self._files))
        return True

    def _run(self) -> None:
        while not self._ended.wait(self._poll_secs):
            self.look()

    def _fingerprint(self) -> _Fingerprint:
        return tuple(_fingerprint(path) for path in self._files)


def _fingerprint(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = path.stat()  # of what a symbolic link points at: Kubernetes swaps those
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev
