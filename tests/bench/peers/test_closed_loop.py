"""Callers in tasks and in threads, and what streams in meanwhile."""

import asyncio

import numpy as np
import pytest

from heliotrope_bench.peers.closed_loop import NewEvent, Plan, Stream, Tally, run
from heliotrope_bench.peers.peer import NewItem, Question, Search, Site
from tests.bench.peers.exact_peer import ExactAsyncPeer, ExactPeer

QUESTION = Question("u", np.ones(3, np.float32), ())
ITEMS = [NewItem(20 + place, np.zeros(3, np.float32), "") for place in range(40)]
EVENTS = [NewEvent("u", 0, f"e{place}") for place in range(40)]


@pytest.fixture(params=[ExactPeer, ExactAsyncPeer])
def peer(request, tmp_path):
    peer = request.param()
    peer.load(np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32), Site(tmp_path, None, 2))
    return peer


def ran(peer, plan: Plan) -> Tally:
    with asyncio.Runner() as runner:
        return run(peer, [peer.prepare(QUESTION, Search(10, True))], plan, runner)


def test_answers_are_counted_after_the_warm_up_and_the_stream_goes_in_order(peer):
    stream = Stream(EVENTS, 100.0, ITEMS, 100.0)
    tally = ran(peer, Plan(callers=2, warm_up_s=0.1, duration_s=0.3, stream=stream))
    figures = tally.figures()
    assert figures["rate_per_s"] == pytest.approx(len(tally.latencies_s) / 0.3)
    assert figures["rate_per_s"] > 0 and figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"]
    assert 0 < tally.upserted <= 40 and peer.upserted == [20 + place for place in range(tally.upserted)]
    assert 0 < len(tally.recorded) <= 40
    if not peer.threaded:
        assert sorted(peer.recorded) == sorted(EVENTS[place].event_id for place in tally.recorded)


def test_failed_searches_are_errors_by_kind_and_no_answers(peer):
    del peer.rows
    tally = ran(peer, Plan(callers=2, warm_up_s=0.0, duration_s=0.05))
    assert not tally.latencies_s
    assert tally.figures()["errors_by_kind"].keys() == {"AttributeError"}


def test_an_upsert_that_fails_ends_the_round(peer):
    stream = Stream((), 0.0, [NewItem(20, None, "")], 100.0)  # type: ignore[arg-type]
    peer.rows = None
    with pytest.raises((AttributeError, ExceptionGroup)):
        ran(peer, Plan(callers=1, warm_up_s=0.0, duration_s=0.05, stream=stream))
