"""The encoder by length of the texts and size of the batch, beside PyTorch and sentence-transformers, in turns.

All take texts and give mean-pooled vectors, on as many threads. A batch holds texts of one length, so that nobody pads.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from heliotrope_bench.errors import BenchError
from heliotrope_export import TextEncoder

LENGTHS = (8, 32, 128)
"""Tokens of a text, the two special ones included."""
BATCHES = (1, 16, 128)
_SECONDS = 0.3
"""At least so long does each contender work in each of its turns."""

COLUMNS = {
    "tokens": "d",
    "batch": "d",
    "case": "",
    "rate_per_s": ",.0f",
    "of_torch": ".2f",
}

Encode = Callable[[Sequence[str]], object]


def measure_grid(
    model: Path, source: Path, variants: Sequence[str], words: Sequence[str], *, threads: int, rounds: int
) -> list[dict[str, Any]]:
    """One row for each length, batch and contender; those that are not installed have a row that says so."""
    encoders = {variant: TextEncoder.open(model, variant=variant, threads=threads) for variant in variants}
    count_tokens = _token_counter(next(iter(encoders.values())))
    contenders: dict[str, Encode] = {f"ours, {variant}": encoder.encode for variant, encoder in encoders.items()}
    contenders["torch"] = _torch(source, threads)
    rows: list[dict[str, Any]] = []
    try:
        contenders["sentence-transformers"] = _sentence_transformers(source)
    except ImportError as error:
        rows.append({"case": f"sentence-transformers: not installed ({error})"})
    for length, batch in itertools.product(LENGTHS, BATCHES):
        texts = _texts(words, length, batch, count_tokens)
        for encode in contenders.values():
            encode(texts)
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, encode in contenders.items():
                rates[name].append(_rate(encode, texts))
        for name, reached in rates.items():
            rows.append(
                {
                    "tokens": length,
                    "batch": batch,
                    "case": name,
                    "rate_per_s": statistics.median(reached),
                    "of_torch": statistics.median(
                        own / torch for own, torch in zip(reached, rates["torch"], strict=True)
                    ),
                }
            )
    return rows


def _texts(words: Sequence[str], length: int, batch: int, count_tokens: Callable[[str], int]) -> list[str]:
    """`batch` texts of exactly `length` tokens: words in a row, filled up with a word of one token."""
    source: Iterator[str] = itertools.cycle(words)
    texts = []
    for _ in range(batch):
        text = next(source)
        while count_tokens(longer := f"{text} {next(source)}") <= length:
            text = longer
        while count_tokens(text) > length:
            text = text.rpartition(" ")[0] or "the"
        texts.append(text + " the" * (length - count_tokens(text)))
    return texts


def _token_counter(encoder: TextEncoder) -> Callable[[str], int]:
    def count(text: str) -> int:
        (ids,), _ = encoder.tokenize([text])
        return len(ids)

    return count


def _rate(encode: Encode, texts: Sequence[str]) -> float:
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < _SECONDS:
        encode(texts)
        done += len(texts)
    return done / (time.perf_counter() - started)


def _torch(source: Path, threads: int) -> Encode:
    try:
        import torch
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise BenchError(f"--source compares with PyTorch: pip install 'heliotrope[export]' ({error})") from error
    torch.set_num_threads(threads)
    tokenizer: Any = AutoTokenizer.from_pretrained(source)  # type: ignore[no-untyped-call]
    model: Any = AutoModel.from_pretrained(source).eval()

    def encode(texts: Sequence[str]) -> object:
        with torch.inference_mode():
            tokens = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
            mask = tokens["attention_mask"].unsqueeze(-1)
            states = model(**tokens).last_hidden_state
            return ((states * mask).sum(1) / mask.sum(1)).numpy()

    return encode


def _sentence_transformers(source: Path) -> Encode:
    """Raises ImportError."""
    from sentence_transformers import SentenceTransformer

    model: Any = SentenceTransformer(str(source), device="cpu")

    def encode(texts: Sequence[str]) -> object:
        return model.encode(list(texts), batch_size=len(texts), show_progress_bar=False)

    return encode
