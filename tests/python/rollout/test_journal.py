import json
from pathlib import Path

import pytest

from headrace.rollout.journal import Journal, Record, State
from headrace.rollout.plan import RolloutPlan

FILES = {7: "a", 8: "b", 9: "c"}


def record(state: State, candidate: int = 8, stable: int = 7) -> Record:
    plan = RolloutPlan("m", candidate=candidate, share=0.05, key="user")
    files = {n: FILES[n] for n in (candidate, stable)}
    return Record(plan, stable, state, "why", files, fallback=False)


def test_what_is_put_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state" / "rollouts.json"
    journal = Journal(path)
    assert journal.get("m") is None
    assert not path.parent.exists()  # nothing to keep yet
    journal.put(record("running"))
    journal.put(record("rolled_back"))
    assert Journal(path).records() == {"m": record("rolled_back")}


@pytest.mark.parametrize(
    ("state", "candidate", "stable", "kept_out"),
    [
        ("running", 8, 7, {8}),
        ("rolled_back", 8, 7, {8}),
        ("promoted", 8, 7, set()),
        ("promoted", 7, 8, {8}),  # a lower one was put in the place of the highest
    ],
)
def test_who_is_kept_out(state: State, candidate: int, stable: int, kept_out: set[int]) -> None:
    decided = record(state, candidate, stable)
    assert decided.kept_out(FILES) == kept_out
    assert decided.is_about(candidate, FILES)
    replaced = {number: text + " anew" for number, text in FILES.items()}
    assert decided.kept_out(replaced) == set()
    assert not decided.is_about(candidate, replaced)
    assert not decided.is_about(9, FILES)
    assert decided.kept_out({}) == set()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"rollouts": 3}',
        '{"rollouts": {"m": {}}}',
        json.dumps({"rollouts": {"m": {"plan": {"model": "m"}, "state": "running"}}}),
        json.dumps({"rollouts": {"m": {"state": "lost"}}}),
    ],
)
def test_a_file_that_cannot_be_read_is_set_aside(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rollouts.json"
    path.write_text(text)
    journal = Journal(path)
    assert journal.records() == {}
    assert path.with_suffix(".unreadable").read_text() == text
    journal.put(record("running"))
    assert Journal(path).get("m") == record("running")


def test_a_file_that_cannot_be_written_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")
    journal = Journal(tmp_path / "state" / "rollouts.json")
    journal.put(record("promoted"))
    assert journal.get("m") == record("promoted")
