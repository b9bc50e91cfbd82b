"""What a smaller model saves: bytes on the disk and in memory, and the time to read and to write.

The models are timed in turn in one process, as they are: in their own precision and on the device they are on.
"""

from __future__ import annotations

import inspect
import statistics
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor
from transformers import PreTrainedModel

from inheritune import UserError
from inheritune.config import Pretrained
from inheritune.evaluation.result import ModelSpeed, Rate, SpeedResult, Spread
from inheritune.models.architecture import context_length
from inheritune.models.gguf import located
from inheritune.runtime.progress import AGAIN, ProgressBar

PROMPT_TOKENS, NEW_TOKENS, TURNS = 512, 64, 5
"""Length of the random prompts, or as much of it as leaves every model room to write; steps of writing, one token of
each sequence at a time; and how often each model is timed."""


@torch.inference_mode()
def measure_speed(
    models: Sequence[PreTrainedModel], checkpoint_bytes: Sequence[int], batch: int, keeps: str = AGAIN
) -> SpeedResult:
    """Time models against each other: reading a prompt, then writing greedily one token at a time on the cache.

    In every turn each model reads and writes once. Every other turn goes through the models backwards, so that a
    machine that becomes slower or faster favours none. One run of each model before the first turn is not counted.

    Args:
        models: in evaluation mode, all on one device; their vocabularies may differ.
        checkpoint_bytes: of the weight files of each model, as `checkpoint_bytes` finds them.
        batch: sequences at once.
        keeps: as of `ProgressBar`.

    Raises:
        UserError: a context without room for a prompt, a model without keys and values to keep, or too little
            memory on the GPU.
    """
    names = [f"model {i} ({m.name_or_path or m.config.model_type})" for i, m in enumerate(models, 1)]
    prompt_tokens = check_speed(models, names)
    vocabulary = min(model.get_input_embeddings().weight.shape[0] for model in models)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(vocabulary, (batch, prompt_tokens), generator=generator).to(models[0].device)
    # Of each model: (seconds of reading, seconds of writing, bytes of the cache) of each turn.
    runs: list[list[tuple[float, float, int]]] = [[] for _ in models]
    title = f"speed at a batch of {batch}"
    with ProgressBar(title, len(models) * (TURNS + 1), "runs", keeps=keeps) as bar:
        for turn in range(TURNS + 1):  # the first warms up
            for i in range(len(models))[:: -1 if turn % 2 else 1]:
                runs[i].append(_run(models[i], names[i], prompts))
                bar.update(bar.done + 1, names[i])
    return SpeedResult(
        prompt_tokens=prompt_tokens,
        new_tokens=NEW_TOKENS,
        turns=TURNS,
        models=[
            ModelSpeed(
                checkpoint_bytes=on_disk,
                memory_bytes=memory_bytes(model),
                cache_bytes_per_token=found[0][2] / (batch * prompt_tokens),
                rates=[
                    Rate(
                        batch=batch,
                        prefill=_spread([batch * prompt_tokens / prefill for prefill, _, _ in found[1:]]),
                        decode=_spread([batch * NEW_TOKENS / decode for _, decode, _ in found[1:]]),
                    )
                ],
            )
            for model, on_disk, found in zip(models, checkpoint_bytes, runs, strict=True)
        ],
    )


def joined(parts: Sequence[SpeedResult]) -> SpeedResult:
    """What was measured of the same models at other batches, as one result."""
    first = parts[0]
    models = [
        model.model_copy(update={"rates": [rate for part in parts for rate in part.models[i].rates]})
        for i, model in enumerate(first.models)
    ]
    return first.model_copy(update={"models": models})


def checkpoint_bytes(model: Pretrained | str | Path) -> int | None:
    """Bytes of a model's weight files (`model*.safetensors`, or a GGUF): of a folder, or of what the cache of Hugging
    Face's hub holds of a model id.

    None where there are no such files here; what the weights take in memory can then stand for them.
    """
    source = Pretrained.of(model)
    place, gguf = located(source)
    folder, file = Path(place), gguf or "config.json"
    if not folder.is_dir():
        try:
            found = try_to_load_from_cache(place, file, revision=source.revision)
        except ValueError:  # neither a folder nor the form of an id
            return None
        if not isinstance(found, str):
            return None
        folder = Path(found.removesuffix(file))
    files = [folder / gguf] if gguf else folder.glob("model*.safetensors")
    return sum(each.stat().st_size for each in files) or None


