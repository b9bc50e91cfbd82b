"""Reads the attention matrices of a model, one layer at a time, while it computes.

transformers lets a model's attention be replaced by a function (`AttentionInterface`). Ours calls the eager
attention of the model's own file, which does all that is special to it (grouped-query heads, soft-capped logits,
attention sinks, GPT-2's scaling by layer), shows the matrices to whoever asked, and lets go of them. Masks are
those of eager attention too, so sliding windows and padding are as they should be. The few architectures whose
attention cannot be replaced compute eagerly, and their attention modules are hooked.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import eager_mask

from inheritune import UserError
from inheritune.models.architecture import blocks, layer_count

Measure = Callable[[int, Tensor], None]
"""Is given a layer, counted from 0, and its attention matrices [B, H, T, T]: row t is how token t attends."""

IMPLEMENTATION = "inheritune_probe"

HOOKED = {
    "bloom": "self_attention",
    "codegen": "attn",
    "falcon": "self_attention",
    "gpt_neo": "attn.attention",
    "gptj": "attn",
    "mpt": "attn",
    "xglm": "self_attn",
}
"""Model type -> where, in a block, the module is whose second output are the attention matrices."""

WITHOUT_ATTENTION = ("conv", "linear_attention", "mamba", "mamba2", "recurrent")
"""Kinds of layers, as configurations name them, that mix tokens without an attention matrix."""


@dataclass
class _Probe:
    """One forward pass that is being watched: which module belongs to which layer, and who is told."""

    layer_of: dict[nn.Module, int]
    measure: Measure
    seen: set[int] = field(default_factory=set)

    def show(self, module: nn.Module, attention_bhtt: Tensor | None) -> None:
        layer = self.layer_of.get(module)
        name = type(module).__name__
        if layer is None:
            raise UserError(
                f"{name} attends outside of the model's blocks, which the analysis does not cover"
            )
        if attention_bhtt is None:
            raise UserError(
                f"{name} in layer {layer + 1} keeps its attention matrices to itself: load the model with "
                'attn_implementation="eager"'
            )
        if layer in self.seen:
            raise UserError(f"layer {layer + 1} attends more than once, which the analysis does not cover")
        self.seen.add(layer)
        self.measure(layer, attention_bhtt)


_active: ContextVar[_Probe] = ContextVar("probe")


def probe_attention(
    model: PreTrainedModel, inputs_bt: Tensor, measure: Measure, *, padding_mask_bt: Tensor | None = None
) -> None:
    """One forward pass; `measure` sees each layer's attention matrices, in the order of layers.

    They are those that `output_attentions=True` gives with eager attention, in evaluation mode, and in the model's
    dtype. Nothing else holds them: what `measure` does not keep is freed before the next layer. The model is left
    as it was, whatever happens.

    Args:
        model: any causal language model with softmax attention in every block.
        inputs_bt: token ids, int64 [B, T], on the model's device.
        measure: is called with layer (from 0) and attention [B, H, T, T].
        padding_mask_bt: 1 for tokens and 0 for padding, [B, T]. The rows of padding hold what the model happens to
            compute there.

    Raises:
        UserError: a model without attention matrices in some layer (state-space, linear attention), or an
            architecture whose matrices cannot be read.
    """
    layers = blocks(model)
    layer_of = {module: i for i, block in enumerate(layers) for module in block.modules()}
    probe = _Probe(layer_of, measure)
    token = _active.set(probe)
    try:
        with _evaluating(model), _watched(model, layers), torch.no_grad():
            # The backbone alone: logits are not needed, and they would be larger than a layer's matrices.
            model.base_model(input_ids=inputs_bt, attention_mask=padding_mask_bt, use_cache=False)
    finally:
        _active.reset(token)
    lacking = [layer + 1 for layer in range(len(layers)) if layer not in probe.seen]
    if lacking:
        raise UserError(_without_attention(model.config, lacking, len(layers)))


def check_attention(config: PretrainedConfig) -> None:
    """Refuse a model whose configuration tells that some layers have no attention matrices, before it is read.

    Raises:
        UserError: names the model type and the layers.
    """
    text = config.get_text_config()
    depth = layer_count(config)
    kinds = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or []
    lacking = [i + 1 for i, kind in enumerate(kinds) if kind in WITHOUT_ATTENTION]
    if not hasattr(text, "num_attention_heads"):
        lacking = list(range(1, depth + 1))
    if lacking:
        raise UserError(_without_attention(config, lacking, depth))


def _without_attention(config: PretrainedConfig, lacking: list[int], depth: int) -> str:
    kind = config.model_type
    if len(lacking) == depth:
        return f"a {kind!r} model has no attention matrices to analyze: it mixes tokens in another way"
    where = ", ".join(str(layer) for layer in lacking)
    return f"this {kind!r} model has no attention matrices in layers {where}: the analysis needs them in every layer"


def _attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention of the module's own file, shown to the probe; the matrices are not passed on."""
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None:
        raise UserError(
            f"{type(module).__name__} has no eager attention in its file, so its matrices cannot be read"
        )
    output, attention_bhtt = eager(module, query, key, value, attention_mask, **kwargs)
    _active.get().show(module, attention_bhtt)
    return output, None


AttentionInterface.register(IMPLEMENTATION, _attention_forward)
# Without a mask function of its own name a model would be given no mask at all.
AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)


@contextmanager
def _watched(model: PreTrainedModel, layers: nn.ModuleList) -> Iterator[None]:
    """Within the block, every attention module shows its matrices to the active probe."""
    before = [(config, config._attn_implementation) for config in _configs(model.config)]
    hooks = []
    try:
        if model.config.model_type in HOOKED:
            for config, _ in before:
                config._attn_implementation = "eager"
            attention = HOOKED[model.config.model_type]
            hooks = [block.get_submodule(attention).register_forward_hook(_show_output) for block in layers]
        elif model._can_set_attn_implementation():
            model.set_attn_implementation(IMPLEMENTATION)
        else:
            raise UserError(
                f"the attention of a {model.config.model_type!r} model cannot be replaced (it does not go through "
                "transformers' AttentionInterface), so its matrices cannot be read"
            )
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for config, implementation in before:  # a configuration sets its parts', so they come after it
            config._attn_implementation = implementation


def _show_output(module: nn.Module, inputs: object, output: tuple[Any, ...]) -> tuple[Any, ...]:
    """Forward hook: the matrices go to the probe and no further."""
    _active.get().show(module, output[1])
    return (output[0], None, *output[2:])


def _configs(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """A configuration and the ones inside it."""
    yield config
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if isinstance(part, PretrainedConfig):
            yield from _configs(part)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block; afterwards every module is in the mode it was in."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
