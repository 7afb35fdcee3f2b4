"""The protocols of the replay evaluation: how a data set is cut, and in which variants it is asked."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from heliotrope_bench.dataset import Dataset
from heliotrope_bench.holdout import Holdout, Positions, first_sights, hold_out

COMMON = (
    "The whole catalogue is ranked but for the items that the user has seen. History and every live count hold only "
    "events before the target in the global order (equal times: order of the file). A tie gets its expected rank."
)
TRAIN_SHARE = 0.8
COLD_ITEM_SHARE = 0.1
WARM_EVENTS = 5
COLD_USER_EVENTS = (0, 1, 3, 5)
COLD_USER_SHARE = 1 / 3
MAX_COLD_USERS = 1_000
MAX_TARGETS = 10_000

QUICK = ("chance", "popularity", "decayed-popularity", "item-knn", "ease", "average-bert")


@dataclass(frozen=True)
class Protocol:
    """`cut` makes the holdout; `variants` what is recorded in each variant of asking it.

    Tuning uses `cut` once more, on the train events alone, and the variant `tuned_on`.
    """

    name: str
    title: str
    description: str
    cut: Callable[[Dataset, Positions | None], Holdout]
    variants: Callable[[Holdout], dict[str, Holdout]]
    tuned_on: str
    competitors: tuple[str, ...]
    """Those that are run unless told otherwise."""
    needs_times: bool = False

    def validation(self, holdout: Holdout, *, count: int) -> Holdout:
        """The same protocol inside the train events: where settings are chosen. At most `count` targets."""
        return self.variants(self.cut(holdout.dataset, holdout.train))[self.tuned_on].sample(count)


def leave_last_out(dataset: Dataset, events: Positions | None = None) -> Holdout:
    """Each user's last positive; see `hold_out`."""
    return hold_out(dataset, events).sample(MAX_TARGETS)


def split_by_time(dataset: Dataset, events: Positions | None = None) -> Holdout:
    """Train events before T, the 80 % quantile of the events' times; every positive of an unseen item from T on."""
    events = np.arange(len(dataset)) if events is None else events
    if not len(events):
        return Holdout(dataset, events, events)
    split = np.quantile(dataset.time[events], TRAIN_SHARE)
    train = events[dataset.time[events] < split]
    sights = events[first_sights(dataset, events) & dataset.positive[events]]
    return Holdout(dataset, sights[dataset.time[sights] >= split], train, events).sample(MAX_TARGETS)


def hold_items_out(dataset: Dataset, events: Positions | None = None) -> Holdout:
    """No event on a tenth of the items (drawn at random among those with events) is trained on.

    Targets are each user's last positive on such an item; the user's later events are dropped.
    """
    events = np.arange(len(dataset)) if events is None else events
    known = np.unique(dataset.item[events])
    cold = np.zeros(len(dataset.items), bool)
    drawn = np.random.default_rng(0).permutation(known)[: round(COLD_ITEM_SHARE * len(known))]
    cold[drawn] = True
    holdout = hold_out(dataset, events, among=cold)
    train = holdout.train[~cold[dataset.item[holdout.train]]]
    return Holdout(dataset, holdout.targets, train, aside=events[cold[dataset.item[events]]]).sample(MAX_TARGETS)


def warm_items(holdout: Holdout) -> dict[str, Holdout]:
    """The targets of cold items, unaided, and after the first five events on the item were recorded.

    The same targets, those behind the fifth event of their item, are also asked unaided, to compare.
    """
    places = _place_among_equals(holdout.dataset.item[holdout.aside])
    first = holdout.aside[places < WARM_EVENTS]
    later = np.intersect1d(holdout.targets, holdout.aside[places >= WARM_EVENTS])
    subset = replace(holdout, targets=later)
    return {
        "no event": holdout,
        "no event, later targets": subset,
        "5 events": replace(subset, replayed=np.union1d(holdout.train, first)),
    }


