"""Prometheus rules for a server's metrics: what is recorded and what wakes somebody.

    rules_yaml(RuleOptions(job="headrace", objective=0.999))

Pure. An expression over a metric that a server does not have (no TLS, no `slo`) answers nothing
and raises no alarm. Burn rates are those of Google's Site Reliability Workbook, chapter 5: a
share of the error budget that is gone within a window, seen in a long window and, so that the alarm
ends soon, in one of a twelfth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headrace.errors import InvalidArgumentError

__all__ = ["Alert", "Recording", "RuleOptions", "Signal", "alerts", "recordings", "rules_yaml"]

# What of a request's failures is the server's: a client that left is not.
_BAD = 'reason!="CANCELED"'
_WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")


@dataclass(frozen=True)
class RuleOptions:
    """Raises InvalidArgumentError."""

    job: str = "headrace"  # Prometheus's name for the scrape
    objective: float = 0.999  # share of the requests that must succeed
    queue_wait_s: float = 0.1  # p99 of the wait in the queue that is too long

    def __post_init__(self) -> None:
        if not self.job or any(c in self.job for c in '"\\\n'):
            raise InvalidArgumentError("--job must be a name without quotes and backslashes")
        if not 0.5 <= self.objective < 1:
            raise InvalidArgumentError("--objective must be from 50% to below 100%")
        if not self.queue_wait_s > 0:
            raise InvalidArgumentError("--queue-wait must be more than 0")


@dataclass(frozen=True)
class Recording:
    name: str
    expression: str


@dataclass(frozen=True)
class Signal:
    """`expression` compared with a limit; the limit may be another expression."""

    expression: str
    comparison: str  # "> 5"

    def __str__(self) -> str:
        return f"{self.expression} {self.comparison}"


@dataclass(frozen=True)
class Alert:
    """Fires while all `signals` hold, `wait` long. Texts are Prometheus templates."""

    name: str
    severity: str  # page: now; ticket: this week
    signals: tuple[Signal, ...]
    summary: str
    what_to_do: str
    wait: str = "0m"
    window: str = ""  # a label: alerts of one name and severity must differ in one
    needs: str = ""  # what a model's policy.yaml must ask for before the metric is there

    @property
    def expression(self) -> str:
        return "\nand\n".join(str(signal) for signal in self.signals)


def recordings(options: RuleOptions) -> list[Recording]:
    job = f'job="{options.job}"'
    made = [
        Recording(
            "headrace:requests:rate5m",
            f"sum by (job, model, version) (rate(nv_inference_request_success{{{job}}}[5m]))\n"
            "+ sum by (job, model, version) "
            f"(rate(nv_inference_request_failure{{{job}, {_BAD}}}[5m]))",
        ),
        Recording(
            "headrace:version_failure_ratio:rate5m",
            "sum by (job, model, version) "
            f"(rate(nv_inference_request_failure{{{job}, {_BAD}}}[5m]))\n"
            "/ (headrace:requests:rate5m > 0)",
        ),
    ]
    for window in _WINDOWS:
        bad = f"sum by (job, model) (rate(nv_inference_request_failure{{{job}, {_BAD}}}[{window}]))"
        good = f"sum by (job, model) (rate(nv_inference_request_success{{{job}}}[{window}]))"
        made.append(
            Recording(f"headrace:failure_ratio:rate{window}", f"{bad}\n/ ({bad} + {good} > 0)")
        )
        promised = f"sum by (job, model) (rate(headrace_slo_requests_total{{{job}}}[{window}]))"
        kept = f"sum by (job, model) (rate(headrace_slo_good_total{{{job}}}[{window}]))"
        made.append(
            Recording(f"headrace:slo_missed_ratio:rate{window}", f"1 - {kept}\n/ ({promised} > 0)")
        )
    for name, metric in (
        ("request", "headrace_request_duration_seconds"),
        ("queue", "headrace_queue_duration_seconds"),
    ):
        for percent in (50, 95, 99):
            made.append(
                Recording(
                    f"headrace:{name}_duration_seconds:p{percent}_5m",
                    f"histogram_quantile(0.{percent}, sum by (job, model, version, le) "
                    f"(rate({metric}_bucket{{{job}}}[5m])))",
                )
            )
    return made


# (severity, times the budget, long window, short window, for)
_BURNS = (
    ("page", 14.4, "1h", "5m", "2m"),
    ("page", 6.0, "6h", "30m", "15m"),
    ("ticket", 3.0, "1d", "2h", "1h"),
    ("ticket", 1.0, "3d", "6h", "3h"),
)


def alerts(options: RuleOptions) -> list[Alert]:
    return [*_burns(options), *_versions(options), *_servers(options)]


def _burns(options: RuleOptions) -> list[Alert]:
    budget = 1 - options.objective
    percent = f"{options.objective * 100:.6g} %"
    of_model = f'(1 - min by (job, model) (headrace_slo_objective{{job="{options.job}"}}))'
    made = []
    for severity, times, long, short, wait in _BURNS:
        limit = f"> {times * budget:.6g}"
        made.append(
            Alert(
                "HeadraceErrorBudgetBurn",
                severity,
                (
                    Signal(f"headrace:failure_ratio:rate{long}", limit),
                    Signal(f"headrace:failure_ratio:rate{short}", limit),
                ),
                f"{{{{ $labels.model }}}} fails {{{{ $value | humanizePercentage }}}} of its "
                f"requests: {times:g} times what {percent} allows, for {long}",
                "The dashboard says which version and which reason. A bad version: "
                "`headrace rollout rollback MODEL`.",
                wait,
                long,
            )
        )
        own = f"> {times:g} * {of_model}"
        made.append(
            Alert(
                "HeadraceSloBurn",
                severity,
                (
                    Signal(f"headrace:slo_missed_ratio:rate{long}", own),
                    Signal(f"headrace:slo_missed_ratio:rate{short}", own),
                ),
                f"{{{{ $labels.model }}}} misses its SLO in {{{{ $value | humanizePercentage }}}} "
                f"of its requests: {times:g} times what its objective allows, for {long}",
                "Late, refused or failed. Queue wait high: more replicas or instances; "
                "execution slow: a bad version, or a machine that does something else.",
                wait,
                long,
            )
        )
    return made


def _versions(options: RuleOptions) -> list[Alert]:
    job = f'job="{options.job}"'
    return [
        Alert(
            "HeadraceVersionFails",
            "ticket",
            (Signal(f"headrace:version_failure_ratio:rate5m{{{job}}}", "> 0.05"),),
            "{{ $labels.model }} {{ $labels.version }} fails "
            "{{ $value | humanizePercentage }} of its requests",
            "Fallbacks may hide it from clients. Look at the failures' reasons on the dashboard.",
            "5m",
        ),
        Alert(
            "HeadraceBreakerOpen",
            "ticket",
            (Signal(f'headrace_breaker_state{{{job}, state="open"}}', "== 1"),),
            "The circuit breaker of {{ $labels.model }} {{ $labels.version }} is open",
            "The version fails; its fallbacks answer, or nobody does. A bad version: "
            "`headrace rollout rollback MODEL`.",
            "1m",
            needs="breaker",
        ),
        Alert(
            "HeadraceNobodyAnswers",
            "page",
            (
                Signal(
                    "sum by (job, model, version) "
                    f'(rate(headrace_fallbacks_total{{{job}, target="none"}}[5m]))',
                    "> 0.01 * sum by (job, model, version) (headrace:requests:rate5m)",
                ),
            ),
            "{{ $labels.model }} {{ $labels.version }}: no fallback answers "
            "{{ $value | humanize }} requests a second",
            "The version and every step of its fallback fail: the dashboard says why each was "
            "asked.",
            "5m",
            needs="fallback",
        ),
        Alert(
            "HeadraceTicketsWait",
            "ticket",
            (Signal(f"headrace_human_oldest_seconds{{{job}}}", "> 3600"),),
            "A ticket of {{ $labels.queue }} waits for {{ $value | humanizeDuration }}",
            "People who decide are missing, or their leases run out.",
            "5m",
            needs="human",
        ),
        Alert(
            "HeadraceRolledBack",
            "ticket",
            (
                Signal(
                    f'increase(headrace_rollouts_ended_total{{{job}, outcome="rolled_back"}}[30m])',
                    "> 0",
                ),
            ),
            "A version of {{ $labels.model }} was rolled back",
            "`headrace rollout status` says why. It is not loaded again until a rollout names it.",
        ),
        Alert(
            "HeadraceModelNotLoaded",
            "ticket",
            (Signal(f'headrace_model_state{{{job}, state="UNAVAILABLE"}}', "== 1"),),
            "{{ $labels.model }} {{ $labels.version }} could not be loaded",
            "The dashboard and `headrace models` say why; versions loaded before keep serving.",
            "5m",
        ),
        Alert(
            "HeadraceQueueWait",
            "ticket",
            (
                Signal(
                    f"headrace:queue_duration_seconds:p99_5m{{{job}}}",
                    f"> {options.queue_wait_s:g}",
                ),
            ),
            "{{ $labels.model }} {{ $labels.version }}: requests wait "
            "{{ $value | humanizeDuration }} for an instance (p99)",
            "More instances or replicas, or larger batches.",
            "10m",
        ),
        Alert(
            "HeadraceRefuses",
            "ticket",
            (
                Signal(
                    "sum by (job, model) "
                    f'(rate(nv_inference_request_failure{{{job}, reason="REJECTED"}}[5m]))',
                    "> 0.01 * sum by (job, model) (headrace:requests:rate5m)",
                ),
            ),
            "{{ $labels.model }} refuses {{ $value | humanize }} requests a second",
            "It is asked for more than it can do in time. Add replicas, or raise its queue's "
            "limits.",
            "5m",
        ),
    ]


def _servers(options: RuleOptions) -> list[Alert]:
    job = f'job="{options.job}"'
    not_after = f"headrace_tls_certificate_not_after_seconds{{{job}}} - time()"
    return [
        Alert(
            "HeadraceDown",
            "page",
            (Signal(f"up{{{job}}}", "== 0"),),
            "{{ $labels.instance }} does not answer Prometheus",
            "Is the process running? Is --metrics-port reachable?",
            "2m",
        ),
        Alert(
            "HeadraceNotReady",
            "page",
            (Signal(f"headrace_ready{{{job}}}", "== 0"),),
            "{{ $labels.instance }} runs but is not ready",
            "A model that it should serve is not loaded: `headrace models` says which and why.",
            "5m",
        ),
        Alert(
            "HeadraceRestarts",
            "page",
            (Signal(f"changes(process_start_time_seconds{{{job}}}[15m])", "> 2"),),
            "{{ $labels.instance }} was started {{ $value }} times in 15 minutes",
            "Its log's last lines before each start say why.",
        ),
        Alert(
            "HeadraceCertificateEndsSoon",
            "ticket",
            (Signal(not_after, "< 7 * 86400"),),
            "The certificate of {{ $labels.instance }} ends in {{ $value | humanizeDuration }}",
            "Put the new files in place: the server reads them by itself.",
        ),
        Alert(
            "HeadraceCertificateEndsTomorrow",
            "page",
            (Signal(not_after, "< 86400"),),
            "The certificate of {{ $labels.instance }} ends in {{ $value | humanizeDuration }}",
            "Put the new files in place: the server reads them by itself.",
        ),
        Alert(
            "HeadraceConnectionsRefused",
            "ticket",
            (Signal(f"increase(headrace_connections_refused_total{{{job}}}[5m])", "> 0"),),
            "{{ $labels.instance }} refused {{ $value | humanize }} connections in 5 minutes",
            "Too many are open: --limits max-connections, or a client that opens one a call.",
        ),
        Alert(
            "HeadraceLimitsReached",
            "ticket",
            (
                Signal(
                    "sum by (job, instance, reason) (rate(headrace_limits_exceeded_total"
                    f'{{{job}, reason!~"max_age.*|idle|received_bytes"}}[5m]))',
                    "> 1",
                ),
            ),
            "{{ $labels.instance }}: {{ $labels.reason }} ends or refuses "
            "{{ $value | humanize }} connections or calls a second",
            "An abusive or broken client, or a limit that is too low (docs/CONFIGURATION.md, "
            "Limits).",
            "5m",
        ),
        Alert(
            "HeadraceOpenFiles",
            "ticket",
            (Signal(f"process_open_fds{{{job}}} / process_max_fds{{{job}}}", "> 0.8"),),
            "{{ $labels.instance }} has {{ $value | humanizePercentage }} of the files open that "
            "it may",
            "Raise `ulimit -n`, or lower --limits max-connections.",
            "5m",
        ),
    ]


def rules_yaml(options: RuleOptions) -> str:
    """A file for Prometheus's `rule_files`."""
    import yaml  # type: ignore[import-untyped, unused-ignore]

    document = {
        "groups": [
            {"name": "headrace-recordings", "rules": [_recorded(r) for r in recordings(options)]},
            {"name": "headrace-alerts", "rules": [_alerted(a) for a in alerts(options)]},
        ]
    }
    text: str = yaml.dump(document, Dumper=_dumper(), sort_keys=False, width=100, indent=2)
    return "# Written by `headrace rules`. promtool check rules FILE\n" + text


def _recorded(recording: Recording) -> Mapping[str, Any]:
    return {"record": recording.name, "expr": recording.expression}


def _alerted(alert: Alert) -> Mapping[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expression,
        **({"for": alert.wait} if alert.wait != "0m" else {}),
        "labels": {"severity": alert.severity} | ({"window": alert.window} if alert.window else {}),
        "annotations": {"summary": alert.summary, "description": alert.what_to_do},
    }


def _dumper() -> Any:
    """Expressions of several lines as blocks."""
    import yaml

    class Dumper(yaml.SafeDumper):  # type: ignore[misc, unused-ignore]
        pass

    def text(dumper: Any, value: str) -> Any:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return Dumper
