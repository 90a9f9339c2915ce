"""Class targets as the losses of this family take them: indices with an ignored value, or rows of probabilities."""

from __future__ import annotations

from torch import Tensor

from ...core.checks import check_index, check_logits, check_simplex, check_tensor
from ...core.reductions import widen


def class_targets(logits: Tensor, target: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor | None]:
    """Check logits ``[N, C]`` and their target; split it into what can be looked up and where it counts.

    Args:
        logits: ``[N, C]``, C >= 2.
        target: class indices ``[N]``, or probabilities ``[N, C]``.
        ignore_index: the index of samples that don't count, or None.

    Returns:
        ``(target, valid)``. Indices: ignored ones replaced by 0, and a boolean ``[N]`` (None without ignore_index).
        Probabilities: in float32 or wider, and None.

    Raises:
        ValueError: wrong shapes, an index out of range, rows that are no probabilities.
    """
    check_logits(logits)
    check_tensor("target", target)
    if target.is_floating_point():
        check_tensor("target", target, shape=tuple(logits.shape))
        target = widen(target)
        check_simplex("target", target)
        return target, None
    check_index(target, logits, ignore_index=ignore_index)
    if ignore_index is None:
        return target, None
    valid = target != ignore_index
    return target.masked_fill(~valid, 0), valid
