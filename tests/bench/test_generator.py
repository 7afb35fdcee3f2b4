"""The generator against a real gRPC server in another process."""

import os
import time
from dataclasses import replace

import numpy as np
import pytest

from heliotrope_bench.empty_server import METHOD, SERVICE, STREAM_METHOD, EmptyServer
from heliotrope_bench.generator import Load, PreparedCall, generate, histogram, poisson_arrivals
from heliotrope_bench.load import summarise

CALL = PreparedCall(f"/{SERVICE}/{METHOD}", b"", units=3)
UNKNOWN = PreparedCall(f"/{SERVICE}/Unknown", b"")
# What a process with several threads can use of the machine.
CORES = os.cpu_count() or 1


def test_arrivals_are_a_poisson_process() -> None:
    times = poisson_arrivals(500.0, 100.0, np.random.default_rng(1))
    assert (np.diff(times) > 0).all() and times[0] > 0 and times[-1] < 100
    assert len(times) == pytest.approx(50_000, abs=5 * 50_000**0.5)
    gaps = np.diff(times)
    # Exponential: the deviation equals the mean, and P(gap > mean) = 1/e.
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)
    assert (gaps > gaps.mean()).mean() == pytest.approx(np.exp(-1), abs=0.01)
    counts = np.histogram(times, bins=1_000, range=(0, 100))[0]
    assert counts.var() == pytest.approx(counts.mean(), rel=0.2)


def test_the_schedule_depends_on_the_seed_alone() -> None:
    def draw(seed: int) -> list[float]:
        times: list[float] = poisson_arrivals(100.0, 1.0, np.random.default_rng(seed)).tolist()
        return times

    assert draw(1) == draw(1) != draw(2)


def test_open_loop_sends_every_call_that_is_due() -> None:
    due = np.linspace(0.0, 0.5, 51)[:-1]
    with EmptyServer(None) as server:
        load = Load(server.address, [CALL], time.monotonic() + 0.2, 0.5, 0.2, due_s=due)
        outcome = generate(load)
    assert (outcome.calls, outcome.units, outcome.errors) == (30, 90, {})
    assert outcome.measured_s == pytest.approx(0.3)
    assert histogram([outcome.latency]).get_total_count() == 30


def test_latency_counts_from_when_a_call_was_due() -> None:
    # Everything was due a second before the generator could start.
    with EmptyServer(None) as server:
        start = time.monotonic() - 1.0
        outcome = generate(Load(server.address, [CALL], start, 1.0, 0.0, due_s=np.zeros(20)))
    row = summarise([outcome])
    assert row["errors"] == 0 and row["p50_ms"] >= 1_000 and row["send_lag_p99_ms"] >= 1_000


def test_streams_are_answered_in_order_and_each_message_counts() -> None:
    message = PreparedCall(f"/{SERVICE}/{STREAM_METHOD}", b"", units=2)
    with EmptyServer(None) as server:
        load = Load(server.address, [message], time.monotonic(), 0.4, 0.1, concurrency=12, streams=3)
        outcome = generate(load)
    assert outcome.calls > 12 and outcome.units == 2 * outcome.calls and not outcome.errors
    assert 0 < outcome.cpu_share < CORES + 0.1


def test_calls_go_to_the_address_that_they_name() -> None:
    with EmptyServer(None) as server, EmptyServer(None) as other:
        calls = [CALL, replace(UNKNOWN, address=other.address)]
        outcome = generate(Load(server.address, calls, time.monotonic(), 60.0, 0.0, concurrency=1, once=True))
    assert outcome.calls == 1 and outcome.errors == {"UNIMPLEMENTED": 1}


def test_closed_loop_and_once() -> None:
    with EmptyServer(None) as server:
        closed = generate(Load(server.address, [CALL], time.monotonic(), 0.3, 0.1, concurrency=4))
        once = generate(Load(server.address, [CALL] * 10, time.monotonic(), 60.0, 0.0, concurrency=4, once=True))
    assert closed.calls > 0 and closed.units == 3 * closed.calls
    assert once.calls == 10 and once.measured_s < 60


def test_errors_are_counted_by_code_and_not_as_answers() -> None:
    with EmptyServer(None) as server:
        load = Load(server.address, [UNKNOWN, CALL], time.monotonic(), 60.0, 0.0, concurrency=1, once=True)
        outcomes = [generate(load), generate(load)]
    row = summarise(outcomes)
    assert row["errors"] == 2 and row["errors_by_code"] == {"UNIMPLEMENTED": 2}
    assert sum(outcome.calls for outcome in outcomes) == 2
