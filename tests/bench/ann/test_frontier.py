"""Recall by score, the frontier and rates on it."""

import numpy as np
import pytest

from heliotrope_bench.ann.frontier import Mark, frontier, rate_at, recall
from heliotrope_bench.ann.grid import verdict


def test_recall_counts_rows_by_their_score():
    scores = np.array([[0.9, 0.5, 0.5, 0.5, 0.1], [1.0, 2.0, 3.0, 4.0, 5.0]], np.float32)
    # Two of three that tie for the second place, and the best two: everything is right.
    assert recall(scores, np.array([[0, 3], [4, 3]]), 2) == 1.0
    assert recall(scores, np.array([[0, 4], [4, 2]]), 2) == 0.5
    assert recall(scores, np.array([[0, -1], [-1, -1]]), 2) == 0.25


def test_a_row_that_is_named_twice_counts_once():
    scores = np.array([[3.0, 2.0, 1.0]], np.float32)
    assert recall(scores, np.array([[0, 0]]), 2) == 0.5
    assert recall(scores, np.array([[1, 0, 1]]), 2) == 1.0


def test_no_more_than_k_rows_are_right_however_many_tie():
    assert recall(np.ones((1, 6), np.float32), np.array([[0, 1, 2, 3, 4]]), 3) == 1.0


def test_the_frontier_keeps_what_nothing_beats_in_both():
    marks = [Mark(0.9, 100.0), Mark(0.95, 120.0), Mark(0.99, 50.0), Mark(0.98, 40.0), Mark(0.99, 45.0)]
    assert frontier(marks) == [Mark(0.95, 120.0), Mark(0.99, 50.0)]


def test_rates_between_two_marks_are_log_linear_and_beyond_the_last_there_is_none():
    marks = [Mark(0.90, 100.0), Mark(0.92, 25.0)]
    assert rate_at(marks, 0.91) == pytest.approx(50.0)
    assert rate_at(marks, 0.5) == pytest.approx(100.0)
    assert rate_at(marks, 0.92) == pytest.approx(25.0)
    assert rate_at(marks, 0.93) is None
    assert rate_at([], 0.5) is None


def test_the_verdict_names_the_best_library_and_keeps_the_engine_apart():
    def row(contender, recall, rate, mode="single"):
        return {"contender": contender, "setting": "", "mode": mode, "recall": recall, "rate": rate}

    results = [row("heliotrope", 0.985, 90.0), row("A", 0.99, 100.0), row("B", 0.96, 300.0), row("qdrant", 0.99, 30.0)]
    lines = {(line["mode"], line["recall"]): line for line in verdict(results)}
    assert (lines["single", 0.95]["of"], lines["single", 0.95]["ratio"]) == ("B", pytest.approx(0.3))
    assert (lines["single", 0.98]["of"], lines["single", 0.98]["ratio"]) == ("A", pytest.approx(0.9))
    assert lines["single", 0.98]["over_qdrant"] == pytest.approx(3.0)
    assert lines["single", 0.99]["ours"] is None and lines["single", 0.99]["ratio"] is None
    assert lines["batch", 0.95]["ours"] is None and "of" not in lines["batch", 0.95]
