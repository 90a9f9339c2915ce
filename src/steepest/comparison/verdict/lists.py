"""Figures of rankings: NDCG at each depth, and what each list gains beside the baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..metrics.ranking import RankedLists, list_metric
from ..read import Table
from .judge import Judge

DEEPEST, MOST = 20, 200
"""Ranks to which NDCG is shown, and gains of single lists that are kept at most."""


def list_facts(judge: Judge, names: Sequence[str], interval: Callable[[list[float]], dict[str, Any]]) -> dict[str, Any]:
    """What the report draws of lists.

    Args:
        judge: of the cells.
        names: objectives, the baseline among them.
        interval: mean, low and high of a number in each fold.

    Returns:
        ``counted``, ``equal``: lists of the test parts that order something, and that don't; ``depth`` ranks k;
        ``ndcg`` mean, low and high at each of them by objective; ``gains``: the metric's NDCG of single lists minus the
        baseline's, in order, by objective, and the shares of lists that are better and worse.
    """
    table = judge.context.table
    assert isinstance(table, Table)
    assert table.queries is not None
    rows = np.bincount(table.queries)
    counted: set[float] = set()
    deepest = int(min(DEEPEST, rows.max()))
    depths = list(range(1, deepest + 1))
    at = _depth(judge.metric.name)
    by_fold: dict[str, list[list[float]]] = {}
    by_list: dict[str, dict[float, list[float]]] = {}
    for name in names:
        by_fold[name], by_list[name] = [], {}
        for pair in judge.pairs:
            outcome = judge.outcome(name, pair)
            if not outcome.finite:
                continue
            lists = RankedLists.of(judge.context.split(pair, -1).other_target, outcome.predicted)
            if not len(lists.codes):
                continue
            by_fold[name].append([float(lists.ndcg(k).mean()) for k in depths])
            for code, value in zip(lists.codes, lists.ndcg(at)):
                by_list[name].setdefault(float(code), []).append(float(value))
            counted |= {float(code) for code in lists.codes}
    spread = {
        name: [interval([values[place] for values in folds]) for place in range(deepest)]
        for name, folds in by_fold.items()
        if folds
    }
    base = by_list.get(judge.settings.baseline, {})
    return {
        "counted": len(counted),
        "equal": len(np.unique(table.queries)) - len(counted),
        "depth": depths,
        "label": "NDCG" if at is None else f"NDCG@{at}",
        "ndcg": {
            name: {key: [None if v[key] is None else round(v[key], 6) for v in own] for key in ("mean", "low", "high")}
            for name, own in spread.items()
        },
        "gains": {
            name: _gains(own, base) for name, own in by_list.items() if name != judge.settings.baseline and own and base
        },
    }


def _gains(own: dict[float, list[float]], base: dict[float, list[float]]) -> dict[str, Any]:
    """Differences of single lists in order (means over repeats), at most so many, with the shares on either side."""
    gaps = np.sort([np.mean(own[code]) - np.mean(base[code]) for code in own if code in base])
    better, worse = float(np.mean(gaps > 1e-9)), float(np.mean(gaps < -1e-9))
    if len(gaps) > MOST:
        gaps = np.quantile(gaps, np.linspace(0, 1, MOST))
    return {"values": [round(float(gap), 5) for gap in gaps], "better": round(better, 4), "worse": round(worse, 4)}


def _depth(metric: str) -> int | None:
    """The rank to which the metric looks; that of the default where it is another."""
    if metric == "ndcg":
        return None
    word, _, k = metric.partition("@")
    return int(k) if word == "ndcg" and list_metric(metric) is not None else 10
