"""Small multiples of the report: one small drawing an objective, all on one scale."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from ...core.lazy import late
from ...core.pages.palette import LIGHT
from ...core.pages.svg import canvas, inline

ticker = late("matplotlib.ticker")

WIDTH, HEIGHT, SIZE = 168, 132, 10


def curve_limits(curves: dict[str, dict[str, Any]], greater: bool) -> tuple[float, float]:
    """A common scale: all values, without the worst twentieth, which first epochs fill.

    >>> curve_limits({"a": {"valid": [0.0] + [0.5] * 30 + [1.0]}}, True)
    (0.5, 1.0)
    """
    values = sorted(value for curve in curves.values() for value in curve["valid"] if value is not None)
    if not values:
        return 0.0, 1.0
    skip = len(values) // 20
    low, high = (values[skip], values[-1]) if greater else (values[0], values[-1 - skip])
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def curve(
    name: str,
    own: dict[str, Any],
    reference: dict[str, Any] | None,
    limits: tuple[float, float],
    label: str,
    ident: str,
) -> Markup:
    """One objective's learning curve with its band, over the baseline's as a dashed line."""
    low, high = limits
    pad = 0.06 * (high - low)
    with canvas(WIDTH, HEIGHT, SIZE) as figure:
        axes = figure.add_axes((0.225, 0.17, 0.745, 0.79))
        if own.get("low") and own.get("high"):
            band = [(e, a, b) for e, a, b in zip(own["epoch"], own["low"], own["high"]) if None not in (a, b)]
            if band:
                axes.fill_between(*map(list, zip(*band)), color=LIGHT["better"], alpha=0.16, linewidth=0)
        if reference is not None:
            axes.plot(reference["epoch"], _gaps(reference["valid"]), "--", color=LIGHT["neutral"], linewidth=1.1)
        axes.plot(own["epoch"], _gaps(own["valid"]), color=LIGHT["better"], linewidth=1.6)
        axes.set_ylim(low - pad, high + pad)
        axes.yaxis.set_major_locator(ticker.MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_locator(ticker.MaxNLocator(3, integer=True, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}".replace("-", "−"))
        last = next((value for value in reversed(own["valid"]) if value is not None), None)
        ends = "no values" if last is None else f"{label} {last:.4g} after epoch {own['epoch'][-1]}"
        return inline(figure, ident, f"Learning curve of {name}", ends)


def reliability(name: str, own: dict[str, Any], ident: str) -> Markup:
    """Accuracy against confidence in bins; bars at the bottom show how many predictions fall into each."""
    points = [
        (confidence, accuracy, count)
        for confidence, accuracy, count in zip(own["confidence"], own["accuracy"], own["count"])
        if None not in (confidence, accuracy) and count
    ]
    most = max((count for _, _, count in points), default=1)
    with canvas(WIDTH, WIDTH * 0.92, SIZE) as figure:
        axes = figure.add_axes((0.17, 0.15, 0.80, 0.81))
        axes.plot([0, 1], [0, 1], "--", color=LIGHT["neutral"], linewidth=1)
        if points:
            confidence, accuracy, count = map(list, zip(*points))
            heights = [0.22 * value / most for value in count]
            axes.bar(confidence, heights, width=0.05, color=LIGHT["line"], linewidth=0)
            axes.plot(confidence, accuracy, "-o", color=LIGHT["better"], linewidth=1.4, markersize=3.5)
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.02)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
        text = "; ".join(f"confidence {c:.2f} accuracy {a:.2f}" for c, a, _ in points) or "no probabilities"
        return inline(figure, ident, f"Reliability of {name}", text)


def _gaps(values: list[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]
