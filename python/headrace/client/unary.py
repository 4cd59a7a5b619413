"""One unary call, for the clients of this room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from headrace.errors import error_from_code

__all__ = ["call_unary"]

_Response = TypeVar("_Response", bound=Message)


def call_unary(
    channel: grpc.Channel,
    path: str,
    request: Message,
    response: type[_Response],
    timeout_s: float,
    unreachable: str,
    metadata: Sequence[tuple[str, str]] = (),
) -> _Response:
    """Raises the leaf of `headrace.errors` for the gRPC status; `unreachable` is its text when
    nobody listens."""
    call = channel.unary_unary(
        path,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=response.FromString,
    )
    try:
        answer: _Response = call(request, timeout=timeout_s, metadata=metadata)
    except grpc.RpcError as error:
        number, _ = error.code().value
        details = error.details() or ""
        if number == 14 and "connect" in details.lower():
            details = unreachable
        raise error_from_code(number, details) from None
    return answer
