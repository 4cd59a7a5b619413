"""Greedy recognition of one clip with onnxruntime: what checks a conversion. Servers do not use
it."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml  # type: ignore[import-untyped, unused-ignore]

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Greedy", "read_tokens", "repeated"]

_MASKED = np.float32(-1e9)


def read_tokens(path: Path) -> dict[int, bytes]:
    tokens: dict[int, bytes] = {}
    for line in path.read_text(encoding="ascii").splitlines():
        text, _, number = line.partition(" ")
        tokens[int(number)] = base64.b64decode(text)
    return tokens


def repeated(tokens: list[int], longest: int = 24) -> int:
    """n when the last n tokens are the n before them again (3 <= n <= `longest`), else 0."""
    for n in range(3, min(longest, len(tokens) // 2) + 1):
        if tokens[-n:] == tokens[-2 * n : -n]:
            return n
    return 0


@dataclass(frozen=True)
class _Settings:
    family: str
    prompt: list[int]
    eos: int
    max_tokens_per_second: float
    min_context_s: float
    suppress: list[int]
    suppress_first: list[int]


class Greedy:
    """The folder of one version: speech.yaml, encoder.onnx, decoder.onnx, tokens.txt."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        description = yaml.safe_load((folder / "speech.yaml").read_text(encoding="utf-8"))
        known = {name: description[name] for name in _Settings.__dataclass_fields__}
        self.settings = _Settings(**known)
        files = description["files"]
        self._encoder, self._decoder = (
            onnxruntime.InferenceSession(
                str(folder / files[name]), options, providers=["CPUExecutionProvider"]
            )
            for name in ("encoder", "decoder")
        )
        self._tokens = read_tokens(folder / files["tokens"])
        self._pasts = {
            i.name: i.shape for i in self._decoder.get_inputs() if i.name.startswith("past.")
        }
        self._outputs = [output.name for output in self._decoder.get_outputs()]

    def text(self, samples: NDArray[np.float32]) -> str:
        """`samples`: mono, 16 kHz, in [-1, 1]."""
        pieces = (self._tokens.get(token, b"") for token in self.tokens(samples))
        return b"".join(pieces).decode("utf-8", "replace").strip()

    def tokens(self, samples: NDArray[np.float32]) -> list[int]:
        settings = self.settings
        cross = self._encode(samples)
        past = {
            name: np.zeros((1, shape[1], 1, shape[3]), np.float32)
            for name, shape in self._pasts.items()
        }
        seconds = len(samples) / 16000
        limit = max(8, int(seconds * settings.max_tokens_per_second) + 2)
        fed, found = list(settings.prompt), list[int]()
        position = 0
        while len(found) < limit:
            logits, past = self._step(fed, position, past, cross)
            scores = logits[0, -1].copy()
            scores[settings.suppress] = -np.inf
            if not found:
                scores[settings.suppress_first] = -np.inf
            token = int(scores.argmax())
            if token == settings.eos:
                break
            found.append(token)
            if again := repeated(found):
                del found[-again:]
                break
            position += len(fed)
            fed = [token]
        return found

    def _encode(self, samples: NDArray[np.float32]) -> dict[str, Any]:
        name = self._encoder.get_inputs()[0].name
        if self.settings.family == "moonshine":
            data = samples[None, :].astype(np.float32)
        else:
            from headrace.speech.log_mel import log_mel

            # One second more than there is, so that the end is heard as one.
            wanted = int(
                min(30.0, max(len(samples) / 16000 + 1.0, self.settings.min_context_s)) * 16000
            )
            padded = np.zeros(wanted, np.float32)
            padded[: min(len(samples), wanted)] = samples[:wanted]
            data = log_mel(padded, self._encoder.get_inputs()[0].shape[1])[None]
        outputs = [output.name for output in self._encoder.get_outputs()]
        return dict(zip(outputs, self._encoder.run(outputs, {name: data}), strict=True))

    def _step(
        self, ids: list[int], position: int, past: dict[str, Any], cross: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        new, old = len(ids), next(iter(past.values())).shape[2]
        mask = np.zeros((1, 1, new, old + new), np.float32)
        mask[..., 0] = _MASKED  # the cache's first position holds nothing
        for row in range(new):
            mask[:, :, row, old + row + 1 :] = _MASKED
        frames = next(iter(cross.values())).shape[2]
        feeds = {
            "input_ids": np.array([ids], np.int64),
            "positions": np.arange(position, position + new, dtype=np.int64)[None],
            "self_mask": mask,
            "cross_mask": np.zeros((1, 1, 1, frames), np.float32),
            **past,
            **cross,
        }
        outputs = dict(zip(self._outputs, self._decoder.run(None, feeds), strict=True))
        grown = {
            name: np.concatenate([value, outputs[name.replace("past", "present")]], axis=2)
            for name, value in past.items()
        }
        return outputs["logits"], grown
