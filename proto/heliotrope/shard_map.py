"""Which shard owns a user, and at which address to call it."""

import threading
import time
import zlib
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

from heliotrope.v1.admin_pb2 import GetServingStatusResponse

UNREACHABLE_COOL_DOWN_S = 30.0
"""How long an address that did not answer is passed over in favour of the entry address."""

REFRESH_INTERVAL_S = 1.0
"""The shortest time between two attempts to learn the map."""


def slot_of(user_id: str, slot_count: int) -> int:
    """The hash slot of a user: CRC-32 (IEEE) of the UTF-8 id, modulo the number of slots."""
    return zlib.crc32(user_id.encode()) % slot_count


@dataclass(frozen=True, slots=True)
class ShardMap:
    """The slots of every shard, in ascending order of their first slot."""

    slot_count: int
    first_slots: tuple[int, ...]
    addresses: tuple[str, ...]

    @classmethod
    def from_status(cls, status: GetServingStatusResponse) -> "ShardMap | None":
        """The map in a status reply, or None where there is nothing to choose: one shard, or no addresses."""
        shards = sorted(status.shards, key=lambda shard: shard.first_slot)
        if len(shards) < 2 or status.slot_count < 1 or not all(shard.address for shard in shards):
            return None
        return cls(
            status.slot_count,
            tuple(shard.first_slot for shard in shards),
            tuple(shard.address for shard in shards),
        )

    def address_of(self, user_id: str) -> str:
        """Address of the shard that owns the user."""
        return self.addresses[bisect_right(self.first_slots, slot_of(user_id, self.slot_count)) - 1]


class Router:
    """Chooses the address for each call: the owner of its user where that can be reached, else the entry.

    Holds what is learnt about the server; safe to use from several threads. It does no I/O itself.
    """

    def __init__(self, entry: str, *, direct: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.entry = entry
        self._direct = direct
        self._clock = clock
        self._lock = threading.Lock()
        self._map: ShardMap | None = None
        self._stale = direct
        self._next_refresh = -float("inf")
        self._unreachable_until: dict[str, float] = {}

    def claim_refresh(self) -> bool:
        """Whether the caller should learn the map now; true for one caller per REFRESH_INTERVAL_S."""
        if not self._stale:
            return False
        with self._lock:
            if not self._stale or self._clock() < self._next_refresh:
                return False
            self._next_refresh = self._clock() + REFRESH_INTERVAL_S
            return True

    def learn(self, status: GetServingStatusResponse) -> None:
        """Takes in the shard map of a status reply."""
        with self._lock:
            self._map = ShardMap.from_status(status)
            self._stale = False

    def forgo(self) -> None:
        """Stops asking for a map: the server does not offer one."""
        with self._lock:
            self._map, self._stale = None, False

    def failed(self, address: str) -> None:
        """Notes that an address did not answer: the map may be old, and a shard is passed over a while."""
        with self._lock:
            self._stale = self._direct
            if address != self.entry:
                self._unreachable_until[address] = self._clock() + UNREACHABLE_COOL_DOWN_S

    def address_of(self, user_id: str | None) -> str:
        """Where to send a call about `user_id`; None for a call that is about no user."""
        if user_id is None:
            return self.entry
        with self._lock:
            if self._map is None:
                return self.entry
            address = self._map.address_of(user_id)
            until = self._unreachable_until.get(address)
            if until is not None:
                if self._clock() < until:
                    return self.entry
                del self._unreachable_until[address]
            return address

    def split(self, user_ids: Iterable[str], limit: int) -> list[list[int]]:
        """Positions of the users grouped by address, each group at most `limit` long, in the given order."""
        open_groups: dict[Hashable, list[int]] = {}
        groups: list[list[int]] = []
        for position, user_id in enumerate(user_ids):
            address = self.address_of(user_id)
            group = open_groups.get(address)
            if group is None or len(group) >= limit:
                group = open_groups[address] = []
                groups.append(group)
            group.append(position)
        return groups
