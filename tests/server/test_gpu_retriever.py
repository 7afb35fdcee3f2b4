"""Candidates from a device: a CPU index stands where faiss-gpu's would, and fails as a device does.

What needs a card is marked `gpu`.
"""

import logging
import sys

import faiss
import numpy as np
import pytest

from heliotrope_server.answerer import Question
from heliotrope_server.device_index import (
    MOST_HITS,
    DeviceIndex,
    DeviceLostError,
    build_device_index,
    device_problem,
    probe,
)
from heliotrope_server.gpu_retriever import GpuRetriever, SearchDevice, recall_at_10
from heliotrope_server.live_view import live_view
from heliotrope_server.retriever import ExactRetriever, make_retriever
from heliotrope_server.scoring import Query
from tests.end_to_end.running_server import refused_start
from tests.server import worlds
from tests.server.stand_in_device import Device

ITEMS, DIMENSION = 1_500, 16


@pytest.fixture
def served(tmp_path):
    return worlds.catalogue(tmp_path, items=ITEMS, dimension=DIMENSION, with_index=True)


def queries(count, wanted=10, seed=1):
    rng = np.random.default_rng(seed)
    excluded = rng.choice(ITEMS, size=20, replace=False)
    return [Query(rng.normal(size=DIMENSION).astype(np.float32), wanted, np.sort(excluded)) for _ in range(count)]


def view(catalogue, busy=40):
    counts = np.zeros(catalogue.size)
    counts[np.random.default_rng(0).choice(catalogue.size, size=busy, replace=False)] = 5.0
    return live_view(catalogue, counts)


def device_of(catalogue, searches=None):
    """The stand-in and a SearchDevice that builds it."""
    made = Device(catalogue.snapshot.vectors, catalogue.snapshot.bias, searches)
    return made, SearchDevice(
        "cuda", "flat", problem=lambda: None, build=lambda *_: DeviceIndex(made, most_hits=MOST_HITS["flat"])
    )


def test_through_a_flat_index_the_answers_are_exact(served):
    made, device = device_of(served)
    device.prepare(served)
    retriever = device.make_retriever(served)
    assert retriever.description == "cuda flat candidates 64"
    live, before = view(served), made.asked
    for found, exact in zip(
        retriever.rank(queries(20), live), ExactRetriever(served).rank(queries(20), live), strict=True
    ):
        np.testing.assert_array_equal(found.rows, exact.rows)
        np.testing.assert_allclose(found.scores, exact.scores, rtol=1e-5)
    assert made.asked == before + 1  # one search for the whole batch


def test_a_lost_device_is_replaced_by_the_cpu_within_the_same_call(served, caplog):
    made, device = device_of(served, searches=2)
    device.prepare(served)  # the check is the first search
    retriever = device.make_retriever(served)
    live = view(served)
    retriever.rank(queries(3), live)
    with caplog.at_level(logging.ERROR):
        answers = [retriever.rank(queries(9), live) for _ in range(3)]
    cpu = make_retriever(served).rank(queries(9), live)
    for answer in answers:
        for found, expected in zip(answer, cpu, strict=True):
            np.testing.assert_array_equal(found.rows, expected.rows)
    assert made.asked == 3  # a device that is lost is not asked again
    assert caplog.text.count("the GPU is lost") == 1
    assert "GPU lost: Error in virtual" in retriever.description
    assert retriever.description.startswith(make_retriever(served).description)


def test_an_error_of_ours_is_no_lost_device(served):
    _, device = device_of(served)
    device.prepare(served)
    wrong = Query(np.zeros(DIMENSION + 9, dtype=np.float32), 10, np.empty(0, dtype=np.int64))
    retriever = device.make_retriever(served)
    with pytest.raises(ValueError, match="broadcast"):
        retriever.rank([wrong], view(served))
    assert retriever.description == "cuda flat candidates 64"


def test_an_index_that_finds_the_wrong_rows_is_not_served(served, caplog):
    vectors = np.random.default_rng(3).permutation(served.snapshot.vectors)
    wrong = Device(vectors, served.snapshot.bias)
    device = SearchDevice("auto", "cagra", problem=lambda: None, build=lambda *_: DeviceIndex(wrong, most_hits=512))
    with caplog.at_level(logging.ERROR):
        device.prepare(served)
    assert "the cagra index of snapshot" in caplog.text and "has recall@10 0." in caplog.text
    assert not isinstance(device.make_retriever(served), GpuRetriever)


def test_recall_counts_the_best_rows_among_the_candidates(served):
    flat = DeviceIndex(Device(served.snapshot.vectors, served.snapshot.bias), most_hits=2_048)
    assert recall_at_10(served, flat, 10) == 1.0
    assert recall_at_10(served, flat, 5) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("device", "problem", "level"),
    [("auto", "FAISS finds no GPU", logging.INFO), ("cuda", "CUDA error 999", logging.ERROR)],
)
def test_without_a_gpu_the_cpu_searches_and_the_log_says_why(served, caplog, device, problem, level):
    def build(*_):
        raise AssertionError("nothing can be built")

    chosen = SearchDevice(device, "flat", problem=lambda: problem, build=build)
    with caplog.at_level(logging.INFO):
        chosen.prepare(served)
    (record,) = caplog.records
    assert (record.levelno, record.message) == (level, f"candidates are searched on the CPU: {problem}")
    assert not isinstance(chosen.make_retriever(served), GpuRetriever)


