"""The rules of cross-entropy, for one objective and for several in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.rowwise import Rule, at, log_probability_rule, mix, target_softmax


def hard_rule(target: Tensor, factor: Tensor | None = None) -> Rule:
    """Value and gradient of each row against a class, with class factors ``[C]`` or None."""
    target = target.long()

    def rule(z: Tensor, g: Tensor, rows: slice) -> Tensor:
        y = target[rows]
        softmax = target_softmax(z, g, y)
        mix(g, target=y, value=-softmax.away)
        return -softmax.log_p.squeeze(1)

    if factor is None:
        return rule
    factors = factor

    def phi(log_p: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        own = factors[target[rows]].unsqueeze(1)
        return -own * log_p, -own

    return log_probability_rule(target, phi)


def smoothed_rule(target: Tensor, smoothing: float | Tensor) -> Rule:
    """The same with smoothed labels; the smoothing is a number, or one a row ``[N, 1]``."""
    target = target.long()

    def rule(z: Tensor, g: Tensor, rows: slice) -> Tensor:
        y, alpha = target[rows], smoothing[rows] if isinstance(smoothing, Tensor) else smoothing
        softmax, share = target_softmax(z, g, y), alpha / z.shape[1]
        mix(g, shift=-share, target=y, value=(alpha - share) - softmax.away)
        return (alpha * (at(z, y) - z.mean(1, keepdim=True)) - softmax.log_p).squeeze(1)

    return rule


def soft_rule(target: Tensor, factor: Tensor | None, smoothing: float) -> Rule:
    """Of cross-entropy with probabilities for a target."""

    def rule(z: Tensor, g: Tensor, rows: slice) -> Tensor:
        t = target[rows].to(z.dtype)
        t = t.lerp(t.new_full((), 1.0 / z.shape[1]), smoothing) if smoothing else t
        t = t if factor is None else t * factor
        top, place = z.max(1)
        softmax = target_softmax(z, g, place)
        mass = t.sum(1, keepdim=True)
        # p - t at the largest, where both may round to 1
        value = mass - at(t, place) - mass * softmax.away
        mix(g, factor=mass, z=t, slope=-1.0, target=place, value=value)
        gaps = torch.where(t == 0, 0.0, top.unsqueeze(1) - z)
        losses: Tensor = torch.linalg.vecdot(t, gaps) - (mass * softmax.log_p).squeeze(1)
        return losses

    return rule
