"""A loaded version of a speech model: the recogniser in the place of a ModelVersion, with zeros for
what only inference requests have.

Riva's service gives a stream to the recogniser of the model's default version and leaves it there,
so a version that is taken out of service lives until its last stream has ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from headrace import runtime
from headrace.control.fallbacks import Fallbacks
from headrace.control.speech_models import load_speech
from headrace.control.states import LoadedVersion
from headrace.errors import InvalidArgumentError, UnimplementedError
from headrace.protocol import model_config
from headrace.repository.artifact import Artifact
from headrace.repository.policy import ModelPolicy
from headrace.repository.scan import ModelEntry

if TYPE_CHECKING:
    from headrace.control.loading import Plan

__all__ = ["SpeechVersion", "load_speech_version"]

_LOOK_SECONDS = 0.1  # how often a version that is to end looks for its last stream


class SpeechVersion:
    """Any thread."""

    def __init__(self, recognizer: runtime.SpeechRecognizer) -> None:
        self._recognizer: runtime.SpeechRecognizer | None = recognizer
        self._info = recognizer.info
        self._statistics: dict[str, Any] = recognizer.statistics()

    @property
    def recognizer(self) -> runtime.SpeechRecognizer | None:
        """None once it is closed."""
        return self._recognizer

    @property
    def description(self) -> str:
        family = self._info["parameters"].get("family", "")
        return f"speech recognition, {family}, {self._info['language_code']}".replace(", ,", ",")

    @property
    def pending(self) -> int:
        return 0

    @property
    def in_flight(self) -> int:
        return int(self.speech()["open_streams"])

    @property
    def health(self) -> dict[str, Any]:
        return {"instances": 1, "in_service": 1, "quarantines": 0, "fault": ""}

    def speech(self) -> dict[str, Any]:
        """SpeechStatistics; the last ones once it is closed."""
        recognizer = self._recognizer
        if recognizer is not None:
            self._statistics = recognizer.statistics()
        return self._statistics

    def statistics(self) -> dict[str, Any]:
        """ModelVersion.statistics() of a version that has had no request."""
        none = {"buckets": [0] * len(runtime.histogram_bounds_ns()), "count": 0, "sum": 0}
        pairs = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
        return {
            "last_inference_ms": 0,
            "inference_count": 0,
            "execution_count": 0,
            **dict.fromkeys(pairs, (0, 0)),
            "failures": {},
            "batches": {},
            **dict.fromkeys(("request_ns", "queue_ns", "infer_ns"), none),
            "slo": (0, 0),
            "admission": {"refused": {}},
            "health": self.health,
        }

    def require_finite_outputs(self, required: bool) -> None:
        if required:
            raise UnimplementedError(
                f"'{self._info['name']}' is a speech model: rollouts share out inference requests, "
                "its streams go to the version that is loaded last"
            )

    def close(self, *, drain: bool = True, timeout_s: float | None = None) -> bool:
        """Waits for its streams (drain) and lets go of it. True if none was left."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        # Twice in a row: who ended the last stream may still be about to let go of the recogniser.
        idle = 0
        while drain and idle < 2:
            idle = idle + 1 if self.in_flight == 0 else 0
            left = _LOOK_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                break
            time.sleep(min(left, _LOOK_SECONDS))
        done = self.in_flight == 0
        self._recognizer = None
        return done


def load_speech_version(
    entry: ModelEntry,
    number: int,
    artifact: Artifact,
    config: model_config.ModelConfig,
    policy: ModelPolicy,
    *,
    fingerprint: str,
    plan: Plan,
    low_priority: bool = False,
    load: Callable[..., runtime.SpeechRecognizer] = load_speech,
) -> LoadedVersion:
    """Blocks until the recogniser is compiled and warm. Raises HeadraceError."""
    began = time.monotonic()
    _check(entry.name, config)
    done = model_config.ModelConfig()
    done.CopyFrom(config)
    done.name = entry.name
    done.backend = "speech"
    if not done.version_policy.WhichOneof("policy_choice"):
        done.version_policy.latest.num_versions = 1
    recognizer = load(artifact.path.parent, entry.name, low_priority=low_priority)
    servable = runtime.SpeechServable(entry.name, number)
    version = SpeechVersion(recognizer)
    return LoadedVersion(
        model=entry.name,
        number=number,
        fingerprint=fingerprint,
        version=version,
        hedged=None,
        cache=None,
        fallbacks=Fallbacks(servable, servable),
        policy=policy,
        config=done,
        instances=1,
        threads=plan.threads,
        load_seconds=time.monotonic() - began,
        path=artifact.path.parent,
    )


def _check(name: str, config: model_config.ModelConfig) -> None:
    for key, said in (
        ("input", bool(config.input)),
        ("output", bool(config.output)),
        ("max_batch_size", config.max_batch_size > 0),
        ("dynamic_batching", config.HasField("dynamic_batching")),
        ("model_warmup", bool(config.model_warmup)),
    ):
        if said:
            raise InvalidArgumentError(f"model '{name}': a speech model has no {key}")
