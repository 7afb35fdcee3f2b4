"""What must hold, in one place: a figure of some bench command, its limit, and the verdict.

A bound is judged only where its figure was really measured under the conditions that it names; where not, the verdict
says what is missing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from heliotrope_bench.bound_figures import (
    Unmeasured,
    at_half,
    beside_engine,
    beside_libraries,
    in_phase,
    intake,
    item_share,
    live_p99,
    live_recall,
    migrated,
    over_life,
    over_log,
    over_servers,
    profile_bytes,
    share,
    start,
    two_shards,
    under_overload,
)
from heliotrope_bench.raw_results import RawResults, as_written_by


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


BOUNDS = (
    Bound(
        "Recommend(10), one shard on one core, against the empty handler of the same run",
        "load",
        "at least",
        0.45,
        "{:.0%}",
        share("Recommend(10)", "of_ceiling"),
    ),
    Bound(
        "StreamRecommend(10) against the empty stream of the same run",
        "load",
        "at least",
        0.40,
        "{:.0%}",
        share("StreamRecommend(10)", "of_ceiling"),
    ),
    Bound(
        "BatchRecommend of 256 users against the bare search of the same vectors",
        "load",
        "at least",
        0.80,
        "{:.0%}",
        share("BatchRecommend(10), 256 a call", "of_bare"),
    ),
    Bound("two shards against one, client that knows the owners", "shards", "at least", 1.7, "{:.2f}x", two_shards),
    Bound("p99 over p50 at half the highest rate", "load", "at most", 3.0, "{:.1f}x", at_half("p99_over_p50")),
    Bound("p99 at half the highest rate", "load", "below", 10.0, "{:.1f} ms", at_half("p99_ms")),
    Bound(
        "answered in time at five times the highest rate, of what is at the highest, over 1, 8 and 32 connections",
        "overload",
        "at least",
        0.80,
        "{:.0%}",
        under_overload,
    ),
    Bound("durable events in batches of 100, one shard", "load", "at least", 20_000.0, "{:,.0f}/s", intake),
    *(
        bound
        for way, rate, p99 in (
            ("a call for each request", "ours/theirs", "p99_ratio"),
            ("a stream for each caller", "streams/theirs", "streams_p99_ratio"),
        )
        for bound in (
            Bound(
                f"whole request, {way}, beside the best peer that is a server, while events and items stream in: rate",
                "peers",
                "at least",
                3.0,
                "{:.1f}x",
                over_servers(rate, min),
            ),
            Bound(
                f"the same, {way}, beside each of them: p99", "peers", "at most", 1.0, "{:.2f}x", over_servers(p99, max)
            ),
        )
    ),
    Bound(
        "candidates beside the best library, recall 0.90 to 0.999: rate, at worst",
        "ann",
        "at least",
        0.9,
        "{:.2f}x",
        beside_libraries(min),
    ),
    Bound("the same, at best", "ann", "at least", 1.0, "{:.2f}x", beside_libraries(max)),
    Bound("candidates beside Qdrant's engine, recall 0.95 and 0.98", "ann", "at least", 3.0, "{:.1f}x", beside_engine),
    *(
        Bound(measure, "growth", "at most", 1.1, "{:.2f}x", over_log(key, *modes))
        for measure, key, modes in (
            (
                "cost of a whole request from 10,000 to 1,000,000 items, over log n, a tenth for noise",
                "ends_over_log",
                ("request",),
            ),
            ("the same between any two sizes on the way", "over_log", ("request",)),
            ("its search alone, a small part of it, between any two sizes", "over_log", ("single", "batch")),
        )
    ),
    Bound("recall@10 on the way to 100,000 live items", "live", "at least", 0.97, "{:.4f}", live_recall),
    Bound("p99 of a request with 100,000 live items over one with none", "live", "at most", 2.0, "{:.2f}x", live_p99),
    Bound(
        "memory of a profile with its ring, after checkpoints",
        "memory",
        "at most",
        2_048.0,
        "{:,.0f} bytes",
        profile_bytes("bytes_a_user"),
    ),
    Bound(
        "the same, at the highest", "memory", "at most", 2_048.0, "{:,.0f} bytes", profile_bytes("peak_bytes_a_user")
    ),
    Bound("items in memory over their float32 vectors", "memory", "at most", 1.3, "{:.2f}x", item_share),
    *(
        Bound(f"p99 of Recommend {when}, over the steady one", "lifecycle", "at most", 2.0, "{:.2f}x", in_phase(phase))
        for when, phase in (
            ("while 1,000 items a second stream in", "items stream in"),
            ("during a full rebuild beside the server", "full rebuild"),
            ("across a swap", "swap"),
            ("across a rollback", "rollback"),
        )
    ),
    Bound(
        "failed requests through all of it",
        "lifecycle",
        "at most",
        0,
        "{:,.0f}",
        over_life("failed", sum),
    ),
    Bound(
        "answers that lack what was acknowledged before, through all of it",
        "lifecycle",
        "at most",
        0,
        "{:,.0f}",
        over_life("incomplete", sum),
    ),
    Bound(
        "recall@10 through all of it, in the worst phase",
        "lifecycle",
        "at least",
        0.97,
        "{:.3f}",
        over_life("recall@10", min),
    ),
    Bound(
        "NDCG@10 of users who moved to another model, over users rebuilt from the full log",
        "migration",
        "at least",
        0.98,
        "{:.3f}",
        migrated("ndcg@10_ratio"),
    ),
    Bound("the same, HR@10", "migration", "at least", 0.98, "{:.3f}", migrated("hr@10_ratio")),
    Bound("first answer of a server with 1,000,000 items", "start", "below", 3.0, "{:.2f} s", start),
)
