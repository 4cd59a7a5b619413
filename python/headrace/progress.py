"""A progress display while models load, for people at a terminal. Log lines go above it."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

from headrace import logs

if TYPE_CHECKING:
    from headrace.control.swapping import LoadEvent

__all__ = ["LoadProgress"]


class LoadProgress:
    """A listener for LoadEvents, from any thread. Shown while something loads, then gone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._progress: Any = None  # rich.progress.Progress while it is shown
        self._tasks: dict[str, Any] = {}

    def __call__(self, event: LoadEvent) -> None:
        with self._lock:
            if event.kind == "started":
                self._show()
                self._tasks[event.model] = self._progress.add_task(event.model, total=None)
                return
            task = self._tasks.pop(event.model, None)
            if task is not None:
                self._progress.remove_task(task)
            if not self._tasks:
                self._hide()

    def _show(self) -> None:
        if self._progress is not None:
            return
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("loading {task.description}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._progress.start()
        logs.use_stream(sys.stderr)  # rich's, which writes above the display

    def _hide(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            logs.use_stream(sys.stderr)
