"""The figures of a report: loss curves, differences per round, learning rate and gradient norm.

Each function takes a `Run` and gives an SVG (see `svg.py`), or None if the run has nothing to draw. Models are
told apart by marker and dash as well as by colour, and labelled where they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from inheritune.report import drawing
from inheritune.report.drawing import INK, MUTED, Interval, Label, look, smooth, thin
from inheritune.report.metrics import FloatArray, Training
from inheritune.report.quantities import flop_scale, loss_decimals, signed_interval, significant
from inheritune.report.run_directory import Run
from inheritune.report.svg import to_svg

Axis = Literal["step", "flops"]

MARKS = 16  # at most, on one curve
REFERENCE_LINE = (0, (1, 2.5))


def loss_curves(run: Run, axis: Axis, *, standalone: bool = False) -> str | None:
    """Training and validation loss of every model, over its own steps or over cumulative training FLOPs.

    Over FLOPs the rounds stand one after another, as their costs add up; the reference starts at 0.
    None if no model has metrics, or with `axis="flops"` if FLOPs were not recorded.
    """
    curves = [training for training in run.trainings if axis == "step" or training.flops > 0]
    if not curves:
        return None
    width, height = (760, 380) if standalone else (480, 330)
    scale, unit = flop_scale(max(t.before + t.flops for t in curves)) if axis == "flops" else (1.0, "")
    end = max(max(t.last_step, 1) if axis == "step" else (t.before + t.flops) / scale for t in curves)
    low, high, _ = loss_limits(run)
    with drawing.style():
        figure, axes = drawing.frame(
            width, height, left=42, right=130 if axis == "step" else 74, top=46, bottom=42
        )
        axes.set(xlim=(0, 1.01 * end), ylim=(low, high))
        drawing.number_x(axes, "step" if axis == "step" else f"cumulative training compute, {unit}")
        axes.yaxis.set_major_locator(MaxNLocator(6))
        legend = "   (marked: validation; thin: training, smoothed)" if standalone else ""
        drawing.head(axes, f"loss, nats per token{legend}", above=28)
        for training in curves:
            _draw_losses(axes, training, axis, scale)
        if run.reference_loss is not None:
            axes.axhline(run.reference_loss, color=INK, linewidth=1, linestyle=REFERENCE_LINE, zorder=1.5)
        if axis == "step":
            drawing.label_ends(axes, _end_labels(run, curves, end))
        else:
            _label_spans(axes, run, curves, scale)
        return to_svg(figure, f"loss-by-{axis}", _describe_losses(run, axis), standalone=standalone)


def loss_limits(run: Run) -> tuple[float, float, bool]:
    """The range of the loss axis, and whether it cuts off the first steps of a curve."""
    curves = [
        curve
        for training in run.trainings
        for curve in (
            (training.train["step"], smooth(training.train["loss"]), training.last_step),
            (training.validation["step"], training.validation["loss"], training.last_step),
        )
    ]
    return drawing.loss_limits(curves, [] if run.reference_loss is None else [run.reference_loss])


def differences(run: Run) -> str | None:
    """The paired difference of every finished round with its 95% interval, around 0; None without rounds."""
    rounds = run.summary.rounds
    if not rounds:
        return None
    texts = [
        f"{e.difference:+.{loss_decimals(e.interval)}f} {signed_interval(e.interval, loss_decimals(e.interval))}"
        for e in rounds
    ]
    with drawing.style():
        figure, axes = drawing.frame(480, 70 + 26 * len(rounds), left=112, right=158, top=24, bottom=46)
        lines = [
            Interval(
                f"round {e.round}, {e.layers} layers", e.difference, e.interval, text, look(e.round), e.parity
            )
            for e, text in zip(rounds, texts, strict=True)
        ]
        margin = run.summary.margin
        drawing.intervals(axes, lines, ("← target better", "reference better →"), [margin])
        if margin:
            axes.axvline(margin, color=INK, linewidth=1, linestyle=(0, (4, 2)))
        axes.set_xlabel("target minus reference, nats per token")
        label = "Difference of validation loss, target minus reference, with 95% interval: " + "; ".join(
            f"round {entry.round} {text}" for entry, text in zip(rounds, texts, strict=True)
        )
        return to_svg(figure, "differences", label)


def learning_rates(run: Run) -> str | None:
    """The learning rate over the steps of every model; None if it was not recorded."""
    return _over_steps(run, "learning_rate", "learning rate", logarithmic=False)


def gradient_norms(run: Run) -> str | None:
    """The gradient norm over the steps of every model, smoothed, on a logarithmic axis; None if not recorded."""
    return _over_steps(run, "gradient_norm", "gradient norm, smoothed", logarithmic=True)


def _draw_losses(axes: Axes, training: Training, axis: Axis, scale: float) -> None:
    def x(rows: Mapping[str, FloatArray]) -> FloatArray:
        return rows["step"] if axis == "step" else (training.before + rows["flops"]) / scale

    colour, marker, dash = look(training.round)
    axes.plot(
        *thin(x(training.train), smooth(training.train["loss"])), color=colour, linewidth=0.8, alpha=0.6
    )
    position, loss = thin(x(training.validation), training.validation["loss"])
    # Marks are counted from the end, so that the last value, which decides, always has one.
    marked = list(range(len(loss) - 1, -1, -max(1, -(-len(loss) // MARKS))))
    axes.plot(position, loss, color=colour, linestyle=dash, marker=marker, markevery=marked)


def _name(training: Training) -> str:
    return training.name if training.finished else f"{training.name} …"


def _last_loss(training: Training) -> float:
    """The last validation loss, else the last training loss, NaN if there is no finite one."""
    for values in (training.validation["loss"], smooth(training.train["loss"])):
        finite = values[np.isfinite(values)]
        if len(finite):
            return float(finite[-1])
    return float("nan")


def _end_labels(run: Run, curves: list[Training], end: float) -> list[Label]:
    """A label for the end of every curve, and for the reference's loss if it has no curve."""
    labels = [
        Label(training.last_step, _last_loss(training), _name(training), look(training.round).color)
        for training in curves
        if np.isfinite(_last_loss(training))
    ]
    if run.reference is None and run.reference_loss is not None:
        labels.append(Label(end, run.reference_loss, "reference", INK))
    return labels


