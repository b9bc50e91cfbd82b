"""Which weights of a Hugging Face causal language model belong to attention, MLP, norms and so on.

Told from the model's structure: where a module is, what it is called, and what its class is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from torch import nn
from transformers import PreTrainedModel

from inheritune import UserError
from inheritune.config import Part
from inheritune.models.architecture import blocks_name

PARTS: tuple[Part, ...] = get_args(Part)


def parts_of(model: PreTrainedModel) -> dict[str, Part]:
    """Part of each entry of `model.state_dict()`, parameters and persistent buffers alike.

    In a block, `attention` has the norms inside it (of queries and keys), `layernorm` the block's own norms,
    and `mlp` everything else, such as experts and their router. Around the blocks, `embeddings` has token and
    position embeddings with the norms and projections right at them, `final_norm` the norm after the blocks,
    and `head` what leads to the logits. A tied tensor has an entry, and a part, under each of its names.

    Raises:
        UserError: the model's structure is not understood.
    """
    blocks = blocks_name(model)
    return {
        name: _inside(model, blocks, name) if name.startswith(f"{blocks}.") else _outside(model, name)
        for name in model.state_dict()
    }


def check_parts(parts: Sequence[str]) -> None:
    """Raise UserError if there are no parts, or one that is none of `PARTS`."""
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        wrong = f"unknown part {unknown[0]!r}" if unknown else "no parts are named"
        raise UserError(f"{wrong}; choose one or more of {', '.join(PARTS)}")


def _inside(model: PreTrainedModel, blocks: str, name: str) -> Part:
    number, *path = name.removeprefix(f"{blocks}.").split(".")[:-1]
    module = model.get_submodule(f"{blocks}.{number}")
    for child in path:
        module = module.get_submodule(child)
        # OPT's `self_attn_layer_norm` is a norm, and DBRX's `norm_attn_norm` has two beside its attention.
        if not _is_norm(module):
            described = f"{child} {type(module).__name__}".lower()
            return "attention" if "attn" in described or "attention" in described else "mlp"
    return "layernorm" if path else "mlp"


def _outside(model: PreTrainedModel, name: str) -> Part:
    owner = name.rpartition(".")[0]
    module, head = model.get_submodule(owner), model.get_output_embeddings()
    base = model.base_model_prefix
    beside_base = model.base_model is not model and not name.startswith(f"{base}.")
    # OPT projects out of the blocks within its base model.
    if module is head or beside_base or owner.endswith("project_out"):
        return "head"
    return "final_norm" if _is_norm(module) and "emb" not in owner else "embeddings"


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()
