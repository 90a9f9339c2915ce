"""The page over several data sets: ranks, tests, scores, and the way to each report."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from ...core.pages import page_parts
from ...core.pages.palette import LIGHT
from ...core.pages.svg import NARROW, WIDE, canvas, css_class
from ...core.pages.svg import inline as inline_figure
from .files import write_atomically
from .html import environment
from .numbers import clean, decimals, inline, number, probability

MARKS = {"better": "\u202f▲", "worse": "\u202f▼"}


def write_across(results: Sequence[dict[str, Any]], across: dict[str, Any], folders: Sequence[Path]) -> Path:
    """Write the page beside the run folders and give its path; the same runs give the same file.

    Args:
        results: of each data set.
        across: what :func:`steepest.comparison.verdict.across.compare_across` found in them.
        folders: of the runs, all in one folder.
    """
    home = Path(folders[0]).parent
    links = [quote(Path(os.path.relpath(Path(f) / "report.html", home)).as_posix()) for f in folders]
    return write_atomically(home / f"{name_of(folders)}.html", across_html(results, across, links))


def name_of(folders: Sequence[Path]) -> str:
    """The name that files over these runs begin with, in whatever order they are given."""
    return f"across-{hashlib.sha256(' '.join(sorted(Path(f).name for f in folders)).encode()).hexdigest()[:12]}"


def across_html(results: Sequence[dict[str, Any]], across: dict[str, Any], links: Sequence[str]) -> str:
    """The page as one string; everything that users name is escaped.

    Args:
        results: of each data set, as ``results.json`` holds them.
        across: what :func:`steepest.comparison.verdict.across.compare_across` found in them.
        links: to the report of each data set.
    """
    results, across = clean(list(results)), clean(across)
    metric = dict(results[0]["metric"])
    metric["label"] = inline(metric["label"])
    sets = [
        {"name": r["data"]["name"], "link": link, "rows": r["data"]["rows"], "task": r["data"]["task"],
         "sentence": r["sentence"], "advice": r.get("advice")}
        for r, link in zip(results, links)
    ]  # fmt: skip
    board = _board(results, across, metric["greater_is_better"]) if "scores" in across else []
    return (
        environment()
        .get_template("across.html")
        .render(
            page=page_parts(),
            version=results[0]["version"],
            created=max(r["created"] for r in results),
            sets=sets,
            across=across,
            metric=metric,
            board=board,
            ratings=_ratings(across) if "elo" in across else [],
            rates=_rates(across) if "win_rates" in across else None,
            figures=[ranks(across, width, f"a{width}") for width in (NARROW, WIDE)] if "ranks" in across else [],
        )
    )


def _board(results: list[dict[str, Any]], across: dict[str, Any], greater: bool) -> list[dict[str, Any]]:
    """A row for each objective, the best mean rank first."""
    names, scores = across["objectives"], across["scores"]
    best = [(max if greater else min)(row) for row in scores]
    places = [decimals([max(row) - min(row)]) for row in scores]
    tiers = [{row["name"]: row["tier"] for row in r["rows"]} for r in results]
    ranks = across.get("ranks")
    rows = []
    for i, name in enumerate(names):
        p = across["wilcoxon_holm"].get(name)
        cells = [
            {
                "text": number(score[i], max(2, place)),
                "value": score[i],
                "best": score[i] == top,
                "mark": MARKS.get(tier.get(name, ""), ""),
            }
            for score, top, place, tier in zip(scores, best, places, tiers)
        ]
        rank = None if ranks is None else {"text": number(ranks[i], 2), "value": ranks[i]}
        rows.append(
            {"name": name, "rank": rank, "p": {"text": probability(p), "value": "" if p is None else p}, "cells": cells}
        )
    return sorted(rows, key=lambda row: row["rank"]["value"]) if ranks is not None else rows


def _ratings(across: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each objective with its Elo rating, win rate and improvability, the highest rated first."""
    shares = across["improvability"]
    rows = [
        {
            "name": name,
            "elo": across["elo"][i],
            "span": f"[{number(across['elo_low'][i], 0)}, {number(across['elo_high'][i], 0)}]",
            "rate": across["win_rate"][i],
            "share": None if shares is None else shares[i],
        }
        for i, name in enumerate(across["objectives"])
    ]
    return sorted(rows, key=lambda row: -row["elo"])


