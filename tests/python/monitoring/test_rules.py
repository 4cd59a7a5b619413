"""What `headrace rules` prints: good rules, and alarms that come when they should."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace.errors import InvalidArgumentError
from headrace.monitoring.grafana import grafana_json
from headrace.monitoring.grafana_panels import panels
from headrace.monitoring.rules import RuleOptions, alerts, rules_yaml


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool here: apt-get install prometheus")
    return found


def promtool_test(
    promtool: str, folder: Path, tests: list[dict[str, Any]], *, every: str = "1m"
) -> None:
    (folder / "rules.yml").write_text(rules_yaml(RuleOptions()))
    document = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": every,
        # Else in any order: an alarm may see what was recorded ten minutes ago, which is nothing.
        "group_eval_order": ["headrace-recordings", "headrace-alerts"],
        "tests": tests,
    }
    (folder / "test.yml").write_text(yaml.safe_dump(document))
    done = subprocess.run(
        [promtool, "test", "rules", "test.yml"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_are_good(promtool, tmp_path) -> None:
    file = tmp_path / "rules.yml"
    file.write_text(rules_yaml(RuleOptions(job="other", objective=0.99, queue_wait_s=2)))
    done = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "headrace_ready" in file.read_text()
    assert 'job="headrace"' not in file.read_text()


def traffic(bad_per_thousand: float, samples: int) -> list[dict[str, str]]:
    """A thousand requests a sample."""
    labels = 'job="headrace", instance="a:8002", model="m", version="1"'
    good = 1000 - bad_per_thousand
    failures = f'nv_inference_request_failure{{{labels}, reason="BACKEND"}}'
    left = f'nv_inference_request_failure{{{labels}, reason="CANCELED"}}'
    return [
        {"series": f"nv_inference_request_success{{{labels}}}", "values": f"0+{good}x{samples}"},
        {"series": failures, "values": f"0+{bad_per_thousand}x{samples}"},
        {"series": left, "values": f"0+500x{samples}"},  # clients that left are nobody's failure
    ]


def burning(at: str, *windows: str) -> dict[str, Any]:
    """What must fire then: the error budget burns in exactly these windows."""
    return {
        "eval_time": at,
        "expr": 'count by (window) (ALERTS{alertname="HeadraceErrorBudgetBurn", '
        'alertstate="firing"})',
        "exp_samples": [{"labels": f'{{window="{w}"}}', "value": 1} for w in windows],
    }


@pytest.mark.parametrize(
    ("bad_per_thousand", "every", "expected"),
    [
        # Of an objective of 99.9 %: nothing, half, twice, five times, fifty times what it allows.
        # Days are looked at every ten minutes: every minute of them takes promtool long.
        (0, "1m", [("10m", ())]),
        (0.5, "10m", [("80h", ())]),
        (2, "10m", [("80h", ("3d",))]),
        (5, "10m", [("80h", ("1d", "3d"))]),
        (50, "1m", [("1m", ()), ("5m", ("1h",))]),
        (1000, "1m", [("5m", ("1h",))]),
    ],
)
def test_the_budget_burns(promtool, tmp_path, bad_per_thousand, every, expected) -> None:
    promtool_test(
        promtool,
        tmp_path,
        [
            {
                "interval": every,
                "input_series": traffic(bad_per_thousand, 500),
                "promql_expr_test": [burning(at, *windows) for at, windows in expected],
            }
        ],
        every=every,
    )


def test_alarms_of_servers_and_versions(promtool, tmp_path) -> None:
    where = 'job="headrace", instance="a:8002"'
    series = {
        f"up{{{where}}}": "1x10 0x50",
        f"headrace_ready{{{where}}}": "1x10 0x50",
        f'headrace_model_state{{{where}, model="m", version="2", state="UNAVAILABLE"}}': "1x60",
        f'headrace_rollouts_ended_total{{{where}, model="m", outcome="rolled_back"}}': "0x20 1x40",
        f'headrace_rollouts_ended_total{{{where}, model="m", outcome="promoted"}}': "0x10 1x50",
        f"headrace_tls_certificate_not_after_seconds{{{where}}}": "90000x60",  # 25 hours
        f"process_start_time_seconds{{{where}}}": "1x30 2 3 4 5x30",
    }

    def firing(at: str, *names: str) -> dict[str, Any]:
        return {
            "eval_time": at,
            "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
            "exp_samples": [{"labels": f'{{alertname="{n}"}}', "value": 1} for n in sorted(names)],
        }

    promtool_test(
        promtool,
        tmp_path,
        [
            {
                "interval": "1m",
                "input_series": [{"series": s, "values": v} for s, v in series.items()],
                "promql_expr_test": [
                    firing("4m", "HeadraceCertificateEndsSoon"),
                    firing("9m", "HeadraceCertificateEndsSoon", "HeadraceModelNotLoaded"),
                    firing(
                        "22m",
                        "HeadraceCertificateEndsSoon",
                        "HeadraceDown",
                        "HeadraceModelNotLoaded",
                        "HeadraceNotReady",
                        "HeadraceRolledBack",
                    ),
                    firing(
                        "36m",
                        "HeadraceCertificateEndsSoon",
                        "HeadraceDown",
                        "HeadraceModelNotLoaded",
                        "HeadraceNotReady",
                        "HeadraceRestarts",
                        "HeadraceRolledBack",
                    ),
                ],
            }
        ],
    )


def test_every_alarm_says_what_to_do_and_differs_from_the_others() -> None:
    found = alerts(RuleOptions())
    assert all(a.summary and a.what_to_do and a.severity in ("page", "ticket") for a in found)
    identities = [(a.name, a.severity, a.window) for a in found]
    assert len(set(identities)) == len(identities)


@pytest.mark.parametrize(
    "wrong", [{"objective": 1.0}, {"objective": 99.9}, {"job": 'a"b'}, {"queue_wait_s": 0}]
)
def test_options_that_make_no_sense(wrong) -> None:
    with pytest.raises(InvalidArgumentError):
        RuleOptions(**wrong)


def test_the_grafana_dashboard_is_whole() -> None:
    document = json.loads(grafana_json(RuleOptions(job="other")))
    listed = [p for p in document["panels"] if p["type"] != "row"]
    assert len(listed) == sum(len(members) for _, members in panels(RuleOptions()))
    assert len({p["id"] for p in document["panels"]}) == len(document["panels"])
    places = {(p["gridPos"]["x"], p["gridPos"]["y"]) for p in document["panels"]}
    assert len(places) == len(document["panels"]), "no panel lies on another"
    for panel in listed:
        assert panel["targets"]
        assert all('job="other"' in t["expr"] for t in panel["targets"])
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
