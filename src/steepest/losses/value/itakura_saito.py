"""Itakura-Saito loss: values that are certainty equivalents under exponential utility."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import check_number, check_tensor, refuse
from ...core.loss import Sample
from ...core.reductions import reduce, widen
from ...core.value_loss import ValueLoss, checked_values

LARGEST_EXPONENT = math.log(torch.finfo(torch.float32).max)
SERIES = 0.5
"""Up to this size of x, e^x - 1 - x is a power series: the difference would cancel."""
COEFFICIENTS = tuple(1 / math.factorial(k + 2) for k in range(14))
"""Of (e^x - 1 - x) / x^2: what is left out is below float64's rounding for |x| <= 1/2."""


def itakura_saito_loss(
    value: F[Tensor, "*shape"],
    target: F[Tensor, "*shape"],
    alpha: float,
    *,
    cap: float | None = None,
    weight: F[Tensor, "*shape"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""The Itakura-Saito divergence between exponentials of targets and of values.

    .. math:: L = \frac{e^{\alpha d} - \alpha d - 1}{\alpha^2}, \qquad d = V - y, \qquad
        \frac{\partial L}{\partial V} = \frac{e^{\alpha d} - 1}{\alpha}

    In expectation over targets it is least at their certainty equivalent :math:`-\alpha^{-1} \log E[e^{-\alpha y}]`.
    It depends on the difference alone and is convex, so exponentials of values are never formed. With alpha = 0 it is
    half the squared error. One step of gradient descent on a table is V <- V - lr (e^{alpha d} - 1) / alpha.

    The recursion V(s) = CE[r + V(s')] is that of undiscounted episodes: a discount below 1 would need another alpha at
    each step. In the words of rlax: value is v_tm1, target is r_t + discount_t * v_t with discount_t of 1, or of 0
    where the episode ends.

    Args:
        value: V, of any shape, often ``[B]`` or ``[T]``.
        target: y, of the same shape; no gradient flows into it.
        alpha: risk aversion, in one over the unit of the reward; above 0 averse, below 0 seeking, 0 neutral.
        cap: c > 0; where alpha d exceeds it, the exponential goes on along its tangent, e^c (1 + alpha d - c). About 5
            keeps plain gradient descent from diverging where values start far above (alpha > 0) their targets. None:
            no cap, and the loss overflows in float32 where alpha d passes 88.
        weight: weights >= 0, of the same shape.
        reduction: ``"none"``, ``"mean"`` (of weights) or ``"sum"``.

    Returns:
        The loss in float32 or wider.

    Raises:
        ValueError: shapes that differ, a cap that is not above 0 or is given with alpha = 0, a negative weight.
        TypeError: tensors that are not floating.

    Example:
        >>> value, target = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.5, 0.0, 0.0])
        >>> itakura_saito_loss(value, target, 0.5)
        tensor(0.9961)

    Source: Risk-Averse Reinforcement Learning with Itakura-Saito Loss, arXiv:2505.16925.
    """
    _check_settings(alpha, cap)
    value, target = checked_values(value=value, target=target)
    return reduce(_divergence(value - target.detach(), alpha, cap), reduction, weight)


def certainty_equivalent(samples: F[Tensor, "*shape"], alpha: float, dim: int = -1) -> Tensor:
    r"""The sure amount that exponential utility holds equal to a random one, from its samples.

    .. math:: \mathrm{CE}_\alpha[X] = -\frac1\alpha \log \frac1n \sum_i e^{-\alpha X_i}

    Args:
        samples: X, equally likely along ``dim``.
        alpha: risk aversion; above 0 the result is below the mean, below 0 above it, 0 gives the mean.
        dim: the dimension of the samples, of one entry or more.

    Returns:
        Of the shape without ``dim``, in float32 or wider.

    Raises:
        ValueError: no sample, an alpha that is not finite.

    Example:
        >>> certainty_equivalent(torch.tensor([0.0, 4.0]), 0.5)
        tensor(1.1324)

    Source: Risk-Averse Reinforcement Learning with Itakura-Saito Loss, arXiv:2505.16925.
    """
    _check_settings(alpha, None)
    check_tensor("samples", samples, floating=True)
    check_number("dim", dim, low=-samples.ndim, high=samples.ndim - 1, integer=True)
    if not samples.shape[dim]:
        refuse("samples", f"at least one along dimension {dim}", samples)
    samples = widen(samples)
    mean = samples.mean(dim)
    if alpha == 0:
        return mean
    spread = samples - mean.unsqueeze(dim)
    near = (alpha * spread).detach().abs().amax(dim) <= 30
    # near the mean log(1 + a^2 E[(e^-z - 1 + z) / a^2]) loses nothing as alpha becomes 0; far from it that overflows
    moderate = torch.where(near.unsqueeze(dim), spread, 0.0)
    risk = torch.log1p(alpha**2 * _divergence(moderate, -alpha, None).mean(dim)) / alpha
    far = (math.log(samples.shape[dim]) - torch.logsumexp(-alpha * samples, dim)) / alpha
    return torch.where(near, mean - risk, far)


def emse_loss(
    value: F[Tensor, "*shape"],
    target: F[Tensor, "*shape"],
    alpha: float,
    *,
    weight: F[Tensor, "*shape"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""The squared error of exponentials: the usual baseline, with the same minimiser.

    .. math:: L = \frac{(e^{-\alpha V} - e^{-\alpha y})^2}{2 \alpha^2}

    Its gradient scales with e^{-2 alpha V}: it vanishes where alpha V is large and explodes where it is very negative.
    With alpha = 0 it is half the squared error.

    Args:
        value: V, of any shape, often ``[B]`` or ``[T]``.
        target: y, of the same shape; no gradient flows into it.
        alpha: risk aversion, in one over the unit of the reward.
        weight: weights >= 0, of the same shape.
        reduction: ``"none"``, ``"mean"`` (of weights) or ``"sum"``.

    Returns:
        The loss in float32 or wider; it overflows in float32 where -alpha V or -alpha y passes 44.

    Raises:
        ValueError: shapes that differ, an alpha that is not finite, a negative weight.
        TypeError: tensors that are not floating.

    Example:
        >>> emse_loss(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 0.0]), 0.5)
        tensor(0.4176)

    Source: Risk-Averse Reinforcement Learning with Itakura-Saito Loss, arXiv:2505.16925.
    """
    _check_settings(alpha, None)
    value, target = checked_values(value=value, target=target)
    target = target.detach()
    difference = value - target
    if alpha != 0:  # the larger exponential times 1 - e^-|a d| keeps small differences
        largest = torch.maximum(-alpha * value, -alpha * target)
        difference = largest.exp() * torch.expm1(-(alpha * difference).abs()) / alpha
    return reduce(difference.square() / 2, reduction, weight)


class ItakuraSaitoLoss(ValueLoss):
    """Risk-averse value learning; see :func:`itakura_saito_loss`.

    Args:
        alpha: risk aversion; above 0 averse, below 0 seeking, 0 half the squared error.
        cap: the largest alpha (V - y) whose exponential is formed, > 0, or None.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Example:
        >>> loss = ItakuraSaitoLoss(alpha=1.0, cap=5.0)
        >>> loss(torch.tensor([2.0, 9.0]), torch.tensor([1.0, 0.0]))
        tensor(366.3920)
    """

    name = "itakura_saito"
    alternatives = {"alpha": (0.5, -0.5, 0.25), "cap": (None, 0.25, 1.0)}

    def __init__(self, alpha: float, cap: float | None = None, reduction: str = "mean") -> None:
        super().__init__(reduction)
        _check_settings(alpha, cap)
        self.alpha, self.cap = alpha, cap

    @property
    def largest(self) -> float:
        if self.alpha == 0 or self.cap is not None:
            return math.inf
        size = abs(self.alpha)
        return (LARGEST_EXPONENT + min(0.0, 2 * math.log(size))) / (2 * size)

    def forward(
        self, value: F[Tensor, "*shape"], target: F[Tensor, "*shape"], *, weight: F[Tensor, "*shape"] | None = None
    ) -> Tensor:
        """The loss of values and their targets."""
        return itakura_saito_loss(value, target, self.alpha, cap=self.cap, weight=weight, reduction=self.reduction)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[ItakuraSaitoLoss, Sample]]:
        settings = ((0.5, None), (-1.0, None), (0.0, None), (0.5, 0.5))
        return [(cls(alpha, cap), (_sample(generator, dtype, device), {})) for alpha, cap in settings]


class EMSELoss(ValueLoss):
    """The squared error of exponentials; see :func:`emse_loss`.

    Args:
        alpha: risk aversion; 0 is half the squared error.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Example:
        >>> EMSELoss(alpha=1.0)(torch.tensor([2.0, 0.5]), torch.tensor([1.0, 0.0]))
        tensor(0.0522)
    """

    name = "emse"
    alternatives = {"alpha": (0.5, -0.5, 0.0)}

    def __init__(self, alpha: float, reduction: str = "mean") -> None:
        super().__init__(reduction)
        _check_settings(alpha, None)
        self.alpha = alpha

    @property
    def largest(self) -> float:
        if self.alpha == 0:
            return math.inf
        size = abs(self.alpha)
        return (LARGEST_EXPONENT / 2 + min(0.0, math.log(size))) / size

    def forward(
        self, value: F[Tensor, "*shape"], target: F[Tensor, "*shape"], *, weight: F[Tensor, "*shape"] | None = None
    ) -> Tensor:
        """The loss of values and their targets."""
        return emse_loss(value, target, self.alpha, weight=weight, reduction=self.reduction)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[EMSELoss, Sample]]:
        return [(cls(alpha), (_sample(generator, dtype, device), {})) for alpha in (0.5, -1.0, 0.0)]