def memory_bytes(model: PreTrainedModel) -> int:
    """Bytes of the model's parameters and buffers; tied ones count once."""
    return sum(
        tensor.numel() * tensor.element_size() for tensor in chain(model.parameters(), model.buffers())
    )


def check_speed(models: Sequence[PreTrainedModel], names: Sequence[str]) -> int:
    """The prompt's length, so that every model's context has room for it and `NEW_TOKENS`. Weights are not needed.

    Raises:
        UserError: there is no room, or a model keeps nothing of earlier tokens.
    """
    for model, name in zip(models, names, strict=True):
        if "past_key_values" not in inspect.signature(model.forward).parameters:
            raise _without_cache(model, name)
    contexts = [context for model in models if (context := context_length(model.config)) is not None]
    room = min(contexts, default=PROMPT_TOKENS + NEW_TOKENS) - NEW_TOKENS
    if room < 1:
        raise UserError(
            f"speed is measured by writing {NEW_TOKENS} tokens after a prompt, and a model's context has "
            f"{min(contexts)}: leave speed out"
        )
    return min(PROMPT_TOKENS, room)


def _without_cache(model: PreTrainedModel, name: str) -> UserError:
    return UserError(
        f"{name}, of type {model.config.model_type!r}, keeps no keys and values of earlier tokens, so its speed "
        "cannot be measured like the others'"
    )


def read(model: PreTrainedModel, tokens_bt: Tensor, past: Any = None, **options: Any) -> tuple[Tensor, Any]:
    """The likeliest next token of each sequence, int64 [batch, 1], and the cache with `tokens_bt` in it."""
    output = model(input_ids=tokens_bt, past_key_values=past, use_cache=True, **options)
    return output.logits[:, -1:].argmax(-1), getattr(output, "past_key_values", None)


def write(model: PreTrainedModel, token_b1: Tensor, past: Any, steps: int, **options: Any) -> Tensor:
    """What follows `token_b1` after the tokens in `past`: int64 [batch, steps]. An end of text ends nothing."""
    written = []
    for _ in range(steps):
        token_b1, past = read(model, token_b1, past, **options)
        written.append(token_b1)
    return torch.cat(written, dim=1)


def cache_bytes(past: Any) -> int:
    """Bytes of all keys and values in a cache.

    Layers with a sliding window have dropped what is out of it; states that do not grow with the text (of linear
    attention) are not counted.
    """
    kept = [
        getattr(layer, name, None) for layer in getattr(past, "layers", ()) for name in ("keys", "values")
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in kept if isinstance(tensor, Tensor))


def _run(model: PreTrainedModel, name: str, prompts_bt: Tensor) -> tuple[float, float, int]:
    """Seconds of reading and of writing, and the bytes of the cache after reading."""
    device = prompts_bt.device
    # As generation does: the prompt's other logits are batch * prompt * vocabulary numbers nobody looks at.
    few = "logits_to_keep" in inspect.signature(model.forward).parameters
    options: dict[str, Any] = {"logits_to_keep": 1} if few else {}
    try:
        start = _now(device)
        token_b1, past = read(model, prompts_bt, **options)
        prefill, size = _now(device) - start, cache_bytes(past)
        if not size:
            raise _without_cache(model, name)
        start = _now(device)
        write(model, token_b1, past, NEW_TOKENS, **options)
        return prefill, _now(device) - start, size
    except torch.OutOfMemoryError:
        raise UserError(
            f"the GPU has too little memory for {name} at a batch of {len(prompts_bt)} with "
            f"{prompts_bt.shape[1]} + {NEW_TOKENS} tokens: give a smaller batch"
        ) from None


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # kernels run on after the call that started them
    return time.perf_counter()


def _spread(values: list[float]) -> Spread:
    return Spread(median=statistics.median(values), lowest=min(values), highest=max(values))
