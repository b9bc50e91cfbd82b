"""The model card of what `inherit`, `train` and `run` leave: `README.md`, and results in the hub's own format.

What a user or a base model says is text: it is escaped where it stands in Markdown, and dumped as YAML elsewhere.
"""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune import __version__, plain_yaml
from inheritune.config import Pretrained
from inheritune.models.gguf import located
from inheritune.quantities import signed_interval
from inheritune.recipe_file import short_values

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

    from inheritune.analysis.kept import Kept
    from inheritune.config import Initialization, Recipe, TrainRecipe
    from inheritune.cut import Measuring
    from inheritune.evaluation.result import Evaluation, MetricResult, TaskResult
    from inheritune.run_directory import Summary

README = "README.md"
RESULTS = ".eval_results"
"""Where the hub reads results for the leaderboards of data sets that are benchmarks there."""

TAG = "inheritune"
"""Marks what was made here."""

BENCHMARKS = {
    "gsm8k": ("openai/gsm8k", "gsm8k"),
    "gpqa_diamond_zeroshot": ("Idavidrein/gpqa", "gpqa_diamond"),
}
"""Task of the harness -> data set that is a benchmark on the hub, and its name of the task."""

PLACES = ("pretrained", "tasks")
"""Keys of a recipe whose texts may be places: of a model's folder, of a task's YAML."""

PAPER = "*Inheritune: Training Smaller Yet More Attentive Language Models* (arXiv 2404.08634)"


def card_name(model: str) -> str:
    """How a card names a model: by its id on the hub, or by the last part of its folder's path."""
    return Path(model).name if Path(model).exists() else model


def cut_card(
    model: str,
    source: Pretrained | None,
    kept: Kept,
    tokens: int | None,
    measuring: Measuring,
    dtype: str = "auto",
) -> str:
    """Card of a model that was cut and not trained.

    Args:
        model: what the whole one is called.
        source: where it is, if anywhere.
        kept: what of it.
        tokens: those that its vocabulary keeps, if not all.
        measuring: what was measured on.
        dtype: in which the weights were read.
    """
    model = card_name(model)
    name, count = escaped(model), len(kept.layers)
    if kept.layers == list(range(count)):
        title = f"The first {count} of {kept.of_layers} layers of {name}"
        which = f"Blocks 0 to {count - 1}"
    else:
        title = f"{count} of {kept.of_layers} layers of {name}"
        which = f"Blocks {', '.join(map(str, kept.layers))} (counted from 0)"
    why = ""
    if kept.measured is not None and kept.loss is not None:
        whole = "" if kept.whole is None else f", the whole model's {kept.whole:.3f}"
        why = (
            f" They are the `{kept.keep}` choice on {kept.measured.windows} windows of {kept.measured.window} "
            f"tokens, where their loss is {kept.loss:.3f} nats per token{whole}."
        )
    part = "as they are"
    options = ["--keep", ",".join(map(str, kept.layers))]
    if (width := kept.width) is not None:
        title += ", narrower"
        chosen = "of most importance" if width.narrow == "importance" else "that are first"
        part = (
            f"and of these the dimensions, heads and MLP channels {chosen} (hidden size {width.hidden}, "
            f"{width.heads} heads, MLP {width.mlp})"
        )
        sizes = {"hidden": width.hidden, "heads": width.heads, "mlp": width.mlp, "narrow": width.narrow}
        options += [word for key, value in sizes.items() for word in (f"--{key}", str(value))]
    if tokens is not None:
        title += f", with {tokens:,} of its tokens"
        why += f"\nOf the embeddings and the head the rows of {tokens:,} tokens are kept, and in the tokenizer these."
        options += ["--vocabulary", str(tokens)]
    if tokens is not None or (kept.width is not None and kept.width.narrow == "importance"):
        data = measuring.data
        options += (
            ["--text", "TEXT"]
            if isinstance(data, str | Path) and Path(data).is_file()
            else ["--data", "DATA"]
        )
        options += ["--seed", str(measuring.seed)] if measuring.seed else []
    text = f"""
{which}, all embeddings, the final norm and the head of {name}, {part}: the first step of
{PAPER}.{why}
"""
    if count < kept.of_layers:
        text += f"It is meant to be trained further; as it is, it predicts far worse than {name}.\n"
    if source is not None:
        options += ["--dtype", dtype] if dtype != "auto" else []
        options += ["--revision", source.revision] if source.revision else []
        options += ["--trust-remote-code"] if source.trust_remote_code else []
        text += _reproduce(["inherit", model, *options, "-o", "small"])
    return _card(title, text, source)


