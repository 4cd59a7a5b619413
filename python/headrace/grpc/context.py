"""ServicerContext: what a handler knows of its call and says of its answer; grpcio's, method for
method."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

if TYPE_CHECKING:
    from headrace import runtime

__all__ = ["ServicerContext", "run_callbacks"]

_log = logging.getLogger("headrace.grpc")

Metadata = Iterable[tuple[str, str | bytes]]

# A deadline of grpcio's that never comes, in seconds since 1970.
_NEVER = float(2**63 - 1)
_INSECURE: Mapping[str, Sequence[bytes]] = {
    "transport_security_type": [b"insecure"],
    "security_level": [b"TSI_SECURITY_NONE"],
}


# By call id: what runs when the call has ended. Filled by the handler's thread, emptied by the
# thread of endings; one of both removes an entry.
_callbacks: dict[int, list[Callable[[], object]]] = {}
_callbacks_lock = threading.Lock()


def run_callbacks(call_id: int) -> None:
    with _callbacks_lock:
        callbacks = _callbacks.pop(call_id, ())
    for callback in callbacks:
        try:
            callback()
        except Exception:
            _log.exception("Exception calling callback!")


def number_of(code: object) -> int:
    """The wire's number of a grpc.StatusCode; UNKNOWN's of anything else, as in grpcio."""
    if isinstance(code, grpc.StatusCode):
        number: int = code.value[0]
        return number
    return 2


def text_of(error: BaseException, prefix: str) -> str:
    try:
        return f"{prefix}: {error}"
    except Exception:
        return "Calling application raised unprintable Exception!"


class CallContext:
    """What both kinds of contexts share: all that does not wait."""

    # Defaults; most calls set none of them.
    _code: Any = None
    _details: bytes | None = None
    _trailing: Any = None
    _aborted = False
    _initial_sent = False
    _metadata: tuple[Any, ...] | None = None

    def __init__(self, call: runtime.ServerCall) -> None:
        self._call = call

    # --- the request -------------------------------------------------------------------------

    def invocation_metadata(self) -> tuple[Any, ...]:
        """Tuples with the attributes key and value."""
        if self._metadata is None:
            self._metadata = self._call.metadata
        return self._metadata

    def peer(self) -> str:
        return self._call.peer

    def peer_identities(self) -> Sequence[bytes] | None:
        key = self.peer_identity_key()
        return None if key is None else self.auth_context().get(key)

    def peer_identity_key(self) -> str | None:
        found = self._call.auth_context
        return found[0] or None if found is not None else None

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        found = self._call.auth_context
        if found is None:
            return dict(_INSECURE)
        properties: dict[str, list[bytes]] = {}
        for name, value in found[1]:
            properties.setdefault(name, []).append(value)
        return properties

    # --- the answer --------------------------------------------------------------------------

    def set_trailing_metadata(self, trailing_metadata: Metadata | None) -> None:
        self._call.set_trailing_metadata(() if trailing_metadata is None else trailing_metadata)
        self._trailing = trailing_metadata

    def trailing_metadata(self) -> Any:
        return self._trailing

    def set_code(self, code: grpc.StatusCode) -> None:
        self._code = code

    def code(self) -> Any:
        return self._code

    def set_details(self, details: str | bytes) -> None:
        self._details = details.encode() if isinstance(details, str) else details

    def details(self) -> bytes | None:
        return self._details

    def set_compression(self, compression: grpc.Compression) -> None:
        self._call.set_compression(int(compression))

    def disable_next_message_compression(self) -> None:
        self._call.disable_next_message_compression()

    # --- for dispatch ------------------------------------------------------------------------

    def _finish(self, message: bytes | None = None) -> None:
        """Ends the call with the code and details that were set, OK by default."""
        code = 0 if self._code is None else number_of(self._code)
        if message is not None and code == 0:
            self._call.respond(message)
        else:
            self._call.finish(code, self._details or b"")

    def _fail(self, code: grpc.StatusCode, details: str) -> None:
        """Ends the call with this, unless a code or details were set."""
        self._call.finish(
            number_of(code if self._code is None else self._code),
            details.encode(errors="replace") if self._details is None else self._details,
        )


class ServicerContext(CallContext):
    """grpc.ServicerContext for handlers on threads."""

    _rpc_errors: list[grpc.RpcError] | None = None

    def is_active(self) -> bool:
        return self._call.is_active()

    def time_remaining(self) -> float:
        """Seconds; without a deadline 2^63 of them, as in grpcio."""
        remaining = self._call.time_remaining()
        return _NEVER - time.time() if remaining is None else remaining

    def cancel(self) -> None:
        self._call.cancel()

    def add_callback(self, callback: Callable[[], object]) -> bool:
        call = self._call
        with _callbacks_lock:
            waiting = _callbacks.get(call.id)
            if waiting is not None:
                waiting.append(callback)
                return True
            if not call.notify_end():
                return False
            _callbacks[call.id] = [callback]
            return True

    def send_initial_metadata(self, initial_metadata: Metadata) -> None:
        if self._call.is_cancelled():
            self._raise_rpc_error()
        if self._initial_sent:
            raise ValueError("Initial metadata no longer allowed!")
        self._call.send_initial_metadata(() if initial_metadata is None else initial_metadata)
        self._initial_sent = True

    def abort(self, code: grpc.StatusCode, details: str | bytes) -> NoReturn:
        if code == grpc.StatusCode.OK:
            _log.error("abort() called with StatusCode.OK; returning UNKNOWN")
            code = grpc.StatusCode.UNKNOWN
            details = ""
        self._code = code
        self.set_details(details)
        self._aborted = True
        raise Exception

    def abort_with_status(self, status: grpc.Status) -> NoReturn:
        self.set_trailing_metadata(status.trailing_metadata)
        self.abort(status.code, status.details)

    def _raise_rpc_error(self) -> NoReturn:
        error = grpc.RpcError()
        if self._rpc_errors is None:
            self._rpc_errors = []
        self._rpc_errors.append(error)
        raise error

    def _raised(self, error: Exception, prefix: str) -> None:
        """Ends the call after its handler raised."""
        if self._aborted:
            self._fail(grpc.StatusCode.UNKNOWN, "RPC Aborted")
        elif self._rpc_errors is None or error not in self._rpc_errors:
            details = text_of(error, prefix)
            _log.exception(details)
            self._fail(grpc.StatusCode.UNKNOWN, details)


# isinstance() holds; what grpc.ServicerContext inherits would only make each context slower.
grpc.ServicerContext.register(ServicerContext)
