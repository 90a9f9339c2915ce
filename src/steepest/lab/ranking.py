"""Lists of documents for experiments: what is generated, how a scorer is trained on it, how its ranking is judged."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..core.query_lists import discounts_of, gains_of, ideal_dcg

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``loss(scores [N], grades [N], query [N])``."""


class Lists(NamedTuple):
    """Documents ``[Q, n, ...]`` and their grades ``[Q, n]``."""

    documents: Tensor
    grades: Tensor


def train(
    scorer: nn.Module,
    loss: Loss,
    lists: Lists,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
) -> None:
    """Adam over batches of whole lists, in place.

    Args:
        scorer: documents ``[N, ...]`` to scores ``[N]``.
        loss: see :data:`Loss`.
        lists: what it learns from.
        epochs: over all lists.
        batch_size: lists a step.
        lr: learning rate, which falls to 0 by a line.
        seed: of the order.
    """
    count, size = lists.grades.shape
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(scorer.parameters(), lr=lr)
    total = epochs * -(-count // batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    for _ in range(epochs):
        for rows in torch.randperm(count, generator=order).split(batch_size):
            scores = scorer(lists.documents[rows].flatten(0, 1))
            query = torch.arange(len(rows)).repeat_interleave(size)
            optimizer.zero_grad()
            loss(scores, lists.grades[rows].flatten(), query).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def scores_of(scorer: nn.Module, lists: Lists) -> Tensor:
    """Scores ``[Q, n]``."""
    scores: Tensor = scorer(lists.documents.flatten(0, 1))
    return scores.view(lists.grades.shape)


def ndcg(scores: Tensor, grades: Tensor, k: int | None = None) -> float:
    """Mean NDCG@k of lists ``[Q, n]`` with gains 2^y - 1, over those with a grade above 0.

    >>> round(ndcg(torch.tensor([[0.2, 1.0, 0.5]]), torch.tensor([[2.0, 0.0, 1.0]])), 4)
    0.5869
    """
    gains = gains_of(grades.double())
    ranked = gains.gather(1, scores.argsort(dim=1, descending=True, stable=True))
    ideal = ideal_dcg(gains, k)
    values = (ranked * discounts_of(ranked, k)).sum(1)[ideal > 0] / ideal[ideal > 0]
    return float(values.mean())


def reciprocal_rank(scores: Tensor, grades: Tensor) -> float:
    """Mean of 1 / rank of the first document with a grade above 0, over lists ``[Q, n]`` that have one.

    >>> reciprocal_rank(torch.tensor([[0.2, 1.0, 0.5]]), torch.tensor([[0.0, 0.0, 1.0]]))
    0.5
    """
    relevant = (grades > 0).gather(1, scores.argsort(dim=1, descending=True, stable=True))
    place = relevant.double().argmax(1)
    return float((1 / (place + 1.0))[relevant.any(1)].mean())


def graded_lists(queries: int, seed: int, *, size: int = 20, dtype: torch.dtype = torch.float32) -> Lists:
    """Documents of ten normal features, graded 0 to 4 by a utility with a product, a bend and a square, and noise.

    Of all documents about 50, 25, 15, 7 and 3 per cent have the grades 0 to 4.
    """
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(queries, size, 10, generator=source, dtype=torch.float64)
    noise = torch.randn(queries, size, generator=source, dtype=torch.float64)
    utility = x[..., 0] * x[..., 1] + 1.5 * torch.tanh(2 * x[..., 2]) + 0.5 * x[..., 3].square() + 0.5 * noise
    levels = torch.quantile(utility.flatten(), torch.tensor([0.5, 0.75, 0.9, 0.97], dtype=torch.float64))
    return Lists(x.to(dtype), torch.bucketize(utility, levels).to(dtype))
