"""An evaluation for people and programs: what it says in words, its tables, and the files that are left of it.

Figures of every group of tasks, their paired differences, the paper's own figures beside them (`paper.yaml`), tasks
of no group, validation loss, size and speed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import rich.table
import yaml

from inheritune.evaluation.result import (
    Evaluation,
    GroupResult,
    MetricResult,
    Paired,
    Rate,
    Score,
    SpeedResult,
    Spread,
    TaskResult,
    ValidationResult,
)
from inheritune.quantities import bits_per_byte, count, memory, significant
from inheritune.report import pages
from inheritune.report.figures import Interval, Picture, differences, short
from inheritune.report.table import PER_BYTE, Column, Row, Table, csv_text, escaped, printable, terminal_text

FILES = ("evaluation.md", "evaluation.csv", "evaluation.html", "differences.svg")
CSV_COLUMNS = (
    *("kind", "task", "metric", "model", "value", "standard_error"),
    *("difference", "low", "high", "p", "outcome", "items", "shots", "chance", "data", "note"),
)
NONE = "–"
AVERAGE = "average"
PAPER_HEADING = "The paper's figures (other models, other data)"
UNSEEN = "no difference seen"
TERMINAL_COLUMNS = 4  # of figures by model, side by side
# Of tables that have more than a terminal holds: what can be done without, or is shown elsewhere.
NOT_IN_TERMINAL = {"tasks": {"Metric", "Items", "Shots", "Chance", "p"}, "cost": {"Memory"}}
PAIRED = (
    Column("Difference"),
    Column("95% interval"),
    Column("p", "McNemar"),
    Column("Outcome", number=False),
)


def write_evaluation(directory: Path, evaluation: Evaluation) -> list[Path]:
    """Write `FILES` into a directory, which is made if need be, and return the paths of those that were written.

    Without anything paired there is no figure, and one of an earlier evaluation is removed.

    Raises:
        UserError: `directory` is a file.
    """
    page, picture = evaluation_page(evaluation).html(), difference_picture(evaluation)
    texts = (to_markdown(evaluation), to_csv(evaluation), page, picture)
    return pages.write_files(directory, dict(zip(FILES, texts, strict=True)))


def evaluation_page(evaluation: Evaluation) -> pages.Page:
    """The page of an evaluation alone."""
    facts = {"How it was measured": evaluation.settings, "Where it ran": evaluation.environment}
    sources = [
        *source_tables(evaluation),
        *(pages.facts_table(title, values) for title, values in facts.items()),
    ]
    sections = (
        pages.Section(f"Differences to {evaluation.models[0].name}", "differences", _figure(evaluation)),
        *(pages.Section(*part) for part in parts(evaluation)),
        pages.Section("Samples", "samples", _samples(evaluation)),
        pages.Section("What was measured", "sources", sources),
    )
    verdicts = verdict_words(evaluation)
    return pages.Page(
        "Inheritune evaluation", title_of(evaluation), verdicts, sections, "inheritune evaluate"
    )


def evaluation_blocks(evaluation: Evaluation) -> list[pages.Block]:
    """An evaluation in the report of a run: pairs, the paper's figures and samples are folded away."""
    blocks: list[pages.Block] = [pages.Paragraph(sentence) for sentence in verdict_words(evaluation)]
    blocks += _figure(evaluation)
    for table in (table for _, _, tables in parts(evaluation) for table in tables):
        blocks.append(pages.Fold(table.title, [table]) if table.kind in ("paired", "paper") else table)
    return [*blocks, pages.Fold("Samples", _samples(evaluation))] if evaluation.samples else blocks


def title_of(evaluation: Evaluation) -> str:
    """What was evaluated, in a line."""
    first, *others = (model.name for model in evaluation.models)
    if not others:
        return f"Evaluation of {first}"
    return f"Evaluation of {others[0] if len(others) == 1 else f'{len(others)} models'} against {first}"


