"""The page as a browser would read it: complete, self-contained, safe, and the same for the same run."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import pytest

from inheritune.analysis.kept import Kept, load_kept, save
from inheritune.cli.console import console, print_result
from inheritune.report import figures, write_report
from inheritune.report.results import RunResult
from inheritune.run_directory import Summary
from report.synthetic_run import (
    FINAL_LOSS,
    add_choices,
    change_summary,
    layer_analysis,
    metrics_rows,
    reference_summary,
    round_summary,
    write_metrics,
    write_run,
)

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Elements, texts and problems of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.problems: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        self.problems += [f"<{tag}> is not closed" for tag in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.problems.append(f"</{tag}> closes nothing")

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    @property
    def headings(self) -> list[str]:
        return [attributes["id"] for attributes in self.all("section")]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def read(run: Path) -> Page:
    return Page(write_report(run).read_text("utf-8"))


def test_a_finished_run_has_every_section_and_its_numbers(run: Path) -> None:
    page = read(run)
    assert page.problems == []
    assert page.headings == ["curves", "rounds", "samples", "training", "reproduction"]
    for text in (
        "tiny stories",
        "Parity after round 2: 6 of 8 layers, 0.61 of the parameters",
        "validation loss 3.412 against the reference's 3.430",
        "−0.018",
        "[−0.025, −0.011]",
        "1.48 times the reference's training FLOPs",
        "1.41 PFLOP",  # training of round 1
        "3.55 PFLOP",  # of both rounds
        "1.48x",
        "0.59x",
        "1.65M",
        "2 min 4 s",
        "512 windows of 256 tokens",
        "Once upon a time there was a little fox",
        "who liked to run.",
        "20.5 GFLOP/s",
        "700 MiB",
        "inheritune run recipes/tiny.yaml -o runs/tiny",
        "AMD EPYC 9R14",
        "learning_rate: 0.0006",
    ):
        assert text in page.text


def test_the_page_loads_nothing(run: Path) -> None:
    html = write_report(run).read_text("utf-8")
    page = Page(html)
    assert "http" not in html.replace('http-equiv="Content-Security-Policy"', "")
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "#").startswith("#")
    assert "url(" not in html
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert "default-src 'none'" in policy


def test_every_reference_inside_the_page_has_exactly_one_target(run: Path) -> None:
    html = write_report(run).read_text("utf-8")
    identifiers = [attributes["id"] for _, attributes in Page(html).elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    used = set(re.findall(r'href="#([\w-]+)', html)) | set(re.findall(r'labelledby="([\w-]+)"', html))
    assert used
    assert used <= set(identifiers)


def test_what_users_wrote_is_text(run: Path) -> None:
    hostile = '<script>alert("x")</script><img src=x onerror=y>&amp;\'"'
    change_summary(run, name=hostile)
    (run / "recipe.yaml").write_text(f"name: {hostile}</pre>\n")
    (run / "starts.jsonl").write_text(json.dumps({"command": hostile, hostile: hostile}))
    sample = {
        "prompt": hostile,
        "reference": f"{hostile}\x00\x1b[31m\ud800",
        "target": "</p></article>" + hostile,
    }
    (run / "samples.json").write_text(json.dumps([sample]))
    save(run / "round-1-4-layers/choice.json", Kept(keep=hostile, layers=[0, 1, 2, 3], of_layers=8))
    page = read(run)
    assert page.problems == []
    assert "script" not in {tag for tag, _ in page.elements}
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    # Title, heading, recipe, command, environment (twice), rule, sample (three times).
    assert "".join(page.texts).count(hostile) == 10
    assert not set("\x00\x1b") & set("".join(page.texts))


def test_the_same_run_gives_the_same_bytes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write_report(run).read_bytes()
    # Neither the time, nor what was drawn before, nor the user's matplotlibrc may show.
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 31)
    monkeypatch.setitem(matplotlib.rcParams, "lines.markeredgewidth", 9)
    assert write_report(run).read_bytes() == first
    assert matplotlib.rcParams["font.size"] == 31


def test_a_finished_page_does_not_depend_on_where_the_run_lies(run: Path, tmp_path: Path) -> None:
    first = write_report(run).read_bytes()
    moved = shutil.copytree(run, tmp_path / "elsewhere")
    assert write_report(moved).read_bytes() == first


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_texts_have_contrast_in_light_dark_and_print(run: Path) -> None:
    html = write_report(run).read_text("utf-8")
    assert "@media (prefers-color-scheme: dark)" in html
    schemes = [dict(re.findall(r"--(\w+): (#\w{6});", line)) for line in re.findall(r":root \{[^}]*\}", html)]
    assert len(schemes) == 3  # light, dark, print
    assert schemes[0] == schemes[2] != schemes[1]
    for colours in schemes:
        for name in ("ink", "muted", "link", "good", "bad"):
            assert contrast(colours[name], colours["ground"]) >= 4.5
    for colour in (figures.INK, figures.MUTED, *figures.SERIES):
        assert contrast(colour, figures.GROUND) >= 4.5


def test_figures_and_tables_can_be_read_aloud(run: Path) -> None:
    page = read(run)
    images = page.all("img")
    assert len(images) == 5
    assert all(len(image["alt"]) > 40 for image in images)
    assert "round 2, 6 layers ends at 3.412" in images[0]["alt"]
    assert "round 1, 4 layers +0.082 [+0.075, +0.089]" in " ".join(image["alt"] for image in images)
    assert len(page.all("caption")) == len(page.all("table")) == 3
    assert all(cell["scope"] in ("row", "col") for cell in page.all("th"))
    assert page.all("html")[0]["lang"] == "en"


def test_curves_on_fewer_windows_than_the_verdict_say_so(run: Path) -> None:
    assert "of the 512 windows" not in read(run).text
    for name, key in (("reference", "reference"), ("round-2-6-layers", 2)):
        write_metrics(run / name, [row | {"windows": 48} for row in metrics_rows(key, 5.0, 3.4)])
    page = read(run)
    assert "curves on 48 of the 512 windows" in page.all("img")[0]["alt"]
    assert "a curve need not end at its model's final loss" in page.text
    write_metrics(run / "reference", [row | {"windows": 512} for row in metrics_rows("reference", 5.0, 3.4)])
    shutil.rmtree(run / "round-2-6-layers")
    assert "of the 512 windows" not in read(run).all("img")[0]["alt"]


def test_the_output_goes_where_it_is_asked_for(run: Path, tmp_path: Path) -> None:
    assert write_report(run) == run / "report.html"
    assert write_report(run, tmp_path / "page.html") == tmp_path / "page.html"
    assert write_report(run, tmp_path) == tmp_path / "report.html"
    assert (tmp_path / "page.html").read_bytes() == (run / "report.html").read_bytes()
    assert not list(tmp_path.glob("*.tmp"))
    with pytest.raises(ValueError, match=r"the directory .*absent does not exist"):
        write_report(run, tmp_path / "absent" / "page.html")


def test_a_running_round_is_shown_as_far_as_it_is(run: Path) -> None:
    change_summary(run, verdict=None, rounds=[round_summary(1)])
    (run / "state.json").write_text(json.dumps({"phase": "round", "round": 2, "verdict": None}))
    (run / "samples.json").unlink()
    write_metrics(run / "round-2-6-layers", metrics_rows(2, 4.6, FINAL_LOSS[2], steps=340))
    with (run / "round-2-6-layers" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 345, "lo')
    page = read(run)
    assert page.problems == []
    assert "samples" not in page.headings
    for text in (
        "No verdict yet, after 1 round: 4 of 8 layers",
        "Running or interrupted: the last record is step 340 of round 2, 6 layers.",
        "Left out of round-2-6-layers/metrics.jsonl: 1 line that could not be read.",
    ):
        assert text in page.text
    assert "round 2, 6 layers … ends at" in page.all("img")[0]["alt"]


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    run = tmp_path / "begun"
    run.mkdir()
    (run / "recipe.yaml").write_text("name: begun\n")
    page = read(run)
    assert page.problems == []
    assert page.headings == ["reproduction"]
    assert "No verdict yet: no round is finished." in page.text


def test_a_reference_in_training(run: Path) -> None:
    for name in ("summary.json", "samples.json", "starts.jsonl", "reference/validation.json"):
        (run / name).unlink()
    for name in ("round-1-4-layers", "round-2-6-layers"):
        shutil.rmtree(run / name)
    (run / "state.json").write_text(json.dumps({"phase": "reference", "round": 0, "verdict": None}))
    write_metrics(run / "reference", metrics_rows("reference", 8.3, 3.43, steps=0))
    page = read(run)
    assert page.problems == []
    assert page.headings == ["training", "reproduction"]  # one point is no curve
    assert not page.all("img")
    assert "the last record is step 0 of reference" in page.text


def test_a_reference_that_was_not_trained_here(run: Path) -> None:
    shutil.rmtree(run / "reference")
    rounds = [round_summary(number, cost_to_parity=None) for number in (1, 2)]
    change_summary(run, reference=reference_summary(training_flops=None, steps=None), rounds=rounds)
    page = read(run)
    assert page.problems == []
    assert "the reference's training FLOPs are not known, so neither is the cost to parity" in page.text
    assert "unknown" in page.text
    assert "×" not in page.text
    assert "reference, final 3.43" in page.all("img")[0]["alt"]


def test_a_run_whose_losses_are_all_lost(run: Path) -> None:
    for name in ("reference", "round-1-4-layers", "round-2-6-layers"):
        rows = [
            row | {"loss": None, "gradient_norm": float("nan"), "learning_rate": 0.0}
            for row in metrics_rows(1, 5, 3)
        ]
        write_metrics(run / name, rows)
    page = read(run)
    assert page.problems == []
    assert "Parity after round 2" in page.text
    assert "nan" not in page.text
    assert not any("nan" in image["alt"].replace("nats", "") for image in page.all("img"))
    assert "curves" not in page.headings


def test_long_metrics_do_not_make_a_long_page(run: Path) -> None:
    short = write_report(run).stat().st_size
    row = metrics_rows(2, 4.6, FINAL_LOSS[2])[0]
    rows = [
        row | {"step": step, "flops": step * 1e12, "loss": 3.4 + 1 / (step + 1)} for step in range(20_000)
    ]
    write_metrics(run / "round-2-6-layers", rows)
    assert write_report(run).stat().st_size < short + 80_000


def test_layers_that_were_kept_their_search_and_what_was_predicted(run: Path) -> None:
    assert "Which of the reference" not in Page(write_report(run).read_text("utf-8")).text
    add_choices(run)
    page = Page(write_report(run).read_text("utf-8"))
    assert not page.problems
    labels = [picture["alt"] for picture in page.all("img")]
    assert any("Loss of the cut as it is" in label for label in labels)
    assert any("Loss after training" in label and "found" in label for label in labels)
    for words in (
        "0-2, 7",
        "0-3, 5, 7",
        "5.130",
        "3.820",
        "32 windows of 256 tokens",
        "started with 4 layers",
        "hollow marks are layers that round 2 does not have",
        "Before training validation loss 1 4 of 8 0-2, 7 measured 5.130 3.500 5.100",
        "0 +4.700 [+4.600, +4.800] 0.470 1, 2",
        "3 +0.100 [+0.000, +0.200] 0.010 2",
    ):
        assert words in page.text, words
    for predicted, found in ((3.4, FINAL_LOSS[1]), (3.3, FINAL_LOSS[2])):
        assert f"{predicted - found:+.3f}".replace("-", "\N{MINUS SIGN}") in page.text
    assert "Predicted" in page.text


def test_the_terminal_has_the_layers_too(run: Path) -> None:
    add_choices(run)
    summary = Summary.model_validate_json((run / "summary.json").read_text("utf-8"))
    with console.capture() as capture:
        print_result(RunResult(run, summary))
    shown = capture.get()
    assert "0-2, 7" in shown and "measured" in shown and "5.130" in shown and "Predicted" in shown


def test_choices_that_were_not_measured_have_no_losses(run: Path) -> None:
    save(run / "round-1-4-layers/choice.json", Kept(keep="first", layers=[0, 1, 2, 3], of_layers=8))
    page = Page(write_report(run).read_text("utf-8"))
    assert "0-3" in page.text and "Loss at the cut" not in page.text
    assert (
        "Round Layers Kept, from 0 Rule Before training validation loss 1 4 of 8 0-3 first 5.100" in page.text
    )
    assert "What each layer is worth" not in page.text


def test_what_analyze_left_in_a_run_is_shown(run: Path) -> None:
    add_choices(run)
    save(run / "layers.json", layer_analysis(load_kept(run / "round-1-4-layers/choice.json")))
    for path in (run / "reference/forecast.json", *run.glob("round-*/choice.json")):
        path.unlink()
    page = Page(write_report(run).read_text("utf-8"))
    assert (
        "What each layer is worth, on some of 32 windows of 256 tokens, with the 95% interval." in page.text
    )
    assert any("first ends at" in picture["alt"] for picture in page.all("img"))
