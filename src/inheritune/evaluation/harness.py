"""Asking a model the items of a task through lm-evaluation-harness, in this process."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lm_eval import evaluator
from lm_eval.api import metrics as harness_metrics
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from inheritune import UserError
from inheritune.evaluation.statistics import Kind, MetricItems, TaskItems
from inheritune.evaluation.tasks import Unit
from inheritune.models.architecture import context_length
from inheritune.runtime.progress import ProgressBar
from inheritune.training.checks import check_ids

SEED = 1234
"""Of worked examples and of sampling: the harness's own."""

LOGIT_BYTES = 2**30
"""Of one batch's logits, in float32."""

KINDS: dict[Any, Kind] = {
    harness_metrics.mean: "mean",
    harness_metrics.perplexity: "perplexity",
    harness_metrics.weighted_perplexity: "weighted_perplexity",
    harness_metrics.bits_per_byte: "bits_per_byte",
}


def _with_bar(name: str) -> Any:
    """The method of `HFLM` with this name, with our progress bar instead of its own."""

    def answers(scorer: Scorer, requests: list[Instance], disable_tqdm: bool = True) -> list[Any]:
        with scorer.progress(requests):
            return getattr(HFLM, name)(scorer, requests, disable_tqdm=True)

    return answers


class Scorer(HFLM):
    """The harness's way to score with a model of transformers', with our progress bar, and with what it cut counted.

    Args:
        model: in evaluation mode, where it is to compute.
        tokenizer: its own.
        batch_size: requests in one forward pass.
        name: of the model, for the progress bar.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int, name: str
    ) -> None:
        context = context_length(model.config)
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=context)
        self.name, self.truncated, self.requests, self.title = name, 0, 0, ""
        self.can_keep_few = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.kept_logits = 0

    loglikelihood = _with_bar("loglikelihood")
    loglikelihood_rolling = _with_bar("loglikelihood_rolling")
    generate_until = _with_bar("generate_until")

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """The harness's own scoring, a batch at a time, so that logits are computed only where they are read.

        Args:
            requests: (texts, context, continuation) each, the latter two as tokens.
            disable_tqdm: not used: the bar is ours.
            override_bs: not used: the batch size is fixed.
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
        for batch, kept in self._batches(requests):
            self.kept_logits = kept
            found = super()._loglikelihood_tokens([requests[i] for i in batch], disable_tqdm=True)
            for place, answer in zip(batch, found, strict=True):
                answers[place] = answer
        return answers

    def _model_call(self, inps: Tensor, attn_mask: Any = None, labels: Any = None) -> Tensor:
        """Logits of the last positions of a batch, [batch, kept, vocabulary]."""
        if not self.can_keep_few:
            return super()._model_call(inps)
        with torch.no_grad():
            return self.model(inps, logits_to_keep=min(self.kept_logits, inps.shape[1])).logits

    def _batches(self, requests: list[Any]) -> Iterator[tuple[list[int], int]]:
        """Places of requests that are computed together, and how many positions at the end hold all their answers.

        The longest come first. Answers that differ in their last token only cost one row, as in the harness; logits
        of a batch stay within `LOGIT_BYTES`.
        """
        rows: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for place, (_, context, continuation) in enumerate(requests):
            rows[*context, *continuation[:-1]].append(place)
        per_position = self.model.config.get_text_config().vocab_size * 4
        batch: list[int] = []
        longest = first = count = 0
        for tokens, places in sorted(rows.items(), key=lambda row: -len(row[0])):
            length = min(len(tokens), self.max_length)
            begin = length - max(len(requests[place][2]) for place in places)
            size = (count + 1) * (longest - min(first, begin)) * per_position
            if batch and (count == self.batch_size or size > LOGIT_BYTES):
                yield batch, longest - first
                batch, count = [], 0
            if not batch:
                longest, first = length, begin
            batch, count, first = batch + places, count + 1, min(first, begin)
        if batch:
            yield batch, longest - first

    def progress(self, requests: Sequence[Instance]) -> ProgressBar:
        """A bar that the harness moves on as it caches the answer to every request."""
        self.requests += len(requests)
        bar = ProgressBar(f"{self.name}: {self.title}", len(requests), "requests")
        self.cache_hook = _Ticker(bar)
        return bar


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
