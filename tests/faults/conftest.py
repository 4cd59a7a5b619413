"""Each row of the fault matrix is a test marked `fault("what goes wrong")`; what it measured is a
line of the table at the end, and with `--faults-json FILE` (or $FAULTS_JSON) an entry there."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from harness import Server

Figure = Callable[[str, Any], None]
_rows: list[dict[str, Any]] = []
_figures = pytest.StashKey[dict[str, Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--faults-json", default=os.environ.get("FAULTS_JSON", ""), help="write the figures there"
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def start(repository: Path) -> Iterator[Callable[..., Server]]:
    """start(*options) -> a server on `repository`; stopped and checked after the test."""
    with ExitStack() as stack:
        yield lambda *options, **more: stack.enter_context(Server(repository, *options, **more))


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Figure:
    """figure(name, value): a figure of the row."""
    figures = request.node.stash.setdefault(_figures, {})

    def put(name: str, value: Any) -> None:
        figures[name] = round(value, 3) if isinstance(value, float) else value

    return put


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[assignment]
    marker = item.get_closest_marker("fault")
    if marker is not None and (report.when == "call" or report.outcome != "passed"):
        row = {
            "fault": marker.args[0],
            "test": item.nodeid.rpartition("/")[2],
            "result": report.outcome,
            "seconds": round(report.duration, 1),
            "figures": item.stash.get(_figures, {}),
        }
        if hasattr(report, "wasxfail"):
            row["result"] = "does not hold" if report.skipped else "holds"
            row["why"] = report.wasxfail.removeprefix("reason: ")
        elif report.skipped and isinstance(report.longrepr, tuple):
            row["why"] = report.longrepr[2]
        _rows.append(row)
    return report  # type: ignore[return-value]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if not _rows:
        return
    terminalreporter.section("faults")
    lines = ["| fault | result | figures | s |", "|--|--|--|--|"]
    for row in _rows:
        shown = [f"{name} {value}" for name, value in row["figures"].items()]
        shown += [row["why"]] if "why" in row else []
        lines.append(
            f"| {row['fault']} | {row['result']} | {'; '.join(shown)} | {row['seconds']} |"
        )
    for line in lines:
        terminalreporter.write_line(line)
    target = config.getoption("--faults-json")
    if target:
        Path(target).write_text(json.dumps(_document(), indent=1) + "\n")


def _document() -> dict[str, Any]:
    here = Path(__file__).parent
    commit = subprocess.run(
        ["git", "-C", str(here), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "rows": _rows,
    }
