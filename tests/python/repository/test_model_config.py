from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import InvalidArgumentError
from headrace.protocol import model_config
from headrace.protocol.model_config import ModelConfig
from headrace.repository import (
    config_from_json,
    metadata_platform,
    parse_config,
    read_config,
    read_labels,
    scan_model,
    select_versions,
)
from headrace.repository import model_config as reading

CONFIGS = Path(__file__).parent / "configs"
SAMPLES = sorted(CONFIGS.glob("*.pbtxt"))


def entry_with(tmp_path: Path, text: str | bytes, name: str = "m") -> Any:
    path = tmp_path / name / "config.pbtxt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return scan_model(path.parent)


def sample(name: str) -> ModelConfig:
    path = CONFIGS / f"{name}.pbtxt"
    return parse_config(path.read_text(), str(path))


def test_without_a_file_the_configuration_is_empty(tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    assert read_config(scan_model(tmp_path / "m")) == ModelConfig()


def test_a_classifiers_configuration() -> None:
    config = sample("classifier")
    assert config.platform == "onnxruntime_onnx"
    assert config.max_batch_size == 16
    assert config.input[0].dims == [3, 224, 224]
    assert config.input[0].data_type == model_config.TYPE_FP32
    assert config.input[0].format == model_config.ModelInput.FORMAT_NCHW
    assert config.output[0].reshape.shape == [1000, 1, 1]
    assert config.version_policy.specific.versions == [1, 3]
    batching = config.dynamic_batching
    assert batching.preferred_batch_size == [4, 8]
    assert batching.default_queue_policy.max_queue_size == 64
    assert batching.priority_queue_policy[1].timeout_action == model_config.ModelQueuePolicy.DELAY
    assert config.model_warmup[0].inputs["image"].zero_data
    assert config.parameters["onnx_engine"].string_value == "openvino"


def test_a_configuration_with_every_field() -> None:
    config = sample("everything")
    assert config.backend == "onnxruntime"
    assert config.max_batch_size == 8
    assert config.input[1].data_type == model_config.TYPE_INT32
    assert config.input[2].HasField("reshape") and not config.input[2].reshape.shape
    assert config.optimization.cuda.graph_spec[0].graph_lower_bound.input["text"].dim == [1]
    assert config.sequence_batching.control_input[2].control[0].bool_false_true == [False, True]
    assert config.instance_group[0].rate_limiter.resources[0].count == 2
    buckets = config.model_metrics.metric_control[0].histogram_options.buckets
    assert buckets == [1, 2.5, 1000]
    set_fields = {field.name for field, _ in config.ListFields()}
    other_choices = {"platform", "dynamic_batching", "ensemble_scheduling"}
    all_fields = {field.name for field in ModelConfig.DESCRIPTOR.fields}
    assert set_fields == all_fields - other_choices


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_text_and_json_say_the_same(path: Path) -> None:
    config = parse_config(path.read_text(), str(path))
    assert parse_config(text_format.MessageToString(config), "again") == config
    for snake_case in (True, False):
        text = json_format.MessageToJson(config, preserving_proto_field_name=snake_case)
        assert config_from_json(text) == config


def test_zero_is_told_from_nothing_said() -> None:
    assert parse_config("max_batch_size: 0", "t").HasField("max_batch_size")
    assert not parse_config("", "t").HasField("max_batch_size")
    assert config_from_json('{"max_batch_size": 0}').HasField("max_batch_size")
    assert not config_from_json("{}").HasField("max_batch_size")


@pytest.mark.parametrize(
    ("text", "place", "fix"),
    [
        ("max_batchsize: 8", ":1:1: ", "did you mean 'max_batch_size'?"),
        ('name: "m"\n\ninput [ { nam: "x" } ]', ":3:11: ", "did you mean 'name'?"),
        ('name: "m"\ninput { zzz: 1 }', ":2:9: ", "it has allow_ragged_batch, data_type, dims"),
        ("input { data_type: FLOAT32 }", ":1:20: ", "it must be one of TYPE_INVALID, TYPE_BOOL"),
        ("max_batch_size: eight", ":1:17: ", ""),
        ("max_batch_size: 99999999999", ":1:17: ", ""),
        ("input [ { name: 'x' }", ":1:", ""),
        ("dynamic_batching { }\nsequence_batching { }", ":2:1: ", "scheduling_choice"),
        ("name: 'a' name: 'b'", ":1:", ""),
    ],
)
def test_mistakes_are_named_by_file_line_and_fix(
    tmp_path: Path, text: str, place: str, fix: str
) -> None:
    entry = entry_with(tmp_path, text)
    with pytest.raises(InvalidArgumentError) as raised:
        read_config(entry)
    assert raised.value.details.startswith(f"{entry.config_path}{place}")
    assert fix in raised.value.details


def test_the_name_must_be_the_directorys(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="unexpected directory name 'm' for model 'n'"):
        read_config(entry_with(tmp_path, "name: 'n'"))
    assert read_config(entry_with(tmp_path, "name: 'm'")).name == "m"


def test_files_that_are_no_text_or_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidArgumentError, match=r"config\.pbtxt:2: not UTF-8 text"):
        read_config(entry_with(tmp_path, b"# \n name: '\xff\xfe'"))
    monkeypatch.setattr(reading, "MAX_CONFIG_BYTES", 100)
    read_config(entry_with(tmp_path, b"#" * 100))
    with pytest.raises(InvalidArgumentError, match="larger than 100 bytes"):
        read_config(entry_with(tmp_path, b"#" * 101))


