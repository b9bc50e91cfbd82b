"""Rank and mass of attention: the section of a run's report, and files and page that `inheritune analyze` leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from inheritune.analysis.kept import LayerAnalysis
from inheritune.analysis.result import FILE, AttentionAnalysis, load_analyses, save_analyses, short_name
from inheritune.report.figures import LAYER, Line, Picture, curves, maps
from inheritune.report.layers_report import measured_blocks
from inheritune.report.pages import Block, Fold, Page, Paragraph, Section, pictures, write_files
from inheritune.report.runs import Entry, FloatArray, Run
from inheritune.report.table import Table

if TYPE_CHECKING:  # a report is written without torch
    from inheritune.analysis.analyze import Analyzed

HEADINGS = {
    "rank": "approximate rank k*, highest mean over heads",
    "mass": "columns m* that hold most mass, mean over heads",
}
PAGE = "analysis.html"
UNTRAINED = (
    "Ranks are those of the reference as it is: they guess which of its layers could go. Whether a depth is as good "
    "was measured after its training, against the reference's loss. That is the verdict above, and it counts where "
    "the two disagree."
)
SHOWN_LAYERS = 5
"""Of a model whose gradient norms are drawn over steps."""


def analysis_blocks(run: Run) -> list[Block]:
    """Rank and mass of the attention of reference and final model, and gradient norms where they were recorded."""
    analyses = run_analyses(run.path)
    blocks: list[Block] = []
    for place, (name, analysis) in enumerate(analyses.items()):
        lazy = len(analysis.cut.lazy_layers)
        others = f"{lazy} of {analysis.depth} layers {'is' if lazy == 1 else 'are'} lazy."
        text = analysis.cut.sentence if place == 0 else others if lazy else "No layer is lazy."
        blocks.append(Paragraph(text, f"{name}."))
    if analyses and run.summary.verdict is not None:
        blocks.append(Paragraph(UNTRAINED))
    blocks += _rank_and_mass(analyses)
    gradients = pictures(*((picture, "") for picture in _gradient_pictures(run)))
    if gradients:
        note = Paragraph("Recorded at validation steps, before clipping.")
        blocks.append(Fold("Gradient norms of query and key weights", [*gradients, note]))
    return blocks


def _rank_and_mass(analyses: Mapping[str, AttentionAnalysis]) -> list[Block]:
    """Both pictures, and what was measured."""
    if not analyses:
        return []
    first = next(iter(analyses.values()))
    rank = (
        f"Approximate rank: how many singular values hold {100 * first.tau:g}% of a head's attention; of each layer "
        "the head with the highest mean. Below the dotted line a head is degenerate; hollow marks are lazy layers, "
        "in which every head is."
    )
    mass = (
        f"Mass: how many columns, that is attended tokens, hold {100 * first.mass:g}% of a head's attention; mean "
        "over the heads of each layer."
    )
    measured = "; ".join(
        f"{name}: {a.sequences} validation windows of {a.window} tokens" for name, a in analyses.items()
    )
    return [
        *pictures((over_depth(analyses, "rank"), rank), (over_depth(analyses, "mass"), mass)),
        Paragraph(f"{measured}. Bands are one standard deviation over windows."),
    ]


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


def write_analysis(directory: Path, layers: LayerAnalysis | None, analyzed: Sequence[Analyzed]) -> list[Path]:
    """Write the page of an analysis of layers, of attention or of both, and what is there of attention.

    That is `analysis.json`, `rank.svg`, `mass.svg` and, where there are maps, `maps.svg`; what `write_layers` wrote
    is only shown. Returns what it wrote.
    """
    names = labelled([one.analysis for one in analyzed])
    heads = {
        name: {head: attention_tt.numpy() for head, attention_tt in one.maps.items()}
        for name, one in zip(names, analyzed, strict=True)
    }
    drawn, written = maps(heads), list[Path]()
    if names:
        rank, mass = over_depth(names, "rank"), over_depth(names, "mass")
        written = write_files(directory, {"rank.svg": rank, "mass.svg": mass, "maps.svg": drawn})
        save_analyses(directory / FILE, list(names.values()))
        written.insert(0, directory / FILE)
    page = analysis_page(layers, names, drawn)
    return [*written, *write_files(directory, {PAGE: page.html()})]


def analysis_page(
    layers: LayerAnalysis | None, analyses: Mapping[str, AttentionAnalysis], heads: Picture | None = None
) -> Page:
    """The page of what `inheritune analyze` found; `heads` are attention maps."""
    verdicts = [] if layers is None else [layers.sentence]
    verdicts += [f"{name}: {analysis.cut.sentence}" for name, analysis in analyses.items()]
    models = [*analyses] if layers is None else [f"{layers.model}, {layers.of_layers} layers"]
    caption = (
        "Attention of single heads on the first of the windows, queries from top to bottom; darker is more."
    )
    tables = [
        Fold(f"{name}, layer by layer", [analysis_table(name, analysis)])
        for name, analysis in analyses.items()
    ]
    sections = (
        Section("Layers", "layers", [] if layers is None else measured_blocks(layers)),
        Section("Attention", "attention", [*_rank_and_mass(analyses), *tables]),
        Section("Maps", "maps", pictures((heads, caption), wide=True)),
    )
    return Page("Inheritune analysis", " and ".join(models), verdicts, sections, "inheritune analyze")


def analysis_table(name: str, analysis: AttentionAnalysis) -> Table:
    """Every layer's rank and mass."""
    rows = [
        (
            str(layer.layer),
            f"{layer.max_rank.mean:.1f} ±{layer.max_rank.deviation:.1f}",
            f"{layer.mean_rank.mean:.1f}",
            f"{layer.mean_mass.mean:.1f}",
            f"{len(layer.degenerate_heads)}/{len(ranks)}",
            "lazy" if layer.lazy else "",
        )
        for layer, ranks in zip(analysis.layers, analysis.ranks, strict=True)
    ]
    return Table(name, ("Layer", "Max rank", "Mean rank", "Mean columns", "Degenerate", "<"), rows)


