"""What must hold, in one place: a figure of some bench command, its limit, and the verdict.

A bound is judged only where its figure was really measured under the conditions that it names; where not, the verdict
says what is missing.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from heliotrope_bench.raw_results import RawResults, as_written_by

ITEMS = 100_000
RECALL = 0.97
"""Recall@10 against exact scoring, below which a rate does not count."""

USERS = 10_000
"""Below that many, what the server itself gains while it warms up is no small part of the growth."""


class Unmeasured(Exception):
    """A file of the right kind does not hold the figure; the message says why."""


@dataclass(frozen=True)
class Bound:
    """`figure` reads it from one file of `kind`; it raises Unmeasured where the conditions are others."""

    measure: str
    kind: str
    sense: Literal["at least", "at most", "below"]
    limit: float
    form: str
    figure: Callable[[RawResults], float]

    @property
    def text(self) -> str:
        """Such as "at least 45%"."""
        return f"{self.sense} {self.shown(self.limit)}"

    def shown(self, value: float) -> str:
        return self.form.format(value)

    def holds(self, value: float) -> bool:
        if self.sense == "at least":
            return value >= self.limit
        return value <= self.limit if self.sense == "at most" else value < self.limit


@dataclass(frozen=True)
class Verdict:
    """`holds` is None where nothing was measured; `source` is the file, `note` what is missing or to be considered."""

    bound: Bound
    holds: bool | None
    value: float | None = None
    source: str = ""
    note: str = ""

    @property
    def word(self) -> str:
        return "not measured" if self.holds is None else "holds" if self.holds else "does not hold"

    @property
    def shown(self) -> str:
        return "" if self.value is None else self.bound.shown(self.value)


def verdicts(files: Sequence[RawResults]) -> list[Verdict]:
    """One for each file that measured a bound, and one "not measured" for each bound that none did."""
    found = []
    for bound in BOUNDS:
        measured, missing = [], []
        for file in files:
            if file.kind != bound.kind:
                continue
            try:
                with as_written_by(file):
                    value = bound.figure(file)
            except Unmeasured as reason:
                missing.append(f"{file.name}: {reason}")
            else:
                note = "on a busy machine" if file.machine.busy else ""
                measured.append(Verdict(bound, bound.holds(value), value, file.name, note))
        found += measured or [Verdict(bound, None, note="; ".join(missing) or f"no file of bench {bound.kind}")]
    return found


def _share(case: str, key: str) -> Callable[[RawResults], float]:
    def figure(file: RawResults) -> float:
        _one_shard(file)
        _enough_items(file.settings["items"])
        recall = _value(_row(file, "Recommend(10)"), "recall@10")
        if recall < RECALL:
            raise Unmeasured(f"recall@10 is {recall:.3f}, below {RECALL}")
        return _value(_row(file, case), key)

    return figure


def _at_half(key: str) -> Callable[[RawResults], float]:
    def figure(file: RawResults) -> float:
        _one_shard(file)
        _enough_items(file.settings["items"])
        return _value(_row(file, "mix, half of the highest rate"), key)

    return figure


def _two_shards(file: RawResults) -> float:
    if file.settings["generator_cores"] == 0:
        raise Unmeasured("the generator had no core of its own")
    return _value(_row(file, "2 shard"), "of_one_shard")


def _intake(file: RawResults) -> float:
    _one_shard(file)
    _enough_items(file.settings["items"])
    return _value(_row(file, "RecordEvents, 100 a call"), "rate_per_s")


def _start(file: RawResults) -> float:
    (row,) = file.results
    _enough_items(row["items"], 1_000_000)
    return float(max(row["rounds_s"]))


def _over_servers(key: str, worst: Callable[[Iterable[float]], float]) -> Callable[[RawResults], float]:
    """Of the peers that are servers, while events and items stream in."""

    def figure(file: RawResults) -> float:
        rows = [row for row in file.results if (row.get("kind"), row.get("scenario")) == ("server", "streaming")]
        found = [float(row[key]) for row in rows if key in row]
        if not found:
            raise Unmeasured("no peer that is a server was there")
        return worst(found)

    return figure


def _over_log(file: RawResults) -> float:
    """The worst of single queries and batches."""
    sizes = [row["items"] for row in file.results if "items" in row]
    if not sizes or min(sizes) > 10_000 or max(sizes) < 1_000_000:
        raise Unmeasured("the catalogues do not reach from 10,000 to 1,000,000 items")
    return max(float(row["over_log"]) for row in file.results if "over_log" in row)


def _profile_bytes(file: RawResults) -> float:
    users = file.results[0]["users"]
    if users < USERS:
        raise Unmeasured(f"{users:,} users; at least {USERS:,} are needed")
    return _value(file.results[0], "bytes_a_user")


def _item_share(file: RawResults) -> float:
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


BOUNDS = (
    Bound(
        "Recommend(10), one shard on one core, against the empty handler of the same run",
        "load",
        "at least",
        0.45,
        "{:.0%}",
        _share("Recommend(10)", "of_ceiling"),
    ),
    Bound(
        "StreamRecommend(10) against the empty stream of the same run",
        "load",
        "at least",
        0.40,
        "{:.0%}",
        _share("StreamRecommend(10)", "of_ceiling"),
    ),
    Bound(
        "BatchRecommend of 256 users against the bare search of the same vectors",
        "load",
        "at least",
        0.80,
        "{:.0%}",
        _share("BatchRecommend(10), 256 a call", "of_bare"),
    ),
    Bound("two shards against one, client that knows the owners", "shards", "at least", 1.7, "{:.2f}x", _two_shards),
    Bound("p99 over p50 at half the highest rate", "load", "at most", 3.0, "{:.1f}x", _at_half("p99_over_p50")),
    Bound("p99 at half the highest rate", "load", "below", 10.0, "{:.1f} ms", _at_half("p99_ms")),
    Bound("durable events in batches of 100, one shard", "load", "at least", 20_000.0, "{:,.0f}/s", _intake),
    Bound(
        "whole request beside the best peer that is a server, while events and items stream in: rate",
        "peers",
        "at least",
        3.0,
        "{:.1f}x",
        _over_servers("ours/theirs", min),
    ),
    Bound("the same beside each of them: p99", "peers", "at most", 1.0, "{:.2f}x", _over_servers("p99_ratio", max)),
    Bound(
        "cost of a request from 10,000 to 1,000,000 items, over log n, a tenth for noise",
        "growth",
        "at most",
        1.1,
        "{:.2f}x",
        _over_log,
    ),
    Bound("memory of a profile with its ring", "memory", "at most", 2_048.0, "{:,.0f} bytes", _profile_bytes),
    Bound("items in memory over their float32 vectors", "memory", "at most", 1.3, "{:.2f}x", _item_share),
    Bound("first answer of a server with 1,000,000 items", "start", "below", 3.0, "{:.2f} s", _start),
)
