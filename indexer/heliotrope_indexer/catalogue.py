"""Reads the catalogue: which items there are and the text that describes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from heliotrope_indexer.attributes import NO_ATTRIBUTES
from heliotrope_indexer.catalog_item import CatalogItem
from heliotrope_indexer.catalogue_attributes import OBJECT_COLUMN, AttributesError, read_attributes, typed
from heliotrope_indexer.errors import ColumnError, EmptyCatalogueError
from heliotrope_indexer.rejects import RejectLog
from heliotrope_indexer.source import Source

ALIASES = {
    "item_id": ("item_id", "itemId", "movieId", "movie_id", "book_id", "id"),
    "title": ("title", "movie_title", "name"),
    "description": ("description", "overview", "gloss", "summary"),
    "categories": ("categories", "genres", "genre", "class", "tags"),
    "provider": ("provider", "seller", "publisher", "vendor"),
    "price": ("price",),
    "available_from": ("available_from",),
    "available_until": ("available_until",),
    "attributes": (OBJECT_COLUMN,),
}
MAX_TEXT = 32_768
"""Characters of one title or description; what lies behind an encoder's 512 tokens is never read anyway."""

MAX_PROVIDER = 64
"""Characters of a provider's name that are kept: it is a name, and at most 256 bytes in the contract."""

_ATTRIBUTES = {"price", "available_from", "available_until", "attributes"}
_NO_CATEGORIES = frozenset({"(no genres listed)", "unknown", "none", "n/a"})


def read_catalogue(source: Source, rejects: RejectLog) -> list[CatalogItem]:
    """All usable items in file order.

    Rejected: `no_id`, `empty_text`, `text_too_long`, `duplicate_item` (the first row of an id wins), `bad_price`,
    `bad_availability`, `bad_attributes`, and what the source itself cannot read. Raises EmptyCatalogueError when
    nothing is left, ColumnError without an id or a text.
    """
    items: dict[str, CatalogItem] = {}
    layouts: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for row in source.rows(rejects):
        names = tuple(row.values)
        if names not in layouts:
            layouts[names] = _columns(source, names)
        columns = layouts[names]
        values = {ours: [row.values.get(name) for name in parts] for ours, parts in columns.items()}
        item_id = _text(values.get("item_id", []))
        title = _text(values.get("title", []))
        description = _text(values.get("description", []))
        spaced = any(name in source.list_columns for name in columns.get("categories", []))
        categories = _categories(values.get("categories", []), spaced)
        provider = _text(values.get("provider", []))[:MAX_PROVIDER]
        unread: AttributesError | None = None
        try:
            attributes = (
                read_attributes(values, columns.get("attributes", ()))
                if columns.keys() & _ATTRIBUTES
                else NO_ATTRIBUTES
            )
        except AttributesError as error:
            attributes, unread = NO_ATTRIBUTES, error
        item = CatalogItem(item_id, title, description, categories, provider, attributes)
        if not item_id:
            rejects.add(source.path, row.line, "no_id", "the item id is empty", dict(row.values))
        elif item_id in items:
            rejects.add(source.path, row.line, "duplicate_item", f"item {item_id} came before", dict(row.values))
        elif not (title or description):
            rejects.add(source.path, row.line, "empty_text", f"item {item_id} has no text", dict(row.values))
        elif max(len(title), len(description)) > MAX_TEXT:
            detail = f"item {item_id} has over {MAX_TEXT} characters"
            rejects.add(source.path, row.line, "text_too_long", detail, item_id)
        elif unread is not None:
            rejects.add(source.path, row.line, unread.reason, f"item {item_id}: {unread.detail}", dict(row.values))
        else:
            items[item_id] = item
    if not items:
        raise EmptyCatalogueError(f"{source.path} holds no usable item; rejected: {rejects.counts or 'nothing'}")
    if source.holds_texts_only:
        named = {name for columns in layouts.values() for name in columns.get("attributes", ())} - {OBJECT_COLUMN}
        found = typed([item.attributes for item in items.values()], named)
        return [replace(item, attributes=own) for item, own in zip(items.values(), found, strict=True)]
    return list(items.values())


def _columns(source: Source, names: Sequence[str]) -> dict[str, list[str]]:
    columns = source.resolve(names, ALIASES)
    if not source.may_omit_columns:
        if "item_id" not in columns:
            raise ColumnError(f"{source.path} has no item id among {', '.join(names)[:200]}; map it with --columns")
        if "title" not in columns and "description" not in columns:
            raise ColumnError(f"{source.path} has no title among {', '.join(names)[:200]}; map it with --columns")
    return columns


def _text(values: Sequence[Any]) -> str:
    texts = []
    for value in values:
        if value is None or (isinstance(value, float) and value != value):
            continue
        # A Parquet writer that met a missing value turns integer ids into 1.0, 2.0, ...
        text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
        texts.append(" ".join(text.split()))
    return " ".join(text for text in texts if text)


def _categories(values: Sequence[Any], spaced: bool) -> tuple[str, ...]:
    found: list[str] = []
    for value in values:
        if isinstance(value, list | tuple):
            parts = [str(part) for part in value if part is not None]
        elif spaced:
            parts = str(value or "").split()
        else:
            text = str(value or "")
            separator = next((mark for mark in ("|", ";", ",") if mark in text), "|")
            parts = text.split(separator)
        found.extend(part.strip() for part in parts)
    return tuple(dict.fromkeys(part for part in found if part and part.lower() not in _NO_CATEGORIES))
