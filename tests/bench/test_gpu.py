"""The GPU bench where there is no GPU: CPU indexes stand behind the device's interface."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from heliotrope_bench.command import main
from heliotrope_bench.errors import BenchError
from heliotrope_bench.gpu import check, encode_rows, encoders_compared, random_texts, search_rows
from heliotrope_export import TextEncoder
from heliotrope_export.session import CPU
from heliotrope_server.device_index import DeviceIndex
from tests.server import worlds
from tests.server.stand_in_device import Device


def builder(searches: int | None = None, wrong: tuple[str, ...] = ()) -> Callable[..., DeviceIndex]:
    """Builds flat and IVF as stand-ins, finding other rows for the `wrong` ones; there is no CAGRA."""

    def build(kind: str, vectors: NDArray[np.float32], bias: NDArray[np.float32], nprobe: int) -> DeviceIndex:
        if kind == "cagra":
            raise RuntimeError("this build of FAISS has no CAGRA")
        return DeviceIndex(Device(vectors[::-1].copy() if kind in wrong else vectors, bias, searches), most_hits=2_048)

    return build


@pytest.fixture
def served(tmp_path: Path) -> Any:
    return worlds.catalogue(tmp_path, items=1_500, dimension=16, with_index=True)


@pytest.mark.skipif(hasattr(faiss, "StandardGpuResources"), reason="this FAISS is built for GPUs")
def test_without_a_gpu_the_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu", "--out", str(tmp_path / "gpu.json")]) == 1
    assert "there is no GPU to measure: the installed FAISS is built for the CPU" in capsys.readouterr().err
    assert not (tmp_path / "gpu.json").exists()


def test_each_index_is_measured_by_batch_size_and_one_that_can_not_be_is_noted(served: Any) -> None:
    rows = search_rows(served, builder(), rounds=2, batches=(1, 8, 32))
    assert [(row["case"], row.get("batch")) for row in rows] == [
        *(("search, flat", batch) for batch in (1, 8, 32)),
        *(("search, ivf", batch) for batch in (1, 8, 32)),
        ("search, cagra", None),
    ]
    for row in rows[:-1]:
        assert row["device_recall@10"] == 1.0 >= row["cpu_recall@10"] > 0.9
        assert row["right"] is True
        assert row["cpu_per_s"] > 0.0 and row["device_per_s"] > 0.0 and row["over_cpu"] > 0.0
    assert rows[-1]["right"] is None and "no CAGRA" in rows[-1]["note"]
    check(rows)


def test_a_device_that_is_wrong_is_named(served: Any) -> None:
    rows = search_rows(served, builder(wrong=("ivf",)), rounds=1, batches=(4,))
    assert [row["right"] for row in rows] == [True, False, None]
    with pytest.raises(BenchError, match="the GPU is wrong: search, ivf"):
        check(rows)


def test_a_device_that_is_lost_on_the_way_gives_no_figures(served: Any) -> None:
    with pytest.raises(BenchError, match="the GPU was lost while the flat index was measured"):
        search_rows(served, builder(searches=3), rounds=2, batches=(4,))


def test_nothing_on_the_device_is_no_success() -> None:
    with pytest.raises(BenchError, match="nothing ran on the GPU"):
        check([{"case": "encode, fp16", "right": None, "note": "no CUDA"}])


def test_a_snapshot_without_an_index_is_refused(tmp_path: Path) -> None:
    small = worlds.catalogue(tmp_path, items=30, dimension=16)
    with pytest.raises(BenchError, match="30 items and no index"):
        search_rows(small, builder(), rounds=1)


def test_two_encoders_are_compared_by_their_vectors(model_folder: Path) -> None:
    texts = random_texts(24)
    exact = TextEncoder.open(model_folder, variant="fp32", threads=1, providers=[CPU])
    reference = exact.encode(texts).vectors
    same = encoders_compared(exact, exact, reference, texts, rounds=1)
    assert same["right"] and same["least_cosine"] == pytest.approx(1.0, abs=1e-5)
    assert same["device_per_s"] > 0.0 and same["cpu"] == f"{CPU} fp32"
    shifted = encoders_compared(exact, exact, np.roll(reference, 1, axis=0), texts, rounds=1)
    assert not shifted["right"]


def test_what_onnx_runtime_has_no_device_for_is_noted(model_folder: Path) -> None:
    rows = encode_rows(model_folder, random_texts(4), rounds=1)
    assert [row["right"] for row in rows] == [None, None]
    assert "no CUDA" in rows[0]["note"] and "fp16" in rows[1]["note"]
