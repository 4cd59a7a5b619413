"""Front-end benchmark: Headrace beside Triton, grpcio and a bare nghttp2 echo, in one run.

    python bench/load/front_end.py --triton-venv triton-venv            # all, three rounds
    python bench/load/front_end.py --quick --only headrace-openvino,grpcio,nghttp2-echo

Builds the load client, starts each server in turn, several rounds interleaved, drives each with our
own client and with h2load, prints medians and ratios and writes bench/results/front_end-DATE.json.
A server that cannot run here is reported as missing. bench/README.md says what each figure means.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import report
import servers
from drive import Driver, Load

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--duration", type=float, default=3.0, help="seconds a measurement")
    parser.add_argument("--warm-up", type=float, default=1.0, help="seconds before each")
    parser.add_argument("--common-rate", type=float, default=500.0, help="open loop, calls/s")
    parser.add_argument("--quick", action="store_true", help="one round of short measurements")
    parser.add_argument("--only", default="", help="servers to run, by name, comma separated")
    parser.add_argument("--skip", default="", help="servers to leave out")
    parser.add_argument("--list", action="store_true", help="list the servers and end")
    parser.add_argument(
        "--headrace",
        type=Path,
        help="the headrace command (default: beside this Python, else on PATH)",
    )
    parser.add_argument("--triton-venv", type=Path, help="venv with nvidia-pytriton==0.7.0")
    parser.add_argument(
        "--grpcio-python",
        type=Path,
        default=Path(sys.executable),
        help="Python with grpcio and tritonclient[grpc] (default: this one)",
    )
    parser.add_argument(
        "--bin-dir",
        type=Path,
        help="folder with built headrace_loadgen and "
        "nghttp2_echo (default: build them with the release preset)",
    )
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.duration, options.warm_up = 1, 1.5, 0.5
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def build_tools() -> Path:
    """Builds the two C++ programs; the folder they are in."""
    for command in (
        ["cmake", "--preset", "release"],
        ["cmake", "--build", "--preset", "release", "--target", "headrace_loadgen", "nghttp2_echo"],
    ):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return ROOT / "build" / "release" / "bench" / "load"


def find_headrace(given: Path | None) -> Path | None:
    if given is not None:
        if not given.exists():
            sys.exit(f"--headrace {given} does not exist")
        return given.absolute()
    beside = Path(sys.executable).with_name("headrace")
    if beside.exists():
        return beside
    found = shutil.which("headrace")
    return Path(found) if found else None


def choose(every: list[servers.Peer], options: argparse.Namespace) -> list[servers.Peer]:
    names = {peer.name for peer in every}
    only = {name for name in options.only.split(",") if name}
    skip = {name for name in options.skip.split(",") if name}
    if unknown := (only | skip) - names:
        sys.exit(f"no such server: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    return [peer for peer in every if peer.name not in skip and (not only or peer.name in only)]


def run_round(
    chosen: list[servers.Peer], driver: Driver, work: Path, number: int
) -> dict[str, dict[str, Any]]:
    results: dict[str, dict[str, Any]] = {}
    for peer in chosen:
        begun = time.monotonic()
        try:
            with servers.running(peer, work / f"{number}-{peer.name}", driver.ready) as server:
                ready_s = time.monotonic() - begun
                results[peer.name] = driver.measure(server)
                results[peer.name]["ready_s"] = round(ready_s, 3)
                ended = server.process.poll()
                if ended is not None:
                    print(f"  {peer.name} died (status {ended}) under load:\n{server.tail()}")
        except servers.ServerFailedError as error:
            print(f"  {peer.name}: {error}")
            results[peer.name] = {"start": {"failed": str(error)}}
            continue
        full = results[peer.name].get("full", results[peer.name].get("live", {}))
        shown = f"{full['requests_per_s']:,.0f} req/s" if "requests_per_s" in full else "failed"
        print(f"  {peer.name:18} {shown:>16}   (ready in {ready_s:.1f} s)", flush=True)
    return results


def main() -> int:
    options = parse_options()
    # A polite kill runs the finally blocks, and so stops the servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    binaries = (options.bin_dir or build_tools()).absolute()
    if not (binaries / "headrace_loadgen").exists():
        sys.exit(f"{binaries} has no headrace_loadgen")
    venv = options.triton_venv.absolute() if options.triton_venv else None
    python = options.grpcio_python.absolute()
    chosen = choose(servers.peers(binaries, find_headrace(options.headrace), venv, python), options)
    for peer in chosen:
        print(f"{peer.name:18} {'MISSING: ' + peer.missing if peer.missing else peer.what}")
    if options.list:
        return 0
    present = [peer for peer in chosen if not peer.missing]
    if not present:
        sys.exit("nothing to measure")
    load = Load(options.duration, options.warm_up, options.common_rate)
    about = report.machine(ROOT, python, venv)
    rounds = []
    with tempfile.TemporaryDirectory(prefix="front-end-") as folder:
        driver = Driver(binaries / "headrace_loadgen", load, Path(folder))
        if driver.h2load is None:
            print("h2load is missing (apt install nghttp2-client): its column stays empty")
        for number in range(1, options.rounds + 1):
            print(f"round {number} of {options.rounds}", flush=True)
            rounds.append(run_round(present, driver, Path(folder), number))
    about["load_average_after"] = [round(x, 2) for x in os.getloadavg()]

    middle = report.medians(rounds)
    ours = [peer.name for peer in present if peer.ours]
    if any(peer.name == "nghttp2-echo" for peer in present):
        ours.append("nghttp2-echo")  # how far a server could get
    ratio = report.ratios(rounds, ours)
    print()
    top = report.best(rounds)
    top_ratio = report.ratios_of(top, ours)
    print(report.table(middle, top, ratio, top_ratio))
    print(
        f"\n{about['cpu']}, {about['cores']} cores, Linux {about['kernel']}, load "
        f"{about['load_average_before'][0]} before, {about['load_average_after'][0]} after; "
        + ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    )
    busiest = max((row.get("others' cores", 0) for row in middle.values()), default=0)
    if busiest > 0.2:
        print(
            f"NOT QUIET: other work used up to {busiest:.1f} cores; trust CPU per call and the "
            "best rounds more than the rest, or measure again"
        )
    if not options.no_save:
        stamp = time.strftime("%Y-%m-%d-%H%M%S")
        target = options.results / f"front_end-{stamp}.json"
        options.results.mkdir(parents=True, exist_ok=True)
        document = {
            "date": stamp,
            "machine": about,
            "load": asdict(load),
            "missing": {peer.name: "not available" for peer in chosen if peer.missing},
            "medians": middle,
            "best": top,
            "ratios": ratio,
            "ratios_of_best": top_ratio,
            "rounds": rounds,
        }
        target.write_text(json.dumps(document, indent=1) + "\n")
        print(f"written: {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
