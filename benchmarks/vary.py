"""What ``steepest compare --vary`` answers on real tables: does choosing the optimizer, schedule or aggregator help?

On each table one run of all arms in five outer folds, with two trials an arm and 30 epochs at most, so that it ends in
minutes on one core: the sentence, the test of the declared question, and each arm against the baseline (AdamW, a
constant rate, the mean of the gradients); of aggregators also the scores of each target and how far the targets'
gradients pull apart. Optimizers and schedules go over ``sonar``. Aggregators go over ``housing`` with prices (14),
nitric oxides (5) and the share of people of lower status (13) as targets, all numbers, and ``pima`` with diabetes (9),
which is yes or no, glucose (2) and body mass (6). What is in the file ``--done`` is not run again.

    STEEPEST_DATA=FOLDER python benchmarks/vary.py [--vary optimizer] [--budget 30m] [--trials 2] [--done FILE]
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _options import read_options
from _record import keep
from _tables import Rows, asked

from steepest import compare

TABLES = {
    "optimizer": {"sonar": ""},
    "schedule": {"sonar": ""},
    "aggregator": {"housing": "14,5,13", "pima": "9,2,6"},
}
"""Tables of each kind, with the targets where there are several."""
TOLD = ("tier", "difference", "low", "high", "p", "p_holm", "prob_better", "prob_same", "prob_worse", "detectable")


def measured(vary: str, name: str, options: Any, folder: Path) -> dict[str, Any]:
    """One run of all arms on a table."""
    data, _ = asked(name)
    started = time.perf_counter()
    compare(
        data,
        target=TABLES[vary].get(name) or None,
        vary=vary,
        arms="all",
        budget=options.budget,
        repeats=options.repeats,
        trials=options.trials,
        epochs=options.epochs,
        classical=False,
        workers=1,
        out=folder / vary / name,
        quiet=True,
    )
    seconds = time.perf_counter() - started
    (stored,) = (folder / vary / name).glob("*/results.json")
    results = json.loads(stored.read_text())
    arms = {}
    for row in results["rows"]:
        if row["kind"] == "objective":
            told = {key: row.get(key) for key in TOLD}
            scores = {metric: values["mean"] for metric, values in row["metrics"].items()}
            arms[row["name"]] = {**told, "scores": scores, "seconds": round(row["seconds"], 1)}
    measures = {
        "vary": vary,
        "table": name,
        "seconds": round(seconds, 1),
        "rows": results["data"]["rows"],
        "metric": results["metric"]["name"],
        "rope": results["rope"],
        "basis": {k: results["basis"][k] for k in ("rows", "epochs", "trials", "folds", "planned_folds", "cut")},
        "sentence": results["sentence"],
        "headline": results["headline"],
        "advice": results["advice"],
        "arms": arms,
        "fold_scores": {arm: results["fold_scores"][arm] for arm in arms},
    }
    if "conflict" in results:
        of_mean = results["conflict"]["arms"]["mean"]
        measures |= {
            "targets": results["conflict"]["targets"],
            "cosines": of_mean["cosine"],
            "in conflict": of_mean["share"],
        }
    return measures


def main() -> None:
    """Run what is not done yet, print a table."""
    options = read_options(
        __doc__,
        vary=("optimizer,schedule,aggregator", "schedule"),
        tables=("", "wine"),
        budget=("30m", "30s"),
        repeats=(1, 1),
        trials=(2, 1),
        epochs=(30, 2),
        done=("", ""),
    )
    torch.set_num_threads(1)
    done = Rows(options.done)
    with tempfile.TemporaryDirectory() as folder:
        for vary in options.vary.split(","):
            for name in options.tables.split(",") if options.tables else TABLES[vary]:
                if not done.has(vary=vary, table=name):
                    done.add(measured(vary, name, options, Path(folder)))
    for row in done:
        print(f"{row['vary']}, {row['table']}: {row['seconds']:.0f} s, {row['basis']}")
        print(f"  {row['sentence']}\n  {row['advice']}")
        for name, arm in row["arms"].items():
            scores = ", ".join(f"{metric} {value:.4f}" for metric, value in arm["scores"].items() if value is not None)
            print(f"  {name:<24}{arm['tier']:<18}{scores}, {arm['seconds']:.0f} s")
        if "cosines" in row:
            print(f"  conflict in {row['in conflict']:.0%} of steps, cosines {row['cosines']}")
    keep("vary", {"rows": list(done)}, options)


if __name__ == "__main__":
    main()
