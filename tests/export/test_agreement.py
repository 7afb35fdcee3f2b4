import numpy as np
import pytest

from heliotrope_export import AgreementError, agreement
from heliotrope_export.manifest import Agreement, VariantName


def figures(minimum: float, mean: float) -> Agreement:
    return Agreement(sentences=200, cosine_min=minimum, cosine_mean=mean, overlap_at_10=0.9, provider="CPU")


def test_the_sentences_are_many_different_and_awkward() -> None:
    ordinary, awkward = agreement.sentences(max_tokens=32)
    assert len(ordinary) >= 190
    assert len(set(ordinary)) == len(ordinary)
    assert min(map(len, ordinary)) >= 10
    assert "" in awkward
    assert any(len(text.split()) > 32 for text in awkward)


@pytest.mark.parametrize(
    ("variant", "found"),
    [("fp32", figures(0.9999, 1.0)), ("fp16", figures(0.999, 1.0)), ("int8", figures(0.5, 0.97))],
)
def test_a_bound_that_is_met(variant: VariantName, found: Agreement) -> None:
    agreement.check(variant, found)


@pytest.mark.parametrize(
    ("variant", "found"),
    [
        ("fp32", figures(0.99989, 1.0)),
        ("fp16", figures(0.9989, 1.0)),
        ("int8", figures(0.9, 0.9699)),
        ("fp32", figures(np.nan, np.nan)),
    ],
)
def test_a_bound_that_is_missed(variant: VariantName, found: Agreement) -> None:
    with pytest.raises(AgreementError, match=f"{variant} has cosine_.*Nothing was published"):
        agreement.check(variant, found)
