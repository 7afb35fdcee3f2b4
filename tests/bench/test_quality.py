"""The replay evaluation end to end: a real build, then the engine in this process and a real server over gRPC."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from heliotrope_bench.competitors.competitor import ranks
from heliotrope_bench.competitors.counts import chance
from heliotrope_bench.engine_system import engine_system
from heliotrope_bench.holdout import Holdout
from heliotrope_bench.protocol import PROTOCOLS
from heliotrope_bench.quality import ask_all, started_system
from heliotrope_bench.ranking import metrics
from heliotrope_bench.snapshot_job import build_snapshot, parameters_of
from heliotrope_bench.system import Served, System, replay
from heliotrope_indexer.events import EventTable
from heliotrope_indexer.parameters import EVENT_TYPES
from heliotrope_indexer.replay import Replay
from heliotrope_indexer.snapshot import SnapshotStore
from tests.bench.toy_ratings import toy_dataset


@pytest.fixture(scope="module")
def holdout() -> Holdout:
    return PROTOCOLS[0].cut(toy_dataset(users=30, items=60, events=400), None)


@pytest.fixture(scope="module")
def snapshots(holdout: Holdout, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quality")
    return build_snapshot(holdout, folder, model_folder, folder / "work", trials=2)


def test_the_system_is_replayed(holdout: Holdout, snapshots: Path, model_folder: Path) -> None:
    assert parameters_of(snapshots)["half_lives_s"]
    with started_system(holdout, snapshots, model_folder, "engine") as system:
        served, top, figures = ask_all(holdout, system)
    assert len(served) == len(holdout.targets)
    # The whole catalogue is asked for, so every target is in the list, seen items are not, and taste is found.
    for rank, best, history in zip(served, top, holdout.histories(), strict=True):
        seen = set(holdout.dataset.item[history].tolist())
        assert rank.above is not None and 0 <= rank.above <= 60 - len(seen) - rank.tied
        assert not seen & set(best.tolist())
    assert metrics(served)["hr@10"] > metrics(ranks(chance(holdout), holdout))["hr@10"]
    assert figures["impressions"] == 21 * len(holdout.targets)


def test_what_is_served_is_what_training_ranked(model_folder: Path, tmp_path: Path) -> None:
    """The engine, which takes the whole history event by event, gives the scores of the jobs' own replay."""
    toy = toy_dataset(users=30, items=60, events=400)
    # Of events at one time, the engine has heard those that the file names first; the jobs' replay counts none of them.
    holdout = PROTOCOLS[0].cut(replace(toy, time=np.arange(len(toy)) * 3_600.0), None)
    store = build_snapshot(holdout, tmp_path, model_folder, tmp_path / "work", trials=1)
    snapshot, data = SnapshotStore(store).open(), holdout.dataset

    def table(positions: np.ndarray) -> EventTable:
        kinds = np.array([EVENT_TYPES.index(data.kind(int(position))) for position in positions], np.int8)
        return EventTable(
            data.user[positions],
            data.item[positions],
            kinds,
            data.value[positions],
            data.time[positions],
            data.user_ids,
        )

    events = table(holdout.train)
    expected = Replay(events, table(holdout.targets), len(data.items)).scores(
        snapshot.vectors,
        snapshot.bias,
        snapshot.prior,
        snapshot.scoring_matrices,
        snapshot.parameters,
        snapshot.neighbours,
    )
    # An item without an event in training moves with its users in the engine alone.
    learned = set(np.unique(events.row).tolist())
    compared = 0
    with started_system(holdout, store, model_folder, "engine") as system:
        for wanted, served in zip(expected + snapshot.parameters.intercept, replay(holdout, system, 60), strict=True):
            for item_id, score in zip(served.item_ids, served.scores, strict=True):
                row = snapshot.row_of(item_id)
                if row in learned:
                    assert score == pytest.approx(float(wanted[row]), rel=1e-4, abs=1e-4)
                    compared += 1
    assert compared > 20 * len(holdout.targets)


