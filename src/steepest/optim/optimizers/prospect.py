"""Spectral risks, sorted losses with weights that rise, minimised without bias by tables of losses and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float as F
from scipy.optimize import isotonic_regression
from torch import Tensor, nn

from ...core.arguments import Arguments
from ...core.checks import check_choice, check_number, check_tensor, refuse
from ...core.reductions import widen

DIVERGENCES = ("chi2", "kl")
Array = np.ndarray
LossAndGradient = Callable[..., tuple[Tensor, Tensor]]


def superquantile(n: int, a: float = 0.5) -> F[Tensor, " n"]:
    """The spectrum of the mean of the largest share 1 - a of n losses, in float64.

    >>> superquantile(5, 0.5)
    tensor([0.0000, 0.0000, 0.2000, 0.4000, 0.4000], dtype=torch.float64)
    """
    check_number("n", n, low=1, integer=True)
    check_number("a", a, low=0.0, high=1.0, open_high=True)
    return ((torch.arange(1, n + 1, dtype=torch.float64) - n * a).clamp(0.0, 1.0)) / (n * (1.0 - a))


def extremile(n: int, r: float = 2.0) -> F[Tensor, " n"]:
    """The spectrum of the expected largest of r losses, (i / n)^r - ((i - 1) / n)^r, r >= 1, in float64.

    >>> extremile(4, 2)
    tensor([0.0625, 0.1875, 0.3125, 0.4375], dtype=torch.float64)
    """
    check_number("n", n, low=1, integer=True)
    check_number("r", r, low=1.0)
    return (torch.arange(n + 1, dtype=torch.float64) / n).pow(r).diff()


def esrm(n: int, rho: float = 1.0) -> F[Tensor, " n"]:
    """The spectrum of the exponential spectral risk measure, whose density rises by e^rho from end to end, in float64.

    >>> esrm(4, 1.0)
    tensor([0.1653, 0.2122, 0.2725, 0.3499], dtype=torch.float64)
    """
    check_number("n", n, low=1, integer=True)
    check_number("rho", rho, low=0.0, open_low=True)
    places = torch.arange(n + 1, dtype=torch.float64) / n
    return (rho * (places - 1.0)).exp().diff() / -math.expm1(-rho)


def spectral_risk_weights(
    losses: F[Tensor, " n"], sigma: F[Tensor, " n"], nu: float = 0.0, divergence: str = "chi2"
) -> F[Tensor, " n"]:
    r"""The worst weights of samples among the permutations of a spectrum and their mixtures, smoothed by a divergence.

    .. math::
        q = \arg\max_{q \in P(\sigma)} \sum_i q_i l_i - \nu D(q), \qquad
        D_{\chi^2} = \frac n2 \|q - 1/n\|^2, \qquad D_{KL} = \sum_i q_i \log(n q_i)

    Without smoothing the largest loss has the largest weight, of ties the one that comes first in memory the smaller.
    With chi-square q is the projection of :math:`l / (n \nu) + 1/n` on the permutahedron, with KL its
    Kullback-Leibler analogue; both are an isotonic regression after sorting. Other texts leave out the one half of the
    chi-square, which doubles nu. The weights are computed on the CPU in float64, and carry no gradient: by the envelope
    theorem :math:`\sum_i q_i \nabla l_i` is the gradient of the risk.

    Args:
        losses: one a sample.
        sigma: the spectrum, >= 0, in rising order, of sum 1.
        nu: smoothing >= 0.
        divergence: ``"chi2"`` or ``"kl"``.

    Returns:
        one weight a loss, in float32 or wider.

    Raises:
        ValueError: wrong shapes, a sigma that is no spectrum, losses that are not finite, nu below 0.

    Example:
        >>> spectral_risk_weights(torch.tensor([1.0, 3.0, 2.0, 5.0]), extremile(4, 2), nu=1.0)
        tensor([0.0625, 0.3125, 0.1875, 0.4375])

    Source: Distributionally Robust Optimization with Bias and Variance Reduction, arXiv:2310.13863.
    """
    check_tensor("losses", losses, ndim=1, floating=True)
    spectrum = _spectrum(sigma, len(losses))
    check_number("nu", nu, low=0.0)
    check_choice("divergence", divergence, DIVERGENCES)
    if not bool(losses.isfinite().all()):
        refuse("losses", "finite values", losses)
    values = _weights(losses.detach().double().cpu().numpy(), spectrum, nu, divergence)
    return torch.from_numpy(values).to(widen(losses))


class SpectralRisk(Arguments, nn.Module):
    r"""The spectral risk of all losses at once, smoothed: the full-batch objective that :class:`Prospect` minimises.

    .. math:: R = \max_{q \in P(\sigma)} \sum_i q_i l_i - \nu D(q)

    Its gradient has the weights :func:`spectral_risk_weights`. Of a part of the losses it is a biased estimate.

    Args:
        sigma: the spectrum, ``[n]``.
        nu: smoothing >= 0.
        divergence: ``"chi2"`` or ``"kl"``.

    Raises:
        ValueError: a sigma that is no spectrum, nu below 0.

    Example:
        >>> SpectralRisk(extremile(4, 2), nu=1.0)(torch.tensor([1.0, 3.0, 2.0, 5.0]))
        tensor(3.4062)

    Source: Distributionally Robust Optimization with Bias and Variance Reduction, arXiv:2310.13863.
    """

    sigma: Tensor

    def __init__(self, sigma: Tensor, nu: float = 0.0, divergence: str = "chi2") -> None:
        super().__init__()
        spectral_risk_weights(torch.zeros(len(sigma)), sigma, nu, divergence)
        self.nu, self.divergence = nu, divergence
        self.register_buffer("sigma", sigma.detach().clone())

    def forward(self, losses: F[Tensor, " n"]) -> Tensor:
        """The risk of ``[n]`` losses, a scalar."""
        q = spectral_risk_weights(losses, self.sigma, self.nu, self.divergence)
        n = len(losses)
        away = n / 2 * (q - 1 / n).square().sum() if self.divergence == "chi2" else torch.xlogy(q, n * q).sum()
        return q @ widen(losses) - self.nu * away


class Prospect:
    r"""Prospect: one sample a step, linear convergence to the minimum of a smoothed spectral risk.

    .. math::
        R(w) = \max_{q \in P(\sigma)} \Bigl\{ \sum_i q_i l_i(w) - \nu D(q) \Bigr\} + \frac\mu2 \|w\|^2

    Tables keep each sample's last loss, gradient :math:`g_i` and its weight :math:`r_i` at that time; q are the worst
    weights for the losses of the table, :math:`G = \sum_i r_i g_i`. A step draws i uniformly and moves along

    .. math:: v = n q_i \nabla l_i(w) - n r_i g_i + G, \qquad w \leftarrow \frac{w - \eta v}{1 + \eta \mu}

    so that the mean of v over i is :math:`\sum_i q_i \nabla l_i(w)` for any table, and its variance vanishes at the
    minimum. With a uniform spectrum it is SAGA. All in float64 on the CPU; the table of gradients takes n times d
    numbers, and a step sorts n losses.

    Args:
        loss: ``loss(w, *row) -> scalar``, of weights ``[d]`` and one row of each of ``data``.
        data: tensors of n rows each, or one tensor.
        sigma: the spectrum, ``[n]``, as of :func:`superquantile`, :func:`extremile`, :func:`esrm`.
        nu: smoothing >= 0; linear convergence needs it above 0.
        mu: strength of the squared norm, >= 0; 1/n by default.
        lr: the step size eta > 0.
        start: first weights; by default zeros, as many as the first of ``data`` has columns.
        value_and_gradient: ``(w, *row) -> (loss, gradient)`` where a formula is at hand, instead of ``torch.func``'s.
        divergence: ``"chi2"`` or ``"kl"``.
        generator: of the order of samples; torch's own by default.

    Raises:
        ValueError: wrong shapes, a sigma that is no spectrum, numbers outside their range.

    Example:
        >>> x, y = torch.tensor([[1.0], [1.0], [2.0]]), torch.tensor([1.0, 2.0, 3.0])
        >>> method = Prospect(lambda w, x, y: 0.5 * (x @ w - y) ** 2, (x, y), superquantile(3, 0.5), lr=0.1)
        >>> method.run(300)
        tensor([1.2966], dtype=torch.float64)

    Source: Distributionally Robust Optimization with Bias and Variance Reduction, arXiv:2310.13863.
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        data: Tensor | Sequence[Tensor],
        sigma: Tensor,
        nu: float = 1.0,
        mu: float | None = None,
        lr: float = 0.01,
        *,
        start: Tensor | None = None,
        value_and_gradient: LossAndGradient | None = None,
        divergence: str = "chi2",
        generator: torch.Generator | None = None,
    ) -> None:
        self.data = [data] if isinstance(data, Tensor) else list(data)
        for column in self.data:
            check_tensor("data", column)
        if not self.data or self.data[0].ndim == 0 or len({len(column) for column in self.data}) > 1:
            refuse("data", "tensors of as many rows", [tuple(column.shape) for column in self.data])
        self.data = [column.double() if column.is_floating_point() else column for column in self.data]
        self.n = len(self.data[0])
        self.sigma = _spectrum(sigma, self.n)
        check_number("nu", nu, low=0.0)
        check_number("lr", lr, low=0.0, open_low=True)
        check_choice("divergence", divergence, DIVERGENCES)
        mu = 1 / self.n if mu is None else mu
        check_number("mu", mu, low=0.0)
        self.nu, self.mu, self.lr, self.divergence = nu, mu, lr, divergence
        self.generator = generator
        own: Any = torch.func.grad_and_value(loss)
        self._at = value_and_gradient or (lambda w, *row: own(w, *row)[::-1])
        if start is None:
            if self.data[0].ndim != 2:
                refuse("start", "weights, because the first of data has no columns", None)
            start = torch.zeros(self.data[0].shape[1])
        check_tensor("start", start, ndim=1, floating=True)
        self.w = start.detach().double().clone()
        values = [self._at(self.w, *self._row(i)) for i in range(self.n)]
        self._losses = np.array([float(value) for value, _ in values])
        self.gradients = torch.stack([gradient.double() for _, gradient in values])
        self._q = self._worst()
        self._r = self._q.copy()
        self.mean_gradient = torch.from_numpy(self._r) @ self.gradients

    @property
    def losses(self) -> Tensor:
        """The last loss of each sample, ``[n]``."""
        return torch.from_numpy(self._losses.copy())

    @property
    def q(self) -> Tensor:
        """The worst weights for :attr:`losses`, ``[n]``."""
        return torch.from_numpy(self._q.copy())

    @property
    def table_weights(self) -> Tensor:
        """The weight that each gradient of the table has in the mean gradient, ``[n]``."""
        return torch.from_numpy(self._r.copy())

    def _row(self, i: int) -> list[Tensor]:
        return [column[i] for column in self.data]

    def _worst(self) -> Array:
        return _weights(self._losses, self.sigma, self.nu, self.divergence)

    def objective(self) -> Tensor:
        """R at the weights, from all samples."""
        losses = torch.stack([self._at(self.w, *self._row(i))[0] for i in range(self.n)])
        risk: Tensor = SpectralRisk(torch.from_numpy(self.sigma), self.nu, self.divergence)(losses)
        return risk + self.mu / 2 * self.w.square().sum()

    def direction(self, i: int) -> Tensor:
        """v for sample i, ``[d]``; changes nothing."""
        return self._direction(i, self._at(self.w, *self._row(i))[1])

    def _direction(self, i: int, gradient: Tensor) -> Tensor:
        change = float(self.n * self._q[i]) * gradient - float(self.n * self._r[i]) * self.gradients[i]
        return change.add_(self.mean_gradient)

    def step(self, i: int | None = None) -> Tensor:
        """One step.

        Args:
            i: the sample; drawn uniformly by default.

        Returns:
            The sample's loss at the weights before the step.
        """
        if i is None:
            i = int(torch.randint(self.n, (), generator=self.generator))
        check_number("i", i, low=0, high=self.n - 1, integer=True)
        value, gradient = self._at(self.w, *self._row(i))
        self.w = (self.w - self.lr * self._direction(i, gradient)) / (1 + self.lr * self.mu)
        self._losses[i] = float(value)
        old = float(self._q[i])
        self._q = self._worst()
        self.mean_gradient += old * gradient - float(self._r[i]) * self.gradients[i]
        self._r[i] = old
        self.gradients[i] = gradient
        return value.detach()

    def run(self, steps: int) -> Tensor:
        """So many steps; gives the weights, ``[d]``."""
        check_number("steps", steps, low=0, integer=True)
        for i in torch.randint(self.n, (steps,), generator=self.generator).tolist():
            self.step(i)
        return self.w


