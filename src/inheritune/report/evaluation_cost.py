"""The tables of an evaluation that are not of tasks: validation loss, what a model costs, and what was measured."""

from __future__ import annotations

from collections.abc import Iterator

from inheritune.evaluation.result import Evaluation, ModelFigures, Rate, SpeedResult, Spread, ValidationResult
from inheritune.report.evaluation_groups import PAIRED_COLUMNS, outcome, paired_cells, task_name
from inheritune.report.evaluation_sheet import Column, Line, Part, Sheet
from inheritune.report.evaluation_words import LOSS, NONE, rate_at, score
from inheritune.report.quantities import count, memory, significant


def validation_part(evaluation: Evaluation) -> Part | None:
    """Loss on held-out text; None if it was not measured."""
    result = evaluation.validation
    if result is None:
        return None
    pairs = len(evaluation.models) > 1
    columns = [Column("Model", number=False), Column("Loss")]
    if pairs:
        columns += [column for column in PAIRED_COLUMNS[2:] if column.heading != "p"]
    sheet = Sheet(
        "validation",
        f"Loss on {result.split} of {result.data}",
        tuple(columns),
        tuple(_validation_lines(evaluation, result)),
        (
            f"Nats per token, mean over {result.windows:,} windows of {result.window:,} tokens that are the same for "
            "all models; after ± stands the standard error over windows.",
        ),
    )
    return Part("Validation loss", "validation", (sheet,))


def speed_part(evaluation: Evaluation) -> Part | None:
    """What the models cost to keep and to run; None if they were not timed."""
    speed = evaluation.speed
    if speed is None:
        return None
    return Part("Size and speed", "speed", (_sizes(evaluation, speed), _rates(evaluation, speed)))


def source_sheets(evaluation: Evaluation) -> tuple[Sheet, ...]:
    """Which models and which items the figures belong to."""
    text = ("Model", "Type", "Precision", "Source", "Revision", "Weights, SHA-256")
    headings = (
        "Model",
        "Type",
        "Layers",
        "Parameters",
        "Precision",
        "Source",
        "Revision",
        "Weights, SHA-256",
    )
    models = Sheet(
        "source",
        "Models",
        tuple(Column(heading, number=heading not in text) for heading in headings),
        tuple(Line("", _model_cells(model)) for model in evaluation.models),
    )
    if not evaluation.tasks:
        return (models,)
    lines = [
        Line("", (task_name(task), task.version, f"{task.items:,}", task.data, _shortened(task.parts)))
        for task in evaluation.tasks
    ]
    columns = [Column(heading, number=heading == "Items") for heading in ("Task", "Version", "Items", "Data")]
    columns.append(Column("Pooled from", number=False))
    if not any(task.parts for task in evaluation.tasks):
        columns.pop()
        lines = [Line(line.kind, line.cells[:-1]) for line in lines]
    return models, Sheet("source", "Tasks", tuple(columns), tuple(lines))


def _validation_lines(evaluation: Evaluation, result: ValidationResult) -> Iterator[Line]:
    for i, model in enumerate(evaluation.models):
        cells = [model.name, score(LOSS, result.scores[i])]
        if len(evaluation.models) > 1:
            shown, interval, _, words = paired_cells(LOSS, result.paired[i])
            cells += [shown, interval, words] if i else [""] * 3
        yield Line(outcome(result.paired[i]) if i else "first", tuple(cells))


def _sizes(evaluation: Evaluation, speed: SpeedResult) -> Sheet:
    """In brackets as a multiple of the first model."""
    first, first_size = evaluation.models[0], speed.models[0]
    lines = []
    for i, (model, size) in enumerate(zip(evaluation.models, speed.models, strict=True)):
        cells = (
            (count(model.parameters), model.parameters, first.parameters),
            (_bytes(size.checkpoint_bytes), size.checkpoint_bytes, first_size.checkpoint_bytes),
            (_bytes(size.memory_bytes), size.memory_bytes, first_size.memory_bytes),
            (
                _bytes(size.cache_bytes_per_token),
                size.cache_bytes_per_token,
                first_size.cache_bytes_per_token,
            ),
        )
        relative = (
            text if i == 0 or not base else f"{text} ({value / base:.2f}×)" for text, value, base in cells
        )
        lines.append(Line("" if i else "first", (model.name, str(model.layers), *relative)))
    columns = (
        Column("Model", number=False),
        Column("Layers"),
        Column("Parameters"),
        Column("Checkpoint"),
        Column("Memory"),
        Column("Cache", "per token"),
    )
    notes = ["The cache holds keys and values, and is that of one token of one sequence."]
    if len(evaluation.models) > 1:
        notes.append(f"In brackets as a multiple of {first.name}.")
    return Sheet("cost", "What a model costs to keep", columns, tuple(lines), tuple(notes))


def _rates(evaluation: Evaluation, speed: SpeedResult) -> Sheet:
    several = len(evaluation.models) > 1
    columns = [Column("Model", number=False), Column("Batch")]
    for name in ("Reading", "Writing"):
        columns += [Column(name, "tokens/s"), *([Column("×", name.lower())] if several else [])]
    lines = []
    for batch in dict.fromkeys(rate.batch for model in speed.models for rate in model.rates):
        for i, model in enumerate(evaluation.models):
            rate, against = rate_at(speed, i, batch), rate_at(speed, 0, batch)
            if rate is not None:
                cells = _rate_cells(rate, against if i else None, several)
                lines.append(Line("" if i else "first", (model.name, str(batch), *cells)))
    notes = [
        f"Reading a prompt of {speed.prompt_tokens:,} tokens and writing {speed.new_tokens:,} new ones; tokens of "
        f"all sequences of a batch together. Median of {speed.turns} turns, in which the models were timed one after "
        "another; in brackets the lowest and the highest."
    ]
    if several:
        notes.append(
            f"×: as a multiple of {evaluation.models[0].name} at the same batch size, of the medians."
        )
    return Sheet("cost", "What a model costs to run", tuple(columns), tuple(lines), tuple(notes))


def _rate_cells(rate: Rate, against: Rate | None, several: bool) -> Iterator[str]:
    pairs = (
        (rate.prefill, against and against.prefill),
        (rate.decode, against and against.decode),
    )
    for spread, base in pairs:
        yield _spread(spread)
        if several:
            yield f"{spread.median / base.median:.2f}" if base else NONE


def _spread(spread: Spread) -> str:
    return f"{_rate(spread.median)} [{_rate(spread.lowest)}–{_rate(spread.highest)}]"


def _rate(value: float) -> str:
    return count(value) if value >= 10_000 else significant(value)


def _bytes(value: float) -> str:
    """A size, also one that is small: a token's keys and values may be less than a mebibyte."""
    return memory(value) if value >= 2**20 else f"{significant(value / 1024)} KiB"


def _model_cells(model: ModelFigures) -> tuple[str, ...]:
    return (
        model.name,
        model.model_type,
        str(model.layers),
        f"{model.parameters:,}",
        model.dtype,
        model.source,
        model.revision or NONE,
        model.weights[:12],
    )


def _shortened(parts: list[str]) -> str:
    """Names of a few tasks; of more, how many they are."""
    return ", ".join(parts) if len(parts) <= 3 else f"{parts[0]} … {parts[-1]}, {len(parts)} tasks"
