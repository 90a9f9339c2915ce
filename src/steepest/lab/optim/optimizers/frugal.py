"""FRUGAL against AdamW and what keeps as little state: a small language model from scratch.

Set-up of the claim, smaller: a causal transformer of 4 blocks, 48 wide (card: 128), learns tiny Shakespeare for 240
steps (card: 1500) in windows of 32 characters; rates rise for 20 steps and fall along a cosine; what is on is chosen
anew every 30 steps (card: 200 of 1500). Split are the weights of linear layers in the blocks; embeddings, norms, biases
and the output head move by AdamW in all arms but signSGD. Arms: AdamW; FRUGAL with a quarter of the blocks' matrices
on, and with none; GaLore with a quarter of the dimensions and BAdam with a quarter of the matrices, both as FRUGAL
without a step off the choice (GaLore's own code keeps the averages of the basis before; here they begin anew); and
signSGD for all parameters. Without decay, as the publication trains. Loss is that of the held-out text in nats a
character. Seeds are initial weights, orders of windows and choices; there are seven, as five could have missed 0.03
nats between AdamW and FRUGAL.

Claims, from the card's "AdamW <= FRUGAL .25 < FRUGAL 0 < GaLore/BAdam": FRUGAL with a quarter is below FRUGAL with
none, and that below GaLore and BAdam, as is FRUGAL with a quarter (size: 0.03 nats; the card has no numbers); AdamW's
loss is not above that of FRUGAL with a quarter by more than 0.01, and, "near Adam", not below it by more than 0.05.
Ours: the state for split weights is at most 0.3 of AdamW's; FRUGAL with none is below signSGD.

The baseline is fair: each arm takes the best of four rates by held-out loss on a seed that is not reported
(:func:`choose_rates`); AdamW must come below 2.5 nats, which every seed checks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ....core.random import seed_all
from ....optim.optimizers.frugal import FRUGAL, frugal_param_groups
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import best_setting, check_sane
from ..schedules._shakespeare import Transformer, batch, held_out_loss, loss_of

DEPTH, STEPS, WARM_UP, GAP, WINDOWS, SEEDS, PILOTS = 4, 240, 20, 30, 400, 7, (101,)
ADAMW, QUARTER, NONE, GALORE, BADAM, SIGNS = "AdamW", "FRUGAL 0.25", "FRUGAL 0", "GaLore 0.25", "BAdam 0.25", "signSGD"
OPTIONS: dict[str, dict[str, Any]] = {
    QUARTER: {"density": 0.25},
    NONE: {"density": 0.0},
    GALORE: {"density": 0.25, "projection": "svd", "state_free": "none"},
    BADAM: {"density": 0.25, "state_free": "none"},
    SIGNS: {"density": 0.0, "project": True},
}
GRID = (3e-3, 1e-2, 3e-2, 1e-1)
RATES = {ADAMW: 3e-2, QUARTER: 1e-2, NONE: 1e-2, GALORE: 3e-2, BADAM: 3e-2, SIGNS: 1e-2}
"""What :func:`choose_rates` gives."""
SANITY = -2.5
CLAIMS = (
    Claim("state", "FRUGAL's loss with a quarter on is below that with none, in nats", size=0.03),
    Claim("none", "with none on it is below GaLore's and BAdam's (the lower of the two)", size=0.03),
    Claim("quarter", "with a quarter on it is below GaLore's and BAdam's (the lower of the two)", size=0.03),
    Claim("adamw", "AdamW's loss is at most 0.01 above FRUGAL's with a quarter", 0.03, threshold=0.01, greater=False),
    Claim("near", "FRUGAL's with a quarter is at most 0.05 above AdamW's", 0.05, threshold=0.05, greater=False),
    Claim("bytes", "a quarter's state takes at most 0.3 of AdamW's", 0.05, threshold=0.3, greater=False, ours=True),
    Claim("ends", "FRUGAL's loss with none on is below signSGD's", size=0.03, ours=True),
)


def run(scale: str, seed: int) -> Evidence:
    """Loss and bytes of each arm."""
    full = scale == "full"
    results = {arm: trained(arm, rate, seed, full) for arm, rate in RATES.items()}
    rows: list[dict[str, Any]] = [
        {"arm": arm, "rate": RATES[arm], "held-out loss": loss, "state bytes": size}
        for arm, (loss, size) in results.items()
    ]
    losses = {arm: loss for arm, (loss, _) in results.items()}
    if full:
        check_sane("held-out loss of AdamW, negative", -losses[ADAMW], SANITY)
    alike = min(losses[GALORE], losses[BADAM])
    effects = {
        "state": losses[NONE] - losses[QUARTER],
        "none": alike - losses[NONE],
        "quarter": alike - losses[QUARTER],
        "adamw": losses[ADAMW] - losses[QUARTER],
        "near": losses[QUARTER] - losses[ADAMW],
        "bytes": results[QUARTER][1] / results[ADAMW][1],
        "ends": losses[SIGNS] - losses[NONE],
    }
    return Evidence(rows, effects)


def trained(arm: str, rate: float, seed: int, full: bool) -> tuple[float, float]:
    """Held-out loss, and bytes of the state of split weights, averaged over choices."""
    seed_all(seed)
    model = Transformer(DEPTH) if full else Transformer(2, 12, 2).double()
    groups = frugal_param_groups(model)
    split = groups[1]["params"]
    optimizer: Optimizer
    if arm == ADAMW:
        optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.0)
    else:
        given: Any = model.parameters() if arm == SIGNS else groups
        draws = torch.Generator().manual_seed(seed)
        optimizer = FRUGAL(given, rate, update_gap=GAP if full else 2, generator=draws, **OPTIONS[arm])
    steps = STEPS if full else 5
    schedule = LambdaLR(optimizer, partial(_share, steps=steps))
    order = torch.Generator().manual_seed(seed)
    sizes = []
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, batch(order, not full)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % GAP == 0:
            held = [value for p in split for value in optimizer.state[p].values() if isinstance(value, torch.Tensor)]
            sizes.append(sum(value.nbytes for value in held))
    return held_out_loss(model, WINDOWS if full else 8, not full), sum(sizes) / len(sizes)


def _share(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))


def choose_rates() -> dict[str, float]:
    """The rate of each arm with the lowest held-out loss on a seed that is not reported."""
    return {
        arm: best_setting(GRID, lambda rate, seed, arm=arm: -trained(arm, rate, seed, True)[0], PILOTS) for arm in RATES
    }


def figure(evidence: Sequence[Evidence]) -> Figure:
    """The loss of each arm."""
    drawn: Figure = bars_figure(evidence, y="held-out loss")
    return drawn
