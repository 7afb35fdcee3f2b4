"""What can go wrong in the server.

ServerError
├── RequestError            the caller can mend it; becomes a gRPC status with ErrorInfo
│   ├── UnauthenticatedError
│   ├── PermissionDeniedError
│   ├── InvalidArgumentError
│   ├── ItemNotFoundError
│   ├── VersionNotAvailableError
│   ├── SnapshotUnusableError
│   ├── EncoderNotLoadedError
│   ├── UnknownRequestError
│   ├── FeedbackOffError
│   ├── WeightsUnchangedError
│   ├── OverloadedError
│   ├── DeadlinePassedError
│   ├── EncoderMemoryError
│   ├── ProfileDamagedError
│   ├── StorageFailedError
│   └── ShardUnreachableError
├── BackupError             a backup can't be taken, read or restored
└── StartError              the server can't start or go on; ends the command with one clear line
    ├── LogCorruptError
    ├── DataFolderError
    ├── AccessFileError
    ├── CertificateError
    ├── AuditLogError
    └── PortInUseError
"""

import math
from collections.abc import Mapping


class ServerError(Exception):
    """Root of the tree."""


class RequestError(ServerError):
    """A call that is refused.

    `reason` is stable and upper snake case; `metadata` holds the value and the limit for machines.
    `code` is the name of the gRPC status code, kept as text because the engine knows no gRPC.
    """

    code = "UNKNOWN"

    def __init__(self, reason: str, message: str, **metadata: object) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata: Mapping[str, str] = {key: str(value) for key, value in metadata.items()}


class UnauthenticatedError(RequestError):
    """Who calls has not shown who they are."""

    code = "UNAUTHENTICATED"


class PermissionDeniedError(RequestError):
    """Who calls may not do that."""

    code = "PERMISSION_DENIED"


class InvalidArgumentError(RequestError):
    """A field of the request is outside of its limits."""

    code = "INVALID_ARGUMENT"


class ItemNotFoundError(RequestError):
    """The catalogue does not know the item."""

    code = "NOT_FOUND"


class VersionNotAvailableError(RequestError):
    """The version token names a state that this store never had, or no longer has."""

    code = "FAILED_PRECONDITION"


class SnapshotUnusableError(RequestError):
    """The snapshot does not exist, is damaged, or does not fit the loaded model."""

    code = "FAILED_PRECONDITION"


class EncoderNotLoadedError(RequestError):
    """The call needs the text encoder and the server was started without a model."""

    code = "FAILED_PRECONDITION"


class UnknownRequestError(RequestError):
    """Feedback names an answer that is not, or no longer, remembered."""

    code = "NOT_FOUND"


class FeedbackOffError(RequestError):
    """Feedback was sent to a server that neither learns nor logs impressions."""

    code = "FAILED_PRECONDITION"


class WeightsUnchangedError(RequestError):
    """There are no learned weights to go back from."""

    code = "FAILED_PRECONDITION"


class OverloadedError(RequestError):
    """More waits than the shard admits, and nothing of the request was done; try again after `retry_after_s`.

    The delay is in the metadata too, as whole milliseconds: an element of a batch or stream has no other place for it.
    """

    code = "RESOURCE_EXHAUSTED"
    reason = "OVERLOADED"

    def __init__(self, message: str, *, retry_after_s: float, **metadata: object) -> None:
        super().__init__(self.reason, message, **metadata, retry_after_ms=math.ceil(retry_after_s * 1000))
        self.retry_after_s = retry_after_s

    @classmethod
    def again(cls, message: str, metadata: Mapping[str, str]) -> "OverloadedError":
        """The refusal that another shard sent with this message and metadata."""
        facts = dict(metadata)
        return cls(message, retry_after_s=int(facts.pop("retry_after_ms")) / 1000, **facts)


class DeadlinePassedError(RequestError):
    """The caller's deadline passed while the request waited; no work was done."""

    code = "DEADLINE_EXCEEDED"


class EncoderMemoryError(RequestError):
    """The text encoder found no memory for these texts; other calls go on."""

    code = "RESOURCE_EXHAUSTED"


class ProfileDamagedError(RequestError):
    """What is stored of this user cannot be read; other users are served."""

    code = "DATA_LOSS"


class StorageFailedError(RequestError):
    """The event log cannot be written; nothing of the request was acknowledged."""

    code = "UNAVAILABLE"


class ShardUnreachableError(RequestError):
    """The shard that owns the user does not answer."""

    code = "UNAVAILABLE"


class BackupError(ServerError):
    """A backup can't be taken, read or restored."""


class StartError(ServerError):
    """The server can't start, or can't go on."""


class LogCorruptError(StartError):
    """A log holds a damaged record before intact ones: acknowledged data would be lost by going on."""


class DataFolderError(StartError):
    """The data folder is not one of ours, is of another format, or is in use."""


class AccessFileError(StartError):
    """The file that says who may call what cannot be used."""


class CertificateError(StartError):
    """The files for TLS cannot be used."""


class AuditLogError(StartError):
    """The audit log is not whole."""


class PortInUseError(StartError):
    """The address is taken."""
