"""Shapes of a cooldown: a square root and a lowered line end lowest, and a higher second beta helps.

Set-up of the claim: tiny Shakespeare, a transformer of 4 layers, 1,500 stable steps, then 300 of cooldown, 7 shapes;
the second beta 0.95, 0.99 or 0.999 during the cooldown alone, the optimizer's state kept; and a quadratic valley with
noise (curvature 20, noise 10, rate 0.05). Expected: differences of 0.005 to 0.03 nats, the square root and the lowered
line first, the square last; in the valley the order square root, lowered, linear, square.

Here it is 2 layers of width 48 on 32 characters, 50 steps of warm-up, 350 stable ones, and cooldowns of 80 steps. Each
seed is one stable run, from whose checkpoint every shape goes on twice, with the same two orders of the data for all:
shapes are compared on the same checkpoint and orders. Losses are means over both, on 600 held-out windows. The card
leaves the length of the valley's cooldown open: 300 steps, as for the text.

The baseline, a linear cooldown, is fair: the rate is the one of three that is best for it, on a seed that is not
reported, and all shapes share it; it must reach 2.3 nats (2.45 is what pairs of characters alone tell).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ....optim.schedules.wsd_cooldown import WSD, CooldownStudy, cooldown_shape
from ....optim.schedules.wsd_s import simulate_river
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import UNREPORTED, best_setting, check_sane
from ._shakespeare import Run, begun, held_out_loss

SEEDS = 8
RATES = (3e-3, 6e-3, 1e-2)
TEXT = ("linear", "cosine", "mirror_cosine", "square", "sqrt", "lowered_linear", "lowered_sqrt")
VALLEY = ("sqrt", "lowered_linear", "linear", "square")
BETAS = (0.99, 0.999)
SANITY = 2.3
CLAIMS = (
    Claim("first", "sqrt and lowered linear end below the mean of the five others (nats)", size=0.005),
    Claim("last", "the square ends above the mean of the six others (nats)", size=0.005),
    Claim(
        "beta", "a second beta of 0.99 and 0.999 in the cooldown ends below 0.95, with sqrt (mean, nats)", size=0.005
    ),
    Claim("variance", "the square's variance over orders is above that of sqrt (nats)", size=0.001, ours=True),
    Claim("valley sqrt", "in the valley sqrt ends below lowered linear", size=0.005),
    Claim("valley lowered", "in the valley lowered linear ends below linear", size=0.005),
    Claim("valley linear", "in the valley linear ends below the square", size=0.005),
)


def run(scale: str, seed: int) -> Evidence:
    """Loss, bias and variance of each shape on the text; the loss up the hill of each in the valley."""
    full = scale == "full"
    lengths = (50, 350, 80) if full else (2, 2, 3)
    rate = best_rate(lengths) if full else RATES[0]
    study = study_of(seed, rate, lengths, 600 if full else 8, smoke=not full)
    rows: list[dict[str, Any]] = []
    errors = study.run(TEXT if full else ("linear", "square", "sqrt", "lowered_linear"), 2)
    for shape, error in errors.items():
        rows.append({"arm": f"text, {shape}", "rate": rate, **vars(error)})
    losses = {shape: error.loss for shape, error in errors.items()}
    by_beta = {}
    for beta in BETAS:
        by_beta[beta] = study.run(["sqrt"], 2, beta=beta)["sqrt"].loss
        rows.append({"arm": f"text, sqrt, second beta {beta}", "rate": rate, "loss": by_beta[beta]})
    hills = {shape: hill(shape, seed, full) for shape in VALLEY}
    rows += [{"arm": f"valley, {shape}", "loss": value} for shape, value in hills.items()]
    if full:
        check_sane("nats of a linear cooldown, negative", -losses["linear"], -SANITY)

    def mean(names: Sequence[str]) -> float:
        return sum(losses[name] for name in names) / len(names)

    best = ("sqrt", "lowered_linear")
    effects = {
        "first": mean([shape for shape in losses if shape not in best]) - mean(best),
        "last": losses["square"] - mean([shape for shape in losses if shape != "square"]),
        "beta": losses["sqrt"] - sum(by_beta.values()) / len(by_beta),
        "variance": errors["square"].variance - errors["sqrt"].variance,
        "valley sqrt": hills["lowered_linear"] - hills["sqrt"],
        "valley lowered": hills["linear"] - hills["lowered_linear"],
        "valley linear": hills["square"] - hills["linear"],
    }
    return Evidence(rows, effects)


def stable(seed: int, rate: float, lengths: tuple[int, int, int], *, smoke: bool) -> Run:
    """A run up to where the cooldown begins."""
    begin = begun(seed, rate, smoke=smoke)
    warmup, steady, _ = lengths
    begin.steps(warmup + steady, WSD(begin.optimizer, warmup, steady, 0))
    return begin


def study_of(seed: int, rate: float, lengths: tuple[int, int, int], windows: int, *, smoke: bool) -> CooldownStudy:
    """Cooldowns from the stable checkpoint of a seed."""
    run_of_seed = stable(seed, rate, lengths, smoke=smoke)
    checkpoint = copy.deepcopy((run_of_seed.model.state_dict(), run_of_seed.optimizer.state_dict()))
    model = run_of_seed.model

    def train(checkpoint: Any, shape: str, repeat: int, beta: float | None = None) -> Tensor:
        model.load_state_dict(checkpoint[0])
        run_of_seed.optimizer.load_state_dict(checkpoint[1])
        run_of_seed.order.manual_seed(10_000 * (1 + repeat) + seed)
        for group in run_of_seed.optimizer.param_groups:
            group["betas"] = (0.9, 0.95 if beta is None else beta)
        run_of_seed.steps(lengths[2], WSD(run_of_seed.optimizer, *lengths, shape))
        return nn.utils.parameters_to_vector(model.parameters()).detach()

    def loss(weights: Tensor) -> float:
        nn.utils.vector_to_parameters(weights, model.parameters())
        return held_out_loss(model, windows, smoke)

    return CooldownStudy(train, checkpoint, loss)


@cache
def best_rate(lengths: tuple[int, int, int]) -> float:
    """The rate that is best for a linear cooldown, on a seed that is not reported."""

    def score(rate: float, seed: int) -> float:
        study = study_of(seed, rate, lengths, 600, smoke=False)
        return -study.loss(study.train_fn(study.checkpoint, "linear", 0))

    return best_setting(RATES, score, (UNREPORTED,))


def hill(shape: str, seed: int, full: bool) -> float:
    """The loss up the hill after 20 stable steps at 0.05 and a cooldown of 300."""
    steps = 300 if full else 10

    def rate(t: int) -> float:
        return 0.05 if t < 20 else 0.05 * cooldown_shape(shape, (t - 20) / steps)

    noise = torch.Generator().manual_seed(seed)
    return simulate_river(rate, 20 + steps, runs=20_000 if full else 50, generator=noise).hill


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Loss by shape on the text."""
    selected = [Evidence([row for row in e.rows if row["arm"].startswith("text")], e.effects) for e in evidence]
    drawn: Figure = bars_figure(selected, y="loss")
    return drawn
