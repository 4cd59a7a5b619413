"""Models that fail, hang or are unsure: others answer, and clients see no error."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from harness import Server, eventually, tensor, write_model
from tritonclient.utils import InferenceServerException

from headrace.admin_socket import default_admin_socket
from headrace.client.admin import AdminClient
from headrace.errors import FailedPreconditionError, NotFoundError
from headrace.human import Tensor

CONFIG = """
max_batch_size: 4
input [{ name: "X", data_type: TYPE_FP32, dims: [2] }]
output [{ name: "P", data_type: TYPE_FP32, dims: [2] }]
"""
X = np.ones((1, 2), np.float32)
Start = Callable[..., Server]

# What it does is in the first number of its input: below 0 it is up to `mood`, a file.
MODEL = """
import pathlib, time
import numpy as np

MOOD = pathlib.Path({mood!r})

def infer(inputs):
    mood = MOOD.read_text() if MOOD.exists() else "good"
    if mood == "raise":
        raise RuntimeError("boom")
    while mood == "hang":
        time.sleep(0.01)
        mood = MOOD.read_text()
    p = 0.55 if mood == "unsure" else 0.95
    return {{"P": np.tile(np.array([p, 1 - p], np.float32), (len(inputs["X"]), 1))}}
"""
FIXED = """
import numpy as np

def infer(inputs):
    return {{"P": np.tile(np.array({row}, np.float32), (len(inputs["X"]), 1))}}
"""


def model(repository: Path, mood: Path, policy: str) -> None:
    """Version 7 behaves as `mood` says, version 6 always answers 0.9."""
    old = {"model.py": FIXED.format(row=[0.9, 0.1])}
    write_model(repository, "m", CONFIG, old, 6)
    write_model(repository, "m", CONFIG, {"model.py": MODEL.format(mood=str(mood))}, 7)
    (repository / "m" / "policy.yaml").write_text(policy)


def ask(server: Server, **options: Any) -> tuple[float, dict[str, Any]]:
    """The first probability, and the answer's parameters."""
    with triton.InferenceServerClient(server.address) as client:
        answer = client.infer("m", [tensor("X", X)], **options)
    parameters = {
        key: getattr(value, value.WhichOneof("parameter_choice"))
        for key, value in answer.get_response().parameters.items()
    }
    return float(answer.as_numpy("P")[0, 0]), parameters


@pytest.fixture
def mood(tmp_path: Path) -> Path:
    return tmp_path / "mood"


def test_whatever_the_model_does_an_older_version_answers(
    repository: Path, start: Start, mood: Path
) -> None:
    model(
        repository,
        mood,
        "accept: {output: P, confidence: 0.8}\nfallback: [{version: 6}]\n"
        "breaker: {min_requests: 1000}\n",
    )
    server = start()
    probability, parameters = ask(server)
    assert probability == pytest.approx(0.95)
    assert set(parameters) == {"hr.confidence"}
    for state, trigger in (("raise", "error"), ("unsure", "low_confidence"), ("hang", "deadline")):
        mood.write_text(state)
        probability, parameters = ask(server, client_timeout=4)
        assert probability == pytest.approx(0.9)
        assert parameters["hr.fallback"] == trigger
        assert parameters["hr.fallback_from"] == "m/7"
        assert parameters["hr.answered_by"] == "m/6"
        labels = {"model": "m", "version": "7", "trigger": trigger, "target": "m/6"}
        server.counts(1, "headrace_fallbacks_total", **labels)
    mood.write_text("good")
    assert ask(server)[0] == pytest.approx(0.95)


def test_a_rule_answers_and_the_breaker_spares_the_model(
    repository: Path, start: Start, mood: Path
) -> None:
    model(
        repository,
        mood,
        "fallback: [{rule: {P: [0.25, 0.75]}}]\n"
        "breaker: {min_requests: 4, open: 200ms, probes: 1}\n",
    )
    server = start()

    def breaker(state: str) -> bool:
        return server.metric("headrace_breaker_state", model="m", version="7", state=state) == 1

    assert breaker("closed")
    mood.write_text("raise")
    triggers = []
    for _ in range(50):
        probability, parameters = ask(server)
        assert probability == pytest.approx(0.25)
        assert parameters["hr.answered_by"] == "rule"
        triggers.append(parameters["hr.fallback"])
    assert "circuit_open" in triggers
    assert triggers[:4] == ["error"] * 4
    mood.write_text("good")
    eventually(lambda: "hr.fallback" not in ask(server)[1], "the model is asked again")
    assert breaker("closed")
    assert server.metric("headrace_breaker_changes_total", model="m", version="7", state="open") > 0


