"""Replies that are encoded by hand, held to what protobuf reads from them and would have written itself."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from heliotrope.v1 import recommendation_pb2 as pb
from heliotrope_server.answerer import Answer
from heliotrope_server.explanation import Explanations
from heliotrope_server.servicers.reply import encode_batch, encode_response, outcome_of, varint

NUMBERS = st.floats(allow_nan=False)
NAMES = st.text(min_size=1, max_size=60) | st.text(min_size=100, max_size=256)
ITEMS = st.tuples(NAMES, NUMBERS, st.floats(0.0, 1.0), st.integers(1, 6))
EVENTS = st.dictionaries(st.integers(0, 600), st.tuples(NAMES.map(str.encode), NAMES.map(str.encode)), max_size=8)


@st.composite
def explained(draw: st.DrawFn, items: int) -> Explanations:
    """Explanations of some items that name some of the same events."""
    events = draw(EVENTS)
    named = draw(st.integers(0, min(5, len(events))))
    places = [draw(st.permutations(sorted(events)))[:named] for _ in range(items)]
    kinds = draw(st.lists(st.integers(2, 8), min_size=1, max_size=7))
    shares = [[draw(NUMBERS) for _ in range(named)] for _ in range(items)]
    terms = [[draw(NUMBERS) for _ in kinds] for _ in range(items)]
    return Explanations(
        np.array(places, dtype=np.int64).reshape(items, named),
        np.array(shares).reshape(items, named),
        events,
        kinds,
        np.array(terms).reshape(items, len(kinds)),
    )


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    items = draw(st.lists(ITEMS, max_size=12))
    propensities = [1.0] * len(items)
    if items and draw(st.booleans()):
        propensities[-1] = draw(st.floats(0.001, 0.999))
    explanations = draw(explained(len(items))) if draw(st.booleans()) else None
    ids, scores, probabilities, sources = ([item[column] for item in items] for column in range(4))
    rows, interests = np.arange(len(items)), np.zeros((1, 2), np.float32)
    texts = draw(st.tuples(st.text(max_size=200), st.text(), st.text()))
    snapshot, profile, request = texts
    return Answer(
        ids, scores, probabilities, sources, propensities, explanations, snapshot, profile, rows, interests, request
    )


def message(answer: Answer) -> pb.RecommendResponse:
    """The same reply, field by field."""
    response = pb.RecommendResponse(
        request_id=answer.request_id, snapshot_version=answer.snapshot_version, profile_version=answer.profile_version
    )
    for place, item_id in enumerate(answer.item_ids):
        one = response.recommendations.add(
            item_id=item_id,
            score=answer.scores[place],
            probability=answer.probabilities[place],
            source=answer.sources[place],
        )
        if answer.propensities[-1] < 1.0:
            one.propensity = answer.propensities[place]
        for part in answer.explanations[place] if answer.explanations is not None else []:
            one.explanation.add(kind=part.kind, value=part.value, event_id=part.event_id, item_id=part.item_id)
    return response


@given(answers(), st.integers(0, 2**62), st.integers(0, 2**62))
def test_protobuf_reads_what_it_would_have_written(answer, queue_ns, search_ns):
    expected = message(answer)
    assert pb.RecommendResponse.FromString(encode_response(answer)) == expected
    expected.timings.queue_ns, expected.timings.search_ns = queue_ns, search_ns
    assert pb.RecommendResponse.FromString(encode_response(answer, (queue_ns, search_ns))) == expected


@given(st.lists(answers(), max_size=3))
def test_a_batch_and_a_stream_hold_the_same_replies(several):
    batch = encode_batch(outcome_of(encode_response(answer)) for answer in several)
    expected = [pb.BatchRecommendResult(response=message(answer)) for answer in several]
    assert pb.BatchRecommendResponse.FromString(batch) == pb.BatchRecommendResponse(results=expected)
    for answer in several:
        streamed = pb.StreamRecommendResponse.FromString(outcome_of(encode_response(answer)))
        assert streamed == pb.StreamRecommendResponse(response=message(answer))


def test_every_field_of_a_recommendation_is_known_here():
    """A new field of the contract must be added to the encoding by hand."""
    assert [field.name for field in pb.Recommendation.DESCRIPTOR.fields] == [
        "item_id",
        "score",
        "probability",
        "source",
        "explanation",
        "propensity",
    ]
    assert [field.number for field in pb.RecommendResponse.DESCRIPTOR.fields] == [1, 2, 3, 4, 5]


@given(st.integers(0, 2**63 - 1))
def test_a_varint_is_that_of_protobuf(number):
    assert pb.StageTimings.FromString(b"\x08" + varint(number)).queue_ns == number
