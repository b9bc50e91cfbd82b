"""Any runs in one table and one figure: `inheritune compare`.

`read_entries` reads the runs, `pair` compares them with the reference over the same validation windows, and
`write_comparison` writes the result as HTML, Markdown, CSV and SVG.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import rich.table

from inheritune import UserError
from inheritune.quantities import count, flop_scale, flops, loss_decimals, signed_interval, without_spread
from inheritune.report import figures
from inheritune.report.figures import Interval, Line, Picture, short
from inheritune.report.pages import Page, Section, pictures, write_files
from inheritune.report.runs import Entry, read_entries
from inheritune.report.table import PER_BYTE, Row, Table, csv_text, escaped
from inheritune.runtime import files
from inheritune.shown import Shown
from inheritune.training import validation

Directory: TypeAlias = str | os.PathLike[str]

FILES = (
    *("comparison.html", "comparison.md", "comparison.csv"),
    *("differences.svg", "loss-by-step.svg", "loss-by-flops.svg"),
)
CSV_COLUMNS = (
    *("name", "seed", "layers", "parameters", "steps", "tokens"),
    *("training_flops", "total_flops", "relative_flops", "loss", "standard_error"),
    *("difference", "interval_low", "interval_high", "verdict", "note"),
)
CSV_PER_BYTE = "bits_per_byte"
"""A further column where it is known of any run."""
HEADINGS = (
    *("Name", "Seed", "Layers", "Params", "Steps", "Tokens", "FLOPs", "All rounds", "Relative"),
    *("Loss", "Error", PER_BYTE, "Difference", "95% interval", "Verdict"),
)


@dataclass(frozen=True, eq=False)
class Compared:
    """An entry against its reference; `relative_flops` are its total FLOPs as a multiple of the reference's.

    `name` is the label, with the seed where the row has several. The verdict is reference, better, worse, not
    significant, not paired or unfinished; better and worse mean only that the 95% interval over windows excludes 0.
    Where the two read one text in different tokens nothing is paired: the verdict is on bits per byte, and the note
    says so.
    """

    name: str
    entry: Entry
    paired: validation.Comparison | None
    relative_flops: float | None
    verdict: str
    note: str | None = None


class Seeds(NamedTuple):
    """The seeds of one label, and the place of their look in figures (0 is the reference).

    The mean loss is that of the finished ones, None if there are none; mean and standard deviation of the difference
    to the reference are None with fewer than two.
    """

    label: str
    place: int
    seeds: Sequence[Compared]
    mean_loss: float | None
    mean_difference: float | None
    spread: float | None


@dataclass(frozen=True, eq=False)
class RunComparison(Shown):
    """Runs compared with one reference; `reference` is the label of its row."""

    title: str
    reference: str
    rows: Sequence[Seeds]
    notes: tuple[str, ...]

    @property
    def seeds(self) -> list[Compared]:
        """All entries, row by row."""
        return [seed for row in self.rows for seed in row.seeds]

    @property
    def reference_row(self) -> Seeds:
        """The row that the others are compared with."""
        return next(row for row in self.rows if row.label == self.reference)

    @property
    def decimals(self) -> int:
        """How many decimals the losses deserve: as many as the narrowest interval does."""
        return max((loss_decimals(one.paired.interval) for one in self.seeds if one.paired), default=3)

    @property
    def hidden(self) -> set[str]:
        """Columns that have nothing to show."""
        known = any(seed.entry.losses and seed.entry.losses.bits_per_byte for seed in self.seeds)
        return set() if known else {PER_BYTE}

    @property
    def summary(self) -> str:
        """What the differences are relative to, on which windows, and how they came out."""
        losses = next((s.entry.losses for s in self.reference_row.seeds if s.entry.losses is not None), None)
        if losses is None:
            return f"The reference, {self.reference}, is unfinished: there is nothing to compare with yet."
        counted = Counter(seed.verdict for seed in self.seeds)
        told = ("better", "worse", "not significant", "not paired", "unfinished")
        others = ", ".join(f"{counted[verdict]} {verdict}" for verdict in told if counted[verdict])
        return (
            f"Compared with {self.reference}, whose validation loss is "
            f"{self.reference_row.mean_loss:.{self.decimals}f} on {len(losses.losses):,} windows of "
            f"{losses.window:,} tokens: {others or 'nothing else'}."
        )


def compare_runs(
    runs: Sequence[Directory] | Mapping[str, Directory],
    reference: Directory | None = None,
    directory: Path | None = None,
    title: str = "Comparison of runs",
) -> RunComparison:
    """Read runs, compare them with the reference, and write `FILES` into `directory`.

    Args:
        runs: directories, each `PATH` or `NAME=PATH`; several with the same name are seeds of one row. Or the names
            are the keys of a mapping.
        reference: a name, or the path of one of the runs or of another one, which is then the first.
        directory: made if need be; files of these names in it are replaced. Without one nothing is written.
        title: heads the page.

    Raises:
        UserError: something the user can fix, in one sentence.
    """
    given: list[tuple[str | None, Path]]
    if isinstance(runs, Mapping):
        given = [(name, files.named(run, "run")) for name, run in runs.items()]
    elif isinstance(runs, Iterable):
        given = [parse_run(os.fspath(files.named(run, "run"))) for run in runs]
    else:
        raise UserError(f"the runs should be directories, but are of type {type(runs).__name__}")
    entries = read_entries(given)
    reference = None if reference is None else os.fspath(reference)
    if reference is not None and find_reference(entries, reference) is None:
        label, path = parse_run(reference)
        if path.exists():
            entries = read_entries([(label, path), *given])
            reference = str(path)
    if directory is None:
        return pair(entries, reference, title)
    return write_comparison(entries, reference, directory, title)


def parse_run(text: str) -> tuple[str | None, Path]:
    """A run as users name it: PATH, or NAME=PATH unless that is itself the path of something.

    Raises:
        UserError: the name is empty.
    """
    name, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        return None, Path(text)
    if not name or not path:
        raise UserError(f"{text} should be PATH or NAME=PATH, but one of its sides is empty")
    return name, Path(path)


def write_comparison(
    entries: Sequence[Entry], reference: str | None, directory: Path, title: str
) -> RunComparison:
    """Compare entries with the reference (label or path; see `pair`) and write `FILES` into `directory`.

    A figure that has nothing to show is not written, and one of an earlier comparison is removed.

    Raises:
        UserError: the reference is none of the entries, or `directory` is a file.
    """
    comparison = pair(entries, reference, title)
    losses = loss_picture(comparison, "step"), loss_picture(comparison, "flops")
    drawn = difference_picture(comparison), *losses
    texts = (_page(comparison, *drawn).html(), to_markdown(comparison), to_csv(comparison), *drawn)
    write_files(directory, dict(zip(FILES, texts, strict=True)))
    return comparison


def pair(entries: Sequence[Entry], reference: str | None, title: str) -> RunComparison:
    """Compare every entry with the reference, seed with seed where both have it.

    Args:
        entries: what `read_entries` gave.
        reference: label or path; by default the reference of the first run of Algorithm 1, else the first entry.
        title: of the comparison.

    Raises:
        UserError: no entry is called so, or lies there.
    """
    label = find_reference(entries, reference)
    by_label: dict[str, list[Entry]] = {}
    for entry in entries:
        by_label.setdefault(entry.label, []).append(entry)
    if label is None:
        raise UserError(
            f"the reference {reference} is none of the runs that are compared: {', '.join(by_label)}"
        )

    def name(entry: Entry) -> str:
        return f"{entry.label}, {seed_of(entry)}" if len(by_label[entry.label]) > 1 else entry.label

    rows: list[Seeds] = []
    for one, entries_of in by_label.items():
        seeds = [_compare(entry, by_label[label], name) for entry in entries_of]
        losses = [entry.losses.mean for entry in entries_of if entry.losses is not None]
        differences = [seed.paired.difference for seed in seeds if seed.paired is not None]
        mean, spread = (fmean(differences), stdev(differences)) if len(differences) > 1 else (None, None)
        place = 0 if one == label else 1 + sum(row.place > 0 for row in rows)
        rows.append(Seeds(one, place, seeds, fmean(losses) if losses else None, mean, spread))
    notes = [f"{name(entry)}: {note}" for entry in entries for note in entry.notes]
    notes += [seed.note for row in rows for seed in row.seeds if seed.note is not None]
    hot = ", ".join(name(entry) for entry in entries if not entry.cooled)
    if hot:
        notes.append(f"Grown before the learning rate had decayed, so that losses are high: {hot}.")
    return RunComparison(title, label, rows, tuple(notes))


def find_reference(entries: Sequence[Entry], text: str | None) -> str | None:
    """The label that is meant by a label, an entry's path, or the directory of a run; None if there is none.

    Without a text it is that of the first run's reference, else of the first entry.
    """
    if text is None:
        return next((entry.label for entry in entries if entry.kind == "reference"), entries[0].label)
    if any(entry.label == text for entry in entries):
        return text
    path = Path(text).resolve()
    places = ((e.label, [e.path, e.run] if e.kind == "reference" else [e.path]) for e in entries)
    return next((label for label, found in places if path in (one.resolve() for one in found)), None)


def comparison_table(comparison: RunComparison) -> Table:
    """The table as people read it; several seeds follow a line with their mean and spread."""
    rows = [Row(tuple(cells.values()), kind) for cells, kind in _lines(comparison)]
    table = Table("", ("<Name", *HEADINGS[1:-1], "<Verdict"), rows, [_explanation(comparison)], "runs")
    return table.without(comparison.hidden)


def terminal_table(comparison: RunComparison) -> rich.table.Table:
    """The columns that matter most; FLOPs as a multiple of the reference's where those are known."""
    rows = []
    for cells, kind in _lines(comparison):
        name = cells["Name"] or f"  seed {cells['Seed'] or 'unknown'}"
        cost = cells["Relative"] if cells["Relative"] not in ("", "unknown") else cells["All rounds"]
        difference = "mean " * (kind == "mean" and bool(cells["Difference"])) + cells["Difference"]
        rest = cells["Loss"], cells[PER_BYTE], difference or cells["Verdict"], cells["95% interval"]
        rows.append((name, cells["Layers"], cost, *rest))
    headings = ("<Name", "Layers", "FLOPs", "Loss", PER_BYTE, "Difference", "95% interval")
    return Table("", headings, rows).without(comparison.hidden).terminal()


