"""Every error that Headrace raises on purpose: one tree, a leaf a gRPC status code.

    HeadraceError
    ├── CancelledError            1  CANCELLED
    ├── UnknownError              2  UNKNOWN
    ├── InvalidArgumentError      3  INVALID_ARGUMENT
    ├── DeadlineExceededError     4  DEADLINE_EXCEEDED
    ├── NotFoundError             5  NOT_FOUND
    ├── AlreadyExistsError        6  ALREADY_EXISTS
    ├── PermissionDeniedError     7  PERMISSION_DENIED
    ├── ResourceExhaustedError    8  RESOURCE_EXHAUSTED
    ├── FailedPreconditionError   9  FAILED_PRECONDITION
    ├── AbortedError             10  ABORTED
    ├── OutOfRangeError          11  OUT_OF_RANGE
    ├── UnimplementedError       12  UNIMPLEMENTED
    ├── InternalError            13  INTERNAL
    ├── UnavailableError         14  UNAVAILABLE
    ├── DataLossError            15  DATA_LOSS
    └── UnauthenticatedError     16  UNAUTHENTICATED

A handler that raises one ends its call with that status. The C++ core's Status arrives through
`error_from_code`.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AbortedError",
    "AlreadyExistsError",
    "CancelledError",
    "DataLossError",
    "DeadlineExceededError",
    "FailedPreconditionError",
    "HeadraceError",
    "InternalError",
    "InvalidArgumentError",
    "NotFoundError",
    "OutOfRangeError",
    "PermissionDeniedError",
    "ResourceExhaustedError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "UnknownError",
    "code_name",
    "error_from_code",
]


class HeadraceError(Exception):
    """`code` is the gRPC status number, `details` the text for whoever asked."""

    code: int = 2
    status: ClassVar[str] = "UNKNOWN"

    def __init__(self, details: str = "") -> None:
        super().__init__(details)
        self.details = details

    def __str__(self) -> str:
        return self.details


class CancelledError(HeadraceError):
    """The caller gave up."""

    code = 1
    status = "CANCELLED"


class UnknownError(HeadraceError):
    """A failure that carried no status."""

    code = 2
    status = "UNKNOWN"


class InvalidArgumentError(HeadraceError):
    """The request or the configuration is wrong, whatever state the server is in."""

    code = 3
    status = "INVALID_ARGUMENT"


class DeadlineExceededError(HeadraceError):
    """The caller's deadline passed."""

    code = 4
    status = "DEADLINE_EXCEEDED"


class NotFoundError(HeadraceError):
    """No such model, version or file."""

    code = 5
    status = "NOT_FOUND"


class AlreadyExistsError(HeadraceError):
    """The name is taken."""

    code = 6
    status = "ALREADY_EXISTS"


class PermissionDeniedError(HeadraceError):
    """The caller may not do this."""

    code = 7
    status = "PERMISSION_DENIED"


class ResourceExhaustedError(HeadraceError):
    """A bound was reached: message size, memory, queue."""

    code = 8
    status = "RESOURCE_EXHAUSTED"


class FailedPreconditionError(HeadraceError):
    """The server is not in a state for this; trying again will not help by itself."""

    code = 9
    status = "FAILED_PRECONDITION"


class AbortedError(HeadraceError):
    """Given up because of something that happened at the same time."""

    code = 10
    status = "ABORTED"


class OutOfRangeError(HeadraceError):
    """Past the end of what there is."""

    code = 11
    status = "OUT_OF_RANGE"


class UnimplementedError(HeadraceError):
    """Not supported by this server."""

    code = 12
    status = "UNIMPLEMENTED"


class InternalError(HeadraceError):
    """Something of ours, or of a runtime below us, broke."""

    code = 13
    status = "INTERNAL"


class UnavailableError(HeadraceError):
    """Not now: not loaded, overloaded, or shutting down. Trying again may help."""

    code = 14
    status = "UNAVAILABLE"


class DataLossError(HeadraceError):
    """Stored data is damaged."""

    code = 15
    status = "DATA_LOSS"


class UnauthenticatedError(HeadraceError):
    """The caller did not say who it is."""

    code = 16
    status = "UNAUTHENTICATED"


_BY_CODE: dict[int, type[HeadraceError]] = {
    cls.code: cls
    for cls in (
        CancelledError,
        UnknownError,
        InvalidArgumentError,
        DeadlineExceededError,
        NotFoundError,
        AlreadyExistsError,
        PermissionDeniedError,
        ResourceExhaustedError,
        FailedPreconditionError,
        AbortedError,
        OutOfRangeError,
        UnimplementedError,
        InternalError,
        UnavailableError,
        DataLossError,
        UnauthenticatedError,
    )
}


def error_from_code(code: int, details: str) -> HeadraceError:
    """The leaf of a gRPC status number; a number that gRPC does not have becomes UnknownError."""
    return _BY_CODE.get(code, UnknownError)(details)


def code_name(code: int) -> str:
    """`5` -> "NOT_FOUND"; "UNKNOWN" for a number that gRPC does not have."""
    return "OK" if code == 0 else _BY_CODE.get(code, UnknownError).status
