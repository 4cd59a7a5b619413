"""A new version gets a share of the requests, is watched, and is promoted or taken back: through
the command line, with clients that never notice."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from harness import Server, eventually, identity_config, tensor, write_model
from tritonclient.utils import InferenceServerException

from headrace.admin_socket import default_admin_socket
from headrace.client.admin import AdminClient
from headrace.errors import HeadraceError

X = np.ones((1, 4), np.float32)

# Every version answers its own number, the bad ones in their own way.
GOOD = "def infer(inputs):\n    return {{'Y': inputs['X'] * 0 + {number}}}\n"
FAILS = "def infer(inputs):\n    raise RuntimeError('boom')\n"
NAN = "def infer(inputs):\n    return {'Y': inputs['X'] * float('nan')}\n"
SLOW = (
    "import time\n"
    "def infer(inputs):\n"
    "    time.sleep(2)\n"
    "    return {{'Y': inputs['X'] * 0 + {number}}}\n"
)


def version(repository: Path, number: int, code: str = GOOD) -> None:
    text = code.format(number=number) if "{number}" in code else code
    write_model(repository, "m", identity_config("FP32"), {"model.py": text}, number)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    version(folder, 1)
    return folder


def cli(server: Server, *words: str, ok: bool = True) -> str:
    command = [str(Path(sys.executable).with_name("headrace")), "rollout", *words]
    done = subprocess.run(
        [*command, "--grpc-port", str(server.port)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode == 0) == ok, done.stderr
    return done.stdout if ok else done.stderr


@contextmanager
def admin_of(server: Server) -> Iterator[AdminClient]:
    with AdminClient(default_admin_socket(server.port)) as client:
        yield client


def state(server: Server) -> Any:
    with admin_of(server) as admin:
        (only,) = admin.status("m")
    return only


def start(server: Server, candidate: int, **options: Any) -> Any:
    with admin_of(server) as admin:
        return admin.start("m", candidate, **options)


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(HeadraceError) as error:
        call()
    return error.value.details


class Asking:
    """What clients saw: answers by the version they name, right or not, and errors."""

    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()
        self.arms: Counter[str] = Counter()
        self.fallbacks = 0
        self.problems: list[str] = []
        self.done = threading.Event()

    def ask(self, client: triton.InferenceServerClient, request_id: str = "") -> None:
        try:
            answer = client.infer("m", [tensor("X", X)], request_id=request_id)
        except InferenceServerException as error:
            self.problems.append(str(error))
            return
        response = answer.get_response()
        self.answers[response.model_version] += 1
        self.arms[response.parameters["hr.arm"].string_param] += 1
        self.fallbacks += "hr.fallback_from" in response.parameters
        if not np.array_equal(answer.as_numpy("Y"), X * float(response.model_version)):
            self.problems.append(f"version {response.model_version}: {answer.as_numpy('Y')}")


@contextmanager
def clients(server: Server, count: int = 4) -> Iterator[Asking]:
    """Ask without a pause."""
    seen = Asking()

    def run() -> None:
        with triton.InferenceServerClient(server.address) as client:
            while not seen.done.is_set():
                seen.ask(client)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        seen.done.set()
        for thread in threads:
            thread.join()


def test_a_good_candidate_is_promoted_and_can_be_taken_back(repository: Path) -> None:
    with Server(repository) as server, clients(server) as seen:
        version(repository, 2)
        (started,) = json.loads(
            cli(
                server, "start", "m", "2", "--share", "50%", "--min-requests", "100",
                "--latency-ratio", "1000", "--min-seconds", "0.1", "--json",
            )
        )  # fmt: skip
        assert (started["stable"], started["candidate"], started["state"]) == (1, 2, "running")
        eventually(lambda: state(server).state == "promoted", "promoted", 120)
        assert "promoted after" in cli(server, "status", "m")
        before = seen.answers["2"]
        eventually(lambda: seen.answers["2"] > before + 50, "served by version 2")
        # The version before is warm.
        assert "rolled back after" in cli(server, "rollback", "m")
        answer = server.client.infer("m", [tensor("X", X)])
        assert answer.get_response().model_version == "1"
        assert seen.problems == []
        assert seen.arms["canary"] > 0
        assert seen.arms["stable"] > 0


@pytest.mark.parametrize("code", [FAILS, NAN, SLOW], ids=["fails", "nan", "slow"])
def test_a_bad_candidate_is_taken_back_and_nobody_notices(repository: Path, code: str) -> None:
    with Server(repository) as server, clients(server) as seen:
        eventually(lambda: seen.answers["1"] > 300, "a baseline")
        version(repository, 2, code)
        # Far slower than a loaded machine makes the stable one.
        start(server, 2, share=0.2, latency_ratio=2)
        last = eventually(
            lambda: (now := state(server)).state == "rolled_back" and now, "rolled back", 120
        )
        assert last.candidate_requests > 0
        answer = server.client.infer("m", [tensor("X", X)])
        assert answer.get_response().model_version == "1"
        assert seen.problems == []
        if code != SLOW:
            assert last.candidate_failures > 0
            assert seen.fallbacks > 0
            assert seen.answers["2"] == 0
        # It stays out, and its version is unloaded.
        ready = server.client.is_model_ready
        eventually(lambda: not ready("m", "2"), "unloaded")
        assert ready("m", "1")
        assert ready("m", "stable")


def test_without_fallback_its_failures_are_the_clients(repository: Path) -> None:
    with Server(repository) as server, clients(server) as seen:
        version(repository, 2, FAILS)
        start(server, 2, share=0.2, fallback=False)
        eventually(lambda: state(server).state == "rolled_back", "rolled back", 120)
        assert len(seen.problems) > 0
        assert all("boom" in problem for problem in seen.problems)
        assert seen.fallbacks == 0


def test_a_request_keeps_its_arm_and_labels_name_versions(repository: Path) -> None:
    version(repository, 2)
    (repository / "m" / "2").rename(repository / "m" / "2.later")
    with Server(repository) as server:
        (repository / "m" / "2.later").rename(repository / "m" / "2")
        start(server, 2, share=0.3, key="user", manual_promotion=True)

        def ask(user: str, wanted: str = "") -> str:
            answer = server.client.infer(
                "m", [tensor("X", X)], model_version=wanted, parameters={"user": user}
            )
            return str(answer.get_response().model_version)

        first = {f"u{n}": ask(f"u{n}") for n in range(60)}
        assert set(first.values()) == {"1", "2"}
        assert {user: ask(user) for user in first} == first
        assert {ask("u0", "stable"), ask("u1", "stable")} == {"1"}
        assert {ask("u0", "canary"), ask("u1", "canary")} == {"2"}
        assert server.client.get_model_metadata("m", "canary").versions == ["1", "2"]
        assert "promoted after" in cli(server, "promote", "m")
        assert {ask(user) for user in first} == {"2"}
        assert ask("u0", "stable") == "2"
        with pytest.raises(InferenceServerException, match="failed to get model version"):
            ask("u0", "canary")


def test_the_requests_of_a_stream_are_shared_out_one_by_one(repository: Path) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with Server(repository) as server:
        version(repository, 2)
        start(server, 2, share=0.5, manual_promotion=True)
        server.client.start_stream(lambda result, error: answers.put((result, error)))
        for number in range(100):
            server.client.async_stream_infer("m", [tensor("X", X)], request_id=f"r{number}")
        arms: Counter[tuple[str, str]] = Counter()
        for _ in range(100):
            result, error = answers.get(timeout=60)
            assert error is None
            response = result.get_response()
            assert response.parameters["triton_final_response"].bool_param
            arms[response.parameters["hr.arm"].string_param, response.model_version] += 1
        server.client.stop_stream()
        assert set(arms) == {("canary", "2"), ("stable", "1")}


def test_what_cannot_be_is_refused_with_its_reason(repository: Path) -> None:
    with Server(repository) as server, admin_of(server) as admin:
        assert "--share is '0%'" in cli(server, "start", "m", "1", "--share", "0%", ok=False)
        assert "no version 7" in cli(server, "start", "m", "7", ok=False)
        assert "unknown model: 'nope'" in refusal(lambda: admin.start("nope", 1))
        assert "stable one already" in refusal(lambda: admin.start("m", 1))
        assert "share is 1.5" in refusal(lambda: admin.start("m", 2, share=1.5))
        assert "no rollout" in refusal(lambda: admin.promote("m"))
        assert "none runs or was promoted" in refusal(lambda: admin.rollback("m"))
        assert "no rollout" in refusal(lambda: admin.status("m"))
        version(repository, 2, "this is no Python\n")
        assert "load failed" in refusal(lambda: admin.start("m", 2))
        assert admin.status() == []
        version(repository, 3)
        start(server, 3, manual_promotion=True)
        assert "already" in refusal(lambda: admin.start("m", 3))
        # What was asked in vain changed nothing.
        assert server.client.is_model_ready("m", "1")
        assert not server.client.is_model_ready("m", "2")
    assert "no server listens" in cli(server, "status", ok=False)


def test_a_rollback_to_what_is_gone_is_refused_and_takes_nothing_away(repository: Path) -> None:
    version(repository, 2)
    explicit = ("--model-control-mode", "explicit", "--load-model", "m")
    (repository / "m" / "2").rename(repository.parent / "2")
    with Server(repository, *explicit) as server, admin_of(server) as admin:
        (repository.parent / "2").rename(repository / "m" / "2")
        start(server, 2, manual_promotion=True)
        assert admin.promote("m").state == "promoted"
        # Loaded anew, the model is what its version policy says: version 2 alone.
        server.client.unload_model("m")
        eventually(lambda: not server.client.is_model_ready("m"), "unloaded")
        server.client.load_model("m")
        assert not server.client.is_model_ready("m", "1")
        assert "version 1 is no longer loaded" in refusal(lambda: admin.rollback("m"))
        answer = server.client.infer("m", [tensor("X", X)])
        assert answer.get_response().model_version == "2"


def test_a_shadow_is_compared_and_no_client_gets_its_answers(repository: Path) -> None:
    nearly = GOOD.format(number=1.0005)  # within the tolerance
    with Server(repository) as server, admin_of(server) as admin:
        version(repository, 2, nearly)
        version(repository, 3)
        for candidate, differs in ((2, False), (3, True)):
            admin.start("m", candidate, share=1, shadow=True, latency_ratio=1000)
            with clients(server, 2) as seen:
                eventually(lambda: state(server).compared >= 50, "compared")
            assert seen.problems == []
            assert set(seen.answers) == {"1"}
            now = state(server)
            assert now.shadow
            assert now.state == "running"
            assert now.different == (now.compared if differs else 0)
            assert now.largest_difference == pytest.approx(2 if differs else 0.0005, rel=0.01)
            admin.rollback("m")
        assert "answers compared" in cli(server, "status")
        # One that fails is found out like any other, and nobody noticed.
        version(repository, 4, FAILS)
        admin.start("m", 4, share=1, shadow=True, latency_ratio=1000)
        with clients(server) as seen:
            eventually(lambda: state(server).state == "rolled_back", "rolled back")
        assert seen.problems == []
        assert set(seen.answers) == {"1"}
        assert seen.fallbacks == 0


def feedback_cli(server: Server, *words: str) -> str:
    command = [str(Path(sys.executable).with_name("headrace")), "feedback", *words]
    done = subprocess.run(
        [*command, "--grpc-port", str(server.port)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_feedback_takes_a_candidate_back(repository: Path) -> None:
    with Server(repository) as server, admin_of(server) as admin:
        # What was counted before the rollout says nothing about it.
        assert admin.feedback("m", 1, {"bought": (0, 500)}) == {"bought": (0, 500)}
        assert "not loaded" in refusal(lambda: admin.feedback("m", 2, {"bought": (1, 0)}))
        assert "no KPIs" in refusal(lambda: admin.feedback("m", 1, {}))
        assert "no name of a KPI" in refusal(lambda: admin.feedback("m", 1, {"a b": (1, 0)}))
        version(repository, 2)
        cli(server, "start", "m", "2", "--share", "50%", "--kpi", "bought", "--min-requests", "10")
        out = feedback_cli(server, "add", "m", "1", "bought", "--good", "300", "--bad", "10")
        assert out == "bought: 300 good, 510 bad\n"
        admin.feedback("m", 2, {"bought": (100, 200), "something_else": (0, 9999)})
        eventually(lambda: state(server).state == "rolled_back", "taken back")
        now = state(server)
        assert "kpi.bought: candidate 66.7 % of 300, stable 3.23 % of 310" in now.reason
        (kpi,) = now.kpis
        assert (kpi.stable_good, kpi.stable_bad) == (300, 10)
        assert (kpi.candidate_good, kpi.candidate_bad) == (100, 200)
        assert "bought: 66.7 % of 300 bad, stable 3.23 % of 310 bad" in cli(server, "status")


def loaded(server: Server) -> set[str]:
    rows = server.client.get_model_repository_index().models
    return {row.version for row in rows if row.state == "READY"}


def test_a_restart_forgets_no_rollout(repository: Path, tmp_path: Path) -> None:
    kept = ("--state-dir", str(tmp_path / "state"))
    version(repository, 2)
    rollout = {"share": 0.5, "manual_promotion": True}
    (repository / "m" / "2").rename(tmp_path / "2")
    with Server(repository, *kept) as server:
        (tmp_path / "2").rename(repository / "m" / "2")
        start(server, 2, **rollout)
        server.checked = False
        server.process.kill()
    # It goes on, though the version policy alone would give version 2 everything.
    with Server(repository, *kept) as server, admin_of(server) as admin:
        now = state(server)
        assert (now.state, now.stable, now.candidate) == ("running", 1, 2)
        assert loaded(server) == {"1", "2"}
        arms: Counter[tuple[str, str]] = Counter()
        for _ in range(60):
            response = server.client.infer("m", [tensor("X", X)]).get_response()
            arms[response.parameters["hr.arm"].string_param, response.model_version] += 1
        assert set(arms) == {("stable", "1"), ("canary", "2")}
        admin.rollback("m")
    with Server(repository, *kept) as server, admin_of(server) as admin:
        assert loaded(server) == {"1"}
        assert state(server).state == "rolled_back"
        # An unload does not bring it back either; a rollout that names it does.
        start(server, 2, **rollout)
        assert loaded(server) == {"1", "2"}
        admin.promote("m")
    with Server(repository, *kept) as server:
        assert loaded(server) == {"2"}
    # What has other files is another version.
    (repository / "m" / "2" / "model.py").write_text(GOOD.format(number=2.5))
    (tmp_path / "state" / "rollouts.json").write_text("lost")
    with Server(repository, *kept) as server:
        assert loaded(server) == {"2"}
        assert "cannot be read" in server.log()


def test_policy_yaml_starts_a_rollout_once(repository: Path, tmp_path: Path) -> None:
    kept = ("--state-dir", str(tmp_path / "state"))
    policy = repository / "m" / "policy.yaml"
    policy.write_text("rollout: {candidate: 2, share: 50%, auto_promote: false}")
    poll = ("--model-control-mode", "poll", "--repository-poll-secs", "0.1")
    with Server(repository, *poll, *kept) as server, admin_of(server) as admin:
        assert admin.status() == []  # its candidate is not there yet
        with clients(server) as seen:
            version(repository, 2, FAILS)
            eventually(admin.status, "a rollout begins")
            eventually(lambda: state(server).state == "rolled_back", "rolled back")
        assert seen.problems == []
        eventually(lambda: loaded(server) == {"1"}, "unloaded")
    # Decided: not again.
    with Server(repository, *poll, *kept) as server:
        assert state(server).state == "rolled_back"
        assert loaded(server) == {"1"}
        # Until the version has other files.
        (repository / "m" / "2" / "model.py").write_text(GOOD.format(number=2))
        eventually(lambda: state(server).state == "running", "a rollout of the new files")
        assert loaded(server) == {"1", "2"}
    policy.write_text("rollout: {candidate: 2}")
    with Server(repository, *kept, "--no-exit-on-error", ready=False) as server:
        eventually(lambda: "policy.yaml: rollout: 'share' is missing" in server.log(), "told")


def test_the_admin_service_is_not_on_the_data_port(repository: Path) -> None:
    with Server(repository) as server:
        call = server.channel.unary_unary("/headrace.v1.Admin/RolloutStatus")
        with pytest.raises(grpc.RpcError) as error:
            call(b"", timeout=30)
        assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
        socket = default_admin_socket(server.port)
        assert socket.stat().st_mode & 0o077 == 0
        assert socket.parent.stat().st_mode & 0o077 == 0
        # And nothing else is on its socket.
        with grpc.insecure_channel(
            f"unix:{socket}", options=[("grpc.default_authority", "localhost")]
        ) as channel:
            infer = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
            with pytest.raises(grpc.RpcError) as error:
                infer(b"", timeout=30)
            assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert not socket.exists()
