"""Word error rate, whole files and streamed, over the clips of a folder.

python bench/speech/wer.py --clips FOLDER --model-repository models [--model NAME]
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import machine
import riva_calls as riva
from clips import read_clips, word_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--server", default="", help="host:port; else one is started")
    parser.add_argument("--model-repository", type=Path, default=Path("models"))
    parser.add_argument("--model", default="")
    parser.add_argument("--stop-history", type=int, default=320, help="ms")
    parser.add_argument("--most", type=int, default=0, help="clips; 0: all")
    parser.add_argument("--results", type=Path, help="folder; default: bench/results")
    options = parser.parse_args()
    clips = read_clips(options.clips, options.most)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        own = machine.serve(options.model_repository, log)
        with nullcontext((options.server, 0)) if options.server else own as (address, _):
            asr = riva.service(address)
            model = options.model or riva.only_model(asr)
            ways: dict[str, list[str]] = {"offline": [], "streamed": []}
            for clip in clips:
                ways["offline"].append(riva.offline(asr, clip, model))
                heard = riva.streamed(
                    asr, clip, model, real_time=False, stop_history_ms=options.stop_history
                )
                ways["streamed"].append(heard.text)
    expected = [clip.transcript for clip in clips]
    results: dict[str, Any] = {
        "benchmark": "speech_wer",
        "machine": machine.describe(),
        "model": model,
        "clips": len(clips),
        "audio_seconds": round(sum(clip.seconds for clip in clips), 1),
    }
    for way, heard in ways.items():
        results[way] = word_errors(expected, heard)
        print(f"{way:<10} {results[way]['wer']:7.2%}   {results[way]}")
    results["texts"] = [
        {"id": clip.name, "offline": ways["offline"][n], "streamed": ways["streamed"][n]}
        for n, clip in enumerate(clips)
    ]
    machine.write("speech_wer", results, options.results)


if __name__ == "__main__":
    main()
