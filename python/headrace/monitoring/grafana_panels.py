"""What the Grafana dashboard shows: rows of panels and their queries. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.monitoring.rules import RuleOptions

__all__ = ["Panel", "Query", "panels"]

# A range for rates that fits the panel's resolution and the scrape interval.
_RATE = "$__rate_interval"


@dataclass(frozen=True)
class Query:
    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    title: str
    unit: str  # Grafana's name of it
    queries: tuple[Query, ...]
    description: str = ""
    kind: str = "timeseries"  # or stat
    needs: str = ""  # what a model's policy.yaml must ask for before there is something to see


def panels(options: RuleOptions) -> list[tuple[str, list[Panel]]]:
    """Rows: (title, panels)."""
    server = f'job="{options.job}", instance=~"$instance"'
    model = f'{server}, model=~"$model"'
    by = "by (model, version)"

    def quantiles(metric: str) -> tuple[Query, ...]:
        return tuple(
            Query(
                f"histogram_quantile({q}, sum by (model, version, le) "
                f"(rate({metric}_bucket{{{model}}}[{_RATE}])))",
                f"{{{{model}}}} {{{{version}}}} p{int(q * 100)}",
            )
            for q in (0.5, 0.95, 0.99)
        )

    return [
        (
            "Now",
            [
                Panel(
                    "Ready servers",
                    "short",
                    (Query(f"sum(headrace_ready{{{server}}})", "ready"),),
                    kind="stat",
                ),
                Panel(
                    "Requests a second",
                    "reqps",
                    (
                        Query(
                            f"sum(rate(nv_inference_request_success{{{model}}}[{_RATE}]))",
                            "answered",
                        ),
                    ),
                    kind="stat",
                ),
                Panel(
                    "Failed",
                    "percentunit",
                    (
                        Query(
                            f"sum(rate(nv_inference_request_failure{{{model}, "
                            f'reason!="CANCELED"}}[{_RATE}])) / (sum(rate('
                            f"nv_inference_request_success{{{model}}}[{_RATE}])) + sum(rate("
                            f'nv_inference_request_failure{{{model}, reason!="CANCELED"}}'
                            f"[{_RATE}])))",
                            "failed",
                        ),
                    ),
                    kind="stat",
                ),
                Panel(
                    "Error budget burn, last hour",
                    "short",
                    (
                        Query(
                            f"max(headrace:failure_ratio:rate1h{{"
                            f'job="{options.job}", model=~"$model"}}) '
                            f"/ {1 - options.objective:.6g}",
                            "times what the objective allows",
                        ),
                    ),
                    "Needs the recording rules. 1: the budget lasts for exactly its period.",
                    kind="stat",
                ),
            ],
        ),
        (
            "Requests",
            [
                Panel(
                    "Requests a second",
                    "reqps",
                    (
                        Query(
                            f"sum {by} (rate(nv_inference_request_success{{{model}}}[{_RATE}]))",
                            "{{model}} {{version}}",
                        ),
                    ),
                ),
                Panel(
                    "Failures a second, by reason",
                    "reqps",
                    (
                        Query(
                            "sum by (model, version, reason) "
                            f"(rate(nv_inference_request_failure{{{model}}}[{_RATE}]))",
                            "{{model}} {{version}} {{reason}}",
                        ),
                    ),
                ),
                Panel("Latency", "s", quantiles("headrace_request_duration_seconds")),
                Panel("Queue wait", "s", quantiles("headrace_queue_duration_seconds")),
                Panel(
                    "Execution of a batch",
                    "s",
                    quantiles("headrace_compute_infer_duration_seconds"),
                ),
                Panel(
                    "Rows a batch",
                    "short",
                    (
                        Query(
                            f"sum {by} (rate(headrace_batch_size_sum{{{model}}}[{_RATE}])) / "
                            f"(sum {by} (rate(headrace_batch_size_count{{{model}}}[{_RATE}])) > 0)",
                            "{{model}} {{version}}",
                        ),
                    ),
                ),
                Panel(
                    "Waiting in queues",
                    "short",
                    (
                        Query(
                            f"sum {by} (nv_inference_pending_request_count{{{model}}})",
                            "{{model}} {{version}}",
                        ),
                    ),
                ),
                Panel(
                    "Calls finished a second, by status",
                    "reqps",
                    (
                        Query(
                            f"sum by (code) (rate(headrace_calls_total{{{server}}}[{_RATE}]))",
                            "{{code}}",
                        ),
                    ),
                ),
            ],
        ),
        (
            "Latency budgets and overload",
            [
                Panel(
                    "SLO: missed, times what the objective allows",
                    "short",
                    tuple(
                        Query(
                            f"max by (model) (headrace:slo_missed_ratio:rate{window}{{"
                            f'job="{options.job}", model=~"$model"}}) / on (model) (1 - min by '
                            f"(model) (headrace_slo_objective{{{model}}}))",
                            f"{{{{model}}}} {window}",
                        )
                        for window in ("5m", "1h")
                    ),
                    "Of models with `slo` in their policy.yaml. Needs the recording rules.",
                ),
                Panel(
                    "Requests within the SLO's latency",
                    "percentunit",
                    (
                        Query(
                            f"sum {by} (rate(headrace_slo_good_total{{{model}}}[{_RATE}])) / "
                            f"(sum {by} (rate(headrace_slo_requests_total{{{model}}}[{_RATE}])) "
                            "> 0)",
                            "{{model}} {{version}}",
                        ),
                    ),
                ),
                Panel(
                    "Refused a second because they would be late",
                    "reqps",
                    (
                        Query(
                            "sum by (model, version, reason) "
                            f"(rate(headrace_admission_refused_total{{{model}}}[{_RATE}]))",
                            "{{model}} {{version}} {{reason}}",
                        ),
                    ),
                ),
                Panel(
                    "Estimated wait",
                    "s",
                    (
                        Query(
                            f"max {by} (headrace_estimated_wait_seconds{{{model}}})",
                            "{{model}} {{version}}",
                        ),
                    ),
                ),
                Panel(
                    "Refused a second because of a quota",
                    "reqps",
                    (
                        Query(
                            f"sum(rate(headrace_quota_refused_total{{{server}}}[{_RATE}]))",
                            "refused",
                        ),
                    ),
                ),
                Panel(
                    "Cost of the largest batch, p95",
                    "s",
                    (
                        Query(
                            f"max {by} (headrace_batch_cost_p95_seconds{{{model}}})",
                            "{{model}} {{version}}",
                        ),
                    ),
                ),
            ],
        ),
        (
            "Fallbacks and circuit breakers",
            [
                Panel(
                    "Answered by a fallback a second, by why and by whom",
                    "reqps",
                    (
                        Query(
                            "sum by (model, trigger, target) "
                            f"(rate(headrace_fallbacks_total{{{model}}}[{_RATE}]))",
                            "{{model}} {{trigger}}: {{target}}",
                        ),
                    ),
                    "doubtful: nobody was surer; none: nobody answered.",
                    needs="fallback",
                ),
                Panel(
                    "Breakers that are not closed",
                    "short",
                    (
                        Query(
                            "max by (model, version, state) (headrace_breaker_state"
                            f'{{{model}, state!="closed"}})',
                            "{{model}} {{version}} {{state}}",
                        ),
                    ),
                    needs="breaker",
                ),
                Panel(
                    "Refused a second by an open breaker",
                    "reqps",
                    (
                        Query(
                            f"sum {by} (rate(headrace_breaker_refused_total{{{model}}}[{_RATE}]))",
                            "{{model}} {{version}}",
                        ),
                    ),
                    needs="breaker",
                ),
                Panel(
                    "Tickets for people",
                    "short",
                    (
                        Query(
                            f"sum by (queue, state) (headrace_human_tickets{{{server}}})",
                            "{{queue}} {{state}}",
                        ),
                    ),
                    needs="human",
                ),
            ],
        ),
        (
            "Response cache",
            [
                Panel(
                    "Found in the cache",
                    "percentunit",
                    (
                        Query(
                            "sum by (model) "
                            f"(rate(nv_cache_num_hits_per_model{{{model}}}[{_RATE}])) / "
                            f"(sum by (model) (rate(nv_cache_num_hits_per_model{{{model}}}"
                            f"[{_RATE}]) + rate(nv_cache_num_misses_per_model{{{model}}}"
                            f"[{_RATE}])) > 0)",
                            "{{model}}",
                        ),
                    ),
                    "Of models with `cache` in their policy.yaml.",
                ),
                Panel(
                    "Full",
                    "percentunit",
                    (Query(f"max by (instance) (nv_cache_util{{{server}}})", "{{instance}}"),),
                ),
            ],
        ),
        (
            "Versions and rollouts",
            [
                Panel(
                    "Share of the traffic",
                    "percentunit",
                    (
                        Query(
                            f"avg by (model, version, arm) (headrace_traffic_share{{{model}}})",
                            "{{model}} {{version}} {{arm}}",
                        ),
                    ),
                ),
                Panel(
                    "Rollouts that run, and how they ended",
                    "short",
                    (
                        Query(
                            f"sum by (model, candidate) (headrace_rollout_running{{{model}}})",
                            "{{model}} {{candidate}} runs",
                        ),
                        Query(
                            "sum by (model, outcome) "
                            f"(increase(headrace_rollouts_ended_total{{{model}}}[1h]))",
                            "{{model}} {{outcome}} in an hour",
                        ),
                    ),
                ),
                Panel(
                    "Versions by state",
                    "short",
                    (Query(f"sum by (state) (headrace_model_state{{{model}}})", "{{state}}"),),
                ),
            ],
        ),
        (
            "Connections",
            [
                Panel(
                    "Connections open",
                    "short",
                    (Query(f"headrace_connections_open{{{server}}}", "{{instance}}"),),
                ),
                Panel(
                    "Bytes a second",
                    "Bps",
                    (
                        Query(
                            f"sum(rate(headrace_received_bytes_total{{{server}}}[{_RATE}]))",
                            "received",
                        ),
                        Query(f"sum(rate(headrace_sent_bytes_total{{{server}}}[{_RATE}]))", "sent"),
                    ),
                ),
                Panel(
                    "Limits reached, a second",
                    "short",
                    (
                        Query(
                            "sum by (reason) "
                            f"(rate(headrace_limits_exceeded_total{{{server}}}[{_RATE}]))",
                            "{{reason}}",
                        ),
                    ),
                ),
                Panel(
                    "TLS handshakes a second, by result",
                    "short",
                    (
                        Query(
                            "sum by (result) "
                            f"(rate(headrace_tls_handshakes_total{{{server}}}[{_RATE}]))",
                            "{{result}}",
                        ),
                    ),
                ),
                Panel(
                    "The certificate ends in",
                    "s",
                    (
                        Query(
                            "min by (instance) "
                            f"(headrace_tls_certificate_not_after_seconds{{{server}}}) - time()",
                            "{{instance}}",
                        ),
                    ),
                ),
            ],
        ),
        (
            "Process",
            [
                Panel(
                    "CPU, cores in use",
                    "short",
                    (
                        Query(
                            f"rate(process_cpu_seconds_total{{{server}}}[{_RATE}])", "{{instance}}"
                        ),
                    ),
                ),
                Panel(
                    "Memory",
                    "bytes",
                    (Query(f"process_resident_memory_bytes{{{server}}}", "{{instance}}"),),
                ),
                Panel(
                    "Open files",
                    "short",
                    (Query(f"process_open_fds{{{server}}}", "{{instance}}"),),
                ),
                Panel(
                    "Version",
                    "short",
                    (
                        Query(
                            f"count by (version) (headrace_build_info{{{server}}})", "{{version}}"
                        ),
                    ),
                ),
            ],
        ),
    ]
