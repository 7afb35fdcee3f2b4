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


class InvertedStruct(ctypes.Structure):
    """`inverted` of the C file."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("codes", "rows", "sizes", "error"))


class IvfStruct(ctypes.Structure):
    """`ivf` of the C file."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("lists", "subquantisers", "per_code", "width")),
        *((name, ctypes.c_void_p) for name in ("centroids", "codebook")),
        *((name, InvertedStruct) for name in ("stored", "added")),
        *((name, ctypes.c_void_p) for name in ("spread", "most")),
    )


class JobStruct(ctypes.Structure):
    """`job` of the C file."""

    _fields_ = (
        *(
            (name, ctypes.c_int64)
            for name in ("queries", "d", "asked_step", "found_each", "wanted", "base_count", "rows")
        ),
        *((name, ctypes.c_void_p) for name in ("vectors", "bias")),
        ("known", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("beyond_vectors", "beyond_bias", "boosts", "counts")),
        ("factor", ctypes.c_double),
        *((name, ctypes.c_float) for name in ("weight", "outside", "intercept")),
        *((name, BlockStruct) for name in ("moved", "fresh", "trending", "head")),
        *((name, ctypes.c_void_p) for name in ("alive", "allowed", "stamps", "gain_of", "asked", "found", "index")),
        ("probes", ctypes.c_int64),
        ("added_only", ctypes.c_int64),
        ("portable", ctypes.c_int64),
        ("margin", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("closeness", "order", "places", "sums")),
        *((name, ctypes.c_void_p) for name in ("excluded", "excluded_ends", "suggested", "suggested_ends", "gains")),
        ("stamp", ctypes.c_uint32),
        *((name, ctypes.c_void_p) for name in ("best_rows", "best_scores", "sizes", "last_base")),
    )


class ShareJobStruct(ctypes.Structure):
    """`share_job` of event_shares.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("d", "horizons")),
        *((name, ctypes.c_void_p) for name in ("vectors", "half_lives", "kappas", "weights", "centers")),
        ("limit", ctypes.c_double),
        ("events", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("numbers", "records", "ids", "rows")),
        ("strangers", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("stranger_numbers", "stranger_vectors")),
        *((name, ctypes.c_int64) for name in ("speakers", "neighbours")),
        *((name, ctypes.c_void_p) for name in ("neighbour_rows", "strengths")),
        ("neighbour_weight", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("targets", "speaking", "said_at", "said")),
        *((name, ctypes.c_int64) for name in ("tied", "spoken")),
        *((name, ctypes.c_void_p) for name in ("spoken_places", "spoken_shares")),
        ("read_s", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("totals", "prior", "folded")),
        ("items", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("aims", "scales")),
        *((name, ctypes.c_int64) for name in ("named", "unknown", "adding")),
        *((name, ctypes.c_void_p) for name in ("starts", "places", "shares", "others", "by_prior", "by_folded")),
    )


@cache
def load() -> Any:
    """The library; raises OSError where it was not built or does not load here."""
    library = ctypes.CDLL(str(PATH))
    library.heliotrope_rank.argtypes = (ctypes.POINTER(JobStruct),)
    library.heliotrope_rank.restype = None
    if not hasattr(library, "heliotrope_event_shares"):
        raise OSError(f"{PATH} is of an older source: run `python indexer/build_kernel.py`")
    library.heliotrope_event_shares.argtypes = (ctypes.POINTER(ShareJobStruct),)
    library.heliotrope_event_shares.restype = None
    library.heliotrope_errors.argtypes = (
        ctypes.POINTER(IvfStruct),
        *[ctypes.c_void_p] * 2,
        ctypes.c_int64,
        *[ctypes.c_void_p] * 2,
    )
    library.heliotrope_errors.restype = None
    library.heliotrope_encode.argtypes = (ctypes.POINTER(IvfStruct), ctypes.c_int64, *[ctypes.c_void_p] * 5)
    library.heliotrope_encode.restype = None
    library.heliotrope_append.argtypes = (ctypes.POINTER(IvfStruct), ctypes.c_int64, *[ctypes.c_void_p] * 3)
    library.heliotrope_append.restype = None
    return library


def kernel_problem() -> str | None:
    """Why there is no compiled kernel, or None."""
    try:
        load()
    except OSError as error:
        return str(error)
    return None
