"""The command line: headrace serve | models | infer | rollout | feedback | human | rules | doctor.

What a command needs is imported by the command, so that `serve` starts without grpcio, rich and
prometheus_client, and `--help` without the core.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from headrace import (
    build_cli,
    calibrate_cli,
    feedback_cli,
    human_cli,
    load_cli,
    logs,
    quantize_cli,
    rollout_cli,
    rules_cli,
    speech_cli,
    transcribe_cli,
)
from headrace.config import ServerConfig, read_config_file
from headrace.errors import HeadraceError, InvalidArgumentError
from headrace.limits import parse_limits

if TYPE_CHECKING:
    from headrace.client import Client

__all__ = ["app", "main"]

app = typer.Typer(
    name="headrace",
    help="An inference server that speaks gRPC (KServe v2, Triton's dialect).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(rollout_cli.app, name="rollout")
app.add_typer(feedback_cli.app, name="feedback")
app.add_typer(human_cli.app, name="human")
app.add_typer(speech_cli.app, name="speech")
app.command()(load_cli.load)
app.command()(rules_cli.rules)
app.command()(calibrate_cli.calibrate)
app.command()(transcribe_cli.transcribe)
app.command()(quantize_cli.quantize)
app.command()(build_cli.build)

# typer reads annotations at run time and Python 3.10 has no `X | None` in Annotated there.
OptionalInt = Optional[int]  # noqa: UP045
OptionalFloat = Optional[float]  # noqa: UP045
OptionalStr = Optional[str]  # noqa: UP045
OptionalBool = Optional[bool]  # noqa: UP045
OptionalPath = Optional[Path]  # noqa: UP045
OptionalPaths = Optional[list[Path]]  # noqa: UP045
OptionalStrs = Optional[list[str]]  # noqa: UP045

Url = Annotated[str, typer.Option("--url", "-u", help="Address of the server.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Timeout = Annotated[float, typer.Option(help="Seconds a call may take.")]


def _version() -> str:
    from headrace import __version__

    return str(__version__)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"headrace {_version()}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def serve(
    model_repository: Annotated[
        OptionalPaths,
        typer.Option(
            "--model-repository",
            "--model-store",
            help="Folder of models in Triton's layout. May be given several times.",
        ),
    ] = None,
    config: Annotated[
        OptionalPath, typer.Option(help="YAML file with any of these flags as keys.")
    ] = None,
    model_control_mode: Annotated[
        OptionalStr,
        typer.Option(
            help="none: load everything at start. explicit: load by RPC and --load-model. "
            "poll: follow the repository. [default: none]"
        ),
    ] = None,
    load_model: Annotated[
        OptionalStrs,
        typer.Option(help="explicit mode: a model to load at start; '*' = all. Repeatable."),
    ] = None,
    repository_poll_secs: Annotated[
        OptionalFloat, typer.Option(help="poll mode: seconds between looks. [default: 15]")
    ] = None,
    host: Annotated[
        OptionalStr,
        typer.Option("--host", "--grpc-address", help="Address to bind. [default: 0.0.0.0]"),
    ] = None,
    grpc_port: Annotated[
        OptionalInt, typer.Option(help="0 = any free one. [default: 8001]")
    ] = None,
    listen: Annotated[
        OptionalStrs,
        typer.Option(
            help="host:port, [::]:port, unix:/path or unix-abstract:name instead of --host and "
            "--grpc-port. TCP has TLS when there is --tls-cert. Repeatable."
        ),
    ] = None,
    listen_insecure: Annotated[
        OptionalStrs, typer.Option(help="As --listen, never with TLS. Repeatable.")
    ] = None,
    unix_socket_mode: Annotated[
        OptionalStr, typer.Option(help="Octal permissions of unix sockets. [default: 0600]")
    ] = None,
    tls_cert: Annotated[
        OptionalStr,
        typer.Option(
            "--tls-cert", "--grpc-server-cert", help="PEM file: certificate and intermediates."
        ),
    ] = None,
    tls_key: Annotated[
        OptionalStr, typer.Option("--tls-key", "--grpc-server-key", help="PEM file: its key.")
    ] = None,
    tls_client_ca: Annotated[
        OptionalStr,
        typer.Option(
            "--tls-client-ca",
            "--grpc-root-cert",
            help="PEM file: who signs clients' certificates (mTLS).",
        ),
    ] = None,
    tls_client_auth: Annotated[
        OptionalStr,
        typer.Option(
            help="none, request or require a client's certificate. "
            "[default: require with --tls-client-ca]"
        ),
    ] = None,
    tls_reload_secs: Annotated[
        OptionalFloat,
        typer.Option(help="How often TLS files are looked at; 0 = on SIGHUP. [default: 10]"),
    ] = None,
    grpc_use_ssl: Annotated[
        OptionalBool,
        typer.Option(
            "--grpc-use-ssl/--no-grpc-use-ssl",
            help="Triton's switch: whether --grpc-server-cert is used.",
        ),
    ] = None,
    grpc_use_ssl_mutual: Annotated[
        OptionalBool,
        typer.Option(
            "--grpc-use-ssl-mutual/--no-grpc-use-ssl-mutual",
            help="Triton's switch: --tls-client-auth require.",
        ),
    ] = None,
    metrics_port: Annotated[
        OptionalInt, typer.Option(help="0 = any free one, -1 = none. [default: 8002]")
    ] = None,
    metrics: Annotated[
        OptionalBool, typer.Option("--metrics/--no-metrics", help="Whether to serve metrics.")
    ] = None,
    dashboard: Annotated[
        OptionalBool,
        typer.Option(
            "--dashboard/--no-dashboard",
            help="A page of live numbers at / of the metrics port. [default: dashboard]",
        ),
    ] = None,
    otlp_endpoint: Annotated[
        OptionalStr,
        typer.Option(
            help="http://host:4317 (https: with TLS) of an OpenTelemetry collector that gets "
            "traces. [default: none]"
        ),
    ] = None,
    trace_ratio: Annotated[
        OptionalFloat,
        typer.Option(help="Share of the requests without a traceparent to trace. [default: 0.01]"),
    ] = None,
    strict_readiness: Annotated[
        OptionalBool,
        typer.Option(
            "--strict-readiness/--no-strict-readiness",
            help="Ready only when every wanted model serves. [default: on]",
        ),
    ] = None,
    exit_on_error: Annotated[
        OptionalBool,
        typer.Option(
            "--exit-on-error/--no-exit-on-error",
            help="End when a model does not load at start. [default: on]",
        ),
    ] = None,
    exit_timeout_secs: Annotated[
        OptionalFloat,
        typer.Option(help="Seconds running requests may take at the end. [default: 30]"),
    ] = None,
    io_threads: Annotated[
        OptionalInt, typer.Option(help="Connection threads; 0 = planned. [default: 0]")
    ] = None,
    busy_poll_us: Annotated[
        OptionalInt,
        typer.Option(
            help="Microseconds a connection thread may look for the next call before it sleeps, "
            "while calls follow that closely; 0 = it sleeps at once. [default: 100]"
        ),
    ] = None,
    admin_socket: Annotated[
        OptionalStr,
        typer.Option(
            help="Unix socket of the admin service, for the same user alone; auto = named after "
            "the gRPC port; empty = none. [default: auto]"
        ),
    ] = None,
    admin_listen: Annotated[
        OptionalStr,
        typer.Option(
            help="host:port of the admin service, with TLS (--tls-cert) and for those whom "
            "--auth-file gives the right. [default: none]"
        ),
    ] = None,
    cores: Annotated[
        OptionalInt,
        typer.Option(help="Cores to divide over model instances; 0 = all. [default: 0]"),
    ] = None,
    load_threads: Annotated[
        OptionalInt,
        typer.Option(
            help="Models that load at a time while others are served, one core each; 0 = a quarter "
            "of the cores. [default: 0]"
        ),
    ] = None,
    default_max_batch_size: Annotated[
        OptionalInt,
        typer.Option(help="For models that can batch and do not say how much. [default: 32]"),
    ] = None,
    onnx_engine: Annotated[
        OptionalStr,
        typer.Option(help="auto, openvino or onnxruntime runs .onnx files. [default: auto]"),
    ] = None,
    state_dir: Annotated[
        OptionalStr,
        typer.Option(
            help="What must survive a restart (rollouts); auto = a folder for these repositories "
            "and this port in ~/.local/state/headrace; '' = nothing. [default: auto]"
        ),
    ] = None,
    cache_dir: Annotated[
        OptionalStr,
        typer.Option(help="Compiled models are kept here; '' = no. [default: ~/.cache/headrace]"),
    ] = None,
    response_cache_byte_size: Annotated[
        OptionalInt,
        typer.Option(
            help="Bytes for the answers of models that ask for a response cache; 0 = none. "
            "[default: 67108864]"
        ),
    ] = None,
    tickets: Annotated[
        OptionalPath,
        typer.Option(help="SQLite file for what models leave to people. [default: none]"),
    ] = None,
    tickets_keep_days: Annotated[
        OptionalFloat,
        typer.Option(help="Resolved tickets are deleted after so many days. [default: 30]"),
    ] = None,
    max_message_bytes: Annotated[
        OptionalInt, typer.Option(help="Largest request; 0 = gRPC's limit. [default: 0]")
    ] = None,
    response_compression: Annotated[
        OptionalStr,
        typer.Option(
            help="none, gzip or deflate: responses to clients that accept it. [default: none]"
        ),
    ] = None,
    grpc_infer_response_compression_level: Annotated[
        OptionalStr,
        typer.Option(
            help="Triton's name: none, or low, medium or high, which are --response-compression "
            "gzip."
        ),
    ] = None,
    service_threads: Annotated[
        OptionalInt,
        typer.Option(help="For gRPC services of your own. [default: 32]"),
    ] = None,
    reflection: Annotated[
        OptionalBool,
        typer.Option(
            "--reflection/--no-reflection", help="Server reflection. [default: reflection]"
        ),
    ] = None,
    limits: Annotated[
        OptionalStrs,
        typer.Option(
            help="NAME=VALUE: a limit on what one client may do, as max-age-s=0; see "
            "docs/CONFIGURATION.md. Repeatable."
        ),
    ] = None,
    auth_file: Annotated[
        OptionalStr,
        typer.Option(help="YAML: who may call what; '' = everyone everything. [default: '']"),
    ] = None,
    server_id: Annotated[
        OptionalStr, typer.Option("--id", help="Name in ServerMetadata. [default: headrace]")
    ] = None,
    log_format: Annotated[OptionalStr, typer.Option(help="text or json. [default: text]")] = None,
    log_level: Annotated[
        OptionalStr, typer.Option(help="debug, info, warning or error. [default: info]")
    ] = None,
) -> None:
    """Serve models until SIGTERM or Ctrl-C."""
    given = dict(locals())
    path = given.pop("config")
    given["id"] = given.pop("server_id")
    _apply_triton_tls(given)
    _apply_triton_compression(given)
    if given.pop("metrics") is False:
        given["metrics_port"] = -1
    values: dict[str, Any] = read_config_file(path) if path is not None else {}
    if limited := given.pop("limits"):
        values["limits"] = parse_limits(limited, values.get("limits"))
    known = {field.name for field in fields(ServerConfig)}
    for name, value in given.items():
        if name in known and value is not None and value != []:
            values[name] = tuple(value) if isinstance(value, list) else value
    settings = ServerConfig(**values)
    logs.configure(settings.log_level, settings.log_format)

    from headrace.app import run_until_signal

    listener = None
    if settings.log_format == "text" and sys.stderr.isatty():
        from headrace.progress import LoadProgress

        listener = LoadProgress()
    raise typer.Exit(run_until_signal(settings, on_event=listener))


@app.command()
def models(url: Url = "localhost:8001", as_json: AsJson = False, timeout: Timeout = 10.0) -> None:
    """List the server's models: versions, states, what they run on and why, batching, averages."""
    from headrace.client import Client

    with Client(url, timeout_s=timeout) as client:
        rows = _model_rows(client)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    if not rows:
        print("no models")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("model", "version", "state", "backend", "batching"):
        table.add_column(heading)
    for heading in ("instances", "requests", "failed", "avg queue", "avg infer"):
        table.add_column(heading, justify="right")
    table.add_column("why")
    for row in rows:
        table.add_row(
            row["name"],
            row["version"],
            row["state"] or "not loaded",
            row["backend"] or row["platform"],
            row["batching"],
            str(row["instances"] or ""),
            str(row["requests"]) if row["requests"] is not None else "",
            str(row["failed"]) if row["failed"] is not None else "",
            _micros(row["average_queue_us"]),
            _micros(row["average_infer_us"]),
            "; ".join(text for text in (row["reason"], row["why"]) if text),
        )
    # Piped: whole lines, nothing cut to a window that is not there.
    Console(width=None if sys.stdout.isatty() else 1000).print(table)


