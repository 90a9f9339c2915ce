"""Graph contrast with and without the loss of node compactness: accuracy, the bound's level, and how even it is.

Set-up of the claim: a stochastic block graph of 300 nodes in four classes (an edge with probability .06 within, .01
between), features the sign pattern of the class in 20 numbers under normal noise of standard deviation 2. GRACE: a
graph convolution of two layers (64 and 32 units, rectified), a projection of two layers, cosines at temperature .7
between two views that lack edges at rates .4 and .3, Adam for 150 steps. Views drop edges at random, but of no node
more than the bound allows. Arms: GRACE; with the loss of the bound, kappa .5, both views in both roles; with the
published code's estimate in its place. After training the node vectors are those of the whole graph: accuracy of a
logistic regression on 10% of the nodes, mean of five draws, and compactness of view 1 against view 2, averaged over
five pairs of views.

Claims: accuracy rises by up to two points (a size of one is taken), mean compactness rises, and training is more even.
Compactness is read as the loss does, as the probability sigma(c) of being well trained; its level and its spread, the
standard deviation over nodes, are given no number by the publication. Sizes of .05 and .01 are taken. The accuracy is
claimed with the published estimate too, and, by us, that its own mean rises; level and spread in the rows are always
those of the bound, which the estimate lowered in trials before the claims about it were fixed.

Each arm has the best of three rates by accuracy on two seeds that are not reported (:func:`choose_rates`). GRACE, the
baseline, must reach an accuracy of .5, twice chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ....core.graphs import normalised_adjacency
from ....losses.contrastive.nt_xent import nt_xent_loss
from ....losses.contrastive.provable_gcl import (
    NodeCompactness,
    adjacency_bounds,
    allowed_drops,
    node_compactness,
)
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...graphs import GraphEncoder, block_graph
from ...settings import UNREPORTED, best_setting, check_sane

SEEDS = 8
PLAIN, BOUND, FAST = "GRACE", "with the bound", "with the published estimate"
ARMS = (PLAIN, BOUND, FAST)
GRID = (1e-3, 3e-3, 1e-2)
RATES = {PLAIN: 1e-3, BOUND: 1e-2, FAST: 3e-3}
"""The rate of each arm: what :func:`choose_rates` gives."""
DROPPED, TEMPERATURE, KAPPA = (0.4, 0.3), 0.7, 0.5
SANITY = 0.5
"""Accuracy that GRACE must reach."""
CLAIMS = (
    Claim("accuracy", "the bound raises the accuracy of GRACE (a point)", size=0.01),
    Claim("level", "the bound raises mean compactness as a probability (.05)", size=0.05),
    Claim("spread", "the bound lowers the spread of compactness over nodes (.01)", size=0.01, greater=False),
    Claim("published accuracy", "the published estimate raises the accuracy of GRACE (a point)", size=0.01),
    Claim("published level", "the published estimate raises its own mean as a probability (.05)", size=0.05, ours=True),
)


class _Views:
    """Random views of a graph within the bounds, and the bounds."""

    def __init__(self, edges: Tensor, x: Tensor, generator: torch.Generator) -> None:
        self.x, self.generator = x, generator
        self.pairs = edges[:, edges[0] < edges[1]]
        adj = x.new_zeros(len(x), len(x)).index_put((edges[0], edges[1]), x.new_ones(()))
        self.most = [allowed_drops(adj, rate) for rate in DROPPED]
        self.bounds = [adjacency_bounds(adj, rate) for rate in DROPPED]

    def draw(self, view: int) -> Tensor:
        """The normalised adjacency of a view: an edge is dropped if both ends have it among their first few."""
        order = torch.randperm(self.pairs.shape[1], generator=self.generator)
        both = torch.cat([self.pairs[:, order], self.pairs[:, order].flip(0)], 1)
        place = torch.arange(len(order)).repeat(2)
        keys = (both[0] * len(order) + place).argsort()
        counts = torch.bincount(both[0], minlength=len(self.x))
        rank = torch.empty_like(keys)
        rank[keys] = torch.arange(len(keys)) - (counts.cumsum(0) - counts)[both[0][keys]]
        dropped = (rank < self.most[view][both[0]]).view(2, -1).all(0)
        left = both.view(2, 2, -1)[:, 0, ~dropped]
        edges = torch.cat([left, left.flip(0)], 1)
        return normalised_adjacency(edges, len(self.x), dtype=self.x.dtype).to_dense()


def compactness_of(encoder: GraphEncoder, views: _Views, first: int, adjacencies: Sequence[Tensor], z: Tensor) -> Any:
    """The arguments of the compactness of one view against the vectors of the other."""
    first_layer, second_layer = encoder.first, encoder.second
    return (
        views.x, adjacencies[first], *views.bounds[first],
        first_layer.weight.T, first_layer.bias, second_layer.weight.T, second_layer.bias, z,
    )  # fmt: skip


def measure(arm: str, rate: float, scale: str, seed: int) -> dict[str, float]:
    """Accuracy, level and spread of the compactness."""
    full = scale == "full"
    dtype = torch.float32 if full else torch.float64
    generator = torch.Generator().manual_seed(seed)
    edges, y = block_graph([75 if full else 12] * 4, 0.06 if full else 0.4, 0.01 if full else 0.05, generator)
    signs = torch.randn(4, 20, generator=generator, dtype=torch.float64).sign()
    x = (signs[y] + 2.0 * torch.randn(len(y), 20, generator=generator, dtype=torch.float64)).to(dtype)
    views = _Views(edges, x, generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = GraphEncoder(20, 64, 32, rectified=True).to(dtype)
        projection = nn.Sequential(nn.Linear(32, 32), nn.ELU(), nn.Linear(32, 32)).to(dtype)
    loss = NodeCompactness(fast=arm == FAST)
    optimizer = torch.optim.Adam([*encoder.parameters(), *projection.parameters()], lr=rate)
    for _ in range(150 if full else 3):
        adjacencies = [views.draw(view) for view in (0, 1)]
        z = [encoder(x, a) for a in adjacencies]
        value = nt_xent_loss(torch.stack([projection(rows) for rows in z]), temperature=TEMPERATURE)
        if arm != PLAIN:
            pot = sum(loss(*compactness_of(encoder, views, v, adjacencies, z[1 - v])) for v in (0, 1)) / 2
            value = (1 - KAPPA) * value + KAPPA * pot
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    with torch.no_grad():
        whole = encoder(x, normalised_adjacency(edges, len(x), dtype=dtype))
        sums, estimates = torch.zeros(2, len(x), dtype=dtype)
        for _ in range(5):
            adjacencies = [views.draw(view) for view in (0, 1)]
            against = compactness_of(encoder, views, 0, adjacencies, encoder(x, adjacencies[1]))
            sums += node_compactness(*against) / 5
            estimates += node_compactness(*against, fast=True) / 5
    trained = sums.sigmoid()
    return {
        "accuracy": probe(whole.double().numpy(), y.numpy(), seed),
        "level": float(trained.mean()),
        "spread": float(trained.std()),
        "estimate": float(estimates.sigmoid().mean()),
    }


def probe(z: np.ndarray, y: np.ndarray, seed: int) -> float:
    """Accuracy of a logistic regression on a tenth of the nodes, mean of five draws."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    scores = []
    for draw in range(5):
        a, b, ya, yb = train_test_split(
            z, y, train_size=max(0.1, 8 / len(y)), stratify=y, random_state=1000 * seed + draw
        )
        scaler = StandardScaler().fit(a)
        fitted = LogisticRegression(max_iter=1000).fit(scaler.transform(a), ya)
        scores.append(fitted.score(scaler.transform(b), yb))
    return float(np.mean(scores))


