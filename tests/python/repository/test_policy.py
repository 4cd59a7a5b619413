from pathlib import Path

import pytest

from headrace.errors import InvalidArgumentError
from headrace.repository.policy import (
    AdmissionPolicy,
    CachePolicy,
    HealthPolicy,
    ModelPolicy,
    parse_policy,
    read_policy,
)
from headrace.repository.scan import scan_model


@pytest.mark.parametrize(
    ("text", "ttl"),
    [("ttl: 250ms", 0.25), ("ttl: 1.5", 1.5), ("ttl: 2 m", 120.0), ("ttl: 1h", 3600.0), ("{}", 0)],
)
def test_times_are_written_with_units(text: str, ttl: float) -> None:
    section = text if text == "{}" else "{" + text + "}"
    assert parse_policy(f"cache: {section}").cache == CachePolicy(ttl=ttl)


def test_a_section_may_be_switched_on_and_off() -> None:
    assert parse_policy("cache: true").cache == CachePolicy()
    assert parse_policy("cache: false") == ModelPolicy()
    assert parse_policy("cache:") == ModelPolicy()
    assert parse_policy("") == ModelPolicy()


def test_a_latency_budget_and_admission() -> None:
    policy = parse_policy("slo: {latency: 50ms, objective: 99.9%}\nadmission: {queue-target: 5ms}")
    assert policy.slo is not None
    assert policy.slo.latency == pytest.approx(0.05)
    assert policy.slo.objective == pytest.approx(0.999)
    assert policy.admission == AdmissionPolicy(queue_target=0.005)
    assert policy.fingerprint != parse_policy("admission: {queue-target: 5ms}").fingerprint


def test_health() -> None:
    assert parse_policy("health: true").health == HealthPolicy(5, 1.0, 60.0)
    policy = parse_policy("health: {failures: 0, backoff: 250ms, backoff-max: 2m}")
    assert policy.health == HealthPolicy(0, 0.25, 120.0)
    assert policy.fingerprint != ""


def test_shares_are_numbers_or_percentages() -> None:
    for text in ("10%", "0.1"):
        found = parse_policy(f"cache: {{bypass-below: {text}}}").cache
        assert found is not None
        assert found.bypass_below == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cash: {}", "cash: unknown key; known: .*cache"),
        ("cache: {tll: 3}", r"cache\.tll: unknown key; known: bypass_below, ttl"),
        ("cache: {ttl: 3 parsecs}", r"cache\.ttl is '3 parsecs'; expected a time"),
        ("cache: {ttl: -1}", r"cache\.ttl is -1\.0; it must be 0 to"),
        ("cache: {ttl: .nan}", r"cache\.ttl is nan; expected a time"),
        ("cache: {ttl: true}", r"cache\.ttl is True; expected a time"),
        ("cache: {bypass_below: 200%}", r"cache\.bypass_below is 2\.0"),
        ("health: {failures: -1}", r"health\.failures is -1; it must be 0 to"),
        ("health: {failures: many}", r"health\.failures: "),
        ("health: {backoff: 0s}", r"health\.backoff is 0\.0; it must be 0\.001 to"),
        ("health: {backoff: 2m}", r"health\.backoff_max is 60\.0; it must be 120\.0 to"),
        ("cache: 3", "cache: expected `key: value` pairs, found int"),
        ("- cache", "the file: expected `key: value` pairs, found list"),
        ("cache: {", "not valid YAML"),
        ("rollout: 3", "rollout"),
        ("slo: {objective: 99%}", r"slo\.latency must be given"),
        ("slo: {latency: 50ms, objective: 100%}", r"slo\.objective is 1\.0"),
        ("slo: {latency: 2h}", r"slo\.latency is 7200\.0"),
        ("admission: {queue_target: 1s}", r"admission\.queue_interval is 0\.1; it must be 1\.0"),
        ("admission: {deadline: maybe}", r"admission\.deadline"),
    ],
)
def test_what_makes_no_sense_is_said_by_key(text: str, said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        parse_policy(text)


def test_the_file_beside_the_configuration_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    (folder / "1").mkdir(parents=True)
    assert read_policy(scan_model(folder)) == ModelPolicy()
    (folder / "policy.yaml").write_text("cache: {ttl: 1s}")
    found = scan_model(folder)
    assert read_policy(found).cache == CachePolicy(ttl=1.0)
    assert dict(found.ignored) == {}
    (folder / "policy.yaml").write_text("cache: {tll: 1s}")
    with pytest.raises(InvalidArgumentError, match=r"m/policy\.yaml: cache\.tll: unknown key"):
        read_policy(scan_model(folder))
    (folder / "policy.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidArgumentError, match="not UTF-8"):
        read_policy(scan_model(folder))


def test_only_what_a_version_is_built_by_changes_the_fingerprint() -> None:
    assert ModelPolicy().fingerprint == ""
    assert parse_policy("rollout: {candidate: 2, share: 5%}").fingerprint == ""
    one, two = parse_policy("cache: {ttl: 1s}"), parse_policy("cache: {ttl: 2s}")
    assert one.fingerprint != two.fingerprint
    assert one.fingerprint == parse_policy("cache: {ttl: 1000ms}").fingerprint
