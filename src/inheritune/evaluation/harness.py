"""Asking a model the items of a task through lm-evaluation-harness, in this process."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import repeat
from typing import Any

import torch
from lm_eval import evaluator
from lm_eval import utils as harness_utils
from lm_eval.api import metrics as harness_metrics
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from inheritune import UserError
from inheritune.evaluation.statistics import Kind, MetricItems, TaskItems
from inheritune.evaluation.tasks import Unit
from inheritune.models.architecture import context_length
from inheritune.runtime.progress import AGAIN, ProgressBar
from inheritune.training.checks import check_ids
from inheritune.training.validation import BATCH_TOKENS

# The harness compiles a task's templates anew for every item, which takes most of the time of a small model's tasks.
harness_utils.env.from_string = cache(harness_utils.env.from_string)

SEED = 1234
"""Of worked examples and of sampling: the harness's own."""

LOGIT_BYTES = 2**30
"""Of one batch's logits, in float32."""

SHARED_STEP = 16
"""Contexts are read once up to a multiple of so many tokens: those that are in one batch have to be of one length."""

GENERATED_AT_ONCE = 64
"""Texts that are written together where no batch size is given."""

KINDS: dict[Any, Kind] = {
    harness_metrics.mean: "mean",
    harness_metrics.perplexity: "perplexity",
    harness_metrics.weighted_perplexity: "weighted_perplexity",
    harness_metrics.bits_per_byte: "bits_per_byte",
}


@dataclass(frozen=True)
class Row:
    """What the model reads for the requests whose tokens are the same but for the last."""

    tokens: tuple[int, ...]
    places: tuple[int, ...]
    """Of the requests. Their answers end the row, without their last tokens."""
    scored: int
    """Positions at the end that foretell the longest of these answers."""
    shared: int = 0
    """Tokens at the beginning that are read once for all rows that have them."""

    @property
    def rest(self) -> tuple[int, ...]:
        """The tokens behind the shared ones."""
        return self.tokens[self.shared :]


