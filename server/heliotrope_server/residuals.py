"""Online residuals: how far its live users have moved an item that the snapshot hardly knows.

    r_i = step * Z_i / (n + known_i + c),    Z_i = sum over its n live users of z_u = q_u - query_mean

with q_u the user's query just before their first event on the item; |z_u| <= max_query and |r_i| <= max_norm bound what
one user and what a crowd can do (heliotrope_indexer.young_items fits these). What each user said is kept by item and
user, so that an undo or a deletion takes back exactly that. Each shard keeps what its own users said and hears the sums
of the others.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.parameters import YoungItems
from heliotrope_server.live_catalogue import MAX_RESIDUALS, LiveCatalogue

MAX_USERS = 64
"""Users of a shard that an item hears; by then the mean moves little, and the next rebuild learns the item."""

logger = logging.getLogger(__name__)


class Heard(NamedTuple):
    """What users said of one item: z_u (n, d) float16, parallel to `users`. Never changed in place.

    `known` is how many events of the item the snapshot knew when the first of them spoke.
    """

    users: tuple[str, ...]
    said: NDArray[np.float16]
    known: int

    def sum(self) -> NDArray[np.float64]:
        """Z (d,), always of what stands: nothing of a user who is taken back remains by rounding."""
        total: NDArray[np.float64] = self.said.sum(axis=0, dtype=np.float64)
        return total


class Carried(NamedTuple):
    """What was said of an item, before and after a swap; None: nothing is left of it."""

    before: Heard
    after: Heard | None


class Residuals:
    """What the users of this shard said of young items, and the sums of other shards. Belongs to the event loop.

    At most MAX_RESIDUALS items are kept: the one that has been silent for longest gives way. `space` is the snapshot
    version in whose item space everything is expressed; "" before the first `bind`.
    """

    def __init__(self) -> None:
        self.space = ""
        self.version = 0
        self.own: OrderedDict[str, Heard] = OrderedDict()
        self._dirty: set[str] = set()
        self._changed_at: dict[str, int] = {}
        self._peers: dict[int, dict[str, tuple[int, NDArray[np.float64]]]] = {}
        self._catalogue: LiveCatalogue | None = None
        self._young: YoungItems | None = None

    @property
    def active(self) -> bool:
        """Whether the snapshot says how young items move."""
        return self._young is not None

    @property
    def dirty(self) -> bool:
        return bool(self._dirty)

    def carried_to(
        self, catalogue: LiveCatalogue, own: Mapping[str, Heard], pause: Callable[[], None]
    ) -> dict[str, Carried]:
        """Moves the young items of a catalogue that is to be bound, by what was said of them up to now.

        For a thread, which brings a copy of `own` and calls `pause` between small steps.
        """
        dual, carried = self._dual(catalogue), {}
        for item_id, heard in own.items():
            said = None if _is_absorbed(catalogue, item_id, heard.known) else _carried(heard, dual)
            carried[item_id] = Carried(heard, said)
            if said is not None:
                catalogue.set_residual(item_id, _residual(catalogue, item_id, [(len(said.users), said.sum())]))
            pause()
        return carried

    def bind(self, catalogue: LiveCatalogue, carried: Mapping[str, Carried] | None = None) -> None:
        """Moves to another catalogue, and moves its young items.

        What was said of an item that the new snapshot knows more events of has been learnt there and is dropped. The
        rest is carried over by the linear map between the snapshots, where there is one. `carried` is what `carried_to`
        did of it already.
        """
        carried, dual = carried or {}, self._dual(catalogue)
        other_space = self.space not in ("", catalogue.version)
        self._catalogue, self._young, self._peers = catalogue, catalogue.parameters.young, {}
        self.version += 1
        for item_id, heard in list(self.own.items()):
            known = carried.get(item_id)
            prepared = known is not None and known.before is heard
            if known is not None and prepared:
                after = known.after
            else:
                after = None if _is_absorbed(catalogue, item_id, heard.known) else _carried(heard, dual)
            if after is None:
                del self.own[item_id]
                self._touch(item_id)
            else:
                self.own[item_id] = after
            if not prepared:
                self._apply(item_id)
        for item_id in carried.keys() - self.own.keys():
            catalogue.set_residual(item_id, None)  # taken back meanwhile
        if other_space:
            self._dirty.update(self.own)
        self.space = catalogue.version
        self._changed_at = dict.fromkeys(self.own, self.version)

    def wants(self, user_id: str, item_id: str, time_s: float) -> bool:
        """Whether what this user says of the item at this time would be heard.

        What the snapshot has learned from is not heard again, when a history is imported: the item would move twice.
        """
        if self._young is None or self._catalogue is None:
            return False
        heard = self.own.get(item_id)
        if heard is not None and (len(heard.users) >= MAX_USERS or user_id in heard.users):
            return False
        known = self._catalogue.known_events(item_id)
        return known < self._young.below_events and (not known or time_s > self._young.learned_until_s)

    def add(self, user_id: str, item_id: str, interests: NDArray[np.float32]) -> None:
        """Hears a user whose interest vectors (H, d) just before the event were these. Ask `wants` first."""
        assert self._young is not None and self._catalogue is not None, "nothing is wanted without parameters"
        snapshot = self._catalogue.snapshot
        assert snapshot.query_mean is not None, "a snapshot with parameters for young items has a mean query"
        # By the matrices of the snapshot, also while learnt ones are served: step and mean belong to these.
        query = interests.reshape(-1) @ snapshot.scoring_matrices.reshape(-1, interests.shape[1])
        said = _shortened((query - snapshot.query_mean).astype(np.float64), self._young.max_query)
        self.put(user_id, item_id, said.astype(np.float16), self._catalogue.known_events(item_id))
        self._apply(item_id)
        if len(self.own) > MAX_RESIDUALS:
            self._drop([next(iter(self.own))])

    def put(self, user_id: str, item_id: str, said: NDArray[np.float16], known: int) -> None:
        """Keeps z_u (d,) of one user as it is."""
        heard = self.own.get(item_id)
        if heard is None:
            self.own[item_id] = Heard((user_id,), said[None, :], known)
        else:
            self.own[item_id] = Heard((*heard.users, user_id), np.concatenate([heard.said, said[None, :]]), heard.known)
        self.own.move_to_end(item_id)
        self._touch(item_id)

    def remove(self, user_id: str, item_ids: Iterable[str]) -> None:
        """Takes back all that a user said of these items."""
        for item_id in item_ids:
            heard = self.own.get(item_id)
            if heard is None or user_id not in heard.users:
                continue
            place = heard.users.index(user_id)
            if len(heard.users) == 1:
                del self.own[item_id]
            else:
                users = heard.users[:place] + heard.users[place + 1 :]
                self.own[item_id] = Heard(users, np.delete(heard.said, place, axis=0), heard.known)
            self._touch(item_id)
            self._apply(item_id)

    def changes(self, since_version: int) -> tuple[list[str], list[int], NDArray[np.float32]]:
        """Items whose own sum changed after `since_version`, with n and Z (items, d); n is 0 for those taken back."""
        ids = [item_id for item_id, version in self._changed_at.items() if version > since_version]
        counts = [len(self.own[item_id].users) if item_id in self.own else 0 for item_id in ids]
        dimension = 0 if self._catalogue is None else self._catalogue.dimension
        sums = np.zeros((len(ids), dimension), dtype=np.float32)
        for place, item_id in enumerate(ids):
            if item_id in self.own:
                sums[place] = self.own[item_id].sum()
        return ids, counts, sums

    def merge_peer(self, peer: int, item_ids: list[str], counts: list[int], sums: NDArray[np.float32]) -> None:
        """Takes over sums of another shard, each replacing what that shard said before."""
        known = self._peers.setdefault(peer, {})
        for item_id, count, row in zip(item_ids, counts, sums, strict=True):
            if count:
                known[item_id] = (count, row.astype(np.float64))
            else:
                known.pop(item_id, None)
            self._apply(item_id)

    def forget_peer(self, peer: int) -> None:
        """Drops what a shard said: it restarted and will say it again."""
        for item_id in self._peers.pop(peer, {}):
            self._apply(item_id)

    def take_dirty(self) -> dict[str, Heard | None]:
        """What changed since the last call, for a checkpoint; None: to be deleted."""
        changed = {item_id: self.own.get(item_id) for item_id in self._dirty}
        self._dirty = set()
        return changed

    def put_back(self, changed: Iterable[str]) -> None:
        """The checkpoint that took these failed."""
        self._dirty.update(changed)

    def _dual(self, catalogue: LiveCatalogue) -> NDArray[np.float64] | None:
        """What carries over what was said (d_old,) to the space of a catalogue: (d_old, d); None: nothing does."""
        if catalogue.parameters.young is None or not self.own:
            return None
        if self.space in ("", catalogue.version):
            return np.eye(catalogue.dimension)
        matrix = catalogue.folded_map(self.space)
        # Items go by x' = x M, so scores stay the same under q = M q': queries go by the pseudo-inverse.
        return None if matrix is None else np.linalg.pinv(matrix.astype(np.float64)).T

    def _drop(self, item_ids: list[str]) -> None:
        for item_id in item_ids:
            del self.own[item_id]
            self._touch(item_id)
            self._apply(item_id)

    def _touch(self, item_id: str) -> None:
        self.version += 1
        self._changed_at[item_id] = self.version
        self._dirty.add(item_id)

    def _apply(self, item_id: str) -> None:
        """Serves the residual that follows from all that is known of the item."""
        if self._catalogue is None:
            return
        said = [sums[item_id] for sums in self._peers.values() if item_id in sums]
        heard = self.own.get(item_id)
        if heard is not None:
            said.insert(0, (len(heard.users), heard.sum()))
        self._catalogue.set_residual(item_id, _residual(self._catalogue, item_id, said))


def _residual(
    catalogue: LiveCatalogue, item_id: str, said: Sequence[tuple[int, NDArray[np.float64]]]
) -> NDArray[np.float32] | None:
    """r_i (d,) by what each shard's users said: how many they are, and Z (d,). None without any."""
    young = catalogue.parameters.young
    if young is None or not said:
        return None
    count = sum(users for users, _ in said)
    total = np.sum([each for _, each in said], axis=0)
    weight = young.step / (count + catalogue.known_events(item_id) + young.shrinkage)
    return _shortened(weight * total, young.max_norm).astype(np.float32)


def _is_absorbed(catalogue: LiveCatalogue, item_id: str, known: int) -> bool:
    young, events = catalogue.parameters.young, catalogue.known_events(item_id)
    return young is None or item_id not in catalogue.rows or events > known or events >= young.below_events


def _carried(heard: Heard, dual: NDArray[np.float64] | None) -> Heard | None:
    """What was said, by `dual` (d_old, d); None: by nothing, so that it is lost."""
    if dual is None:
        return None
    return heard._replace(said=(heard.said.astype(np.float64) @ dual).astype(np.float16))


def _shortened(vector: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
    norm = float(np.linalg.norm(vector))
    return vector if norm <= limit else vector * (limit / norm)
