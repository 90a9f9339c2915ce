"""Huber and absolute Bellman errors, as saddle points with an estimate of the expected TD error."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import check_flag, check_interval, check_number, check_tensor, check_weight, refuse
from ...core.loss import Sample
from ...core.reductions import reduce
from ...core.terms import kept_terms
from ...core.value_loss import ValueLoss, checked_values


def robust_bellman_step(
    v: F[Tensor, "*shape"],
    v_next: F[Tensor, "*shape"],
    reward: F[Tensor, "*shape"],
    discount: F[Tensor, "*shape"],
    h: F[Tensor, "*shape"],
    rho: F[Tensor, "*shape"] | None = None,
    *,
    tau: float | None = 1.0,
    correction: bool = False,
    weight: F[Tensor, "*shape"] | None = None,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    r"""Two losses whose gradients are one saddle-point step on a robust Bellman error.

    With the TD error :math:`\delta = r + \gamma v(s') - v(s)` and a second learned function h(s), an estimate of its
    expectation e(s), the Huber function is a maximum that single transitions can climb:

    .. math:: p_\tau(e) = \max_{|h| \le \tau} (2 e h - h^2), \qquad \bar h = \mathrm{clip}(h, -\tau, \tau)

    .. math:: L_v = \bar h\, \rho\, (\gamma v(s') - v(s)), \qquad L_h = \tfrac12 (\rho \delta - h)^2

    The step of :math:`L_v` holds :math:`\bar h` fixed, that of :math:`L_h` holds :math:`\delta` fixed, and the clip
    does not stop the regression of h. Where h has converged, the expected gradient of :math:`L_v` is half that of the
    mean Huber Bellman error, the gradient of v(s') included (no semi-gradient). With ``tau = inf`` it is that of the
    mean squared Bellman error; with ``tau = None`` it is that of the mean absolute one, and :math:`\bar h` is the sign
    of h. With ``correction`` the gradient of v(s) has a lower variance, from the TD error itself:

    .. math:: L_v = -\mathrm{clip}(\rho \delta, -\tau, \tau)\, v(s) + \bar h\, \rho\, \gamma\, v(s')

    It goes with a weight decay of 1 on the parameters of h. h should learn as fast as v or faster: give its parameters
    a group of their own. In the words of rlax: v is v_tm1, v_next is v_t, reward is r_t, discount is discount_t. For
    control v_next is the largest action value, max_a q_t, and v the value of the action taken.

    Args:
        v: v(s), of any shape, often ``[B]``.
        v_next: v(s'), with gradient, of the same shape.
        reward: r, of the same shape.
        discount: gamma in [0, 1], of the same shape; 0 where the episode ends.
        h: the estimate of E[rho delta | s], of the same shape.
        rho: importance ratios >= 0 of off-policy actions, of the same shape; None for 1.
        tau: where the Huber function becomes linear, > 0, in the unit of the reward; ``inf`` for the squared error,
            None for the absolute one.
        correction: the variant of lower variance; not for the absolute error.
        weight: weights of transitions >= 0, of the same shape.
        reduction: ``"none"``, ``"mean"`` (of weights) or ``"sum"``.

    Returns:
        (L_v, L_h) in float32 or wider. L_v has gradients in v and v_next alone, L_h in h alone, so that one backward
        pass of their sum gives both steps. The value of L_v itself says nothing.

    Raises:
        ValueError: shapes that differ, tau <= 0, a discount outside [0, 1], a negative ratio or weight, ``correction``
            of the absolute error.
        TypeError: tensors that are not floating.

    Example:
        >>> v, v_next = torch.tensor([1.0, 0.5]), torch.tensor([0.5, 0.0])
        >>> reward, discount, h = torch.tensor([0.0, 3.0]), torch.tensor([0.9, 0.0]), torch.tensor([-0.5, 2.0])
        >>> robust_bellman_step(v, v_next, reward, discount, h)
        (tensor(-0.1125), tensor(0.0631))

    Source: Robust Losses for Learning Value Functions, arXiv:2205.08464.
    """
    _check_settings(tau, correction)
    named = {"v": v, "v_next": v_next, "reward": reward, "discount": discount, "h": h}
    ratio: Tensor | float = 1.0
    if rho is None:
        v, v_next, reward, discount, h = checked_values(**named)
    else:
        v, v_next, reward, discount, h, ratio = checked_values(**named, rho=rho)
        check_interval("rho", ratio, low=0.0, what="importance ratios")
        ratio = ratio.detach()
    check_interval("discount", discount, 0.0, 1.0)
    discount = discount.detach()
    delta = ratio * (reward + discount * v_next - v).detach()
    bounded = _bounded(h.detach(), tau)
    toward = _bounded(delta, tau) if correction else ratio * bounded
    loss_v = ratio * discount * bounded * v_next - toward * v
    loss_h = (delta - h).square() / 2
    return reduce(loss_v, reduction, weight), reduce(loss_h, reduction, weight)


def mean_huber_bellman_error(
    P: F[Tensor, "states states"],
    r: F[Tensor, " states"],
    gamma: float,
    v: F[Tensor, " states"],
    d: F[Tensor, " states"],
    tau: float | None = 1.0,
) -> Tensor:
    r"""The robust Bellman error of values in a model that is known.

    .. math:: \sum_s d(s)\, p_\tau(e(s)), \quad e = r + \gamma P v - v, \quad
        p_\tau(e) = e^2 \text{ if } |e| \le \tau \text{ else } 2 \tau |e| - \tau^2

    Args:
        P: chances ``[S, S]`` of the next state, a row a state; rows sum to 1, or to less where an episode may end.
        r: expected rewards ``[S]``.
        gamma: discount in [0, 1].
        v: values ``[S]``; the result is differentiable in them.
        d: weights of the states ``[S]``, >= 0.
        tau: where the error becomes linear, > 0; ``inf`` for the squared error, None for the absolute one,
            :math:`\sum_s d(s) |e(s)|`.

    Returns:
        A scalar in float32 or wider.

    Raises:
        ValueError: wrong shapes, tau <= 0, a gamma outside [0, 1], a negative chance or weight, rows above 1.
        TypeError: tensors that are not floating.

    Example:
        >>> P, r = torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.tensor([0.0, 3.0])
        >>> mean_huber_bellman_error(P, r, 0.9, torch.zeros(2), torch.tensor([0.5, 0.5]))
        tensor(2.5000)

    Source: Robust Losses for Learning Value Functions, arXiv:2205.08464.
    """
    _check_settings(tau, False)
    check_tensor("v", v, ndim=1, floating=True)
    check_number("gamma", gamma, low=0.0, high=1.0)
    check_tensor("P", P, floating=True, shape=(len(v), len(v)))
    v, r, d = checked_values(v=v, r=r, d=d)
    P = P.to(v)
    check_interval("P", P, 0.0, 1.0, what="chances")
    check_interval("P", P.sum(1), 0.0, 1.0, what="rows of sums", rounding=1e-4)
    check_weight(d, len(v))
    error = (r + gamma * (P @ v) - v).abs()
    if tau is None:
        return (d * error).sum()
    inside = error.clamp(max=tau)
    return (d * inside * (2 * error - inside)).sum()


class _SaddleLoss(ValueLoss):
    """What the Huber and the absolute error share: one forward pass, whose gradient is the saddle-point step."""

    gradient = "surrogate"
    differentiable = (0, 1, 4)
    values = ("v", "v_next", "reward", "discount", "h")
    stopped = ("reward", "discount")
    divergence = False

    tau: float | None
    correction: bool

    def forward(
        self,
        v: F[Tensor, "*shape"],
        v_next: F[Tensor, "*shape"],
        reward: F[Tensor, "*shape"],
        discount: F[Tensor, "*shape"],
        h: F[Tensor, "*shape"],
        rho: F[Tensor, "*shape"] | None = None,
        *,
        weight: F[Tensor, "*shape"] | None = None,
    ) -> Tensor:
        """L_v + L_h of transitions; both are in ``terms``."""
        given = v, v_next, reward, discount, h, rho
        loss_v, loss_h = robust_bellman_step(
            *given, tau=self.tau, correction=self.correction, weight=weight, reduction=self.reduction
        )
        self.terms = kept_terms({"v": loss_v, "h": loss_h})
        return loss_v + loss_h

    @staticmethod
    def fitted(*args: Tensor) -> tuple[Tensor, ...]:
        v, v_next, _, discount, h = args
        return v, v_next, v - discount * v_next, discount, torch.zeros_like(h)

    @staticmethod
    def reference_gradient(loss: Any, *args: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
        v, v_next, reward, discount, h = args
        rho = kwargs.get("rho", torch.ones_like(v))
        delta = rho * (reward + discount * v_next - v)

        def cut(x: Tensor) -> Tensor:
            return x.sign() if loss.tau is None else torch.minimum(x.abs(), torch.full_like(x, loss.tau)) * x.sign()

        pull = cut(delta) if loss.correction else rho * cut(h)
        return {"v": -pull, "v_next": rho * discount * cut(h), "h": h - delta}


class HuberBellmanLoss(_SaddleLoss):
    """The saddle-point step on the mean Huber Bellman error; see :func:`robust_bellman_step`.

    Args:
        tau: where the Huber function becomes linear, > 0, in the unit of the reward; ``inf`` for the squared error.
        correction: the variant of lower variance, from the TD error itself.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Example:
        >>> v, h = torch.tensor([1.0, 0.5], requires_grad=True), torch.tensor([-0.5, 2.0], requires_grad=True)
        >>> reward, discount = torch.tensor([0.0, 3.0]), torch.tensor([0.9, 0.0])
        >>> HuberBellmanLoss(reduction="sum")(v, torch.zeros(2), reward, discount, h).backward()
        >>> v.grad, h.grad
        (tensor([ 0.5000, -1.0000]), tensor([ 0.5000, -0.5000]))
    """

    name = "huber_bellman"
    alternatives = {"tau": (0.1, 1.0, math.inf), "correction": (False, True)}

    def __init__(self, tau: float = 1.0, correction: bool = False, reduction: str = "mean") -> None:
        super().__init__(reduction)
        check_number("tau", tau, low=0.0, open_low=True)
        _check_settings(tau, correction)
        self.tau, self.correction = tau, correction

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[HuberBellmanLoss, Sample]]:
        settings = ((1.0, False), (0.5, True), (math.inf, False), (math.inf, True))
        return [
            (cls(tau, correction), _sample(generator, dtype, device, off_policy))
            for tau, correction in settings
            for off_policy in (False, True)
        ]


class AbsoluteBellmanLoss(_SaddleLoss):
    """The saddle-point step on the mean absolute Bellman error; see :func:`robust_bellman_step` with ``tau=None``.

    Args:
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Example:
        >>> v, h = torch.tensor([1.0, 0.5], requires_grad=True), torch.tensor([-0.5, 2.0])
        >>> reward, discount = torch.tensor([0.0, 3.0]), torch.tensor([0.9, 0.0])
        >>> AbsoluteBellmanLoss(reduction="sum")(v, torch.zeros(2), reward, discount, h).backward()
        >>> v.grad
        tensor([ 1., -1.])
    """

    name = "absolute_bellman"
    tau = None
    correction = False

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[AbsoluteBellmanLoss, Sample]]:
        return [(cls(), _sample(generator, dtype, device, off_policy)) for off_policy in (False, True)]


def _bounded(value: Tensor, tau: float | None) -> Tensor:
    return value.sign() if tau is None else value.clamp(-tau, tau)


def _check_settings(tau: float | None, correction: bool) -> None:
    check_flag("correction", correction)
    if tau is not None:
        check_number("tau", tau, low=0.0, open_low=True)
    elif correction:
        refuse("correction", "False for the absolute error (tau=None)", correction)


def _sample(
    generator: torch.Generator, dtype: torch.dtype, device: str | torch.device, off_policy: bool
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    rows = torch.randn(4, 7, generator=generator, dtype=torch.float64)
    discount = torch.tensor([0.9, 0.0, 1.0, 0.9, 0.5, 0.9, 0.0], dtype=torch.float64)
    v, v_next, reward, h, discount, rho = (
        t.to(device, dtype) for t in (*rows, discount, torch.linspace(0.0, 2.0, 7, dtype=torch.float64))
    )
    return (v, v_next, reward, discount, h), {"rho": rho} if off_policy else {}
