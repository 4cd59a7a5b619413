"""The page in a real Chromium, on a real server under load: it shows what the server says."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import Chromium, number
from harness import IDENTITY, Server, identity_config, tensor, write_identity, write_model
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from headrace.client.admin import AdminClient

Start = Callable[..., Server]

PICKY = """
class Model:
    def __call__(self, inputs):
        if (inputs["X"] == 13).any():
            raise ValueError("unlucky")
        return {"Y": inputs["X"]}
"""

NOTHING = "\N{EN DASH}"
# What a cell of the models' table holds exactly, beside what it shows.
CELL = 'document.querySelector(\'#models tr[data-row="{}"] [data-key="{}"]\')'


@pytest.fixture
def page() -> Iterator[Chromium]:
    with Chromium() as page:
        yield page


@contextmanager
def load(server: Server, model: str) -> Iterator[None]:
    """Four clients that ask until the end; every thirteenth request fails in a picky model."""
    end = threading.Event()

    def ask() -> None:
        with InferenceServerClient(server.address) as client:
            i = 0
            while not end.is_set():
                i += 1
                value = np.full((1 + i % 3, 2), i % 14, np.float32)
                try:
                    client.infer(model, [tensor("X", value)])
                except InferenceServerException as error:
                    if "unlucky" not in str(error):
                        raise

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        end.set()
        for thread in threads:
            thread.join(timeout=60)


def state_of(server: Server) -> Any:
    url = f"http://127.0.0.1:{server.metrics_port}/api/state"
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


def value(page: Chromium, row: str, key: str) -> str:
    return str(page.evaluate(CELL.format(row, key) + ".dataset.value"))


def shown(page: Chromium, row: str, key: str) -> str:
    return str(page.evaluate(CELL.format(row, key) + ".innerText"))


def quantile(histogram: Any, q: float, bounds: list[float]) -> float:
    rest = q * histogram["count"]
    for n, count in histogram["buckets"]:
        if rest <= count:
            low = bounds[n - 1] if n else 0.0
            return low + (bounds[n] - low) * rest / count
        rest -= count
    raise AssertionError("an empty histogram")


def test_the_page_shows_the_servers_numbers(start: Start, repository: Path, page: Chromium) -> None:
    write_model(repository, "picky", identity_config("FP32"), {"model.py": PICKY})
    write_identity(repository, "idle", "FP32")
    server = start()
    page.open(f"http://127.0.0.1:{server.metrics_port}/")
    page.wait_for("document.querySelector('#status').innerText === 'ready'")
    with load(server, "picky"):
        # It moves while it is looked at.
        tile = "document.querySelector('#tiles .value').innerText"
        page.wait_for(f"parseFloat({tile}) > 0")
        seen = float(value(page, "picky/1", "success"))
        page.wait_for(f"+({CELL.format('picky/1', 'success')}.dataset.value) > {seen}")
        page.wait_for(f"+({CELL.format('picky/1', 'failed')}.dataset.value) > 0")
        page.wait_for("document.querySelector('#latency path').getAttribute('d').length > 20")
        assert page.text("#tiles .value") != NOTHING
    # Now that it is quiet both can be compared to the last digit.
    stats = server.statistics("picky").inference_stats
    page.wait_for(f"{CELL.format('picky/1', 'success')}.dataset.value === '{stats.success.count}'")
    assert number(shown(page, "picky/1", "success")) == stats.success.count
    assert number(shown(page, "picky/1", "failed")) == stats.fail.count > 0
    assert stats.success.count == server.metric("nv_inference_request_success", model="picky")
    page.evaluate(
        "document.querySelector('#span').value = '0';"
        "document.querySelector('#span').dispatchEvent(new Event('change'))"
    )
    state = state_of(server)
    (version,) = next(m for m in state["models"] if m["name"] == "picky")["versions"]
    for key, name, q in (
        ("p50", "request", 0.5),
        ("p95", "request", 0.95),
        ("p99", "request", 0.99),
        ("queue99", "queue", 0.99),
    ):
        wanted = quantile(version[name], q, state["bounds_us"])
        assert float(value(page, "picky/1", key)) == pytest.approx(wanted, rel=1e-9)
    assert float(value(page, "picky/1", "batch")) == pytest.approx(
        server.metric("nv_inference_count", model="picky")
        / server.metric("nv_inference_exec_count", model="picky")
    )
    assert shown(page, "picky/1", "arm") == "stable"
    assert float(value(page, "picky/1", "share")) == 1
    # The percentiles agree with the buckets that Prometheus gets.
    p99 = float(value(page, "picky/1", "p99")) / 1e6
    below = max((2.0**k / 1e9 for k in range(14, 36) if 2.0**k / 1e9 <= p99 / 1.19), default=0.0)
    if below:
        name = "headrace_request_duration_seconds_bucket"
        assert server.metric(name, model="picky", le=repr(below)) < 0.99 * stats.success.count
    # A model that nobody asked has no percentiles, and says so without inventing a zero.
    assert shown(page, "idle/1", "p99") == NOTHING
    assert page.console == [], "no errors, nothing that the content security policy stopped"


def test_a_rollout_and_its_arms(start: Start, repository: Path, page: Chromium) -> None:
    config = identity_config("FP32") + "version_policy { specific { versions: [1] } }"
    for version in (1, 2):
        write_model(repository, "m", config, {"model.py": IDENTITY}, version=version)
    socket = repository.parent / "admin.sock"
    server = start("--admin-socket", str(socket))
    page.open(f"http://127.0.0.1:{server.metrics_port}/dashboard")
    page.wait_for("document.querySelector('#rollouts')?.innerText.includes('None so far')")
    with AdminClient(socket) as admin, load(server, "m"):
        admin.start("m", 2, share=0.5, manual_promotion=True)
        page.wait_for(f"{CELL.format('m/2', 'arm')}?.innerText === 'canary'")
        page.wait_for(f"+({CELL.format('m/2', 'success')}.dataset.value) > 0")
        assert float(value(page, "m/1", "share")) == float(value(page, "m/2", "share")) == 0.5
        assert "running" in page.text("#rollouts")
        admin.rollback("m")
        page.wait_for("document.querySelector('#rollouts').innerText.includes('rolled back')")
        page.wait_for(f"{CELL.format('m/1', 'share')}.dataset.value === '1'")


def test_a_latency_budget(start: Start, repository: Path, page: Chromium) -> None:
    write_identity(repository, "kept", "FP32")
    write_identity(repository, "missed", "FP32")
    for name, latency in (("kept", "60s"), ("missed", "0.1ms")):
        text = f"slo: {{latency: {latency}, objective: 99%}}\nadmission: {{slo: false}}"
        (repository / name / "policy.yaml").write_text(text)
    server = start()
    for _ in range(20):
        for name in ("kept", "missed"):
            server.infer(name, np.ones((1, 2), np.float32))
    page.open(f"http://127.0.0.1:{server.metrics_port}/")
    page.evaluate("document.querySelector('#span').value = '0'")
    cell = 'document.querySelector(\'#slo tr[data-row="{}"] [data-key="{}"]\').dataset.value'
    page.wait_for("document.querySelector('#slo tr[data-row=missed]') !== null")
    for name in ("kept", "missed"):
        requests = server.metric("headrace_slo_requests_total", model=name)
        good = server.metric("headrace_slo_good_total", model=name)
        assert requests == 20
        page.wait_for(f"Math.abs({cell.format(name, 'kept')} - {good / requests}) < 1e-9")
        burn = float(page.evaluate(cell.format(name, "burn")))
        assert burn == pytest.approx((1 - good / requests) / 0.01)
    assert page.console == []


def test_an_empty_server_says_what_is_missing_also_on_a_phone_in_the_dark(
    start: Start, repository: Path
) -> None:
    server = start()
    with Chromium(width=390, height=844, dark=True) as page:
        page.open(f"http://127.0.0.1:{server.metrics_port}/")
        page.wait_for("document.querySelector('#models').innerText.includes('No model is loaded')")
        assert "second look" in page.text("#charts") or page.evaluate("states.length > 1")
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390, "nothing sticks out"
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == "rgb(16, 21, 28)"
        assert page.evaluate("document.querySelector('#gpu')") is None
        # Every control has a name, every table a caption or row headings, every chart a text.
        assert page.evaluate(
            "[...document.querySelectorAll('select')].every((s) => s.labels.length === 1)"
        )
        assert page.evaluate(
            "[...document.querySelectorAll('svg')].every((s) => s.getAttribute('aria-label'))"
        )
        assert page.console == []


def test_a_server_that_is_gone_is_said_to_be(start: Start, repository: Path) -> None:
    write_identity(repository, "idle", "FP32")
    server = start()
    with Chromium() as page:
        page.open(f"http://127.0.0.1:{server.metrics_port}/")
        page.wait_for("document.querySelector('#status').innerText === 'ready'")
        server.terminate()
        server.process.wait(timeout=60)
        page.wait_for("document.querySelector('#status').innerText.startsWith('no answer since')")
        assert page.evaluate("document.querySelector('#main').classList.contains('stale')")


def test_a_page_that_is_paused_asks_nothing(start: Start, page: Chromium) -> None:
    server = start()
    page.open(f"http://127.0.0.1:{server.metrics_port}/")
    page.wait_for("states.length > 1")
    page.evaluate("document.querySelector('#pause').click()")
    page.wait_for("document.querySelector('#status').innerText === 'paused'")
    page.evaluate("window.asked = 0; window.fetch = () => { window.asked += 1; }; look()")
    assert page.evaluate("window.asked") == 0
