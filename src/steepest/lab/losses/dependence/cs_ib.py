"""Cauchy-Schwarz information bottleneck: error on clean and attacked inputs against squared error and variational IB.

Diabetes (442 rows, 10 inputs): 50% train, 20% choose, 30% test, drawn anew for each seed; inputs and target are
standardised by the training rows. Equal nets for all arms: 10-128-128-128, a linear layer to 128 that is the
representation, 128-1. Adam at 0.001 for 60 epochs of two batches; the released settings (0.0001,
times 0.6 every 10 epochs, for 13,000 rows) would hardly move a net on 221. Every arm keeps the epoch, and the strength
where it has one, with the least error on the choosing rows:

* squared error; squared error with an L2 penalty of 0.001 to 0.1 (Adam's weight decay);
* variational IB: the representation is drawn from a normal law with its own linear layer for the log-variance, squared
  error plus beta times its divergence from the standard normal, beta from 0.0001 to 0.1;
* Cauchy-Schwarz IB, kernels of width 1, beta in {0, 0.0001, 0.001, 0.01, 0.1, 1}.

The attack is one step along the sign of the gradient of the squared error in the inputs, eps 0.1, 0.2 and 0.3, and the
reduction under attack the mean over the three. "Decreasing in beta" is the rank correlation over the grid of the
normalised information of inputs and representation, on the training rows after the last epoch. The card counts an equal
clean error as met; here the claim is that it is below, so that equality comes out as "not shown".

Limit: of ten standardised inputs kernels of width 1 see few neighbours: in a batch of 110 a row's kernels sum to about
2.3, of which 1 is its own. No fixed beta of the grid has a mean error below that of squared error.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor, nn

from ....losses.dependence.cs_ib import CauchySchwarzIBLoss, cs_mutual_information
from ...data import built_in
from ...experiment import Claim, Evidence

EPS = (0.0, 0.1, 0.2, 0.3)
BETAS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of the Cauchy-Schwarz bottleneck; the variational one takes those between 0 and 1."""
DECAYS = (1e-3, 1e-2, 1e-1)
ARMS = ("squared error", "squared error + L2", "variational IB", "Cauchy-Schwarz IB")
SEEDS = 40

CLAIMS = (
    Claim("clean", "clean RMSE is below that of squared error (equal or 1 to 3% lower expected)", size=1.0),
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

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.mean(self.encoder(x)))
        return out


@dataclass
class _Rows:
    x: Tensor
    y: Tensor

    def error(self, net: _Net) -> float:
        with torch.no_grad():
            return float((net(self.x) - self.y).square().mean().sqrt())


@dataclass
class _Trained:
    """The net of the best epoch, its error on the choosing rows, the net of the last epoch."""

    net: _Net
    chosen: float
    last: _Net


def run(scale: str, seed: int) -> Evidence:
    """Errors of every arm on the test rows, clean and attacked; information for every beta."""
    full = scale == "full"
    epochs, width = (60, 128) if full else (4, 16)
    betas, decays = (BETAS, DECAYS) if full else (BETAS[::2], DECAYS[:1])
    train, choose, test = _split(seed)

    def fit(arm: str, strength: float) -> _Trained:
        return _train(arm, strength, train, choose, epochs, width, seed)

    bottlenecks = {beta: fit(ARMS[3], beta) for beta in betas}
    tried = [
        [fit(ARMS[0], 0.0)],
        [fit(ARMS[1], decay) for decay in decays],
        [fit(ARMS[2], beta) for beta in betas if 0 < beta < 1],
        list(bottlenecks.values()),
    ]
    best = {arm: min(of_arm, key=lambda each: each.chosen) for arm, of_arm in zip(ARMS, tried)}
    errors = {arm: [_attacked(each.net, test, eps).error(each.net) for eps in EPS] for arm, each in best.items()}
    information = [float(_information(each.last, train)) for each in bottlenecks.values()]
    rows = [{"arm": arm, "eps": eps, "RMSE": e} for arm, of_arm in errors.items() for eps, e in zip(EPS, of_arm)]
    rows += [
        {"arm": ARMS[3], "beta": beta, "information": kept, "RMSE": test.error(each.net)}
        for (beta, each), kept in zip(bottlenecks.items(), information)
    ]
    gains = {arm: [100 * (1 - own / other) for own, other in zip(errors[ARMS[3]], errors[arm])] for arm in ARMS}
    effects = {
        "clean": gains[ARMS[0]][0],
        "attack": float(np.mean(gains[ARMS[0]][1:])),
        "clean over VIB": gains[ARMS[2]][0],
        "attack over VIB": float(np.mean(gains[ARMS[2]][1:])),
        "compression": float(spearmanr(list(bottlenecks), information).statistic),
    }
    return Evidence(rows, effects)