def _divergence(difference: Tensor, alpha: float, cap: float | None) -> Tensor:
    """(e^x - 1 - x) / alpha^2 with x = alpha d; each branch gets only entries that it can take."""
    if alpha == 0:
        return difference.square() / 2
    x = alpha * difference
    size = x.detach()
    over = size > (math.inf if cap is None else cap)
    near = (size.abs() <= SERIES) & ~over
    small = torch.where(near, x, 0.0)
    series = torch.full_like(small, COEFFICIENTS[-1])
    for coefficient in COEFFICIENTS[-2::-1]:
        series = series * small + coefficient
    large = torch.where(near | over, 1.0, x)
    exponential = torch.expm1(large) - large
    if cap is not None:
        tangent = math.expm1(cap) - cap + math.expm1(cap) * (x - cap)
        exponential = torch.where(over, tangent, exponential)
    return torch.where(near, difference.square() * series, exponential / alpha / alpha)


def _check_settings(alpha: float, cap: float | None) -> None:
    check_number("alpha", alpha, low=-math.inf, high=math.inf, open_low=True, open_high=True)
    if cap is not None:
        check_number("cap", cap, low=0.0, high=LARGEST_EXPONENT, open_low=True)
        if alpha == 0:
            refuse("cap", "None with alpha = 0, which forms no exponential", cap)


def _sample(generator: torch.Generator, dtype: torch.dtype, device: str | torch.device) -> tuple[Tensor, Tensor]:
    value, target = torch.randn(2, 7, generator=generator, dtype=torch.float64).to(device, dtype)
    return value, target
