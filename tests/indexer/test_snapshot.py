"""The snapshot artefact: what is written is what is read, and anything else is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from heliotrope_indexer.ann_index import build_index
from heliotrope_indexer.attributes import NO_ATTRIBUTES
from heliotrope_indexer.errors import SnapshotCorruptError, SnapshotError, SnapshotFormatError, SnapshotNotFoundError
from heliotrope_indexer.manifest import ARRAY_FILES, ID_FILES, INDEX_FILE, ITEMS_FILE, MANIFEST_FILE, content_hash
from heliotrope_indexer.parameters import Parameters
from heliotrope_indexer.snapshot import Snapshot, SnapshotStore, write_snapshot
from tests.indexer.conftest import some_items

OLD = Path(__file__).parent / "data" / "snapshot-format-1"


def write(
    folder: Path, parameters: Parameters, *, n: int = 600, seed: int = 0, indexed: bool = False
) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    arrays: dict[str, Any] = {
        "vectors": rng.normal(size=(n, 7)).astype(np.float32),
        "bias": rng.normal(size=n).astype(np.float32),
        "projection": rng.normal(size=(7, 16)).astype(np.float32),
        "feature_mean": rng.normal(size=16).astype(np.float32),
        "prior": rng.normal(size=7).astype(np.float32),
        "scoring_matrices": rng.normal(size=(2, 7, 7)).astype(np.float32),
    }
    index = None
    if indexed:
        measured = build_index(arrays["vectors"], arrays["bias"], arrays["vectors"][:20], threads=1)
        parameters = parameters.model_copy(update={"search": measured.search})
        index = measured.index
    write_snapshot(folder, items=some_items(n), parameters=parameters, index=index, model_version="m-1", **arrays)
    return arrays


@pytest.fixture
def published(tmp_path: Path, parameters: Parameters) -> tuple[SnapshotStore, str]:
    write(tmp_path / "draft", parameters, indexed=True)
    store = SnapshotStore(tmp_path / "store")
    return store, store.publish(tmp_path / "draft")


def test_round_trip(tmp_path: Path, parameters: Parameters) -> None:
    arrays = write(tmp_path / "draft", parameters, indexed=True)
    store = SnapshotStore(tmp_path / "store")
    version = store.publish(tmp_path / "draft")
    assert (store.versions(), store.current()) == ([version], version)
    snapshot = store.open()
    for name, array in arrays.items():
        np.testing.assert_array_equal(getattr(snapshot, name), array)
        assert not getattr(snapshot, name).flags.writeable
    assert [snapshot.item(row) for row in (0, 599)] == [some_items(600)[0], some_items(600)[-1]]
    assert (snapshot.row_of("i7"), snapshot.row_of("absent"), len(snapshot)) == (7, None, 600)
    assert snapshot.manifest.model_version == "m-1"
    names, codes = snapshot.provider_codes()
    assert [names[code] for code in codes] == [item.provider for item in some_items(600)]
    names, offsets, codes = snapshot.category_codes()
    assert [[names[code] for code in codes[offsets[row] : offsets[row + 1]]] for row in range(600)] == [
        list(item.categories) for item in some_items(600)
    ]
    index = snapshot.index()
    assert index is not None
    assert (index.ntotal, index.d) == (600, 8)
    with pytest.raises(IndexError, match=r"row 600 is outside of 0 \.\. 599"):
        snapshot.item(600)


def test_the_projection_formula(published: tuple[SnapshotStore, str]) -> None:
    snapshot = published[0].open()
    pooled = np.random.default_rng(1).normal(size=(3, 16)).astype(np.float32)
    for row, text in zip(snapshot.project(pooled), pooled, strict=True):
        centred = text / np.linalg.norm(text) - snapshot.feature_mean
        np.testing.assert_allclose(row, snapshot.projection @ (centred / np.linalg.norm(centred)), rtol=1e-5)


@pytest.mark.parametrize("name", [*ARRAY_FILES, ITEMS_FILE, INDEX_FILE, MANIFEST_FILE])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "empty"])
def test_every_damage_of_every_file_is_noticed(published: tuple[SnapshotStore, str], name: str, damage: str) -> None:
    store, version = published
    path = Path(store.path) / version / name
    content = path.read_bytes()
    if damage == "flip":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif damage == "truncate":
        path.write_bytes(content[:-1] if name != MANIFEST_FILE else content[:-20])
    elif damage == "remove":
        path.unlink()
    else:
        path.write_bytes(b"")
    with pytest.raises(SnapshotError, match=name.replace(".", r"\.")):
        store.open()
    if damage != "flip" or name == MANIFEST_FILE:
        # Lengths and the manifest are checked even where hashing everything is too dear.
        with pytest.raises(SnapshotError):
            store.open(verify=False)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    raw = json.loads((folder / MANIFEST_FILE).read_text())
    change(raw)
    (folder / MANIFEST_FILE).write_text(json.dumps(raw))


def test_a_manifest_of_another_kind_is_refused(published: tuple[SnapshotStore, str]) -> None:
    store, version = published
    folder = Path(store.path) / version
    original = (folder / MANIFEST_FILE).read_text()

    def refused(change: Callable[[dict[str, Any]], object], kind: type[SnapshotError], match: str) -> None:
        rewrite(folder, change)
        with pytest.raises(kind, match=match):
            store.open()
        (folder / MANIFEST_FILE).write_text(original)

    def rehashed(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
        def apply(raw: dict[str, Any]) -> None:
            change(raw)
            raw["version"] = raw["version"][:17] + content_hash(raw)[:12]

        return apply

    refused(lambda raw: raw.update(format_version=2), SnapshotFormatError, "format version 2")
    refused(lambda raw: raw.update(version="latest"), SnapshotFormatError, "names version 'latest'")
    refused(lambda raw: raw.update(n_items=5), SnapshotCorruptError, "no longer hashes to version")
    refused(
        lambda raw: raw.update(version="2" + raw["version"][1:-13] + "-" + "0" * 12), SnapshotCorruptError, "hashes"
    )
    refused(rehashed(lambda raw: raw.update(n_items=0)), SnapshotCorruptError, "is invalid")
    refused(rehashed(lambda raw: raw["files"].pop("bias.npy")), SnapshotCorruptError, r"lists no bias\.npy")
    outside = {"../../etc/passwd": {"sha256": "0" * 64, "bytes": 1}}
    refused(rehashed(lambda raw: raw["files"].update(outside)), SnapshotFormatError, "unknown file")


def test_a_folder_under_the_wrong_name_is_refused(published: tuple[SnapshotStore, str]) -> None:
    store, version = published
    other = "20200101T000000Z-" + version[-12:]
    shutil.copytree(Path(store.path) / version, Path(store.path) / other)
    with pytest.raises(SnapshotFormatError, match=f"in {other} says it is version {version}"):
        store.open(other)


def test_versions_that_do_not_exist(tmp_path: Path, published: tuple[SnapshotStore, str]) -> None:
    store, _ = published
    with pytest.raises(SnapshotNotFoundError, match="is no snapshot store"):
        SnapshotStore(tmp_path / "absent").open()
    with pytest.raises(SnapshotNotFoundError, match="holds no version 20200101T000000Z-000000000000"):
        store.open("20200101T000000Z-000000000000")
    with pytest.raises(SnapshotFormatError, match="is not a version"):
        store.activate("../outside")
    (Path(store.path) / "CURRENT").write_bytes(b"\xff\x00garbage")
    with pytest.raises(SnapshotCorruptError, match="CURRENT"):
        store.open()


def test_activation_and_rollback(tmp_path: Path, parameters: Parameters) -> None:
    store = SnapshotStore(tmp_path / "store")
    for seed in (0, 1):
        write(tmp_path / f"draft{seed}", parameters, seed=seed)
    first, second = (store.publish(tmp_path / f"draft{seed}") for seed in (0, 1))
    assert store.current() == second
    store.activate(first)
    assert (store.current(), set(store.versions())) == (first, {first, second})


def test_nothing_wrong_is_ever_written(tmp_path: Path, parameters: Parameters) -> None:
    def refused(match: str, **changes: Any) -> None:
        arguments: dict[str, Any] = {"items": some_items(3), "vectors": np.ones((3, 2)), "parameters": parameters}
        with pytest.raises(SnapshotFormatError, match=match):
            write_snapshot(tmp_path / "draft", **{**arguments, **changes})
        assert not (tmp_path / "draft").exists()

    refused("not finite", vectors=np.full((3, 2), np.nan))
    refused(r"bias has shape \(4,\)", bias=np.zeros(4))
    refused("2 items but 3 vectors", items=some_items(2))
    refused("'i0', which is empty or already taken", items=[some_items(1)[0]] * 3)
    refused(r"not \(0, 2\)", vectors=np.ones((0, 2)))
    refused(r"scoring_matrices has shape", scoring_matrices=np.ones((1, 2, 2)))


def test_publishing_damaged_files_changes_nothing(tmp_path: Path, published: tuple[SnapshotStore, str]) -> None:
    store, version = published
    write(tmp_path / "next", Parameters(half_lives_s=(1.0, 2.0), kappas=(1.0, 1.0)), seed=5)
    (tmp_path / "next" / "bias.npy").write_bytes(b"x")
    with pytest.raises(SnapshotCorruptError):
        store.publish(tmp_path / "next")
    assert (store.current(), store.versions()) == (version, [version])


def test_a_store_behind_a_url(tmp_path: Path, parameters: Parameters) -> None:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    arrays = write(tmp_path / "draft", parameters, n=20)
    store = SnapshotStore("memory://bucket/store", cache=tmp_path / "cache")
    with pytest.raises(SnapshotNotFoundError):
        store.current()
    version = store.publish(tmp_path / "draft")
    assert (store.versions(), store.current(), store.manifest(version).n_items) == ([version], version, 20)
    np.testing.assert_array_equal(store.open().vectors, arrays["vectors"])
    # From here on the local copy serves.
    memory.rm("/bucket/store/" + version + "/vectors.npy")
    assert len(store.open(version)) == 20
    with pytest.raises(SnapshotCorruptError, match=r"vectors\.npy is missing"):
        SnapshotStore("memory://bucket/store", cache=tmp_path / "elsewhere").open()
    memory.pipe_file(f"/bucket/store/{version}/vectors.npy", b"damaged")
    with pytest.raises(SnapshotCorruptError, match=r"vectors\.npy"):
        SnapshotStore("memory://bucket/store", cache=tmp_path / "elsewhere").open()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_url_store_moves_current_last(
    tmp_path: Path, parameters: Parameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    write(tmp_path / "draft", parameters, n=20)
    order: list[str] = []
    monkeypatch.setattr(type(memory), "put_file", _recording(type(memory).put_file, order, 2))
    monkeypatch.setattr(type(memory), "pipe_file", _recording(type(memory).pipe_file, order, 1))
    SnapshotStore("memory://bucket/store", cache=tmp_path / "cache").publish(tmp_path / "draft")
    assert order[-3:] == [MANIFEST_FILE, "ACTIVATIONS", "CURRENT"]
    assert set(order[:-3]) == {*ARRAY_FILES, *ID_FILES, ITEMS_FILE}


def _recording(method: Callable[..., Any], order: list[str], at: int) -> Callable[..., Any]:
    def record(*arguments: Any, **options: Any) -> Any:
        order.append(Path(arguments[at]).name)
        return method(*arguments, **options)

    return record


def test_an_old_snapshot_still_loads() -> None:
    (version,) = SnapshotStore(OLD).versions()
    snapshot = SnapshotStore(OLD).open()
    assert snapshot.version == version
    assert isinstance(snapshot, Snapshot)
    assert [snapshot.item(row).title for row in range(3)] == [
        "thing 0 of kind 0",
        "thing 1 of kind 1",
        "thing 2 of kind 2",
    ]
    assert snapshot.item(0).provider == ""
    assert snapshot.item(0).attributes == NO_ATTRIBUTES
    assert len(snapshot.columns().providers().rows) == 0 and np.isnan(snapshot.columns().scalar("price")).all()
    names, codes = snapshot.provider_codes()
    assert {names[code] for code in codes} == {""}
    assert snapshot.vectors.shape == (300, 7)
    index = snapshot.index()
    assert index is not None
    assert index.ntotal == 300
    assert snapshot.parameters.gain("rating", 5) == 1.0
