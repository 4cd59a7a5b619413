"""The file of --auth-file."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from headrace.access import AccessPolicy, Member, Quota, read_access_file
from headrace.errors import InvalidArgumentError, NotFoundError

DIGEST = hashlib.sha256(b"key").hexdigest()
MEMBER = f'{{name: a, rights: [infer], keys: ["sha256:{DIGEST}"]}}'


def read(tmp_path: Path, text: str) -> AccessPolicy:
    file = tmp_path / "auth.yaml"
    file.write_text(text)
    return read_access_file(file)


def test_a_whole_file(tmp_path: Path) -> None:
    policy = read(
        tmp_path,
        f"""
anonymous: [probe]
members:
  - name: job
    rights: [probe, infer]
    keys: ["sha256:{DIGEST}"]
  - name: operator
    rights: [control]
    certificates: ["spiffe://ops", "ops.example"]
""",
    )
    assert policy == AccessPolicy(
        ("probe",),
        (
            Member("job", ("probe", "infer"), (hashlib.sha256(b"key").digest(),)),
            Member("operator", ("control",), (), ("spiffe://ops", "ops.example")),
        ),
    )


def test_quotas(tmp_path: Path) -> None:
    member = MEMBER.removesuffix("}")
    policy = read(
        tmp_path,
        f"""
anonymous_quota: {{rate: 0.5}}
members: [{member}, quota: {{rate: 100, burst: 300}}}}]
""",
    )
    assert policy.members[0].quota == Quota(100, 300)
    assert policy.anonymous_quota == Quota(0.5, 1)
    for quota, place in (
        ("10", "anonymous_quota"),
        ("{burst: 3}", "anonymous_quota.rate"),
        ("{rate: 0}", "anonymous_quota.rate"),
        ("{rate: true}", "anonymous_quota.rate"),
        ("{rate: .inf}", "anonymous_quota.rate"),
        ("{rate: 1, burst: 0.5}", "anonymous_quota.burst"),
        ("{rate: 1, per: minute}", "anonymous_quota"),
    ):
        with pytest.raises(InvalidArgumentError, match=re.escape(f"{place}: ")):
            read(tmp_path, f"anonymous_quota: {quota}")


def test_nobody_may_do_anything(tmp_path: Path) -> None:
    assert read(tmp_path, "members: []") == AccessPolicy()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "the file"),
        ("[]", "the file"),
        ("member: []", "the file"),
        ("anonymous: probe", "anonymous"),
        ("anonymous: [everything]", "anonymous"),
        ("members: {}\nanonymous: [probe]\nx: 1", "the file"),
        ("members: [{}]", "members[0].name"),
        ("members: [{name: a, rights: [infer]}]", "members[0]"),
        ("members: [{name: a, keys: [secret]}]", "members[0].keys[0]"),
        (f"members: [{{name: a, keys: [{DIGEST}]}}]", "members[0].keys[0]"),
        (f'members: [{{name: a, keys: ["sha256:{DIGEST[:-2]}"]}}]', "members[0].keys[0]"),
        (f'members: [{{name: a, keys: ["md5:{DIGEST}"]}}]', "members[0].keys[0]"),
        (f"members: [{MEMBER}, {MEMBER}]", "two have the same name"),
        (f"members: [{MEMBER}, {MEMBER.replace('name: a', 'name: b')}]", "same key"),
        ("members: {", "not valid YAML"),
        ("members: 2001-13-45", "not valid YAML"),
        ("[" * 50_000, "not valid YAML"),
        ("#" * 2_000_000, "is larger than 1048576 bytes"),
    ],
)
def test_errors_name_the_place_and_not_the_secret(tmp_path: Path, text: str, place: str) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        read(tmp_path, text)
    assert place in str(error.value)
    assert "auth.yaml" in str(error.value)
    assert "secret" not in str(error.value)
    assert DIGEST not in str(error.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"auth\.yaml"):
        read_access_file(tmp_path / "auth.yaml")
