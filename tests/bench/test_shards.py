"""Several shards beside one, on real servers."""

import json
import os
from pathlib import Path

import pytest

from heliotrope_bench.command import main
from tests.server.worlds import publish

SHORT = ["--duration-s", "0.8", "--warm-up-s", "0.2", "--rounds", "1", "--users", "40", "--concurrency", "8"]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two shards need two cores")
def test_two_shards_are_compared_with_one(tmp_path: Path) -> None:
    publish(tmp_path / "store", items=60)
    out = tmp_path / "shards.json"
    assert main(["shards", "--snapshots", str(tmp_path / "store"), *SHORT, "--out", str(out)]) == 0
    one, two = json.loads(out.read_text())["results"]
    assert [one["case"], two["case"]] == ["1 shard(s)", "2 shard(s)"]
    assert one["errors"] == two["errors"] == 0 and one["rate_per_s"] > 0
    assert two["of_one_shard"] == pytest.approx(two["rate_per_s"] / one["rate_per_s"])
    assert two["of_one_shard_by_cpu"] == pytest.approx(2 * two["rate_per_cpu_s"] / one["rate_per_cpu_s"])


def test_too_few_cores_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shards", "--snapshots", str(tmp_path), "--shards", "64", "--out", str(tmp_path / "x")]) == 1
    assert "64 shards need as many cores" in capsys.readouterr().err
