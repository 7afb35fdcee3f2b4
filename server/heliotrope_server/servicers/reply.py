"""Replies of RecommendationService as bytes, without a message object for each item.

Ten items take 5 us in place of 7 as protobuf messages, encoding included (one run on an idle machine): little beside
the rest of a request. The .proto stays the contract: a test holds every reply to what protobuf reads from it.
"""

import struct
from collections.abc import Iterable

import numpy as np

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
    parts = _recommendations(answer)
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
    explained = None if answer.explanations is None else _explained(answer.explanations)
    for place, (item_id, score, probability, source) in enumerate(
        zip(answer.item_ids, answer.scores, answer.probabilities, answer.sources, strict=True)
    ):
        name = item_id.encode()
        figures = _FIGURES(_SCORE, score, _PROBABILITY, probability, _SOURCE, source)
        if len(name) < len(_HEADS) and not drawn and explained is None:
            parts += (_HEADS[len(name)], name, figures)
            continue
        if explained is not None:
            figures += explained[place]
        if drawn:
            figures += _DOUBLE(_PROPENSITY, answer.propensities[place])
        parts.append(_field(_RECOMMENDATION, _field(b"\x0a", name) + figures))
    return parts


def _explained(explanations: Explanations) -> list[bytes]:
    """The field `explanation` of each recommendation: 100 contributions as messages would take longer than the search.

    A contribution is its kind, its value, and for an event two ids that are the same for every item.
    """
    frames: dict[int, tuple[bytes, bytes]] = {}
    for key, (event_id, item_id) in explanations.events.items():
        # Ids longer than 127 bytes are rare: most lengths are one byte, looked up.
        if len(event_id) + len(item_id) < 0x80 - _PLAIN_BYTES - 4:
            ids = b"\x1a" + _SMALL[len(event_id)] + event_id + b"\x22" + _SMALL[len(item_id)] + item_id
            frames[key] = (_EVENT_HEADS[len(ids)], ids)
        else:
            ids = _field(b"\x1a", event_id) + _field(b"\x22", item_id)
            frames[key] = (_EXPLANATION + varint(_PLAIN_BYTES + len(ids)) + _KIND[EVENT] + _VALUE, ids)
    count, kinds = len(explanations), explanations.kinds
    # Without ids all contributions are of one size.
    terms = np.empty((count, len(kinds), 2 + _PLAIN_BYTES), dtype=np.uint8)
    heads = b"".join([_EXPLANATION + _SMALL[_PLAIN_BYTES] + _KIND[kind] + _VALUE for kind in kinds])
    terms[:, :, :5] = np.frombuffer(heads, dtype=np.uint8).reshape(len(kinds), 5)
    terms[:, :, 5:] = np.ascontiguousarray(explanations.terms, "<f8").view(np.uint8).reshape(count, len(kinds), 8)
    standing, size = terms.tobytes(), terms[0].size if count else 0
    named, shares = explanations.named.tolist(), explanations.shares.astype("<f8").tobytes()
    fields, at = [], 0
    for place in range(count):
        parts: list[bytes] = []
        for key in named[place]:
            head, ids = frames[key]
            parts += (head, shares[at : at + 8], ids)
            at += 8
        parts.append(standing[place * size : (place + 1) * size])
        fields.append(b"".join(parts))
    return fields


def _drawn(answer: Answer) -> bool:
    """Whether an item was drawn at random: only the last place ever is."""
    return bool(answer.propensities) and answer.propensities[-1] < 1.0


def _field(tag: bytes, body: bytes) -> bytes:
    return tag + varint(len(body)) + body
