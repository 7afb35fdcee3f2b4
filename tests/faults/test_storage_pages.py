"""Damaged pages of a profile store. LMDB has no checksums of its own; its values have."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from heliotrope_server.data_source import DataSource
from heliotrope_server.errors import DataFolderError
from heliotrope_server.layout import Layout, write_layout
from heliotrope_server.verify import verify_data
from heliotrope_server.verify_content import Report
from tests.server import worlds

NOW_S = 1.7e9
PAGE = 4096


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data folder of 150 users, and where its profiles are."""
    import asyncio

    folder = tmp_path_factory.mktemp("pages")

    async def live():
        served = worlds.catalogue(folder)
        async with worlds.engine(folder, served, wall_clock=lambda: NOW_S) as engine:
            await engine.record(worlds.random_events(np.random.default_rng(0), 3000, users=150, now_s=NOW_S))
            await engine.checkpoint()
            await engine.record(worlds.random_events(np.random.default_rng(1), 300, users=150, now_s=NOW_S))

    asyncio.run(live())
    (folder / "data" / "g-test").mkdir(parents=True)
    (folder / "shard").rename(folder / "data" / "g-test" / "shard-000")
    write_layout(folder / "data", Layout(generation="g-test", shards=1))
    return folder / "data"


def read_all(data):
    return list(DataSource(data).store_entries("g-test/shard-000/profiles"))


def zero_page(content, rng):
    start = rng.randrange(2, len(content) // PAGE) * PAGE
    content[start : start + PAGE] = bytes(PAGE)


def other_page(content, rng):
    """A write that went to the wrong place."""
    source, target = (rng.randrange(2, len(content) // PAGE) * PAGE for _ in range(2))
    content[target : target + PAGE] = content[source : source + PAGE]


def flip_in_header(content, rng):
    place = rng.randrange(2, len(content) // PAGE) * PAGE + rng.randrange(64)
    content[place] ^= 1 << rng.randrange(8)


def flip_anywhere(content, rng):
    content[rng.randrange(2 * PAGE, len(content))] ^= 1 << rng.randrange(8)


@pytest.mark.parametrize("damage", [zero_page, other_page, flip_in_header, flip_anywhere])
@pytest.mark.parametrize("seed", range(30))
def test_damage_is_found_or_changes_nothing(data, tmp_path, damage, seed):
    copy = Path(shutil.copytree(data, tmp_path / "data"))
    whole = read_all(copy)
    path = copy / "g-test" / "shard-000" / "profiles" / "data.mdb"
    content = bytearray(path.read_bytes())
    damage(content, random.Random(seed))
    path.write_bytes(content)
    report = Report()
    verify_data(copy, report)
    if report.problems:
        assert all("g-test/shard-000/profiles" in problem for problem in report.problems)
    else:
        assert read_all(copy) == whole


def test_a_store_without_its_first_pages_is_refused_by_name(data, tmp_path):
    copy = Path(shutil.copytree(data, tmp_path / "data"))
    path = copy / "g-test" / "shard-000" / "profiles" / "data.mdb"
    content = bytearray(path.read_bytes())
    content[: 2 * PAGE] = bytes(2 * PAGE)
    path.write_bytes(content)
    with pytest.raises(DataFolderError, match="g-test/shard-000/profiles is damaged"):
        read_all(copy)
