"""The Mann-Whitney loss: a smooth bound of 1 - AUC over all pairs of positive and negative scores of a batch."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as nnf
from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import check_binary, check_choice, check_index, check_logits, check_number, check_tensor, refuse
from ...core.logpartition import class_mask
from ...core.loss import Sample
from ...core.objective import Objective
from ...core.reductions import widen
from ...core.search import Float
from ...core.transforms import by_hand, plain_gradients

SCOPES = ("batch", "query")
PAIRS = 1 << 20
"""So many pairs are looked at at a time."""


def mann_whitney_loss(
    scores: F[Tensor, "queries candidates"],
    positives: Tensor | None = None,
    *,
    scope: str = "batch",
    temperature: float = 1.0,
) -> Tensor:
    r"""Logistic losses of every positive score against every negative one, also of other queries.

    .. math:: L = \frac{1}{|P|\,|N|} \sum_{p \in P} \sum_{n \in N} \log\big(1 + e^{-(p - n) / T}\big)

    L / log 2 at T = 1 is at least 1 - AUC of the pooled scores. One constant on all scores changes nothing; a constant
    on the row of a query does, unlike in the contrastive loss, so one threshold can serve all queries.

    Args:
        scores: S ``[B, C]``, a query's candidates in a row.
        positives: None: the diagonal, C >= B; the column of each row's positive ``[B]``; or a boolean mask ``[B, C]``.
        scope: ``"batch"``: negatives of all rows; ``"query"``: of the row alone, a mean over pairs of a row and then
            over rows that have any, which bounds only the mean of rows.
        temperature: T > 0.

    Returns:
        The loss in float32 or wider; 0 with a graph where there is no pair.

    Raises:
        ValueError: wrong shapes, a column out of range, an unknown scope, T not above 0.

    Example:
        >>> mann_whitney_loss(torch.tensor([[2.0, 1.0, 0.0], [0.5, 1.5, -0.5], [1.0, 0.2, 0.8]]))
        tensor(0.3454)

    Source: Optimizing What Matters: AUC-Driven Learning for Robust Neural Retrieval, arXiv:2510.00137.
    """
    check_choice("scope", scope, SCOPES)
    check_number("temperature", temperature, low=0.0, open_low=True, open_high=True)
    check_logits(scores, argument="scores")
    scores = widen(scores)
    mask, own = _positives(scores, positives)
    if scope == "query":
        return _of_rows(scores, mask, own, temperature)
    if by_hand(scores):
        return _mean_of_pairs(own if own is not None else scores[mask], scores[~mask], temperature)
    high, there = (own, torch.ones_like(own, dtype=torch.bool)) if own is not None else (scores, mask)
    return _masked_mean(high.flatten(), scores.flatten(), there.flatten(), ~mask.flatten(), temperature)


def mann_whitney_loss_flat(
    pos: F[Tensor, " positives"], neg: F[Tensor, " negatives"], *, temperature: float = 1.0
) -> Tensor:
    """:func:`mann_whitney_loss` of positive and negative scores that are already apart.

    Pairs are looked at in pieces, in which the gradient is summed too: memory is that of the scores.

    Args:
        pos: p ``[P]``.
        neg: n ``[M]``.
        temperature: T > 0.

    Returns:
        The loss in float32 or wider; 0 with a graph where there is no pair.

    Raises:
        ValueError: wrong shapes, T not above 0.

    Example:
        >>> mann_whitney_loss_flat(torch.tensor([2.0, 0.5]), torch.tensor([1.0, 0.0, -1.0]))
        tensor(0.3564)
    """
    check_tensor("pos", pos, ndim=1, floating=True)
    check_tensor("neg", neg, ndim=1, floating=True)
    check_number("temperature", temperature, low=0.0, open_low=True, open_high=True)
    return _mean_of_pairs(widen(pos), widen(neg), temperature)


def area_over_curve(pos: F[Tensor, " positives"], neg: F[Tensor, " negatives"]) -> Tensor:
    """1 - AUC: the share of pairs whose positive is not above the negative; equal scores count a half. NaN of none.

    Args:
        pos: ``[P]``.
        neg: ``[M]``.

    Raises:
        ValueError: wrong shapes.

    Example:
        >>> area_over_curve(torch.tensor([2.0, 0.5]), torch.tensor([1.0, 0.0, -1.0]))
        tensor(0.1667, dtype=torch.float64)
    """
    check_tensor("pos", pos, ndim=1, floating=True)
    check_tensor("neg", neg, ndim=1, floating=True)
    ordered = neg.detach().to(torch.promote_types(pos.dtype, neg.dtype)).sort().values
    high = pos.detach().to(ordered.dtype)
    below = torch.searchsorted(ordered, high) + torch.searchsorted(ordered, high, right=True)
    area = 1 - 0.5 * below.double().mean() / ordered.shape[0]
    return torch.where(high.isnan().any() | ordered.isnan().any(), torch.nan, area)


def _positives(scores: Tensor, positives: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The mask of positives ``[B, C]``, and their scores ``[B]`` where each row has one."""
    rows, columns = scores.shape
    if positives is None:
        if columns < rows:
            refuse("scores", "at least as many candidates as queries, the positives on the diagonal", scores)
        positives = torch.arange(rows, device=scores.device)
    check_tensor("positives", positives, ndim=(1, 2))
    if positives.ndim == 2:
        check_tensor("positives", positives, shape=(rows, columns))
        check_binary(positives, scores, argument="positives")
        return positives == 1, None
    check_index(positives, scores, argument="positives")
    return class_mask(positives, columns), scores.gather(1, positives.long().unsqueeze(1)).squeeze(1)


