"""The report's own figures of rankings: NDCG by depth, and the gain of every list, an objective a drawing."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from ...core.lazy import late
from ...core.pages.palette import LIGHT
from ...core.pages.svg import canvas, inline
from .multiples import HEIGHT, SIZE, WIDTH
from .numbers import number

ticker = late("matplotlib.ticker")

WITHIN = 0.98
"""The share of gains that lie within the scale; the largest may be cut."""


def lists(results: dict[str, Any]) -> dict[str, Any] | None:
    """The two rows of drawings, in the order of the leaderboard; None where nothing is ranked."""
    known = results.get("lists")
    if not known:
        return None
    baseline = results["headline"]["baseline"]
    order = [row["name"] for row in results["rows"] if row["name"] in known["ndcg"]]
    means = [value for name in order for value in known["ndcg"][name]["mean"] if value is not None] or [0.0, 1.0]
    limits = (min(means), max(means)) if max(means) > min(means) else (means[0] - 0.5, means[0] + 0.5)
    depths = known["depth"]
    curves = [
        {
            "name": name,
            "baseline": name == baseline,
            "figure": _by_depth(name, depths, known["ndcg"], baseline, limits, f"k{place}"),
        }
        for place, name in enumerate(order)
    ]
    gains = [(name, known["gains"][name]) for name in order if name in known["gains"]]
    lengths = sorted(abs(value) for _, own in gains for value in own["values"]) or [1.0]
    reach = lengths[round(WITHIN * (len(lengths) - 1))] or lengths[-1] or 1.0
    drawings = [
        {
            "name": name,
            "better": _percent(own["better"]),
            "worse": _percent(own["worse"]),
            "figure": _sorted(name, own["values"], reach, f"g{place}"),
        }
        for place, (name, own) in enumerate(gains)
    ]
    shown = [depth for depth in (1, 3, 5, 10, 20) if depth in depths]
    rows = [
        {"name": name, "values": [number(known["ndcg"][name]["mean"][depth - 1], 4) for depth in shown]}
        for name in order
    ]
    return {**known, "curves": curves, "drawings": drawings, "shown": shown, "rows": rows, "baseline": baseline}


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _by_depth(
    name: str, depths: list[int], known: dict[str, Any], baseline: str, limits: tuple[float, float], ident: str
) -> Markup:
    """NDCG@k over k with its interval, over the baseline's as a dashed line."""
    own = known[name]
    low, high = limits
    pad = 0.06 * (high - low)
    with canvas(WIDTH, HEIGHT, SIZE) as figure:
        axes = figure.add_axes((0.225, 0.17, 0.745, 0.79))
        band = [(k, a, b) for k, a, b in zip(depths, own["low"], own["high"]) if None not in (a, b)]
        if band:
            axes.fill_between(*map(list, zip(*band)), color=LIGHT["better"], alpha=0.16, linewidth=0)
        if name != baseline and baseline in known:
            axes.plot(depths, known[baseline]["mean"], "--", color=LIGHT["neutral"], linewidth=1.1)
        axes.plot(depths, own["mean"], color=LIGHT["better"], linewidth=1.6)
        axes.set_ylim(low - pad, high + pad)
        axes.yaxis.set_major_locator(ticker.MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
        axes.set_xticks(sorted({1, depths[len(depths) // 2], depths[-1]}))
        text = f"NDCG@1 {own['mean'][0]:.4g}, NDCG@{depths[-1]} {own['mean'][-1]:.4g}"
        return inline(figure, ident, f"NDCG by depth of {name}", text)


def _sorted(name: str, values: list[float], reach: float, ident: str) -> Markup:
    """Gains of all lists in order: above the line lists that are ranked better than by the baseline."""
    with canvas(WIDTH, HEIGHT, SIZE) as figure:
        axes = figure.add_axes((0.225, 0.08, 0.745, 0.88))
        share = [100 * (place + 0.5) / len(values) for place in range(len(values))]
        up = [max(value, 0.0) for value in values]
        down = [min(value, 0.0) for value in values]
        axes.fill_between(share, up, step="mid", color=LIGHT["better"], alpha=0.55, linewidth=0)
        axes.fill_between(share, down, step="mid", color=LIGHT["worse"], alpha=0.55, linewidth=0)
        axes.axhline(0, color=LIGHT["muted"], linewidth=1)
        axes.set_xlim(0, 100)
        axes.set_ylim(-1.05 * reach, 1.05 * reach)
        axes.set_xticks([])
        axes.yaxis.set_major_locator(ticker.MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:+.3g}".replace("-", "−") if value else "0")
        middle = values[len(values) // 2]
        text = f"from {values[0]:+.3f} to {values[-1]:+.3f}, median {middle:+.3f}"
        return inline(figure, ident, f"Gain of each list by {name}", text)
