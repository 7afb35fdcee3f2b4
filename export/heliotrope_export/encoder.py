"""Text to vectors, from a model folder: ONNX Runtime, a tokenizer and NumPy; neither torch nor transformers."""

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from heliotrope_export.errors import ModelCorruptError, VariantError
from heliotrope_export.installation import check_single_runtime
from heliotrope_export.manifest import (
    TOKENIZER_FILE,
    Manifest,
    VariantName,
    VectorSpace,
    check_files,
    read_manifest,
    variant_file,
)
from heliotrope_export.session import CPU, CUDA_DEVICE, candidates, open_session, run_bound
from heliotrope_export.token_batch import TokenBatch, token_batches

# Tokens per call of the model, padding included. Measured with all-MiniLM-L6-v2 on 900 titles and descriptions (16
# tokens on average) and on longer texts, one and two cores: 256 to 512 is the optimum for fp32 and int8 alike, 2,048
# is 9-15 % slower and 16,384 half as fast, since activations then leave the cache. A GPU wants enough to fill it; its
# figure is not measured.
TOKEN_BUDGET = {CPU: 512}
TOKEN_BUDGET_ACCELERATOR = 16_384
# Texts tokenised ahead of the model: enough to sort by length, little enough to hold.
WINDOW = 4_096
# Tokenising 10 MB takes seconds and 99.9 % of it is then thrown away. No language writes tokens this long on average.
CHARACTERS_PER_TOKEN = 64

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoding:
    """What `TextEncoder.encode` returns: row i belongs to text i."""

    vectors: NDArray[np.float32]  # (n, D) pooled, not normalised
    truncated: NDArray[np.bool_]  # (n,) the text was longer than max_tokens and its end was not read


class _Running(NamedTuple):
    """A session and where it runs, read and replaced together."""

    session: Any
    provider: str


