"""Every peer that is installed here, against exact scoring: one contract for all of them, each in its own process."""

import threading
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from heliotrope_bench.errors import PeerError
from heliotrope_bench.peers import PEERS
from heliotrope_bench.peers.host import Host
from heliotrope_bench.peers.peer import Found, NewItem, Peer, Question, Search, Site
from heliotrope_bench.peers.truth import peer_scores, recall
from tests.bench.peers.exact_peer import ExactAsyncPeer, ExactPeer

ROWS = np.random.default_rng(0).normal(size=(1_200, 8)).astype(np.float32)
QUESTIONS = [
    Question(f"u{place}", ROWS[place] * np.float32(0.5), tuple(range(place, place + 15))) for place in range(20)
]


@pytest.fixture(params=[ExactPeer, ExactAsyncPeer, *PEERS.values()], ids=lambda kind: kind.name)
def host(request, tmp_path) -> Iterator[Host]:
    kind: type[Peer] = request.param
    missing = [package for package in kind.packages if find_spec(package) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: pip install 'heliotrope[peers]'")
    np.save(tmp_path / "rows.npy", ROWS)
    (tmp_path / "site").mkdir()
    with closing(Host(kind, Site(tmp_path / "site", None, 2), None)) as host:
        host.call("load", tmp_path / "rows.npy")
        yield host


def test_a_peer_finds_the_best_unseen_rows_and_what_has_just_arrived(host):
    seen = [question.seen for question in QUESTIONS]
    for filtered in (True, False):
        host.call("prepare", QUESTIONS, Search(256, filtered))
        answers, _ = host.call("ask")
        assert recall(peer_scores(ROWS, QUESTIONS), answers, seen, len(ROWS)).overall >= 0.98
        assert not any(set(rows) & set(left_out) for rows, left_out in zip(answers, seen, strict=True))
    arriving = np.array([question.vector * 3 for question in QUESTIONS])
    # The second time other vectors for the same rows: they are replaced, not doubled.
    for vectors in (arriving, arriving[::-1]):
        host.call("peer", "upsert", [NewItem(len(ROWS) + place, vector, "") for place, vector in enumerate(vectors)])
        answers, _ = host.call("ask")
        found = recall(peer_scores(np.vstack([ROWS, vectors]), QUESTIONS), answers, seen, len(ROWS))
        assert found.new_items is not None and found.new_items >= 0.98
        assert found.overall >= 0.98
        assert all(len(set(rows)) == len(rows) == 10 for rows in answers)


def test_a_peer_stands_still_and_goes_on(host):
    host.call("prepare", QUESTIONS, Search(256, False))
    before, _ = host.call("ask")
    host.pause()
    host.resume()
    assert host.call("ask")[0] == before
    assert host.call("memory_mib") > 0


class Unwilling(ExactPeer):
    """Can't be loaded."""

    def load(self, vectors, site) -> None:
        raise PeerError("no room")


def test_a_failure_in_the_process_is_an_error_here(tmp_path: Path):
    np.save(tmp_path / "rows.npy", ROWS)
    with closing(Host(Unwilling, Site(tmp_path, None, 1), None)) as host:
        with pytest.raises(PeerError, match="no room"):
            host.call("load", tmp_path / "rows.npy")
        with pytest.raises(PeerError, match="no attribute 'dance'"):
            host.call("dance")


class Stuck(ExactPeer):
    """Never answers."""

    def search(self, prepared) -> Found:
        threading.Event().wait()
        raise AssertionError


def test_a_peer_that_hangs_is_an_error_and_can_be_closed(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("heliotrope_bench.peers.host.STOP_TIMEOUT_S", 0.1)
    np.save(tmp_path / "rows.npy", ROWS)
    with closing(Host(Stuck, Site(tmp_path, None, 1), None)) as host:
        host.call("load", tmp_path / "rows.npy")
        host.call("prepare", QUESTIONS, Search(16, False))
        with pytest.raises(PeerError, match="stuck in ask: no answer in 0 s"):
            host.call("ask", timeout_s=0.2)
