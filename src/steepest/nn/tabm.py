"""TabM-mini: many networks for tables that share all but the scales of their inputs and their last layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core.checks import check_number, refuse
from .networks import mlp
from .piecewise_linear import PiecewiseLinearEmbedding


class TabM(nn.Module):
    r"""The features of ``members`` networks that share their layers: member i sees its inputs scaled by its own r_i.

    .. math:: h_i = \mathrm{MLP}(r_i \odot e(x)), \qquad r_i \sim \mathcal{N}(0, 1) \text{, one number a column}

    Columns with edges are embedded; others, such as those of one-hot codes, go in as they are. Without any embedding
    the scales begin at random signs. Each member has a head of its own behind this, a loss of its own in training, and
    an equal share of the mean of the predictions: the mean of outputs before the loss would undo the ensemble.

    Args:
        in_features: columns of the inputs.
        numeric: which of them are embedded; none by default.
        edges: their bins, as :func:`~steepest.nn.piecewise_linear.quantile_edges` gives them.
        members: networks, >= 1.
        width: units of a layer.
        depth: layers.
        dropout: share of units that are left out in training, in [0, 1).
        embedding: numbers a column that is embedded.

    Raises:
        ValueError: a value outside its range; a column that is not there or comes twice; edges of another number of
            columns.

    Shapes: ``[B, in_features]`` to ``[B, members, width]``.

    Example:
        >>> TabM(5, numeric=[0, 3], edges=[torch.tensor([0.0, 1.0, 3.0])] * 2)(torch.zeros(7, 5)).shape
        torch.Size([7, 16, 128])

    Source: TabM: Advancing Tabular Deep Learning with Parameter-Efficient Ensembling, arXiv:2410.24210.
    """

    scale: nn.Parameter

    def __init__(
        self,
        in_features: int,
        *,
        numeric: Sequence[int] = (),
        edges: Sequence[Tensor] = (),
        members: int = 16,
        width: int = 128,
        depth: int = 2,
        dropout: float = 0.1,
        embedding: int = 16,
    ) -> None:
        super().__init__()
        check_number("in_features", in_features, low=1, integer=True)
        check_number("members", members, low=1, integer=True)
        check_number("dropout", dropout, low=0.0, high=1.0, open_high=True)
        columns = list(numeric)
        if len(set(columns)) != len(columns) or not set(columns) <= set(range(in_features)):
            refuse("numeric", f"distinct columns in 0..{in_features - 1}", columns)
        if len(edges) != len(columns):
            refuse("edges", f"those of {len(columns)} columns", len(edges))
        self.numeric = columns
        self.plain = [column for column in range(in_features) if column not in set(columns)]
        self.embed = PiecewiseLinearEmbedding(edges, embedding) if columns else None
        sizes = [embedding] * len(columns) + [1] * len(self.plain)
        start = torch.randn(members, len(sizes)) if columns else torch.randn(members, len(sizes)).sign()
        self.scale = nn.Parameter(start.repeat_interleave(torch.tensor(sizes), 1))
        layers = mlp(sum(sizes), width=width, depth=depth)
        self.layers = nn.Sequential(
            *(nn.Sequential(layers[i], layers[i + 1], nn.Dropout(dropout)) for i in range(0, 2 * depth, 2))
        )

    @property
    def members(self) -> int:
        """How many networks there are."""
        return len(self.scale)

    def embedded(self, inputs: Float[Tensor, "batch features"]) -> Float[Tensor, "batch numbers"]:
        """What all members see before their scales: the embedded columns, then the others."""
        if self.embed is None:
            return inputs
        return torch.cat([self.embed(inputs[:, self.numeric]).flatten(1), inputs[:, self.plain]], 1)

    def forward(self, inputs: Float[Tensor, "batch features"]) -> Float[Tensor, "batch members width"]:
        """The features of every member."""
        outputs: Tensor = self.layers(self.embedded(inputs).unsqueeze(1) * self.scale)
        return outputs