class TextEncoder:
    """Turns texts into vectors with one variant of an exported model. Safe to share between threads.

    An encoder on a GPU goes on with the same variant on the CPU when the device fails.
    """

    def __init__(
        self,
        session: Any,
        tokenizer: Tokenizer,
        space: VectorSpace,
        variant: VariantName,
        on_cpu: Callable[[], Any] | None = None,
    ) -> None:
        """For the exporter, which has no manifest yet; everybody else uses `open`.

        `session` is an `onnxruntime.InferenceSession` of the variant's graph; `on_cpu` opens the same on the CPU.
        """
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length=space.max_tokens)
        self._running = _Running(session, session.get_providers()[0])
        self._on_cpu = on_cpu
        self._falling_back = threading.Lock()
        self._lost = ""
        self._tokenizer = tokenizer
        self._pad_token_id = space.pad_token_id
        self._inputs = frozenset(entry.name for entry in session.get_inputs())
        self.dimension: int = space.dimension
        self.max_tokens: int = space.max_tokens
        self.model_version: str = space.model_version
        self.variant: str = variant

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        variant: str | None = None,
        threads: int | None = None,
        verify: bool = True,
        providers: Collection[str] | None = None,
    ) -> "TextEncoder":
        """Opens a model folder.

        Args:
            path: the folder that `heliotrope export` wrote.
            variant: fp32, fp16 or int8; None takes fp16 where CUDA works, else int8 if published, else fp32.
            threads: threads of one `encode`; None is one per core.
            verify: hash the files that are used (about 0.1 s for 60 MB); sizes are compared in any case.
            providers: what it may run on, the CPU in any case; None is all that this ONNX Runtime offers.

        Raises:
            ModelNotFoundError, ModelFormatError, ModelCorruptError: absent, of another release, damaged.
            VariantError: the variant is unknown, or was not published here.
            InstallationError: onnxruntime and onnxruntime-gpu are both installed.
            ValueError: threads < 1.
        """
        check_single_runtime()
        if threads is not None and threads < 1:
            raise ValueError(f"threads is {threads}; at least 1 is needed (None: one per core)")
        folder = Path(path)
        manifest = read_manifest(folder)
        asked = _known(variant, manifest, folder)
        check_files(folder, manifest, [TOKENIZER_FILE], hashes=verify)
        tokenizer = load_tokenizer(folder / TOKENIZER_FILE)
        available = onnxruntime.get_available_providers() if providers is None else providers
        for name, provider in candidates(asked, manifest.variants, available):
            graph = variant_file(name)
            check_files(folder, manifest, [graph], hashes=verify)
            session = open_session(folder / graph, provider, threads=threads)
            if session is not None:
                on_cpu = None if provider == CPU else partial(open_session, folder / graph, CPU, threads=threads)
                return cls(session, tokenizer, manifest.space, name, on_cpu)
        raise AssertionError("the CPU provider is always a candidate")

    @property
    def provider(self) -> str:
        """ONNX Runtime's name of what it runs on."""
        return self._running.provider

    @property
    def token_budget(self) -> int:
        """Tokens of one call of the model, padding included."""
        return TOKEN_BUDGET.get(self.provider, TOKEN_BUDGET_ACCELERATOR)

    @property
    def description(self) -> str:
        """What it runs on, for people: "CPUExecutionProvider int8", and whether a GPU was lost before."""
        return f"{self.provider} {self.variant}{self._lost}"

    def encode(self, texts: Sequence[str], *, progress: Callable[[int], None] | None = None) -> Encoding:
        """Embeds texts, in any number and of any length; an empty list gives (0, D).

        Texts are taken as they are: an empty one has a vector too; a lone surrogate, which is not text, reads as "?".
        An int8 vector depends on the texts that share its batch, because activations are quantised per batch: alone
        and in company it differs by 0.01 in cosine on average, about as much as it differs from float32. fp32 and fp16
        vectors do not depend on their batch.

        `progress` is called after each batch with how many texts that batch finished.
        """
        if isinstance(texts, str):
            raise TypeError("texts is one str; pass a list of them")
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        truncated = np.zeros(len(texts), dtype=np.bool_)
        for start in range(0, len(texts), WINDOW):
            token_ids, cut = self.tokenize(texts[start : start + WINDOW])
            truncated[start : start + WINDOW] = cut
            for batch in token_batches(token_ids, budget=self.token_budget, pad_token_id=self._pad_token_id):
                vectors[start + batch.rows] = self.run(batch)
                if progress is not None:
                    progress(len(batch.rows))
        return Encoding(vectors, truncated)

    def tokenize(self, texts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        """Token ids of each text, special tokens included, and whether its end was cut off."""
        limit = self.max_tokens * CHARACTERS_PER_TOKEN
        cut = [text[:limit] for text in texts]
        try:
            encodings = self._tokenizer.encode_batch_fast(cut)
        except TypeError:
            # What a lone surrogate raises. Replacing costs a copy of every text, so only where it is needed.
            cut = [text.encode(errors="replace").decode() for text in cut]
            encodings = self._tokenizer.encode_batch_fast(cut)
        truncated = [
            bool(encoding.overflowing) or len(text) > limit for encoding, text in zip(encodings, texts, strict=True)
        ]
        return [encoding.ids for encoding in encodings], truncated

    def run(self, batch: TokenBatch) -> NDArray[np.float32]:
        """One call of the model: (b, D) pooled vectors of the batch's texts."""
        inputs = {"input_ids": batch.token_ids, "attention_mask": batch.attention_mask}
        if "token_type_ids" in self._inputs:
            inputs["token_type_ids"] = np.zeros_like(batch.token_ids)
        running = self._running
        if running.provider != CPU and self._on_cpu is not None:
            try:
                return run_bound(running.session, inputs, CUDA_DEVICE)
            # ONNX Runtime raises a family of unrelated C++ exception types. What is wrong with the inputs themselves
            # is raised again below.
            except Exception as error:
                running = self._fall_back(self._on_cpu, error)
        pooled: NDArray[np.float32] = running.session.run(None, inputs)[0]
        return pooled

    def _fall_back(self, on_cpu: Callable[[], Any], error: Exception) -> _Running:
        """Runs on the CPU from now on; the first thread that fails opens it for all.

        The variant stays, however slow it is there: vectors of another one are not the same, and what keeps vectors
        keeps them by variant.
        """
        with self._falling_back:
            if self.provider != CPU:
                log.error("%s fails, the encoder goes on with %s: %s", self.provider, CPU, error)
                self._lost = f" ({self.provider} lost)"
                self._running = _Running(on_cpu(), CPU)
            return self._running


def load_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelCorruptError(f"{path} is not a tokenizer: {error}") from error


def _known(variant: str | None, manifest: Manifest, folder: Path) -> VariantName | None:
    """The variant as one of the known names, refused where it is unknown or not published."""
    known = next((name for name in get_args(VariantName) if name == variant), None)
    if variant is not None and known not in manifest.variants:
        what = "was not published" if known else "is unknown"
        raise VariantError(f"variant {variant!r} {what} in {folder}, which has {', '.join(manifest.variants)}")
    return known
