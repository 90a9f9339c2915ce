"""Earth mover's distance between predicted and true tokens, where moving to a similar token costs little."""

from __future__ import annotations

from typing import Any, Self

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor
from torch.nn.functional import normalize

from ...core.checks import check_choice, check_tensor, refuse, values_visible
from ...core.loss import Sample
from ...core.reductions import widen
from ...core.token_loss import TokenLoss
from ...core.token_reductions import aggregate_tokens
from ...core.transforms import concrete, without_autocast
from ...kernels.token_statistics import token_statistics

TINY = 1e-10
"""Added to the distance that the likelihood is divided by."""
TABLE = 2**24
"""Costs that are there at a time beside a head: so many rows of labels as fit."""


def demd(
    logits: F[Tensor, "*batch classes"],
    target: I[Tensor, "*batch"] | F[Tensor, "*batch classes"],
    cost_embedding: F[Tensor, "classes width"],
    *,
    ignore_index: int = -100,
) -> F[Tensor, "*batch"]:
    r"""Earth mover's distance from predicted tokens to the label, by the cosines of embeddings.

    .. math:: D = \sum_i q_i C_{iy}, \qquad C_{ij} = 1 - \cos(e_i, e_j), \qquad q = \mathrm{softmax}(z)

    For a label this is the exact distance; for a distribution p over tokens it is the mean cost
    :math:`\sum_{ij} p_i q_j C_{ij}` of moving independently, which bounds the distance from above. The gradient in z is
    :math:`q_i (C_{iy} - D)`. Costs of the labels that occur are formed alone, and the sum leaves out the label itself,
    so that nothing cancels where the model is certain.

    Args:
        logits: z ``[..., V]``.
        target: labels ``[...]`` aligned with them, or probabilities ``[..., V]``.
        cost_embedding: ``[V, H]``; rows of any length but 0, which get no gradient.
        ignore_index: labels that don't count.

    Returns:
        Distances ``[...]`` in [0, 2]; 0 where a label is ignored.

    Raises:
        ValueError: shapes that don't belong together, a row of zeros.

    Example:
        >>> e = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> demd(torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([0]), e)
        tensor([0.2711])

    Source: EMO: Earth Mover Distance Optimization for Auto-Regressive Language Modeling, arXiv:2310.04691.
    """
    unit = _unit(cost_embedding)
    check_tensor("logits", logits, floating=True)
    if not target.is_floating_point():
        return _statistics(logits, target, None, unit, ignore_index, {})[1]
    check_tensor("target", target, shape=tuple(logits.shape))
    p = widen(target.detach()).flatten(0, -2)
    labels = p.argmax(-1)
    which = torch.arange(len(labels), device=labels.device)
    with without_autocast(unit):
        costs = (1 - (p @ unit.to(p)) @ unit.to(p).T).clamp_min(0)
    of_tokens = token_statistics(logits.flatten(0, -2), labels, want=(), costs=(costs, which))
    assert of_tokens.cost is not None
    return of_tokens.cost.reshape(logits.shape[:-1])


