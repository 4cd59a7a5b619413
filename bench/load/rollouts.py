"""Bad versions at 5,000 requests a second: how much does a candidate see before it is gone?

    python bench/load/rollouts.py

A model (X -> X, a Python callable, batched) serves an open-loop load. For each kind of candidate a
rollout gives version 2 a share of it: one that raises, one that answers NaN, one that takes 20 ms a
batch, one that hangs, one that is as good. Each call has a deadline, at which its client gives it
up, and the model a policy with version 1 as the fallback. The table says what became of the
candidate, after how many of its requests and how many seconds, and what clients saw: wrong answers,
errors (calls that were given up among them), the slowest answer. The client shares the machine's
cores.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import front_end
import identity
import report
from servers import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
INFER = "/inference.GRPCInferenceService/ModelInfer"
MODEL = "identity"
HEAD = """import time

inputs = {"X": ("FP32", [16])}
outputs = {"Y": ("FP32", [16])}
max_batch_size = 128


def infer(inputs):
"""
KINDS = {
    "raises": '    raise RuntimeError("broken")\n',
    "answers NaN": '    return {"Y": inputs["X"] * float("nan")}\n',
    "takes 20 ms": '    time.sleep(0.02)\n    return {"Y": inputs["X"]}\n',
    "hangs": '    time.sleep(8)\n    return {"Y": inputs["X"]}\n',
    "is as good": '    return {"Y": inputs["X"]}\n',
}


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=5000.0, help="requests/s")
    parser.add_argument("--deadline", type=float, default=0.1, help="seconds a call may take")
    parser.add_argument("--share", type=float, default=0.05, help="the candidate's")
    parser.add_argument("--latency-ratio", type=float, default=3.0)
    parser.add_argument("--seconds", type=float, default=12.0, help="a rollout's at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--headrace", type=Path, help="the headrace command")
    parser.add_argument("--bin-dir", type=Path, help="folder with headrace_loadgen")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--no-save", action="store_true", help="print only")
    return parser.parse_args()


def measure(options: argparse.Namespace, headrace: str, loadgen: Path, code: str) -> dict[str, Any]:
    from headrace.admin_socket import default_admin_socket
    from headrace.client import Client
    from headrace.client.admin import AdminClient

    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for number, text in ((1, KINDS["is as good"]), (2, code)):
            folder = work / "models" / MODEL / str(number)
            folder.mkdir(parents=True)
            (folder / "model.py").write_text(HEAD + text)
        (work / "models" / MODEL / "policy.yaml").write_text("fallback: [{version: 1}]\n")
        later = work / "2"
        (work / "models" / MODEL / "2").rename(later)
        (work / "request").write_bytes(identity.infer_request(MODEL))
        (work / "values").write_bytes(identity.VALUES)
        port = free_port()
        server = subprocess.Popen(
            [
                *(headrace, "serve", "--model-repository", str(work / "models"), "--host"),
                *("127.0.0.1", "--grpc-port", str(port), "--metrics-port", "-1", "--state-dir", ""),
            ],
            stdout=(work / "log").open("wb"),
            stderr=subprocess.STDOUT,
        )
        try:
            with Client(f"127.0.0.1:{port}") as client:
                for _ in range(300):
                    try:
                        if client.model_ready(MODEL):
                            break
                    except Exception:
                        time.sleep(0.1)
            load = subprocess.Popen(
                [
                    *(str(loadgen), "--target", f"127.0.0.1:{port}", "--path", INFER),
                    *("--message", str(work / "request")),
                    *("--expect-contains", str(work / "values"), "--connections", "8"),
                    *("--rate", str(options.rate), "--warm-up", "2"),
                    *("--duration", str(options.seconds), "--deadline", str(options.deadline)),
                ],
                stdout=subprocess.PIPE,
                text=True,
            )
            time.sleep(3)  # warm, and a baseline of its latency
            later.rename(work / "models" / MODEL / "2")
            with AdminClient(default_admin_socket(port)) as admin:
                admin.start(
                    MODEL,
                    2,
                    share=options.share,
                    latency_ratio=options.latency_ratio,
                    min_seconds=1,
                )
                end = time.monotonic() + options.seconds - 2
                while True:
                    (state,) = admin.status(MODEL)
                    if state.state != "running" or time.monotonic() > end:
                        break
                    time.sleep(0.02)
            out, _ = load.communicate()
            clients = json.loads(out)
        finally:
            server.terminate()
            server.wait(60)
    return {
        "state": state.state,
        "reason": state.reason,
        "seconds": state.seconds,
        "candidate_requests": state.candidate_requests,
        "wrong": clients["wrong"],
        "errors": sum(clients["errors"].values()),
        "clients": clients,
    }


def main() -> None:
    options = parse_options()
    loadgen = (options.bin_dir or front_end.build_tools()).absolute() / "headrace_loadgen"
    headrace = options.headrace or shutil.which("headrace", path=str(Path(sys.executable).parent))
    if headrace is None:
        sys.exit("no headrace command; give --headrace")
    about = report.machine(ROOT, Path(sys.executable), None)
    print(
        f"{options.rate:.0f} requests/s, {options.share:.3g} of them the candidate's, deadline "
        f"{options.deadline * 1e3:.0f} ms"
    )
    heads = f"{'became':>12} {'its requests':>13} {'seconds':>8} {'wrong':>6} {'errors':>7}"
    print(f"{'candidate':14} {heads} {'p99 us':>8} {'most us':>8}")
    rows: dict[str, list[dict[str, Any]]] = {}
    for kind, code in KINDS.items():
        for _ in range(options.rounds):
            row = measure(options, str(headrace), loadgen, code)
            rows.setdefault(kind, []).append(row)
            print(
                f"{kind:14} {row['state'].replace('_', ' '):>12} {row['candidate_requests']:13} "
                f"{row['seconds']:8.2f} {row['wrong']:6} {row['errors']:7} "
                f"{row['clients']['latency_us']['p99']:8.0f} "
                f"{row['clients']['latency_us']['max']:8.0f}"
            )
    print(f"{about['cpu']}, {about['cores']} cores")
    if not options.no_save:
        path = options.results / f"rollouts-{datetime.now():%Y-%m-%d-%H%M%S}.json"
        path.write_text(json.dumps({"machine": about, "rollouts": rows}, indent=1) + "\n")
        print(f"written: {path}")


if __name__ == "__main__":
    main()
