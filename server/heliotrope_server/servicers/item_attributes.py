"""Attributes of items between messages and the catalogue."""

from google.protobuf.timestamp_pb2 import Timestamp

from heliotrope.v1 import catalog_pb2 as pb
from heliotrope_indexer.attributes import NO_ATTRIBUTES, Attributes, AttributeValue
from heliotrope_server.errors import InvalidArgumentError


def checked_attributes(message: pb.Item) -> Attributes:
    """The attributes of an item; raises InvalidArgumentError naming the value and the limit."""
    attributes = Attributes.of(
        {key: attribute_value(value, key) for key, value in message.attributes.items()},
        price=message.price if message.HasField("price") else None,
        available_from_s=_seconds(message.available_from_time) if message.HasField("available_from_time") else None,
        available_until_s=_seconds(message.available_until_time) if message.HasField("available_until_time") else None,
    )
    problem = attributes.problem()
    if problem is not None:
        raise InvalidArgumentError(problem.reason, problem.message, value=problem.value, limit=problem.limit)
    return attributes


def attribute_value(message: pb.AttributeValue, key: str) -> AttributeValue:
    """The value of a message; raises InvalidArgumentError where none is set."""
    kind = message.WhichOneof("value")
    if kind is None:
        raise InvalidArgumentError(
            "INVALID_ATTRIBUTE_VALUE",
            f"a value of attribute {key[:64]!r} is empty: set text, number or flag",
            value="",
            limit="",
        )
    value: AttributeValue = getattr(message, kind)
    return value


def lay_attributes(attributes: Attributes, message: pb.Item) -> None:
    """Writes the attributes of an item into its message."""
    if attributes == NO_ATTRIBUTES:
        return
    if attributes.price is not None:
        message.price = attributes.price
    if attributes.available_from_s is not None:
        message.available_from_time.CopyFrom(_timestamp(attributes.available_from_s))
    if attributes.available_until_s is not None:
        message.available_until_time.CopyFrom(_timestamp(attributes.available_until_s))
    for key, text in attributes.texts:
        message.attributes[key].text = text
    for key, number in attributes.numbers:
        message.attributes[key].number = number
    for key, flag in attributes.flags:
        message.attributes[key].flag = flag


def _seconds(message: Timestamp) -> float:
    return message.seconds + message.nanos / 1e9


def _timestamp(time_s: float) -> Timestamp:
    micros = round(time_s * 1e6)
    return Timestamp(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1_000)
