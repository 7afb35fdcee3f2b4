"""A snapshot that answers badly is taken back by the server itself, on every shard, and stays away."""

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

from heliotrope import Client, Event
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
    index: faiss.Index = train_index(rows, LISTS, rows.shape[1], head_rows(bias, 0))
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
        # A good one is kept, though its answers are watched; nothing goes back from the one that was gone back to.
        better = publish(store, 2)
        client.activate_snapshot(better)
        assert not client.serving_status().HasField("withdrawal")
        moves = len(SnapshotStore(store).history())
        deadline = time.monotonic() + 8.0
        while time.monotonic() < deadline:
            ask_everybody(client)
        assert served(client) == {better}
        assert len(SnapshotStore(store).history()) == moves


def test_without_a_window_a_bad_snapshot_stays(tmp_path):
    store = tmp_path / "store"
    publish(store, 0)
    options = ("--shards", "1", "--canary-window-s", "0")
    with running_server(store, tmp_path / "data", *options) as server, Client(server.address) as client:
        bad = publish(store, 1, shuffled=True)
        client.activate_snapshot(bad)
        deadline = time.monotonic() + 8.0
        while time.monotonic() < deadline:
            ask_everybody(client)
        assert served(client) == {bad}


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
        victim = client.serving_status().shards[1]
        index = store / second / "vectors.npy"
        whole = index.read_bytes()
        index.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(Exception, match=r"shard 0: .*vectors\.npy"):
            client.activate_snapshot(second)
        assert served(client) == {first}
        index.write_bytes(whole)
        # A published version that was never activated is not what a shard comes back with.
        pids = server.shard_pids()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        until(lambda: not set(pids) & set(server.shard_pids()) and len(server.shard_pids()) == 2, server)
        until(lambda: all(shard.reachable for shard in client.serving_status().shards), server)
        assert served(client) == {first} and victim.snapshot_version == first
        client.activate_snapshot(second)
        pids = server.shard_pids()
        os.kill(pids[-1], signal.SIGKILL)
        until(lambda: pids[-1] not in server.shard_pids() and len(server.shard_pids()) == 2, server)
        until(lambda: all(shard.reachable for shard in client.serving_status().shards), server)
        assert served(client) == {second}
