"""What changed between scans; poll mode decides with it. Pure: scans in, names out."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.repository.scan import ModelEntry, RepositoryScan


@dataclass(frozen=True)
class Changes:
    """Model names, sorted."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    modified: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.modified)


def _same(a: ModelEntry | None, b: ModelEntry | None) -> bool:
    if a is None or b is None:
        return a is b
    return (a.path, a.fingerprint) == (b.path, b.fingerprint)


def diff(old: RepositoryScan, new: RepositoryScan) -> Changes:
    """From what is loaded (`old`) to what is there. A model that has a problem in `new` is in no
    list: a directory that became unreadable or a duplicate does not unload what serves."""
    names = sorted((old.entries.keys() | new.entries.keys()) - new.problems.keys())
    added, removed, modified = [], [], []
    for name in names:
        before, after = old.entries.get(name), new.entries.get(name)
        if before is None:
            added.append(name)
        elif after is None:
            removed.append(name)
        elif not _same(before, after):
            modified.append(name)
    return Changes(tuple(added), tuple(removed), tuple(modified))


def settle(loaded: RepositoryScan, previous: RepositoryScan, now: RepositoryScan) -> RepositoryScan:
    """`now`, but a model on which two consecutive scans disagree stays as it was loaded: somebody
    is still writing it. `diff(loaded, settle(...))` is what to act on."""
    entries: dict[str, ModelEntry] = {}
    for name in sorted(loaded.entries.keys() | now.entries.keys()):
        entry = now.entries.get(name)
        if name in now.problems or not _same(previous.entries.get(name), entry):
            entry = loaded.entries.get(name)
        if entry is not None:
            entries[name] = entry
    return RepositoryScan(entries, now.problems)


class Watch:
    """Remembers what settle() needs. One owner; not thread-safe.

    A change is reported once: after a failed load the next try is when the directory changes.
    """

    def __init__(self, loaded: RepositoryScan) -> None:
        self._loaded = loaded
        self._previous = loaded

    @property
    def loaded(self) -> RepositoryScan:
        """What has been reported so far: look up the entries of Changes here."""
        return self._loaded

    def observe(self, now: RepositoryScan) -> Changes:
        settled = settle(self._loaded, self._previous, now)
        changes = diff(self._loaded, settled)
        self._loaded, self._previous = settled, now
        return changes
