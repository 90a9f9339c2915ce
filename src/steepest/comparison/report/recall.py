"""Recall by depth of a retrieval: one small drawing an objective, all on one scale."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from ...core.lazy import late
from ...core.pages.palette import LIGHT
from ...core.pages.svg import canvas, inline
from .multiples import HEIGHT, SIZE, WIDTH

ticker = late("matplotlib.ticker")


def limits(rows: dict[str, dict[str, Any]]) -> tuple[float, float]:
    """From the least mean to the greatest, no closer than 0.02.

    >>> limits({"a": {"mean": [0.5, 0.9]}}), limits({})
    ((0.5, 0.9), (0.0, 1.0))
    """
    values = [value for own in rows.values() for value in own["mean"] if value is not None]
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    return (low, high) if high - low >= 0.02 else (max(0.0, high - 0.02), high)


def recall_by_depth(
    name: str,
    depth: list[int],
    own: dict[str, Any],
    reference: dict[str, Any] | None,
    scale: tuple[float, float],
    ident: str,
) -> Markup:
    """One objective's recall with its interval, over the baseline's as a dashed line.

    Args:
        name: of the objective.
        depth: numbers of nearest rows.
        own, reference: ``mean``, ``low``, ``high`` by depth.
        scale: the least and the greatest recall.
        ident: prefix of ids, unique on the page.
    """
    low, high = scale
    pad = 0.06 * (high - low)
    with canvas(WIDTH, HEIGHT, SIZE) as figure:
        axes = figure.add_axes((0.225, 0.17, 0.745, 0.79))
        band = [(k, a, b) for k, a, b in zip(depth, own["low"], own["high"]) if None not in (a, b)]
        if band:
            axes.fill_between(*map(list, zip(*band)), color=LIGHT["better"], alpha=0.16, linewidth=0)
        for values, style in ((reference, {"color": LIGHT["neutral"], "linestyle": "--", "linewidth": 1.1}),
                              (own, {"color": LIGHT["better"], "linewidth": 1.6})):  # fmt: skip
            if values is not None:
                points = [(k, value) for k, value in zip(depth, values["mean"]) if value is not None]
                axes.plot(*(map(list, zip(*points)) if points else ([], [])), **style)
        axes.set_ylim(low - pad, high + pad)
        axes.yaxis.set_major_locator(ticker.MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
        axes.set_xticks([1, *(k for k in depth if k % 10 == 0)])
        said = [f"{own['mean'][depth.index(k)]:.3f} of {k}" for k in (1, 5, 10, 20)
                if k in depth and own["mean"][depth.index(k)] is not None]  # fmt: skip
        return inline(figure, ident, f"Recall of {name}", ", ".join(said) or "no values")


def recall_figures(results: dict[str, Any]) -> list[dict[str, Any]]:
    """A drawing for each objective, in the order of the leaderboard; none of other tasks."""
    known = results.get("recall_at")
    if not known:
        return []
    rows, baseline = known["rows"], results["headline"]["baseline"]
    scale = limits(rows)
    names = [row["name"] for row in results["rows"] if row["name"] in rows]
    return [
        {
            "name": name,
            "baseline": name == baseline,
            "figure": recall_by_depth(
                name, known["depth"], rows[name], None if name == baseline else rows.get(baseline), scale, f"k{place}"
            ),
        }
        for place, name in enumerate(names)
    ]
