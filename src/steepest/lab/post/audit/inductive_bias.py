"""Tasks of more dimensions need more information beside the data, and networks carry nearly all of it.

Set-up of the claim: 500 of scikit-learn's digits, standardised by pixel, as their scores on the first 2, 4, 8 and 16
principal components. Hypotheses: functions of a Gaussian process (width 1 in these units, jitter 1e-6) that go through
the one-hot labels, and 30 networks of two layers of 64 rectified units, trained by Adam at 1e-3 for 60 epochs on
squared errors, from fresh weights and in fresh orders (the publication's setting). The error that is asked for is the
same in all dimensions: that of the shares of classes among 10 nearest neighbours in 2 dimensions. Errors are over 50
test rows, and 50,000 functions are drawn in place of 10,000: the process never comes near that error, so that its
information rests on the skewness of the fitted distribution, which fewer draws over more rows leave open.

Claims, the card's, which has no numbers: the information that the process needs grows from each dimension to the next
(by a tenth: log ratios), and networks need less than a tenth of it in each dimension. Ours: from 2 to 4 dimensions it
grows where labels may be missed by a deviation of 0.1.

The comparison is fair: both spaces see the same rows, labels, test rows and error. The error that is asked for must be
below 0.075 (shares of classes in all data have 0.09), and networks in 16 dimensions below 0.04, which every seed
checks.

From 2 to 4 dimensions the contrary holds by far. In 2 dimensions digits of several classes lie on top of each other, a
small part of the kernel's width apart, and functions through all their labels swing by many times what labels differ
by: their mean error is 0.8 to 31, against 0.4 in 4 dimensions. What was checked on seeds that are not reported: labels
that may be missed by a deviation of 0.1 (32 nats in 2 dimensions, 144 in 4, 330 in 8), which the claim of ours repeats;
scores ten times as large, at which rows hardly tell of each other (429, 445, 446 and 446 nats); half and twice the
scale, and scores of pixels that are not standardised (2 dimensions above 4 in all but one of eight cases). Networks
don't fit labels in 2 dimensions either: their training error is 0.05, which is the error that is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from ....nn.networks import Network, mlp
from ....post.audit.inductive_bias import gp_hypotheses, inductive_bias, trained_hypotheses
from ...data import digits
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import check_sane

SEEDS = 8
TRAIN, TESTED, DIMS, NEIGHBOURS = 500, 50, (2, 4, 8, 16), 10
DRAWS, AT_ONCE, NETS, EPOCHS, WIDTH = 50_000, 5000, 30, 60, 64
PROCESS, MISSED, NETWORKS = "process", "process, labels missed", "networks"
JITTER = {PROCESS: 1e-6, MISSED: 0.01}
"""Variances of labels."""
STEP = math.log(1.1)
CLAIMS = (
    Claim("2 to 4", "a Gaussian process needs more information in 4 dimensions than in 2 (log ratio)", size=STEP),
    Claim("4 to 8", "it needs more in 8 dimensions than in 4 (log ratio)", size=STEP),
    Claim("8 to 16", "it needs more in 16 dimensions than in 8 (log ratio)", size=STEP),
    Claim(
        "networks",
        "in each dimension trained networks need less than a tenth of what the process needs",
        size=0.1,
        threshold=0.1,
        greater=False,
    ),
    Claim("missed", "where labels may be missed, it needs more in 4 dimensions than in 2 (log ratio)", STEP, ours=True),
)


def run(scale: str, seed: int) -> Evidence:
    """Information at one error, by space of hypotheses and dimension."""
    full = scale == "full"
    eps = reference(seed, full)
    rows: list[dict[str, Any]] = [{"arm": "neighbours in 2 dimensions", "mean error": eps}]
    bias: dict[tuple[str, int], float] = {}
    for d in DIMS:
        x, y, xt, yt = parts(seed, d, full)
        outputs = by_networks(x, y, xt, full, seed)
        errors = {
            space: errors_of_process(x, y, xt, yt, space, full, seed) for space in JITTER if space == PROCESS or d < 8
        }
        errors[NETWORKS] = errors_of(outputs[:, : len(xt)], yt)
        for space, own in errors.items():
            information = inductive_bias(own, eps)
            bias[space, d] = float(information)
            row = {"arm": f"{space}, {d} dimensions", "nats": float(information), "mean error": float(own.mean())}
            rows.append(row | {"least error": information.least_error})
        rows[-1]["training error"] = float(errors_of(outputs[:, len(xt) :], y).mean())
        if full and d == DIMS[-1]:
            check_sane("error of networks in 16 dimensions, negative", -float(errors[NETWORKS].mean()), -0.04)
    effects = {f"{a} to {b}": math.log(bias[PROCESS, b] / bias[PROCESS, a]) for a, b in pairwise(DIMS)}
    effects["networks"] = max(bias[NETWORKS, d] / bias[PROCESS, d] for d in DIMS)
    effects["missed"] = math.log(bias[MISSED, 4] / bias[MISSED, 2])
    return Evidence(rows, effects)


def parts(seed: int, d: int, full: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores on the first components of the training rows, and classes, of both parts."""
    x, y, x_test, y_test = digits(seed, train=TRAIN if full else 60)
    tested = TESTED if full else 20
    axes = np.linalg.svd(x, full_matrices=False)[2][:d]
    scores = (torch.as_tensor(rows @ axes.T, dtype=torch.float64) for rows in (x, x_test[:tested]))
    rows, test = scores
    return rows, torch.as_tensor(y), test, torch.as_tensor(y_test[:tested])


