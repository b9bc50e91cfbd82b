"""Small tokenizers of the kinds that language models have, trained on a few words."""

from __future__ import annotations

import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from inheritune.data.vocabulary import BYTES, SPACE

_WORDS = [
    "the",
    "window",
    "of",
    "a",
    "model",
    "reads",
    "tokens",
    "and",
    "ends",
    "there",
    "while",
    "another",
    "thing",
]
_WORDS += ["lengthens", "in", "woods", "über", "漢字"]
SPECIAL = ["<unk>", "<s>", "</s>"]


def texts(count: int, seed: int = 0) -> list[str]:
    """Documents of 1 to 60 words, some of them made of two."""
    generator = random.Random(seed)

    def word() -> str:
        return "".join(generator.choices(_WORDS, k=generator.choice([1, 1, 1, 2])))

    return [" ".join(word() for _ in range(generator.randint(1, 60))) for _ in range(count)]


def byte_level(ignore_merges: bool = False) -> PreTrainedTokenizerFast:
    """As GPT-2, SmolLM and (with `ignore_merges`) Llama 3: special tokens before and after the others."""
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts(200), trainer)
    backend.add_special_tokens(["</s>", "<pad>"])
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]),
        ]
    )
    backend.enable_padding(pad_id=backend.token_to_id("<pad>"), pad_token="<pad>")
    backend.no_padding()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def byte_fallback() -> LlamaTokenizer:
    """As Llama 2: SentencePiece's BPE, in which a token has every merge of two others that gives it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(SPACE)
    backend.train_from_iterator(texts(200), trainers.BpeTrainer(vocab_size=150, show_progress=False))
    learned = sorted(backend.get_vocab(), key=backend.token_to_id)
    learned.sort(key=lambda token: len(token) == 1)  # characters last, as SentencePiece has them
    ids = {token: place for place, token in enumerate([*SPECIAL, *BYTES, *learned])}
    merges = [
        (token[:cut], token[cut:])
        for token in learned
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    return LlamaTokenizer(vocab=ids, merges=merges)


def unigram(byte_fallback: bool = True) -> PreTrainedTokenizerFast:
    """As T5, or with bytes as Gemma's SentencePiece."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(SPACE)
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(texts(200), trainer)
    pieces = [
        (token, _score(backend, token)) for token in sorted(backend.get_vocab(), key=backend.token_to_id)
    ]
    if byte_fallback:
        pieces[3:3] = [(token, 0.0) for token in BYTES]
    whole = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=byte_fallback))
    whole.normalizer = normalizers.NFKC()
    whole.pre_tokenizer = pre_tokenizers.Metaspace(SPACE)
    whole.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=whole, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def _score(backend: Tokenizer, token: str) -> float:
    """A score that falls with the id, as trained ones do."""
    return -1.0 - backend.token_to_id(token) / 20


KINDS = {
    "byte-level": byte_level,
    "ignoring merges": lambda: byte_level(ignore_merges=True),
    "byte fallback": byte_fallback,
    "unigram": unigram,
    "unigram without bytes": lambda: unigram(byte_fallback=False),
}


def save(kind: str, folder: Path) -> Path:
    """Such a tokenizer in a folder."""
    KINDS[kind]().save_pretrained(folder)
    return folder