def test_the_best_answer_is_given_with_a_mark_when_nobody_is_sure(
    repository: Path, start: Start, mood: Path
) -> None:
    model(repository, mood, "accept: {output: P, confidence: 0.99}\nfallback: [{version: 6}]\n")
    mood.write_text("unsure")
    probability, parameters = ask(start())
    assert probability == pytest.approx(0.9)
    assert parameters["hr.low_confidence"] is True
    assert parameters["hr.fallback"] == "low_confidence"
    assert parameters["hr.confidence"] == pytest.approx(0.9)


def test_another_model_answers_with_its_own_policy(
    repository: Path, start: Start, mood: Path
) -> None:
    model(repository, mood, "fallback: [{model: other}]\n")
    code = {"model.py": FIXED.format(row=[0.7, 0.3])}
    write_model(repository, "other", CONFIG, code, 1)
    (repository / "other" / "policy.yaml").write_text("accept: {output: P, confidence: 0.5}\n")
    mood.write_text("raise")
    probability, parameters = ask(start())
    assert probability == pytest.approx(0.7)
    assert parameters["hr.answered_by"] == "other"
    assert parameters["hr.confidence"] == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("fallback: [{rule: {P: [1]}}]", "output 'P' has shape"),
        ("fallback: [{rule: {Q: [1, 0]}}]", "no such output"),
        ("fallback: [{rule: {P: [a, b]}}]", "not FP32"),
        ("fallback: [{human: {queue: q}}]", "--tickets"),
        ("fallback: [{model: m}]", "fallback"),
        ("accept: {output: Q, confidence: 0.5}", "no output 'Q'"),
        ("accept: {output: P, confidence: 2}", "accept.confidence"),
    ],
)
def test_a_policy_that_does_not_suit_the_model_fails_its_load(
    repository: Path, start: Start, mood: Path, policy: str, said: str
) -> None:
    model(repository, mood, policy + "\n")
    server = start("--model-control-mode", "explicit")
    with (
        triton.InferenceServerClient(server.address) as client,
        pytest.raises(InferenceServerException) as error,
    ):
        client.load_model("m")
    assert said in str(error.value)


