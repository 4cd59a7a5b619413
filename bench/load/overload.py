"""Ten times more calls than a server can do, and what becomes of them.

    python bench/load/overload.py --triton-venv triton-venv
    python bench/load/overload.py --only headrace --seconds 20

Every server has the same model on the same pretended accelerator (peers/device.py): a batch of n
rows takes 5 + n ms, at most 16 rows, one batch at a time, and no CPU; so the server and the client
have the machine's cores, and what is measured is what the server does with the queue.

Of each server first: its peak (closed loop) and the latency of a call alone. Then, open loop,
Poisson arrivals, each call with a deadline (twice the latency alone + 100 ms) at which the client
gives it up, as gRPC clients do: half the peak, ten times the peak, half the peak. Goodput is right
answers in time. Recovery is when, after the overload, 95 % of the calls of every tenth of a second
are answered again.
"""

from __future__ import annotations

import argparse
import json
import os
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
import identity
import report
import servers
from drive import INFER
from servers import HERE, Peer, Server

ROOT = HERE.parent.parent
FIXED_MS, ROW_MS, MAX_BATCH = 5, 1, 16
MODEL = '''"""The pretended accelerator behind a plain Python model."""

import device

inputs = {"X": ("FP32", [16])}
outputs = {"Y": ("FP32", [16])}
max_batch_size = %d


def infer(inputs):
    device.run(len(inputs["X"]))
    return {"Y": inputs["X"]}
'''
# Triton's own means, as an operator would set them who knows the model's cost: no more queued than
# can be done in the time.
TRITON_QUEUE = (
    "default_queue_policy { timeout_action: REJECT default_timeout_microseconds: 80000 "
    "max_queue_size: 64 }"
)


def peers(options: argparse.Namespace) -> list[Peer]:
    def headrace(policy: str) -> Any:
        def command(port: int, work: Path) -> list[str]:
            folder = work / "models" / "identity"
            (folder / "1").mkdir(parents=True)
            (folder / "1" / "model.py").write_text(MODEL % MAX_BATCH)
            shutil.copy(HERE / "peers" / "device.py", folder / "1")
            (folder / "config.pbtxt").write_text(
                f"max_batch_size: {MAX_BATCH}\ndynamic_batching {{ }}\n"
            )
            if policy:
                (folder / "policy.yaml").write_text(policy)
            own = front_end.find_headrace(options.headrace)
            assert own is not None
            return [
                *(str(own), "serve", f"--model-repository={work / 'models'}"),
                *(f"--grpc-port={port}", "--metrics-port=-1", "--host=127.0.0.1"),
            ]

        return command

    def triton(batching: str) -> Any:
        def command(port: int, work: Path) -> list[str]:
            return [
                f"{options.triton_venv}/bin/python",
                str(HERE / "peers" / "triton_server.py"),
                *("--port", str(port), "--mode", "python", "--work", str(work)),
                *("--max-batch-size", str(MAX_BATCH), "--batching", batching),
            ]

        return command

    def grpcio(port: int, work: Path) -> list[str]:
        script = HERE / "peers" / "grpcio_server.py"
        return [str(options.grpcio_python), str(script), "--port", str(port), "--mode", "sync"]

    no_triton = "" if options.triton_venv else "give --triton-venv"
    return [
        Peer("headrace", "Headrace, no policy", headrace("")),
        Peer("headrace-slo", "Headrace, slo: {latency: 100ms}", headrace("slo: {latency: 100ms}")),
        Peer("triton", "Triton, dynamic batching", triton(""), no_triton),
        Peer("triton-queue", "Triton, its queue policy set", triton(TRITON_QUEUE), no_triton),
        Peer("grpcio", "grpcio, 10 threads, no batching", grpcio),
    ]


