"""`headrace transcribe`: files or the microphone as text, with what is heard so far as it is
heard."""

from __future__ import annotations

import json
import queue
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from headrace.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    from headrace.client.speech import Heard, SpeechClient

__all__ = ["transcribe"]

Files = Optional[list[Path]]  # noqa: UP045  (typer reads it at run time)

_RATE = 16000
_CHUNK_S = 0.1


def transcribe(
    files: Annotated[
        Files, typer.Argument(help="WAV, FLAC or Ogg Opus files.", show_default=False)
    ] = None,
    mic: Annotated[bool, typer.Option("--mic", help="Listen until Ctrl-C.")] = False,
    server: Annotated[
        str,
        typer.Option(help="host:port of a server. [default: one in this process]"),
    ] = "",
    model_repository: Annotated[
        Path, typer.Option("--model-repository", help="Without --server: where the model is.")
    ] = Path("models"),
    model: Annotated[str, typer.Option(help="Its name. [default: the server's only one]")] = "",
    language: Annotated[str, typer.Option(help="Spoken language.")] = "en-US",
    format_: Annotated[str, typer.Option("--format", help="text, srt, vtt or json.")] = "text",
    output_dir: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A file for each, with the format's ending. [default: all to stdout]"),
    ] = None,
    api_key: Annotated[str, typer.Option(envvar="HEADRACE_API_KEY", help="For --auth-file.")] = "",
) -> None:
    """Transcribe files or the microphone."""
    from headrace.client.transcript import FORMATS

    if format_ not in FORMATS:
        raise InvalidArgumentError(f"--format is '{format_}'; say {', '.join(FORMATS)}")
    if mic == bool(files):
        raise InvalidArgumentError("give files, or --mic")
    for path in files or ():
        if not path.is_file():
            raise NotFoundError(f"{path} does not exist")
    if mic:
        _need_microphone()
    from headrace.client.speech import SpeechClient

    metadata = [("authorization", f"Bearer {api_key}")] if api_key else []
    with (
        _address(server, model_repository) as address,
        SpeechClient(address, metadata=metadata) as client,
    ):
        model = model or _only_model(client)
        if mic:
            with _microphone() as chunks:
                heard = _live(client, chunks, model, language, title="")
            _write(heard, format_, None)
            return
        several = len(files or ()) > 1
        for path in files or ():
            chunks = _chunks_of(path, path.read_bytes())
            title = path.name if several or format_ != "text" else ""
            heard = _live(client, chunks, model, language, title=title, encoding="", rate=0)
            target = output_dir / f"{path.stem}.{_ENDINGS[format_]}" if output_dir else None
            if several and target is None and format_ == "text":
                print(f"{path}:")
            _write(heard, format_, target)


_ENDINGS = {"text": "txt", "srt": "srt", "vtt": "vtt", "json": "json"}


@contextmanager
def _address(server: str, repository: Path) -> Iterator[str]:
    """A server's address: the given one, or of one that lives as long as this."""
    if server:
        yield server
        return
    if not repository.is_dir():
        raise NotFoundError(
            f"there is no model repository '{repository}': give --server or --model-repository, or "
            "make one with `headrace speech add moonshine-base-en`"
        )
    from headrace import logs
    from headrace.app import Server
    from headrace.config import ServerConfig

    logs.configure("warning", "text")
    config = ServerConfig(
        model_repository=(repository,),
        host="127.0.0.1",
        grpc_port=0,
        metrics_port=-1,
        admin_socket="",
        state_dir="",
        exit_on_error=False,
        strict_readiness=False,
    )
    with _status("loading the model"), Server(config) as local:
        _status_end()
        yield local.address


_shown: list[Any] = []


@contextmanager
def _status(text: str) -> Iterator[None]:
    """A line on the terminal until _status_end() or the end."""
    from rich.console import Console

    status = Console(stderr=True).status(text)
    status.start()
    _shown.append(status)
    try:
        yield
    finally:
        _status_end()


def _status_end() -> None:
    while _shown:
        _shown.pop().stop()


def _only_model(client: SpeechClient) -> str:
    names = [model.name for model in client.models()]
    if not names:
        raise FailedPreconditionError(
            "the server has no speech model; add one: headrace speech add moonshine-base-en"
        )
    if len(names) > 1:
        raise InvalidArgumentError(f"--model: one of {', '.join(names)}")
    return names[0]


def _chunks_of(path: Path, data: bytes) -> Iterator[bytes]:
    """The file as it is, header and all, in pieces; the server reads what it is."""
    if not data:
        raise InvalidArgumentError(f"{path} is empty")
    for at in range(0, len(data), 1 << 15):
        yield data[at : at + (1 << 15)]


def _live(
    client: SpeechClient,
    chunks: Iterator[bytes],
    model: str,
    language: str,
    *,
    title: str,
    encoding: str = "LINEAR_PCM",
    rate: int = _RATE,
) -> list[Heard]:
    """The finals; meanwhile, on a terminal, what is heard so far."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    finals: list[Heard] = []
    console = Console(stderr=True)
    prefix = f"{title}: " if title else ""
    with Live(Text(prefix), console=console, transient=True, refresh_per_second=12) as live:
        stream = client.stream(
            chunks, model=model, language=language, words=True, encoding=encoding, rate=rate
        )
        try:
            for heard in stream:
                if heard.final:
                    finals.append(heard)
                if console.is_terminal:
                    said = " ".join(final.text for final in finals[-3:] if final.text)
                    text = Text(prefix + said + " ")
                    if not heard.final:
                        text.append(heard.text, style="dim")
                    live.update(text)
        except KeyboardInterrupt:
            pass  # of a microphone: what was said so far counts
        finally:
            stream.cancel()
    return finals


def _write(finals: list[Heard], format_: str, target: Path | None) -> None:
    from headrace.client.transcript import cues_of, render_srt, render_vtt, text_of

    if format_ == "text":
        text = "".join(f"{heard.text}\n" for heard in finals if heard.text)
    elif format_ == "json":
        document = {
            "text": text_of(finals),
            "segments": [cue.as_json() for cue in cues_of(finals)],
            "words": [
                {"word": word.text, "start": word.start_s, "end": word.end_s}
                for heard in finals
                for word in heard.words
            ],
        }
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    else:
        text = (render_srt if format_ == "srt" else render_vtt)(cues_of(finals))
    if target is None:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    print(target)


def _need_microphone() -> Any:
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: it is there, PortAudio is not
        raise FailedPreconditionError(
            f"--mic needs the microphone's library ({error}): pip install sounddevice, and "
            "PortAudio (Debian: apt-get install libportaudio2)"
        ) from None
    return sounddevice


@contextmanager
def _microphone() -> Iterator[Iterator[bytes]]:
    """16-bit samples of the default microphone, until Ctrl-C."""
    sounddevice = _need_microphone()
    pieces: queue.Queue[bytes] = queue.Queue(maxsize=100)

    def arrived(data: Any, frames: int, time: Any, status: Any) -> None:
        with suppress(queue.Full):  # ten seconds behind: nobody reads
            pieces.put_nowait(bytes(data))

    def chunks() -> Iterator[bytes]:
        while True:
            yield pieces.get()

    try:
        stream = sounddevice.RawInputStream(
            samplerate=_RATE,
            channels=1,
            dtype="int16",
            blocksize=int(_RATE * _CHUNK_S),
            callback=arrived,
        )
    except sounddevice.PortAudioError as error:
        raise FailedPreconditionError(f"the microphone cannot be opened: {error}") from None
    with stream:
        print("listening; Ctrl-C ends", file=sys.stderr)
        yield chunks()
