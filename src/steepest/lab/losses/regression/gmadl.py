"""GMADL: a higher information ratio after costs than squared error, and fewer trades with a larger power.

Set-up of the claim: generated returns with a sign-predictable component of 2% strength, heavy-tailed noise and a
regime switch, 20,000 steps, a linear model, walk-forward; squared error, absolute error, GMADL with b = 1 and 2, and
a direction classifier. Expected: GMADL's information ratio after costs above squared error's in most seeds, and a
trade count that falls with b or with a threshold. Nothing is claimed of real markets.

Two generators. *Linear*, that of the claim: 2% is the share of the calm regime's variance that the last return explains
(autocorrelation 0.141). It is squared error's home ground: the expected return is linear in the last one, the model
holds it, and the least squares fit finds it. *Reversal* is not: returns up to 3% are followed by 0.4 of themselves,
larger ones by -0.3, which no linear model holds; least squares follows the few large returns into a reversal, while
following the last return earns more. Noise is Student's t with 4 degrees of freedom at 1% a step, the stormy regime is
three times as wild; regimes last 500 steps on average, with reversals calm ones 1,000 and stormy ones 200.

Windows are 4,000 / 1,000 / 1,000 steps, which gives 15 tests; the model is linear in the last five returns with tanh on
top, in units of the training window, fitted with 60 steps of AdamW (decay 1e-3) on the whole window. A change of
position costs 5 basis points a unit. Every arm chooses its threshold (share of its training predictions without a
position: 0, 1/4, 1/2, 3/4) by the information ratio of the validation window, and GMADL its b as well. A trade is a
position that is opened. The card gives trade counts no number: a tenth is taken, once for b at threshold 0 and once for
the threshold at b = 1, both on the linear generator; "most seeds" is more than half, and three quarters is taken as the
size.

The baselines are fair: every arm has, for each generator, the rate, and GMADL the slope a, with the highest information
ratio on the validation windows of three seeds that are not reported (:func:`choose_settings`); the paper's a = 1000 on
raw returns is 0.1 in units of their deviation. On the linear generator squared error must predict the sign of the
expected return in 80% of the test steps, which every seed checks.

Limit: with reversals GMADL is ahead of squared error (ratios of 0.56 and 0.45), but far behind absolute error and the
direction classifier (1.5 and 1.6): its power of the return lets the few large ones decide as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import softplus

from ....losses.regression.gmadl import gmadl, strategy_report, walk_forward
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import best_setting, check_sane

SEEDS = 20
COST = 5e-4
LAGS = 5
SHARES = (0.0, 0.25, 0.5, 0.75)
Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, Callable[[float], Loss]] = {
    "squared error": lambda a: lambda h, r: (h - r) ** 2,
    "absolute error": lambda a: lambda h, r: (h - r).abs(),
    "direction": lambda a: lambda h, r: softplus(-h * r.sign()),
    "GMADL b=1": lambda a: _gmadl(a, 1.0),
    "GMADL b=2": lambda a: _gmadl(a, 2.0),
}
"""By arm, the loss of a slope a, which GMADL alone has."""
GRID = (0.01, 0.05, 0.2)
SLOPES = (1.0, 10.0, 100.0)
SETTINGS = {
    "linear": {
        "squared error": (0.05, 1.0),
        "absolute error": (0.05, 1.0),
        "direction": (0.05, 1.0),
        "GMADL b=1": (0.01, 10.0),
        "GMADL b=2": (0.01, 10.0),
    },
    "reversal": {
        "squared error": (0.05, 1.0),
        "absolute error": (0.2, 1.0),
        "direction": (0.2, 1.0),
        "GMADL b=1": (0.05, 10.0),
        "GMADL b=2": (0.01, 10.0),
    },
}
"""Rate and slope of each arm by generator: what :func:`choose_settings` gives."""
SANITY = 80.0
CLAIMS = (
    Claim(
        "ratio",
        "the information ratio after costs is above squared error's in most seeds (1 where it is)",
        size=0.25,
        threshold=0.5,
    ),
    Claim(
        "ratio, reversal",
        "with reversals, which a linear model cannot hold, it is above squared error's in most seeds",
        size=0.25,
        threshold=0.5,
        ours=True,
    ),
    Claim("power", "trades fall from b = 1 to b = 2, without a threshold (share; a tenth is taken)", size=0.1),
    Claim(
        "threshold",
        "trades fall with a threshold at the median prediction, b = 1 (share; a tenth is taken)",
        size=0.1,
        ours=True,
    ),
)


@dataclass(frozen=True)
class Windows:
    """Returns and their last values, cut into windows in units of the training windows' deviation."""

    x: np.ndarray
    r: np.ndarray
    parts: list[tuple[slice, slice, slice]]

    @property
    def units(self) -> np.ndarray:
        """The deviation of each training window."""
        return np.array([self.r[train].std() for train, _, _ in self.parts])

    def train(self, of: np.ndarray) -> Tensor:
        """The training windows of some rows, in units."""
        return torch.from_numpy(np.stack([of[a] / unit for (a, _, _), unit in zip(self.parts, self.units)])).float()


