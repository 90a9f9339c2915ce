"""Tables of the page: what each cell shows, and the value by which its column sorts."""

from __future__ import annotations

import itertools
import math
from typing import Any

from ..statistics.practical import PROBABILITIES
from .numbers import chance, compact, interval, number, probability
from .tables import metric_names, spread_places

LOWER_IS_BETTER = (
    "loss",
    "error",
    "entropy",
    "perplexity",
    "rmse",
    "mae",
    "mse",
    "ece",
    "brier",
    "pinball",
    "nll",
    "deviance",
)
TIER_MARKS = {"better": "▲", "not told apart": "○", "worse": "▼", "baseline": "■", "": ""}


def leaderboard(results: dict[str, Any], places: int) -> dict[str, Any]:
    """Columns and rows of the leaderboard.

    A column has a label, a kind of order ("number" or "text") and the direction of its first sort; a cell has a text, a
    second line, and a value. Columns without a value in any row are left out.
    """
    metric = results["metric"]
    names = metric_names(results)
    spread = {name: spread_places(results, name) for name in names}
    main, others = names[0], names[1:]
    columns = [
        _column("tier", "text"),
        _column(metric["label"], "number", metric["greater_is_better"]),
        _column(f"difference to {results['headline']['baseline']}", "number", metric["greater_is_better"]),
        _column("p", "number"),
        _column("p, Holm", "number"),
        _column("P(better)", "number", True),
        _column("smallest found", "number"),
        *(_column(name.replace("_", " "), "number", _greater(name)) for name in others),
        _column("s per epoch", "number"),
        _column("memory, MB", "number"),
        _column("diverged", "number"),
        _column("settings", "text"),
    ]
    rows = []
    for row in results["rows"]:
        span = interval(row["low"], row["high"], places, True)
        cells = [
            _cell(f"{TIER_MARKS.get(row['tier'], '')} {row['tier'] or row['kind']}".strip(), row["tier"]),
            _score(row, main, spread[main]),
            _cell(number(row["difference"], places, True), row["difference"], span),
            _cell(probability(row["p"]), row["p"]),
            _cell(probability(row["p_holm"]), row["p_holm"]),
            _chances(row),
            _cell(number(row["detectable"], places), row["detectable"]),
            *(_score(row, name, spread[name]) for name in others),
            _cell(compact(row["seconds_per_epoch"]), row["seconds_per_epoch"]),
            _cell(compact(row["peak_memory_mb"]), row["peak_memory_mb"]),
            _cell(number(row["diverged"], 0), row["diverged"]),
            _cell(row["settings"] or "–", row["settings"]),
        ]
        tone = {"better": "better", "worse": "worse"}.get(row["tier"], "neutral")
        rows.append({"name": row["name"], "kind": row["kind"], "tone": tone, "cells": cells})
    filled = [any(row["cells"][column]["value"] != "" for row in rows) for column in range(len(columns))]
    for row in rows:
        row["cells"] = list(itertools.compress(row["cells"], filled))
    return {"columns": list(itertools.compress(columns, filled)), "rows": rows}


def fold_scores(results: dict[str, Any]) -> dict[str, Any] | None:
    """Outer folds by names, in the order of the leaderboard; None without scores."""
    known, folds = results.get("fold_scores") or {}, results.get("folds") or []
    places = spread_places(results, results["metric"]["name"])
    names = [row["name"] for row in results["rows"] if known.get(row["name"])]
    if not names:
        return None
    repeated = len({repeat for repeat, _ in folds}) > 1
    labels = [f"{repeat + 1}.{fold + 1}" if repeated else f"{fold + 1}" for repeat, fold in folds]
    columns = [known[name] for name in names]
    rows = [
        {
            "label": labels[position] if position < len(labels) else str(position + 1),
            "cells": [_cell(number(value, places), value) for value in values],
        }
        for position, values in enumerate(itertools.zip_longest(*columns))
    ]
    return {"names": names, "rows": rows}