def _micros(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f} us" if value < 1000 else f"{value / 1000:.1f} ms"


def _model_rows(client: Client) -> list[dict[str, Any]]:
    statistics = {(s.name, s.version): s for s in client.statistics()}
    rows: list[dict[str, Any]] = []
    for entry in client.index():
        row: dict[str, Any] = {
            "name": entry.name,
            "version": entry.version,
            "state": entry.state,
            "reason": entry.reason,
            "platform": "",
            "backend": "",
            "why": "",
            "batching": "",
            "instances": None,
            "requests": None,
            "failed": None,
            "average_queue_us": None,
            "average_infer_us": None,
        }
        if entry.state == "READY":
            try:
                config = client.model_config(entry.name, entry.version)
            except HeadraceError as error:
                if error.code not in (5, 14):  # unloaded meanwhile
                    raise
            else:
                row["platform"] = config.platform or config.backend
                row["backend"] = config.parameters["headrace.backend"].string_value
                row["why"] = config.parameters["headrace.why"].string_value
                row["batching"] = _batching(config)
                row["instances"] = sum(group.count for group in config.instance_group)
        numbers = statistics.get((entry.name, entry.version))
        if numbers is not None:
            stats = numbers.inference_stats
            row["requests"] = stats.success.count
            row["failed"] = stats.fail.count
            row["average_queue_us"] = _average_us(stats.queue)
            row["average_infer_us"] = _average_us(stats.compute_infer)
        rows.append(row)
    return rows


