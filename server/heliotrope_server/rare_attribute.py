"""An attribute that few objects of a kind have: no slot of 8 bytes in all the others."""

from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")

NOTHING: Any = MappingProxyType({})
"""What `rare` is where no rare attribute was set: one for all."""


class HasRare(Protocol):
    """`rare` holds those attributes by name that are not at their default; it begins as NOTHING."""

    rare: dict[str, Any]


class Rare(Generic[T]):
    """Descriptor of an attribute whose default is shared by all."""

    def __init__(self, default: T) -> None:
        self._default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, one: HasRare, owner: type) -> T:
        found: T = one.rare.get(self._name, self._default)
        return found

    def __set__(self, one: HasRare, value: T) -> None:
        if value is self._default:
            if self._name in one.rare:
                del one.rare[self._name]
            return
        if not one.rare:
            one.rare = {}
        one.rare[self._name] = value
