import pytest
from grpc import StatusCode

from heliotrope.errors import InternalError, OverloadedError, UnavailableError
from heliotrope.retry import Attempts, RetryPolicy


def attempts(*, idempotent: bool = True, timeout_s: float = 100.0, **policy: float) -> Attempts:
    return Attempts(
        RetryPolicy(**policy),  # type: ignore[arg-type]
        timeout_s=timeout_s,
        idempotent=idempotent,
        clock=lambda: 0.0,
        uniform=lambda low, high: high,
    )


def test_the_backoff_doubles_up_to_its_limit_and_ends() -> None:
    tries = attempts(max_attempts=5, initial_backoff_s=0.5, max_backoff_s=1.5)
    assert [tries.delay_after(UnavailableError("down")) for _ in range(5)] == [0.5, 1.0, 1.5, 1.5, None]


def test_what_may_have_been_done_is_not_done_twice() -> None:
    assert attempts(idempotent=False).delay_after(UnavailableError("down")) is None
    assert attempts().delay_after(InternalError("bug")) is None


def test_overload_is_retried_only_with_a_delay_and_never_before_it() -> None:
    refusal = OverloadedError("full", retry_after_s=3.0)
    assert attempts(idempotent=False, initial_backoff_s=0.5).delay_after(refusal) == 3.5
    assert attempts().delay_after(OverloadedError("message too large", code=StatusCode.RESOURCE_EXHAUSTED)) is None


def test_a_call_that_the_servers_queue_had_no_place_for_is_retried_when_it_may_be_done_twice() -> None:
    refusal = OverloadedError("CANCELLED", code=StatusCode.CANCELLED)
    assert attempts(initial_backoff_s=0.5).delay_after(refusal) == 0.5
    assert attempts(idempotent=False).delay_after(refusal) is None


def test_no_retry_waits_past_the_deadline() -> None:
    assert attempts(timeout_s=3.0).delay_after(OverloadedError("full", retry_after_s=3.0)) is None


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="max_attempts"):
        RetryPolicy(max_attempts=0)
    with pytest.raises(ValueError, match="timeout_s must be positive, not 0"):
        attempts(timeout_s=0)
