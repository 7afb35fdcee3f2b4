"""The whole job on a small shop: what it publishes, what it reuses, and what a kill leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from heliotrope_indexer import ann_index
from heliotrope_indexer import build as build_module
from heliotrope_indexer.build import BuildRequest, build
from heliotrope_indexer.catalog_item import CatalogItem
from heliotrope_indexer.catalogue_delta import AbsorbedDelta, CatalogueDelta
from heliotrope_indexer.errors import EmptyCatalogueError, IndexQualityError, SettingsError, StoreBusyError
from heliotrope_indexer.features import feature_mean, features
from heliotrope_indexer.progress import Steps
from heliotrope_indexer.snapshot import SnapshotStore
from heliotrope_indexer.source import Source
from tests.indexer.conftest import Encoded, WordEncoder, some_items

Shop = Callable[..., BuildRequest]


def test_a_build_and_its_snapshot(shop: Shop, encoder: WordEncoder, steps: Steps) -> None:
    result = build(shop(), encoder, steps)
    snapshot = shop().store.open()
    assert (snapshot.version, len(snapshot), result.reused) == (result.version, 30, False)
    assert snapshot.vectors.shape == (30, 12)
    assert snapshot.manifest.data.event_rows == 600
    assert snapshot.manifest.quality["validation"]["users"] > 20
    assert snapshot.index() is None
    pooled = WordEncoder().encode([snapshot.item(row).text for row in range(30)]).vectors
    # The text block of every item is its own projected text, by the snapshot's formula.
    np.testing.assert_allclose(snapshot.project(pooled)[:, 8:], snapshot.vectors[:, 8:], atol=1e-5)
    assert features(pooled, snapshot.feature_mean).shape == (30, 16)


def test_nothing_changed_means_nothing_done(shop: Shop, encoder: WordEncoder, steps: Steps) -> None:
    first = build(shop(), encoder, steps)
    encoder.encoded.clear()
    again = build(shop(), encoder, steps)
    assert (again.version, again.reused, encoder.encoded) == (first.version, True, [])
    other = build(shop(seed=1), encoder, steps)
    assert not other.reused
    assert encoder.encoded == []
    assert set(shop().store.versions()) == {first.version, other.version}


def test_a_damaged_current_is_built_again(shop: Shop, encoder: WordEncoder, steps: Steps) -> None:
    first = build(shop(), encoder, steps)
    (Path(shop().store.path) / first.version / "bias.npy").write_bytes(b"x")
    again = build(shop(seed=0), encoder, steps)
    assert not again.reused


def test_only_changed_texts_are_embedded(shop: Shop, encoder: WordEncoder, steps: Steps) -> None:
    build(shop(), encoder, steps)
    encoder.encoded.clear()
    path = shop().sources.catalogue.path
    path.write_text(path.read_text().replace("thing 3 of", "renamed 3 of"))
    assert build(shop(), encoder, steps).newly_embedded == 1
    assert encoder.encoded == ["renamed 3 of kind 3. kind3"]


def test_rejects_are_filed_beside_the_snapshot(shop: Shop, encoder: WordEncoder, steps: Steps) -> None:
    with shop().sources.catalogue.path.open("a") as file:
        file.write("i0,again,\nx\n")
    result = build(shop(), encoder, steps)
    assert result.manifest.data.rejects == {"duplicate_item": 1, "wrong_column_count": 1}
    assert result.rejects is not None
    assert Path(result.rejects).name == f"{result.version}.jsonl"
    entries = [json.loads(line) for line in Path(result.rejects).read_text().splitlines()]
    assert [(entry["line"], entry["reason"]) for entry in entries] == [
        (32, "duplicate_item"),
        (33, "wrong_column_count"),
    ]


def test_without_events(shop: Shop, encoder: WordEncoder, steps: Steps) -> None:
    build(shop(events=()), encoder, steps)
    snapshot = shop().store.open()
    assert snapshot.vectors.shape == (30, 12)
    assert not snapshot.bias.any()
    pooled = WordEncoder().encode([snapshot.item(row).text for row in range(30)]).vectors
    np.testing.assert_allclose(snapshot.project(pooled), snapshot.vectors, atol=1e-5)
    assert snapshot.scoring_matrices.any()


def test_events_without_a_positive_one(shop: Shop, encoder: WordEncoder, steps: Steps, tmp_path: Path) -> None:
    log = tmp_path / "views.csv"
    log.write_text("user_id,item_id,type,timestamp\nu,i1,view,5\nu,i2,dislike,6\n")
    result = build(shop(events=(Source(log),)), encoder, steps)
    assert "validation" not in result.manifest.quality
    assert len(shop().store.open()) == 30


def test_a_large_catalogue_gets_an_index(
    shop: Shop, encoder: WordEncoder, steps: Steps, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(build_module, "EXACT_UP_TO", 1_000)
    path = tmp_path / "many.csv"
    path.write_text("id,title\n" + "".join(f"i{row},thing {row} and {row % 7}\n" for row in range(1_100)))
    result = build(shop(catalogue=Source(path)), encoder, steps)
    snapshot = shop().store.open()
    assert snapshot.index() is not None
    assert snapshot.parameters.search is not None
    assert result.manifest.quality["recall_at_100"] >= 0.95
    assert build(shop(catalogue=Source(path), exact_index=True), encoder, steps).manifest.parameters.search is None


def test_where_no_index_is_good_enough_a_small_catalogue_is_searched_exactly_and_a_large_one_is_refused(
    shop: Shop,
    encoder: WordEncoder,
    steps: Steps,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(build_module, "EXACT_UP_TO", 1_000)
    monkeypatch.setattr(ann_index, "RECALL_AT_10", 1.1)
    path = tmp_path / "many.csv"
    path.write_text("id,title\n" + "".join(f"i{row},thing {row}\n" for row in range(1_100)))
    result = build(shop(catalogue=Source(path)), encoder, steps)
    assert result.manifest.parameters.search is None and shop().store.open().index() is None
    assert "small enough to be searched exactly: no index of" in caplog.text
    monkeypatch.setattr(build_module, "EXACT_INSTEAD_UP_TO", 1_000)
    with pytest.raises(IndexQualityError, match="use an exact retriever"):
        build(replace(shop(catalogue=Source(path)), seed=1), encoder, steps)


def test_a_build_into_a_url(shop: Shop, encoder: WordEncoder, steps: Steps, tmp_path: Path) -> None:
    import fsspec

    fsspec.filesystem("memory").store.clear()
    with shop().sources.catalogue.path.open("a") as file:
        file.write("x\n")
    store = SnapshotStore("memory://bucket/shop", cache=tmp_path / "fetched")
    result = build(shop(store=store), encoder, steps)
    assert store.open().version == result.version
    assert fsspec.filesystem("memory").exists(f"/bucket/shop/rejects/{result.version}.jsonl")
    assert build(shop(store=store), encoder, steps).reused


def test_what_cannot_be_built(shop: Shop, encoder: WordEncoder, steps: Steps, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no file"):
        build(shop(catalogue=Source(tmp_path / "absent.csv")), encoder, steps)
    (tmp_path / "none.csv").write_text("id,title\n,\n")
    with pytest.raises(EmptyCatalogueError):
        build(shop(catalogue=Source(tmp_path / "none.csv")), encoder, steps)
    assert not shop().scratch.exists()


def test_two_builds_do_not_share_a_store(shop: Shop, encoder: WordEncoder, steps: Steps) -> None:
    class Second(WordEncoder):
        def encode(self, texts: Sequence[str]) -> Encoded:
            with pytest.raises(StoreBusyError, match="another build is running"):
                build(shop(), encoder, steps)
            return super().encode(texts)

    build(shop(), Second(), steps)
    assert encoder.encoded == []


KILLED_BUILD = """
import os, signal, sys
from pathlib import Path
from heliotrope_indexer import build as job
from heliotrope_indexer.embedding_cache import EmbeddingCache
from heliotrope_indexer.job_input import JobSources
from heliotrope_indexer.snapshot import SnapshotStore, store as store_module
from heliotrope_indexer.progress import Steps
from heliotrope_indexer.source import Source
from tests.indexer.conftest import WordEncoder

