"""What a report shows of a retrieval alone: recall by depth, and the nearest rows of a few queries."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..design.context import Pair
from ..metrics.retrieval import recall_at
from ..read.images import Images
from ..scores.outcome import Outcome
from ..scores.retrieval import FIRST, NEAREST
from .judge import Judge

DEPTH = 20
"""Nearest rows up to which recall is shown."""
QUERIES = 6
"""Rows of which the nearest are shown."""
LARGEST = 64
"""Pixels a side of a picture that a report holds."""
Interval = Callable[[np.ndarray, Judge, tuple[float, float]], dict[str, float | None]]


def of_retrieval(judge: Judge, names: Sequence[str], picked: Sequence[str], interval: Interval) -> dict[str, Any]:
    """Recall by depth of each name, and nearest rows with the choice and with the baseline.

    Args:
        judge: of finished cells.
        names: of objectives, and of what stands beside them.
        picked: what inner validation chose in each fold.
        interval: mean and interval of values by fold.
    """
    return {
        "recall_at": {
            "depth": list(range(1, DEPTH + 1)),
            "rows": {name: _recall(judge, name, interval) for name in names},
        },
        "nearest": _nearest(judge, picked),
    }


def _recall(judge: Judge, name: str, interval: Interval) -> dict[str, list[float | None]]:
    """The share of queries with one of their class among their k nearest, by k, over folds."""
    by_fold = [judge.outcome(name, pair) for pair in judge.pairs]
    none = np.zeros(0)
    values = [[recall_at(k)(none, own, None) if own.finite else None for own in by_fold] for k in range(1, DEPTH + 1)]
    spans = [interval(np.array(own, dtype=np.float64), judge, (0.0, 1.0)) for own in values]
    return {
        key: [None if span[key] is None else round(float(span[key] or 0.0), 6) for span in spans]
        for key in ("mean", "low", "high")
    }


def _nearest(judge: Judge, picked: Sequence[str]) -> dict[str, Any]:
    """Queries drawn at random of the first test part where the choice is not the baseline, or of the first."""
    baseline = judge.settings.baseline
    place = next((i for i, name in enumerate(picked) if name != baseline), 0)
    pair, chosen = judge.pairs[place], picked[place]
    sides = [chosen] if chosen == baseline else [chosen, baseline]
    outcomes = [judge.outcome(name, pair) for name in sides]
    table, rows = judge.context.table, judge.context.folds[pair].test
    queries: list[dict[str, Any]] = []
    if all(own.finite for own in outcomes):
        queries = [
            {
                "row": int(rows[query]),
                "label": table.classes[table.target[rows[query]]],
                "nearest": [[_neighbour(judge, rows, query, int(n)) for n in _of(own, query)] for own in outcomes],
            }
            for query in _drawn(judge, outcomes[0], pair)
        ]
    shown = {q["row"] for q in queries} | {n["row"] for q in queries for side in q["nearest"] for n in side}
    images = {str(row): _picture(table.pixels[row]) for row in sorted(shown)} if isinstance(table, Images) else {}
    return {"sides": sides, "queries": queries, "images": images}


def _of(outcome: Outcome, query: int) -> np.ndarray:
    own = outcome.predicted[query, NEAREST:]
    return np.asarray(own[own >= 0])


def _neighbour(judge: Judge, rows: np.ndarray, query: int, place: int) -> dict[str, Any]:
    target = judge.context.table.target
    row = int(rows[place])
    label = judge.context.table.classes[target[row]]
    return {"row": row, "label": label, "right": bool(target[row] == target[rows[query]])}


def _drawn(judge: Judge, outcome: Outcome, pair: Pair) -> list[int]:
    """Positions of queries, each class in turn."""
    rng = np.random.default_rng([judge.settings.seed, *pair])
    mixed = rng.permutation(np.flatnonzero(outcome.predicted[:, FIRST] > 0))
    labels = judge.context.table.target[judge.context.folds[pair].test][mixed]
    turn = np.zeros(len(mixed), dtype=np.int64)
    for label in np.unique(labels):
        own = labels == label
        turn[own] = np.arange(own.sum())
    first = mixed[np.argsort(turn, kind="stable")][:QUERIES]
    order = np.argsort(judge.context.table.target[judge.context.folds[pair].test][first], kind="stable")
    return [int(query) for query in first[order]]


def _picture(pixels: np.ndarray) -> str:
    """A small PNG in base64."""
    picture = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    picture.thumbnail((LARGEST, LARGEST))
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()
