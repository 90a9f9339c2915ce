"""The leaderboard as CSV and Markdown, and the results as JSON."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Iterable
from typing import Any

from ..statistics.looks import ALPHA, confidence
from ..statistics.practical import PROBABILITIES
from .advice import advice
from .numbers import MISSING, chance, clean, compact, decimals, interval, number, probability

FIELDS = ("name", "title", "kind", "tier", "difference", "low", "high", "p", "p_holm", *PROBABILITIES, "detectable")
LAST = ("seconds", "seconds_per_epoch", "peak_memory_mb", "diverged", "settings")


def prepare(results: dict[str, Any]) -> dict[str, Any]:
    """A clean copy with its rows complete and in order.

    Order is from best to worst mean of the metric of the comparison; rows without one come last. A key that a row lacks
    is None; so is the look, and the level is the whole one, in results that were kept without them.
    """
    results = {"alpha": ALPHA, "look": None} | clean(results)
    metric, sign = results["metric"]["name"], 1 if results["metric"]["greater_is_better"] else -1
    rows = [dict.fromkeys((*FIELDS, *LAST)) | row | {"metrics": row.get("metrics") or {}} for row in results["rows"]]
    scored = [row for row in rows if score(row, metric) is not None]
    missing = [row for row in rows if score(row, metric) is None]
    results["rows"] = sorted(scored, key=lambda row: -sign * row["metrics"][metric]["mean"]) + missing
    return results


def confidence_of(results: dict[str, Any]) -> str:
    """The confidence of all intervals of these results, in percent."""
    return confidence(results.get("alpha", ALPHA))


def score(row: dict[str, Any], metric: str) -> float | None:
    """The mean of one metric in one row, or None.

    >>> score({"metrics": {"accuracy": {"mean": 0.9}}}, "accuracy"), score({"metrics": {}}, "accuracy")
    (0.9, None)
    """
    return (row["metrics"].get(metric) or {}).get("mean")


def metric_names(results: dict[str, Any]) -> list[str]:
    """Every metric of any row: that of the comparison first, then in order of appearance."""
    names = [results["metric"]["name"]] + [name for row in results["rows"] for name in row["metrics"]]
    return list(dict.fromkeys(names))


def results_json(results: dict[str, Any], indent: int | None = 1) -> str:
    """Strict JSON: what is not finite is ``null``."""
    separators = (",", ":") if indent is None else None
    return json.dumps(clean(results), allow_nan=False, ensure_ascii=False, indent=indent, separators=separators) + "\n"


def leaderboard_csv(results: dict[str, Any]) -> str:
    """One line a row of the leaderboard, best first; an empty cell where a value is missing."""
    results = prepare(results)
    metrics = metric_names(results)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*FIELDS, *(f"{name}_{bound}" for name in metrics for bound in ("mean", "low", "high")), *LAST])
    for row in results["rows"]:
        cells = [(row["metrics"].get(name) or {}).get(bound) for name in metrics for bound in ("mean", "low", "high")]
        writer.writerow([*(row.get(key) for key in FIELDS), *cells, *(row.get(key) for key in LAST)])
    return stream.getvalue()


def leaderboard_markdown(results: dict[str, Any]) -> str:
    """The sentence, what to do, and the leaderboard as a GitHub table, best first, without empty columns."""
    results = prepare(results)
    metric = results["metric"]
    places = spread_places(results, metric["name"])
    steps = difference_places(results)
    baseline = results["headline"]["baseline"]
    span = f"{confidence_of(results)} interval"
    titles = ["", "tier", metric["label"], span, f"difference to {baseline}", span, "p (Holm)",
              "P(better, same, worse)", "s per epoch"]  # fmt: skip
    body = []
    for row in results["rows"]:
        own = row["metrics"].get(metric["name"]) or {}
        cells = (
            escape(row["name"]),
            escape(row["tier"] or row["kind"]),
            number(own.get("mean"), places),
            escape(interval(own.get("low"), own.get("high"), places)),
            number(row["difference"], steps, True),
            escape(interval(row["low"], row["high"], steps, True)),
            escape(probability(row["p_holm"])),
            escape(three_probabilities(row)),
            compact(row["seconds_per_epoch"]),
        )
        body.append(cells)
    filled = [any(text not in ("", MISSING) for text in column) for column in zip(*body)]
    ends = [":--" if column < 2 else "--:" for column in range(len(titles))]
    lines = [escape(results["sentence"]), "", f"**So do this:** {escape(advice(results))}", ""]
    lines += [
        _line(itertools.compress(map(escape, titles), filled)),
        "|" + "|".join(itertools.compress(ends, filled)) + "|",
    ]
    lines += [_line(itertools.compress(cells, filled)) for cells in body]
    return "\n".join(lines) + "\n"


def three_probabilities(row: dict[str, Any]) -> str:
    """P(better), P(practically the same) and P(worse) of a row; "" where there are none.

    >>> three_probabilities({"prob_better": 0.8004, "prob_same": 0.1963, "prob_worse": 0.0033})
    '0.80, 0.20, <0.01'
    """
    values = [row.get(key) for key in PROBABILITIES]
    return "" if None in values else ", ".join(map(chance, values))


def spread_places(results: dict[str, Any], metric: str) -> int:
    """Decimals for a metric's means: two significant digits of its typical half-interval."""
    own = [row["metrics"].get(metric) or {} for row in results["rows"]]
    return decimals(
        (score["high"] - score["low"]) / 2 for score in own if None not in (score.get("low"), score.get("high"))
    )


def difference_places(results: dict[str, Any]) -> int:
    """Decimals for differences to the baseline, the headline's among them."""
    rows = [results["headline"], *results["rows"]]
    return decimals((row["high"] - row["low"]) / 2 for row in rows if None not in (row.get("low"), row.get("high")))


def escape(text: str) -> str:
    r"""Text that Markdown, inside or outside a table, shows as it is.

    >>> print(escape("a|b <i> [x](y)"))
    a\|b \<i\> \[x\](y)
    """
    return re.sub(r"([\\|<>*\[\]`])", r"\\\1", " ".join(text.split()))


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
