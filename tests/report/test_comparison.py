"""Comparisons: what is read of a run, which pairs are made, and the numbers, against figures by hand."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console

from inheritune.models.presets import from_config
from inheritune.report.comparison import (
    FILES,
    RunComparison,
    compare_runs,
    comparison_table,
    difference_picture,
    pair,
    parse_run,
    read_entries,
    terminal_table,
    to_markdown,
    write_comparison,
)
from inheritune.report.runs import Entry, MetricColumns
from inheritune.training.validation import WindowLosses
from report.synthetic_comparison import TOKENS_PER_STEP, validation, write_training
from report.synthetic_run import change_summary, round_summary, write_run
from tiny_models import tiny_model

REFERENCE = [3.0, 3.2, 2.8, 3.1]
BETTER = [2.8, 3.1, 2.7, 2.9]  # differences -0.2, -0.1, -0.1, -0.2: mean -0.15, sd 0.0577350, error 0.0288675
WORSE = [3.1, 3.4, 2.9, 3.3]  # the same, positive
SAME = [3.1, 3.1, 2.9, 3.0]  # differences 0.1, -0.1, 0.1, -0.1
OUTCOME = {"steps": 90, "tokens": 5, "flops": 2e13, "seconds": 1.0, "layers": 6, "parameters": 1234}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_training(tmp_path / "reference", REFERENCE)
    write_training(tmp_path / "better", BETTER, outcome=OUTCOME)
    write_training(tmp_path / "worse", WORSE)
    write_training(tmp_path / "same", SAME)
    return tmp_path


def compare(*runs: object, reference: str | None = None) -> RunComparison:
    return pair(read_entries([parse_run(str(run)) for run in runs]), reference, "title")


def differences(comparison: RunComparison) -> dict[str, float | None]:
    return {seed.name: seed.paired and round(seed.paired.difference, 9) for seed in comparison.seeds}


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_differences_intervals_and_verdicts_are_those_by_hand(runs: Path) -> None:
    comparison = compare(*(runs / name for name in ("reference", "better", "worse", "same")))
    assert differences(comparison) == {"reference": None, "better": -0.15, "worse": 0.15, "same": 0.0}
    assert [s.verdict for s in comparison.seeds] == ["reference", "better", "worse", "not significant"]
    paired = comparison.seeds[1].paired
    assert paired is not None
    assert paired.interval == pytest.approx(
        (-0.15 - 3.1824 * 0.0288675, -0.15 + 3.1824 * 0.0288675), abs=2e-4
    )
    assert comparison.summary == (
        "Compared with reference, whose validation loss is 3.025 on 4 windows of 64 tokens: "
        "1 better, 1 worse, 1 not significant."
    )
    assert comparison.notes == ()


def test_one_window_tells_nothing_apart(tmp_path: Path) -> None:
    write_training(tmp_path / "a", [3.0])
    write_training(tmp_path / "b", [2.0])
    assert compare(tmp_path / "a", tmp_path / "b").seeds[1].verdict == "not significant"


def test_one_window_has_no_error_either(tmp_path: Path) -> None:
    write_training(tmp_path / "a", [3.0])
    write_training(tmp_path / "b", [2.0])
    text = to_markdown(compare(tmp_path / "a", tmp_path / "b"))
    assert "[no spread]" in text and "0.000" not in text


def test_a_round_that_grew_before_its_rate_decayed_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for name, loss in {"reference": 3.0, "round-1-4-layers": 3.3, "round-2-6-layers": 2.9}.items():
        values = validation([loss, loss + 0.01, loss - 0.02])
        (run / name / "validation.json").write_text(json.dumps(values))
    hot = {"step": 50, "loss": 3.3, "target": 3.0, "what": "grow", "expected": 3.1, "low": 3.05, "high": 3.2}
    change_summary(run, rounds=[round_summary(1, decisions=[hot]), round_summary(2)])
    note = "Grown before the learning rate had decayed, so that losses are high: run/round-1-4-layers."
    assert note in compare(run).notes
    change_summary(run, rounds=[round_summary(1, decisions=[{**hot, "gain": 0.1}]), round_summary(2)])
    assert not compare(run).notes


def in_tokens(path: Path, sha256: str, tokens: int, text_bytes: int | None = 9000) -> None:
    """Let the losses of a run be of a text of so many tokens and bytes."""
    values = json.loads((path / "validation.json").read_text())
    values["data"] = {"sha256": sha256, "split": "validation", "path": "data/x", "tokens": tokens}
    values["data"]["text_bytes"] = text_bytes
    (path / "validation.json").write_text(json.dumps(values))


def test_one_text_in_other_tokens_is_compared_per_byte_and_says_so(runs: Path, tmp_path: Path) -> None:
    in_tokens(runs / "reference", "a", 2000)
    in_tokens(runs / "better", "a", 2000)
    in_tokens(runs / "worse", "b", 1800)  # 3.175 a token, but fewer of them
    in_tokens(runs / "same", "b", 1800, 8999)
    comparison = compare(*(runs / name for name in ("reference", "better", "worse", "same")))
    assert differences(comparison) == {"reference": None, "better": -0.15, "worse": None, "same": None}
    assert [s.verdict for s in comparison.seeds] == ["reference", "better", "not significant", "not paired"]
    bits = [mean / math.log(2) * tokens / 9000 for mean, tokens in ((3.175, 1800), (3.025, 2000))]
    assert comparison.notes[0].startswith(
        "worse read the validation text of reference in other tokens, so their windows are not paired: they are "
        f"compared per byte, {bits[0]:.4f} bits and {bits[1]:.4f}, difference {bits[0] - bits[1]:+.4f}, 95% "
    )
    assert "same has no difference to reference" in comparison.notes[1]
    shown = comparison_table(comparison)
    column = shown.headings.index("Bits/byte")
    assert shown.headings[column - 2 : column + 2] == ["Loss", "Error", "Bits/byte", "Difference"]
    assert shown.rows[2].cells[column] == f"{bits[0]:.4f}"
    write_comparison([s.entry for s in comparison.seeds], None, tmp_path / "out", "t")
    for name in ("comparison.html", "comparison.md"):
        assert "Bits/byte" in (tmp_path / "out" / name).read_text()
    assert float(read_csv(tmp_path / "out" / "comparison.csv")[2]["bits_per_byte"]) == pytest.approx(bits[0])
    console = Console(width=100, file=io.StringIO())
    console.print(terminal_table(comparison))
    assert f"{bits[0]:.4f}" in console.file.getvalue()


def test_without_bytes_there_is_no_column_for_them(runs: Path, tmp_path: Path) -> None:
    comparison = compare(runs / "reference", runs / "better")
    write_comparison([s.entry for s in comparison.seeds], None, tmp_path / "out", "t")
    for name in ("comparison.html", "comparison.md", "comparison.csv"):
        text = (tmp_path / "out" / name).read_text()
        assert "Bits/byte" not in text and "per byte" not in text and "bits_per_byte" not in text


def test_costs_are_read_from_the_outcome_or_the_last_metrics(runs: Path) -> None:
    plain, known = read_entries([(None, runs / "reference"), (None, runs / "better")])
    assert (plain.steps, plain.tokens, plain.flops) == (100, 100 * TOKENS_PER_STEP, 1e14)
    assert (plain.layers, plain.parameters) == (None, None)
    assert (known.steps, known.tokens, known.flops, known.layers, known.parameters) == (90, 5, 2e13, 6, 1234)
    assert compare(runs / "reference", runs / "better").seeds[1].relative_flops == pytest.approx(0.2)


def test_the_size_is_that_of_the_saved_model_where_none_is_recorded(runs: Path) -> None:
    model = tiny_model("gpt2")
    model.config.save_pretrained(runs / "worse" / "model")
    entry = read_entries([(None, runs / "worse")])[0]
    assert entry.layers == 4
    assert entry.parameters == sum(p.numel() for p in from_config(model.config, 0).parameters())


def test_a_run_of_the_algorithm_gives_its_reference_and_its_rounds(tmp_path: Path, runs: Path) -> None:
    run = write_run(tmp_path / "tiny")
    for number, layers, losses in ((1, 4, WORSE), (2, 6, BETTER)):
        path = run / f"round-{number}-{layers}-layers" / "validation.json"
        path.write_text(json.dumps(validation(losses)))
    (run / "reference" / "validation.json").write_text(json.dumps(validation(REFERENCE)))
    comparison = compare(runs / "same", run)
    assert comparison.reference == "tiny/reference"  # though another run was given first
    assert differences(comparison) == {
        "same": 0.0,
        "tiny/reference": None,
        "tiny/round-1-4-layers": 0.15,
        "tiny/round-2-6-layers": -0.15,
    }
    last = comparison.seeds[-1]
    assert last.entry.layers == 6
    assert last.entry.flops == pytest.approx(600 * 3.57e12)
    assert last.entry.total_flops == pytest.approx(600 * (2.35e12 + 3.57e12))
    assert last.relative_flops == pytest.approx((2.35 + 3.57) / 4.0)
    assert last.entry.before == pytest.approx(600 * 2.35e12)  # it begins where round 1 ended
    for name in (str(run), str(run / "round-1-4-layers"), "tiny/round-2-6-layers"):
        assert compare(runs / "same", run, reference=name).reference.startswith("tiny/")


def test_rounds_add_up_without_a_summary_and_a_reference_needs_no_metrics(tmp_path: Path) -> None:
    run = write_run(tmp_path / "tiny")
    (run / "summary.json").unlink()
    (run / "recipe.yaml").write_text("name: tiny\nreference: {pretrained: x}\ntraining: {seed: 5}\n")
    (run / "reference" / "metrics.jsonl").unlink()
    reference, first, second = read_entries([(None, run)])
    assert (reference.steps, reference.flops, reference.losses is None) == (None, None, False)
    assert len(reference.metrics.validation["loss"]) == 0
    assert (first.seed, first.layers, first.losses) == (5, 4, None)
    assert second.total_flops == pytest.approx(first.flops + second.flops)
    summary = {"reference": None, "rounds": [round_summary(2, total_training_flops=7e18)]}
    (run / "summary.json").write_text(json.dumps(summary))
    assert read_entries([(None, run)])[2].total_flops == 7e18


def test_a_run_whose_reference_is_neither_trained_nor_measured_has_no_entry_for_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "tiny")
    for path in (run / "reference").iterdir():
        path.unlink()
    assert [entry.kind for entry in read_entries([(None, run)])] == ["round", "round"]


def write_seeds(root: Path, name: str, losses: Sequence[Sequence[float]]) -> list[str]:
    return [
        f"{name}={write_training(root / f'seed-{seed}' / name, some, seed=7)}"
        for seed, some in enumerate(losses)
    ]


def test_seeds_are_paired_with_the_seed_of_the_reference(tmp_path: Path) -> None:
    shifted = [loss + 1 for loss in REFERENCE]
    reference = write_seeds(tmp_path, "big", [REFERENCE, shifted])
    small = write_seeds(tmp_path, "small", [WORSE, [loss + 1 for loss in BETTER], SAME])
    alone = write_training(tmp_path / "alone", WORSE, seed=9)
    comparison = compare(*small, alone, *reference, reference="big")
    assert differences(comparison) == {
        "small, seed 0": 0.15,
        "small, seed 1": -0.15,  # to the first reference it would be +0.85
        "small, seed 2": 0.0,
        "alone": 0.15,
        "big, seed 0": None,
        "big, seed 1": None,
    }
    row = comparison.rows[0]
    assert row.mean_difference == pytest.approx(0.0)
    assert row.spread == pytest.approx(0.15)
    assert comparison.rows[1].spread is None
    assert comparison.notes == (
        "small, seed 2 is compared with big, seed 0.",
        "alone is compared with big, seed 0.",
    )


def test_a_seed_that_no_record_names_is_unknown_in_the_figure_too() -> None:
    nothing = np.empty(0)
    columns = MetricColumns({}, {"step": nothing, "loss": nothing, "flops": nothing}, {}, {})

    def entry(label: str, number: int, losses: list[float]) -> Entry:
        place = Path(str(number))
        found = WindowLosses(np.array(losses), 32)
        return Entry(label, place, place, "model", None, 2, 10, 5, 100, 1.0, 1.0, columns, found)

    compared = pair([entry("ref", 0, REFERENCE), entry("b", 1, BETTER), entry("b", 2, WORSE)], None, "title")
    drawn = str(difference_picture(compared))
    assert "unknown seed" in drawn and "None" not in re.findall(r"seed (\w+)", drawn)


def test_the_order_given_is_kept_and_seeds_stand_together(runs: Path) -> None:
    comparison = compare(f"x={runs / 'worse'}", runs / "reference", f"x={runs / 'better'}", runs / "same")
    assert [row.label for row in comparison.rows] == ["x", "reference", "same"]
    assert comparison.reference == "x"


def test_unfinished_runs_are_listed_with_their_curve_and_without_figures(runs: Path) -> None:
    write_training(runs / "half", None)
    out = runs / "out"
    comparison = compare_runs([str(runs / "reference"), str(runs / "half")], None, out)
    half = comparison.seeds[1]
    assert (half.verdict, half.paired, half.relative_flops) == ("unfinished", None, None)
    assert len(half.entry.metrics.validation["loss"]) == 6
    assert comparison.notes == ("half is unfinished: its last record is step 50.",)
    row = read_csv(out / "comparison.csv")[1]
    assert {key for key, value in row.items() if value} == {"name", "seed", "verdict", "note"}
    assert ">half<" in (out / "loss-by-step.svg").read_text()
    assert not (out / "differences.svg").exists()  # nothing is paired


def test_with_an_unfinished_reference_nothing_is_paired(runs: Path) -> None:
    write_training(runs / "half", None)
    comparison = compare(runs / "half", runs / "better")
    assert comparison.seeds[1].verdict == "not paired"
    assert comparison.notes[1] == "better has no difference: its reference, half, is unfinished."
    assert "The reference, half, is unfinished" in comparison.summary


def test_a_damaged_line_of_metrics_is_left_out_and_told(runs: Path) -> None:
    path = runs / "same" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"kind": "validation", "step": 1')
    comparison = compare(runs / "reference", runs / "same")
    assert comparison.notes == ("same: Left out of same/metrics.jsonl: 1 line that could not be read.",)
    assert len(comparison.seeds[1].entry.metrics.validation["loss"]) == 11


@pytest.mark.parametrize(("losses", "window"), [(REFERENCE[:3], 64), (REFERENCE, 32)])
def test_other_windows_cannot_be_paired_which_one_sentence_says(
    runs: Path, losses: list[float], window: int
) -> None:
    write_training(runs / "other", losses, window=window)
    comparison = compare(runs / "reference", runs / "other", runs / "better")
    assert differences(comparison)["other"] is None
    assert differences(comparison)["better"] == -0.15
    assert comparison.seeds[1].verdict == "not paired"
    assert comparison.notes == (
        f"other has no difference to reference: cannot pair {len(losses)} windows of {window} tokens with 4 of 64: "
        "both models need the same validation windows.",
    )


def test_names_are_unique_with_as_few_parents_as_it_takes(tmp_path: Path) -> None:
    paths = [tmp_path / part for part in ("a/x/run", "b/x/run", "b/y/run", "b/y/other", "named")]
    for path in paths:
        write_training(path, SAME)
    labels = [None, None, None, None, "other"]
    entries = read_entries(list(zip(labels, paths, strict=True)))
    assert [entry.label for entry in entries] == ["a/x/run", "b/x/run", "y/run", "y/other", "other"]


def test_a_path_with_an_equals_sign_is_a_path(tmp_path: Path) -> None:
    path = write_training(tmp_path / "rate=3", SAME)
    assert parse_run(str(path)) == (None, path)
    assert parse_run(f"x={path}") == ("x", path)


def test_a_reference_that_was_not_given_is_added(runs: Path) -> None:
    comparison = compare_runs([str(runs / "better")], f"big={runs / 'reference'}", runs / "out")
    assert differences(comparison) == {"big": None, "better": -0.15}


def test_the_csv_has_every_number_in_full(runs: Path) -> None:
    comparison = compare_runs([str(runs / name) for name in ("reference", "better")], None, runs / "out")
    reference, better = read_csv(runs / "out" / "comparison.csv")
    paired = comparison.seeds[1].paired
    assert paired is not None
    assert reference["difference"] == reference["note"] == reference["layers"] == ""
    expected = {
        "name": "better",
        "seed": "0",
        "layers": "6",
        "parameters": "1234",
        "steps": "90",
        "tokens": "5",
        "training_flops": "20000000000000.0",
        "total_flops": "20000000000000.0",
        "loss": repr(float(np.mean(BETTER))),
        "difference": repr(paired.difference),
        "interval_low": repr(paired.interval[0]),
        "interval_high": repr(paired.interval[1]),
        "verdict": "better",
        "note": "",
    }
    assert {key: better[key] for key in expected} == expected
    assert float(better["relative_flops"]) == 0.2
    assert float(better["standard_error"]) == pytest.approx(np.std(BETTER, ddof=1) / 2)


def test_the_markdown_is_aligned_and_has_mean_and_seeds(runs: Path) -> None:
    compare_runs([str(runs / "reference"), f"x={runs / 'better'}", f"x={runs / 'same'}"], None, runs / "out")
    text = (runs / "out" / "comparison.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in table}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert [line[0] for line in cells[2:]] == ["reference", "x", "", ""]
    assert cells[3][-3:] == ["-0.075", "sd 0.106", ""]
    assert cells[4][-3:] == ["-0.150", "[-0.242, -0.058]", "better"]
    assert cells[2][2:4] == ["unknown", "unknown"]
    assert "4 windows of 64 tokens" in text


def test_the_terminal_table_fits_into_80_columns(runs: Path) -> None:
    long = write_training(runs / ("a-name-[bold]that-goes-on-" * 4), WORSE)
    comparison = compare(runs / "reference", long, f"x={runs / 'better'}", f"x={runs / 'same'}")
    for width in (80, 44):
        console = Console(width=width, file=io.StringIO(), highlight=False)
        console.print(terminal_table(comparison))
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        if width == 80:
            assert "[bold]" in text.replace("\n", "")
            assert "+0.150 [+0.058,+0.242]" in text
            assert "mean -0.075 sd 0.106" in text


@pytest.mark.parametrize("number", [3, 20])
def test_every_figure_names_every_run(tmp_path: Path, number: int) -> None:
    paths = [write_training(tmp_path / f"run-{i}", REFERENCE if i % 2 else WORSE) for i in range(number)]
    compare_runs([str(path) for path in paths], None, tmp_path / "out")
    for name in FILES[3:]:
        svg = (tmp_path / "out" / name).read_text()
        texts = " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg))
        assert all(f"run-{i}" in texts for i in range(1, number))


def test_a_panel_tells_the_final_loss_and_not_the_last_of_the_curve(tmp_path: Path) -> None:
    paths = [write_training(tmp_path / f"run-{i}", REFERENCE) for i in range(9)]
    losses = {"losses": [2.0, 2.5], "window_tokens": 64}
    for path in paths:
        (path / "validation.json").write_text(json.dumps(losses))
    compare_runs([str(path) for path in paths], None, tmp_path / "out")
    svg = (tmp_path / "out" / "loss-by-step.svg").read_text()
    assert re.findall(r"<text[^>]*>(run-8 .*?)</text>", svg) == ["run-8  2.250"]
    assert "run-8 ends at 2.25" in svg


def test_what_users_wrote_is_text_on_the_page(runs: Path) -> None:
    hostile = "<script>alert('1')</script> & |x| \x1b\ud800"
    entries = read_entries([(None, runs / "reference"), (hostile, runs / "better")])
    write_comparison(entries, None, runs / "out", "<b>title</b>")
    html = (runs / "out" / "comparison.html").read_text("utf-8")
    script = resources.files("inheritune.report").joinpath("templates/table.js").read_text("utf-8")
    assert html.replace(f"<script>{script}</script>", "").count("<script") == 0, "there is ours alone"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"img-src data:; script-src 'sha256-{digest}'\"" in html, "and no other would run"
    assert "<b>" not in html
    assert html.count("&lt;script&gt;alert") >= 2  # table and what the figures are said to show
    assert "\x1b" not in html
    markdown = (runs / "out" / "comparison.md").read_text("utf-8")
    assert r"\<script\>alert('1')\</script\> & \|x\|" in markdown
    name = read_csv(runs / "out" / "comparison.csv")[1]["name"]
    assert name == "<script>alert('1')</script> & |x| \ufffd\ufffd"


def test_the_page_loads_nothing_and_its_ids_are_unique(runs: Path) -> None:
    compare_runs([str(runs / name) for name in ("reference", "better", "worse")], None, runs / "out")
    html = (runs / "out" / "comparison.html").read_text("utf-8")
    assert "http" not in html.replace('http-equiv="Content-Security-Policy"', "")
    identifiers = re.findall(r'\bid="([^"]+)"', html)
    assert len(identifiers) == len(set(identifiers))
    assert {"differences", "table", "curves"} <= set(identifiers)


def test_the_same_runs_give_the_same_bytes_and_files_of_before_are_replaced(runs: Path) -> None:
    arguments = [str(runs / name) for name in ("reference", "better", "same")]
    written = []
    for out in (runs / "out", runs / "out", runs / "deep" / "other"):
        compare_runs(arguments, None, out)
        written.append({name: (out / name).read_bytes() for name in FILES})
        assert sorted(path.name for path in out.iterdir()) == sorted(FILES)  # nothing temporary is left
    assert written[0] == written[1] == written[2]


def test_a_figure_of_before_that_has_nothing_to_show_is_removed(runs: Path) -> None:
    compare_runs([str(runs / "reference"), str(runs / "better")], None, runs / "out")
    compare_runs([str(runs / "reference")], None, runs / "out")
    assert not (runs / "out" / "differences.svg").exists()


def test_mistakes_are_told_in_one_sentence(runs: Path, tmp_path: Path) -> None:
    good = str(runs / "reference")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "recipe.yaml").write_text("reference: {pretrained: x}\n")
    broken = write_training(tmp_path / "broken", SAME)
    (broken / "validation.json").write_text('{"losses": [1.0')
    yamlless = write_training(tmp_path / "yamlless", SAME)
    (yamlless / "recipe.yaml").write_text(yaml.safe_dump([1]))
    for runs_given, reference, sentence in (
        ([], None, "nothing to compare"),
        ([good, str(tmp_path / "nowhere")], None, "nowhere does not exist; give directories"),
        ([str(tmp_path / "file")], None, "file is not a directory"),
        ([str(tmp_path / "empty")], None, "empty is not the directory of a run: it has no recipe.yaml"),
        ([str(tmp_path / "begun")], None, "no training has begun in"),
        ([str(broken)], None, "validation.json is damaged"),
        ([str(yamlless)], None, "recipe.yaml is damaged"),
        ([good, good], None, "reference is given twice"),
        ([f"={good}"], None, "one of its sides is empty"),
        ([good], "other", "the reference other is none of the runs that are compared: reference"),
    ):
        with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
            compare_runs(runs_given, reference, tmp_path / "out")
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="it is a file; give a directory"):
        compare_runs([good], None, tmp_path / "file")
    assert not (tmp_path / "out").exists()
