"""Two numbers of the Hessian's spectrum grow as accuracy falls under shifted data.

Set-up of the claim, the card's: an MLP with 32 rectified units, 1,200 of scikit-learn's digits, standardised, Adam, 30
epochs of batches of 100; the other 597 digits with Gaussian pixel noise of eight strengths from 0 to 2 standard
deviations, or turned by eight angles from 0 to 70 degrees (corners are filled with the mean). The Hessian of the mean
loss over them, with their labels, by 100 steps of Lanczos's method, one run, as in the official code, but with all
vectors kept. Second, a network of the same width with batch norm, in evaluation mode, on the training rows: curvature
of the plotted loss in the middle, by second differences, along the first eigenvector and along a filter-normalised
random axis, per squared length. All in float64, so that eigenvalues that are 0 add little to K.

Claims, the card's: the rank correlation over strengths of each criterion, K with n = 0.5 and r_e, with accuracy is
below -0.7 (size: what is left to -1), under noise and under rotation; the curvature along the Hessian axis is the
eigenvalue (card: equal; here within a twentieth), and the random axis is flatter (card: no number; ours: a tenth).
Points of the plot are .0005 apart. A first run for the record had ten times that, and did not show the claim: the
curvature was off by 3.1% on average (0.8 to 5.5) and by 23% in one of twenty networks, where the loss is no parabola
over such a length and has kinks; the distance was then chosen on three other seeds, and all were run again.

Under noise K falls with accuracy, by far on the other side of the claim, which was looked into on two seeds that are
not reported. The official Lanczos, which keeps ten vectors, and its r_e give the same (Spearman of K .69, .88; under
rotation -.86, -.71). So do rates of .001 and .01 for K (.81, .76; .83, .74), not for r_e at .001 (-.69, -.60). On the
same shifts of training rows, where the unshifted loss is lowest and K is .12, K under noise has no trend (-.1, .05),
r_e -.6, -.6, and under rotation both follow accuracy (K -.9, -.98; r_e -.98, -.98). On test rows the few that are
wrong make the Hessian of the unshifted loss, and its K is .6: the network is at no minimum there to begin with. Noise
makes activations larger, and with them the part of the Hessian that has no negative eigenvalues.

There is no baseline to beat: both networks have the best of the rates :data:`GRID` by test accuracy over two seeds that
are not reported (:func:`choose_rates`), and must be right on nine of ten clean digits, which every seed checks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.ndimage import rotate
from scipy.stats import spearmanr
from torch import Tensor, nn

from ....watch.landscape.filter_normalized_landscape import random_direction
from ....watch.landscape.loss_landscape_analysis import hessian_criteria, hessian_spectrum, loss_landscape
from ...data import digits
from ...experiment import Claim, Evidence
from ...figures import arms_figure
from ...settings import best_setting, check_sane

TRAIN, WIDTH, EPOCHS, BATCH, STEPS, SEEDS, PILOTS, SANITY = 1200, 32, 30, 100, 100, 20, (101, 102), 90.0
NOISE, ANGLES, STEP = tuple(2 * i / 7 for i in range(8)), tuple(10.0 * i for i in range(8)), 0.0005
GRID = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
RATES = {False: 3e-2, True: 1e-2}
"""Without and with batch norm, what :func:`choose_rates` gives."""
CLAIMS = (
    Claim("K, noise", "K and accuracy: Spearman below -0.7 under noise", 0.3, -0.7, greater=False),
    Claim("r_e, noise", "r_e and accuracy: Spearman below -0.7 under noise", 0.3, -0.7, greater=False),
    Claim("K, rotation", "K and accuracy: Spearman below -0.7 under rotation", 0.3, -0.7, greater=False),
    Claim("r_e, rotation", "r_e and accuracy: Spearman below -0.7 under rotation", 0.3, -0.7, greater=False),
    Claim("Hessian axis", "the plot's curvature is within 5% of the eigenvalue", 0.05, 0.05, greater=False),
    Claim("random axis", "log10 of its curvature over the eigenvalue is below -1", 1.0, -1.0, greater=False, ours=True),
)
Data = tuple[Tensor, Tensor, np.ndarray, Tensor]
cross_entropy = nn.functional.cross_entropy


def run(scale: str, seed: int) -> Evidence:
    """Criteria and accuracy by strength of the shift; curvatures along axes."""
    full = scale == "full"
    data = rows_of(seed, full)
    x, y, x_test, y_test = data
    model = train(data, RATES[False], False, seed, EPOCHS if full else 2)
    rows: list[dict[str, Any]] = []
    effects: dict[str, float] = {}
    for shift, strengths in (("noise", NOISE), ("rotation", ANGLES)):
        measured = [
            {"arm": shift, "strength": s, **criteria(model, shifted(x_test, shift, s, seed), y_test, full)}
            for s in (strengths if full else strengths[::4])
        ]
        for name in ("K", "r_e"):
            effects[f"{name}, {shift}"] = correlation(measured, name)
        rows += measured
    normed = train(data, RATES[True], True, seed, EPOCHS if full else 2)
    clean = accuracy_of(normed, shifted(x_test, "noise", 0.0, seed), y_test)
    if full:
        check_sane("accuracy on clean digits", 100 * rows[0]["accuracy"], SANITY)
        check_sane("accuracy on clean digits with batch norm", 100 * clean, SANITY)
    rows.append({"arm": "curvature", **curvatures(normed, x, y, seed, full), "accuracy": clean})
    effects["Hessian axis"] = abs(rows[-1]["hessian axis"] / rows[-1]["eigenvalue"] - 1)
    flat = abs(rows[-1]["random axis"]) / rows[-1]["eigenvalue"]
    effects["random axis"] = math.log10(max(flat, 1e-9))
    return Evidence(rows, effects)


def rows_of(seed: int, full: bool) -> Data:
    """Training rows and labels, test rows as pixels, their labels; standardised by the training part."""
    x, y, x_test, y_test = digits(seed, train=TRAIN if full else 200)
    count = len(y_test) if full else 40
    labels = torch.as_tensor(y).long(), torch.as_tensor(y_test[:count]).long()
    return torch.as_tensor(x), labels[0], x_test[:count], labels[1]


def shifted(x: np.ndarray, shift: str, strength: float, seed: int) -> Tensor:
    """Rows with noise, or turned."""
    if shift == "noise":
        moved = x + strength * np.random.default_rng(seed).normal(size=x.shape)
    else:
        turned = rotate(x.reshape(-1, 8, 8), strength, axes=(1, 2), reshape=False, order=1)
        moved = turned.reshape(len(x), -1)
    return torch.as_tensor(moved)


def train(data: Data, rate: float, normed: bool, seed: int, epochs: int) -> nn.Module:
    """A network in evaluation mode."""
    torch.manual_seed(seed)
    between = [nn.BatchNorm1d(WIDTH)] if normed else []
    model = nn.Sequential(nn.Linear(64, WIDTH), *between, nn.ReLU(), nn.Linear(WIDTH, 10)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, foreach=True)
    for _ in range(epochs):
        for rows in torch.randperm(len(data[0])).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(model(data[0][rows]), data[1][rows]).backward()
            optimizer.step()
    return model.train(False)


def criteria(model: nn.Module, x: Tensor, y: Tensor, full: bool) -> dict[str, float]:
    """Both, and the accuracy."""
    loss: Callable[[], Tensor] = lambda: cross_entropy(model(x), y)  # noqa: E731
    nodes, weights = hessian_spectrum(loss, model.parameters(), STEPS if full else 8)
    r_e, k = hessian_criteria(nodes, weights)
    return {"K": float(k), "r_e": float(r_e), "accuracy": accuracy_of(model, x, y)}


def accuracy_of(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of rows that are right."""
    with torch.no_grad():
        return float((model(x).argmax(1) == y).double().mean())


