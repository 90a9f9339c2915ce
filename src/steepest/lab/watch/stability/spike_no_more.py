"""Whether embeddings of ordinary size keep the gradients of a small transformer from exploding.

Set-up of the claim: tiny Shakespeare, a pre-norm transformer of 4 blocks and width 64, all weights small at first
(those that write into the shortcut by a further 1 / sqrt(8)), Adam without clipping at rates of 0.001, 0.00316 and
0.01; vanilla embeddings (standard deviation 0.079) against those multiplied by the root of the width (0.632), positions
alike. What is changed: context 32, batches of 8 and 60 steps, as all must take little time; the betas are 0.9 and
0.95, without warm-up, decay and schedule. A seed is initial weights and the order of windows.

Claims of the card, at first: the gradient at the input of the first block is over 3 times that at the output of the
last for vanilla embeddings, and at most 2 times for scaled ones. In training, at each rate: the largest norm of the
gradient is not lower with vanilla embeddings (log10, size 0.1), and neither are spikes, steps with a loss 0.5 above its
least before (no spike on either side fulfils it; size 0.5). Ours: a norm after the embedding does at first what the
scale does.

The publication's bound at these sizes stands in the rows. It says how weak the effect must be: the share of the
gradient that a perceptron adds is at most about 11 for vanilla and 1.4 for scaled embeddings, where the publication's
widths have 129 and 5.7.

The baseline is fair: both have the same rates, batches and draws; at the best rate the vanilla one must come below 3.2
nats, which every seed checks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ....core.random import seed_all
from ....watch.stability.small_scale_proxies import StabilityGrid, StabilitySweep
from ....watch.stability.spike_no_more import (
    EmbedLayerNorm,
    ScaledEmbedding,
    feed_forward_bound,
    shortcut_ratio,
    small_init_,
    small_init_sd,
)
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...optim.schedules._shakespeare import CONTEXT, SYMBOLS, characters
from ...settings import check_sane
from ._transformer import Transformer

SEEDS = 5
DEPTH, WIDTH, HEADS, STEPS, ROWS, SANITY = 4, 64, 4, 60, 8, -3.2
RATES = (1e-3, 10**-2.5, 1e-2)
VANILLA, SCALED, NORMED = "vanilla", "scaled", "norm"
CLAIMS = (
    Claim("vanilla", "gradients at first are over 3 times as large at the input as at the output", 1.0, threshold=3.0),
    Claim("scaled", "with scaled embeddings at most 2 times", 0.5, threshold=2.0, greater=False),
    Claim("norms", "at no rate is the largest norm of a gradient lower with vanilla embeddings (log10)", size=0.1),
    Claim("spikes", "at no rate are there fewer spikes with vanilla embeddings", size=0.5, threshold=-0.5),
    Claim(
        "normed", "with a norm after embeddings gradients grow at most 2 times",
        size=0.5, threshold=2.0, greater=False, ours=True,
    ),
)  # fmt: skip


class Language(Transformer):
    """A transformer whose embedding, positions included, is vanilla, scaled or normalised; small weights at first."""

    def __init__(self, arm: str, depth: int, width: int, heads: int) -> None:
        embeddings: dict[str, Callable[[], nn.Module]] = {
            VANILLA: lambda: nn.Embedding(SYMBOLS, width),
            SCALED: lambda: ScaledEmbedding(SYMBOLS, width),
            NORMED: lambda: EmbedLayerNorm(SYMBOLS, width, positions=CONTEXT),
        }
        super().__init__(depth, width, heads, embedding=embeddings[arm]())
        small_init_(self, width, depth)
        self.scale = {VANILLA: 1.0, SCALED: math.sqrt(width), NORMED: 0.0}[arm]

    def forward(self, symbols: Tensor) -> Tensor:
        x = self.symbols(symbols) + self.scale * self.places.weight[: symbols.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


def run(scale: str, seed: int) -> Evidence:
    """Gradients at first, and losses and norms in training."""
    full = scale == "full"
    depth, width, heads = (DEPTH, WIDTH, HEADS) if full else (2, 8, 2)
    steps = STEPS if full else 4
    text, _ = characters(not full)
    order = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - CONTEXT, (steps, ROWS if full else 2, 1), generator=order)
    windows = text[starts + torch.arange(CONTEXT + 1)]

    def loss(outputs_of: Callable[..., Any], step: int) -> Tensor:
        return _entropy(outputs_of(windows[step, :, :-1]), windows[step])

    rows: list[dict[str, Any]] = []
    grown: dict[str, float] = {}
    s = small_init_sd(width)
    for arm in (VANILLA, SCALED, NORMED):
        seed_all(seed)
        model = _model(arm, depth, heads, full, width)
        blocks = [f"blocks.{block}" for block in range(depth)]
        ratios = shortcut_ratio(model, windows[0, :, :-1], blocks, partial(_entropy, windows=windows[0]))
        grown[arm] = ratios["blocks.0"]["jacobian_ratio"]
        for block, row in ratios.items():
            bound = feed_forward_bound(s, s / math.sqrt(2 * depth), row["shortcut_sd"], width, 4 * width)
            rows.append({"arm": arm, "block": block, **row, "published bound": bound})
    grids: dict[str, StabilityGrid] = {}
    for arm in (VANILLA, SCALED):
        make = partial(_model, arm, depth, heads, full)
        sweep = StabilitySweep(
            make, loss, RATES, (width,), steps=steps, floor=1.0, clip=None, window=min(10, steps), seed=seed
        )
        grid = grids[arm] = sweep.run()
        for place, rate in enumerate(RATES):
            norms = grid.gradient_norms[0, place].nan_to_num(0.0)
            rows.append(
                {
                    "arm": arm,
                    "rate": rate,
                    "loss": float(grid.end_losses[0, place].nan_to_num(99.0)),
                    "largest norm": float(norms.max()),
                    "spikes": float(grid.spikes()[0, place]),
                }
            )
    if full:
        check_sane(
            "loss with vanilla embeddings, negative", -float(grids[VANILLA].end_losses.nan_to_num(99.0).min()), SANITY
        )
    largest = {arm: grid.gradient_norms[0].nan_to_num(0.0).amax(1) for arm, grid in grids.items()}
    spikes = {arm: grid.spikes()[0] for arm, grid in grids.items()}
    effects = {
        "vanilla": grown[VANILLA],
        "scaled": grown[SCALED],
        "normed": grown[NORMED],
        "norms": float((largest[VANILLA] / largest[SCALED]).log10().min()),
        "spikes": float((spikes[VANILLA] - spikes[SCALED]).min()),
    }
    return Evidence(rows, effects)


def _model(arm: str, depth: int, heads: int, full: bool, width: int) -> Language:
    model = Language(arm, depth, width, heads)
    return model if full else model.double()


def _entropy(logits: Tensor, windows: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def figure(evidence: Sequence[Evidence]) -> Figure:
    """How gradients grow through the blocks."""
    first = [Evidence([row for row in of_seed.rows if "jacobian_ratio" in row], {}) for of_seed in evidence]
    drawn: Figure = bars_figure(first, y="jacobian_ratio")
    return drawn