def terminal_tables(evaluation: Evaluation) -> list[rich.table.Table]:
    """For the terminal: of many columns several blocks, without the paper's tables, and every note once."""
    tables = [table for _, _, some in parts(evaluation) for table in some if table.kind != "paper"]
    if evaluation.speed is None:
        tables.insert(0, source_tables(evaluation)[0].without({"Source", "Revision", "Weights, SHA-256"}))
    found: list[rich.table.Table] = []
    told: set[str] = set()
    for table in tables:
        narrow = table.without(NOT_IN_TERMINAL.get(table.kind, ()))
        # Figures by model are in several tables of a few columns each, as even as can be.
        columns = len(narrow.columns) - 1
        blocks = max(1, -(-columns // TERMINAL_COLUMNS)) if table.kind == "scores" else 1
        edges = [1 + round(i * columns / blocks) for i in range(blocks + 1)]
        if table.rows:
            found += [narrow.select([0, *range(a, b)]).terminal() for a, b in pairwise(edges)]
        # A table of their own, which may be wider than the one above them.
        notes = rich.table.Table.grid()
        for note in dict.fromkeys(table.notes):
            if note not in told:
                notes.add_row(terminal_text(note))
        told.update(table.notes)
        if notes.row_count:
            found.append(notes)
    for sample in _samples(evaluation):
        found.append(Table(f"{sample.title}: {sample.prompt}", ("<", "<"), sample.texts).terminal())
    return found


def to_markdown(evaluation: Evaluation) -> str:
    """Everything but settings and machine as Markdown."""
    texts = [f"# {escaped(title_of(evaluation))}"]
    texts += [escaped(line) for line in verdict_words(evaluation)]
    for title, _, tables in parts(evaluation):
        texts += [f"## {escaped(title)}", *_markdown_tables(tables)]
    texts += ["## Samples"] * bool(evaluation.samples)
    for sample in _samples(evaluation):
        texts += [f"{sample.title}:", _fenced(sample.prompt)]
        for model, (_, text) in zip(evaluation.models, sample.texts, strict=True):
            texts += [f"{escaped(model.name)}:", _fenced(text)]
    texts += ["## What was measured", *_markdown_tables(source_tables(evaluation))]
    return printable("\n\n".join(texts) + "\n")


def to_csv(evaluation: Evaluation) -> str:
    """One line for each model of each metric of each task, numbers in full; what is not known is empty.

    Averages of groups, validation loss, sizes and median speeds follow in the same columns; `kind` tells them apart.
    """
    return csv_text(CSV_COLUMNS, _csv_rows(evaluation))


def difference_picture(evaluation: Evaluation) -> Picture | None:
    """Every accuracy's paired difference to the first model with its 95% interval, around 0; None without any.

    A filled mark is better or worse. Averages of groups come last.
    """
    accuracies = [(task.task, result) for task, result in evaluation.shown() if is_accuracy(result.metric)]
    times = Counter(name for name, _ in accuracies)
    named = [(f"{name}, {result.metric}" if times[name] > 1 else name, result) for name, result in accuracies]
    averages = ((group.name, group.average) for group in evaluation.groups if group.average is not None)
    named += [(f"{AVERAGE}, {name}", result) for name, result in averages if is_accuracy(result.metric)]
    lines = [
        Interval(
            short(name if len(evaluation.models) == 2 else f"{name}: {evaluation.models[i].name}"),
            100 * pair.difference,
            (100 * pair.interval[0], 100 * pair.interval[1]),
            f"{signed(result.metric, pair.difference)} {interval(result.metric, pair)}",
            i,
            pair.outcome != UNSEEN,
        )
        for name, result in named
        for i, pair in enumerate(result.paired)
        if pair is not None
    ]
    label = (
        f"accuracy minus that of {short(evaluation.models[0].name)}, percentage points; right of 0 is better"
    )
    return differences(lines, label + _limited(evaluation, "\n"))


def validation_picture(evaluation: Evaluation) -> Picture | None:
    """Every model's paired difference in validation loss to the first, with its 95% interval; None without any."""
    found, first = evaluation.validation, short(evaluation.models[0].name)
    pairs = zip(evaluation.models, found.paired, strict=True) if found is not None else ()
    lines = [
        Interval(
            short(model.name),
            pair.difference,
            pair.interval,
            f"{pair.difference:+.4f} {interval('loss', pair)}",
            i,
            pair.outcome != UNSEEN,
        )
        for i, (model, pair) in enumerate(pairs)
        if pair is not None
    ]
    return differences(lines, f"validation loss minus that of {first}, nats per token; left of 0 is better")


def verdict_words(evaluation: Evaluation) -> list[str]:
    """What was found of every model but the first, and what it saves, a line for each.

    The words are those of the 95% intervals: a difference that was not seen is not said to be none.
    """
    return [printable(_verdict(evaluation, i)) for i in range(1, len(evaluation.models))]


def is_accuracy(metric: str) -> bool:
    """Whether a metric is a share of items, which is shown in percent."""
    return metric.startswith("acc") or metric.partition(",")[0] in ("exact_match", "em")


def is_perplexity(metric: str) -> bool:
    """Whether a metric is a perplexity, of which two are compared by their ratio."""
    return metric.endswith("perplexity")


def number(metric: str, value: float) -> str:
    """A value of a metric: accuracies in percent and perplexities with two decimals, all others with four."""
    if is_accuracy(metric):
        return f"{100 * value:.2f}"
    return f"{value:,.2f}" if is_perplexity(metric) else f"{value:.4f}"


def score(metric: str, figure: Score) -> str:
    """A value with its standard error, if it has one: 74.97 ± 1.01."""
    value = number(metric, figure.value)
    return value if figure.standard_error is None else f"{value} ± {number(metric, figure.standard_error)}"


def signed(metric: str, value: float) -> str:
    """A paired difference: percentage points of an accuracy, percent of a perplexity, else of the metric."""
    if is_accuracy(metric):
        return f"{100 * value:+.2f}"
    return f"{100 * value:+.2f}%" if is_perplexity(metric) else f"{value:+.4f}"


def interval(metric: str, paired: Paired) -> str:
    """The 95% interval of a paired difference, in the same unit: [-1.42, +0.22]."""
    low, high = (signed(metric, end) for end in paired.interval)
    return f"[{low}, {high}]"


@cache
def paper_tables() -> dict[str, dict[str, Any]]:
    """The paper's tables, by the name of the group of tasks that asks for the same."""
    text = resources.files("inheritune.report").joinpath("paper.yaml").read_text("utf-8")
    # The base loader leaves every figure a string, so that 34.60 stays as it was printed.
    tables: dict[str, dict[str, Any]] = yaml.load(text, yaml.BaseLoader)
    return tables


def parts(evaluation: Evaluation) -> list[tuple[str, str, list[Table]]]:
    """All tables of figures, with their heading and its id on a page."""
    found = [
        (group.name, f"group-{place}", list(_group_tables(evaluation, group)))
        for place, group in enumerate(evaluation.groups, 1)
    ]
    found += [
        ("Other tasks", "other-tasks", _other_tasks(evaluation)),
        ("Validation loss", "validation", _validation_tables(evaluation)),
    ]
    if evaluation.speed is not None:
        speed = [_sizes(evaluation, evaluation.speed), _rates(evaluation, evaluation.speed)]
        found.append(("Size and speed", "speed", speed))
    return [(title, anchor, tables) for title, anchor, tables in found if tables]


def _group_tables(evaluation: Evaluation, group: GroupResult) -> Iterator[Table]:
    """A group's figures by model, its paired differences, and the paper's figures."""
    shown: list[tuple[Column, MetricResult | None]] = []  # None where the task is missing
    for cell in group.columns:
        found = evaluation.find(cell)
        detail = cell.metric
        if found is not None:
            detail = _with_arrow(f"{detail}, {found[0].shots}-shot" if found[0].shots else detail, found[1])
        shown.append((Column(cell.task, detail), found and found[1]))
    if group.average is not None:
        shown.append((Column(AVERAGE), group.average))
    results = [result for _, result in shown if result is not None]
    rows = []
    for i, model in enumerate(evaluation.models if shown else ()):
        cells = (NONE if result is None else score(result.metric, result.scores[i]) for _, result in shown)
        rows.append(Row((model.name, *cells), "" if i else "first"))
    if any(result.chance is not None for result in results):
        rows.append(Row(("chance", *(_chance(result) for _, result in shown)), "chance"))
    named = {cell.task for cell in group.columns}
    tasks = [task for task in evaluation.tasks if task.task in named]
    notes = [*_legend(results), *_task_notes(evaluation, group.missing, tasks)]
    title = f"{group.name}: figures{_limited(evaluation)}"
    yield Table(title, ["<Model", *(column for column, _ in shown)], rows, notes, "scores")
    if len(evaluation.models) > 1 and results:
        yield _paired_table(evaluation, group.name, shown)
    if group.name in paper_tables():
        yield _paper_table(paper_tables()[group.name], [cell.task for cell in group.columns])


def _paired_table(
    evaluation: Evaluation, group: str, shown: Sequence[tuple[Column, MetricResult | None]]
) -> Table:
    times = Counter(column.heading for column, _ in shown)
    results = [(column.heading, result) for column, result in shown if result is not None]
    rows = []
    for i, model in enumerate(evaluation.models[1:], 1):
        for name, result in results:
            # The metric only where a task is there twice: the table above names it for all.
            task = f"{name}, {result.metric}" if times[name] > 1 else name
            rows.append(_paired_row((model.name, task), result, i))
    title = f"{group}: differences to {evaluation.models[0].name} on the same items{_limited(evaluation)}"
    legend = _paired_legend([result for _, result in results])
    return Table(title, ("<Model", "<Task", *PAIRED), rows, legend, "paired")


def _paper_table(table: dict[str, Any], ours: Sequence[str]) -> Table:
    """The paper's rows, its columns in the order of ours."""
    printed, average = table["columns"], any("average" in row for row in table["rows"])
    columns = []
    for one in printed:
        details = one["printed"], one.get("metric", ""), f"{one['shots']}-shot" if "shots" in one else ""
        columns.append(Column(one["task"], ", ".join(filter(None, details))))
    order = sorted(
        range(len(columns)),
        key=lambda i: ours.index(columns[i].heading) if columns[i].heading in ours else len(ours),
    )
    headings: list[str | Column] = ["<Model", "Layers", "<Recipe", *(columns[i] for i in order)]
    headings += [AVERAGE] * average
    rows = [
        [row["model"], row.get("layers", NONE), row["recipe"]]
        + [row["figures"][i] for i in order]
        + [row.get("average", NONE)] * average
        for row in table["rows"]
    ]
    notes = (f"From {table['source']}: {table['about']}.", *table.get("notes", ()))
    return Table(PAPER_HEADING, headings, rows, notes, "paper")


def _other_tasks(evaluation: Evaluation) -> list[Table]:
    """Tasks of no group; and those without figures that no group mentions."""
    told = {task for group in evaluation.groups for task in group.missing}
    missing = [task for task in evaluation.skipped if task not in told]
    tasks = evaluation.ungrouped()
    if not tasks and not missing:
        return []
    rows = []
    for task in tasks:
        result = task.of(task.metric)
        head = [
            task.task,
            _with_arrow(task.metric, result),
            f"{task.items:,}",
            str(task.shots),
            _chance(result),
        ]
        for i, model in enumerate(evaluation.models):
            rows.append(_paired_row((*head, model.name, score(task.metric, result.scores[i])), result, i))
            head = [""] * len(head)  # what holds for all models is in the first line
    results, title, legend = [task.of(task.metric) for task in tasks], "Single tasks", []
    if len(evaluation.models) > 1 and tasks:
        title += f", with differences to {evaluation.models[0].name} on the same items"
        legend = list(_paired_legend(results))
    title += _limited(evaluation)
    notes = [*_legend(results), *legend, *_task_notes(evaluation, missing, tasks)]
    headings = ("<Task", "<Metric", "Items", "Shots", "Chance", "<Model", "Value", *PAIRED)
    table = Table(title, headings, rows, notes, "tasks")
    front = "Task", "Model", "Value", *(column.heading for column in PAIRED)
    return [_if_paired(evaluation, table.first(*front))]


def _validation_tables(evaluation: Evaluation) -> list[Table]:
    result = evaluation.validation
    if result is None:
        return []
    note = (
        f"Nats per token, mean over {result.windows:,} windows of {result.window:,} tokens that are the same for all "
        "models; ± is the standard error over windows."
    )
    bits = [bits_per_byte(one.value, result.bytes_per_token) for one in result.scores]
    per_byte = [NONE if one is None else f"{one:.4f}" for one in bits]
    rows = [
        _paired_row((model.name, score("loss", result.scores[i]), per_byte[i]), _as_metric(result), i)
        for i, model in enumerate(evaluation.models)
    ]
    title = f"Loss on {result.split} of {result.data}"
    table = Table(title, ("<Model", "Loss", PER_BYTE, *PAIRED), rows, [note], "validation")
    return [_if_paired(evaluation, table.without({"p"} if result.bytes_per_token else {"p", PER_BYTE}))]


def _as_metric(result: ValidationResult) -> MetricResult:
    return MetricResult(metric="loss", higher_is_better=False, scores=result.scores, paired=result.paired)


def _sizes(evaluation: Evaluation, speed: SpeedResult) -> Table:
    """In brackets as a multiple of the first model."""
    sizes = [
        (model.parameters, size.checkpoint_bytes, size.memory_bytes, size.cache_bytes_per_token)
        for model, size in zip(evaluation.models, speed.models, strict=True)
    ]
    rows = []
    for i, model in enumerate(evaluation.models):
        cells = [
            f"{text(value)} ({value / first:.2f}×)" if i and first else text(value)
            for text, value, first in zip((count, _bytes, _bytes, _bytes), sizes[i], sizes[0], strict=True)
        ]
        rows.append(Row((model.name, str(model.layers), *cells), "" if i else "first"))
    headings = ("<Model", "Layers", "Parameters", "Checkpoint", "Memory", "Cache|per token")
    notes = ["The cache holds keys and values, and is that of one token of one sequence."]
    if len(evaluation.models) > 1:
        notes.append(f"In brackets as a multiple of {evaluation.models[0].name}.")
    return Table("What a model costs to keep", headings, rows, notes, "cost")


def _rates(evaluation: Evaluation, speed: SpeedResult) -> Table:
    rows = []
    for batch in dict.fromkeys(rate.batch for model in speed.models for rate in model.rates):
        first = _rate_at(speed, 0, batch)
        for i, model in enumerate(evaluation.models):
            rate = _rate_at(speed, i, batch)
            if rate is not None:
                cells = [model.name, str(batch)]
                for own, theirs in (
                    (rate.prefill, first and first.prefill),
                    (rate.decode, first and first.decode),
                ):
                    cells += [_spread(own), f"{own.median / theirs.median:.2f}" if i and theirs else NONE]
                rows.append(Row(cells, "" if i else "first"))
    notes = [
        f"Reading a prompt of {speed.prompt_tokens:,} tokens and writing {speed.new_tokens:,} new ones; tokens of "
        f"all sequences of a batch together. Median of {speed.turns} turns, in which the models were timed one after "
        "another; in brackets the lowest and the highest."
    ]
    headings = ("<Model", "Batch", "Reading|tokens/s", "×|reading", "Writing|tokens/s", "×|writing")
    table = Table("What a model costs to run", headings, rows, notes, "cost")
    if len(evaluation.models) == 1:
        return table.without({"×"})
    table.notes.append(
        f"×: as a multiple of {evaluation.models[0].name} at the same batch size, of the medians."
    )
    return table


def source_tables(evaluation: Evaluation) -> list[Table]:
    """Which models and which items the figures belong to."""
    headings = (
        *("<Model", "<Type", "Layers", "Parameters", "<Precision"),
        *("<Source", "<Revision", "<Weights, SHA-256"),
    )
    rows = [
        (
            *(model.name, model.model_type, str(model.layers), f"{model.parameters:,}", model.dtype),
            *(model.source, model.revision or NONE, model.weights[:12]),
        )
        for model in evaluation.models
    ]
    models = Table("Models", headings, rows)
    if not evaluation.tasks:
        return [models]
    task_rows = []
    for task in evaluation.tasks:
        name = f"{task.task}, {task.shots}-shot" if task.shots else task.task
        some = task.parts
        pooled = ", ".join(some) if len(some) <= 3 else f"{some[0]} … {some[-1]}, {len(some)} tasks"
        task_rows.append((name, task.version, f"{task.items:,}", task.data, pooled))
    tasks = Table("Tasks", ("<Task", "<Version", "Items", "<Data", "<Pooled from"), task_rows)
    return [models, tasks if any(task.parts for task in evaluation.tasks) else tasks.without({"Pooled from"})]


def _csv_rows(evaluation: Evaluation) -> Iterator[dict[str, object]]:
    found: list[tuple[str, str, MetricResult, dict[str, object]]] = []
    for task in evaluation.tasks:
        about = task.model_dump(include={"items", "shots", "data", "note"})
        found += (("task", task.task, result, about) for result in task.metrics)
    for group in evaluation.groups:
        if group.average is not None:
            found.append((AVERAGE, group.name, group.average, {}))
    if (validation := evaluation.validation) is not None:
        about = {"items": validation.windows, "data": f"{validation.data}, {validation.split}"}
        found.append(("validation", "", _as_metric(validation), about))
    for kind, name, result, about in found:
        for i, model in enumerate(evaluation.models):
            head = {"kind": kind, "task": name, "metric": result.metric, "model": model.name}
            row = head | result.scores[i].model_dump() | {"chance": result.chance} | about
            if (pair := result.paired[i]) is not None:
                low, high = pair.interval
                row |= {"low": low, "high": high} | pair.model_dump(exclude={"interval"})
            yield row
    for i, one in enumerate(evaluation.models):
        costs: dict[str, float] = {"layers": one.layers, "parameters": one.parameters}
        if evaluation.speed is not None:
            speed = evaluation.speed.models[i]
            costs |= speed.model_dump(include={"checkpoint_bytes", "memory_bytes", "cache_bytes_per_token"})
            for rate in speed.rates:
                costs[f"prefill_tokens_per_second_batch_{rate.batch}"] = rate.prefill.median
                costs[f"decode_tokens_per_second_batch_{rate.batch}"] = rate.decode.median
        for metric, value in costs.items():
            yield {"kind": "cost", "metric": metric, "model": one.name, "value": value}


def _verdict(evaluation: Evaluation, i: int) -> str:
    averages = [(group.name, group.average) for group in evaluation.groups if group.average is not None]
    accuracies = list(_accuracies(evaluation, i))
    for name, average in averages:
        heading = AVERAGE if len(averages) == 1 else f"average of {name}"
        accuracies.append(f"{heading} {_against(average, i, outcome=False)}")
    quality = [", ".join(accuracies)] if accuracies else []
    # Of other metrics how much they differ matters more than how many do.
    others = [(task.task, result) for task, result in evaluation.shown() if not is_accuracy(result.metric)]
    quality += [f"{name} {result.metric} {_against(result, i)}" for name, result in others]
    if evaluation.validation is not None:
        quality.append(f"validation loss {_against(_as_metric(evaluation.validation), i)}")
    found = "; ".join(quality) or "nothing was measured of how good it is"
    asked = f"{_limited(evaluation, ' Asked were the ')}." if _limited(evaluation) else ""
    return f"{evaluation.models[i].name}: {found}. It has {_savings(evaluation, i)}.{asked}"


def _limited(evaluation: Evaluation, before: str = ", ") -> str:
    """Says of figures that they are of a few items, where `--limit` was given; else empty."""
    limit = evaluation.settings.get("limit")
    return f"{before}first {limit} items of each task" if limit and evaluation.tasks else ""


def _accuracies(evaluation: Evaluation, i: int) -> Iterator[str]:
    first = evaluation.models[0].name
    results = [
        (task.task, result.paired[i]) for task, result in evaluation.shown() if is_accuracy(result.metric)
    ]
    pairs = [(task, paired.outcome) for task, paired in results if paired is not None]
    sides = []
    for outcome, tasks in (
        (which, [t for t, found in pairs if found == which]) for which in ("better", "worse")
    ):
        if tasks:
            sides.append(f"{len(tasks)} {'is' if len(tasks) == 1 else 'are'} {outcome} ({', '.join(tasks)})")
    of = f"of {len(pairs)} {'accuracies' if len(pairs) > 1 else 'accuracy'}"
    if sides:
        unseen = sum(outcome == UNSEEN for _, outcome in pairs)
        rest = f", in {unseen} no difference is seen" if unseen else ""
        yield f"{of} {' and '.join(sides)} than {first} beyond chance variation{rest}"
    elif pairs:
        yield f"{of} none differs from {first} beyond chance variation"
    if len(results) > len(pairs):
        yield f"{len(results) - len(pairs)} of the accuracies could not be paired with {first}"


def _against(result: MetricResult, i: int, *, outcome: bool = True) -> str:
    metric, pair = result.metric, result.paired[i]
    values = f"{number(metric, result.scores[i].value)} against {number(metric, result.scores[0].value)}"
    if pair is None:
        return values
    words = f", {pair.outcome}" if outcome else ""
    difference = signed(metric, pair.difference)
    return f"{values} (difference {difference}, 95% interval {interval(metric, pair)}{words})"


def _savings(evaluation: Evaluation, i: int) -> str:
    first, model, speed = evaluation.models[0], evaluation.models[i], evaluation.speed
    found = [f"{model.parameters / first.parameters:.2f} times the parameters of {first.name}"]
    if speed is not None:
        cache, first_cache = (speed.models[place].cache_bytes_per_token for place in (i, 0))
        if first_cache:
            found.append(f"{cache / first_cache:.2f} times its cache per token")
        rate = next(iter(speed.models[i].rates), None)
        against = rate and _rate_at(speed, 0, rate.batch)
        if rate and against:
            reads, writes = (
                rate.prefill.median / against.prefill.median,
                rate.decode.median / against.decode.median,
            )
            times = f"reads {reads:.2f} times and writes {writes:.2f} times"
            found.append(f"{times} as many tokens per second at batch {rate.batch}")
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])}, and {found[-1]}"