def test_what_is_served_is_what_is_evaluated(holdout: Holdout, snapshots: Path, model_folder: Path) -> None:
    """The engine in this process and the server over gRPC give the same items, scores and probabilities."""

    def answers(through: str) -> Iterator[Served]:
        with started_system(holdout, snapshots, model_folder, through) as system:
            yield from replay(holdout, system, 60)

    with contextlib.closing(answers("engine")) as ours, contextlib.closing(answers("grpc")) as theirs:
        for inside, outside in zip(ours, theirs, strict=True):
            # Equal scores may change places.
            assert dict(zip(inside.item_ids, inside.scores, strict=True)) == pytest.approx(
                dict(zip(outside.item_ids, outside.scores, strict=True)), rel=1e-5, abs=1e-5
            )
            np.testing.assert_allclose(inside.scores, outside.scores, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(inside.probabilities, outside.probabilities, rtol=1e-5, atol=1e-5)


def test_the_replay_records_what_came_before_and_nothing_else(holdout: Holdout) -> None:
    class Witness:
        def __init__(self) -> None:
            self.known: list[int] = []
            self.asked: list[tuple[str, float, list[int]]] = []
            self.declared: dict[str, tuple[str, ...]] = {}

        def record(self, positions: list[int]) -> None:
            self.known += positions

        def declare(self, user_id: str, segments: tuple[str, ...]) -> None:
            assert not self.known
            self.declared[user_id] = segments

        def ask(self, user_id: str, time_s: float, count: int) -> Served:
            self.asked.append((user_id, time_s, list(self.known)))
            return Served([], [], [])

    witness: System = Witness()
    assert len(list(replay(holdout, witness, 10))) == len(holdout.targets)
    assert isinstance(witness, Witness)
    data = holdout.dataset
    for target, (user_id, time_s, known) in zip(holdout.targets.tolist(), witness.asked, strict=True):
        assert known == [event for event in holdout.replayed.tolist() if event < target]
        assert (user_id, time_s) == (data.user_ids[data.user[target]], data.time[target])
    assert not witness.declared
    segments = [(f"group {user % 2}",) for user in range(len(data.user_ids))]
    told = replace(holdout, dataset=replace(data, segments=segments), segments_known=True)
    witness = Witness()
    list(replay(told, witness, 10))
    assert witness.declared == dict(zip(data.user_ids, segments, strict=True))


def test_diversity_lengthens_no_list_and_spreads_it(holdout: Holdout, snapshots: Path, model_folder: Path) -> None:
    tops = []
    for diversity in (0.0, 0.7):
        with started_system(holdout, snapshots, model_folder, "engine", diversity=diversity) as system:
            ranks, top, figures = ask_all(holdout, system, diverse=diversity > 0.0)
        assert len(ranks) == len(top) == len(holdout.targets)
        assert bool(figures) == (diversity == 0.0)
        tops.append(top)
    parity = [(top % 2).mean(axis=1) for top in tops]
    # Items of even and of odd rows are liked by different users: a diverse list holds both kinds.
    assert np.abs(parity[1] - 0.5).mean() < np.abs(parity[0] - 0.5).mean()


def test_segments_are_served_as_of_the_time_of_the_question(
    holdout: Holdout, snapshots: Path, model_folder: Path
) -> None:
    """Long ago everybody had just done something; by today all of it has decayed."""
    data = holdout.dataset
    newcomer = len(data.user_ids)
    told = replace(
        holdout,
        dataset=replace(
            data,
            user_ids=[*data.user_ids, "newcomer"],
            segments=[(f"group {user % 2}",) for user in range(newcomer)] + [("group 1",)],
        ),
        segments_known=True,
    )
    for through in ("engine", "grpc"):
        with started_system(told, snapshots, model_folder, through) as system:
            list(replay(told, system, 1))
            last_s = float(data.time[-1])
            with_segment, without = system.ask("newcomer", last_s, 10), system.ask("nobody", last_s, 10)
        assert with_segment.item_ids != without.item_ids
        liked = [int(item_id.removeprefix("m")) % 2 for item_id in with_segment.item_ids]
        # Members of group 1 turn to items of odd rows.
        assert sum(liked) >= 7


def test_the_whole_catalogue_can_be_asked_for(holdout: Holdout, snapshots: Path, tmp_path: Path) -> None:
    with engine_system(holdout.dataset, snapshots, tmp_path) as engine:
        rows, probabilities = engine.ask_for_all("nobody", 1.0)
        served = engine.ask("nobody", 1.0, 60)
    assert sorted(rows.tolist()) == list(range(60))
    np.testing.assert_allclose(probabilities, served.probabilities)
