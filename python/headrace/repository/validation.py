"""What a configuration may say. Checks need nothing but the configuration itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from headrace.errors import InvalidArgumentError
from headrace.protocol import model_config
from headrace.repository.names import check_inner_path, check_model_name

MAX_INSTANCES = 1024
_MAX_DIM = 2**62


def _show(dims: Sequence[int]) -> str:
    return "[" + ",".join(map(str, dims)) + "]"


def validate(config: model_config.ModelConfig) -> None:
    """Raises InvalidArgumentError naming the field, for values that make no sense and for features
    that this server does not have yet. Works before and after completion."""
    name = config.name
    if name:
        check_model_name(name)
    _refuse_unsupported(config)
    if config.max_batch_size < 0:
        raise InvalidArgumentError(f"'max_batch_size' must be non-negative value for {name}")
    _check_versions(config)
    if config.default_model_filename:
        check_inner_path(config.default_model_filename, "default_model_filename")
    _check_inputs(config)
    _check_outputs(config)
    _check_dynamic_batching(config)
    _check_instance_groups(config)
    _check_warmup(config)


def _refuse_unsupported(config: model_config.ModelConfig) -> None:
    """Features whose absence would change answers; those that only tune are in unused_settings."""
    scheduling = config.WhichOneof("scheduling_choice")
    ragged = [tensor.name for tensor in config.input if tensor.allow_ragged_batch]
    tensors: list[model_config.ModelInput | model_config.ModelOutput]
    tensors = [*config.input, *config.output]
    shapes = [tensor.name for tensor in tensors if tensor.is_shape_tensor]
    layouts = [tensor.name for tensor in tensors if tensor.is_non_linear_format_io]
    refused = {
        "sequence_batching": scheduling == "sequence_batching",
        "ensemble_scheduling": scheduling == "ensemble_scheduling",
        "batch_input": bool(config.batch_input),
        "batch_output": bool(config.batch_output),
        "model_transaction_policy.decoupled": config.model_transaction_policy.decoupled,
        "model_repository_agents": bool(config.model_repository_agents.agents),
        "model_operations.op_library_filename": bool(config.model_operations.op_library_filename),
        f"input {ragged[:1]}.allow_ragged_batch": bool(ragged),
        f"tensor {shapes[:1]}.is_shape_tensor": bool(shapes),
        f"tensor {layouts[:1]}.is_non_linear_format_io": bool(layouts),
    }
    for feature, asked in refused.items():
        if asked:
            raise InvalidArgumentError(f"model '{config.name}': {feature} is not supported yet")


def unused_settings(config: model_config.ModelConfig) -> tuple[str, ...]:
    """A line for every setting that is accepted, kept and shown, but changes nothing here; to be
    logged when the model loads."""
    unused = {
        "optimization": config.HasField("optimization"),
        "cc_model_filenames": bool(config.cc_model_filenames),
        "model_metrics": config.HasField("model_metrics"),
        "runtime": bool(config.runtime),
        "instance_group.rate_limiter": any(
            g.HasField("rate_limiter") for g in config.instance_group
        ),
        "instance_group.host_policy": any(g.host_policy for g in config.instance_group),
    }
    return tuple(
        f"{setting} has no effect in this server" for setting, used in unused.items() if used
    )


def _check_versions(config: model_config.ModelConfig) -> None:
    policy = config.version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "latest" and policy.latest.num_versions == 0:
        raise InvalidArgumentError(
            f"model '{config.name}': version_policy.latest.num_versions must be at least 1"
        )
    if choice == "specific":
        if not policy.specific.versions:
            raise InvalidArgumentError(
                f"model '{config.name}': version_policy.specific.versions is empty; list versions"
            )
        for version in policy.specific.versions:
            if version < 1:
                raise InvalidArgumentError(
                    f"model '{config.name}': version_policy.specific.versions has {version}; "
                    "versions start at 1"
                )


def _check_names(names: Iterable[str], kind: str, model: str) -> None:
    seen: set[str] = set()
    for name in names:
        if not name:
            raise InvalidArgumentError(f"model '{model}': model {kind} must specify 'name'")
        if name in seen:
            raise InvalidArgumentError(f"model '{model}': {kind} '{name}' is listed twice")
        seen.add(name)


def _check_tensor(
    tensor: model_config.ModelInput | model_config.ModelOutput, kind: str, model: str
) -> None:
    where = f"model '{model}': {kind} '{tensor.name}'"
    if tensor.data_type not in model_config.DataType.values():  # open enums take any number
        raise InvalidArgumentError(f"{where}: data_type {tensor.data_type} is unknown")
    _check_dims(tensor.dims, where, "dims")
    if tensor.HasField("reshape"):
        _check_dims(tensor.reshape.shape, where, "reshape.shape")
        if not tensor.dims:
            raise InvalidArgumentError(f"{where}: reshape needs 'dims' too")
        if _runs(tensor.dims) != _runs(tensor.reshape.shape):
            raise InvalidArgumentError(
                f"{where} has different size for dims and reshape: {_show(tensor.dims)} and "
                f"{_show(tensor.reshape.shape)}"
            )


def _check_dims(dims: Sequence[int], where: str, field: str) -> None:
    for dim in dims:
        if dim < -1 or dim > _MAX_DIM:
            raise InvalidArgumentError(
                f"{where}: {field} {_show(dims)}: a dimension is a size, or -1 for any size"
            )


def _runs(dims: Sequence[int]) -> list[int]:
    """Products of the fixed sizes between the -1s: what a reshape has to keep."""
    runs = [1]
    for dim in dims:
        if dim == -1:
            runs.append(1)
        else:
            runs[-1] *= dim
    return runs


def _check_inputs(config: model_config.ModelConfig) -> None:
    _check_names([i.name for i in config.input], "input", config.name)
    for tensor in config.input:
        _check_tensor(tensor, "input", config.name)
        if tensor.format not in model_config.ModelInput.Format.values():
            raise InvalidArgumentError(
                f"model '{config.name}': input '{tensor.name}': format {tensor.format} is unknown"
            )
        if tensor.format != model_config.ModelInput.FORMAT_NONE and len(tensor.dims) != 3:
            raise InvalidArgumentError(
                f"model '{config.name}': input '{tensor.name}': format NHWC and NCHW require 3 "
                f"dims, not {_show(tensor.dims)}"
            )


def _check_outputs(config: model_config.ModelConfig) -> None:
    _check_names([o.name for o in config.output], "output", config.name)
    for tensor in config.output:
        _check_tensor(tensor, "output", config.name)
        if tensor.label_filename:
            check_inner_path(tensor.label_filename, f"output '{tensor.name}': label_filename")


def _check_dynamic_batching(config: model_config.ModelConfig) -> None:
    if config.WhichOneof("scheduling_choice") != "dynamic_batching":
        return
    batching = config.dynamic_batching
    for size in batching.preferred_batch_size:
        if size <= 0:
            raise InvalidArgumentError(
                f"dynamic batching preferred size must be positive for {config.name}"
            )
        if config.HasField("max_batch_size") and size > config.max_batch_size:
            raise InvalidArgumentError(
                f"dynamic batching preferred size must be <= max batch size for {config.name}: "
                f"{size} > {config.max_batch_size}"
            )
    levels, default = batching.priority_levels, batching.default_priority_level
    if levels > 0 and not 1 <= default <= levels:
        raise InvalidArgumentError(
            f"default priority level must be in range [1, {levels}] for {config.name}; "
            "set dynamic_batching.default_priority_level"
        )
    policies = [batching.default_queue_policy, *batching.priority_queue_policy.values()]
    for level in batching.priority_queue_policy:
        if not 1 <= level <= levels:
            raise InvalidArgumentError(
                f"priority queue policy level must be in range [1, {levels}] for {config.name}, "
                f"not {level}"
            )
    for policy in policies:
        if policy.timeout_action not in model_config.ModelQueuePolicy.TimeoutAction.values():
            raise InvalidArgumentError(
                f"model '{config.name}': timeout_action {policy.timeout_action} is unknown"
            )


def _check_instance_groups(config: model_config.ModelConfig) -> None:
    kinds = model_config.ModelInstanceGroup.Kind
    total = 0
    for index, group in enumerate(config.instance_group):
        where = f"instance group {group.name or index} of model {config.name}"
        if group.kind not in kinds.values():
            raise InvalidArgumentError(f"{where}: kind {group.kind} is unknown")
        if group.count < 0:
            raise InvalidArgumentError(f"{where}: count must not be negative, got {group.count}")
        if group.gpus and group.kind in (kinds.Value("KIND_CPU"), kinds.Value("KIND_MODEL")):
            raise InvalidArgumentError(
                f"{where} has kind {kinds.Name(group.kind)} but specifies one or more GPUs"
            )
        if group.secondary_devices:
            raise InvalidArgumentError(f"{where}: secondary_devices are not supported yet")
        if group.passive:
            raise InvalidArgumentError(f"{where}: passive instances are not supported yet")
        total += max(group.count, 1)
    if total > MAX_INSTANCES:
        raise InvalidArgumentError(
            f"model '{config.name}': {total} instances in instance_group, more than {MAX_INSTANCES}"
        )


def _check_warmup(config: model_config.ModelConfig) -> None:
    for sample in config.model_warmup:
        where = f"model '{config.name}': model_warmup '{sample.name}'"
        if config.HasField("max_batch_size") and sample.batch_size > max(config.max_batch_size, 1):
            raise InvalidArgumentError(
                f"{where}: batch_size {sample.batch_size} is larger than max_batch_size "
                f"{config.max_batch_size}"
            )
        if not sample.inputs:
            raise InvalidArgumentError(f"{where} has no inputs")
        for name, tensor in sample.inputs.items():
            types = model_config.DataType.values()
            if tensor.data_type not in types or tensor.data_type == model_config.TYPE_INVALID:
                raise InvalidArgumentError(f"{where}: input '{name}' must specify 'data_type'")
            if any(dim < 0 or dim > _MAX_DIM for dim in tensor.dims):
                raise InvalidArgumentError(
                    f"{where}: input '{name}': dims {_show(tensor.dims)} must all be fixed sizes"
                )
            kind = tensor.WhichOneof("input_data_type")
            if kind is None:
                raise InvalidArgumentError(
                    f"{where}: input '{name}' needs zero_data, random_data or input_data_file"
                )
            if kind == "input_data_file":
                check_inner_path(tensor.input_data_file, f"{where}: input_data_file")
