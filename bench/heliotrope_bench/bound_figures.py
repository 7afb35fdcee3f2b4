"""The figures that bounds are about, read from raw results; Unmeasured where the conditions are others."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from heliotrope_bench.ann.frontier import Mark, rate_at
from heliotrope_bench.raw_results import RawResults

ITEMS = 100_000
RECALL = 0.97
"""Recall@10 against exact scoring, below which a rate does not count."""

OURS, ENGINE = "heliotrope", "qdrant"
"""Names in the results of bench ann."""
FRONTIER = (0.90, 0.95, 0.97, 0.98, 0.99, 0.999)
ENGINE_RECALLS = (0.95, 0.98)
TEXTS = 60_000

OVERLOAD, FLOODS = 5, (1, 8, 32)
"""Times the highest rate, and over how many connections."""
AT_HIGHEST = 0.9
"""Share in time at the highest rate, below which it is not that rate any more."""
LIVE_ITEMS, LIVE_RATE = 60_000, 1_000.0
"""Items of the first snapshot of bench lifecycle, and items a second that stream in, a twentieth for what is late."""
MIGRATED_USERS = 300

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
    _own_core(file)
    return _value(_row(file, "2 shard"), "of_one_shard")


def under_overload(file: RawResults) -> float:
    """Goodput at five times the highest rate over that at the highest, the least over FLOODS connections."""
    _one_shard(file)
    _own_core(file)
    _enough_items(file.settings["items"])
    rows = {(row.get("times"), row.get("connections")): row for row in file.results}
    found = []
    for connections in FLOODS:
        base, flood = rows.get((1, connections)), rows.get((OVERLOAD, connections))
        if base is None or flood is None:
            raise Unmeasured(f"no {OVERLOAD} times the highest rate over {connections} connections")
        if base["in_time"] < AT_HIGHEST:
            raise Unmeasured(f"the rate is above the highest: {base['in_time']:.0%} of it were answered in time")
        found.append(_value(flood, "of_highest"))
    return min(found)


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


def over_log(key: str, *modes: str) -> Callable[[RawResults], float]:
    """How much faster than log n the cost of these modes grew; the worst of them. `key` says between which sizes."""

    def figure(file: RawResults) -> float:
        sizes = [row["items"] for row in file.results if "items" in row]
        if not sizes or min(sizes) > 10_000 or max(sizes) < 1_000_000:
            raise Unmeasured("the catalogues do not reach from 10,000 to 1,000,000 items")
        found = [float(row[key]) for row in file.results if key in row and row["mode"] in modes]
        if len(found) < len(modes):
            raise Unmeasured(f"no {key} of {' and '.join(modes)} was measured")
        return max(found)

    return figure


def live_recall(file: RawResults) -> float:
    """The least recall that was seen while items were added."""
    return min(_value(row, "least_recall") for row in _live_rows(file, "seal_us"))


def live_p99(file: RawResults) -> float:
    """With the most live items, sealed, over none; the worse of single queries and batches."""
    rows = [row for row in _live_rows(file, "mode") if row["delta"] == "sealed" and row["live"] >= ITEMS]
    return max(_value(row, "p99_over_none") for row in rows)


def beside_libraries(worst: Callable[[Iterable[float]], float]) -> Callable[[RawResults], float]:
    """Our rate over that of the best library at each recall of FRONTIER; 0 where only theirs reach it."""

    def figure(file: RawResults) -> float:
        absent = [row["contender"] for row in file.results if "absent" in row and row["contender"] != ENGINE]
        if absent:
            raise Unmeasured(f"{', '.join(absent)} left out")
        _real_texts(file)
        return worst(_ratios(file, lambda name: name not in (OURS, ENGINE), FRONTIER))

    return figure


def beside_engine(file: RawResults) -> float:
    """Our rate over that of Qdrant's engine; the least over its recalls and ways to ask."""
    _real_texts(file)
    return min(_ratios(file, lambda name: name == ENGINE, ENGINE_RECALLS))


