import grpc
import pytest
from google.protobuf.any_pb2 import Any

from heliotrope import errors
from heliotrope.v1.recommendation_pb2 import Error


class Failed(grpc.RpcError, grpc.Call):
    """A call that ended with a status, as grpc raises it."""

    def __init__(self, code: grpc.StatusCode, trailers: tuple[tuple[str, bytes], ...] = ()) -> None:
        self._code, self._trailers = code, trailers

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return ""

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        return self._trailers

    def initial_metadata(self) -> tuple[()]:
        return ()

    def is_active(self) -> bool:
        return False

    def time_remaining(self) -> None:
        return None

    def cancel(self) -> bool:
        return False

    def add_callback(self, callback: object) -> bool:
        return False


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.NOT_FOUND, errors.NotFoundError),
        (grpc.StatusCode.UNIMPLEMENTED, errors.UnsupportedError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceededError),
        (grpc.StatusCode.DATA_LOSS, errors.ServerError),
    ],
)
def test_a_status_without_details_has_its_kind(code: grpc.StatusCode, kind: type[Exception]) -> None:
    failure = errors.from_rpc_error(Failed(code))
    assert type(failure) is kind and failure.code is code and failure.reason == ""
    assert str(failure) == code.name


def test_details_that_are_damaged_do_not_hide_the_status() -> None:
    damaged = errors.from_rpc_error(Failed(grpc.StatusCode.INTERNAL, (("grpc-status-details-bin", b"\xff"),)))
    assert type(damaged) is errors.InternalError and damaged.metadata == {}


def test_unknown_details_are_passed_over() -> None:
    from google.rpc import status_pb2

    status = status_pb2.Status(details=[Any(type_url="type.googleapis.com/some.Thing", value=b"x")])
    trailers = (("grpc-status-details-bin", status.SerializeToString()),)
    assert errors.from_rpc_error(Failed(grpc.StatusCode.INTERNAL, trailers)).reason == ""


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("INVALID_COUNT", errors.InvalidRequestError),
        ("TOO_MANY_INTERESTS", errors.InvalidRequestError),
        ("EVENT_TIME_TOO_OLD", errors.InvalidRequestError),
        ("ITEM_NOT_FOUND", errors.NotFoundError),
        ("VERSION_NOT_AVAILABLE", errors.VersionNotAvailableError),
        ("SOMETHING_NEW", errors.ServerError),
    ],
)
def test_an_element_has_the_kind_of_its_reason(reason: str, kind: type[Exception]) -> None:
    failure = errors.from_element(Error(reason=reason, message="why", metadata={"limit": "3"}))
    assert type(failure) is kind and failure.metadata == {"limit": "3"}
    assert str(failure) == f"why [{reason}]"
