"""What an item carries beside its text: a price, a time during which it is available, and free key-values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

AttributeValue = str | float | bool

MAX_ATTRIBUTES = 64
"""Free key-values of one item."""
MAX_KEY_BYTES = 64
MAX_VALUE_BYTES = 256
PRICE = "price"
"""The name of the price in a condition on numbers, and so no name of a free key."""
EARLIEST_S, LATEST_S = -62_135_596_800.0, 253_402_300_800.0
"""What a protobuf Timestamp holds: the years 1 to 9999."""


class Problem(NamedTuple):
    """Why attributes can't be accepted: a stable reason, one sentence, and the value with its limit."""

    reason: str
    message: str
    value: object
    limit: object


@dataclass(frozen=True, slots=True)
class Attributes:
    """Times are Unix seconds, to the microsecond; an item is available from `available_from_s` on and before
    `available_until_s`, None meaning always. Key-values are sorted by key and kept by their type, so that 1 and true
    differ.
    """

    price: float | None = None
    available_from_s: float | None = None
    available_until_s: float | None = None
    texts: tuple[tuple[str, str], ...] = ()
    numbers: tuple[tuple[str, float], ...] = ()
    flags: tuple[tuple[str, bool], ...] = ()

    @classmethod
    def of(
        cls,
        values: Mapping[str, AttributeValue],
        *,
        price: float | None = None,
        available_from_s: float | None = None,
        available_until_s: float | None = None,
    ) -> Attributes:
        """From a mapping of free keys; whole numbers become floats and times are rounded to the microsecond."""
        texts, numbers, flags = [], [], []
        for key, value in sorted(values.items()):
            if isinstance(value, bool):
                flags.append((key, value))
            elif isinstance(value, str):
                texts.append((key, value))
            else:
                numbers.append((key, float(value)))
        return cls(
            None if price is None else float(price),
            None if available_from_s is None else round(available_from_s, 6),
            None if available_until_s is None else round(available_until_s, 6),
            tuple(texts),
            tuple(numbers),
            tuple(flags),
        )

    @property
    def values(self) -> dict[str, AttributeValue]:
        """The free key-values, by key."""
        return dict(sorted([*self.texts, *self.numbers, *self.flags]))

    def problem(self) -> Problem | None:
        """What is wrong, or None."""
        if self.price is not None and not 0.0 <= self.price < math.inf:  # also refuses NaN
            return Problem(
                "INVALID_PRICE", f"price must be a finite number from 0 on, not {self.price:g}", self.price, 0
            )
        for name, time_s in (
            ("available_from_time", self.available_from_s),
            ("available_until_time", self.available_until_s),
        ):
            if time_s is not None and not EARLIEST_S <= time_s < LATEST_S:
                message = f"{name} must be in the years 1 to 9999, not {time_s:g} s from 1970"
                return Problem(f"INVALID_{name.upper()}", message, time_s, LATEST_S)
        start_s, end_s = self.available_from_s, self.available_until_s
        if start_s is not None and end_s is not None and start_s >= end_s:
            message = f"available_until_time must be later than available_from_time; it is {start_s - end_s:g} s before"
            return Problem("INVALID_AVAILABILITY", message, end_s, start_s)
        return self._value_problem()

    def _value_problem(self) -> Problem | None:
        count = len(self.texts) + len(self.numbers) + len(self.flags)
        if count > MAX_ATTRIBUTES:
            message = f"an item has {count} attributes; at most {MAX_ATTRIBUTES} are accepted"
            return Problem("TOO_MANY_ATTRIBUTES", message, count, MAX_ATTRIBUTES)
        for key in self.values:
            problem = key_problem(key)
            if problem is not None:
                return problem
        for key, text in self.texts:
            if len(text.encode()) > MAX_VALUE_BYTES:
                size = len(text.encode())
                message = f"attribute {key!r} has {size} bytes of UTF-8; at most {MAX_VALUE_BYTES} are accepted"
                return Problem("INVALID_ATTRIBUTE_VALUE", message, size, MAX_VALUE_BYTES)
        for key, number in self.numbers:
            if not math.isfinite(number):
                message = f"attribute {key!r} must be a finite number, not {number:g}"
                return Problem("INVALID_ATTRIBUTE_VALUE", message, number, "finite")
        return None


NO_ATTRIBUTES = Attributes()


def key_problem(key: str) -> Problem | None:
    """What is wrong with the name of a free key, or None."""
    size = len(key.encode())
    if not 1 <= size <= MAX_KEY_BYTES:
        message = f"the key of an attribute must have 1 to {MAX_KEY_BYTES} bytes of UTF-8, not {size}"
        return Problem("INVALID_ATTRIBUTE_KEY", message, size, MAX_KEY_BYTES)
    if key == PRICE:
        return Problem(
            "INVALID_ATTRIBUTE_KEY", "an attribute can't be called price: an item has a field for it", key, ""
        )
    return None
