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

from .figures import NARROW, WIDE, css_class
from .files import write_atomically
from .html import environment, page_parts
from .numbers import clean, decimals, inline, number, probability
from .palette import LIGHT
from .svg import canvas
from .svg import inline as inline_figure

MARKS = {"better": "\u202f▲", "worse": "\u202f▼"}


def write_across(results: Sequence[dict[str, Any]], across: dict[str, Any], folders: Sequence[Path]) -> Path:
    """Write the page beside the run folders and give its path; the same runs give the same file.

    Args:
        results: of each data set.
        across: what :func:`steepest.comparison.verdict.across.compare_across` found in them.
        folders: of the runs, all in one folder.
    """
    home = Path(folders[0]).parent
    name = hashlib.sha256(" ".join(sorted(Path(f).name for f in folders)).encode()).hexdigest()[:12]
    links = [quote(Path(os.path.relpath(Path(f) / "report.html", home)).as_posix()) for f in folders]
    return write_atomically(home / f"across-{name}.html", across_html(results, across, links))


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


def ranks(across: dict[str, Any], width: int, ident: str) -> Markup:
    """Mean rank of each objective over the data sets, with the rank on each of them.

    Args:
        across: what :func:`steepest.comparison.verdict.across.compare_across` found.
        width: of the drawing, in CSS pixels.
        ident: prefix of ids, unique on the page.
    """
    names, means, single = across["objectives"], across["ranks"], across["single_ranks"]
    order = sorted(range(len(names)), key=lambda i: means[i])
    size, pitch = (11.0, 30.0) if width < 500 else (12.5, 24.0)
    height, left = 46 + pitch * len(names), min(0.45, 7.2 * max(map(len, names)) / width + 0.03)
    with canvas(width, height, size) as figure:
        axes = figure.add_axes((left, 34 / height, 0.96 - left, pitch * len(names) / height))
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
        return inline_figure(figure, ident, "Mean ranks of the objectives", text, css_class(width))