def hold_users_out(dataset: Dataset, events: Positions | None = None) -> Holdout:
    """No event of a third of the users (at most 1,000, drawn at random) is trained on.

    The target of such a user is the first positive of an unseen item behind their fifth event.
    """
    events = np.arange(len(dataset)) if events is None else events
    places = _place_among_equals(dataset.user[events])
    able = first_sights(dataset, events) & dataset.positive[events] & (places >= max(COLD_USER_EVENTS))
    targets = np.full(len(dataset.user_ids), len(dataset))
    np.minimum.at(targets, dataset.user[events[able]], events[able])
    users = np.flatnonzero(targets < len(dataset))
    count = min(MAX_COLD_USERS, round(COLD_USER_SHARE * len(users)))
    drawn = np.random.default_rng(0).permutation(users)[:count]
    cold = np.isin(dataset.user[events], drawn)
    return Holdout(dataset, np.sort(targets[drawn]), events[~cold], aside=events[cold])


def growing_histories(holdout: Holdout) -> dict[str, Holdout]:
    """Each target after the last 0, 1, 3 and 5 events of its user before it, as if the user had come with them; where
    the data set knows segments, also after none and with these.
    """
    data = holdout.dataset
    targets = dict(zip(holdout.users.tolist(), holdout.targets.tolist(), strict=True))
    own: dict[int, list[int]] = {user: [] for user in targets}
    for position in holdout.aside.tolist():
        if position < targets[int(data.user[position])]:
            own[int(data.user[position])].append(position)
    variants = {}
    for count in COLD_USER_EVENTS:
        recent = [position for positions in own.values() for position in positions[len(positions) - count :]]
        replayed = np.union1d(holdout.train, np.array(recent, np.int64))
        variants[f"{count} event{'' if count == 1 else 's'}"] = replace(holdout, replayed=replayed)
    if data.segments is not None:
        variants["0 events, segments known"] = replace(variants["0 events"], segments_known=True)
    return variants


def _place_among_equals(keys: Positions) -> Positions:
    """For each entry, how many equal ones stand before it."""
    order = np.argsort(keys, kind="stable")
    grouped = keys[order]
    starts = np.searchsorted(grouped, grouped)
    places = np.empty(len(keys), np.int64)
    places[order] = np.arange(len(keys)) - starts
    return places


PROTOCOLS = (
    Protocol(
        "last-positive",
        "Last positive held out",
        "The last positive of each user is held out (the user has an earlier event and has not seen the item); all "
        "earlier events of the user are history, later ones are dropped. Models built in one batch are trained on all "
        "events but the targets and the dropped ones.",
        leave_last_out,
        lambda holdout: {"": holdout},
        "",
        (*QUICK, "als", "bpr", "sasrec"),
    ),
    Protocol(
        "time-split",
        "Global time split",
        "Models are trained on the events before T, the 80 % quantile of the times; then every positive event from T "
        "on whose item the user has not seen is a target, asked just before it. Live: every event from T on is "
        "recorded in order. Frozen: none is.",
        split_by_time,
        lambda holdout: {"live": holdout, "frozen": replace(holdout, replayed=holdout.train)},
        "live",
        (*QUICK, "als"),
        needs_times=True,
    ),
    Protocol(
        "cold-items",
        "Cold items",
        "A tenth of the items that have events is drawn at random; none of their events is trained on, and they stay "
        "in the catalogue with their text. Targets are each user's last positive on such an item, among all items.",
        hold_items_out,
        warm_items,
        "no event",
        ("chance", "popularity", "decayed-popularity", "average-bert"),
    ),
    Protocol(
        "cold-users",
        "Cold users",
        "A third of the users (at most 1,000), drawn at random, is not trained on. The target is the first positive of "
        "an unseen item behind the user's fifth event, asked after the last 0, 1, 3 and 5 events before it. With "
        "segments known, all users have said who they are (age, gender, occupation): other models have no use for it.",
        hold_users_out,
        growing_histories,
        "3 events",
        QUICK,
    ),
)
