"""Headrace, an inference server: `Server` runs one in this process, `headrace serve` in a shell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.app import Server
    from headrace.config import ServerConfig

__all__ = ["Server", "ServerConfig", "__version__"]


def __getattr__(name: str) -> Any:
    # Lazy: `headrace.errors` and the command line must not pay for the extension.
    if name == "Server":
        from headrace.app import Server

        return Server
    if name == "ServerConfig":
        from headrace.config import ServerConfig

        return ServerConfig
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("headrace")
        except PackageNotFoundError:  # run out of a source tree
            from headrace.runtime import __version__

            return __version__
    raise AttributeError(f"module 'headrace' has no attribute {name!r}")
