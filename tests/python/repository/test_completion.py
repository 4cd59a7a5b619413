from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidArgumentError
from headrace.protocol import model_config
from headrace.protocol.model_config import ModelConfig
from headrace.repository import Artifact, Defaults, complete, parse_config, validate
from headrace.repository.completion import config_datatype


@dataclass(frozen=True)
class Spec:
    name: str
    datatype: str
    dims: Sequence[int]
    optional: bool = False


ONNX = Artifact("onnxruntime", Path("m/1/model.onnx"))
IN = Spec("x", "FP32", (-1, 3, -1))
OUT = Spec("y", "INT64", (-1, 10))
ALL = "max_batch_size: 0 "


def completed(
    text: str = "",
    inputs: Sequence[Spec] | None = (IN,),
    outputs: Sequence[Spec] | None = (OUT,),
    artifact: Artifact = ONNX,
    defaults: Defaults = Defaults(),  # noqa: B008 - frozen
) -> ModelConfig:
    config = parse_config(text, "t")
    before = ModelConfig()
    before.CopyFrom(config)
    done = complete(config, "m", artifact, inputs, outputs, defaults)
    assert config == before, "the caller's configuration is left alone"
    validate(done)
    again = complete(done, "m", artifact, inputs, outputs, defaults)
    assert again == done, "a completed configuration is complete"
    return done


def refusal(text: str, inputs: Sequence[Spec] | None = (IN,), **others: object) -> str:
    with pytest.raises(InvalidArgumentError) as raised:
        completed(text, inputs, **others)  # type: ignore[arg-type]
    return raised.value.details


def test_from_nothing() -> None:
    expected = parse_config(
        """
        name: "m"
        platform: "onnxruntime_onnx"
        backend: "onnxruntime"
        version_policy { latest { num_versions: 1 } }
        max_batch_size: 32
        input { name: "x" data_type: TYPE_FP32 dims: [ 3, -1 ] }
        output { name: "y" data_type: TYPE_INT64 dims: [ 10 ] }
        dynamic_batching { }
        instance_group { name: "m_0" kind: KIND_CPU count: 1 }
        default_model_filename: "model.onnx"
        """,
        "t",
    )
    assert completed() == expected


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ([IN, Spec("state", "FP32", (2, -1, 128))], [OUT]),
        ([IN, Spec("rate", "INT64", ())], [OUT]),
        ([IN], [Spec("y", "FP32", (1, 10))]),
        ([IN], [OUT, Spec("loss", "FP32", ())]),
    ],
)
def test_a_model_that_cannot_batch_does_not(inputs: list[Spec], outputs: list[Spec]) -> None:
    config = completed("", inputs, outputs)
    assert config.max_batch_size == 0
    assert config.HasField("max_batch_size")
    assert config.WhichOneof("scheduling_choice") is None
    assert config.input[0].dims == [-1, 3, -1]


def test_zero_that_is_said_is_kept() -> None:
    config = completed("max_batch_size: 0")
    assert config.max_batch_size == 0
    assert config.input[0].dims == [-1, 3, -1]
    assert config.WhichOneof("scheduling_choice") is None


def test_a_batch_size_that_is_said_is_kept_and_brings_no_dynamic_batching() -> None:
    config = completed("max_batch_size: 4")
    assert config.max_batch_size == 4
    assert config.input[0].dims == [3, -1]
    assert config.WhichOneof("scheduling_choice") is None


def test_the_default_batch_size_is_the_servers() -> None:
    assert completed("", defaults=Defaults(max_batch_size=7)).max_batch_size == 7
    config = completed("", defaults=Defaults(max_batch_size=1))
    assert config.max_batch_size == 1
    assert config.WhichOneof("scheduling_choice") is None
    assert completed("", defaults=Defaults(max_batch_size=0)).input[0].dims == [-1, 3, -1]


def test_scheduling_that_is_chosen_is_kept() -> None:
    config = completed("dynamic_batching { max_queue_delay_microseconds: 5 }")
    assert config.max_batch_size == 32
    assert config.dynamic_batching.max_queue_delay_microseconds == 5


def test_tensors_listed_with_all_dimensions_count_on_no_batching() -> None:
    config = completed('input { name: "x" data_type: TYPE_FP32 dims: [ -1, 3, 8 ] }')
    assert config.max_batch_size == 0
    assert config.input[0].dims == [-1, 3, 8]
    assert config.output[0].dims == [-1, 10]


