import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from heliotrope_export.token_batch import token_batches

texts = st.lists(st.lists(st.integers(5, 99), min_size=1, max_size=40), max_size=60)


@given(texts, st.integers(1, 200))
def test_every_text_is_in_one_batch_unchanged(token_ids: list[list[int]], budget: int) -> None:
    seen: list[int] = []
    for batch in token_batches(token_ids, budget=budget, pad_token_id=1):
        seen.extend(batch.rows.tolist())
        assert batch.padded_tokens <= budget or len(batch.rows) == 1
        assert batch.token_ids.shape[1] == max(len(token_ids[row]) for row in batch.rows)
        for row, ids, mask in zip(batch.rows, batch.token_ids, batch.attention_mask, strict=True):
            length = len(token_ids[row])
            assert ids[:length].tolist() == token_ids[row]
            assert mask.tolist() == [1] * length + [0] * (len(ids) - length)
            assert (ids[length:] == 1).all()
    assert sorted(seen) == list(range(len(token_ids)))


def test_texts_of_similar_length_share_a_batch() -> None:
    lengths = [30, 3, 28, 4, 29, 3]
    batches = list(token_batches([[7] * n for n in lengths], budget=90, pad_token_id=0))
    assert [batch.rows.tolist() for batch in batches] == [[1, 5, 3], [2, 4, 0]]


def test_equal_lengths_keep_the_callers_order() -> None:
    (batch,) = token_batches([[number] for number in range(50)], budget=512, pad_token_id=0)
    np.testing.assert_array_equal(batch.rows, np.arange(50))
