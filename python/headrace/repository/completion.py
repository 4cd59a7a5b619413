"""Filling a configuration from the model's own signature, as Triton's auto-complete does.

What the configuration says is kept and checked; what it leaves open is taken from the model:

- `max_batch_size`, when it is not given: Defaults.max_batch_size if every input and output has a
  dynamic (-1) first dimension and the tensors that are listed leave that dimension out; otherwise
  0. Batching chosen this way brings `dynamic_batching {}` along, unless a scheduling is chosen.
- `input`: missing ones are added, in the model's order. `output`: all when none is listed; listed
  ones select, and the others are not offered. In both, a missing data_type or dims is filled in.
- A tensor without dims of its own (a scalar, or a vector of which the batch takes the only
  dimension) is shown as dims [1] and reshaped to [] for the model.
- `backend`, `platform` ("onnxruntime_onnx", "pytorch_libtorch", "tensorrt_plan"; OpenVINO and
  callback models have none, as in Triton, and ModelMetadata then gives the backend's name),
  `default_model_filename`, `version_policy` (the latest one), `instance_group` (one on the CPU).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from headrace.errors import InvalidArgumentError
from headrace.protocol import model_config
from headrace.repository.artifact import PLATFORMS, Artifact, OnnxEngine

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer


class TensorSpecLike(Protocol):
    """A tensor of a model as its backend sees it: `datatype` is KServe's word ("FP32"), `dims` have
    the batch dimension and -1 for any size."""

    @property
    def name(self) -> str: ...
    @property
    def datatype(self) -> str: ...
    @property
    def dims(self) -> Sequence[int]: ...
    @property
    def optional(self) -> bool: ...


@dataclass(frozen=True)
class Defaults:
    """Server settings that completion needs."""

    max_batch_size: int = 32  # for models that can batch and whose configuration says nothing
    onnx_engine: OnnxEngine = "auto"
    gpus: int = 0  # how many this process can use


if TYPE_CHECKING:
    _Tensor = model_config.ModelInput | model_config.ModelOutput
    _T = TypeVar("_T", model_config.ModelInput, model_config.ModelOutput)


def config_datatype(datatype: str) -> model_config.DataType:
    """ "FP32" -> TYPE_FP32, "BYTES" -> TYPE_STRING. ValueError for anything else."""
    name = {"BYTES": "STRING", "STRING": "", "INVALID": ""}.get(datatype, datatype)
    value: model_config.DataType | None = getattr(model_config, f"TYPE_{name}", None)
    if value is None:
        raise ValueError(f"'{datatype}' is not a KServe datatype")
    return value


def _show(dims: Sequence[int]) -> str:
    return "[" + ",".join(map(str, dims)) + "]"


def complete(
    config: model_config.ModelConfig,
    entry_name: str,
    artifact: Artifact,
    inputs: Sequence[TensorSpecLike] | None,
    outputs: Sequence[TensorSpecLike] | None,
    defaults: Defaults,
) -> model_config.ModelConfig:
    """A new configuration with everything filled in. `inputs`, `outputs`: the model's signature;
    None where a backend cannot tell (a Python callable): the configuration has to list the tensors.

    Raises InvalidArgumentError naming tensor, both sides and the fix.
    """
    done = model_config.ModelConfig()
    done.CopyFrom(config)
    if done.name and done.name != entry_name:
        raise InvalidArgumentError(
            f"unexpected directory name '{entry_name}' for model '{done.name}', directory name "
            "must equal model name; remove `name` or rename one"
        )
    done.name = entry_name
    _complete_backend(done, artifact)
    if done.version_policy.WhichOneof("policy_choice") is None:
        done.version_policy.latest.num_versions = 1

    chosen = not done.HasField("max_batch_size")
    if chosen:
        can = _can_batch(done, inputs, outputs)
        done.max_batch_size = defaults.max_batch_size if can else 0
    model = f"model '{entry_name}'"
    _complete_tensors(done.input, inputs, "input", model, done.max_batch_size, select=False)
    _complete_tensors(done.output, outputs, "output", model, done.max_batch_size, select=True)
    for tensor, spec in _pairs(done.input, inputs):
        if spec.optional:
            tensor.optional = True

    scheduling = done.WhichOneof("scheduling_choice")
    if chosen and done.max_batch_size > 1 and scheduling is None:
        done.dynamic_batching.SetInParent()
    _complete_instance_groups(done, defaults)
    return done


def _complete_backend(config: model_config.ModelConfig, artifact: Artifact) -> None:
    if not config.backend:
        config.backend = artifact.backend
    if not config.platform and config.backend in ("onnxruntime", "pytorch", "tensorrt"):
        config.platform = next(p for p, backend in PLATFORMS.items() if backend == config.backend)
    if not config.default_model_filename:
        config.default_model_filename = artifact.path.name


def _model_dims(tensor: _Tensor) -> Sequence[int]:
    return tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims


def _pairs(
    listed: Sequence[model_config.ModelInput], specs: Sequence[TensorSpecLike] | None
) -> list[tuple[model_config.ModelInput, TensorSpecLike]]:
    by_name = {spec.name: spec for spec in specs or ()}
    return [(tensor, by_name[tensor.name]) for tensor in listed if tensor.name in by_name]


def _can_batch(
    config: model_config.ModelConfig,
    inputs: Sequence[TensorSpecLike] | None,
    outputs: Sequence[TensorSpecLike] | None,
) -> bool:
    if not inputs or not outputs:
        return False
    ranks: dict[tuple[str, str], int] = {}
    for kind, specs in (("input", inputs), ("output", outputs)):
        for spec in specs:
            if len(spec.dims) == 0 or spec.dims[0] != -1:
                return False
            ranks[kind, spec.name] = len(spec.dims)
    # Tensors listed with all of the model's dimensions: the configuration counts on no batching.
    listed: list[tuple[str, _Tensor]] = [
        *(("input", tensor) for tensor in config.input),
        *(("output", tensor) for tensor in config.output),
    ]
    return not any(
        tensor.dims and len(_model_dims(tensor)) == ranks.get((kind, tensor.name))
        for kind, tensor in listed
    )


def _complete_tensors(
    listed: RepeatedCompositeFieldContainer[_T],
    specs: Sequence[TensorSpecLike] | None,
    kind: str,
    model: str,
    max_batch_size: int,
    *,
    select: bool,
) -> None:
    """`select`: what is listed is a choice of the model's tensors, nothing is added to it."""
    if specs is None:
        _check_declared(listed, kind, model)
        return
    by_name = {spec.name: spec for spec in specs}
    for tensor in listed:
        if tensor.name not in by_name:
            raise InvalidArgumentError(
                f"{model}: unexpected inference {kind} '{tensor.name}', allowed {kind}s are: "
                f"{', '.join(by_name)}; correct its name in config.pbtxt"
            )
    present = {tensor.name for tensor in listed}
    if not (select and present):
        for spec in specs:
            if spec.name not in present:
                listed.add(name=spec.name)
    for tensor in listed:
        _complete_tensor(tensor, by_name[tensor.name], kind, model, max_batch_size)


