"""From a completed ModelConfig to what the core wants: ModelSpec, BatchPolicy, instances,
threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from headrace import runtime
from headrace.errors import InvalidArgumentError
from headrace.protocol import model_config
from headrace.repository.policy import AdmissionPolicy, HealthPolicy, SloPolicy

__all__ = [
    "Declaration",
    "admission_policy",
    "batch_policy",
    "declare",
    "health_policy",
    "instance_count",
    "model_spec",
    "plan_text",
    "tensor_specs",
    "threads_asked",
]

# ModelConfig.DataType by number.
_DATATYPES = (
    "",
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BYTES",
    "BF16",
)

# What a Python model says of a tensor: {name: (datatype, dims)}; a datatype is KServe's word or a
# NumPy dtype, dims are without the batch dimension when the model batches.
Declaration = Mapping[str, tuple[Any, Sequence[int]]]


def datatype_name(number: int) -> str:
    """TYPE_STRING (13) -> "BYTES"; "" for TYPE_INVALID."""
    return _DATATYPES[number] if 0 <= number < len(_DATATYPES) else ""


def datatype_number(name: str) -> int:
    """ "BYTES" -> TYPE_STRING (13)."""
    return _DATATYPES.index(name)


def declare(declaration: Declaration, what: str) -> list[tuple[str, str, list[int]]]:
    """[(name, datatype, dims)], checked. `what` names it in errors ("model.py: inputs")."""
    import numpy as np  # here: a server without Python models starts without it

    from headrace.datatypes import DATATYPES, datatype_of

    if not isinstance(declaration, Mapping):
        raise InvalidArgumentError(
            f'{what} must be a dict like {{"x": ("FP32", [4])}}, not {type(declaration).__name__}'
        )
    tensors: list[tuple[str, str, list[int]]] = []
    for name, value in declaration.items():
        try:
            kind, dims = value
            sizes = [int(d) for d in dims]
        except (TypeError, ValueError):
            raise InvalidArgumentError(
                f"{what}['{name}'] must be (datatype, dims) like (\"FP32\", [4]), not {value!r}"
            ) from None
        datatype = kind if isinstance(kind, str) and kind in DATATYPES else None
        if datatype is None:
            try:
                datatype = datatype_of(np.dtype(kind))
            except TypeError:
                raise InvalidArgumentError(
                    f"{what}['{name}']: unknown datatype {kind!r}; known: {', '.join(DATATYPES)}"
                ) from None
        if any(d < -1 for d in sizes):
            raise InvalidArgumentError(f"{what}['{name}']: dims {sizes}: only -1 may be negative")
        tensors.append((str(name), datatype, sizes))
    return tensors


def tensor_specs(
    tensors: Sequence[model_config.ModelInput] | Sequence[model_config.ModelOutput],
    max_batch_size: int,
) -> list[runtime.TensorSpec]:
    """Signature as a backend sees it: batch dimension first when the model batches, after
    `reshape`."""
    batch = [-1] if max_batch_size > 0 else []
    return [
        runtime.TensorSpec(
            tensor.name,
            datatype_name(tensor.data_type),
            batch + list(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims),
            optional=bool(getattr(tensor, "optional", False)),
        )
        for tensor in tensors
    ]


def model_spec(
    config: model_config.ModelConfig, version: int, labels: Callable[[str], Sequence[str]]
) -> runtime.ModelSpec:
    """The signature clients see. `labels` reads a label file by its name in the configuration."""

    def reshape(tensor: Any) -> list[int] | None:
        return list(tensor.reshape.shape) if tensor.HasField("reshape") else None

    inputs = [
        runtime.TensorSpec(
            tensor.name,
            datatype_name(tensor.data_type),
            list(tensor.dims),
            optional=tensor.optional,
            reshape=reshape(tensor),
        )
        for tensor in config.input
    ]
    outputs = [
        runtime.TensorSpec(
            tensor.name,
            datatype_name(tensor.data_type),
            list(tensor.dims),
            labels=labels(tensor.label_filename) if tensor.label_filename else (),
            reshape=reshape(tensor),
        )
        for tensor in config.output
    ]
    return runtime.ModelSpec(config.name, version, config.max_batch_size, inputs, outputs)


def _queue_policy(policy: model_config.ModelQueuePolicy) -> runtime.QueuePolicy:
    return runtime.QueuePolicy(
        timeout_action="DELAY" if policy.timeout_action == 1 else "REJECT",
        default_timeout_us=policy.default_timeout_microseconds,
        allow_timeout_override=policy.allow_timeout_override,
        max_queue_size=policy.max_queue_size,
    )


def batch_policy(
    config: model_config.ModelConfig, slo: SloPolicy | None = None
) -> runtime.BatchPolicy:
    """Without `dynamic_batching` every request is its own batch, as in Triton; but with an SLO,
    whose means batching is."""
    budget_us = round(slo.latency * 1e6) if slo is not None else 0
    batches = config.HasField("dynamic_batching") or slo is not None
    if config.max_batch_size <= 0 or not batches:
        return runtime.BatchPolicy(max_rows=1, latency_budget_us=budget_us)
    batching = config.dynamic_batching
    return runtime.BatchPolicy(
        max_rows=config.max_batch_size,
        latency_budget_us=budget_us,
        preferred_batch_size=sorted(batching.preferred_batch_size),
        max_queue_delay_us=batching.max_queue_delay_microseconds,
        preserve_ordering=batching.preserve_ordering,
        priority_levels=batching.priority_levels,
        default_priority_level=batching.default_priority_level,
        default_queue_policy=(
            _queue_policy(batching.default_queue_policy)
            if batching.HasField("default_queue_policy")
            else None
        ),
        priority_queue_policy={
            level: _queue_policy(policy) for level, policy in batching.priority_queue_policy.items()
        },
    )


def admission_policy(policy: AdmissionPolicy | None) -> runtime.AdmissionPolicy:
    policy = policy or AdmissionPolicy()
    return runtime.AdmissionPolicy(
        by_deadline=policy.deadline,
        by_budget=policy.slo,
        queue_target_us=round(policy.queue_target * 1e6),
        queue_interval_us=round(policy.queue_interval * 1e6),
        adaptive_concurrency=policy.adaptive_concurrency,
    )


def health_policy(policy: HealthPolicy | None) -> runtime.HealthPolicy:
    policy = policy or HealthPolicy()
    return runtime.HealthPolicy(
        failures=policy.failures,
        backoff_s=policy.backoff,
        backoff_max_s=policy.backoff_max,
        probe_s=policy.probe,
    )


def plan_text(instances: int, threads: int) -> str:
    """ "2 instances x 1 thread", as every backend's description ends."""
    many, plural = "s" if instances != 1 else "", "s" if threads != 1 else ""
    return f"{instances} instance{many} x {threads} thread{plural}"


def instance_count(config: model_config.ModelConfig) -> int:
    """Instances of a version: the sum over its instance groups, one when there are none."""
    return sum(max(1, group.count) for group in config.instance_group) or 1


def threads_asked(config: model_config.ModelConfig) -> int:
    """Intra-op threads an instance that the configuration asks for; 0 = let the planner decide.

    OpenVINO's and Triton's onnxruntime backend's names are both understood."""
    for key in ("INFERENCE_NUM_THREADS", "intra_op_thread_count"):
        if key not in config.parameters:
            continue
        text = config.parameters[key].string_value
        try:
            threads = int(text)
        except ValueError:
            threads = -1
        if not 0 <= threads <= 1024:
            raise InvalidArgumentError(
                f"model '{config.name}': parameter {key} is '{text}'; it must be a number of "
                "threads, "
                "0 (planned) to 1024"
            )
        return threads
    return 0
