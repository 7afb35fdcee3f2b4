"""Filters and items with attributes as the client makes them."""

from datetime import UTC, datetime

import pytest

from heliotrope import (
    RecommendRequest,
    attribute_in,
    attribute_not_in,
    attributes_of,
    category_in,
    category_not_in,
    item_filter,
    make_item,
    number_range,
    provider_in,
    provider_not_in,
)
from heliotrope.call import recommend_request


def test_every_condition_becomes_its_message():
    made = item_filter(
        category_in("a", "b"),
        category_not_in("c"),
        provider_in("p"),
        provider_not_in("q"),
        number_range("price", min=0),
        number_range("year", max=2.5),
        attribute_in("k", "text", 1, 2.5, True),
        attribute_not_in("k", False),
        include_unavailable=True,
    )
    tests = [condition.WhichOneof("test") for condition in made.conditions]
    assert tests == [
        *("category_in", "category_not_in", "provider_in", "provider_not_in"),
        *("number_range", "number_range", "attribute_in", "attribute_not_in"),
    ]
    assert list(made.conditions[0].category_in.names) == ["a", "b"]
    least, most = made.conditions[4].number_range, made.conditions[5].number_range
    assert least.HasField("min") and least.min == 0.0 and not least.HasField("max")
    assert most.HasField("max") and most.max == 2.5 and not most.HasField("min")
    kinds = [value.WhichOneof("value") for value in made.conditions[6].attribute_in.values]
    assert kinds == ["text", "number", "number", "flag"]
    assert made.conditions[7].attribute_not_in.values[0].HasField("flag")
    assert made.include_unavailable


def test_a_request_carries_the_filter_or_none():
    asked = item_filter(category_in("a"))
    assert recommend_request("u", filter=asked).filter == asked
    assert not recommend_request("u").HasField("filter")
    assert not recommend_request(RecommendRequest(user_id="u"), filter=asked).HasField("filter")


def test_an_item_gives_back_its_attributes():
    values = {"text": "t", "whole": 3, "number": 2.5, "flag": False}
    item = make_item("i", "t", price=0, available_until=datetime(2030, 1, 1, tzinfo=UTC), attributes=values)
    assert attributes_of(item) == values
    assert type(attributes_of(item)["flag"]) is bool
    assert item.HasField("price") and item.price == 0.0
    assert item.available_until_time.ToDatetime(UTC) == datetime(2030, 1, 1, tzinfo=UTC)
    assert not item.HasField("available_from_time")
    bare = make_item("i", "t")
    assert not bare.HasField("price") and attributes_of(bare) == {}


def test_what_no_attribute_can_be_is_refused():
    with pytest.raises(TypeError, match=r"not \['a'\]"):
        make_item("i", "t", attributes={"tags": ["a"]})
    with pytest.raises(ValueError, match="no time zone"):
        make_item("i", "t", available_from=datetime(2030, 1, 1))
