"""InstanceWatch: what becomes of sick instances is told to people, and to the registry, whose
readiness and health it may change."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from headrace.logs import get_logger

__all__ = ["InstanceWatch", "Told"]

_log = get_logger("control")

# (model, version, what happened, instance, instances in service, reason)
Told = Callable[[str, int, str, int, int, str], None]

_Event = tuple[str, int, str, int, int, str]

_TEXTS = {
    "quarantined": "failed again and again, and when it was probed: it is rebuilt",
    "rebuild failed": "cannot be rebuilt, it is tried again",
    "returned": "was rebuilt and serves again",
}


class InstanceWatch:
    """Thread-safe. Its own thread is started by the first event."""

    def __init__(self, changed: Callable[[], None]) -> None:
        """`changed`: called after every event."""
        self._changed = changed
        self._events: queue.SimpleQueue[_Event | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def tell(
        self, model: str, version: int, what: str, instance: int, in_service: int, reason: str
    ) -> None:
        """Called by an instance's thread, which must not wait for whoever waits for it."""
        self._events.put((model, version, what, instance, in_service, reason))
        with self._lock:
            if self._thread is None and not self._stopped:
                self._thread = threading.Thread(
                    target=self._run, name="instance-watch", daemon=True
                )
                self._thread.start()

    def stop(self) -> None:
        """Waits until everything was told. Idempotent."""
        with self._lock:
            self._stopped = True
            thread, self._thread = self._thread, None
        if thread is not None:
            self._events.put(None)
            thread.join()

    def _run(self) -> None:
        while (event := self._events.get()) is not None:
            model, version, what, instance, in_service, reason = event
            _log.log(
                logging.INFO if what == "returned" else logging.WARNING,
                "model '%s' version %d: instance %d %s; %d in service (%s)",
                model,
                version,
                instance,
                _TEXTS[what],
                in_service,
                " ".join(reason.split())[:300],
            )
            try:
                self._changed()
            except Exception:
                _log.exception("telling the server that an instance %s", what)
