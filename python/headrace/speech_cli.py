"""`headrace speech`: speech models into a model repository."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from headrace.errors import InvalidArgumentError, NotFoundError

__all__ = ["app"]

app = typer.Typer(
    help="Speech models: turn weights into entries of a model repository.", no_args_is_help=True
)


@app.callback()
def _root() -> None:
    pass


@app.command()
def add(
    source: Annotated[
        str,
        typer.Argument(
            help="moonshine-base-en, whisper-tiny.en, or a folder: Moonshine or Whisper as "
            "Optimum, sherpa-onnx or CTranslate2 (faster-whisper) export them; a streaming "
            "zipformer or NeMo CTC model as sherpa-onnx has it."
        ),
    ],
    model_repository: Annotated[
        Path, typer.Option("--model-repository", help="Where the entry goes.")
    ] = Path("models"),
    name: Annotated[str, typer.Option(help="Of the model. [default: the source's]")] = "",
    model_version: Annotated[int, typer.Option(help="Version to write.")] = 1,
    precision: Annotated[
        str,
        typer.Option(
            help="f32, int8 (weights only), or auto: int8 where the weights come quantized."
        ),
    ] = "auto",
    language: Annotated[str, typer.Option(help="Spoken language, as en-US.")] = "en-US",
    check: Annotated[
        str, typer.Option(help="A WAV file to recognise with the result, greedily.")
    ] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the version.")] = False,
) -> None:
    """Write a model repository entry from weights that are on this machine."""
    from headrace.repository.names import check_model_name
    from headrace.speech.entry import write_entry
    from headrace.speech.sources import NAMED, Found, find_folder, find_package, find_vad
    from headrace.speech.streaming import STREAMING_LAYOUTS

    if model_version < 1:
        raise InvalidArgumentError(f"--model-version is {model_version}; versions start at 1")
    if source in NAMED:
        layout, package = NAMED[source]
        found = find_package(package, layout)
        vad: Found | None = find_vad()
        name = name or source
    else:
        found = find_folder(Path(source))
        vad = None if found.layout in STREAMING_LAYOUTS else find_vad(Path(source))
        name = name or Path(source).resolve().name
    check_model_name(name)
    started = time.monotonic()
    with _Steps() as steps:
        written = write_entry(
            model_repository,
            name,
            found,
            vad,
            version=model_version,
            precision=precision,
            language=language,
            overwrite=overwrite,
            on_step=steps,
        )
    for one in written.sources:
        title = f"{one['package']} {one['version']}".strip()
        print(f"{title}: licence {one['license'] or 'not stated: read what came with it'}")
        for file, value in one["sha256"].items():
            print(f"  sha256 {value}  {file}")
    sizes = ", ".join(f"{file} {size / 1e6:.1f} MB" for file, size in written.files.items())
    kind = "int8 weights" if written.int8 else "f32"
    print(
        f"{written.folder}: {written.family}, {kind} ({sizes}), {time.monotonic() - started:.1f} s"
    )
    if check and vad is None:
        print("--check: streaming models are checked by headrace transcribe")
    elif check:
        _check(written.folder, Path(check))
    print(f"\nServe it:   headrace serve --model-repository {model_repository}")
    print(f"Use it:     headrace transcribe FILE --server localhost:8001 --model {name}")


class _Steps:
    """What goes on, as one line that is replaced; nothing where nobody looks."""

    def __enter__(self) -> _Steps:
        from rich.console import Console

        self._status = Console(stderr=True).status("starting")
        self._status.start()
        return self

    def __call__(self, step: str) -> None:
        self._status.update(step)

    def __exit__(self, *_: object) -> None:
        self._status.stop()


def _check(folder: Path, clip: Path) -> None:
    from headrace.speech.greedy import Greedy
    from headrace.speech.wav import read_wav

    if not clip.is_file():
        raise NotFoundError(f"{clip} does not exist")
    print(f"{clip.name}: {Greedy(folder).text(read_wav(clip, 16000))}")
