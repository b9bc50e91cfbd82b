"""The notebook runs from top to bottom, with nothing to download, and shows what it should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import notebook_runner

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "shrink_a_model.ipynb"


def test_the_notebook_is_committed_without_outputs() -> None:
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["name"]) == (4, "python3")
    for cell in notebook["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None


def test_it_shrinks_a_model(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, notebook_runner.__file__, NOTEBOOK],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    shown = [json.loads(line.removeprefix("SHOWN ")) for line in done.stdout.splitlines() if "SHOWN" in line]
    assert [next(iter(one)) for one in shown] == [
        *("plain", "html", "plain", "plain", "html", "svg", "html", "plain")
    ]
    worth, table, evaluation = (one["html"] for one in shown if "html" in one)
    assert (
        "The cheapest block to drop is" in worth and worth.count("<table") == 2 and "data:image/svg" in worth
    )
    assert "<td" in table and "1.00x" not in table, "what the reference cost is not known"
    assert "small: validation loss" in evaluation
    assert shown[3]["plain"] == "'parity'"
    assert "round 1: " in done.stdout
    mine = tmp_path / "runs/notebook/mine"
    assert AutoModelForCausalLM.from_pretrained(mine).config.num_hidden_layers == 3
    assert AutoTokenizer.from_pretrained(mine).vocab_size == 512
