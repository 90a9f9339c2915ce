"""Only maximal update moves features as the width grows, and wide networks approach its limit.

Set-up of the claim: digits (two classes, 64 inputs), one hidden layer, widths 64 to 16,384, standard, NTK and
maximal-update parametrizations, 20 steps of gradient descent: the relative change of hidden units over width has slope
0 for maximal update, -1/2 for the NTK and for the standard parametrization (c = 1); the distance of the function from
its limit has slope -1/2. What is changed: slopes of -1/2 in the standard parametrization belong to two or more hidden
layers. With one, the classification itself says r = 3/2. So all three are measured in networks with two hidden tanh
layers too (widths 64 to 1,024), the standard one is judged there, and its slope of -3/2 with one layer is an
expectation of ours.

Rows: 256 threes and eights of scikit-learn's digits, drawn by the seed, centred and scaled to a mean squared length
of 1; squared loss on labels of -1 and 1. Narrow widths are run several times a seed, as their functions are random.
The arms don't compete: each trains at the same rate, half of the largest power of two at which all of them are stable
at width 256 on a seed that is not reported, and the loss of each must fall by a third, at every width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ....optim.mup.infinite_width_features import abc_parametrization, finite_width_run, muP_linear_limit
from ...experiment import Claim, Evidence
from ...figures import arms_figure
from ...settings import check_sane

SEEDS, STEPS, RATE = 6, 20, 1.0
SCALINGS = {"standard": "standard, c = 1", "ntk": "NTK", "maximal_update": "maximal update"}
WIDTHS = {1: (64, 256, 1024, 4096, 16384), 2: (64, 256, 1024)}
ACTIVATION = {1: "linear", 2: "tanh"}
NEAR = 0.1
CLAIMS = (
    Claim(
        "maximal", "one hidden layer: features change as much at every width in maximal update (slope, size of it)",
        size=NEAR, threshold=NEAR, greater=False,
    ),
    Claim(
        "ntk", "one hidden layer: with the NTK parametrization the slope is within 0.1 of -1/2",
        size=NEAR, threshold=NEAR, greater=False,
    ),
    Claim(
        "maximal, two", "two hidden layers: slope within 0.1 of 0 in maximal update",
        size=NEAR, threshold=NEAR, greater=False,
    ),
    Claim(
        "ntk, two", "two hidden layers: slope within 0.1 of -1/2 with the NTK parametrization",
        size=NEAR, threshold=NEAR, greater=False,
    ),
    Claim(
        "standard, two", "two hidden layers: slope within 0.1 of -1/2 with the standard one",
        size=NEAR, threshold=NEAR, greater=False,
    ),
    Claim(
        "limit", "the function's distance from the limit of maximal update has a slope within 0.1 of -1/2",
        size=NEAR, threshold=NEAR, greater=False,
    ),
    Claim(
        "standard", "one hidden layer: slope within 0.1 of -3/2 with the standard parametrization",
        size=NEAR, threshold=NEAR, greater=False, ours=True,
    ),
)  # fmt: skip


def run(scale: str, seed: int) -> Evidence:
    """Changes of features and distances from the limit, by width."""
    full = scale == "full"
    x, y = rows_of(seed, full)
    steps = STEPS if full else 3
    rows: list[dict[str, Any]] = []
    slopes: dict[str, float] = {}
    errors: list[float] = []
    for hidden in (1, 2):
        widths = WIDTHS[hidden] if full else WIDTHS[1][:2]
        for scaling, title in SCALINGS.items():
            limit = muP_linear_limit(x.double(), y.double(), RATE, steps) if (hidden, scaling) == LIMITED else None
            changes = []
            for width in widths:
                runs = max(2, 4096 // width) if full and hidden == 1 else 2
                generator = torch.Generator().manual_seed(10_000 * seed + width)
                ends = [
                    finite_width_run(
                        x, y, width, abc_parametrization(scaling, hidden), RATE, steps,
                        activation=ACTIVATION[hidden], generator=generator,
                    )
                    for _ in range(runs)
                ]  # fmt: skip
                change = math.sqrt(np.mean([float(end.relative_change[-1]) ** 2 for end in ends]))
                loss = float(np.mean([float((end.outputs[-1] - y).square().mean()) / 2 for end in ends]))
                row = {"arm": f"{title}, {hidden} hidden", "width": width, "change": change, "loss": loss}
                if limit is not None:
                    away = [float((end.outputs[-1] - limit.outputs[-1]).square().mean()) for end in ends]
                    errors.append(math.sqrt(np.mean(away)))
                rows.append(row | {"distance": errors[-1] if limit is not None else 0.0})
                changes.append(change)
                if full:
                    check_sane(f"fall of the loss, {row['arm']}, width {width}", 1 - loss / 0.5, 1 / 3)
            slopes[f"{scaling} {hidden}"] = slope(widths, changes)
            if limit is not None:
                slopes["limit"] = slope(widths, errors)
    effects = {
        "maximal": abs(slopes["maximal_update 1"]),
        "ntk": abs(slopes["ntk 1"] + 0.5),
        "maximal, two": abs(slopes["maximal_update 2"]),
        "ntk, two": abs(slopes["ntk 2"] + 0.5),
        "standard, two": abs(slopes["standard 2"] + 0.5),
        "limit": abs(slopes["limit"] + 0.5),
        "standard": abs(slopes["standard 1"] + 1.5),
    }
    return Evidence(rows, effects)


LIMITED = (1, "maximal_update")
"""Hidden layers and scaling of the networks whose limit is computed."""


def slope(widths: Sequence[int], values: Sequence[float]) -> float:
    """Exponent of the width, by least squares of logarithms."""
    return float(np.polyfit(np.log(widths), np.log(values), 1)[0])


def rows_of(seed: int, full: bool) -> tuple[Tensor, Tensor]:
    """Threes and eights, and labels of -1 and 1; those of a smoke run in double precision."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    chosen = np.flatnonzero((labels == 3) | (labels == 8))
    chosen = np.random.default_rng(seed).permutation(chosen)[: 256 if full else 40]
    x = images[chosen] - images[chosen].mean(0)
    x = x / math.sqrt((x**2).sum(1).mean())
    kind = torch.float32 if full else torch.float64
    return torch.as_tensor(x, dtype=kind), torch.as_tensor(np.where(labels[chosen] == 8, 1.0, -1.0), dtype=kind)


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Relative change of features over width, both logarithmic."""
    drawn: Figure = arms_figure(evidence, x="width", y="change")
    drawn.axes[0].set_xscale("log")
    drawn.axes[0].set_yscale("log")
    return drawn
