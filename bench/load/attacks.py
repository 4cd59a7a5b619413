"""What attackers cost their neighbour, and how soon the server is rid of them.

    python bench/load/attacks.py
    python bench/load/attacks.py --only "rapid reset,slow body" --no-save

A server with default limits serves `identity`; the neighbour is our load client at a fixed rate,
open loop. It is measured alone, during each attack (attackers.py, a process of its own), during the
same attack on a second server on this machine (elsewhere), alone again every few attacks, and
beside a process that uses as much CPU as the attacker did and talks to nobody (the control): on few
cores those alone cost the neighbour something. A measurement during which a hypervisor took the
cores away is made again. Prints a Markdown table and writes bench/results/attacks-DATE.json.
bench/README.md has the columns.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import front_end
import identity
import report
import servers
from attackers import ATTACKS, INFER

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WARM_UP_S = 0.7
MOST_STOLEN = 0.01  # of the cores' time, by the hypervisor, in a measurement that counts
SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)  # of a core, that a control uses


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=500.0, help="the neighbour's calls/s")
    parser.add_argument("--alone", type=float, default=4.0, help="seconds of a baseline or control")
    parser.add_argument(
        "--attempts", type=int, default=4, help="at a measurement without stolen time"
    )
    parser.add_argument("--every", type=int, default=4, help="attacks between two baselines")
    parser.add_argument("--nice", type=int, default=10, help="of attackers and controls")
    parser.add_argument("--only", default="", help="attacks to run, by name, separated by ;")
    parser.add_argument(
        "--apart",
        action="store_true",
        help="attackers and controls on the last core, server and neighbour on the others",
    )
    parser.add_argument(
        "--no-elsewhere", action="store_true", help="do not attack the second server, too"
    )
    parser.add_argument("--list", action="store_true", help="list the attacks and end")
    parser.add_argument("--model", choices=["openvino", "callback"], default="openvino")
    parser.add_argument("--headrace", type=Path, help="the headrace command")
    parser.add_argument(
        "--bin-dir", type=Path, help="folder with headrace_loadgen (default: build)"
    )
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--no-save", action="store_true", help="print only")
    return parser.parse_args()


def cpu_ticks() -> tuple[int, int]:
    """Stolen by the hypervisor, and all."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    ticks = [int(field) for field in fields]
    return ticks[7], sum(ticks)


def rss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


@dataclass
class Watched:
    """The server, and the most memory that it had since `restart()`."""

    port: int
    tls_port: int
    metrics_port: int
    process: subprocess.Popen[bytes]
    most_mib: float = 0
    done: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        while not self.done.wait(0.02):
            with suppress(OSError):
                self.most_mib = max(self.most_mib, rss_mib(self.process.pid))

    def restart(self) -> None:
        self.most_mib = rss_mib(self.process.pid)

    def metrics(self) -> dict[str, float]:
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=30) as answer:
            text = answer.read().decode()
        values = {}
        for line in text.splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                values[name] = float(value)
        return values


def reasons(before: dict[str, float], after: dict[str, float]) -> dict[str, int]:
    """By how much each limit's counter, and that of failed TLS handshakes, grew."""
    grown = {}
    pattern = r'headrace_(?:limits_exceeded|tls_handshakes)_total\{\w+="(\w+)"\}'
    for name, value in after.items():
        if (found := re.fullmatch(pattern, name)) and value > before.get(name, 0):
            prefix = "tls " if "tls" in name else ""
            grown[prefix + found[1]] = int(value - before.get(name, 0))
    return grown


