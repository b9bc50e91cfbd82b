"""Curves: what is drawn, in which range, and smoothing."""

from __future__ import annotations

import math
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inheritune.report.figures import (
    KEPT,
    Interval,
    Line,
    Picture,
    curves,
    differences,
    loss_limits,
    maps,
    short,
    smooth,
    thin,
)
from inheritune.report.run_report import Axis, loss_curves
from inheritune.report.runs import read_run
from report.synthetic_run import change_summary, metrics_rows, round_summary, write_metrics, write_run

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def texts(picture: Picture | None) -> list[str]:
    assert picture is not None
    return ["".join(text.itertext()) for text in ElementTree.fromstring(picture.svg).iter(f"{SVG}text")]


def line(y: list[float], steps: int = 100, **changes: object) -> Line:
    values = {"name": "a", "x": np.linspace(0, steps, len(y)), "y": np.array(y), "place": 1}
    return Line(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("axis", "label"), [("step", "step"), ("flops", "cumulative training compute, PFLOP")]
)
def test_both_axes_name_every_model(run: Path, axis: Axis, label: str) -> None:
    names = {"reference, 8 layers", "round 1, 4 layers", "round 2, 6 layers", "reference, final", label}
    assert names <= set(texts(loss_curves(read_run(run), axis)))


def test_models_differ_in_more_than_colour(run: Path) -> None:
    picture = loss_curves(read_run(run), "step")
    assert picture is not None
    bodies = {
        path.attrib["id"]: path.attrib["d"]
        for path in ElementTree.fromstring(picture.svg).iter(f"{SVG}path")
        if "id" in path.attrib
    }
    uses = re.findall(r'<use [^>]*href="#([\w-]+)"[^>]*style="fill: (#\w+)', picture.svg)
    by_colour = {colour: bodies[target] for target, colour in uses if colour != "#59636e"}
    assert len(by_colour) == len(set(by_colour.values())) == 3


def test_without_flops_there_is_only_the_axis_of_steps(run: Path) -> None:
    for name in ("reference", "round-1-4-layers", "round-2-6-layers"):
        write_metrics(run / name, [row | {"flops": None} for row in metrics_rows(1, 5.0, 3.4)])
    assert loss_curves(read_run(run), "flops") is None
    assert loss_curves(read_run(run), "step") is not None


def test_rows_without_flops_are_left_out_of_the_axis_of_flops(run: Path) -> None:
    rows = metrics_rows("reference", 8.3, 3.43)
    write_metrics(run / "reference", [*rows[:-3], *(row | {"flops": None} for row in rows[-3:])])
    assert "reference, 8 layers" in texts(loss_curves(read_run(run), "flops"))


def test_the_first_steps_do_not_flatten_the_rest() -> None:
    falling = [3.4 + 5 * math.exp(-9 * i / 40) * (1 - i / 40) for i in range(41)]
    low, high = loss_limits([line(falling)], [3.3])
    assert low < 3.3
    assert 3.6 < high < 4.2


@pytest.mark.parametrize("first", [6.0, 11.0, 40.0])
def test_the_first_loss_of_a_cut_does_not_scale_the_axis(first: float) -> None:
    # A few points only, so that no share of them is left out by being early.
    cut = line([first, 4.4, 3.6, 3.5, 3.45, 3.4])
    assert loss_limits([cut], [3.24])[1] < 4.1
    begun = line([first, first - 0.5], steps=4, finished=False)
    assert loss_limits([cut, begun], [3.24]) == loss_limits([cut], [3.24])


def test_of_a_training_that_has_only_begun_everything_is_shown() -> None:
    low, high = loss_limits([line([21.0, 18.0], finished=False)], [3.24])
    assert low < 3.24 and high > 21.0  # axes with nothing in them would say that nothing was learned
    first = line(
        [21.0], x=np.zeros(1), faint=(np.array([10.0, 20.0]), np.array([15.0, 12.0])), finished=False
    )
    assert loss_limits([first], [3.24])[1] > 21.0
    longer = line([21.0, *(4.0 - 0.01 * i for i in range(20))], finished=False)
    assert loss_limits([longer], [3.24])[1] < 4.2


