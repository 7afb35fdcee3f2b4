"""A CPU index where faiss-gpu's would be: it fails as a device does."""

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.index_rows import index_rows


class Device:
    """A flat index over [x ; b] that raises what FAISS raises once it has answered `searches` times (None: never)."""

    def __init__(self, vectors: NDArray[np.float32], bias: NDArray[np.float32], searches: int | None = None) -> None:
        self.index = faiss.IndexFlatIP(index_rows(vectors[:1], bias[:1]).shape[1])
        self.index.add(index_rows(vectors, bias))
        self.d = self.index.d
        self.left = searches
        self.asked = 0

    def search(self, queries: NDArray[np.float32], k: int, *, params: Any = None) -> Any:
        assert params is None  # parameters of another index would be an error on a device
        self.asked += 1
        if self.left is not None and self.asked > self.left:
            raise RuntimeError("Error in virtual void* StandardGpuResourcesImpl::allocMemory: alloc fail")
        return self.index.search(queries, k)
