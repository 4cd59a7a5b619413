"""Serves real models with headrace and uses them through tritonclient, as any client would.

    python examples/make_models.py examples/models
    python examples/demo.py --model-repository examples/models

Prints the answers, their latency and what the server counted; compares a sample of the answers with
onnxruntime. Exit status 1 when an answer is wrong.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
import wave
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import file_type
import numpy as np
import numpy.typing as npt
import text_reading
import tritonclient.grpc as triton
from reference import Reference
from rich.console import Console
from rich.table import Table
from server_process import ServerProcess

Array = npt.NDArray[Any]
CHECKOUT = Path(__file__).resolve().parent.parent
TEXT = [
    "Headrace serves real models",
    "gRPC in, tensors out",
    "Invoice 2026-1187 is paid",
    "Hello, visitor!",
    "The quick brown fox jumps",
]
DATATYPES = {"float32": "FP32", "int32": "INT32", "int64": "INT64"}
console = Console()


class Caller:
    """Calls of one model, with their latencies in seconds."""

    def __init__(self, client: Any, model: str) -> None:
        self.client = client
        self.model = model
        self.latencies: list[float] = []

    def infer(self, inputs: dict[str, Array], outputs: list[Any] | None = None) -> Any:
        tensors = []
        for name, array in inputs.items():
            tensor = triton.InferInput(name, list(array.shape), DATATYPES[array.dtype.name])
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        start = time.perf_counter()
        answer = self.client.infer(self.model, tensors, outputs=outputs)
        self.latencies.append(time.perf_counter() - start)
        return answer

    def latency(self) -> str:
        p50, p99 = np.percentile(np.array(self.latencies) * 1e3, [50, 99])
        return f"{len(self.latencies)} requests, p50 {p50:.2f} ms, p99 {p99:.2f} ms"


def _finished(text: str) -> None:
    console.print(f"  [dim]{text}[/dim]\n")


# --- file types ------------------------------------------------------------------------------


def _sample_files(folder: Path) -> list[Path]:
    """Files of many kinds: some made here, some of this checkout, some of the system."""
    text_reading.draw(TEXT).save(folder / "letter.png")
    text_reading.draw(TEXT).save(folder / "photo.jpg")
    text_reading.draw(TEXT).save(folder / "scan.pdf")
    with wave.open(str(folder / "tone.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16000)
        tone = np.sin(np.arange(16000) * 0.17) * 12000
        sound.writeframes(tone.astype("<i2").tobytes())
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        archive.writestr("hello.txt", "hello " * 100)
    files = [folder / n for n in ("letter.png", "photo.jpg", "scan.pdf", "tone.wav", "archive.zip")]
    files += [
        CHECKOUT / "examples" / "demo.py",
        CHECKOUT / "csrc" / "core" / "request.cc",
        CHECKOUT / "Makefile",
        CHECKOUT / "README.md",
        CHECKOUT / "pyproject.toml",
        CHECKOUT / "scripts" / "bootstrap.sh",
        CHECKOUT / "CMakePresets.json",
        Path("/bin/ls"),
        Path("/usr/include/zlib.h"),
    ]
    return [file for file in files if file.is_file()]


def classify_files(client: Any, reference: Reference, folder: Path) -> list[str]:
    """Every file 16 times, from 32 threads at once; the server answers with labels."""
    from magika import Magika

    console.rule("[bold]What kind of file is it?[/bold]  magika, 214 kinds", align="left")
    files = _sample_files(folder)
    inputs = [{"bytes": file_type.features(file)} for file in files]
    top = [triton.InferRequestedOutput("target_label", class_count=1)]
    caller = Caller(client, "file_type")
    start = time.perf_counter()
    with ThreadPoolExecutor(32) as pool:
        many = list(itertools.chain.from_iterable([inputs] * 16))
        answers = list(pool.map(lambda x: caller.infer(x, top), many))
    took = time.perf_counter() - start

    official = Magika()
    wrong = []
    table = Table("file", "answer", "score", "magika says")
    for index, file in enumerate(files):
        # "score:index:label"; every one of the 16 answers must agree.
        told = {a.as_numpy("target_label").flat[0].decode() for a in answers[index :: len(files)]}
        score, _, label = next(iter(told)).split(":")
        labels = {text.split(":")[2] for text in told}
        expected = official.identify_path(file).dl.label
        if labels != {str(expected)}:
            wrong.append(f"{file.name}: answered {labels}, magika says {expected}")
        colour = "green" if labels == {str(expected)} else "red"
        table.add_row(file.name, f"[{colour}]{label}[/{colour}]", score, str(expected))
    console.print(table)
    alone = Caller(client, "file_type")
    for values in inputs:
        reference.compare("file_type", values, alone.infer(values))
    _finished(
        f"from 32 threads: {caller.latency()}, {len(many) / took:.0f} a second\n"
        f"  one at a time: {alone.latency()}"
    )
    return wrong


# --- text ------------------------------------------------------------------------------------


def read_text(client: Any, reference: Reference, repository: Path) -> list[str]:
    console.rule("[bold]What is written in the picture?[/bold]  PP-OCRv4", align="left")
    picture = text_reading.draw(TEXT)
    detection = Caller(client, "text_detection")
    inputs = {"x": text_reading.detection_input(picture)}
    answer = detection.infer(inputs)
    reference.compare("text_detection", inputs, answer)
    lines = text_reading.find_lines(answer.as_numpy("sigmoid_0.tmp_0"))

    crops = [{"x": text_reading.recognition_input(picture, line)} for line in lines]
    recognition = Caller(client, "text_recognition")
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(recognition.infer, crops * 4))
    weights = repository / "text_recognition" / "1" / "model.onnx"
    characters = text_reading.alphabet(weights)
    wrong = []
    table = Table("at", "width", "read", "confidence")
    texts = []
    for line, crop, got in zip(lines, crops, answers, strict=False):
        reference.compare("text_recognition", crop, got)
        text, confidence = text_reading.read(got.as_numpy("softmax_11.tmp_0"), characters)
        texts.append(text)
        place = f"({line.left}, {line.top})"
        table.add_row(place, str(crop["x"].shape[3]), text, f"{confidence:.3f}")
    console.print(table)
    if texts != TEXT:
        wrong.append(f"the picture says {TEXT}, read was {texts}")
    _finished(f"detection: {detection.latency()}\n  recognition: {recognition.latency()}")
    return wrong


# --- digits ----------------------------------------------------------------------------------


def _blocks(images: Iterable[Array]) -> list[str]:
    """8x8 pictures side by side, two rows of pixels a line of text."""
    shades = " ░▒▓█"
    wide = np.concatenate([np.pad(image, ((0, 0), (0, 2))) for image in images], axis=1)
    rows = wide.reshape(4, 2, -1).mean(axis=1)
    return ["".join(shades[min(4, int(value / 3.3))] * 2 for value in row) for row in rows]


def recognise_digits(client: Any, reference: Reference) -> list[str]:
    from sklearn.datasets import load_digits

    console.rule(
        "[bold]Which digit is it?[/bold]  a perceptron trained for this demo", align="left"
    )
    digits = load_digits()
    chosen = range(0, 1797, 7)
    images = [digits.images[i].astype(np.float32) for i in chosen]
    truth = [int(digits.target[i]) for i in chosen]
    caller = Caller(client, "digits")
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda x: caller.infer({"image": x[np.newaxis]}), images))
    wrong = []
    told = []
    for image, answer in zip(images, answers, strict=True):
        values = {"image": image[np.newaxis]}
        expected = reference.compare("digits", values, answer)[0]
        told.append(int(answer.as_numpy("probabilities")[0].argmax()))
        if told[-1] != int(expected[0].argmax()):
            wrong.append(f"digit answered as {told[-1]}, onnxruntime says {expected[0].argmax()}")
    shown = 4
    console.print("\n".join(_blocks(images[:shown])), highlight=False, soft_wrap=True)
    console.print("".join(f"{digit:^16}    " for digit in told[:shown]), style="bold green")
    right = sum(a == b for a, b in zip(told, truth, strict=True))
    if right < 0.95 * len(truth):
        wrong.append(f"only {right} of {len(truth)} digits are right")
    _finished(f"{right} of {len(truth)} right; {caller.latency()}")
    return wrong


# --- speech activity -------------------------------------------------------------------------


def follow_sound(client: Any, reference: Reference) -> list[str]:
    """Half a second of noise in steps of 32 ms; each answer's state goes into the next request."""
    console.rule("[bold]Does anybody speak?[/bold]  Silero VAD, a model with state", align="left")
    caller = Caller(client, "speech_activity")
    noise = np.random.default_rng(3).normal(0, 0.02, (16, 512)).astype(np.float32)
    state = np.zeros((2, 1, 128), np.float32)
    context = np.zeros(64, np.float32)
    rate = np.array([16000], np.int64)
    chances = []
    for chunk in noise:
        values = {
            "input": np.concatenate([context, chunk])[np.newaxis],
            "state": state,
            "sr": rate,
        }
        answer = caller.infer(values)
        # The protocol has no scalars: the server reshapes [1] to what the model takes.
        reference.compare("speech_activity", {**values, "sr": rate.reshape(())}, answer)
        state, context = answer.as_numpy("stateN"), chunk[-64:]
        chances.append(float(answer.as_numpy("output")[0, 0]))
    console.print(f"noise: speech with a chance of {max(chances):.3f} at most")
    _finished(caller.latency())
    return [] if max(chances) < 0.5 else [f"noise taken for speech: {max(chances):.3f}"]


