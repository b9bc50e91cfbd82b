"""What is shown of an evaluation: figures in their cells, words that say no more than the intervals, safe pages."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path

import pytest
from rich.console import Console

from inheritune.evaluation.result import (
    Cell,
    Evaluation,
    GroupResult,
    Sample,
    save_evaluation,
)
from inheritune.report import write_report
from inheritune.report.evaluation_report import (
    FILES,
    PAPER_HEADING,
    difference_picture,
    evaluation_page,
    paper_tables,
    terminal_tables,
    to_csv,
    to_markdown,
    verdict_words,
    write_evaluation,
)
from inheritune.report.table import Table
from report.synthetic_evaluation import evaluation, metric, model, speed, task
from report.synthetic_run import write_run

HOSTILE = "<script>alert('1')</script> & |x| `[b](u)` \x1b[31m"


FOOT = (
    "Better and worse mean that the 95% interval leaves out 0, and p is below 0.05 where there is one; no difference "
    "seen does not mean that there is none. Of twenty tasks in which two models are equally good, about one shows a "
    "difference by chance."
)


def test_what_better_and_worse_mean_is_a_whole_sentence() -> None:
    text = to_markdown(evaluation())
    assert f"- {FOOT}\n" in text
    assert text.count("by chance.") == text.count(FOOT)
    assert FOOT in " ".join(evaluation_page(evaluation()).html().split())


def test_of_a_few_items_every_figure_says_so() -> None:
    result, words = evaluation(settings={"limit": 7}), "first 7 items of each task"
    assert all(words in sentence for sentence in verdict_words(result))
    page = evaluation_page(result)
    tables = [block for section in page.sections for block in section.blocks if isinstance(block, Table)]
    for table in tables:
        assert (words in table.title) == (table.kind in ("scores", "paired", "tasks")), table.title
    picture = difference_picture(result)
    assert picture is not None
    assert f">{words}<" in picture.svg and words in picture.label
    for text in (to_markdown(result), printed(result, 100)):
        assert text.count(words) >= 5
    assert "items of each task" not in to_markdown(evaluation()) + evaluation_page(evaluation()).html()


def only(**parts: object) -> Evaluation:
    """An evaluation of nothing but these."""
    nothing = {"tasks": [], "groups": [], "skipped": {}, "validation": None, "speed": None, "samples": []}
    return evaluation(**(nothing | parts))


def alone() -> Evaluation:
    """The reference without a second model."""
    full = evaluation()

    def first(value: object) -> object:
        if isinstance(value, dict):
            return {
                key: one[:1] if key in ("scores", "paired", "continuations") else first(one)
                for key, one in value.items()
            }
        return [first(one) for one in value] if isinstance(value, list) else value

    values = first(full.model_dump())
    assert isinstance(values, dict)
    values["models"] = values["models"][:1]
    values["speed"]["models"] = values["speed"]["models"][:1]
    return Evaluation.model_validate(values)


def markdown_tables(text: str) -> list[list[list[str]]]:
    """The cells of every table: its heading, then its rows."""
    tables = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()]
        assert all(re.fullmatch("-+:?", cell) for cell in rows[1])
        tables.append([rows[0], *rows[2:]])
    return tables


def printed(result: Evaluation, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    for table in terminal_tables(result):
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def read_csv(text: str) -> dict[tuple[str, ...], dict[str, str]]:
    rows = list(csv.DictReader(io.StringIO(text)))
    keyed = {(row["kind"], row["task"], row["metric"], row["model"]): row for row in rows}
    assert len(keyed) == len(rows)
    return keyed


def test_every_figure_lands_in_its_cell() -> None:
    figures, pairs, paper, perplexity, *_ = markdown_tables(to_markdown(evaluation()))
    assert figures == [
        [
            "Model",
            "arc_easy acc",
            "piqa acc",
            "sciq acc",
            "hellaswag acc_norm",
            "lambada_openai acc",
            "average",
        ],
        ["reference", *(f"{x} ± 1.01" for x in ("51.05", "61.81", "74.80", "30.79", "20.28", "47.75"))],
        ["small", *(f"{x} ± 1.01" for x in ("51.26", "61.81", "71.80", "30.55", "23.00", "47.38"))],
        ["chance", "25.00", "50.00", "25.00", "25.00", "–", "31.00"],
    ]
    assert pairs[0] == ["Model", "Task", "Difference", "95% interval", "p McNemar", "Outcome"]
    assert pairs[3] == ["small", "sciq", "-3.00", "[-5.00, -1.00]", "0.040", "worse"]
    assert pairs[-1] == ["small", "average", "-0.36", "[-1.16, +0.44]", "–", "no difference seen"]
    assert paper[3][:4] == ["GPT-2 medium", "16", "Inheritune", "51.26"]
    assert perplexity[0][1:] == [
        "wikitext word_perplexity ↓",
        "lambada_openai perplexity ↓",
        "lambada_openai acc",
    ]
    assert perplexity[2] == ["small", "32.04 ± 0.01", "34.20 ± 0.01", "23.00 ± 1.01"]


def test_a_perplexity_is_compared_by_its_ratio_and_a_task_that_is_there_twice_tells_its_metric() -> None:
    pairs = markdown_tables(to_markdown(evaluation()))[4]
    assert [row[1:4] for row in pairs[1:]] == [
        ["wikitext", "+0.34%", "[-0.66%, +1.34%]"],
        ["lambada_openai, perplexity", "-6.30%", "[-7.30%, -5.30%]"],
        ["lambada_openai, acc", "+2.72", "[+0.72, +4.72]"],
    ]
    assert [row[-1] for row in pairs[1:]] == ["no difference seen", "better", "better"]


def test_groups_that_the_paper_prints_no_figures_of() -> None:
    tasks = [
        task("winogrande", metric("acc", (0.5, 0.6))),
        task("gsm8k", metric("exact_match,strict-match", (0.02, 0.01)), shots=5),
        task("lambada_generate", metric("exact_match", (0.2028, 0.23))),
    ]
    groups = [
        GroupResult(
            name="zero-shot-7",
            columns=[Cell(task="winogrande", metric="acc")],
            average=metric("acc", (0.5, 0.6), p=None),
        ),
        GroupResult(
            name="generation",
            columns=[Cell(task=one.task, metric=one.metrics[0].metric) for one in tasks[1:]],
        ),
    ]
    text = to_markdown(only(tasks=tasks, groups=groups))
    seven, _, written, *_ = markdown_tables(text)
    assert seven[0] == ["Model", "winogrande acc", "average"]
    assert seven[2][1].split()[0] == seven[2][2].split()[0] == "60.00"
    assert written[0] == ["Model", "gsm8k exact_match,strict-match, 5-shot", "lambada_generate exact_match"]
    assert [cell.split()[0] for cell in written[1][1:]] == ["2.00", "20.28"], "in percent"
    assert PAPER_HEADING not in text
    assert "average 60.00 against 50.00" in text


def test_tasks_of_no_group_validation_and_speed_have_their_tables() -> None:
    tables = {tuple(table[0]): table for table in markdown_tables(to_markdown(evaluation()))}
    other = next(table for head, table in tables.items() if head[0] == "Task" and "Chance" in head)
    assert other[1] == ["rte", "reference", "54.00 ± 1.01", "", "", "", "", "acc", "500", "0", "50.00"]
    assert other[2][1:7] == ["small", "50.00 ± 1.01", "-4.00", "[-6.00, -2.00]", "0.040", "worse"]
    validation = next(table for head, table in tables.items() if head[1] == "Loss")
    assert validation[2] == ["small", "3.1675 ± 0.0120", "+0.0156", "[+0.0101, +0.0211]", "worse"]
    result = evaluation()
    assert result.validation is not None
    known = result.validation.model_copy(update={"bytes_per_token": 4.2})
    tables = {tuple(table[0]): table for table in markdown_tables(to_markdown(evaluation(validation=known)))}
    assert next(table for head, table in tables.items() if head[1:3] == ("Loss", "Bits/byte"))[2][1:3] == [
        "3.1675 ± 0.0120",
        f"{3.1675 / math.log(2) / 4.2:.4f}",
    ]
    sizes = next(table for head, table in tables.items() if "Checkpoint" in head)
    assert sizes[1] == ["reference", "24", "355M", "1.32 GiB", "1.32 GiB", "192 KiB"]
    assert sizes[2][2:] == ["255M (0.72×)", "903 MiB (0.67×)", "903 MiB (0.67×)", "128 KiB (0.67×)"]
    rates = next(table for head, table in tables.items() if "Batch" in head)
    assert rates[1] == ["reference", "1", "1,200 [1,140–1,260]", "–", "80 [76–84]", "–"]
    assert rates[4] == ["small", "8", "14.4K [13.7K–15.1K]", "1.50", "960 [912–1,008]", "1.50"]


def test_a_batch_that_the_first_model_was_not_timed_at_has_no_ratio() -> None:
    both = speed(1.0, 2.0)
    first = both.models[0].model_copy(update={"rates": both.models[0].rates[:1]})
    result = only(speed=both.model_copy(update={"models": [first, both.models[1]]}))
    rates = next(table for table in markdown_tables(to_markdown(result)) if "Batch" in table[0])
    assert [row[:2] + row[3:4] for row in rates[1:]] == [
        ["reference", "1", "–"],
        ["small", "1", "2.00"],
        ["small", "8", "–"],
    ]


def test_the_words_are_those_of_the_intervals() -> None:
    same = metric("acc", (0.5, 0.51))
    better, worse = metric("acc", (0.5, 0.6)), metric("acc", (0.5, 0.4))
    average = metric("acc", (0.479, 0.473), 0.008)
    group = GroupResult(name="g", columns=[Cell(task=t, metric="acc") for t in "ab"], average=average)
    (line,) = verdict_words(only(tasks=[task("a", same), task("b", same)], groups=[group]))
    assert line == (
        "small: of 2 accuracies none differs from reference beyond chance variation, average 47.30 against 47.90 "
        "(difference -0.60, 95% interval [-1.40, +0.20]). It has 0.72 times the parameters of reference."
    )
    (line,) = verdict_words(only(tasks=[task("a", same), task("b", better), task("c", worse)]))
    assert line.startswith(
        "small: of 3 accuracies 1 is better (b) and 1 is worse (c) than reference beyond chance variation, "
        "in 1 no difference is seen. "
    )
    unpaired = better.model_copy(update={"paired": [None, None]})
    (line,) = verdict_words(only(tasks=[task("a", worse), task("b", unpaired)]))
    assert line.startswith(
        "small: of 1 accuracy 1 is worse (a) than reference beyond chance variation, 1 of the "
    )
    assert not re.search("equal|as good as", line)


def test_the_words_tell_of_perplexity_validation_and_savings() -> None:
    (line,) = verdict_words(evaluation())
    for words in (
        "wikitext word_perplexity 32.04 against 31.93 (difference +0.34%, 95% interval [-0.66%, +1.34%], no diff",
        "validation loss 3.1675 against 3.1519 (difference +0.0156, 95% interval [+0.0101, +0.0211], worse)",
        "0.67 times its cache per token, and reads 1.50 times and writes 1.50 times as many tokens per second at",
    ):
        assert words in line
    (line,) = verdict_words(only(speed=speed(1, 2)))
    assert line.startswith("small: nothing was measured of how good it is. It has 0.72 times the parameters")


def test_one_model_has_figures_and_nothing_paired(tmp_path: Path) -> None:
    result = alone()
    assert verdict_words(result) == []
    assert difference_picture(result) is None
    text = to_markdown(result)
    assert "# Evaluation of reference\n" in text
    assert "Difference" not in text
    assert "×" not in text.split("## Size and speed")[1].split("##")[0]
    assert markdown_tables(text)[0][1][1] == "51.05 ± 1.01"
    (tmp_path / "differences.svg").write_text("of before")
    written = write_evaluation(tmp_path, result)
    assert [path.name for path in written] == list(FILES[:3])
    assert not (tmp_path / "differences.svg").exists()
    assert all(
        row["difference"] == "" for row in read_csv((tmp_path / "evaluation.csv").read_text()).values()
    )


@pytest.mark.parametrize(
    "result", [evaluation(), alone(), only(), only(speed=speed(1.0, 2.0)), only(skipped={"wsc": "no file"})]
)
def test_everything_is_written_of_any_evaluation(result: Evaluation, tmp_path: Path) -> None:
    written = write_evaluation(tmp_path / "deep" / "out", result)
    assert written == [
        tmp_path / "deep" / "out" / name for name in FILES if name in {p.name for p in written}
    ]
    assert sorted(path.name for path in (tmp_path / "deep" / "out").iterdir()) == sorted(
        p.name for p in written
    )
    for width in (80, 44):
        assert max(map(len, printed(result, width).splitlines())) <= width


def test_missing_tasks_are_named_with_the_reason(tmp_path: Path) -> None:
    result = evaluation(skipped={"wsc": "there is no file wsc.jsonl", "extra": "it is gated"})
    result = result.model_copy(
        update={
            "groups": [
                *result.groups[:2],
                GroupResult(
                    name="low-data",
                    columns=[Cell(task="wsc", metric="acc"), Cell(task="mmlu", metric="acc")],
                    missing=["wsc"],
                ),
            ]
        }
    )
    for text in (to_markdown(result), evaluation_page(result).html(), printed(result, 80)):
        assert text.count("wsc has no figures: there is no file wsc.jsonl") == 1
        assert text.count("extra has no figures: it is gated") == 1
        assert "lambada_openai: the 500 first items" in text
    low = next(table for table in markdown_tables(to_markdown(result)) if "mmlu acc, 5-shot" in table[0])
    assert low[0] == ["Model", "wsc acc", "mmlu acc, 5-shot"]
    assert low[2] == ["small", "–", "25.67 ± 1.01"]


def test_a_group_of_which_every_task_is_missing_has_its_reasons_and_no_table() -> None:
    result = only(groups=[GroupResult(name="own", columns=[], missing=["a"])], skipped={"a": "no items"})
    assert "a has no figures: no items" in printed(result, 80)
    assert len(markdown_tables(to_markdown(result))) == 1  # the models


def test_the_csv_has_every_number_in_full() -> None:
    result = evaluation()
    rows = read_csv(to_csv(result))
    for one in result.tasks:
        for figures in one.metrics:
            for i, name in enumerate(("reference", "small")):
                row = rows["task", one.task, figures.metric, name]
                assert float(row["value"]) == figures.scores[i].value
                assert float(row["standard_error"]) == figures.scores[i].standard_error
                assert (row["items"], row["shots"], row["data"]) == (str(one.items), str(one.shots), one.data)
                assert row["chance"] == ("" if figures.chance is None else repr(figures.chance))
                assert row["note"] == (one.note or "")
                pair = figures.paired[i]
                if pair is None:
                    assert row["difference"] == row["low"] == row["high"] == row["p"] == row["outcome"] == ""
                else:
                    shown = float(row["difference"]), (float(row["low"]), float(row["high"])), row["outcome"]
                    assert shown == (pair.difference, pair.interval, pair.outcome)
                    assert row["p"] == ("" if pair.p is None else repr(pair.p))
    assert float(rows["average", "zero-shot", "acc", "small"]["value"]) == 0.47384
    assert rows["validation", "", "loss", "small"]["items"] == "512"
    assert float(rows["cost", "", "decode_tokens_per_second_batch_8", "small"]["value"]) == 960.0
    assert rows["cost", "", "parameters", "reference"]["value"] == "355000000"


def test_markdown_tables_are_aligned_whatever_the_names() -> None:
    result = evaluation(models=[model("a|b\nc"), model(HOSTILE, 16, 255_000_000)])
    text = to_markdown(result)
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(line) for line in block.splitlines()}) == 1
    for table in markdown_tables(text):
        assert len({len(row) for row in table}) == 1
    assert markdown_tables(text)[0][1][0] == r"a\|b c"
    assert r"\<script\>alert('1')\</script\> & \|x\| \`\[b\](u)\`" in text


def test_samples_stay_text_in_markdown() -> None:
    result = only(samples=[Sample(prompt="# no heading", continuations=["``` | x\n# no", "````\n<b>"])])
    text = to_markdown(result)
    assert "`````text\n````\n<b>\n`````" in text
    assert "````text\n``` | x\n# no\n````" in text
    assert "```text\n# no heading\n```" in text


def test_the_terminal_has_the_figures_in_80_columns() -> None:
    text = printed(evaluation(), 80)
    assert "51.05 ± 1.01" in text
    assert "-0.36 [-1.16,+0.44]" in text
    assert "1,800 [1,710–1,890]" in text
    assert text.count("zero-shot: figures") == 2  # six columns in two blocks
    assert text.count("Accuracies are in percent.") == 1
    assert "a cat sat" in text
    assert "GPT-2 large*" not in text
    hostile = printed(evaluation(models=[model(), model("[bold]x[/]\x1b[31m", 16)]), 80)
    assert "[bold]x[/]" in hostile.replace("\n", "")
    assert "\x1b" not in hostile


def test_what_users_and_models_wrote_is_text_on_the_page(tmp_path: Path) -> None:
    samples = [Sample(prompt=HOSTILE, continuations=[f"<b>{HOSTILE}", "<img src=x>"])]
    note = task("rte", metric("acc", (0.5, 0.6)), note=HOSTILE, data=HOSTILE)
    result = evaluation(
        models=[model(HOSTILE), model("small", 16)],
        tasks=[note],
        groups=[GroupResult(name=HOSTILE, columns=[Cell(task="rte", metric="acc")], missing=[HOSTILE])],
        skipped={HOSTILE: HOSTILE},
        samples=samples,
        settings={HOSTILE: [HOSTILE]},
    )
    write_evaluation(tmp_path, result)
    run = write_run(tmp_path / "run")
    (run / "evaluation").mkdir()
    save_evaluation(run / "evaluation" / "evaluation.json", result)
    for path in (tmp_path / "evaluation.html", tmp_path / "differences.svg", write_report(run)):
        html = path.read_text("utf-8")
        assert not re.search("<script|<b>|<img src=x|\x1b", html)
        assert "&lt;script&gt;alert" in html


def test_the_page_loads_nothing_and_its_ids_are_unique() -> None:
    html = evaluation_page(evaluation()).html()
    assert "http" not in html.replace('http-equiv="Content-Security-Policy"', "")
    identifiers = re.findall(r'\bid="([^"]+)"', html)
    assert len(identifiers) == len(set(identifiers))
    assert {"differences", "group-1", "group-3", "other-tasks", "validation", "speed", "samples"} <= set(
        identifiers
    )
    assert all(target in identifiers for target in re.findall(r'href="#([^"]+)"', html))
    assert html.count("<table") == html.count("</table>")
    regions = re.findall(r'<div class="scroll[^>]*>', html)
    assert len(regions) == html.count("<table") + html.count("<img")  # the page itself is never scrolled
    assert all('role="region" aria-label="' in region and 'tabindex="0"' in region for region in regions)
    assert "−0.36" in html
    assert "-0.36" not in re.sub("<img.*?>", "", html)


def test_the_same_evaluation_gives_the_same_bytes(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in write_evaluation(tmp_path / "a", evaluation())]
    assert first == [path.read_bytes() for path in write_evaluation(tmp_path / "b", evaluation())]
    assert len(first) == len(FILES)


def test_a_file_in_place_of_the_directory_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="it is a file; give a directory"):
        write_evaluation(tmp_path / "file", evaluation())


def test_the_figure_has_a_line_for_every_accuracy_and_model() -> None:
    picture = difference_picture(evaluation())
    assert picture is not None
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", picture.svg)
    names = ["arc_easy", "piqa", "sciq", "hellaswag", "lambada_openai", "mmlu", "rte", "average, zero-shot"]
    assert [text for text in texts if text in names] == names
    assert "−3.00 [−5.00, −1.00]" in texts
    assert "wikitext" not in texts
    three = only(
        models=[model(), model("b"), model("c")],
        tasks=[task("rte", metric("acc", (0.5, 0.6, 0.4)))],
        groups=[],
    )
    picture = difference_picture(three)
    assert picture is not None
    assert ">rte: b<" in picture.svg
    assert ">rte: c<" in picture.svg


def test_the_run_report_shows_its_evaluation(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    without = write_report(run).read_text("utf-8")
    assert 'id="evaluation"' not in without
    (run / "evaluation").mkdir()
    path = run / "evaluation" / "evaluation.json"
    save_evaluation(path, evaluation())
    html = write_report(run).read_text("utf-8")
    section = html.split('<section id="evaluation"')[1].split("</section>")[0]
    for text in (
        "51.26 ± 1.01",
        "−3.00",
        "1.50",
        "3.1675",
        "a cat sat",
        PAPER_HEADING.split("'", maxsplit=1)[0],
    ):
        assert text in section
    identifiers = re.findall(r'\bid="([^"]+)"', html)
    assert len(identifiers) == len(set(identifiers))
    path.write_text('{"format": 2}')
    with pytest.raises(ValueError, match=r"evaluation\.json is not an evaluation of format 1"):
        write_report(run)


def test_the_papers_rows_follow_ours_in_the_order_of_our_columns() -> None:
    columns = [Cell(task=name, metric="acc") for name in ("piqa", "arc_easy")]
    result = only(
        tasks=[task(name, metric("acc", (0.5, 0.6))) for name in ("piqa", "arc_easy")],
        groups=[GroupResult(name="zero-shot", columns=columns), GroupResult(name="own", columns=columns)],
    )
    text = to_markdown(result)
    assert text.count(PAPER_HEADING) == 1
    assert text.index("**zero-shot: figures**") < text.index(f"### {PAPER_HEADING}") < text.index("## own")
    paper = markdown_tables(text)[2]
    assert [heading.split()[0] for heading in paper[0][3:]] == [
        "piqa",
        "arc_easy",
        "sciq",
        "hellaswag",
        "lambada_openai",
        "average",
    ]
    assert paper[-1][3:5] == ["63.55", "52.9"]
    assert "arXiv 2404.08634, table 4" in text
    assert "http" not in text


def test_the_papers_figures_are_as_printed() -> None:
    tables = paper_tables()
    assert list(tables) == ["zero-shot", "perplexity", "low-data"]
    zero_shot, perplexity, low_data = tables.values()
    for table in tables.values():
        assert all(len(row["figures"]) == len(table["columns"]) for row in table["rows"])
    last = zero_shot["rows"][-1]
    assert [last[key] for key in ("model", "layers", "recipe", "average")] == [
        *("GPT-2 large*", "16", "Inheritune", "49.75")
    ]
    for row in zero_shot["rows"]:
        figures = [float(figure) for figure in row["figures"]]
        assert abs(sum(figures) / len(figures) - float(row["average"])) < 0.02
    assert [column["task"] for column in perplexity["columns"]] == ["wikitext", "lambada_openai"]
    assert "metric" not in perplexity["columns"][1]
    assert perplexity["rows"][4]["figures"] == ["33.67", "34.60"]  # not 34.6
    assert "does not say whether" in perplexity["notes"][0]
    mmlu = [column["task"] for column in low_data["columns"]].index("mmlu")
    assert {row["model"]: row["figures"][mmlu] for row in low_data["rows"]} == {
        "OpenLLaMA-3B (1T)": "27.21",
        "OPT-1.3B (300B)": "24.96",
        "Pythia-1.4B (300B)": "25.56",
        "MPT-1.3B (200B)": "25.82",
        "Sheared LLaMA-1.3B (50B)": "25.71",
        "Inheritune 1.5B (1B x 8)": "25.67",
    }
    assert low_data["rows"][0]["figures"][0] == "63.46"
