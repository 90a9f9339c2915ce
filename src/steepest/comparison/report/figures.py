"""Intervals against a baseline: the headline and the forest plots.

Each is drawn for a width in CSS pixels, so that a page can carry a narrow and a wide drawing of the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from ...core.lazy import late
from ...core.pages.palette import LIGHT
from ...core.pages.svg import canvas, css_class, inline
from .numbers import interval, number

ticker = late("matplotlib.ticker")

MARKS = {"better": "^", "not told apart": "o", "worse": "v"}
TONES = {"better": "better", "not told apart": "neutral", "worse": "worse"}


def headline(
    head: dict[str, Any], greater: bool, places: int, width: int, ident: str, confidence: str
) -> Markup | None:
    """The difference between the whole procedure and the baseline with its interval; None without a difference.

    Args:
        head: ``results["headline"]``.
        greater: whether greater scores are better.
        places: decimals of the printed numbers.
        width: of the drawing, in CSS pixels.
        ident: prefix of ids, unique on the page.
        confidence: of the interval, as printed.
    """
    difference, low, high = head["difference"], head["low"], head["high"]
    if difference is None or low is None or high is None:
        return None
    size, height = (11.5, 132) if width < 500 else (12.5, 138)
    tone = LIGHT[TONES.get(head["verdict"], "neutral")]
    detectable = head.get("detectable")
    reach = max(abs(low), abs(high), 1.15 * (detectable or 0.0), 1e-12) * 1.25
    with canvas(width, height, size) as figure:
        axes = figure.add_axes((0.02, 0.40, 0.96, 0.42))
        _zero_line(axes, reach, detectable)
        axes.plot([low, high], [0, 0], color=tone, linewidth=5, solid_capstyle="butt", alpha=0.35)
        axes.plot([low, high], [0, 0], "|", color=tone, markersize=16, markeredgewidth=2)
        axes.plot([difference], [0], MARKS.get(head["verdict"], "o"), color=tone, markersize=10)
        axes.text(
            min(max(difference, -0.4 * reach), 0.4 * reach),
            1.15,
            f"{number(difference, places, True)} {interval(low, high, places, True)}",
            ha="center",
            va="bottom",
            weight="bold",
        )
        sides = (f"← {head['baseline']} better", "choosing better →")
        if not greater:
            sides = ("← choosing better", f"{head['baseline']} better →")
        figure.text(0.02, 0.02, sides[0], ha="left", va="bottom", color=LIGHT["muted"])
        figure.text(0.98, 0.02, sides[1], ha="right", va="bottom", color=LIGHT["muted"])
        text = (
            f"Difference of the procedure to {head['baseline']}: {number(difference, places, True)}, "
            f"{confidence} interval {interval(low, high, places, True)}. The line at zero means no difference."
        )
        return inline(figure, ident, "Difference between choosing and the baseline", text, css_class(width))


def forest(
    rows: Sequence[dict[str, Any]], tier: str, reach: float, greater: bool, places: int, width: int, ident: str
) -> Markup:
    """The interval of every objective of one tier against the baseline, one line each.

    ``reach`` is the half-width of the axis; an interval that goes beyond it ends in an arrow. The pale band around zero
    holds the differences smaller than the smallest one the design would have found.
    """
    slim = width < 500
    size, pitch = (11.0, 42.0) if slim else (12.5, 26.0)
    height = pitch * len(rows) + 42
    tone, pixel = LIGHT[TONES[tier]], 1 / height
    with canvas(width, height, size) as figure:
        left, right = (0.015, 0.985) if slim else (0.245, 0.64)
        axes = figure.add_axes((left, 40 * pixel, right - left, pitch * len(rows) * pixel))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(-reach, reach)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(_ticks(reach, 2))
        axes.xaxis.set_major_formatter(_tick_text)
        for position, row in enumerate(rows):
            y = position + (0.2 if slim else 0.0)
            half = 0.17 if slim else 0.3
            if row["detectable"]:
                detectable = min(row["detectable"], reach)
                axes.fill_between(
                    [-detectable, detectable], y - half, y + half, color=LIGHT["line"], alpha=0.55, linewidth=0
                )
            above, below = (0.25, 0.3) if slim else (0.5, 0.5)
            axes.plot([0, 0], [y - above, y + below], color=LIGHT["muted"], linewidth=1)
            _clipped(axes, row, y, reach, tone, MARKS[tier])
            values = number(row["difference"], places, True)
            finds = f"≥ {number(row['detectable'], places)}" if row["detectable"] else ""
            line = 1 - ((position + (0.24 if slim else 0.5)) * pitch + 2) * pixel
            if slim:
                note = f"{values}, {finds}" if finds and tier == "not told apart" else values
                figure.text(left, line, row["name"], va="center_baseline", weight="bold")
                figure.text(right, line, note, ha="right", va="center_baseline", color=LIGHT["muted"])
            else:
                figure.text(left - 0.02, line, row["name"], ha="right", va="center_baseline")
                span = interval(row["low"], row["high"], places, True)
                figure.text(right + 0.02, line, f"{values} {span}", va="center_baseline")
                figure.text(0.99, line, finds, ha="right", va="center_baseline", color=LIGHT["muted"])
        sides = ("← worse", "better →") if greater else ("← better", "worse →")
        figure.text(left, 2 * pixel, sides[0], va="bottom", color=LIGHT["muted"])
        figure.text(right, 2 * pixel, sides[1], ha="right", va="bottom", color=LIGHT["muted"])
        text = "; ".join(
            f"{row['name']} {number(row['difference'], places, True)} "
            f"{interval(row['low'], row['high'], places, True)}".strip()
            for row in rows
        )
        return inline(figure, ident, f"Differences to the baseline: {tier}", text, css_class(width))


def reach(rows: Sequence[dict[str, Any]]) -> float:
    """Half-width of a common axis for these intervals; one that is over four times the median is cut.

    >>> reach([{"difference": 1.0, "low": 0.0, "high": 2.0}, {"difference": -90.0, "low": -99.0, "high": -81.0}])
    8.4
    """
    ends = sorted(
        max(abs(value) for value in (row["difference"], row["low"], row["high"]) if value is not None)
        for row in rows
        if row["difference"] is not None
    )
    positive = [end for end in ends if end > 0]
    return 1.05 * min(positive[-1], 4 * positive[(len(positive) - 1) // 2]) if positive else 1.0


def _zero_line(axes: Any, limit: float, detectable: float | None) -> None:
    axes.set_xlim(-limit, limit)
    axes.set_ylim(-1, 1)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(_ticks(limit, 2))
    axes.xaxis.set_major_formatter(_tick_text)
    if detectable:
        axes.fill_between([-detectable, detectable], -1, 1, color=LIGHT["line"], alpha=0.5, linewidth=0)
    axes.axvline(0, color=LIGHT["ink"], linewidth=1.2)


def _clipped(axes: Any, row: dict[str, Any], y: float, limit: float, tone: str, mark: str) -> None:
    if row["difference"] is None:
        return
    ends = [row["difference"] if row[key] is None else row[key] for key in ("low", "high")]
    cut = [min(max(end, -limit), limit) for end in ends]
    axes.plot(cut, [y, y], color=tone, linewidth=1.8, solid_capstyle="butt")
    for end, sign in zip(ends, (-1, 1)):
        if sign * end > limit:
            axes.plot([sign * limit * 0.985], [y], "<" if sign < 0 else ">", color=tone, markersize=5)
    if abs(row["difference"]) <= limit:
        hollow = {"markerfacecolor": LIGHT["surface"]} if mark == "o" else {}
        axes.plot([row["difference"]], [y], mark, color=tone, markersize=7, markeredgewidth=1.5, **hollow)


def _tick_text(value: float, _: int) -> str:
    return f"{value:+.2g}".replace("-", "−") if value else "0"


def _ticks(limit: float, most: int) -> Any:
    """Round positions around zero, at most ``most`` on each side."""
    power = 10.0 ** (math.floor(math.log10(limit)) - 1)
    step = next(factor * power for factor in (1, 2, 5, 10, 20, 50, 100) if limit * 0.98 // (factor * power) <= most)
    count = int(limit * 0.98 // step)
    return ticker.FixedLocator([step * k for k in range(-count, count + 1)])
