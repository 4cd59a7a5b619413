"""`headrace human`: queues, show, lease, resolve."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer

from headrace.admin_cli import AsJson, Port, Socket, connected, where
from headrace.errors import InvalidArgumentError

__all__ = ["app"]

app = typer.Typer(
    help="Decide what models left to people: take a ticket, look at it, answer it.",
    no_args_is_help=True,
)
app.callback()(where)

TicketId = Annotated[str, typer.Argument(help="A ticket's id.")]


@app.command()
def queues(
    context: typer.Context,
    grpc_port: Port = 8001,
    admin_socket: Socket = None,
    as_json: AsJson = False,
) -> None:
    """Show how many tickets wait, and how long the oldest has."""
    with connected(context, grpc_port, admin_socket) as client:
        found = client.human_queues()
    if as_json:
        names = ("queue", "open", "leased", "resolved", "oldest_seconds")
        print(json.dumps([{name: getattr(q, name) for name in names} for q in found]))
        return
    print(f"{'QUEUE':24} {'OPEN':>6} {'LEASED':>6} {'RESOLVED':>8}  OLDEST")
    for q in found:
        print(f"{q.queue:24} {q.open:6} {q.leased:6} {q.resolved:8}  {q.oldest_seconds:.0f} s")


@app.command()
def show(
    context: typer.Context, ticket: TicketId, grpc_port: Port = 8001, admin_socket: Socket = None
) -> None:
    """Print a ticket as JSON, with its answer when it has one."""
    with connected(context, grpc_port, admin_socket) as client:
        print(json.dumps(_json(client.human_ticket(ticket)), indent=2))


@app.command()
def lease(
    context: typer.Context,
    queue: Annotated[str, typer.Argument(help="Name of the queue.")],
    holder: Annotated[str, typer.Option("--as", help="Your name, for others to see.")] = "",
    seconds: Annotated[float, typer.Option(help="How long you need at most.")] = 300.0,
    grpc_port: Port = 8001,
    admin_socket: Socket = None,
) -> None:
    """Take the ticket that has waited longest; prints it as JSON, with the token that resolves it.
    Exit status 1 when nothing waits."""
    with connected(context, grpc_port, admin_socket) as client:
        leased = client.human_lease(queue, holder=holder, seconds=seconds)
    if leased is None:
        print("null")
        raise typer.Exit(1)
    until = time.strftime("%H:%M:%S", time.localtime(leased.until))
    print(json.dumps({**_json(leased.ticket), "token": leased.token, "until": until}, indent=2))


@app.command()
def resolve(
    context: typer.Context,
    ticket: TicketId,
    token: Annotated[str, typer.Option(help="What `headrace human lease` printed.")],
    answer: Annotated[str, typer.Option(help="The outputs, as '{\"label\": [0, 1]}'.")],
    grpc_port: Port = 8001,
    admin_socket: Socket = None,
) -> None:
    """Answer a ticket that you hold."""
    from headrace.human.answers import from_json

    try:
        values = json.loads(answer)
    except ValueError as error:
        raise InvalidArgumentError(f"--answer is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise InvalidArgumentError('--answer is to be {"output": values}')
    with connected(context, grpc_port, admin_socket) as client:
        asked = _tensors(client.human_ticket(ticket).outputs)
        resolved = client.human_resolve(ticket, token, from_json(asked, values))
    print(json.dumps(_json(resolved), indent=2))


def _tensors(messages: Any) -> Any:
    from headrace.human import Tensor

    return tuple(Tensor(t.name, t.datatype, tuple(t.shape), t.data) for t in messages)


def _json(ticket: Any) -> dict[str, Any]:
    from headrace.human.answers import to_json

    result: dict[str, Any] = {
        name: getattr(ticket, name)
        for name in ("id", "queue", "state", "model", "version", "trigger", "request_id", "holder")
    }
    if ticket.HasField("confidence"):
        result["confidence"] = ticket.confidence
    result["outputs"] = {t.name: [t.datatype, list(t.shape)] for t in ticket.outputs}
    for name in ("inputs", "suggestion", "answer"):
        if tensors := getattr(ticket, name):
            result[name] = to_json(_tensors(tensors))
    return result
