"""What can go wrong for a client.

HeliotropeError
├── ConnectionSettingsError     the address or the TLS files can't be used; nothing was sent
└── ServerError                 the server refused the call, or no answer came
    ├── AuthenticationError     no credentials, or none that the server takes
    ├── PermissionDeniedError   the credentials do not allow the call
    ├── InvalidRequestError     a field is outside of its limits
    ├── NotFoundError           the item, or the snapshot, does not exist
    ├── FailedPreconditionError the server's state does not allow it
    │   └── VersionNotAvailableError    a version token that the server can't satisfy
    ├── OverloadedError         refused early; `retry_after_s` says when to try again, where the server could say
    ├── UnavailableError        no server, or the owner of the user is down
    ├── DeadlineExceededError   no answer in time; for RecordEvents the outcome is unknown
    ├── UnsupportedError        the server does not know the method
    └── InternalError           a bug in the server

Every ServerError carries the facts of `google.rpc.ErrorInfo`: a stable `reason` and `metadata`.
"""

from collections.abc import Mapping

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from heliotrope.v1.recommendation_pb2 import Error


class HeliotropeError(Exception):
    """Root of the tree."""


class ConnectionSettingsError(HeliotropeError, ValueError):
    """The address or the TLS files can't be used; nothing was sent."""


class ServerError(HeliotropeError):
    """The server refused the call or an element of it, or no answer came.

    `code` is the gRPC status of the call, or None for one element of a batch or stream; `retry_after_s`
    is the server's own hint, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        code: grpc.StatusCode | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{message} [{reason}]" if reason else message)
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.code = code
        self.retry_after_s = retry_after_s


class AuthenticationError(ServerError):
    """No credentials, or none that the server takes."""


class PermissionDeniedError(ServerError):
    """The credentials do not allow the call; `metadata` names the scope or the tenant."""


class InvalidRequestError(ServerError):
    """A field is outside of its limits; `metadata` names the limit."""


class NotFoundError(ServerError):
    """The item, or the snapshot, does not exist."""


class FailedPreconditionError(ServerError):
    """The server's state does not allow the call."""


class VersionNotAvailableError(FailedPreconditionError):
    """The version token names a state that the server never had, or no longer has."""


class OverloadedError(ServerError):
    """Refused early because too much waits; `retry_after_s` says when to try again.

    Without a `retry_after_s` and with the code CANCELLED it was the server's gRPC that refused, before the server saw
    the call, or that gave up the calls of a server that stopped: then it may have been carried out.
    """


class UnavailableError(ServerError):
    """No server answers at the address, or the owner of the user is down."""


class DeadlineExceededError(ServerError):
    """No answer came in time. Of RecordEvents, the outcome is unknown: send the same events again."""


class UnsupportedError(ServerError):
    """The server does not know the method: it is older than this client, or not Heliotrope."""


class InternalError(ServerError):
    """A bug in the server; its log names the id in `metadata`."""


def from_rpc_error(error: grpc.RpcError) -> ServerError:
    """The exception for a failed call, from its status code and `google.rpc.Status` details.

    Both the synchronous and the asyncio flavour of grpc's error are understood.
    """
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return ServerError(str(error) or type(error).__name__)
    code = error.code()
    reason, metadata, retry_after_s = "", {}, None
    for detail in _status_details(error):
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
    kind = _KIND_OF_REASON.get(reason) or _KIND_OF_CODE.get(code, ServerError)
    message = error.details() or code.name
    return kind(message, reason=reason, metadata=metadata, code=code, retry_after_s=retry_after_s)


def from_element(error: Error) -> ServerError:
    """The exception for one refused element of a batch or a stream."""
    reason = error.reason
    kind = _KIND_OF_REASON.get(reason)
    if kind is None:
        if reason.startswith(("INVALID_", "TOO_MANY_", "DUPLICATE_", "EVENT_")):
            kind = InvalidRequestError
        elif reason.endswith("NOT_FOUND"):
            kind = NotFoundError
        else:
            kind = ServerError
    after_ms = error.metadata.get("retry_after_ms")
    retry_after_s = None if after_ms is None else int(after_ms) / 1000
    return kind(error.message, reason=reason, metadata=dict(error.metadata), retry_after_s=retry_after_s)


_KIND_OF_CODE: Mapping[grpc.StatusCode, type[ServerError]] = {
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    # No call of these clients is cancelled here, so it was there: see OverloadedError.
    grpc.StatusCode.CANCELLED: OverloadedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.UNIMPLEMENTED: UnsupportedError,
    grpc.StatusCode.INTERNAL: InternalError,
}

_KIND_OF_REASON: Mapping[str, type[ServerError]] = {
    "VERSION_NOT_AVAILABLE": VersionNotAvailableError,
    "OVERLOADED": OverloadedError,
    "DEADLINE_PASSED": DeadlineExceededError,
    "SHARD_UNREACHABLE": UnavailableError,
    "SHUTTING_DOWN": UnavailableError,
    "LOG_WRITE_FAILED": UnavailableError,
    "INTERNAL": InternalError,
}


def _status_details(error: grpc.Call | grpc.aio.AioRpcError) -> list[Any]:
    """The `details` of the google.rpc.Status in the trailers; empty when there is none."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            try:
                return list(status_pb2.Status.FromString(value).details)
            except DecodeError:
                return []
    return []