def reference(seed: int, full: bool) -> float:
    """The mean squared error of shares of classes among nearest neighbours in the lowest dimension."""
    x, y, xt, yt = parts(seed, DIMS[0], full)
    shares = KNeighborsClassifier(NEIGHBOURS).fit(x.numpy(), y.numpy()).predict_proba(xt.numpy())
    error = float((torch.as_tensor(shares) - nn.functional.one_hot(yt, 10)).square().mean())
    if full:
        check_sane("error of the reference, negative", -error, -0.075)
    return error


def errors_of_process(x: Tensor, y: Tensor, xt: Tensor, yt: Tensor, space: str, full: bool, seed: int) -> Tensor:
    """Test errors of functions of a Gaussian process that fit the classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = nn.functional.one_hot(y, 10).double()
    draws = 50 if not full else DRAWS if space == PROCESS else DRAWS // 5
    return torch.cat(
        [
            errors_of(gp_hypotheses(x, labels, xt, n=count, jitter=JITTER[space], generator=generator), yt)
            for count in [min(AT_ONCE, draws)] * -(-draws // AT_ONCE)
        ]
    )


def by_networks(x: Tensor, y: Tensor, xt: Tensor, full: bool, seed: int) -> Tensor:
    """Outputs of trained networks, at test and then training inputs; at smoke scale in float64."""
    dtype = torch.float32 if full else torch.float64
    rows = x.to(dtype)
    return trained_hypotheses(
        partial(network, x.shape[1], WIDTH if full else 8, dtype),
        (rows, y),
        NETS if full else 5,
        torch.cat([xt.to(dtype), rows]),
        epochs=EPOCHS if full else 3,
        batch_size=50,
        seed=seed,
    )


def network(features: int, width: int, dtype: torch.dtype) -> nn.Module:
    """Two layers of rectified units and ten outputs."""
    return Network(mlp(features, width=width), nn.Linear(width, 10)).to(dtype)


def errors_of(outputs: Tensor, y: Tensor) -> Tensor:
    """The mean squared error of each hypothesis to the one-hot code."""
    return (outputs.double() - nn.functional.one_hot(y, 10)).square().flatten(1).mean(1)


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Nats of each space in each dimension, on a logarithmic scale."""
    spaces = [Evidence([row for row in of_seed.rows if "nats" in row], {}) for of_seed in evidence]
    drawn: Figure = bars_figure(spaces, y="nats")
    drawn.axes[0].set_xscale("symlog")
    return drawn
