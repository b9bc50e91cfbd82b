"""Whether a model's weights are those of its checkpoint: all of them, in its shapes, and none left over."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from math import prod
from typing import Any

from transformers import PreTrainedModel

from inheritune import UserError
from inheritune.config import Pretrained
from inheritune.models.architecture import block_pattern, layer_count
from inheritune.models.checkpoint_files import CONFIG, Tensor, warn_once

LANGUAGE_MODEL = {
    r"^(?:model\.)?language_model\.lm_head\.": "lm_head.",
    r"^(?:model\.)?language_model\.(?:model\.)?": "model.",
}
"""Names of weights in a multimodal checkpoint -> in the language model alone."""

HARMLESS = re.compile(
    r"""inv_freq$ | (cos|sin)_cached$ | position_ids$ | _extra_state$   # made anew from the configuration
      | (^|\.)(attn|attention)\.(masked_)?bias$                        # causal masks, as GPT-2 and GPT-NeoX had them
      | ^(model\.)?(vision_tower|vision_model|multi_modal_projector|visual)\.
    """,
    re.VERBOSE,
)
"""Tensors that are no weights of a language model."""

FURTHER_TOKENS = re.compile(r"^(model\.)?mtp\.")
"""Heads that predict tokens after the next (multi-token prediction): not a part of the model that is cut."""

QUANTIZED = re.compile(
    r"(weight_scale(_inv)?|weight_scale_2|input_scale|activation_scale|qweight|qzeros|scales|g_idx|absmax|quant_map"
    r"|quant_state\..*|SCB|weight_packed|weight_shape|_blocks|_scales)$"
)
"""Names that quantizers give to their tensors."""

FLOATS = ("F64", "F32", "F16", "BF16")
WHOLE = ("I64", "I32", "BOOL")
"""Of tables that some models keep beside their weights (which expert a token goes to)."""


def check_size(source: Pretrained, empty: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a checkpoint that cannot fill the model before anything is read: what is missing may be terabytes.

    Args:
        source: of the model, for the sentence.
        empty: the model without its weights.
        tensors: all that the checkpoint holds.

    Raises:
        UserError: it has fewer numbers than the model has parameters.
    """
    needed = sum(parameter.numel() for parameter in empty.parameters())
    held = sum(prod(tensor.shape) for tensor in tensors.values())
    if held >= needed:
        return
    for name, parameter in empty.named_parameters():
        found = tensors.get(name, tensors.get(name.removeprefix(f"{empty.base_model_prefix}.")))
        if found is not None and prod(found.shape) < parameter.numel():
            raise UserError(_other_shape(source, name, found.shape, parameter.shape))
    raise UserError(
        f"{source} has {held:,} weights, but its {CONFIG} describes a model of {needed:,}: some are missing, or one "
        f"of both is another model's{_if_quantized(tensors)}"
    )


def check_weights(
    source: Pretrained,
    model: PreTrainedModel,
    report: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    kept: Collection[int],
) -> None:
    """Every weight of the model came from the checkpoint, and what was left over are whole blocks.

    Args:
        source: of the model, for the sentence.
        model: as it was loaded.
        report: transformers' account of the loading.
        tensors: all that the checkpoint holds.
        kept: numbers of the blocks that were wanted.

    Raises:
        UserError: so it is not.
    """
    if report["missing_keys"]:
        raise UserError(f"{source} lacks weights: {_some(report['missing_keys'])}{_if_quantized(tensors)}")
    if mismatched := sorted((str(n), tuple(a), tuple(b)) for n, a, b in report["mismatched_keys"]):
        more = f"; and {len(mismatched) - 1} more like it" if len(mismatched) > 1 else ""
        raise UserError(_other_shape(source, *mismatched[0]) + more)
    pattern = block_pattern(model)
    numbers = {n: int(m[1]) for n in {*tensors, *report["unexpected_keys"]} if (m := pattern.match(n))}
    _check_left_over(source, model, report["unexpected_keys"], numbers, kept)
    _check_types(source, model, tensors, {name for name, number in numbers.items() if number not in kept})
    # transformers leaves a head alone that differs from the embedding that it should be tied to.
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    if tied and model._tied_weights_keys and head is not None and head.weight is not embedding.weight:
        raise UserError(
            f"{source} has a head of its own, but its {CONFIG} says that it is the embedding (tie_word_embeddings): "
            "set that to false, or leave the head's weight out"
        )


def _check_left_over(
    source: Pretrained,
    model: PreTrainedModel,
    names: Iterable[str],
    numbers: Mapping[str, int],
    kept: Collection[int],
) -> None:
    """Blocks that are not wanted, and heads for further tokens, are left out; nothing else may be."""
    depth = layer_count(model.config)
    said = [getattr(model.config, field, None) for field in ("num_nextn_predict_layers", "num_mtp_layers")]
    further = max((number for number in said if isinstance(number, int)), default=0)
    behind, unknown, beyond = set(), set(), set()
    for name in names:
        number = numbers.get(name)
        if HARMLESS.search(name):
            continue
        if FURTHER_TOKENS.match(name) or (number is not None and depth <= number < depth + further):
            behind.add(name)
        elif number is None or number in kept:
            unknown.add(name)
        elif number >= depth:
            beyond.add(number)
    if unknown:
        what = (
            "its weights are quantized, and mean nothing without them"
            if _if_quantized(unknown)
            else f"its {CONFIG} is another model's, or the weights are"
        )
        raise UserError(
            f"{source} has weights that a {model.config.model_type!r} model does not use: {_some(unknown)}: {what}"
        )
    if beyond:
        raise UserError(
            f"{source} has weights of layer {max(beyond)}, but its {CONFIG} says that it has {depth} layers (0 to "
            f"{depth - 1}): one of the two belongs to another model"
        )
    if behind:
        warn_once(f"{source}: its heads for multi-token prediction are left out: {_some(behind)}")


def _check_types(
    source: Pretrained, model: PreTrainedModel, tensors: Mapping[str, Tensor], behind: Collection[str]
) -> None:
    """Numbers of 8 bits or whole ones, read as if they were weights, are garbage: quantized without saying so."""
    own, prefix = model.state_dict(), f"{model.base_model_prefix}."
    for name, tensor in tensors.items():
        if tensor.dtype in FLOATS or HARMLESS.search(name):
            continue
        target = own.get(name, own.get(prefix + name, own.get(name.removeprefix(prefix))))
        # What is renamed in loading has no target; were it a weight, it would be missing.
        harmless = (
            tensor.dtype in WHOLE or name in behind if target is None else not target.is_floating_point()
        )
        if not harmless:
            raise UserError(
                f"{name} of {source} is of the type {tensor.dtype}: the weights are quantized, or damaged; give them "
                "in bfloat16, float16 or float32"
            )


def _if_quantized(names: Iterable[str]) -> str:
    return "; its weights are quantized" if any(QUANTIZED.search(name) for name in names) else ""


def _other_shape(source: Pretrained, name: str, found: Sequence[int], wanted: Sequence[int]) -> str:
    shapes = [" x ".join(map(str, shape)) or "of a number" for shape in (found, wanted)]
    return f"{name} of {source} has the shape {shapes[0]}, but its configuration asks for {shapes[1]}"


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")
