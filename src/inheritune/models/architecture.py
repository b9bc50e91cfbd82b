"""Where the parts of a Hugging Face causal language model are.

All that the program knows about architectures stands in `BLOCKS` and `PER_LAYER_FIELDS`. A model type that is
not in the table is found by its structure: the one list of equal blocks that is as long as the configuration
says the model is deep.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from inheritune import UserError

logger = logging.getLogger(__name__)

BLOCKS = {
    "bloom": "transformer.h",
    "falcon": "transformer.h",
    "gemma": "model.layers",
    "gemma2": "model.layers",
    "gemma3_text": "model.layers",
    "gpt2": "transformer.h",
    "gpt_bigcode": "transformer.h",
    "gpt_neo": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "gptj": "transformer.h",
    "llama": "model.layers",
    "mistral": "model.layers",
    "mixtral": "model.layers",
    "mpt": "transformer.blocks",
    "olmo2": "model.layers",
    "opt": "model.decoder.layers",
    "phi": "model.layers",
    "phi3": "model.layers",
    "qwen2": "model.layers",
    "qwen3": "model.layers",
    "qwen3_moe": "model.layers",
    "stablelm": "model.layers",
}
"""Model type -> name of the module list that holds its transformer blocks."""

PER_LAYER_FIELDS = (
    "layer_types",
    "mlp_layer_types",
    "no_rope_layers",
    "attention_layers",
    "layers_block_type",
    "block_types",
)
"""Configuration fields that hold one entry for each layer."""


def blocks_name(model: PreTrainedModel) -> str:
    """The dotted name of the model's transformer blocks, such as `model.layers`.

    Raises:
        UserError: the model's structure is not understood.
    """
    model_type, layers = model.config.model_type, layer_count(model.config)
    if model_type in BLOCKS:
        return BLOCKS[model_type]
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == layers
        and "." not in name.removeprefix(f"{model.base_model_prefix}.").removeprefix("decoder.")
    ]
    if len(found) != 1:
        raise UserError(
            f"cannot tell where the blocks of a {model_type!r} model are: it has {len(found)} module lists of "
            f"{layers} entries, and exactly one is needed"
        )
    logger.warning("model type %r is not in the table; its blocks were found at `%s`", model_type, found[0])
    return found[0]


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The model's transformer blocks, in order."""
    module = model.get_submodule(blocks_name(model))
    assert isinstance(module, nn.ModuleList), type(module)
    return module


def layer_count(config: PretrainedConfig) -> int:
    """How many transformer blocks the configuration describes.

    Raises:
        UserError: the configuration does not say.
    """
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if not isinstance(layers, int) or layers < 1:
        raise UserError(f"the configuration of a {config.model_type!r} model does not say how deep it is")
    return layers


def context_length(config: PretrainedConfig) -> int | None:
    """The longest sequence the model has positions for, in tokens; None where nothing limits it."""
    text = config.get_text_config()
    for field in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(text, field, None)
        if isinstance(value, int):
            return value
    return None


def cut_config(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """The same configuration with the first `layers` layers only; `config` itself is not changed.

    Raises:
        UserError: `layers` is not between 1 and the model's depth.
    """
    depth = layer_count(config)
    if not 1 <= layers <= depth:
        raise UserError(f"cannot keep {layers} layers of a model with {depth}: choose 1 to {depth}")
    return choose_layers(config, range(layers))


def choose_layers(config: PretrainedConfig, layers: Sequence[int]) -> PretrainedConfig:
    """The same configuration with these layers (0-based) only, in this order; `config` itself is not changed.

    Raises:
        UserError: no layers, or one that the model does not have.
    """
    depth = layer_count(config)
    missing = [layer for layer in layers if not 0 <= layer < depth]
    if missing or not layers:
        wrong = f"layer {missing[0]}" if missing else "an empty list of layers"
        raise UserError(f"cannot take {wrong} of a model with {depth}: its layers are 0 to {depth - 1}")
    chosen = copy.deepcopy(config)
    text = chosen.get_text_config()
    if text.model_type == "gpt_neo":
        # GPT-Neo writes its layers as repeated groups; spell them out, one group of one repetition.
        text.attention_types = [[[text.attention_layers[layer] for layer in layers], 1]]
    for field in PER_LAYER_FIELDS:
        values = getattr(text, field, None)
        if isinstance(values, (list, tuple)) and len(values) == depth:
            setattr(text, field, type(values)(values[layer] for layer in layers))
    text.num_hidden_layers = len(layers)
    return chosen


def head_is_linear(model: PreTrainedModel) -> bool:
    """Whether logits are just `head(last hidden state)`: no soft-capping, scaling or projection around it.

    Tried on the model itself with a few tokens, so it holds for architectures nobody listed. The head's output
    is made large for the trial, because soft-capping leaves the small logits of an untrained model alone.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return False
    seen: dict[str, Tensor] = {}

    def enlarge(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen["hidden"], seen["logits"] = inputs[0], 1000 * output
        return seen["logits"]

    training = model.training
    model.eval()
    hook = head.register_forward_hook(enlarge)
    try:
        tokens = torch.arange(4, device=model.device)[None] % head.out_features
        with torch.no_grad():
            logits = model(input_ids=tokens, use_cache=False).logits
            hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    finally:
        hook.remove()
        model.train(training)
    # Experts may be summed in another order from call to call: equal to rounding is enough.
    return torch.equal(logits, seen["logits"]) and torch.allclose(
        hidden, seen["hidden"], rtol=1e-3, atol=1e-4
    )


def parameter_count(model: PreTrainedModel) -> int:
    """Parameters of the model, tied ones once; frozen ones (the zero biases of `presets`) are not counted.

    A model all of whose parameters are frozen is counted whole.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trained or sum(p.numel() for p in model.parameters())
