"""Limits of a job: memory estimated, refused and watched; threads and priority of everything that computes."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from threadpoolctl import threadpool_info

from heliotrope_indexer import build as build_module
from heliotrope_indexer import command, input_settings
from heliotrope_indexer.build import BuildRequest, build, hash_of_input
from heliotrope_indexer.catalog_item import CatalogItem
from heliotrope_indexer.catalogue_delta import CatalogueDelta
from heliotrope_indexer.errors import MemoryLimitError, SourceError
from heliotrope_indexer.gate_figures import REPLAY_CELLS
from heliotrope_indexer.memory import BuildSize, check_memory, plan_memory
from heliotrope_indexer.progress import Steps
from heliotrope_indexer.source import Source
from tests.indexer.conftest import Encoded, WordEncoder

Shop = Callable[..., BuildRequest]

SIZE = BuildSize(
    items=100_000,
    catalogue_bytes=10_000_000,
    events=1_000_000,
    feature_dimension=384,
    dimension=191,
    indexed=True,
)


def test_an_estimate_grows_with_everything_that_it_is_made_of() -> None:
    whole = plan_memory(SIZE, None)
    assert whole.replay_cells == REPLAY_CELLS
    for name in ("items", "catalogue_bytes", "events", "feature_dimension", "dimension"):
        assert plan_memory(replace(SIZE, **{name: 2 * getattr(SIZE, name)}), None).total > whole.total
    alone = replace(SIZE, events=0)
    assert plan_memory(replace(alone, indexed=False), None).total < plan_memory(alone, None).total


def test_a_tight_limit_cuts_the_replay_and_a_tighter_one_is_refused_with_estimate_and_limit() -> None:
    whole = plan_memory(SIZE, None)
    # Some room for what this process takes up between two estimates.
    cut = plan_memory(SIZE, whole.total - 100_000_000)
    assert cut.replay_cells < REPLAY_CELLS and cut.total <= whole.total - 100_000_000
    with pytest.raises(
        MemoryLimitError, match=r"needs about \d+\.\d\d GB \(process and model .*max-memory is 1\.00 GB"
    ):
        plan_memory(SIZE, 1_000_000_000)
    with pytest.raises(MemoryLimitError):
        plan_memory(replace(SIZE, events=0), 1_000_000_000)


def test_what_is_held_after_a_step_is_checked() -> None:
    check_memory(None, "embed texts")
    check_memory(1 << 50, "embed texts")
    with pytest.raises(MemoryLimitError, match=r"after 'embed texts' the build holds .*--max-memory is 0\.00 GB"):
        check_memory(1, "embed texts")


def test_the_limit_is_an_option(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = WordEncoder()
    monkeypatch.setattr(input_settings.TextEncoder, "open", lambda *_arguments, **_options: encoder)
    asked = ["--model", "m", "--out", str(tmp_path / "out"), "--quiet", "--threads", "1", "--dimension", "12"]
    asked += ["--catalogue", str(shop().sources.catalogue.path), "--events", str(shop().sources.events[0].path)]
    assert command.main([*asked, "--max-memory", "100MB"]) == 1
    error = capsys.readouterr().err
    assert "this build needs about" in error and "--max-memory is 0.10 GB" in error and error.count("\n") == 1
    assert encoder.encoded == []
    assert command.main([*asked, "--max-memory", "lots"]) == 2
    assert command.main([*asked, "--max-memory", "64GB"]) == 0


def test_a_limit_belongs_to_the_input(shop: Shop, encoder: WordEncoder, steps: Steps) -> None:
    """It may leave fewer users to measure on."""
    assert hash_of_input(shop(), encoder) != hash_of_input(shop(max_memory=1 << 40), encoder)
    assert build(shop(max_memory=1 << 40), encoder, steps).manifest.n_items == 30


MEASURED = """
import json, sys
from pathlib import Path
import numpy as np
from heliotrope_indexer import build as job
from heliotrope_indexer.job_input import JobSources
from heliotrope_indexer.memory import plan_memory
from heliotrope_indexer.progress import Steps
from heliotrope_indexer.snapshot import SnapshotStore
from heliotrope_indexer.source import Source
from tests.indexer.conftest import Encoded

class Wide:
    dimension, model_version, variant = 256, "wide", "fp32"
    def encode(self, texts):
        rng = np.random.default_rng(len(texts))
        return Encoded(rng.normal(size=(len(texts), 256)).astype(np.float32), np.zeros(len(texts), dtype=bool))

folder = Path(sys.argv[1])
events = (Source(folder / "events.csv"),) if (folder / "events.csv").exists() else ()
request = job.BuildRequest(
    JobSources(Source(folder / "items.csv"), events, folder / "cache"), SnapshotStore(folder / "store"),
    folder / "building", threads=1, collaborative_dimension=32, text_dimension=32)
