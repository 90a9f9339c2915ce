"""How often looks at a growing comparison find a difference that is none: at a plain 5% each, and at 5% / 2^k.

Differences of folds under the null have the correlation that the corrected resampled t-test assumes: every two share
n_test / (n_train + n_test) of their variance. Each run is tested by that test after 5, 10 and 15 folds, and rejects if
any look does. Printed with twice the standard error of the simulation.

    python benchmarks/looks.py [--runs 20000] [--folds 5,10,15] [--fraction 0.2] [--seed 0]
"""

from __future__ import annotations

import math

import numpy as np
from _options import read_options
from _record import keep

from steepest.comparison.statistics import ALPHA, Look, corrected_resampled_ttest


def main() -> None:
    """Simulate, print and keep the rates."""
    options = read_options(__doc__, runs=(20_000, 50), folds=("5,10,15", "5,10,15"), fraction=(0.2, 0.2), seed=(0, 0))
    looks = [int(folds) for folds in options.folds.split(",")]
    generator = np.random.default_rng(options.seed)
    shared = math.sqrt(options.fraction) * generator.normal(size=(options.runs, 1))
    differences = shared + math.sqrt(1 - options.fraction) * generator.normal(size=(options.runs, max(looks)))
    pvalues = np.array(
        [
            [corrected_resampled_ttest(row[:folds], test_fraction=options.fraction).pvalue for folds in looks]
            for row in differences
        ]
    )
    levels = {
        "plain": [ALPHA] * len(looks),
        "halved": [Look(number, 0).alpha for number in range(1, len(looks) + 1)],
    }
    rates = {}
    for name, level in levels.items():
        rejected = pvalues < np.array(level)
        rate = float(rejected.any(axis=1).mean())
        error = 2 * math.sqrt(rate * (1 - rate) / options.runs)
        by_look = [float(share) for share in rejected.mean(axis=0)]
        rates[name] = {"levels": level, "by_look": by_look, "any": rate, "twice_standard_error": round(error, 5)}
        said = ", ".join(f"{folds} folds {share:.2%}" for folds, share in zip(looks, by_look))
        print(f"{name:<7} {said}; any look {rate:.2%} +- {error:.2%}")
    keep("looks", {**{k: getattr(options, k) for k in ("runs", "fraction", "seed")}, "folds": looks, **rates}, options)


if __name__ == "__main__":
    main()
