"""What open streams cost on which nothing is said: CPU and memory of the server.

    python bench/speech/idle_streams.py --model-repository models --streams 200 --seconds 20

Each stream has sent its configuration and a tenth of a second of silence, and then nothing.
"""

from __future__ import annotations

import argparse
import queue
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import machine
import riva.client
import riva_calls


def resident_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


class Idle:
    """A stream that stays open until it is closed."""

    def __init__(self, asr: Any, model: str) -> None:
        self._audio: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._audio.put(bytes(2 * 1600))
        settings = riva.client.StreamingRecognitionConfig(
            config=riva_calls.config(model), interim_results=True
        )
        self.ended: list[str] = []

        def listen() -> None:
            try:
                for _ in asr.streaming_response_generator(iter(self._audio.get, None), settings):
                    pass
                self.ended.append("OK")
            except Exception as error:  # counted, whatever it was
                self.ended.append(str(error)[:200])

        self._thread = threading.Thread(target=listen, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._audio.put(None)
        self._thread.join(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model-repository", type=Path, default=Path("models"))
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--results", type=Path, help="folder; default: bench/results")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        machine.serve(options.model_repository, Path(folder) / "server.log") as (address, pid),
    ):
        asr = riva_calls.service(address)
        model = riva_calls.only_model(asr)
        time.sleep(2)
        rows = []
        idle: list[Idle] = []
        for streams in (0, options.streams):
            idle += [Idle(asr, model) for _ in range(streams - len(idle))]
            time.sleep(3)
            cpu, began = machine.cpu_seconds(pid), time.monotonic()
            time.sleep(options.seconds)
            share = (machine.cpu_seconds(pid) - cpu) / (time.monotonic() - began)
            open_ = sum(not stream.ended for stream in idle)
            rows.append(
                {
                    "streams": open_,
                    "cpu_share_of_a_core": round(share, 5),
                    "resident_kib": resident_kib(pid),
                }
            )
            print(f"{open_:>4} streams: {share:.2%} of a core, {resident_kib(pid)} KiB")
        for stream in idle:
            stream.close()
        failed = [stream.ended for stream in idle if stream.ended != ["OK"]]
    if failed:
        raise SystemExit(f"{len(failed)} streams failed, the first: {failed[0]}")
    results = {"benchmark": "speech_idle_streams", "machine": machine.describe(), "rows": rows}
    machine.write("speech_idle_streams", results, options.results)


if __name__ == "__main__":
    main()
