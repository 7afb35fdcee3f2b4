"""Search through a snapshot's index, as the server serves it and the build measures it."""

from heliotrope_indexer.search.event_shares import EventShares, NeighbourTable, PackedEvents, Shares, Spoken, Strangers
from heliotrope_indexer.search.kernel import Best, Block, Extras, SearchKernel, joined
from heliotrope_indexer.search.library import kernel_problem
from heliotrope_indexer.search.scanned_index import ScannedIndex

__all__ = [
    "Best",
    "Block",
    "EventShares",
    "Extras",
    "NeighbourTable",
    "PackedEvents",
    "ScannedIndex",
    "SearchKernel",
    "Shares",
    "Spoken",
    "Strangers",
    "joined",
    "kernel_problem",
]