plan = plan_memory(job._size(request, Wide(), None), None)
job.build(request, Wide(), Steps(quiet=True))
(line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(json.dumps([plan.total, int(line.split()[1]) * 1024]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize("events", [0, 80_000])
def test_the_estimate_is_above_the_peak_and_not_far(events: int, tmp_path: Path) -> None:
    lines = [f"i{row},thing {row},some more words about thing {row}" for row in range(15_000)]
    (tmp_path / "items.csv").write_text("id,title,description\n" + "\n".join(lines) + "\n")
    if events:
        rows = [f"u{row % 2_000},i{row * 7919 % 15_000},click,{1.5e9 + row:.0f}" for row in range(events)]
        (tmp_path / "events.csv").write_text("user_id,item_id,type,timestamp\n" + "\n".join(rows) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    estimate, peak = json.loads(done.stdout)
    assert peak < estimate < 2.5 * peak


def test_sizes_of_files_of_every_kind(tmp_path: Path) -> None:
    text = "id,title\n" + "".join(f"i{row},thing\n" for row in range(99))
    (tmp_path / "a.csv").write_text(text)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode()))
    pq.write_table(pa.table({"id": ["x"] * 50, "title": ["thing"] * 50}), tmp_path / "a.parquet")
    for name in ("a.csv", "a.csv.gz"):
        assert Source(tmp_path / name).size() == (100, len(text))
    assert Source(tmp_path / "a.parquet").size()[0] == 50
    for name, content in (("b.csv.gz", b"no gzip"), ("b.parquet", b"no parquet")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SourceError, match="cannot be read"):
            Source(tmp_path / name).size()


def test_a_delta_and_a_snapshot_have_a_size(shop: Shop, encoder: WordEncoder, steps: Steps) -> None:
    build(shop(), encoder, steps)
    delta = CatalogueDelta((CatalogItem("x", "words"),), frozenset(), None)
    sources = replace(shop().sources, catalogue=shop().store.open(), delta=delta)
    items, length, events = sources.size()
    assert (items, events) == (31, 601) and length > 300


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_bound_every_library(
    threads: int, shop: Shop, steps: Steps, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import implicit.cpu.als

    seen: dict[str, Any] = {}

    def note(where: str) -> None:
        # Pools with one thread on this machine whatever is asked for prove nothing, and are no harm.
        seen[where] = [(pool["internal_api"], pool["num_threads"]) for pool in threadpool_info()], pa.cpu_count()

    class Noting(WordEncoder):
        def encode(self, texts: Sequence[str]) -> Encoded:
            note("embedding")
            return super().encode(texts)

    class Als(implicit.cpu.als.AlternatingLeastSquares):
        def fit(self, *arguments: Any, **options: Any) -> None:
            note("als")
            seen["als threads"] = self.num_threads
            super().fit(*arguments, **options)

    def index(*arguments: Any, **options: Any) -> Any:
        import faiss

        built = build_index(*arguments, **options)
        seen["faiss"] = faiss.omp_get_max_threads()
        note("index")
        return built

    build_index = build_module.build_index
    monkeypatch.setattr(implicit.cpu.als, "AlternatingLeastSquares", Als)
    monkeypatch.setattr(build_module, "build_index", index)
    monkeypatch.setattr(build_module, "EXACT_UP_TO", 1_000)
    path = tmp_path / "many.csv"
    path.write_text("id,title\n" + "".join(f"i{row},thing {row} and {row % 7}\n" for row in range(1_100)))
    before = {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}, pa.cpu_count()
    build(shop(catalogue=Source(path), threads=threads), Noting(), steps)
    assert (seen["als threads"], seen["faiss"]) == (threads, threads)
    for where in ("embedding", "als", "index"):
        pools, arrow = seen[where]
        assert {api for api, _ in pools} >= {"openblas", "openmp"}
        assert max(count for _, count in pools) <= threads, where
        assert arrow == threads
    assert pa.cpu_count() == before[1]


def test_nice_reaches_threads_that_were_there_before() -> None:
    program = """
import os, threading, numpy as np
from heliotrope_indexer.threads import stand_back
release = threading.Event()
threading.Thread(target=release.wait, daemon=True).start()
np.ones((300, 300)) @ np.ones((300, 300))
stand_back(7)
threading.Thread(target=release.wait, daemon=True).start()
print(sorted({os.getpriority(os.PRIO_PROCESS, int(name)) for name in os.listdir("/proc/self/task")}))
"""
    if not Path("/proc/self/task").exists():
        pytest.skip("threads are listed in /proc")
    own = os.getpriority(os.PRIO_PROCESS, 0)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [max(7, own)]