def test_what_can_not_be_built_leaves_the_snapshot_to_the_cpu(served, caplog):
    def build(*_):
        raise RuntimeError("alloc fail")

    device = SearchDevice("auto", "ivf", problem=lambda: None, build=build)
    device.prepare(served)
    assert "the ivf index of snapshot" in caplog.text and "alloc fail" in caplog.text
    assert not isinstance(device.make_retriever(served), GpuRetriever)


def test_with_device_cpu_nothing_is_looked_for(served):
    def problem():
        raise AssertionError("nobody asked for a GPU")

    device = SearchDevice("cpu", "flat", problem=problem)
    device.prepare(served)
    assert not isinstance(device.make_retriever(served), GpuRetriever)


def test_a_small_catalogue_stays_exact(tmp_path):
    small = worlds.catalogue(tmp_path, items=30, dimension=DIMENSION)
    _, device = device_of(small)
    device.prepare(small)
    assert isinstance(device.make_retriever(small), ExactRetriever)


def test_an_index_serves_only_the_snapshot_that_it_was_built_from(served, tmp_path):
    _, device = device_of(served)
    device.prepare(served)
    other = worlds.catalogue(tmp_path / "other", items=ITEMS, dimension=DIMENSION, with_index=True, seed=5)
    assert not isinstance(device.make_retriever(other), GpuRetriever)


async def test_a_server_goes_on_and_its_status_says_so(served, tmp_path):
    _, device = device_of(served, searches=2)
    device.prepare(served)
    async with worlds.engine(tmp_path, served, make_retriever=device.make_retriever) as engine:
        question = Question("u1", 10)
        assert engine.answerer.retriever_description == "cuda flat candidates 64"
        first = (await engine.recommend(question)).result
        second = (await engine.recommend(question)).result
        assert len(second.item_ids) == 10
        # The index of the CPU probes 12 of 16 lists.
        assert len(set(first.item_ids) & set(second.item_ids)) >= 7
        assert "GPU lost" in engine.answerer.retriever_description


def test_more_hits_than_a_device_can_select_are_missing_rows(served):
    index = DeviceIndex(Device(served.snapshot.vectors, served.snapshot.bias), most_hits=7)
    scores, rows = index.search(np.ones((2, index.d), dtype=np.float32), 10)
    assert rows.shape == scores.shape == (2, 10)
    assert (rows[:, :7] >= 0).all() and (rows[:, 7:] == -1).all() and np.isneginf(scores[:, 7:]).all()


def test_what_a_device_raises_has_one_name(served):
    index = DeviceIndex(Device(served.snapshot.vectors, served.snapshot.bias, searches=0), most_hits=7)
    with pytest.raises(DeviceLostError, match="alloc fail"):
        index.search(np.ones((2, index.d), dtype=np.float32), 10)


def test_a_probe_that_dies_names_what_it_said():
    abort = "import os, sys; print('first'); print('CUDA error 46', file=sys.stderr, flush=True); os.abort()"
    assert probe([sys.executable, "-c", abort]) == "CUDA error 46"
    assert probe([sys.executable, "-c", "raise SystemExit(3)"]) == "a search on the GPU ended with exit code 3"
    assert probe([sys.executable, "-c", ""]) is None


@pytest.mark.skipif(hasattr(faiss, "StandardGpuResources"), reason="this FAISS is built for GPUs")
def test_a_faiss_without_gpu_is_named_and_cuda_refused(tmp_path):
    problem = device_problem()
    assert problem is not None and "built for the CPU" in problem
    worlds.publish(tmp_path / "store", items=30)
    code, said = refused_start(tmp_path / "store", tmp_path / "data", "--device", "cuda")
    assert code == 1
    assert "--device cuda: the installed FAISS is built for the CPU" in said


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["flat", "ivf", "cagra"])
def test_a_real_device_finds_what_the_cpu_finds(served, kind):
    problem = device_problem()
    if problem is not None:
        pytest.skip(problem)
    if kind == "cagra" and not hasattr(faiss, "GpuIndexCagra"):
        pytest.skip("this build of FAISS has no CAGRA")
    index = build_device_index(kind, served.snapshot.vectors, served.snapshot.bias, 16)
    assert recall_at_10(served, index, 64) >= 0.97
    found = GpuRetriever(served, index, "cuda").rank(queries(20), view(served))
    exact = ExactRetriever(served).rank(queries(20), view(served))
    assert np.mean([len(set(a.rows) & set(b.rows)) / 10 for a, b in zip(found, exact, strict=True)]) >= 0.97