def _ratios(file: RawResults, theirs: Callable[[str], bool], recalls: Sequence[float]) -> list[float]:
    found = []
    measured = [row for row in file.results if "absent" not in row]
    for mode in dict.fromkeys(row["mode"] for row in measured):
        marks: dict[str, list[Mark]] = {}
        for row in measured:
            if row["mode"] == mode:
                marks.setdefault(row["contender"], []).append(Mark(row["recall"], row["rate"]))
        for recall in recalls:
            rates = {name: rate for name, own in marks.items() if (rate := rate_at(own, recall)) is not None}
            others = [rate for name, rate in rates.items() if theirs(name)]
            if others:
                found.append(rates.get(OURS, 0.0) / max(others))
    if not found:
        raise Unmeasured("nobody else reached any of the recalls")
    return found


def _real_texts(file: RawResults) -> None:
    if file.settings["data"] != "titles":
        raise Unmeasured(f"{file.settings['data']} vectors; real texts are needed")
    _enough_items(file.settings["rows"][0], TEXTS)


def profile_bytes(key: str) -> Callable[[RawResults], float]:
    """Memory of a user, in bytes: after checkpoints, or at the highest."""

    def figure(file: RawResults) -> float:
        users = file.results[0]["users"]
        if users < USERS:
            raise Unmeasured(f"{users:,} users; at least {USERS:,} are needed")
        return _value(file.results[0], key)

    return figure


def item_share(file: RawResults) -> float:
    """Bytes of the items over those of their float32 vectors."""
    _enough_items(file.results[0]["items"])
    return _value(file.results[0], "over_float32")


def _live_rows(file: RawResults, key: str) -> list[dict[str, Any]]:
    rows = [row for row in file.results if key in row]
    _enough_items(max((row["live"] for row in rows), default=0))
    return rows


def in_phase(phase: str) -> Callable[[RawResults], float]:
    """p99 of Recommend in a phase of bench lifecycle, over that of the steady one before."""

    def figure(file: RawResults) -> float:
        _life(file)
        return _value(_row(file, phase, "phase"), "p99_of_steady")

    return figure


def over_life(key: str, worst: Callable[[Iterable[float]], float]) -> Callable[[RawResults], float]:
    """The sum, or the worst, of a figure over all phases of bench lifecycle."""

    def figure(file: RawResults) -> float:
        _life(file)
        return worst(_value(row, key) for row in file.results)

    return figure


def migrated(key: str) -> Callable[[RawResults], float]:
    """A ratio to users rebuilt from the full log, over all users who have folded events."""

    def figure(file: RawResults) -> float:
        (row,) = [row for row in file.results if (row["users"], row["state"]) == ("with folded events", "migrated")]
        if row["user_count"] < MIGRATED_USERS:
            raise Unmeasured(f"{row['user_count']} users; at least {MIGRATED_USERS} are needed")
        return _value(row, key)

    return figure


def _life(file: RawResults) -> None:
    _enough_items(file.settings["items"], LIVE_ITEMS)
    if _value(file.results[0], "failed"):
        raise Unmeasured("requests failed in the steady phase: the machine was too busy, or the rate too high")
    reached = _value(_row(file, "items stream in", "phase"), "items_per_s")
    if reached < 0.95 * LIVE_RATE:
        raise Unmeasured(f"{reached:,.0f} items a second streamed in; the bound is at {LIVE_RATE:,.0f}")


def _one_shard(file: RawResults) -> None:
    shards = file.settings.get("shards", 1)
    if shards != 1:
        raise Unmeasured(f"{shards} shards; the bound is of one")


def _own_core(file: RawResults) -> None:
    if file.settings["generator_cores"] == 0:
        raise Unmeasured("the generator had no core of its own")


def _enough_items(items: int, needed: int = ITEMS) -> None:
    if items < needed:
        raise Unmeasured(f"{items:,} items; at least {needed:,} are needed")


def _row(file: RawResults, case: str, key: str = "case") -> dict[str, Any]:
    for row in file.results:
        if str(row.get(key, "")).startswith(case):
            return row
    raise Unmeasured(f"no {key} {case!r}")


def _value(row: dict[str, Any], key: str) -> float:
    value = row.get(key)
    if value is None:
        raise Unmeasured(f"no {key} was measured")
    return float(value)