def run(scale: str, seed: int) -> Evidence:
    """The numbers of each arm."""
    by_arm = {arm: measure(arm, RATES[arm], scale, seed) for arm in ARMS}
    if scale == "full":
        check_sane("accuracy of GRACE", by_arm[PLAIN]["accuracy"], SANITY)
    rows: list[dict[str, Any]] = [{"arm": arm, **numbers} for arm, numbers in by_arm.items()]
    plain, bound, fast = (by_arm[arm] for arm in ARMS)
    return Evidence(
        rows,
        {
            "accuracy": bound["accuracy"] - plain["accuracy"],
            "level": bound["level"] - plain["level"],
            "spread": bound["spread"] - plain["spread"],
            "published accuracy": fast["accuracy"] - plain["accuracy"],
            "published level": fast["estimate"] - plain["estimate"],
        },
    )


def choose_rates() -> dict[str, float]:
    """The rate of each arm with the best mean accuracy over two pilot seeds."""
    pilots = (UNREPORTED, UNREPORTED + 1)
    return {
        arm: best_setting(GRID, lambda rate, seed, arm=arm: measure(arm, rate, "full", seed)["accuracy"], pilots)
        for arm in ARMS
    }


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Compactness as a probability, by arm."""
    return bars_figure(evidence, y="level")
