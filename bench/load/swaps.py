"""Hot swaps under load: 32 clients call a model while its version is replaced again and again.

    python bench/load/swaps.py                      # magika's file-type classifier, 100 swaps
    python bench/load/swaps.py --swaps 20 --rate 200

A swap puts a new version folder into the repository and asks for RepositoryModelLoad: the new
version is loaded and warmed while the old one serves, then it has all requests, and the old one is
drained. The calls come open-loop (a late answer delays no other call), at a rate that the machine
carries easily, and each answer is checked against the first. Latency is measured alone, during the
swaps, and alone again, in one run; the table has the ratio. The client, the server and the loading
share the machine's cores.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import front_end
import numpy as np
import report
from identity import _field
from servers import free_port

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
INFER = "/inference.GRPCInferenceService/ModelInfer"
MODEL = "swapped"
CONFIG = """
max_batch_size: 16
dynamic_batching {}
"""


def magika_file() -> Path:
    import importlib.util

    found = importlib.util.find_spec("magika")
    if found is None or not found.submodule_search_locations:
        sys.exit("pip install magika, or give --onnx FILE")
    return Path(found.submodule_search_locations[0]) / "models" / "standard_v3_3" / "model.onnx"


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--onnx", type=Path, help="model file (default: magika's)")
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--pause", type=float, default=0.1, help="seconds between two swaps")
    parser.add_argument("--rate", type=float, default=20.0, help="calls/s of all clients together")
    parser.add_argument("--clients", type=int, default=32, help="connections")
    parser.add_argument("--alone", type=float, default=8.0, help="seconds of each baseline")
    parser.add_argument("--headrace", type=Path, help="the headrace command")
    parser.add_argument("--bin-dir", type=Path, help="folder with headrace_loadgen")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--no-save", action="store_true", help="print only")
    return parser.parse_args()


def request_for(address: str) -> tuple[bytes, bytes]:
    """A request with all inputs 1, and the bytes of its first output."""
    from headrace.client import Client
    from headrace.datatypes import dtype_of
    from headrace.protocol import kserve

    with Client(address) as client:
        about = client.model_metadata(MODEL)
        arrays = {
            t.name: np.ones([max(1, d) for d in t.shape], dtype_of(t.datatype))
            for t in about.inputs
        }
        answer = client.infer(MODEL, arrays)
    request = kserve.ModelInferRequest(model_name=MODEL)
    for tensor in about.inputs:
        array = arrays[tensor.name]
        request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return request.SerializeToString(), _field(6, answer[about.outputs[0].name].tobytes())


class Swapping:
    """Puts in the next version again and again, until told to end."""

    def __init__(self, address: str, folder: Path, onnx: Path) -> None:
        self._address = address
        self._folder = folder
        self._onnx = onnx
        self.version = 1
        self.seconds: list[float] = []
        self.failures: list[str] = []

    def run(self, count: int, pause: float) -> None:
        from headrace.client import Client

        with Client(self._address) as client:
            for _ in range(count):
                time.sleep(pause)
                new = self.version + 1
                aside = self._folder.parent / f".{new}"
                aside.mkdir()
                shutil.copy(self._onnx, aside / "model.onnx")
                aside.rename(self._folder / str(new))
                began = time.monotonic()
                try:
                    client.load(MODEL)
                except Exception as error:
                    self.failures.append(str(error))
                    continue
                self.seconds.append(time.monotonic() - began)
                shutil.rmtree(self._folder / str(self.version))
                self.version = new


def main() -> None:
    options = parse_options()
    onnx = (options.onnx or magika_file()).resolve()
    loadgen = (options.bin_dir or front_end.build_tools()).absolute() / "headrace_loadgen"
    headrace = options.headrace or shutil.which("headrace", path=str(Path(sys.executable).parent))
    if headrace is None:
        sys.exit("no headrace command; give --headrace")
    about = report.machine(ROOT, Path(sys.executable), None)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        folder = work / "models" / MODEL
        (folder / "1").mkdir(parents=True)
        shutil.copy(onnx, folder / "1" / "model.onnx")
        (folder / "config.pbtxt").write_text(CONFIG)
        port = free_port()
        server = subprocess.Popen(
            [
                *(str(headrace), "serve", "--model-repository", str(work / "models")),
                *("--model-control-mode", "explicit", "--load-model", MODEL),
                *("--host", "127.0.0.1", "--grpc-port", str(port), "--metrics-port", "-1"),
                *("--cache-dir", str(work / "cache")),
            ],
            stdout=(work / "log").open("wb"),
            stderr=subprocess.STDOUT,
        )
        try:
            address = f"127.0.0.1:{port}"
            for _ in range(600):
                try:
                    request, expected = request_for(address)
                    break
                except Exception:
                    if server.poll() is not None:
                        sys.exit((work / "log").read_text())
                    time.sleep(0.1)
            (work / "request").write_bytes(request)
            (work / "expected").write_bytes(expected)

            def load(seconds: float) -> subprocess.Popen[str]:
                return subprocess.Popen(
                    [
                        *(str(loadgen), "--target", address, "--path", INFER),
                        *("--message", str(work / "request")),
                        *("--expect-contains", str(work / "expected")),
                        *("--connections", str(options.clients), "--rate", str(options.rate)),
                        *("--warm-up", "1", "--duration", str(seconds)),
                        *("--server-pid", str(server.pid)),
                    ],
                    stdout=subprocess.PIPE,
                    text=True,
                )

            def result(process: subprocess.Popen[str]) -> dict[str, Any]:
                out, _ = process.communicate()
                answer: dict[str, Any] = json.loads(out)
                return answer

            before = result(load(options.alone))
            # As long as the swaps take: a first few tell how long one is.
            swapping = Swapping(address, folder, onnx)
            swapping.run(3, 0)
            each = statistics.median(swapping.seconds) + options.pause
            swapping.seconds.clear()
            during_load = load(options.swaps * each)
            time.sleep(1)  # its warm-up
            thread = threading.Thread(target=swapping.run, args=(options.swaps, options.pause))
            thread.start()
            during = result(during_load)
            inside = len(swapping.seconds)
            thread.join()
            after = result(load(options.alone))
        finally:
            server.terminate()
            server.wait(60)

    print(
        f"{'':16} {'calls':>8} {'wrong':>6} {'errors':>7} {'p50 us':>8} {'p99 us':>8} {'max us':>9}"
    )
    for name, row in (("alone", before), ("during swaps", during), ("alone again", after)):
        latency = row["latency_us"]
        errors = sum(row["errors"].values())
        print(
            f"{name:16} {row['requests']:8} {row['wrong']:6} {errors:7} {latency['p50']:8.0f} "
            f"{latency['p99']:8.0f} {latency['max']:9.0f}"
        )
    steady = statistics.mean(row["latency_us"]["p99"] for row in (before, after))
    ratio = during["latency_us"]["p99"] / steady
    print(
        f"p99 during swaps / alone: x{ratio:.2f}; {inside} of {options.swaps} swaps fell into the "
        f"measurement, {len(swapping.failures)} failed; a swap took "
        f"{statistics.median(swapping.seconds) * 1e3:.0f} ms (median)"
    )
    print(f"{about['cpu']}, {about['cores']} cores, {onnx.name} of {onnx.stat().st_size:,} bytes")
    if not options.no_save:
        path = options.results / f"swaps-{datetime.now():%Y-%m-%d-%H%M%S}.json"
        path.write_text(
            json.dumps(
                {
                    "machine": about,
                    "swaps": len(swapping.seconds),
                    "swaps_within": inside,
                    "failed_swaps": swapping.failures,
                    "swap_seconds": swapping.seconds,
                    "p99_ratio": ratio,
                    "alone": before,
                    "during": during,
                    "alone_again": after,
                },
                indent=1,
            )
            + "\n"
        )
        print(f"written: {path}")


if __name__ == "__main__":
    main()
