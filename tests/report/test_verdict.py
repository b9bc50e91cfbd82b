"""What the sentence claims in each outcome, and the table in terminals of several widths."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from inheritune.report import terminal_rounds, verdict_sentence, verdict_words, write_report
from inheritune.report.runs import read_run
from inheritune.run_directory import Summary
from report.synthetic_run import change_summary, reference_summary, round_summary, run_summary, write_run


def with_rounds(*intervals: tuple[float, float], margin: float = 0.0, **changes: Any) -> dict[str, Any]:
    """A summary whose rounds have these intervals; each difference is the middle."""
    rounds = []
    for number, (low, high) in enumerate(intervals, start=1):
        middle = (low + high) / 2
        rounds.append(
            round_summary(
                number, difference=middle, loss=3.43 + middle, interval=[low, high], parity=middle <= margin
            )
        )
    return run_summary(rounds=rounds, margin=margin, **changes)


def sentence_of(summary: dict[str, Any]) -> str:
    return verdict_sentence(Summary.model_validate(summary))


def test_parity_beyond_chance() -> None:
    assert sentence_of(run_summary()) == (
        "Parity after round 2: 6 of 8 layers, 0.61 of the parameters, validation loss 3.412 against the "
        "reference's 3.430 (difference -0.018, 95% interval [-0.025, -0.011]), "
        "for 1.48 times the reference's training FLOPs."
    )


def test_parity_by_mean_only() -> None:
    sentence = sentence_of(with_rounds((0.03, 0.05), (-0.012, 0.006)))
    assert sentence.startswith("Parity by mean loss, but not beyond chance, after round 2: 6 of 8 layers")
    assert "(difference -0.003, 95% interval [-0.012, +0.006], which includes 0)" in sentence


def test_parity_within_a_margin() -> None:
    sentence = sentence_of(with_rounds((0.002, 0.008), margin=0.01))
    assert sentence.startswith("Parity within the margin of 0.01 after round 1: 4 of 8 layers")
    assert "(difference +0.005, 95% interval [+0.002, +0.008])" in sentence
    doubtful = sentence_of(with_rounds((0.002, 0.016), margin=0.01))
    assert doubtful.startswith(
        "Parity within the margin of 0.01 by mean loss, but not beyond chance, after round 1"
    )


def test_no_parity_names_the_closest_round_and_the_cost_of_all() -> None:
    sentence = sentence_of(with_rounds((0.01, 0.02), (0.03, 0.05), verdict="no parity"))
    assert sentence.startswith("No parity after 2 rounds: the closest is round 1 with 4 of 8 layers")
    assert sentence.endswith(", having used 1.48 times the reference's training FLOPs.")


def test_no_parity_says_of_which_round_the_final_model_and_its_tasks_are(tmp_path: Path) -> None:
    note = "The final model, which samples and tasks are of, is that of the last round (6 layers)."
    summary = with_rounds((0.01, 0.02), (0.03, 0.05), verdict="no parity", tasks="holds")
    assert verdict_words(Summary.model_validate(summary))[1].endswith(note)
    write_run(tmp_path / "run")
    change_summary(tmp_path / "run", **{key: summary[key] for key in ("rounds", "verdict", "tasks")})
    page = write_report(tmp_path / "run").read_text()
    assert note in page
    assert "Target, 6 layers" in page, "samples are of the last round"
    same = with_rounds((0.03, 0.05), (0.01, 0.02), verdict="no parity", tasks="holds")
    assert "last round" not in verdict_words(Summary.model_validate(same))[1]


@pytest.mark.parametrize(("difference", "verdict"), [(-0.001, "parity"), (0.001, "no parity")])
def test_one_window_has_no_spread_so_nothing_is_beyond_chance(difference: float, verdict: str) -> None:
    sentence = sentence_of(with_rounds((difference, difference), verdict=verdict))
    assert "not beyond chance" in sentence
    assert "95% interval [no spread]" in sentence


def test_no_parity_that_may_be_chance() -> None:
    sentence = sentence_of(with_rounds((-0.004, 0.008), verdict="no parity"))
    assert sentence.startswith("No parity after 1 round, though not beyond chance: 4 of 8 layers")
    assert "[-0.004, +0.008], which includes 0" in sentence


def test_no_verdict_yet() -> None:
    assert sentence_of({}) == "No verdict yet: no round is finished."
    assert sentence_of(run_summary(verdict=None, rounds=[])) == (
        "No verdict yet: the reference (8 layers) has a validation loss of 3.430, no round is finished."
    )
    sentence = sentence_of(run_summary(verdict=None, rounds=[round_summary(1)]))
    assert sentence.startswith("No verdict yet, after 1 round: 4 of 8 layers, 0.52 of the parameters")
    assert sentence.endswith("having used 0.59 times the reference's training FLOPs.")


def test_the_cost_is_not_known() -> None:
    summary = run_summary(
        reference=reference_summary(training_flops=None, steps=None),
        rounds=[round_summary(number, cost_to_parity=None) for number in (1, 2)],
    )
    assert sentence_of(summary).endswith(
        ", for 3.55 PFLOP of training "
        "(the reference's training FLOPs are not known, so neither is the cost to parity)."
    )


def test_the_cost_is_computed_where_only_flops_are_given() -> None:
    summary = run_summary(rounds=[round_summary(number, cost_to_parity=None) for number in (1, 2)])
    assert "for 1.48 times the reference's" in sentence_of(summary)


def test_a_narrow_interval_gets_more_digits() -> None:
    sentence = sentence_of(with_rounds((-0.0006, -0.0002)))
    assert "loss 3.4296 against the reference's 3.4300" in sentence
    assert "(difference -0.0004, 95% interval [-0.0006, -0.0002])" in sentence


@pytest.mark.parametrize(
    ("summary", "message"),
    [
        ({"rounds": [round_summary(1)]}, "no loss of the reference"),
        ({"verdict": "parity"}, "a verdict but no rounds"),
        (run_summary(rounds=[round_summary(1, interval=[0.0])]), "rounds.0.interval"),
        (run_summary(rounds=[round_summary(1, loss=float("nan"))]), "rounds.0.loss"),
        (["not", "an", "object"], r"summary\.json is not as `inheritune run` writes it"),
    ],
)
def test_a_summary_that_is_none(tmp_path: Path, summary: Any, message: str) -> None:
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ValueError, match=message) as caught:
        read_run(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_difference_in_steps_of_training() -> None:
    worth = {"steps": 1234, "tokens": 5_054_464}
    behind = run_summary(verdict="no parity", rounds=[round_summary(1, worth=worth)])
    assert "+0.089]; a gap worth about 1,234 steps (5.05M tokens) of its training)" in sentence_of(behind)
    ahead = run_summary(rounds=[round_summary(2, worth=worth)])
    assert "-0.011]; a lead worth about 1,234 steps (5.05M tokens) of its training)" in sentence_of(ahead)


def test_the_four_questions(tmp_path: Path) -> None:
    def difference(middle: float) -> dict[str, Any]:
        ends = [middle - 0.007, middle + 0.007]
        return {"loss": 3.4 + middle, "difference": middle, "interval": ends, "parity": middle <= 0}

    also = {"wikitext": difference(-0.02), "code": difference(0.3)}
    control = {"to_reference": difference(-0.4), "to_control": difference(0.382), "steps": 600}
    control |= {"training_flops": 2.4e15, "seconds": 99.0}
    last = round_summary(2, also=also)
    changes = {"control": control, "control_asked": True, "tasks": "holds", "verdict": "no parity"}
    summary = run_summary(rounds=[round_summary(1, also=also), last], **changes)
    assert verdict_words(Summary.model_validate(summary))[1] == (
        "Paper's rule on its own data: holds. Fair control: does not hold (+0.382 [+0.375, +0.389] to the control, "
        "which is -0.400 [-0.407, -0.393] to the untouched reference). Tasks: holds. Other text: does not hold "
        "(wikitext -0.020 [-0.027, -0.013], code +0.300 [+0.293, +0.307])."
    )
    assert sentence_of(summary).startswith(
        "Parity on its own data after round 2, but not on code: 6 of 8 layers"
    )
    assert "having used 1.48 times" in sentence_of(summary)
    row = next(line for line in lines_of(summary, 80) if line.startswith("ctrl."))
    assert "3.000" in row and "-0.400 [-0.407,-0.393]" in row
    write_run(tmp_path / "run")
    change_summary(tmp_path / "run", **{key: summary[key] for key in ("rounds", *changes)})
    page = write_report(tmp_path / "run").read_text()
    for text in ("Other text, on all windows of each", "wikitext", "ctrl.", "Fair control: does not hold"):
        assert text in page


def test_without_a_verdict_no_question_is_answered() -> None:
    assert len(verdict_words(Summary.model_validate(run_summary(verdict=None)))) == 1


def lines_of(summary: dict[str, Any], width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    console.print(terminal_rounds(Summary.model_validate(summary)))
    return console.file.getvalue().rstrip("\n").split("\n")


@pytest.mark.parametrize("width", [44, 60, 80, 120])
@pytest.mark.parametrize("flops_known", [True, False])
def test_the_table_is_whole_in_a_terminal(width: int, flops_known: bool) -> None:
    changes: dict[str, Any] = {} if flops_known else {"reference": reference_summary(training_flops=None)}
    costs = {} if flops_known else {"cost_to_parity": None}
    summary = run_summary(rounds=[round_summary(1, **costs), round_summary(2, **costs)], **changes)
    lines = lines_of(summary, width)
    text = "\n".join(lines)
    assert all(len(line) <= width for line in lines)
    assert "…" not in text
    for value in ("ref.", "3.430", "1.65M", "3.512", "+0.082", "-0.018"):
        assert value in text
    assert width < 60 or ("[+0.075,+0.089]" in text and "[-0.025,-0.011]" in text)
    assert ("1.48x" in text) is flops_known
    assert ("3.55" in text) is not flops_known


def test_one_line_a_round_in_80_columns() -> None:
    assert len(lines_of(run_summary(), 80)) == 4


def test_bits_per_byte_are_shown_where_the_bytes_are_known() -> None:
    known = run_summary(reference=reference_summary(bytes_per_token=4.2))
    lines = lines_of(known, 80)
    assert len(lines) == 4
    assert "Bits/byte" in lines[0]
    assert f"{3.430 / math.log(2) / 4.2:.4f}" in lines[1]
    assert f"{3.412 / math.log(2) / 4.2:.4f}" in lines[3]
    assert "Bits/byte" not in lines_of(run_summary(), 80)[0]


def test_the_table_of_a_run_without_rounds() -> None:
    assert "3.430" in "\n".join(lines_of(run_summary(verdict=None, rounds=[]), 60))
    assert lines_of({}, 60)[0].startswith("Round")
