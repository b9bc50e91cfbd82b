"""Draw the transfer test's curves, and print the figures of README.md: python results/attention/figures.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from inheritune import atomic
from inheritune.report import drawing
from inheritune.report.svg import to_svg
from inheritune.training import metrics
from inheritune.training.validation import WindowLosses, compare

HERE = Path(__file__).parent
STARTS = {"last": "layers 13-24", "random": "random", "first": "layers 1-12"}


def draw() -> None:
    """Write transfer.svg."""
    with drawing.style():
        figure, axes = drawing.frame(760, 380, left=44, right=130, top=30, bottom=44)
        reference = WindowLosses.load(HERE / "runs/attention/reference/validation.json").mean
        axes.axhline(reference, color=drawing.MUTED, linestyle=":")
        labels = [drawing.Label(400, reference, f"reference {reference:.3f}", drawing.MUTED)]
        for place, (start, label) in enumerate(STARTS.items(), start=1):
            rows = metrics.read(HERE / f"runs/transfer-{start}/metrics.jsonl")
            points = [(row["step"], row["loss"]) for row in rows if row["kind"] == "validation"]
            look = drawing.look(place)
            axes.plot(
                *zip(*points, strict=True), color=look.color, marker=look.marker, linestyle=look.linestyle
            )
            labels.append(
                drawing.Label(points[-1][0], points[-1][1], f"{label} {points[-1][1]:.3f}", look.color)
            )
        axes.set_ylim(4.4, 7.5)
        drawing.number_x(axes, "step")
        drawing.head(axes, "validation loss, nats per token, by first weights of the twelve blocks")
        drawing.label_ends(axes, labels)
        text = "Validation loss over 400 steps of three twelve-layer models: " + ", ".join(
            x.text for x in labels
        )
        atomic.write_text(HERE / "transfer.svg", to_svg(figure, "transfer", text, standalone=True))


def tell() -> None:
    """Print what README.md says in numbers."""
    losses = {s: WindowLosses.load(HERE / f"runs/transfer-{s}/validation.json") for s in STARTS}
    for one, other in (("first", "random"), ("last", "random"), ("first", "last")):
        c = compare(losses[one], losses[other])
        print(f"{one} - {other}: {c.difference:+.4f} [{c.interval[0]:+.4f}, {c.interval[1]:+.4f}]")
    for analysis in json.loads((HERE / "analysis.json").read_text())["analyses"]:
        ranks = np.array(analysis["ranks"], dtype=float)  # [layer, head, sequence]
        print(
            analysis["parameters"],
            "least mean rank of a head, by layer:",
            ranks.mean(-1).min(-1).round(1).tolist(),
        )
    T = analysis["window"]
    row = 1 / np.arange(1, T + 1)
    uniform = np.tril(np.repeat(row[:, None], T, 1))
    energy = np.linalg.svd(uniform, compute_uv=False) ** 2
    columns = np.sort((uniform**2).sum(0))[::-1]
    k, m = (int(np.searchsorted(np.cumsum(x) / x.sum(), 0.9)) + 1 for x in (energy, columns))
    print(f"uniform causal attention of {T} tokens: rank {k}, columns {m}")
    for name in ("reference", "round-1-12-layers"):
        rows = metrics.read(HERE / f"runs/attention/{name}/metrics.jsonl")
        last = [row for row in rows if row["kind"] == "gradients"][-1]
        for what in ("query", "key"):
            norms = [value for key, value in last.items() if key.startswith(what)]
            print(name, "step", last["step"], what, [float(f"{x:.2g}") for x in norms])


if __name__ == "__main__":
    draw()
    tell()
