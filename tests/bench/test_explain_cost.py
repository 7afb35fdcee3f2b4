"""What explanations cost, on a real server."""

import json
from pathlib import Path

import pytest

from heliotrope_bench.command import main
from tests.server.worlds import publish

REPOSITORY = Path(__file__).parents[2]
SHORT = ["--requests", "512", "--explain-calls", "4", "--rounds", "2", "--users", "30", "--concurrency", "8"]


def test_explained_requests_are_compared_with_plain_ones_of_the_same_turns(tmp_path: Path) -> None:
    publish(tmp_path / "store", items=120)
    out = tmp_path / "explain.json"
    asked = ["explain", "--snapshots", str(tmp_path / "store"), *SHORT, "--count", "5", "--out", str(out)]
    assert main([*asked, "--before", str(REPOSITORY)]) == 0
    rows = {row["case"]: row for row in json.loads(out.read_text())["results"]}
    plain, explained = rows["Recommend(5)"], rows["Recommend(5), explained"]
    assert all(row["errors"] == 0 and row["us_of_cpu"] > 0 for row in rows.values())
    assert explained["reply_bytes"] > 3 * plain["reply_bytes"]
    pairs = zip(explained["rounds_us_of_cpu"], plain["rounds_us_of_cpu"], strict=True)
    assert explained["rounds_added"] == pytest.approx([one / other - 1.0 for one, other in pairs])
    assert "added" in plain and "added" not in rows["Recommend(5), the checkout before"]
    assert len([case for case in rows if case.startswith("Explain")]) == 3
