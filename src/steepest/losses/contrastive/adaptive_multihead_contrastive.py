"""Contrastive learning by several heads, with a predicted temperature of each pair and head."""

from __future__ import annotations

from typing import Any, Self

import torch
from jaxtyping import Float as F
from torch import Tensor, nn

from ...core.arguments import Arguments
from ...core.checks import check_choice, check_interval, check_number, check_tensor, refuse
from ...core.cosine import unit_rows
from ...core.loss import Loss, Sample
from ...core.reductions import widen

NEGATIVES = ("max", "logsumexp")


def temperature_penalty(tau: F[Tensor, "*pairs"], dimension: float) -> F[Tensor, "*pairs"]:
    r"""What likelihood asks of a temperature beside the similarity.

    .. math:: \Omega(\tau) = \frac{d}{2} \log \tau + \frac{1}{\tau}

    With a similarity s of unit vectors, -s / tau + Omega is the negative logarithm of a normal density of variance tau
    up to a constant; it is least at tau = 2 (1 - s) / d.

    Args:
        tau: > 0, of any shape.
        dimension: d > 0.

    Raises:
        ValueError: a number out of range, a temperature that is not positive.

    Example:
        >>> temperature_penalty(torch.tensor([0.2, 0.5]), 2)
        tensor([3.3906, 1.3069])
    """
    check_tensor("tau", tau, floating=True)
    check_number("dimension", dimension, low=0.0, open_low=True)
    tau = widen(tau)
    check_interval("tau", tau, torch.finfo(tau.dtype).tiny, what="temperatures", rounding=0.0)
    return dimension / 2 * tau.log() + 1 / tau


def multihead_contrastive_loss(
    z1: F[Tensor, "heads batch width"],
    z2: F[Tensor, "heads batch width"],
    tau: F[Tensor, "heads rows rows"],
    *,
    beta: float = 0.1,
    d_eff: float | None = None,
    negatives: str = "max",
) -> F[Tensor, ""]:
    r"""The multi-head contrastive loss of two views, whose pairs have temperatures of their own.

    With s the cosines of a head, p the other view of row i, n its negatives (the views of all other items) and n* the
    one of largest s,

    .. math:: l_i = \sum_{c} \left[ -\frac{s^c_{ip}}{\tau^c_{ip}} + \frac{s^c_{in^*}}{\tau^c_{in^*}}
        + \beta\, \Omega(\tau^c_{ip}) - \beta\, \Omega(\tau^c_{in^*}) \right]

    and the mean over both views of all items, with :func:`temperature_penalty`. With ``negatives="logsumexp"`` the
    second term is :math:`\log \sum_n e^{s_{in} / \tau_{in}}`.

    The part of a negative falls without bound as its temperature goes to 0 where s < beta: temperatures need a lower
    limit.

    Args:
        z1, z2: embeddings of both views ``[C, B, d]``, of any norm.
        tau: > 0, ``[C, 2B, 2B]``, rows of the first view before those of the second.
        beta: >= 0.
        d_eff: the dimension in Omega, > 0; None for d. With a large one its logarithm outweighs the rest.
        negatives: "max" or "logsumexp".

    Returns:
        The loss in float32 or wider; 0 with a graph where an item has no negatives.

    Raises:
        ValueError: other shapes, a number out of range, a temperature that is not positive.

    Example:
        >>> z = torch.eye(2).unsqueeze(0)
        >>> multihead_contrastive_loss(z, z, torch.full((1, 4, 4), 0.5))
        tensor(-2.)

    Source: Adaptive Multi-head Contrastive Learning, arXiv:2310.05615.
    """
    check_tensor("z1", z1, ndim=3, floating=True)
    check_tensor("z2", z2, floating=True, shape=tuple(z1.shape))
    heads, items, width = z1.shape
    check_tensor("tau", tau, floating=True, shape=(heads, 2 * items, 2 * items))
    check_number("beta", beta, low=0.0)
    if d_eff is not None:
        check_number("d_eff", d_eff, low=0.0, open_low=True)
    check_choice("negatives", negatives, NEGATIVES)
    if not heads:
        refuse("z1", "one head and more", z1)
    rows = unit_rows(torch.cat([z1, z2], 1))
    tau = widen(tau)
    penalty = temperature_penalty(tau, width if d_eff is None else d_eff)
    if items < 2:
        return 0.0 * (rows.sum() + tau.sum())
    s = rows @ rows.mT
    item = torch.arange(2 * items, device=s.device) % items
    partner = torch.arange(2 * items, device=s.device).roll(items).expand(heads, -1).unsqueeze(2)
    apart = item.unsqueeze(1) != item
    hardest = torch.where(apart, s.detach(), -torch.inf).argmax(2, keepdim=True)

    def of_both(values: Tensor) -> tuple[Tensor, Tensor]:
        return values.gather(2, partner).squeeze(2), values.gather(2, hardest).squeeze(2)

    warm, far = of_both(s / tau)
    if negatives == "logsumexp":
        far = torch.where(apart, s / tau, -torch.inf).logsumexp(2)
    of_positive, of_negative = of_both(penalty)
    return (far - warm + beta * (of_positive - of_negative)).sum(0).mean()


