"""The process that builds one engine for a server, so that what goes wrong in a builder ends no
server, and its work leaves the processors to requests.

    python -m headrace.optimize.build_process < request    # a line of JSON; stdin stays open

The request: {"onnx", "plan", "runtime", "spec": {...}, "timing", "threads", "nice"}. The answer, a
line of JSON each: {"progress": [what, done, of]} ..., then {"built": {...}} or {"error": text}. It
ends when its stdin does: whoever asked is gone.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headrace.errors import HeadraceError
from headrace.optimize.engines import EngineSpec, build, find_builder
from headrace.optimize.place import place_file

__all__ = ["main", "spec_from_json", "spec_to_json"]


def spec_to_json(spec: EngineSpec) -> dict[str, Any]:
    return asdict(spec)


def spec_from_json(read: dict[str, Any]) -> EngineSpec:
    return EngineSpec(
        batch_sizes=tuple(read["batch_sizes"]),
        free=tuple(read["free"]),
        dims={name: tuple(dims) for name, dims in read["dims"].items()},
        targets=tuple(read["targets"]),
    )


def main() -> int:
    lock = threading.Lock()

    def say(**event: Any) -> None:
        with lock:
            sys.stdout.write(json.dumps(event) + "\n")
            sys.stdout.flush()

    request = json.loads(sys.stdin.readline())

    def watch() -> None:
        while sys.stdin.read(4096):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    os.nice(int(request["nice"]))
    timing = Path(request["timing"]) if request["timing"] else None
    try:
        builder = find_builder(request["runtime"])
        known = b""
        if timing is not None:
            with suppress(OSError):
                known = timing.read_bytes()
        built = build(
            Path(request["onnx"]),
            spec_from_json(request["spec"]),
            builder,
            timing_cache=known,
            threads=int(request["threads"]),
            progress=lambda what, done, of: say(progress=[what, done, of]),
        )
        place_file(Path(request["plan"]), built.plan)
        if timing is not None and built.timing_cache not in (b"", known):
            with suppress(HeadraceError):  # the engine is built
                place_file(timing, built.timing_cache)
    except HeadraceError as error:
        say(error=error.details)
        return 1
    say(
        built={
            "seconds": round(built.seconds, 3),
            "bytes": len(built.plan),
            "profiles": built.profiles,
            "runtime": builder.runtime,
            "version": builder.version,
        }
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
