from __future__ import annotations

from pathlib import Path

import pytest

from headrace.errors import InvalidArgumentError
from headrace.repository import parse_config, unused_settings, validate

CONFIGS = Path(__file__).parent / "configs"
DYNAMIC = "max_batch_size: 8 dynamic_batching"
WARM = "max_batch_size: 8 model_warmup"


def refusal(text: str) -> str:
    with pytest.raises(InvalidArgumentError) as raised:
        validate(parse_config('name: "m" ' + text, "t"))
    return raised.value.details


@pytest.mark.parametrize(
    "text",
    [
        "",
        "max_batch_size: 0",
        'input { name: "x" data_type: TYPE_FP32 dims: [ -1, 0, 3 ] }',
        'input { name: "x" }',
        'input { name: "x" dims: [ 4, -1, 6 ] reshape { shape: [ 2, 2, -1, 6 ] } }',
        'input { name: "x" dims: [ 1 ] reshape { } }',
        "dynamic_batching { preferred_batch_size: [ 4 ] }",
        "dynamic_batching { }",
        DYNAMIC + " { priority_levels: 2 default_priority_level: 1 }",
        "instance_group { count: 0 }",
        WARM + ' { inputs { key: "x" value { data_type: TYPE_FP32 zero_data: true } } }',
    ],
)
def test_what_is_fine(text: str) -> None:
    validate(parse_config('name: "m" ' + text, "t"))


def test_a_real_configuration_is_fine() -> None:
    validate(parse_config((CONFIGS / "classifier.pbtxt").read_text(), "t"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max_batch_size: -1", "'max_batch_size' must be non-negative value for m"),
        ("version_policy { latest { } }", "latest.num_versions must be at least 1"),
        ("version_policy { specific { } }", "specific.versions is empty"),
        ("version_policy { specific { versions: [ 1, 0 ] } }", "specific.versions has 0"),
        ("input { }", "model input must specify 'name'"),
        ('input { name: "x" } input { name: "x" }', "input 'x' is listed twice"),
        ('output { name: "y" } output { name: "y" }', "output 'y' is listed twice"),
        ('input { name: "x" dims: [ 3, -2 ] }', "input 'x': dims [3,-2]: a dimension is a size"),
        ('input { name: "x" dims: [ 9223372036854775807 ] }', "a dimension is a size"),
        ('input { name: "x" data_type: 99 }', "input 'x': data_type 99 is unknown"),
        ('input { name: "x" format: FORMAT_NHWC dims: [ 3 ] }', "NHWC and NCHW require 3 dims"),
        (
            'input { name: "x" dims: 4 reshape { shape: [ 5 ] } }',
            "different size for dims and reshape",
        ),
        (
            'output { name: "y" dims: [ 4, -1 ] reshape { shape: [ -1, 4 ] } }',
            "output 'y' has different size for dims and reshape: [4,-1] and [-1,4]",
        ),
        ('output { name: "y" label_filename: "../x" }', "output 'y': label_filename: '../x'"),
        ('default_model_filename: "/x"', "default_model_filename: '/x'"),
        (DYNAMIC + " { preferred_batch_size: 0 }", "preferred size must be positive for m"),
        (
            DYNAMIC + " { preferred_batch_size: 9 }",
            "preferred size must be <= max batch size for m",
        ),
        (
            DYNAMIC + " { priority_levels: 2 }",
            "default priority level must be in range [1, 2] for m",
        ),
        (
            DYNAMIC + " { priority_levels: 2 default_priority_level: 3 }",
            "default priority level must be in range [1, 2] for m",
        ),
        (
            DYNAMIC + " { priority_queue_policy { key: 3 value { } } }",
            "priority queue policy level must be in range [1, 0] for m, not 3",
        ),
        (
            DYNAMIC + " { default_queue_policy { timeout_action: 7 } }",
            "timeout_action 7 is unknown",
        ),
        ("instance_group { count: -1 }", "count must not be negative, got -1"),
        ("instance_group { count: 5000 }", "5000 instances in instance_group"),
        ("instance_group { kind: 9 }", "kind 9 is unknown"),
        ("instance_group { kind: KIND_CPU gpus: 0 }", "KIND_CPU but specifies one or more GPUs"),
        (WARM + ' { name: "w" }', "model_warmup 'w' has no inputs"),
        (WARM + " { batch_size: 9 }", "batch_size 9 is larger than max_batch_size 8"),
        (
            WARM + ' { inputs { key: "x" value { zero_data: true } } }',
            "input 'x' must specify 'data_type'",
        ),
        (
            WARM + ' { inputs { key: "x" value { data_type: TYPE_FP32 } } }',
            "input 'x' needs zero_data, random_data or input_data_file",
        ),
        (
            WARM
            + ' { inputs { key: "x" value { data_type: TYPE_FP32 dims: -1 zero_data: true } } }',
            "dims [-1] must all be fixed sizes",
        ),
        (
            WARM
            + ' { inputs { key: "x" value { data_type: TYPE_FP32 input_data_file: "../x" } } }',
            "input_data_file: '../x'",
        ),
    ],
)
def test_what_is_refused(text: str, expected: str) -> None:
    assert expected in refusal(text)


@pytest.mark.parametrize(
    ("text", "feature"),
    [
        ("sequence_batching { }", "sequence_batching"),
        ("ensemble_scheduling { }", "ensemble_scheduling"),
        ("model_transaction_policy { decoupled: true }", "model_transaction_policy.decoupled"),
        ("batch_input { }", "batch_input"),
        ("batch_output { }", "batch_output"),
        ('model_repository_agents { agents { name: "x" } }', "model_repository_agents"),
        ('model_operations { op_library_filename: "x" }', "op_library_filename"),
        ('input { name: "x" allow_ragged_batch: true }', "input ['x'].allow_ragged_batch"),
        ('output { name: "y" is_shape_tensor: true }', "tensor ['y'].is_shape_tensor"),
        ('input { name: "x" is_non_linear_format_io: true }', "is_non_linear_format_io"),
        ("instance_group { passive: true }", "passive instances"),
        ("instance_group { secondary_devices { } }", "secondary_devices"),
    ],
)
def test_what_is_not_there_yet_is_said(text: str, feature: str) -> None:
    refused = refusal(text)
    assert feature in refused
    assert "not supported yet" in refused


@pytest.mark.parametrize("name", ["everything", "pipeline"])
def test_real_configurations_with_features_to_come(name: str) -> None:
    config = parse_config((CONFIGS / f"{name}.pbtxt").read_text(), "t")
    with pytest.raises(InvalidArgumentError, match="not supported yet"):
        validate(config)


def test_a_name_from_json_is_checked_too() -> None:
    with pytest.raises(InvalidArgumentError, match="path traversal"):
        validate(parse_config('name: "../m"', "t"))


def test_settings_without_effect_are_listed() -> None:
    config = parse_config((CONFIGS / "classifier.pbtxt").read_text(), "t")
    assert unused_settings(config) == ()
    everything = parse_config((CONFIGS / "everything.pbtxt").read_text(), "t")
    assert {line.split()[0] for line in unused_settings(everything)} == {
        *("optimization", "cc_model_filenames", "model_metrics", "runtime"),
        *("instance_group.rate_limiter", "instance_group.host_policy"),
    }
    assert unused_settings(parse_config("max_batch_size: 4 dynamic_batching { }", "t")) == ()
