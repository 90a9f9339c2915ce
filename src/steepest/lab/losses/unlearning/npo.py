"""NPO: forgetting that slows down by itself, where gradient ascent runs away.

Set-up of the claim: multiclass logistic regression on 1,000 rows of five gaussian classes; a tenth of the rows is a
second group, whose classes differ in 20 inputs of their own, as those of the others do in theirs. It is to be forgotten
by 2,000 full-batch steps of gradient descent at one rate, with gradient ascent, NPO (beta .1) or NPO and cross-entropy
on the others. Expected: the distance from the trained weights grows linearly under ascent and like a logarithm under
NPO (from half the steps to all of them by a factor of 2 against 1.1; .3 between them are claimed), the loss of the
other rows ends far higher under ascent (by a factor of two is claimed), and where both have forgotten equally, as much
as NPO in the end, it is higher under ascent too (by a tenth is claimed). An expectation of ours: with cross-entropy on
the others besides, their loss is lower by a tenth at the same forgetting.

The claim of equal forgetting is contradicted here. What was checked on the two seeds that are not reported: rates of
.01, .03 and .1 (ascent 7 to 14% lower at each), a network with 64 rectified units in place of the linear model, and
where the forgotten rows have a loss of 2 or 5 (within a tenth either way): at first both go the same way, and later
ascent adds loss to few rows. It is in steps that NPO is safe, not at a level of forgetting that ascent is stopped at.

The rate is the largest of a grid at which NPO never raises its own loss on two seeds that are not reported
(:func:`choose_rate`); a larger one than .1 would pass in one step what is compared. The trained model must classify 80%
of 2,000 other rows of the first group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ....core.random import seed_all
from ....losses.unlearning.npo import gradient_ascent_loss, npo_loss
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import check_sane

SEEDS = 6
ASCENT, NPO, BOTH = "gradient ascent", "NPO", "NPO, others kept"
STEPS = {"smoke": 20, "full": 2000}
GRID = (0.01, 0.03, 0.1)
RATE = 0.1
"""What :func:`choose_rate` gives."""
BETA = 0.1
SANITY = 80.0
CLAIMS = (
    Claim("distance", "the distance grows faster in the second half under ascent (factor; .3 more)", size=0.3),
    Claim("runs away", "the loss of the other rows ends higher under ascent (log10; .3)", size=0.3),
    Claim(
        "equal forgetting", "as much forgotten, the loss of the other rows is higher under ascent (share; .1)", size=0.1
    ),
    Claim("kept", "kept besides, the loss of the other rows is lower (share; .1)", size=0.1, ours=True),
)


def run(scale: str, seed: int) -> Evidence:
    """The three ways to forget."""
    data, model, right = trained(scale, seed)
    if scale == "full":
        check_sane("right of 100 other rows", right, SANITY)
    paths = {arm: forget(arm, model, data, RATE, STEPS[scale]) for arm in (ASCENT, NPO, BOTH)}
    rows: list[dict[str, Any]] = []
    for arm, path in paths.items():
        for step in sorted({int(s) for s in np.geomspace(1, STEPS[scale], 8)}):
            forgotten, others, distance = path[step - 1]
            rows.append({"way": arm, "step": step, "forgotten": forgotten, "others": others, "distance": distance})
    half = STEPS[scale] // 2
    growth = {arm: path[-1][2] / path[half - 1][2] for arm, path in paths.items()}
    level = min(paths[NPO][-1][0], paths[BOTH][-1][0])
    at_level = {arm: others_at(level, path) for arm, path in paths.items()}
    return Evidence(
        rows,
        {
            "distance": growth[ASCENT] - growth[NPO],
            "runs away": float(np.log10(paths[ASCENT][-1][1] / paths[NPO][-1][1])),
            "equal forgetting": at_level[ASCENT] / at_level[NPO] - 1,
            "kept": 1 - at_level[BOTH] / at_level[NPO],
        },
    )


def trained(scale: str, seed: int) -> tuple[tuple[Tensor, Tensor, int], nn.Module, float]:
    """Rows (those to forget come first), the model, and how many of 100 other rows it classifies."""
    smoke = scale == "smoke"
    count, test = (100, 50) if smoke else (1000, 2000)
    draws = torch.Generator().manual_seed(seed)
    centres = 0.7 * torch.randn(2, 5, 40, generator=draws, dtype=torch.float64)
    centres[0, :, 20:] = centres[1, :, :20] = 0.0
    y = torch.randint(5, (count + test,), generator=draws)
    group = (torch.arange(count + test) < count // 10).long()
    x = centres[group, y] + torch.randn(count + test, 40, generator=draws, dtype=torch.float64)
    seed_all(seed)
    model = nn.Linear(40, 5).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(10 if smoke else 200):
        optimizer.zero_grad()
        cross_entropy(model(x[:count]), y[:count]).backward()
        optimizer.step()
    with torch.no_grad():
        right = 100 * float((model(x[count:]).argmax(1) == y[count:]).double().mean())
    return (x[:count], y[:count], count // 10), model, right


def forget(
    arm: str, model: nn.Module, data: tuple[Tensor, Tensor, int], rate: float, steps: int
) -> list[tuple[float, float, float]]:
    """After each step the loss of what is forgotten, that of the others, and the distance of the weights."""
    x, y, first = data
    start = [p.detach().clone() for p in model.parameters()]
    weights = [p.clone().requires_grad_() for p in start]
    names = [name for name, _ in model.named_parameters()]

    def losses() -> Tensor:
        return cross_entropy(torch.func.functional_call(model, dict(zip(names, weights)), (x,)), y, reduction="none")

    reference = -losses()[:first].detach()
    of: dict[str, Callable[[Tensor], Tensor]] = {
        ASCENT: lambda rows: gradient_ascent_loss(-rows[:first]),
        NPO: lambda rows: npo_loss(-rows[:first], reference, beta=BETA),
        BOTH: lambda rows: npo_loss(-rows[:first], reference, beta=BETA) + rows[first:].mean(),
    }
    path = []
    rows = losses()
    for _ in range(steps):
        gradients = torch.autograd.grad(of[arm](rows), weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients):
                weight.sub_(gradient, alpha=rate)
            distance = torch.stack([(w - s).square().sum() for w, s in zip(weights, start)]).sum().sqrt()
        rows = losses()
        values = rows.detach()
        path.append((float(values[:first].mean()), float(values[first:].mean()), float(distance)))
    return path


def others_at(level: float, path: Sequence[tuple[float, float, float]]) -> float:
    """The loss of the other rows where the loss of the forgotten ones first reaches a level."""
    return next(others for forgotten, others, _ in path if forgotten >= level - 1e-12)


def choose_rate() -> float:
    """The largest rate at which NPO's loss never rises."""

    def falls(rate: float, seed: int) -> bool:
        data, model, _ = trained("full", seed)
        forgotten = [row[0] for row in forget(NPO, model, data, rate, STEPS["full"])]
        return bool((np.diff(forgotten) > -1e-9).all())

    return max(rate for rate in GRID if all(falls(rate, seed) for seed in (101, 102)))


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Losses of the other rows in the end."""
    last = [Evidence([r for r in one.rows if r["step"] == STEPS["full"]], one.effects) for one in evidence]
    return bars_figure(last, y="others", label="way")
