"""Texts of similar length, padded to the longest of them and no further."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """One call of the model: b texts of at most t tokens."""

    rows: NDArray[np.int64]  # (b,) which texts these are
    token_ids: NDArray[np.int64]  # (b, t)
    attention_mask: NDArray[np.int64]  # (b, t) 1 for a token, 0 for padding

    @property
    def padded_tokens(self) -> int:
        return self.token_ids.size


def token_batches(token_ids: Sequence[Sequence[int]], *, budget: int, pad_token_id: int) -> Iterator[TokenBatch]:
    """Sorts texts by length and cuts them into batches of at most `budget` tokens, padding included.

    A batch always holds at least one text, however long. Within equal lengths the order is the caller's, so the same
    texts always give the same batches. `token_ids` holds one list per text.
    """
    lengths = np.fromiter((len(ids) for ids in token_ids), dtype=np.int64, count=len(token_ids))
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * lengths[order[end]] <= budget:
            end += 1
        rows = order[start:end]
        yield _padded(token_ids, rows, int(lengths[rows[-1]]), pad_token_id)
        start = end


def _padded(token_ids: Sequence[Sequence[int]], rows: NDArray[np.int64], width: int, pad_token_id: int) -> TokenBatch:
    padded = np.full((len(rows), width), pad_token_id, dtype=np.int64)
    mask = np.zeros_like(padded)
    for line, row in enumerate(rows):
        ids = token_ids[row]
        padded[line, : len(ids)] = ids
        mask[line, : len(ids)] = 1
    return TokenBatch(rows, padded, mask)