def test_a_file_that_went_away_is_an_error_that_names_it(tmp_path: Path) -> None:
    entry = entry_with(tmp_path, "")
    assert entry.config_path is not None
    entry.config_path.unlink()
    with pytest.raises(InvalidArgumentError, match=r"cannot read .*config\.pbtxt: No such file"):
        read_config(entry)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '"text"',
        "{'name': 'm'}",
        '{"name": 3}',
        '{"name": "a", "name": "b"}',
        '{"nme": "m"}',
        '{"max_batch_size": 1.5}',
        '{"max_batch_size": 99999999999}',
        '{"input": {"name": "x"}}',
        '{"input": [{"data_type": "FLOAT32"}]}',
        '{"dynamic_batching": {}, "sequence_batching": {}}',
        '{"parameters": {"a": "b"}}',
        '{"name": "\\ud800"}',
        '{"max_batch_size": NaN}',
        '{"max_batch_size": ' + "9" * 5000 + "}",
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"input": [' + "[" * 40 + "]" * 40 + "]}",
    ],
    ids=lambda text: text[:40],
)
def test_json_that_is_no_configuration(text: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        config_from_json(text)
    assert "model configuration" in raised.value.details
    assert len(raised.value.details) < 4000


def test_json_names_what_was_meant() -> None:
    with pytest.raises(InvalidArgumentError, match="did you mean 'max_batch_size'"):
        config_from_json('{"max_batchsize": 3}')


def test_brackets_inside_of_strings_are_no_nesting() -> None:
    text = '{"parameters": {"a\\"[": {"string_value": "' + "[{" * 100 + '"}}}'
    assert config_from_json(text).parameters['a"['].string_value == "[{" * 100


def test_json_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_CONFIG_BYTES", 10)
    with pytest.raises(InvalidArgumentError, match="larger than 10 bytes"):
        config_from_json('{"name": "m"}')


# -- robustness: whatever the text, a configuration or an InvalidArgumentError ---------------------

PIECES = st.sampled_from(
    [
        *(
            "{",
            "}",
            "[",
            "]",
            "<",
            ">",
            ":",
            ",",
            ";",
            '"',
            "'",
            "\\",
            "\n",
            "#",
            "-",
            "0x",
            "1e999",
        ),
        *("name", "input", "dims", "max_batch_size", "data_type", "TYPE_FP32", "parameters", "key"),
        *("value", "[type.googleapis.com/inference.ModelConfig]", "[inference.ext]", "nan", "inf"),
        *(
            "18446744073709551616",
            "true",
            "'\\xff'",
            '"\\u12"',
            "'\\777'",
            "\0",
            "\ud7ff",
            "é",
            " ",
        ),
    ]
)


def parses_or_refuses(text: str) -> None:
    refusal = None
    try:
        parse_config(text, "config.pbtxt").SerializeToString()
    except InvalidArgumentError as error:
        refusal = error.details
    assert refusal is None or refusal.startswith("config.pbtxt")


def json_parses_or_refuses(text: str) -> None:
    refusal = None
    try:
        config_from_json(text).SerializeToString()
    except InvalidArgumentError as error:
        refusal = error.details
    assert refusal is None or "model configuration" in refusal


@given(st.lists(PIECES, max_size=40))
def test_random_tokens(pieces: list[str]) -> None:
    parses_or_refuses(" ".join(pieces))


@given(st.text(max_size=200))
def test_random_text(text: str) -> None:
    parses_or_refuses(text)


@settings(max_examples=300)
@given(st.sampled_from(SAMPLES), st.data())
def test_mutated_configurations(path: Path, data: st.DataObject) -> None:
    text = path.read_text()
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 20)))
        text = text[:start] + data.draw(st.one_of(PIECES, st.just(""))) + text[end:]
    parses_or_refuses(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([f.name for f in ModelConfig.DESCRIPTOR.fields] + ["key", "dims"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@given(JSON)
def test_random_json(value: object) -> None:
    json_parses_or_refuses(json.dumps(value))


@given(st.text(alphabet='{}[]",:\\ab1', max_size=60))
def test_random_json_text(text: str) -> None:
    json_parses_or_refuses(text)


# -- versions --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", (10,)),
        ("version_policy { }", (10,)),
        ("version_policy { latest { num_versions: 2 } }", (2, 10)),
        ("version_policy { latest { num_versions: 9 } }", (1, 2, 10)),
        ("version_policy { all { } }", (1, 2, 10)),
        ("version_policy { specific { versions: [ 10, 1 ] } }", (1, 10)),
        ("version_policy { specific { versions: [ 2, 2, 7 ] } }", (2,)),
    ],
)
def test_version_policies(policy: str, expected: tuple[int, ...]) -> None:
    assert select_versions(parse_config(policy, "t"), (10, 2, 1)) == expected


@pytest.mark.parametrize(
    "policy", ["", "version_policy { all { } }", "version_policy { specific { versions: 3 } }"]
)
def test_a_policy_that_leaves_no_version(policy: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        select_versions(parse_config(policy, "t"), (), "digits")
    assert raised.value.details.startswith(
        "at least one version must be available under the version policy of model 'digits'"
    )


def test_a_specific_version_that_is_missing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    config = parse_config("name: 'm' version_policy { specific { versions: [ 1, 3 ] } }", "t")
    assert select_versions(config, (1, 2)) == (1,)
    assert "model 'm': version 3" in caplog.text


@given(st.sets(st.integers(1, 50), min_size=1), st.integers(1, 60))
def test_latest_gives_the_highest(available: set[int], count: int) -> None:
    config = ModelConfig()
    config.version_policy.latest.num_versions = count
    chosen = select_versions(config, available)
    assert list(chosen) == sorted(available)[-count:]


# -- the rest --------------------------------------------------------------------------------------


def test_platform_of_the_metadata() -> None:
    assert metadata_platform(ModelConfig(platform="onnxruntime_onnx", backend="onnxruntime")) == (
        "onnxruntime_onnx"
    )
    assert metadata_platform(ModelConfig(backend="openvino")) == "openvino"


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        (b"", ()),
        (b"zero\none\ntwo\n", ("zero", "one", "two")),
        (b"zero\r\none", ("zero", "one")),
        (b"a\n\nc\n", ("a", "", "c")),
    ],
)
def test_labels(tmp_path: Path, text: bytes, labels: tuple[str, ...]) -> None:
    entry = entry_with(tmp_path, "")
    (entry.path / "labels.txt").write_bytes(text)
    assert read_labels(entry, "labels.txt") == labels


def test_labels_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = entry_with(tmp_path, "")
    (tmp_path / "secret").write_text("s")
    with pytest.raises(InvalidArgumentError, match="label_filename"):
        read_labels(entry, "../secret")
    with pytest.raises(InvalidArgumentError, match=r"cannot read label file .*labels\.txt"):
        read_labels(entry, "labels.txt")
    (entry.path / "labels.txt").write_bytes(b"a\n\xff")
    with pytest.raises(InvalidArgumentError, match=r"labels\.txt:2: not UTF-8"):
        read_labels(entry, "labels.txt")
    monkeypatch.setattr(reading, "MAX_LABEL_BYTES", 2)
    with pytest.raises(InvalidArgumentError, match="larger than 2 bytes"):
        read_labels(entry, "labels.txt")
