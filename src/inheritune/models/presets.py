"""Models made from random weights: the paper's GPT-2 sizes, and any architecture of transformers.

The paper's GPT-2 is transformers' `GPT2LMHeadModel` without dropout, with attention logits additionally scaled
by 1 / (layer index + 1), and without biases. Biases exist in transformers' class, so they are zero and frozen:
the same function, and still a standard checkpoint. The configuration remembers it (`frozen_biases`), so that
a model read back, or cut out of such a model, has them frozen too.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import JsonValue
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from inheritune import UserError
from inheritune.models.architecture import context_length, layer_count
from inheritune.models.layer_fields import MISFITS, lines_of
from inheritune.plain_yaml import shown

MOST_LAYERS = 1_024
"""Or experts: even without weights, the modules of more take minutes to make."""

LARGEST_SIZE = 2**24
"""Of what a configuration counts: with it no tensor has more entries than can be numbered."""

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
        UserError: an unknown preset, model type or field; the message has the nearest known name.
    """
    fields = copy.deepcopy(dict(architecture))  # configurations keep what they are given, and fill it in
    sized = _gpt2(fields.pop("preset")) if "preset" in fields else {}
    model_type = "gpt2" if sized else fields.pop("model_type")
    known_types = list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    if model_type not in known_types:
        raise UserError(f"unknown model_type {shown(model_type)}{_nearest(str(model_type), known_types)}")
    kind = CONFIG_MAPPING[model_type]
    _check_sizes(fields)
    with _fitting(model_type):
        known_fields = set(kind().to_dict()) | set(kind.attribute_map) | {"frozen_biases"}
    for field in fields:
        if field not in known_fields:
            hint = _nearest(field, sorted(known_fields))
            raise UserError(f"unknown field {shown(field)} of a {model_type!r} architecture{hint}")
    # A model made here has the special tokens of its own tokenizer, not those of its family's first model.
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    given = {kind.attribute_map.get(field, field) for field in fields}
    usable = {k: v for k, v in defaults.items() if kind.attribute_map.get(k, k) not in given}
    values = {**special, **usable, **sized, **fields}
    if sized and "vocab_size" in defaults and "vocab_size" not in given:
        values["vocab_size"] = max(50_304, defaults["vocab_size"])
    with _fitting(model_type):
        config = kind(**values)
        layer_count(config)
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return config


def from_config(config: PretrainedConfig, seed: int) -> PreTrainedModel:
    """A float32 model with random weights from this seed, biases frozen where the configuration says so.

    Raises:
        UserError: what the configuration describes cannot be computed.
    """
    with torch.random.fork_rng(devices=[]), _fitting(config.model_type):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _try(model)
    freeze_biases(model)
    return model


@torch.no_grad()
def _try(model: PreTrainedModel) -> None:
    """Some fields have a meaning only where they are used."""
    tokens = torch.zeros((1, min(2, context_length(model.config) or 2)), dtype=torch.long)
    if not model(input_ids=tokens, use_cache=False).logits.isfinite().all():
        raise ArithmeticError("what it computes is not finite")


@contextmanager
def _fitting(model_type: str) -> Iterator[None]:
    """Tell the user what a library makes of the fields of an architecture."""
    try:
        yield
    except UserError:
        raise
    except MISFITS as error:
        # A bare key means nothing without the name of its error.
        bare = isinstance(error, KeyError) or not str(error).strip()
        reason = repr(error) if bare else lines_of(error)[-1]
        raise UserError(f"this {model_type!r} architecture does not fit together: {reason[:300]}") from error


def _check_sizes(value: JsonValue, key: str = "architecture") -> None:
    """Refuse what would take hours to be found impossible."""
    if isinstance(value, dict):
        for name, part in value.items():
            _check_sizes(part, name)
    elif isinstance(value, list):
        for part in value:
            _check_sizes(part, key)
    elif isinstance(value, int) and "theta" not in key:  # the base of rotary positions is no size
        most = MOST_LAYERS if key.endswith(("layer", "layers", "experts", "labels")) else LARGEST_SIZE
        if abs(value) > most:
            raise UserError(f"{key} is {value:.3g}, but an architecture has at most {most:,} of it")


def freeze_biases(model: PreTrainedModel) -> None:
    """Take the biases out of training if the model's configuration says that it has none (`frozen_biases`)."""
    if getattr(model.config, "frozen_biases", False):
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.requires_grad_(False)


def _gpt2(preset: JsonValue) -> dict[str, Any]:
    if not isinstance(preset, str) or preset not in GPT2_SIZES:
        raise UserError(f"unknown preset {shown(preset)}{_nearest(str(preset), list(GPT2_SIZES))}")
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
