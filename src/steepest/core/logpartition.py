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
    """``log softmax(logits)_y`` for each row, in float32 or wider."""
    logits = widen(logits)
    return pick(logits, target) - torch.logsumexp(logits, dim=-1)


def margins_to_target(logits: Tensor, target: Tensor) -> Tensor:
    """``d_k = z_k - z_y`` for each row, in float32 or wider; 0 at the target itself."""
    logits = widen(logits)
    return logits - pick(logits, target).unsqueeze(-1)
