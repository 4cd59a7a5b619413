"""`headrace rules`: Prometheus rules and a Grafana dashboard, as text."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.errors import InvalidArgumentError

__all__ = ["rules"]


def rules(
    grafana: Annotated[
        bool, typer.Option("--grafana", help="Print a Grafana dashboard (JSON) instead.")
    ] = False,
    job: Annotated[str, typer.Option(help="The scrape's job_name in Prometheus.")] = "headrace",
    objective: Annotated[
        str, typer.Option(help="Share of the requests that must succeed: 99.9% or 0.999.")
    ] = "99.9%",
    queue_wait: Annotated[
        str, typer.Option(help="p99 of the wait in the queue that is too long.")
    ] = "100ms",
) -> None:
    """Print Prometheus alert and recording rules, or a Grafana dashboard."""
    from headrace.monitoring.grafana import grafana_json
    from headrace.monitoring.rules import RuleOptions, rules_yaml

    options = RuleOptions(job=job, objective=_share(objective), queue_wait_s=_seconds(queue_wait))
    print(grafana_json(options) if grafana else rules_yaml(options), end="\n" if grafana else "")


def _share(text: str) -> float:
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise InvalidArgumentError(f"--objective is '{text}'; say 99.9% or 0.999") from None


def _seconds(text: str) -> float:
    for unit, factor in (("ms", 1e-3), ("s", 1.0)):
        if text.endswith(unit):
            try:
                return float(text.removesuffix(unit)) * factor
            except ValueError:
                break
    raise InvalidArgumentError(f"--queue-wait is '{text}'; say 100ms or 2s")
