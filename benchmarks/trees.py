"""Learners on trees beside each other: LightGBM, scikit-learn's boosting, a random forest, with 1 and with 4 trials.

Tables are those of the folder that ``$STEEPEST_DATA`` names (wine with ``--quick``), in 2 x 3 folds, by the metric of a
comparison. Trials are chosen on inner validation, where boosting stops too. One more arm is LightGBM with leaves for
large tables, of at least 40 rows, on all cuts and features and 75% of the rows a tree. Seconds are of one core and
count everything. What is in the file ``--done`` is not measured again.

    STEEPEST_DATA=FOLDER python benchmarks/trees.py [--tables sonar,ecoli] [--trials 1,4] [--done FILE]
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from _options import read_options
from _record import keep
from _tables import Rows, asked

from steepest.comparison.api import prepare
from steepest.comparison.design.context import Context
from steepest.comparison.design.jobs import Job
from steepest.comparison.request import Request
from steepest.comparison.work.cells import run_job
from steepest.comparison.work.classical import fit_learners, outcome_of_split, rounds_of

TABLES = "sonar,ionosphere,ecoli,pima,oil-spill,winequality-red,abalone,phoneme"
ARMS = ("lightgbm", "boosting", "forest")
LARGE = {"leaves": 50, "min_leaf": 40, "features": 1.0, "rows": 0.75, "random_cuts": False}
REPEATS, FOLDS = 2, 3


def prepared(table: str, trials: int) -> Context:
    """The comparison of a table."""
    data, _ = asked(table)
    return prepare(Request(data, repeats=REPEATS, folds=FOLDS, trials=trials, objectives="focal", rare="drop"))[0]


def with_large_leaves(context: Context) -> list[float]:
    """Scores of LightGBM with leaves for large tables, untuned."""
    scores = []
    options: dict[str, Any] = {"classes": context.classes, "rows": len(context.table.target), "seed": 0, "hyper": LARGE}
    for pair in context.folds:
        splits = [context.split(pair, inner_split) for inner_split in range(len(context.inner(pair)))]
        rounds = rounds_of([fit_learners("lightgbm", split, stop=True, **options) for split in splits])
        whole = context.split(pair, -1)
        outcome = outcome_of_split(fit_learners("lightgbm", whole, rounds=rounds, **options), whole)
        scores.append(context.metric(whole.other_target, outcome, whole.other_weight))
    return scores


def measured(table: str, arm: str, trials: int) -> dict[str, Any]:
    """Scores of all folds, and processor seconds."""
    context = prepared(table, trials)
    context.split(next(iter(context.folds)), 0)
    started = time.process_time()
    if arm == "large leaves":
        scores = with_large_leaves(context)
    else:
        cells = [run_job(context, Job("classical", arm, (pair,)))[0] for pair in context.folds]
        scores = [float("nan") if cell.values["score"] is None else cell.values["score"] for cell in cells]
    return {
        "table": table,
        "metric": context.metric.name,
        "arm": arm,
        "trials": trials,
        "score": round(float(np.mean(scores)), 4),
        "scores": [round(float(score), 4) for score in scores],
        "core_seconds": round(time.process_time() - started, 1),
    }


def main() -> None:
    """Measure what is not done yet, print a line for each."""
    options = read_options(__doc__, tables=(TABLES, "wine"), trials=("1,4", "1,2"), done=("", ""))
    torch.set_num_threads(1)
    rows = Rows(options.done)
    for table in options.tables.split(","):
        wanted = [(arm, int(trials)) for arm in ARMS for trials in options.trials.split(",")] + [("large leaves", 1)]
        for arm, trials in wanted:
            if rows.has(table=table, arm=arm, trials=trials):
                continue
            rows.add(measured(table, arm, trials))
            score, took, metric = (rows[-1][key] for key in ("score", "core_seconds", "metric"))
            print(f"{table:<16} {metric:<18} {arm:<13} {trials} trials: {score:.4f}, {took} s", flush=True)
    seconds = {
        f"{arm}, {trials} trials": round(
            sum(row["core_seconds"] for row in rows if (row["arm"], row["trials"]) == (arm, trials)), 1
        )
        for arm, trials in dict.fromkeys((row["arm"], row["trials"]) for row in rows)
    }
    print(f"core-seconds: {seconds}")
    keep("trees", {"folds": f"{REPEATS} x {FOLDS}", "core_seconds": seconds, "rows": rows}, options)


if __name__ == "__main__":
    main()
