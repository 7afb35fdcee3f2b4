"""The figures that bounds are about, read from raw results; Unmeasured where the conditions are others."""

from collections.abc import Callable, Iterable
from typing import Any

from heliotrope_bench.raw_results import RawResults

ITEMS = 100_000
RECALL = 0.97
"""Recall@10 against exact scoring, below which a rate does not count."""

USERS = 10_000
"""Below that many, what the server itself gains while it warms up is no small part of the growth."""


class Unmeasured(Exception):
    """A file of the right kind does not hold the figure; the message says why."""


def share(case: str, key: str) -> Callable[[RawResults], float]:
    """A share of some ceiling that a case of bench load reached, one shard, at the recall of single questions."""

    def figure(file: RawResults) -> float:
        _one_shard(file)
        _enough_items(file.settings["items"])
        recall = _value(_row(file, "Recommend(10)"), "recall@10")
        if recall < RECALL:
            raise Unmeasured(f"recall@10 is {recall:.3f}, below {RECALL}")
        return _value(_row(file, case), key)

    return figure


def at_half(key: str) -> Callable[[RawResults], float]:
    """A figure of bench load at half of the highest rate that kept a bound of latency."""

    def figure(file: RawResults) -> float:
        _one_shard(file)
        _enough_items(file.settings["items"])
        return _value(_row(file, "mix, half of the highest rate"), key)

    return figure


def two_shards(file: RawResults) -> float:
    """Times the rate of one shard, where the generator did not take from the shards' cores."""
    if file.settings["generator_cores"] == 0:
        raise Unmeasured("the generator had no core of its own")
    return _value(_row(file, "2 shard"), "of_one_shard")


def intake(file: RawResults) -> float:
    """Events per second in batches of 100."""
    _one_shard(file)
    _enough_items(file.settings["items"])
    return _value(_row(file, "RecordEvents, 100 a call"), "rate_per_s")


def start(file: RawResults) -> float:
    """Seconds of the slowest round, with a million items."""
    (row,) = file.results
    _enough_items(row["items"], 1_000_000)
    return float(max(row["rounds_s"]))


def over_servers(key: str, worst: Callable[[Iterable[float]], float]) -> Callable[[RawResults], float]:
    """The worst over the peers that are servers, while events and items stream in."""

    def figure(file: RawResults) -> float:
        rows = [row for row in file.results if (row.get("kind"), row.get("scenario")) == ("server", "streaming")]
        found = [float(row[key]) for row in rows if key in row]
        if not found:
            raise Unmeasured("no peer that is a server was there")
        return worst(found)

    return figure


def over_log(file: RawResults) -> float:
    """How much faster than log n the cost grew between any two sizes; the worst of single queries and batches."""
    sizes = [row["items"] for row in file.results if "items" in row]
    if not sizes or min(sizes) > 10_000 or max(sizes) < 1_000_000:
        raise Unmeasured("the catalogues do not reach from 10,000 to 1,000,000 items")
    return max(float(row["over_log"]) for row in file.results if "over_log" in row)


def profile_bytes(file: RawResults) -> float:
    """Memory of a user, in bytes."""
    users = file.results[0]["users"]
    if users < USERS:
        raise Unmeasured(f"{users:,} users; at least {USERS:,} are needed")
    return _value(file.results[0], "bytes_a_user")


def item_share(file: RawResults) -> float:
    """Bytes of the items over those of their float32 vectors."""
    _enough_items(file.results[0]["items"])
    return _value(file.results[0], "over_float32")


def _one_shard(file: RawResults) -> None:
    shards = file.settings.get("shards", 1)
    if shards != 1:
        raise Unmeasured(f"{shards} shards; the bound is of one")


def _enough_items(items: int, needed: int = ITEMS) -> None:
    if items < needed:
        raise Unmeasured(f"{items:,} items; at least {needed:,} are needed")


def _row(file: RawResults, case: str) -> dict[str, Any]:
    for row in file.results:
        if str(row.get("case", "")).startswith(case):
            return row
    raise Unmeasured(f"no case {case!r}")


def _value(row: dict[str, Any], key: str) -> float:
    value = row.get(key)
    if value is None:
        raise Unmeasured(f"no {key} was measured")
    return float(value)
