"""The libraries that our retriever is compared with, each searched as its documentation says, with one thread.

Graphs have 32 neighbours a row and are built with 200 candidates (SVS: 128): the values that their own pages recommend
for vectors of this width. Every module is imported when it is built, so that those that are not installed can be named.
"""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from heliotrope_bench.ann.contender import Contender, Found, K, Point, Rows

EXPANSIONS = (10, 16, 24, 40, 64, 100, 160, 320, 640)
NPROBES = (4, 8, 16, 32, 64, 128)
REFINED = (50, 100, 200, 400)
_NEIGHBOURS, _CONSTRUCTION = 16, 200


def faiss_ivf(rows: Rows, threads: int, folder: Path, *, residual: bool) -> Iterator[Point]:
    """IVF with fast-scan codes and a float copy to refine with: plain, and with residual codes behind a spherical
    quantiser, which inner products want.
    """
    import faiss

    faiss.omp_set_num_threads(threads)
    n, width = rows.shape
    lists = int(2 ** round(np.log2(np.sqrt(n))))
    name = f"IVF{lists},PQ{width // 2}x4fs{'r' if residual else ''},RFlat"
    index: Any = faiss.index_factory(width, name, faiss.METRIC_INNER_PRODUCT)
    coarse = faiss.extract_index_ivf(index)
    coarse.cp.spherical = residual
    coarse.cp.min_points_per_centroid = 1
    index.train(rows)
    index.add(rows)
    for nprobe in (value for value in NPROBES if value <= lists):
        for refined in REFINED:
            parameters = faiss.IndexRefineSearchParameters(
                k_factor=refined / K,
                base_index_params=faiss.SearchParametersIVF(nprobe=nprobe),  # type: ignore[call-arg]
            )
            yield _faiss_point(name, f"nprobe {nprobe} refined {refined}", index, parameters)


