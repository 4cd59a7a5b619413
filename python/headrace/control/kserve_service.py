"""The RPCs of GRPCInferenceService that Python answers: metadata, configuration, statistics, the
model repository, and settings. ModelInfer, ServerLive, ServerReady and ModelReady are answered in
C++.

A handler takes the message's bytes and answers bytes; what it raises ends the call with its status.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import DecodeError, Message

from headrace import logs
from headrace.control.overrides import parse_load_parameters
from headrace.control.registry import parse_version
from headrace.control.signature import datatype_name
from headrace.errors import (
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    UnimplementedError,
)
from headrace.protocol import kserve
from headrace.repository.model_config import metadata_platform

if TYPE_CHECKING:
    from headrace import runtime
    from headrace.control.manager import ModelManager
    from headrace.control.states import LoadedVersion

__all__ = ["KServeService"]

_PATH = "/inference.GRPCInferenceService/"
_Request = TypeVar("_Request", bound=Message)

# What this server does of Triton's extensions, in its words.
EXTENSIONS = (
    "classification",
    "model_repository",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "logging",
)

_SHM_DISABLED = (
    "Client shared memory is disabled. This server does not offer it; send tensors in the request."
)
_TRACE_DEFAULTS = {
    "trace_level": "OFF",
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "triton",
}


class KServeService:
    def __init__(self, manager: ModelManager, *, server_name: str, server_version: str) -> None:
        self._manager = manager
        self._registry = manager.registry
        self._name = server_name
        self._version = server_version

    def add_to(self, server: runtime.Server) -> None:
        """Registers every method. Before the server starts."""
        self._add(server, "ServerMetadata", kserve.ServerMetadataRequest, self.server_metadata)
        self._add(server, "ModelMetadata", kserve.ModelMetadataRequest, self.model_metadata)
        self._add(server, "ModelConfig", kserve.ModelConfigRequest, self.model_config)
        self._add(server, "ModelStatistics", kserve.ModelStatisticsRequest, self.model_statistics)
        self._add(server, "RepositoryIndex", kserve.RepositoryIndexRequest, self.repository_index)
        self._add(
            server,
            "RepositoryModelLoad",
            kserve.RepositoryModelLoadRequest,
            self.repository_model_load,
            blocking=True,
        )
        self._add(
            server,
            "RepositoryModelUnload",
            kserve.RepositoryModelUnloadRequest,
            self.repository_model_unload,
            blocking=True,
        )
        self._add(
            server,
            "SystemSharedMemoryStatus",
            kserve.SystemSharedMemoryStatusRequest,
            self.system_shared_memory_status,
        )
        self._add(
            server,
            "SystemSharedMemoryRegister",
            kserve.SystemSharedMemoryRegisterRequest,
            self.system_shared_memory_register,
        )
        self._add(
            server,
            "SystemSharedMemoryUnregister",
            kserve.SystemSharedMemoryUnregisterRequest,
            lambda _: kserve.SystemSharedMemoryUnregisterResponse(),
        )
        self._add(
            server,
            "CudaSharedMemoryStatus",
            kserve.CudaSharedMemoryStatusRequest,
            self.cuda_shared_memory_status,
        )
        self._add(
            server,
            "CudaSharedMemoryRegister",
            kserve.CudaSharedMemoryRegisterRequest,
            self.cuda_shared_memory_register,
        )
        self._add(
            server,
            "CudaSharedMemoryUnregister",
            kserve.CudaSharedMemoryUnregisterRequest,
            lambda _: kserve.CudaSharedMemoryUnregisterResponse(),
        )
        self._add(server, "TraceSetting", kserve.TraceSettingRequest, self.trace_setting)
        self._add(server, "LogSettings", kserve.LogSettingsRequest, self.log_settings)

    @staticmethod
    def _add(
        server: runtime.Server,
        method: str,
        request_class: type[_Request],
        answer: Callable[[_Request], Message],
        *,
        blocking: bool = False,
    ) -> None:
        def handler(message: bytes, _: runtime.ServerCall) -> bytes:
            request = request_class()
            try:
                request.ParseFromString(message)
            except DecodeError as error:
                raise InternalError("Exception deserializing request!") from error  # as grpcio
            return answer(request).SerializeToString()

        server.add_method(_PATH + method, handler, pool="blocking" if blocking else "quick")

    # ---- metadata -----------------------------------------------------------------------------

    def server_metadata(self, _: kserve.ServerMetadataRequest) -> kserve.ServerMetadataResponse:
        return kserve.ServerMetadataResponse(
            name=self._name, version=self._version, extensions=EXTENSIONS
        )

    def model_metadata(self, request: kserve.ModelMetadataRequest) -> kserve.ModelMetadataResponse:
        loaded = self._registry.find(request.name, request.version)
        config = loaded.config
        lead = [-1] if config.max_batch_size > 0 else []
        tensor = kserve.ModelMetadataResponse.TensorMetadata
        return kserve.ModelMetadataResponse(
            name=request.name,
            versions=[str(v.number) for v in self._registry.ready_versions(request.name)],
            platform=metadata_platform(config),
            inputs=[
                tensor(name=t.name, datatype=datatype_name(t.data_type), shape=lead + list(t.dims))
                for t in config.input
            ],
            outputs=[
                tensor(name=t.name, datatype=datatype_name(t.data_type), shape=lead + list(t.dims))
                for t in config.output
            ],
        )

    def model_config(self, request: kserve.ModelConfigRequest) -> kserve.ModelConfigResponse:
        loaded = self._registry.find(request.name, request.version)
        return kserve.ModelConfigResponse(config=loaded.config)

    def model_statistics(
        self, request: kserve.ModelStatisticsRequest
    ) -> kserve.ModelStatisticsResponse:
        number = parse_version(request.version)
        versions = self._registry.ready_versions(request.name)
        if request.name and not versions:
            raise InvalidArgumentError(f"requested model '{request.name}' is not available")
        if number is not None:
            versions = [v for v in versions if v.number == number]
            if request.name and not versions:
                raise InvalidArgumentError(
                    f"requested model version is not available for model '{request.name}'"
                )
        return kserve.ModelStatisticsResponse(model_stats=[_statistics(v) for v in versions])

    # ---- the model repository -----------------------------------------------------------------

    def repository_index(
        self, request: kserve.RepositoryIndexRequest
    ) -> kserve.RepositoryIndexResponse:
        _no_repository_name(request.repository_name)
        row = kserve.RepositoryIndexResponse.ModelIndex
        return kserve.RepositoryIndexResponse(
            models=[
                row(name=e.name, version=e.version, state=e.state, reason=e.reason)
                for e in self._manager.index(ready_only=request.ready)
            ]
        )

    def repository_model_load(
        self, request: kserve.RepositoryModelLoadRequest
    ) -> kserve.RepositoryModelLoadResponse:
        _no_repository_name(request.repository_name)
        override = parse_load_parameters(request.model_name, request.parameters)
        self._manager.request_load(request.model_name, override)
        return kserve.RepositoryModelLoadResponse()

    def repository_model_unload(
        self, request: kserve.RepositoryModelUnloadRequest
    ) -> kserve.RepositoryModelUnloadResponse:
        _no_repository_name(request.repository_name)
        for key, value in request.parameters.items():
            # Without ensembles no model has dependents, so `true` has nothing more to do.
            if key != "unload_dependents":
                raise InvalidArgumentError(f"unrecognized unload parameter '{key}'.")
            if value.WhichOneof("parameter_choice") != "bool_param":
                raise InvalidArgumentError(
                    "invalid value type for unload parameter 'unload_dependents', expected "
                    "bool_param."
                )
        self._manager.request_unload(request.model_name)
        return kserve.RepositoryModelUnloadResponse()

    # ---- shared memory: not offered -----------------------------------------------------------

    def system_shared_memory_status(
        self, request: kserve.SystemSharedMemoryStatusRequest
    ) -> kserve.SystemSharedMemoryStatusResponse:
        if request.name:
            raise NotFoundError(f"Unable to find system shared memory region: '{request.name}'")
        return kserve.SystemSharedMemoryStatusResponse()

    def system_shared_memory_register(
        self, _: kserve.SystemSharedMemoryRegisterRequest
    ) -> kserve.SystemSharedMemoryRegisterResponse:
        raise UnimplementedError(_SHM_DISABLED)

    def cuda_shared_memory_status(
        self, request: kserve.CudaSharedMemoryStatusRequest
    ) -> kserve.CudaSharedMemoryStatusResponse:
        if request.name:
            raise NotFoundError(f"Unable to find cuda shared memory region: '{request.name}'")
        return kserve.CudaSharedMemoryStatusResponse()

    def cuda_shared_memory_register(
        self, request: kserve.CudaSharedMemoryRegisterRequest
    ) -> kserve.CudaSharedMemoryRegisterResponse:
        raise InvalidArgumentError(
            f"failed to register CUDA shared memory region: '{request.name}', GPUs not supported"
        )

    # ---- settings -----------------------------------------------------------------------------

    def trace_setting(self, request: kserve.TraceSettingRequest) -> kserve.TraceSettingResponse:
        """Answers Triton's defaults: nothing is traced. Changes are refused, clearing is not."""
        if request.model_name:
            self._registry.find(request.model_name)
        for key, setting in request.settings.items():
            if key not in _TRACE_DEFAULTS:
                raise InvalidArgumentError(f"unrecognized trace setting '{key}'")
            if key == "trace_file" and setting.value:
                raise UnimplementedError(
                    "trace file location can not be updated through network protocol"
                )
            if setting.value and list(setting.value) != [_TRACE_DEFAULTS[key]]:
                raise UnimplementedError(
                    f"this server does not trace requests: '{key}' cannot be changed from "
                    f"'{_TRACE_DEFAULTS[key]}'"
                )
        value = kserve.TraceSettingResponse.SettingValue
        return kserve.TraceSettingResponse(
            settings={key: value(value=[text]) for key, text in _TRACE_DEFAULTS.items()}
        )

    def log_settings(self, request: kserve.LogSettingsRequest) -> kserve.LogSettingsResponse:
        """Changes apply whole or, when one is wrong, not at all."""
        changes: dict[str, bool | int | str] = {}
        for key, setting in request.settings.items():
            kind = setting.WhichOneof("parameter_choice")
            if key == "log_file":
                raise UnimplementedError(
                    "log file location can not be updated through network protocol"
                )
            if key in ("log_info", "log_warning", "log_error"):
                _expect(key, kind, "bool_param")
                changes[key.removeprefix("log_")] = setting.bool_param
            elif key == "log_verbose_level":
                _expect(key, kind, "uint32_param")
                changes["verbose_level"] = setting.uint32_param
            elif key == "log_format":
                _expect(key, kind, "string_param")
                if setting.string_param not in ("default", "ISO8601"):
                    raise InvalidArgumentError(
                        f"log_format is '{setting.string_param}'; it must be 'default' or 'ISO8601'"
                    )
                changes["format"] = setting.string_param
            else:
                raise InvalidArgumentError(f"unrecognized log setting '{key}'")
        now = logs.switches.change(**changes)
        value = kserve.LogSettingsResponse.SettingValue
        return kserve.LogSettingsResponse(
            settings={
                "log_file": value(string_param=""),
                "log_info": value(bool_param=now.info),
                "log_warning": value(bool_param=now.warning),
                "log_error": value(bool_param=now.error),
                "log_verbose_level": value(uint32_param=now.verbose_level),
                "log_format": value(string_param=now.format),
            }
        )


