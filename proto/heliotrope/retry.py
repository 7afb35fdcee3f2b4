"""When a failed call is sent again, and how long to wait before."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from grpc import StatusCode

from heliotrope.errors import OverloadedError, ServerError, UnavailableError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Bounded retries with exponential backoff and full jitter.

    Before retry n (from 1) the wait is drawn from [0, min(max_backoff_s, initial_backoff_s * 2^(n-1))], which
    keeps clients that failed together from coming back together (M. Brooker, "Exponential backoff and
    jitter", 2015).
    """

    max_attempts: int = 5
    initial_backoff_s: float = 0.1
    max_backoff_s: float = 2.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, not {self.max_attempts}")


class Attempts:
    """The attempts of one call: its deadline and the number of tries, over which no retry goes."""

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        timeout_s: float,
        idempotent: bool,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be positive, not {timeout_s}")
        self._policy = policy
        self._idempotent = idempotent
        self._clock = clock
        self._uniform = uniform
        self._deadline = clock() + timeout_s
        self._made = 0

    def remaining_s(self) -> float:
        """Seconds until the deadline of the call, at least a millisecond."""
        return max(0.001, self._deadline - self._clock())

    def delay_after(self, failure: ServerError) -> float | None:
        """Seconds to wait before the next attempt, or None when the failure is final.

        UNAVAILABLE, and CANCELLED by a server whose queue was full, are retried when the call is idempotent: it may
        have been carried out. A refusal for overload that names a delay was not carried out, so every call is retried,
        after that delay.
        """
        self._made += 1
        if self._made >= self._policy.max_attempts:
            return None
        backoff = min(self._policy.max_backoff_s, self._policy.initial_backoff_s * 2.0 ** (self._made - 1))
        delay = self._uniform(0.0, backoff)
        if isinstance(failure, OverloadedError) and failure.retry_after_s is not None:
            delay += failure.retry_after_s
        elif not (self._idempotent and (isinstance(failure, UnavailableError) or failure.code is StatusCode.CANCELLED)):
            return None
        return delay if self._clock() + delay < self._deadline else None
