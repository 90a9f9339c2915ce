"""Fourteen regression losses: no single winner; robust ones are safe, squared and percentage ones fragile.

Set-up of the claim: forecast generated seasonal series (clean with Gaussian noise; 5% of the values spiked;
multiplicative growth) and predict diabetes, the same small MLP with each of the 14 losses, ranked by MAE, RMSE and
MAPE. Expected: robust losses first with spikes, MSE first when clean, MSLE on growth; MBE never trains.

A series has period 12 and is forecast one step ahead from its last 12 values; half the windows, at random, are tested.
Spikes are upward, 20 to 40 in the unit of the noise, and hit inputs and training targets; test targets are the values
without them. Growth is a factor of 20 over the series with noise of 15%. Losses see predictions and targets in their
natural unit, with Huber's delta 0.5 (the survey's code) and quantile 0.5; the net's output is scaled by the training
targets' mean and deviation. "First" is by the mean of the three ranks: losses of one minimiser count as one family,
which has to be ahead of the best loss outside it. The card gives ranks no number: a lead of one rank is taken as its
size. Each seed is the mean over ten draws of series and splits: a loss's ranks and errors are averaged over the draws
before the best of each family is taken. The best of each single draw would favour the larger family by chance.

"Safe" compares the worst of the four data sets: MAE over the best loss's MAE, of MAE, Huber and quantile against the
mean of MSE and MAPE; a difference of a tenth is taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import rankdata
from torch import Tensor

from ....core.objective import Objective
from ....losses.regression.survey import regression_loss_catalogue
from ...classify import Arm, train
from ...data import built_in, split
from ...experiment import Claim, Evidence
from ...figures import bars_figure

SEEDS = 14
REPEATS = 10
PARAMS = {
    "rae": {"eps": 1e-6},
    "rse": {"eps": 1e-6},
    "nrmse": {"eps": 1e-6},
    "rrmse": {"eps": 1e-6},
    "mape": {"eps": 1e-6},
    "msle": {"eps": 1e-3},
    "rmsle": {"eps": 1e-3},
    "huber": {"delta": 0.5},
    "quantile_loss": {"q": 0.5},
}
LOSSES = {card.name: card.module(**PARAMS.get(card.name, {})) for card in regression_loss_catalogue()}
ROBUST = ("mae", "rae", "huber", "log_cosh", "quantile_loss")
SQUARED = ("mse", "rmse", "rse", "nrmse", "rrmse")
LOGARITHMIC = ("msle", "rmsle")
FAMILIES = {"robust": ROBUST, "squared": SQUARED, "logarithmic": LOGARITHMIC, "percentage": ("mape",), "bias": ("mbe",)}
CLAIMS = (
    Claim("spikes", "with spikes a robust loss is ahead of every other (mean rank)", size=1.0),
    Claim("clean", "on clean Gaussian data MSE is ahead of every loss outside its family (mean rank)", size=1.0),
    Claim("growth", "on growth MSLE is ahead of every loss outside its family (mean rank)", size=1.0),
    Claim("winners", "no single family wins on all four data sets", size=1.0, threshold=1.0),
    Claim("safe", "in the worst case MAE, Huber and quantile lose less than MSE and MAPE (share of MAE)", size=0.1),
    Claim(
        "bias",
        "MBE never trains: its MAE is above that of the constant mean on every data set",
        size=1.0,
        threshold=1.0,
    ),
)
METRICS = ("MAE", "RMSE", "MAPE")
Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class NaturalUnits(Objective):
    """A loss of the survey on ``centre + scale * value`` of standardised outputs and targets."""

    name = "natural_units"
    tasks = ("regression",)
    domain = "real"
    targets = ("real",)
    unit = "batch"

    def __init__(self, loss: str, centre: float, scale: float) -> None:
        super().__init__()
        self.loss, self.centre, self.scale = loss, centre, scale

    def forward(self, outputs: Tensor, target: Tensor, *, weight: Tensor | None = None) -> Tensor:
        """The loss in the unit of the targets."""
        found: Tensor = LOSSES[self.loss](self.centre + self.scale * outputs, self.centre + self.scale * target)
        return found


def run(scale: str, seed: int) -> Evidence:
    """Errors and ranks of all losses on four data sets, in the mean over draws of the data."""
    full = scale == "full"
    draws = [one_draw(REPEATS * seed + repeat, full) for repeat in range(REPEATS if full else 1)]
    numbers = (*METRICS, "mean rank")
    rows = []
    for same in zip(*(rows for rows, _ in draws)):
        labels = {key: same[0][key] for key in ("arm", "data")}
        rows.append({**labels, **{key: float(np.mean([row[key] for row in same])) for key in numbers}})
    constant = {name: float(np.mean([found[name] for _, found in draws])) for name in draws[0][1]}
    return Evidence(rows, effects_of(rows, constant))


def one_draw(seed: int, full: bool) -> tuple[list[dict[str, float | str]], dict[str, float]]:
    """Rows of one draw, and the MAE of the constant mean by data set."""
    rows: list[dict[str, float | str]] = []
    constant: dict[str, float] = {}
    for name, data in datasets(seed, 600 if full else 100).items():
        errors = errors_of(data, 60 if full else 2, seed)
        constant[name] = float(np.abs(data[3] - data[1].mean()).mean())
        ranks = np.mean([rankdata([errors[loss][m] for loss in LOSSES]) for m in METRICS], axis=0)
        rows += [
            {"arm": loss, "data": name, "mean rank": float(rank), **errors[loss]} for loss, rank in zip(LOSSES, ranks)
        ]
    return rows, constant


def datasets(seed: int, length: int) -> dict[str, Data]:
    """Three series as windows, and diabetes; features standardised, targets in their own unit."""
    rng = np.random.default_rng([seed, 3])
    time = np.arange(length + 12)
    season = np.sin(2 * np.pi * time / 12)
    clean = 20 + 5 * season + rng.normal(size=len(time))
    spiked = clean + rng.uniform(20, 40, len(time)) * (rng.random(len(time)) < 0.05)
    growth = 10 * np.exp(np.log(20) * time / len(time) + 0.3 * season + 0.15 * rng.normal(size=len(time)))
    found = {
        "clean": windows(clean, clean, seed),
        "spikes": windows(spiked, clean, seed),
        "growth": windows(growth, growth, seed),
    }
    x, y, x_test, y_test = built_in("diabetes", seed)
    return {**found, "diabetes": (x, y, x_test, y_test)}


def windows(seen: np.ndarray, wanted: np.ndarray, seed: int) -> Data:
    """The last 12 values seen, and the next one: as seen in training, as wanted in the test."""
    x = np.lib.stride_tricks.sliding_window_view(seen, 12)[:-1]
    both = np.stack([seen[12:], wanted[12:]], axis=1)
    inputs, targets, inputs_test, targets_test = split(x, both, seed, train=0.5)
    return inputs, targets[:, 0], inputs_test, targets_test[:, 1]


def errors_of(data: Data, epochs: int, seed: int) -> dict[str, dict[str, float]]:
    """Test errors of the net trained with each loss."""
    x, y, x_test, y_test = data
    centre, spread = float(y.mean()), float(y.std())
    arms = [Arm(loss, NaturalUnits, {"loss": loss, "centre": centre, "scale": spread}, lr=3e-3) for loss in LOSSES]
    standard = (x, (y - centre) / spread, x_test, (y_test - centre) / spread)
    train(arms, standard, epochs=epochs, seed=seed, batch_size=50, width=32, depth=1)
    found = {}
    for arm in arms:
        error = centre + spread * arm.outputs.double().numpy() - y_test
        found[arm.label] = {
            "MAE": float(np.abs(error).mean()),
            "RMSE": float(np.sqrt((error**2).mean())),
            "MAPE": float(100 * np.abs(error / y_test).mean()),
        }
    return found


def effects_of(rows: Sequence[dict[str, float | str]], constant: dict[str, float]) -> dict[str, float]:
    """The claims' numbers."""
    rank = {(row["data"], row["arm"]): float(row["mean rank"]) for row in rows}
    mae = {(row["data"], row["arm"]): float(row["MAE"]) for row in rows}

    def lead(name: str, own: Sequence[str], family: Sequence[str]) -> float:
        return min(rank[name, loss] for loss in LOSSES if loss not in family) - min(rank[name, loss] for loss in own)

    def worst(loss: str) -> float:
        return max(mae[name, loss] / min(mae[name, other] for other in LOSSES) - 1 for name in constant)

    winners = {
        next(
            family for family, members in FAMILIES.items() if min(LOSSES, key=lambda loss: rank[name, loss]) in members
        )
        for name in constant
    }
    return {
        "spikes": lead("spikes", ROBUST, ROBUST),
        "clean": lead("clean", ("mse",), SQUARED),
        "growth": lead("growth", ("msle",), LOGARITHMIC),
        "winners": float(len(winners)),
        "safe": (worst("mse") + worst("mape")) / 2 - max(worst(loss) for loss in ("mae", "huber", "quantile_loss")),
        "bias": min(mae[name, "mbe"] / constant[name] for name in constant),
    }


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Mean rank of each family's losses by data set; MBE, always last, is left out."""
    kept = []
    for each in evidence:
        rows = []
        for name in dict.fromkeys(row["data"] for row in each.rows):
            for family, members in FAMILIES.items():
                own = [row["mean rank"] for row in each.rows if row["data"] == name and row["arm"] in members]
                if family != "bias":
                    rows.append({"arm": f"{name}: {family}", "mean rank of the family": sum(own) / len(own)})
        kept.append(Evidence(rows, {}))
    return bars_figure(kept, y="mean rank of the family")
