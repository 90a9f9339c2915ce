"""Gravity: momentum of a bounded transform of the gradient, from a random velocity, with a coefficient that rises."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...core.checks import check_number, check_tensor, refuse
from ...core.optimizer import ListOptimizer, Share, real
from ...core.search import Float
from ...core.torch_private import (
    foreach_add_,
    foreach_div,
    foreach_lerp_,
    foreach_mul,
    foreach_mul_,
    foreach_norm,
)
from ...core.wrapper import Params

_STEPS = "gravity_steps"
"""The key of a group that holds its counter."""


def gravity_step(
    param: Tensor, grad: Tensor, v: Tensor, t: int, lr: float = 0.1, beta: float = 0.9
) -> tuple[Tensor, Tensor]:
    r"""One step of :class:`Gravity` on one tensor.

    .. math:: M = \max |g|, \quad \zeta = \frac{g}{1 + (g M)^2}, \quad \hat\beta = \frac{\beta t + 1}{t + 2}, \quad
        v \leftarrow \hat\beta v + (1 - \hat\beta)\, \zeta, \quad w \leftarrow w - \alpha v

    Args:
        param: w, of any shape.
        grad: g, of its shape.
        v: velocity, of its shape.
        t: step >= 1.
        lr: alpha >= 0.
        beta: in [0, 1).

    Returns:
        the next w and v; what was given is not changed.

    Raises:
        ValueError: another shape, or a value outside its range.

    Example:
        >>> w, v = gravity_step(torch.zeros(3), torch.tensor([0.5, -2.0, 0.0]), torch.zeros(3), 1)
        >>> v
        tensor([ 0.0917, -0.0431,  0.0000])

    Source: Gravity Optimizer: a Kinematic Approach on Optimization in Deep Learning, arXiv:2101.09192.
    """
    check_tensor("param", param)
    check_tensor("grad", grad, shape=tuple(param.shape))
    check_tensor("v", v, shape=tuple(param.shape))
    check_number("t", t, low=1, integer=True)
    check_number("lr", lr, low=0.0)
    check_number("beta", beta, low=0.0, high=1.0, open_high=True)
    after, velocity = param.detach().clone(), v.detach().clone()
    _step([real(after)], [real(grad)], [real(velocity)], t, lr, beta)
    return after, velocity


def _step(
    weights: list[Tensor], slopes: list[Tensor], velocities: list[Tensor], t: int, lr: float, beta: float
) -> None:
    """In place."""
    below = foreach_mul(slopes, list(foreach_norm(slopes, math.inf)))
    foreach_mul_(below, below)
    foreach_add_(below, 1.0)
    smoothing = (beta * t + 1) / (t + 2)
    foreach_lerp_(velocities, foreach_div(slopes, below), 1 - smoothing)
    foreach_add_(weights, velocities, alpha=-lr)


class Gravity(ListOptimizer):
    r"""Steps that grow with small gradients and shrink with large ones, averaged from a random velocity.

    .. math:: M = \max |g|, \quad \zeta = \frac{g}{1 + (g M)^2}, \quad \hat\beta = \frac{\beta t + 1}{t + 2}, \quad
        v \leftarrow \hat\beta v + (1 - \hat\beta)\, \zeta, \quad w \leftarrow w - \alpha v, \qquad
        v_0 \sim N\Big(0, \big(\tfrac{a}{\alpha_0}\big)^2\Big)

    M is the largest entry of each tensor, so that the transform depends on how parameters are cut into tensors;
    |zeta| is at most 1 / (2 M). Large gradients (losses that are sums, an exploding start) stall it. The random
    velocity moves weights for some steps even where the gradient is 0. t counts the steps of each group.

    Args:
        params: parameters or groups.
        lr: alpha >= 0. The first displacements have size a whatever it is: alpha_0 is the group's ``initial_lr`` where
            a schedule has set it, else its lr at the first step.
        alpha: a >= 0; 0 starts at rest.
        beta: in [0, 1).
        generator: of the CPU, part of the state; None draws from torch's own.
        maximize: climb.
        foreach: lists of tensors (True, and None), or one tensor after the other.

    Raises:
        ValueError: a value outside its range; a rate of 0 at the first step and no ``initial_lr`` above 0.
        TypeError: a sparse gradient.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(3))
        >>> optimizer = Gravity([w], alpha=0.0)
        >>> w.grad = torch.tensor([0.5, -2.0, 0.0])
        >>> optimizer.step()
        >>> w.data
        tensor([-0.0092,  0.0043,  0.0000])

    Source: Gravity Optimizer: a Kinematic Approach on Optimization in Deep Learning, arXiv:2101.09192.
    """

    name = "gravity"
    search = {"beta": Float(0.5, 0.99)}
    ranges = {
        "lr": {"low": 0.0},
        "alpha": {"low": 0.0, "high": math.inf, "open_high": True},
        "beta": {"low": 0.0, "high": 1.0, "open_high": True},
    }
    exempt = dict.fromkeys(
        ("convergence", "minimum"), "steps along gradients above 1 shrink with their third power: it stalls far out"
    ) | {"zero_gradient": "the random velocity moves weights where the gradient is 0"}

    def __init__(
        self,
        params: Params,
        lr: float = 0.1,
        alpha: float = 0.01,
        beta: float = 0.9,
        generator: torch.Generator | None = None,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        options = {"lr": lr, "alpha": alpha, "beta": beta, "maximize": maximize}
        super().__init__(params, options, foreach=foreach, generator=generator)

    def _advance(self) -> None:
        moving = [group for group in self.param_groups if any(p.grad is not None for p in group["params"])]
        for group in moving:
            new = any(p.grad is not None and p not in self.state for p in group["params"])
            if new and group["alpha"] > 0 and not _first_rate(group) > 0:
                refuse("lr", "a number > 0 at the first step, or initial_lr > 0", group["lr"])
        shares = self._shares()
        for group in moving:
            group[_STEPS] = group.get(_STEPS, 0) + 1
        for share in shares:
            self._move(share)

    def _start(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
        velocity = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        if group["alpha"] > 0:
            numbers = torch.randn(parameter.shape, generator=self.generator, dtype=torch.float64)
            velocity.copy_(numbers * (group["alpha"] / _first_rate(group)))
        return {"velocity": velocity}

    def _move(self, share: Share) -> None:
        group = share.group
        _step(share.weights, share.slopes, share.state("velocity"), group[_STEPS], group["lr"], group["beta"])

    @classmethod
    def builders(cls) -> list[Callable[[Params], Gravity]]:
        """At rest, and from a random velocity."""

        def moving(params: Params) -> Gravity:
            optimizer = cls(params, lr=0.05, alpha=1e-4, generator=torch.Generator().manual_seed(0))
            for group in optimizer.param_groups:
                group["initial_lr"] = 0.05
            return optimizer

        return [lambda params: cls(params, alpha=0.0), moving]


def _first_rate(group: dict[str, Any]) -> float:
    return float(group.get("initial_lr", group["lr"]))