def _spectrum(sigma: Tensor, n: int) -> Array:
    check_tensor("sigma", sigma, floating=True, shape=(n,))
    values: Array = sigma.detach().double().cpu().numpy()
    rounding = 8 * torch.finfo(sigma.dtype).eps
    if not n or values.min() < 0 or (n > 1 and np.diff(values).min() < -rounding) or not abs(values.sum() - 1) < 1e-3:
        refuse("sigma", "values >= 0 in rising order of sum 1", sigma)
    spectrum: Array = values / values.sum()
    return spectrum


def _weights(losses: Array, sigma: Array, nu: float, divergence: str) -> Array:
    """Of the permutahedron, those that maximise."""
    n = len(losses)
    order = np.argsort(losses, kind="stable")
    q = np.empty(n)
    if nu == 0:
        q[order] = sigma
    elif divergence == "chi2":
        x = losses[order] / (n * nu)
        q[order] = x + 1 / n - isotonic_regression(x + 1 / n - sigma).x
    else:
        q[order] = _tilted(losses[order] / nu, sigma)
    return np.clip(q, 0.0, 1.0)


def _tilted(x: Array, sigma: Array) -> Array:
    """The KL form for sorted x: blocks in which q is a softmax of x times the block's share of sigma.

    Where the level log(sum exp x) - log(sum sigma) falls from one block to the next, the two become one.
    """
    blocks: list[tuple[float, float, int]] = []
    with np.errstate(divide="ignore"):
        for value, share in zip(x.tolist(), sigma.tolist()):
            blocks.append((value, share, 1))
            while len(blocks) > 1 and _level(blocks[-2]) >= _level(blocks[-1]):
                one, other_share, count = blocks.pop()
                sums, shares, members = blocks.pop()
                blocks.append((float(np.logaddexp(sums, one)), shares + other_share, members + count))
    levels = np.repeat([_level(block) for block in blocks], [members for _, _, members in blocks])
    q: Array = np.exp(x - levels)
    return q


def _level(block: tuple[float, float, int]) -> float:
    total, share, _ = block
    return math.inf if share == 0 else total - math.log(share)
