"""Items with attributes.

>>> from heliotrope import Client, make_item
>>> client = Client("localhost:50051")
>>> film = make_item("m1", "Alien (1979)", categories=["Horror"], price=3.99, attributes={"year": 1979})
>>> client.upsert_items([film])
"""

from collections.abc import Iterable, Mapping

from heliotrope.event import Time, to_timestamp
from heliotrope.v1.catalog_pb2 import AttributeValue as AttributeMessage
from heliotrope.v1.catalog_pb2 import Item, TextEmbedding

AttributeValue = str | float | bool


def make_item(
    item_id: str,
    title: str,
    *,
    description: str = "",
    categories: Iterable[str] = (),
    provider: str = "",
    price: float | None = None,
    available_from: Time | None = None,
    available_until: Time | None = None,
    attributes: Mapping[str, AttributeValue] | None = None,
    text_embedding: TextEmbedding | None = None,
) -> Item:
    """An item to upsert; what is None is not set. With a `text_embedding` the server need not embed its text."""
    return Item(
        item_id=item_id,
        title=title,
        description=description,
        categories=categories,
        provider=provider,
        price=price,
        available_from_time=to_timestamp(available_from),
        available_until_time=to_timestamp(available_until),
        attributes={key: to_value(value) for key, value in (attributes or {}).items()},
        text_embedding=text_embedding,
    )


def attributes_of(item: Item) -> dict[str, AttributeValue]:
    """The free key-values of an item."""
    return {key: getattr(value, value.WhichOneof("value") or "text") for key, value in sorted(item.attributes.items())}


def to_value(value: AttributeValue) -> AttributeMessage:
    """The message of a value; whole numbers are numbers too. Raises TypeError for another type."""
    if isinstance(value, bool):
        return AttributeMessage(flag=value)
    if isinstance(value, str):
        return AttributeMessage(text=value)
    if isinstance(value, int | float):
        return AttributeMessage(number=value)
    raise TypeError(f"an attribute is a str, a number or a bool, not {value!r}")