def test_tensors_listed_without_the_batch_dimension_count_on_it() -> None:
    config = completed('input { name: "x" data_type: TYPE_FP32 dims: [ 3, 8 ] }')
    assert config.max_batch_size == 32
    assert config.input[0].dims == [3, 8]


def test_missing_inputs_and_missing_parts_are_filled_in() -> None:
    inputs = [IN, Spec("z", "BYTES", (-1, 1), optional=True)]
    config = completed('input { name: "z" }', inputs)
    assert [i.name for i in config.input] == ["z", "x"]
    assert config.input[0].data_type == model_config.TYPE_STRING
    assert config.input[0].dims == [1]
    assert [i.optional for i in config.input] == [True, False]


def test_listed_outputs_are_a_selection() -> None:
    outputs = [OUT, Spec("features", "FP32", (-1, 512))]
    config = completed('output { name: "y" label_filename: "labels.txt" }', outputs=outputs)
    assert [o.name for o in config.output] == ["y"]
    assert config.output[0].dims == [10]
    assert config.output[0].label_filename == "labels.txt"
    assert [o.name for o in completed("", outputs=outputs).output] == ["y", "features"]


def test_tensors_without_dims_of_their_own() -> None:
    config = completed("", [Spec("x", "FP32", (-1,))], [OUT])
    assert config.max_batch_size == 32
    assert config.input[0].dims == [1]
    assert config.input[0].HasField("reshape") and not config.input[0].reshape.shape
    config = completed("", [IN, Spec("rate", "INT64", ())])
    assert config.input[1].dims == [1]
    assert config.input[1].HasField("reshape") and not config.input[1].reshape.shape


def test_a_reshape_is_what_the_model_sees() -> None:
    text = 'max_batch_size: 4 input { name: "x" dims: [ 12 ] reshape { shape: [ 3, 4 ] } }'
    assert completed(text, [Spec("x", "FP32", (-1, 3, 4))]).input[0].dims == [12]
    assert "(shape [-1,3,4])" in refusal(text, [Spec("x", "FP32", (-1, 4, 3))])


def test_a_fixed_first_dimension_cannot_batch() -> None:
    text = refusal("max_batch_size: 8", [Spec("x", "FP32", (1, 3))])
    assert "model 'm', input 'x': for the model to support batching" in text
    assert "the first dimension must be -1; but shape expected by the model is [1,3]" in text
    assert "set max_batch_size: 0 instead of 8" in text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            'input { name: "x" data_type: TYPE_INT8 }',
            ["model 'm', input 'x'", "TYPE_INT8", "TYPE_FP32"],
        ),
        (
            'output { name: "y" data_type: TYPE_FP32 }',
            ["model 'm', output 'y'", "TYPE_FP32", "TYPE_INT64"],
        ),
        (
            ALL + 'input { name: "x" dims: [ 3, 8 ] }',
            ["expects 3 dimensions (shape [-1,3,-1])", "specifies 2 dimensions (shape [3,8])"],
        ),
        (
            'max_batch_size: 8 input { name: "x" dims: [ 4, -1 ] }',
            ["(shape [-1,3,-1])", "(shape [-1,4,-1])", "max_batch_size is 8"],
        ),
        ('max_batch_size: 8 input { name: "x" dims: [ -1, -1 ] }', ["(shape [-1,-1,-1])"]),
        ('output { name: "y" dims: [ 11 ] }', ["(shape [-1,10])", "(shape [-1,11])"]),
        ('input { name: "X" }', ["unexpected inference input 'X', allowed inputs are: x"]),
        ('output { name: "z" }', ["unexpected inference output 'z', allowed outputs are: y"]),
        ('name: "n"', ["unexpected directory name 'm' for model 'n'"]),
        ("instance_group { kind: KIND_GPU }", ["instance group m_0 of model m", "no GPUs"]),
        ("instance_group { gpus: 0 }", ["no GPUs are available; set kind: KIND_CPU"]),
    ],
)
def test_contradictions_name_both_sides_and_the_fix(text: str, parts: list[str]) -> None:
    refused = refusal(text)
    for part in parts:
        assert part in refused


def test_an_output_may_promise_less_than_the_model() -> None:
    assert completed('output { name: "y" dims: [ -1 ] }').output[0].dims == [-1]