def train_card(recipe: TrainRecipe, loss: float, windows: int, kept: Kept | None = None) -> str:
    """Card of a single model that was trained; `loss` is the mean on all so many validation windows.

    `kept` is what was chosen by measuring, if anything was.
    """
    source = recipe.model.trained
    origin = "random weights" if source is None else escaped(card_name(str(source)))
    if recipe.initialization is not None:
        origin += f" (of it: {_taken(recipe.initialization, kept)})"
    text = f"""
Trained from {origin} for {recipe.training.steps:,} steps of {recipe.training.tokens_per_step:,} tokens, to a loss of
{loss:.4f} nats per token on {windows:,} held-out windows.
"""
    results = [_loss_result("loss", "validation loss, nats per token", recipe.data.path, loss)]
    text += _reproduce(["train", "recipe.yaml"], recipe)
    return _card(recipe.name, text, source, recipe.data.path, results)


def _taken(part: Initialization, kept: Kept | None) -> str:
    """What a model starts from, in the words of its recipe; layers that were measured by their numbers."""
    values = part.model_dump(exclude_none=True)
    if kept is not None and "layers" in values:
        values["layers"] = kept.layers

    def words(value: Any) -> str:
        return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

    return "; ".join(f"{key.replace('_', ' ')} {words(value)}" for key, value in values.items())


def run_card(recipe: Recipe, summary: Summary, dtype: Any, evaluation: Evaluation | None) -> str:
    """Card of a run's result, whose weights have this type, with the tasks where it was evaluated."""
    from inheritune.report.verdict import verdict_words

    reference, last = summary.reference, summary.rounds[-1]
    assert reference is not None and reference.loss is not None
    source = recipe.reference.trained
    origin = escaped(card_name(str(source))) if source else "a reference trained by the same recipe"
    kept = last.kept or list(range(last.layers))
    which = (
        f"The first {last.layers}"
        if kept == list(range(last.layers))
        else f"Layers {', '.join(map(str, kept))}"
    )
    whole, small = summary.bits_per_byte(reference.loss), summary.bits_per_byte(last.loss)
    rows = [
        ("layers", f"{reference.layers}", f"{last.layers}"),
        ("parameters", f"{reference.parameters:,}", f"{last.parameters:,}"),
        ("validation loss (nats per token)", f"{reference.loss:.4f}", f"{last.loss:.4f}"),
    ]
    results = [_loss_result("loss", "validation loss, nats per token", recipe.data.path, last.loss)]
    if whole is not None and small is not None:
        rows.append(("the same in bits per byte", f"{whole:.4f}", f"{small:.4f}"))
        results.append(
            _loss_result("bits_per_byte", "validation loss, bits per byte", recipe.data.path, small)
        )
    for name, found in last.also.items():
        rows.append((f"loss on {name}", f"{found.loss - found.difference:.4f}", f"{found.loss:.4f}"))
    for task, result in evaluation.shown() if evaluation else ():
        large, own = result.scores
        name = f"{escaped(task.task)} ({result.metric}, {task.shots} shots)"
        rows.append((name, f"{large.value:.4f}", f"{own.value:.4f}"))
        results.append(_task_result(task, result))
    text = f"""
{which} of {reference.layers} layers of {origin}, trained further by the recipe of
{PAPER}.

{_table(("", "reference", "this model"), rows)}

Difference of the validation losses {last.difference:+.4f}, 95% interval {signed_interval(last.interval, 4)}, over
{reference.windows} paired windows, measured on these weights, which are {str(dtype).removeprefix("torch.")}.

## Is it as good?

{" ".join(verdict_words(summary))}
"""
    text += _reproduce(["run", "recipe.yaml"], recipe)
    return _card(summary.name, text, source, recipe.data.path, results)