def to_markdown(comparison: RunComparison) -> str:
    """The table as aligned Markdown, with what it is relative to below it."""
    parts = [
        f"# {escaped(comparison.title)}",
        comparison_table(comparison).markdown(),
        f"{escaped(comparison.summary)} {_explanation(comparison)}",
        "\n".join(f"- {escaped(note)}" for note in comparison.notes),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def to_csv(comparison: RunComparison) -> str:
    """One line an entry, numbers in full; what is not known is empty."""
    rows = []
    for seed in comparison.seeds:
        entry, losses = seed.entry, seed.entry.losses
        row: dict[str, object] = {"name": entry.label, "verdict": seed.verdict, "note": seed.note}
        row |= {key: getattr(entry, key) for key in ("seed", "layers", "parameters")}
        if losses is not None:
            row |= {"steps": entry.steps, "tokens": entry.tokens, "training_flops": entry.flops}
            row |= {"total_flops": entry.total_flops, "relative_flops": seed.relative_flops}
            row |= {"loss": losses.mean, "standard_error": losses.standard_error}
            row |= {} if comparison.hidden else {CSV_PER_BYTE: losses.bits_per_byte}
        if seed.paired is not None:
            low, high = seed.paired.interval
            row |= {"difference": seed.paired.difference, "interval_low": low, "interval_high": high}
        rows.append(row)
    return csv_text((*CSV_COLUMNS, *(() if comparison.hidden else (CSV_PER_BYTE,))), rows)


def difference_picture(comparison: RunComparison) -> Picture | None:
    """The paired difference of every entry with its 95% interval, around 0; None without any.

    A filled mark is significant. Several seeds are below their mean.
    """
    lines: list[Interval] = []
    decimals = comparison.decimals
    for row in comparison.rows:
        name, mean = short(row.label), row.mean_difference
        if mean is not None:
            text = f"{mean:+.{decimals}f}, sd {row.spread:.{decimals}f}"
            lines.append(Interval(name, mean, None, text, row.place, True))
            name = ""
        for seed in row.seeds:
            if seed.paired is not None:
                difference, ends = seed.paired.difference, seed.paired.interval
                text = f"{difference:+.{decimals}f} {signed_interval(ends, decimals)}"
                own = f"{name}, {seed_of(seed.entry)}".removeprefix(", ") if len(row.seeds) > 1 else name
                lines.append(
                    Interval(own, difference, ends, text, row.place, seed.verdict != "not significant")
                )
    label = f"loss minus that of {short(comparison.reference)}, nats per token; left of 0 is better"
    return figures.differences(lines, label)


def seed_of(entry: Entry) -> str:
    """In words."""
    return "unknown seed" if entry.seed is None else f"seed {entry.seed}"


def loss_picture(comparison: RunComparison, axis: Literal["step", "flops"]) -> Picture | None:
    """Validation loss of every entry over its steps, or over its training FLOPs and those of earlier rounds.

    A few rows share one pair of axes; of many, each has a panel in which the others are grey. None if there is no
    curve, or with `axis="flops"` no FLOPs were recorded.
    """
    lines = []
    for row in comparison.rows:
        for seed in row.seeds:
            curve, losses = seed.entry.metrics.validation, seed.entry.losses
            x = curve["step"] if axis == "step" else seed.entry.before + curve["flops"]
            seen = np.isfinite(x) & np.isfinite(curve["loss"])
            if np.any(seen):
                line = Line(
                    row.label, x[seen], curve["loss"][seen], row.place, marks=1, finished=losses is not None
                )
                lines.append(line if losses is None else replace(line, final=losses.mean))
    if not lines:
        return None
    mean = comparison.reference_row.mean_loss
    level = None if mean is None else (mean, f"{comparison.reference}, final")
    scale, unit = flop_scale(max(float(line.x[-1]) for line in lines)) if axis == "flops" else (1.0, "")
    lines = [replace(line, x=line.x / scale) for line in lines]
    limits = figures.loss_limits(lines, [] if mean is None else [mean])
    heading = "validation loss, nats per token"
    x_label = "step" if axis == "step" else f"training compute, {unit}"
    if len(comparison.rows) >= figures.PANELS_FROM:
        return figures.panels(lines, heading, x_label, limits, level)
    return figures.curves(lines, heading, x_label, width=figures.WIDE, limits=limits, level=level)


def _page(comparison: RunComparison, *drawn: Picture | None) -> Page:
    """The page, with pictures of differences, of losses by step and by FLOPs."""
    captions = (
        "Paired over validation windows, with the 95% interval of the mean; a filled mark means that the interval "
        "excludes 0. Where there are several seeds, the line above them is their mean, with the standard deviation "
        "between them.",
        f"Over the steps of each training. In black: {comparison.reference}, its final loss as a dotted line. A "
        "hollow mark at the end means that the run is unfinished. Final losses, as in the table, are on all "
        "validation windows; curves are on those that were validated while training.",
        "Over training FLOPs; rounds of one run follow one another, since their costs add up.",
    )
    paired, over_steps, over_flops = (
        pictures((picture, caption), wide=True) for picture, caption in zip(drawn, captions, strict=True)
    )
    front = ("Name", "Seed", "Difference", "95% interval", "Verdict", "Loss", "Error")
    sections = (
        Section(f"Differences to {comparison.reference}", "differences", paired),
        Section("All runs", "table", [comparison_table(comparison).first(*front)]),
        Section("Validation loss", "curves", [*over_steps, *over_flops]),
    )
    kind, verdicts = "Inheritune comparison", [comparison.summary]
    return Page(kind, comparison.title, verdicts, sections, "inheritune compare", notes=comparison.notes)


def _explanation(comparison: RunComparison) -> str:
    """What the columns mean, in plain sentences."""
    seeds = (
        " Lines without a verdict are means over seeds, with the standard deviation of the difference between seeds."
        if any(row.mean_difference is not None for row in comparison.rows)
        else ""
    )
    per_byte = (
        ""
        if comparison.hidden
        else " Bits per byte are the loss for each byte of text, which different tokenizers have in common."
    )
    return (
        "FLOPs are a run's own training, all rounds adds that of the rounds before it, and relative is the latter "
        "as a multiple of the reference's. Losses are in nats per token, with their standard error over windows. "
        "The difference is to the reference, over paired windows; better and worse "
        f"mean that its 95% interval, which is over windows and not over seeds, excludes 0.{seeds}{per_byte}"
    )


def _lines(comparison: RunComparison) -> Iterator[tuple[dict[str, str], str]]:
    """Cells of each line of the table by heading, and the line's kind."""
    decimals, empty = comparison.decimals, dict.fromkeys(HEADINGS, "")
    for row in comparison.rows:
        if len(row.seeds) > 1:
            cells = {"Name": row.label, "Seed": f"{len(row.seeds)} seeds"}
            cells["Loss"] = "" if row.mean_loss is None else f"{row.mean_loss:.{decimals}f}"
            if row.mean_difference is not None:
                cells["Difference"] = f"{row.mean_difference:+.{decimals}f}"
                cells["95% interval"] = f"sd {row.spread:.{decimals}f}"
            yield empty | cells, "mean"
        for seed in row.seeds:
            name = row.label if len(row.seeds) == 1 else ""
            yield empty | {"Name": name} | _cells(seed, decimals), seed.verdict


def _cells(seed: Compared, decimals: int) -> dict[str, str]:
    entry, losses, paired = seed.entry, seed.entry.losses, seed.paired
    cells = {
        "Seed": "" if entry.seed is None else str(entry.seed),
        "Layers": _known(entry.layers, str),
        "Params": _known(entry.parameters, count),
        "Verdict": seed.verdict,
    }
    if losses is not None:
        cells |= {
            "Steps": _known(entry.steps, "{:,}".format),
            "Tokens": _known(entry.tokens, count),
            "FLOPs": _known(entry.flops, flops),
            "All rounds": _known(entry.total_flops, flops),
            "Relative": _known(seed.relative_flops, "{:.2f} ×".format),
            "Loss": f"{losses.mean:.{decimals}f}",
            "Error": f"{losses.standard_error:.{decimals}f}" if len(losses.losses) > 1 else "unknown",
            PER_BYTE: _known(losses.bits_per_byte, f"{{:.{decimals + 1}f}}".format),
        }
    if paired is not None:
        cells["Difference"] = f"{paired.difference:+.{decimals}f}"
        cells["95% interval"] = signed_interval(paired.interval, decimals)
    return cells


def _known(value: float | None, text: Callable[[Any], str]) -> str:
    return "unknown" if value is None else text(value)


def _compare(entry: Entry, references: Sequence[Entry], name: Callable[[Entry], str]) -> Compared:
    """Against the reference of the same seed; where there is none, against the first that is finished."""
    finished = [reference for reference in references if reference.losses is not None] or references
    same = [reference for reference in finished if reference.seed == entry.seed]
    reference = entry if entry in references else (same or finished)[0]
    own, other = name(entry), name(reference)
    if entry.losses is None:
        so_far = "no step is recorded" if entry.steps is None else f"its last record is step {entry.steps:,}"
        return Compared(own, entry, None, None, "unfinished", f"{own} is unfinished: {so_far}.")
    relative = None
    if reference.losses is not None and entry.total_flops is not None and reference.total_flops:
        relative = entry.total_flops / reference.total_flops
    if entry in references:
        return Compared(own, entry, None, relative, "reference")
    if reference.losses is None:
        note = f"{own} has no difference: its reference, {other}, is unfinished."
        return Compared(own, entry, None, relative, "not paired", note)
    try:
        paired = validation.compare(entry.losses, reference.losses)
    except UserError as error:
        per_byte = validation.compare_per_byte(entry.losses, reference.losses)
        if per_byte is None:
            note = f"{own} has no difference to {other}: {error}."
            return Compared(own, entry, None, relative, "not paired", note)
        difference, ends = per_byte
        note = (
            f"{own} read the validation text of {other} in other tokens, so their windows are not paired: they are "
            f"compared per byte, {entry.losses.bits_per_byte:.4f} bits and {reference.losses.bits_per_byte:.4f}, "
            f"difference {difference:+.4f}, 95% interval {signed_interval(ends, 4)}."
        )
        return Compared(own, entry, None, relative, _verdict(ends), note)
    unexpected = None if same or len(references) == 1 else f"{own} is compared with {other}."
    return Compared(own, entry, paired, relative, _verdict(paired.interval), unexpected)


def _verdict(interval: tuple[float, float]) -> str:
    """Of a difference with this interval."""
    low, high = interval
    if low <= 0 <= high or without_spread(interval):
        return "not significant"
    return "better" if high < 0 else "worse"
