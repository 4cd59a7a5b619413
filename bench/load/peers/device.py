"""An accelerator of known cost, for every server alike: a batch of n rows takes FIXED + n * ROW
milliseconds, one batch at a time, and no CPU. DEVICE="FIXED,ROW" in the environment; without it
models cost nothing."""

import os
import threading
import time

_LOCK = threading.Lock()
_FIXED, _, _ROW = os.environ.get("DEVICE", "").partition(",")


def run(rows: int) -> None:
    if _FIXED:
        with _LOCK:
            time.sleep((float(_FIXED) + rows * float(_ROW)) / 1e3)
