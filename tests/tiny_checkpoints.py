"""Tiny checkpoints as they lie on a disk, and ways to damage them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from tiny_models import VOCABULARY, tiny_model

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def write_tokenizer(folder: Path, vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with a chat template, saved in a folder."""
    words = {f"w{number}": number for number in range(vocabulary - 1)} | {"<end>": vocabulary - 1}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", unk_token="w0")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_sentencepiece(folder: Path) -> None:
    """A `tokenizer.model` of five pieces: SentencePiece's protocol buffer, written by hand."""
    message = b""
    for text, kind in (("<unk>", 2), ("<s>", 3), ("</s>", 3), ("\N{LOWER ONE EIGHTH BLOCK}a", 1), ("b", 1)):
        piece = text.encode()
        body = (
            b"\x0a" + bytes([len(piece)]) + piece + b"\x15" + struct.pack("<f", 0.0) + b"\x18" + bytes([kind])
        )
        message += b"\x0a" + bytes([len(body)]) + body
    (folder / "tokenizer.model").write_bytes(message)


def write_checkpoint(folder: Path, model_type: str = "llama", *, shards: int = 1, **changes: Any) -> Path:
    """A tiny model with its tokenizer, in one file or in several."""
    model = tiny_model(model_type, **changes)
    size = sum(value.numel() * 4 for value in model.state_dict().values())
    model.save_pretrained(folder, max_shard_size=10**9 if shards == 1 else int(1.2 * size / shards))
    assert (folder / (WEIGHTS if shards == 1 else INDEX)).exists()
    write_tokenizer(folder)
    return folder


def change_json(path: Path, **changes: Any) -> None:
    """Set values of a JSON object; None deletes."""
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


def change_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Rewrite a file of weights after `change` has seen them."""
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def tensor_names(path: Path) -> list[str]:
    """Names of the tensors in a file."""
    with safe_open(path, framework="pt") as file:
        return list(file.keys())
