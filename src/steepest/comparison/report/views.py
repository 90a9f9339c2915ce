"""Tables of the page: what each cell shows, and the value by which its column sorts."""

from __future__ import annotations

from typing import Any

from steepest.comparison.report.numbers import compact, interval, number, probability
from steepest.comparison.report.tables import metric_names, spread_places

LOWER_IS_BETTER = ("loss", "error", "rmse", "mae", "mse", "ece", "brier", "pinball", "nll", "deviance")
TIER_MARKS = {"better": "▲", "not told apart": "○", "worse": "▼", "baseline": "■", "": ""}


def leaderboard(results: dict[str, Any], places: int) -> dict[str, Any]:
    """Columns and rows of the leaderboard.

    A column has a label, a kind of order ("number" or "text") and the direction of its first sort; a cell has a text, a
    second line, and a value.
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
            _cell(number(row["detectable"], places), row["detectable"]),
            *(_score(row, name, spread[name]) for name in others),
            _cell(compact(row["seconds_per_epoch"]), row["seconds_per_epoch"]),
            _cell(compact(row["peak_memory_mb"]), row["peak_memory_mb"]),
            _cell(number(row["diverged"], 0), row["diverged"]),
            _cell(row["settings"] or "–", row["settings"]),
        ]
        tone = {"better": "better", "worse": "worse"}.get(row["tier"], "neutral")
        rows.append({"name": row["name"], "title": row["title"], "kind": row["kind"], "tone": tone, "cells": cells})
    return {"columns": columns, "rows": rows}


def fold_scores(results: dict[str, Any]) -> dict[str, Any] | None:
    """Names by outer folds, in the order of the leaderboard; None without scores."""
    known = results.get("fold_scores") or {}
    places = spread_places(results, results["metric"]["name"])
    names = [row["name"] for row in results["rows"] if row["name"] in known]
    if not names:
        return None
    count = max(len(known[name]) for name in names)
    rows = [{"name": name, "cells": [_cell(number(value, places), value) for value in known[name]]} for name in names]
    return {"count": count, "rows": rows}


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


def _score(row: dict[str, Any], name: str, places: int) -> dict[str, Any]:
    own = row["metrics"].get(name) or {}
    mean, low, high = (own.get(part) for part in ("mean", "low", "high"))
    return _cell(number(mean, places), mean, interval(low, high, places))


def _greater(name: str) -> bool:
    """Whether the first sort of a metric's column puts great values on top."""
    return not any(part in name.lower() for part in LOWER_IS_BETTER)


def _column(label: str, order: str, falling: bool = False) -> dict[str, str]:
    return {"label": label, "order": order, "first": "descending" if falling else "ascending"}


def _cell(text: str, value: Any, second: str = "") -> dict[str, Any]:
    return {"text": text, "value": "" if value is None else value, "second": second}
