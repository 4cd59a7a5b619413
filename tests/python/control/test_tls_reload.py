"""TlsReload: when files are read again, and what is said about it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from headrace.control.tls_reload import TlsReload
from headrace.errors import InvalidArgumentError


class Core:
    def __init__(self) -> None:
        self.reloads = 0
        self.problem = ""

    def reload_tls(self) -> None:
        self.reloads += 1
        if self.problem:
            raise InvalidArgumentError(self.problem)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    made = [tmp_path / "cert.pem", tmp_path / "key.pem"]
    for path in made:
        path.write_text("first")
    return made


def test_only_a_change_is_read(files: list[Path]) -> None:
    core = Core()
    watch = TlsReload(core.reload_tls, files, 0)
    assert not watch.look()
    files[1].write_text("second")
    assert watch.look()
    assert not watch.look()
    assert core.reloads == 1
    # The same size and time, another file: as a renamed copy.
    other = files[0].with_suffix(".new")
    other.write_text("third")
    before = files[0].stat()
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(files[0])
    assert watch.look()
    assert watch.reload()
    assert core.reloads == 3


def test_a_symbolic_link_that_is_turned_is_a_change(tmp_path: Path) -> None:
    core = Core()
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "cert.pem").write_text(version)
    link = tmp_path / "current"
    link.symlink_to("1")
    watch = TlsReload(core.reload_tls, [link / "cert.pem"], 0)
    new = tmp_path / "new"
    new.symlink_to("2")
    new.replace(link)
    assert watch.look()


def test_what_is_no_good_is_logged_once_and_tried_again_when_it_changes(
    files: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    core = Core()
    watch = TlsReload(core.reload_tls, files, 0)
    core.problem = "TLS private key: does not belong"
    files[0].write_text("new certificate")
    with caplog.at_level(logging.INFO, "headrace"):
        assert not watch.look()
        assert not watch.look()
    assert core.reloads == 1
    assert caplog.text.count("does not belong") == 1
    core.problem = ""
    files[1].write_text("its key")
    assert watch.look()
    files[0].unlink()
    core.problem = "No such file"
    assert not watch.look()


def test_without_files_or_polling_there_is_no_thread(files: list[Path]) -> None:
    for watch in (TlsReload(Core().reload_tls, [], 1), TlsReload(Core().reload_tls, files, 0)):
        watch.start()
        assert watch._thread is None
        watch.stop()
    watch = TlsReload(Core().reload_tls, files, 3600)
    watch.start()
    watch.stop()
    assert watch._thread is not None and not watch._thread.is_alive()
