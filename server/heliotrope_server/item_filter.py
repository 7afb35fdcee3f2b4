"""Filters: what they are, and what values they may have. See heliotrope.v1.ItemFilter."""

import math
from dataclasses import dataclass
from typing import Literal

from heliotrope_indexer.attributes import MAX_KEY_BYTES, MAX_VALUE_BYTES, PRICE
from heliotrope_server.errors import InvalidArgumentError
from heliotrope_server.event import check_id

MAX_CONDITIONS = 32
MAX_NAMES = 1_000
"""Names and values in all conditions of a filter together."""

LabelKind = Literal["category", "provider"]


@dataclass(frozen=True, slots=True)
class LabelIn:
    """The item is in one of these categories or of one of these providers; `negated`: of none of them."""

    kind: LabelKind
    names: tuple[str, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class NumberIn:
    """The price or the number under a key lies within `least` and `most`, both included."""

    attribute: str
    least: float = -math.inf
    most: float = math.inf


@dataclass(frozen=True, slots=True)
class ValueIn:
    """The item has one of these values under a key; `negated`: none of them. Kept by type: 1 is not true."""

    key: str
    texts: tuple[str, ...] = ()
    numbers: tuple[float, ...] = ()
    flags: tuple[bool, ...] = ()
    negated: bool = False


Condition = LabelIn | NumberIn | ValueIn


@dataclass(frozen=True, slots=True)
class ItemFilter:
    """All conditions together; and, unless `include_unavailable`, the item is available at the request's time.

    Raises InvalidArgumentError, naming the value and the limit, for a filter that can't be.
    """

    conditions: tuple[Condition, ...] = ()
    include_unavailable: bool = False

    def __post_init__(self) -> None:
        if len(self.conditions) > MAX_CONDITIONS:
            raise InvalidArgumentError(
                "TOO_MANY_CONDITIONS",
                f"a filter has {len(self.conditions)} conditions; at most {MAX_CONDITIONS} are accepted",
                value=len(self.conditions),
                limit=MAX_CONDITIONS,
            )
        names = sum(_check(condition) for condition in self.conditions)
        if names > MAX_NAMES:
            raise InvalidArgumentError(
                "TOO_MANY_FILTER_VALUES",
                f"a filter holds {names} names and values; at most {MAX_NAMES} in all its conditions are accepted",
                value=names,
                limit=MAX_NAMES,
            )


def _check(condition: Condition) -> int:
    """How many names and values a sound condition holds."""
    if isinstance(condition, NumberIn):
        return _check_range(condition)
    what: str
    if isinstance(condition, LabelIn):
        for name in condition.names:
            check_id(f"filter_{condition.kind}", name)
        count, what = len(condition.names), condition.kind
    else:
        check_id("filter_attribute", condition.key, MAX_KEY_BYTES)
        _check_values(condition)
        count, what = len(condition.texts) + len(condition.numbers) + len(condition.flags), condition.key
    if not count:
        raise InvalidArgumentError(
            "EMPTY_CONDITION",
            f"a condition on {what!r} names nothing; it takes 1 to {MAX_NAMES}",
            value=0,
            limit=MAX_NAMES,
        )
    return count


def _check_range(condition: NumberIn) -> int:
    check_id("filter_attribute", condition.attribute, MAX_KEY_BYTES)
    least, most = condition.least, condition.most
    if (least, most) == (-math.inf, math.inf):
        raise InvalidArgumentError(
            "EMPTY_CONDITION", f"a range of {condition.attribute!r} has neither min nor max", value="", limit=""
        )
    if not least <= most or least == math.inf or most == -math.inf:  # also refuses NaN
        raise InvalidArgumentError(
            "INVALID_RANGE",
            f"a range needs finite ends, min not above max; that of {condition.attribute!r} is {least:g} to {most:g}",
            value=least,
            limit=most,
        )
    return 0


def _check_values(condition: ValueIn) -> None:
    if condition.key == PRICE:
        raise InvalidArgumentError(
            "INVALID_FILTER_ATTRIBUTE", "price is a number: ask for it by number_range", value=PRICE, limit=""
        )
    for text in condition.texts:
        size = len(text.encode())
        if size > MAX_VALUE_BYTES:
            raise InvalidArgumentError(
                "INVALID_FILTER_VALUE",
                f"a value of {condition.key!r} has {size} bytes of UTF-8; at most {MAX_VALUE_BYTES} are accepted",
                value=size,
                limit=MAX_VALUE_BYTES,
            )
    for number in condition.numbers:
        if not math.isfinite(number):
            raise InvalidArgumentError(
                "INVALID_FILTER_VALUE",
                f"a value of {condition.key!r} must be finite, not {number:g}",
                value=number,
                limit="finite",
            )