def emo_loss(
    logits: F[Tensor, "batch tokens classes"],
    target: I[Tensor, "batch tokens"],
    cost_embedding: F[Tensor, "classes width"],
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """The loss of :class:`EMOLoss` as a function.

    Args:
        logits: ``[B, T, V]`` or ``[T, V]``.
        target: labels, aligned with them.
        cost_embedding: ``[V, H]``.
        ignore_index: labels that don't count.
        reduction: "none" ``[B, T]``, "mean" over tokens that count, or "sum".
    """
    check_choice("reduction", reduction, ("none", "mean", "sum"))
    losses, valid = _losses(logits, target, None, _unit(cost_embedding), ignore_index, {})
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return aggregate_tokens(losses.reshape(1, -1), valid.reshape(1, -1))


class EMOLoss(TokenLoss):
    r"""Cross-entropy whose gradient is half that of an earth mover's distance.

    .. math:: L = \tfrac12 \Big( \mathrm{sg}\Big[\frac{\ell}{D + 10^{-10}}\Big] D + \ell \Big), \qquad
        \ell = -\log q_y

    with the distance D of :func:`demd` and sg the gradient that is stopped. Its value is that of cross-entropy (half of
    it where D is 0); probability on tokens like the label is punished less.

    Args:
        cost_embedding: ``[V, H]``, for example the output embedding of a pretrained model: a copy is kept, and nothing
            that is trained.
        aggregation, length, ignore_index: see :class:`~steepest.core.token_loss.TokenLoss`.

    Raises:
        ValueError: a row of zeros, logits of another width.

    Example:
        >>> loss = EMOLoss(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        >>> z = torch.tensor([[[1.0, 0.0, -1.0]]], requires_grad=True)
        >>> value = loss(z, torch.tensor([[0]]))
        >>> value.item(), torch.autograd.grad(value, z)[0]
        (0.4076..., tensor([[[-0.3030,  0.2565,  0.0465]]]))

    Source: EMO: Earth Mover Distance Optimization for Auto-Regressive Language Modeling, arXiv:2310.04691.
    """

    name = "emo"
    gradient = "surrogate"

    directions: Tensor

    def __init__(
        self,
        cost_embedding: F[Tensor, "classes width"],
        *,
        aggregation: str | None = None,
        length: float | None = None,
        ignore_index: int = -100,
    ) -> None:
        super().__init__(aggregation=aggregation, length=length, ignore_index=ignore_index)
        self.register_buffer("directions", _unit(cost_embedding))

    def token_losses(
        self, source: Tensor, labels: Tensor, head: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        return _losses(source, labels, head, self.directions, self.ignore_index, options)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Seven tokens with embeddings of three numbers."""
        embedding = torch.randn(7, 3, generator=generator, dtype=torch.float64).to(device)
        return [(cls(embedding), (cls.sample_tokens(generator, dtype, device), {}))]


def _unit(cost_embedding: Tensor) -> Tensor:
    """Rows of length 1, a copy."""
    check_tensor("cost_embedding", cost_embedding, ndim=2, floating=True)
    rows = widen(cost_embedding.detach())
    largest = rows.abs().amax(1, keepdim=True)
    rows = rows / torch.where(largest > 0, largest, 1.0)  # squares neither overflow nor vanish
    if values_visible(rows) and not rows.square().sum(1).gt(0).all():
        refuse("cost_embedding", "rows that are not zero", f"zeros in row {int((rows == 0).all(1).int().argmax())}")
    return normalize(rows, dim=1, eps=torch.finfo(rows.dtype).tiny).clone()


def _losses(
    source: Tensor, labels: Tensor, head: Tensor | None, unit: Tensor, ignore_index: int, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Losses of tokens, and where they count."""
    log_p, distance, valid = _statistics(source, labels, head, unit, ignore_index, options)
    likelihood = -log_p
    ratio = (likelihood / (distance + TINY)).detach()
    return 0.5 * (ratio * distance + likelihood), valid


def _statistics(
    source: Tensor, labels: Tensor, head: Tensor | None, unit: Tensor, ignore_index: int, options: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the labels, distances to them, and where they count."""
    classes = source.shape[-1] if head is None else head.shape[0]
    if classes != len(unit):
        refuse("source" if head is None else "head", f"{len(unit)} classes, as cost_embedding", classes)
    check_tensor("labels", labels, shape=tuple(source.shape[:-1]), floating=False)

    valid = labels != ignore_index
    flat, own = source.flatten(0, -2), torch.where(valid, labels, 0).flatten()

    def of(rows: Tensor | slice, distinct: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        of_tokens = token_statistics(
            flat[rows], labels.flatten()[rows], head, want=("log_p",), costs=(_costs(distinct, unit), which),
            ignore_index=ignore_index, **options,
        )  # fmt: skip
        assert of_tokens.log_p is not None
        assert of_tokens.cost is not None
        return of_tokens.log_p, of_tokens.cost

    if not concrete(source, labels) or not labels.numel():  # a row of costs for each token
        log_p, distance = of(slice(None), own, torch.arange(len(own), device=own.device))
    else:
        distinct, which = own.unique(return_inverse=True)
        # logits that are there are no smaller than the costs of their labels
        at_a_time = len(distinct) if head is None else max(1, TABLE // classes)
        if len(distinct) <= at_a_time:
            log_p, distance = of(slice(None), distinct, which)
        else:
            order = which.argsort()
            ends = torch.bincount(which).cumsum(0)[at_a_time - 1 :: at_a_time].tolist()
            groups = order.tensor_split(ends)
            by_group = [
                of(rows, distinct[start : start + at_a_time], which[rows] - start)
                for start, rows in zip(range(0, len(distinct), at_a_time), groups)
            ]
            back = order.argsort()
            log_p, distance = (torch.cat(values)[back] for values in zip(*by_group))
    return log_p.reshape(labels.shape), distance.reshape(labels.shape), valid


def _costs(labels: Tensor, unit: Tensor) -> Tensor:
    """One minus the cosines of labels ``[U]`` with all tokens, 0 with itself: ``[U, V]``."""
    with without_autocast(unit):
        costs = torch.addmm(unit.new_ones(()), unit[labels], unit.T, alpha=-1.0).clamp_min_(0.0)
    return costs.scatter_(1, labels.unsqueeze(1), 0.0)
