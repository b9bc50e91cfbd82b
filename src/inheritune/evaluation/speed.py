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
from typing import Any, NamedTuple

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor
from transformers import PreTrainedModel

from inheritune import UserError
from inheritune.evaluation.result import ModelSpeed, Rate, SpeedResult, Spread
from inheritune.models.architecture import context_length
from inheritune.progress import ProgressBar

PROMPT_TOKENS = 512


def measure_speed(
    models: Sequence[PreTrainedModel],
    checkpoint_bytes: Sequence[int],
    *,
    prompt_tokens: int | None = None,
    new_tokens: int = 64,
    batches: Sequence[int] = (1, 8),
    turns: int = 5,
    seed: int = 0,
) -> SpeedResult:
    """Time models against each other: reading a prompt, then writing greedily one token at a time on the cache.

    In every turn each model reads and writes once. Every other turn goes through the models backwards, so that a
    machine that becomes slower or faster favours none. One run of each model before the first turn is not counted.
    Models are left in the mode they were in.

    Args:
        models: all on one device; their vocabularies may differ.
        checkpoint_bytes: of the weight files of each model, as `checkpoint_bytes` finds them.
        prompt_tokens: length of the random prompts; by default 512, or as many as leave every model room to write.
        new_tokens: steps of writing after the prompt, one token of each sequence at a time.
        batches: sequences at once; each of these numbers is timed.
        turns: how often each model is timed at each batch.
        seed: of the prompts.

    Raises:
        UserError: models on several devices, numbers that are not positive, tokens that do not fit a model's
            context, a model without keys and values to keep, or too little memory on the GPU.
    """
    _check(models, checkpoint_bytes, new_tokens, turns, batches, prompt_tokens)
    device = _device(models)
    writers = [GreedyWriter(model, _name(models, i)) for i, model in enumerate(models)]
    prompt_tokens = fitting_prompt(models, new_tokens, prompt_tokens)
    vocabulary = min(model.get_input_embeddings().weight.shape[0] for model in models)
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(vocabulary, (max(batches), prompt_tokens), generator=generator).to(device)

    modes = [model.training for model in models]
    runs: list[list[list[_Run]]] = [[[] for _ in batches] for _ in models]  # of each model, at each batch
    total = len(models) * len(batches) * (turns + 1)
    try:
        for model in models:
            model.eval()
        with ProgressBar("speed", total, "runs") as bar:
            for place, batch in enumerate(batches):
                for turn in range(turns + 1):  # the first warms up
                    for i in turn_order(len(models), turn):
                        runs[i][place].append(_run(writers[i], prompts[:batch], new_tokens))
                        bar.update(bar.done + 1, f"batch {batch}, {writers[i].name}")
    finally:
        for model, training in zip(models, modes, strict=True):
            model.train(training)
    return SpeedResult(
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        turns=turns,
        models=[
            ModelSpeed(
                checkpoint_bytes=on_disk,
                memory_bytes=memory_bytes(model),
                cache_bytes_per_token=of_model[0][0].cache_bytes / (batches[0] * prompt_tokens),
                rates=[
                    _rate(at_batch[1:], batch, prompt_tokens, new_tokens)
                    for batch, at_batch in zip(batches, of_model, strict=True)
                ],
            )
            for model, on_disk, of_model in zip(models, checkpoint_bytes, runs, strict=True)
        ],
    )


def checkpoint_bytes(source: str | Path, revision: str | None = None) -> int | None:
    """Bytes of a checkpoint's weight files (`model*.safetensors`): of a folder, or of what the cache of Hugging
    Face's hub holds of a model id.

    None where there are no such files here; what the weights take in memory can then stand for them.
    """
    folder = Path(source)
    if not folder.is_dir():
        try:
            config = try_to_load_from_cache(str(source), "config.json", revision=revision)
        except ValueError:  # neither a folder nor the form of an id
            return None
        if not isinstance(config, str):
            return None
        folder = Path(config).parent
    return sum(file.stat().st_size for file in folder.glob("model*.safetensors")) or None


def memory_bytes(model: PreTrainedModel) -> int:
    """Bytes of the model's parameters and buffers; tied ones count once."""
    return sum(
        tensor.numel() * tensor.element_size() for tensor in chain(model.parameters(), model.buffers())
    )


def fitting_prompt(
    models: Sequence[PreTrainedModel], new_tokens: int, prompt_tokens: int | None = None
) -> int:
    """The prompt's length, made sure to fit every model's context together with `new_tokens`.

    By default 512 tokens, or as many as the smallest context leaves room for.

    Raises:
        UserError: it does not fit.
    """
    contexts = [
        (context, _name(models, i))
        for i, model in enumerate(models)
        if (context := context_length(model.config)) is not None
    ]
    if not contexts:
        return prompt_tokens or PROMPT_TOKENS
    context, name = min(contexts)
    room = context - new_tokens
    if room < 1:
        raise UserError(
            f"{new_tokens} new tokens leave no room for a prompt in the context of {name}, {context} tokens: "
            f"write at most {context - 1}"
        )
    if prompt_tokens is None:
        return min(PROMPT_TOKENS, room)
    if prompt_tokens > room:
        raise UserError(
            f"a prompt of {prompt_tokens} tokens and {new_tokens} new ones do not fit the context of {name}, "
            f"{context} tokens: the longest prompt that fits has {room}"
        )
    return prompt_tokens


