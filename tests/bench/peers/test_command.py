"""The whole command, short: our real server and engine, and a peer where it is installed; and its rows."""

import gzip
import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from heliotrope_bench.command import main
from heliotrope_bench.peers import PEERS
from heliotrope_bench.peers.command import rows_of
from heliotrope_bench.peers.contest import STEADY, STREAMING, Entrant
from heliotrope_bench.peers.heliotrope_engine import HeliotropeEngine
from heliotrope_bench.peers.heliotrope_server import HeliotropeServer, HeliotropeStreams
from heliotrope_bench.peers.peer import Search
from heliotrope_bench.peers.pgvector import PgVector
from heliotrope_bench.peers.truth import Recall
from heliotrope_bench.titles import FILES

PEER = "qdrant-edge"
WORDS = ("red", "old", "quiet", "small", "late", "loud", "warm"), ("house", "river", "film", "engine", "bird", "king")


@pytest.fixture
def data(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "data" / "titles-large"
    folder.mkdir(parents=True)
    for number, name in enumerate(FILES):
        with gzip.open(folder / name, "wt", encoding="utf-8") as file:
            file.writelines(f"the {one} {other}\tpart {number}\tmore\n" for one in WORDS[0] for other in WORDS[1])
    monkeypatch.setenv("HELIOTROPE_DATA", str(tmp_path / "data"))


def test_ours_and_a_peer_answer_alike_while_events_and_items_stream_in(data, model_folder, tmp_path, capsys):
    out = tmp_path / "peers.json"
    core = str(min(os.sched_getaffinity(0)))
    arguments = ["peers", "--peers", PEER, "--items", "120", "--dimension", "8", "--users", "12", "--model"]
    arguments += [str(model_folder), "--work", str(tmp_path / "work"), "--server-cpus", core, "--out", str(out)]
    arguments += ["--rounds", "1", "--duration-s", "1", "--warm-up-s", "0.2", "--callers", "3", "--items-per-s", "10"]
    assert main([*arguments, "--events-per-user", "5"]) == 0, capsys.readouterr().err
    report = json.loads(out.read_text())
    rows = {(row["peer"], row.get("scenario")): row for row in report["results"]}
    expected = {
        (kind.name, scenario)
        for kind in (HeliotropeServer, HeliotropeStreams, HeliotropeEngine)
        for scenario in (STEADY, STREAMING)
    }
    if find_spec("qdrant_edge"):
        expected |= {(PEERS[PEER].name, scenario) for scenario in (STEADY, STREAMING)}
    else:
        expected.add((PEERS[PEER].name, None))
        assert "not installed: pip install" in rows[PEERS[PEER].name, None]["search"]
    assert rows.keys() == expected
    for (_, scenario), row in rows.items():
        if scenario is None:
            continue
        assert row["rate_per_s"] > 0 and row["errors"] == 0 and row["recall@10"] >= 0.95
        assert row["p50_ms"] <= row["p99_ms"] and row["memory_mib"] > 0
        assert ("items_per_s" in row) == (scenario == STREAMING)
    assert rows["Heliotrope", STREAMING]["events_per_s"] > 0
    assert rows["Heliotrope", STREAMING]["new_found"] is None or rows["Heliotrope", STREAMING]["new_found"] >= 0.9


def entrant(kind, rates: list[float], p99_ms: float) -> Entrant:
    rounds = [{"rate_per_s": rate, "rate_per_cpu_s": 2 * rate, "p99_ms": p99_ms, "errors": 0} for rate in rates]
    scenarios = (STEADY, STREAMING)
    return Entrant(
        kind,
        search=Search(16, True),
        rounds={scenario: rounds for scenario in scenarios},
        recalls={scenario: Recall(0.97, None) for scenario in scenarios},
    )


@pytest.mark.parametrize(("rates", "p99_ms", "holds"), [((300, 100, 900), 5.0, True), ((299,) * 3, 5.0, False)])
def test_ratios_are_of_the_same_round_and_say_what_holds(rates, p99_ms, holds):
    streams, theirs = entrant(HeliotropeStreams, list(rates), p99_ms), entrant(PgVector, [100.0, 25.0, 450.0], 5.0)
    ours, engine = entrant(HeliotropeServer, [200, 50, 900], 9.0), entrant(HeliotropeEngine, [1, 1, 1], 1.0)
    rows = {(row["peer"], row["scenario"]): row for row in rows_of([ours, streams, engine, theirs])}
    row = rows["pgvector", STREAMING]
    assert row["ours/theirs"] == pytest.approx(2.0)
    assert row["streams/theirs"] == pytest.approx(
        sorted(our / their for our, their in zip(rates, (100, 25, 450), strict=True))[1]
    )
    assert row["streams_hold"] is holds and "streams_hold" not in rows["pgvector", STEADY]
    # Two times, and a p99 of 9 ms beside 5.
    assert row["holds"] is False and "holds" not in rows["pgvector", STEADY]
    streams.rounds[STREAMING][0]["p99_ms"] = streams.rounds[STREAMING][1]["p99_ms"] = 5.1
    assert not rows_of([ours, streams, engine, theirs])[-1]["streams_hold"]


def test_calls_one_by_one_hold_by_the_same_rule():
    ours, theirs = entrant(HeliotropeServer, [300, 100, 900], 5.0), entrant(PgVector, [100.0, 25.0, 300.0], 5.0)
    others = [entrant(HeliotropeStreams, [1, 1, 1], 9.0), entrant(HeliotropeEngine, [1, 1, 1], 1.0)]
    row = rows_of([ours, *others, theirs])[-1]
    assert (row["holds"], row["streams_hold"]) == (True, False)


def test_an_unknown_peer_is_named(capsys):
    assert main(["peers", "--peers", "oracle"]) == 2
    assert "there is no peer 'oracle'" in capsys.readouterr().err


def test_too_few_texts_for_what_is_to_arrive_are_named(data, model_folder, tmp_path: Path, capsys):
    arguments = ["peers", "--items", "200", "--dimension", "8", "--model", str(model_folder), "--work", str(tmp_path)]
    assert main([*arguments, "--items-per-s", "20"]) == 1
    assert "600 items are to arrive, and only 10 texts" in capsys.readouterr().err
