"""Candidates from a GPU behind the retrievers' contract, with the CPU to go on with when the device is lost.

Only the search for candidates moves to the device: what it finds is scored again exactly on the CPU, with every term,
by the same code as with the snapshot's own index.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from heliotrope_server.device_index import DeviceLostError, build_device_index, device_problem
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.live_view import LiveView
from heliotrope_server.retriever import CandidateIndex, FaissRetriever, Ranking, Retriever, make_retriever
from heliotrope_server.scoring import Query
from heliotrope_server.settings import Device, IndexKind

CHECKED_QUERIES = 64
_EXACT_AT_ONCE = 16
"""Queries whose exact scores are held together: 64 MB with 1M items."""

logger = logging.getLogger(__name__)


class SearchDevice:
    """Where candidates are searched: on the CPU, or on a GPU for every snapshot whose index there proves right."""

    def __init__(
        self,
        device: Device,
        kind: IndexKind,
        *,
        problem: Callable[[], str | None] = device_problem,
        build: Callable[
            [IndexKind, NDArray[np.float32], NDArray[np.float32], int], CandidateIndex
        ] = build_device_index,
    ) -> None:
        """`problem` says why no GPU can be used, and `build` makes an index on it: those of this machine."""
        self._device = device
        self._kind = kind
        self._problem = problem
        self._build = build
        self._prepared: tuple[str, CandidateIndex] | None = None

    def prepare(self, catalogue: LiveCatalogue) -> None:
        """Builds and checks the device's index of a snapshot that is to be served; may take seconds.

        What fails is logged, and leaves that snapshot to the CPU.
        """
        search = catalogue.parameters.search
        if self._device == "cpu" or search is None:
            return
        # Asked anew each time: a device may be lost between two snapshots, and FAISS would then end the process.
        problem = self._problem()
        if problem is not None:
            level = logging.ERROR if self._device == "cuda" else logging.INFO
            logger.log(level, "candidates are searched on the CPU: %s", problem)
            return
        from heliotrope_indexer.ann_index import SERVED_RECALL_AT_10

        vectors, bias = catalogue.snapshot.vectors.view(np.ndarray), catalogue.snapshot.bias.view(np.ndarray)
        what = f"the {self._kind} index of snapshot {catalogue.version}"
        try:
            index = self._build(self._kind, vectors, bias, search.nprobe)
            found = recall_at_10(catalogue, index, search.candidates)
        except (DeviceLostError, RuntimeError, MemoryError) as error:
            logger.error("candidates are searched on the CPU: %s failed on the GPU: %s", what, error)
            return
        if found < SERVED_RECALL_AT_10:
            logger.error(
                "candidates are searched on the CPU: %s has recall@10 %.3f on the GPU, below %s",
                *(what, found, SERVED_RECALL_AT_10),
            )
            return
        self._prepared = (catalogue.version, index)

    def make_retriever(self, catalogue: LiveCatalogue) -> Retriever:
        """The retriever of a snapshot: through the device where one was prepared for it."""
        prepared, self._prepared = self._prepared, None
        if prepared is None or prepared[0] != catalogue.version:
            return make_retriever(catalogue)
        return GpuRetriever(catalogue, prepared[1], f"cuda {self._kind}")


class GpuRetriever:
    """Ranks through an index on a device until that fails; from then on as the CPU does."""

    def __init__(self, catalogue: LiveCatalogue, index: CandidateIndex, name: str) -> None:
        self._cpu = make_retriever(catalogue)
        self._device: FaissRetriever | None = FaissRetriever(catalogue, index)
        search = catalogue.parameters.search
        self.description = f"{name} candidates {search.candidates if search else 0}"

    @property
    def on_device(self) -> bool:
        """False once the device was lost."""
        return self._device is not None

    def follow(self) -> None:
        """The CPU, which may have to go on alone, takes in what was added; beside a device it is scored exactly."""
        self._cpu.follow()

    def rank(self, queries: Sequence[Query], live: LiveView) -> list[Ranking]:
        if self._device is not None:
            try:
                return self._device.rank(queries, live)
            except DeviceLostError as error:
                logger.error("the GPU is lost, the CPU searches from now on: %s", error)
                self._device = None
                self.description = f"{self._cpu.description} (GPU lost: {str(error).splitlines()[0][:200]})"
        return self._cpu.rank(queries, live)


def recall_at_10(catalogue: LiveCatalogue, index: CandidateIndex, candidates: int) -> float:
    """Of queries like those served: how many of the ten best rows by [x ; b] are among the candidates."""
    from heliotrope_indexer.ann_index import served_queries

    vectors, bias = catalogue.snapshot.vectors.view(np.ndarray), catalogue.snapshot.bias.view(np.ndarray)
    queries = served_queries(
        vectors,
        catalogue.snapshot.scoring_matrices,
        catalogue.prior,
        catalogue.parameters.kappas,
        count=CHECKED_QUERIES,
    )
    padded = np.zeros((len(queries), index.d), dtype=np.float32)
    padded[:, : queries.shape[1]] = queries
    padded[:, queries.shape[1]] = 1.0
    _, found = index.search(padded, min(candidates, len(vectors)))
    hits = 0
    for start in range(0, len(queries), _EXACT_AT_ONCE):
        scores = queries[start : start + _EXACT_AT_ONCE] @ vectors.T + bias
        best = np.argpartition(-scores, 9, axis=1)[:, :10]
        hits += sum(int(np.isin(*pair).sum()) for pair in zip(best, found[start:], strict=False))
    return hits / (10 * len(queries))
