"""The catalogues of many short texts."""

from pathlib import Path

import numpy as np
import pytest

from heliotrope_bench.errors import DatasetError
from heliotrope_bench.titles import FILES, principal_directions, titles, titles_store
from heliotrope_export import TextEncoder
from heliotrope_indexer.snapshot import SnapshotStore
from tests.bench.titles_folder import write_titles


@pytest.fixture
def data(tmp_path) -> Path:
    return write_titles(tmp_path / "data", 3, lambda number, row: f'kind {number}\tthing "{row}"\tmore')


def test_texts_come_file_by_file_with_their_quotes(data):
    assert titles(4, data) == ['kind 0: thing "0"', 'kind 0: thing "1"', 'kind 0: thing "2"', 'kind 1: thing "0"']
    assert len(titles(None, data)) == 3 * len(FILES)


def test_too_few_texts_and_a_missing_folder_are_named(data, tmp_path):
    with pytest.raises(DatasetError, match="holds 15 texts, not 16"):
        titles(16, data)
    with pytest.raises(DatasetError, match="titles-large"):
        titles(1, tmp_path)


def test_principal_directions_keep_products_when_nothing_is_cut():
    rows = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    whole = rows @ principal_directions(rows, 6).T
    np.testing.assert_allclose(whole @ whole.T, rows @ rows.T, atol=1e-4)
    kept, most = rows @ principal_directions(rows, 2).T, np.linalg.svd(rows)[1]
    np.testing.assert_allclose(np.linalg.norm(kept, axis=0), most[:2], rtol=1e-4)


def test_a_store_holds_the_texts(data, model_folder, tmp_path):
    store = titles_store(tmp_path / "work", model_folder, 12, 5, folder=data)
    snapshot = SnapshotStore(store).open()
    assert snapshot.vectors.shape == (12, 5)
    assert snapshot.bias.std() > 0.0
    assert snapshot.manifest.model_version == TextEncoder.open(model_folder).model_version


def test_a_text_of_the_catalogue_gets_its_own_vector(data, model_folder, tmp_path):
    snapshot = SnapshotStore(titles_store(tmp_path / "work", model_folder, 12, 5, folder=data)).open()
    pooled = TextEncoder.open(model_folder).encode([snapshot.item(row).text for row in range(12)]).vectors
    np.testing.assert_allclose(snapshot.project(pooled), snapshot.vectors, atol=0.05)


def test_a_store_is_made_once(data, model_folder, tmp_path):
    store = titles_store(tmp_path / "work", model_folder, 12, 5, folder=data)
    changed = (store / "CURRENT").stat().st_mtime_ns
    assert titles_store(tmp_path / "work", model_folder, 12, 5, folder=data) == store
    assert (store / "CURRENT").stat().st_mtime_ns == changed
