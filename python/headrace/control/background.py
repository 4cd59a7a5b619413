"""Work that nobody waits for, on threads of their own: draining what was taken out of service."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from headrace.errors import HeadraceError
from headrace.logs import get_logger

__all__ = ["Background"]

_log = get_logger("control")


class Background:
    """Threads: every method from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()  # by _lock

    def run(self, name: str, work: Callable[[], None]) -> None:
        """Its errors are logged."""

        def run() -> None:
            try:
                work()
            except HeadraceError as error:
                _log.error("%s: %s", name, error.details)
            except Exception:
                _log.exception("%s", name)
            finally:
                with self._lock:
                    self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=run, name=name, daemon=True)
        with self._lock:
            self._threads.add(thread)
        thread.start()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether all of it has ended in time."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)
