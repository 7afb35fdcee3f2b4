"""The wall clock, which does not follow a jump before it has lasted.

An event that is recorded while the clock is a year ahead would count 2^(a year / half-life) times as much as all others
once the clock is back, and would be its user's newest event for a year.
"""

import logging
import time
from collections.abc import Callable

TOLERANCE_S = 2.0
"""A step of the wall clock beside the time since boot that is no jump."""
PATIENCE_S = 300.0
"""A jump that has lasted so long was a correction, and is followed."""

logger = logging.getLogger(__name__)


def _since_boot_s() -> float:
    """Seconds that passed, also those in which the machine was suspended, where the system counts them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class SteadyClock:
    """Calling it gives seconds since the epoch. While a jump is waited out, they go on from the moment before it."""

    def __init__(self, wall: Callable[[], float] = time.time, since_boot: Callable[[], float] = _since_boot_s) -> None:
        self._wall = wall
        self._since_boot = since_boot
        self._offset_s = wall() - since_boot()
        self._jumped_offset_s = self._offset_s
        self._jumped_at_s = 0.0

    def __call__(self) -> float:
        passed_s = self._since_boot()
        offset_s = self._wall() - passed_s
        if abs(offset_s - self._offset_s) <= TOLERANCE_S:
            self._offset_s = self._jumped_offset_s = offset_s
        elif abs(offset_s - self._jumped_offset_s) > TOLERANCE_S:
            self._jumped_offset_s, self._jumped_at_s = offset_s, passed_s
            logger.error(
                "the system clock jumped by %.0f s; it is followed if it stays there for %.0f s",
                offset_s - self._offset_s,
                PATIENCE_S,
            )
        elif passed_s - self._jumped_at_s >= PATIENCE_S:
            logger.warning("the jump of the system clock by %.0f s is followed", offset_s - self._offset_s)
            self._offset_s = offset_s
        return passed_s + self._offset_s
