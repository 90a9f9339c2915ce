"""Scores of comparisons in the form of other leaderboards."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from .across import name_of
from .files import write_atomically

COLUMNS = ("method", "task", "metric_error", "seed", "time_train_s", "time_infer_s")
"""Of bencheval: one row a method, task and seed; errors are at least 0, lower is better."""


def write_export(results: Sequence[dict[str, Any]], folders: Sequence[Path]) -> Path:
    """Write ``bencheval.csv`` into the folder of one run, or beside those of several, and give its path."""
    text = bencheval_csv(results)
    if len(folders) == 1:
        return write_atomically(Path(folders[0]) / "bencheval.csv", text)
    return write_atomically(Path(folders[0]).parent / f"{name_of(folders)}-bencheval.csv", text)


def bencheval_csv(results: Sequence[dict[str, Any]]) -> str:
    """The frame that bencheval takes, as CSV: each outer fold is a seed of its data set.

    The error is how far a score is from the best that the metric can be: 1 - accuracy, RMSE as it is. Methods are the
    objectives and classical learners that have a score in every fold of every data set, so that the frame has no
    holes. Training is the time of all trials and the refit. How long predictions take is not measured: no value there.

    Args:
        results: of each data set, as ``results.json`` holds them.

    Raises:
        InputError: it is not known how good a metric can be, or no method is everywhere.
    """
    tables = [_scores(result) for result in results]
    methods = [name for name in tables[0] if all(name in table for table in tables)]
    if not methods:
        raise InputError("--export: no method has a score in every fold of every data set")
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for task, result, table in zip(_tasks(results), results, tables):
        best = result["metric"].get("best")
        if best is None:
            raise InputError(f"--export: nothing says how good {result['metric']['label']} can be, so it has no error")
        seconds, totals = result.get("fold_seconds") or {}, {row["name"]: row.get("seconds") for row in result["rows"]}
        for name in methods:
            scores = table[name]
            mean = None if totals.get(name) is None else totals[name] / len(scores)
            times = seconds.get(name) or [mean] * len(scores)
            for seed, (score, time) in enumerate(zip(scores, times, strict=True)):
                error = best - score if result["metric"]["greater_is_better"] else score - best
                writer.writerow(
                    [name, task, f"{max(0.0, error):.10g}", seed, "" if time is None else f"{time:.6g}", ""]
                )
    return stream.getvalue()


def _scores(result: dict[str, Any]) -> dict[str, list[float]]:
    """The scores by fold of what has one in all of them."""
    kinds = {row["name"]: row["kind"] for row in result["rows"]}
    return {
        name: scores
        for name, scores in result["fold_scores"].items()
        if kinds.get(name) in ("objective", "classical") and scores and None not in scores
    }


def _tasks(results: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the data sets; of several runs on one, with the run's ID."""
    names = [result["data"]["name"] for result in results]
    return [name if names.count(name) == 1 else f"{name} ({result['id']})" for name, result in zip(names, results)]
