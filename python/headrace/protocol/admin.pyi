# ruff: noqa
# Made by proto/generate_stubs.py: do not edit.
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import Any as _Any, ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LoadTogetherRequest(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, models: _Optional[_Iterable[str]] = ...) -> None: ...

class LoadTogetherResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

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
        "kpis",
    )
    class KpisEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...

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
    KPIS_FIELD_NUMBER: _ClassVar[int]
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
    kpis: _containers.ScalarMap[str, float]
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
        kpis: _Optional[_Mapping[str, float]] = ...,
    ) -> None: ...

class RolloutKpi(_message.Message):
    __slots__ = ("name", "stable_good", "stable_bad", "candidate_good", "candidate_bad")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STABLE_GOOD_FIELD_NUMBER: _ClassVar[int]
    STABLE_BAD_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_GOOD_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_BAD_FIELD_NUMBER: _ClassVar[int]
    name: str
    stable_good: int
    stable_bad: int
    candidate_good: int
    candidate_bad: int
    def __init__(
        self,
        name: _Optional[str] = ...,
        stable_good: _Optional[int] = ...,
        stable_bad: _Optional[int] = ...,
        candidate_good: _Optional[int] = ...,
        candidate_bad: _Optional[int] = ...,
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
        "kpis",
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
    KPIS_FIELD_NUMBER: _ClassVar[int]
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
    kpis: _containers.RepeatedCompositeFieldContainer[RolloutKpi]
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
        kpis: _Optional[_Iterable[_Union[RolloutKpi, _Mapping[str, _Any]]]] = ...,
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

class KpiOutcomes(_message.Message):
    __slots__ = ("name", "good", "bad")
    NAME_FIELD_NUMBER: _ClassVar[int]
    GOOD_FIELD_NUMBER: _ClassVar[int]
    BAD_FIELD_NUMBER: _ClassVar[int]
    name: str
    good: int
    bad: int
    def __init__(
        self, name: _Optional[str] = ..., good: _Optional[int] = ..., bad: _Optional[int] = ...
    ) -> None: ...

class FeedbackRequest(_message.Message):
    __slots__ = ("model", "version", "kpis")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    KPIS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    kpis: _containers.RepeatedCompositeFieldContainer[KpiOutcomes]
    def __init__(
        self,
        model: _Optional[str] = ...,
        version: _Optional[int] = ...,
        kpis: _Optional[_Iterable[_Union[KpiOutcomes, _Mapping[str, _Any]]]] = ...,
    ) -> None: ...

class FeedbackResponse(_message.Message):
    __slots__ = ("totals",)
    TOTALS_FIELD_NUMBER: _ClassVar[int]
    totals: _containers.RepeatedCompositeFieldContainer[KpiOutcomes]
    def __init__(
        self, totals: _Optional[_Iterable[_Union[KpiOutcomes, _Mapping[str, _Any]]]] = ...
    ) -> None: ...

class DriftAlarmRequest(_message.Message):
    __slots__ = ("model", "version", "alarm")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ALARM_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    alarm: bool
    def __init__(
        self,
        model: _Optional[str] = ...,
        version: _Optional[int] = ...,
        alarm: _Optional[bool] = ...,
    ) -> None: ...

class DriftAlarmResponse(_message.Message):
    __slots__ = ("versions",)
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, versions: _Optional[_Iterable[int]] = ...) -> None: ...

