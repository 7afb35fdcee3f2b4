"""Small numbers for item ids, for the life of the process: a profile holds four bytes where it would hold a string.

Numbers mean nothing outside of the process; what is stored and sent are the ids. An id keeps its number when its item
is removed: profiles still refer to it.
"""

import numpy as np
from numpy.typing import NDArray

_numbers: dict[str, int] = {}
_ids: list[str] = []


def number_of(item_id: str) -> int:
    """The number of an item id, 0, 1, ... in the order of asking; the same for the same id."""
    number = _numbers.get(item_id)
    if number is None:
        number = _numbers[item_id] = len(_ids)
        _ids.append(item_id)
    return number


def same_id(item_id: str) -> str:
    """The string that is kept for an id that has a number, so that nobody keeps a second one; else the one given."""
    number = _numbers.get(item_id)
    return item_id if number is None else _ids[number]


def known_number(item_id: str) -> int | None:
    """The number of an item id that has one."""
    return _numbers.get(item_id)


def item_id_of(number: int) -> str:
    """The inverse of number_of; IndexError for a number that was never given."""
    return _ids[number]


def item_ids_of(numbers: NDArray[np.int32]) -> list[str]:
    """The ids of numbers (n,)."""
    return [_ids[number] for number in numbers.tolist()]


def numbered() -> int:
    """How many numbers were given."""
    return len(_ids)


def ids_from(number: int) -> list[str]:
    """The ids with this number and all later ones."""
    return _ids[number:]
