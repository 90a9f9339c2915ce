"""Betti matching beside Dice against Dice alone: topology at equal Dice.

Networks (edges of random Voronoi cells) and rings, 48 x 48, on photographs, with noise and gaps (the card's images are
networks only): 160 to train on, 80 to test. A U-Net of 8 channels and three resolutions, batches of 8, Adam: 100 steps
of Dice at 0.003, then from this one model 100 steps of each arm, one order for all, at a rate that falls to nothing
along a cosine. Arms: Dice; half Dice and half soft-clDice, whose skeletons take three erosions; Dice + 0.5 Betti
matching (superlevel sets, union), the published weight; Dice + 0.01 Betti matching. Masks are probabilities above 1/2.
Dice coefficient in per cent and Betti errors are means over test images. "Down 20-50%" is taken as more than 20%, with
a size of 15 from there to the middle of the range; "within 1 point" as at most 1 point below Dice, for being better is
no fault. The comparison is fair: each arm has the best of three rates by the Dice coefficient on the test images of a
seed that is not reported (:func:`choose_rates`), and Dice must reach 80%, which every seed checks.

That Dice falls by far more at the published weight was looked into. Betti matching is a sum over bars, several an
image, against a Dice term below 0.2: at 0.5 it outweighs Dice by an order of magnitude and the lines are drawn half as
wide again; framed maps (``relative=True``, as in the authors' configurations) do so too, and at 0.05 Dice still loses 4
points. At 0.01 both terms are of one size. The claims are made for both weights; those of 0.01, chosen on the seed of
the rates, are ours. The published training goes on for 100 to 1,000 epochs. Before, each phase had 150 steps at 0.003
and there was no smaller weight. From scratch, with each arm's own loss from the start, Betti matching at 0.5 had hardly
begun to find the lines after 300 steps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

from ....losses.dense.betti_matching import DiceBettiMatchingLoss, betti_matching_error, betti_number_error
from ....losses.dense.dice import soft_dice_loss
from ....nn.unet import UNet
from ...data.shapes import shapes
from ...experiment import Claim, Evidence
from ...settings import best_setting, check_sane
from ...tuning import UNREPORTED

SEEDS = 6
STEPS, BATCH, EROSIONS = 100, 8, 3
START_RATE = 3e-3
GRID = (1e-3, 3e-3, 1e-2)
DICE, CLDICE, MATCHING, LIGHT = "Dice", "Dice + clDice", "Dice + 0.5 Betti matching", "Dice + 0.01 Betti matching"
RATES = {DICE: 3e-3, CLDICE: 3e-3, MATCHING: 1e-3, LIGHT: 3e-3}
"""Of each arm: what :func:`choose_rates` gives."""
SANITY = 80.0
"""Dice coefficient in percent that Dice must reach."""
CLAIMS = (
    Claim(
        "error reduction",
        "with Betti matching the Betti matching error is more than 20% below that of Dice",
        size=15.0,
        threshold=20.0,
    ),
    Claim("Dice loss", "Dice falls by less than 1 point", size=1.0, threshold=1.0, greater=False),
    Claim(
        "light error reduction",
        "at a weight of 0.01 the Betti matching error is more than 20% below that of Dice",
        size=15.0,
        threshold=20.0,
        ours=True,
    ),
    Claim(
        "light Dice loss",
        "at a weight of 0.01 Dice falls by less than 1 point",
        size=1.0,
        threshold=1.0,
        greater=False,
        ours=True,
    ),
)
Pairs = tuple[Tensor, Tensor]


def run(scale: str, seed: int) -> Evidence:
    """Dice and Betti errors of each arm on the test images."""
    full = scale == "full"
    train, test = _data(seed, full)
    steps = STEPS if full else 2
    start = _start(train, steps, seed)
    scores = {arm: _score(_train(start, arm, train, RATES[arm], steps, seed), test) for arm in RATES}
    if full:
        check_sane("Dice coefficient of Dice", scores[DICE]["Dice, %"], SANITY)
    error = "Betti matching error"
    effects = {}
    for label, arm in (("", MATCHING), ("light ", LIGHT)):
        # nothing wrong in either arm is no reduction
        ratio = scores[arm][error] / scores[DICE][error] if scores[DICE][error] else 1.0
        effects[f"{label}error reduction"] = 100 * (1 - ratio)
        effects[f"{label}Dice loss"] = scores[DICE]["Dice, %"] - scores[arm]["Dice, %"]
    return Evidence([{"arm": arm, **of_arm} for arm, of_arm in scores.items()], effects)


def choose_rates(seed: int = UNREPORTED) -> dict[str, float]:
    """The rate of each arm with the highest Dice coefficient on the test images of a seed that is not reported."""
    train, test = _data(seed, True)
    start = _start(train, STEPS, seed)

    def score(arm: str, rate: float, seed: int) -> float:
        return _score(_train(start, arm, train, rate, STEPS, seed), test)["Dice, %"]

    return {arm: best_setting(GRID, partial(score, arm), (seed,)) for arm in RATES}


def _data(seed: int, full: bool) -> tuple[Pairs, Pairs]:
    """Images and masks to train and to test on; in double precision at smoke scale, compared between machines."""
    counts = (160, 80) if full else (8, 4)
    parts = [shapes(count, seed, part=split) for split, count in zip(("train", "test"), counts)]
    dtype = torch.float32 if full else torch.float64
    train, test = ((torch.from_numpy(x).to(dtype), torch.from_numpy(y).to(dtype)) for x, y in parts)
    return train, test


def _loss(arm: str) -> Callable[[Tensor, Tensor], Tensor]:
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        DICE: _dice,
        CLDICE: lambda z, y: 0.5 * _dice(z, y) + 0.5 * soft_cldice_loss(z.sigmoid(), y),
        MATCHING: DiceBettiMatchingLoss(alpha=0.5),
        LIGHT: DiceBettiMatchingLoss(alpha=0.01),
    }
    return losses[arm]


def _dice(z: Tensor, y: Tensor) -> Tensor:
    return soft_dice_loss(z.flatten(1), y.flatten(1), reduce="sample", eps=1e-5)


def soft_cldice_loss(p: Tensor, y: Tensor, *, eps: float = 1.0) -> Tensor:
    """One minus the harmonic mean of the shares of each soft skeleton ``[B, 1, H, W]`` that lie in the other map."""
    skeletons = _skeleton(p), _skeleton(y)
    inside = [(s * opposite).flatten(1).sum(1) for s, opposite in zip(skeletons, (y, p))]
    shares = [(i + eps) / (s.flatten(1).sum(1) + eps) for i, s in zip(inside, skeletons)]
    return (1 - 2 * shares[0] * shares[1] / (shares[0] + shares[1])).mean()


def _skeleton(x: Tensor) -> Tensor:
    """What openings remove, erosion after erosion."""

    def eroded(x: Tensor) -> Tensor:
        down = -functional.max_pool2d(-x, (3, 1), 1, (1, 0))
        return torch.minimum(down, -functional.max_pool2d(-x, (1, 3), 1, (0, 1)))

    skeleton = torch.zeros_like(x)
    for _ in range(EROSIONS + 1):
        smaller = eroded(x)
        removed = torch.relu(x - functional.max_pool2d(smaller, 3, 1, 1))
        skeleton = skeleton + torch.relu(removed - skeleton * removed)
        x = smaller
    return skeleton


def _start(pairs: Pairs, steps: int, seed: int) -> nn.Module:
    """The model that all arms go on from: Dice at one rate."""
    torch.manual_seed(seed)
    model = UNet(1, 1, width=8, depth=3).to(pairs[0].dtype)
    if pairs[0].dtype == torch.float64:
        # normal weights differ between machines in the last digits of single precision
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(weight.round(decimals=4))
    return _descend(model, _dice, pairs, START_RATE, steps, 2 * seed, falling=False)


def _train(start: nn.Module, arm: str, pairs: Pairs, rate: float, steps: int, seed: int) -> nn.Module:
    return _descend(copy.deepcopy(start), _loss(arm), pairs, rate, steps, 2 * seed + 1, falling=True)


def _descend(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    pairs: Pairs,
    rate: float,
    steps: int,
    seed: int,
    *,
    falling: bool,
) -> nn.Module:
    x, y = pairs
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        own = torch.randint(len(x), (BATCH,), generator=generator)
        value = loss(model(x[own]), y[own])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if falling:
            schedule.step()
    return model


@torch.no_grad()
def _score(model: nn.Module, pairs: Pairs) -> dict[str, float]:
    x, y = pairs
    masks = (model(x) > 0).to(y.dtype)
    dice = (2 * (masks * y).flatten(1).sum(1) + 1e-5) / (masks.flatten(1).sum(1) + y.flatten(1).sum(1) + 1e-5)
    return {
        "Dice, %": 100 * float(dice.mean()),
        "Betti matching error": float(betti_matching_error(masks, y).double().mean()),
        "of components": float(betti_matching_error(masks, y, dims=(0,)).double().mean()),
        "of holes": float(betti_matching_error(masks, y, dims=(1,)).double().mean()),
        "Betti number error": float(betti_number_error(masks, y).double().mean()),
    }


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Dice and both Betti errors of each arm: a dot for each seed, a bar at the mean."""
    drawn = Figure(figsize=(7.6, 2.2), layout="constrained")
    rows = [row for of_seed in evidence for row in of_seed.rows]
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    for axes, name in zip(drawn.subplots(1, 3, sharey=True), ("Dice, %", "Betti matching error", "Betti number error")):
        for place, arm in enumerate(arms):
            values = [row[name] for row in rows if row["arm"] == arm]
            axes.plot(values, [place] * len(values), "o", color="#0b5c94", alpha=0.4, markersize=4)
            axes.plot([sum(values) / len(values)] * 2, [place - 0.3, place + 0.3], color="#1d2126", linewidth=2)
        axes.set_yticks(range(len(arms)), arms)
        axes.set_xlabel(name)
        axes.spines[["right", "top"]].set_visible(False)
    axes.invert_yaxis()
    return drawn
