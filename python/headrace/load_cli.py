"""`headrace load`: models of the repository, all at one moment."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.admin_cli import Port, Socket, connected

__all__ = ["load"]


def load(
    context: typer.Context,
    models: Annotated[list[str], typer.Argument(help="Names of models in the repository.")],
    grpc_port: Port = 8001,
    admin_socket: Socket = None,
) -> None:
    """Load models, or what has changed of them: all change at one moment, or none does."""
    with connected(context, grpc_port, admin_socket) as client:
        client.load_together(models)
    print(f"{', '.join(sorted(set(models)))}: loaded")
