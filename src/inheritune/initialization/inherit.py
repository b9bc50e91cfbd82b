"""The cut: a model's first layers, as a model of its own (Algorithm 1, step 1)."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from inheritune.models.architecture import blocks_name, cut_config
from inheritune.models.presets import freeze_biases
from inheritune.models.pretrained import load_config, load_model


def inherit(
    reference: str | Path | PreTrainedModel,
    layers: int,
    *,
    dtype: torch.dtype | str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The first `layers` transformer blocks of a model, with all its embeddings, its final norm and its head.

    The hidden state after the last block kept equals the reference's hidden state after that block, bit for
    bit. Tied weights stay tied; configuration fields with one entry per layer are cut as well. From an id or
    a folder only the tensors that are kept are read.

    Args:
        reference: Hugging Face model id, checkpoint folder, or a model in memory (copied, not changed).
        layers: how many blocks to keep, 1 to the reference's depth.
        dtype: of the weights when read; "auto" keeps the checkpoint's. A model in memory keeps its own.
        revision: branch, tag or commit of a model id.
        trust_remote_code: run code that comes with the model.

    Raises:
        UserError: not a model, no safetensors, an architecture that is not understood, or `layers` out of
            range.

    Source: Inheritune (arXiv 2404.08634), Algorithm 1, step 1. The official code leaves out the position
    embedding and the final norm of GPT-2, and the token embedding and the final norm of LLaMA; the paper
    inherits them, and so does this.
    """
    if isinstance(reference, PreTrainedModel):
        return _from_memory(reference, layers)
    config = load_config(reference, revision=revision, trust_remote_code=trust_remote_code)
    return load_model(
        reference,
        config=cut_config(config, layers),
        dtype=dtype,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )


def _from_memory(reference: PreTrainedModel, layers: int) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_config(cut_config(reference.config, layers), dtype=reference.dtype)
    kept = set(model.state_dict())
    weights = {name: value for name, value in reference.state_dict().items() if name in kept}
    assert weights.keys() == kept, (blocks_name(reference), sorted(kept - weights.keys()))
    model.load_state_dict(weights)
    model.generation_config = copy.deepcopy(reference.generation_config)
    freeze_biases(model)
    return model.to(reference.device).eval()
