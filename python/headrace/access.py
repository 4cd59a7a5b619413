"""Who may call what: the file of `--auth-file`.

    anonymous: [probe]            # callers without a credential; left out: nothing
    members:
      - name: batch-job
        rights: [probe, metadata, infer]
        keys: ["sha256:9f86d0..."]           # printf %s "$KEY" | sha256sum
        certificates: ["spiffe://batch-job"]  # a subject alternative name, else the common name
        quota: {rate: 100, burst: 200}        # inferences a second; left out: no limit
    anonymous_quota: {rate: 10}   # that callers without a credential share

The server keeps digests only, so a key must be long and random (`openssl rand -hex 32`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import InvalidArgumentError, NotFoundError

__all__ = ["RIGHTS", "AccessPolicy", "Member", "Quota", "read_access_file"]

# The core's (docs/RPC_RIGHTS.md), least first.
RIGHTS = ("probe", "metadata", "infer", "control", "call")
_MAX_BYTES = 1 << 20  # of the file; PyYAML takes some ten seconds for so much


@dataclass(frozen=True)
class Quota:
    """Inferences, and calls of an application's own methods; `burst`: at once, after a pause."""

    rate: float  # a second
    burst: float


@dataclass(frozen=True)
class Member:
    """A caller that is known by an API key or a client certificate."""

    name: str
    rights: tuple[str, ...]
    keys: tuple[bytes, ...] = ()  # SHA-256 digests
    certificates: tuple[str, ...] = ()
    quota: Quota | None = None


@dataclass(frozen=True)
class AccessPolicy:
    anonymous: tuple[str, ...] = ()
    members: tuple[Member, ...] = ()
    anonymous_quota: Quota | None = None


def read_access_file(path: Path) -> AccessPolicy:
    """Errors name the file and the place in it, never what was there: it may be a key."""
    try:
        import yaml  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise InvalidArgumentError(
            f"reading {path} needs PyYAML, which is not installed: pip install pyyaml"
        ) from error
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise NotFoundError(f"{path}: {error.strerror or error}") from error
    if len(data) > _MAX_BYTES:
        raise InvalidArgumentError(f"{path} is larger than {_MAX_BYTES} bytes")
    try:
        document = yaml.safe_load(data.decode("utf-8"))
    # PyYAML lets out what int() and date() say, and goes as deep as the document does.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{path}: not valid YAML") from error
    return _Reader(path).policy(document)


class _Reader:
    def __init__(self, path: Path) -> None:
        self._path = path

    def policy(self, document: Any) -> AccessPolicy:
        fields = self._mapping(document, "the file", ("anonymous", "members", "anonymous_quota"))
        members = fields.get("members") or []
        if not isinstance(members, list):
            raise self._error("members", "must be a list")
        read = tuple(self._member(one, f"members[{i}]") for i, one in enumerate(members))
        self._unique([m.name for m in read], "name")
        self._unique([key for m in read for key in m.keys], "key")
        self._unique([name for m in read for name in m.certificates], "certificate")
        return AccessPolicy(
            self._rights(fields.get("anonymous"), "anonymous"),
            read,
            self._quota(fields.get("anonymous_quota"), "anonymous_quota"),
        )

    def _member(self, value: Any, where: str) -> Member:
        fields = self._mapping(value, where, ("name", "rights", "keys", "certificates", "quota"))
        name = fields.get("name")
        if not isinstance(name, str) or not name:
            raise self._error(f"{where}.name", "must be a text")
        keys = self._texts(fields.get("keys"), f"{where}.keys")
        certificates = self._texts(fields.get("certificates"), f"{where}.certificates")
        if not keys and not certificates:
            raise self._error(where, "has neither keys nor certificates: nobody could be it")
        return Member(
            name,
            self._rights(fields.get("rights"), f"{where}.rights"),
            tuple(self._digest(key, f"{where}.keys[{i}]") for i, key in enumerate(keys)),
            certificates,
            self._quota(fields.get("quota"), f"{where}.quota"),
        )

    def _quota(self, value: Any, where: str) -> Quota | None:
        if value is None:
            return None
        fields = self._mapping(value, where, ("rate", "burst"))
        rate = self._number(fields.get("rate"), f"{where}.rate", 1e-3)
        burst = fields.get("burst", max(1.0, rate))
        return Quota(rate, self._number(burst, f"{where}.burst", 1))

    def _number(self, value: Any, where: str, least: float) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._error(where, "must be a number")
        if not least <= value <= 1e9:
            raise self._error(where, f"must be {least:g} to 1e9")
        return float(value)

    def _rights(self, value: Any, where: str) -> tuple[str, ...]:
        rights = self._texts(value, where)
        for right in rights:
            if right not in RIGHTS:
                raise self._error(where, f"rights are {', '.join(RIGHTS)}")
        return rights

    def _digest(self, text: str, where: str) -> bytes:
        scheme, _, digits = text.partition(":")
        try:
            digest = bytes.fromhex(digits)
        except ValueError:
            digest = b""
        if scheme != "sha256" or len(digest) != 32 or len(digits) != 64:
            raise self._error(
                where, 'must be "sha256:" and 64 hex digits: printf %s "$KEY" | sha256sum'
            )
        return digest

    def _texts(self, value: Any, where: str) -> tuple[str, ...]:
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
            raise self._error(where, "must be a list of texts")
        return tuple(value)

    def _mapping(self, value: Any, where: str, known: Sequence[str]) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise self._error(where, f"must have the keys {', '.join(known)}")
        for key in value:
            if key not in known:
                raise self._error(where, f"has an unknown key; known: {', '.join(known)}")
        return value

    def _unique(self, values: Sequence[object], what: str) -> None:
        if len(set(values)) != len(values):
            raise self._error("members", f"two have the same {what}")

    def _error(self, where: str, problem: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"{self._path}: {where}: {problem}")
