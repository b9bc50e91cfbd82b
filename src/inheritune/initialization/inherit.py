"""The cut: a model's first layers (Algorithm 1, step 1), or any choice of them, as a model of its own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from inheritune import UserError
from inheritune.card import card_name, model_card
from inheritune.config import Part, Pretrained
from inheritune.initialization.assemble import assemble, read_blocks
from inheritune.models.architecture import (
    PARTS,
    check_parts,
    first_layers,
    layer_count,
    parameter_count,
    parts_of,
)
from inheritune.models.exactness import check_exact
from inheritune.models.load import load_config, load_model, read_tokenizer, save_model
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


@dataclass(frozen=True)
class Cut:
    """What was made: layers kept, layers there were, parameters of the result."""

    layers: int
    of_layers: int
    parameters: int


def cut_to_folder(model: Pretrained | str | Path, layers: int, output: Path, *, dtype: str = "auto") -> Cut:
    """`inherit`, and save the result with the tokenizer that the model comes with, and a model card.

    Before it stands at `output` it is read again, and has to compute what was cut; else nothing is left behind.

    Raises:
        UserError: as `inherit`; an unknown dtype; there is something at `output` already.
    """
    if output.exists():
        raise UserError(f"{output} exists already; nothing was written")
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
    source = Pretrained.of(model)
    config, tokenizer = load_config(source), read_tokenizer(source)
    depth = layer_count(config)
    small = read_blocks(source, config, first_layers(config, layers), dtype)
    output.parent.mkdir(parents=True, exist_ok=True)

    def check(folder: Path) -> None:
        check_exact(load_model(folder, dtype=small.dtype), small, range(layers))

    save_model(small, output, tokenizer=tokenizer, card=_card(source, layers, depth), check=check)
    if not tokenizer:
        logger.warning("%s comes without a tokenizer: there is none in %s either", source, output)
    return Cut(layers, depth, parameter_count(small))


def _card(source: Pretrained, layers: int, depth: int) -> str:
    name = card_name(str(source))
    text = f"""
Blocks 0 to {layers - 1}, all embeddings, the final norm and the head of {name}, as they are: the first step of
*Inheritune: Training Smaller Yet More Attentive Language Models* (arXiv 2404.08634). It is meant to be trained
further; as it is, it predicts far worse than {name}.
"""
    return model_card(f"The first {layers} of {depth} layers of {name}", text, str(source))
