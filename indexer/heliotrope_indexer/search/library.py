"""The compiled library (kernel.c), where it was built; indexer/build_kernel.py says how."""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("libkernel.so")


class BlockStruct(ctypes.Structure):
    """`block` of the C file."""

    _fields_ = (
        ("count", ctypes.c_int64),
        ("rows", ctypes.c_void_p),
        ("vectors", ctypes.c_void_p),
        ("terms", ctypes.c_void_p),
    )


class IvfStruct(ctypes.Structure):
    """`ivf` of the C file."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("lists", "subquantisers", "per_code", "width")),
        *(
            (name, ctypes.c_void_p)
            for name in ("centroids", "codebook", "codes", "rows", "sizes", "error", "spread", "most")
        ),
    )


class JobStruct(ctypes.Structure):
    """`job` of the C file."""

    _fields_ = (
        *(
            (name, ctypes.c_int64)
            for name in ("queries", "d", "asked_step", "found_each", "wanted", "base_count", "rows")
        ),
        *((name, ctypes.c_void_p) for name in ("vectors", "bias", "boosts", "counts")),
        ("factor", ctypes.c_double),
        *((name, ctypes.c_float) for name in ("weight", "outside", "intercept")),
        *((name, BlockStruct) for name in ("moved", "fresh", "trending", "head")),
        *((name, ctypes.c_void_p) for name in ("alive", "allowed", "stamps", "gain_of", "asked", "found", "index")),
        ("probes", ctypes.c_int64),
        ("portable", ctypes.c_int64),
        ("margin", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("closeness", "order", "places", "sums")),
        *((name, ctypes.c_void_p) for name in ("excluded", "excluded_ends", "suggested", "suggested_ends", "gains")),
        ("stamp", ctypes.c_uint32),
        *((name, ctypes.c_void_p) for name in ("best_rows", "best_scores", "sizes", "last_base")),
    )


@cache
def load() -> Any:
    """The library; raises OSError where it was not built or does not load here."""
    library = ctypes.CDLL(str(PATH))
    library.heliotrope_rank.argtypes = (ctypes.POINTER(JobStruct),)
    library.heliotrope_rank.restype = None
    library.heliotrope_errors.argtypes = (
        ctypes.POINTER(IvfStruct),
        *[ctypes.c_void_p] * 2,
        ctypes.c_int64,
        *[ctypes.c_void_p] * 2,
    )
    library.heliotrope_errors.restype = None
    return library


def kernel_problem() -> str | None:
    """Why there is no compiled kernel, or None."""
    try:
        load()
    except OSError as error:
        return str(error)
    return None
