"""The report of a run of Algorithm 1: one HTML file, finished or not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from inheritune import UserError
from inheritune.quantities import (
    count,
    flop_scale,
    flops,
    loss_decimals,
    memory,
    signed_interval,
    significant,
)
from inheritune.report import pages
from inheritune.report.analysis_report import analysis_blocks
from inheritune.report.evaluation_report import evaluation_blocks
from inheritune.report.figures import Interval, Line, Picture, curves, differences, loss_limits, smooth
from inheritune.report.layers_report import kept_blocks
from inheritune.report.runs import Entry, Run, read_run
from inheritune.report.table import Table
from inheritune.report.verdict import decisions_table, rounds_table, texts_table, verdict_words
from inheritune.runtime import files

Axis = Literal["step", "flops"]


def write_report(run: Path, output: Path | None = None) -> Path:
    """Write the report of a run directory, finished or not, and return where it is.

    It goes to `report.html` in the run directory unless `output` names a file, or a directory to put it in.
    Raises UserError if `run` is not a run directory or is damaged, or if there is no place for the output.
    """
    if output is None or output.is_dir():
        output = (output or run) / "report.html"
    elif not output.parent.is_dir():
        raise UserError(f"cannot write {output}: the directory {output.parent} does not exist")
    files.write_text(output, run_page(read_run(run)).html())
    return output


def run_page(run: Run) -> pages.Page:
    """The page; a part that the run has nothing for is left out."""
    parts: dict[str, Sequence[pages.Block]] = {
        "Loss curves": list(_curve_blocks(run)),
        "Rounds": list(_round_blocks(run)),
        "Layers": kept_blocks(run),
        "Evaluation": [] if run.evaluation is None else evaluation_blocks(run.evaluation),
        "Attention": analysis_blocks(run),
        "Samples": _samples(run),
        "Training": list(_training_blocks(run)),
        "Reproduction": list(_reproduction_blocks(run)),
    }
    return pages.Page(
        kind="Inheritune run report",
        title=run.name,
        verdicts=verdict_words(run.summary),
        tone={"parity": "reached", "no parity": "missed"}.get(run.summary.verdict or "", ""),
        facts=_facts(run),
        notes=[*_progress(run), *run.notes],
        sections=[pages.Section(title, title.lower().split()[-1], blocks) for title, blocks in parts.items()],
        writer="inheritune report",
    )


def loss_curves(run: Run, axis: Axis) -> Picture | None:
    """Training and validation loss of every model, over its own steps or over cumulative training FLOPs.

    Over FLOPs the rounds follow one another, as their costs add up; the reference starts at 0.
    None if no model has losses at two steps, or with `axis="flops"` if FLOPs were not recorded.
    """
    shown = [t for t in run.trainings if axis == "step" or (t.flops and np.isfinite(t.before))]
    if not shown:
        return None
    scale, unit = flop_scale(max(t.total_flops or 0.0 for t in shown)) if axis == "flops" else (1.0, "")
    return curves(
        [_loss_line(run, training, axis, scale) for training in shown],
        f"loss, nats per token{_on_fewer_windows(run)}",
        "step" if axis == "step" else f"cumulative training compute, {unit}",
        limits=loss_limits(
            [_loss_line(run, training, "step") for training in run.trainings],
            [] if run.reference_loss is None else [run.reference_loss],
        ),
        level=None if run.reference_loss is None else (run.reference_loss, "reference, final"),
        separated=axis == "flops",
    )


def _loss_line(run: Run, training: Entry, axis: Axis, scale: float = 1.0) -> Line:
    train, validation = training.metrics.train, training.metrics.validation
    x, faint_x = (
        rows["step"] if axis == "step" else (training.before + rows["flops"]) / scale
        for rows in (validation, train)
    )
    faint, finished = (faint_x, smooth(train["loss"])), run.finished(training)
    name = training.name if finished else f"{training.name} …"
    return Line(name, x, validation["loss"], training.round, faint=faint, finished=finished)


def _on_fewer_windows(run: Run) -> str:
    """Says so where the curves are of fewer windows than the final losses, as validations while training may be."""
    # Curves of older versions do not say on how many they are.
    windows = [training.metrics.validation.get("windows", np.empty(0)) for training in run.trainings]
    fewest, reference = np.nanmin(np.append(np.concatenate(windows), np.inf)), run.summary.reference
    if reference is None or reference.windows is None or not fewest < reference.windows:
        return ""
    return f"; curves on {fewest:,.0f} of the {reference.windows:,} windows"


def _curve_blocks(run: Run) -> Iterator[pages.Block]:
    by_step = loss_curves(run, "step")
    if by_step is None:
        return
    caption = "Over the training FLOPs paid so far. Rounds follow one another, since their costs add up"
    if any(training.round == 0 for training in run.trainings):
        caption += "; the reference is drawn from 0 beside them, its own training is not part of their cost"
    by_flops = loss_curves(run, "flops"), f"{caption}."
    yield from pages.pictures((by_step, "Every model over its own steps."), by_flops)
    notes = "Lines with marks are validation losses, thin lines training losses, smoothed by a moving mean."
    if run.reference_loss is not None:
        notes += f" Dotted: the reference's final validation loss, {run.reference_loss:.3f}."
    if _on_fewer_windows(run):
        notes += (
            " While a model is trained it is validated on some of the windows; final losses, in tables and verdict, "
            "are on all, so a curve need not end at its model's final loss."
        )
    yield pages.Paragraph(notes)


def _round_blocks(run: Run) -> Iterator[pages.Block]:
    summary, validation = run.summary, run.reference_validation
    reference, margin = summary.reference, significant(run.summary.margin)
    if reference is None and not summary.rounds:
        return
    title = "The reference and every finished round"
    if validation is not None:
        title += f". Validation: {validation.windows:,} windows of {validation.window_tokens:,} tokens"
    elif reference is not None and reference.windows:
        title += f". Validation: {reference.windows:,} windows"
    note = (
        "Losses are validation losses in nats per token. Difference: target minus reference, mean over the paired "
        f"windows; parity, in bold, is a difference of at most {margin}."
    )
    if reference is not None and reference.bytes_per_token is not None:
        note += (
            " Bits per byte are the loss for each byte of text, which different tokenizers have in common."
        )
    if reference is not None and reference.training_flops:
        note += (
            " Cost: training FLOPs of all rounds so far, and of what came before the first (a corrected teacher, "
            "stored answers, trials of rates, probes), as a multiple of the reference's; in the round that reaches "
            "parity it is the cost to parity."
        )
    if summary.control is not None:
        note += (
            " ctrl.: the fair control, the reference trained on for as many steps as the round that the verdict is "
            "about; its difference is to the untouched reference, and its FLOPs count in no cost."
        )
    # What decides is seen on a phone, too.
    front = "Loss", "Difference", "95% interval"
    yield rounds_table(summary, title, (note,)).first("Round", "Layers", *front)
    texts = texts_table(summary)
    for table in (texts and texts.first("Text", "Round", *front), decisions_table(summary)):
        if table is not None:
            yield table
    lines = []
    for entry in summary.rounds:
        decimals = loss_decimals(entry.interval)
        name = f"round {entry.round}, {entry.layers} layers"
        text = f"{entry.difference:+.{decimals}f} {signed_interval(entry.interval, decimals)}"
        lines.append(Interval(name, entry.difference, entry.interval, text, entry.round, entry.parity))
    label = "target minus reference, nats per token; left of 0 the target is better"
    caption = "Difference of every round to the reference with its 95% interval; a filled mark means parity"
    caption += f", the dashed line is the margin of {margin}." if summary.margin else "."
    yield from pages.pictures((differences(lines, label, summary.margin), caption), wide=True)


def _samples(run: Run) -> Sequence[pages.Block]:
    rounds, reference = run.summary.rounds, run.summary.reference
    names = (
        f"Reference, {reference.layers} layers" if reference else "Reference",
        f"Target, {rounds[-1].layers} layers" if rounds else "Target",
    )
    return pages.continuations(run.samples, names)


def _training_blocks(run: Run) -> Iterator[pages.Block]:
    """Throughput, learning rate and gradient norm."""
    if not run.trainings:
        return
    yield Table(
        "Throughput: medians over the logged steps; memory: the highest value logged",
        ("<Model", "Last step", "Tokens per second", "FLOP per second", "Peak memory"),
        map(_throughput, run.trainings),
    )
    train = [(t, t.metrics.train) for t in run.trainings]
    rates = [
        Line(t.name, rows["step"], rows["learning_rate"], t.round, marks=0)
        for t, rows in train
        if np.any(rows["learning_rate"] > 0)
    ]
    norms = [Line(t.name, rows["step"], smooth(rows["gradient_norm"]), t.round, marks=0) for t, rows in train]
    highest = max((float(np.nanmax(line.y)) for line in rates), default=0.0)
    shown = pages.pictures(
        (curves(rates, "learning rate", "step", limits=(0, 1.08 * highest)), "Learning rate."),
        (
            curves(norms, "gradient norm", "step", logarithmic=True),
            "Gradient norm, smoothed like the loss, on a logarithmic axis.",
        ),
    )
    if shown:
        yield pages.Fold("Learning rate and gradient norm", shown)


def _throughput(training: Entry) -> Sequence[str]:
    """Medians, so that compilation and pauses do not count."""
    columns = (
        training.metrics.train[name] for name in ("tokens_per_second", "flops_per_second", "memory_bytes")
    )
    tokens, operations, taken = (column[np.isfinite(column)] for column in columns)
    return (
        training.name,
        f"{training.metrics.last['step']:,}",
        count(float(np.median(tokens))) if len(tokens) else "–",
        flops(float(np.median(operations)), "FLOP/s") if len(operations) else "–",
        memory(float(taken.max())) if len(taken) else "–",
    )


def _reproduction_blocks(run: Run) -> Iterator[pages.Block]:
    """The command, the machine and the resolved recipe."""
    if "command" in run.environment:
        yield pages.Code(str(run.environment["command"]))
    if environment := {key: value for key, value in run.environment.items() if key != "command"}:
        yield pages.facts_table("Where it ran", environment)
    yield pages.Fold("The recipe, with every default filled in", [pages.Code(run.recipe)])


def _facts(run: Run) -> list[tuple[str, str, str]]:
    summary, entry = run.summary, run.summary.reported
    if entry is None or summary.reference is None:
        return []
    last = summary.rounds[-1]
    cost = summary.cost(last)
    paid = (
        (flops(last.total_training_flops), "") if cost is None else (f"{cost:.2f}", "× the reference's FLOPs")
    )
    difference = f"{entry.difference:+.{loss_decimals(entry.interval)}f}"
    return [
        ("Layers", str(entry.layers), f"of {summary.reference.layers}"),
        ("Parameters", count(entry.parameters), f"of {count(summary.reference.parameters)}"),
        ("Loss difference", difference, "nats per token"),
        ("Training, all rounds", *paid),
    ]


def _progress(run: Run) -> Iterator[str]:
    """How far a run without a verdict is; a page cannot know whether it still runs or was stopped."""
    finished = run.state is None or run.state.phase == "finished"
    if run.summary.verdict is not None and finished:
        return
    unfinished = [training for training in run.trainings if not run.finished(training)]
    if unfinished:
        last = unfinished[-1]
        yield f"Running or interrupted: the last record is step {last.metrics.last['step']:,} of {last.name}."
    elif run.state is not None and run.state.phase != "finished":
        where = f"round {run.state.round}" if run.state.phase == "round" else f"the {run.state.phase}"
        yield f"Running or interrupted in {where}."
