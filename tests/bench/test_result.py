import dataclasses
from pathlib import Path

import pytest

from heliotrope_bench.errors import ResultError
from heliotrope_bench.result import Result, comparable, read_results, write_results
from heliotrope_bench.summary import rows_of


def result(model: str, above: list[int | None], fingerprint: str = "same") -> Result:
    return Result(
        dataset="toy",
        protocol="last-positive",
        variant="",
        model=model,
        fingerprint=fingerprint,
        users=list(range(len(above))),
        above=above,
        tied=[1] * len(above),
        figures={"coverage": 0.5},
        settings={"half_life_s": 1.0},
        trials=8,
        seconds=1.0,
    )


def test_pieces_of_several_runs_are_merged(tmp_path: Path) -> None:
    ours, theirs = result("heliotrope", [0, 1, None, 3] * 20), result("popularity", [20, None, 30, 9] * 20)
    for one in (ours, theirs, ours):
        write_results(tmp_path, [one], command=["bench"], settings={})
    found = read_results(tmp_path)
    assert {one.model: one.test_runs for one in found} == {"heliotrope": 2, "popularity": 1}
    assert dataclasses.replace(found[1], test_runs=1) == theirs
    (group,) = comparable(found).values()
    first, second = rows_of(group)
    assert first["model"] == "heliotrope" and first["hr@10"] == 0.75 and "verdict" not in first
    assert second["verdict"] == "better" and second["hr@10 difference"].startswith("+0.5000 (")


def test_other_splits_are_not_compared() -> None:
    with pytest.raises(ResultError, match="different splits of toy"):
        comparable([result("heliotrope", [0]), result("popularity", [0], fingerprint="other")])


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ResultError, match=r"x\.json"):
        read_results(tmp_path / "x.json")
