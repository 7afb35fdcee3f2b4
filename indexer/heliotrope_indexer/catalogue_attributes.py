"""Reads the attributes of a catalogue's rows: price, availability and free key-values."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from heliotrope_indexer.attributes import Attributes, AttributeValue
from heliotrope_indexer.moment import unix_seconds

OBJECT_COLUMN = "attributes"
"""The column that holds a whole object of key-values; in CSV as JSON."""


class AttributesError(Exception):
    """A row's attributes can't be read. `reason` is what the reject log counts it under."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def read_attributes(values: Mapping[str, Sequence[Any]], columns: Sequence[str]) -> Attributes:
    """The attributes of a row with `values` by our names; `columns` are the file's names of the key-values.

    A column is an attribute of its own name, an object (or an Arrow map) brings its own keys. What is empty, NULL or
    NaN is not set. Raises AttributesError: `bad_price`, `bad_availability` or `bad_attributes`.
    """
    found = Attributes.of(
        _key_values(values.get("attributes", ()), columns),
        price=_price(_single(values.get("price", ()))),
        available_from_s=_time("available_from", _single(values.get("available_from", ()))),
        available_until_s=_time("available_until", _single(values.get("available_until", ()))),
    )
    problem = found.problem()
    if problem is not None:
        price = "bad_price" if problem.reason == "INVALID_PRICE" else "bad_attributes"
        reason = "bad_availability" if problem.reason.startswith("INVALID_AVAILAB") else price
        raise AttributesError(reason, problem.message)
    return found


def typed(rows: Sequence[Attributes], columns: Collection[str]) -> list[Attributes]:
    """The attributes of a file that knows only texts: of its columns, one whose every value is a number holds numbers,
    and one whose every value is true or false holds flags.
    """
    texts: dict[str, set[str]] = {}
    for row in rows:
        for key, value in row.texts:
            if key in columns:
                texts.setdefault(key, set()).add(value)
    numbers = {key for key, found in texts.items() if all(map(_is_number, found))}
    flags = {key for key, found in texts.items() if all(value.lower() in ("true", "false") for value in found)}

    def value_of(key: str, value: AttributeValue) -> AttributeValue:
        if not isinstance(value, str):
            return value
        if key in flags:
            return value.lower() == "true"
        return float(value) if key in numbers else value

    return [
        Attributes.of(
            {key: value_of(key, value) for key, value in row.values.items()},
            price=row.price,
            available_from_s=row.available_from_s,
            available_until_s=row.available_until_s,
        )
        if row.texts
        else row
        for row in rows
    ]


def _key_values(values: Sequence[Any], columns: Sequence[str]) -> dict[str, AttributeValue]:
    found: dict[str, Any] = {}
    for name, value in zip(columns, values, strict=True):
        if isinstance(value, str) and name == OBJECT_COLUMN and value.strip():
            value = _object(value)
        if isinstance(value, Mapping):
            found |= value
        elif isinstance(value, list):  # an Arrow map
            found |= dict(value)
        else:
            found[name] = value
    present = {key: value for key, value in found.items() if not _missing(value)}
    for key, value in present.items():
        if not isinstance(key, str) or not isinstance(value, str | bool | int | float):
            detail = f"attribute {str(key)[:60]!r} is a {type(value).__name__}, not a text, a number, true or false"
            raise AttributesError("bad_attributes", detail)
    return present


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise AttributesError("bad_attributes", f"{text[:60]!r} is not a JSON object of attributes")
    return value


def _single(values: Sequence[Any]) -> str:
    return " ".join(str(value).strip() for value in values if not _missing(value))


def _missing(value: object) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _price(text: str) -> float | None:
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise AttributesError("bad_price", f"price {text[:60]!r} is not a number") from None


def _time(name: str, text: str) -> float | None:
    if not text:
        return None
    try:
        return unix_seconds(text)
    except ValueError:
        detail = f"{name} {text[:60]!r} is neither Unix seconds nor ISO 8601"
        raise AttributesError("bad_availability", detail) from None


def _is_number(text: str) -> bool:
    try:
        return float(text) - float(text) == 0.0  # neither infinite nor NaN
    except ValueError:
        return False