def _expect(key: str, kind: str | None, wanted: str) -> None:
    if kind != wanted:
        raise InvalidArgumentError(
            f"invalid value type for log setting '{key}', expected {wanted}."
        )


def _no_repository_name(name: str) -> None:
    if name:
        raise UnimplementedError("'repository_name' specification is not supported")


def _statistics(loaded: LoadedVersion) -> kserve.ModelStatistics:
    values: Mapping[str, Any] = loaded.statistics()
    cache: Mapping[str, int] = values["cache"] or {}
    duration = kserve.StatisticDuration

    def of(key: str) -> kserve.StatisticDuration:
        count, ns = values[key]
        return duration(count=count, ns=ns)

    return kserve.ModelStatistics(
        name=loaded.model,
        version=str(loaded.number),
        last_inference=values["last_inference_ms"],
        inference_count=values["inference_count"],
        execution_count=values["execution_count"],
        inference_stats=kserve.InferStatistics(
            success=of("success"),
            fail=of("fail"),
            queue=of("queue"),
            compute_input=of("compute_input"),
            compute_infer=of("compute_infer"),
            compute_output=of("compute_output"),
            cache_hit=duration(count=cache.get("hits", 0), ns=cache.get("hit_ns", 0)),
            cache_miss=duration(count=cache.get("misses", 0), ns=cache.get("miss_ns", 0)),
        ),
        batch_stats=[
            kserve.InferBatchStatistics(
                batch_size=size,
                compute_input=duration(count=executions, ns=input_ns),
                compute_infer=duration(count=executions, ns=infer_ns),
                compute_output=duration(count=executions, ns=output_ns),
            )
            for size, (executions, input_ns, infer_ns, output_ns) in sorted(
                values["batches"].items()
            )
        ],
    )