def _label_spans(axes: Axes, run: Run, curves: list[Training], scale: float) -> None:
    """Name each round above the stretch of FLOPs it took, and mark what the reference's training took."""
    _, end = axes.get_xlim()
    above = axes.get_xaxis_transform()
    for training in curves:
        start, stop = training.before / scale, (training.before + training.flops) / scale
        colour = look(training.round).color
        if training.round == 0:
            axes.axvline(stop, color=INK, linewidth=0.8, linestyle=REFERENCE_LINE)
            continue
        axes.axvline(start, color=MUTED, linewidth=0.6)
        axes.plot([start, stop], [1.02, 1.02], color=colour, linewidth=2.5, transform=above, clip_on=False)
        # About 7 units a letter: what does not fit above its stretch is shortened.
        room = (stop - start) / end * axes.get_window_extent().width
        for text in (_name(training), f"round {training.round}", str(training.round)):
            if 7 * len(text) < room or text.isdigit():
                break
        axes.text((start + stop) / 2, 1.04, text, color=colour, ha="center", transform=above)
    if run.reference is not None and run.reference.flops > 0:
        stop = run.reference.flops / scale
        side = "left" if stop < 0.6 * end else "right"
        text = "reference's training" if run.reference.finished else "reference so far"
        axes.annotate(
            text,
            (stop, 1),
            (4 if side == "left" else -4, -11),
            xycoords=above,
            textcoords="offset points",
            ha=side,
        )
    if run.reference_loss is not None:
        drawing.label_ends(
            axes, [Label(end, run.reference_loss, f"reference\n{run.reference_loss:.3f}", INK)]
        )


def _describe_losses(run: Run, axis: Axis) -> str:
    """What a reader who cannot see the curves should know of them."""
    over = "step" if axis == "step" else "cumulative training FLOPs"
    ends = [
        f"{training.name} {'ended' if training.finished else 'stands'} at "
        f"{_last_loss(training):.3f} after {training.last_step:,} steps"
        for training in run.trainings
        if np.isfinite(_last_loss(training))
    ]
    if run.reference is None and run.reference_loss is not None:
        ends.insert(0, f"the reference's loss is {run.reference_loss:.3f}")
    return f"Loss in nats per token over {over}: {'; '.join(ends) or 'no loss was recorded'}."


def _over_steps(run: Run, column: str, name: str, *, logarithmic: bool) -> str | None:
    curves = [t for t in run.trainings if np.any(t.train[column] > 0)]
    if not curves:
        return None
    with drawing.style():
        figure, axes = drawing.frame(480, 240, left=48, right=130, top=26, bottom=42)
        labels, values = [], []
        for training in curves:
            shown = smooth(training.train[column]) if logarithmic else training.train[column]
            step, shown = thin(
                training.train["step"], np.where(shown > 0, shown, np.nan) if logarithmic else shown
            )
            colour, _, dash = look(training.round)
            axes.plot(step, shown, color=colour, linestyle=dash, linewidth=1.4)
            finite = np.isfinite(shown)
            labels.append(Label(step[finite][-1], shown[finite][-1], training.name, colour))
            values.append(shown[finite])
        every = np.concatenate(values)
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        low, high = (every.min() * 0.9, every.max() * 1.1) if logarithmic else (0.0, every.max() * 1.08)
        axes.set(xlim=(0, 1.01 * max(1, *(t.last_step for t in curves))), ylim=(low, high))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _short(y)))
        drawing.number_x(axes, "step")
        drawing.head(axes, name)
        drawing.label_ends(axes, labels)
        label = f"{name.capitalize()} over steps: " + "; ".join(
            f"{training.name} from {_short(some[0])} to {_short(some[-1])}, at most {_short(some.max())}"
            for training, some in zip(curves, values, strict=True)
        )
        return to_svg(figure, column.replace("_", "-"), label)


def _short(value: float) -> str:
    """A learning rate or gradient norm as short as people write it: 3e-4, 0.25, 12."""
    if value and (abs(value) < 0.01 or abs(value) >= 10_000):
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return significant(value)
