"""The configuration of a checkpoint: is it a causal language model, in numbers that can be read, and does it fit?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers import __version__ as transformers_version
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils.peft_utils import find_adapter_config_file

from inheritune import UserError
from inheritune.config import Pretrained
from inheritune.models.architecture import cut_config, layer_count
from inheritune.models.checkpoint_files import CONFIG, adapter_sentence, check_place, read_object, warn_once
from inheritune.models.gguf import gguf_config, gguf_path, given
from inheritune.models.layer_fields import MISFITS, lines_of
from inheritune.models.size import on_meta

DEEPEST = 10_000
"""Layers that no model has: a larger number is a mistake, and would only fill the memory."""

DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")

MULTIMODAL = ("gemma3", "llava", "mistral3")
"""Multimodal types whose language model is one of transformers' own, and the same function of text; beside those
that transformers itself reads as a language model (llama4, qwen3_5)."""

CAUSAL_ALL_THE_SAME = ("gpt_neox", "gpt_neox_japanese")
"""Types with `is_decoder: false` in their configurations, of which their models take no notice."""


def load_config(model: Pretrained | str | Path) -> PretrainedConfig:
    """The configuration of a trained model; of a multimodal one, its language model's.

    Raises:
        UserError: there is no such model, it is not a causal language model, it is quantized, or its configuration
            does not fit together.
    """
    source = Pretrained.of(model)
    config, values = _read(source)
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"{source} is an encoder-decoder model ({config.model_type}), not a causal language model"
        )
    own_code = source.trust_remote_code and "AutoModelForCausalLM" in (
        getattr(config, "auto_map", None) or {}
    )
    if own_code and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        layer_count(config)
        return config
    config = _language_model(source, config)
    if _sees_ahead(config):
        raise UserError(
            f"{source} is an encoder ({config.model_type}): its tokens see those that follow, so it is not a causal "
            "language model"
        )
    try:
        shallow = cut_config(config, 1)
    except UserError:  # it cannot be so shallow
        shallow = config
    without_weights(source, shallow, values)
    if not source.trust_remote_code:
        check_positions(config)
    return config


def check_live(model: PreTrainedModel) -> None:
    """A model in memory is a causal language model, in weights that can be trained.

    Raises:
        UserError: it is another kind of model.
    """
    kind, config = type(model).__name__, model.config
    if getattr(config, "is_encoder_decoder", False) or _sees_ahead(config):
        raise UserError(f"a {kind} is not a causal language model: its tokens see those that follow")
    if model.get_output_embeddings() is None:
        raise UserError(
            f"a {kind} has no head that predicts tokens: give a causal language model, such as "
            "AutoModelForCausalLM.from_pretrained loads"
        )
    if getattr(model, "is_quantized", False):
        raise UserError("the model is quantized: give it in the weights that it was quantized from")
    layer_count(config)


def _read(source: Pretrained) -> tuple[PretrainedConfig, dict[str, Any]]:
    """The configuration as transformers makes it, and what is in its file; a GGUF has none."""
    try:
        file = gguf_path(source)
    except (OSError, ValueError, HTTPError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(_not_given(source, error)) from error
    if file is not None:
        return gguf_config(source, file), {}
    check_place(source)
    values = _values(source)
    _check_values(source, values)
    try:
        config = AutoConfig.from_pretrained(**given(source))
    except OSError as error:
        raise UserError(f"cannot read the configuration of {source}: {lines_of(error)[0]}") from error
    except MISFITS as error:
        raise UserError(_misfit(source, values, error)) from error
    if not isinstance(config.dtype, torch.dtype | None):
        raise UserError(
            f"{CONFIG} of {source} says dtype: {_shown(config.dtype)}, but that is no type of weights"
        )
    return config, values


def without_weights(
    source: Pretrained, config: PretrainedConfig, values: Mapping[str, Any] | None = None
) -> PreTrainedModel:
    """The model that a checkpoint's configuration describes, as shapes only.

    Raises:
        UserError: the configuration does not fit together; `values`, as they are in the file, help to say why.
    """
    try:
        return on_meta(config, source.trust_remote_code)
    except MISFITS as error:
        raise UserError(_misfit(source, values or {}, error)) from error


def _values(source: Pretrained) -> dict[str, Any]:
    """What config.json says, as it is."""
    if Path(source.name).is_dir():
        return read_object(Path(source.name) / CONFIG)
    try:
        return PretrainedConfig.get_config_dict(source.name, revision=source.revision)[0]
    except (OSError, ValueError, HTTPError) as error:
        raise UserError(_not_given(source, error)) from error


def _check_values(source: Pretrained, values: Mapping[str, Any]) -> None:
    """Refuse what can be seen before transformers looks."""
    kind, own_code = values.get("model_type"), values.get("auto_map")
    if not isinstance(kind, str):
        raise UserError(f"{source} is not a model of transformers: its {CONFIG} names no `model_type`")
    if kind not in CONFIG_MAPPING and not own_code:
        raise UserError(
            f"{source} is of the type {kind!r}, which transformers {transformers_version} does not know: a newer "
            "one may"
        )
    if kind not in CONFIG_MAPPING and not source.trust_remote_code:
        raise UserError(
            f"{source} is made by code that comes with it: look at that code, and give --trust-remote-code to run it"
        )
    text = values.get("text_config")
    parts = (values, text) if isinstance(text, dict) else (values,)
    for field, part in product(DEPTHS, parts):
        depth = part.get(field)
        if depth is not None and (type(depth) is not int or not 1 <= depth <= DEEPEST):
            raise UserError(
                f"{CONFIG} of {source} says {field}: {_shown(depth)}, but a model has 1 to {DEEPEST:,} layers"
            )
    for part in parts:
        quantization = part.get("quantization_config", part.get("compression_config"))
        if quantization is not None:
            how = quantization.get("quant_method") if isinstance(quantization, dict) else None
            raise UserError(
                f"the weights of {source} are quantized{f' ({how})' if how else ''}: give the model that they were "
                "made from, in bfloat16, float16 or float32"
            )


def _sees_ahead(config: PretrainedConfig) -> bool:
    """Whether a token's hidden state depends on the tokens after it."""
    if config.model_type in ("xlnet", "xlm") or getattr(config, "use_bidirectional_attention", None):
        return True
    return not getattr(config, "is_decoder", True) and config.model_type not in CAUSAL_ALL_THE_SAME


