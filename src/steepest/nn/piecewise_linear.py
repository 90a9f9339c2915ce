"""Numbers as how far they reach into each of a column's bins, and what a network learns of that."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core.checks import check_number, check_tensor, refuse

NARROW = 1e-6
"""A bin narrower than this share of its column's range is joined with the next."""


def quantile_edges(x: Float[Tensor, "rows features"], bins: int = 48) -> list[Tensor]:
    """The edges of bins between the quantiles of each column, in order and distinct; float64.

    Quantiles that coincide give fewer bins. A column that is constant, or all but constant, gets a single bin of width
    1 about its value: rounding would explode in a narrow one.

    Args:
        x: finite numbers ``[N, F]``.
        bins: at most so many a column, >= 1.

    Raises:
        ValueError: ``bins`` below 1, no rows, or a number that is not finite.

    Example:
        >>> quantile_edges(torch.tensor([[0.0, 5.0], [1.0, 5.0], [4.0, 5.0]]), bins=2)
        [tensor([0., 1., 4.], dtype=torch.float64), tensor([4.5000, 5.5000], dtype=torch.float64)]

    Source: On Embeddings for Numerical Features in Tabular Deep Learning, arXiv:2203.05556.
    """
    check_number("bins", bins, low=1, integer=True)
    check_tensor("x", x, floating=True, shape=(None, None))
    if not len(x):
        refuse("x", "at least one row", x)
    if not bool(x.isfinite().all()):
        refuse("x", "finite numbers", float(x[~x.isfinite()][0]))
    shares = torch.linspace(0.0, 1.0, bins + 1, dtype=torch.float64, device=x.device)
    return [_edges(column) for column in torch.quantile(x.double(), shares, dim=0).T]


def _edges(quantiles: Tensor) -> Tensor:
    """Those of one column that lie apart."""
    first, last = quantiles[0], quantiles[-1]
    size = max(1.0, float(first.abs()), float(last.abs()))
    if float(last - first) <= NARROW * size:
        middle = 0.5 * (first + last)
        return torch.stack([middle - 0.5, middle + 0.5])
    apart = NARROW * (last - first)
    edges = [first]
    for edge in quantiles[1:-1]:
        if edge - edges[-1] > apart and last - edge > apart:
            edges.append(edge)
    return torch.stack([*edges, last])


class PiecewiseLinearEncoding(nn.Module):
    r"""Of each number and each bin of its column, the share of the bin that lies below the number.

    .. math:: z_t = \frac{x - b_{t-1}}{b_t - b_{t-1}} \text{ in } [0, 1]

    below 0 in the first bin and above 1 in the last for numbers outside all bins: nothing is cut off. Of columns with
    fewer bins the last entries are 0.

    Args:
        edges: for each column its edges ``[bins + 1]``, rising; as :func:`quantile_edges` gives them.

    Raises:
        ValueError: no column, a column without a bin, edges that don't rise or are not finite.

    Shapes: ``[..., F]`` to ``[..., F, bins]``, the most that a column has.

    Example:
        >>> PiecewiseLinearEncoding([torch.tensor([0.0, 1.0, 3.0])])(torch.tensor([[2.0], [5.0], [-1.0]])).squeeze(1)
        tensor([[ 1.0000,  0.5000],
                [ 1.0000,  2.0000],
                [-1.0000,  0.0000]])

    Source: On Embeddings for Numerical Features in Tabular Deep Learning, arXiv:2203.05556.
    """

    slope: Tensor
    start: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, edges: Sequence[Tensor]) -> None:
        super().__init__()
        if not edges:
            refuse("edges", "at least one column", edges)
        for column in edges:
            if column.ndim != 1 or len(column) < 2:
                refuse("edges", "two edges or more a column", column)
            if not bool(column.isfinite().all()) or not bool((column.diff() > 0).all()):
                refuse("edges", "finite edges that rise", column.tolist())
        shape = len(edges), max(len(column) for column in edges) - 1
        slope, start, low, high = (torch.zeros(shape, dtype=torch.float64) for _ in range(4))
        for i, column in enumerate(edges):
            count, wide = len(column) - 1, column.double().cpu()
            slope[i, :count] = 1.0 / wide.diff()
            start[i, :count] = -wide[:-1] / wide.diff()
            high[i, :count] = 1.0
            low[i, 0], high[i, count - 1] = -torch.inf, torch.inf
        for name, values in (("slope", slope), ("start", start), ("low", low), ("high", high)):
            self.register_buffer(name, values.to(torch.get_default_dtype()), persistent=False)  # the edges say them

    @property
    def bins(self) -> int:
        """The most that a column has."""
        return int(self.slope.shape[1])

    def forward(self, x: Float[Tensor, "... features"]) -> Float[Tensor, "... features bins"]:
        """The encoding of numbers."""
        return torch.addcmul(self.start, self.slope, x.unsqueeze(-1)).clamp(self.low, self.high)


class PiecewiseLinearEmbedding(nn.Module):
    r"""What a network learns of each column: linear at first, with bends at the edges of the bins later.

    .. math:: e_f(x) = x_f u_f + c_f + W_f z_f(x), \quad W_f = 0 \text{ at first}

    Args:
        edges: as of :class:`PiecewiseLinearEncoding`, of the columns as they come in.
        width: numbers a column, >= 1.

    Shapes: ``[B, F]`` to ``[B, F, width]``.

    Example:
        >>> PiecewiseLinearEmbedding([torch.tensor([0.0, 1.0, 3.0])] * 2, width=4)(torch.zeros(5, 2)).shape
        torch.Size([5, 2, 4])

    Source: TabM, arXiv:2410.24210 (its version of piecewise-linear embeddings).
    """

    def __init__(self, edges: Sequence[Tensor], width: int = 16) -> None:
        super().__init__()
        check_number("width", width, low=1, integer=True)
        self.encoding = PiecewiseLinearEncoding(edges)
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(len(edges), width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(len(edges), width).uniform_(-bound, bound))
        self.bends = nn.Parameter(torch.zeros(len(edges), self.encoding.bins, width))

    def forward(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch features width"]:
        """The embeddings of numbers."""
        linear = torch.addcmul(self.bias, self.weight, x.unsqueeze(-1))
        return linear + torch.einsum("bft,ftd->bfd", self.encoding(x), self.bends)
