"""Reads the attention matrices of a model, one layer at a time, while it computes.

The model attends eagerly. The eager attention of its own file does all that is special to it (groups of queries,
soft-capped logits, attention sinks, GPT-2's scaling by layer); it is wrapped, so that the matrices are shown to
whoever asked, and let go of. The few architectures without such a function compute eagerly as well, and their
attention modules are hooked. That the matrices are those that the model attends with is checked: what it computes
with them has to be what it computes in its own way.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from inheritune import UserError
from inheritune.models.architecture import blocks, layer_count

Measure = Callable[[int, Tensor], None]
"""Is given a layer, counted from 0, and its attention matrices [B, H, T, T]: row t is how token t attends."""

ROUNDING = {torch.float32: 1e-2, torch.float64: 1e-2}
"""Dtype -> relative difference of a token's hidden state that eager attention may make; 0.5 for shorter ones."""

OTHERS = 0.01
"""Share of the tokens that may differ by more: rounding can send a token to another expert."""

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
    """One forward pass that is being watched: which module belongs to which layer, and what is called."""

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
                f"{name} in layer {layer + 1} does not return its attention matrices: load the model with "
                'attn_implementation="eager"'
            )
        if layer in self.seen:
            raise UserError(f"layer {layer + 1} attends more than once, which the analysis does not cover")
        self.seen.add(layer)
        self.measure(layer, attention_bhtt)


_active: ContextVar[_Probe] = ContextVar("probe")


def probe_attention(
    model: PreTrainedModel,
    inputs_bt: Tensor,
    measure: Measure,
    *,
    padding_mask_bt: Tensor | None = None,
    check: bool = True,
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
        check: whether the first sequence is computed again in the model's own way, and compared.

    Raises:
        UserError: a model without attention matrices in some layer (state-space, linear attention), an architecture
            whose matrices cannot be read, or matrices that are not what the model attends with; `measure` may have
            been called by then.
    """
    check_attention(model.config)
    layers = blocks(model)
    layer_of = {module: i for i, block in enumerate(layers) for module in block.modules()}
    probe = _Probe(layer_of, measure)
    token = _active.set(probe)
    try:
        with _evaluating(model), _watched(model, layers):
            probed_btd = _last_hidden(model, inputs_bt, padding_mask_bt)
    finally:
        _active.reset(token)
    if not probe.seen:
        raise UserError(_not_replaceable(model))
    lacking = [layer + 1 for layer in range(len(layers)) if layer not in probe.seen]
    if lacking:
        raise UserError(_without_attention(model.config, lacking, len(layers)))
    if not check:
        return
    first_mask_bt = None if padding_mask_bt is None else padding_mask_bt[:1]
    with _evaluating(model):
        own_btd = _last_hidden(model, inputs_bt[:1], first_mask_bt)
    if not _same(probed_btd[:1], own_btd, first_mask_bt):
        raise UserError(
            f"the attention matrices of this {model.config.model_type!r} model cannot be read: with eager attention "
            "it computes something else than it usually does"
        )


def check_attention(config: PretrainedConfig) -> None:
    """Refuse a model whose configuration says that some layers have no attention matrices, before it is read.

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


@torch.no_grad()
def _last_hidden(model: PreTrainedModel, inputs_bt: Tensor, padding_mask_bt: Tensor | None) -> Tensor:
    """Of the backbone alone: logits are not needed, and they would be larger than a layer's matrices."""
    hidden_btd: Tensor = model.base_model(
        input_ids=inputs_bt, attention_mask=padding_mask_bt, use_cache=False
    )[0]
    return hidden_btd


def _same(probed_btd: Tensor, own_btd: Tensor, padding_mask_bt: Tensor | None) -> bool:
    """Whether two hidden states are equal to rounding, in all tokens but a few."""
    probed, own = probed_btd.float(), own_btd.float()
    far_bt = (probed - own).norm(dim=-1) > ROUNDING.get(probed_btd.dtype, 0.5) * own.norm(dim=-1)
    if padding_mask_bt is not None:
        far_bt = far_bt[padding_mask_bt.bool()]
    return far_bt.float().mean().item() <= OTHERS


@contextmanager
def _shown(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, the eager attention of the files that the model's modules come from shows its matrices."""
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    files: list[Any] = [
        sys.modules[name] for name in {kind.__module__ for kind in kinds} if name in sys.modules
    ]
    own = {file: file.eager_attention_forward for file in files if hasattr(file, "eager_attention_forward")}
    if not own:
        raise UserError(_not_replaceable(model))

    def wrap(eager: Callable[..., Any]) -> Callable[..., Any]:
        def attend(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
            output, attention_bhtt = eager(module, *args, **kwargs)
            _active.get().show(module, attention_bhtt)
            return output, None

        return attend

    try:
        for file, eager in own.items():
            file.eager_attention_forward = wrap(eager)
        yield
    finally:
        for file, eager in own.items():
            file.eager_attention_forward = eager


def _not_replaceable(model: PreTrainedModel) -> str:
    return (
        f"the attention of a {model.config.model_type!r} model cannot be replaced (it does not go through "
        "transformers' AttentionInterface), so its matrices cannot be read"
    )


@contextmanager
def _watched(model: PreTrainedModel, layers: nn.ModuleList) -> Iterator[None]:
    """Within the block, every attention module shows its matrices to the active probe."""
    before = [(config, config._attn_implementation) for config in _configs(model.config)]
    with ExitStack() as stack:
        if model.config.model_type in HOOKED:
            for block in layers:
                attention = block.get_submodule(HOOKED[model.config.model_type])
                stack.callback(attention.register_forward_hook(_show_output).remove)
        elif model._can_set_attn_implementation():
            stack.enter_context(_shown(model))
        else:
            raise UserError(_not_replaceable(model))
        try:
            for config, _ in before:
                config._attn_implementation = "eager"
            yield
        finally:
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