def recall(results: dict[str, Any]) -> dict[str, Any] | None:
    """Classes by objectives; ``heat`` from 0 to 10 grows as recall falls, ``best`` marks the greatest of a class."""
    known = results.get("recall")
    if not known or not known.get("rows"):
        return None
    names = [row["name"] for row in results["rows"] if row["name"] in known["rows"]]
    counts = results["data"].get("class_counts") or []
    table = []
    for position, label in enumerate(known["classes"]):
        values = [known["rows"][name][position] for name in names]
        top = max((value for value in values if value is not None), default=None)
        cells = [
            _cell(number(value, 2), value)
            | {
                "heat": 0 if value is None else min(10, max(0, round(10 * (1 - value)))),
                "best": value is not None and round(value, 2) == round(top, 2),
            }
            for value in values
        ]
        count = counts[position] if position < len(counts) else None
        table.append({"label": str(label), "count": _cell(number(count, 0), count), "cells": cells})
    return {"names": names, "rows": table}


def paired_folds(results: dict[str, Any]) -> dict[str, Any] | None:
    """Scores of the choice and of the baseline in each outer fold, and which was better; None where they lack.

    The choice is what inner validation picked in a fold, so these are the scores behind what is to be expected.
    """
    known, picked, folds = results.get("fold_scores") or {}, results.get("expected"), results.get("folds")
    baseline = results["headline"]["baseline"]
    if not picked or not folds or baseline not in known:
        return None
    sign = 1 if results["metric"]["greater_is_better"] else -1
    places = max(3, spread_places(results, results["metric"]["name"]))
    rows = []
    for position, ((repeat, fold), name) in enumerate(zip(folds, picked["by_fold"])):
        first, second = known[name][position], known[baseline][position]
        gap = None if None in (first, second) else first - second
        tone = "neutral" if not gap else "better" if sign * gap > 0 else "worse"
        texts = [number(first, places), number(second, places), number(gap, places, True)]
        rows.append(
            {"repeat": repeat + 1, "fold": fold + 1, "name": name, "first": first, "second": second, "tone": tone,
             "texts": texts}
        )  # fmt: skip
    wins = [sum(row["tone"] == tone for row in rows) for tone in ("better", "worse")]
    repeated = len({row["repeat"] for row in rows}) > 1
    return {"rows": rows, "wins": wins, "places": places, "repeated": repeated, "baseline": baseline}


def confusion(results: dict[str, Any], most: int = 12) -> dict[str, Any] | None:
    """True by predicted classes, in per cent of each true class: the choice, then the baseline.

    Args:
        results: prepared.
        most: classes that are shown; of more, those with the most rows confused on either side.

    Returns:
        ``tables``, ``labels`` of the shown, ``classes`` (how many there are); None where nothing is stored. ``heat``
        from 0 to 10 grows with the share of a class's rows that lie in a wrong cell.
    """
    known = results.get("confusion")
    if not known:
        return None
    labels, counts = known["classes"], results["data"].get("class_counts") or []
    classes = range(len(labels))
    wrong = [
        sum(known[side][c][k] + known[side][k][c] for side in ("winner", "baseline") for k in classes if k != c)
        for c in classes
    ]
    shown = sorted(sorted(classes, key=lambda c: (-wrong[c], c))[:most])
    tables = []
    for side in ("winner", "baseline"):
        matrix = known[side]
        rows = []
        for c in shown:
            total = sum(matrix[c])
            cells = [_share(matrix[c][k], total, c == k) for k in shown]
            if len(shown) < len(labels):
                cells.append(_share(sum(matrix[c][k] for k in classes if k not in shown), total, False))
            count = number(counts[c], 0) if c < len(counts) else "–"
            rows.append({"label": str(labels[c]), "count": count, "cells": cells})
        total = sum(map(sum, matrix))
        right = f"{100 * sum(matrix[c][c] for c in classes) / total:.1f}%" if total else "–"
        tables.append({"baseline": side == "baseline", "right": right, "rows": rows})
    return {"tables": tables, "labels": [str(labels[c]) for c in shown], "classes": len(labels)}


