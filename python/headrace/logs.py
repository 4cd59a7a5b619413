"""Logging: readable text or JSON lines on stderr, through the standard library.

Text:  2026-11-22 13:05:01.123  INFO   control   loaded magika 1 in 812 ms
JSON:  {"time": "2026-11-22T13:05:01.123Z", "level": "info", "logger": "control", "message": ...}

Fields given as `extra={"fields": {...}}` become keys of the JSON line.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from dataclasses import dataclass, replace
from typing import TextIO

__all__ = [
    "JsonFormatter",
    "LogSwitches",
    "TextFormatter",
    "configure",
    "get_logger",
    "switches",
    "use_stream",
]

_ROOT = "headrace"
_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_COLOURS = {
    logging.DEBUG: "\x1b[2m",
    logging.INFO: "\x1b[32m",
    logging.WARNING: "\x1b[33m",
    logging.ERROR: "\x1b[31m",
    logging.CRITICAL: "\x1b[31m",
}


@dataclass(frozen=True)
class LogSwitches:
    """What the LogSettings RPC switches; one immutable value, replaced whole."""

    info: bool = True
    warning: bool = True
    error: bool = True
    verbose_level: int = 0  # 1 and up: debug lines
    format: str = "default"  # or "ISO8601"

    def lets_through(self, level: int) -> bool:
        if level >= logging.ERROR:
            return self.error
        if level >= logging.WARNING:
            return self.warning
        if level >= logging.INFO:
            return self.info
        return self.verbose_level > 0


class _Switchboard(logging.Filter):
    """The filter that reads the current LogSwitches."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self.current = LogSwitches()

    def filter(self, record: logging.LogRecord) -> bool:
        return self.current.lets_through(record.levelno)

    def change(self, **changes: bool | int | str) -> LogSwitches:
        """Replaces the named switches and answers the whole."""
        with self._lock:
            self.current = replace(self.current, **changes)  # type: ignore[arg-type]
            return self.current


# One process has one stderr, so its switches are one object.
switches = _Switchboard()


def get_logger(name: str) -> logging.Logger:
    """The logger of a room: get_logger("control")."""
    return logging.getLogger(f"{_ROOT}.{name}")


def _room(record: logging.LogRecord) -> str:
    return record.name.removeprefix(_ROOT + ".")


class TextFormatter(logging.Formatter):
    """Aligned columns; colour only when asked for."""

    def __init__(self, *, colour: bool = False) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        if switches.current.format == "ISO8601":
            stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        else:
            stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
            stamp += f".{int(record.msecs):03d}"
        level = f"{record.levelname:<8}"
        if self._colour:
            level = f"{_COLOURS.get(record.levelno, '')}{level}\x1b[0m"
        line = f"{stamp}  {level} {_room(record):<9} {record.getMessage()}"
        if record.exc_info and record.exc_info[0] is not None:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line, UTC."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": _room(record),
            "message": record.getMessage(),
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            for key, value in fields.items():
                line.setdefault(str(key), value)
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def configure(level: str = "info", style: str = "text", stream: TextIO | None = None) -> None:
    """Sends Headrace's loggers to `stream` (stderr). Calling it again replaces what was set."""
    stream = stream if stream is not None else sys.stderr
    handler = logging.StreamHandler(stream)
    handler.addFilter(switches)
    if style == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(TextFormatter(colour=stream.isatty()))
    threshold = _LEVELS[level]
    switches.change(
        info=threshold <= logging.INFO,
        warning=threshold <= logging.WARNING,
        error=True,
        verbose_level=1 if threshold <= logging.DEBUG else 0,
        format="default",
    )
    root = logging.getLogger(_ROOT)
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    # The switches decide, so that LogSettings can lower the level later.
    root.setLevel(logging.DEBUG)
    root.propagate = False


def use_stream(stream: TextIO) -> None:
    """From now on configure()'s handler writes there."""
    for handler in logging.getLogger(_ROOT).handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(stream)
