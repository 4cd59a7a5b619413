from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from headrace.repository.scan import ModelEntry, RepositoryScan
from headrace.repository.watch import Changes, Watch, diff, settle


def scanned(models: dict[str, int], problems: tuple[str, ...] = ()) -> RepositoryScan:
    entries = {
        name: ModelEntry(name, Path("/r") / name, (1,), None, f"{print_}", {1: f"{print_}"}, "")
        for name, print_ in models.items()
        if name not in problems
    }
    return RepositoryScan(entries, dict.fromkeys(problems, "model appears twice"))


def test_diff() -> None:
    changes = diff(scanned({"a": 1, "b": 1, "c": 1}), scanned({"b": 1, "c": 2, "d": 1}))
    assert changes == Changes(added=("d",), removed=("a",), modified=("c",))
    assert changes
    assert not diff(scanned({"a": 1}), scanned({"a": 1}))


def test_a_model_that_moved_to_another_repository_is_modified() -> None:
    old = scanned({"a": 1})
    entry = ModelEntry("a", Path("/other/a"), (1,), None, "1", {1: "1"}, "")
    assert diff(old, RepositoryScan({"a": entry}, {})).modified == ("a",)


def test_what_became_a_problem_keeps_serving() -> None:
    old = scanned({"a": 1, "b": 1})
    assert not diff(old, scanned({"a": 1, "b": 1}, problems=("b",)))
    watch = Watch(old)
    broken = scanned({"a": 1}, problems=("b",))
    assert not watch.observe(broken)
    assert not watch.observe(broken)
    assert "b" in watch.loaded.entries
    assert not watch.observe(scanned({"a": 1, "b": 1}))  # as it was


def test_a_folder_that_is_still_being_written_waits() -> None:
    watch = Watch(scanned({}))
    assert not watch.observe(scanned({"a": 1}))
    assert not watch.observe(scanned({"a": 2}))
    assert watch.observe(scanned({"a": 2})) == Changes(added=("a",))
    assert not watch.observe(scanned({"a": 2}))
    assert not watch.observe(scanned({"a": 3}))
    assert watch.loaded.entries["a"].fingerprint == "2"
    assert watch.observe(scanned({"a": 3})) == Changes(modified=("a",))


def test_a_folder_that_is_gone_for_one_scan_is_not_gone() -> None:
    watch = Watch(scanned({"a": 1}))
    assert not watch.observe(scanned({}))
    assert not watch.observe(scanned({"a": 1}))
    assert not watch.observe(scanned({}))
    assert watch.observe(scanned({})) == Changes(removed=("a",))


SCANS = st.dictionaries(st.sampled_from("abc"), st.integers(0, 2))


@given(SCANS, SCANS)
def test_diff_leads_from_old_to_new(old: dict[str, int], new: dict[str, int]) -> None:
    changes = diff(scanned(old), scanned(new))
    result = {name: value for name, value in old.items() if name not in changes.removed}
    result |= {name: new[name] for name in (*changes.added, *changes.modified)}
    assert result == new


@given(SCANS, st.lists(SCANS, max_size=8))
def test_reported_changes_add_up_and_repeat_no_unsettled_state(
    start: dict[str, int], scans: list[dict[str, int]]
) -> None:
    watch = Watch(scanned(start))
    serving, previous = dict(start), start
    for now in scans:
        changes = watch.observe(scanned(now))
        for name in changes.removed:
            del serving[name]
            assert name not in now and name not in previous
        for name in (*changes.added, *changes.modified):
            assert now[name] == previous[name]
            serving[name] = now[name]
        previous = now
        assert {n: int(e.fingerprint) for n, e in watch.loaded.entries.items()} == serving
    watch.observe(scanned(previous))
    assert set(watch.loaded.entries) == set(previous)
    assert settle(watch.loaded, scanned(previous), scanned(previous)).entries == {
        name: scanned(previous).entries[name] for name in previous
    }
