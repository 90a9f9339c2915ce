"""Sum and mean of the rows: what a plain backward pass of the summed or averaged losses gives."""

from __future__ import annotations

from torch import Tensor

from ...core.aggregator import Aggregator


class Sum(Aggregator):
    """The sum of the rows.

    Example:
        >>> import torch
        >>> Sum()(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([4., 6.])
    """

    name = "sum"
    properties = frozenset({"linear_under_scaling", "homogeneous", "permutation_invariant", "in_span"})

    def _aggregate(self, jacobian: Tensor) -> Tensor:
        return jacobian.sum(0)


class Mean(Aggregator):
    """The mean of the rows.

    Example:
        >>> import torch
        >>> Mean()(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([2., 3.])
    """

    name = "mean"
    properties = Sum.properties

    def _aggregate(self, jacobian: Tensor) -> Tensor:
        return jacobian.mean(0)
