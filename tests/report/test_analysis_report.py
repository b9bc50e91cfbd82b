"""The report's section on attention."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from handmade_attention import handmade_model
from inheritune.analysis.analyze import analyze
from inheritune.analysis.result import save_analyses
from inheritune.report import write_report
from inheritune.report.analysis_report import analysis_page, labelled, over_depth, run_analyses
from report.synthetic_run import change_summary, write_run
from tiny_data import write_shards


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose reference has two lazy layers of four, and whose final model has none."""
    run, data = write_run(tmp_path / "run"), write_shards(tmp_path / "data")
    models = {"reference": handmade_model([(), (), range(4), range(4)]), "final": handmade_model([(), ()])}
    for name, model in models.items():
        (run / name).mkdir(exist_ok=True)
        save_analyses(run / name / "analysis.json", [analyze(model, data, sequences=3, window=32)])
    return run


def page_of(run: Path) -> str:
    return write_report(run).read_text("utf-8")


def test_sentences_and_figures_of_both_models(run: Path) -> None:
    page = page_of(run)
    assert 'href="#attention"' in page
    assert "Layers 3-4 are lazy; a first cut at 2 is supported" in page
    assert "<strong>final, 2 layers.</strong> No layer is lazy.</p>" in page
    assert page.count("3 validation windows of 32 tokens") == 2
    rank = over_depth(run_analyses(run), "rank")
    assert rank is not None
    assert "reference, 4 layers ends at 1; final, 2 layers ends at 4." in rank.label
    assert page.count(f'alt="{rank.label}"') == 1
    assert "Left out of" not in page
    assert "it counts where the two disagree" in page
    change_summary(run, verdict=None)
    assert "it counts where the two disagree" not in page_of(run), "there is no verdict above yet"


def test_what_users_named_is_text_on_the_page_of_an_analysis(run: Path) -> None:
    hostile = "<script>alert('1')"
    found = [a.model_copy(update={"model": hostile}) for a in run_analyses(run).values()]
    page = analysis_page(None, labelled(found)).html()
    assert "<script" not in page and page.count("&lt;script&gt;alert(&#39;1&#39;)") > 4


def test_an_analysis_in_the_run_itself(run: Path) -> None:
    for name in ("reference", "final"):
        (run / name / "analysis.json").rename(run / "analysis.json")
    assert list(run_analyses(run)) == ["gpt2, 2 layers"]
    assert 'id="attention"' in page_of(run)


def test_a_model_of_one_layer_has_its_figure(tmp_path: Path) -> None:
    data = write_shards(tmp_path / "data")
    save_analyses(tmp_path / "analysis.json", [analyze(handmade_model([()]), data, sequences=1, window=32)])
    assert over_depth(run_analyses(tmp_path), "mass") is not None


def test_without_analyses_there_is_no_section(tmp_path: Path) -> None:
    assert "attention" not in page_of(write_run(tmp_path / "run")).lower()


def test_a_damaged_analysis_is_named(run: Path) -> None:
    (run / "final" / "analysis.json").write_text("{}")
    with pytest.raises(ValueError, match=r"final/analysis\.json is not an attention analysis"):
        write_report(run)


def test_gradient_norms_of_every_training(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for folder, layers in (("reference", 8), ("round-1-4-layers", 4), ("round-2-6-layers", 6)):
        with (run / folder / "metrics.jsonl").open("a") as file:
            for step in (100, 200):
                norms = {
                    f"{what}_{i + 1}": 0.1**i / step if i < 7 else 0.0
                    for what in ("query", "key")
                    for i in range(layers)
                }
                file.write(json.dumps({"kind": "gradients", "step": step, **norms}) + "\n")
    page = page_of(run)
    assert "Left out of" not in page
    assert "Gradient norm of query weights, mean over steps, by layer: reference, 8 layers ends at" in page
    assert "Round 2, 6 layers: gradient norm, query and key weights, by step: layer 1 ends at 0.00707" in page
    assert "Round 1, 4 layers: gradient norm, query and key" not in page, (
        "over steps: reference and last round"
    )
    assert page == page_of(run)


def test_a_report_is_written_without_torch(run: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from inheritune.report import write_report\n"
        f"write_report(Path({str(run)!r})); print({{'torch', 'transformers'}} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