def run(scale: str, seed: int) -> Evidence:
    """Information ratio and trades of each loss over the tests of all windows of both generators."""
    full = scale == "full"
    rows, effects = [], {}
    for kind, settings in SETTINGS.items():
        windows = walked(kind, seed, full)
        models = {name: fits(windows, name, setting, 60 if full else 20) for name, setting in settings.items()}
        two = zip(models["GMADL b=1"], models["GMADL b=2"])
        models["GMADL"] = [max(pair, key=lambda model: float(model["validation"])) for pair in two]
        by_arm = {name: over_all(windows, model) for name, model in models.items()}
        rows += [{"arm": f"{name}, {kind}", "loss": name, "returns": kind, **row} for name, row in by_arm.items()]
        effects[kind] = float(by_arm["GMADL"]["information ratio"] > by_arm["squared error"]["information ratio"])
        if kind == "linear":
            if full:
                check_sane("sign of the expected return by squared error", by_arm["squared error"]["follows"], SANITY)
            always = {name: row["trades, no threshold"] for name, row in by_arm.items()}
            effects["power"] = 1.0 - always["GMADL b=2"] / always["GMADL b=1"]
            effects["threshold"] = 1.0 - by_arm["GMADL b=1"]["trades, median threshold"] / always["GMADL b=1"]
    effects = {"ratio": effects.pop("linear"), "ratio, reversal": effects.pop("reversal"), **effects}
    return Evidence(rows, effects)


def choose_settings() -> dict[str, dict[str, tuple[float, float]]]:
    """Rate and slope with the highest mean ratio on the validation windows of the pilot seeds, by generator and arm."""

    def ratio(kind: str, name: str, setting: tuple[float, float], seed: int) -> float:
        models = fits(walked(kind, seed, True), name, setting, 60)
        return float(np.mean([model["validation"] for model in models]))

    return {
        kind: {
            name: best_setting(
                product(GRID, SLOPES if name.startswith("GMADL") else SLOPES[:1]),
                lambda setting, seed, own=(kind, name): ratio(*own, setting, seed),
            )
            for name in LOSSES
        }
        for kind in SETTINGS
    }


def walked(kind: str, seed: int, full: bool) -> Windows:
    """Generated returns, in windows."""
    length, sizes = (20_000, (4000, 1000, 1000)) if full else (1200, (400, 200, 200))
    returns = generated(length, seed, kind)
    x = np.lib.stride_tricks.sliding_window_view(returns, LAGS)[:-1]
    r = returns[LAGS:]
    return Windows(x, r, list(walk_forward(len(r), *sizes)))


def generated(length: int, seed: int, kind: str) -> np.ndarray:
    """Returns that follow the last one, t noise, and two regimes of volatility."""
    rng = np.random.default_rng([seed, 29])
    calm, wild = (500, 500) if kind == "linear" else (1000, 200)
    draws, noise = rng.random(length), 0.01 * rng.standard_t(4, length) / math.sqrt(2.0)
    returns, storm = np.zeros(length), False
    for t in range(1, length):
        storm ^= bool(draws[t] < 1 / (wild if storm else calm))
        last = returns[t - 1]
        share = math.sqrt(0.02) if kind == "linear" else 0.4 if abs(last) <= 0.03 else -0.3
        returns[t] = share * last + noise[t] * (3.0 if storm else 1.0)
    return returns


def _gmadl(a: float, b: float) -> Loss:
    return lambda h, r: gmadl(h.flatten(), r.flatten(), a=a, b=b, reduction="none").view(h.shape)


def fits(windows: Windows, name: str, setting: tuple[float, float], steps: int) -> list[dict[str, Any]]:
    """What one arm's model of each window predicts."""
    rate, slope = setting
    weight = fitted(windows.train(windows.x), windows.train(windows.r), LOSSES[name](slope), rate, steps)
    by_window = zip(windows.parts, windows.units, weight.unbind(0))
    return [measured(windows.x, windows.r, window, float(unit), own) for window, unit, own in by_window]


def fitted(x: Tensor, r: Tensor, loss: Loss, rate: float, steps: int) -> Tensor:
    """Weights ``[W, LAGS + 1]`` of one linear model a window, all windows at once."""
    weight = torch.zeros(len(x), LAGS + 1, dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.AdamW([weight], lr=rate, weight_decay=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(output(x, weight), r).mean(1).sum().backward()
        optimizer.step()
    return weight.detach()


def output(x: Tensor, weight: Tensor) -> Tensor:
    """Predictions ``[W, T]`` in (-1, 1), in standard deviations."""
    return torch.tanh((x @ weight[:, :LAGS, None]).squeeze(-1) + weight[:, LAGS:])


def measured(
    x: np.ndarray, r: np.ndarray, window: tuple[slice, slice, slice], scale: float, weight: Tensor
) -> dict[str, Any]:
    """Predictions of the test window, and the threshold that its validation window chose."""
    train, val, test = (
        output(torch.from_numpy(x[rows] / scale).float()[None], weight[None])[0].numpy() for rows in window
    )
    thresholds = [float(np.quantile(np.abs(train), share)) if share else 0.0 for share in SHARES]
    ratios = [strategy_report(val, r[window[1]], COST, t)["information ratio"] for t in thresholds]
    place = int(np.argmax(ratios))
    return {"validation": ratios[place], "test": test, "chosen": thresholds[place], "median": thresholds[2]}


def over_all(windows: Windows, models: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The report over all test windows, one after the other."""
    earned, last = (
        np.concatenate([of[test] for _, _, test in windows.parts]) for of in (windows.r, windows.x[:, LAGS - 1])
    )

    def report(key: str | None) -> dict[str, float]:
        # thresholds differ by window: predictions below theirs are set to 0, which holds no position
        parts = [m["test"] if key is None else np.where(np.abs(m["test"]) < m[key], 0.0, m["test"]) for m in models]
        return strategy_report(np.concatenate(parts), earned, COST)

    return {
        **report("chosen"),
        "trades, no threshold": report(None)["trades"],
        "trades, median threshold": report("median")["trades"],
        "follows": 100 * float((np.sign(np.concatenate([m["test"] for m in models])) == np.sign(last)).mean()),
    }


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Information ratio after costs of each loss."""
    return bars_figure(evidence, y="information ratio")