class HumanTensor(_message.Message):
    __slots__ = ("name", "datatype", "shape", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    datatype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(
        self,
        name: _Optional[str] = ...,
        datatype: _Optional[str] = ...,
        shape: _Optional[_Iterable[int]] = ...,
        data: _Optional[bytes] = ...,
    ) -> None: ...

class HumanTicket(_message.Message):
    __slots__ = (
        "id",
        "queue",
        "created",
        "state",
        "model",
        "version",
        "trigger",
        "request_id",
        "confidence",
        "outputs",
        "inputs",
        "suggestion",
        "holder",
        "resolved",
        "answer",
    )
    ID_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TRIGGER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    SUGGESTION_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    RESOLVED_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    id: str
    queue: str
    created: float
    state: str
    model: str
    version: str
    trigger: str
    request_id: str
    confidence: float
    outputs: _containers.RepeatedCompositeFieldContainer[HumanTensor]
    inputs: _containers.RepeatedCompositeFieldContainer[HumanTensor]
    suggestion: _containers.RepeatedCompositeFieldContainer[HumanTensor]
    holder: str
    resolved: float
    answer: _containers.RepeatedCompositeFieldContainer[HumanTensor]
    def __init__(
        self,
        id: _Optional[str] = ...,
        queue: _Optional[str] = ...,
        created: _Optional[float] = ...,
        state: _Optional[str] = ...,
        model: _Optional[str] = ...,
        version: _Optional[str] = ...,
        trigger: _Optional[str] = ...,
        request_id: _Optional[str] = ...,
        confidence: _Optional[float] = ...,
        outputs: _Optional[_Iterable[_Union[HumanTensor, _Mapping[str, _Any]]]] = ...,
        inputs: _Optional[_Iterable[_Union[HumanTensor, _Mapping[str, _Any]]]] = ...,
        suggestion: _Optional[_Iterable[_Union[HumanTensor, _Mapping[str, _Any]]]] = ...,
        holder: _Optional[str] = ...,
        resolved: _Optional[float] = ...,
        answer: _Optional[_Iterable[_Union[HumanTensor, _Mapping[str, _Any]]]] = ...,
    ) -> None: ...

class HumanLeaseRequest(_message.Message):
    __slots__ = ("queue", "holder", "seconds")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    queue: str
    holder: str
    seconds: float
    def __init__(
        self,
        queue: _Optional[str] = ...,
        holder: _Optional[str] = ...,
        seconds: _Optional[float] = ...,
    ) -> None: ...

class HumanLeaseResponse(_message.Message):
    __slots__ = ("ticket", "token", "until")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    ticket: HumanTicket
    token: str
    until: float
    def __init__(
        self,
        ticket: _Optional[_Union[HumanTicket, _Mapping[str, _Any]]] = ...,
        token: _Optional[str] = ...,
        until: _Optional[float] = ...,
    ) -> None: ...

class HumanResolveRequest(_message.Message):
    __slots__ = ("ticket", "token", "answer")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    ticket: str
    token: str
    answer: _containers.RepeatedCompositeFieldContainer[HumanTensor]
    def __init__(
        self,
        ticket: _Optional[str] = ...,
        token: _Optional[str] = ...,
        answer: _Optional[_Iterable[_Union[HumanTensor, _Mapping[str, _Any]]]] = ...,
    ) -> None: ...

class HumanStatusRequest(_message.Message):
    __slots__ = ("ticket",)
    TICKET_FIELD_NUMBER: _ClassVar[int]
    ticket: str
    def __init__(self, ticket: _Optional[str] = ...) -> None: ...

class HumanQueue(_message.Message):
    __slots__ = ("queue", "open", "leased", "resolved", "oldest_seconds")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    LEASED_FIELD_NUMBER: _ClassVar[int]
    RESOLVED_FIELD_NUMBER: _ClassVar[int]
    OLDEST_SECONDS_FIELD_NUMBER: _ClassVar[int]
    queue: str
    open: int
    leased: int
    resolved: int
    oldest_seconds: float
    def __init__(
        self,
        queue: _Optional[str] = ...,
        open: _Optional[int] = ...,
        leased: _Optional[int] = ...,
        resolved: _Optional[int] = ...,
        oldest_seconds: _Optional[float] = ...,
    ) -> None: ...

class HumanStatusResponse(_message.Message):
    __slots__ = ("ticket", "queues")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    QUEUES_FIELD_NUMBER: _ClassVar[int]
    ticket: HumanTicket
    queues: _containers.RepeatedCompositeFieldContainer[HumanQueue]
    def __init__(
        self,
        ticket: _Optional[_Union[HumanTicket, _Mapping[str, _Any]]] = ...,
        queues: _Optional[_Iterable[_Union[HumanQueue, _Mapping[str, _Any]]]] = ...,
    ) -> None: ...