@dataclass
class Bench:
    options: argparse.Namespace
    loadgen: Path
    work: Path
    server: Watched
    second: Watched | None  # attacked while the neighbour is at `server`

    def __post_init__(self) -> None:
        self.message = self.work / "request.bin"
        self.message.write_bytes(identity.infer_request("identity"))
        self.values = self.work / "values.bin"
        self.values.write_bytes(identity.VALUES)

    def neighbour(self, seconds: float) -> subprocess.Popen[str]:
        words = {
            "--target": f"127.0.0.1:{self.server.port}",
            "--path": INFER,
            "--message": str(self.message),
            "--expect-contains": str(self.values),
            "--connections": "8",
            "--rate": str(self.options.rate),
            "--warm-up": str(WARM_UP_S),
            "--duration": str(seconds),
            "--server-pid": str(self.server.process.pid),
        }
        command = [str(self.loadgen), *(word for pair in words.items() for word in pair)]
        command = [*cores(self.options, attacker=False), *command]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def result(self, neighbour: subprocess.Popen[str]) -> dict[str, Any]:
        out, error = neighbour.communicate(timeout=60)
        if neighbour.returncode != 0:
            sys.exit(f"the load client failed: {error}")
        full = json.loads(out)
        failed = full["wrong"] + full["open"]["dropped"] + full["open"]["unanswered"]
        return {
            "calls": full["requests"],
            "failed": failed + full["reconnects"],
            "p50_us": full["latency_us"]["p50"],
            "p99_us": full["latency_us"]["p99"],
            "max_us": full["latency_us"]["max"],
            "late": full["open"]["late"],
            "server_cores": full["server"]["cores"],
        }

    def beside(self, seconds: float, *words: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The neighbour's figures while attackers.py runs with these words, and what that says."""
        command = [*cores(self.options, attacker=True), "nice", "-n", str(self.options.nice)]
        command += [sys.executable, str(HERE / "attackers.py")]
        pipe = subprocess.PIPE
        other = subprocess.Popen(
            [*command, *words], stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=0
        )
        assert other.stdout is not None
        if other.stdout.readline() != "ready\n":
            sys.exit(f"{words[0]} failed:\n{other.communicate()[1]}")
        neighbour = self.neighbour(seconds)
        time.sleep(WARM_UP_S)
        out, errors = other.communicate("begin\n", timeout=seconds + 60)
        if other.returncode != 0:
            sys.exit(f"{words[0]} failed:\n{errors}")
        return self.result(neighbour), json.loads(out)

    def undisturbed(self, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The first of a few measurements from which little was stolen, else the one that lost
        least; with the figure of each in `stolen`."""
        found: list[tuple[float, dict[str, Any]]] = []
        for _ in range(self.options.attempts):
            stolen, ticks = cpu_ticks()
            one = measure()
            stolen_after, ticks_after = cpu_ticks()
            found.append(((stolen_after - stolen) / max(1, ticks_after - ticks), one))
            if found[-1][0] <= MOST_STOLEN:
                break
        best = min(found, key=lambda pair: pair[0])[1]
        return best | {"stolen": [round(share, 4) for share, _ in found]}

    def alone(self) -> dict[str, Any]:
        return self.undisturbed(lambda: self.result(self.neighbour(self.options.alone)))

    def control(self, share: float) -> dict[str, Any]:
        seconds = self.options.alone
        words = ("spin", "--share", str(share), "--seconds", str(seconds))
        return self.undisturbed(lambda: self.beside(seconds, *words)[0])

    def attack(self, name: str) -> dict[str, Any]:
        """All of its attempts count for memory and failures."""
        attempts: list[dict[str, Any]] = []

        def measure() -> dict[str, Any]:
            attempts.append(self.attack_once(name))
            return attempts[-1]

        found = self.undisturbed(measure)
        found["most_mib"] = max(one["most_mib"] for one in attempts)
        found["neighbour"]["failed"] = sum(one["neighbour"]["failed"] for one in attempts)
        found["elsewhere"] = self.elsewhere(name) if self.second is not None else None
        return found

    def elsewhere(self, name: str) -> dict[str, Any]:
        """The neighbour's figures while the second server is attacked."""
        attack, second = ATTACKS[name], self.second
        assert second is not None

        def measure() -> dict[str, Any]:
            port = second.tls_port if attack.tls else second.port
            found, _ = self.beside(attack.seconds, name, "--port", str(port))
            settle(second)
            return found

        return self.undisturbed(measure)

    def attack_once(self, name: str) -> dict[str, Any]:
        attack = ATTACKS[name]
        port = self.server.tls_port if attack.tls else self.server.port
        before = self.server.metrics()
        self.server.restart()
        neighbour, attacker = self.beside(attack.seconds, name, "--port", str(port))
        most = self.server.most_mib
        settle(self.server)
        return {
            "neighbour": neighbour,
            "attacker": attacker,
            "most_mib": round(most, 1),
            "after_mib": round(rss_mib(self.server.process.pid), 1),
            "reasons": reasons(before, self.server.metrics()),
            "must_end": attack.ends,
        }


def settle(server: Watched) -> None:
    """Until the attackers' connections are gone."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if server.metrics()["headrace_connections_open"] <= 2:
            return
        time.sleep(0.1)


def cores(options: argparse.Namespace, *, attacker: bool) -> list[str]:
    """What a command begins with, to run where `--apart` puts it."""
    if not options.apart:
        return []
    *others, last = sorted(os.sched_getaffinity(0))
    return ["taskset", "-c", str(last) if attacker else ",".join(map(str, others))]


def certificate(folder: Path) -> tuple[Path, Path]:
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


def serve(options: argparse.Namespace, work: Path) -> Watched:
    work.mkdir(exist_ok=True)
    headrace = front_end.find_headrace(options.headrace)
    if headrace is None:
        sys.exit("no headrace command found (pip install . here, or give --headrace PATH)")
    identity.write_repository(work / "models", options.model)
    cert, key = certificate(work)
    port, tls_port, metrics_port = (servers.free_port() for _ in range(3))
    command = [*cores(options, attacker=False), str(headrace), "serve"]
    command += [f"--model-repository={work / 'models'}"]
    command += [f"--listen-insecure=127.0.0.1:{port}", f"--listen=127.0.0.1:{tls_port}"]
    command += [f"--tls-cert={cert}", f"--tls-key={key}", f"--metrics-port={metrics_port}"]
    with (work / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    server = Watched(port, tls_port, metrics_port, process)
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        with suppress(OSError, KeyError):
            if server.metrics()["headrace_ready"] == 1:
                threading.Thread(target=server.watch, daemon=True).start()
                return server
        time.sleep(0.1)
    process.kill()
    sys.exit(f"the server did not start:\n{(work / 'log.txt').read_text()[-2000:]}")


def end(server: Watched) -> int:
    """Its exit status."""
    server.done.set()
    server.process.terminate()
    with suppress(subprocess.TimeoutExpired):
        server.process.wait(timeout=15)
    server.process.kill()
    return server.process.wait()


def table(document: dict[str, Any]) -> str:
    base = document["baseline"]
    rows = [
        "| attack | failed | p50 us | p99 us | p99 / alone | p99 / control | p99 / elsewhere "
        "| its cores | RSS + MiB | connections | closed after s, median / max | reasons |",
        "|--|--|--|--|--|--|--|--|--|--|--|--|",
    ]
    for name, one in document["attacks"].items():
        near, far = one["neighbour"], one["attacker"]
        control = (
            document["controls"][one["control"]]["p99_us"] if one["control"] else base["p99_us"]
        )
        closed = far["closed_after_s"]
        ends = "-"
        if closed["max"] is not None:
            ends = f"{closed['median']:.2f} / {closed['max']:.2f}"
        if one["must_end"] and far["open_at_end"]:
            ends += f" ({far['open_at_end']} still open)"
        elsewhere = "-"
        if one["elsewhere"] is not None:
            elsewhere = f"{near['p99_us'] / one['elsewhere']['p99_us']:.2f}"
        why = ", ".join(f"{reason} {count}" for reason, count in one["reasons"].items())
        rows.append(
            f"| {name} | {near['failed']} | {near['p50_us']:.0f} | {near['p99_us']:.0f} "
            f"| {near['p99_us'] / base['p99_us']:.2f} | {near['p99_us'] / control:.2f} "
            f"| {elsewhere} | {far['cores']:.2f} | {one['most_mib'] - document['start_mib']:.1f} "
            f"| {far['connections']} | {ends} | {why or '-'} |"
        )
    return "\n".join(rows)


def measure(bench: Bench, names: list[str]) -> dict[str, Any]:
    bench.alone()  # the first calls warm the server up
    start = rss_mib(bench.server.process.pid)
    alone = [bench.alone()]
    attacks: dict[str, Any] = {}
    for number, name in enumerate(names, 1):
        attacks[name] = bench.attack(name)
        print(f"  {name}: {attacks[name]['neighbour']['p99_us']:.0f} us", flush=True)
        if number % bench.options.every == 0 or number == len(names):
            alone.append(bench.alone())
    controls: dict[str, Any] = {}
    for one in attacks.values():
        share = next((s for s in SHARES if s >= one["attacker"]["cores"] - 0.05), SHARES[-1])
        one["control"] = str(share) if one["attacker"]["cores"] >= 0.05 else None
        if one["control"] and one["control"] not in controls:
            controls[one["control"]] = bench.control(share)
    middle = {
        key: statistics.median(run[key] for run in alone) for key in alone[0] if key != "stolen"
    }
    return {
        "start_mib": round(start, 1),
        "baseline": middle,
        "baselines": alone,
        "controls": controls,
        "attacks": attacks,
    }


def main() -> int:
    options = parse_options()
    names = [name for name in options.only.split(";") if name] or list(ATTACKS)
    if unknown := set(names) - set(ATTACKS):
        sys.exit(f"no such attack: {', '.join(sorted(unknown))}; see --list")
    if options.list:
        print("\n".join(f"{name}: {attack.what}" for name, attack in ATTACKS.items()))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    binaries = (options.bin_dir or front_end.build_tools()).absolute()
    about = report.machine(ROOT, Path(sys.executable), None)
    with tempfile.TemporaryDirectory(prefix="attacks-") as folder:
        work = Path(folder)
        all_servers = [serve(options, work)]
        try:
            if not options.no_elsewhere:
                all_servers.append(serve(options, work / "second"))
            server, second = all_servers[0], all_servers[1] if all_servers[1:] else None
            bench = Bench(options, binaries / "headrace_loadgen", work, server, second)
            found = measure(bench, names)
            alive = server.process.poll() is None
        finally:
            status, *_ = [end(one) for one in all_servers]
    about["load_average_after"] = [round(x, 2) for x in os.getloadavg()]
    print("\n" + table(found))
    base = found["baseline"]
    runs = ", ".join(f"{run['p99_us']:.0f}" for run in found["baselines"])
    shares = ", ".join(f"{s} cores {run['p99_us']:.0f}" for s, run in found["controls"].items())
    print(
        f"\nAlone: p50 {base['p50_us']:.0f} us, p99 {base['p99_us']:.0f} us (of {runs}); controls' "
        f"p99: {shares or 'none'}. {options.rate:.0f} calls/s, attackers nice {options.nice}"
        f"{', on a core of their own' if options.apart else ''}. "
        f"{about['cpu']}, {about['cores']} cores, Linux {about['kernel']}, load "
        f"{about['load_average_before'][0]} before. The server "
        f"{'lived' if alive else 'DIED'} and ended with {status}."
    )
    if not options.no_save:
        stamp = time.strftime("%Y-%m-%d-%H%M%S")
        target = options.results / f"attacks-{stamp}.json"
        document = {"date": stamp, "machine": about, "rate": options.rate, "nice": options.nice}
        document["apart"] = options.apart
        target.write_text(json.dumps(document | found, indent=1) + "\n")
        print(f"written: {target}")
    return 0 if alive and status == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
