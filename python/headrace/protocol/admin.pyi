# ruff: noqa
# Made by proto/generate_stubs.py: do not edit.
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import Any as _Any, ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RolloutStartRequest(_message.Message):
    __slots__ = (
        "model",
        "candidate",
        "share",
        "key",
        "alpha",
        "latency_ratio",
        "min_requests",
        "min_seconds",
        "manual_promotion",
        "no_fallback",
        "shadow",
        "tolerance",
    )
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    LATENCY_RATIO_FIELD_NUMBER: _ClassVar[int]
    MIN_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    MIN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MANUAL_PROMOTION_FIELD_NUMBER: _ClassVar[int]
    NO_FALLBACK_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    model: str
    candidate: int
    share: float
    key: str
    alpha: float
    latency_ratio: float
    min_requests: int
    min_seconds: float
    manual_promotion: bool
    no_fallback: bool
    shadow: bool
    tolerance: float
    def __init__(
        self,
        model: _Optional[str] = ...,
        candidate: _Optional[int] = ...,
        share: _Optional[float] = ...,
        key: _Optional[str] = ...,
        alpha: _Optional[float] = ...,
        latency_ratio: _Optional[float] = ...,
        min_requests: _Optional[int] = ...,
        min_seconds: _Optional[float] = ...,
        manual_promotion: _Optional[bool] = ...,
        no_fallback: _Optional[bool] = ...,
        shadow: _Optional[bool] = ...,
        tolerance: _Optional[float] = ...,
    ) -> None: ...

class RolloutState(_message.Message):
    __slots__ = (
        "model",
        "stable",
        "candidate",
        "share",
        "state",
        "reason",
        "seconds",
        "stable_requests",
        "stable_failures",
        "candidate_requests",
        "candidate_failures",
        "stable_p99_us",
        "candidate_p99_us",
        "shadow",
        "compared",
        "different",
        "dropped",
        "largest_difference",
    )
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STABLE_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    STABLE_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    STABLE_FAILURES_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FAILURES_FIELD_NUMBER: _ClassVar[int]
    STABLE_P99_US_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_P99_US_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    COMPARED_FIELD_NUMBER: _ClassVar[int]
    DIFFERENT_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    LARGEST_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    model: str
    stable: int
    candidate: int
    share: float
    state: str
    reason: str
    seconds: float
    stable_requests: int
    stable_failures: int
    candidate_requests: int
    candidate_failures: int
    stable_p99_us: float
    candidate_p99_us: float
    shadow: bool
    compared: int
    different: int
    dropped: int
    largest_difference: float
    def __init__(
        self,
        model: _Optional[str] = ...,
        stable: _Optional[int] = ...,
        candidate: _Optional[int] = ...,
        share: _Optional[float] = ...,
        state: _Optional[str] = ...,
        reason: _Optional[str] = ...,
        seconds: _Optional[float] = ...,
        stable_requests: _Optional[int] = ...,
        stable_failures: _Optional[int] = ...,
        candidate_requests: _Optional[int] = ...,
        candidate_failures: _Optional[int] = ...,
        stable_p99_us: _Optional[float] = ...,
        candidate_p99_us: _Optional[float] = ...,
        shadow: _Optional[bool] = ...,
        compared: _Optional[int] = ...,
        different: _Optional[int] = ...,
        dropped: _Optional[int] = ...,
        largest_difference: _Optional[float] = ...,
    ) -> None: ...

class RolloutStatusRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class RolloutStatusResponse(_message.Message):
    __slots__ = ("rollouts",)
    ROLLOUTS_FIELD_NUMBER: _ClassVar[int]
    rollouts: _containers.RepeatedCompositeFieldContainer[RolloutState]
    def __init__(
        self, rollouts: _Optional[_Iterable[_Union[RolloutState, _Mapping[str, _Any]]]] = ...
    ) -> None: ...

class RolloutPromoteRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class RolloutRollbackRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...
