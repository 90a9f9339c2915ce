"""What ``steepest compare`` answers on ten tables within its default budget, networks beside trees.

For every table one run with all defaults (the columns that leak and the task are given where the file needs it): the
time, the level that fitted, the network that was chosen, the sentence, the probabilities of the declared question, and
the scores of the networks and of forest and boosting as tuned there. Then, outside the budget, in the folds and at the
level of that report: the same learners untuned, and the baseline on plain networks as trained before (batches of 256
above 5,000 rows, 60 epochs, patience 10). The share of the gap is (network - plain before) / (best trees - plain
before), averaged over the tables where trees, tuned or not, lead by more than .005. What is in the file ``--done`` is
not run again.

    STEEPEST_DATA=FOLDER python benchmarks/default_budget.py [--tables sonar,ecoli] [--budget 10m] [--done FILE]
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _options import read_options
from _record import keep
from _tables import TABLES, TREES, Rows, asked

from steepest import compare
from steepest.comparison.api import prepare
from steepest.comparison.design.jobs import Job
from steepest.comparison.design.levels import Level
from steepest.comparison.request import Request
from steepest.comparison.work.cells import run_job

LARGE, CLEAR = 5_000, 0.005
TOLD = ("tier", "difference", "p", "prob_better", "prob_same", "prob_worse")


def beside(name: str, results: dict[str, Any]) -> dict[str, float]:
    """Means over the folds of the report: trees untuned, and the baseline on plain networks as trained before."""
    data, options = asked(name)
    basis, pairs = results["basis"], [tuple(pair) for pair in results["folds"]]
    level = Level(basis["rows"], basis["epochs"], basis["trials"])
    plain: dict[str, Any] = {"epochs": 60, "patience": 10}
    if results["data"]["rows"] > LARGE:
        plain["batch_size"] = 256
    context = prepare(Request(data, **options, **plain, model="plain"))[0]
    means = {}
    for kind, what, own in [
        ("objective", context.settings.baseline, level),
        *(("classical", learner, Level(level.rows, level.epochs, 1)) for learner in TREES[:2]),
    ]:
        scores = [run_job(context.at(own), Job(kind, what, (pair,)))[0].values["score"] for pair in pairs]
        means["plain before" if kind == "objective" else f"{what} untuned"] = statistics.mean(scores)
    return means


def measured(name: str, budget: str, folder: Path) -> dict[str, Any]:
    """One run with all defaults, and what stands beside it."""
    data, options = asked(name)
    started = time.perf_counter()
    compare(data, budget=budget, out=folder / name, **options)
    seconds = time.perf_counter() - started
    (stored,) = (folder / name).glob("*/results.json")
    results = json.loads(stored.read_text())
    scores = {what: statistics.mean(own) for what, own in results["fold_scores"].items()}
    return {
        "table": name,
        "seconds": round(seconds, 1),
        "metric": results["metric"]["name"],
        "network": results["protocol"]["model"],
        "basis": {k: results["basis"][k] for k in ("rows", "epochs", "trials", "folds", "planned_folds", "cut")},
        "left out": results["basis"]["left_out"],
        "sentence": results["sentence"],
        "headline": results["headline"],
        "advice": results["advice"],
        "classical": results["classical"],
        "scores": scores,
        "tiers": {row["name"]: {k: row.get(k) for k in TOLD} for row in results["rows"]},
        "beside": beside(name, results),
    }


def shares(rows: list[dict[str, Any]], of: str) -> dict[str, float]:
    """The share of the gap that networks close, by table with a clear gap."""
    out = {}
    for row in rows:
        plain = row["beside"]["plain before"]
        tuned = [row["scores"][name] for name in TREES if name in row["scores"]]
        best = max(*tuned, *(row["beside"][f"{name} untuned"] for name in TREES[:2]))
        if best - plain > CLEAR:
            out[row["table"]] = (row["headline"][of] - plain) / (best - plain)
    return out


def main() -> None:
    """Run what is not done yet, print a table."""
    options = read_options(__doc__, tables=(",".join(TABLES), "wine"), budget=("10m", "20s"), done=("", ""))
    torch.set_num_threads(1)
    done = Rows(options.done)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.tables.split(","):
            if not done.has(table=name):
                done.add(measured(name, options.budget, Path(folder)))
    for row in done:
        trees = {name: f"{row['scores'][name]:.4f}" for name in TREES if name in row["scores"]}
        print(f"{row['table']}: {row['seconds']:.0f} s, {row['network']}, {row['basis']}\n  {row['sentence']}")
        print(f"  trees {trees}, beside {row['beside']}")
    closed = {of: shares(done, of) for of in ("baseline_mean", "procedure_mean")}
    for of, by_table in closed.items():
        if by_table:
            words = ", ".join(f"{name} {share:.2f}" for name, share in by_table.items())
            print(f"{of} closes {statistics.mean(by_table.values()):.2f} of the gap: {words}")
    keep("default_budget", {"rows": done, "closed": closed}, options)


if __name__ == "__main__":
    main()