def conflict(results: dict[str, Any]) -> list[dict[str, Any]]:
    """For each arm the mean cosine between the gradients of two targets, and how often any was below 0.

    ``heat`` from 0 to 10 grows with the size of a cosine below 0.
    """
    known = results.get("conflict")
    if not known:
        return []
    tables = []
    for name, own in known["arms"].items():
        rows = [
            {
                "label": label,
                "cells": [
                    {
                        "text": "" if i == j else number(cosine, 2, True),
                        "heat": 0 if i == j or cosine >= 0 else min(10, math.ceil(-10 * cosine)),
                    }
                    for j, cosine in enumerate(row)
                ],
            }
            for i, (label, row) in enumerate(zip(known["targets"], own["cosine"]))
        ]
        tables.append({"name": name, "share": f"{100 * own['share']:.0f}%", "rows": rows})
    return tables


def practical(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Each compared objective with its three probabilities, and the widths of their bars in per cent; best first."""
    compared = [row for row in results["rows"] if row["kind"] == "objective"] if results.get("rope") else []
    rows = [row for row in compared if row["prob_same"] is not None]
    rows = sorted(rows, key=lambda row: row["prob_worse"] - row["prob_better"])
    return [
        {
            "name": row["name"],
            "texts": [chance(row[key]) for key in PROBABILITIES],
            "bars": [
                (tone, f"{100 * row[key]:.1f}") for tone, key in zip(("better", "neutral", "worse"), PROBABILITIES)
            ],
        }
        for row in rows
    ]


def origins(results: dict[str, Any]) -> list[dict[str, str]]:
    """Each objective with the publication it comes from."""
    rows = [row for row in results["rows"] if row["kind"] == "objective" and row["title"]]
    return [{"name": row["name"], "title": row["title"], "source": row.get("source") or ""} for row in rows]


def samples(results: dict[str, Any]) -> dict[str, Any] | None:
    """Rows of text, how each goes on, and how the chosen and the baseline's model go on; None where there are none."""
    known: dict[str, Any] | None = results.get("samples")
    return known if known and known["rows"] else None


def class_counts(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Each class (or label) with its rows, their share of all, and the length of its bar in per cent of the longest.

    >>> data = {"task": "multilabel", "rows": 8, "classes": ["a", "b"], "class_counts": [4, 8]}
    >>> [item["share"] for item in class_counts(data)]
    ['50.0%', '100.0%']
    """
    counts = data.get("class_counts") or []
    total, most = data["rows"] if data.get("task") == "multilabel" else sum(counts), max(counts, default=0)
    return [
        {
            "label": str(label),
            "count": number(count, 0),
            "share": f"{100 * count / total:.1f}%" if total else "–",
            "bar": f"{100 * count / most:.1f}" if most else "0",
        }
        for label, count in zip(data.get("classes") or [], counts)
    ]


def _share(count: float, total: float, right: bool) -> dict[str, Any]:
    """A cell of a confusion matrix; what is wrong is the darker the more it is."""
    share = count / total if total else 0.0
    text = "–" if not total else "< 1" if 0 < share < 0.005 else f"{100 * share:.0f}"
    return {"text": text, "right": right, "heat": 0 if right else min(10, math.ceil(10 * math.sqrt(share)))}


def _chances(row: dict[str, Any]) -> dict[str, Any]:
    """P(better), and in a second line the other two."""
    better, same, worse = (row[key] for key in PROBABILITIES)
    second = "" if better is None else f"same {chance(same)}, worse {chance(worse)}"
    return _cell(chance(better), better, second)


def _score(row: dict[str, Any], name: str, places: int) -> dict[str, Any]:
    own = row["metrics"].get(name) or {}
    mean, low, high = (own.get(bound) for bound in ("mean", "low", "high"))
    return _cell(number(mean, places), mean, interval(low, high, places))


def _greater(name: str) -> bool:
    """Whether the first sort of a metric's column puts great values on top."""
    return not any(word in name.lower() for word in LOWER_IS_BETTER)


def _column(label: str, order: str, falling: bool = False) -> dict[str, str]:
    return {"label": label, "order": order, "first": "descending" if falling else "ascending"}


def _cell(text: str, value: Any, second: str = "") -> dict[str, Any]:
    return {"text": text, "value": "" if value is None else value, "second": second}
