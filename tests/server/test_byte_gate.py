import pytest

from heliotrope_server.byte_gate import CALL_BYTES, ByteGate
from heliotrope_server.errors import OverloadedError


def test_calls_are_admitted_up_to_the_limit_and_again_once_others_are_through():
    gate = ByteGate("the disk", 3 * CALL_BYTES + 300)
    with gate.hold(100), gate.hold(100):
        with gate.hold(100):
            with pytest.raises(OverloadedError, match="wait for the disk") as refused, gate.hold(0):
                pytest.fail("a fourth call was admitted")
            assert 0.0 < refused.value.retry_after_s <= 5.0
            assert refused.value.metadata["limit"] == str(3 * CALL_BYTES + 300)
        with gate.hold(100):
            pass


def test_a_call_larger_than_the_limit_is_admitted_alone():
    gate = ByteGate("the disk", 10)
    with gate.hold(1 << 20), pytest.raises(OverloadedError), gate.hold(1):
        pytest.fail("a second call was admitted")
    with gate.hold(1):
        pass


def test_a_call_that_fails_leaves_its_place():
    gate = ByteGate("the disk", 10)
    for _ in range(3):
        with pytest.raises(RuntimeError), gate.hold(1 << 20):
            raise RuntimeError
