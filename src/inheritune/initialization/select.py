"""Any choice of a model's layers and of what to take of them; the rest is random.

For the transfer test of the paper (figure 1c: last layers, random weights, first layers), for its test of
sub-modules (attention, MLP, layer norms), and for cuts such as every other layer (DistilBERT).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from inheritune.config import Part
from inheritune.models.architecture import blocks_name, choose_layers, cut_config
from inheritune.models.parts import PARTS, check_parts, parts_of
from inheritune.models.presets import from_config
from inheritune.models.pretrained import load_config, load_model


def select(
    reference: str | Path | PreTrainedModel,
    layers: Sequence[int],
    *,
    parts: Sequence[Part] = PARTS,
    seed: int = 0,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """These blocks of a model, in this order, with its embeddings, final norm and head.

    A tied tensor belongs to two parts, embeddings and head: naming either takes it. From an id or a folder
    the blocks after the last one chosen stay on the disk.

    Args:
        reference: Hugging Face model id, checkpoint folder, or a model in memory (copied, not changed).
        layers: numbers of the blocks, from 0; a block may be taken more than once.
        parts: parts to inherit; all others keep their random weights from this seed.
        seed: of the random weights.
        revision: branch, tag or commit of a model id.
        trust_remote_code: run code that comes with the model.

    Returns:
        A float32 model of `len(layers)` blocks, in evaluation mode.

    Raises:
        UserError: not a model, no layers, a layer that it does not have, no parts, or an unknown one.
    """
    check_parts(parts)
    if not isinstance(reference, PreTrainedModel):
        config = load_config(reference, revision=revision, trust_remote_code=trust_remote_code)
        choose_layers(config, layers)  # a layer that is not there is told before anything is read
        reference = load_model(
            reference,
            config=cut_config(config, max(layers) + 1),
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
    model = from_config(choose_layers(reference.config, layers), seed)
    blocks, part_of, weights = blocks_name(reference), parts_of(reference), reference.state_dict()
    block = re.compile(rf"{re.escape(blocks)}\.(\d+)\.")
    inherited = {}
    for name in model.state_dict():
        place = block.match(name)
        source = name if place is None else block.sub(f"{blocks}.{layers[int(place[1])]}.", name)
        if part_of[source] in parts:
            inherited[name] = weights[source]
    model.load_state_dict(inherited, strict=False)
    model.generation_config = copy.deepcopy(reference.generation_config)
    return model.to(torch.float32).eval()