class MultiHeadProjector(Arguments, nn.Module):
    """Several projections of the same features: ``[..., dim] -> [heads, ..., out]``, rows on the unit sphere.

    Args:
        dim: width of the features, which is that of the hidden layers too.
        out: width of the embeddings.
        heads: number of projections.

    Example:
        >>> MultiHeadProjector(6, 4)(torch.ones(5, 6)).shape
        torch.Size([3, 5, 4])
    """

    def __init__(self, dim: int, out: int, heads: int = 3) -> None:
        super().__init__()
        check_number("dim", dim, low=1, integer=True)
        check_number("out", out, low=1, integer=True)
        check_number("heads", heads, low=1, integer=True)
        self.dim, self.out, self.heads = dim, out, heads
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, out)) for _ in range(heads)
        )

    def forward(self, features: F[Tensor, "*batch dim"]) -> F[Tensor, "heads *batch out"]:
        """Embeddings of every head, in float32 or wider."""
        check_tensor("features", features, floating=True)
        return unit_rows(torch.stack([projection(features) for projection in self.projections]))


class PairTemperature(Arguments, nn.Module):
    r"""A temperature of each pair of rows and each head, symmetric, within limits.

    .. math:: \tau_{ij} = \mathrm{low} + (\mathrm{high} - \mathrm{low})\, \sigma(\varphi(z_i)^\top \varphi(z_j))

    with a small network phi of each head.

    Args:
        out: width of the embeddings, which is that of phi's layers too.
        heads: number of heads.
        low, high: limits, 0 < low < high, which no temperature reaches. The publication's low is 1e-5; see
            :func:`multihead_contrastive_loss` for what stops a temperature from falling there.

    Example:
        >>> PairTemperature(4, heads=3)(torch.zeros(3, 5, 4)).shape
        torch.Size([3, 5, 5])
    """

    def __init__(self, out: int, heads: int = 3, low: float = 0.05, high: float = 2.0) -> None:
        super().__init__()
        check_number("out", out, low=1, integer=True)
        check_number("heads", heads, low=1, integer=True)
        check_number("low", low, low=0.0, open_low=True)
        check_number("high", high, low=low, open_low=True)
        self.out, self.heads, self.low, self.high = out, heads, low, high
        self.networks = nn.ModuleList(
            nn.Sequential(nn.Linear(out, out), nn.ReLU(), nn.Linear(out, out)) for _ in range(heads)
        )

    def forward(self, z: F[Tensor, "heads rows out"]) -> F[Tensor, "heads rows rows"]:
        """Temperatures of rows of both views together, in float32 or wider."""
        check_tensor("z", z, floating=True, shape=(self.heads, None, self.out))
        phi = widen(torch.stack([network(rows) for network, rows in zip(self.networks, z)]))
        products = phi @ phi.mT
        tau = self.low + (self.high - self.low) * ((products + products.mT) / 2).sigmoid()
        ends = torch.tensor([self.low, self.high], dtype=tau.dtype, device=tau.device)
        least, most = torch.nextafter(ends, ends.flip(0)).unbind()
        return torch.minimum(torch.maximum(tau, least), most)


class AdaptiveMultiHeadContrastiveLoss(Loss):
    """See :func:`multihead_contrastive_loss`. Embeddings and temperatures are those of two modules of the model.

    Args:
        beta: >= 0.
        d_eff: the dimension in Omega, > 0; None for that of the embeddings.
        negatives: "max" or "logsumexp".

    Example:
        >>> projector, temperature = MultiHeadProjector(6, 4), PairTemperature(4)
        >>> z1, z2 = projector(torch.randn(2, 5, 6)).unbind(1)
        >>> tau = temperature(torch.cat([z1, z2], 1))
        >>> AdaptiveMultiHeadContrastiveLoss(d_eff=2.0)(z1, z2, tau).shape
        torch.Size([])
    """

    name = "adaptive_multihead_contrastive"
    differentiable = (0, 1, 2)

    def __init__(self, beta: float = 0.1, d_eff: float | None = None, negatives: str = "max") -> None:
        super().__init__()
        check_number("beta", beta, low=0.0)
        if d_eff is not None:
            check_number("d_eff", d_eff, low=0.0, open_low=True)
        check_choice("negatives", negatives, NEGATIVES)
        self.beta, self.d_eff, self.negatives = beta, d_eff, negatives

    def forward(
        self, z1: F[Tensor, "heads batch width"], z2: F[Tensor, "heads batch width"], tau: F[Tensor, "heads rows rows"]
    ) -> F[Tensor, ""]:
        """The loss of two views and temperatures of all pairs of their rows."""
        return multihead_contrastive_loss(z1, z2, tau, beta=self.beta, d_eff=self.d_eff, negatives=self.negatives)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Two heads, both kinds of negatives; one item."""

        def drawn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

        named: dict[str, Any] = {}
        cases = []
        for loss, items in ((cls(), 4), (cls(0.3, 2.0, "logsumexp"), 4), (cls(), 1)):
            z = drawn(2, 2, items, 3)
            tau = 0.2 + drawn(2, 2 * items, 2 * items).sigmoid()
            cases.append((loss.to(device), ((z[0], z[1], tau), named)))
        return cases
