"""Filters: which items a recommendation may choose among.

>>> from heliotrope import Client, attribute_not_in, category_in, item_filter, number_range
>>> client = Client("localhost:50051")
>>> cheap = item_filter(category_in("Comedy", "Drama"), number_range("price", max=20), attribute_not_in("adult", True))
>>> client.recommend("u1", count=10, filter=cheap)

An item that lacks what a condition asks for does not meet an `in` condition or a range, and meets every `not_in`.
"""

from heliotrope.items import AttributeValue, to_value
from heliotrope.v1 import filter_pb2
from heliotrope.v1.filter_pb2 import Condition, ItemFilter


def item_filter(*conditions: Condition, include_unavailable: bool = False) -> ItemFilter:
    """All conditions together. Items outside of their availability window stay out, unless they are to be included."""
    return ItemFilter(conditions=conditions, include_unavailable=include_unavailable)


def category_in(*names: str) -> Condition:
    """The item is in one of these categories."""
    return Condition(category_in=filter_pb2.NameSet(names=names))


def category_not_in(*names: str) -> Condition:
    """The item is in none of these categories."""
    return Condition(category_not_in=filter_pb2.NameSet(names=names))


def provider_in(*names: str) -> Condition:
    """The item is of one of these providers."""
    return Condition(provider_in=filter_pb2.NameSet(names=names))


def provider_not_in(*names: str) -> Condition:
    """The item is of none of these providers."""
    return Condition(provider_not_in=filter_pb2.NameSet(names=names))


def number_range(attribute: str, *, min: float | None = None, max: float | None = None) -> Condition:
    """A number lies in a range, both ends included; `attribute` is "price" or the key of an attribute."""
    return Condition(number_range=filter_pb2.NumberRange(attribute=attribute, min=min, max=max))


def attribute_in(attribute: str, *values: AttributeValue) -> Condition:
    """The item has one of these values under a key. The number 1 is neither the text "1" nor true."""
    return Condition(attribute_in=_attribute_set(attribute, values))


def attribute_not_in(attribute: str, *values: AttributeValue) -> Condition:
    """The item has none of these values under a key."""
    return Condition(attribute_not_in=_attribute_set(attribute, values))


def _attribute_set(attribute: str, values: tuple[AttributeValue, ...]) -> filter_pb2.AttributeSet:
    return filter_pb2.AttributeSet(attribute=attribute, values=[to_value(value) for value in values])
