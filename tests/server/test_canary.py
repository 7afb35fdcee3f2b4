"""What the canary measures, against the definition, and when it calls a version bad."""

import asyncio
import contextlib

import numpy as np
import pytest

from heliotrope_indexer.snapshot import CatalogItem
from heliotrope_server import canary as canary_module
from heliotrope_server.answerer import Question
from heliotrope_server.canary import LEAST_SAMPLES, Canary
from heliotrope_server.live_catalogue import DeltaItem
from heliotrope_server.live_view import live_view
from heliotrope_server.neighbours import Suggestions
from heliotrope_server.recall_canary import Sample, recall_at_10
from heliotrope_server.retriever import ExactRetriever, Ranking
from heliotrope_server.scoring import Query
from tests.server import worlds

PATIENCE_S = 60.0


def no_pause():
    pass


@pytest.mark.parametrize("seed", range(4))
def test_recall_is_that_against_exact_scoring_with_every_term(tmp_path, monkeypatch, seed):
    monkeypatch.setattr("heliotrope_server.recall_canary._BLOCK", 64)
    rng = np.random.default_rng(seed)
    served = worlds.catalogue(tmp_path, items=500)
    for number in range(20):
        text = rng.normal(size=16).astype(np.float32)
        served.upsert(DeltaItem(CatalogItem(f"new{number}", "new"), text, None, 0.5, served.version, "none"))
    for number in (3, 70, 499):
        served.delete(f"i{number}")
    served.set_residual("i9", rng.normal(size=16).astype(np.float32))
    live = live_view(served, rng.exponential(size=served.size) * (rng.uniform(size=served.size) < 0.2))
    rows = np.sort(rng.choice(500, 30, replace=False))
    rows = rows[served.alive[rows]]
    suggestions = Suggestions(rows, rng.exponential(size=len(rows)).astype(np.float32))
    query = Query(rng.normal(size=16).astype(np.float32), 12, rng.choice(520, 40, replace=False), suggestions)
    best = ExactRetriever(served).rank([query], live)[0]
    assert recall_at_10(Sample(served, query, live, best.rows), no_pause) == 1.0
    for kept in (0, 4, 9):
        worst = ExactRetriever(served).rank([query._replace(wanted=460)], live)[0].rows[-12:]
        found = np.concatenate([best.rows[:kept], worst])[:12]
        assert recall_at_10(Sample(served, query, live, found), no_pause) == pytest.approx(kept / 10)


class BadRetriever:
    """Finds what is worst for the first `bad` questions of every ten."""

    description = "bad"

    def __init__(self, catalogue, bad):
        self._exact, self._bad, self._asked = ExactRetriever(catalogue), bad, 0
        self._everything = catalogue.alive_count

    def follow(self):
        pass

    def rank(self, queries, live):
        return [self._one(query, live) for query in queries]

    def _one(self, query, live):
        self._asked += 1
        if (self._asked - 1) % 10 >= self._bad:
            return self._exact.rank([query], live)[0]
        found = self._exact.rank([query._replace(wanted=self._everything)], live)[0]
        return Ranking(found.rows[-query.wanted :], found.scores[-query.wanted :], True)


class FailingRetriever(BadRetriever):
    """Fails for the first `bad` of every ten."""

    def _one(self, query, live):
        self._asked += 1
        if (self._asked - 1) % 10 < self._bad:
            raise RuntimeError("a fault of the server")
        return self._exact.rank([query], live)[0]


async def watched(engine, monkeypatch, *, watch=True):
    """What the canary says of a version that is asked until it has seen enough, or has called it bad."""
    monkeypatch.setattr(canary_module, "INTERVAL_S", 0.002)
    said = []

    async def report(version, reason):
        said.append((version, reason))

    subject = Canary(engine, 3600.0, report)
    subject.begin(watched=watch)
    subject.start()
    measured, deadline = 0, asyncio.get_running_loop().time() + PATIENCE_S
    while not said and measured < 3 * LEAST_SAMPLES:
        assert asyncio.get_running_loop().time() < deadline
        with contextlib.suppress(RuntimeError):
            await engine.recommend(Question("somebody", 10))
        measured = len(subject._recalls) if watch else measured + 1
    subject.stop()
    return said


@pytest.mark.parametrize("bad", [0, 9])
async def test_a_retriever_that_misses_much_is_called_bad(tmp_path, monkeypatch, bad):
    served = worlds.catalogue(tmp_path)
    async with worlds.engine(tmp_path, served, make_retriever=lambda one: BadRetriever(one, bad)) as engine:
        said = await watched(engine, monkeypatch)
        assert len(said) == bool(bad)
        if bad:
            version, reason = said[0]
            assert version == served.version and "at least 0.855 is expected" in reason


@pytest.mark.parametrize("bad", [0, 3])
async def test_faults_of_the_server_are_called_bad(tmp_path, monkeypatch, bad):
    served = worlds.catalogue(tmp_path)
    async with worlds.engine(tmp_path, served, make_retriever=lambda one: FailingRetriever(one, bad)) as engine:
        said = await watched(engine, monkeypatch)
        assert len(said) == bool(bad)
        if bad:
            assert "recommendations failed" in said[0][1] and "before the switch it was 0.000" in said[0][1]


async def test_as_many_faults_as_before_are_not_the_snapshots(tmp_path, monkeypatch):
    served = worlds.catalogue(tmp_path)
    async with worlds.engine(tmp_path, served, make_retriever=lambda one: FailingRetriever(one, 3)) as engine:
        for _ in range(100):
            with contextlib.suppress(RuntimeError):
                await engine.recommend(Question("somebody", 10))
        assert engine.answerer.fault_count == 30
        assert await watched(engine, monkeypatch) == []


async def test_after_going_back_nothing_is_watched(tmp_path, monkeypatch):
    served = worlds.catalogue(tmp_path)
    async with worlds.engine(tmp_path, served, make_retriever=lambda one: FailingRetriever(one, 9)) as engine:
        assert await watched(engine, monkeypatch, watch=False) == []
