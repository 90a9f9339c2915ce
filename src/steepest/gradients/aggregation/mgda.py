"""The multiple-gradient descent algorithm: the shortest vector in the hull of the gradients."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from ...core.aggregator import GramianAggregator


class MGDA(GramianAggregator):
    r"""The shortest convex combination of the rows: 0 exactly where no direction descends all losses.

    .. math:: d = J^\top \alpha, \qquad
        \alpha = \arg\min \{ \alpha^\top J J^\top \alpha : \alpha \ge 0, \textstyle\sum_i \alpha_i = 1 \}

    The program is solved to the last digits, as least squares with weights >= 0.

    Example:
        >>> MGDA()(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        tensor([0.4000, 0.8000])

    Source: Multiple-gradient descent algorithm (MGDA) for multiobjective optimization, Desideri 2012.
    """

    name = "mgda"
    properties = frozenset({"non_conflicting", "homogeneous", "permutation_invariant", "in_span", "stationary"})

    def _weigh_cosines(self, cosines: Tensor, lengths: Tensor) -> Tensor:
        if not bool(torch.isfinite(cosines).all()):
            return torch.full_like(lengths, torch.nan)
        shortest = lengths.min()
        if shortest == 0:  # 0 lies in the hull
            return torch.zeros_like(lengths)
        # b_i = alpha_i length_i, sum_i b_i / length_i = 1; the least |R b|^2 + (c'b - 1)^2 is that but for its scale
        values, vectors = np.linalg.eigh(cosines.cpu().numpy())
        root = np.sqrt(values.clip(0.0))[:, None] * vectors.T
        closeness = (shortest / lengths).cpu().numpy()
        right = np.append(np.zeros(len(root)), 1.0)
        weights, _ = nnls(np.vstack([root, closeness]), right, maxiter=30 * len(root))
        return torch.from_numpy(weights / (weights @ closeness)).to(lengths.device) * shortest
