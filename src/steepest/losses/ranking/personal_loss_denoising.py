"""Personal loss denoising: which of a user's clicks to train on is drawn by their losses, within that user alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor
from torch.nn.functional import softplus

from ...core.checks import check_choice, check_number, check_tensor, refuse, refuse_type
from ...core.reductions import widen

Score = Callable[[Tensor, Tensor], Tensor]
"""``score(users [B], items [B, n]) -> scores [B, n]``."""
LOSSES = ("bpr", "bce")


def personal_loss_resample(
    losses: F[Tensor, "users pool"],
    temperature: float,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[I[Tensor, " users"], F[Tensor, "users pool"]]:
    r"""Draw one item of each user's pool, the likelier the smaller its loss.

    .. math:: p_c = \frac{e^{-l_c / T}}{\sum_{c'} e^{-l_{c'} / T}}

    The sum is over the user's own pool, so that a constant added to all losses of a user changes nothing.

    Args:
        losses: of the items of each pool, ``[B, k]``, finite.
        temperature: T > 0; towards 0 the smallest loss is always drawn, towards infinity all are drawn alike.
        mask: boolean ``[B, k]``, where there is an item; None: everywhere.
        generator: of the draw; None is torch's own.

    Returns:
        The place that was drawn in each pool ``[B]``, and the probabilities ``[B, k]``, in float32 or wider, which
        carry no gradient and are 0 where there is no item.

    Raises:
        ValueError: a temperature that is not above 0, a row without an item, losses that are not finite.
        TypeError: losses that are not floating, a mask that is not boolean.

    Example:
        >>> losses = torch.tensor([[0.201413, 0.474077, 1.701413]])
        >>> index, prob = personal_loss_resample(losses, temperature=0.5)
        >>> prob
        tensor([[0.6137, 0.3557, 0.0306]])

    Source: Personalized Denoising Implicit Feedback for Robust Recommender System, arXiv:2502.00348.
    """
    check_tensor("losses", losses, ndim=2, floating=True)
    check_number("temperature", temperature, low=0.0, open_low=True)
    if mask is None:
        mask = torch.ones_like(losses, dtype=torch.bool)
    check_tensor("mask", mask, shape=tuple(losses.shape))
    if mask.dtype != torch.bool:
        refuse_type("mask", "a boolean tensor", mask)
    if not bool(mask.any(1).all()):
        refuse("mask", "an item in every row", "a row without one")
    values = widen(losses.detach())
    if not bool((values.isfinite() | ~mask).all()):
        refuse("losses", "finite numbers", "others")
    lowest = torch.where(mask, values, torch.inf).amin(1, keepdim=True)
    scaled = torch.where(mask, (lowest - values) / temperature, -torch.inf)  # 0 at the smallest: T may be tiny
    prob = scaled.softmax(1)
    index = torch.multinomial(prob, 1, generator=generator)[:, 0] if len(prob) else prob.new_zeros(0, dtype=torch.int64)
    return index, prob


class PersonalLossSampler:
    r"""Batches of user, positive and negative whose positives are drawn by :func:`personal_loss_resample`.

    Users come uniformly. Of each a pool of k positives is drawn, without replacement where there are as many, and one
    negative, uniformly over the items that the user has nothing to do with. The losses of the pool are those of the
    model as it is, all beside the one negative:

    .. math::

        l_c = \log(1 + e^{s_{un} - s_{uc}}) \text{ (bpr)}, \qquad l_c = \log(1 + e^{-s_{uc}}) \text{ (bce)}

    and one item of the pool is trained on, by the loss that trains anyway. In the first epochs, and with k = 1, any
    positive is as likely as another. Equal seeds give equal batches for equal scores.

    Args:
        interactions: user and item of each, whole numbers ``[M, 2]``; what comes twice counts once. Every user
            0..U-1 has at least one, and at least one item that is none.
        num_items: of all items, 0..num_items - 1.
        pool: k >= 1; the publication has 2 to 10.
        temperature: T > 0.
        warmup_epochs: epochs of ordinary sampling before; >= 0.
        loss: ``"bpr"`` or ``"bce"``.
        batch_size: users of a batch.
        seed: of all draws.

    Raises:
        ValueError: numbers outside their ranges, users without an interaction, users who have all items.

    Example:
        >>> clicks = torch.tensor([[0, 0], [0, 2], [1, 1], [1, 3]])
        >>> sampler = PersonalLossSampler(clicks, num_items=5, pool=2, warmup_epochs=0, batch_size=3)
        >>> scores = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
        >>> for users, positives, negatives in sampler.epoch(0, lambda users, items: scores[users[:, None], items]):
        ...     print(users.shape, positives.shape, negatives.shape)
        torch.Size([3]) torch.Size([3]) torch.Size([3])
        torch.Size([3]) torch.Size([3]) torch.Size([3])

    Source: Personalized Denoising Implicit Feedback for Robust Recommender System, arXiv:2502.00348.
    """

    def __init__(
        self,
        interactions: I[Tensor, "interactions 2"],
        num_items: int,
        *,
        pool: int = 5,
        temperature: float = 0.3,
        warmup_epochs: int = 5,
        loss: str = "bpr",
        batch_size: int = 2048,
        seed: int = 0,
    ) -> None:
        check_tensor("interactions", interactions, ndim=2, floating=False)
        if interactions.shape[1] != 2 or not len(interactions):
            refuse("interactions", "pairs of user and item [M, 2], M >= 1", interactions)
        check_number("num_items", num_items, low=2, integer=True)
        check_number("pool", pool, low=1, integer=True)
        check_number("temperature", temperature, low=0.0, open_low=True)
        check_number("warmup_epochs", warmup_epochs, low=0, integer=True)
        check_choice("loss", loss, LOSSES)
        check_number("batch_size", batch_size, low=1, integer=True)
        check_number("seed", seed, low=0, integer=True)
        pairs = torch.unique(interactions.long(), dim=0)  # sorted by user, then item
        users, items = pairs.unbind(1)
        for name, ids, most in (("users", users, None), ("items", items, num_items)):
            if int(ids.min()) < 0 or (most is not None and int(ids.max()) >= most):
                refuse("interactions", f"{name} in 0..{'' if most is None else most - 1}", int(ids.max()))
        counts = torch.bincount(users)
        if not bool(counts.all()):
            refuse(
                "interactions", "users 0..U-1 with at least one interaction", f"user {int(counts.argmin())} with none"
            )
        if int(counts.max()) >= num_items:
            refuse("interactions", "at least one item without the user", f"user {int(counts.argmax())} with all")
        self.num_users, self.num_items, self.interactions = len(counts), num_items, pairs
        self.pool, self.temperature, self.warmup_epochs = pool, float(temperature), warmup_epochs
        self.loss, self.batch_size, self.seed = loss, batch_size, seed
        self.counts = counts
        place = torch.arange(len(pairs), device=pairs.device) - (counts.cumsum(0) - counts)[users]
        self._items = pairs.new_full((len(counts), int(counts.max())), num_items)
        self._items[users, place] = items
        self._gaps = self._items - torch.arange(self._items.shape[1], device=pairs.device)

    def __len__(self) -> int:
        """Batches of an epoch: as many rows as there are interactions."""
        return -(-len(self.interactions) // self.batch_size)

    def losses(self, positives: F[Tensor, "users pool"], negatives: F[Tensor, "users 1"]) -> Tensor:
        """Losses ``[B, k]`` of the scores of pools, each beside the one negative of its user."""
        return softplus(negatives - positives) if self.loss == "bpr" else softplus(-positives)

    def epoch(self, epoch: int, score: Score) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Users, positives and negatives ``[B]`` of an epoch, which is counted from 0.

        Args:
            epoch: >= 0; ordinary sampling before ``warmup_epochs``.
            score: see :data:`Score`; it is asked before each batch, so that losses are those of the model as it is.
        """
        check_number("epoch", epoch, low=0, integer=True)
        device = self.interactions.device
        words = np.random.SeedSequence([self.seed, epoch]).generate_state(2, np.uint64)
        generator = torch.Generator(device).manual_seed(int(words[0] >> 1))
        size = 1 if epoch < self.warmup_epochs else self.pool
        for _ in range(len(self)):
            users = torch.randint(self.num_users, (self.batch_size,), generator=generator, device=device)
            negatives = self.negatives(users, generator)
            pools = self.pools(users, size, generator)
            if size == 1:
                yield users, pools[:, 0], negatives
                continue
            with torch.no_grad():
                scores = score(users, torch.cat([pools, negatives[:, None]], 1))
            check_tensor("score", scores, floating=True, shape=(len(users), size + 1))
            losses = self.losses(scores[:, :-1], scores[:, -1:])
            index, _ = personal_loss_resample(losses, self.temperature, generator=generator)
            yield users, pools.gather(1, index[:, None])[:, 0], negatives

    def pools(self, users: Tensor, size: int, generator: torch.Generator) -> I[Tensor, "users pool"]:
        """``size`` positives of each user ``[B, size]``: distinct ones, or with replacement where there are fewer."""
        counts, width = self.counts[users], self._items.shape[1]
        again = torch.rand(len(users), size, generator=generator, device=users.device)
        place = (again * counts[:, None]).long().clamp_max(counts[:, None] - 1)
        if size > 1:
            keys = torch.rand(len(users), width, generator=generator, device=users.device)
            keys = torch.where(torch.arange(width, device=users.device) < counts[:, None], keys, -1.0)
            top = keys.topk(min(size, width), 1).indices
            enough = counts >= size
            if size <= width:
                place = torch.where(enough[:, None], top, place)
        pools: Tensor = self._items[users[:, None], place]
        return pools

    def negatives(self, users: Tensor, generator: torch.Generator) -> I[Tensor, " users"]:
        """One item of each user without an interaction, uniformly and without trying again."""
        free = self.num_items - self.counts[users]
        draw = torch.rand(len(users), generator=generator, device=users.device, dtype=torch.float64)
        rank = (draw * free).long().clamp_max(free - 1)
        gaps = self._gaps[users]  # items below the j-th positive that are none
        real = torch.arange(gaps.shape[1], device=users.device) < self.counts[users][:, None]
        negatives: Tensor = rank + ((gaps <= rank[:, None]) & real).sum(1)
        return negatives
