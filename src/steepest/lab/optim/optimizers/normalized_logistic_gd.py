"""Gradient descent with huge steps needs as many iterations as there are points; normalised, a few.

Set-up of the claim: n - 1 points around (1, 0.2) and one around (-1, 0.2), all labelled +1, n = 100 and 1,000, step
sizes 1, 10, 100 and 1,000, until all points are on their side. The card's points are exactly there (54,000, 5,400, 488
and 463 iterations at n = 1,000; normalised 96, 2, 2, 2; 47 at n = 100 for large steps): here every seed moves each
point by normal noise of deviation 0.02, so that seeds differ. Beside it, what the card asks to report too: well-spread
points (200 Gaussian ones in 20 dimensions, labelled by a random direction), and the digits of scikit-learn, a random
four fifths of them, zeros against the rest.

Claims: with large steps the iterations grow in proportion to n (exponent of n within 0.1 of 1); at n = 1,000 the best
step size of gradient descent needs 100 times as many iterations as the normalised method's best (card: 463 to 2); steps
a thousand times larger need a hundredth of the iterations or less (card: 54,000 to 463, so 0.0086), while the largest
loss on the way grows above log 2, where every run begins (n = 100, where 1,000 is a large step). On well-spread points
the two are similar: within a factor of 2, each at its best step. An expectation of ours, from a look at three digits:
there plain huge steps need fewer.

The baseline is fair: every method runs at every step size, and its best counts; each run of plain gradient descent must
separate, which every seed checks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ....optim.optimizers.normalized_logistic_gd import Separation, logistic_gd
from ...experiment import Claim, Evidence
from ...figures import arms_figure
from ...settings import check_sane

STEPS, LIMIT, NOISE, SEEDS = (1.0, 10.0, 100.0, 1000.0), 100_000, 0.02, 8
LOPSIDED, FEW, SPREAD, DIGITS = "one point opposite, n = 1000", "one point opposite, n = 100", "Gaussian", "digits"
CLAIMS = (
    Claim(
        "order n", "exponent of n in the iterations of large steps, distance from 1",
        size=0.1, threshold=0.1, greater=False,
    ),
    Claim("few", "at n = 1000 plain descent needs 100 times the iterations", size=100.0, threshold=100.0),
    Claim(
        "steps", "a step size of 1000 needs a hundredth of the iterations of 1 (share)",
        size=0.0014, threshold=0.01, greater=False,
    ),
    Claim("loss", "with it, the largest loss is above that at the start (nats)", size=1.0),
    Claim(
        "similar", "on well-spread points the two are within a factor 2 (log2)",
        size=1.0, threshold=1.0, greater=False,
    ),
    Claim("digits", "of digits, plain descent at its best step needs fewer (log2)", size=1.0, ours=True),
)  # fmt: skip


def run(scale: str, seed: int) -> Evidence:
    """Iterations of both methods at every step size, on each set of points."""
    sets = points(scale == "full", seed)
    rows: list[dict[str, Any]] = []
    runs: dict[tuple[str, bool, float], Separation] = {}
    for name, (a, y) in sets.items():
        for normalize in (False, True):
            for gamma in STEPS:
                end = logistic_gd(a, y, gamma, normalize, LIMIT)
                runs[name, normalize, gamma] = end
                row = {"arm": f"{'normalised' if normalize else 'plain'}, {name}", "step": gamma}
                rows.append(row | {"iterations": end.iterations, "largest loss": float(end.losses.max())})
    if scale == "full":
        plain = [end.separated for (_, normalize, _), end in runs.items() if not normalize]
        check_sane("share of plain runs that separate", sum(plain) / len(plain), 1.0)

    def best(name: str, normalize: bool) -> int:
        return min(runs[name, normalize, gamma].iterations for gamma in STEPS)

    def extra(name: str) -> float:
        return math.log2(best(name, True) / best(name, False))

    exponent = math.log(best(LOPSIDED, False) / best(FEW, False)) / math.log(len(sets[LOPSIDED][0]) / len(sets[FEW][0]))
    small, large = (runs[LOPSIDED, False, gamma].iterations for gamma in (STEPS[0], STEPS[-1]))
    effects = {
        "order n": abs(exponent - 1.0),
        "few": best(LOPSIDED, False) / best(LOPSIDED, True),
        "steps": large / small,
        "loss": float(runs[FEW, False, STEPS[-1]].losses.max()) - math.log(2),
        "similar": abs(extra(SPREAD)),
        "digits": extra(DIGITS),
    }
    return Evidence(rows, effects)


def points(full: bool, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Points and labels of each set; without ``full`` small ones that need no data."""
    generator = torch.Generator().manual_seed(1000 + seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def lopsided(n: int) -> tuple[Tensor, Tensor]:
        centres = torch.tensor([[1.0, 0.2]] * (n - 1) + [[-1.0, 0.2]], dtype=torch.float64)
        return centres + NOISE * normal(n, 2), torch.ones(n, dtype=torch.float64)

    def spread(n: int, d: int) -> tuple[Tensor, Tensor]:
        a = normal(n, d)
        return a, (a @ normal(d)).sign()

    return {
        LOPSIDED: lopsided(1000 if full else 40),
        FEW: lopsided(100 if full else 10),
        SPREAD: spread(*(200, 20) if full else (12, 3)),
        DIGITS: zeros_of_digits(generator) if full else spread(8, 2),
    }


def zeros_of_digits(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Four fifths of scikit-learn's digits, standardised, with a column of ones; zeros are +1."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    rows = torch.randperm(len(x), generator=generator)[: 4 * len(x) // 5].numpy()
    x = x[rows]
    deviation = x.std(0)
    x = np.column_stack([(x - x.mean(0)) / np.where(deviation > 0, deviation, 1.0), np.ones(len(x))])
    return torch.as_tensor(x), torch.as_tensor(np.where(y[rows] == 0, 1.0, -1.0))


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Iterations over the step size, both logarithmic."""
    drawn: Figure = arms_figure(evidence, x="step", y="iterations")
    drawn.axes[0].set_xscale("log")
    drawn.axes[0].set_yscale("log")
    return drawn