def _average_us(duration: Any) -> float | None:
    return duration.ns / duration.count / 1000 if duration.count else None


def _batching(config: Any) -> str:
    if config.max_batch_size <= 0:
        return "no"
    if not config.HasField("dynamic_batching"):
        return f"by client, up to {config.max_batch_size}"
    delay = config.dynamic_batching.max_queue_delay_microseconds
    return f"dynamic, up to {config.max_batch_size}" + (f", delay {delay} us" if delay else "")


@app.command()
def infer(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    inputs: Annotated[
        OptionalStrs,
        typer.Option(
            "--input",
            "-i",
            help="NAME=@file.npy, NAME=@file (its bytes), NAME=JSON or NAME=text. Repeatable.",
        ),
    ] = None,
    outputs: Annotated[
        OptionalStrs, typer.Option("--output", "-o", help="An output to ask for. Repeatable.")
    ] = None,
    model_version: Annotated[str, typer.Option(help="Default: the highest ready one.")] = "",
    url: Url = "localhost:8001",
    as_json: AsJson = False,
    timeout: Timeout = 60.0,
) -> None:
    """Send one request and print the answer."""
    from headrace.client import Client
    from headrace.client.tensors import fit_shape, parse_input, readable
    from headrace.datatypes import datatype_of

    with Client(url, timeout_s=timeout) as client:
        metadata = client.model_metadata(model, model_version)
        specs = {tensor.name: tensor for tensor in metadata.inputs}
        arrays: dict[str, Any] = {}
        for argument in inputs or []:
            name, equals, value = argument.partition("=")
            if not equals:
                raise InvalidArgumentError(f"--input '{argument}' must be NAME=VALUE")
            if name not in specs:
                raise InvalidArgumentError(
                    f"model '{model}' has no input '{name}'; it has "
                    + ", ".join(f"{s.name} ({s.datatype} {list(s.shape)})" for s in specs.values())
                )
            array = parse_input(value, specs[name].datatype)
            arrays[name] = fit_shape(array, list(specs[name].shape))
        # A file's own dtype is sent as it is, so that the server says what does not fit.
        datatypes = {
            name: specs[name].datatype
            for name, array in arrays.items()
            if specs[name].datatype in ("BF16", "BYTES") or array.dtype.kind == "V"
        }
        answer = client.infer(
            model, arrays, version=model_version, outputs=outputs or (), datatypes=datatypes
        )
    kinds = {tensor.name: tensor.datatype for tensor in metadata.outputs}
    if as_json:
        document = {
            name: {
                "datatype": kinds.get(name) or datatype_of(array.dtype),
                "shape": list(array.shape),
                "data": readable(array),
            }
            for name, array in answer.items()
        }
        print(json.dumps(document, indent=2, ensure_ascii=False))
        return
    import numpy as np

    for name, array in answer.items():
        print(f"{name}  {kinds.get(name) or datatype_of(array.dtype)} {list(array.shape)}")
        shown = np.asarray(readable(array), dtype=object) if array.dtype == object else array
        text = np.array2string(shown, precision=6, suppress_small=True, threshold=200)
        print("  " + text.replace("\n", "\n  "))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what hardware, backends and versions were found, what is missing, and the fix."""
    from headrace.doctor import examine

    findings = examine()
    if as_json:
        document = {"headrace": _version(), "findings": [f.as_json() for f in findings]}
        print(json.dumps(document, indent=2))
        return
    print(f"headrace {_version()}")
    section = ""
    marks = {"ok": "ok", "info": "", "missing": "missing", "broken": "BROKEN"}
    for finding in findings:
        if finding.section != section:
            section = finding.section
            print(f"\n{section}")
        print(f"  {finding.name:<18} {marks[finding.state]:<8} {finding.text}")
        if finding.fix:
            print(f"  {'':<18} {'':<8} fix: {finding.fix}")


def _apply_triton_tls(given: dict[str, Any]) -> None:
    """Triton's --grpc-use-ssl and --grpc-use-ssl-mutual, as it understands them: without the first
    its certificates are not used, and without the second clients are asked for none."""
    use, mutual = given.pop("grpc_use_ssl"), given.pop("grpc_use_ssl_mutual")
    if mutual and use is None:
        use = True
    if use is False:
        for name in ("tls_cert", "tls_key", "tls_client_ca", "tls_client_auth"):
            given[name] = None
    if not use:
        return
    if not given["tls_cert"] or not given["tls_key"]:
        raise InvalidArgumentError("--grpc-use-ssl needs --grpc-server-cert and --grpc-server-key")
    if given["tls_client_auth"] is None:
        given["tls_client_auth"] = "require" if mutual else "none"


_COMPRESSION_LEVELS = {"none": "none", "low": "gzip", "medium": "gzip", "high": "gzip"}


def _apply_triton_compression(given: dict[str, Any]) -> None:
    """Triton's --grpc-infer-response-compression-level. Its levels choose how hard gzip works; ours
    always takes its fastest level, since it runs on the threads that own connections."""
    level = given.pop("grpc_infer_response_compression_level")
    if level is None or given["response_compression"] is not None:
        return
    if level not in _COMPRESSION_LEVELS:
        raise InvalidArgumentError(
            f"--grpc-infer-response-compression-level is '{level}'; it must be one of "
            f"{', '.join(_COMPRESSION_LEVELS)}"
        )
    given["response_compression"] = _COMPRESSION_LEVELS[level]


_SWITCHES = (
    "strict-readiness",
    "exit-on-error",
    "metrics",
    "grpc-use-ssl",
    "grpc-use-ssl-mutual",
)
_SWITCH = re.compile(rf"--({'|'.join(_SWITCHES)})=(true|false|1|0)", re.IGNORECASE)


def _translate(arguments: Sequence[str]) -> list[str]:
    """Triton's spelling of switches: --strict-readiness=false is --no-strict-readiness."""
    translated: list[str] = []
    for argument in arguments:
        match = _SWITCH.fullmatch(argument)
        if match is None:
            translated.append(argument)
        else:
            on = match[2].lower() in ("true", "1")
            translated.append(f"--{match[1].lower()}" if on else f"--no-{match[1].lower()}")
    return translated


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Errors are one readable text and exit status 1; a traceback only with
    `--log-level debug`."""
    arguments = _translate(sys.argv[1:] if arguments is None else arguments)
    debug = "--log-level=debug" in arguments or any(
        pair == ("--log-level", "debug") for pair in pairwise(arguments)
    )
    try:
        app(args=list(arguments), prog_name="headrace")
    except HeadraceError as error:
        if debug:
            raise
        sys.stderr.write(f"{error.status}: {error.details.strip()}\n")
        sys.exit(1)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        sys.stderr.write(
            f"unexpected error: {type(error).__name__}: {error}\n"
            "Please report it with the output of the same command and --log-level debug.\n"
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
