"""Which rows a filter admits, against the definition, item by item."""

import math

import numpy as np
import pytest

from heliotrope_indexer.attributes import Attributes
from heliotrope_indexer.snapshot import CatalogItem
from heliotrope_server import allowed_rows
from heliotrope_server.allowed_rows import RowFilters
from heliotrope_server.errors import InvalidArgumentError
from heliotrope_server.item_filter import ItemFilter, LabelIn, NumberIn, ValueIn
from heliotrope_server.live_catalogue import DeltaItem
from tests.server import worlds

ITEMS, DIMENSION = 300, 8
FILTERS = [
    ItemFilter((LabelIn("category", ("c1", "c4")),)),
    ItemFilter((LabelIn("category", ("odd",), negated=True),)),
    ItemFilter((LabelIn("provider", ("p2", "nobody")),)),
    ItemFilter((LabelIn("provider", ("p2", "p3"), negated=True),)),
    ItemFilter((NumberIn("price", 5.0, 20.0),)),
    ItemFilter((NumberIn("price", most=3.2),)),
    ItemFilter((NumberIn("year", least=1990),)),
    ItemFilter((NumberIn("unheard-of", least=0),)),
    ItemFilter((ValueIn("studio", texts=("s1", "s5")),)),
    ItemFilter((ValueIn("studio", texts=("s1",), negated=True),)),
    ItemFilter((ValueIn("adult", flags=(True,)),)),
    ItemFilter((ValueIn("adult", flags=(False,), negated=True),)),
    ItemFilter((ValueIn("adult", numbers=(1.0,), texts=("true",)),)),
    ItemFilter((ValueIn("year", numbers=(1905.0, 1999.0)),)),
    ItemFilter((ValueIn("unheard-of", texts=("x",), negated=True),)),
    ItemFilter((LabelIn("category", ("even",)), NumberIn("price", least=10), ValueIn("studio", texts=("s2", "s4")))),
    ItemFilter((LabelIn("category", ("c1",)), LabelIn("category", ("c2",)))),
    ItemFilter(),
    ItemFilter(include_unavailable=True),
    ItemFilter((NumberIn("price", least=1),), include_unavailable=True),
]


@pytest.fixture
def served(tmp_path):
    return worlds.catalogue(tmp_path, items=ITEMS, dimension=DIMENSION, attributed=True)


def upsert(catalogue, number, item_id=None):
    item = worlds.item(number, attributed=True)
    own = CatalogItem(item_id or item.item_id, *[getattr(item, name) for name in list(CatalogItem.__slots__)[1:]])
    catalogue.upsert(DeltaItem(own, np.ones(DIMENSION, np.float32), None, 0.0, "", "none"))


def admits(item, asked, at_s):
    """The definition, for one item."""
    carried = item.attributes
    if not asked.include_unavailable:
        if carried.available_from_s is not None and at_s < carried.available_from_s:
            return False
        if carried.available_until_s is not None and at_s >= carried.available_until_s:
            return False
    for condition in asked.conditions:
        if isinstance(condition, NumberIn):
            value = carried.price if condition.attribute == "price" else carried.values.get(condition.attribute)
            if isinstance(value, bool | str) or value is None or not condition.least <= value <= condition.most:
                return False
        elif isinstance(condition, LabelIn):
            own = set(item.categories) if condition.kind == "category" else {item.provider} - {""}
            if bool(own & set(condition.names)) is condition.negated:
                return False
        else:
            value = carried.values.get(condition.key)
            named = [
                wanted
                for wanted in (*condition.texts, *condition.numbers, *condition.flags)
                if type(wanted) is type(value) and wanted == value
            ]
            if bool(named) is condition.negated:
                return False
    return True


def expected(catalogue, asked, at_s):
    return np.array([admits(catalogue.item(row), asked, at_s) for row in range(catalogue.size)])


def admitted(filters, catalogue, asked, at_s):
    allowed = filters.allowed(asked, at_s)
    return np.ones(catalogue.size, dtype=bool) if allowed is None else allowed.mask


