"""The cut: a model's first layers (Algorithm 1, step 1), or any choice of them, as a model of its own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from inheritune.config import Part, Pretrained
from inheritune.initialization.assemble import assemble, read_blocks
from inheritune.models.architecture import (
    PARTS,
    check_parts,
    first_layers,
    parts_of,
)
from inheritune.models.load import load_config
from inheritune.models.presets import from_config

logger = logging.getLogger(__name__)

DTYPES = ("auto", "float32", "bfloat16", "float16")


def inherit(
    reference: str | Path | Pretrained | PreTrainedModel,
    layers: int,
    *,
    dtype: torch.dtype | str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The first `layers` transformer blocks of a model, with all its embeddings, its final norm and its head.

    The hidden state after the last block kept equals the reference's after that block, bit for bit, which is
    checked on a few tokens. Tied weights stay tied; what the configuration says of single layers follows them. From
    an id or a folder only the tensors that are kept are read.

    Args:
        reference: Hugging Face model id, checkpoint folder, or a model in memory (copied, not changed).
        layers: how many blocks to keep, 1 to the reference's depth.
        dtype: of the weights when read; "auto" keeps the checkpoint's. A model in memory keeps its own.
        revision: branch, tag or commit of a model id.
        trust_remote_code: run code that comes with the model.

    Raises:
        UserError: not a model, no safetensors, `layers` out of range, or an architecture that is not understood or
            cannot be cut there exactly.

    Source: Inheritune (arXiv 2404.08634), Algorithm 1, step 1. The official code leaves out the position
    embedding and the final norm of GPT-2, and the token embedding and the final norm of LLaMA; the paper
    inherits them, and so does this.
    """
    if isinstance(reference, PreTrainedModel):
        return assemble(reference, first_layers(reference.config, layers))
    source = Pretrained.of(reference, revision, trust_remote_code)
    config = load_config(source)
    return read_blocks(source, config, first_layers(config, layers), dtype)


def select(
    reference: Pretrained | str | Path | PreTrainedModel,
    layers: Sequence[int],
    *,
    parts: Sequence[Part] = PARTS,
    seed: int = 0,
) -> PreTrainedModel:
    """These blocks of a model, in this order, with its embeddings, final norm and head.

    For the transfer test of the paper (figure 1c: last layers, random weights, first layers), for its test of
    sub-modules (attention, MLP, layer norms), and for cuts such as every other layer (DistilBERT).

    A tied tensor belongs to two parts, embeddings and head: naming either takes it. From an id or a folder
    only the tensors of these blocks are read.

    Args:
        reference: Hugging Face model id, checkpoint folder, or a model in memory (copied, not changed).
        layers: numbers of the blocks, from 0; a block may be taken more than once.
        parts: parts to inherit; all others keep their random weights from this seed.
        seed: of the random weights.

    Returns:
        A float32 model of `len(layers)` blocks, in evaluation mode.

    Raises:
        UserError: not a model, no layers, a layer that it does not have, no parts, or an unknown one.
    """
    check_parts(parts)
    if isinstance(reference, PreTrainedModel):
        whole = assemble(reference, layers, dtype=torch.float32)
    else:
        whole = read_blocks(Pretrained.of(reference), load_config(reference), layers, torch.float32)
    part_of = parts_of(whole)
    if set(part_of.values()) <= set(parts):
        return whole
    model = from_config(whole.config, seed)
    inherited = {name: value for name, value in whole.state_dict().items() if part_of[name] in parts}
    model.load_state_dict(inherited, strict=False)
    return model.eval()
