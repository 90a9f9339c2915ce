"""Margins against the target, their soft and hard maximum: value, plain form and rule of each row."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...core.checks import check_choice
from ...core.logpartition import class_mask, margins_to_target
from ...core.reductions import widen
from ...core.rowwise import Rule, add_at, at, mix, rowwise, target_softmax

NORMALIZERS = (None, "l1", "softplus")


def normalized(logits: Tensor, how: str | None) -> Tensor:
    """Logits in float32 or wider, divided by the mean of their absolute values, or softplus by its mean."""
    check_choice("normalize", how, NORMALIZERS)
    f = widen(logits)
    if how == "l1":
        size = f.abs().mean(-1, keepdim=True)
        return f / torch.where(size > 0, size, torch.inf)  # zero logits stay 0
    if how == "softplus":
        # through the logarithm, which is f itself far below 0, where every softplus of a row may round to 0
        low = f < -30.0
        log = torch.where(low, f, torch.nn.functional.softplus(f.masked_fill(low, 0.0)).log())
        return log.softmax(-1) * f.shape[-1]
    return f


def gaps(f: Tensor, target: Tensor, margin: float) -> Tensor:
    """d_k = f_k - f_y + margin 1[k != y]."""
    d = margins_to_target(f, target)
    return torch.where(class_mask(target, f.shape[-1]), d, d + margin)


def soft_max(d: Tensor, lam: Tensor | float) -> Tensor:
    """lam log mean_k exp(d_k / lam), exact for small and for large lam."""
    lam = torch.as_tensor(lam, dtype=d.dtype, device=d.device)
    scale = lam.unsqueeze(-1)
    top = d.detach().amax(-1, keepdim=True)
    u = (d - top) / scale
    # spread small against lam: log mean exp is near 0, and a difference of logarithms would leave its rounding error
    close = u.detach().amin(-1) > -1.0
    near = torch.log1p(torch.expm1(u).mean(-1).clamp_min(-0.75))
    far = torch.logsumexp(u, dim=-1) - math.log(d.shape[-1])
    return top.squeeze(-1) + lam * torch.where(close, near, far)


def worst_mean(f: Tensor, y: Tensor, lam: Tensor | float, margin: float) -> Tensor:
    """lam log mean_k exp(d_k / lam) of each row, lam a number or one a row; the gradient is softmax(d / lam) - e_y."""

    return rowwise(f, lambda f: soft_max(gaps(f, y, margin), lam), worst_mean_rule(y, lam, margin))


def worst_mean_rule(target: Tensor, lam: Tensor | float, margin: Tensor | float) -> Rule:
    """Its value and gradient; ``lam`` and ``margin`` are numbers, or one a row."""

    def rule(z: Tensor, g: Tensor, rows: slice) -> Tensor:
        y, (scale, shift) = target[rows], (_column(v, rows, z) for v in (lam, margin))
        softmax = target_softmax(z, g, y, scale=1.0 / scale, shift=-shift, excess=True)
        assert softmax.excess is not None
        mix(g, target=y, value=-softmax.away)
        # near 0 the logarithm of a mean, else a difference of logarithms: each where it rounds little
        mean, size = softmax.excess / z.shape[1], math.log(z.shape[1])
        above = torch.where(mean > -0.5, mean.log1p(), softmax.rest.log1p() - size)
        return (softmax.top - (at(z, y) - shift) + scale * above).squeeze(1)

    return rule


def _column(value: Tensor | float, rows: slice, like: Tensor) -> Tensor | float:
    return value.view(-1, 1)[rows].to(like.dtype) if isinstance(value, Tensor) else value


def largest_gap(z: Tensor, y: Tensor, margin: float) -> Tensor:
    """max_k d_k of each row; equal maxima share the slope, as in torch."""

    def rule(z: Tensor, g: Tensor, rows: slice) -> Tensor:
        d = z - at(z, y[rows])
        d.add_(margin).scatter_(1, y[rows].unsqueeze(1), 0.0)
        loss = d.amax(1, keepdim=True)
        torch.eq(d, loss, out=g)
        g.div_(g.sum(1, keepdim=True))
        add_at(g, y[rows], -1.0)
        return loss.squeeze(1)

    return rowwise(z, lambda z: gaps(z, y, margin).amax(-1), rule)