def turn_order(models: int, turn: int) -> list[int]:
    """Places of the models in the order in which this turn times them: every other turn backwards."""
    return list(range(models))[:: -1 if turn % 2 else 1]


class GreedyWriter:
    """The forward passes of greedy generation on a model's cache, and nothing around them.

    Args:
        model: in evaluation mode where its dropout shall not act.
        name: for error messages.

    Raises:
        UserError: the model keeps no keys and values.
    """

    def __init__(self, model: PreTrainedModel, name: str) -> None:
        self.model, self.name = model, name
        takes = inspect.signature(model.forward).parameters
        if "past_key_values" not in takes:
            raise self._without_cache()
        # As generation does: the prompt's other logits are batch * prompt * vocabulary numbers nobody looks at.
        self.options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}

    def read(self, tokens_bt: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """The likeliest next token of each sequence, int64 [batch, 1], and the cache with `tokens_bt` in it."""
        output = self.model(input_ids=tokens_bt, past_key_values=cache, use_cache=True, **self.options)
        return output.logits[:, -1:].argmax(-1), getattr(output, "past_key_values", None)

    def write(self, token_b1: Tensor, cache: Any, steps: int) -> Tensor:
        """What follows `token_b1` after the tokens in `cache`: int64 [batch, steps]. An end of text ends nothing."""
        written = []
        for _ in range(steps):
            token_b1, cache = self.read(token_b1, cache)
            written.append(token_b1)
        return torch.cat(written, dim=1)

    def cache_bytes(self, cache: Any) -> int:
        """Bytes of all keys and values in a cache.

        Layers with a sliding window have dropped what is out of it; states that do not grow with the text (of
        linear attention) are not counted.

        Raises:
            UserError: there are none.
        """
        tensors = [
            tensor
            for layer in getattr(cache, "layers", ())
            for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None))
            if isinstance(tensor, Tensor)
        ]
        if not tensors:
            raise self._without_cache()
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def _without_cache(self) -> UserError:
        return UserError(
            f"{self.name}, of type {self.model.config.model_type!r}, keeps no keys and values of earlier tokens, "
            "so its speed cannot be measured like the others'"
        )


class _Run(NamedTuple):
    """Seconds of reading and of writing, and the bytes of the cache after reading."""

    prefill: float
    decode: float
    cache_bytes: int


@torch.inference_mode()
def _run(writer: GreedyWriter, prompts_bt: Tensor, new_tokens: int) -> _Run:
    device = prompts_bt.device
    try:
        start = _now(device)
        token_b1, cache = writer.read(prompts_bt)
        prefill = _now(device) - start
        cache_bytes = writer.cache_bytes(cache)
        start = _now(device)
        writer.write(token_b1, cache, new_tokens)
        return _Run(prefill, _now(device) - start, cache_bytes)
    except torch.OutOfMemoryError:
        raise UserError(
            f"the GPU has too little memory for {writer.name} at a batch of {len(prompts_bt)} with "
            f"{prompts_bt.shape[1]} + {new_tokens} tokens: give a smaller batch or shorter prompts"
        ) from None


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # kernels run on after the call that started them
    return time.perf_counter()


def _rate(runs: Sequence[_Run], batch: int, prompt_tokens: int, new_tokens: int) -> Rate:
    return Rate(
        batch=batch,
        prefill=_spread([batch * prompt_tokens / run.prefill for run in runs]),
        decode=_spread([batch * new_tokens / run.decode for run in runs]),
    )


def _spread(values: list[float]) -> Spread:
    return Spread(median=statistics.median(values), lowest=min(values), highest=max(values))


def _name(models: Sequence[PreTrainedModel], place: int) -> str:
    return f"model {place + 1} ({models[place].name_or_path or models[place].config.model_type})"


def _device(models: Sequence[PreTrainedModel]) -> torch.device:
    devices = {parameter.device for model in models for parameter in model.parameters()}
    if len(devices) > 1:
        names = ", ".join(sorted(map(str, devices)))
        raise UserError(
            f"the models are on several devices ({names}): put them on one to compare their speed"
        )
    return devices.pop()


def _check(
    models: Sequence[PreTrainedModel],
    on_disk: Sequence[int],
    new_tokens: int,
    turns: int,
    batches: Sequence[int],
    prompt_tokens: int | None,
) -> None:
    assert len(models) == len(on_disk), (len(models), len(on_disk))
    if not models:
        raise UserError("there is no model whose speed could be measured")
    if not batches:
        raise UserError("there is no batch to measure the speed at: give a number of sequences, such as 1")
    numbers = {
        "new_tokens": new_tokens,
        "turns": turns,
        "batches": min(batches),
        "prompt_tokens": prompt_tokens,
    }
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise UserError(f"{name} is {number}, but must be at least 1")
