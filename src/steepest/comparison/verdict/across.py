"""Several data sets in one call: Friedman, Wilcoxon against the baseline with Holm, and leaderboards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..statistics import (
    ALPHA,
    critical_difference,
    elo,
    friedman,
    improvability,
    single_ranks,
    wilcoxon_holm,
    win_rates,
)
from ..statistics.across import alike


def compare_across(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What several finished comparisons say together.

    Args:
        results: one dict for each data set, as ``results.json`` holds them; objectives that all of them ran are used,
            and only data sets of one metric can be ranked together.

    Returns:
        ``lines`` and one ``sentence`` for people, and the numbers: objectives, data sets, scores, ranks, p values.

    >>> compare_across([])["lines"]
    ['across data sets: nothing to compare']
    >>> compare_across([])["sentence"]
    'Nothing to compare.'
    """
    shared = [n for n in (results[0]["fold_scores"] if results else {}) if all(n in r["fold_scores"] for r in results)]
    objectives = {row["name"] for r in results for row in r["rows"] if row["kind"] == "objective"}
    names = [n for n in shared if n in objectives]
    metrics = sorted({r["metric"]["name"] for r in results})
    directions = {r["metric"]["greater_is_better"] for r in results}
    baselines = {r["headline"]["baseline"] for r in results}
    if len(metrics) > 1:
        return _nothing(names, f", their metrics differ ({', '.join(metrics)}); --metric sets one")
    if len(names) < 2 or len(directions) != 1 or len(baselines) != 1:
        return _nothing(names, "")
    greater, baseline = directions.pop(), baselines.pop()
    order = [baseline, *(n for n in names if n != baseline)]

    def mean(result: dict[str, Any], name: str) -> float:
        values = [v for v in result["fold_scores"][name] if v is not None]
        return float(np.mean(values)) if values else float("nan")

    scores = np.array([[mean(r, n) for n in order] for r in results])
    for row in scores:  # what never was finite ties with the worst of its data set
        known = row[np.isfinite(row)]
        row[~np.isfinite(row)] = (known.min() if greater else known.max()) if len(known) else 0.0
    lines = [f"across {len(results)} data sets, {len(order)} objectives:"]
    comparison: dict[str, Any] = {
        "objectives": order,
        "baseline": baseline,
        "data_sets": [r["data"]["name"] for r in results],
        "scores": scores.tolist(),
    }
    if len(order) > 2:
        overall = friedman(scores, greater_is_better=greater)
        ranks = ", ".join(f"{n} {rank:.2f}" for n, rank in sorted(zip(order, overall.ranks), key=lambda pair: pair[1]))
        lines.append(f"  mean ranks: {ranks}")
        lines.append(f"  Friedman: statistic {overall.statistic:.3g}, p = {overall.pvalue:.3g}")
        comparison |= {
            "ranks": list(overall.ranks),
            "single_ranks": single_ranks(scores, greater).tolist(),
            "friedman": overall.statistic,
            "friedman_p": overall.pvalue,
        }
        if len(results) > 1:
            comparison |= _leaderboard(results, scores, greater, list(overall.ranks))
            lines += _leaderboard_lines(comparison)
    pairs = wilcoxon_holm(scores, baseline=0, greater_is_better=greater)
    for index, p in zip(pairs.methods, pairs.adjusted):
        lines.append(f"  {order[index]} against {baseline}: Wilcoxon p = {p:.3g} (Holm)")
    if pairs.message:
        lines.append(f"  {pairs.message}")
    apart = [order[i] for i, p in zip(pairs.methods, pairs.adjusted) if p < ALPHA]
    comparison |= {
        "wilcoxon_holm": dict(zip([order[i] for i in pairs.methods], pairs.adjusted)),
        "message": pairs.message,
    }
    return {"lines": lines, "sentence": _sentence(comparison, apart, greater), **comparison}


def errors_of(result: dict[str, Any], scores: np.ndarray) -> np.ndarray | None:
    """How far scores are from the best that their metric can be, at least 0; None where that is not known."""
    best = result["metric"].get("best")
    if best is None:
        return None
    errors: np.ndarray = best - scores if result["metric"]["greater_is_better"] else scores - best
    return np.maximum(0.0, errors)


def _leaderboard(
    results: Sequence[dict[str, Any]], scores: np.ndarray, greater: bool, ranks: list[float]
) -> dict[str, Any]:
    """Elo, win rates, improvability and the groups that Nemenyi's test leaves together."""
    rated, rates, errors = elo(scores, greater), win_rates(scores, greater), errors_of(results[0], scores)
    difference = critical_difference(scores.shape[1], len(scores))
    return {
        "critical_difference": difference,
        "groups": [list(group) for group in alike(ranks, difference)],
        "elo": list(rated.ratings),
        "elo_low": list(rated.low),
        "elo_high": list(rated.high),
        "elo_message": rated.message,
        "win_rates": [[None if np.isnan(rate) else float(rate) for rate in row] for row in rates],
        "win_rate": np.nanmean(rates, axis=1).tolist(),
        "improvability": None if errors is None else improvability(errors).tolist(),
    }


def _leaderboard_lines(comparison: dict[str, Any]) -> list[str]:
    names = comparison["objectives"]
    order = sorted(range(len(names)), key=lambda i: -comparison["elo"][i])
    parts = [
        f"{names[i]} {comparison['elo'][i]:.0f} [{comparison['elo_low'][i]:.0f}, {comparison['elo_high'][i]:.0f}]"
        for i in order
    ]
    lines = [f"  Elo (95% over data sets): {', '.join(parts)}"]
    if comparison["elo_message"]:
        lines.append(f"  {comparison['elo_message']}")
    if (shares := comparison["improvability"]) is not None:
        best = sorted(range(len(names)), key=lambda i: shares[i])
        lines.append(f"  improvability: {', '.join(f'{names[i]} {100 * shares[i]:.1f}%' for i in best)}")
    return lines


def _nothing(names: Sequence[str], why: str) -> dict[str, Any]:
    return {
        "lines": [f"across data sets: nothing to compare{why}"],
        "sentence": f"Nothing to compare{why}.",
        "objectives": list(names),
        "message": "",
    }


def _sentence(results: dict[str, Any], apart: Sequence[str], greater: bool) -> str:
    """What the tests say, in one sentence."""
    baseline, names = results["baseline"], results["objectives"]
    scores = np.array(results["scores"])
    gains = (1 if greater else -1) * (scores - scores[:, :1])
    middle = dict(zip(names, np.median(gains, axis=0)))
    over = f"Over {len(scores)} data sets "
    if not apart:
        best = names[int(np.argmin(results["ranks"]))] if "ranks" in results else None
        rank = "" if best is None else f"; {best} has the best mean rank, {min(results['ranks']):.2f}"
        return f"{over}no objective was told apart from {baseline}{rank}."
    adjusted = results["wilcoxon_holm"]
    parts = [
        f"{name} {'beats' if middle[name] > 0 else 'loses to'} {baseline} (p = {adjusted[name]:.2g}, Holm)"
        for name in apart
    ]
    return over + "; ".join(parts) + "."
