"""Models made from random weights: the paper's GPT-2 sizes, and any architecture of transformers.

The paper's GPT-2 is transformers' `GPT2LMHeadModel` without dropout, with attention logits additionally scaled
by 1 / (layer index + 1), and without biases. Biases exist in transformers' class, so they are zero and frozen:
the same function, and still a standard checkpoint. The configuration remembers it (`frozen_biases`), so that
a model read back, or cut out of such a model, has them frozen too.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from inheritune import UserError

GPT2_SIZES = {
    "gpt2-small": (12, 768, 12),
    "gpt2-medium": (24, 1024, 16),
    "gpt2-large": (36, 1280, 20),
    "gpt2-large-32": (32, 1280, 20),
    "gpt2-xlarge": (48, 1600, 25),
}
"""Name -> layers, hidden size, heads (paper, section 4; `gpt2-large-32` is its large*)."""


def architecture_config(architecture: Mapping[str, Any], **defaults: Any) -> PretrainedConfig:
    """The configuration that a recipe's `architecture` describes.

    Args:
        architecture: `preset` or `model_type`, and configuration fields.
        defaults: fields that hold where the recipe does not set them, such as `vocab_size`.

    Raises:
        UserError: an unknown preset, model type or field; the nearest known name is told.
    """
    fields = dict(architecture)
    preset = fields.pop("preset", None)
    model_type = "gpt2" if preset is not None else fields.pop("model_type")
    known_types = [name for name in CONFIG_MAPPING if isinstance(name, str)]
    if model_type not in known_types:
        raise UserError(f"unknown model_type {model_type!r}{_nearest(str(model_type), known_types)}")
    kind = CONFIG_MAPPING[model_type]
    known_fields = set(kind().to_dict()) | set(kind.attribute_map) | {"frozen_biases"}
    for field in fields:
        if field not in known_fields:
            raise UserError(
                f"unknown field {field!r} of a {model_type!r} architecture{_nearest(field, sorted(known_fields))}"
            )
    # A model made here has the special tokens of its own tokenizer, not those of its family's first model.
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    given = {kind.attribute_map.get(field, field) for field in fields}
    usable = {k: v for k, v in defaults.items() if kind.attribute_map.get(k, k) not in given}
    values = {**special, **usable, **(_gpt2(str(preset)) if preset is not None else {}), **fields}
    if preset is not None and "vocab_size" in defaults and "vocab_size" not in given:
        values["vocab_size"] = max(50_304, defaults["vocab_size"])
    try:
        return kind(**values)
    except (ValueError, TypeError, StrictDataclassError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"this {model_type!r} architecture does not fit together: {reason}") from error


def from_config(config: PretrainedConfig, seed: int) -> PreTrainedModel:
    """A float32 model with random weights from this seed, biases frozen where the configuration says so."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    freeze_biases(model)
    return model


def freeze_biases(model: PreTrainedModel) -> None:
    """Take the biases out of training if the model's configuration says that it has none (`frozen_biases`)."""
    if getattr(model.config, "frozen_biases", False):
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.requires_grad_(False)


def _gpt2(preset: str) -> dict[str, Any]:
    if preset not in GPT2_SIZES:
        raise UserError(f"unknown preset {preset!r}{_nearest(preset, list(GPT2_SIZES))}")
    layers, hidden, heads = GPT2_SIZES[preset]
    return {
        "n_layer": layers,
        "n_embd": hidden,
        "n_head": heads,
        "n_positions": 1024,
        "vocab_size": 50_304,
        "activation_function": "gelu",
        "scale_attn_by_inverse_layer_idx": True,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "frozen_biases": True,
    }


def _nearest(name: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]!r}?" if nearest else f"; known are {', '.join(known[:12])} ..."