def _rates(across: dict[str, Any]) -> dict[str, Any]:
    """Win rates in per cent, objectives in order of their ratings; ``heat`` from 0 to 10 grows with the rate."""
    names = across["objectives"]
    order = sorted(range(len(names)), key=lambda i: -across["elo"][i])
    rows = []
    for i in order:
        values = [across["win_rates"][i][j] for j in order]
        cells = [
            {"text": "–" if v is None else f"{100 * v:.0f}", "heat": 0 if v is None else round(10 * v)} for v in values
        ]
        rows.append({"name": names[i], "cells": cells})
    return {"names": [names[i] for i in order], "rows": rows}


def ranks(across: dict[str, Any], width: int, ident: str) -> Markup:
    """Mean rank of each objective over the data sets, with the rank on each of them and the critical difference.

    Bars at the right join what Nemenyi's test does not tell apart; the scale on top is as long as its difference.

    Args:
        across: what :func:`steepest.comparison.verdict.across.compare_across` found.
        width: of the drawing, in CSS pixels.
        ident: prefix of ids, unique on the page.
    """
    names, means, single = across["objectives"], across["ranks"], across["single_ranks"]
    order = sorted(range(len(names)), key=lambda i: means[i])
    size, pitch = (11.0, 30.0) if width < 500 else (12.5, 24.0)
    difference, groups = across.get("critical_difference"), across.get("groups") or []
    top = 30 if difference else 0
    height, left = 46 + top + pitch * len(names), min(0.45, 7.2 * max(map(len, names)) / width + 0.03)
    lanes = _lanes(groups, order)
    right = 0.96 - 10 * (max(lanes, default=-1) + 1) / width
    with canvas(width, height, size) as figure:
        axes = figure.add_axes((left, 34 / height, right - left, pitch * len(names) / height))
        if difference:
            _scale(axes, difference, len(names), top / pitch)
        for lane, group in zip(lanes, groups):
            ends = [order.index(group[0]) - 0.3, order.index(group[-1]) + 0.3]
            axes.plot([1 + (lane + 0.7) * 10 / ((right - left) * width)] * 2, ends, color=LIGHT["muted"], linewidth=4,
                      solid_capstyle="butt", transform=axes.get_yaxis_transform(), clip_on=False)  # fmt: skip
        for place, i in enumerate(order):
            base = names[i] == across["baseline"]
            colour = LIGHT["ink" if base else "better"]
            counts: dict[float, int] = {}
            for row in single:
                counts[row[i]] = counts.get(row[i], 0) + 1
            for rank, count in counts.items():
                axes.plot([rank], [place], "o", color=LIGHT["muted"], alpha=0.35, markersize=3 + 1.5 * math.sqrt(count))
            axes.plot([means[i]], [place], "s" if base else "D", color=colour, markersize=8)
        axes.set_yticks(range(len(names)), [names[i] for i in order])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(0.7, len(names) + 0.3)
        axes.set_xticks(range(1, len(names) + 1))
        axes.set_xlabel("rank (1 is best)", fontsize=size)
        text = ", ".join(f"{names[i]} {means[i]:.2f}" for i in order)
        if difference:
            joined = "; ".join(", ".join(names[i] for i in group) for group in groups)
            text += f". Critical difference {difference:.2f}; not told apart: {joined or 'none'}"
        return inline_figure(figure, ident, "Mean ranks of the objectives", text, css_class(width))


def _lanes(groups: Sequence[Sequence[int]], order: Sequence[int]) -> list[int]:
    """A lane for each bar so that no two in one lane overlap; groups are runs of ``order``."""
    free: list[int] = []
    lanes = []
    for group in groups:
        first, last = order.index(group[0]), order.index(group[-1])
        lane = next((lane for lane, end in enumerate(free) if end < first), len(free))
        free[lane : lane + 1] = [last]
        lanes.append(lane)
    return lanes


def _scale(axes: Any, difference: float, methods: int, top: float) -> None:
    """The critical difference as a line over the plot; where it is longer than the axis, its value alone."""
    place = -0.5 - 0.3 * top
    length = min(difference, methods - 1)
    ends = [1, 1 + length]
    axes.plot(ends, [place] * 2, "-", color=LIGHT["ink"], linewidth=1.5, clip_on=False)
    axes.plot(ends if length == difference else ends[:1], [place] * (2 if length == difference else 1), "|",
              color=LIGHT["ink"], markersize=8, clip_on=False)  # fmt: skip
    axes.text(1, place - 0.15, f"critical difference {difference:.2f}", ha="left", va="bottom", color=LIGHT["muted"])
