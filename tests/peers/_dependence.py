"""Measures of dependence beside POT, dcor, pytorch-metric-learning and torch: rows for `pairs.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from steepest import losses


def critic_pairs(generator: torch.Generator, shape: tuple[int, int]) -> tuple[Tensor, ...]:
    """Encodings of the two parts of at least two pairs."""
    size = shape[0] + 1, shape[1]
    first, second = (torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2))
    return first, 0.5 * second


def _predictive_coding(x: Tensor, y: Tensor) -> Tensor:
    critic = losses.SeparableCritic(torch.nn.Identity(), torch.nn.Identity())
    found: Tensor = losses.WPCLoss(critic, penalty=0)(x, y) + np.log(len(x))
    return found


def _cross_entropy(x: Tensor, y: Tensor) -> Tensor:
    return nnf.cross_entropy(x @ y.mT, torch.arange(len(x)))


def _ntxent(x: Tensor, y: Tensor) -> Tensor:
    from pytorch_metric_learning.distances import DotProductSimilarity
    from pytorch_metric_learning.losses import NTXentLoss

    own = torch.arange(len(x))
    loss = NTXentLoss(1.0, distance=DotProductSimilarity(normalize_embeddings=False))
    # labels of the other view must be another tensor: the peer takes the same one for the same view
    found: Tensor = loss(x, own, ref_emb=y, ref_labels=own.clone())
    return found


def laws(generator: torch.Generator, shape: tuple[int, int]) -> tuple[Tensor, ...]:
    """Points of the rows of a joint law, points of its columns, the law."""
    n, m = (min(max(size, 2), 6) for size in shape)
    x, y = (torch.randn(size, 2, generator=generator, dtype=torch.float64) for size in (n, m))
    law = torch.rand(n, m, generator=generator, dtype=torch.float64)
    return x, y, law / law.sum()


def _exact(x: Tensor, y: Tensor, law: Tensor) -> float:
    return losses.exact_wasserstein_dependency(law, x.detach(), y)


def _pot_exact(x: Tensor, y: Tensor, law: Tensor) -> float:
    import ot

    cells = torch.cat([x.detach().repeat_interleave(len(y), 0), y.repeat(len(x), 1)], 1).numpy()
    product = torch.outer(law.sum(1), law.sum(0))
    found = ot.emd2(law.flatten().numpy(), product.flatten().numpy(), ot.dist(cells, metric="euclidean"))
    return float(found)


def samples(generator: torch.Generator, shape: tuple[int, int]) -> tuple[Tensor, ...]:
    """Two dependent variables of at least four rows."""
    rows = shape[0] + 4
    x = torch.randn(rows, shape[1], generator=generator, dtype=torch.float64)
    return x, x[:, 0].square() + torch.randn(rows, generator=generator, dtype=torch.float64)


def _biased(x: Tensor, y: Tensor) -> Tensor:
    return losses.distance_covariance(x, y, unbiased=False)


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    return (_biased(x, y) / (_biased(x, x) * _biased(y, y)).sqrt()).sqrt()


def _dcor(name: str) -> Callable[[Tensor, Tensor], float]:
    def function(x: Tensor, y: Tensor) -> float:
        import dcor

        return float(getattr(dcor, name)(x.numpy(), y.numpy(), method="naive"))

    return function


INFONCE = "WPCLoss, penalty 0 (InfoNCE)"
ROWS: tuple[tuple[Any, ...], ...] = (
    (INFONCE, "torch", _predictive_coding, _cross_entropy, critic_pairs),
    (f"{INFONCE}, as NT-Xent", "pytorch-metric-learning", _predictive_coding, _ntxent, critic_pairs),
    ("exact_wasserstein_dependency", "POT", _exact, _pot_exact, laws, False, 1e-9),
    (
        "distance_covariance", "dcor", losses.distance_covariance, _dcor("u_distance_covariance_sqr"), samples, False,
    ),
    ("distance_covariance, biased", "dcor", _biased, _dcor("distance_covariance_sqr"), samples, False),
    ("distance correlation, by covariances", "dcor", _correlation, _dcor("distance_correlation"), samples, False),
)  # fmt: skip
"""Arguments of a pair, in order."""
