"""With filter normalisation the width of the plotted basin goes with the test error; without it weight decay hides it.

Set-up of the claim: 1,024 of the 10,000 MNIST digits at 14 x 14 pixels (the others are the test set, so that its error
is known to a fifth of a point), an MLP with batch norm as the publication's VGG-9 has it, two layers of 64 units, SGD
with momentum 0.9, 60 epochs, the rate cut to a tenth after half and three quarters. Four networks from the same
weights: batches of 32 or 1,024, with or without weight decay. Decay is 2.5e-3 in place of the publication's 5e-4, as
there are a sixtieth as many steps, so that rate times decay times steps are near the publication's. Width: the length
of the range of a in which L(w + a d) stays within 0.5 of the loss in the middle, over 512 training rows in evaluation
mode, on average over four directions that are the same random numbers for all four.

Claims, the card's: the order of the four networks by filter-normalised width is that of their test error (Kendall's
tau; its size, 0.67, is one pair of six in the wrong order); in both settings of decay the network with the lower error
of the two has the wider basin (card: no number; the size is a tenth); without normalisation that fails in at least one
setting of decay (the same size, on the other side). Of ours: the order without normalisation is worse than with it.

The baseline is fair: each network has the best of the rates :data:`GRID` by mean test error over two seeds that are not
reported (:func:`choose_rates`); batches of 32 without decay must be right on 85% of the digits, which every seed
checks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import kendalltau
from torch import Tensor, nn

from ....watch.landscape.filter_normalized_landscape import loss_curve, random_direction
from ...data import digits, halved, mnist_10k
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import best_setting, check_sane

TRAIN, SHOWN_ROWS, EPOCHS, WIDTHS, MOMENTUM, DECAY = 1024, 512, 60, (64, 64), 0.9, 2.5e-3
DIRECTIONS, LEVEL, SPANS, SEEDS, PILOTS, SANITY = 4, 0.5, {"filter": 2.0, None: 1.0}, 8, (101, 102), 85.0
GRID = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
RATES = {(32, 0.0): 0.1, (32, DECAY): 0.1, (1024, 0.0): 1.0, (1024, DECAY): 1.0}
"""By batch and decay, what :func:`choose_rates` gives."""
CLAIMS = (
    Claim("order", "Kendall's tau of filter-normalised width and accuracy is above 0", size=0.67),
    Claim("in both", "in both settings of decay the better net is wider, filter-normalised (log)", size=0.1),
    Claim("not in both", "without normalisation it is not in at least one (log)", size=0.1, greater=False),
    Claim("worse order", "Kendall's tau is larger with normalisation than without", size=0.33, ours=True),
)
Data = tuple[Tensor, Tensor, Tensor, Tensor]
Setting = tuple[int, float]


def run(scale: str, seed: int) -> Evidence:
    """Width and test error of the four networks."""
    full = scale == "full"
    data = images(full, seed)
    networks: dict[Setting, nn.Module] = {}
    for batch in (32, 1024):
        settings = [setting for setting in RATES if setting[0] == batch]
        trained = train(data, batch, [(RATES[s], s[1]) for s in settings], EPOCHS if full else 2, seed)
        networks |= dict(zip(settings, trained))
    error = {setting: error_of(model, data) for setting, model in networks.items()}
    width = {
        (norm, setting): width_of(model, data, norm, seed, DIRECTIONS if full else 1)
        for norm in SPANS
        for setting, model in networks.items()
    }
    rows: list[dict[str, Any]] = [
        {"arm": f"batch {batch}, decay {decay:g}", "rate": RATES[batch, decay], "test error": error[batch, decay],
         "filter width": width["filter", (batch, decay)], "plain width": width[None, (batch, decay)],
         "length": length_of(networks[batch, decay])}
        for batch, decay in RATES
    ]  # fmt: skip
    if full:
        check_sane("accuracy of batches of 32", 100 - error[32, 0.0], SANITY)
    tau = {norm: float(kendalltau([width[norm, s] for s in RATES], [-error[s] for s in RATES])[0]) for norm in SPANS}
    least = {norm: min(agreement(width, error, norm, decay) for decay in (0.0, DECAY)) for norm in SPANS}
    effects = {
        "order": tau["filter"],
        "in both": least["filter"],
        "not in both": least[None],
        "worse order": tau["filter"] - tau[None],
    }
    return Evidence(rows, {name: value if math.isfinite(value) else 0.0 for name, value in effects.items()})


def agreement(width: dict[Any, float], error: dict[Setting, float], norm: str | None, decay: float) -> float:
    """The logarithm of the width of the better over that of the worse of the two batch sizes."""
    ratio = math.log(width[norm, (32, decay)] / width[norm, (1024, decay)])
    return ratio if error[32, decay] <= error[1024, decay] else -ratio


def images(full: bool, seed: int) -> Data:
    """Rows and labels of both parts."""
    if full:
        x, y = mnist_10k()
        order = np.random.default_rng(seed).permutation(len(x))
        x, y = halved(x)[order], y[order]
        x = (x - x[:TRAIN].mean()) / x[:TRAIN].std()
        parts = x[:TRAIN], y[:TRAIN], x[TRAIN:], y[TRAIN:]
    else:
        x, y, x_test, y_test = digits(seed, train=256)
        parts = x, y, x_test[:100], y_test[:100]
    rows, labels, test, truth = parts
    return (
        torch.as_tensor(rows, dtype=torch.float32), torch.as_tensor(labels).long(),
        torch.as_tensor(test, dtype=torch.float32), torch.as_tensor(truth).long(),
    )  # fmt: skip


def train(data: Data, batch: int, settings: Sequence[tuple[float, float]], epochs: int, seed: int) -> list[nn.Module]:
    """Networks of one batch size at several rates and decays, at once, from the same weights in the same order."""
    x, y, _, _ = data
    count, generator, sizes = len(settings), torch.Generator().manual_seed(seed), (x.shape[1], *WIDTHS, 10)
    params: list[Tensor] = []
    for before, after in pairwise(sizes):
        weight = torch.randn(after, before, generator=generator) * math.sqrt(2 / before)
        params.append(weight.expand(count, -1, -1).clone().requires_grad_())
        params += [torch.ones(count, 1, after).requires_grad_()] if after != 10 else []
        params.append(torch.zeros(count, 1, after).requires_grad_())
    rates, decays = (torch.tensor(values)[:, None, None] for values in zip(*settings))
    velocity = [torch.zeros_like(p) for p in params]
    batch = min(batch, len(x))
    steps, step = epochs * (len(x) // batch), 0
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator)[: len(x) // batch * batch].split(batch):
            outputs = forward(params, x[rows].expand(count, -1, -1))[0]
            loss = count * nn.functional.cross_entropy(outputs.flatten(0, 1), y[rows].repeat(count))
            gradients = torch.autograd.grad(loss, params)
            cut = 1.0 if step < steps / 2 else 0.1 if step < 3 * steps / 4 else 0.01
            with torch.no_grad():
                for p, gradient, own in zip(params, gradients, velocity):
                    own.mul_(MOMENTUM).add_(gradient + decays * p)
                    p.sub_(cut * rates * own)
            step += 1
    with torch.no_grad():
        statistics = forward(params, x.expand(count, -1, -1))[1]
    return [network(params, statistics, sizes, k) for k in range(count)]


def forward(params: Sequence[Tensor], h: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Outputs of all networks by the statistics of the batch, and these."""
    statistics = []
    for place in range(0, len(params) - 2, 3):
        weight, scale, shift = params[place : place + 3]
        z = h @ weight.mT
        variance, mean = torch.var_mean(z, dim=1, keepdim=True, correction=0)
        statistics.append((mean, variance))
        h = torch.relu((z - mean) * (variance + 1e-5).rsqrt() * scale + shift)
    return torch.baddbmm(params[-1], h, params[-2].mT), statistics


