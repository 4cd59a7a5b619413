"""The model that the ledger knows, and what it can be made to do."""

from __future__ import annotations

from pathlib import Path

from harness import write_model

# What a request may ask for in its second number; the third is the argument.
GOOD, RAISE, SLEEP_MS, HANG, CRASH, HOLD_GIL_MS = range(6)

CODE = """
import ctypes
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
VERSION = int(HERE.name)
RELEASE = HERE.parent / "release"  # ends what hangs
HUNG = HERE.parent / "hung"
BATCH_MS = HERE.parent / "batch_ms"  # how long a batch takes


class Model:
    inputs = {"X": ("INT64", [4])}
    outputs = {"Y": ("INT64", [3])}
    max_batch_size = 8

    def __call__(self, inputs):
        x = inputs["X"]
        for op, argument in x[x[:, 1] != 0, 1:3].tolist():
            if op == 1:
                raise ValueError(f"asked to raise {argument}")
            if op == 2:
                time.sleep(argument / 1e3)
            if op == 3:
                HUNG.touch()
                while not RELEASE.exists():
                    time.sleep(0.01)
            if op == 4:
                ctypes.string_at(0)
            if op == 5:
                HUNG.touch()
                ctypes.PyDLL(None).usleep(argument * 1000)
        if BATCH_MS.exists():
            time.sleep(float(BATCH_MS.read_text()) / 1e3)
        y = np.empty((len(x), 3), np.int64)
        y[:, 0] = x[:, 0]
        y[:, 1] = VERSION
        y[:, 2] = x @ np.array([31, 7, 3, VERSION])
        return {"Y": y}
"""
CONFIG = "max_batch_size: 8\ndynamic_batching {{ max_queue_delay_microseconds: {0} }}\n"


def write_probe(
    repository: Path,
    name: str = "probe",
    version: int = 1,
    *,
    policy: str = "",
    queue_delay_us: int = 0,
) -> Path:
    """The model's folder."""
    folder = repository / name
    new = not folder.exists()
    write_model(repository, name, CONFIG.format(queue_delay_us), {"model.py": CODE}, version)
    if new and policy:
        (folder / "policy.yaml").write_text(policy)
    return folder


def batch_ms(folder: Path, milliseconds: float) -> None:
    """From now on a batch of the model takes that long."""
    aside = folder / "batch_ms.new"
    aside.write_text(str(milliseconds))
    aside.replace(folder / "batch_ms")


def write_asking(repository: Path, name: str = "asks") -> None:
    """A model whose failures (RAISE) become tickets, and are answered by its version 1."""
    old = CODE.replace("op == 1:", "op == 1 and VERSION > 1:")
    write_model(repository, name, CONFIG.format(0), {"model.py": old}, 1)
    write_model(repository, name, CONFIG.format(0), {"model.py": CODE}, 2)
    (repository / name / "policy.yaml").write_text(
        "fallback: [{human: {queue: q, payload: true}}, {version: 1}]\n"
        "breaker: {min_requests: 1000000}\n"
    )
