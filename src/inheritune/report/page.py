"""The report: one HTML file that needs nothing else, made of a list of sections.

To add a section, write a function `(Run) -> Section | None` that returns None where the run has nothing for it,
and put it into `SECTIONS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from markupsafe import Markup

from inheritune import UserError, atomic
from inheritune.report import figures
from inheritune.report.attention import attention_section
from inheritune.report.evaluation import evaluation_section
from inheritune.report.metrics import FloatArray, Training
from inheritune.report.quantities import MINUS
from inheritune.report.run_directory import Run, read_run
from inheritune.report.section import Section, figure, render
from inheritune.report.svg import FONT, HALO, theme_css
from inheritune.report.verdict import reported_round, verdict_sentence

# HTML has no way to write these, and UTF-8 none for the last range; a model may still have sampled them.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def write_report(run: Path, output: Path | None = None) -> Path:
    """Write the report of a run directory, finished or not, and return where it is.

    It goes to `report.html` in the run directory unless `output` names a file, or a directory to put it in.
    Raises UserError if `run` is not a run directory or is damaged, or if there is no place for the output.
    """
    if output is None:
        output = run / "report.html"
    elif output.is_dir():
        output = output / "report.html"
    elif not output.parent.is_dir():
        raise UserError(f"cannot write {output}: the directory {output.parent} does not exist")
    atomic.write_text(output, report_html(read_run(run)))
    return output


def curve_figure(run: Path) -> str:
    """The loss curves of a run directory as an SVG file of its own, readable in light and in dark surroundings.

    Over cumulative training FLOPs; over steps if FLOPs were not recorded.
    Raises UserError if `run` is not a run directory or has no metrics yet.
    """
    read = read_run(run)
    svg = figures.loss_curves(read, "flops", standalone=True) or figures.loss_curves(
        read, "step", standalone=True
    )
    if svg is None:
        raise UserError(f"{run} has no metrics.jsonl with any row yet, so there are no curves to draw")
    return svg + "\n"


def report_html(run: Run) -> str:
    """The whole page; the same run gives the same bytes."""
    sections = [section for make in SECTIONS if (section := make(run)) is not None]
    page = render(
        "page.html",
        run=run,
        summary=run.summary,
        sentence=re.sub(r"-(?=\d)", MINUS, verdict_sentence(run.summary)),
        entry=reported_round(run.summary),
        progress=_progress(run),
        sections=sections,
        # CSS and fonts are our own text, not the user's.
        theme=Markup(theme_css()),
        font=Markup(FONT),
        halo=Markup(HALO),
    )
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", page)


def curves_section(run: Run) -> Section | None:
    """Loss over steps, and over the FLOPs that were paid."""
    by_step = figures.loss_curves(run, "step")
    if by_step is None:
        return None
    _, high, cut = figures.loss_limits(run)
    body = render(
        "curves.html",
        run=run,
        by_step=figure(by_step),
        by_flops=figure(figures.loss_curves(run, "flops")),
        cut_above=high if cut else None,
    )
    return Section("Loss curves", "curves", body)


def rounds_section(run: Run) -> Section | None:
    """What every round reached and cost, as a table and as intervals around 0."""
    if run.summary.reference is None and not run.summary.rounds:
        return None
    body = render(
        "rounds.html",
        summary=run.summary,
        windows=run.reference_validation,
        differences=figure(figures.differences(run)),
    )
    return Section("Rounds", "rounds", body)


def samples_section(run: Run) -> Section | None:
    """What both models write after the same prompts."""
    if not run.samples:
        return None
    body = render(
        "samples.html",
        samples=run.samples,
        reference=run.summary.reference,
        entry=reported_round(run.summary),
    )
    return Section("Sample continuations", "samples", body)


def training_section(run: Run) -> Section | None:
    """Learning rate, gradient norm and throughput."""
    if not run.trainings:
        return None
    body = render(
        "training.html",
        learning_rates=figure(figures.learning_rates(run)),
        gradient_norms=figure(figures.gradient_norms(run)),
        rows=[_throughput(training) for training in run.trainings],
    )
    return Section("Training", "training", body)


def reproduction_section(run: Run) -> Section:
    """The command, the machine and the resolved recipe."""
    environment = {key: value for key, value in run.environment.items() if key != "command"}
    body = render(
        "reproduction.html",
        command=run.environment.get("command"),
        environment=environment,
        recipe=run.recipe,
    )
    return Section("Reproduction", "reproduction", body)


SECTIONS: tuple[Callable[[Run], Section | None], ...] = (
    curves_section,
    rounds_section,
    evaluation_section,
    attention_section,
    samples_section,
    training_section,
    reproduction_section,
)


def _progress(run: Run) -> str | None:
    """Where a run without a verdict stands; a page cannot know whether it still runs or was stopped."""
    if run.summary.verdict is not None:
        return None
    unfinished = [training for training in run.trainings if not training.finished]
    if unfinished:
        last = unfinished[-1]
        return f"Running or interrupted: the last record is step {last.last_step:,} of {last.name}."
    if run.state is not None and run.state.phase != "finished":
        where = "the reference" if run.state.phase == "reference" else f"round {run.state.round}"
        return f"Running or interrupted in {where}."
    return None


def _throughput(training: Training) -> dict[str, object]:
    """Medians, so that compilation and pauses do not count; None where nothing was recorded."""

    def finite(column: str) -> FloatArray:
        values = training.train[column]
        return values[np.isfinite(values)]

    return {
        "name": training.name,
        "steps": training.last_step,
        "tokens_per_second": _median(finite("tokens_per_second")),
        "flops_per_second": _median(finite("flops_per_second")),
        "memory": float(finite("memory_bytes").max()) if len(finite("memory_bytes")) else None,
    }


def _median(values: FloatArray) -> float | None:
    return float(np.median(values)) if len(values) else None