def curvatures(model: nn.Module, x: Tensor, y: Tensor, seed: int, full: bool) -> dict[str, float]:
    """The top eigenvalue, and second differences of the loss along two axes, per squared length."""

    def loss(m: nn.Module) -> Tensor:
        return cross_entropy(m(x), y)

    plane = loss_landscape(model, loss, "hessian", steps=3, span=STEP, tol=1e-6)
    drawn = random_direction(model.parameters(), generator=torch.Generator().manual_seed(seed))
    length = math.sqrt(sum(float(d.square().sum()) for d in drawn))
    unit = [d / length for d in drawn]
    line = loss_landscape(model, loss, (unit, unit), steps=3, span=STEP).values[:, 1]
    along = plane.values[:, 1]
    assert plane.eigenvalues is not None
    return {
        "eigenvalue": float(plane.eigenvalues[0]),
        "hessian axis": float(along[0] - 2 * along[1] + along[2]) / STEP**2,
        "random axis": float(line[0] - 2 * line[1] + line[2]) / STEP**2,
    }


def correlation(rows: Sequence[dict[str, Any]], name: str) -> float:
    """Spearman's with accuracy, 0 where one of both is constant."""
    own, accuracy = ([row[key] for row in rows] for key in (name, "accuracy"))
    return float(spearmanr(own, accuracy)[0]) if min(len(set(own)), len(set(accuracy))) > 1 else 0.0


def choose_rates() -> dict[bool, float]:
    """The rate of each network with the highest test accuracy, over seeds that are not reported."""

    def score(normed: bool, rate: float, seed: int) -> float:
        data = rows_of(seed, True)
        model = train(data, rate, normed, seed, EPOCHS)
        return accuracy_of(model, shifted(data[2], "noise", 0.0, seed), data[3])

    return {normed: best_setting(GRID, lambda rate, seed, n=normed: score(n, rate, seed), PILOTS) for normed in RATES}


def figure(evidence: Sequence[Evidence]) -> Figure:
    """K over the strength of each shift."""
    rows = [
        Evidence([{**r, "share of the strongest": r["strength"] / (2 if r["arm"] == "noise" else 70)}
                  for r in e.rows if "strength" in r], {})
        for e in evidence
    ]  # fmt: skip
    drawn: Figure = arms_figure(rows, x="share of the strongest", y="K")
    return drawn
