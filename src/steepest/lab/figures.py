"""The figure of an experiment: its own, or each claim's effect by seed against the threshold."""

from __future__ import annotations

import io
from collections.abc import Sequence
from types import ModuleType

import matplotlib as mpl
from matplotlib.figure import Figure

from .experiment import Evidence, Finding

COLOURS = {"shown": "#0b5c94", "not shown": "#565b62", "contradicted": "#9c3f06"}


def draw(module: ModuleType, evidence: Sequence[Evidence], findings: Sequence[Finding]) -> str:
    """The figure as SVG text, the same bytes for the same evidence."""
    own = getattr(module, "figure", None)
    figure = claims_figure(findings) if own is None else own(evidence)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": module.__name__, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return buffer.getvalue()


def claims_figure(findings: Sequence[Finding]) -> Figure:
    """Dots are seeds, the bar is the mean's 95% interval, the line is the threshold, the arrow the claimed side."""
    figure = Figure(figsize=(6.4, 1.1 * len(findings) + 0.6), layout="constrained")
    for axes, finding in zip(figure.subplots(len(findings), 1, squeeze=False)[:, 0], findings):
        colour = COLOURS[finding.verdict]
        axes.plot(finding.values, [0] * len(finding.values), "o", color=colour, alpha=0.45, markersize=5)
        axes.plot([finding.low, finding.high], [0, 0], color=colour, linewidth=3)
        axes.axvline(finding.claim.threshold, color="#1d2126", linewidth=1)
        side = "claimed side →" if finding.claim.greater else "← claimed side"
        axes.set_title(f"{finding.claim.text} ({finding.verdict}; {side})", fontsize=8, loc="left", wrap=True)
        axes.set_yticks([])
        axes.tick_params(labelsize=7)
        axes.spines[["left", "right", "top"]].set_visible(False)
    return figure


def arms_figure(evidence: Sequence[Evidence], *, x: str, y: str, label: str = "arm") -> Figure:
    """Lines of ``y`` over ``x`` for each ``label`` of the rows, mean and range over seeds."""
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    rows = [row for of_seed in evidence for row in of_seed.rows]
    for number, arm in enumerate(dict.fromkeys(row[label] for row in rows)):
        own = [row for row in rows if row[label] == arm]
        places = sorted({row[x] for row in own})
        values = [[row[y] for row in own if row[x] == place] for place in places]
        means = [sum(v) / len(v) for v in values]
        axes.plot(places, means, marker="osD^vP*X"[number % 8], label=str(arm), linewidth=1.5, markersize=4)
        axes.fill_between(places, [min(v) for v in values], [max(v) for v in values], alpha=0.12)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["right", "top"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    return figure


def bars_figure(evidence: Sequence[Evidence], *, y: str, label: str = "arm") -> Figure:
    """One dot a seed and a bar at the mean of ``y``, for each ``label`` of the rows."""
    rows = [row for of_seed in evidence for row in of_seed.rows]
    arms = list(dict.fromkeys(row[label] for row in rows))
    figure = Figure(figsize=(6.4, 0.36 * len(arms) + 0.9), layout="constrained")
    axes = figure.subplots()
    for place, arm in enumerate(arms):
        values = [row[y] for row in rows if row[label] == arm]
        axes.plot(values, [place] * len(values), "o", color="#0b5c94", alpha=0.4, markersize=4)
        axes.plot([sum(values) / len(values)] * 2, [place - 0.3, place + 0.3], color="#1d2126", linewidth=2)
    axes.set_yticks(range(len(arms)), [str(arm) for arm in arms])
    axes.invert_yaxis()
    axes.set_xlabel(y)
    axes.spines[["right", "top"]].set_visible(False)
    return figure
