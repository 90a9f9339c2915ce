"""Views of digits matched as graphs: with edges, by nodes alone, and NT-Xent, by a linear probe with few labels.

Set-up: scikit-learn's digits, 1,200 for training without labels; two random views of each image of a batch of 16; a
small convolutional network to 64 features and a projection of 32; 3 epochs of Adam. Graph matching with 5 neighbours,
lambda 80 and Gumbel noise of scale 0.1, with edges (Frank-Wolfe) and by an assignment of nodes alone, and that also
without noise; projections are matched as they are, without message passing or local features. The measure is the test
accuracy of a logistic regression on frozen features with the labels of 100 training digits. Untrained features are an
arm; NT-Xent is the baseline and must be above them on each seed.

The publication's point: second-order matching transfers better than other self-supervision, and ablations credit the
edges. That edges are above nodes alone (1.5 points), and that both are above untrained features (3 points), are the
claims. Each arm has the best of three rates on two seeds that are not reported (:func:`choose_rates`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ....core.pair_loss import PairLoss
from ....losses.contrastive.lvm_med import graph_matching_loss
from ....losses.contrastive.nt_xent import NTXentLoss
from ...data import digits
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import UNREPORTED, best_setting, check_sane
from ...views import linear_probe, train_views

SEEDS = 20
STILL = "matching, nodes, no noise"
EDGES, NODES, ENTROPY, UNTRAINED = "matching, edges", "matching, nodes", "NT-Xent", "untrained"
GRID = (3e-4, 1e-3, 3e-3)
RATES = {EDGES: 1e-3, NODES: 1e-3, ENTROPY: 3e-4, UNTRAINED: 0.0, STILL: 3e-4}
"""The rate of each arm: what :func:`choose_rates` gives."""
SANITY = 0.0
"""Points by which NT-Xent must be above untrained features."""
CLAIMS = (
    Claim("edges", "accuracy with edges is above that of nodes alone (1.5 points)", size=1.5),
    Claim("edges trained", "accuracy with edges is above that of untrained features (3 points)", size=3.0),
    Claim("nodes trained", "accuracy of nodes alone is above that of untrained features (3 points)", size=3.0),
)


class _Matching(PairLoss):
    """Matching of the views of a batch."""

    name = "matching"
    form, views, ranks = "views", 2, "local"

    def __init__(self, knn: int, noise: float, seed: int) -> None:
        super().__init__()
        self.knn, self.noise, self.generator = knn, noise, torch.Generator().manual_seed(seed)

    def batch_loss(self, outputs: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        return graph_matching_loss(outputs[0], outputs[1], knn=self.knn, noise=self.noise, generator=self.generator)


def run(scale: str, seed: int) -> Evidence:
    """Accuracy of each arm."""
    rows: list[dict[str, Any]] = [{"arm": arm, "accuracy": measure(arm, RATES[arm], scale, seed)} for arm in RATES]
    edges, nodes, entropy, untrained, _ = (row["accuracy"] for row in rows)
    if scale == "full":
        check_sane("gain of NT-Xent", entropy - untrained, SANITY)
    return Evidence(
        rows, {"edges": edges - nodes, "edges trained": edges - untrained, "nodes trained": nodes - untrained}
    )


def measure(arm: str, rate: float, scale: str, seed: int) -> float:
    """Test accuracy of the probe, in per cent."""
    full = scale == "full"
    x, y, x_test, y_test = digits(seed)
    rows = len(x) if full else 64
    loss: PairLoss = _Matching(5 if arm == EDGES else 0, 0.0 if arm == STILL else 0.1, seed)
    loss = NTXentLoss() if arm in (ENTROPY, UNTRAINED) else loss
    network = train_views(
        x[:rows],
        y[:rows],
        loss,
        epochs=0 if arm == UNTRAINED else 3 if full else 1,
        lr=rate,
        seed=seed,
        batch_size=16,
        dtype=torch.float32 if full else torch.float64,
    )
    return linear_probe(network[0], x[:100], y[:100], x_test, y_test)


def choose_rates() -> dict[str, float]:
    """The rate of each arm with the best mean accuracy over two pilot seeds."""
    pilots = (UNREPORTED, UNREPORTED + 1)
    arms = (EDGES, NODES, ENTROPY, STILL)
    return {a: best_setting(GRID, lambda rate, seed, a=a: measure(a, rate, "full", seed), pilots) for a in arms}


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Accuracy by arm."""
    return bars_figure(evidence, y="accuracy")
