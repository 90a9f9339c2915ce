"""Squared error of classes by their one-hot code, for one objective and for several in one call."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ...core.logpartition import class_mask
from ...core.rowwise import Rule, add_at


def one_hot_forms(target: Tensor) -> tuple[Callable[[Tensor], Tensor], Rule]:
    """The mean squared error of each row to the one-hot code of its class: plain form and rule."""

    def plain(z: Tensor) -> Tensor:
        return (z - class_mask(target, z.shape[1]).to(z.dtype)).square().mean(-1)

    def rule(z: Tensor, g: Tensor, rows: slice) -> Tensor:
        g.copy_(z)
        add_at(g, target[rows], -1.0)
        loss = g.square().mean(1)
        g.mul_(2.0 / z.shape[1])
        return loss

    return plain, rule
