"""Cauchy-Schwarz information bottleneck: error on clean and attacked inputs against squared error and variational IB.

Diabetes (442 rows, 10 inputs): 50% train, 20% choose, 30% test, drawn anew for each seed; inputs and target are
standardised by the training rows. Equal nets for all arms: 10-128-128-128, a linear layer to 128 that is the
representation, 128-1; all train side by side, from one start and over the same batches. Adam for 60 epochs of two
batches. Every arm keeps the epoch, and the strength where it has one, with the least error on the choosing rows:

* squared error; squared error with an L2 penalty of 0.001 to 0.1 (Adam's weight decay);
* variational IB: the representation is drawn from a normal law with its own linear layer for the log-variance, squared
  error plus beta times its divergence from the standard normal, beta from 0.0001 to 0.1;
* Cauchy-Schwarz IB, kernels of width 1, beta in {0, 0.0001, 0.001, 0.01, 0.1, 1}.

The attack is one step along the sign of the gradient of the squared error in the inputs, eps 0.1, 0.2 and 0.3, and the
reduction under attack the mean over the three. "Decreasing in beta" is the rank correlation over the grid of the
normalised information of inputs and representation, on the training rows after the last epoch. The card counts an equal
clean error as met; here the claim is that it is below, so that equality comes out as "not shown".

The size of the clean claim is the middle of the expected range, 2%. The range's lower end, 1%, which stood here before,
would take about 150 seeds: 48 could have found 1.7%.

The baselines are fair: each arm has the rate of three, at its best strength, with the least mean error on the choosing
rows of three seeds that are not reported (:func:`choose_rates`; the released 0.0001, for 13,000 rows, would hardly move
a net on 221; all had 0.001 before). The net of squared error must explain 20% of the clean test rows' variance, which
every seed checks.

Limit: of ten standardised inputs kernels of width 1 see few neighbours: in a batch of 110 a row's kernels sum to about
2.3, of which 1 is its own. On six other seeds the error under attack was below that of squared error by 1% with width
1, 3% with width 2 and 2% with width 4, the clean error by 1%, 1% and -2%.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor, nn

from ....descent import Stack, StackedAdamW
from ....descent.stack import batched
from ....losses.dependence.cs_ib import conditional_cs_divergence, cs_mutual_information
from ...data import built_in
from ...experiment import Claim, Evidence
from ...settings import PILOTS, check_sane

EPS = (0.0, 0.1, 0.2, 0.3)
BETAS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of the Cauchy-Schwarz bottleneck; the variational one takes those between 0 and 1."""
DECAYS = (1e-3, 1e-2, 1e-1)
ARMS = ("squared error", "squared error + L2", "variational IB", "Cauchy-Schwarz IB")
SEEDS = 48
EPOCHS, WIDTH, SIGMA = 60, 128, 1.0
GRID = (3e-4, 1e-3, 3e-3)
RATES = {ARMS[0]: 3e-3, ARMS[1]: 3e-3, ARMS[2]: 3e-4, ARMS[3]: 1e-3}
"""The rate of each arm: what :func:`choose_rates` gives."""
SANITY = 0.2
"""Share of the clean test rows' variance that the net of squared error must explain."""

CLAIMS = (
    Claim("clean", "clean RMSE is below that of squared error (equal or 1 to 3% lower expected)", size=2.0),
    Claim("attack", "under attack it is lower than that of squared error by 5% or more", size=5.0, threshold=5.0),
    Claim("clean over VIB", "clean RMSE is below that of the variational bottleneck (%)", size=2.0),
    Claim("attack over VIB", "and under attack as well (%)", size=5.0),
    Claim("compression", "the information of inputs and representation falls with beta (rank correlation)",
          size=0.5, greater=False),
)  # fmt: skip


