"""Triplets of a batch: an anchor, a row of its label, a row of another; which of them are taken, and their mean."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool as B
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from .checks import check_choice, check_flag, check_number, check_tensor, refuse
from .distances import distances
from .reductions import widen

MINING = ("hard", "semi_hard", "easy_positive", "all")
AVERAGE = ("violating", "all")


class TripletMean(NamedTuple):
    """The mean loss of triplets, and what they say of the batch.

    Attributes:
        loss: scalar.
        violating: the share of the triplets that are taken whose hinge is above 0, without a gradient.
        mean_distance: over all pairs of different rows, without a gradient.
    """

    loss: Tensor
    violating: Tensor
    mean_distance: Tensor


def check_triplets(margin: float | None, mining: str, squared: bool, soft: bool, average: str) -> float:
    """Check the options of :func:`triplet_mean`; gives the margin.

    >>> check_triplets(None, "hard", False, False, "all")
    0.2
    """
    check_choice("mining", mining, MINING)
    check_flag("squared", squared)
    check_flag("soft", soft)
    check_choice("average", average, AVERAGE)
    if soft and mining == "all":
        refuse("soft", "False with mining 'all', whose sum goes over sorted distances", soft)
    if soft and average == "violating":
        refuse("average", "'all' where losses are soft, of which none is 0", average)
    if margin is None:
        return 0.0 if soft else 0.2
    check_number("margin", margin, low=0.0)
    return float(margin)


def check_rows(embeddings: Tensor, labels: Tensor) -> None:
    """Check embeddings ``[B, d]`` and labels ``[B]``."""
    check_tensor("embeddings", embeddings, ndim=2, floating=True)
    check_tensor("labels", labels, floating=False, shape=tuple(embeddings.shape[:1]))


def pair_masks(labels: I[Tensor, " rows"]) -> tuple[B[Tensor, "rows rows"], B[Tensor, "rows rows"]]:
    """Which pairs are different rows of one label, and which are of two.

    >>> pair_masks(torch.tensor([0, 0, 1]))[0].long()
    tensor([[0, 1, 0],
            [1, 0, 0],
            [0, 0, 0]])
    """
    same = labels.unsqueeze(1) == labels
    place = torch.arange(len(labels), device=labels.device)
    return same & (place.unsqueeze(1) != place), ~same


def hardest(
    d: F[Tensor, "rows rows"], labels: I[Tensor, " rows"]
) -> tuple[F[Tensor, " rows"], F[Tensor, " rows"], B[Tensor, " rows"]]:
    """Of each anchor the farthest positive, the nearest negative, and whether it has both.

    Args:
        d: distances, at least one row.
        labels: of the rows.

    >>> hardest(torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 3.0], [2.0, 3.0, 0.0]]), torch.tensor([0, 0, 1]))
    (tensor([1., 1., -inf]), tensor([2., 3., 2.]), tensor([ True,  True, False]))
    """
    positive, negative = pair_masks(labels)
    far = d.masked_fill(~positive, -torch.inf).amax(1)
    near = d.masked_fill(~negative, torch.inf).amin(1)
    return far, near, positive.any(1) & negative.any(1)


def triplet_mean(
    rows: F[Tensor, "rows width"],
    labels: I[Tensor, " rows"],
    *,
    margin: float,
    mining: str,
    squared: bool = False,
    soft: bool = False,
    average: str = "all",
) -> TripletMean:
    r"""The mean of hinges :math:`\max(0, d_{ap} - d_{an} + m)` over triplets of Euclidean distances.

    ``"hard"`` takes of each anchor the farthest positive and the nearest negative; ``"semi_hard"`` of each pair of one
    label the nearest negative that is farther than the positive, else the farthest; ``"easy_positive"`` of each anchor
    the nearest positive and the nearest negative that is farther; ``"all"`` every triplet. Negatives of an anchor are
    sorted once, so that no cube of triplets is formed.

    Args:
        rows: ``[B, d]``.
        labels: ``[B]``.
        margin: m >= 0.
        mining: one of these.
        squared: squared distances.
        soft: :math:`\log(1 + e^{d_{ap} - d_{an} + m})` in place of the hinge, not with ``"all"``.
        average: over ``"all"`` triplets that are taken, or those whose hinge is above 0 (``"violating"``).

    Returns:
        0 with a graph where there is no triplet.

    Example:
        >>> z, y = torch.tensor([[0.0], [1.0], [1.5], [5.0]]), torch.tensor([0, 0, 1, 1])
        >>> triplet_mean(z, y, margin=1.0, mining="all").loss
        tensor(1.1875)
    """
    rows = widen(rows)
    if not len(labels):
        nothing = rows.sum()
        return TripletMean(nothing, nothing.detach(), nothing.detach())
    d = distances(rows, rows)
    number = len(labels) * (len(labels) - 1)
    mean_distance = d.detach().sum() / max(number, 1)
    d = d * d if squared else d
    positive, negative = pair_masks(labels)
    # what is compared with a number that is none is passed over
    lost = (negative & d.detach().isnan()).any(1, keepdim=True)
    if mining == "all":
        total, violating, count = _sums_of_all(d.masked_fill(lost & positive, torch.nan), positive, negative, margin)
    else:
        gaps, taken = _mined(d, labels, positive, negative, lost, mining)
        gaps = torch.where(taken, gaps, 0.0) + margin
        losses = torch.where(taken, torch.nn.functional.softplus(gaps) if soft else gaps.relu(), 0.0)
        total, count = losses.sum(), taken.sum()
        violating = (taken & (gaps.detach() > 0)).sum()
    below = violating if average == "violating" else count
    share = violating / count.clamp_min(1)
    return TripletMean(total / below.clamp_min(1), share, mean_distance)


def _mined(
    d: Tensor, labels: Tensor, positive: Tensor, negative: Tensor, lost: Tensor, mining: str
) -> tuple[Tensor, Tensor]:
    """d_ap - d_an, and which of them are triplets: of anchors ``[B]`` or of pairs ``[B, B]``."""
    if mining == "hard":
        far, near, taken = hardest(d, labels)
        return far - near, taken
    if mining == "easy_positive":
        easy = d.masked_fill(~positive, torch.inf).amin(1)
        farther = negative & (d.detach() > easy.detach().unsqueeze(1))
        near = d.masked_fill(~farther, torch.inf).amin(1)
        lost = lost.squeeze(1) | easy.detach().isnan()
        return (easy - near).masked_fill(lost, torch.nan), positive.any(1) & (farther.any(1) | lost)
    ordered = d.masked_fill(~negative, torch.inf).sort(1).values
    count = negative.sum(1, keepdim=True)
    place = torch.searchsorted(ordered.detach(), d.detach().contiguous(), right=True)
    place = torch.where(place < count, place, (count - 1).clamp_min(0))
    gaps = d - ordered.gather(1, place)
    return gaps.masked_fill(lost, torch.nan), positive & (count > 0)


def _sums_of_all(d: Tensor, positive: Tensor, negative: Tensor, margin: float) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of the hinges of all triplets, how many are above 0, how many there are."""
    ordered = d.masked_fill(~negative, torch.inf).sort(1).values
    edges = (d + margin).detach()
    place = torch.searchsorted(ordered.detach(), edges)  # so many negatives lie nearer than the positive and the margin
    place = torch.minimum(place, negative.sum(1, keepdim=True))
    sums = torch.nn.functional.pad(ordered.masked_fill(ordered == torch.inf, 0.0).cumsum(1), (1, 0))
    hinges = place * (d + margin) - sums.gather(1, place)
    total = torch.where(positive, hinges, 0.0).sum()
    return total, torch.where(positive, place, 0).sum(), (positive.sum(1) * negative.sum(1)).sum()
