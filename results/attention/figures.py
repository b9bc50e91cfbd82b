"""Draw the transfer test's curves, and print what README.md says of ranks and gradients.

python results/attention/figures.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from inheritune.report.figures import WIDE, Line, Picture, curves
from inheritune.runtime import files

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))

import tables  # noqa: E402

ENTRIES = {entry.label: entry for entry in tables.read_study(HERE).entries}
STARTS = {"last": "layers 13-24", "random": "random", "first": "layers 1-12"}


def picture() -> Picture:
    """Validation loss over the steps of the three transfer runs."""
    losses = ENTRIES["reference"].losses
    assert losses is not None
    lines = []
    for place, (start, label) in enumerate(STARTS.items(), start=1):
        curve = ENTRIES[f"transfer-{start}"].metrics.validation
        lines.append(Line(f"{label} {curve['loss'][-1]:.3f}", curve["step"], curve["loss"], place))
    found = curves(
        lines,
        "validation loss, nats per token, by first weights of the twelve blocks",
        "step",
        width=WIDE,
        limits=(4.4, 7.5),
        level=(losses.mean, f"reference {losses.mean:.3f}"),
    )
    assert found is not None
    return found


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
    files.write_text(HERE / "transfer.svg", picture().svg)
    tell()
