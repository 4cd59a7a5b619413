"""CPU seconds a second of audio, whole files one after the other, beside faster-whisper with INT8
weights on the same files in the same run; and what both hear.

    python3 -m venv peer && peer/bin/pip install faster-whisper     # its own, it brings its runtime
    python bench/speech/real_time_factor.py --clips FOLDER --model-repository models \\
        --peer-venv peer --peer-model FOLDER-OF-MODEL.BIN

The servers' CPU time is user and system time of the process over the calls; loading is not
counted. Rounds alternate, so that what else the machine does disturbs both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import machine
import riva_calls as riva
from clips import Clip, read_clips, word_errors

PEER = """
import json, sys, time
from faster_whisper import WhisperModel

model = WhisperModel(sys.argv[1], device="cpu", compute_type="int8", cpu_threads=int(sys.argv[2]))
for line in sys.stdin:
    start = time.process_time()
    segments, _ = model.transcribe(line.strip(), language="en", beam_size=1)
    text = " ".join(segment.text.strip() for segment in segments)
    print(json.dumps({"text": text, "cpu": time.process_time() - start}), flush=True)
"""


class Peer:
    def __init__(self, venv: Path, model: Path, threads: int) -> None:
        command = [str(venv / "bin" / "python"), "-c", PEER, str(model), str(threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def transcribe(self, clip: Clip) -> tuple[str, float]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{clip.path}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("faster-whisper ended; its error is above")
        answer = json.loads(line)
        return answer["text"], answer["cpu"]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--model-repository", type=Path, default=Path("models"))
    parser.add_argument("--model", default="")
    parser.add_argument("--peer-venv", type=Path, help="with faster-whisper")
    parser.add_argument("--peer-model", type=Path, help="folder with model.bin")
    parser.add_argument("--peer-threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most", type=int, default=0, help="clips; 0: all")
    parser.add_argument("--results", type=Path, help="folder; default: bench/results")
    options = parser.parse_args()
    clips = read_clips(options.clips, options.most)
    seconds = sum(clip.seconds for clip in clips)
    cpu: dict[str, list[float]] = {"headrace": [], "headrace streamed": []}
    texts: dict[str, list[str]] = {}
    peer = None
    if options.peer_venv is not None and options.peer_model is not None:
        peer = Peer(options.peer_venv, options.peer_model, options.peer_threads)
        cpu["faster-whisper int8"] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        machine.serve(options.model_repository, Path(folder) / "server.log") as (address, pid),
    ):
        asr = riva.service(address)
        model = options.model or riva.only_model(asr)
        riva.offline(asr, clips[0], model)  # nobody's first call is measured
        if peer is not None:
            peer.transcribe(clips[0])
        for _ in range(options.rounds):
            before = machine.cpu_seconds(pid)
            texts["headrace"] = [riva.offline(asr, clip, model) for clip in clips]
            middle = machine.cpu_seconds(pid)
            texts["headrace streamed"] = [
                riva.streamed(asr, clip, model, real_time=False).text for clip in clips
            ]
            cpu["headrace"].append(middle - before)
            cpu["headrace streamed"].append(machine.cpu_seconds(pid) - middle)
            if peer is not None:
                answers = [peer.transcribe(clip) for clip in clips]
                texts["faster-whisper int8"] = [text for text, _ in answers]
                cpu["faster-whisper int8"].append(sum(spent for _, spent in answers))
    if peer is not None:
        peer.close()
    expected = [clip.transcript for clip in clips]
    rows: dict[str, Any] = {}
    for name, values in cpu.items():
        rows[name] = {
            "cpu_real_time_factor": round(statistics.median(values) / seconds, 4),
            "rounds": [round(value / seconds, 4) for value in values],
            **word_errors(expected, texts[name]),
        }
        print(f"{name:<22} {rows[name]['cpu_real_time_factor']:.4f}   WER {rows[name]['wer']:.2%}")
    if peer is not None:
        theirs = rows["faster-whisper int8"]["cpu_real_time_factor"]
        rows["ratio"] = round(rows["headrace"]["cpu_real_time_factor"] / theirs, 3)
        print(f"ours / theirs          {rows['ratio']:.3f}")
    results = {
        "benchmark": "speech_real_time_factor",
        "machine": machine.describe(),
        "model": model,
        "audio_seconds": round(seconds, 1),
        "rows": rows,
    }
    machine.write("speech_real_time_factor", results, options.results)


if __name__ == "__main__":
    main()