# --- what the server counted -----------------------------------------------------------------


def print_statistics(client: Any) -> None:
    console.rule("[bold]What the server counted[/bold]", align="left")
    table = Table(
        "model", "requests", "runs", "mean batch", "queue ms", "compute ms", "batch sizes"
    )
    for model in client.get_inference_statistics().model_stats:
        stats = model.inference_stats
        runs = {b.batch_size: b.compute_infer.count for b in model.batch_stats}
        most = max(runs.values(), default=1)
        bars = " ".join(
            f"{size}[cyan]{'▁▂▃▄▅▆▇█'[min(7, int(8 * count / most))]}[/cyan]"
            for size, count in sorted(runs.items())
        )
        table.add_row(
            model.name,
            str(stats.success.count),
            str(model.execution_count),
            f"{model.inference_count / max(1, model.execution_count):.1f}",
            f"{stats.queue.ns / max(1, stats.queue.count) / 1e6:.2f}",
            f"{stats.compute_infer.ns / max(1, stats.compute_infer.count) / 1e6:.2f}",
            bars,
        )
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description="Serve real models and use them.")
    default = CHECKOUT / "examples" / "models"
    parser.add_argument("--model-repository", type=Path, default=default)
    arguments = parser.parse_args()
    repository: Path = arguments.model_repository.resolve()
    reference = Reference(repository)

    with tempfile.TemporaryDirectory() as folder, ServerProcess(repository) as server:
        console.print(f"$ {' '.join(server.command)}", style="dim", highlight=False, soft_wrap=True)
        with console.status("loading models"):
            server.wait_ready()
        console.print(f"ready after {server.start_seconds:.2f} s\n")
        with triton.InferenceServerClient(server.address) as client:
            steps: list[Callable[[], list[str]]] = [
                lambda: classify_files(client, reference, Path(folder)),
                lambda: read_text(client, reference, repository),
                lambda: recognise_digits(client, reference),
                lambda: follow_sound(client, reference),
            ]
            wrong = [text for step in steps for text in step()]
            print_statistics(client)
    wrong += reference.report(console)
    status = server.returncode
    if status != 0:
        wrong.append(f"the server ended with exit status {status}")
    for text in wrong:
        console.print(f"[red]wrong:[/red] {text}")
    if not wrong:
        console.print("[green]every answer is right; the server stopped cleanly[/green]")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