class Memory(threading.Thread):
    """Resident MiB of a server and its descendants, twice a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._stop_asked = threading.Event()
        self.samples: list[tuple[float, float]] = []

    def run(self) -> None:
        while not self._stop_asked.wait(0.5):
            total = 0.0
            for pid in servers._family(self._pid):
                try:
                    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                except OSError:
                    continue
                total += pages * os.sysconf("SC_PAGE_SIZE") / 2**20
            self.samples.append((time.monotonic(), total))

    def stop(self) -> None:
        self._stop_asked.set()
        self.join()

    def at(self, moment: float) -> float:
        return min(self.samples, key=lambda sample: abs(sample[0] - moment))[1]


def stolen_s() -> float:
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK")


class Bench:
    def __init__(self, loadgen: Path, folder: Path, seconds: float) -> None:
        self._loadgen = loadgen
        self._seconds = seconds
        self._request = folder / "request.bin"
        self._request.write_bytes(identity.infer_request("identity"))
        self._values = folder / "values.bin"
        self._values.write_bytes(identity.VALUES)

    def _load(self, server: Server, *arguments: object) -> dict[str, Any]:
        done = subprocess.run(
            [
                *(str(self._loadgen), "--target", f"127.0.0.1:{server.port}", "--path", INFER),
                *("--message", str(self._request), "--expect-contains", str(self._values)),
                *("--server-pid", str(server.process.pid)),
                *(str(argument) for argument in arguments),
            ],
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise servers.ServerFailedError(done.stderr.strip() + "\n" + server.tail())
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def ready(self, server: Server) -> bool:
        try:
            return bool(self._load(server, "--requests", 1, "--warm-up", 0)["right"] > 0)
        except servers.ServerFailedError:
            return False

    def measure(self, server: Server) -> dict[str, Any]:
        alone = self._load(server, "--warm-up", 1, "--duration", 3)
        peak = self._load(
            server, "--connections", 8, "--streams", 8, "--warm-up", 2, "--duration", 5
        )
        top = peak["requests_per_s"]
        deadline_s = 2 * alone["latency_us"]["p50"] / 1e6 + 0.1
        before_s, after_s = 5.0, 10.0
        memory = Memory(server.process.pid)
        memory.start()
        steps = f"{top / 2}:{before_s},{top * 10}:{self._seconds},{top / 2}:{after_s}"
        began = time.monotonic()
        stolen_before = stolen_s()
        run = self._load(
            server,
            *("--connections", 32, "--steps", steps, "--deadline", deadline_s),
            *("--max-outstanding", 100000, "--warm-up", 1, "--drain", 2),
        )
        memory.stop()
        stolen = (stolen_s() - stolen_before) / (time.monotonic() - began)
        calm, flood, after = run["steps"]
        start = began + 1 + before_s
        return {
            "alone_p50_ms": alone["latency_us"]["p50"] / 1e3,
            "alone_p99_ms": alone["latency_us"]["p99"] / 1e3,
            "peak_per_s": top,
            "deadline_ms": deadline_s * 1e3,
            "offered_per_s": flood["arrivals"] / flood["seconds"],
            "goodput_per_s": flood["right_per_s"],
            "goodput_of_peak": flood["right_per_s"] / top,
            "p50_ms": flood["latency_us"]["p50"] / 1e3,
            "p99_ms": flood["latency_us"]["p99"] / 1e3,
            "refused": flood["refusal_us"]["count"],
            "refusal_p50_ms": flood["refusal_us"]["p50"] / 1e3,
            "refusal_p99_ms": flood["refusal_us"]["p99"] / 1e3,
            "given_up": flood["errors"].get("deadline", 0),
            "recovery_s": self._recovery(after),
            "calm_right": calm["latency_us"]["count"] / max(calm["arrivals"], 1),
            "rss_begin_mib": memory.at(start + min(5, self._seconds / 4)),
            "rss_end_mib": memory.at(start + self._seconds - 1),
            "server_cores": run["server"]["cores"],
            "client_cores": run["client_cores"],
            "other_cores": run.get("other_cores"),
            "worst_send_lag_ms": run["open"]["worst_send_lag_us"] / 1e3,
            # Cores that the hypervisor gave to others meanwhile.
            "stolen_cores": stolen,
            "run": run,
        }

    @staticmethod
    def _recovery(after: dict[str, Any]) -> float | None:
        """Seconds into the step until every tenth of a second to its end is good; None: never."""
        expected = after["arrivals"] / after["seconds"] / 10
        bins = after["right_each_100ms"][: round(after["seconds"] * 10)]
        # Poisson: a bin has fewer arrivals than expected now and then.
        enough = 0.95 * expected - 3 * expected**0.5
        bad = [i for i, right in enumerate(bins) if right < enough]
        if len(bins) < after["seconds"] * 10 - 1 or (bad and bad[-1] >= len(bins) - 2):
            return None
        return (bad[-1] + 1) / 10 if bad else 0.0


COLUMNS = (
    ("peak/s", "peak_per_s", "{:.0f}"),
    ("offered/s", "offered_per_s", "{:.0f}"),
    ("goodput/s", "goodput_per_s", "{:.0f}"),
    ("of peak", "goodput_of_peak", "{:.0%}"),
    ("alone p50 ms", "alone_p50_ms", "{:.1f}"),
    ("p99 ms", "p99_ms", "{:.1f}"),
    ("limit ms", "deadline_ms", "{:.0f}"),
    ("refusal p99 ms", "refusal_p99_ms", "{:.2f}"),
    ("given up", "given_up", "{:.0f}"),
    ("recovery s", "recovery_s", "{:.1f}"),
    ("RSS MiB", "rss_begin_mib", "{:.0f}"),
    ("at end", "rss_end_mib", "{:.0f}"),
    ("stolen cores", "stolen_cores", "{:.2f}"),
)


def table(results: dict[str, dict[str, Any]]) -> str:
    lines = ["| server | " + " | ".join(title for title, _, _ in COLUMNS) + " |"]
    lines.append("|--" * (len(COLUMNS) + 1) + "|")
    for name, row in results.items():
        cells = []
        for _, key, form in COLUMNS:
            value = row.get(key)
            cells.append("never" if value is None else form.format(value))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def median_of(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for _, key, _ in COLUMNS:
        values = [row[key] for row in rounds]
        known = [value for value in values if value is not None]
        out[key] = statistics.median(known) if len(known) == len(values) else None
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="servers, comma-separated")
    parser.add_argument("--seconds", type=float, default=60, help="of overload")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--headrace", type=Path, help="the headrace command")
    parser.add_argument("--bin-dir", type=Path, help="folder with headrace_loadgen")
    parser.add_argument("--triton-venv", type=Path)
    parser.add_argument("--grpcio-python", type=Path, default=Path(sys.executable))
    parser.add_argument("--into", type=Path, help="add to this results file of an earlier run")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    binaries = (options.bin_dir or front_end.build_tools()).absolute()
    only = {name for name in options.only.split(",") if name}
    os.environ["DEVICE"] = f"{FIXED_MS},{ROW_MS}"
    about = report.machine(ROOT, options.grpcio_python, options.triton_venv)
    earlier = json.loads(options.into.read_text()) if options.into else {"rounds": {}}
    rounds: dict[str, list[dict[str, Any]]] = earlier["rounds"]
    with tempfile.TemporaryDirectory(prefix="overload-") as temporary:
        work = Path(temporary)
        bench = Bench(binaries / "headrace_loadgen", work, options.seconds)
        for number in range(options.rounds):
            for peer in peers(options):
                if only and peer.name not in only:
                    continue
                if peer.missing:
                    print(f"{peer.name}: {peer.missing}")
                    continue
                place = work / f"{peer.name}-{number}"
                with servers.running(peer, place, bench.ready) as server:
                    rounds.setdefault(peer.name, []).append(bench.measure(server))
                print(table({peer.name: rounds[peer.name][-1]}), flush=True)
    medians = {name: median_of(rows) for name, rows in rounds.items()}
    print(table(medians))
    print(f"{about['cpu']}, {about['cores']} cores; {options.seconds:.0f} s of overload")
    if not options.no_save:
        path = options.into or options.results / f"overload-{datetime.now():%Y-%m-%d-%H%M%S}.json"
        document = {
            "machine": about,
            "device_ms": [FIXED_MS, ROW_MS],
            "max_batch": MAX_BATCH,
            "seconds": options.seconds,
            "medians": medians,
            "rounds": rounds,
        }
        path.write_text(json.dumps(document, indent=1) + "\n")
        print(f"written: {path}")


if __name__ == "__main__":
    main()
