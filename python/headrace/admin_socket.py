"""Where the admin service of a server on this machine listens, for the server and its clients."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from headrace.errors import FailedPreconditionError

__all__ = ["default_admin_socket", "make_socket_folder"]


def _folder() -> Path:
    """The user's own: nobody else may put a socket there first."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        return Path(runtime) / "headrace"
    # Not $TMPDIR: a server and its client may have different ones, and socket paths must be short.
    return Path("/tmp") / f"headrace-{os.getuid()}"


def default_admin_socket(grpc_port: int) -> Path:
    """Of the server whose gRPC port it is, run by the same user."""
    return _folder() / f"admin-{grpc_port}.sock"


def make_socket_folder(path: Path) -> None:
    """The folder of a default socket, which only its user may use. Raises FailedPreconditionError
    when it is somebody else's or open to others; OSError."""
    folder = path.parent
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o077:
        raise FailedPreconditionError(
            f"'{folder}' must be a folder that only this user may use (chmod 700)"
        )
