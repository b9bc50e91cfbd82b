"""Tokenizers that add tokens to a text by themselves, as those of LLaMA, Gemma and T5 do."""

from __future__ import annotations

import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<bos>", "<eos>", "<sop>"]
VOCABULARY = 280
BOS, EOS = 1, 2

_WORDS = ["the", "window", "of", "a", "model", "reads", "tokens", "and", "ends", "there"]


def texts(count: int, seed: int = 0) -> list[str]:
    """Documents of 1 to 60 words."""
    generator = random.Random(seed)
    return [" ".join(generator.choices(_WORDS, k=generator.randint(1, 60))) for _ in range(count)]


def make_tokenizer(template: str | None = "<bos> $A") -> PreTrainedTokenizerFast:
    """A byte-level BPE of 280 tokens with this template around a text, as `tokenizers` writes them."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts(50), trainer)
    if template is not None:
        numbered = [(token, SPECIAL.index(token)) for token in SPECIAL]
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=numbered)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )


def save_tokenizer(directory: Path, template: str | None = "<bos> $A") -> Path:
    """Such a tokenizer in a folder."""
    make_tokenizer(template).save_pretrained(directory)
    return directory
