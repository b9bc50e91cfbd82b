"""The cut: a model's first layers, as a model of its own (Algorithm 1, step 1)."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from inheritune.initialization.assemble import assemble
from inheritune.models.architecture import first_layers
from inheritune.models.load import load_config, load_model


def inherit(
    reference: str | Path | PreTrainedModel,
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
    config = load_config(reference, revision=revision, trust_remote_code=trust_remote_code)
    chosen = first_layers(config, layers)
    whole = load_model(
        reference,
        config=config,
        layers=chosen,
        dtype=dtype,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    return assemble(whole, chosen, share=True)
