"""Reading runs that were killed, resumed or damaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from inheritune.report.runs import Entry, Run, read_entries, read_run
from report.synthetic_run import change_summary, metrics_rows, round_summary, write_metrics, write_run


def rounds(run: Run) -> tuple[Entry, ...]:
    return tuple(training for training in run.trainings if training.round)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def test_rounds_follow_one_another_on_the_flops_axis(run: Path) -> None:
    read = read_run(run)
    assert [training.name for training in read.trainings] == [
        "reference, 8 layers",
        "round 1, 4 layers",
        "round 2, 6 layers",
    ]
    assert [training.before for training in read.trainings] == [0.0, 0.0, pytest.approx(600 * 2.35e12)]
    assert [training.flops for training in rounds(read)] == pytest.approx([600 * 2.35e12, 600 * 3.57e12])
    assert all(read.finished(training) for training in read.trainings)


def test_without_a_summary_the_metrics_say_where_a_round_begins(run: Path) -> None:
    (run / "summary.json").unlink()
    (run / "state.json").unlink()
    read = read_run(run)
    assert rounds(read)[1].before == pytest.approx(600 * 2.35e12)
    assert not any(read.finished(training) for training in read.trainings)
    assert read.reference_loss == 3.430  # from reference/validation.json
    assert read.name == "run"


def test_a_finished_round_whose_directory_is_gone_still_counts(run: Path) -> None:
    for file in (run / "round-1-4-layers").iterdir():
        file.unlink()
    (run / "round-1-4-layers").rmdir()
    read = read_run(run)
    assert [training.round for training in rounds(read)] == [2]
    assert rounds(read)[0].before == pytest.approx(600 * 2.35e12)
    change_summary(run, verdict=None, rounds=[round_summary(1)])
    assert rounds(read_run(run))[0].before == pytest.approx(600 * 2.35e12)


def test_round_ten_comes_after_round_nine(run: Path) -> None:
    for number in (10, 9):
        write_metrics(run / f"round-{number}-{2 * number + 2}-layers", metrics_rows(1, 5.0, 3.4, steps=10))
    assert [training.round for training in rounds(read_run(run))] == [1, 2, 9, 10]


def test_leftovers_of_a_killed_writer_are_no_rounds(run: Path) -> None:
    write_metrics(run / "round-3-8-layers.1a2b3c4d.tmp", metrics_rows(1, 5.0, 3.4))
    (run / "round-3-8-layers").mkdir()
    assert [training.round for training in rounds(read_run(run))] == [1, 2]


def test_steps_that_were_repeated_after_a_resume_count_once(run: Path) -> None:
    file = run / "round-1-4-layers" / "metrics.jsonl"
    before = rounds(read_run(run))[0].metrics.train
    repeated = [row | {"loss": 1.25} for row in metrics_rows(1, 5.1, 3.5) if 100 <= row["step"] <= 200]
    with file.open("a") as opened:
        opened.writelines(json.dumps(row) + "\n" for row in repeated)
    after = rounds(read_run(run))[0].metrics.train
    np.testing.assert_array_equal(after["step"], before["step"])
    again = (after["step"] >= 100) & (after["step"] <= 200)
    assert np.all(after["loss"][again] == 1.25)
    np.testing.assert_array_equal(after["loss"][~again], before["loss"][~again])


def test_broken_lines_are_left_out_and_counted(run: Path) -> None:
    file = run / "reference" / "metrics.jsonl"
    text = file.read_text()
    rows = text.count("\n")
    bad = [
        '{"kind": "train", "st{"kind": "train"}',
        "7",
        '{"kind": "other", "step": 1}',
        '{"kind": "train", "step": NaN}',
    ]
    file.write_text(
        text + "\n".join(bad) + "\n" + '{"kind": "train", "step": Infinity}\n' + "\n" + '{"kind": "tr'
    )
    read = read_run(run)
    metrics = read.trainings[0].metrics
    assert len(metrics.train["step"]) + len(metrics.validation["step"]) == rows
    assert read.notes == ("Left out of reference/metrics.jsonl: 6 lines that could not be read.",)


def test_values_that_are_missing_or_not_numbers_are_nan(run: Path) -> None:
    rows = [
        {"kind": "train", "step": 1, "loss": None, "gradient_norm": "inf"},
        {"kind": "train", "step": 2, "loss": 3.5, "memory_bytes": 10**400},
    ]
    write_metrics(run / "reference", rows)
    training = read_run(run).trainings[0]
    np.testing.assert_array_equal(training.metrics.train["loss"], [np.nan, 3.5])
    assert np.isnan(training.metrics.train["gradient_norm"]).all()
    assert np.isnan(training.metrics.train["memory_bytes"]).all()
    assert np.isnan(training.metrics.train["flops"]).all()
    assert training.flops == 600 * 4.0e12  # the summary knows
    (run / "summary.json").unlink()
    assert read_run(run).trainings[0].flops is None


def test_what_is_not_a_run_directory(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absent does not exist"):
        read_run(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"is not a run directory: it has no recipe\.yaml"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match=r"is not a run directory: it has no recipe\.yaml"):
        read_run(run / "recipe.yaml")


@pytest.mark.parametrize("name", ["summary.json", "state.json", "samples.json", "reference/validation.json"])
@pytest.mark.parametrize("content", ['{"half', "17", '[{"prompt": 1}]', "\udcff"])
def test_a_damaged_file_is_named_in_one_sentence(run: Path, name: str, content: str) -> None:
    (run / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=name.rsplit("/", maxsplit=1)[-1]) as caught:
        read_run(run)
    assert "\n" not in str(caught.value)


def test_a_new_key_in_a_summary_is_no_error(run: Path) -> None:
    change_summary(run, rounds=[round_summary(1, note="from a later version")], novelty=True)
    assert len(read_run(run).summary.rounds) == 1


def test_a_number_that_is_none_is_unknown_in_an_entry_too(run: Path) -> None:
    (run / "round-2-6-layers" / "training.json").write_text(
        f'{{"tokens": {10**400}, "flops": 1e999, "steps": true}}'
    )
    last = read_entries([(None, run)])[-1]
    assert (last.tokens, last.flops, last.steps) == (None, None, None)
