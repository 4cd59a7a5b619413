"""`headrace rollout`: start, status, promote, rollback."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any, Optional

import typer

from headrace.admin_cli import AsJson, Port, Socket, connected, where
from headrace.errors import InvalidArgumentError

__all__ = ["app"]

app = typer.Typer(
    help="Give a new version a share of the requests, watched; promote it or take it back.",
    no_args_is_help=True,
)

Model = Annotated[str, typer.Argument(help="Name of the model.")]


app.callback()(where)


@app.command()
def start(
    context: typer.Context,
    model: Model,
    version: Annotated[int, typer.Argument(help="The candidate, a version in the repository.")],
    share: Annotated[
        str, typer.Option(help="Of the requests that name no version: 5% or 0.05.")
    ] = "5%",
    by: Annotated[
        str,
        typer.Option(help="Request parameter that decides who sees it; default: the request id."),
    ] = "",
    alpha: Annotated[
        float, typer.Option(help="Probability that a good candidate is rolled back.")
    ] = 0.01,
    latency_ratio: Annotated[
        float, typer.Option(help="Slower than this times the stable p99 is slow.")
    ] = 1.2,
    min_requests: Annotated[
        int, typer.Option(help="The candidate's, before it is promoted; 0 = the default.")
    ] = 0,
    min_seconds: Annotated[float, typer.Option(help="Before it is promoted.")] = 0.0,
    manual: Annotated[
        bool, typer.Option("--manual", help="Do not promote it; wait for `rollout promote`.")
    ] = False,
    fallback: Annotated[
        bool, typer.Option(help="Answer what the candidate fails with the stable version.")
    ] = True,
    shadow: Annotated[
        bool,
        typer.Option(
            "--shadow",
            help="Copy that share to it instead: clients get nothing of it, answers are compared.",
        ),
    ] = False,
    tolerance: Annotated[
        float, typer.Option(help="Of a shadow's FP32 and FP64 outputs; 0 = the default, 0.001.")
    ] = 0.0,
    kpi: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="A KPI of `headrace feedback` to compare, too: conversion, or conversion=0.5% "
            "for a rise of bad outcomes that does not roll back. Repeatable."
        ),
    ] = None,
    grpc_port: Port = 8001,
    admin_socket: Socket = None,
    as_json: AsJson = False,
) -> None:
    """Load a version beside the one that serves and give it a share of the requests."""
    with connected(context, grpc_port, admin_socket) as client:
        state = client.start(
            model,
            version,
            share=_share(share, shadow),
            key=by,
            alpha=alpha,
            latency_ratio=latency_ratio,
            min_requests=min_requests,
            min_seconds=min_seconds,
            manual_promotion=manual,
            fallback=fallback,
            shadow=shadow,
            tolerance=tolerance,
            kpis=dict(_kpi(text) for text in kpi or ()),
        )
    _print([state], as_json)


@app.command()
def status(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Name of the model; default: all.")] = "",
    grpc_port: Port = 8001,
    admin_socket: Socket = None,
    as_json: AsJson = False,
) -> None:
    """Show rollouts: who has which share, what each version did, and why it ended."""
    with connected(context, grpc_port, admin_socket) as client:
        _print(client.status(model), as_json)


@app.command()
def promote(
    context: typer.Context,
    model: Model,
    grpc_port: Port = 8001,
    admin_socket: Socket = None,
    as_json: AsJson = False,
) -> None:
    """Give the candidate all requests; the version before stays warm."""
    with connected(context, grpc_port, admin_socket) as client:
        _print([client.promote(model)], as_json)


@app.command()
def rollback(
    context: typer.Context,
    model: Model,
    grpc_port: Port = 8001,
    admin_socket: Socket = None,
    as_json: AsJson = False,
) -> None:
    """Give the version before all requests, also after a promotion."""
    with connected(context, grpc_port, admin_socket) as client:
        _print([client.rollback(model)], as_json)


def _kpi(text: str) -> tuple[str, float]:
    """ "conversion" or "conversion=0.5%"."""
    name, _, margin = text.partition("=")
    try:
        return name, float(margin[:-1]) / 100 if margin.endswith("%") else float(margin or 0)
    except ValueError:
        raise InvalidArgumentError(
            f"--kpi is '{text}'; it must be a name, or a name and a share, as conversion=0.5%"
        ) from None


def _share(text: str, shadow: bool) -> float:
    """ "5%" or "0.05"."""
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        share = -1.0
    if not (0 < share < 1 or (shadow and share == 1)):
        raise InvalidArgumentError(
            f"--share is '{text}'; it must be a share above 0 and below 1, as 5% or 0.05"
        )
    return share


_FIGURES = (
    "model",
    "stable",
    "candidate",
    "share",
    "state",
    "reason",
    "seconds",
    "stable_requests",
    "stable_failures",
    "candidate_requests",
    "candidate_failures",
    "stable_p99_us",
    "candidate_p99_us",
    "shadow",
    "compared",
    "different",
    "dropped",
    "largest_difference",
)
_KPI_FIGURES = ("name", "stable_good", "stable_bad", "candidate_good", "candidate_bad")


def _print(states: list[Any], as_json: bool) -> None:
    if as_json:
        rows: list[dict[str, Any]] = []
        for state in states:
            kpis = [{name: getattr(kpi, name) for name in _KPI_FIGURES} for kpi in state.kpis]
            rows.append({**{name: getattr(state, name) for name in _FIGURES}, "kpis": kpis})
        print(json.dumps(rows, indent=2))
        return
    if not states:
        print("no rollouts")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("model", "arm", "version"):
        table.add_column(heading)
    for heading in ("share", "requests", "failed", "p99"):
        table.add_column(heading, justify="right")
    table.add_column("state")
    for state in states:
        share = state.share if state.state == "running" else float(state.state == "promoted")
        shares = (f"{1 - share:.3g}", f"{share:.3g}")
        reason = state.reason
        if state.shadow:
            reason = (
                f"{state.compared:,} answers compared, {state.different:,} differ (at most by "
                f"{state.largest_difference:.3g}), {state.dropped:,} not copied; {reason}"
            )
            if state.state == "running":
                shares = ("1", f"{share:.3g} copied")
        for kpi in state.kpis:
            reason = (
                f"{kpi.name}: {_bad(kpi.candidate_bad, kpi.candidate_good)}, "
                f"stable {_bad(kpi.stable_bad, kpi.stable_good)}; {reason}"
            )
        table.add_row(
            state.model,
            "stable",
            str(state.stable),
            shares[0],
            f"{state.stable_requests:,}",
            f"{state.stable_failures:,}",
            _micros(state.stable_p99_us),
            f"{state.state.replace('_', ' ')} after {state.seconds:.1f} s",
        )
        table.add_row(
            "",
            "canary",
            str(state.candidate),
            shares[1],
            f"{state.candidate_requests:,}",
            f"{state.candidate_failures:,}",
            _micros(state.candidate_p99_us),
            reason,
        )
    # Piped: whole lines, nothing cut to a window that is not there.
    Console(width=None if sys.stdout.isatty() else 1000).print(table)


def _bad(bad: int, good: int) -> str:
    return f"{100 * bad / (bad + good):.3g} % of {bad + good:,} bad" if bad + good else "none yet"


def _micros(value: float) -> str:
    if value == 0:
        return ""
    return f"{value / 1000:.3g} ms" if value >= 1000 else f"{value:.3g} us"
