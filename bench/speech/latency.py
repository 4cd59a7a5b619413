"""How long people wait: N clients of nvidia-riva-client speak clips in real time, 100 ms a message.

    python bench/speech/latency.py --clips FOLDER --model-repository models --streams 1,2,4,8

end of speech to final: from the end of the last speech in a clip (Silero's, on the clip) to the
final that has it, which the endpoint brings: silence follows. Of it, `stop_history` is the waiting
asked for. partial lag: from when a sample was said to when an interim result that has heard it
arrives.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import machine
import numpy as np
import riva_calls as riva
from clips import Clip, SpeechEnd, read_clips, word_errors


def quantiles(values: list[float]) -> dict[str, float | int]:
    if not values:
        return {"count": 0}
    ms = np.array(values) * 1000
    p50, p95 = np.percentile(ms, [50, 95])
    return {
        "count": len(values),
        "p50_ms": round(float(p50), 1),
        "p95_ms": round(float(p95), 1),
        "max_ms": round(float(ms.max()), 1),
    }


class Talker(threading.Thread):
    """Clips one after the other, a call each, with pauses."""

    def __init__(
        self, address: str, model: str, clips: list[Clip], ends: dict[str, float], options: Any
    ) -> None:
        super().__init__(daemon=True)
        self._address, self._model, self._clips = address, model, clips
        self._ends, self._options = ends, options
        self.final: list[float] = []
        self.lags: list[float] = []
        self.late = 0  # clips whose end no final had
        self.texts: dict[str, str] = {}
        self.errors: list[str] = []

    def run(self) -> None:
        asr = riva.service(self._address)
        for clip in self._clips:
            time.sleep(random.uniform(0.2, 1.2))
            try:
                heard = riva.streamed(
                    asr,
                    clip,
                    self._model,
                    real_time=True,
                    silence_s=self._options.silence,
                    stop_history_ms=self._options.stop_history,
                )
            except Exception as error:  # counted, whatever it was
                self.errors.append(f"{clip.name}: {type(error).__name__}: {str(error)[:200]}")
                continue
            self.texts[clip.name] = heard.text
            self.lags += heard.lags
            after = [at for at, _ in heard.finals if at >= self._ends[clip.name]]
            if after:
                self.final.append(after[-1] - self._ends[clip.name])
            else:
                self.late += 1


def measure(
    address: str,
    pid: int,
    model: str,
    clips: list[Clip],
    ends: dict[str, float],
    n: int,
    options: Any,
) -> dict[str, Any]:
    shares = [[clips[(i * 7 + k) % len(clips)] for k in range(options.each)] for i in range(n)]
    talkers = [Talker(address, model, share, ends, options) for share in shares]
    load_before, busy = machine.load(), machine.busy_seconds()
    own, began = (machine.cpu_seconds(pid) if pid else 0.0), time.monotonic()
    for talker in talkers:
        talker.start()
    for talker in talkers:
        talker.join()
    wall = time.monotonic() - began
    spent = machine.cpu_seconds(pid) - own if pid else None
    spoken = [
        clip
        for talker, share in zip(talkers, shares, strict=True)
        for clip in share
        if clip.name in talker.texts
    ]
    heard = [
        t.texts[c.name]
        for t, share in zip(talkers, shares, strict=True)
        for c in share
        if c.name in t.texts
    ]
    return {
        "streams": n,
        "end_of_speech_to_final": quantiles([x for t in talkers for x in t.final]),
        "partial_lag": quantiles([x for t in talkers for x in t.lags]),
        "no_final": sum(t.late for t in talkers),
        "errors": [x for t in talkers for x in t.errors],
        "word_errors": word_errors([c.transcript for c in spoken], heard) if spoken else {},
        "seconds": round(wall, 1),
        "server_cores": round(spent / wall, 3) if spent is not None else None,
        "machine_cores_busy": round((machine.busy_seconds() - busy) / wall, 3),
        "load_before": load_before,
        "load_after": machine.load(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--server", default="", help="host:port; else one is started")
    parser.add_argument("--model-repository", type=Path, default=Path("models"))
    parser.add_argument("--model", default="")
    parser.add_argument("--streams", default="1,2,4,8")
    parser.add_argument("--each", type=int, default=12, help="clips a stream")
    parser.add_argument("--stop-history", type=int, default=320, help="ms")
    parser.add_argument("--silence", type=float, default=2.5, help="seconds after a clip")
    parser.add_argument("--results", type=Path, help="folder; default: bench/results")
    options = parser.parse_args()
    clips = read_clips(options.clips)
    ending = SpeechEnd()
    ends = {clip.name: ending.of(clip.samples) for clip in clips}
    clips = [clip for clip in clips if ends[clip.name] > 0]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        own = machine.serve(options.model_repository, Path(folder) / "server.log")
        with nullcontext((options.server, 0)) if options.server else own as (address, pid):
            model = options.model or riva.only_model(riva.service(address))
            # Nobody's first call is measured.
            riva.streamed(riva.service(address), clips[0], model, real_time=False)
            print(
                f"{'streams':>7} | {'final p50':>9} {'p95':>6} {'max':>6} | {'partial p50':>11} "
                f"{'p95':>6} {'max':>6} | {'WER':>6} {'cores':>6} {'others':>6} {'load':>5}"
            )
            for n in (int(x) for x in options.streams.split(",")):
                row = measure(address, pid, model, clips, ends, n, options)
                rows.append(row)
                print(_line(row))
    results = {
        "benchmark": "speech_latency",
        "machine": machine.describe(),
        "model": model,
        "stop_history_ms": options.stop_history,
        "chunk_ms": int(riva.CHUNK_S * 1000),
        "rows": rows,
    }
    machine.write("speech_latency", results, options.results)


def _line(row: dict[str, Any]) -> str:
    final, lag = row["end_of_speech_to_final"], row["partial_lag"]
    own = row["server_cores"]
    others = row["machine_cores_busy"] - own if own is not None else float("nan")
    text = (
        f"{row['streams']:>7} | {final.get('p50_ms', 0):>9.0f} {final.get('p95_ms', 0):>6.0f} "
        f"{final.get('max_ms', 0):>6.0f} | {lag.get('p50_ms', 0):>11.0f} "
        f"{lag.get('p95_ms', 0):>6.0f} {lag.get('max_ms', 0):>6.0f} | "
        f"{row['word_errors'].get('wer', 0):>6.2%} {own or 0:>6.2f} {others:>6.2f} "
        f"{row['load_after']:>5.1f}"
    )
    if row["errors"] or row["no_final"]:
        text += f"   {len(row['errors'])} errors, {row['no_final']} without a final"
    return text


if __name__ == "__main__":
    main()
