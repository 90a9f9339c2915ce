"""Ranking losses for sequence models that read a query with a document, and the heads that give one score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as nnf
from jaxtyping import Bool
from jaxtyping import Float as F
from torch import Tensor, nn

from ...core.checks import (
    check_choice,
    check_flag,
    check_number,
    check_tensor,
    option_of,
    refuse,
    refuse_type,
    values_visible,
)
from ...core.list_loss import ListLoss
from ...core.query_lists import check_lists, reduce_lists
from ...core.search import Choice, Float
from ._pairs import logistic_pairs, ordered_pairs, sum_of_pairs

KINDS = ("softmax", "poly1", "pairwise", "pointwise")
POOLS = ("first", "mean")


def ranking_loss(
    scores: F[Tensor, "lists documents"],
    grades: F[Tensor, "lists documents"],
    *,
    mask: Bool[Tensor, "lists documents"] | None = None,
    kind: str = "softmax",
    epsilon: float | None = None,
    mean_pairs: bool = False,
    reduction: str = "mean",
) -> Tensor:
    r"""The ranking losses of RankT5 over a query's candidates, with p = softmax(s).

    - ``"softmax"``: :math:`-\sum_j y_j \log p_j`;
    - ``"poly1"``: the same plus :math:`\epsilon \sum_j y_j (1 - p_j)`;
    - ``"pairwise"``: :math:`\sum_{y_j > y_k} \log(1 + e^{s_k - s_j})`;
    - ``"pointwise"``: binary cross-entropy of sigmoid(s_j) against y_j > 0, summed over candidates.

    Grades are used as they are, not as shares that sum to 1.

    Args:
        scores: s ``[Q, n]``.
        grades: y ``[Q, n]`` >= 0.
        mask: boolean ``[Q, n]``, True where there is a candidate, at least one a list; None: everywhere.
        kind: of the loss.
        epsilon: factor of the second term of ``"poly1"``; None: 1.
        mean_pairs: with ``"pairwise"``, the mean over pairs in place of the sum.
        reduction: ``"none"`` (one number a list), ``"mean"`` over all lists or ``"sum"``; a list without a grade above
            0 is 0 and counts, except with ``"pointwise"``, which has a loss for it.

    Returns:
        The loss in float32 or wider.

    Raises:
        ValueError: wrong shapes, negative grades, a list without a candidate, an unknown kind.

    Example:
        >>> ranking_loss(torch.tensor([[1.0, 0.2, -0.5]]), torch.tensor([[1.0, 0.0, 0.0]]))
        tensor(0.5143)

    Source: RankT5: Fine-Tuning T5 for Text Ranking with Ranking Losses, arXiv:2210.10634.
    """
    check_choice("kind", kind, KINDS)
    epsilon = option_of("epsilon", epsilon, 1.0, applies=kind == "poly1", only='kind="poly1"')
    check_flag("mean_pairs", mean_pairs)
    if mean_pairs and kind != "pairwise":
        refuse("mean_pairs", 'False unless kind="pairwise"', mean_pairs)
    scores, grades, mask = check_lists(scores, grades, mask)
    if mask.numel() and values_visible(mask) and not bool(mask.any(-1).all()):
        refuse("mask", "a candidate in every list", mask)
    return reduce_lists(_losses(scores, grades, mask, kind, epsilon, mean_pairs), mask.any(-1), reduction)


def _losses(scores: Tensor, grades: Tensor, mask: Tensor, kind: str, epsilon: float, mean_pairs: bool) -> Tensor:
    """Losses ``[Q]``; a list without a candidate is 0."""
    if kind == "pairwise":
        return sum_of_pairs(logistic_pairs(scores), ordered_pairs(grades, mask), None, mean_pairs)
    if kind == "pointwise":
        entropy = nnf.binary_cross_entropy_with_logits(scores, (grades > 0).to(scores.dtype), reduction="none")
        return torch.where(mask, entropy, 0.0).sum(-1)
    log_p = torch.where(mask, scores, torch.finfo(scores.dtype).min).log_softmax(-1)
    cells = -log_p if kind == "softmax" else -log_p - epsilon * torch.expm1(log_p)
    return torch.where(mask & (grades > 0), grades * cells, 0.0).sum(-1)


class _Candidates(ListLoss):
    """What the four share: every list counts."""

    uses_ties = True
    kind = ""

    def counts(self, grades: Tensor, mask: Tensor) -> Tensor:
        return mask.any(-1)

    def list_losses(self, scores: Tensor, grades: Tensor, mask: Tensor) -> Tensor:
        """Losses ``[Q]``."""
        scores, grades, mask = check_lists(scores, grades, mask)
        epsilon, mean_pairs = getattr(self, "epsilon", 1.0), getattr(self, "mean_pairs", False)
        return _losses(scores, grades, mask, self.kind, epsilon, mean_pairs)


class ListwiseSoftmaxLoss(_Candidates):
    """The listwise softmax loss as a module over flat scores; see :func:`ranking_loss`.

    Example:
        >>> scores, grades = torch.tensor([1.0, 0.2, -0.5]), torch.tensor([1.0, 0.0, 0.0])
        >>> ListwiseSoftmaxLoss()(scores, grades, query=torch.zeros(3, dtype=torch.long))
        tensor(0.5143)
    """

    name = "listwise_softmax"
    kind = "softmax"


class Poly1SoftmaxLoss(_Candidates):
    """The listwise softmax loss with the first term of its expansion in 1 - p; see :func:`ranking_loss`.

    Args:
        epsilon: factor of that term; 0 is the softmax loss.

    Example:
        >>> scores, grades = torch.tensor([1.0, 0.2, -0.5]), torch.tensor([1.0, 0.0, 0.0])
        >>> Poly1SoftmaxLoss()(scores, grades, query=torch.zeros(3, dtype=torch.long))
        tensor(0.9164)
    """

    name = "poly1_softmax"
    kind = "poly1"
    alternatives = {"epsilon": 0.5}
    search = {"epsilon": Float(0.1, 4.0, log=True)}

    def __init__(self, epsilon: float = 1.0) -> None:
        super().__init__()
        check_number("epsilon", epsilon)
        self.epsilon = epsilon


class PairwiseLogisticLoss(_Candidates):
    """Logistic losses of all pairs of different grades; see :func:`ranking_loss`.

    Args:
        mean_pairs: the mean over the pairs of a list in place of their sum.

    Example:
        >>> scores, grades = torch.tensor([1.0, 0.2, -0.5]), torch.tensor([1.0, 0.0, 0.0])
        >>> PairwiseLogisticLoss()(scores, grades, query=torch.zeros(3, dtype=torch.long))
        tensor(0.5725)
    """

    name = "pairwise_logistic"
    kind = "pairwise"
    alternatives = {"mean_pairs": True}
    search = {"mean_pairs": Choice((False, True))}

    def __init__(self, mean_pairs: bool = False) -> None:
        super().__init__()
        check_flag("mean_pairs", mean_pairs)
        self.mean_pairs = mean_pairs


class PointwiseLogisticLoss(_Candidates):
    """Binary cross-entropy of every candidate by itself, the loss of a classifier; see :func:`ranking_loss`.

    Example:
        >>> scores, grades = torch.tensor([1.0, 0.2, -0.5]), torch.tensor([1.0, 0.0, 0.0])
        >>> PointwiseLogisticLoss()(scores, grades, query=torch.zeros(3, dtype=torch.long))
        tensor(1.5855)
    """

    name = "pointwise_logistic"
    kind = "pointwise"
    shift_invariant = False


class FirstTokenHead(nn.Module):
    """The score of an encoder: a linear layer on its first token, or on the mean of its tokens.

    Args:
        dim: width D of the tokens, >= 1.
        pool: ``"first"`` or ``"mean"``.

    Example:
        >>> FirstTokenHead(4)(torch.zeros(2, 3, 4)).shape
        torch.Size([2])
    """

    def __init__(self, dim: int, pool: str = "first") -> None:
        super().__init__()
        check_number("dim", dim, low=1, integer=True)
        check_choice("pool", pool, POOLS)
        self.pool = pool
        self.dense = nn.Linear(dim, 1)

    def forward(
        self, tokens: F[Tensor, "batch length dim"], mask: Bool[Tensor, "batch length"] | None = None
    ) -> F[Tensor, " batch"]:
        """Scores ``[B]`` of tokens ``[B, T, D]``; ``mask`` ``[B, T]`` is True where there is a token."""
        check_tensor("tokens", tokens, ndim=3, floating=True)
        if mask is not None:
            check_tensor("mask", mask, shape=tuple(tokens.shape[:2]), floating=False)
            mask = mask != 0
        if self.pool == "first":
            first = 0 if mask is None else mask.long().argmax(1)  # the first that is there
            pooled = tokens[torch.arange(len(tokens), device=tokens.device), first]
        elif mask is None:
            pooled = tokens.mean(1)
        else:
            count = mask.sum(1, keepdim=True).clamp_min(1)
            pooled = torch.where(mask.unsqueeze(-1), tokens, 0.0).sum(1) / count
        score: Tensor = self.dense(pooled)
        return score.squeeze(-1)


class VocabularyTokenHead(nn.Module):
    """The score of an encoder-decoder: the logit of one reserved token at the first step of the decoder.

    Args:
        lm_head: the model's output layer with a ``weight`` ``[V, D]``, which is shared and not copied, and maybe a
            ``bias``.
        token_id: of the reserved token, in 0..V-1.

    Example:
        >>> VocabularyTokenHead(nn.Linear(4, 9), token_id=7)(torch.zeros(2, 1, 4)).shape
        torch.Size([2])
    """

    def __init__(self, lm_head: nn.Module, token_id: int) -> None:
        super().__init__()
        weight = getattr(lm_head, "weight", None)
        if not isinstance(weight, Tensor):
            refuse_type("lm_head", "a module with a weight [V, D]", lm_head)
        check_number("token_id", token_id, low=0, high=weight.shape[0] - 1, integer=True)
        self.lm_head, self.token_id = lm_head, token_id

    def forward(self, decoded: F[Tensor, "batch length dim"]) -> F[Tensor, " batch"]:
        """Scores ``[B]`` of decoder outputs ``[B, T, D]``: no other logit is formed."""
        check_tensor("decoded", decoded, ndim=3, floating=True)
        weight: Tensor = self.lm_head.weight  # type: ignore[assignment]
        bias: Tensor | None = getattr(self.lm_head, "bias", None)
        score = decoded[:, 0] @ weight[self.token_id]
        return score if bias is None else score + bias[self.token_id]


class SequenceRanker(nn.Module):
    """A sequence model with a head that reads one score from what it gives.

    Args:
        model: inputs to hidden states ``[B, T, D]``, or to an object that has them as ``last_hidden_state``.
        head: :class:`FirstTokenHead`, :class:`VocabularyTokenHead` or another map of hidden states to ``[B]``.

    Example:
        >>> ranker = SequenceRanker(nn.Embedding(9, 4), FirstTokenHead(4))
        >>> ranker(torch.zeros(2, 3, dtype=torch.long)).shape
        torch.Size([2])
    """

    def __init__(self, model: Callable[..., Any], head: nn.Module) -> None:
        super().__init__()
        self.model, self.head = model, head

    def forward(self, *inputs: Any, **named: Any) -> F[Tensor, " batch"]:
        """Scores ``[B]``; all arguments go to the model, ``attention_mask`` also to a :class:`FirstTokenHead`."""
        hidden = self.model(*inputs, **named)
        hidden = getattr(hidden, "last_hidden_state", hidden)
        mask = named.get("attention_mask") if isinstance(self.head, FirstTokenHead) else None
        score: Tensor = self.head(hidden) if mask is None else self.head(hidden, mask)
        return score
