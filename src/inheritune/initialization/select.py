"""Any choice of a model's layers, and of what to inherit of them, as a model of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from inheritune.config import Part, Pretrained, check_seed
from inheritune.initialization.assemble import assemble, read_blocks
from inheritune.models.architecture import (
    PARTS,
    check_parts,
    parts_of,
)
from inheritune.models.load import load_config
from inheritune.models.presets import from_config


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
    check_seed(seed)
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
