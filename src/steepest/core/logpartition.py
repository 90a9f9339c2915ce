"""Stable log-partition forms shared by the objectives of classes."""

from __future__ import annotations

import torch
from torch import Tensor

from .reductions import widen


def pick(values: Tensor, target: Tensor) -> Tensor:
    """``values[i, target[i]]`` for ``[N, C]`` values and ``[N]`` class indices."""
    return values.gather(-1, target.long().unsqueeze(-1)).squeeze(-1)


def class_mask(target: Tensor, classes: int) -> Tensor:
    """Boolean one-hot ``[N, C]`` of class indices ``[N]``; works under ``vmap`` and ``compile``."""
    return target.unsqueeze(-1) == torch.arange(classes, device=target.device)


def target_log_probability(logits: Tensor, target: Tensor) -> Tensor:
    """``log softmax(logits)_y`` for each row, in float32 or wider; exact also where the probability rounds to 1."""
    below, rest = _below_largest(logits)
    return pick(below, target) - rest.log1p().squeeze(-1)


def log_softmax(logits: Tensor) -> Tensor:
    """``log softmax(logits)`` along the last dimension, in float32 or wider.

    torch's own subtracts the logarithm of a rounded sum, which for a confident row is 0.

    >>> log_softmax(torch.tensor([[20.0, 0.0]]))
    tensor([[-2.0612e-09, -2.0000e+01]])
    """
    below, rest = _below_largest(logits)
    return below - rest.log1p()


def _below_largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logits less the largest of their row, and the sum of the exponentials of all but it ``[..., 1]``."""
    logits = widen(logits)
    place = logits.argmax(-1)
    largest = class_mask(place, logits.shape[-1])
    below = logits - logits.gather(-1, place.unsqueeze(-1))
    below = torch.where(largest, below.detach(), below)  # 0, or NaN; a slope of 1 - 1 would hide that of the rest
    return below, torch.where(largest, 0.0, below.exp()).sum(-1, keepdim=True)


def margins_to_target(logits: Tensor, target: Tensor) -> Tensor:
    """``d_k = z_k - z_y`` for each row, in float32 or wider; 0 at the target itself."""
    logits = widen(logits)
    return logits - pick(logits, target).unsqueeze(-1)
