"""Log lines: what they look like, and what LogSettings lets through."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from headrace import logs


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    root = logging.getLogger("headrace")
    handlers, level, propagate = list(root.handlers), root.level, root.propagate
    switches = logs.switches.current
    yield
    root.handlers, root.propagate = handlers, propagate
    root.setLevel(level)
    logs.switches.current = switches


def test_text_lines_are_aligned_and_plain_off_a_terminal() -> None:
    stream = io.StringIO()
    logs.configure("info", "text", stream)
    logs.get_logger("control").info("loaded %s", "a")
    logs.get_logger("server").warning("careful")
    first, second = stream.getvalue().splitlines()
    assert first.index("loaded a") == second.index("careful")
    assert "INFO" in first and "control" in first
    assert "\x1b" not in stream.getvalue()


def test_json_lines_carry_fields_and_exceptions() -> None:
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    log = logs.get_logger("control")
    log.info("line\nbreak \u00e4", extra={"fields": {"model": "a", "message": "not this"}})
    try:
        raise ValueError("boom")
    except ValueError:
        log.exception("failed")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first["message"] == "line\nbreak \u00e4"
    assert (first["model"], first["level"], first["logger"]) == ("a", "info", "control")
    assert "ValueError: boom" in second["exception"]


@pytest.mark.parametrize(
    ("level", "shown"),
    [("debug", "dive"), ("info", "ive"), ("warning", "ve"), ("error", "e")],
)
def test_levels(level: str, shown: str) -> None:
    stream = io.StringIO()
    logs.configure(level, "text", stream)
    log = logs.get_logger("x")
    log.debug("d"), log.info("i"), log.warning("v"), log.error("e")
    assert "".join(line[-1] for line in stream.getvalue().splitlines()) == shown


def test_switches_act_at_once_and_format_is_iso_when_asked() -> None:
    stream = io.StringIO()
    logs.configure("error", "text", stream)
    log = logs.get_logger("x")
    log.debug("no")
    logs.switches.change(verbose_level=1, format="ISO8601")
    log.debug("yes")
    (line,) = stream.getvalue().splitlines()
    assert line.endswith("yes")
    assert line[10] == "T" and line[19] == "Z"