def faiss_hnsw(rows: Rows, threads: int, folder: Path) -> Iterator[Point]:
    """FAISS's graph over float vectors."""
    import faiss

    faiss.omp_set_num_threads(threads)
    library: Any = faiss
    index = library.IndexHNSWFlat(rows.shape[1], _NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = _CONSTRUCTION
    index.add(rows)
    for expansion in EXPANSIONS:
        parameters = library.SearchParametersHNSW(efSearch=expansion)
        yield _faiss_point("HNSW", f"ef {expansion}", index, parameters)


def faiss_flat(rows: Rows, threads: int, folder: Path) -> Iterator[Point]:
    """Exact search."""
    import faiss

    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    yield _faiss_point("Flat", "exact", index, None)


def _faiss_point(name: str, setting: str, index: Any, parameters: Any) -> Point:
    def single(query: Rows) -> Found:
        return index.search(query[None], K, params=parameters)[1][0]  # type: ignore[no-any-return]

    def batch(queries: Rows) -> Found:
        return index.search(queries, K, params=parameters)[1]  # type: ignore[no-any-return]

    return Point(f"FAISS {name}", setting, single, batch)


def hnswlib(rows: Rows, threads: int, folder: Path) -> Iterator[Point]:
    """The graph of its authors."""
    import hnswlib as library

    index = library.Index("ip", rows.shape[1])
    index.init_index(len(rows), ef_construction=_CONSTRUCTION, M=_NEIGHBOURS)
    index.add_items(rows, num_threads=threads)

    def batch(expansion: int, queries: Rows) -> Found:
        index.set_ef(expansion)
        return index.knn_query(queries, K, num_threads=1)[0].astype(np.int64)  # type: ignore[no-any-return]

    for expansion in EXPANSIONS:
        yield _of_batches("hnswlib", f"ef {expansion}", partial(batch, expansion))


def usearch(rows: Rows, threads: int, folder: Path) -> Iterator[Point]:
    """Its graph over float32."""
    from usearch.index import Index

    index = Index(ndim=rows.shape[1], metric="ip", dtype="f32", connectivity=_NEIGHBOURS, expansion_add=_CONSTRUCTION)
    index.add(np.arange(len(rows)), rows, threads=threads)

    def single(expansion: int, query: Rows) -> Found:
        index.expansion_search = expansion
        return index.search(query, K, threads=1).keys.astype(np.int64)  # type: ignore[no-any-return]

    for expansion in EXPANSIONS:
        search = partial(single, expansion)
        yield Point("usearch", f"ef {expansion}", search, search)


def voyager(rows: Rows, threads: int, folder: Path) -> Iterator[Point]:
    """Spotify's graph over float32."""
    from voyager import Index, Space

    index = Index(Space.InnerProduct, rows.shape[1], M=_NEIGHBOURS, ef_construction=_CONSTRUCTION)
    index.add_items(rows, num_threads=threads)

    def search(expansion: int, query: Rows) -> Found:
        return index.query(query, K, num_threads=1, query_ef=expansion)[0].astype(np.int64)  # type: ignore[no-any-return]

    for expansion in EXPANSIONS:
        yield Point("voyager", f"ef {expansion}", partial(search, expansion), partial(search, expansion))


def scann(rows: Rows, threads: int, folder: Path) -> Iterator[Point]:
    """Anisotropic codes of two dimensions, re-ordered on floats."""
    from scann import scann_ops_pybind as library

    leaves = int(2 ** round(np.log2(np.sqrt(len(rows)))))
    builder = library.builder(rows, K, "dot_product").set_n_training_threads(threads)
    searcher = (
        builder.tree(num_leaves=leaves, num_leaves_to_search=leaves, training_sample_size=len(rows))
        .score_ah(2, anisotropic_quantization_threshold=0.2)
        .reorder(REFINED[0])
        .build()
    )

    def single(leaves: int, refined: int, query: Rows) -> Found:
        found, _ = searcher.search(query, leaves_to_search=leaves, pre_reorder_num_neighbors=refined)
        return found.astype(np.int64)  # type: ignore[no-any-return]

    def batch(leaves: int, refined: int, queries: Rows) -> Found:
        found, _ = searcher.search_batched(queries, leaves_to_search=leaves, pre_reorder_num_neighbors=refined)
        return found.astype(np.int64)  # type: ignore[no-any-return]

    for searched in (value for value in (*NPROBES, 256) if value <= leaves):
        for refined in (*REFINED, 1_600):
            setting = f"leaves {searched} refined {refined}"
            yield Point("ScaNN", setting, partial(single, searched, refined), partial(batch, searched, refined))


def svs(rows: Rows, threads: int, folder: Path, *, packed: bool) -> Iterator[Point]:
    """Intel's Vamana graph over float32, or over its 4 + 8 bit codes (LVQ)."""
    import svs as library

    data: Any = rows
    if packed:
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            path = str(Path(aside) / "rows.fvecs")
            library.write_vecs(rows, path)
            loader = library.VectorDataLoader(path, library.DataType.float32, rows.shape[1])
            yield from _svs(rows, threads, library.LVQLoader(loader, primary=4, residual=8), "SVS LVQ4x8")
    else:
        yield from _svs(rows, threads, data, "SVS")


def _svs(rows: Rows, threads: int, data: Any, name: str) -> Iterator[Point]:
    import svs as library

    parameters = library.VamanaBuildParameters(alpha=0.95, graph_max_degree=2 * _NEIGHBOURS, window_size=128)
    index = library.Vamana.build(parameters, data, library.DistanceType.MIP, num_threads=threads)
    index.num_threads = 1

    def batch(window: int, queries: Rows) -> Found:
        index.search_window_size = window
        return index.search(queries, K)[0].astype(np.int64)  # type: ignore[no-any-return]

    for window in EXPANSIONS:
        yield _of_batches(name, f"window {window}", partial(batch, window))


def qdrant(rows: Rows, threads: int, folder: Path) -> Iterator[Point]:
    """Qdrant's engine in this process, one segment, one search thread; a batch is asked query by query."""
    import qdrant_edge as library

    path = folder / "qdrant"
    path.mkdir()
    shard = library.EdgeShard.create(
        str(path),
        library.EdgeConfig(
            vectors=library.EdgeVectorParams(size=rows.shape[1], distance=library.Distance.Dot),
            hnsw_config=library.HnswIndexConfig(_NEIGHBOURS, _CONSTRUCTION, 10, max_indexing_threads=threads),
            optimizers=library.EdgeOptimizersConfig(default_segment_number=1, indexing_threshold=1),
            max_search_threads=1,
        ),
    )
    for start in range(0, len(rows), 1_000):
        points = [library.Point(row, rows[row].tolist(), {}) for row in range(start, min(start + 1_000, len(rows)))]
        shard.update(library.UpdateOperation.upsert_points(points))
    shard.optimize()

    def request(expansion: int, query: Rows) -> Any:
        return library.SearchRequest(
            query=library.Query.Nearest(query.tolist()), limit=K, params=library.SearchParams(hnsw_ef=expansion)
        )

    def single(expansion: int, query: Rows) -> Found:
        found = [int(point.id) for point in shard.search(request(expansion, query))]
        return np.array(found + [-1] * (K - len(found)), dtype=np.int64)

    def batch(expansion: int, queries: Rows) -> Found:
        return np.stack([single(expansion, query) for query in queries])

    for expansion in EXPANSIONS:
        yield Point("qdrant", f"ef {expansion}", partial(single, expansion), partial(batch, expansion))


def _of_batches(name: str, setting: str, batch: Any) -> Point:
    """A library whose single query is a batch of one."""

    def single(query: Rows) -> Found:
        return batch(query[None])[0]  # type: ignore[no-any-return]

    return Point(name, setting, single, batch)


LIBRARIES = (
    Contender("faiss-ivf", "faiss-cpu", "faiss", partial(faiss_ivf, residual=False)),
    Contender("faiss-ivf-residual", "faiss-cpu", "faiss", partial(faiss_ivf, residual=True)),
    Contender("faiss-hnsw", "faiss-cpu", "faiss", faiss_hnsw),
    Contender("faiss-flat", "faiss-cpu", "faiss", faiss_flat),
    Contender("hnswlib", "hnswlib", "hnswlib", hnswlib),
    Contender("usearch", "usearch", "usearch", usearch),
    Contender("voyager", "voyager", "voyager", voyager),
    Contender("scann", "scann", "scann", scann),
    Contender("svs", "scalable-vs", "svs", partial(svs, packed=False)),
    Contender("svs-lvq", "scalable-vs", "svs", partial(svs, packed=True), processors="Intel"),
    Contender("qdrant", "qdrant-edge-py", "qdrant_edge", qdrant),
)
"""Qdrant is an engine and has a mark of its own; the others are libraries."""
