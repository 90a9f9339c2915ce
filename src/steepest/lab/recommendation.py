"""Implicit feedback for experiments: users and items of a low rank, a factorisation that is trained on it, NDCG@K."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..core.query_lists import discounts_of

USERS, ITEMS, RANK, SEEN, UNSEEN = 800, 600, 8, 16, 4
"""Sizes of the generated feedback: SEEN positives of a user train, UNSEEN test."""
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``loss(pos [B], neg [B, N], users [B])`` of cosines."""


class Feedback(NamedTuple):
    """Positives of each user: ``train`` ``[users, SEEN]``, ``test`` ``[users, UNSEEN]``, of ``items`` items."""

    train: Tensor
    test: Tensor
    items: int


def feedback(seed: int, *, users: int = USERS, items: int = ITEMS) -> Feedback:
    """Each user's twenty positives, drawn by a preference of rank 8 and a popularity as 1 / rank, split 80 to 20."""
    source = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(n, RANK, generator=source, dtype=torch.float64) for n in (users, items))
    popularity = -torch.log(torch.arange(1, items + 1, dtype=torch.float64))
    noise = torch.rand(users, items, generator=source, dtype=torch.float64)
    utility = left @ right.T + popularity - torch.log(-torch.log(noise))  # the largest are a draw by softmax
    chosen = utility.topk(SEEN + UNSEEN, 1).indices
    order = torch.rand(chosen.shape, generator=source, dtype=torch.float64).argsort(1)
    chosen = chosen.gather(1, order)
    return Feedback(chosen[:, :SEEN], chosen[:, SEEN:], items)


class Factors(nn.Module):
    """An embedding of users and one of items, whose cosine is the score."""

    def __init__(self, users: int, items: int, width: int = 16) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(users, width), nn.Embedding(items, width)

    def forward(self, users: Tensor) -> Tensor:
        """Cosines ``[users, items]``."""
        left = nn.functional.normalize(self.users(users), dim=1)
        return left @ nn.functional.normalize(self.items.weight, dim=1).T


def train(
    model: Factors,
    loss: Loss,
    data: Feedback,
    *,
    epochs: int,
    lr: float,
    seed: int,
    negatives: int = 100,
    injected: Tensor | None = None,
    on_epoch: Callable[[int], None] = lambda epoch: None,
) -> None:
    """Adam over batches of a hundred users with all their training positives, in place.

    Args:
        model: see there.
        loss: see :data:`Loss`.
        data: what it learns from.
        epochs: over all users.
        lr: learning rate.
        seed: of order and negatives, which are drawn from items that are positives neither of training nor of test.
        negatives: N of each positive.
        injected: which of a user's test positives are among the negatives all the same, boolean ``[users, UNSEEN]``.
        on_epoch: called with 1, 2, ... before each epoch.
    """
    source = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    free = torch.ones(len(data.train), data.items)
    free.scatter_(1, data.train, 0.0).scatter_(1, data.test, 0.0)
    for epoch in range(1, epochs + 1):
        on_epoch(epoch)
        for users in torch.randperm(len(data.train), generator=source).split(100):
            scores = model(users)
            drawn = torch.multinomial(free[users], negatives, replacement=True, generator=source)
            neg = scores.gather(1, drawn)
            if injected is not None:
                extra = scores.gather(1, data.test[users])
                neg = torch.cat([neg, torch.where(injected[users], extra, neg[:, : extra.shape[1]])], 1)
            pos = scores.gather(1, data.train[users])
            optimizer.zero_grad()
            wide = neg.repeat_interleave(pos.shape[1], 0)
            loss(pos.flatten(), wide, users.repeat_interleave(pos.shape[1])).backward()
            optimizer.step()


@torch.no_grad()
def ndcg(model: Factors, data: Feedback, k: int) -> float:
    """Mean NDCG@k of test positives among all items but the training positives."""
    scores = model(torch.arange(len(data.train))).scatter(1, data.train, -torch.inf)
    ranked = scores.topk(k, 1).indices
    hits = (ranked.unsqueeze(2) == data.test.unsqueeze(1)).any(2).double()
    discount = discounts_of(hits)
    return float(((hits * discount).sum(1) / discount[: data.test.shape[1]].sum()).mean())


def bpr(pos: Tensor, neg: Tensor, users: Tensor) -> Tensor:
    """Bayesian personalised ranking: logistic losses of differences, at the temperature .2 of cosines."""
    return nn.functional.softplus((neg - pos.unsqueeze(1)) / 0.2).mean()


def softmax(pos: Tensor, neg: Tensor, tau: float) -> Tensor:
    """The softmax loss, without the positive in its sum."""
    return ((neg - pos.unsqueeze(1)) / tau).logsumexp(1).mean()


def fitted(
    loss: Loss,
    scale: str,
    seed: int,
    *,
    lr: float,
    share: float = 0.0,
    on_epoch: Callable[[int, Factors, Feedback], None] = lambda epoch, model, data: None,
) -> float:
    """NDCG@5 of factors that were trained by one loss, where a share of the test positives is among the negatives."""
    full = scale == "full"
    sizes = {} if full else {"users": 60, "items": 80}
    dtype = torch.float32 if full else torch.float64
    data = feedback(seed, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Factors(len(data.train), data.items).to(dtype)
    source = torch.Generator().manual_seed(seed + 1)
    injected = torch.rand(data.test.shape, generator=source) < share if share else None
    train(
        model,
        loss,
        data,
        epochs=30 if full else 2,
        lr=lr,
        seed=seed,
        negatives=100 if full else 20,
        injected=injected,
        on_epoch=lambda epoch: on_epoch(epoch, model, data),
    )
    return ndcg(model, data, 5)