class Scorer(HFLM):
    """The harness's questions to a model of transformers', answered in few forward passes, with our progress bar.

    Log-likelihoods are the harness's own but for rounding: what is computed is only what is read. Requests of one
    length are in one batch; the context that several answers share is read once, where the model's cache allows it;
    logits are those of the answers' positions, and their softmax is in float32 whatever the type of the weights.

    Args:
        model: in evaluation mode, where it is to compute.
        tokenizer: its own.
        batch_size: requests in one forward pass; by default as many as have `BATCH_TOKENS`.
        name: of the model, for the progress bar.
        keeps: as of `ProgressBar`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int | None,
        name: str,
        keeps: str = AGAIN,
    ) -> None:
        context, generated = context_length(model.config), batch_size or GENERATED_AT_ONCE
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=generated, max_length=context)
        self.name, self.keeps, self.truncated, self.requests, self.title = name, keeps, 0, 0, ""
        self.rows_at_once = batch_size or math.inf
        self.options = inspect.signature(model.forward).parameters

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Of every answer after its context: its log-likelihood, and whether it is what greedy decoding writes."""
        with self.progress(requests):
            answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
            return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Of every text, in windows of the context's length, each of whose tokens is foretold once."""
        windows = [
            [
                (None, *make_disjoint_window(window))
                for window in get_rolling_token_windows(
                    self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, context_len=1
                )
            ]
            for request in requests
        ]
        with self.progress(requests):
            answers = iter(self._loglikelihood_tokens([window for text in windows for window in text]))
        return [sum(next(answers)[0] for _ in text) for text in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """What the model writes after every context, as the harness does it."""
        for request in requests:
            context, options = request.args
            new = normalize_gen_kwargs(dict(options), self.max_gen_toks)["max_gen_toks"]
            if new >= self.max_length:
                raise UserError(
                    f"{self.title or 'a task'} lets a model write up to {new} tokens, as many as the context of "
                    f"{self.name} ({self.max_length}) or more: leave it out"
                )
            self.truncated += len(self.tok_encode(context)) > self.max_length - new
        with self.progress(requests) as bar:
            self.cache_hook = _Ticker(bar)
            texts: list[str] = super().generate_until(requests, disable_tqdm=True)
            return texts

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Answers to tokens, a batch at a time.

        Args:
            requests: (texts, context, continuation) each, the latter two as tokens.
            disable_tqdm: not used: the bar is ours.
            override_bs: not used: batches are ours.
        """
        for texts, context, continuation in requests:
            text, answer = texts or ("", "")
            if len(continuation) > self.max_length:
                raise UserError(
                    f"an answer of {len(continuation)} tokens ({answer[:40]!r}...) is longer than the context of "
                    f"{self.name}, {self.max_length}"
                )
            where = f"the text {text[:40]!r}..." if texts else "a text"
            check_ids(max((*context, *continuation), default=0), self.model.config, where, self.name)
            self.truncated += len(context) + len(continuation) > self.max_length + 1
        answers: list[Any] = [None] * len(requests)
        done = 0
        for batch in self._batches(self._rows(requests)):
            for place, answer in self._score(batch, requests):
                answers[place] = answer
                done += 1
            self.bar.update(done, total=len(requests))
        return answers

    def _rows(self, requests: list[Any]) -> list[Row]:
        """What is read, in the order in which it is: with the same shared length side by side, the longest first."""
        same: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for place, (_, context, continuation) in enumerate(requests):
            same[(*context, *continuation)[-self.max_length - 1 : -1]].append(place)
        families: dict[tuple[int, ...], list[Row]] = defaultdict(list)
        for tokens, places in same.items():
            scored = max(len(requests[place][2]) for place in places)
            families[tokens[:-scored]].append(Row(tokens, tuple(places), scored))
        found = []
        for context, rows in families.items():
            shared = len(context) // SHARED_STEP * SHARED_STEP if len(rows) > 1 and self.can_share else 0
            longest = max(len(row.tokens) for row in rows)
            found += [(shared, longest, context, replace(row, shared=shared)) for row in rows]
        return [row for *_, row in sorted(found, key=lambda one: one[:3], reverse=True)]

    def _batches(self, rows: list[Row]) -> Iterator[list[Row]]:
        """Rows of one shared length that are computed together, within `BATCH_TOKENS` and `LOGIT_BYTES`."""
        most_tokens = BATCH_TOKENS[self.device.type]
        most_logits = LOGIT_BYTES / (4 * self.model.config.get_text_config().vocab_size)
        batch: list[Row] = []
        longest = kept = 0
        for row in rows:
            if batch:
                first = min(longest - kept, len(row.rest) - row.scored)
                length, count = max(longest, len(row.rest)), len(batch) + 1
                if (
                    row.shared != batch[0].shared
                    or count > self.rows_at_once
                    or count * (row.shared + length) > most_tokens
                    or count * (length - first) > most_logits
                ):
                    yield batch
                    batch = []
            if not batch:
                length, first = len(row.rest), len(row.rest) - row.scored
            batch.append(row)
            longest, kept = length, length - first
        if batch:
            yield batch

    @torch.inference_mode()
    def _score(self, batch: list[Row], requests: list[Any]) -> Iterator[tuple[int, tuple[float, bool]]]:
        """Place and answer of every request of a batch."""
        longest = max(len(row.rest) for row in batch)
        kept = longest - min(len(row.rest) - row.scored for row in batch)
        inputs_bt = torch.tensor([row.rest + (0,) * (longest - len(row.rest)) for row in batch])
        logits_bkv = self._logits(inputs_bt.to(self.device), kept, self._read_shared(batch))
        logs_bkv = logits_bkv.log_softmax(-1, dtype=torch.float32)
        indices: list[tuple[int, int, int]] = []
        answers = [
            (place, number, requests[place][2]) for number, row in enumerate(batch) for place in row.places
        ]
        for _, number, answer in answers:
            end = kept - longest + len(batch[number].rest)
            indices += zip(repeat(number), range(end - len(answer), end), answer, strict=False)
        b, k, v = torch.tensor(indices, device=self.device).T
        logs = logs_bkv[b, k, v].tolist()
        greedy = (logs_bkv.argmax(-1)[b, k] == v).tolist()
        begin = 0
        for place, _, answer in answers:
            end = begin + len(answer)
            yield place, (math.fsum(logs[begin:end]), all(greedy[begin:end]))
            begin = end

    def _read_shared(self, batch: list[Row]) -> Cache | None:
        """Keys and values of what every row of a batch shares with others; None where that is nothing."""
        if not batch[0].shared:
            return None
        numbers: dict[tuple[int, ...], int] = {}
        chosen = [numbers.setdefault(row.tokens[: row.shared], len(numbers)) for row in batch]
        inputs_bt = torch.tensor(list(numbers), device=self.device)
        options = {"logits_to_keep": 1} if "logits_to_keep" in self.options else {}
        past: Cache = self.model(inputs_bt, use_cache=True, **options).past_key_values
        past.batch_select_indices(torch.tensor(chosen, device=self.device))
        return past

    def _logits(self, inputs_bt: Tensor, kept: int, past: Cache | None) -> Tensor:
        """Logits of the last positions of a batch, [batch, kept, vocabulary]."""
        options: dict[str, Any] = {"use_cache": past is not None} if "use_cache" in self.options else {}
        if past is not None:
            options["past_key_values"] = past
        if "logits_to_keep" in self.options:
            options["logits_to_keep"] = kept
        logits_btv: Tensor = self.model(inputs_bt, **options).logits
        return logits_btv[:, -kept:]

    @cached_property
    def can_share(self) -> bool:
        """Whether the model's cache is keys and values alone, so that more than one token may follow them."""
        if not {"past_key_values", "use_cache"} <= self.options.keys():
            return False
        with torch.inference_mode():
            found = self.model(torch.zeros(1, 1, dtype=torch.long, device=self.device), use_cache=True)
        layers = getattr(getattr(found, "past_key_values", None), "layers", [])
        kinds = (DynamicLayer, DynamicSlidingWindowLayer)
        return bool(layers) and all(type(layer) in kinds for layer in layers)

    def progress(self, requests: Sequence[Instance]) -> ProgressBar:
        """A bar that shows how many requests, or windows of texts, are answered."""
        self.requests += len(requests)
        self.bar = ProgressBar(f"{self.name}: {self.title}", len(requests), "requests", keeps=self.keeps)
        return self.bar


class _Ticker:
    """Stands where the harness puts its cache of answers."""

    def __init__(self, bar: ProgressBar) -> None:
        self.bar = bar

    def add_partial(self, *_: Any) -> None:
        """One request more is answered."""
        self.bar.update(self.bar.done + 1)


def ask(scorer: Any, unit: Unit, key: dict[str, Any], limit: int | None = None) -> TaskItems:
    """A model's answers to the items of a task, and the harness's figures.

    Args:
        scorer: an `lm_eval.api.model.LM`, such as `Scorer`.
        unit: the task or tasks.
        key: stored with the answers.
        limit: ask only so many items of each of the unit's tasks.

    Raises:
        UserError: log-likelihoods that are not finite.
    """
    for task in unit.tasks:
        task.set_fewshot_seed(seed=SEED)
    scorer.truncated, scorer.requests, scorer.title = 0, 0, unit.name
    on_gpu = scorer.device is not None and torch.device(scorer.device).type == "cuda"
    with torch.random.fork_rng(devices=[scorer.device] if on_gpu else []):
        torch.manual_seed(SEED)
        results = evaluator.evaluate(
            lm=scorer,
            task_dict={"tasks": {task.task_name: task for task in unit.tasks}},
            limit=limit,
            bootstrap_iters=0,  # we compute errors ourselves: on paired items
            log_samples=True,
        )
    assert results is not None, "we are the only process"
    samples = [sample for task in unit.tasks for sample in results["samples"][task.task_name]]
    if any(_has_nan(sample["filtered_resps"]) for sample in samples):
        raise UserError(
            f"log-likelihoods of {unit.name} are not finite numbers: the model is broken in this type"
        )
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    metrics: dict[str, MetricItems] = {}
    for name in filters:
        chosen = [sample for sample in samples if sample["filter"] == name]
        for metric in dict.fromkeys(metric for sample in chosen for metric in sample["metrics"]):
            label = metric if len(filters) == 1 else f"{metric},{name}"
            metrics[label] = _metric(unit, results["results"], metric, name, chosen)
    first = [sample for sample in samples if sample["filter"] == filters[0]]
    return TaskItems(
        key=key,
        task=unit.name,
        version=str(unit.tasks[0].VERSION),
        shots=unit.shots,
        parts=[task.task_name for task in unit.tasks] if len(unit.tasks) > 1 else [],
        metrics=metrics,
        chance=_chance(unit, first),
        truncated=scorer.truncated,
        requests=scorer.requests,
        hashes=[_hash(sample) for sample in first],
        responses=[sample["filtered_resps"] for sample in first],
    )


def _metric(
    unit: Unit, results: dict[str, Any], metric: str, filter_name: str, samples: list[dict[str, Any]]
) -> MetricItems:
    """One metric over all items of a unit; those of several tasks are pooled if it is a mean."""
    task = unit.tasks[0]
    kind = KINDS.get(task.aggregation().get(metric), "other")
    items = [sample[metric] for sample in samples]
    if len(unit.tasks) == 1:
        value = float(results[task.task_name][f"{metric},{filter_name}"])
    elif kind == "mean":
        value = math.fsum(items) / len(items)
    else:
        raise UserError(f"{unit.name} pools the items of several tasks, which {metric} does not allow")
    if not math.isfinite(value):
        raise UserError(
            f"{metric} of {unit.name} is {value}: the model gives log-likelihoods that are not finite"
        )
    better = task.higher_is_better().get(metric)
    return MetricItems(
        kind=kind,
        higher_is_better=True if better is None else bool(better),
        value=value,
        items=None if kind == "other" else items,
    )


def _chance(unit: Unit, samples: list[dict[str, Any]]) -> float | None:
    """What guessing gives on multiple-choice items that have one right answer each."""
    task = unit.tasks[0]
    if task.OUTPUT_TYPE != "multiple_choice" or task.config.process_results or task.multiple_target:
        return None
    return math.fsum(1 / len(sample["filtered_resps"]) for sample in samples) / len(samples)


def _hash(sample: dict[str, Any]) -> str:
    arguments = "\0".join(str(argument) for arguments in sample["arguments"] for argument in arguments)
    whole = f"{arguments}\0{sample['target']}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(whole).hexdigest()[:16]


def _has_nan(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_has_nan(part) for part in value)
    return isinstance(value, float) and math.isnan(value)