def test_a_gpu_that_is_there_may_be_asked_for() -> None:
    config = completed("instance_group { gpus: 0 }", defaults=Defaults(gpus=1))
    assert config.instance_group[0].kind == model_config.ModelInstanceGroup.KIND_GPU


def test_instance_groups() -> None:
    config = completed('instance_group [ { count: 3 }, { name: "own" kind: KIND_MODEL } ]')
    kinds = model_config.ModelInstanceGroup
    assert [(g.name, g.kind, g.count) for g in config.instance_group] == [
        ("m_0", kinds.KIND_CPU, 3),
        ("own", kinds.KIND_MODEL, 1),
    ]


@pytest.mark.parametrize(
    ("artifact", "text", "backend", "platform", "filename"),
    [
        (ONNX, "", "onnxruntime", "onnxruntime_onnx", "model.onnx"),
        (ONNX, 'platform: "onnxruntime_onnx"', "onnxruntime", "onnxruntime_onnx", "model.onnx"),
        (Artifact("openvino", Path("model.xml")), "", "openvino", "", "model.xml"),
        (
            Artifact("openvino", Path("m.xml")),
            'platform: "openvino" default_model_filename: "m.xml"',
            *("openvino", "openvino", "m.xml"),
        ),
        (Artifact("pytorch", Path("model.pt2")), "", "pytorch", "pytorch_libtorch", "model.pt2"),
        (Artifact("callback", Path("model.py")), "", "callback", "", "model.py"),
    ],
)
def test_backend_and_platform(
    artifact: Artifact, text: str, backend: str, platform: str, filename: str
) -> None:
    config = completed(text, artifact=artifact)
    assert (config.backend, config.platform) == (backend, platform)
    assert config.default_model_filename == filename


def test_without_a_signature_the_configuration_has_to_say_it() -> None:
    tensors = """
        input { name: "x" data_type: TYPE_FP32 dims: [ 2 ] }
        output { name: "y" data_type: TYPE_FP32 dims: [ 2 ] }
    """
    python = Artifact("callback", Path("model.py"))
    assert completed(tensors, None, None, python).max_batch_size == 0
    assert completed("max_batch_size: 8" + tensors, None, None, python).max_batch_size == 8
    with pytest.raises(InvalidArgumentError, match="does not tell its inputs; list them"):
        completed("", None, None, python)
    with pytest.raises(InvalidArgumentError, match="input 'x' must specify 'data_type'"):
        completed('input { name: "x" dims: 1 }', None, None, python)
    with pytest.raises(InvalidArgumentError, match="input 'x' must specify 'dims'"):
        completed('input { name: "x" data_type: TYPE_FP32 }', None, None, python)


def test_datatypes() -> None:
    names = [n.removeprefix("TYPE_") for n in model_config.DataType.keys()]  # noqa: SIM118
    for name in names[1:]:
        word = "BYTES" if name == "STRING" else name
        assert config_datatype(word) == model_config.DataType.Value(f"TYPE_{name}")
    for bad in ("", "STRING", "INVALID", "FLOAT", "fp32", "<invalid>"):
        with pytest.raises(ValueError, match="is not a KServe datatype"):
            config_datatype(bad)


DIMS = st.lists(st.integers(-1, 4), max_size=4)
SPECS = st.dictionaries(st.sampled_from("abcd"), DIMS, min_size=1, max_size=3)


@given(SPECS, SPECS, st.sampled_from([None, 0, 1, 8]))
def test_a_completed_configuration_gives_the_models_shapes_back(
    inputs: dict[str, list[int]], outputs: dict[str, list[int]], said: int | None
) -> None:
    ins = [Spec(name, "FP32", dims) for name, dims in inputs.items()]
    outs = [Spec(name, "INT32", dims) for name, dims in outputs.items()]
    can = all(dims[:1] == [-1] for dims in [*inputs.values(), *outputs.values()])
    text = "" if said is None else f"max_batch_size: {said}"
    if said and not can:
        with pytest.raises(InvalidArgumentError, match="to support batching"):
            completed(text, ins, outs)
        return
    config = completed(text, ins, outs)
    assert (config.max_batch_size > 0) == (can if said is None else said > 0)
    batch = [-1] if config.max_batch_size > 0 else []
    for listed, specs in ((config.input, ins), (config.output, outs)):
        assert [t.name for t in listed] == [spec.name for spec in specs]
        for tensor, spec in zip(listed, specs, strict=True):
            own = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
            assert [*batch, *own] == list(spec.dims)
