"""How close an exported variant is to the PyTorch model it came from, and how close it has to be."""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliotrope_export.conversion import quiet
from heliotrope_export.encoder import TextEncoder
from heliotrope_export.errors import AgreementError
from heliotrope_export.manifest import Agreement, Pooling, VariantName

NEIGHBOURS = 10
TORCH_BATCH = 16
# (field of Agreement, least value). Quantisation moves single texts, so int8 is judged by its mean.
BOUNDS: dict[VariantName, tuple[str, float]] = {
    "fp32": ("cosine_min", 0.9999),
    "fp16": ("cosine_min", 0.999),
    "int8": ("cosine_mean", 0.97),
}


def sentences(max_tokens: int) -> tuple[list[str], list[str]]:
    """(ordinary texts, awkward ones): the committed titles and descriptions, and what real catalogues also hold."""
    ordinary = files("heliotrope_export").joinpath("sentences.txt").read_text("utf-8").splitlines()
    # A word is at least one token, so this is cut off whatever the tokenizer.
    too_long = " ".join(" ".join(ordinary).split()[: max_tokens + 50])
    awkward = [
        "",
        " ",
        ".",
        "?!... --- ***",
        "1999",
        "a",
        "\t\n",
        "Ünïcödé, naïve café",
        "日本語の題名",
        "🎬🎧",
        too_long,
    ]
    return ordinary, awkward


def torch_vectors(
    encoder: Any, tokenizer: Any, texts: Sequence[str], *, max_tokens: int, pooling: Pooling
) -> NDArray[np.float32]:
    """(n, D) pooled vectors by PyTorch and transformers' own tokenizer: the reference, in the plainest form.

    In batches, because thread hand-overs of single texts take a minute on a busy machine.
    """
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    vectors: dict[int, NDArray[np.float32]] = {}
    with quiet():
        import torch

        for start in range(0, len(order), TORCH_BATCH):
            rows = order[start : start + TORCH_BATCH]
            inputs = tokenizer(
                [texts[row] for row in rows],
                padding=True,
                truncation=True,
                max_length=max_tokens,
                return_tensors="pt",
            )
            mask = inputs["attention_mask"]
            with torch.inference_mode():
                tokens = encoder(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state
            mask = mask.unsqueeze(-1)
            pooled = tokens[:, 0] if pooling == "cls" else (tokens * mask).sum(dim=1) / mask.sum(dim=1)
            vectors.update(zip(rows, pooled.numpy(), strict=True))
    return np.stack([vectors[row] for row in range(len(texts))])


def measure(encoder: TextEncoder, reference: NDArray[np.float32]) -> Agreement:
    """Compares `encoder` with reference vectors (n, D) of the texts that `sentences` gives.

    Cosines are over all texts; neighbours are over the ordinary ones, among which they mean something.
    """
    ordinary, awkward = sentences(encoder.max_tokens)
    ours = _normalised(encoder.encode(ordinary + awkward).vectors)
    theirs = _normalised(reference)
    cosines = np.sum(ours * theirs, axis=1)
    near, expected = _neighbours(ours[: len(ordinary)]), _neighbours(theirs[: len(ordinary)])
    overlap = [len(set(a) & set(b)) / NEIGHBOURS for a, b in zip(near.tolist(), expected.tolist(), strict=True)]
    return Agreement(
        sentences=len(cosines),
        cosine_min=round(float(cosines.min()), 6),
        cosine_mean=round(float(cosines.mean()), 6),
        overlap_at_10=round(float(np.mean(overlap)), 4),
        provider=encoder.provider,
    )


def check(variant: VariantName, agreement: Agreement) -> None:
    """Raises AgreementError where a variant misses its bound. A NaN misses every bound."""
    field, bound = BOUNDS[variant]
    found = getattr(agreement, field)
    if not found >= bound:
        raise AgreementError(
            f"{variant} has {field} {found:.6f} with the PyTorch model on {agreement.sentences} sentences; "
            f"at least {bound} is required (cosine mean {agreement.cosine_mean:.6f}, "
            f"overlap@10 {agreement.overlap_at_10:.3f}). Nothing was published: leave the variant out with --variants"
        )


def _normalised(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    normalised: NDArray[np.float64] = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return normalised


def _neighbours(normalised: NDArray[np.float64]) -> NDArray[np.intp]:
    """(n, 10) rows of the nearest others."""
    similarity = normalised @ normalised.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argsort(-similarity, axis=1, kind="stable")[:, :NEIGHBOURS]