def _of_rows(scores: Tensor, mask: Tensor, own: Tensor | None, temperature: float) -> Tensor:
    """The mean over rows of the mean over the pairs of a row."""
    if own is not None:
        losses, pairs = nnf.softplus((scores - own.unsqueeze(1)) / temperature, threshold=40.0), ~mask
    else:
        losses = nnf.softplus((scores.unsqueeze(1) - scores.unsqueeze(2)) / temperature, threshold=40.0).flatten(1)
        pairs = (mask.unsqueeze(2) & ~mask.unsqueeze(1)).flatten(1)
    count = pairs.sum(1)
    means = torch.where(pairs, losses, 0.0).sum(1) / count.clamp_min(1)
    return means.sum() / (count > 0).sum().clamp_min(1)


def _masked_mean(high: Tensor, low: Tensor, is_high: Tensor, is_low: Tensor, temperature: float) -> Tensor:
    """The mean over all pairs at once, of vectors in which only some entries are what they are called."""
    losses = nnf.softplus((low - high.unsqueeze(1)) / temperature, threshold=40.0)
    count = is_high.sum() * is_low.sum()
    return torch.where(is_high.unsqueeze(1) & is_low, losses, 0.0).sum() / count.clamp_min(1)


def _all(high: Tensor, low: Tensor, temperature: float) -> Tensor:
    return _masked_mean(
        high, low, torch.ones_like(high, dtype=torch.bool), torch.ones_like(low, dtype=torch.bool), temperature
    )


def _mean_of_pairs(high: Tensor, low: Tensor, temperature: float) -> Tensor:
    if not high.numel() or not low.numel() or not by_hand(high, low) or torch.is_inference_mode_enabled():
        return _all(high, low, temperature)
    dtype = torch.promote_types(high.dtype, low.dtype)
    value: Tensor = _Pairs.apply(high.to(dtype), low.to(dtype), temperature)
    return value


