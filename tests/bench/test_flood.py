"""The flood against a real gRPC server in another process."""

import time

import numpy as np
import pytest

from heliotrope_bench.empty_server import METHOD, SERVICE, EmptyServer
from heliotrope_bench.errors import ServerLostError
from heliotrope_bench.flood import Flood, flood
from heliotrope_bench.generator import PreparedCall, histogram

CALL = PreparedCall(f"/{SERVICE}/{METHOD}", b"\x0a\x02u1")
UNKNOWN = PreparedCall(f"/{SERVICE}/Unknown", b"")


def test_every_call_that_is_due_is_counted_once_by_what_came_of_it() -> None:
    due = np.linspace(0.0, 0.5, 101)[:-1]
    with EmptyServer(None) as server:
        load = Flood(server.address, [CALL, UNKNOWN], time.monotonic() + 0.2, 0.5, 0.2, due, 10.0, connections=3)
        outcome = flood(load)
    # The first 0.2 s are not measured; calls are used in turn.
    assert (outcome.offered, outcome.good, outcome.late) == (60, 30, 0)
    assert outcome.refused == {"UNIMPLEMENTED": 30}
    assert histogram([outcome.latency]).get_total_count() == histogram([outcome.refusal]).get_total_count() == 30
    assert outcome.measured_s == pytest.approx(0.3)


def test_an_answer_after_the_deadline_is_not_good() -> None:
    # All were due a second before they could be sent.
    with EmptyServer(None) as server:
        kept = flood(Flood(server.address, [CALL], time.monotonic() - 1.0, 1.0, 0.0, np.zeros(20), 30.0))
        missed = flood(Flood(server.address, [CALL], time.monotonic() - 1.0, 1.0, 0.0, np.zeros(20), 0.5))
    assert kept.good == 20 and histogram([kept.latency]).get_min_value() >= 1_000_000
    assert missed.good == 0 and missed.refused == {"NOT_SENT": 20}


def test_a_server_that_goes_away_is_an_error() -> None:
    with EmptyServer(None) as server:
        load = Flood(server.address, [CALL], time.monotonic(), 1.0, 0.0, np.zeros(1), 1.0)
    with pytest.raises(ServerLostError, match="cannot be connected to"):
        flood(load)
