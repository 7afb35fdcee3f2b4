"""Verdicts: given only where the figure was measured under the conditions of the bound."""

from pathlib import Path
from typing import Any

import pytest

from heliotrope_bench.bounds import BOUNDS, Verdict, verdicts
from heliotrope_bench.raw_results import RawResults, read_raw_results

RESULTS = Path(__file__).parent / "data" / "raw_results"


def results(kind: str, rows: list[dict[str, Any]], **settings: Any) -> RawResults:
    """A quiet file of this kind with other rows."""
    real = read_raw_results(RESULTS / f"{kind}.json")
    quiet = real.machine.model_copy(update={"load_average": [1.0]})
    return real.model_copy(update={"machine": quiet, "results": rows, "settings": {**real.settings, **settings}})


def verdict(part: str, *files: RawResults) -> Verdict:
    (found,) = [each for each in verdicts(files) if part in each.bound.measure]
    return found


def load(share: float = 0.5, recall: float = 0.98, items: int = 100_000, shards: int = 1) -> RawResults:
    rows = [{"case": "Recommend(10), closed loop", "of_ceiling": share, "recall@10": recall}]
    return results("load", rows, items=items, shards=shards)


def test_a_share_of_the_ceiling_holds_from_its_limit_on() -> None:
    assert verdict("Recommend(10)", load(0.45)).word == "holds"
    missed = verdict("Recommend(10)", load(0.449))
    assert (missed.word, missed.value, missed.source) == ("does not hold", 0.449, "load")


@pytest.mark.parametrize(
    ("file", "missing"),
    [
        (load(items=99_999), "99,999 items"),
        (load(recall=0.9), "recall@10 is 0.900"),
        (load(shards=2), "2 shards"),
        (results("load", [{"case": "else"}], items=100_000, shards=1), "no case 'Recommend(10), closed'"),
    ],
)
def test_other_conditions_give_no_verdict(file: RawResults, missing: str) -> None:
    found = verdict("Recommend(10)", file)
    assert (found.word, found.value) == ("not measured", None)
    assert missing in found.note


def test_without_any_file_nothing_is_judged() -> None:
    found = verdicts([])
    assert [each.bound for each in found] == list(BOUNDS)
    assert {each.word for each in found} == {"not measured"}


def test_the_tail_is_read_at_or_above_half_of_the_highest_rate_that_held() -> None:
    sweep = [
        {"offered_per_s": rate, "holds_bound": rate < 900, "p50_ms": 2.0, "p99_ms": p99}
        for rate, p99 in ((200.0, 3.0), (350.0, 5.0), (500.0, 9.0), (800.0, 19.0), (900.0, 99.0))
    ]
    file = results("load", sweep, items=100_000, shards=1)
    assert (verdict("p99 over p50", file).value, verdict("p99 over p50", file).word) == (4.5, "does not hold")
    assert (verdict("p99 at half", file).value, verdict("p99 at half", file).word) == (9.0, "holds")
    single = results("load", sweep[:1], items=100_000, shards=1)
    assert verdict("p99 at half", single).word == "not measured"


def test_a_start_is_judged_by_its_slowest_round_of_a_million_items() -> None:
    row = {"items": 1_000_000, "rounds_s": [2.9, 3.1, 2.0]}
    assert verdict("first answer", results("start", [row])).word == "does not hold"
    assert verdict("first answer", results("start", [{**row, "items": 5}])).word == "not measured"


def test_each_file_of_a_kind_is_judged_and_a_busy_machine_is_said() -> None:
    quiet, other = load(0.5), load(0.3)
    busy = other.model_copy(update={"machine": other.machine.model_copy(update={"load_average": [9.0], "cores": 2})})
    found = [each for each in verdicts([quiet, busy]) if "Recommend(10)" in each.bound.measure]
    assert [(each.word, each.note) for each in found] == [("holds", ""), ("does not hold", "on a busy machine")]


def test_the_real_small_files_are_below_the_conditions() -> None:
    files = [read_raw_results(path) for path in sorted(RESULTS.glob("*.json"))]
    assert {each.word for each in verdicts(files)} == {"not measured"}
