"""Input attacks: ascent on the inputs of a model inside a norm ball, leaving parameters and their gradients alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .checks import check_number, check_tensor, refuse


def linf_ascent(
    inputs: Tensor,
    objective: Callable[[Tensor], Tensor],
    *,
    radius: float,
    step_size: float,
    steps: int,
    generator: torch.Generator | None = None,
    bounds: tuple[float, float] | None = None,
) -> Tensor:
    r"""Projected gradient ascent in the l_inf ball, from a uniform random start.

    .. math:: x_{k+1} = \Pi_{\|x' - x\|_\infty \le r}\bigl(x_k + \eta\,\mathrm{sign} \nabla_{x_k} f(x_k)\bigr)

    Args:
        inputs: the centre x, a floating tensor ``[B, ...]``.
        objective: maps inputs to one number a sample, or one number in all; its sum goes up. Samples that don't
            interact are attacked independently.
        radius: r >= 0.
        step_size: > 0.
        steps: >= 0.
        generator: of the random start, on the CPU; None for torch's own.
        bounds: range of valid inputs, to which every iterate is clipped.

    Returns:
        The last iterate, detached, of the shape and type of ``inputs``.

    Example:
        >>> linf_ascent(torch.zeros(1, 2), lambda x: x.sum(-1), radius=0.5, step_size=0.25, steps=4)
        tensor([[0.5000, 0.5000]])
    """
    _check(inputs, radius, step_size, steps, bounds)
    centre = inputs.detach()
    low, high = centre - radius, centre + radius
    if bounds is not None:
        low, high = low.clamp(*bounds), high.clamp(*bounds)
    # drawn on the CPU, so that one seed gives one start on every device
    start = 2 * torch.rand(centre.shape, generator=generator, dtype=torch.float64) - 1
    current = torch.clamp(centre + radius * start.to(centre), low, high)
    for _ in range(steps):
        current, slope = _slope(objective, current)
        current = torch.clamp(current + step_size * slope.sign(), low, high)
    return current


def l2_ascent(
    inputs: Tensor,
    objective: Callable[[Tensor], Tensor],
    *,
    radius: float,
    step_size: float,
    steps: int,
    generator: torch.Generator | None = None,
    bounds: tuple[float, float] | None = None,
) -> Tensor:
    r"""Projected gradient ascent in the l_2 ball of each sample, from a uniform random start.

    .. math:: x_{k+1} = \Pi_{\|x' - x\|_2 \le r}\bigl(x_k + \eta\, \nabla f(x_k) / \|\nabla f(x_k)\|_2\bigr)

    A sample whose gradient is 0 stays where it is.

    Args:
        inputs, objective, radius, step_size, steps, generator: as of :func:`linf_ascent`; lengths are those of all
            coordinates of a sample.
        bounds: range of valid inputs, in which ``inputs`` lie and to which every iterate is clipped.

    Returns:
        The last iterate, detached, of the shape and type of ``inputs``.

    Example:
        >>> l2_ascent(torch.zeros(1, 2), lambda x: 3 * x[:, 0] + 4 * x[:, 1], radius=0.5, step_size=0.5, steps=40)
        tensor([[0.3000, 0.4000]])
    """
    _check(inputs, radius, step_size, steps, bounds)
    centre = inputs.detach()
    least, greatest = (-math.inf, math.inf) if bounds is None else bounds
    way = torch.randn(centre.shape, generator=generator, dtype=torch.float64)
    share = torch.rand(len(centre), generator=generator, dtype=torch.float64) ** (1 / max(1, centre[:1].numel()))
    start = _within(way, 0.0) * share.view(-1, *(1,) * (centre.ndim - 1))
    current = torch.clamp(centre + radius * start.to(centre), least, greatest)
    for _ in range(steps):
        current, slope = _slope(objective, current)
        moved = current + step_size * _within(slope, 0.0) - centre
        current = torch.clamp(centre + radius * _within(moved, radius), least, greatest)
    return current


def _check(inputs: Tensor, radius: float, step_size: float, steps: int, bounds: tuple[float, float] | None) -> None:
    check_tensor("inputs", inputs, floating=True)
    check_number("radius", radius, low=0.0)
    check_number("step_size", step_size, low=0.0, open_low=True)
    check_number("steps", steps, low=0, integer=True)
    if bounds is not None and not bounds[0] < bounds[1]:
        refuse("bounds", "(low, high) with low < high", bounds)


def _within(vectors: Tensor, radius: float) -> Tensor:
    """Each sample over the larger of its length and ``radius``; what has no length stays 0."""
    lengths = torch.linalg.vector_norm(vectors.unsqueeze(-1).flatten(1), dim=1).clamp_min(radius)
    lengths = torch.where(lengths > 0, lengths, 1.0)
    return vectors / lengths.view(-1, *(1,) * (vectors.ndim - 1))


def _slope(objective: Callable[[Tensor], Tensor], current: Tensor) -> tuple[Tensor, Tensor]:
    """The place, detached, and the gradient there."""
    with torch.enable_grad():
        moving = current.requires_grad_()
        (slope,) = torch.autograd.grad(objective(moving).sum(), moving)
    return moving.detach(), slope
