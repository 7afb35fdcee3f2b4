"""Finds the users that a request names, whatever the request is."""

from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

USER_FIELD = "user_id"

UsersOf = Callable[[Message], Iterator[str]]
"""Gives the users that a request names."""

_Path = tuple[tuple[str, bool], ...]


def user_ids_of(kind: Descriptor) -> UsersOf:
    """A function that gives the value of each field `user_id` in a message of this kind, however deep."""
    paths = list(_paths(kind, ()))

    def user_ids(message: Message) -> Iterator[str]:
        for path in paths:
            yield from _values(message, path)

    return user_ids


def _paths(kind: Descriptor, seen: tuple[str, ...]) -> Iterator[_Path]:
    if kind.full_name in seen:
        return
    for field in kind.fields:
        repeated = field.is_repeated
        if field.message_type is not None and not _is_map(field):
            for rest in _paths(field.message_type, (*seen, kind.full_name)):
                yield ((field.name, repeated), *rest)
        elif field.name == USER_FIELD:
            yield ((field.name, repeated),)


def _is_map(field: FieldDescriptor) -> bool:
    return bool(field.message_type is not None and field.message_type.GetOptions().map_entry)


def _values(message: Any, path: _Path) -> Iterator[str]:
    (name, repeated), rest = path[0], path[1:]
    value = getattr(message, name)
    for one in value if repeated else (value,):
        if rest:
            yield from _values(one, rest)
        else:
            yield one
