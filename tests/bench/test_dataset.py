import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from heliotrope_bench.dataset import NAMES, TIMED, data_folder, load, natural_title, recbole_file
from heliotrope_bench.errors import DatasetError

SIZES = {
    "movielens-small": (9_742, 100_836, 610),
    "movielens-100k": (1_682, 100_000, 943),
    "movietweetings-100k": (10_506, 100_000, 16_554),
    "book-crossing": (17_384, 272_678, 2_946),
    "lastfm-2k": (17_632, 92_834, 1_892),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_real_data_sets_are_read_whole(name: str) -> None:
    if not data_folder().is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"the data sets must be at {data_folder()}")
        pytest.skip(f"no data sets at {data_folder()}")
    data = load(name)
    items, ratings, users = SIZES[name]
    assert (len(data.items), len(data)) == (items, ratings)
    assert len(data.user_ids) == users and data.skipped == 0
    assert (np.diff(data.time) >= 0).all()
    assert data.timed == (name in TIMED)
    assert data.strength.min() >= 0 and data.strength.mean() <= 1.0 + 1e-9


def test_data_without_times_get_a_random_order_and_uses_are_positive(tmp_path: Path) -> None:
    folder = tmp_path / "books"
    folder.mkdir()
    with gzip.open(folder / "bookcrossing_items.csv.gz", "wt") as file:
        file.write("item_id,isbn,title,author,year,publisher\n" + "".join(f"{n},,Book {n},,,\n" for n in range(50)))
    with gzip.open(folder / "bookcrossing_events.csv.gz", "wt") as file:
        file.write("user_id,item_id,rating\n" + "".join(f"1,{n},{('', 9, 3)[n % 3]}\n" for n in range(51)))
    data = load("book-crossing", tmp_path)
    assert data.skipped == 1 and not data.timed and (np.diff(data.time) > 0).all()
    assert data.item.tolist() != sorted(data.item.tolist())
    for event, item in enumerate(data.item.tolist()):
        assert data.kind(event) == ("click" if item % 3 == 0 else "rating")
        assert data.positive[event] == (item % 3 != 2)
    again = load("book-crossing", tmp_path)
    assert again.item.tolist() == data.item.tolist()


def test_movielens_100k_comes_with_the_wheel_alone(tmp_path: Path) -> None:
    data = load("movielens-100k", tmp_path)
    assert (len(data.items), len(data)) == (1_682, 100_000)
    assert "The Empire Strikes Back (1980)" in {item.title for item in data.items}
    assert all(item.title and item.item_id for item in data.items)
    assert data.segments is not None
    assert data.segments[data.user_ids.index("1")] == ("age 20s", "gender M", "technician")


def test_small_files_of_both_forms(tmp_path: Path) -> None:
    folder = tmp_path / "movietweetings"
    folder.mkdir()
    (folder / "100K-movies.dat").write_text("01::Une vie (2016)::Drama|History\n02::No genre (2000)::\n")
    (folder / "100K-ratings.dat").write_text("1::02::9::50\n2::01::6::10\n1::99::5::30\n1::01::7::10\n")
    data = load("movietweetings-100k", tmp_path)
    assert [item.categories for item in data.items] == [("Drama", "History"), ()]
    assert data.skipped == 1
    assert data.time.tolist() == [10, 10, 50]
    assert [data.user_ids[user] for user in data.user] == ["2", "1", "1"]
    assert data.positive.tolist() == [False, True, True]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="HELIOTROPE_DATA"):
        load("movielens-small", tmp_path)
    with pytest.raises(DatasetError, match="movielens-100k"):
        load("netflix", tmp_path)
    with pytest.raises(DatasetError, match=r"recbole carries no ml\.zip"):
        recbole_file("ml.zip")


@pytest.mark.parametrize(
    ("title", "natural"),
    [("Piano, The", "The Piano"), ("Clockwork Orange, A", "A Clockwork Orange"), ("Seven", "Seven")],
)
def test_titles_are_written_as_spoken(title: str, natural: str) -> None:
    assert natural_title(title) == natural
