"""A small KServe v2 client on grpcio: what the command line needs, and a readable example.

    with Client("localhost:8001") as client:
        answer = client.infer("digits", {"image": np.zeros((1, 64), np.float32)})

Failures raise the leaf of `headrace.errors` for their gRPC status.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from headrace.client.unary import call_unary
from headrace.datatypes import Array, datatype_of, decode, encode
from headrace.errors import InvalidArgumentError
from headrace.protocol import kserve, model_config

__all__ = ["Client"]

_Response = TypeVar("_Response", bound=Message)
_PATH = "/inference.GRPCInferenceService/"


class Client:
    """Thread-safe, as grpcio's channels are. `timeout_s` bounds every call."""

    def __init__(self, address: str, *, timeout_s: float = 60.0) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(
            address,
            options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
        )

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _call(self, method: str, request: Message, response: type[_Response]) -> _Response:
        return call_unary(
            self._channel,
            _PATH + method,
            request,
            response,
            self._timeout_s,
            f"no server answers at {self._address}; start one with `headrace serve`, or give its "
            "address with --url",
        )

    def server_metadata(self) -> kserve.ServerMetadataResponse:
        request = kserve.ServerMetadataRequest()
        return self._call("ServerMetadata", request, kserve.ServerMetadataResponse)

    def server_ready(self) -> bool:
        request = kserve.ServerReadyRequest()
        return self._call("ServerReady", request, kserve.ServerReadyResponse).ready

    def model_ready(self, name: str, version: str = "") -> bool:
        request = kserve.ModelReadyRequest(name=name, version=version)
        return self._call("ModelReady", request, kserve.ModelReadyResponse).ready

    def model_metadata(self, name: str, version: str = "") -> kserve.ModelMetadataResponse:
        request = kserve.ModelMetadataRequest(name=name, version=version)
        return self._call("ModelMetadata", request, kserve.ModelMetadataResponse)

    def model_config(self, name: str, version: str = "") -> model_config.ModelConfig:
        request = kserve.ModelConfigRequest(name=name, version=version)
        return self._call("ModelConfig", request, kserve.ModelConfigResponse).config

    def statistics(self, name: str = "", version: str = "") -> list[kserve.ModelStatistics]:
        request = kserve.ModelStatisticsRequest(name=name, version=version)
        return list(
            self._call("ModelStatistics", request, kserve.ModelStatisticsResponse).model_stats
        )

    def index(self, *, ready: bool = False) -> list[kserve.RepositoryIndexResponse.ModelIndex]:
        request = kserve.RepositoryIndexRequest(ready=ready)
        return list(self._call("RepositoryIndex", request, kserve.RepositoryIndexResponse).models)

    def load(
        self, name: str, *, config: str | None = None, files: Mapping[str, bytes] | None = None
    ) -> None:
        """`config`: JSON instead of config.pbtxt; `files`: {"1/model.onnx": bytes} instead of the
        repository's."""
        request = kserve.RepositoryModelLoadRequest(model_name=name)
        if config is not None:
            request.parameters["config"].string_param = config
        for path, content in (files or {}).items():
            request.parameters[f"file:{path}"].bytes_param = content
        self._call("RepositoryModelLoad", request, kserve.RepositoryModelLoadResponse)

    def unload(self, name: str) -> None:
        request = kserve.RepositoryModelUnloadRequest(model_name=name)
        self._call("RepositoryModelUnload", request, kserve.RepositoryModelUnloadResponse)

    def infer(
        self,
        name: str,
        inputs: Mapping[str, Array],
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        datatypes: Mapping[str, str] | None = None,
        request_id: str = "",
    ) -> dict[str, Array]:
        """Arrays in, arrays out; BYTES as object arrays of bytes. `datatypes` by input name, where
        an array's dtype does not say it (BF16)."""
        response = self.ask(
            name,
            inputs,
            version=version,
            outputs=outputs,
            datatypes=datatypes,
            request_id=request_id,
        )
        return outputs_of(response)

    def ask(
        self,
        name: str,
        inputs: Mapping[str, Array],
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        datatypes: Mapping[str, str] | None = None,
        request_id: str = "",
    ) -> kserve.ModelInferResponse:
        """infer()'s whole response: who answered, and its parameters."""
        request = kserve.ModelInferRequest(model_name=name, model_version=version, id=request_id)
        for key, array in inputs.items():
            datatype = (datatypes or {}).get(key) or _datatype(key, array)
            request.inputs.add(name=key, datatype=datatype, shape=array.shape)
            request.raw_input_contents.append(encode(array, datatype))
        for key in outputs:
            request.outputs.add(name=key)
        return self._call("ModelInfer", request, kserve.ModelInferResponse)


def outputs_of(response: kserve.ModelInferResponse) -> dict[str, Array]:
    return {
        tensor.name: decode(raw, tensor.datatype, list(tensor.shape))
        for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


def _datatype(name: str, array: Any) -> str:
    try:
        return datatype_of(array.dtype)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"input '{name}': {error.details}") from None
