"""Adam with decay in its gradient against AdamW: the best accuracy, and whether rate and decay can be tuned apart.

Set-up of the claim, smaller: 1,000 MNIST digits at 14 x 14 pixels (card: 5,000 Fashion-MNIST), an MLP of 32 units
(card: a CNN), 15 epochs in batches of 50, the rate falling to 0 along a cosine; six rates times five decays (card: five
times five), all cells from one initial network on the same batches. Decay of AdamW is in the publication's form, so
that its rate and decay are not multiplied.

Claims, from the card's "AdamW at least 0.5 points better, and less correlated in the paper's parametrisation": test
accuracy of the cell that is best on 2,000 validation rows is higher than Adam's (size: half a point); the correlation
of log rate and log decay over the cells within one point of the best validation accuracy is nearer to 0 than Adam's
(size: 0.2; the card has no number). Controls of ours: in torch's parametrisation, where the decay of these cells is
lambda over the rate, AdamW's correlation is nearer to 0 than in the publication's; without tuning the decay (its
smallest value) the two are equal within half a point.

A pilot had a ridge for AdamW in the publication's coordinates: beyond the best rate more decay is needed, because what
decay balances is the step, whose length the rate sets. The control says whether that is the coordinates' doing.

The baseline is fair: both have the same number of cells on the same rates; their decays, in their own units, are both
spaced by factors of ten over a range whose ends were worse on a seed that is not reported; Adam must reach 88%.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim import Optimizer

from ....optim.optimizers.adamw import AdamW
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import check_sane
from ._networks import Digits, digits

SEEDS, ROWS, EPOCHS, BATCH, WIDTH, VALIDATION, TESTED = 12, 1000, 15, 50, 32, 2000, 8000
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
DECAYS = {"Adam, L2": (1e-5, 1e-4, 1e-3, 1e-2, 1e-1), "AdamW": (1e-4, 1e-3, 1e-2, 1e-1, 1.0)}
NEAR, SANITY = 1.0, 88.0
CLAIMS = (
    Claim("gain", "test accuracy of the best cell is higher than that of Adam with decay in the gradient", size=0.5),
    Claim("apart", "over the cells within a point of the best, rate and decay are less correlated", size=0.2),
    Claim(
        "torch",
        "of AdamW's cells within a point of the best, rate and decay are less correlated in torch's parametrisation",
        size=0.2,
        ours=True,
    ),
    Claim(
        "little decay",
        "with the smallest decay the best accuracies differ by less than half a point",
        size=0.5,
        threshold=0.5,
        greater=False,
        ours=True,
    ),
)


def run(scale: str, seed: int) -> Evidence:
    """Accuracies of both grids."""
    full = scale == "full"
    rates = RATES if full else RATES[:2]
    decays: dict[str, Sequence[float]] = {**DECAYS} if full else {arm: own[1:3] for arm, own in DECAYS.items()}
    scores = grids(digits(seed, full, ROWS, TESTED), seed, EPOCHS if full else 1, rates, decays, counted=full)
    rows: list[dict[str, Any]] = []
    best, apart, little = {}, {}, {}
    for arm, (validation, test) in scores.items():
        for i, rate in enumerate(rates):
            cells = {f"decay {j}": float(test[i, j]) for j in range(len(decays[arm]))}
            rows.append({"arm": arm, "rate": rate, "accuracy": float(test[i, validation[i].argmax()])} | cells)
        best[arm] = float(test.flat[validation.argmax()])
        little[arm] = float(test[validation[:, 0].argmax(), 0])
        apart[arm] = abs(ridge(validation, rates, decays[arm]))
    in_torch = abs(ridge(scores["AdamW"][0], rates, decays["AdamW"], over_rate=True))
    if full:
        check_sane("accuracy of Adam", best["Adam, L2"], SANITY)
    return Evidence(
        rows,
        {
            "gain": best["AdamW"] - best["Adam, L2"],
            "apart": apart["Adam, L2"] - apart["AdamW"],
            "torch": apart["AdamW"] - in_torch,
            "little decay": abs(little["AdamW"] - little["Adam, L2"]),
        },
    )


def ridge(scores: np.ndarray, rates: Sequence[float], decays: Sequence[float], *, over_rate: bool = False) -> float:
    """The correlation of log rate and log decay over the cells within a point of the best; 0 where one is constant.

    Args:
        scores: ``[rates, decays]``.
        rates, decays: of the cells.
        over_rate: take decay over rate for decay.
    """
    i, j = np.nonzero(scores >= scores.max() - NEAR)
    x, y = np.log(np.asarray(rates))[i], np.log(np.asarray(decays))[j]
    y = y - x if over_rate else y
    if x.std() < 1e-9 or y.std() < 1e-9:
        return 0.0
    return round(float(np.corrcoef(x, y)[0, 1]), 9)


def grids(
    data: Digits,
    seed: int,
    epochs: int,
    rates: Sequence[float],
    decays: dict[str, Sequence[float]],
    *,
    counted: bool,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Scores on validation and test rows by arm, ``[rates, decays]``: accuracy in percent, or less the loss."""
    x, y, x_test, y_test = data
    torch.manual_seed(seed)
    shape = nn.Sequential(nn.Linear(x.shape[1], WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10)).to(x.dtype)
    cells = [(arm, rate, decay) for arm, own in decays.items() for rate in rates for decay in own]
    members = [[nn.Parameter(p.detach().clone()) for p in shape.parameters()] for _ in cells]
    steppers: list[Optimizer] = []
    for arm in decays:
        groups = [
            {"params": own, "lr": rate, "weight_decay": decay}
            for own, (name, rate, decay) in zip(members, cells)
            if name == arm
        ]
        steppers.append(
            AdamW(groups, mode="paper", foreach=True) if arm == "AdamW" else torch.optim.Adam(groups, foreach=True)
        )
    size = min(BATCH, len(x))
    steps = epochs * (len(x) // size)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(stepper, steps) for stepper in steppers]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(size):
            if len(rows) < size:
                continue
            outputs = together(members, x[rows])
            target = y[rows].expand(len(cells), -1)
            loss = nn.functional.cross_entropy(outputs.flatten(0, 1), target.flatten(), reduction="sum") / size
            for stepper in steppers:
                stepper.zero_grad()
            loss.backward()
            for stepper, schedule in zip(steppers, schedules):
                stepper.step()
                schedule.step()
    held = min(VALIDATION, len(x_test) // 2)
    with torch.no_grad():
        outputs = together(members, x_test)
    values = [[score(own[:held], y_test[:held], counted), score(own[held:], y_test[held:], counted)] for own in outputs]
    table = np.asarray(values).reshape(len(decays), len(rates), -1, 2)
    return {arm: (own[..., 0], own[..., 1]) for arm, own in zip(decays, table)}


def together(members: Sequence[Sequence[Tensor]], x: Tensor) -> Tensor:
    """Outputs ``[M, N, 10]`` of all networks for one batch."""
    first, bias, last, shift = (torch.stack(list(own)) for own in zip(*members))
    hidden = torch.relu(torch.baddbmm(bias[:, None], x.expand(len(members), *x.shape), first.mT))
    return torch.baddbmm(shift[:, None], hidden, last.mT)


def score(outputs: Tensor, target: Tensor, counted: bool) -> float:
    """Accuracy in percent, or less the loss: a smoke run's counts would differ between processors."""
    if counted:
        return 100 * float((outputs.argmax(1) == target).double().mean())
    value = -float(nn.functional.cross_entropy(outputs, target))
    assert math.isfinite(value)
    return value


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Test accuracy by rate, at the decay that is best on validation rows."""
    rows = [
        {"arm": f"{row['arm']}, {row['rate']:g}", "test accuracy, %": row["accuracy"]}
        for one in evidence
        for row in one.rows
    ]
    drawn: Figure = bars_figure([Evidence(rows, {})], y="test accuracy, %")
    return drawn