def over_depth(
    analyses: Mapping[str, AttentionAnalysis], quantity: Literal["rank", "mass"]
) -> Picture | None:
    """Rank (paper, figures 1a and 9) or mass (figure 1b) of every layer, one line for each model.

    The band is one standard deviation over sequences to both sides; lazy layers have hollow marks.
    """
    lines, highest = [], 2.0
    for place, (name, analysis) in enumerate(analyses.items()):
        spreads = [layer.max_rank if quantity == "rank" else layer.mean_mass for layer in analysis.layers]
        mean, band = (np.array([getattr(spread, of) for spread in spreads]) for of in ("mean", "deviation"))
        lazy = np.array([layer.lazy for layer in analysis.layers])
        layers = np.arange(1.0, analysis.depth + 1)
        lines.append(Line(name, layers, mean, place, marks=analysis.depth, band=band, hollow=lazy))
        highest = max(highest, float(np.max(mean + band)))
    level = (next(iter(analyses.values())).degenerate, "") if quantity == "rank" else None
    return curves(lines, HEADINGS[quantity], LAYER, limits=(0, 1.08 * highest), level=level)


def _gradient_pictures(run: Run) -> list[Picture | None]:
    """Over layers for all trainings; over steps for the reference and the last round."""
    norms = {t: [_norms(t, what) for what in ("query", "key")] for t in run.trainings}
    norms = {t: parts for t, parts in norms.items() if parts[0].size}
    drawn = []
    for place, what in enumerate(("query", "key")):
        lines = [
            Line(t.name, np.arange(1.0, parts[place].shape[1] + 1), parts[place].mean(0), t.round)
            for t, parts in norms.items()
        ]
        heading = f"gradient norm of {what} weights, mean over steps"
        drawn.append(curves(lines, heading, LAYER, logarithmic=True))
    for training in dict.fromkeys([*norms][:1] + [*norms][-1:]):
        both_sl = np.hypot(*norms[training])
        depth, steps = both_sl.shape[1], training.metrics.gradients["step"]
        shown = sorted({round(1 + i * (depth - 1) / (SHOWN_LAYERS - 1)) for i in range(SHOWN_LAYERS)})
        lines = [
            Line(f"layer {layer}", steps, both_sl[:, layer - 1], place, marks=0)
            for place, layer in enumerate(shown)
        ]
        heading = f"{training.name}: gradient norm, query and key weights"
        drawn.append(curves(lines, heading, "step", logarithmic=True))
    return drawn


def _norms(training: Entry, what: str) -> FloatArray:
    """Gradient norms [steps, layers] of query or key weights; empty where none were recorded."""
    gradients = training.metrics.gradients
    layers = sorted(int(name.removeprefix(f"{what}_")) for name in gradients if name.startswith(f"{what}_"))
    return np.array([gradients[f"{what}_{layer}"] for layer in layers]).T