def test_ends_levels_and_second_halves_are_always_in_the_range() -> None:
    for losses in ([3.0, 5.0, 4.0, 9.0], [9.0, 8.0, 7.0, 6.0, 5.0], [3.0, 3.0]):
        low, high = loss_limits([line(losses), line([2.0, 2.1])], [6.5])
        assert low < min(2.0, losses[-1])
        assert high > max(6.5, *losses[len(losses) // 2 :])
    assert loss_limits([line([9.0, 8.0], finished=False)])[1] > 8.0  # nothing else is there to be seen
    assert loss_limits([line([math.nan])]) == (0.0, 1.0)


def test_one_point_is_no_curve() -> None:
    assert curves([line([3.0])], "loss", "step") is None
    assert curves([line([3.0, math.nan])], "loss", "step") is None
    assert curves([line([0.0, -1.0])], "norm", "step", logarithmic=True) is None
    assert curves([line([3.0], x=np.ones(1))], "rank", "layer") is not None


def test_choices_of_layers_have_the_width_for_themselves() -> None:
    picture = curves([line([5.0, 4.0, 3.0], x=np.array([15.0, 16.0, 17.0]))], "loss", KEPT)
    assert [text for text in texts(picture) if text.isdigit() and int(text) > 9] == ["15", "16", "17"]
    assert "0" not in texts(picture)


def test_what_is_above_the_axis_is_said_in_the_figure() -> None:
    cut, other = line([21.0, 5.0, 4.0], name="cut"), line([9.0, 8.0], name="other", x=np.array([50.0, 60.0]))
    words = texts(curves([cut, other], "loss", "step", limits=(3.0, 6.0), separated=True))
    assert {"cut off above 6; the highest is 21", "cut", "other, above"} <= set(words)
    whole = curves([cut, other], "loss", "step", limits=(3.0, 21.0), separated=True)
    assert not any("cut off" in text or "above" in text for text in texts(whole))


def test_the_legend_is_in_the_order_of_the_ends_and_has_every_name() -> None:
    lines = [line([9, 1.0], name="_low"), line([9, 3.0], name="$high^2$"), line([9, 2.0], name="_low")]
    assert [text for text in texts(curves(lines, "loss", "step")) if "low" in text or "high" in text] == [
        "$high^2$",
        " _low",
    ]


def test_the_margin_is_a_line_of_its_own(run: Path) -> None:
    lines = [Interval("a", 0.1, (0.0, 0.2), "+0.100 [+0.000, -0.200]", 1, True)]
    with_margin, without = (differences(lines, "x", margin=margin) for margin in (0.05, 0.0))
    assert with_margin is not None
    assert without is not None
    assert with_margin.svg.count("<path") > without.svg.count("<path")
    assert "+0.100 [+0.000, −0.200]" in texts(without)
    assert differences([], "x") is None


def test_a_picture_is_an_svg_that_knows_no_time_and_loads_nothing(run: Path) -> None:
    picture = loss_curves(read_run(run), "flops")
    assert picture is not None
    root = ElementTree.fromstring(picture.svg)
    assert root.tag == f"{SVG}svg"
    title = root.find(f"{SVG}title")
    assert title is not None
    assert title.text == picture.label
    assert not re.search("dc:date|dc:creator|<script|<image", picture.svg)
    assert all(target.startswith("#") for target in re.findall(r'(?:href|src)="([^"]*)', picture.svg))
    again = loss_curves(read_run(run), "flops")
    assert again is not None and again.svg == picture.svg


def test_names_that_no_file_can_hold_are_drawn() -> None:
    name = "a\x1b\ud800<b>&"
    for picture in (
        curves([line([3, 2.0], name=name)], "loss", "step"),
        differences([Interval(name, 0.1, None, "+0.1", 1, True)], "x"),
        maps({name: {"L1H0": np.eye(300)}}),
    ):
        assert "a\ufffd\ufffd<b>&" in texts(picture)


def test_of_a_large_map_thin_columns_stay_visible() -> None:
    attention = np.zeros((1000, 1000))
    attention[:, 501] = 1
    empty, column = maps({"a": {"h": np.zeros((1000, 1000))}}), maps({"a": {"h": attention}})
    assert empty is not None
    assert column is not None
    assert empty.svg != column.svg
    assert maps({"a": {}}) is None


def test_long_names_keep_both_ends() -> None:
    assert short(
        "inheritune-4-append/round-12-of-many-18-layers"
    ) == "inheritune-4-appe…many-18-layers".replace("many", "f-many")
    assert short("a" * 34) == "a" * 34


@given(st.lists(st.floats(-100, 100) | st.just(math.nan), max_size=300))
def test_smoothing_is_a_mean_of_neighbours(values: list[float]) -> None:
    array = np.array(values, dtype=np.float64)
    half = min(max(2, len(values) // 50), len(values) // 10)
    for row, value in enumerate(smooth(array)):
        near = array[max(0, row - half) : row + half + 1]
        near = near[np.isfinite(near)]
        if len(near):
            assert value == pytest.approx(near.mean(), abs=1e-6)
        else:
            assert np.isnan(value)


def test_thinning_keeps_both_ends_and_the_rows_together() -> None:
    x = np.arange(10_001.0)
    thin_x, thin_y = thin(x, 2 * x)
    assert len(thin_x) == 400
    assert (thin_x[0], thin_x[-1]) == (0.0, 10_000.0)
    np.testing.assert_array_equal(thin_y, 2 * thin_x)
    assert [len(column) for column in thin(np.empty(0), np.empty(0))] == [0, 0]


def test_a_round_that_has_only_begun_does_not_hide_the_others(run: Path) -> None:
    change_summary(run, verdict=None, rounds=[round_summary(1)])
    write_metrics(run / "round-2-6-layers", metrics_rows(2, 10.8, 3.4, steps=5))
    picture = loss_curves(read_run(run), "flops")
    assert {"round 1, 4 layers", "round 2, 6 layers …, above"} <= set(texts(picture))
    assert "cut off above 4.05; the highest is 10.8" in texts(picture)
