"""Score against cost, with every point named."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from ...core.lazy import late
from ...core.pages.palette import LIGHT
from ...core.pages.svg import canvas, css_class, inline
from .numbers import compact

ticker = late("matplotlib.ticker")

Box = tuple[float, float, float, float]


def cost(rows: Sequence[dict[str, Any]], metric: str, label: str, greater: bool, width: int, ident: str) -> Markup:
    """Score against seconds per epoch with every point named; filled marks are on the frontier.

    An objective is on the frontier if none is both faster and better. ``rows`` need ``seconds_per_epoch`` and a mean.
    """
    points = [(row["seconds_per_epoch"], row["metrics"][metric]["mean"], row) for row in rows]
    slim = width < 500
    size = 10.5 if slim else 12.0
    height = max(300.0 if slim else 360.0, (17.0 if slim else 12.0) * len(points) + 90)
    sign = 1 if greater else -1
    box = (54.0, 46.0, width - 62.0, height - 58.0)
    with canvas(width, height, size) as figure:
        axes = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
        for seconds, score, row in points:
            ahead = any(s <= seconds and sign * m >= sign * score and (s, m) != (seconds, score) for s, m, _ in points)
            tone = LIGHT["neutral"] if ahead else LIGHT["better"]
            spread = row["metrics"][metric]
            if None not in (spread.get("low"), spread.get("high")):
                axes.plot([seconds, seconds], [spread["low"], spread["high"]], color=tone, linewidth=1, alpha=0.3)
            mark = "s" if row["tier"] == "baseline" else "o"
            axes.plot([seconds], [score], mark, color=tone, markersize=6, markerfacecolor="none" if ahead else tone)
        axes.margins(x=0.08, y=0.06)
        axes.set_xlabel("seconds per epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(4 if slim else 7, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_locator(ticker.MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(lambda value, _: compact(value))
        axes.grid(color=LIGHT["line"], linewidth=0.6, alpha=0.7)
        axes.set_axisbelow(True)
        axes.autoscale_view()
        pixels = [tuple(axes.transData.transform((seconds, score))) for seconds, score, _ in points]
        names = [row["name"] for _, _, row in points]
        for name, point, area in zip(names, pixels, place(names, pixels, box, size)):
            near = (min(max(point[0], area[0]), area[2]), min(max(point[1], area[1]), area[3]))
            if math.dist(near, point) > 9:
                ends = [(x / width, y / height) for x, y in (point, near)]
                axes.plot(*zip(*ends), color=LIGHT["muted"], linewidth=0.6, alpha=0.7, transform=figure.transFigure)
            # The anchor at the near side keeps a font of another width beside its point.
            side = "left" if area[0] >= point[0] else "right" if area[2] <= point[0] else "center"
            x = {"left": area[0], "right": area[2], "center": (area[0] + area[2]) / 2}[side]
            figure.text(x / width, (area[1] + area[3]) / 2 / height, name, ha=side, va="center_baseline")
        text = "; ".join(f"{row['name']} {compact(seconds)} s, {score:.4g}" for seconds, score, row in points)
        return inline(figure, ident, f"{label} against seconds per epoch", text, css_class(width))


def place(names: Sequence[str], points: Sequence[tuple[float, float]], box: Box, size: float) -> list[Box]:
    """Boxes for labels near their points: within the frame, and as clear of points and of each other as can be.

    Args:
        names: the labels.
        points: their points, in pixels.
        box: the frame as left, bottom, width, height.
        size: of the text, in pixels.

    Returns:
        For each label left, bottom, right, top; taken in turn, each the cheapest of 72 places by overlap and distance.

    >>> place(["a"], [(50.0, 50.0)], (0.0, 0.0, 100.0, 100.0), 10.0)
    [(57.0, 44.0, 63.2, 56.0)]
    """
    taken: list[Box] = []
    marks = [(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    for name, (x, y) in zip(names, points):
        wide, high = 0.62 * size * len(name), 1.2 * size
        options = []
        for radius in (7, 14, 22, 32, 44, 58, 74, 92, 112):
            for turn in (0, 4, 1, 7, 3, 5, 2, 6):
                across, up = math.cos(turn * math.pi / 4), math.sin(turn * math.pi / 4)
                left = x + radius * across - wide * (0.5 - 0.5 * round(across))
                low = y + radius * up - high * (0.5 - 0.5 * round(up))
                area = (left, low, left + wide, low + high)
                outside = max(0, box[0] - left, left + wide - box[0] - box[2]) * high
                outside += max(0, box[1] - low, low + high - box[1] - box[3]) * wide
                clash = sum(_overlap(area, label_area) for label_area in taken) + 2 * sum(
                    _overlap(area, m) for m in marks
                )
                options.append((round(clash + 3 * outside + 0.5 * radius, 6), len(options), area))
        taken.append(min(options)[2])
    return taken


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