@pytest.mark.parametrize("asked", FILTERS, ids=str)
@pytest.mark.parametrize("at_s", [1e9 - 1, 1e9, 1.7e9])
def test_admitted_are_those_of_the_definition_in_snapshot_and_delta(served, asked, at_s):
    filters = RowFilters(served)
    np.testing.assert_array_equal(admitted(filters, served, asked, at_s), expected(served, asked, at_s))
    for number in range(ITEMS, ITEMS + 40):
        upsert(served, number)
        if number % 7 == 0:
            np.testing.assert_array_equal(admitted(filters, served, asked, at_s), expected(served, asked, at_s))
    upsert(served, 17, item_id="i3")  # what replaces an item has a row of its own
    mask = expected(served, asked, at_s)
    np.testing.assert_array_equal(admitted(filters, served, asked, at_s), mask)
    np.testing.assert_array_equal(admitted(RowFilters(served), served, asked, at_s), mask)
    allowed = filters.allowed(asked, at_s)
    if allowed is not None:
        rows = np.random.default_rng(0).integers(served.size, size=200)
        np.testing.assert_array_equal(allowed.contains(rows), mask[rows])


def test_where_all_is_admitted_nothing_is_filtered(tmp_path):
    plain = worlds.catalogue(tmp_path, items=50, dimension=DIMENSION, labelled=True)
    filters = RowFilters(plain)
    assert filters.allowed(None, 0.0) is None
    assert filters.allowed(ItemFilter((LabelIn("category", ("odd", "even")),)), 0.0) is None
    plain.upsert(
        DeltaItem(
            CatalogItem("new", "t", attributes=Attributes.of({}, available_from_s=5.0)),
            np.ones(DIMENSION, np.float32),
            *(None, 0.0, "", "none"),
        )
    )
    before, after = filters.allowed(None, 4.999999), filters.allowed(None, 5.0)
    assert before is not None and not before.mask[-1] and before.mask[:-1].all()
    assert after is None


def test_kept_filters_are_bounded_and_the_oldest_goes_first(served, monkeypatch):
    monkeypatch.setattr(allowed_rows, "KEPT", 3)
    filters = RowFilters(served)
    first = ItemFilter((NumberIn("year", least=1950),), include_unavailable=True)
    kept = filters.allowed(first, 0.0)
    assert filters.allowed(first, 0.0).base is kept.base
    for year in range(1951, 1954):
        filters.allowed(ItemFilter((NumberIn("year", least=year),), include_unavailable=True), 0.0)
    assert filters.allowed(first, 0.0).base is not kept.base


@pytest.mark.parametrize(
    ("conditions", "reason", "words"),
    [
        ([NumberIn("price", 1.0, 2.0)] * 33, "TOO_MANY_CONDITIONS", "33 conditions; at most 32"),
        ([LabelIn("category", ("a",) * 600)] * 2, "TOO_MANY_FILTER_VALUES", "1200 names and values; at most 1000"),
        ([LabelIn("category", ())], "EMPTY_CONDITION", "'category' names nothing"),
        ([LabelIn("provider", ("x" * 257,))], "INVALID_FILTER_PROVIDER", "1 to 256 bytes of UTF-8, not 257"),
        ([LabelIn("category", ("",))], "INVALID_FILTER_CATEGORY", "1 to 256 bytes of UTF-8, not 0"),
        ([NumberIn("price")], "EMPTY_CONDITION", "neither min nor max"),
        ([NumberIn("", 1.0)], "INVALID_FILTER_ATTRIBUTE", "1 to 64 bytes of UTF-8, not 0"),
        ([NumberIn("price", 2.0, 1.0)], "INVALID_RANGE", "'price' is 2 to 1"),
        ([NumberIn("price", math.nan, 1.0)], "INVALID_RANGE", "nan to 1"),
        ([NumberIn("price", math.inf)], "INVALID_RANGE", "inf to inf"),
        ([ValueIn("x")], "EMPTY_CONDITION", "'x' names nothing"),
        ([ValueIn("k" * 65, texts=("a",))], "INVALID_FILTER_ATTRIBUTE", "not 65"),
        ([ValueIn("price", numbers=(1.0,))], "INVALID_FILTER_ATTRIBUTE", "number_range"),
        ([ValueIn("x", texts=("é" * 129,))], "INVALID_FILTER_VALUE", "258 bytes of UTF-8; at most 256"),
        ([ValueIn("x", numbers=(math.nan,))], "INVALID_FILTER_VALUE", "finite, not nan"),
    ],
)
def test_a_filter_that_cannot_be_is_refused_with_its_limit(conditions, reason, words):
    with pytest.raises(InvalidArgumentError, match=words) as refused:
        ItemFilter(tuple(conditions))
    assert refused.value.reason == reason
    assert refused.value.metadata.keys() >= {"value", "limit"}
