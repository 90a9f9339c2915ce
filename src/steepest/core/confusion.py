"""Soft counts of a confusion matrix, over chosen dimensions."""

from __future__ import annotations

from torch import Tensor


def soft_counts(
    p: Tensor, y: Tensor, dim: tuple[int, ...], *, complement: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""True positives, false negatives, false positives and true negatives of probabilities.

    .. math:: TP = \sum y p, \quad FN = \sum y (1 - p), \quad FP = \sum (1 - y) p, \quad TN = \sum (1 - y)(1 - p)

    Args:
        p: probabilities of the positive label, any shape, float32 or wider.
        y: labels in {0, 1} of the same shape and type.
        dim: dimensions that are summed; none of them left is one number for each count.
        complement: 1 - p where it is known without rounding to 0; None for the difference.

    Returns:
        ``(TP, FN, FP, TN)``, each with the other dimensions.

    Example:
        >>> import torch
        >>> p, y = torch.tensor([[0.75, 0.5], [0.25, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> [count.tolist() for count in soft_counts(p, y, (0,))]
        [[1.0, 0.0], [1.0, 0.0], [0.0, 0.5], [0.0, 1.5]]
    """
    q = 1 - p if complement is None else complement
    positive, negative = y * p, y * q
    return positive.sum(dim), negative.sum(dim), ((1 - y) * p).sum(dim), ((1 - y) * q).sum(dim)
