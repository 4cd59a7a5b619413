"""`headrace feedback`: what others found out about a model's answers."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from headrace.admin_cli import AsJson, Port, Socket, connected, where

__all__ = ["app"]

app = typer.Typer(
    help="Say how a model's answers turned out, or that its inputs have drifted.",
    no_args_is_help=True,
)
app.callback()(where)

Model = Annotated[str, typer.Argument(help="Name of the model.")]


@app.command()
def add(
    context: typer.Context,
    model: Model,
    version: Annotated[int, typer.Argument(help="Which answered, as its responses say.")],
    kpi: Annotated[str, typer.Argument(help="What is counted, as conversion.")],
    good: Annotated[int, typer.Option(help="Good outcomes since the last time.")] = 0,
    bad: Annotated[int, typer.Option(help="Bad outcomes since the last time.")] = 0,
    grpc_port: Port = 8001,
    admin_socket: Socket = None,
    as_json: AsJson = False,
) -> None:
    """Add outcomes that were counted; `rollout start --kpi` compares them."""
    with connected(context, grpc_port, admin_socket) as client:
        totals = client.feedback(model, version, {kpi: (good, bad)})
    if as_json:
        print(json.dumps({name: {"good": g, "bad": b} for name, (g, b) in totals.items()}))
        return
    for name, (g, b) in totals.items():
        print(f"{name}: {g:,} good, {b:,} bad")


@app.command()
def drift(
    context: typer.Context,
    model: Model,
    clear: Annotated[bool, typer.Option("--clear", help="The alarm is over.")] = False,
    version: Annotated[int, typer.Option(help="Of this one; 0 = all that are loaded.")] = 0,
    grpc_port: Port = 8001,
    admin_socket: Socket = None,
    as_json: AsJson = False,
) -> None:
    """Set the drift alarm, which a model's fallbacks act on, or clear it."""
    with connected(context, grpc_port, admin_socket) as client:
        versions = client.drift_alarm(model, not clear, version=version)
    if as_json:
        print(json.dumps({"versions": versions, "alarm": not clear}))
        return
    which = ", ".join(str(number) for number in versions)
    print(f"{model} {which}: drift alarm {'cleared' if clear else 'set'}")
