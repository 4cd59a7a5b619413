"""Every expression of `headrace rules` on a real Prometheus that scrapes a real server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
import yaml
from harness import IDENTITY, Server, free_port, identity_config, tensor, write_model
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from headrace.client.admin import AdminClient
from headrace.monitoring.grafana_panels import panels
from headrace.monitoring.rules import RuleOptions, alerts, recordings, rules_yaml

OPTIONS = RuleOptions()
# What the server's models do not ask for: those expressions must be good, and find nothing.
UNUSED = ("fallback", "breaker", "human")
PICKY = """
class Model:
    def __call__(self, inputs):
        if (inputs["X"] == 13).any():
            raise ValueError("unlucky")
        return {"Y": inputs["X"]}
"""


class Prometheus:
    """Scrapes one server once a second and evaluates our rules as often."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.port = free_port()
        (folder / "rules.yml").write_text(rules_yaml(OPTIONS))
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yml"],
            "scrape_configs": [
                {
                    "job_name": OPTIONS.job,
                    "static_configs": [{"targets": [f"127.0.0.1:{server.metrics_port}"]}],
                }
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                stdout=log,
                stderr=log,
            )

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def get(self, path: str, **query: str) -> Any:
        url = f"http://127.0.0.1:{self.port}{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 503:
                    raise OSError("it is starting") from None
                raise AssertionError(f"{query}: {error.read().decode()}") from None

    def query(self, expression: str) -> list[Any]:
        result: list[Any] = self.get("/api/v1/query", query=expression)["result"]
        return result

    def wait_for(self, expression: str, what: str = "") -> list[Any]:
        """Its answer, once there is one."""
        end = time.monotonic() + 90
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if found := self.query(expression):
                    return found
            except OSError:
                pass  # it does not listen yet
            time.sleep(0.2)
        raise AssertionError(f"{what or expression}: no data")


@contextmanager
def tls(folder: Path) -> Iterator[tuple[list[str], bytes]]:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    yield (
        ["--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "key.pem")],
        authority.cert_pem.bytes(),
    )


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Prometheus]]:
    """A server that has answered, failed, been asked over TLS and rolled a version back."""
    if shutil.which("prometheus") is None:
        pytest.skip("no prometheus here: apt-get install prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    repository = folder / "models"
    repository.mkdir()
    config = identity_config("FP32") + "version_policy { specific { versions: [1] } }"
    write_model(repository, "m", config, {"model.py": PICKY})
    write_model(repository, "m", config, {"model.py": IDENTITY}, version=2)
    (repository / "m" / "policy.yaml").write_text(
        "slo: {latency: 5s, objective: 99%}\ncache: {bypass_below: 0}"
    )
    write_model(repository, "broken", identity_config("FP32"), {"model.py": "1 / 0"})
    socket = folder / "admin.sock"
    with tls(folder) as (flags, root):
        (folder / "root.pem").write_bytes(root)
        server = Server(
            repository,
            "--admin-socket",
            str(socket),
            "--no-exit-on-error",
            "--no-strict-readiness",
            *flags,
            ready=False,
        )
        with server:
            prometheus = Prometheus(folder, server)
            try:
                prometheus.wait_for("headrace_ready == 1")
                use(server, folder / "root.pem", socket, prometheus)
                yield server, prometheus
            finally:
                prometheus.end()


def use(server: Server, root: Path, socket: Path, prometheus: Prometheus) -> None:
    with (
        InferenceServerClient(server.address, ssl=True, root_certificates=str(root)) as client,
        AdminClient(socket) as admin,
    ):

        def ask() -> None:
            for i in range(30):
                value = np.full((1 + i % 3, 2), i % 14, np.float32)
                try:
                    client.infer("m", [tensor("X", value)])
                except InferenceServerException as error:
                    if "unlucky" not in str(error):
                        raise

        ask()
        admin.start("m", 2, share=0.5, manual_promotion=True)
        ask()
        prometheus.wait_for("headrace_rollout_running == 1")
        admin.rollback("m")
        # Rates need two scrapes with something between them.
        prometheus.wait_for("nv_inference_request_success > 0")
        ask()
        prometheus.wait_for('sum(rate(nv_inference_request_success{model="m"}[5m])) > 0')
        prometheus.wait_for('sum(rate(nv_inference_request_failure{model="m"}[5m])) > 0')


def test_every_recording_has_data(scraped) -> None:
    _, prometheus = scraped
    for recording in recordings(OPTIONS):
        (sample, *_) = prometheus.wait_for(recording.name)
        float(sample["value"][1])


def test_no_rule_fails(scraped) -> None:
    _, prometheus = scraped
    prometheus.wait_for("headrace:failure_ratio:rate5m")
    groups = prometheus.get("/api/v1/rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == len(recordings(OPTIONS)) + len(alerts(OPTIONS))
    assert [(r["name"], r.get("lastError")) for r in rules if r["health"] == "err"] == []


def test_every_alert_looks_at_something_that_is_there(scraped) -> None:
    """The alert itself mostly has no answer, and must not; what it compares has one."""
    _, prometheus = scraped
    for alert in alerts(OPTIONS):
        prometheus.query(alert.expression)
        for signal in alert.signals:
            if alert.needs in UNUSED:
                prometheus.query(signal.expression)
                continue
            prometheus.wait_for(signal.expression, alert.name)
            limit = signal.comparison.split(" ", 1)[1]
            prometheus.query(limit)


def test_the_rollback_and_the_model_that_did_not_load_are_alarms(scraped) -> None:
    _, prometheus = scraped
    (alarm,) = prometheus.wait_for('ALERTS{alertname="HeadraceRolledBack", alertstate="firing"}')
    assert alarm["metric"]["model"] == "m"
    (alarm,) = prometheus.wait_for('ALERTS{alertname="HeadraceModelNotLoaded"}')
    assert alarm["metric"]["model"] == "broken"
    assert not prometheus.query('ALERTS{alertname=~"HeadraceDown|HeadraceNotReady"}')


def test_every_panel_of_the_grafana_dashboard_has_data(scraped) -> None:
    _, prometheus = scraped
    for _, members in panels(OPTIONS):
        for panel in members:
            for query in panel.queries:
                expression = (
                    query.expression.replace("$__rate_interval", "5m")
                    .replace("$instance", ".*")
                    .replace("$model", ".*")
                )
                if panel.needs in UNUSED:
                    prometheus.query(expression)
                    continue
                found = prometheus.wait_for(expression, panel.title)
                labels = re.findall(r"{{(\w+)}}", query.legend)
                assert all(set(labels) <= set(series["metric"]) for series in found), panel.title


def test_the_page_of_metrics_is_good(scraped) -> None:
    server, _ = scraped
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=server.metrics_text(),
        capture_output=True,
        text=True,
    )
    # Its lints are about names, and Triton's counters are not called ..._total.
    problems = [line for line in done.stderr.splitlines() if not line.startswith("nv_")]
    assert problems == []
    assert done.returncode in (0, 3)
