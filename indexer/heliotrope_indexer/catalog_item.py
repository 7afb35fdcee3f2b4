"""One item of the catalogue."""

from __future__ import annotations

from dataclasses import dataclass

from heliotrope_indexer.attributes import NO_ATTRIBUTES, Attributes


@dataclass(frozen=True, slots=True)
class CatalogItem:
    """What is known of an item from its catalogue; `text` is what the encoder reads."""

    item_id: str
    title: str
    description: str = ""
    categories: tuple[str, ...] = ()
    provider: str = ""
    """Who offers the item; not part of the text."""
    attributes: Attributes = NO_ATTRIBUTES
    """What filters read; not part of the text."""

    @property
    def text(self) -> str:
        """Title, categories and description as one text: `Toy Story (1995). Animation, Comedy. A toy ...`."""
        parts = [self.title, ", ".join(self.categories), self.description]
        return ". ".join(part for part in parts if part)