def _figure(evaluation: Evaluation) -> list[pages.Block]:
    caption = (
        f"Accuracy minus that of {evaluation.models[0].name} on the same items, in percentage points, with its 95% "
        "interval; a filled mark means better or worse, an open one no difference seen"
        f"{_limited(evaluation, '. Asked were the ')}."
    )
    return pages.pictures((difference_picture(evaluation), caption), wide=True)


def _samples(evaluation: Evaluation) -> list[pages.Continuations]:
    names = [f"{model.name}, {model.layers} layers" for model in evaluation.models]
    return pages.continuations(evaluation.samples, names)


def _markdown_tables(tables: Sequence[Table]) -> Iterator[str]:
    for table in tables:
        title = escaped(table.title)
        yield f"### {title}" if table.kind == "paper" else f"**{title}**"
        if table.rows:
            yield table.markdown()
        if table.notes:
            yield "\n".join(f"- {escaped(note)}" for note in table.notes)


def _fenced(text: str) -> str:
    """A block in which nothing is markup: its fence is longer than any in the text."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 0)
    return f"{fence}text\n{text}\n{fence}"


def _rate_at(speed: SpeedResult, model: int, batch: int) -> Rate | None:
    """How fast a model was at one batch size; None where it was not timed."""
    return next((rate for rate in speed.models[model].rates if rate.batch == batch), None)


def _if_paired(evaluation: Evaluation, table: Table) -> Table:
    """The table, of one model without the columns that compare."""
    return table if len(evaluation.models) > 1 else table.without({column.heading for column in PAIRED})


def _paired_row(front: Sequence[str], result: MetricResult, i: int) -> Row:
    """The cells in front, and difference, interval, p-value and outcome of this model; of the first one nothing."""
    metric, paired = result.metric, result.paired[i]
    if i == 0:
        return Row((*front, "", "", "", ""), "first")
    if paired is None:
        return Row((*front, NONE, NONE, NONE, "not paired"))
    p = NONE if paired.p is None else "<0.001" if paired.p < 0.001 else f"{paired.p:.3f}"
    cells = signed(metric, paired.difference), interval(metric, paired), p, paired.outcome
    return Row((*front, *cells), "" if paired.outcome == UNSEEN else paired.outcome)


def _with_arrow(metric: str, result: MetricResult) -> str:
    return metric if result.higher_is_better else f"{metric} ↓"


def _chance(result: MetricResult | None) -> str:
    return NONE if result is None or result.chance is None else number(result.metric, result.chance)


def _legend(results: Sequence[MetricResult]) -> Iterator[str]:
    if any(is_accuracy(result.metric) for result in results):
        yield "Accuracies are in percent."
    if any(score.standard_error is not None for result in results for score in result.scores):
        yield "± is the standard error over items."
    if any(not result.higher_is_better for result in results):
        yield "↓: smaller is better."
    if any(result.chance is not None for result in results):
        yield "Chance is what guessing gives."


def _paired_legend(results: Sequence[MetricResult]) -> Iterator[str]:
    if any(is_accuracy(result.metric) for result in results):
        yield "Differences of accuracies are in percentage points."
    if any(is_perplexity(result.metric) for result in results):
        yield "Differences of perplexities are their ratio minus 1, in percent."
    yield (
        "Better and worse mean that the 95% interval leaves out 0, and p is below 0.05 where there is one; no "
        "difference seen does not mean that there is none. Of twenty tasks in which two models are equally good, "
        "about one shows a difference by chance."
    )


def _task_notes(evaluation: Evaluation, missing: Sequence[str], tasks: Sequence[TaskResult]) -> list[str]:
    reasons = {task: evaluation.skipped.get(task, "it was skipped") for task in missing}
    notes = [f"{task} has no figures: {reason}" for task, reason in reasons.items()]
    return notes + [f"{task.task}: {task.note}" for task in tasks if task.note is not None]


def _spread(spread: Spread) -> str:
    low, middle, high = (
        count(value) if value >= 10_000 else significant(value)
        for value in (spread.lowest, spread.median, spread.highest)
    )
    return f"{middle} [{low}–{high}]"


def _bytes(value: float) -> str:
    """A size, also one that is small: a token's keys and values may be less than a mebibyte."""
    return memory(value) if value >= 2**20 else f"{significant(value / 1024)} KiB"