class _Net(nn.Module):
    """Encoder, layer of the representation (and of its log-variance), decoder."""

    def __init__(self, columns: int, width: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(columns, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        )
        self.mean, self.decoder = nn.Linear(width, width), nn.Linear(width, 1)
        self.log_variance = nn.Linear(width, width)


class _Nets(Stack):
    """Nets of all arms as one stack."""

    def __init__(self, nets: Sequence[_Net]) -> None:
        super().__init__(nets)
        self.run = {name: batched(layer, f"{name}.") for name, layer in nets[0].named_children()}

    def layer(self, name: str, inputs: Tensor, own: slice = slice(None)) -> Tensor:
        """One layer of each net, or of some of them, on ``[M, B, D]``."""
        views = {key: view[own] for key, view in self.views.items() if key.startswith(f"{name}.")}
        outputs: Tensor = self.run[name](views, inputs)
        return outputs

    def represent(self, x: Tensor) -> Tensor:
        """Representations ``[M, B, width]`` of rows ``[B, D]`` or ``[M, B, D]``."""
        return self.layer("mean", self.layer("encoder", x.expand(len(self), *x.shape[-2:])))

    def forward(self, x: Tensor) -> Tensor:
        """Predictions ``[M, B, 1]``, of the variational nets at the mean."""
        return self.layer("decoder", self.represent(x))

    @torch.no_grad()
    def errors(self, x: Tensor, y: Tensor) -> Tensor:
        """The root mean squared error of each net."""
        squared: Tensor = (self(x) - y).square()
        return squared.mean((1, 2)).sqrt()


@dataclass
class _Rows:
    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class _Fit:
    """One training: an arm, its strength (beta or decay), its rate."""

    arm: str
    strength: float
    rate: float


def run(scale: str, seed: int) -> Evidence:
    """Errors of every arm on the test rows, clean and attacked; information for every beta."""
    full = scale == "full"
    epochs, width = (EPOCHS, WIDTH) if full else (4, 16)
    train, choose, test = _split(seed, torch.float32 if full else torch.float64)
    fits = fits_of(RATES, full)
    nets, chosen, information = train_all(fits, train, choose, epochs, width, seed)
    best = {arm: _least(fits, chosen, arm) for arm in ARMS}
    by_eps = torch.stack([_attacked(nets, test, eps) for eps in EPS], 1).tolist()
    errors = {arm: by_eps[place] for arm, place in best.items()}
    if full:
        check_sane("variance explained by squared error", 1 - errors[ARMS[0]][0] ** 2, SANITY)
    rows = [{"arm": arm, "eps": eps, "RMSE": e} for arm, of_arm in errors.items() for eps, e in zip(EPS, of_arm)]
    bottlenecks = [place for place, fit in enumerate(fits) if fit.arm == ARMS[3]]
    betas = [fits[place].strength for place in bottlenecks]
    rows += [
        {"arm": ARMS[3], "beta": beta, "information": share, "RMSE": by_eps[place][0]}
        for place, beta, share in zip(bottlenecks, betas, information)
    ]
    gains = {arm: [100 * (1 - own / rival) for own, rival in zip(errors[ARMS[3]], errors[arm])] for arm in ARMS}
    effects = {
        "clean": gains[ARMS[0]][0],
        "attack": float(np.mean(gains[ARMS[0]][1:])),
        "clean over VIB": gains[ARMS[2]][0],
        "attack over VIB": float(np.mean(gains[ARMS[2]][1:])),
        "compression": float(spearmanr(betas, information).statistic),
    }
    return Evidence(rows, effects)


def fits_of(rates: dict[str, float], full: bool = True) -> list[_Fit]:
    """The trainings of all arms, in their order."""
    betas, decays = (BETAS, DECAYS) if full else (BETAS[::2], DECAYS[:1])
    strengths = dict(zip(ARMS, ((0.0,), decays, [beta for beta in betas if 0 < beta < 1], betas)))
    return [_Fit(arm, strength, rates[arm]) for arm in ARMS for strength in strengths[arm]]


def choose_rates() -> dict[str, float]:
    """The rate of each arm with the least mean error on the choosing rows of the pilot seeds, at its best strength."""
    errors = {arm: np.zeros(len(GRID)) for arm in ARMS}
    for seed in PILOTS:
        train, choose, _ = _split(seed)
        for place, rate in enumerate(GRID):
            fits = fits_of(dict.fromkeys(ARMS, rate))
            _, chosen, _ = train_all(fits, train, choose, EPOCHS, WIDTH, seed)
            for arm in ARMS:
                errors[arm][place] += chosen[_least(fits, chosen, arm)]
    return {arm: GRID[int(of_arm.argmin())] for arm, of_arm in errors.items()}


def _least(fits: Sequence[_Fit], chosen: Sequence[float], arm: str) -> int:
    """The place of an arm's training with the least error on the choosing rows."""
    return min((place for place, fit in enumerate(fits) if fit.arm == arm), key=lambda place: chosen[place])


def _split(seed: int, dtype: torch.dtype = torch.float32) -> tuple[_Rows, _Rows, _Rows]:
    x, y, x_test, y_test = built_in("diabetes", seed, train=0.7)
    own = round(len(x) * 5 / 7)  # built_in has shuffled the rows
    middle, scale = x[:own].mean(0), x[:own].std(0)
    centre, spread = y[:own].mean(), y[:own].std()

    def rows(a: np.ndarray, b: np.ndarray) -> _Rows:
        columns = torch.as_tensor((a - middle) / scale, dtype=dtype)
        return _Rows(columns, torch.as_tensor((b - centre) / spread, dtype=dtype).unsqueeze(1))

    return rows(x[:own], y[:own]), rows(x[own:], y[own:]), rows(x_test, y_test)


def train_all(
    fits: Sequence[_Fit], train: _Rows, choose: _Rows, epochs: int, width: int, seed: int
) -> tuple[_Nets, list[float], list[float]]:
    """All trainings side by side, from one start and over the same batches.

    Returns:
        The nets of each one's best epoch, their errors on the choosing rows, and of the bottlenecks the normalised
        information of training rows and representation after the last epoch.
    """
    torch.manual_seed(seed)
    net = _Net(train.x.shape[1], width).to(train.x.dtype)
    nets = _Nets([net] * len(fits))
    optimizer = StackedAdamW(nets, lr=[fit.rate for fit in fits], weight_decay=[0.0] * len(fits))
    decays = torch.tensor([fit.strength if fit.arm == ARMS[1] else 0.0 for fit in fits], dtype=train.x.dtype)
    generator = torch.Generator().manual_seed(seed)
    best, least = nets.flat.clone(), nets.errors(choose.x, choose.y)
    for _ in range(epochs):
        order = torch.randperm(len(train.x), generator=generator)
        for own in order.tensor_split(max(1, round(len(order) / 128))):
            optimizer.zero_grad()
            _loss(nets, fits, train.x[own], train.y[own], generator).backward()
            for view in nets.views.values():  # the penalty is Adam's own, in the gradient
                if view.grad is not None:
                    view.grad += decays.view(-1, *[1] * (view.ndim - 1)) * view.detach()
            optimizer.step()
        errors = nets.errors(choose.x, choose.y)
        better = errors < least
        best[better], least = nets.flat[better], torch.where(better, errors, least)
    information = _information(nets, fits, train.x)
    nets.load_state_dict({"flat": best})
    return nets, least.tolist(), information


def _loss(nets: _Nets, fits: Sequence[_Fit], x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """The sum of all losses: each net gets its own gradient."""
    first, last = (sum(fit.arm in ARMS[:many] for fit in fits) for many in (2, 3))
    strengths = x.new_tensor([fit.strength for fit in fits])
    hidden = nets.layer("encoder", x.expand(len(nets), *x.shape))
    t = nets.layer("mean", hidden)
    variational = t[first:last]
    spread = nets.layer("log_variance", hidden[first:last], slice(first, last))
    noise = torch.randn(t.shape[1:], generator=generator, dtype=t.dtype)
    drawn = variational + (spread / 2).exp() * noise
    pred = nets.layer("decoder", torch.cat([t[:first], drawn, t[last:]]))
    squared = (pred[:last] - y).square().mean((1, 2))
    divergence = 0.5 * (variational.square() + spread.exp() - spread - 1).sum(2).mean(1)
    fit = torch.vmap(partial(conditional_cs_divergence, x, y, sigma=SIGMA))(pred[last:])
    information = torch.vmap(partial(cs_mutual_information, x, sigma=SIGMA, normalized=True))(t[last:])
    bottlenecks: Tensor = (fit + strengths[last:] * information).sum()
    return squared.sum() + strengths[first:last] @ divergence + bottlenecks


def _attacked(nets: _Nets, rows: _Rows, eps: float) -> Tensor:
    """The error of each net after one step of ``eps`` along the sign of the gradient of its squared error."""
    x = rows.x.expand(len(nets), *rows.x.shape)
    if eps:
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad((nets(x) - rows.y).square().sum(), x)
        x = x.detach() + eps * slope.sign()
    return nets.errors(x, rows.y)


@torch.no_grad()
def _information(nets: _Nets, fits: Sequence[_Fit], x: Tensor) -> list[float]:
    own = [t for t, fit in zip(nets.represent(x), fits) if fit.arm == ARMS[3]]
    return [float(cs_mutual_information(x, t, SIGMA, normalized=True)) for t in own]


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Error against the size of the attack, and information against beta: means over seeds."""
    drawn = Figure(figsize=(7.2, 3.2), layout="constrained")
    left, right = drawn.subplots(1, 2)
    rows = [row for of_seed in evidence for row in of_seed.rows]
    for number, arm in enumerate(ARMS):
        means = [np.mean([r["RMSE"] for r in rows if r["arm"] == arm and r.get("eps") == eps]) for eps in EPS]
        left.plot(EPS, means, marker="osD^"[number], label=arm, linewidth=1.2, markersize=5, alpha=0.8)
    left.set_xlabel("size of the attack, standard deviations")
    left.set_ylabel("test RMSE")
    left.legend(fontsize=8, frameon=False)
    betas = sorted({row["beta"] for row in rows if "beta" in row})
    shares = [[row["information"] for row in rows if row.get("beta") == beta] for beta in betas]
    places = range(len(betas))
    right.plot(places, [np.mean(k) for k in shares], marker="^", color="#0b5c94", linewidth=1.2)
    right.fill_between(places, [min(k) for k in shares], [max(k) for k in shares], color="#0b5c94", alpha=0.12)
    right.set_xticks(places, [f"{beta:g}" for beta in betas])
    right.set_xlabel("beta")
    right.set_ylabel("normalised information, inputs and representation", fontsize=8)
    for axes in (left, right):
        axes.spines[["right", "top"]].set_visible(False)
    return drawn