def test_fallbacks_in_a_circle_are_refused(repository: Path, start: Start, mood: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        code = {"model.py": FIXED.format(row=[0.7, 0.3])}
        write_model(repository, name, CONFIG, code, 1)
        (repository / name / "policy.yaml").write_text(f"fallback: [{{model: {other}}}]\n")
    server = start("--model-control-mode", "explicit")
    with triton.InferenceServerClient(server.address) as client:
        client.load_model("a")
        with pytest.raises(InferenceServerException, match="circle: b -> a -> b"):
            client.load_model("b")


# --- people ------------------------------------------------------------------------------------


def admin(server: Server) -> AdminClient:
    return AdminClient(default_admin_socket(server.port))


def decision(first: float) -> list[Tensor]:
    row = np.array([[first, 1 - first]], "<f4")
    return [Tensor("P", "FP32", (1, 2), row.tobytes())]


def test_a_person_decides_later_the_client_has_the_best_answer_and_a_ticket(
    repository: Path, start: Start, mood: Path, tmp_path: Path
) -> None:
    model(
        repository,
        mood,
        "accept: {output: P, confidence: 0.8}\n"
        "fallback: [{human: {queue: nurses, payload: true}}]\n",
    )
    mood.write_text("unsure")
    tickets = str(tmp_path / "tickets.db")
    with Server(repository, "--tickets", tickets) as server:
        probability, parameters = ask(server, request_id="r1")
        assert probability == pytest.approx(0.55)
        assert parameters["hr.low_confidence"] is True
        ticket = parameters["hr.ticket"]
        waiting = {"queue": "nurses", "state": "open"}
        server.counts(1, "headrace_human_tickets", **waiting)
    # A server later, the ticket is still there. Two people ask for it; one gets it.
    with Server(repository, "--tickets", tickets) as server, admin(server) as people:
        lease = people.human_lease("nurses", holder="ada", seconds=60)
        assert lease is not None and lease.ticket.id == ticket
        assert people.human_lease("nurses", holder="bea") is None
        assert lease.ticket.request_id == "r1"
        assert lease.ticket.trigger == "low_confidence"
        assert lease.ticket.confidence == pytest.approx(0.55)
        assert np.frombuffer(lease.ticket.inputs[0].data, "<f4").tolist() == [1, 1]
        with pytest.raises(FailedPreconditionError):
            people.human_resolve(ticket, "wrong", decision(1))
        resolved = people.human_resolve(ticket, lease.token, decision(1))
        assert resolved.state == "resolved"
        assert people.human_resolve(ticket, lease.token, decision(1)) == resolved
        with pytest.raises(FailedPreconditionError):
            people.human_resolve(ticket, lease.token, decision(0))
        (queue,) = people.human_queues()
        assert (queue.open, queue.leased, queue.resolved) == (0, 0, 1)


def test_a_client_waits_for_a_person(
    repository: Path, start: Start, mood: Path, tmp_path: Path
) -> None:
    model(
        repository,
        mood,
        "fallback: [{human: {queue: nurses, wait: 60s}}, {rule: {P: [0.5, 0.5]}}]\n",
    )
    mood.write_text("raise")
    server = start("--tickets", str(tmp_path / "tickets.db"))
    answers: list[tuple[float, dict[str, Any]]] = []
    client = threading.Thread(target=lambda: answers.append(ask(server)))
    client.start()
    with admin(server) as people:
        lease = eventually(lambda: people.human_lease("nurses"), "a ticket")
        assert not lease.ticket.inputs  # the policy does not say that they may be kept
        words = ["human", "resolve", lease.ticket.id, "--token", lease.token]
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "headrace",
                *words,
                "--answer",
                '{"P": [1, 0]}',
                "--grpc-port",
                str(server.port),
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["answer"] == {"P": [[1.0, 0.0]]}
    client.join()
    ((probability, parameters),) = answers
    assert probability == 1
    assert parameters["hr.answered_by"] == "human:nurses"
    assert parameters["hr.ticket"] == lease.ticket.id


def test_nobody_comes_and_the_rule_answers(
    repository: Path, start: Start, mood: Path, tmp_path: Path
) -> None:
    model(
        repository,
        mood,
        "fallback: [{human: {queue: nurses, wait: 50ms}}, {rule: {P: [0.5, 0.5]}}]\n",
    )
    mood.write_text("raise")
    probability, parameters = ask(start("--tickets", str(tmp_path / "tickets.db")))
    assert probability == 0.5
    assert parameters["hr.answered_by"] == "rule"
    assert parameters["hr.ticket"]


def test_a_drift_alarm_lets_others_answer_until_it_is_cleared(
    repository: Path, start: Start, mood: Path
) -> None:
    model(repository, mood, "fallback: [{version: 6, when: [drift]}]\n")
    write_model(repository, "plain", CONFIG, {"model.py": FIXED.format(row=[0.9, 0.1])}, 1)
    server = start()
    with AdminClient(default_admin_socket(server.port)) as admin:
        assert admin.drift_alarm("m", True) == [6, 7]
        probability, parameters = ask(server)
        assert probability == pytest.approx(0.9)
        assert parameters["hr.fallback"] == "drift"
        server.counts(1, "headrace_drift_alarm", model="m", version="7")
        assert admin.drift_alarm("m", False, version=7) == [7]
        probability, parameters = ask(server)
        assert probability == pytest.approx(0.95)
        assert "hr.fallback" not in parameters
        with pytest.raises(FailedPreconditionError, match="no fallbacks"):
            admin.drift_alarm("plain", True)
        with pytest.raises(NotFoundError, match="not loaded"):
            admin.drift_alarm("m", True, version=8)


HANGING_ONCE = """
import pathlib, threading, time

MOOD = pathlib.Path({mood!r})
turn = threading.Semaphore(1)  # of both instances

def infer(inputs):
    if MOOD.read_text() == "hang" and turn.acquire(blocking=False):
        while MOOD.read_text() == "hang":
            time.sleep(0.01)
    return {{"P": inputs["X"] + 1}}
"""


def test_a_second_instance_is_asked_when_the_first_takes_long(
    repository: Path, start: Start, mood: Path
) -> None:
    mood.write_text("hang")
    config = CONFIG + "instance_group [{ count: 2 }]\n"
    write_model(repository, "m", config, {"model.py": HANGING_ONCE.format(mood=str(mood))}, 1)
    (repository / "m" / "policy.yaml").write_text("hedge: {after: 20ms, budget: 100%}\n")
    server = start()

    def hedges(outcome: str) -> float:
        return server.metric("headrace_hedges_total", model="m", version="1", outcome=outcome)

    answer = server.client.infer("m", [tensor("X", X)])  # one instance hangs
    np.testing.assert_array_equal(answer.as_numpy("P"), X + 1)
    assert hedges("sent") >= hedges("won") == 1
    assert hedges("no_budget") == 0
    mood.write_text("good")
    np.testing.assert_array_equal(server.client.infer("m", [tensor("X", X)]).as_numpy("P"), X + 1)


def test_hedging_wants_a_second_instance(repository: Path, start: Start) -> None:
    write_model(repository, "m", CONFIG, {"model.py": FIXED.format(row=[0.9, 0.1])}, 1)
    (repository / "m" / "policy.yaml").write_text("hedge: true\n")
    server = start("--model-control-mode", "explicit")
    with pytest.raises(InferenceServerException, match="give it an instance_group"):
        server.client.load_model("m")
