"""The overload bench on a real server, for seconds; its figures mean nothing here."""

import json
from pathlib import Path

import pytest

from heliotrope_bench.command import main
from tests.server.worlds import publish

SHORT = ["--duration-s", "0.6", "--warm-up-s", "0.2", "--rounds", "1", "--users", "40", "--server-cpus", ""]


def test_multiples_of_a_rate_and_a_flood_beside_polite_clients(tmp_path: Path) -> None:
    publish(tmp_path / "store", items=60)
    out = tmp_path / "overload.json"
    flags = ["--rate", "60", "--times", "1", "--times", "3", "--connections", "8", "--connections", "1"]
    flags += ["--deadline-ms", "5000", *SHORT, "--out", str(out)]
    assert main(["overload", "--snapshots", str(tmp_path / "store"), *flags]) == 0
    report = json.loads(out.read_text())
    assert report["settings"]["items"] == 60
    once, thrice, *over_one, flood, polite = report["results"]
    assert [row["case"] for row in (once, thrice, *over_one)] == [
        f"{times} times, {connections} connections" for connections in (8, 1) for times in (1, 3)
    ]
    assert thrice["of_highest"] == pytest.approx(thrice["goodput_per_s"] / once["goodput_per_s"])
    for row in (once, thrice, *over_one, flood, polite):
        assert row["goodput_per_s"] == row["offered_per_s"] > 0 and row["refused_by_code"] == {}
    assert thrice["offered_per_s"] > 2 * once["offered_per_s"]
    assert polite["offered_per_s"] < flood["offered_per_s"] / 4
