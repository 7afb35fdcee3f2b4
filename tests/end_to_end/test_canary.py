"""A snapshot that answers badly is taken back by the server itself, on every shard, and stays away."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest

from heliotrope import Client, Event, HeliotropeError
from heliotrope_indexer.ann_index import train_index
from heliotrope_indexer.index_rows import head_rows, index_rows
from heliotrope_indexer.parameters import Parameters, SearchParameters
from heliotrope_indexer.snapshot import CatalogItem, SnapshotStore, write_snapshot
from tests.end_to_end.running_server import RunningServer, running_server

ITEMS, DIMENSION, LISTS = 4_000, 16, 64
USERS = [f"user-{number}" for number in range(12)]
PATIENCE_S = 90.0


def publish(store: Path, seed: int, *, shuffled: bool = False) -> str:
    """Items around as many centres as the index has lists; with `shuffled` the index is that of other rows, so that its
    candidates have nothing to do with the question.
    """
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(LISTS, DIMENSION))
    vectors = centres[generator.integers(LISTS, size=ITEMS)] + 0.5 * generator.normal(size=(ITEMS, DIMENSION))
    vectors = vectors.astype(np.float32)
    bias = np.zeros(ITEMS, dtype=np.float32)
    rows = index_rows(vectors, bias)
    if shuffled:
        rows = rows[generator.permutation(ITEMS)]
    index: faiss.Index = train_index(rows, bias, LISTS, rows.shape[1], head_rows(bias, 0))
    folder = store.parent / f".draft-{seed}-{shuffled}"
    write_snapshot(
        folder,
        items=[CatalogItem(f"i{row}", f"title {row}") for row in range(ITEMS)],
        vectors=vectors,
        bias=bias,
        prior=generator.normal(scale=0.3, size=DIMENSION),
        index=index,
        quality={"recall_at_10": 0.97},
        parameters=Parameters(
            half_lives_s=(3600.0,),
            kappas=(0.5,),
            live_popularity_weight=0.0,
            search=SearchParameters(nprobe=16, candidates=64, head=0),
        ),
    )
    return SnapshotStore(store).publish(folder)


def until(condition: Callable[[], bool], server: RunningServer) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"nothing happened in {PATIENCE_S} s: {''.join(server.messages)}")


def served(client: Client) -> set[str]:
    return {shard.snapshot_version for shard in client.serving_status().shards}


def ask_everybody(client: Client) -> None:
    for user in USERS:
        assert len(client.recommend(user, count=10).recommendations) == 10


def test_a_snapshot_with_a_bad_index_is_taken_back(tmp_path):
    store = tmp_path / "store"
    good = publish(store, 0)
    with running_server(store, tmp_path / "data", "--shards", "2") as server, Client(server.address) as client:
        client.record_events([Event(user, f"i{number}", "favorite") for number, user in enumerate(USERS)])
        bad = publish(store, 1, shuffled=True)
        client.activate_snapshot(bad)
        assert served(client) == {bad}

        def is_back() -> bool:
            ask_everybody(client)
            return served(client) == {good}

        until(is_back, server)
        withdrawal = client.serving_status().withdrawal
        assert withdrawal.snapshot_version == bad and "recall@10 is 0." in withdrawal.reason
        assert SnapshotStore(store).current() == good
        last = SnapshotStore(store).history()[-1]
        assert (last.version, last.how, last.reason) == (good, "roll back", withdrawal.reason)
        assert any("ERROR" in line and bad in line and "withdrawn" in line for line in server.messages)
        command = [sys.executable, "-m", "heliotrope", "snapshots", "list", "--snapshots", str(store), "--json"]
        listed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)
        assert {row["version"]: row["withdrawn"] for row in listed} == {good: None, bad: withdrawal.reason}
        # Nobody goes back from what was gone back to; it is the operator's turn.
        better = publish(store, 2)
        client.activate_snapshot(better)
        assert served(client) == {better} and not client.serving_status().HasField("withdrawal")


def test_requests_under_way_never_fail_and_never_mix_versions(tmp_path):
    store = tmp_path / "store"
    versions = [publish(store, seed) for seed in range(2)]
    over, failures, seen = threading.Event(), list[BaseException](), set[str]()

    def ask(address: str, number: int) -> None:
        with Client(address, direct=bool(number % 2)) as client:
            try:
                while not over.is_set():
                    answer = client.recommend(USERS[number], count=10)
                    assert len(answer.recommendations) == 10
                    scores = best_of[answer.snapshot_version]
                    for one in answer.recommendations:
                        # The score that this very version gives: an answer of two versions would have others.
                        assert one.score == pytest.approx(scores[int(one.item_id[1:])], abs=1e-4)
                    seen.add(answer.snapshot_version)
            except BaseException as error:
                failures.append(error)

    # Nobody has events, so everybody is asked by the population's prior.
    best_of = {}
    for version in versions:
        snapshot = SnapshotStore(store).open(version)
        best_of[version] = np.asarray(snapshot.vectors) @ np.asarray(snapshot.prior)
    with running_server(store, tmp_path / "data", "--shards", "2") as server, Client(server.address) as client:
        threads = [threading.Thread(target=ask, args=(server.address, number)) for number in range(4)]
        for thread in threads:
            thread.start()
        for turn in range(6):
            client.activate_snapshot(versions[turn % 2])
            assert served(client) == {versions[turn % 2]}
            until(lambda wanted=versions[turn % 2]: wanted in seen or bool(failures), server)
            seen.clear()
        over.set()
        for thread in threads:
            thread.join()
    assert not failures, failures[0]


def test_a_shard_that_cannot_prepare_is_named_and_nothing_is_activated(tmp_path):
    store = tmp_path / "store"
    first = publish(store, 0)
    with running_server(store, tmp_path / "data", "--shards", "2") as server, Client(server.address) as client:
        second = publish(store, 1)
        index = store / second / "vectors.npy"
        whole = index.read_bytes()
        index.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(Exception, match=r"shard 0: .*vectors\.npy"):
            client.activate_snapshot(second)
        assert served(client) == {first}
        index.write_bytes(whole)
        # A published version that was never activated is not what a shard comes back with.
        kill(server, client, 0, 1)
        assert served(client) == {first}
        client.activate_snapshot(second)
        kill(server, client, 1)
        assert served(client) == {second}


@pytest.mark.parametrize("victim", [0, 1])
def test_a_shard_that_dies_in_the_middle_of_a_switch_ends_with_the_others(tmp_path, victim):
    """Shard 0 leads the switch."""
    store = tmp_path / "store"
    versions = [publish(store, seed) for seed in range(2)]
    with running_server(store, tmp_path / "data", "--shards", "2") as server, Client(server.address) as client:
        for turn in range(4):
            # Two switches in a row, the shard dying wherever they happen to be.
            def switch(turn: int = turn) -> None:
                with contextlib.suppress(HeliotropeError), Client(server.address) as other:
                    other.activate_snapshot(versions[turn % 2])
                    other.activate_snapshot(versions[(turn + 1) % 2])

            thread = threading.Thread(target=switch)
            thread.start()
            until(lambda turn=turn: bool(served(client) - {versions[turn % 2]}), server)
            kill(server, client, victim)
            thread.join()
            until(lambda: len(served(client)) == 1, server)
            ask_everybody(client)
        client.activate_snapshot(versions[0])
        assert served(client) == {versions[0]}
        ask_everybody(client)


def kill(server: RunningServer, client: Client, *shards: int) -> None:
    """SIGKILL to some shards; returns when they are back."""
    pids = server.shard_pids()
    gone = {pids[shard] for shard in shards}
    for pid in gone:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not gone & set(server.shard_pids()) and len(server.shard_pids()) == len(pids), server)
    until(lambda: all(shard.reachable for shard in client.serving_status().shards), server)