def benchmark_results(evaluation: Evaluation) -> dict[str, str]:
    """Files of `.eval_results`: name -> YAML, for the tasks that are benchmarks on the hub and were asked in full."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    found = {}
    for task in evaluation.tasks:
        if task.task not in BENCHMARKS or task.note is not None or evaluation.settings.get("limit"):
            continue
        dataset, name = BENCHMARKS[task.task]
        entry = EvalResultEntry(
            dataset_id=dataset,
            task_id=name,
            value=round(task.of(task.metric).scores[-1].value, 4),
            notes=f"lm-evaluation-harness {task.task}, {task.metric}, {task.shots} shots",
        )
        found[f"{task.task}.yaml"] = plain_yaml.dump(eval_result_entries_to_yaml([entry]))
    return found


def escaped(text: str) -> str:
    """A text that shows as it is in Markdown."""
    return re.sub(r"([\\`*\[\]|~#])", r"\\\1", html.escape(text, quote=False))


def _card(
    title: str,
    text: str,
    source: Pretrained | None,
    data: Path | None = None,
    results: Sequence[EvalResult] = (),
) -> str:
    """The card itself: its front matter says the same in the hub's words."""
    from huggingface_hub import ModelCard, ModelCardData

    front = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[TAG],
        datasets=_datasets(data) or None,
        model_name=title if results else None,
        eval_results=list(results) or None,
        **(_base(source) if source is not None else {}),
    )
    body = f"# {escaped(title)}\n\n{text.strip()}\n\nMade with inheritune {__version__}.\n"
    return str(ModelCard(f"---\n{front.to_yaml()}\n---\n{body}"))


def _base(source: Pretrained) -> dict[str, Any]:
    """What a card takes over from the model that the weights come from: which that is, its license and languages."""
    from huggingface_hub import ModelCard, hf_hub_download

    place, _ = located(source)
    local = Path(place).is_dir()
    found: dict[str, Any] = {} if local else {"base_model": place}
    try:
        path = Path(place) / README if local else hf_hub_download(place, README, revision=source.revision)
        own = ModelCard.load(path, ignore_metadata_errors=True).data
    except Exception:  # there is none, or none that can be read: the card does without
        return found
    for key in ("base_model", "license", "license_name", "license_link", "language"):
        value = own.get(key)
        if isinstance(value, str) or (isinstance(value, list) and all(isinstance(v, str) for v in value)):
            found.setdefault(key, value)
    return found


def _datasets(data: Path | None) -> list[str]:
    """The data sets of the hub that token shards were made of, where these are still there."""
    from inheritune import UserError
    from inheritune.data.shards import read_manifest

    try:
        return [] if data is None else read_manifest(data).datasets
    except UserError:
        return []


def _loss_result(kind: str, words: str, data: Path, value: float) -> EvalResult:
    from huggingface_hub import EvalResult

    ids = _datasets(data)
    return EvalResult(
        task_type="text-generation",
        dataset_type=ids[0] if len(ids) == 1 else data.name,
        dataset_name=f"validation split of {data.name}",
        metric_type=kind,
        metric_name=words,
        metric_value=round(value, 4),
    )


def _task_result(task: TaskResult, result: MetricResult) -> EvalResult:
    from huggingface_hub import EvalResult

    return EvalResult(
        task_type="text-generation",
        dataset_type=task.task,
        dataset_name=task.task,
        dataset_args={"num_few_shot": task.shots},
        metric_type=result.metric,
        metric_value=round(result.scores[-1].value, 4),
    )


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (heading, ["---"] * len(heading), *rows))


def _reproduce(command: Sequence[str], recipe: Recipe | TrainRecipe | None = None) -> str:
    """How to make the model again; folders are named without saying where they were."""
    lines = f"pip install inheritune=={__version__}\ninheritune {shlex.join(command)}"
    text = f"\n## How to make it again\n\n{_fenced('sh', lines)}\n"
    if recipe is not None:
        values = _without_places(short_values(recipe), recipe.model_dump())
        text += f"\nwith this `recipe.yaml`:\n\n{_fenced('yaml', plain_yaml.dump(values))}\n"
    return text


def _without_places(values: Any, own: Any, key: str = "") -> Any:
    """Plain values of a recipe with the names of folders alone; `own` are the same with paths as such."""
    if isinstance(values, Mapping):
        return {name: _without_places(value, own[name], name) for name, value in values.items()}
    if isinstance(values, list):
        return [_without_places(*pair, key) for pair in zip(values, own, strict=True)]
    place = isinstance(own, Path) or (key in PLACES and isinstance(own, str))
    return Path(values).name if place and Path(values).is_absolute() else values


def _fenced(language: str, text: str) -> str:
    """A block of code, whatever is in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.strip()}\n{fence}"