def _language_model(source: Pretrained, config: PretrainedConfig) -> PretrainedConfig:
    """The configuration itself, or that of the language model in a multimodal one."""
    try:
        text = config.get_text_config()
    except ValueError:  # several of them
        text = config
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if text is config:
        if model_class is None:
            raise UserError(f"{source} is a {config.model_type!r} model, not a causal language model")
        return config
    if getattr(model_class, "config_class", None) is not type(text) and config.model_type not in MULTIMODAL:
        raise UserError(
            f"{source} is a multimodal model ({config.model_type}): its language model ({text.model_type}) has to "
            "be saved as a causal language model of its own first"
        )
    if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(
            f"{source} is a multimodal model, and its language model ({text.model_type}) is no causal one of its own"
        )
    # Where only one of both says so, whether there is a head of its own decides: one that differs is refused.
    text.tie_word_embeddings = any(getattr(part, "tie_word_embeddings", False) for part in (config, text))
    warn_once(f"{source} is a multimodal model ({config.model_type}): only its language model is taken")
    return text


def check_positions(config: PretrainedConfig) -> None:
    """Refuse rotary positions of a type that transformers does not know, before a model fails on it.

    Raises:
        UserError: names the type.
    """
    known = ("default", *ROPE_INIT_FUNCTIONS)
    for place, value in _leaves(config.to_dict()):  # some models have one type for each kind of layer
        if "rope_parameters." in place and place.endswith(".rope_type") and value not in known:
            raise UserError(
                f"this {config.model_type!r} model has rotary positions of the unknown type {value!r}; this version "
                f"of transformers knows {', '.join(known)}"
            )


def _misfit(source: Pretrained, values: Mapping[str, Any], error: Exception) -> str:
    """Which value it was, where that can be determined."""
    if isinstance(error, KeyError) and error.args:
        for place, value in _leaves(values):
            if value == error.args[0] and isinstance(value, str):
                return (
                    f"{CONFIG} of {source} says {place}: {value!r}, which transformers {transformers_version} does "
                    "not know"
                )
    named = f"{type(error).__name__}: {lines_of(error)[0]}"
    reason = lines_of(error)[-1] if isinstance(error, StrictDataclassError) else named
    return f"{CONFIG} of {source} does not fit together: {reason}"


def _leaves(values: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{place}{key}.")
        else:
            yield f"{place}{key}", value


def _not_given(source: Pretrained, error: BaseException) -> str:
    """Why a configuration cannot be loaded from the hub."""
    links: list[BaseException] = [error]
    while cause := links[-1].__cause__ or links[-1].__context__:
        links.append(cause)

    def any_of(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in links)

    if any_of(GatedRepoError):
        return f"{source} is gated: ask for access on its page on the hub, and log in with `hf auth login`"
    if any_of(RevisionNotFoundError):
        return f"{source} has no revision {source.revision} on the hub"
    if any_of(RepositoryNotFoundError):
        reason = "it has no such model, or one that is private (log in with `hf auth login`)"
    elif any_of(LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError):
        reason = "it cannot be reached, and nothing of that name was downloaded before"
    elif adapter := find_adapter_config_file(str(source), revision=source.revision):
        return adapter_sentence(source, read_object(Path(adapter)))
    else:
        reason = lines_of(error)[0]
    return f"there is no folder {source}, and it cannot be loaded from the Hugging Face hub: {reason}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
