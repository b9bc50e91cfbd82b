"""Any choice of a model's layers and of what to take of them; the rest is random.

For the transfer test of the paper (figure 1c: last layers, random weights, first layers), for its test of
sub-modules (attention, MLP, layer norms), and for cuts such as every other layer (DistilBERT).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from inheritune.config import Part
from inheritune.initialization.assemble import assemble
from inheritune.models.architecture import choose_layers
from inheritune.models.load import load_config, load_model
from inheritune.models.parts import PARTS, check_parts, parts_of
from inheritune.models.presets import from_config


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
    share = not isinstance(reference, PreTrainedModel)
    if not isinstance(reference, PreTrainedModel):
        config = load_config(reference, revision=revision, trust_remote_code=trust_remote_code)
        choose_layers(config, layers)  # what cannot be is refused before anything is read
        reference = load_model(
            reference, config=config, layers=layers, revision=revision, trust_remote_code=trust_remote_code
        )
    whole = assemble(reference, layers, dtype=torch.float32, share=share)
    part_of = parts_of(whole)
    if set(part_of.values()) <= set(parts):
        return whole
    model = from_config(whole.config, seed)
    inherited = {name: value for name, value in whole.state_dict().items() if part_of[name] in parts}
    model.load_state_dict(inherited, strict=False)
    return model.eval()
