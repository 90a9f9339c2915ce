"""Whether warm-up does for a deep network at too large weights what better weights or normalisation do.

Set-up of the claim: digits (pixels over 16, the mean of the training part taken away, 1,200 that train), eight hidden
ReLU layers of 64, Xavier-normal weights with a gain of 2.8 (about twice He's) or 1.4, SGD at a rate of 0.03 with
momentum 0.9, batches of 128, 600 steps, with and without a linear warm-up of 200 steps; at the gain of 2.8 also with
layer normalisation, and with warm-up at a rate of 0.1. Sharpness is that of 512 training samples, as a share of what
steps of the full rate stand. The rates are part of the claim, so that none is chosen; initial weights and batches of a
seed are the same for all arms. The card does not say how pixels are scaled: without centring, also where each pixel is
standardised, networks of pilot seeds died or diverged in spite of warm-up.

Claims are the card's: at a gain of 2.8 training without warm-up ends above the loss of a guess (a loss that is not
finite counts as 10), and with warm-up below 0.1; at 1.4 the share is below 0.1 at first and both train; at the rate of
0.1 a warm-up of 200 steps does not suffice; layer normalisation does without. Ours: the share at first is above 10 at
the gain of 2.8 (the card measured about 58).

The baseline, a gain of 1.4 without warm-up, must reach a test accuracy of 0.9, which every seed checks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

from ....watch.curvature.loss_curvature import warmup_probe
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import check_sane

SEEDS, TRAIN = 8, 1200
LAYERS, WIDTH, STEPS, BATCH, WARMUP, RATE, MOMENTUM = 8, 64, 600, 128, 200, 0.03, 0.9
GUESS, DIVERGED, SANITY = math.log(10.0), 10.0, 0.9
CLAIMS = (
    Claim("without", "gain 2.8: without warm-up the loss ends above that of a guess, 2.30", 0.5, threshold=GUESS - 0.1),
    Claim("warm", "gain 2.8: with warm-up it ends below 0.1", size=0.09, threshold=0.1, greater=False),
    Claim("share", "gain 1.4: the share at first is below 0.1", size=0.05, threshold=0.1, greater=False),
    Claim("gentle", "gain 1.4: with and without warm-up it ends below 0.1", size=0.09, threshold=0.1, greater=False),
    Claim("fast", "gain 2.8, rate 0.1: in spite of warm-up it ends above that of a guess", 0.5, threshold=GUESS - 0.1),
    Claim("norm", "gain 2.8 with layer norm: without warm-up it ends below 0.1", 0.09, threshold=0.1, greater=False),
    Claim("sharp", "gain 2.8: the share at first is above 10", size=10.0, threshold=10.0, ours=True),
)  # fmt: skip
ARMS = (
    ("gain 2.8", 2.8, False, RATE, (0, WARMUP)),
    ("gain 1.4", 1.4, False, RATE, (0, WARMUP)),
    ("gain 2.8, rate 0.1", 2.8, False, 0.1, (WARMUP,)),
    ("gain 2.8, layer norm", 2.8, True, RATE, (0,)),
)
"""Name, gain, whether layers are normalised, rate, warm-ups."""


def network(gain: float, normalised: bool, layers: int, width: int, inputs: int) -> nn.Sequential:
    """Hidden ReLU layers of one width; normal weights of Xavier's deviation times a gain, biases 0 at first."""
    parts: list[nn.Module] = []
    for layer in range(layers):
        parts.append(nn.Linear(width if layer else inputs, width))
        parts += [nn.LayerNorm(width), nn.ReLU()] if normalised else [nn.ReLU()]
    model = nn.Sequential(*parts, nn.Linear(width, 10))
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight, gain)
            nn.init.zeros_(module.bias)
    return model


def _digits(seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pixels and classes that train, and those that test."""
    pixels, classes = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16.0, dtype=torch.float64), torch.tensor(classes)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, test = order[:TRAIN], order[TRAIN:]
    mean = x[train].mean(0)
    return (x[train] - mean).to(dtype), y[train], (x[test] - mean).to(dtype), y[test]


def run(scale: str, seed: int) -> Evidence:
    """All arms of one seed."""
    full = scale == "full"
    layers, width, steps = (LAYERS, WIDTH, STEPS) if full else (2, 8, 6)
    x, y, x_test, y_test = _digits(seed, torch.float32 if full else torch.float64)
    if not full:
        x, y = x[:64], y[:64]
    objective = nn.CrossEntropyLoss()
    rows: list[dict[str, Any]] = []
    models: list[nn.Module] = []
    for name, gain, normalised, rate, warmups in ARMS:

        def make(gain: float = gain, normalised: bool = normalised) -> nn.Module:
            models.append(network(gain, normalised, layers, width, x.shape[1]).to(x.dtype))
            return models[-1]

        of_arm = warmup_probe(
            make, objective, (x, y), lr=rate, warmups=[w if full else w // 100 for w in warmups], steps=steps,
            batch=BATCH if full else 16, momentum=MOMENTUM, seed=seed, samples=512 if full else 32,
        )  # fmt: skip
        for row, warmup in zip(of_arm, warmups):
            loss = min(row["loss"], DIVERGED) if math.isfinite(row["loss"]) else DIVERGED
            accuracy = _accuracy(models[-len(of_arm) + of_arm.index(row)], x_test, y_test)
            share = min(row["share"], 1e6)
            rows.append({"arm": name, "warm-up": warmup, "share at first": share, "loss": loss, "accuracy": accuracy})
    of = {(row["arm"], row["warm-up"]): row for row in rows}
    if full:
        check_sane("test accuracy at a gain of 1.4", of["gain 1.4", 0]["accuracy"], SANITY)
    effects = {
        "without": of["gain 2.8", 0]["loss"],
        "warm": of["gain 2.8", WARMUP]["loss"],
        "share": of["gain 1.4", 0]["share at first"],
        "gentle": max(of["gain 1.4", 0]["loss"], of["gain 1.4", WARMUP]["loss"]),
        "fast": of["gain 2.8, rate 0.1", WARMUP]["loss"],
        "norm": of["gain 2.8, layer norm", 0]["loss"],
        "sharp": of["gain 2.8", 0]["share at first"],
    }
    return Evidence(rows, effects)


@torch.no_grad()
def _accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((model(x).argmax(1) == y).double().mean())


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Losses at the end."""
    named = [
        Evidence([{**row, "arm": f"{row['arm']}, warm-up {row['warm-up']}"} for row in of_seed.rows], {})
        for of_seed in evidence
    ]
    drawn: Figure = bars_figure(named, y="loss")
    return drawn