class _Pairs(torch.autograd.Function):
    """The mean over pairs in pieces, with the gradient in the same pass."""

    @staticmethod
    def forward(ctx: Any, high: Tensor, low: Tensor, temperature: float) -> Tensor:
        ctx.temperature = temperature
        ctx.save_for_backward(high, low)
        wanted = any(ctx.needs_input_grad[:2])
        p, n = high.detach() / temperature, low.detach() / temperature
        total = p.new_zeros((), dtype=torch.float64)
        slope_p, slope_n = (torch.zeros_like(t, dtype=torch.float64) for t in (p, n))
        rows = max(1, PAIRS // n.shape[0])
        width = min(n.shape[0], PAIRS)
        for start in range(0, p.shape[0], rows):
            own = slice(start, start + rows)
            for first in range(0, n.shape[0], width):
                others = slice(first, first + width)
                gap = n[others] - p[own].unsqueeze(1)
                total += nnf.softplus(gap, threshold=40.0).sum()
                if wanted:
                    gap.sigmoid_()
                    slope_p[own] -= gap.sum(1)
                    slope_n[others] += gap.sum(0)
        count = p.shape[0] * n.shape[0]
        ctx.slopes = [(slope / (count * temperature)).to(high.dtype) for slope in (slope_p, slope_n)]
        return (total / count).to(high.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        high, low = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody differentiates the gradient
            needs = ctx.needs_input_grad[:2]
            own = plain_gradients(lambda p, n: _all(p, n, ctx.temperature), (high, low), needs, upstream)
            return own[0], own[1], None
        slope_p, slope_n = ctx.slopes
        return upstream * slope_p, upstream * slope_n, None


class MannWhitneyLoss(Objective):
    r"""The Mann-Whitney loss as a module: of flat scores and labels, or of a matrix of queries and candidates.

    A batch without one of the two classes has no pair: 0 with a graph. Of several ranks each has the pairs of its own
    batch.

    Args:
        scope: ``"batch"`` or ``"query"`` (of matrices: negatives of the same row alone); flat scores are one query.
        temperature: T > 0.

    Example:
        >>> MannWhitneyLoss()(torch.tensor([2.0, 0.5, 1.0, 0.0, -1.0]), torch.tensor([1, 1, 0, 0, 0]))
        tensor(0.3564)
        >>> MannWhitneyLoss()(torch.tensor([[2.0, 1.0, 0.0], [0.5, 1.5, -0.5], [1.0, 0.2, 0.8]]))
        tensor(0.3454)
    """

    name = "mann_whitney"
    tasks = ("binary", "retrieval")
    domain = "score"
    targets = ("index",)
    unit = "batch"
    search = {"temperature": Float(0.1, 10.0, log=True)}

    def __init__(self, scope: str = "batch", temperature: float = 1.0) -> None:
        super().__init__("mean")
        check_choice("scope", scope, SCOPES)
        check_number("temperature", temperature, low=0.0, open_low=True, open_high=True)
        self.scope, self.temperature = scope, temperature

    def forward(  # type: ignore[override]
        self, outputs: Tensor, target: Tensor | None = None, *, weight: Tensor | None = None
    ) -> Tensor:
        """The loss of scores ``[N]`` and labels ``[N]`` in {0, 1}, or of a matrix ``[B, C]`` and its positives."""
        if target is None:
            check_tensor("outputs", outputs, ndim=2, floating=True)
        else:
            self.check_call(outputs, target, weight)
            check_tensor("outputs", outputs, ndim=(1, 2))
        if outputs.ndim == 2:
            return mann_whitney_loss(outputs, target, scope=self.scope, temperature=self.temperature)
        assert target is not None
        check_binary(target, outputs)
        scores, high = widen(outputs), target == 1
        if by_hand(scores):
            return _mean_of_pairs(scores[high], scores[~high], self.temperature)
        return _masked_mean(scores, scores, high, ~high, self.temperature)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Flat scores with labels, and a matrix with the column of each row's positive, in both scopes."""

        def scores(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

        flat: Sample = (scores(8), torch.tensor([1, 0, 0, 1, 0, 1, 0, 0], device=device)), {}
        matrix: Sample = (scores(4, 5), torch.tensor([0, 3, 2, 2], device=device)), {}
        return [(cls(), flat), (cls(temperature=0.5), matrix), (cls("query"), matrix)]
