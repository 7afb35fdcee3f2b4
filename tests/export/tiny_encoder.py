"""Tiny random encoders of the BERT family, complete with tokenizer, as transformers saves them."""

from pathlib import Path
from typing import Any

from heliotrope_export.conversion import quiet

# [PAD] is 1 because RoBERTa's relatives count their positions from there.
SPECIAL = {"cls": "[CLS]", "pad": "[PAD]", "sep": "[SEP]", "unk": "[UNK]", "mask": "[MASK]"}
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,;:'!?-()$"
POSITIONS = 64


def save_tiny_encoder(folder: Path, architecture: str = "bert", *, seed: int = 0) -> Path:
    """Writes two layers of random weights and a letter-wise tokenizer, made anew from `seed`; returns the folder."""
    with quiet():
        import torch
        from transformers import AutoConfig, AutoModel, BertTokenizerFast

        torch.manual_seed(seed)
        vocabulary = [*SPECIAL.values(), *LETTERS, *(f"##{letter}" for letter in LETTERS)]
        shape: dict[str, Any] = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "embedding_size": 32,
        }
        if architecture == "distilbert":
            shape = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
        config = AutoConfig.for_model(
            architecture,
            vocab_size=len(vocabulary),
            max_position_embeddings=POSITIONS,
            pad_token_id=1,
            # Wider than usual, so that random vectors of different texts differ.
            initializer_range=0.2,
            **shape,
        )
        AutoModel.from_config(config).save_pretrained(folder)
        (folder / "vocab.txt").write_text("\n".join(vocabulary))
        BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder
