"""What a snapshot absorbed of the catalogue log is dropped from the delta; what came after is kept."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliotrope_indexer.catalogue_delta import AbsorbedDelta, CatalogueDelta
from heliotrope_indexer.manifest import DataSummary
from heliotrope_indexer.parameters import Parameters
from heliotrope_indexer.snapshot import CatalogItem, Snapshot, write_snapshot
from heliotrope_server.catalogue_log import DELETE, CatalogueChanges, encode_upsert
from heliotrope_server.live_catalogue import DeltaItem, LiveCatalogue
from heliotrope_server.record_log import RecordLog

PARAMETERS = Parameters(half_lives_s=(60.0,), kappas=(1.0,))
BASE = [CatalogItem(f"i{row}", f"thing {row}") for row in range(5)]


def upsert(item_id: str, title: str) -> list[Any]:
    item = CatalogItem(item_id, title, "", ("kind",), "shop")
    return encode_upsert(DeltaItem(item, np.ones(3, dtype=np.float32), None, 0.0, "", "m"))


def write(folder: Path, records: list[list[Any]]) -> CatalogueChanges:
    """A log with the records, and what reading it gives."""

    async def append() -> None:
        log = RecordLog(folder)
        for record in records:
            await log.append([record], lambda lsn: lsn)
        log.close()

    asyncio.run(append())
    changes = CatalogueChanges(folder)
    changes.catch_up()
    return changes


def snapshot(folder: Path, items: list[CatalogItem], absorbed: AbsorbedDelta | None = None) -> LiveCatalogue:
    vectors = np.ones((len(items), 3))
    write_snapshot(folder, items=items, vectors=vectors, parameters=PARAMETERS, data=DataSummary(absorbed=absorbed))
    return LiveCatalogue(Snapshot(folder))


def living(catalogue: LiveCatalogue) -> dict[str, CatalogItem]:
    return {catalogue.item_ids[row]: catalogue.item(row) for row in catalogue.living_rows()}


def test_what_came_after_the_cut_off_is_kept_and_nothing_else(tmp_path: Path) -> None:
    early = [upsert("new", "added"), upsert("i1", "renamed"), [DELETE, "i2"], upsert("gone", "x"), [DELETE, "gone"]]
    delta = write(tmp_path / "early", early).delta()
    assert delta.absorbed is not None and delta.absorbed.until_lsn == 5
    late = [upsert("later", "added"), [DELETE, "new"], upsert("i2", "is back"), upsert("i1", "renamed again")]
    changes = write(tmp_path / "log", early + late)
    absorbing = snapshot(tmp_path / "s", delta.laid_over(BASE), delta.absorbed)
    assert absorbing.snapshot.item_ids[:] == ["i0", "i1", "i3", "i4", "new"]
    changes.lay_over(absorbing)
    assert [entry.item.item_id for entry in absorbing.delta] == ["later", "i2", "i1"]
    assert {item_id: item.title for item_id, item in living(absorbing).items()} == {
        "i0": "thing 0", "i1": "renamed again", "i2": "is back", "i3": "thing 3", "i4": "thing 4", "later": "added",
    }  # fmt: skip
    # The whole log over the old snapshot serves the same.
    before = snapshot(tmp_path / "old", BASE)
    changes.lay_over(before)
    assert living(before) == living(absorbing)


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["i0", "i1", "i4", "x", "y"]), st.sampled_from(["", "one", "two"])), max_size=12
)


@given(operations=OPERATIONS, cut=st.integers(min_value=0, max_value=12), foreign=st.booleans())
@settings(max_examples=40, deadline=None)
def test_absorbed_or_not_the_same_is_served(operations: list[tuple[str, str]], cut: int, foreign: bool) -> None:
    """Without a title an operation deletes. `foreign`: the snapshot was made beside another server."""
    records = [upsert(item_id, title) if title else [DELETE, item_id] for item_id, title in operations]
    cut = min(cut, len(records))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        other = [upsert("elsewhere", "another server's")] if foreign else []
        # As many changes as ours, so that the sequence numbers agree and the digest alone can tell.
        part = [*other, *records[1:cut]] if foreign and cut else records[:cut]
        delta = write(folder / "part", part).delta()
        changes = write(folder / "log", records)
        items = (CatalogueDelta((), frozenset(), None) if foreign else delta).laid_over(BASE)
        absorbing, plain = snapshot(folder / "a", items, delta.absorbed), snapshot(folder / "b", BASE)
        changes.lay_over(absorbing)
        changes.lay_over(plain)
        assert living(absorbing) == living(plain)
        if cut == len(records) and not foreign:
            assert absorbing.delta == []


def test_a_log_that_was_restored_from_an_older_backup_is_laid_over_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    delta = write(tmp_path / "log", [upsert("a", "1"), upsert("b", "2"), upsert("c", "3")]).delta()
    restored = write(tmp_path / "restored", [upsert("a", "1"), [DELETE, "i0"]])
    catalogue = snapshot(tmp_path / "s", delta.laid_over(BASE), delta.absorbed)
    restored.lay_over(catalogue)
    assert "i0" not in living(catalogue)
    assert "LSN 3 of another catalogue log; this one, at 2" in caplog.text


def test_changes_that_are_heard_of_later_go_on_top(tmp_path: Path) -> None:
    early, late = [upsert("a", "1"), [DELETE, "i0"]], [upsert("i0", "back"), [DELETE, "a"]]
    delta = write(tmp_path / "log", early).delta()
    changes = CatalogueChanges(tmp_path / "log")
    changes.catch_up()
    catalogue = snapshot(tmp_path / "s", delta.laid_over(BASE), delta.absorbed)
    changes.lay_over(catalogue)
    assert catalogue.delta == []
    write(tmp_path / "log", late)
    changes.catch_up(catalogue)
    assert living(catalogue)["i0"].title == "back" and "a" not in living(catalogue)


@given(operations=OPERATIONS, cut=st.integers(0, 12), later=st.integers(0, 12), absorbed=st.integers(0, 12))
@settings(max_examples=40, deadline=None)
def test_changes_that_come_while_others_are_laid_over_end_in_the_same(
    operations: list[tuple[str, str]], cut: int, later: int, absorbed: int
) -> None:
    """A copy of the changes up to `cut` is laid over, then what came up to `later`, then the log is followed."""
    records = [upsert(item_id, title) if title else [DELETE, item_id] for item_id, title in operations]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        delta = write(folder / "part", records[:absorbed]).delta()
        items = delta.laid_over(BASE)
        prepared, plain = snapshot(folder / "a", items, delta.absorbed), snapshot(folder / "b", items, delta.absorbed)
        changes = write(folder / "log", records[:cut])
        copy = changes.after(0)
        write(folder / "log", records[cut:later])
        changes.catch_up()
        changes.lay_over(prepared, copy)
        changes.lay_over(prepared, changes.after(copy.sequence))
        write(folder / "log", records[max(cut, later) :])
        changes.catch_up(prepared)
        changes.lay_over(plain)
        assert living(prepared) == living(plain)
        assert prepared.alive_count == plain.alive_count == len(living(plain))
        for item_id, item in living(plain).items():
            assert prepared.item(prepared.rows[item_id]) == item


def test_an_empty_log_has_nothing_to_absorb(tmp_path: Path) -> None:
    delta = write(tmp_path / "log", []).delta()
    assert delta == CatalogueDelta((), frozenset(), None)
    assert delta.laid_over(BASE) == BASE
