from __future__ import annotations

import os
from pathlib import Path

import pytest

from headrace.admin_socket import default_admin_socket, make_socket_folder
from headrace.errors import FailedPreconditionError


def test_the_default_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert default_admin_socket(8001) == tmp_path / "headrace" / "admin-8001.sock"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "not there"))
    assert default_admin_socket(8001) == Path(f"/tmp/headrace-{os.getuid()}/admin-8001.sock")


def test_the_folder_is_for_one_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "headrace" / "admin-1.sock"
    make_socket_folder(path)
    make_socket_folder(path)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    path.parent.chmod(0o755)
    with pytest.raises(FailedPreconditionError, match="only this user"):
        make_socket_folder(path)


def test_a_link_to_another_folder_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "headrace").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FailedPreconditionError):
        make_socket_folder(tmp_path / "headrace" / "admin-1.sock")
