"""Bounds how many bytes of calls wait for something slow: the disk, the encoder."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from heliotrope_server.errors import OverloadedError

LEAST_RETRY_S, MOST_RETRY_S = 0.01, 5.0
CALL_BYTES = 4096
"""What a call holds in memory besides its request."""


class ByteGate:
    """Admits calls while those inside hold at most `limit` bytes; one call alone may be larger.

    Belongs to one event loop. `what` names in errors what the calls wait for.
    """

    def __init__(self, what: str, limit: int) -> None:
        self._what = what
        self._limit = limit
        self._held = 0
        self._last_took_s = 0.0

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Counts a call of `size` bytes while the block runs. Raises OverloadedError, whose hint is the time that the
        last call was inside: as long as that, or less, and those inside now are gone.
        """
        size += CALL_BYTES
        if self._held and self._held + size > self._limit:
            raise OverloadedError(
                f"{self._held} bytes wait for {self._what}; with the {size} of this call there would be more than "
                f"{self._limit}",
                retry_after_s=min(max(LEAST_RETRY_S, self._last_took_s), MOST_RETRY_S),
                value=self._held + size,
                limit=self._limit,
            )
        self._held += size
        start_s = time.monotonic()
        try:
            yield
        finally:
            self._held -= size
            self._last_took_s = time.monotonic() - start_s
