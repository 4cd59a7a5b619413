"""What TLS, mTLS and more I/O threads cost Headrace: `headrace serve` with one model, in one run.

    python bench/load/transport_costs.py                 # three rounds, about three minutes
    python bench/load/transport_costs.py --quick         # one short round

Starts a server a row, then measures them in turn, round after round, with our own load client and a
client that only connects; prints markdown tables of medians with ratios to the plaintext row of
the same round, and writes bench/results/transport_costs-DATE.json. bench/README.md says what each
figure means. Needs the packages trustme and onnx.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import ssl
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import front_end
import handshakes
import identity
import report
import servers

ROOT = front_end.ROOT
INFER = "/inference.GRPCInferenceService/ModelInfer"
LARGE_WIDTH = 2**18  # FP32: 1 MiB
LARGE = struct.pack(f"<{LARGE_WIDTH}f", *(float(i % 8192) for i in range(LARGE_WIDTH)))
KINDS = ("plaintext", "TLS", "mTLS")


@dataclass(frozen=True)
class Row:
    """One server process."""

    kind: str  # one of KINDS
    io_threads: int

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.io_threads} I/O thread{'s' * (self.io_threads > 1)}"


class Certificates:
    """An authority and what it signed, as files."""

    def __init__(self, folder: Path) -> None:
        import trustme

        authority = trustme.CA()
        self.ca = folder / "ca.pem"
        authority.cert_pem.write_to_path(str(self.ca))
        for name, issued in (
            ("server", authority.issue_cert("localhost", "127.0.0.1")),
            ("client", authority.issue_cert("client.example")),
        ):
            issued.private_key_pem.write_to_path(str(folder / f"{name}.key"))
            (folder / f"{name}.pem").write_bytes(
                b"".join(blob.bytes() for blob in issued.cert_chain_pems)
            )
        self.server, self.server_key = folder / "server.pem", folder / "server.key"
        self.client, self.client_key = folder / "client.pem", folder / "client.key"

    def server_options(self, kind: str) -> list[str]:
        if kind == "plaintext":
            return []
        options = [f"--tls-cert={self.server}", f"--tls-key={self.server_key}"]
        return options + ([f"--tls-client-ca={self.ca}"] if kind == "mTLS" else [])

    def loadgen_options(self, kind: str) -> list[str]:
        if kind == "plaintext":
            return []
        options = ["--tls-ca", str(self.ca)]
        if kind == "mTLS":
            options += ["--tls-cert", str(self.client), "--tls-key", str(self.client_key)]
        return options

    def context(self, kind: str) -> ssl.SSLContext | None:
        if kind == "plaintext":
            return None
        context = ssl.create_default_context(cafile=str(self.ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols(["h2"])
        if kind == "mTLS":
            context.load_cert_chain(self.client, self.client_key)
        return context


class Bench:
    def __init__(self, loadgen: Path, headrace: Path, folder: Path, quick: bool) -> None:
        self.loadgen = loadgen
        self.headrace = headrace
        self.folder = folder
        self.duration_s, self.warm_up_s = (1.0, 0.3) if quick else (2.5, 0.5)
        self.certificates = Certificates(folder)
        self.models = folder / "models"
        identity.write_openvino_model(self.models / "identity")
        identity.write_openvino_model(self.models / "large", LARGE_WIDTH)
        files = {"small": ("identity", identity.VALUES), "large": ("large", LARGE)}
        for name, (model, values) in files.items():
            (folder / f"{name}.request").write_bytes(identity.infer_request(model, values))
            (folder / f"{name}.values").write_bytes(values)

    @contextmanager
    def serving(self, row: Row) -> Iterator[servers.Server]:
        def command(port: int, work: Path) -> list[str]:
            return [
                str(self.headrace),
                "serve",
                f"--model-repository={self.models}",
                "--host=127.0.0.1",
                f"--grpc-port={port}",
                "--metrics-port=-1",
                f"--io-threads={row.io_threads}",
                "--tls-reload-secs=0",
                *self.certificates.server_options(row.kind),
            ]

        def ready(server: servers.Server) -> bool:
            try:
                for size in ("small", "large"):
                    self._load(row, server, size, "--requests", "1", "--warm-up", "0")
            except (servers.ServerFailedError, subprocess.TimeoutExpired):
                return False
            return True

        name = f"{row.kind}-{row.io_threads}"
        peer = servers.Peer(name, "Headrace", command)
        with servers.running(peer, self.folder / name, ready) as server:
            yield server

    def _load(self, row: Row, server: servers.Server, size: str, *how: str) -> dict[str, Any]:
        done = subprocess.run(
            [
                *(str(self.loadgen), "--target", f"127.0.0.1:{server.port}", "--path", INFER),
                *("--message", str(self.folder / f"{size}.request")),
                *("--expect-contains", str(self.folder / f"{size}.values")),
                *("--server-pid", str(server.process.pid)),
                *self.certificates.loadgen_options(row.kind),
                *how,
            ],
            capture_output=True,
            text=True,
            timeout=self.duration_s + self.warm_up_s + 60,
        )
        if done.returncode != 0:
            raise servers.ServerFailedError(done.stderr.strip() or "headrace_loadgen failed")
        result: dict[str, Any] = json.loads(done.stdout)
        if result["right"] == 0 or result["wrong"] != 0:
            raise servers.ServerFailedError(f"wrong answers: {done.stdout[-500:]}")
        return result

    def calls(self, row: Row, server: servers.Server, size: str, load: str) -> dict[str, float]:
        result = self._load(
            row,
            server,
            size,
            *load.split(),
            *("--duration", str(self.duration_s), "--warm-up", str(self.warm_up_s)),
        )
        return {
            "per_s": result["requests_per_s"],
            "cpu_us": result["server"]["cpu_us_per_call"],
            "p50_us": result["latency_us"]["p50"],
            "p99_us": result["latency_us"]["p99"],
            "others_cores": result["other_cores"],
        }

    def connections(self, row: Row, server: servers.Server, resume: bool) -> dict[str, float]:
        client = handshakes.Client(server.port, self.certificates.context(row.kind), resume)
        return handshakes.measure(client, server.process.pid, self.duration_s)


FULL = "--connections 8 --streams 32"
ONE = "--connections 1 --streams 1"
BIG = "--connections 2 --streams 2"


def measure_round(bench: Bench, running: dict[Row, servers.Server]) -> dict[str, Any]:
    one = {kind: Row(kind, 1) for kind in KINDS}
    tables: dict[str, Any] = {}
    for title, size, load in (
        ("small calls, 8 connections x 32 in flight", "small", FULL),
        ("small calls, 1 in flight", "small", ONE),
        ("1 MiB there and back, 2 connections x 2 in flight", "large", BIG),
    ):
        tables[title] = {
            kind: bench.calls(row, running[row], size, load) for kind, row in one.items()
        }
    cells: dict[str, Any] = {}
    for kind, row in one.items():
        cells[kind] = bench.connections(row, running[row], resume=False)
        if kind != "plaintext":
            cells[f"{kind}, resumed"] = bench.connections(row, running[row], resume=True)
    tables["new connections"] = cells
    tables["I/O threads, small calls, 8 connections x 32 in flight"] = {
        row.name: bench.calls(row, server, "small", FULL)
        for row, server in running.items()
        if row.kind != "mTLS"
    }
    return tables


def medians(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """table -> row -> figure -> median; "x_..." are the medians of the rounds' ratios to the
    table's first row."""
    out: dict[str, Any] = {}
    for title, rows in rounds[0].items():
        first = next(iter(rows))
        out[title] = {}
        for name, figures in rows.items():
            cells = {f: statistics.median(r[title][name][f] for r in rounds) for f in figures}
            for figure in ("per_s", "cpu_us", "p50_us"):
                if figure in figures:
                    ratios = [r[title][name][figure] / r[title][first][figure] for r in rounds]
                    cells[f"x_{figure}"] = statistics.median(ratios)
            out[title][name] = cells
    return out


