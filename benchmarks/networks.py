"""Networks beside trees on ten tables: scores and core-seconds of one tuned procedure each, outside any budget.

For every table, in the same 2 x 3 outer folds (``--repeats 2``): plain networks as trained before (batches of 256
above 5,000 rows, 60 epochs, patience 10), plain networks, TabM of 16, 4 and 1 members, random forest and gradient
boosting, each with 4 trials chosen on inner validation and scored on the outer part, by the metric that ``steepest
compare`` takes (R2 for abalone). Processor seconds are counted, on one thread. The share of the gap is (network - plain
before) / (best trees - plain before), averaged over the tables where trees lead by more than .005. What is in the file
``--done`` is not measured again.

    STEEPEST_DATA=FOLDER python benchmarks/networks.py [--tables sonar,ecoli] [--arms plain,tabm] [--done FILE]
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _options import read_options
from _record import keep
from _tables import TABLES, TREES, Rows, asked

from steepest.comparison.api import prepare
from steepest.comparison.design.context import Context
from steepest.comparison.design.jobs import Job
from steepest.comparison.design.models import TABMS
from steepest.comparison.request import Request
from steepest.comparison.work.cells import run_job

NETWORKS = ("plain", *TABMS)
ARMS = ("plain before", *NETWORKS, "forest", "lightgbm")
REPEATS, FOLDS, TRIALS, ADULT, CLEAR = 2, 3, 4, 8000, 0.005


def prepared(name: str, **options: Any) -> Context:
    """The comparison of one table."""
    data, own = asked(name)
    given: dict[str, Any] = {"folds": FOLDS, "trials": TRIALS, "objectives": "default", **own}
    if name == "adult":
        rows = Path(data).read_text().splitlines()
        chosen = np.random.default_rng(0).permutation(len(rows))[:ADULT]
        data = str(Path(tempfile.gettempdir()) / "adult-8000.csv")
        Path(data).write_text("\n".join(rows[i] for i in np.sort(chosen)) + "\n")
    return prepare(Request(data, **{"repeats": REPEATS, **given, **options}))[0]


def context_of(name: str, arm: str, repeats: int) -> tuple[Context, str, str]:
    """The comparison of an arm, and the kind and name of its cells."""
    if arm in TREES:
        return prepared(name, model="plain", repeats=repeats), "classical", arm
    options: dict[str, Any] = {"model": arm if arm in TABMS else "plain", "classical": False, "repeats": repeats}
    if arm == "plain before":
        large = len(prepared(name, model="plain").table.target) > 5_000
        options |= {"batch_size": 256 if large else 64, "epochs": 60, "patience": 10}
    context = prepared(name, **options)
    return context, "objective", context.settings.baseline


def measured(name: str, arm: str, repeats: int) -> dict[str, Any]:
    """Scores of all folds, and processor seconds."""
    context, kind, what = context_of(name, arm, repeats)
    context.split(next(iter(context.folds)), 0)
    scores, started = [], time.process_time()
    for pair in context.folds:
        (cell,) = run_job(context, Job(kind, what, (pair,)))
        scores.append(cell.values["score"])
    seconds = time.process_time() - started
    return {"table": name, "arm": arm, "metric": context.metric.name, "scores": scores, "seconds": round(seconds, 1)}


def shares(means: dict[str, dict[str, float]], network: str) -> dict[str, float]:
    """The share of the gap that a network closes, by table with a clear gap."""
    out = {}
    for name, own in means.items():
        trees = [own[arm] for arm in TREES if arm in own]
        if trees and network in own and max(trees) - own["plain before"] > CLEAR:
            out[name] = (own[network] - own["plain before"]) / (max(trees) - own["plain before"])
    return out


def main() -> None:
    """Measure what is not done yet, print a table."""
    options = read_options(
        __doc__,
        tables=(",".join(TABLES), "wine"),
        arms=(",".join(ARMS), "plain before,plain,forest"),
        repeats=(REPEATS, REPEATS),
        done=("", ""),
    )
    torch.set_num_threads(1)
    done = Rows(options.done)
    for name in options.tables.split(","):
        for arm in options.arms.split(","):
            if not done.has(table=name, arm=arm):
                done.add(measured(name, arm, options.repeats))
                print(
                    name, arm, f"{statistics.mean(done[-1]['scores']):.4f}", f"{done[-1]['seconds']:.0f} s", flush=True
                )
    means: dict[str, dict[str, float]] = {}
    for row in done:
        means.setdefault(row["table"], {})[row["arm"]] = statistics.mean(row["scores"])
    closed = {network: shares(means, network) for network in NETWORKS}
    for network, by_table in closed.items():
        if by_table:
            words = ", ".join(f"{name} {share:.2f}" for name, share in by_table.items())
            print(f"{network} closes {statistics.mean(by_table.values()):.2f} of the gap: {words}")
    name = "networks" if options.repeats == REPEATS else f"networks-{options.repeats}-repeats"
    keep(name, {"rows": done, "closed": closed}, options)


if __name__ == "__main__":
    main()
