"""Replies of RecommendationService as bytes, without a message object for each item.

Ten items take 5 us in place of 7 as protobuf messages, encoding included (one run on an idle machine): little beside
the rest of a request. The .proto stays the contract: a test holds every reply to what protobuf reads from it.
"""

import struct
from collections.abc import Iterable

from heliotrope.v1 import recommendation_pb2 as pb
from heliotrope_server.answerer import Answer

# A tag is (field number << 3) | wire type; 0: varint, 1: eight bytes, 2: length and bytes.
_DOUBLE = struct.Struct("<Bd").pack
_FIGURES = struct.Struct("<BdBdBB").pack  # score, probability, source
_SCORE, _PROBABILITY, _SOURCE, _PROPENSITY = 0x11, 0x19, 0x20, 0x31
_RECOMMENDATION, _RESULT, _RESPONSE = b"\x0a", b"\x0a", b"\x0a"
_SMALL = tuple(bytes((number,)) for number in range(0x80))
_FIGURE_BYTES = 20
# What stands before an id of so many bytes, where that and the figures still fit into a length of one byte.
_HEADS = tuple(
    _RECOMMENDATION + _SMALL[2 + length + _FIGURE_BYTES] + b"\x0a" + _SMALL[length]
    for length in range(0x80 - 2 - _FIGURE_BYTES)
)


def encode_response(answer: Answer, timings: tuple[int, int] | None = None) -> bytes:
    """RecommendResponse; `timings` are (queue_ns, search_ns)."""
    parts = [_explained(answer)] if answer.explanations else _recommendations(answer)
    for tag, text in (
        (b"\x12", answer.request_id),
        (b"\x1a", answer.snapshot_version),
        (b"\x22", answer.profile_version),
    ):
        parts.append(_field(tag, text.encode()))
    if timings is not None:
        queue_ns, search_ns = timings
        parts.append(_field(b"\x2a", b"\x08" + varint(queue_ns) + b"\x10" + varint(search_ns)))
    return b"".join(parts)


def encode_batch(results: Iterable[bytes]) -> bytes:
    """BatchRecommendResponse of encoded results."""
    return b"".join([_field(_RESULT, result) for result in results])


def outcome_of(response: bytes) -> bytes:
    """BatchRecommendResult, and StreamRecommendResponse, that hold an encoded response."""
    return _field(_RESPONSE, response)


def varint(number: int) -> bytes:
    """A number of 0 or more, seven bits a byte."""
    if number < 0x80:
        return _SMALL[number]
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _recommendations(answer: Answer) -> list[bytes]:
    parts: list[bytes] = []
    drawn = _drawn(answer)
    for place, (item_id, score, probability, source) in enumerate(
        zip(answer.item_ids, answer.scores, answer.probabilities, answer.sources, strict=True)
    ):
        name = item_id.encode()
        figures = _FIGURES(_SCORE, score, _PROBABILITY, probability, _SOURCE, source)
        if len(name) < len(_HEADS) and not drawn:
            parts += (_HEADS[len(name)], name, figures)
            continue
        if drawn:
            figures += _DOUBLE(_PROPENSITY, answer.propensities[place])
        parts.append(_field(_RECOMMENDATION, _field(b"\x0a", name) + figures))
    return parts


def _explained(answer: Answer) -> bytes:
    """The recommendations of an answer with explanations: rare, and many messages deep."""
    response = pb.RecommendResponse()
    drawn = _drawn(answer)
    for place, contributions in enumerate(answer.explanations):
        recommendation = response.recommendations.add(
            item_id=answer.item_ids[place],
            score=answer.scores[place],
            probability=answer.probabilities[place],
            source=answer.sources[place],
        )
        if drawn:
            recommendation.propensity = answer.propensities[place]
        for part in contributions:
            recommendation.explanation.add(
                kind=part.kind,
                value=part.value,
                event_id=part.event_id,
                item_id=part.item_id,
            )
    return response.SerializeToString()


def _drawn(answer: Answer) -> bool:
    """Whether an item was drawn at random: only the last place ever is."""
    return bool(answer.propensities) and answer.propensities[-1] < 1.0


def _field(tag: bytes, body: bytes) -> bytes:
    return tag + varint(len(body)) + body