def _split(seed: int) -> tuple[_Rows, _Rows, _Rows]:
    x, y, x_test, y_test = built_in("diabetes", seed, train=0.7)
    own = round(len(x) * 5 / 7)  # built_in has shuffled the rows
    middle, scale = x[:own].mean(0), x[:own].std(0)
    centre, spread = y[:own].mean(), y[:own].std()

    def rows(a: np.ndarray, b: np.ndarray) -> _Rows:
        columns = torch.as_tensor((a - middle) / scale, dtype=torch.float32)
        return _Rows(columns, torch.as_tensor((b - centre) / spread, dtype=torch.float32).unsqueeze(1))

    return rows(x[:own], y[:own]), rows(x[own:], y[own:]), rows(x_test, y_test)


def _train(arm: str, strength: float, train: _Rows, choose: _Rows, epochs: int, width: int, seed: int) -> _Trained:
    torch.manual_seed(seed)
    net = _Net(train.x.shape[1], width)
    criterion = CauchySchwarzIBLoss(strength if arm == ARMS[3] else 0.0)
    decay = strength if arm == ARMS[1] else 0.0
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, weight_decay=decay)
    generator = torch.Generator().manual_seed(seed)
    best, least = copy.deepcopy(net.state_dict()), choose.error(net)
    for _ in range(epochs):
        order = torch.randperm(len(train.x), generator=generator)
        for own in order.tensor_split(max(1, round(len(order) / 128))):
            x, y = train.x[own], train.y[own]
            hidden = net.encoder(x)
            t = net.mean(hidden)
            if arm == ARMS[3]:
                loss = criterion(x, t, net.decoder(t), y)
            elif arm == ARMS[2]:
                spread = net.log_variance(hidden)
                drawn = t + (spread / 2).exp() * torch.randn(t.shape, generator=generator)
                divergence = 0.5 * (t.square() + spread.exp() - spread - 1).sum(1).mean()
                loss = (net.decoder(drawn) - y).square().mean() + strength * divergence
            else:
                loss = (net.decoder(t) - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        error = choose.error(net)
        if error < least:
            best, least = copy.deepcopy(net.state_dict()), error
    kept = copy.deepcopy(net)
    kept.load_state_dict(best)
    return _Trained(kept, least, net)


def _attacked(net: _Net, rows: _Rows, eps: float) -> _Rows:
    """The rows after one step of ``eps`` along the sign of the gradient of the squared error."""
    if eps == 0:
        return rows
    x = rows.x.clone().requires_grad_()
    (slope,) = torch.autograd.grad((net(x) - rows.y).square().sum(), x)
    return _Rows(rows.x + eps * slope.sign(), rows.y)


@torch.no_grad()
def _information(net: _Net, rows: _Rows) -> Tensor:
    return cs_mutual_information(rows.x, net.mean(net.encoder(rows.x)), normalized=True)


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Error against the size of the attack, and information against beta: means over seeds."""
    drawn = Figure(figsize=(7.2, 3.2), layout="constrained")
    left, right = drawn.subplots(1, 2)
    rows = [row for each in evidence for row in each.rows]
    for number, arm in enumerate(ARMS):
        means = [np.mean([r["RMSE"] for r in rows if r["arm"] == arm and r.get("eps") == eps]) for eps in EPS]
        left.plot(EPS, means, marker="osD^"[number], label=arm, linewidth=1.2, markersize=5, alpha=0.8)
    left.set_xlabel("size of the attack, standard deviations")
    left.set_ylabel("test RMSE")
    left.legend(fontsize=8, frameon=False)
    betas = sorted({row["beta"] for row in rows if "beta" in row})
    kept = [[row["information"] for row in rows if row.get("beta") == beta] for beta in betas]
    places = range(len(betas))
    right.plot(places, [np.mean(k) for k in kept], marker="^", color="#0b5c94", linewidth=1.2)
    right.fill_between(places, [min(k) for k in kept], [max(k) for k in kept], color="#0b5c94", alpha=0.12)
    right.set_xticks(places, [f"{beta:g}" for beta in betas])
    right.set_xlabel("beta")
    right.set_ylabel("normalised information, inputs and representation", fontsize=8)
    for axes in (left, right):
        axes.spines[["right", "top"]].set_visible(False)
    return drawn
