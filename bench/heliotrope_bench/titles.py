"""Real short texts in great number, as catalogues for the benchmarks of the index: see `HELIOTROPE_DATA`.

Package descriptions, film titles, dictionary glosses and Chinese titles, in that order, so that the first 60,000 are of
one kind and all of them of five. They have no users: biases are drawn (see `titles_store`), vectors are real.
"""

import csv
import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from heliotrope_bench.dataset import data_folder
from heliotrope_bench.errors import DatasetError
from heliotrope_bench.synthetic_store import TextSpace, write_store
from heliotrope_bench.text_features import measured_features

FILES = (
    "debian_bookworm_packages.tsv.gz",
    "movies58k_pydataset.tsv.gz",
    "wordnet_glosses.tsv.gz",
    "zh_news20k_thucnews.tsv.gz",
    "zh_anime_bangumi.tsv.gz",
)
BIAS_SPREAD = 0.05
"""Standard deviation of the drawn biases; the vectors have a length of about 0.8."""


def titles(count: int | None = None, folder: Path | None = None) -> list[str]:
    """The first `count` texts (None: all) below `folder` (default: HELIOTROPE_DATA). Raises DatasetError."""
    folder = (data_folder() if folder is None else folder) / "titles-large"
    texts: list[str] = []
    for name in FILES:
        try:
            with gzip.open(folder / name, "rt", encoding="utf-8", newline="") as file:
                texts += [": ".join(row[:2]) for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
        except OSError as error:
            raise DatasetError(f"cannot read the titles in {folder / name}: {error}") from error
        if count is not None and len(texts) >= count:
            return texts[:count]
    if count is not None:
        raise DatasetError(f"{folder} holds {len(texts):,} texts, not {count:,}")
    return texts


def titles_store(
    work: Path,
    model: Path,
    count: int,
    dimension: int,
    *,
    bias_spread: float = BIAS_SPREAD,
    folder: Path | None = None,
) -> Path:
    """A store with one snapshot of the first `count` texts, made on first use.

    Vectors are the `dimension` principal components of the features of the texts, which is also the projection of new
    texts; biases are normal. Embeddings are kept in `work`, so that a run that was stopped goes on where it was.
    """
    kind = "" if bias_spread == BIAS_SPREAD else f"-bias{bias_spread:g}"
    store = work / "titles" / f"{count}x{dimension}{kind}"
    if (store / "CURRENT").is_file():
        return store
    texts = titles(count, folder)
    found = measured_features(texts, model, work / "embeddings")
    projection = principal_directions(found.rows, dimension)
    vectors = np.ascontiguousarray(found.rows @ projection.T)
    bias = np.random.default_rng(1).normal(scale=bias_spread, size=count).astype(np.float32)
    text_space = TextSpace(projection, found.mean, found.model_version)
    return write_store(store, texts, vectors, bias, text_space=text_space)


def principal_directions(rows: NDArray[np.float32], dimension: int) -> NDArray[np.float32]:
    """The `dimension` directions in which rows (n, D) differ most, the first the most: (dimension, D)."""
    _, directions = np.linalg.eigh(rows.T @ rows)
    found: NDArray[np.float32] = np.ascontiguousarray(directions[:, ::-1][:, :dimension].T, dtype=np.float32)
    return found
