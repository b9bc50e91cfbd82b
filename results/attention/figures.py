"""Draw the transfer test's curves, and print what README.md says of ranks and gradients.

python results/attention/figures.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from inheritune import atomic
from inheritune.report import drawing
from inheritune.report.svg import to_svg

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))

import tables  # noqa: E402

ENTRIES = {entry.label: entry for entry in tables.read_study(HERE).entries}
STARTS = {"last": "layers 13-24", "random": "random", "first": "layers 1-12"}


def transfer_svg() -> str:
    """Validation loss over the steps of the three transfer runs."""
    with drawing.style():
        figure, axes = drawing.frame(760, 380, left=44, right=130, top=30, bottom=44)
        losses = ENTRIES["reference"].losses
        assert losses is not None
        reference = losses.mean
        axes.axhline(reference, color=drawing.MUTED, linestyle=":")
        labels = [drawing.Label(400, reference, f"reference {reference:.3f}", drawing.MUTED)]
        for place, (start, label) in enumerate(STARTS.items(), start=1):
            curve = ENTRIES[f"transfer-{start}"].curve
            step, loss = curve.steps, curve.losses
            look = drawing.look(place)
            axes.plot(step, loss, color=look.color, marker=look.marker, linestyle=look.linestyle)
            labels.append(drawing.Label(step[-1], loss[-1], f"{label} {loss[-1]:.3f}", look.color))
        axes.set_ylim(4.4, 7.5)
        drawing.number_x(axes, "step")
        drawing.head(axes, "validation loss, nats per token, by first weights of the twelve blocks")
        drawing.label_ends(axes, labels)
        text = "Validation loss over 400 steps of three twelve-layer models: " + ", ".join(
            x.text for x in labels
        )
        return to_svg(figure, "transfer", text, standalone=True)


def tell() -> None:
    """Print ranks by layer, those of uniform attention, and the gradients of the last step."""
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
    for name in ("reference", "inheritune-12"):
        gradients = tables.read_curves(HERE, ENTRIES[name], "gradients")
        for what in ("query", "key"):
            norms = [values[-1] for column, values in gradients.items() if column.startswith(what)]
            print(name, "step", gradients["step"][-1], what, [float(f"{x:.2g}") for x in norms])


if __name__ == "__main__":
    atomic.write_text(HERE / "transfer.svg", transfer_svg())
    tell()
