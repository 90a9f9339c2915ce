"""Numbers in the figures: positions against a naive computation, labels apart, contrast of the colours."""

from __future__ import annotations

import re

import numpy as np
import pytest

from steepest.comparison.report import cost, figures, multiples
from steepest.core.pages import palette
from steepest.core.pages.svg import NARROW, WIDE, canvas, inline


def forest_row(name, difference, half, detectable=0.5):
    return {
        "name": name,
        "difference": difference,
        "low": difference - half,
        "high": difference + half,
        "detectable": detectable,
    }


def horizontal(drawing: str, tone: str) -> list[tuple[float, float]]:
    """Ends of the horizontal strokes of one colour."""
    found = re.findall(r'<path d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"[^>]*stroke:var\(--' + tone + r"\)", drawing)
    return [(float(a), float(c)) for a, b, c, d in found if b == d]


def test_forest_draws_each_interval_where_its_numbers_are():
    rows = [forest_row("a", 1.0, 0.5), forest_row("b", 2.0, 1.0)]
    drawing = figures.forest(rows, "better", 4.0, True, 1, WIDE, "t")
    left, right = 0.245 * WIDE, 0.64 * WIDE

    def pixel(value):
        return left + (value + 4.0) / 8.0 * (right - left)

    drawn = horizontal(drawing, "better")
    assert len(drawn) == 2
    for row, ends in zip(rows, drawn):
        assert ends == pytest.approx((pixel(row["low"]), pixel(row["high"])), abs=0.02)


def test_an_interval_beyond_the_axis_is_cut_at_it():
    rows = [forest_row("a", -3.0, 2.5), forest_row("b", -9.0, 1.0)]
    drawing = figures.forest(rows, "worse", 4.0, True, 1, WIDE, "t")
    left, width = 0.245 * WIDE, 0.395 * WIDE
    drawn = horizontal(drawing, "worse")
    assert drawn[0] == pytest.approx((left, left + width * 3.5 / 8), abs=0.02)
    assert all(left - 0.02 <= end <= left + width for ends in drawn for end in ends)
    assert "−9.0 [−10.0, −8.0]" in drawing


@pytest.mark.parametrize(("greater", "left"), [(True, "← worse"), (False, "← better")])
def test_the_better_side_follows_the_metric(greater, left):
    row = forest_row("a", 1.0, 0.5)
    assert left in figures.forest([row], "better", 4.0, greater, 1, NARROW, "t")


@pytest.mark.parametrize("limit", [1e-6, 0.0099, 0.01, 0.036, 1.0, 7.3, 2e5])
@pytest.mark.parametrize("most", [2, 3])
def test_ticks_are_few_round_and_symmetric(limit, most):
    ticks = np.asarray(figures._ticks(limit, most)())
    assert 3 <= len(ticks) <= 2 * most + 1
    assert np.all(np.abs(ticks) <= limit)
    assert ticks == pytest.approx(-ticks[::-1])
    step = f"{ticks[1] - ticks[0]:.6e}"
    assert step[0] in "125"
    assert set(step[2:8]) == {"0"}


@pytest.mark.parametrize("width", [320, 760])
@pytest.mark.parametrize("seed", range(5))
def test_labels_of_scattered_points_keep_apart(width, seed):
    random = np.random.default_rng(seed)
    height = 430.0
    points = [tuple(point) for point in random.uniform([60, 60], [width - 20, height - 20], (20, 2))]
    boxes = cost.place(["x" * 13] * 20, points, (54.0, 46.0, width - 62.0, height - 58.0), 10.5)
    shared = sum(cost._overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i])
    area = sum((right - left) * (top - low) for left, low, right, top in boxes)
    assert shared < 0.01 * area
    assert all(left >= 53 and right <= width - 7 for left, _, right, _ in boxes)


def test_names_are_text_and_not_formulas():
    with canvas(100, 50, 9) as figure:
        figure.text(0.5, 0.5, "$x^2$ <b>")
        drawing = inline(figure, "f", "a < b", "text")
    assert ">$x^2$ &lt;b&gt;</text>" in drawing
    assert '<title id="f-title">a &lt; b</title>' in drawing


def test_curves_with_gaps_and_nothing_but_gaps_draw():
    own = {"epoch": [1, 2, 3], "valid": [0.1, None, 0.3], "low": [None] * 3, "high": [None] * 3}
    assert "0.3 after epoch 3" in multiples.curve("a", own, None, (0.0, 1.0), "accuracy", "c")
    none = own | {"valid": [None] * 3}
    assert "no values" in multiples.curve("a", none, own, multiples.curve_limits({"a": none}, True), "accuracy", "c")


def test_empty_bins_are_left_out():
    own = {"confidence": [None, 0.55, 0.95], "accuracy": [None, 0.5, 0.9], "count": [0, 3, 9]}
    drawing = multiples.reliability("a", own, "r")
    assert "confidence 0.55 accuracy 0.50; confidence 0.95 accuracy 0.90</desc>" in drawing


def mixed(share: float, theme: int) -> str:
    """The background of a heat cell as the browser mixes it."""
    parts = [[int(palette.COLOURS[name][theme][k : k + 2], 16) for k in (1, 3, 5)] for name in ("heat", "surface")]
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in zip(*parts))


@pytest.mark.parametrize("theme", [0, 1])
def test_text_has_the_contrast_that_aa_asks_for(theme):
    colour = {name: pair[theme] for name, pair in palette.COLOURS.items()}
    for ground in ("page", "surface", "neutral-wash"):
        for text in ("ink", "muted", "better", "worse", "neutral"):
            assert palette.contrast(colour[text], colour[ground]) >= 4.5, (text, ground)
    for tone in ("better", "worse", "neutral"):
        assert palette.contrast(colour[tone], colour[f"{tone}-wash"]) >= 4.5
    assert palette.contrast(colour["ink"], colour["worse-wash"]) >= 4.5
    assert palette.contrast(colour["ink"], mixed(0.85, theme)) >= 4.5
