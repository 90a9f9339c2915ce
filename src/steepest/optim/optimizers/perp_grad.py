"""Descent across the weights: each parameter's gradient without its part along the parameter itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...core.checks import check_tensor, refuse, refuse_type
from ...core.reductions import widen
from ...core.torch_private import (
    foreach_add_,
    foreach_clamp_min_,
    foreach_copy_,
    foreach_div,
    foreach_div_,
    foreach_mul,
    foreach_mul_,
    foreach_norm,
    foreach_pow,
    foreach_sub,
)
from ...core.wrapper import Params, Wrapper, base_of

_TINY = 1e-30
_ROUNDING = 8.0
"""A remainder below so many units of rounding of the gradient is rounding: there was nothing across the weights."""


def perpendicular_gradient(
    w: Tensor | Sequence[Tensor], g: Tensor | Sequence[Tensor], *, rescale: bool = True
) -> list[Tensor]:
    r"""The part of each gradient across its parameter.

    .. math:: g_\perp = g - \frac{w \cdot g}{w \cdot w}\, w, \qquad
        \text{rescaled: } g_\perp \frac{\|g\|}{\|g_\perp\|}

    Inner products run over a whole tensor. Where g is parallel to w up to rounding, and for tensors of one element, the
    result is 0; where w is 0 it is g.

    Args:
        w: parameters, a tensor or several.
        g: their gradients, of the same shapes.
        rescale: give back the length that was lost.

    Returns:
        one tensor for each gradient, in float32 or wider.

    Raises:
        ValueError: numbers or shapes that don't match.
        TypeError: a sparse gradient.

    Example:
        >>> w, g = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0])
        >>> perpendicular_gradient(w, g, rescale=False)
        [tensor([-0.3200,  0.2400])]
        >>> perpendicular_gradient(w, g)
        [tensor([-1.7889,  1.3416])]

    Source: Grokking at the Edge of Numerical Stability, arXiv:2501.04697.
    """
    ws, gs = ([v] if isinstance(v, Tensor) else list(v) for v in (w, g))
    if len(ws) != len(gs):
        refuse("g", f"{len(ws)} gradients, one for each parameter", len(gs))
    for one, slope in zip(ws, gs):
        check_tensor("g", slope, shape=tuple(one.shape))
        if slope.is_sparse:
            refuse_type("g", "dense gradients", slope)
    projected = list(gs)
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for number, slope in enumerate(gs):
        if slope.numel() > 1:
            groups.setdefault((slope.device, slope.dtype), []).append(number)
        else:
            projected[number] = torch.zeros_like(widen(slope))
    for members in groups.values():
        parts = _across([_real(ws[i]) for i in members], [_real(gs[i]) for i in members], rescale)
        for i, across in zip(members, parts):
            projected[i] = torch.view_as_complex(across) if gs[i].is_complex() else across
    return projected


def _real(value: Tensor) -> Tensor:
    value = value.detach()
    return torch.view_as_real(value) if value.is_complex() else widen(value)


def _across(ws: list[Tensor], gs: list[Tensor], rescale: bool) -> list[Tensor]:
    """For tensors of one device and type. Gradients are scaled to size 1 first: squares of tiny ones would vanish."""
    sizes = foreach_norm(gs, float("inf"))
    foreach_clamp_min_(sizes, torch.finfo(sizes[0].dtype).tiny)
    unit = foreach_div(gs, sizes)
    along = [(w * g).sum() for w, g in zip(ws, unit)]
    squares = foreach_pow(foreach_norm(ws), 2)
    foreach_add_(squares, _TINY)
    foreach_div_(along, squares)
    across = foreach_sub(unit, foreach_mul(ws, along))
    before, after = foreach_norm(unit), foreach_norm(across)
    floor = _ROUNDING * torch.finfo(sizes[0].dtype).eps
    factors = [
        torch.where(a <= floor * b, 0.0, size * b / (a + _TINY) if rescale else size)
        for a, b, size in zip(after, before, sizes)
    ]
    foreach_mul_(across, factors)
    return list(across)


class PerpGrad(Wrapper):
    """An optimizer that sees only the gradient across the weights, so that no step merely scales them.

    The gradient of each parameter is replaced by :func:`perpendicular_gradient`, in place, before the base optimizer
    steps. Parameters of one element, which have no direction across, and those of groups with ``"perp": False`` (give
    biases and norm scales such a group) keep their gradient. Rescaling makes the step noisy where a gradient is nearly
    parallel to its weights. With Adam take a tiny ``eps`` (1e-25) where gradients become tiny.

    State, groups and defaults are those of the base optimizer: schedules, ``state_dict``, gradient scalers and its own
    options (``foreach``, ``fused``) work as with it alone.

    Args:
        params: parameters or groups, as for any optimizer.
        base: class of the optimizer that steps.
        rescale: give projected gradients the length of the whole ones.
        **kw: arguments of ``base``.

    Raises:
        TypeError: ``base`` is no optimizer class.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = PerpGrad([w], torch.optim.SGD, rescale=False, lr=1.0)
        >>> w.grad = torch.tensor([1.0, 2.0])
        >>> optimizer.step()
        >>> w.data
        tensor([3.3200, 3.7600])

    Source: Grokking at the Edge of Numerical Stability, arXiv:2501.04697.
    """

    name = "perp_grad"
    exempt = dict.fromkeys(
        ("convergence", "minimum"), "no step changes a parameter's length: other minima are out of reach"
    )

    def __init__(
        self,
        params: Params,
        base: type[Optimizer] = torch.optim.AdamW,
        rescale: bool = True,
        **kw: Any,
    ) -> None:
        super().__init__(base_of(params, base, kw, name="base"))
        self.rescale = rescale

    @torch.no_grad()
    def project(self) -> None:
        """Replace the gradients by their parts across the weights, in place."""
        chosen = [
            p
            for group in self.param_groups
            if group.get("perp", True)
            for p in group["params"]
            if p.grad is not None and p.numel() > 1
        ]
        if not chosen:
            return
        slopes = [p.grad for p in chosen]
        foreach_copy_(slopes, perpendicular_gradient(chosen, slopes, rescale=self.rescale))

    def _advance(self, closure: Callable[[], Any] | None) -> None:
        self.project()
        super()._advance(closure)

    @classmethod
    def builders(cls) -> list[Callable[[Params], PerpGrad]]:
        """Both lengths, over optimizers with and without averages."""
        return [
            lambda params: cls(params, lr=0.01, eps=1e-6),
            lambda params: cls(params, torch.optim.SGD, False, lr=0.05, momentum=0.9),
        ]


OrthoGrad = PerpGrad
