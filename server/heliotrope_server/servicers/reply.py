"""Replies of RecommendationService as bytes, without a message object for each item.

Ten items take 5 us in place of 7 as protobuf messages, encoding included (one run on an idle machine): little beside
the rest of a request. The .proto stays the contract: a test holds every reply to what protobuf reads from it.
"""

import struct
from collections.abc import Iterable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from heliotrope_server.answerer import Answer
from heliotrope_server.explanation import EVENT, Explanations

# A tag is (field number << 3) | wire type; 0: varint, 1: eight bytes, 2: length and bytes.
_DOUBLE = struct.Struct("<Bd").pack
_FIGURES = struct.Struct("<BdBdBB").pack  # score, probability, source
_SCORE, _PROBABILITY, _SOURCE, _PROPENSITY = 0x11, 0x19, 0x20, 0x31
_RECOMMENDATION, _RESULT, _RESPONSE = b"\x0a", b"\x0a", b"\x0a"
_SMALL = tuple(bytes((number,)) for number in range(0x80))
_FIGURE_BYTES = 20
_EXPLANATION, _VALUE = b"\x2a", b"\x11"
_KIND = tuple(b"\x08" + _SMALL[kind] for kind in range(16))
_PLAIN_BYTES = 11  # a contribution without ids: its kind and its value
_PLAIN_SIZE = 2 + _PLAIN_BYTES
_SHORT_IDS = 0x80 - _PLAIN_BYTES - 4  # with their tags and lengths
# What stands before the value of an event whose ids take so many bytes.
_EVENT_HEADS = tuple(
    _EXPLANATION + _SMALL[_PLAIN_BYTES + length] + _KIND[EVENT] + _VALUE for length in range(0x80 - _PLAIN_BYTES)
)
# What stands before an id of so many bytes, where that and the figures still fit into a length of one byte.
_HEADS = tuple(
    _RECOMMENDATION + _SMALL[2 + length + _FIGURE_BYTES] + b"\x0a" + _SMALL[length]
    for length in range(0x80 - 2 - _FIGURE_BYTES)
)


def encode_response(answer: Answer, timings: tuple[int, int] | None = None) -> bytes:
    """RecommendResponse; `timings` are (queue_ns, search_ns)."""
    explanations = answer.explanations
    parts = _recommendations(answer) if explanations is None else _explained(answer, explanations)
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


_LENGTHS = tuple(map(varint, range(2_048)))
"""Of all ids and nearly all recommendations."""


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


def _explained(answer: Answer, explanations: Explanations) -> list[bytes]:
    """The same with explanations: as messages their 80 contributions would take several times what the search takes."""
    drawn = _drawn(answer)
    frames = {key: _frame(*ids) for key, ids in explanations.events.items()}
    standing, size = _standing(explanations), len(explanations.kinds) * _PLAIN_SIZE
    named, shares = explanations.named.tolist(), explanations.shares.astype("<f8").tobytes()
    parts: list[bytes] = []
    share_at = standing_at = 0
    for place, (item_id, score, probability, source) in enumerate(
        zip(answer.item_ids, answer.scores, answer.probabilities, answer.sources, strict=True)
    ):
        name = item_id.encode()
        body = [b"\x0a", _LENGTHS[len(name)], name, _FIGURES(_SCORE, score, _PROBABILITY, probability, _SOURCE, source)]
        for key in named[place]:
            head, ids = frames[key]
            body += (head, shares[share_at : share_at + 8], ids)
            share_at += 8
        body.append(standing[standing_at : standing_at + size])
        standing_at += size
        if drawn:
            body.append(_DOUBLE(_PROPENSITY, answer.propensities[place]))
        encoded = b"".join(body)
        length = len(encoded)
        parts += (_RECOMMENDATION, _LENGTHS[length] if length < len(_LENGTHS) else varint(length), encoded)
    return parts


def _frame(event_id: bytes, item_id: bytes) -> tuple[bytes, bytes]:
    """What stands before and behind the value of an event's contribution: the same for every item."""
    if len(event_id) + len(item_id) < _SHORT_IDS:
        ids = b"".join((b"\x1a", _SMALL[len(event_id)], event_id, b"\x22", _SMALL[len(item_id)], item_id))
        return _EVENT_HEADS[len(ids)], ids
    ids = _field(b"\x1a", event_id) + _field(b"\x22", item_id)
    return _EXPLANATION + varint(_PLAIN_BYTES + len(ids)) + _KIND[EVENT] + _VALUE, ids


def _standing(explanations: Explanations) -> bytes:
    """The contributions without ids of all items, one after the other: each is of _PLAIN_SIZE bytes."""
    count, kinds = len(explanations), len(explanations.kinds)
    template = _template(tuple(explanations.kinds))
    terms = np.empty((count, kinds, _PLAIN_SIZE), dtype=np.uint8)
    terms[:, :, :-8] = template
    terms[:, :, -8:] = np.ascontiguousarray(explanations.terms, "<f8").view(np.uint8).reshape(count, kinds, 8)
    return terms.tobytes()


@cache
def _template(kinds: tuple[int, ...]) -> NDArray[np.uint8]:
    """What stands before the values of contributions of these kinds, (s, 5)."""
    heads = b"".join([_EXPLANATION + _SMALL[_PLAIN_BYTES] + _KIND[kind] + _VALUE for kind in kinds])
    return np.frombuffer(heads, dtype=np.uint8).reshape(len(kinds), -1)


def _drawn(answer: Answer) -> bool:
    """Whether an item was drawn at random: only the last place ever is."""
    return bool(answer.propensities) and answer.propensities[-1] < 1.0


def _field(tag: bytes, body: bytes) -> bytes:
    return tag + varint(len(body)) + body
