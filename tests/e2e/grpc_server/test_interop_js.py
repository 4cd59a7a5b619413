"""The interop cases once more, with @grpc/grpc-js as the client."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from interop_service import make_servicer

HERE = Path(__file__).parent
PACKAGES = ("@grpc/grpc-js", "@grpc/proto-loader")


@pytest.fixture(scope="session")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages: HEADRACE_NODE_MODULES, or installed by npm."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are needed for @grpc/grpc-js")
    if given := os.environ.get("HEADRACE_NODE_MODULES"):
        return Path(given)
    folder = tmp_path_factory.mktemp("node")
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"npm cannot install @grpc/grpc-js: {done.stderr.strip()[-300:]}")
    return folder / "node_modules"


@pytest.mark.parametrize("kind", ["headrace"])
@pytest.mark.timeout(300)
def test_interop_cases(node_modules: Path, testing: Any, serve: Callable[..., Any]) -> None:
    servicer = make_servicer(testing)
    running = serve(lambda s: testing.service.add_TestServiceServicer_to_server(servicer, s))
    done = subprocess.run(
        ["node", str(HERE / "interop_client.js"), running.address, str(HERE / "protos")],
        env={**os.environ, "NODE_PATH": str(node_modules)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, "\n".join([*lines, done.stderr[-2000:]])
    assert len(lines) == 19 and all(line.startswith("ok ") for line in lines)