folder, point = Path(sys.argv[1]), sys.argv[2]

def die(*_arguments, **_options):
    os.kill(os.getpid(), signal.SIGKILL)

def after(function):
    def call(*arguments, **options):
        function(*arguments, **options)
        die()
    return call

if point == "embedding":
    EmbeddingCache.embed = after(EmbeddingCache.embed)
elif point == "learning":
    job._measure = die
elif point == "writing":
    job.write_snapshot = after(job.write_snapshot)
elif point == "half written":
    import heliotrope_indexer.snapshot.writer as writer
    writer._write_items = die
elif point == "before publishing":
    SnapshotStore._take_over = die
elif point == "before CURRENT":
    SnapshotStore.activate = die
sources = JobSources(
    catalogue=Source(folder / "items.csv"), events=(Source(folder / "events.csv"),),
    cache=folder / "store" / "embeddings")
request = job.BuildRequest(
    sources=sources, store=SnapshotStore(folder / "store"), scratch=folder / "store" / ".building",
    collaborative_dimension=8, text_dimension=4, threads=1)
job.build(request, WordEncoder(), Steps(quiet=True))
"""


@pytest.mark.parametrize(
    "point", ["embedding", "learning", "half written", "writing", "before publishing", "before CURRENT"]
)
def test_a_kill_leaves_the_previous_snapshot_and_its_work(
    point: str, shop: Shop, encoder: WordEncoder, steps: Steps, tmp_path: Path
) -> None:
    before = build(shop(), encoder, steps).version
    path = shop().sources.catalogue.path
    path.write_text(path.read_text() + "i30,a new thing,\n")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_BUILD, str(tmp_path), point],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    store = shop().store
    assert store.current() == before
    assert len(store.open()) == 30
    encoder.encoded.clear()
    after = build(shop(), encoder, steps)
    assert (len(store.open()), store.current()) == (31, after.version)
    # The embedding of the killed run was kept.
    assert encoder.encoded == []
    assert not shop().scratch.exists()


def test_changes_of_a_server_are_absorbed(shop: Shop, encoder: WordEncoder, steps: Steps) -> None:
    build(shop(), encoder, steps)
    encoder.encoded.clear()
    # White space that a catalogue file would not keep: what the server knows is taken as it is.
    changed, new = CatalogItem("i3", "a  new name"), CatalogItem("live", "thing 4 of kind 4", "", ("kind4",), "shop1")
    absorbed = AbsorbedDelta(until_lsn=9, digest="0123456789abcdef")
    delta = CatalogueDelta((changed, new), frozenset({"i5", "never"}), absorbed)
    request = replace(shop(), sources=replace(shop().sources, delta=delta))
    result = build(request, encoder, steps)
    assert encoder.encoded == ["a  new name"]
    snapshot = request.store.open()
    assert snapshot.manifest.data.absorbed == absorbed
    ids = [item.item_id for item in some_items(30) if item.item_id != "i5"]
    assert snapshot.item_ids[:] == [*ids, "live"]
    assert [snapshot.item(row) for row in (3, 29)] == [changed, new]
    assert build(request, encoder, steps).reused

    # An incremental build stands on the snapshot: nothing is new in it, so nothing happens.
    again = replace(request, sources=replace(request.sources, catalogue=snapshot))
    second = build(again, encoder, steps)
    assert second.manifest.data.catalogue_rows == 30
    last = replace(request, sources=replace(request.sources, catalogue=request.store.open()))
    assert build(last, encoder, steps).reused
    assert request.store.open().item_ids[:] == snapshot.item_ids[:]
    assert result.newly_embedded == 1 and second.newly_embedded == 0


def test_vectors_that_the_server_has_are_taken_and_their_texts_are_not_embedded(
    shop: Shop, encoder: WordEncoder, steps: Steps
) -> None:
    build(shop(), WordEncoder(), steps)
    twin, other = CatalogItem("twin", "live one"), CatalogItem("other", "live two")
    known = shop().store.open().item(7).text
    pooled = {
        "twin": ("words-1", WordEncoder().encode([known]).vectors[0]),
        "other": ("words-0", np.ones(4, np.float32)),
    }
    absorbed = AbsorbedDelta(until_lsn=2, digest="0123456789abcdef")
    delta = CatalogueDelta((twin, other), frozenset(), absorbed, pooled)
    request = replace(shop(), sources=replace(shop().sources, delta=delta))
    build(request, encoder, steps)
    # The vector of another model is of no use.
    assert encoder.encoded == ["live two"]
    snapshot = request.store.open()
    text_block = slice(snapshot.vectors.shape[1] - request.text_dimension, None)
    of = dict(zip(snapshot.item_ids[:], snapshot.vectors, strict=True))
    np.testing.assert_allclose(of["twin"][text_block], of["i7"][text_block], atol=1e-5)


def test_a_catalogue_that_is_all_deleted_is_refused(shop: Shop, encoder: WordEncoder, steps: Steps) -> None:
    delta = CatalogueDelta((), frozenset(item.item_id for item in some_items(30)), None)
    with pytest.raises(EmptyCatalogueError, match="all 30 items of the catalogue are deleted on the server"):
        build(replace(shop(), sources=replace(shop().sources, delta=delta)), encoder, steps)


HALF_EMBEDDED = """
import os, signal, sys
from pathlib import Path
from heliotrope_indexer import build as job, embedding_cache
from heliotrope_indexer.job_input import JobSources
from heliotrope_indexer.snapshot import SnapshotStore
from heliotrope_indexer.progress import Steps
from heliotrope_indexer.source import Source
from tests.indexer.conftest import WordEncoder

class Mortal(WordEncoder):
    def encode(self, texts):
        if len(self.encoded) == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(texts)

folder = Path(sys.argv[1])
embedding_cache._BATCH = 10
sources = JobSources(Source(folder / "items.csv"), (Source(folder / "events.csv"),), folder / "store" / "embeddings")
store = SnapshotStore(folder / "store")
job.build(job.BuildRequest(sources, store, folder / "store" / ".building", threads=1), Mortal(), Steps(quiet=True))
"""


def test_a_build_that_was_killed_while_embedding_embeds_only_the_rest(
    shop: Shop, encoder: WordEncoder, steps: Steps, tmp_path: Path
) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", HALF_EMBEDDED, str(tmp_path)], cwd=Path(__file__).parents[2], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    result = build(shop(), encoder, steps)
    assert (result.newly_embedded, len(encoder.encoded), len(set(encoder.encoded))) == (10, 10, 10)
    whole = WordEncoder()
    vectors = whole.encode([item.text for item in some_items(30)]).vectors
    mean = shop().store.open().feature_mean
    np.testing.assert_allclose(mean, feature_mean(vectors), rtol=1e-5)
