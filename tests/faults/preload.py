"""A server in whose process system calls fail when a test says so (preload.c).

faults = Faults(tmp_path)
server = start(environment=faults.environment)
faults.set("fail_fsync", 1)
"""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

NAMES = (
    "clock_offset_s",
    "fail_allocations",
    "allocation_bytes",
    "failed_allocations",
    "fail_threads",
    "failed_threads",
    "fail_fsync",
    "failed_fsyncs",
)


class Faults:
    """Numbers that both processes see, by the names of preload.c's struct."""

    def __init__(self, folder: Path) -> None:
        compiler = os.environ.get("CC") or shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler for preload.c")
        library = folder / "preload.so"
        made = subprocess.run(
            [
                *(compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror"),
                # Not the built-in meaning of malloc and its family: we define them.
                "-fno-builtin",
                *("-o", str(library), str(Path(__file__).with_name("preload.c")), "-ldl"),
            ],
            capture_output=True,
            text=True,
        )
        assert made.returncode == 0, made.stderr
        shared = folder / "faults"
        shared.write_bytes(bytes(8 * len(NAMES)))
        with shared.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 8 * len(NAMES))
        self.environment = {"LD_PRELOAD": str(library), "FAULTS_FILE": str(shared)}

    def set(self, name: str, value: int) -> None:
        struct.pack_into("q", self._map, 8 * NAMES.index(name), value)

    def get(self, name: str) -> int:
        (value,) = struct.unpack_from("q", self._map, 8 * NAMES.index(name))
        return int(value)
