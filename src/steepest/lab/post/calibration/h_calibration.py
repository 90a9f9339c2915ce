"""h-calibration: the windowed loss calibrates better than likelihood, over the same map.

Set-up of the claim: an over-trained small convolutional network; MNIST digits at 14 x 14 pixels take the place of
Fashion-MNIST. They are easier, so 1,000 rows train (for 40 epochs), which leaves about as many errors; of the other
9,000 one half calibrates what is measured on the other, and the other way round, both measured together. Arms:
uncalibrated, temperature scaling, the ensemble of 16 temperatures trained by the negative log-likelihood, and by the
windowed loss, both for up to 150 epochs (2,000 at 0.005 in the paper). Effects are relative to temperature scaling, in
per cent, over 15 bins. "Accuracy unchanged" is less than 0.05 points.

The baselines are fair: each ensemble has the rate of three with the smallest ECE over three seeds that are not reported
(:func:`choose_rates`; both had 0.02 before); temperature scaling has no rate. The network must reach an accuracy of
85%, which every seed checks. The claims are those of before; 28 seeds ran then and 16 do now.

Class-wise ECE is contradicted, and what was checked is the rate: on the three seeds that chose it, it falls by 7 to 8%
at each rate and by as much for the map trained by likelihood. One mixture of temperatures serves all classes, and
leaves what is wrong with a single one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from matplotlib.figure import Figure
from sklearn.model_selection import train_test_split
from torch import Tensor

from ....core.calibrator import Calibrator
from ....losses.classification.cross_entropy import CrossEntropyLoss
from ....post.calibration.calibration_benchmark import TemperatureCalibrator, classwise_ece, ece
from ....post.calibration.h_calibration import HCalibrationLoss, TemperatureEnsembleCalibrator
from ...classify import Arm, small_cnn, train
from ...data import digits, halved, mnist_10k
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import best_setting, check_sane

SEEDS = 16
SCALED, LIKELIHOOD, WINDOWED = "temperature scaling", "ensemble, likelihood", "ensemble, windowed"
CLAIMS = (
    Claim(
        "ece",
        "top-label ECE is more than 10% below temperature scaling (10 to 50% expected)",
        size=20.0,
        threshold=-10.0,
        greater=False,
    ),
    Claim(
        "class-wise",
        "class-wise ECE is more than 10% below temperature scaling (10 to 50% expected)",
        size=20.0,
        threshold=-10.0,
        greater=False,
    ),
    Claim(
        "same map",
        "top-label ECE is below that of the same map trained by likelihood (per cent)",
        size=10.0,
        greater=False,
    ),
    Claim(
        "likelihood",
        "negative log-likelihood is within .01 of temperature scaling",
        size=0.005,
        threshold=0.01,
        greater=False,
        ours=True,
    ),
    Claim("accuracy", "accuracy is unchanged (points)", size=0.05, threshold=0.05, greater=False),
)


def likelihood(p: Tensor, target: Tensor) -> Tensor:
    """The negative log-likelihood of probabilities."""
    return torch.nn.functional.nll_loss(p.clamp_min(1e-30).log(), target)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {LIKELIHOOD: likelihood, WINDOWED: HCalibrationLoss()}
EPOCHS = 150
GRID = (5e-3, 2e-2, 5e-2)
RATES = {LIKELIHOOD: 5e-2, WINDOWED: 5e-2}
"""The rate of each ensemble: what :func:`choose_rates` gives."""
SANITY = 85.0
"""Accuracy in per cent that the network must reach."""


def run(scale: str, seed: int) -> Evidence:
    """The measures of each arm."""
    full = scale == "full"
    logits, target = network_logits(full, seed)
    probabilities = {"uncalibrated": logits.softmax(1), SCALED: transformed(TemperatureCalibrator(), logits, target)}
    for name, rate in RATES.items():
        probabilities[name] = transformed(ensemble(name, rate, EPOCHS if full else 10), logits, target)
    rows: list[dict[str, Any]] = [
        {
            "arm": name,
            "ece": 100 * ece(p, target),
            "class-wise": 100 * classwise_ece(p, target),
            "likelihood": float(likelihood(p, target)),
            "accuracy": 100 * float((p.argmax(1) == target).double().mean()),
        }
        for name, p in probabilities.items()
    ]
    own = {str(row["arm"]): row for row in rows}
    base, ours = own[SCALED], own[WINDOWED]
    if full:
        check_sane("accuracy of the network", own["uncalibrated"]["accuracy"], SANITY)
    effects = {
        "ece": 100 * (ours["ece"] / base["ece"] - 1),
        "class-wise": 100 * (ours["class-wise"] / base["class-wise"] - 1),
        "same map": 100 * (ours["ece"] / own[LIKELIHOOD]["ece"] - 1),
        "likelihood": abs(ours["likelihood"] - base["likelihood"]),
        "accuracy": abs(ours["accuracy"] - own["uncalibrated"]["accuracy"]),
    }
    return Evidence(rows, effects)


def network_logits(full: bool, seed: int) -> tuple[Tensor, Tensor]:
    """Logits of the over-trained network on the rows that it was not trained on, in random order, and their classes.

    In float64 at smoke scale, where the network has hardly begun to learn: rounding then moves no row to another bin.
    """
    if full:
        x, y = mnist_10k()
        x, x_rest, y, y_rest = train_test_split(halved(x), y, train_size=1000, stratify=y, random_state=seed)
    else:
        x, y, x_rest, y_rest = digits(seed, train=300)
    arm = Arm("network", CrossEntropyLoss)
    data, epochs, dtype = (x, y, x_rest, y_rest), 40 if full else 2, torch.float32 if full else torch.float64
    train([arm], data, epochs=epochs, seed=seed, width=64, backbone=small_cnn, dtype=dtype, alone=True)
    return arm.outputs, torch.as_tensor(y_rest).long()


def ensemble(name: str, rate: float, epochs: int) -> TemperatureEnsembleCalibrator:
    """An untrained ensemble of temperatures with the loss of this arm."""
    return TemperatureEnsembleCalibrator(loss=LOSSES[name], lr=rate, epochs=epochs)


def transformed(calibrator: Calibrator, logits: Tensor, target: Tensor) -> Tensor:
    """Probabilities of each half by a calibrator that was fitted to the other."""
    half = len(logits) // 2
    parts = (slice(half), slice(half, None))
    fitted = [calibrator.fit(logits[a], target[a]).transform(logits[b]) for a, b in (parts[::-1], parts)]
    return torch.cat(fitted)


def choose_rates() -> dict[str, float]:
    """The rate with the smallest mean ECE over the pilot seeds, for each ensemble."""
    pilot = cache(lambda seed: network_logits(True, seed))

    def minus_ece(name: str, rate: float, seed: int) -> float:
        logits, target = pilot(seed)
        return -ece(transformed(ensemble(name, rate, EPOCHS), logits, target), target)

    return {name: best_setting(GRID, lambda r, seed, name=name: minus_ece(name, r, seed)) for name in RATES}


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Top-label ECE in per cent."""
    return bars_figure(evidence, y="ece")