def network(params: Sequence[Tensor], statistics: Sequence[tuple[Tensor, Tensor]], sizes: Sequence[int], k: int) -> Any:
    """The k-th as a module; its running statistics are those of all training rows."""
    layers: list[nn.Module] = []
    with torch.no_grad():
        for place, (mean, variance) in enumerate(statistics):
            linear, norm = nn.Linear(sizes[place], sizes[place + 1], bias=False), nn.BatchNorm1d(sizes[place + 1])
            weight, scale, shift = (p[k] for p in params[3 * place : 3 * place + 3])
            for own, value in zip(
                (linear.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var),
                (weight, scale[0], shift[0], mean[k, 0], variance[k, 0]),
            ):
                assert own is not None
                own.copy_(value)
            layers += [linear, norm, nn.ReLU()]
        last = nn.Linear(sizes[-2], sizes[-1])
        last.weight.copy_(params[-2][k])
        last.bias.copy_(params[-1][k, 0])
    return nn.Sequential(*layers, last).train(False)


def error_of(model: nn.Module, data: Data) -> float:
    """Percent of test rows that are wrong."""
    with torch.no_grad():
        return 100 * float((model(data[2]).argmax(1) != data[3]).double().mean())


def length_of(model: nn.Module) -> float:
    """Of all weight matrices as one vector."""
    return math.sqrt(sum(float(p.detach().square().sum()) for p in model.parameters() if p.ndim > 1))


def width_of(model: nn.Module, data: Data, norm: str | None, seed: int, directions: int) -> float:
    """The mean range around the middle in which the loss rises by less than :data:`LEVEL`, cut at the grid's ends."""
    generator, span, total = torch.Generator().manual_seed(seed), SPANS[norm], 0.0
    pair = data[0][:SHOWN_ROWS], data[1][:SHOWN_ROWS]
    for _ in range(directions):
        direction = random_direction(model.parameters(), norm, generator=generator)
        curve = loss_curve(model, nn.functional.cross_entropy, pair, direction, (-span, span, 61)).double().numpy()
        places, middle = np.linspace(-span, span, 61), 30
        for side in (curve[middle:], curve[middle::-1]):
            above = np.flatnonzero(side >= side[0] + LEVEL)
            step = places[1] - places[0]
            if len(above):
                last = above[0] - 1
                total += step * (last + (side[0] + LEVEL - side[last]) / (side[last + 1] - side[last]))
            else:
                total += span
    return float(total / directions)


@cache
def pilot(batch: int, decay: float, seed: int) -> dict[float, float]:
    """Test error by rate."""
    data = images(True, seed)
    trained = train(data, batch, [(rate, decay) for rate in GRID], EPOCHS, seed)
    return {rate: error_of(model, data) for rate, model in zip(GRID, trained)}


def choose_rates() -> dict[Setting, float]:
    """The rate of each network with the lowest mean test error, over seeds that are not reported."""

    def score(batch: int, decay: float, rate: float, seed: int) -> float:
        error = pilot(batch, decay, seed)[rate]
        return -error if math.isfinite(error) else -100.0

    return {
        (batch, decay): best_setting(GRID, lambda rate, seed, b=batch, d=decay: score(b, d, rate, seed), PILOTS)
        for batch, decay in RATES
    }


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Filter-normalised width of each network."""
    drawn: Figure = bars_figure(evidence, y="filter width")
    return drawn
