"""One Python servicer on grpcio's server and on Headrace's, in one run: requests per second at 8
connections x 32 calls in flight, and the median latency at one call in flight.

    python bench/load/python_service.py --loadgen build/release/bench/load/headrace_loadgen

The handler reads a protobuf message, two metadata keys, the peer and the deadline, sets trailing
metadata and answers a message. Servers run in turn, each in a process of its own, several rounds
interleaved; what is printed are medians over the rounds and their ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
from concurrent import futures
from pathlib import Path
from typing import Any

import report

PATH = "/bench.Greeter/SayHello"
SERVERS = ("grpcio", "headrace", "grpcio-aio", "headrace-aio")
METADATA = ("user:ada", "tenant:engines")


def _answer(request: Any, context: Any) -> Any:
    from google.protobuf import wrappers_pb2

    metadata = dict(context.invocation_metadata())
    context.set_trailing_metadata((("served-by", "python"),))
    remaining = context.time_remaining()
    assert context.peer() and (remaining is None or remaining >= 0)
    return wrappers_pb2.StringValue(value=f"Hello {request.value}, {metadata['user']}")


async def _answer_async(request: Any, context: Any) -> Any:
    return _answer(request, context)


def _add(server: Any, behavior: Any) -> None:
    import grpc
    from google.protobuf import wrappers_pb2

    handlers = {
        "SayHello": grpc.unary_unary_rpc_method_handler(
            behavior,
            request_deserializer=wrappers_pb2.StringValue.FromString,
            response_serializer=wrappers_pb2.StringValue.SerializeToString,
        )
    }
    # As generated code does.
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bench.Greeter", handlers),)
    )
    server.add_registered_method_handlers("bench.Greeter", handlers)


def _make(name: str) -> Any:
    import grpc

    if name.startswith("headrace"):
        import headrace.grpc

        module: Any = headrace.grpc
    else:
        module = grpc
    if name.endswith("-aio"):
        return module.aio.server()
    return module.server(futures.ThreadPoolExecutor(max_workers=10))


def serve(name: str) -> None:
    """The child: prints the port and serves until its standard input closes."""
    if not name.endswith("-aio"):
        server = _make(name)
        _add(server, _answer)
        print(server.add_insecure_port("127.0.0.1:0"), flush=True)
        server.start()
        sys.stdin.read()
        server.stop(None)
        return

    async def main() -> None:
        server = _make(name)
        _add(server, _answer_async)
        print(server.add_insecure_port("127.0.0.1:0"), flush=True)
        await server.start()
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await server.stop(None)

    asyncio.run(main())


def measure(name: str, options: argparse.Namespace, message: Path) -> dict[str, Any]:
    child = subprocess.Popen(
        [sys.executable, __file__, "--serve", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        port = int(child.stdout.readline())

        def load(connections: int, streams: int) -> dict[str, Any]:
            command = [str(options.loadgen), "--target", f"127.0.0.1:{port}", "--path", PATH]
            command += ["--message", str(message), "--server-pid", str(child.pid)]
            for pair in METADATA:
                command += ["--metadata", pair]
            command += ["--connections", str(connections), "--streams", str(streams)]
            command += ["--duration", str(options.duration), "--warm-up", str(options.warm_up)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            result: dict[str, Any] = json.loads(done.stdout)
            if result["wrong"] or not result["right"]:
                raise SystemExit(f"{name} answers wrongly: {done.stdout}")
            return result

        return {"single": load(1, 1), "full": load(8, 32)}
    finally:
        assert child.stdin is not None
        child.stdin.close()
        child.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--loadgen", type=Path, help="the built headrace_loadgen")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--duration", type=float, default=3.0, help="seconds a measurement")
    parser.add_argument("--warm-up", type=float, default=1.0)
    parser.add_argument("--only", default=",".join(SERVERS))
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    if options.loadgen is None:
        parser.error("--loadgen is needed")
    about = report.machine(Path(__file__).parents[2], Path(sys.executable), None)
    names = [name for name in SERVERS if name in options.only.split(",")]
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        message = Path(folder) / "request.bin"
        message.write_bytes(b"\x0a\x05world")
        for _ in range(options.rounds):
            for name in names:
                rounds[name].append(measure(name, options, message))
    rate: dict[str, float] = {}
    p50: dict[str, float] = {}
    print(f"{'server':14} {'req/s 8x32':>12} {'CPU us/req':>12} {'p50 us 1x1':>12}")
    for name in names:
        rate[name] = statistics.median(r["full"]["requests_per_s"] for r in rounds[name])
        p50[name] = statistics.median(r["single"]["latency_us"]["p50"] for r in rounds[name])
        cpu = statistics.median(r["full"]["server"]["cpu_us_per_call"] for r in rounds[name])
        print(f"{name:14} {rate[name]:12.0f} {cpu:12.1f} {p50[name]:12.0f}")
    for ours, theirs in (("headrace", "grpcio"), ("headrace-aio", "grpcio-aio")):
        if ours in rate and theirs in rate:
            print(
                f"{ours} / {theirs}: {rate[ours] / rate[theirs]:.1f}x the requests per second, "
                f"{p50[theirs] / p50[ours]:.1f}x lower p50"
            )
    print(f"{about['cpu']}, {about['cores']} cores, grpcio {about['versions']['grpcio']}")
    if options.json:
        options.json.write_text(json.dumps({"machine": about, "rounds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
