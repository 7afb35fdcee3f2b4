"""How many calls a principal may make."""

import time

from heliotrope_server.errors import OverloadedError

BURST_S = 2.0
"""Seconds of calls that may come at once."""


class RateLimit:
    """A token bucket; belongs to one event loop."""

    def __init__(self, principal: str, calls_per_s: float) -> None:
        self._principal = principal
        self.calls_per_s = calls_per_s
        self._tokens = self._most = max(BURST_S * calls_per_s, 1.0)
        self._filled_s = time.monotonic()

    def take(self, calls: int) -> None:
        """Raises OverloadedError, with the time until so many are free. More than the bucket holds cost all of it."""
        now_s = time.monotonic()
        self._tokens = min(self._most, self._tokens + (now_s - self._filled_s) * self.calls_per_s)
        self._filled_s = now_s
        wanted = min(float(calls), self._most)
        if self._tokens < wanted:
            raise OverloadedError(
                f"{self._principal} may make {self.calls_per_s:g} calls a second",
                retry_after_s=(wanted - self._tokens) / self.calls_per_s,
                value=calls,
                limit=self.calls_per_s,
            )
        self._tokens -= wanted
