"""Sharpness-aware minimisation: the step uses the gradient at the worst point within a small radius."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...core.checks import check_flag, check_number, check_tensor, refuse, refuse_type
from ...core.displaced import Traces, ascent, displaced, random_numbers, same_random_numbers
from ...core.search import Float
from ...core.wrapper import Params, TwoPassWrapper, base_of


def sam_perturbation(
    grads: Sequence[Tensor | None],
    rho: float = 0.05,
    p: float = 2.0,
    *,
    weights: Sequence[Tensor] | None = None,
) -> list[Tensor | None]:
    r"""The move of length rho that raises the loss most, to first order, all tensors as one vector.

    .. math:: \epsilon = \rho \frac{g}{\|g\|_2}, \qquad
        \epsilon = \rho \operatorname{sign}(g) \frac{|g|^{q-1}}{\|g\|_q^{q/p}}, \; 1/p + 1/q = 1, \qquad
        \text{adaptive: } \epsilon = \rho \frac{T^2 g}{\|T g\|_2}, \; T = |w|

    A gradient of zeros moves nothing; one that is not finite gives NaN.

    Args:
        grads: gradients of any shapes; None stays None.
        rho: radius >= 0.
        p: norm in which the move has length rho, > 1; ``math.inf`` gives rho sign(g).
        weights: tensors of the same shapes, for the adaptive form (moves relative to each weight).

    Returns:
        one tensor for each gradient, in its type.

    Raises:
        ValueError: rho below 0, p not above 1, weights of other shapes.

    Example:
        >>> sam_perturbation([torch.tensor([3.0, 4.0])], 0.05)
        [tensor([0.0300, 0.0400])]
        >>> sam_perturbation([torch.tensor([3.0, -4.0])], 0.05, math.inf)
        [tensor([ 0.0500, -0.0500])]

    Source: Sharpness-Aware Minimization for Efficiently Improving Generalization, arXiv:2010.01412; adaptive form
    arXiv:2102.11600.
    """
    check_number("rho", rho, low=0.0)
    _check_p(p)
    for g in grads:
        if g is not None:
            check_tensor("grads", g)
    if weights is not None:
        if len(weights) != len(grads):
            refuse("weights", f"{len(grads)} tensors, one for each gradient", len(weights))
        for w, g in zip(weights, grads):
            if g is not None:
                check_tensor("weights", w, shape=tuple(g.shape))
    places = [torch.zeros(0) if g is None else g for g in grads] if weights is None else weights
    return ascent(places, grads, rho, adaptive=weights is not None, p=p)


class SAM(TwoPassWrapper):
    r"""Sharpness-aware minimisation: climb to the worst point within rho, take the gradient there, step from before.

    .. math:: \epsilon = \rho \frac{\nabla L(w)}{\|\nabla L(w)\|}, \qquad
        w \leftarrow \text{base step at } w \text{ with } \nabla L(w + \epsilon)

    The norm is that of all parameters with a gradient as one vector. A step costs two passes. ``step(closure)`` runs
    both; or, as in other implementations, backward, :meth:`first_step`, backward, :meth:`second_step`. Where gradients
    are accumulated inside the closure, the radius is that of the whole batch; a first pass under ``no_sync`` on several
    ranks gives each rank its own move (m-sharpness).

    Args:
        params: parameters or groups, which may have ``rho`` and ``adaptive`` of their own; or an optimizer to wrap.
        base_optimizer: class of the optimizer that steps.
        rho: radius >= 0; 0 is the base optimizer.
        adaptive: moves relative to each weight (ASAM); take rho about ten times as large.
        p: norm of the radius, > 1, ``math.inf`` too.
        modules: further modules whose buffers a pass writes without calling them.
        **base: arguments of ``base_optimizer``.

    Raises:
        TypeError: no class of optimizer; arguments for an optimizer that is there already.
        ValueError: rho below 0, p not above 1.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> optimizer = SAM([w], torch.optim.SGD, rho=0.1, lr=0.05)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = 0.5 * w[0] ** 2 + 5 * w[1] ** 2
        ...     loss.backward()
        ...     return loss
        >>> optimizer.step(closure).item()
        5.5
        >>> w.data
        tensor([0.9495, 0.4502])

    Source: Sharpness-Aware Minimization for Efficiently Improving Generalization, arXiv:2010.01412; adaptive form
    arXiv:2102.11600.
    """

    name = "sam"
    search = {"rho": Float(0.01, 0.5, log=True)}
    exempt = {"minimum": "a radius that stays keeps it off the minimum of a narrow valley"}

    def __init__(
        self,
        params: Params | Optimizer,
        base_optimizer: type[Optimizer] = torch.optim.SGD,
        rho: float = 0.05,
        adaptive: bool = False,
        p: float = 2.0,
        *,
        modules: Iterable[nn.Module] = (),
        **base: Any,
    ) -> None:
        check_number("rho", rho, low=0.0)
        check_flag("adaptive", adaptive)
        _check_p(p)
        self.p = float(p)
        super().__init__(base_of(params, base_optimizer, base), modules=modules, rho=rho, adaptive=adaptive)

    def _still(self) -> bool:
        return all(self.option(group, "rho") == 0 for group in self.param_groups)

    def _moves(
        self, parameters: list[Tensor], gradients: list[Tensor], groups: list[dict[str, Any]], norm: Tensor
    ) -> list[Tensor | None]:
        radii = [self.option(group, "rho") for group in groups]
        adaptive = [self.option(group, "adaptive") for group in groups]
        return ascent(parameters, gradients, radii, adaptive=adaptive, p=self.p, norm=norm)

    def _factor(self, group: dict[str, Any], norm: Tensor) -> float | None:
        if self.p != 2.0 or self.option(group, "adaptive"):
            return None
        length = float(norm)
        radius = self.option(group, "rho") * (-1.0 if group.get("maximize") else 1.0)
        return math.nan if not math.isfinite(length) else radius / length if length else 0.0

    @classmethod
    def builders(cls) -> list[Callable[[Params], SAM]]:
        """Plain, adaptive, another norm."""
        return [
            lambda params: cls(params, rho=0.02, lr=0.01, momentum=0.9),
            lambda params: cls(params, torch.optim.AdamW, rho=0.05, adaptive=True, lr=0.05, eps=1e-6),
            lambda params: cls(params, torch.optim.AdamW, rho=0.005, p=math.inf, lr=0.05, eps=1e-6),
        ]


def sharpness(
    closure: Callable[[], Tensor],
    params: Iterable[Tensor],
    rho: float = 0.05,
    *,
    adaptive: bool = False,
    p: float = 2.0,
    modules: Iterable[nn.Module] = (),
) -> Tensor:
    r"""How far the loss rises along its gradient within a radius: :math:`L(w + \epsilon) - L(w)`.

    Weights, gradients, buffers and random numbers are afterwards what they were; both passes draw the same numbers.

    Args:
        closure: runs forward and returns the scalar loss.
        params: parameters that move.
        rho, adaptive, p: as in :class:`SAM`.
        modules: further modules whose buffers a pass writes without calling them.

    Returns:
        a scalar, detached.

    Raises:
        ValueError: rho below 0, p not above 1, a loss that is no scalar.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> sharpness(lambda: 0.5 * w[0] ** 2 + 5 * w[1] ** 2, [w], rho=0.1)
        tensor(1.0545)

    Source: Sharpness-Aware Minimization for Efficiently Improving Generalization, arXiv:2010.01412.
    """
    check_number("rho", rho, low=0.0)
    _check_p(p)
    moving = list(params)
    traces, start = Traces(modules), random_numbers()
    try:
        with traces.watching(), same_random_numbers(start), torch.enable_grad():
            loss = closure()
            check_tensor("closure", loss, ndim=0, floating=True)
            slopes = torch.autograd.grad(loss, moving, allow_unused=True)
        moves = ascent(moving, slopes, rho, adaptive=adaptive, p=p)
        with traces.frozen(), displaced(moving, moves), same_random_numbers(start), torch.no_grad():
            risen = closure() - loss
    finally:
        traces.undo()
    return risen.detach()


def _check_p(p: float) -> None:
    if isinstance(p, bool) or not isinstance(p, (int, float)):
        refuse_type("p", "a number", p)
    if not p > 1:
        refuse("p", "a number > 1, or math.inf", p)