def markdown(middle: dict[str, Any]) -> str:
    parts = []
    for title, rows in middle.items():
        connections = title == "new connections"
        heads = [title, "a second", "ratio", "server CPU us each", "ratio"]
        if not connections:
            heads += ["p50 us", "p99 us"]
        lines = ["| " + " | ".join(heads) + " |", "|--" + "|--:" * (len(heads) - 1) + "|"]
        for name, cells in rows.items():
            texts = [name, f"{cells['per_s']:,.0f}", f"{cells['x_per_s']:.2f}"]
            texts += [f"{cells['cpu_us']:,.1f}", f"{cells['x_cpu_us']:.2f}"]
            if not connections:
                texts += [f"{cells['p50_us']:,.0f}", f"{cells['p99_us']:,.0f}"]
            lines.append("| " + " | ".join(texts) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of short measurements")
    parser.add_argument("--headrace", type=Path, help="the headrace command")
    parser.add_argument("--bin-dir", type=Path, help="folder with a built headrace_loadgen")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    if options.quick:
        options.rounds = 1
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def main() -> int:
    options = parse_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers are stopped
    binaries = (options.bin_dir or front_end.build_tools()).absolute()
    headrace = front_end.find_headrace(options.headrace)
    if headrace is None:
        sys.exit("no headrace command found (pip install . here, or give --headrace PATH)")
    rows = [Row(kind, 1) for kind in KINDS]
    rows += [Row(kind, n) for kind in ("plaintext", "TLS") for n in (2, 4)]
    # The ratios of the last table are to plaintext with one thread, which comes first.
    rows.sort(key=lambda row: (KINDS.index(row.kind), row.io_threads))
    about = report.machine(ROOT, Path(sys.executable), None)
    about["versions"]["openssl (client)"] = ssl.OPENSSL_VERSION
    rounds = []
    with tempfile.TemporaryDirectory(prefix="transport-costs-") as folder, ExitStack() as stack:
        bench = Bench(binaries / "headrace_loadgen", headrace, Path(folder), options.quick)
        running = {row: stack.enter_context(bench.serving(row)) for row in rows}
        for number in range(1, options.rounds + 1):
            print(f"round {number} of {options.rounds}", file=sys.stderr, flush=True)
            rounds.append(measure_round(bench, running))
    about["load_average_after"] = [round(x, 2) for x in os.getloadavg()]
    middle = medians(rounds)
    print(markdown(middle))
    busiest = max(cells.get("others_cores", 0) for t in middle.values() for cells in t.values())
    print(
        f"\n{about['cpu']}, {about['cores']} cores, Linux {about['kernel']}, load "
        f"{about['load_average_before'][0]} before, {about['load_average_after'][0]} after; "
        f"others used up to {busiest:.1f} cores; TLS 1.3, ECDSA P-256; "
        + ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    )
    if not options.no_save:
        stamp = time.strftime("%Y-%m-%d-%H%M%S")
        options.results.mkdir(parents=True, exist_ok=True)
        target = options.results / f"transport_costs-{stamp}.json"
        document = {
            "date": stamp,
            "machine": about,
            "rows": [asdict(row) for row in rows],
            "seconds_a_measurement": bench.duration_s,
            "medians": middle,
            "rounds": rounds,
        }
        target.write_text(json.dumps(document, indent=1) + "\n")
        print(f"written: {target}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
