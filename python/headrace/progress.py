"""Progress displays for people at a terminal: while models load (log lines go above it), and for
long work of one command."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

from headrace import logs

if TYPE_CHECKING:
    from headrace.control.swapping import LoadEvent

__all__ = ["LoadProgress", "StepProgress"]


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


class StepProgress:
    """A bar for each step of long work, shown on a terminal's stderr; silent elsewhere. Called with
    (what is done, how much of it, of how much); used as a context manager."""

    def __init__(self) -> None:
        self._progress: Any = None
        self._task: Any = None
        self._what = ""

    def __enter__(self) -> StepProgress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
            )

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, what: str, done: int, of: int) -> None:
        if self._progress is None:
            return
        if what != self._what:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task(what, total=of)
            self._what = what
        self._progress.update(self._task, completed=done, total=of)
