"""Filters of requests as the engine takes them."""

import math
from functools import lru_cache

from heliotrope.v1 import filter_pb2 as pb
from heliotrope_server.errors import InvalidArgumentError
from heliotrope_server.item_filter import Condition, ItemFilter, LabelIn, NumberIn, ValueIn
from heliotrope_server.servicers.item_attributes import attribute_value

_KEPT = 256


def item_filter(message: pb.ItemFilter) -> ItemFilter:
    """The filter of a request; raises InvalidArgumentError naming the value and the limit."""
    return _of_bytes(message.SerializeToString(deterministic=True))


@lru_cache(maxsize=_KEPT)
def _of_bytes(encoded: bytes) -> ItemFilter:
    """The same few filters come again and again; one that is refused is not kept."""
    message = pb.ItemFilter.FromString(encoded)
    return ItemFilter(tuple(map(_condition, message.conditions)), message.include_unavailable)


def _condition(message: pb.Condition) -> Condition:
    kind = message.WhichOneof("test")
    if kind is None:
        raise InvalidArgumentError("EMPTY_CONDITION", "a condition of a filter sets no test", value="", limit="")
    if kind == "number_range":
        within = message.number_range
        return NumberIn(
            within.attribute,
            within.min if within.HasField("min") else -math.inf,
            within.max if within.HasField("max") else math.inf,
        )
    negated = kind.endswith("_not_in")
    if kind.startswith("attribute"):
        return _value_in(message.attribute_not_in if negated else message.attribute_in, negated)
    if kind.startswith("category"):
        names = message.category_not_in if negated else message.category_in
        return LabelIn("category", tuple(names.names), negated)
    names = message.provider_not_in if negated else message.provider_in
    return LabelIn("provider", tuple(names.names), negated)


def _value_in(message: pb.AttributeSet, negated: bool) -> ValueIn:
    values = [attribute_value(value, message.attribute) for value in message.values]
    return ValueIn(
        message.attribute,
        tuple(value for value in values if isinstance(value, str)),
        tuple(value for value in values if isinstance(value, float)),
        tuple(value for value in values if isinstance(value, bool)),
        negated,
    )
