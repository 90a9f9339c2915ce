"""Input attacks: ascent on the inputs of a model inside a norm ball, leaving parameters and their gradients alone."""

from __future__ import annotations

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
    check_tensor("inputs", inputs, floating=True)
    check_number("radius", radius, low=0.0)
    check_number("step_size", step_size, low=0.0, open_low=True)
    check_number("steps", steps, low=0, integer=True)
    if bounds is not None and not bounds[0] < bounds[1]:
        refuse("bounds", "(low, high) with low < high", bounds)
    centre = inputs.detach()
    low, high = centre - radius, centre + radius
    if bounds is not None:
        low, high = low.clamp(*bounds), high.clamp(*bounds)
    # drawn on the CPU, so that one seed gives one start on every device
    start = 2 * torch.rand(centre.shape, generator=generator, dtype=torch.float64) - 1
    current = torch.clamp(centre + radius * start.to(centre), low, high)
    for _ in range(steps):
        with torch.enable_grad():
            moving = current.requires_grad_()
            (slope,) = torch.autograd.grad(objective(moving).sum(), moving)
        current = torch.clamp(moving.detach() + step_size * slope.sign(), low, high)
    return current
