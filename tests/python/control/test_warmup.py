"""What a version runs before it serves."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.control.warmup import configured_samples, default_samples
from headrace.errors import InvalidArgumentError, NotFoundError
from headrace.protocol import model_config
from headrace.repository.model_config import parse_config


def config(text: str) -> model_config.ModelConfig:
    return parse_config(text, "config.pbtxt")


INPUTS = """
    name: "m" max_batch_size: 8
    input { name: "x" data_type: TYPE_FP32 dims: [4] }
    input { name: "s" data_type: TYPE_STRING dims: [1] }
"""


def test_default_samples_are_one_and_the_largest_batch() -> None:
    ((one, most),) = default_samples(config(INPUTS))
    assert one.inputs["x"].shape == (1, 4)
    assert most.inputs["x"].shape == (8, 4)
    assert most.inputs["s"].tolist() == [[b""]] * 8
    assert one.guessed, "an empty string may be nonsense to the model"


def test_default_samples_are_of_the_preferred_sizes_too() -> None:
    text = INPUTS + "dynamic_batching { preferred_batch_size: [4, 2, 8] }"
    (samples,) = default_samples(config(text))
    assert [len(sample.inputs["x"]) for sample in samples] == [1, 2, 4, 8]


def test_default_samples_guess_unknown_sizes_and_say_so() -> None:
    known = config('max_batch_size: 0 input { name: "x" data_type: TYPE_INT64 dims: [2, 3] }')
    unknown = config('max_batch_size: 0 input { name: "x" data_type: TYPE_INT64 dims: [-1, 3] }')
    ((sample,),) = default_samples(known)
    assert (sample.inputs["x"].shape, sample.guessed) == ((2, 3), False)
    guesses = [sample for (sample,) in default_samples(unknown)]
    assert [s.inputs["x"].shape for s in guesses] == [(1, 3), (32, 3), (48, 3), (224, 3)]
    assert all(s.guessed for s in guesses)


def test_default_samples_stay_small() -> None:
    large = config('max_batch_size: 1024 input { name: "x" data_type: TYPE_FP32 dims: [1048576] }')
    (samples,) = default_samples(large)
    sizes = [s.inputs["x"].shape[0] for s in samples]
    assert sizes == [1, 16]


def test_configured_samples(tmp_path) -> None:
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "row").write_bytes(np.arange(4, dtype="<f4").tobytes())
    text = (
        INPUTS
        + """
        model_warmup {
          name: "real" batch_size: 3 count: 2
          inputs { key: "x" value { data_type: TYPE_FP32 dims: [4] input_data_file: "row" } }
          inputs { key: "s" value { data_type: TYPE_STRING dims: [1] random_data: true } }
        }
        model_warmup {
          name: "zero" batch_size: 1
          inputs { key: "x" value { data_type: TYPE_FP32 dims: [4] zero_data: true } }
          inputs { key: "s" value { data_type: TYPE_STRING dims: [1] zero_data: true } }
        }
    """
    )
    real, zero = configured_samples(config(text), tmp_path)
    assert (real.name, real.count) == ("real", 2)
    assert real.inputs["x"].tolist() == [[0, 1, 2, 3]] * 3
    assert real.inputs["s"].shape == (3, 1)
    assert all(isinstance(item, bytes) for item in real.inputs["s"].flat)
    assert zero.inputs["x"].tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("warmup", "text"),
    [
        ('batch_size: 9 inputs { key: "x" value {} }', "more than max_batch_size 8"),
        ('inputs { key: "z" value { data_type: TYPE_FP32 } }', "the model has s, x"),
        ('inputs { key: "x" value { data_type: TYPE_INT8 } }', "the model expects FP32"),
        (
            'inputs { key: "x" value { data_type: TYPE_FP32 dims: [-1] zero_data: true } }',
            "known sizes",
        ),
        (
            'inputs { key: "x" value { data_type: TYPE_FP32 dims: [3] input_data_file: "row" } }',
            "takes 12 bytes, got 16",
        ),
    ],
)
def test_mistakes_name_sample_and_input(tmp_path, warmup: str, text: str) -> None:
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "row").write_bytes(bytes(16))
    with pytest.raises(InvalidArgumentError) as caught:
        list(
            configured_samples(config(INPUTS + f'model_warmup {{ name: "w" {warmup} }}'), tmp_path)
        )
    assert text in caught.value.details
    assert "'w'" in caught.value.details


def test_a_missing_data_file_is_named(tmp_path) -> None:
    text = INPUTS + (
        'model_warmup { inputs { key: "x" '
        'value { data_type: TYPE_FP32 dims: [4] input_data_file: "gone" } } }'
    )
    with pytest.raises(NotFoundError, match="gone"):
        list(configured_samples(config(text), tmp_path))


def test_a_configured_warm_up_runs_on_every_instance_and_its_failure_fails_the_load(
    repository, start_server, connect, tmp_path
) -> None:
    seen = tmp_path / "seen"
    repository.put(
        "m/1/model.py",
        f"""
        class Model:
            inputs = outputs = {{"x": ("FP32", [2])}}
            max_batch_size = 4

            def __init__(self, context):
                self.instance = context.instance

            def __call__(self, inputs):
                if inputs["x"].shape[0] == 4:
                    raise ValueError("too many rows")
                with open({str(seen)!r}, "a") as file:
                    file.write(f"{{self.instance}}:{{inputs['x'].shape}}\\n")
                return inputs
        """,
    )
    sample = """
        model_warmup {{
          name: "rows" batch_size: {rows}
          inputs {{ key: "x" value {{ data_type: TYPE_FP32 dims: [2] zero_data: true }} }}
        }}
        instance_group {{ count: 2 }}
    """
    repository.put("m/config.pbtxt", sample.format(rows=3))
    client = connect(start_server(load_model=("m",)))
    assert sorted(seen.read_text().split("\n")) == ["", "0:(3, 2)", "1:(3, 2)"]
    (statistics,) = client.statistics("m")
    assert statistics.inference_count == 0, "a warm-up is nobody's request"

    repository.put("m/config.pbtxt", sample.format(rows=4))
    with pytest.raises(InvalidArgumentError, match=r"warm-up 'rows' failed.*too many rows"):
        client.load("m")
    assert client.model_ready("m")
