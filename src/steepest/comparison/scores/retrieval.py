"""How near rows of a class are among others: ranks of all rows by the cosine to each, in blocks."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...core.arrays import codes
from ...core.checks import check_number, check_tensor
from ...core.cosine import unit_rows

NEIGHBOURS = 5
"""Nearest rows that are kept of each row."""
AVERAGE_PRECISION, R_PRECISION, FIRST, NEAREST = 0, 1, 2, 3
"""Columns of what is kept of a row; from the last on its nearest rows."""
WIDTH = NEAREST + NEIGHBOURS
_AT_ONCE = 1 << 22
"""Cosines that are there at a time."""


def ranked(embeddings: Tensor, labels: np.ndarray) -> np.ndarray:
    r"""Of each row how its own class is ranked among all other rows.

    Rows are ranked by falling cosine, in float32, equal ones in their order; a row itself is left out. With R the other
    rows of a row's class, and :math:`P(i)` the share of its class among its i nearest,

    .. math:: \mathrm{AP@R} = \frac{1}{R} \sum_{i=1}^{R} P(i)\, [\text{the i-th nearest is of its class}], \qquad
        \text{R-precision} = P(R)

    Args:
        embeddings: ``[N, d]``; a row of zeros has the cosine 0 to all.
        labels: class codes ``[N]``.

    Returns:
        ``[N, 8]`` float64: AP@R, R-precision, the rank of the first row of its class from 1 on (0: there is none, and
        the row is no query), and the positions of its 5 nearest rows (-1: there are fewer). All NaN where a number of
        the embeddings is not finite.

    Raises:
        ValueError: another number of labels, a label below 0.

    >>> near = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.6, 0.6]])
    >>> ranked(near, np.array([0, 0, 1, 1]))[:, :4]
    array([[1., 1., 1., 1.],
           [1., 1., 1., 0.],
           [1., 1., 1., 3.],
           [0., 0., 3., 1.]])
    """
    check_tensor("embeddings", embeddings, ndim=2, floating=True)
    rows = len(embeddings)
    labels = codes("labels", labels, (rows,), empty=True)
    ranks = np.full((rows, WIDTH), np.nan)
    if not rows or not bool(embeddings.isfinite().all()):
        return ranks
    with torch.no_grad():
        unit = unit_rows(embeddings.float())
        classes = torch.as_tensor(labels, device=unit.device)
        relevant = torch.bincount(classes)[classes] - 1
        deepest = min(max(int(relevant.max()), NEIGHBOURS), rows - 1)
        block = max(1, _AT_ONCE // rows)
        for start in range(0, rows, block):
            end = min(start + block, rows)
            ranks[start:end] = _block(unit, classes, relevant, start, end, deepest).cpu().numpy()
    return ranks


def _block(unit: Tensor, classes: Tensor, relevant: Tensor, start: int, end: int, deepest: int) -> Tensor:
    """The same of some rows."""
    own = torch.arange(start, end, device=unit.device)
    keys = in_order(unit[start:end] @ unit.T)
    keys.scatter_(1, own.unsqueeze(1), torch.iinfo(torch.int64).min)
    nearest = keys.topk(deepest, 1)[1]
    hit = classes[nearest] == classes[own].unsqueeze(1)
    place = torch.arange(1, deepest + 1, device=unit.device)
    counted = hit & (place <= relevant[own].unsqueeze(1))
    total = relevant[own].clamp_min(1)
    precision = counted.double().cumsum(1) / place
    same = (classes == classes[own].unsqueeze(1)).scatter_(1, own.unsqueeze(1), False)
    first_key = keys.masked_fill(~same, torch.iinfo(torch.int64).min).amax(1)
    first = torch.where(relevant[own] > 0, (keys > first_key.unsqueeze(1)).sum(1) + 1, 0)
    closest = nearest.new_full((end - start, NEIGHBOURS), -1)
    closest[:, : min(NEIGHBOURS, deepest)] = nearest[:, :NEIGHBOURS]
    columns = [(precision * counted).sum(1) / total, counted.sum(1) / total.double(), first.double()]
    return torch.cat([torch.stack(columns, 1), closest.double()], 1)


def in_order(cosines: Tensor) -> Tensor:
    """Distinct integers a row in the order of the cosines: of equal ones the earlier column is the greater.

    >>> in_order(torch.tensor([[0.5, -0.5, 0.5, 0.0, -0.0]])).argsort(descending=True)
    tensor([[0, 2, 3, 4, 1]])
    """
    bits = (cosines.float() + 0.0).contiguous().view(torch.int32).long()
    rising = torch.where(bits < 0, -(bits + 2**31), bits)
    columns = torch.arange(cosines.shape[1] - 1, -1, -1, device=cosines.device)
    return rising * 2**31 + columns


def nearest_rows(queries: Tensor, rows: Tensor, count: int = NEIGHBOURS) -> tuple[Tensor, Tensor]:
    """The rows of largest cosine to each query ``[Q, count]``, and their cosines; equal ones in their order.

    Args:
        queries: ``[Q, d]``.
        rows: ``[N, d]``.
        count: at most N are given.

    >>> nearest_rows(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0], [3.0, 0.0]]), 1)
    (tensor([[1]]), tensor([[1.]]))
    """
    check_tensor("queries", queries, ndim=2, floating=True)
    check_tensor("rows", rows, floating=True, shape=(len(rows), queries.shape[1]))
    check_number("count", count, low=1, integer=True)
    unit, asked = unit_rows(rows.float()), unit_rows(queries.float())
    count = min(count, len(rows))
    places, cosines = [queries.new_empty((0, count), dtype=torch.int64)], [unit.new_empty((0, count))]
    for block in asked.split(max(1, _AT_ONCE // max(1, len(rows)))):
        products = block @ unit.T
        places.append(in_order(products).topk(count, 1)[1])
        cosines.append(products.gather(1, places[-1]))
    return torch.cat(places), torch.cat(cosines)
