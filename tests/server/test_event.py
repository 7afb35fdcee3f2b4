"""Admission; the refusals with their limits are tested through gRPC in tests/end_to_end."""

from hypothesis import given
from hypothesis import strategies as st

from heliotrope.v1 import event_pb2, recommendation_pb2
from heliotrope_server import answerer, explanation
from heliotrope_server.errors import InvalidArgumentError
from heliotrope_server.event import Admission, EventKind, admit

NOW_S = 1.7e9


def admitted(**changes):
    event = {
        "user_id": "u",
        "event_id": "e",
        "kind": EventKind.CLICK,
        "item_id": "i",
        "value": None,
        "time_s": None,
        "undone_event_id": "",
        "clock_s": NOW_S,
        "window_s": 86_400.0,
        "history_import": False,
    }
    return admit(**{**event, **changes})


def test_the_numbers_of_the_engine_are_those_of_the_contract():
    assert {f"EVENT_TYPE_{kind.name}": kind.value for kind in EventKind} == {
        name: number for name, number in event_pb2.EventType.items() if number
    }
    for name, number in recommendation_pb2.ContributionKind.items():
        if number:
            assert getattr(explanation, name.removeprefix("CONTRIBUTION_KIND_")) == number
    for name, number in recommendation_pb2.Source.items():
        if number:
            assert getattr(answerer, name) == number


def test_the_effective_time_is_never_ahead_of_the_intake_clock():
    assert admitted(time_s=NOW_S + 200).time_us == NOW_S * 1e6
    assert admitted(time_s=NOW_S - 200).time_us == (NOW_S - 200) * 1e6
    assert admitted().time_us == NOW_S * 1e6


def test_a_value_defaults_to_one_and_history_may_be_old():
    assert admitted().value == 1.0
    assert admitted(kind=EventKind.RATING, value=0.0).value == 0.0
    assert admitted(time_s=0.0, history_import=True).time_us == 0


IDS = st.sampled_from(["", "i", "é", "x" * 128, "x" * 129, "é" * 65, "x" * 256, "x" * 257])
DAY_S = 86_400.0


@given(
    user_id=IDS,
    event_id=IDS,
    kind=st.integers(-1, 11),
    item_id=IDS,
    value=st.none() | st.sampled_from([0.0, -0.0, 1.0, 10.0, 10.5, 100.0, 101.0, -1.0, float("nan"), float("inf")]),
    time_s=st.none()
    | st.sampled_from(
        [NOW_S, NOW_S - DAY_S, NOW_S - DAY_S - 1, NOW_S + 300, NOW_S + 301, 0.0, -5.0, NOW_S - 0.1234567]
    ),
    undone_event_id=IDS,
    history_import=st.booleans(),
)
def test_the_admission_of_a_batch_says_of_each_event_what_admit_says(history_import, **event):
    def outcome(ask):
        try:
            return ask()
        except InvalidArgumentError as error:
            return (error.reason, str(error), error.metadata)

    one = outcome(lambda: admit(**event, clock_s=NOW_S, window_s=DAY_S, history_import=history_import))
    admission = Admission(NOW_S, DAY_S, history_import)
    assert outcome(lambda: admission.admit(**event)) == one
