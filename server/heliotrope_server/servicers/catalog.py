"""CatalogService. Reads are answered by any shard; writes are made by shard 0 and awaited on all."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from heliotrope.internal.v1 import peer_pb2
from heliotrope.v1 import catalog_pb2 as pb
from heliotrope.v1 import catalog_pb2_grpc
from heliotrope_indexer.snapshot import CatalogItem, Snapshot
from heliotrope_server.byte_gate import ByteGate
from heliotrope_server.catalogue_log import DELETE, encode_upsert
from heliotrope_server.engine import MAX_COUNT, MAX_TEXT, Engine, check_text
from heliotrope_server.errors import InvalidArgumentError
from heliotrope_server.event import check_id
from heliotrope_server.live_catalogue import DeltaItem
from heliotrope_server.record_log import RecordLog
from heliotrope_server.servicers.item_attributes import checked_attributes, lay_attributes
from heliotrope_server.servicers.routing import Router, part_s, passed_on, unreachable

MAX_BATCH = 256
MAX_PAGE = 1000
DEFAULT_PAGE = 100
MAX_DESCRIPTION = 20_000
MAX_CATEGORIES = 64
PEER_TIMEOUT_S = 5.0
_SLICE = 32

T = TypeVar("T")


class CatalogServicer(catalog_pb2_grpc.CatalogServiceServicer):
    """`log` is the catalogue log on the shard that writes it, None on the others; `gate` bounds the texts that wait for
    this shard's encoder, and the items among them for the disk.
    """

    def __init__(self, engine: Engine, router: Router, log: RecordLog | None, gate: ByteGate) -> None:
        self._engine = engine
        self._router = router
        self._log = log
        self._gate = gate
        self._writing = asyncio.Lock()

    async def UpsertItems(self, request: pb.UpsertItemsRequest, context: Any) -> pb.UpsertItemsResponse:
        _check_size("items", len(request.items), MAX_BATCH)
        items = []
        async for part in _slices(request.items):
            items += [checked_item(item) for item in part]
        writer = self._router.catalogue_writer()
        if writer is not None:
            return await passed_on(
                writer, writer.catalog.UpsertItems(request, timeout=part_s(context), wait_for_ready=True)
            )
        if len({item.item_id for item in items}) < len(items):
            raise InvalidArgumentError("DUPLICATE_ITEM_ID", "one call may name an item only once")
        with self._gate.hold(request.ByteSize()):
            return await self._upsert(items, request.items, context)

    async def DeleteItems(self, request: pb.DeleteItemsRequest, context: Any) -> pb.DeleteItemsResponse:
        _check_size("item_ids", len(request.item_ids), MAX_BATCH)
        writer = self._router.catalogue_writer()
        if writer is not None:
            return await passed_on(
                writer, writer.catalog.DeleteItems(request, timeout=part_s(context), wait_for_ready=True)
            )
        async with self._writing:
            ids = list(dict.fromkeys(request.item_ids))
            for item_id in ids:
                self._engine.require_item(item_id)
            await self._write([[DELETE, item_id] for item_id in ids], context)
        return pb.DeleteItemsResponse(deleted_count=len(ids))

    async def GetItem(self, request: pb.GetItemRequest, context: Any) -> pb.GetItemResponse:
        row = self._engine.require_item(request.item_id)
        return pb.GetItemResponse(
            item=item_message(self._engine.catalogue.item(row)),
            bias=self._engine.catalogue.bias(row),
            live_event_count=float(self._engine.popularity.counts_at(self._engine.now_s())[row]),
        )

    async def ListItems(self, request: pb.ListItemsRequest, context: Any) -> pb.ListItemsResponse:
        if not 0 <= request.page_size <= MAX_PAGE:
            raise InvalidArgumentError(
                "INVALID_PAGE_SIZE",
                f"page_size must be 0 to {MAX_PAGE}, not {request.page_size}",
                value=request.page_size,
                limit=MAX_PAGE,
            )
        catalogue = self._engine.catalogue
        # A page token holds the snapshot with the row, since rows mean nothing in another snapshot.
        version, _, start = request.page_token.rpartition("/")
        if request.page_token and (version != catalogue.version or not start.isdecimal()):
            raise InvalidArgumentError(
                "INVALID_PAGE_TOKEN",
                "page_token is not of the active snapshot; begin again with an empty one",
            )
        wanted = request.page_size or DEFAULT_PAGE
        rows: list[int] = []
        for row in catalogue.living_rows(int(start or 0)):
            if len(rows) == wanted:
                return pb.ListItemsResponse(
                    items=[item_message(catalogue.item(each)) for each in rows],
                    next_page_token=f"{catalogue.version}/{row}",
                )
            rows.append(row)
        return pb.ListItemsResponse(items=[item_message(catalogue.item(each)) for each in rows])

    async def SearchItems(self, request: pb.SearchItemsRequest, context: Any) -> pb.SearchItemsResponse:
        check_text("query", request.query, MAX_TEXT)
        if not 1 <= request.count <= MAX_COUNT:
            raise InvalidArgumentError(
                "INVALID_COUNT",
                f"count must be 1 to {MAX_COUNT}, not {request.count}",
                value=request.count,
                limit=MAX_COUNT,
            )
        with self._gate.hold(request.ByteSize()):
            pooled = await self._engine.embedder.embed([request.query])
        catalogue = self._engine.catalogue
        query = catalogue.project(pooled)[0]
        found = await asyncio.to_thread(catalogue.nearest, query, request.count)
        return pb.SearchItemsResponse(
            matches=[
                pb.ItemMatch(item=item_message(catalogue.item(row)), similarity=similarity) for row, similarity in found
            ]
        )

    async def _upsert(
        self, items: list[CatalogItem], messages: Sequence[pb.Item], context: Any
    ) -> pb.UpsertItemsResponse:
        """`items` are those of the messages, checked."""
        while True:
            catalogue = self._engine.catalogue
            known: dict[str, NDArray[np.float32]] = {}
            async for part in _slices(messages):
                known |= known_vectors(part, catalogue.snapshot)
            changed = [item for item in items if item.item_id in known or not self._is_served(item)]
            entries, truncated = await self._embedded(changed, known) if changed else ([], [])
            async with self._writing:
                if self._engine.catalogue is not catalogue:
                    continue  # what the items keep of those they replace is of another snapshot now
                replaced = sum(self._engine.knows_item(item.item_id) for item in items)
                async for written in _slices(entries):
                    await self._write([encode_upsert(entry) for entry in written], context)
            return pb.UpsertItemsResponse(
                created_count=len(items) - replaced, replaced_count=replaced, truncated_item_ids=truncated
            )

    def _is_served(self, item: CatalogItem) -> bool:
        row = self._engine.catalogue.row_of(item.item_id)
        return row is not None and self._engine.catalogue.item(row) == item

    async def _embedded(
        self, items: list[CatalogItem], known: dict[str, NDArray[np.float32]]
    ) -> tuple[list[DeltaItem], list[str]]:
        """Embeds new texts together with those they replace, whose residual the items keep."""
        catalogue = self._engine.catalogue
        vectors, truncated = dict(known), list[str]()
        unknown = [item for item in items if item.item_id not in known]
        if unknown:
            pooled, truncated = await self._engine.embedder.embed_items(unknown)
            vectors |= zip((item.item_id for item in unknown), pooled, strict=True)
        residuals = await self._residuals(items)
        model_version = catalogue.snapshot.manifest.model_version
        entries = []
        for item in items:
            row = catalogue.snapshot.row_of(item.item_id)
            bias = 0.0 if row is None else catalogue.bias(row)
            residual, added_s = residuals.get(item.item_id), self._engine.added_s(item.item_id)
            vector = vectors[item.item_id]
            entries.append(DeltaItem(item, vector, residual, bias, catalogue.version, model_version, added_s))
        return entries, truncated

    async def _residuals(self, items: list[CatalogItem]) -> dict[str, NDArray[np.float32]]:
        """By item id, for those that the snapshot has: what is in their vector (d,) beside the projected text."""
        catalogue = self._engine.catalogue
        residuals, rows = {}, {}
        for item in items:
            row = catalogue.snapshot.row_of(item.item_id)
            if row is None:
                continue
            # A row that is served from the delta was replaced before, and what it had then is known.
            residual = catalogue.kept_residual(item.item_id)
            if residual is None:
                rows[item.item_id] = row
            else:
                residuals[item.item_id] = residual
        if rows:
            old = [catalogue.snapshot.item(row) for row in rows.values()]
            pooled, _ = await self._engine.embedder.embed_items(old)
            of_text = zip(rows.items(), catalogue.project(pooled), strict=True)
            residuals |= {item_id: catalogue.row_vector(row) - text for (item_id, row), text in of_text}
        return residuals

    async def _write(self, records: list[Any], context: Any) -> None:
        """Makes changes durable, applies them here, and waits until every other shard has applied them."""
        assert self._log is not None, "only shard 0 writes the catalogue log"
        last = await self._log.append(records, lambda first: first + len(records) - 1)
        self._engine.catch_up_catalogue()
        calls = [
            peer.internal.CatchUpCatalog(
                peer_pb2.CatchUpCatalogRequest(sequence=last),
                timeout=min(PEER_TIMEOUT_S, part_s(context)),
                wait_for_ready=True,
            )
            for peer in self._router.peers.others
        ]
        for peer, outcome in zip(
            self._router.peers.others, await asyncio.gather(*calls, return_exceptions=True), strict=True
        ):
            # What was written stays written, and a shard that restarts reads it; but it is not yet true everywhere.
            if isinstance(outcome, grpc.aio.AioRpcError):
                raise unreachable(peer) from outcome
            if isinstance(outcome, BaseException):
                raise outcome


async def _slices(items: Sequence[T]) -> AsyncIterator[Sequence[T]]:
    """A few at a time: between them the loop turns to others. An item takes some 40 us in each of three steps, and 256
    at once were what the slowest requests of that time waited for.
    """
    for start in range(0, len(items), _SLICE):
        if start:
            await asyncio.sleep(0)
        yield items[start : start + _SLICE]


def checked_item(message: pb.Item) -> CatalogItem:
    """The item of a message; raises InvalidArgumentError naming the limit."""
    check_id("item_id", message.item_id)
    check_text("title", message.title, MAX_TEXT)
    if len(message.description) > MAX_DESCRIPTION:
        raise InvalidArgumentError(
            "INVALID_DESCRIPTION",
            f"description has {len(message.description)} characters; at most {MAX_DESCRIPTION} are accepted",
            value=len(message.description),
            limit=MAX_DESCRIPTION,
        )
    if len(message.categories) > MAX_CATEGORIES:
        raise InvalidArgumentError(
            "TOO_MANY_CATEGORIES",
            f"an item has {len(message.categories)} categories; at most {MAX_CATEGORIES} are accepted",
            value=len(message.categories),
            limit=MAX_CATEGORIES,
        )
    if message.provider:
        check_id("provider", message.provider)
    return CatalogItem(
        message.item_id,
        message.title,
        message.description,
        tuple(message.categories),
        message.provider,
        checked_attributes(message),
    )


def known_vectors(items: Iterable[pb.Item], snapshot: Snapshot) -> dict[str, NDArray[np.float32]]:
    """The vectors (D,) that come with items, by item id; raises InvalidArgumentError for what is none of this model."""
    model_version, dimension = snapshot.manifest.model_version, snapshot.projection.shape[1]
    known = {}
    for item in items:
        if not item.HasField("text_embedding"):
            continue
        given = item.text_embedding
        if given.model_version != model_version:
            raise InvalidArgumentError(
                "MODEL_MISMATCH",
                f"text_embedding of {item.item_id[:64]!r} is of model {given.model_version[:64]!r}; "
                f"the vectors that are served are of {model_version!r}",
                value=given.model_version[:256],
                limit=model_version,
            )
        vector = np.array(given.values, dtype=np.float32)
        if len(vector) != dimension or not np.isfinite(vector).all() or not vector.any():
            raise InvalidArgumentError(
                "INVALID_TEXT_EMBEDDING",
                f"text_embedding of {item.item_id[:64]!r} must hold {dimension} finite values that are not all 0; "
                f"it holds {len(vector)}, {int(np.isfinite(vector).sum())} of them finite",
                value=len(vector),
                limit=dimension,
            )
        known[item.item_id] = vector
    return known


def item_message(item: CatalogItem) -> pb.Item:
    message = pb.Item(
        item_id=item.item_id,
        title=item.title,
        description=item.description,
        categories=item.categories,
        provider=item.provider,
    )
    lay_attributes(item.attributes, message)
    return message


def _check_size(field: str, size: int, limit: int) -> None:
    if not 1 <= size <= limit:
        raise InvalidArgumentError(
            "INVALID_BATCH_SIZE",
            f"{field} must hold 1 to {limit} entries, not {size}",
            value=size,
            limit=limit,
        )
