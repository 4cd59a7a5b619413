"""Latency budgets against hand-tuned delays: what share of the calls is answered in time.

    python bench/load/slo.py                     # magika, the file-type classifier; 50 ms
    python bench/load/slo.py --onnx minilm.onnx --dim 32 --latency-ms 100

The same model is served once with `slo: {latency: ...}` and nothing else, and once for each fixed
`max_queue_delay_microseconds` of a sweep, by servers that run at the same time and are loaded in
turn. All get the same arrivals, open loop, Poisson and in bursts (eight at once on average), at
shares of the peak that the model reaches without a delay. Goodput is right answers within the
latency; medians of the rounds. The best delay of the sweep is chosen for each point anew, which no
operator could do. A run during which others took more than `--others` of a core is repeated.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import front_end
import numpy as np
import report
from drive import INFER
from servers import free_port
from swaps import magika_file

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = "budgeted"
DELAYS_MS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0)
SHARES = (0.5, 0.8, 0.95, 1.3)
ARRIVALS = ("poisson", "bursty")


class Bench:
    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self._options = options
        self._work = work
        self._onnx = (options.onnx or magika_file()).resolve()
        binaries = (options.bin_dir or front_end.build_tools()).absolute()
        self._loadgen = binaries / "headrace_loadgen"
        self._headrace = front_end.find_headrace(options.headrace)
        self.latency_s = options.latency_ms / 1e3

    @contextlib.contextmanager
    def serving(self, delay_ms: float | None) -> Iterator[tuple[str, int]]:
        """A server with a fixed delay, or (None) with the latency budget: address, pid."""
        root = self._work / f"{delay_ms}"
        folder = root / "models" / MODEL
        (folder / "1").mkdir(parents=True)
        shutil.copy(self._onnx, folder / "1" / "model.onnx")
        delay = f"max_queue_delay_microseconds: {delay_ms * 1e3:.0f}" if delay_ms else ""
        (folder / "config.pbtxt").write_text(
            f"max_batch_size: {self._options.max_batch}\ndynamic_batching {{ {delay} }}\n"
        )
        if delay_ms is None:
            (folder / "policy.yaml").write_text(f"slo: {{latency: {self._options.latency_ms}ms}}\n")
        port = free_port()
        server = subprocess.Popen(
            [
                *(str(self._headrace), "serve", "--model-repository", str(root / "models")),
                *("--host", "127.0.0.1", "--grpc-port", str(port), "--metrics-port", "-1"),
                *("--cache-dir", str(self._work / "cache")),
            ],
            stdout=(root / "log").open("wb"),
            stderr=subprocess.STDOUT,
        )
        try:
            address = f"127.0.0.1:{port}"
            for attempt in range(600):
                try:
                    (self._work / "request").write_bytes(self._request(address))
                    break
                except Exception:
                    if server.poll() is not None or attempt == 599:
                        sys.exit((root / "log").read_text())
                    time.sleep(0.1)
            yield address, server.pid
        finally:
            server.terminate()
            server.wait(60)

    def _request(self, address: str) -> bytes:
        from headrace.client import Client
        from headrace.datatypes import dtype_of
        from headrace.protocol import kserve

        with Client(address) as client:
            about = client.model_metadata(MODEL)
            request = kserve.ModelInferRequest(model_name=MODEL)
            arrays = {}
            for tensor in about.inputs:
                shape = [1] + [d if d > 0 else self._options.dim for d in tensor.shape[1:]]
                arrays[tensor.name] = np.ones(shape, dtype_of(tensor.datatype))
                request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
                request.raw_input_contents.append(arrays[tensor.name].tobytes())
            request.outputs.add(name=about.outputs[0].name)
            client.infer(MODEL, arrays)
        return request.SerializeToString()

    def load(self, target: tuple[str, int], *arguments: object) -> dict[str, Any]:
        done = subprocess.run(
            [
                *(str(self._loadgen), "--target", target[0], "--path", INFER),
                *("--message", str(self._work / "request"), "--server-pid", str(target[1])),
                *(str(argument) for argument in arguments),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def point(self, target: tuple[str, int], rate: float, arrivals: str) -> dict[str, Any]:
        for _ in range(1 + self._options.repeat):
            run = self.load(
                target,
                *("--connections", 16, "--rate", rate, "--arrivals", arrivals),
                *("--slo", self.latency_s, "--warm-up", 1, "--drain", 1),
                *("--duration", self._options.seconds),
            )
            if run.get("other_cores", 0) <= self._options.others:
                break
        return {
            "good_per_s": run["requests_per_s"],
            "good": run["right"] / max(run["open"]["arrivals"], 1),
            "p50_ms": run["latency_us"]["p50"] / 1e3,
            "p99_ms": run["latency_us"]["p99"] / 1e3,
            "errors": run["errors"],
            "server_cores": run["server"]["cores"],
            "other_cores": run.get("other_cores"),
        }


def median_of(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The round whose goodput is the median; with an even number, the lower one of the two."""
    return sorted(rounds, key=lambda one: one["good"])[(len(rounds) - 1) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--onnx", type=Path, help="model file (default: magika's)")
    parser.add_argument("--dim", type=int, default=1, help="for dimensions of any size")
    parser.add_argument("--latency-ms", type=float, default=50)
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=3, help="of each point")
    parser.add_argument("--delays", default=",".join(f"{d:g}" for d in DELAYS_MS), help="ms")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--others", type=float, default=0.1, help="cores that others may take")
    parser.add_argument("--repeat", type=int, default=3, help="so often, when they took more")
    parser.add_argument("--headrace", type=Path, help="the headrace command")
    parser.add_argument("--bin-dir", type=Path, help="folder with headrace_loadgen")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    about = report.machine(ROOT, Path(sys.executable), None)
    delays = [f"{float(delay):g}" for delay in options.delays.split(",")]
    points = [(arrivals, share) for arrivals in ARRIVALS for share in SHARES]
    rounds: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with tempfile.TemporaryDirectory(prefix="slo-") as temporary, contextlib.ExitStack() as stack:
        bench = Bench(options, Path(temporary))
        targets = {"slo": stack.enter_context(bench.serving(None))}
        for delay in delays:
            targets[delay] = stack.enter_context(bench.serving(float(delay)))
        peaks = [
            bench.load(
                targets[delays[0]],
                *("--connections", 8, "--streams", 16, "--warm-up", 2, "--duration", 4),
            )["requests_per_s"]
            for _ in range(options.rounds)
        ]
        peak = sorted(peaks)[len(peaks) // 2]
        for _ in range(options.rounds):
            for arrivals, share in points:
                for name, target in targets.items():
                    row = bench.point(target, peak * share, arrivals)
                    rounds.setdefault(name, {}).setdefault(f"{arrivals} {share:g}", []).append(row)
                    print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    medians = {
        name: {point: median_of(runs) for point, runs in rows.items()}
        for name, rows in rounds.items()
    }
    budget = medians["slo"]
    swept = {delay: medians[delay] for delay in delays}
    print(f"peak {peak:.0f}/s; in time ({options.latency_ms:g} ms), share of the calls:")
    print("| arrivals, of peak | slo | best delay | " + " | ".join(f"{d} ms" for d in swept) + " |")
    print("|--" * (len(swept) + 3) + "|")
    ratios = {}
    for point, row in budget.items():
        best = max(swept, key=lambda delay: swept[delay][point]["good"])
        ratios[point] = row["good"] / max(swept[best][point]["good"], 1e-9)
        cells = [f"{swept[delay][point]['good']:.1%}" for delay in swept]
        print(f"| {point} | {row['good']:.1%} | {best} ms | " + " | ".join(cells) + " |")
    if not options.no_save:
        path = options.results / f"slo-{datetime.now():%Y-%m-%d-%H%M%S}.json"
        document = {
            "machine": about,
            "model": (options.onnx or magika_file()).name,
            "latency_ms": options.latency_ms,
            "max_batch": options.max_batch,
            "seconds": options.seconds,
            "rounds": options.rounds,
            "peak_per_s": peak,
            "ratio_to_best_delay": ratios,
            "slo": budget,
            "delays_ms": swept,
            "good_of_every_round": {
                name: {point: [run["good"] for run in runs] for point, runs in rows.items()}
                for name, rows in rounds.items()
            },
        }
        path.write_text(json.dumps(document, indent=1) + "\n")
        print(f"written: {path}")


if __name__ == "__main__":
    main()
