"""How much each objective of the shortlist gains over the baseline on tables, which is what its rank there goes by.

Reads tables from the folder that ``$STEEPEST_DATA`` names (built-in data with ``--quick``) and compares all
objectives of the shortlist on each, in one repeat of outer folds. An objective has a rank in every fold (1 is best,
ties share); the order is that of mean ranks over tables. Beside it stands the mean difference to the baseline in
units of the baseline's spread between folds. One repeat with few trials on small tables: an order to cut from, not a
verdict.

    python benchmarks/shortlist.py [--tables ecoli.csv,sonar.csv] [--folds 3] [--trials 2] [--epochs 30]
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _options import read_options
from _record import keep
from scipy.stats import rankdata

import steepest

TABLES = (
    "ecoli.csv,sonar.csv,ionosphere.csv,pima-indians-diabetes.csv,haberman.csv,digits,wine,housing.csv,diabetes,"
    "winequality-red.csv"
)


def measured(table: str, folds: int, trials: int, epochs: int) -> dict[str, Any]:
    """Mean ranks and mean standardised gains of the shortlist on one table, by objective."""
    path = Path(os.environ.get("STEEPEST_DATA", "data")) / table
    with tempfile.TemporaryDirectory() as out:
        comparison = steepest.compare(
            str(path) if table.endswith(".csv") else table,
            repeats=1,
            folds=folds,
            trials=trials,
            epochs=epochs,
            classical=False,
            workers=1,
            budget=600,
            rare="drop",
            out=out,
            quiet=True,
        )
    results = comparison.results
    sign = 1 if results["metric"]["greater_is_better"] else -1
    names = [row["name"] for row in results["rows"] if row["kind"] == "objective"]
    scores = sign * np.array([results["fold_scores"][name] for name in names], dtype=float)
    scores[~np.isfinite(scores)] = np.nanmin(scores)
    base = scores[names.index(results["headline"]["baseline"])]
    spread = float(base.std(ddof=1)) or 1.0
    gains = (scores - base).mean(axis=1) / spread
    ranks = rankdata(-scores, axis=0).mean(axis=1)
    return {
        "table": table,
        "task": results["data"]["task"],
        "metric": results["metric"]["name"],
        "rows": results["data"]["rows"],
        "ranks": dict(zip(names, ranks.round(3).tolist())),
        "gains": dict(zip(names, gains.round(4).tolist())),
    }


def main() -> None:
    """Measure, print and keep the ranks of each kind of target."""
    options = read_options(__doc__, tables=(TABLES, "iris"), folds=(3, 2), trials=(2, 1), epochs=(30, 2))
    tables = []
    for table in options.tables.split(","):
        tables.append(measured(table, options.folds, options.trials, options.epochs))
        print(f"{table}: {tables[-1]['ranks']}", flush=True)
    orders = {}
    for kind in ("classes", "numbers"):
        own = [measures for measures in tables if (measures["task"] == "regression") == (kind == "numbers")]
        names = sorted({name for measures in own for name in measures["ranks"]})
        rows = []
        for name in names:
            known = [measures for measures in own if name in measures["ranks"]]
            place = float(np.mean([measures["ranks"][name] for measures in known]))
            gain = float(np.mean([measures["gains"][name] for measures in known]))
            rows.append({"name": name, "tables": len(known), "mean_rank": round(place, 3), "gain": round(gain, 4)})
        orders[kind] = sorted(rows, key=lambda row: row["mean_rank"])
        for row in orders[kind]:
            print(f"{kind}  {row['name']:<24} mean rank {row['mean_rank']:.2f}, gain {row['gain']:+.3f} spreads")
    design = {name: getattr(options, name) for name in ("folds", "trials", "epochs")}
    keep("shortlist", {**design, "orders": orders, "tables": tables}, options)


if __name__ == "__main__":
    main()
