"""The error of a private mean in the shuffle model, against local and central privacy, from 1e4 to 1e7 users.

Set-up of the claims: every user holds a row of scikit-learn's diabetes table, ten features, brought to length 1, drawn
with replacement; the mean of all is released under (1, 1e-6)-differential privacy by the shuffle protocol, by Gaussian
noise of each user (local) and by Gaussian noise on the sum (central), whose deviation is the least that the mechanism
allows (its exact condition). Users with one row have one message but for rounding and noise, so that the protocol's
counts are drawn by row: levels that are rounded up are binomial with the number of its users, and noisy bits are one
binomial. Error is the root of the mean squared distance over 100 releases; slopes are of least squares over logarithms,
at four numbers of users.

Claims, from the card's "expect slopes -1, -1/2, -1 in log-log and a constant of several hundred over central": the
slopes of shuffle and central are at most -0.9, that of local at least -0.6 (sizes: the 0.1 between); the error of
shuffle is at least 300 times that of central at 1e7 (size: as much again); and as 1/n is to be far better than local,
at 1e7 its error is below that of local (size: half of it). Ours, which the card leaves out and its constants imply:
below some 1e6 users shuffle is worse than local, at 1e5 by a factor of 2 at least.

There is nothing to tune: all three have one budget and the same users. The error of local must be within a tenth of
that of its noise. Private descent is not among the claims: each of its batches would need those millions of users.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from ....optim.private.shuffle_private_sco import ShuffleVectorSum
from ...experiment import Claim, Evidence
from ...figures import arms_figure
from ...settings import check_sane

SEEDS, EPS, DELTA, RELEASES = 10, 1.0, 1e-6, 100
USERS = (10_000, 100_000, 1_000_000, 10_000_000)
SHUFFLE, LOCAL, CENTRAL = "shuffle", "local", "central"
SANITY = 0.9
CLAIMS = (
    Claim("shuffle slope", "the slope of shuffle is at most -0.9", size=0.1, threshold=-0.9, greater=False),
    Claim("local slope", "the slope of local privacy is at least -0.6", size=0.1, threshold=-0.6),
    Claim("central slope", "the slope of central privacy is at most -0.9", size=0.1, threshold=-0.9, greater=False),
    Claim("constant", "the error is at least 300 times that of central at 1e7", size=300.0, threshold=300.0),
    Claim("below local", "at 1e7 the error is below that of local, in percent of it", size=50.0),
    Claim("above local", "at 1e5 the error is at least twice that of local", size=1.0, threshold=2.0, ours=True),
)  # fmt: skip


def run(scale: str, seed: int) -> Evidence:
    """The error of each mechanism at each number of users."""
    full = scale == "full"
    counts = USERS if full else (100, 1000, 10_000, 100_000)
    errors = {users: errors_of(table(), users, seed, RELEASES if full else 3) for users in counts}
    rows: list[dict[str, Any]] = [
        {"arm": arm, "users": users, "error": value} for users in counts for arm, value in errors[users].items()
    ]
    if full:
        ratio = errors[USERS[-1]][LOCAL] / (gaussian_deviation(2.0) * math.sqrt(10 / USERS[-1]))
        check_sane("error of local privacy over that of its noise, or the inverse", min(ratio, 1 / ratio), SANITY)
    slopes = {arm: slope(counts, [errors[users][arm] for users in counts]) for arm in (SHUFFLE, LOCAL, CENTRAL)}
    last, early = errors[counts[-1]], errors[counts[1]]
    return Evidence(
        rows,
        {
            "shuffle slope": slopes[SHUFFLE],
            "local slope": slopes[LOCAL],
            "central slope": slopes[CENTRAL],
            "constant": last[SHUFFLE] / last[CENTRAL],
            "below local": 100 * (1 - last[SHUFFLE] / last[LOCAL]),
            "above local": early[SHUFFLE] / early[LOCAL],
        },
    )


@cache
def table() -> np.ndarray:
    """The rows, of length 1."""
    from sklearn.datasets import load_diabetes

    x = load_diabetes().data
    rows: np.ndarray = x / np.linalg.norm(x, axis=1, keepdims=True)
    return rows


def errors_of(x: np.ndarray, users: int, seed: int, releases: int) -> dict[str, float]:
    """Of each mechanism for the mean of so many users, who hold these rows."""
    rng = np.random.default_rng([seed, users])
    held = rng.multinomial(users, np.full(len(x), 1 / len(x)))
    truth, d = held @ x, x.shape[1]
    deviation = gaussian_deviation(2.0)
    noise = deviation * rng.normal(size=(2, releases, d))
    sums = {
        SHUFFLE: shuffled(x, held, releases, rng),
        LOCAL: truth + math.sqrt(users) * noise[0],
        CENTRAL: truth + noise[1],
    }
    return {arm: math.sqrt(((values - truth) ** 2).sum(1).mean()) / users for arm, values in sums.items()}


def shuffled(x: np.ndarray, held: np.ndarray, releases: int, rng: np.random.Generator) -> np.ndarray:
    """Released sums where row i is held by ``held[i]`` users, ``[releases, d]``."""
    users, d = int(held.sum()), x.shape[1]
    protocol = ShuffleVectorSum(users, d, EPS, DELTA)
    place = (x + 1) * (protocol.g / 2)
    low = np.floor(place)
    certain = held @ low.astype(np.int64)
    rounded = np.stack([rng.binomial(held[:, None], place - low).sum(0) for _ in range(releases)])
    noise = rng.binomial(users * protocol.b, 0.25, size=(releases, d))
    return np.stack([protocol.aggregate(torch.as_tensor(counts)).numpy() for counts in certain + rounded + noise])


@cache
def gaussian_deviation(sensitivity: float) -> float:
    """The least deviation of Gaussian noise under the budget: its delta at eps, in closed form, by bisection."""
    from scipy import stats

    def delta(deviation: float) -> float:
        half, shift = sensitivity / (2 * deviation), EPS * deviation / sensitivity
        return float(stats.norm.cdf(half - shift) - math.exp(EPS) * stats.norm.cdf(-half - shift))

    low, high = 0.1 * sensitivity, 100 * sensitivity
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if delta(middle) > DELTA else (low, middle)
    return high


def slope(users: Sequence[int], errors: Sequence[float]) -> float:
    """Of the line through logarithms."""
    return float(np.polyfit(np.log(users), np.log(errors), 1)[0])


def figure(evidence: Sequence[Evidence]) -> Figure:
    """The error by the number of users."""
    drawn: Figure = arms_figure(evidence, x="users", y="error")
    return drawn
