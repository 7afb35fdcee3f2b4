"""What a running server has learned of its catalogue, for a rebuild to absorb."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from heliotrope_indexer.catalog_item import CatalogItem


class AbsorbedDelta(BaseModel):
    """How far into a server's catalogue log a snapshot goes; part of its manifest.

    A server whose log has the same digest at `until_lsn` lays only later changes over the snapshot; any other, and one
    whose log was restored from an older backup, lays over all of them.
    """

    model_config = ConfigDict(frozen=True)

    until_lsn: Annotated[int, Field(ge=1)]
    """Sequence number of the last change that is in the snapshot."""
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    """64 bits over all changes up to that one, in order."""


@dataclass(frozen=True)
class CatalogueDelta:
    """The net effect of a catalogue log up to a cut-off."""

    items: tuple[CatalogItem, ...]
    """Added or replaced, in the order of their last change."""
    deleted: frozenset[str]
    absorbed: AbsorbedDelta | None
    """None for a log without a change."""
    pooled: Mapping[str, tuple[str, NDArray[np.float32]]] = field(default_factory=dict)
    """Of the items, by id: the version of a model, and its output (D,) for the text."""

    def known_vectors(self, model_version: str) -> dict[str, NDArray[np.float32]]:
        """Outputs (D,) of this model for the texts of the items, by item id; a rebuild need not embed them again."""
        return {item_id: vector for item_id, (model, vector) in self.pooled.items() if model == model_version}

    def laid_over(self, items: Sequence[CatalogItem]) -> list[CatalogItem]:
        """A catalogue with the changes: replaced items keep their place, new ones come last, deleted ones go.

        The log wins over the catalogue, as it does on the server.
        """
        changed = {item.item_id: item for item in self.items}
        laid = [changed.pop(item.item_id, item) for item in items if item.item_id not in self.deleted]
        return [*laid, *changed.values()]


def items_hash(items: Iterable[CatalogItem]) -> str:
    """SHA-256 of all fields of all items, in order."""
    content = hashlib.sha256()
    for item in items:
        content.update(repr(astuple(item)).encode("utf-8", "surrogatepass"))
    return content.hexdigest()
