"""Learning rates of the optimizers that ``--vary optimizer`` compares: which suit, and which are tried at first.

Each optimizer trains plain networks once at every rate of a grid by factors of about 3, with the decay and the settings
of a first trial, in the first inner split of each outer fold, on wine, breast_cancer, digits and diabetes; a score is
that of the epoch that early stopping takes. The loss of a rate is how far its mean score is below the best of all
optimizers and rates, over how far their median is, 1 at most. Told are the rate of least mean loss over the tables, the
losses of the first rates that a comparison tries, and the range that the others are drawn from.

    python benchmarks/arm_rates.py [--arms momo,psps] [--tables wine,digits] [--folds 3]
"""

from __future__ import annotations

import statistics

import torch
from _options import read_options
from _record import keep

from steepest.comparison.api import prepare
from steepest.comparison.design.arms import ARMS
from steepest.comparison.design.context import Context
from steepest.comparison.design.trials import WEIGHT_DECAY, Trial
from steepest.comparison.request import Request
from steepest.comparison.work.cells import member_of, recipe_of
from steepest.comparison.work.training import train

TABLES = "wine,breast_cancer,digits,diabetes"
GRID = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)
REACH = 10.0
"""How far the grid goes beyond the rates that trials are drawn from."""


def score_of(context: Context, arm: str, rate: float) -> float:
    """The mean score of a rate over the outer folds; minus infinity where one has none."""
    recipe = recipe_of(context, context.objective(arm), arm=context.arm(arm))
    members = [member_of(context, pair, 0, Trial(rate, WEIGHT_DECAY)) for pair in context.folds]
    for member in members:
        train(recipe, [member])
    scores = [member.score for member in members]
    sign = 1.0 if context.metric.greater_is_better else -1.0
    finite = all(score is not None and score == score for score in scores)
    return sign * statistics.mean(scores) if finite else float("-inf")


def main() -> None:
    """Print and keep the scores of all rates."""
    options = read_options(__doc__, arms=("all", "momo"), tables=(TABLES, "wine"), folds=(3, 2))
    torch.set_num_threads(1)
    arms = list(ARMS["optimizer"]) if options.arms == "all" else options.arms.split(",")
    scores: dict[str, dict[str, dict[float, float]]] = {arm: {} for arm in arms}
    for table in options.tables.split(","):
        request = Request(
            table, vary="optimizer", arms=",".join(arms), model="plain", classical=False, repeats=1,
            folds=options.folds, trials=3, epochs=3 if options.quick else None, patience=2 if options.quick else None,
        )  # fmt: skip
        context, _ = prepare(request)
        for arm in arms:
            rates = context.arm(arm).rates
            grid = [rate for rate in GRID if rates.low / REACH <= rate <= rates.high * REACH]
            scores[arm][table] = {rate: score_of(context, arm, rate) for rate in grid}
            print(table, arm, {rate: round(score, 4) for rate, score in scores[arm][table].items()}, flush=True)
    keep("arm_rates", {"scores": scores, "losses": losses_of(scores)}, options)


def losses_of(scores: dict[str, dict[str, dict[float, float]]]) -> dict[str, dict[float, float]]:
    """By arm and rate, the mean over tables of what is lost to the best score, over what the median score loses."""
    losses: dict[str, dict[float, float]] = {}
    for arm, tables in scores.items():
        lost: dict[float, list[float]] = {}
        for table, own in tables.items():
            everything = [score for of_arm in scores.values() for score in of_arm[table].values()]
            best, middle = max(everything), statistics.median(everything)
            for rate, score in own.items():
                lost.setdefault(rate, []).append(min(1.0, (best - score) / (best - middle)) if best > middle else 0.0)
        losses[arm] = {rate: round(statistics.mean(values), 4) for rate, values in lost.items()}
        rates = ARMS["optimizer"][arm].rates
        least = min(losses[arm], key=losses[arm].get)  # type: ignore[arg-type]
        first = {rate: losses[arm].get(rate) for rate in rates.first}
        print(f"{arm}: best {least:g} ({losses[arm][least]:.3f}); first {first}; from {rates.low:g} to {rates.high:g}")
    return losses


if __name__ == "__main__":
    main()