def _check_declared(listed: Sequence[_Tensor], kind: str, model: str) -> None:
    """Without a signature to complete from, the configuration has to say it all."""
    if not listed:
        raise InvalidArgumentError(
            f"{model} does not tell its {kind}s; list them in config.pbtxt: "
            f'{kind} [ {{ name: "x" data_type: TYPE_FP32 dims: [ -1 ] }} ]'
        )
    for tensor in listed:
        if tensor.data_type == model_config.TYPE_INVALID:
            raise InvalidArgumentError(f"{model}: {kind} '{tensor.name}' must specify 'data_type'")
        if not tensor.dims:
            raise InvalidArgumentError(
                f"{model}: {kind} '{tensor.name}' must specify 'dims' (of a scalar: dims: [ 1 ] "
                "reshape: { })"
            )


def _complete_tensor(
    tensor: _Tensor, spec: TensorSpecLike, kind: str, model: str, max_batch_size: int
) -> None:
    where = f"{model}, {kind} '{spec.name}'"
    data_type = config_datatype(spec.datatype)
    if tensor.data_type == model_config.TYPE_INVALID:
        tensor.data_type = data_type
    elif tensor.data_type != data_type:
        names = model_config.DataType
        raise InvalidArgumentError(
            f"{where}: the configuration has data type {names.Name(tensor.data_type)} but the "
            f"model has {names.Name(data_type)}; correct data_type in config.pbtxt"
        )

    batch = [-1] if max_batch_size > 0 else []
    if batch and (len(spec.dims) == 0 or spec.dims[0] != -1):
        raise InvalidArgumentError(
            f"{where}: for the model to support batching the shape should have at least 1 "
            "dimension and the first dimension must be -1; but shape expected by the model is "
            f"{_show(spec.dims)}; set max_batch_size: 0 instead of {max_batch_size} and give dims "
            "with all dimensions, or export the model with a dynamic first dimension"
        )
    if not tensor.dims and not tensor.HasField("reshape"):
        own = list(spec.dims)[len(batch) :]
        tensor.dims.extend(own or [1])
        if not own:
            tensor.reshape.SetInParent()
        return
    given = [*batch, *_model_dims(tensor)]
    # An output's -1 promises nothing, and a runtime may know a size that the author did not.
    fits = len(given) == len(spec.dims) and all(
        theirs in (-1, ours) or (ours == -1 and kind == "output")
        for ours, theirs in zip(given, spec.dims, strict=True)
    )
    if not fits:
        note = f" (a batch dimension, since max_batch_size is {max_batch_size}, and then its dims)"
        raise InvalidArgumentError(
            f"{where}: the model expects {len(spec.dims)} dimensions (shape {_show(spec.dims)}) "
            f"but the model configuration specifies {len(given)} dimensions (shape {_show(given)})"
            f"{note if batch else ''}; correct dims in config.pbtxt"
        )


def _complete_instance_groups(config: model_config.ModelConfig, defaults: Defaults) -> None:
    kinds = model_config.ModelInstanceGroup
    if not config.instance_group:
        config.instance_group.add(kind=kinds.KIND_CPU, count=1)
    for index, group in enumerate(config.instance_group):
        if not group.name:
            group.name = f"{config.name}_{index}"
        asked = group.kind == kinds.KIND_GPU or bool(group.gpus)
        if asked and defaults.gpus == 0:
            raise InvalidArgumentError(
                f"instance group {group.name} of model {config.name} has kind KIND_GPU but no GPUs "
                "are available; set kind: KIND_CPU in config.pbtxt"
            )
        if group.kind == kinds.KIND_AUTO:
            group.kind = kinds.KIND_GPU if group.gpus else kinds.KIND_CPU
        if group.count == 0:
            group.count = 1
