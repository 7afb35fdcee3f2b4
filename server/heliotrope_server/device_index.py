"""An index on a GPU: all that calls faiss-gpu is here.

**No card has run this module.** Its calls follow FAISS 1.15's headers and tests; names, signatures and the failing
paths were checked with the faiss-gpu wheels on a machine without a GPU (`docs/decisions/0015-gpu.md`).
`heliotrope bench gpu` checks and measures it in minutes where there is one.

FAISS aborts the process on a CUDA error (`CUDA_VERIFY` is an assertion), so a lost device mostly can't be caught. Hence
`device_problem` asks in a process of its own whether a GPU works: a shard that died with its device is started again by
the supervisor, finds that, and goes on with the CPU.
"""

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.index_rows import index_rows
from heliotrope_server.settings import IndexKind

MOST_HITS = {"flat": 2_048, "ivf": 2_048, "cagra": 512}
"""Hits that one search can ask for. FAISS's own kernels select 2,048 at most; CAGRA keeps `itopk_size` rows at hand,
which its fastest search bounds by 512."""
TEMPORARY_BYTES = 256 << 20
"""Scratch memory on the device, by index; FAISS would take 1.5 GiB. 64 queries against 1M items need 256 MB a pass."""
PROBE_TIMEOUT_S = 60.0
DEVICE = 0
_BLOCK = 65_536
_ROWS_PER_LIST = 64
"""Of the IVF training sample, as the indexer's own."""


class DeviceLostError(Exception):
    """The device failed a search; the message is FAISS's."""


class DeviceIndex:
    """An index that FAISS holds on a device, with its limit on hits and its failures under one name."""

    def __init__(self, index: Any, *, most_hits: int, parameters: Any = None) -> None:
        """`index` finds the rows of [x ; b] by inner product; `parameters` are its own of a search."""
        self.d: int = index.d
        self._index = index
        self._most_hits = most_hits
        self._parameters = parameters

    def search(
        self, x: NDArray[np.float32], k: int, *, params: Any = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and rows (m, k) for queries (m, d), best first; row -1 where there are no more.

        `params` belong to the snapshot's own index and are not looked at. Raises DeviceLostError.
        """
        found = min(k, self._most_hits)
        try:
            scores, rows = self._index.search(x, found, params=self._parameters)
        # What SWIG makes of a C++ exception is a RuntimeError mostly, and a MemoryError from an allocation.
        except Exception as error:
            raise DeviceLostError(str(error)) from error
        if found < k:
            missing = ((0, 0), (0, k - found))
            scores = np.pad(scores, missing, constant_values=-np.inf)
            rows = np.pad(rows, missing, constant_values=-1)
        return scores, rows


def build_device_index(
    kind: IndexKind, vectors: NDArray[np.float32], bias: NDArray[np.float32], nprobe: int
) -> DeviceIndex:
    """Builds an index on the device from vectors (n, d) and bias (n,), over [x ; b].

    Every index has resources of its own: FAISS's may not be used by two threads, and a next index is built beside the
    one that serves. Raises RuntimeError where FAISS has no such index or the device no memory; a CUDA error aborts.
    """
    import faiss

    if kind == "cagra" and not hasattr(faiss, "GpuIndexCagra"):
        raise RuntimeError("this build of FAISS has no CAGRA; the distribution faiss-gpu-cuvs has")
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(TEMPORARY_BYTES)
    width = index_rows(vectors[:1], bias[:1]).shape[1]
    if kind == "flat":
        index = _flat(faiss, resources, width)
    elif kind == "ivf":
        index = _ivf(faiss, resources, vectors, bias, nprobe)
    else:
        # The graph is built by `train`, of all rows at once; there is no adding to it.
        return _cagra(faiss, resources, index_rows(vectors, bias))
    for start in range(0, len(vectors), _BLOCK):
        index.add(index_rows(vectors[start : start + _BLOCK], bias[start : start + _BLOCK]))
    return DeviceIndex(index, most_hits=MOST_HITS[kind])


def device_problem() -> str | None:
    """Why no GPU can be searched on this machine; None when a small search on one has just worked."""
    import faiss

    if not hasattr(faiss, "StandardGpuResources"):
        return "the installed FAISS is built for the CPU (heliotrope[server-gpu] brings the other one)"
    return probe([sys.executable, "-m", "heliotrope_server.device_index"])


def probe(command: Sequence[str]) -> str | None:
    """None when the command ends well, else the last line that it said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"the GPU did not answer within {PROBE_TIMEOUT_S:.0f} s"
    if done.returncode == 0:
        return None
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return said[-1] if said else f"a search on the GPU ended with exit code {done.returncode}"


def _flat(faiss: Any, resources: Any, width: int) -> Any:
    config = faiss.GpuIndexFlatConfig()
    config.device = DEVICE
    # On by default in the builds with cuVS: one behaviour in all of them.
    config.use_cuvs = False
    return faiss.GpuIndexFlatIP(resources, width, config)


def _ivf(faiss: Any, resources: Any, vectors: NDArray[np.float32], bias: NDArray[np.float32], nprobe: int) -> Any:
    """Full rows in inverted lists: the 4-bit codes of the snapshot's own index have no kernels on the GPU."""
    n = len(vectors)
    lists = int(2 ** np.clip(round(np.log2(np.sqrt(n))), 4, 13))
    sample = np.random.default_rng(0).permutation(n)[: lists * _ROWS_PER_LIST]
    rows = index_rows(vectors[sample], bias[sample])
    config = faiss.GpuIndexIVFFlatConfig()
    config.device = DEVICE
    config.use_cuvs = False
    index = faiss.GpuIndexIVFFlat(resources, rows.shape[1], lists, faiss.METRIC_INNER_PRODUCT, config)
    # As the indexer trains: long rows attract everything otherwise.
    index.cp.spherical = True
    index.cp.min_points_per_centroid = 1
    index.train(rows)
    index.nprobe = max(1, min(nprobe, lists))
    return index


def _cagra(faiss: Any, resources: Any, rows: NDArray[np.float32]) -> DeviceIndex:
    config = faiss.GpuIndexCagraConfig()
    config.device = DEVICE
    index = faiss.GpuIndexCagra(resources, rows.shape[1], faiss.METRIC_INNER_PRODUCT, config)
    index.train(rows)
    parameters = faiss.SearchParametersCagra()
    parameters.itopk_size = MOST_HITS["cagra"]
    # With one random sampling of entry points, the default, users of cuVS report recall of 0.6 from 100,000 rows on.
    parameters.num_random_samplings = 8
    return DeviceIndex(index, most_hits=MOST_HITS["cagra"], parameters=parameters)


def _search_once() -> int:
    """The probe's own process: a flat search on the device against the same on the CPU."""
    import faiss

    if faiss.get_num_gpus() == 0:
        print("FAISS finds no GPU", file=sys.stderr)
        return 1
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(1_000, 15)).astype(np.float32)
    bias = rng.normal(size=1_000).astype(np.float32)
    asked = index_rows(vectors[:8], np.ones(8, dtype=np.float32))
    _, found = build_device_index("flat", vectors, bias, 1).search(asked, 10)
    expected = np.argsort(-(asked @ index_rows(vectors, bias).T), axis=1)[:, :10]
    if not np.array_equal(found, expected):
        print("a search on the GPU found other rows than on the CPU", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(_search_once())
