"""Lists of documents, one a query: from flat scores to padded rows and back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .checks import check_choice, check_tensor, refuse, refuse_type, values_visible
from .reductions import REDUCTIONS, widen
from .transforms import eager, valueless


class QueryLists(NamedTuple):
    """Where each of N flat documents stands among Q lists of at most n.

    Attributes:
        place: of each document in the rows that are laid end to end, ``[N]``.
        mask: where rows have a document, ``[Q, n]``.
    """

    place: Tensor
    mask: Tensor

    def pad(self, values: Tensor) -> Tensor:
        """Flat values ``[N]`` as rows ``[Q, n]``, 0 where there is no document."""
        return values.new_zeros(self.mask.numel()).scatter(0, self.place, values).view(self.mask.shape)

    def flatten(self, rows: Tensor) -> Tensor:
        """Rows ``[Q, n]`` as flat values ``[N]``, in the order in which the documents came."""
        return rows.reshape(-1).gather(0, self.place)


def lists_of(query: Tensor) -> QueryLists:
    """Lists from the query of each document; rows are in the order of the numbers, documents in that of the batch.

    The two sizes are read once. Where no value may be read (``torch.compile``, ``vmap``, shapes alone) there are N
    rows of N, those that are too many without a document.

    Args:
        query: whole numbers ``[N]``, equal for the documents of one query; they need not stand together.

    Raises:
        TypeError: not integers.
        ValueError: another number of dimensions.

    >>> lists = lists_of(torch.tensor([7, 3, 7]))
    >>> lists.pad(torch.tensor([0.1, 0.2, 0.3]))
    tensor([[0.2000, 0.0000],
            [0.1000, 0.3000]])
    >>> lists.flatten(lists.pad(torch.tensor([0.1, 0.2, 0.3])))
    tensor([0.1000, 0.2000, 0.3000])
    """
    check_tensor("query", query, ndim=1, floating=False)
    count = query.shape[0]
    arranged, order = torch.sort(query, stable=True)
    position = torch.arange(count, device=query.device)
    first = torch.cat([torch.ones_like(arranged[:1], dtype=torch.bool), arranged[1:] != arranged[:-1]])
    row = first.long().cumsum(0) - 1
    within = position - torch.where(first, position, 0).cummax(0).values if count else position
    rows, width = _sizes(row, within, query)
    place = torch.zeros_like(order).scatter(0, order, row * width + within)
    mask = place.new_zeros(rows * width, dtype=torch.bool).scatter(0, place, torch.ones_like(place, dtype=torch.bool))
    return QueryLists(place, mask.view(rows, width))


def _sizes(row: Tensor, within: Tensor, query: Tensor) -> tuple[int, int]:
    """How many lists there are and how long the longest is; the number of documents where nobody may look."""
    if not query.shape[0]:
        return 0, 1
    if not eager() or valueless(query):
        return query.shape[0], query.shape[0]
    return int(row[-1]) + 1, int(within.max()) + 1


def mask_from_padding(grades: Tensor, padding: float = -1) -> Tensor:
    """Where grades are those of documents, of lists that were padded with a value.

    Args:
        grades: of any shape.
        padding: the value that stands where there is no document.

    >>> mask_from_padding(torch.tensor([[2.0, 0.0, -1.0]]))
    tensor([[ True,  True, False]])
    """
    check_tensor("grades", grades)
    return grades != padding


def check_lists(scores: Tensor, grades: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, grades and mask ``[Q, n]`` of padded lists, checked; what stands under the mask is 0.

    Args:
        scores: floating ``[Q, n]``.
        grades: ``[Q, n]``, >= 0 where there is a document.
        mask: True where there is one; None: everywhere.

    Returns:
        Scores in float32 or wider, grades in their type and without a gradient, and the mask.

    Raises:
        ValueError: other shapes, negative grades.
        TypeError: scores that are not floating, a mask that is not boolean.

    >>> check_lists(torch.zeros(1, 2), torch.tensor([[1, -1]]), None)
    Traceback (most recent call last):
    ValueError: grades: expected grades >= 0 (mask_from_padding makes a mask of padding), got -1.0
    """
    check_tensor("scores", scores, ndim=2, floating=True)
    check_tensor("grades", grades, shape=tuple(scores.shape))
    if mask is None:
        mask = torch.ones_like(scores, dtype=torch.bool)
    else:
        check_tensor("mask", mask, shape=tuple(scores.shape))
        if mask.dtype != torch.bool:
            refuse_type("mask", "a boolean tensor", mask)
    scores = torch.where(mask, widen(scores), 0.0)
    grades = torch.where(mask, grades.detach().to(scores.dtype), 0.0)
    if grades.numel() and values_visible(grades) and bool((grades < 0).any()):
        refuse("grades", "grades >= 0 (mask_from_padding makes a mask of padding)", float(grades.min()))
    return scores, grades, mask


def has_order(grades: Tensor, mask: Tensor) -> Tensor:
    """Whether a list has two documents of different grades, ``[Q]``: only then do grades order anything.

    >>> has_order(torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]), torch.tensor([[True, True, False], [True] * 3]))
    tensor([False,  True])
    """
    if not grades.shape[1]:
        return mask.any(-1)
    high = torch.where(mask, grades, -torch.inf).amax(-1)
    low = torch.where(mask, grades, torch.inf).amin(-1)
    return ~(high <= low)  # a grade that is not a number is not passed over


def reduce_lists(losses: Tensor, counted: Tensor, reduction: str = "mean") -> Tensor:
    """Reduce losses of lists ``[Q]`` over those that count; those that don't are 0, and none at all gives 0.

    >>> reduce_lists(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False]))
    tensor(2.)
    """
    check_choice("reduction", reduction, REDUCTIONS)
    losses = torch.where(counted, losses, 0.0)
    if reduction == "none":
        return losses
    total = losses.sum()
    return total if reduction == "sum" else total / counted.sum().clamp_min(1)


def gains_of(grades: Tensor, powered: bool = True) -> Tensor:
    """The gain of each document: 2^y - 1, or y itself.

    >>> gains_of(torch.tensor([0.0, 1.0, 3.0]))
    tensor([0., 1., 7.])
    """
    return torch.exp2(grades) - 1 if powered else grades


def discounts_of(like: Tensor, k: int | None = None) -> Tensor:
    """1 / log2(r + 1) of the ranks r = 1..n of rows like ``[..., n]``, 0 beyond rank k.

    >>> discounts_of(torch.zeros(1, 3), k=2)
    tensor([1.0000, 0.6309, 0.0000])
    """
    rank = torch.arange(1, like.shape[-1] + 1, device=like.device)
    discount = torch.log2(rank.to(like.dtype) + 1).reciprocal()
    return discount if k is None else torch.where(rank <= k, discount, 0.0)


def ideal_dcg(gains: Tensor, k: int | None = None) -> Tensor:
    """The largest discounted gain of each list ``[Q]``: of gains ``[Q, n]`` in order, 0 where there is no document.

    >>> ideal_dcg(torch.tensor([[0.0, 3.0, 1.0]]))
    tensor([3.6309])
    """
    return (gains.sort(-1, descending=True).values * discounts_of(gains, k)).sum(-1)
