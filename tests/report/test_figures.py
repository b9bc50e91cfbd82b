"""Curves, labels and smoothing."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inheritune.report import curve_figure, figures, svg
from inheritune.report.drawing import smooth, spread, thin
from inheritune.report.run_directory import read_run
from report.synthetic_run import change_summary, metrics_rows, round_summary, write_metrics, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def texts(figure: str) -> list[str]:
    return [
        "".join(element.itertext())
        for element in ElementTree.fromstring(figure).iter()
        if element.tag.endswith("text")
    ]


def test_both_axes_name_every_model(run: Path) -> None:
    by_step = texts(figures.loss_curves(read_run(run), "step"))
    assert {"reference, 8 layers", "round 1, 4 layers", "round 2, 6 layers", "step"} <= set(by_step)
    by_flops = texts(figures.loss_curves(read_run(run), "flops"))
    assert {"round 1, 4 layers", "round 2, 6 layers", "reference's training"} <= set(by_flops)
    assert "cumulative training compute, PFLOP" in by_flops


def test_a_narrow_round_has_a_short_name(run: Path) -> None:
    # The second round has taken a hundredth of the FLOPs of the first.
    change_summary(run, verdict=None, rounds=[round_summary(1)])
    write_metrics(run / "round-2-6-layers", metrics_rows(2, 4.6, 3.4, steps=5))
    names = texts(figures.loss_curves(read_run(run), "flops"))
    assert "2" in names
    assert "round 2, 6 layers …" not in names


def test_models_differ_in_more_than_colour(run: Path) -> None:
    figure = figures.loss_curves(read_run(run), "step")
    bodies = {
        element.attrib["id"]: element.attrib["d"]
        for element in ElementTree.fromstring(figure).iter("path")
        if "id" in element.attrib
    }
    uses = re.findall(r'<use [^>]*style="fill: var\(--([\w-]+)\)[^>]*href="#([\w-]+)"', figure)
    by_colour = {
        colour: bodies[target] for colour, target in uses if colour in ("ink", "series-1", "series-2")
    }
    assert len(by_colour) == len(set(by_colour.values())) == 3


def test_without_flops_there_is_only_the_axis_of_steps(run: Path) -> None:
    for name in ("reference", "round-1-4-layers", "round-2-6-layers"):
        write_metrics(run / name, [row | {"flops": None} for row in metrics_rows(1, 5.0, 3.4)])
    read = read_run(run)
    assert figures.loss_curves(read, "flops") is None
    assert figures.loss_curves(read, "step") is not None
    assert "step" in texts(curve_figure(run))


def test_the_first_steps_do_not_flatten_the_rest(run: Path) -> None:
    low, high, cut = figures.loss_limits(read_run(run))
    assert low < 3.40
    assert 3.6 < high < 5  # the reference begins at 8.3
    assert cut


def test_the_differences_show_zero_and_the_margin(run: Path) -> None:
    change_summary(run, margin=0.02)
    plain, with_margin = write_run(run.parent / "plain"), run
    paths = [figures.differences(read_run(path)).count("<path") for path in (plain, with_margin)]
    assert paths[1] > paths[0]
    assert {"+0.082 [+0.075, +0.089]", "−0.018 [−0.025, −0.011]"} <= set(
        texts(figures.differences(read_run(with_margin)))
    )


def test_the_figure_of_its_own_brings_its_colours(run: Path) -> None:
    figure = curve_figure(run)
    root = ElementTree.fromstring(figure)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert {"width", "height", "viewBox", "aria-label"} <= set(root.attrib)
    assert "@media (prefers-color-scheme: dark)" in figure
    used = set(re.findall(r"var\(--([\w-]+)\)", figure))
    assert {"ground", "ink", "series-1", "series-2"} <= used
    assert all(f"--{name}: #" in figure for name in used)
    assert set(re.findall(r"https?://[^\"\s<]+", figure)) == {"http://www.w3.org/2000/svg"}
    assert curve_figure(run) == figure


def test_no_curves_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    with pytest.raises(ValueError, match=r"has no metrics\.jsonl with any row yet"):
        curve_figure(tmp_path)


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1])
@pytest.mark.parametrize("name", sorted(set(svg.PALETTE) - {"ground", "grid"}))
def test_texts_have_contrast_in_both_schemes(name: str, scheme: int) -> None:
    lighter, darker = sorted(
        (luminance(svg.PALETTE[name][scheme]), luminance(svg.PALETTE["ground"][scheme])), reverse=True
    )
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def test_the_light_colours_can_be_told_apart_when_they_become_variables() -> None:
    assert len(set(svg.LIGHT.values())) == len(svg.PALETTE)


@given(st.lists(st.floats(-0.5, 1.5), max_size=12), st.floats(0.001, 0.3))
def test_labels_keep_their_order_and_distance(positions: list[float], gap: float) -> None:
    places = spread(positions, gap)
    fitting = min(gap, 1 / max(1, len(positions) - 1))
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in places)
    assert all(b - a >= fitting - 1e-9 for a, b in pairwise(sorted(places)))
    for (a, place_a), (b, place_b) in pairwise(sorted(zip(positions, places, strict=True))):
        assert a == b or place_a < place_b


def test_labels_that_have_room_stay() -> None:
    assert spread([0.9, 0.1, 0.5], 0.05) == pytest.approx([0.9, 0.1, 0.5])
    assert spread([0.5, 0.5], 0.1) == pytest.approx([0.55, 0.45])


@given(st.lists(st.floats(-100, 100) | st.just(math.nan), max_size=300))
def test_smoothing_is_a_mean_of_neighbours(values: list[float]) -> None:
    array = np.array(values, dtype=np.float64)
    half = max(2, len(values) // 50)
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
