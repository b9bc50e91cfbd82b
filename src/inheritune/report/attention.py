"""The report's section on attention, and the files that `inheritune analyze` leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from inheritune import atomic
from inheritune.analysis.result import FILE, AttentionAnalysis, load_analyses, save_analyses, short_name
from inheritune.report import attention_figures as figures
from inheritune.report.metrics import FloatArray, Training
from inheritune.report.run_directory import Run
from inheritune.report.section import Section, figure, render
from inheritune.training import metrics

if TYPE_CHECKING:  # a report is written without torch
    from inheritune.analysis.analyze import Analyzed


def attention_section(run: Run) -> Section | None:
    """Rank and mass of the attention of reference and final model, and gradient norms where they were recorded."""
    analyses = run_analyses(run.path)
    gradients = _gradients(run)
    if not analyses and not gradients:
        return None
    first = next(iter(analyses.values()), None)
    body = render(
        "attention.html",
        analyses=analyses,
        first=first,
        rank=figure(figures.over_depth(analyses, "rank")) if analyses else None,
        mass=figure(figures.over_depth(analyses, "mass")) if analyses else None,
        gradients=[figure(svg) for svg in _gradient_figures(gradients)],
    )
    return Section("Attention", "attention", body)


def run_analyses(directory: Path) -> dict[str, AttentionAnalysis]:
    """The analyses in a run directory, by the names that the report gives them.

    Those of the run's reference and final model; where neither is there, those that `inheritune analyze -o RUN`
    left. Raises UserError for a damaged file.
    """
    places = {name: directory / name / FILE for name in ("reference", "final")}
    found = {name: load_analyses(path)[0] for name, path in places.items() if path.is_file()}
    if found:
        return {f"{name}, {analysis.depth} layers": analysis for name, analysis in found.items()}
    path = directory / FILE
    return labelled(load_analyses(path)) if path.is_file() else {}


def labelled(analyses: Sequence[AttentionAnalysis]) -> dict[str, AttentionAnalysis]:
    """Analyses by short names of their models, which no two share."""
    names = [f"{short_name(analysis.model)}, {analysis.depth} layers" for analysis in analyses]
    if len(set(names)) < len(names):
        names = [f"{'AB'[i]}: {name}" for i, name in enumerate(names)]
    return dict(zip(names, analyses, strict=True))


def write_analysis(directory: Path, analyzed: Sequence[Analyzed]) -> list[Path]:
    """Write `analysis.json`, `rank.svg`, `mass.svg` and, where there are maps, `maps.svg`; returns what it wrote."""
    directory.mkdir(parents=True, exist_ok=True)
    names = labelled([one.analysis for one in analyzed])
    svgs = {
        "rank.svg": figures.over_depth(names, "rank", standalone=True),
        "mass.svg": figures.over_depth(names, "mass", standalone=True),
        "maps.svg": figures.attention_maps(
            {name: one.maps for name, one in zip(names, analyzed, strict=True)}
        ),
    }
    save_analyses(directory / FILE, list(names.values()))
    written = [directory / FILE]
    for name, svg in svgs.items():
        if svg is not None:
            atomic.write_text(directory / name, svg + "\n")
            written.append(directory / name)
    return written


def analysis_table(name: str, analysis: AttentionAnalysis) -> Table:
    """Every layer's rank and mass as a table that fits into 60 columns."""
    table = Table(title=name, title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("Layer", "Max rank", "Mean rank", "Mean columns", "Degenerate"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for layer, ranks in zip(analysis.layers, analysis.ranks, strict=True):
        table.add_row(
            str(layer.layer),
            f"{layer.max_rank.mean:.1f} ±{layer.max_rank.deviation:.1f}",
            f"{layer.mean_rank.mean:.1f}",
            f"{layer.mean_mass.mean:.1f}",
            f"{len(layer.degenerate_heads)}/{len(ranks)}",
            "lazy" if layer.lazy else "",
        )
    return table


class _Norms:
    """Gradient norms of one training: the steps, and [steps, layers] for query and key weights."""

    def __init__(self, training: Training, rows: Sequence[Mapping[str, float]]) -> None:
        self.training = training
        self.steps = np.array([row["step"] for row in rows], dtype=np.float64)
        depth = max(int(key.removeprefix("query_")) for key in rows[0] if key.startswith("query_"))
        self.query_sl, self.key_sl = (
            np.array([[row[f"{what}_{i + 1}"] for i in range(depth)] for row in rows])
            for what in ("query", "key")
        )

    @property
    def both_sl(self) -> FloatArray:
        """Norm of query and key gradient together."""
        return np.hypot(self.query_sl, self.key_sl)


def _gradients(run: Run) -> list[_Norms]:
    """Of every training that recorded them: the reference and each round."""
    found = []
    for training in run.trainings:
        folder = "reference" if training.round == 0 else f"round-{training.round}-{training.layers}-layers"
        rows = {
            row["step"]: row
            for row in metrics.read(run.path / folder / metrics.FILE)
            if row.get("kind") == "gradients"
        }
        if rows:
            found.append(_Norms(training, [rows[step] for step in sorted(rows)]))
    return found


def _gradient_figures(gradients: Sequence[_Norms]) -> list[str]:
    """Over layers for all trainings; over steps for the reference and the last round."""
    if not gradients:
        return []
    by_layer = [
        figures.gradients_over_layers(
            {g.training.name: (g.training.round, getattr(g, f"{what}_sl")) for g in gradients},
            f"gradient norm of {what} weights, mean over steps",
            f"{what}-gradients",
        )
        for what in ("query", "key")
    ]
    shown = [gradients[0], *gradients[1:][-1:]]
    by_step = [
        figures.gradients_over_steps(
            g.steps,
            g.both_sl,
            f"{g.training.name}: gradient norm, query and key weights",
            f"gradients-of-{g.training.round}",
        )
        for g in shown
    ]
    return by_layer + by_step
