"""Any choice of a model's layers, with its blocks or with random ones in their place.

For the transfer test of the paper (figure 1c: last layers, random weights, first layers), and for cuts such as
every other layer (DistilBERT).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from inheritune.models.architecture import blocks_name, choose_layers
from inheritune.models.presets import from_config
from inheritune.models.pretrained import load_model


def select(
    reference: str | Path | PreTrainedModel,
    layers: Sequence[int],
    *,
    random_blocks: bool = False,
    seed: int = 0,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """These blocks of a model, in this order, with its embeddings, final norm and head.

    Args:
        reference: Hugging Face model id, checkpoint folder, or a model in memory (copied, not changed).
        layers: numbers of the blocks, from 0; a block may be taken more than once.
        random_blocks: leave the blocks' random weights in place, and inherit only what is around them.
        seed: of the random weights.
        revision: branch, tag or commit of a model id.
        trust_remote_code: run code that comes with the model.

    Returns:
        A float32 model of `len(layers)` blocks, in evaluation mode.

    Raises:
        ValueError: not a model, no layers, or a layer that it does not have.
    """
    if not isinstance(reference, PreTrainedModel):
        reference = load_model(reference, revision=revision, trust_remote_code=trust_remote_code)
    model = from_config(choose_layers(reference.config, layers), seed)
    block = re.compile(rf"{re.escape(blocks_name(reference))}\.(\d+)\.")
    weights, inherited = reference.state_dict(), {}
    for name in model.state_dict():
        place = block.match(name)
        if place is None:
            inherited[name] = weights[name]
        elif not random_blocks:
            inherited[name] = weights[block.sub(f"{blocks_name(reference)}.{layers[int(place[1])]}.", name)]
    model.load_state_dict(inherited, strict=False)
    return model.to(torch.float32).eval()
