"""Cauchy-Schwarz information bottleneck: kernel estimates of fit and compression for regression."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import check_number, check_tensor, refuse
from ...core.loss import Loss, Sample
from ...core.reductions import widen
from ...core.terms import kept_terms

_FEW = 16
"""Columns up to which differences are formed one by one, exact where rows are close."""


def conditional_cs_divergence(
    x: F[Tensor, "batch d"], y: F[Tensor, "batch p"], yhat: F[Tensor, "batch p"], sigma: float = 1.0
) -> F[Tensor, ""]:
    r"""The Cauchy-Schwarz divergence of p(yhat | x) from p(y | x), by Gaussian kernels.

    .. math:: D = \log g(L^{y y}) + \log g(L^{\hat y \hat y}) - 2 \log g(L^{\hat y y}), \qquad
        g(L) = \sum_j \frac{\sum_i K_{ji} L_{ji}}{K_j^2}, \quad K_j = \sum_i K_{ji}

    with :math:`k(u, v) = \exp(-\|u - v\|^2 / 2 \sigma^2)`, K on x, and row j of L holding the kernel of the first
    superscript's j against all of the second's. Sums are taken in the log domain, so that kernels don't underflow.

    Where all :math:`K_j` are equal it is >= 0 and symmetric in y and yhat, as the divergence itself. Elsewhere the
    estimate is neither: rows weigh by :math:`1 / K_j^2`, columns don't. Its gradient at ``yhat = y`` is then not quite
    0, and values slightly below 0 occur.

    Args:
        x: conditions ``[N, d]``, standardised.
        y: ``[N, p]``, standardised; ``[N, 1]`` where it is a number.
        yhat: ``[N, p]``.
        sigma: width of the kernels, > 0. In many dimensions K of width 1 is nearly the identity, and the divergence
            then that of each prediction from its own target.

    Returns:
        A scalar in float32 or wider, in nats; 0 where ``yhat`` is ``y``. Memory grows with N^2.

    Raises:
        ValueError: not ``[N, columns]``, lengths or widths that differ, no rows, sigma <= 0.
        TypeError: not floating tensors.

    Example:
        >>> x, y, yhat = (torch.tensor([v]).T for v in ((0.0, 1.0, 2.0), (0.0, 1.0, 1.0), (0.0, 0.5, 1.5)))
        >>> conditional_cs_divergence(x, y, yhat)
        tensor(0.0683)

    Source: Cauchy-Schwarz Divergence Information Bottleneck for Regression, arXiv:2404.17951.
    """
    x, y, yhat = _checked(sigma, x=x, y=y, yhat=yhat)
    if yhat.shape != y.shape:
        refuse("yhat", f"shape {tuple(y.shape)}, as y", yhat)
    near = _log_kernel(x, x, sigma)
    near = near - 2 * near.logsumexp(1, keepdim=True)
    own, predicted, across = (_log_kernel(u, v, sigma) for u, v in ((y, y), (yhat, yhat), (yhat, y)))
    parts = [(near + kernel).logsumexp((0, 1)) for kernel in (own, predicted, across)]
    return parts[0] + parts[1] - 2 * parts[2]


def cs_mutual_information(
    x: F[Tensor, "batch d"], t: F[Tensor, "batch k"], sigma: float = 1.0, *, normalized: bool = False
) -> F[Tensor, ""]:
    r"""The Cauchy-Schwarz mutual information of two samples, by Gaussian kernels.

    .. math:: I = \log \frac{\sum_{ij} K_{ij} Q_{ij}}{N^2} + \log \frac{\sum_{ij} K_{ij} \sum_{ij} Q_{ij}}{N^4}
        - 2 \log \frac{\sum_j (\sum_i K_{ij}) (\sum_i Q_{ij})}{N^3}

    with the kernels K on x and Q on t. Normalised it is :math:`I(x, t) / \sqrt{I(x, x) I(t, t)}`.

    Args:
        x: ``[N, d]``, standardised.
        t: ``[N, k]``.
        sigma: width of the kernels, > 0.
        normalized: divide by the root of the two self-informations. Where one of them is 0 up to rounding (a constant
            sample) the result is 0, with a gradient of 0.

    Returns:
        A scalar >= 0 (up to rounding) in float32 or wider, in nats; 0 where one sample is constant.

    Raises:
        ValueError: not ``[N, columns]``, lengths that differ, no rows, sigma <= 0.
        TypeError: not floating tensors.

    Example:
        >>> x, y = torch.tensor([[0.0, 1.0, 2.0]]).T, torch.tensor([[0.0, 1.0, 1.0]]).T
        >>> cs_mutual_information(x, y), cs_mutual_information(x, y, normalized=True)
        (tensor(0.0754), tensor(0.8165))

    Source: Cauchy-Schwarz Divergence Information Bottleneck for Regression, arXiv:2404.17951.
    """
    x, t = _checked(sigma, x=x, t=t)
    k, q = _log_kernel(x, x, sigma), _log_kernel(t, t, sigma)
    information = _information(k, q)
    if not normalized:
        return information
    selves = _information(k, k), _information(q, q)
    constant = torch.minimum(*selves) <= 64 * torch.finfo(information.dtype).eps
    scale = torch.where(constant, 1.0, selves[0] * selves[1]).sqrt()
    return torch.where(constant, 0.0, information) / scale


class CauchySchwarzIBLoss(Loss):
    r"""The information bottleneck with Cauchy-Schwarz divergences: fit a target, forget the rest of the input.

    .. math:: L = D\bigl(p(y | x); p(\hat y | x)\bigr) + \beta\, I(x; t)

    See :func:`conditional_cs_divergence` and :func:`cs_mutual_information`. The parts are in ``terms``: ``divergence``
    and ``information`` (the latter absent where beta is 0).

    Args:
        beta: weight of the compression, >= 0; with 0 the representation is not looked at.
        sigma: width of the kernels on standardised data, > 0.
        normalized: whether I is divided by the root of the self-informations of x and t.

    Raises:
        ValueError: beta < 0, sigma <= 0.

    Example:
        >>> x, y, yhat = (torch.tensor([v]).T for v in ((0.0, 1.0, 2.0), (0.0, 1.0, 1.0), (0.0, 0.5, 1.5)))
        >>> CauchySchwarzIBLoss(beta=0.1)(x, yhat, yhat, y)
        tensor(0.1639)

    Source: Cauchy-Schwarz Divergence Information Bottleneck for Regression, arXiv:2404.17951.
    """

    name = "cauchy_schwarz_ib"
    differentiable = (0, 1, 2, 3)

    def __init__(self, beta: float = 1e-2, sigma: float = 1.0, normalized: bool = True) -> None:
        super().__init__()
        check_number("beta", beta, low=0.0, high=math.inf, open_high=True)
        check_number("sigma", sigma, low=0.0, open_low=True)
        self.beta, self.sigma, self.normalized = beta, sigma, bool(normalized)

    def forward(
        self,
        x: F[Tensor, "batch d"],
        t: F[Tensor, "batch k"],
        pred: F[Tensor, "batch p"],
        target: F[Tensor, "batch p"],
    ) -> F[Tensor, ""]:
        """The loss of inputs ``[N, d]``, representations ``[N, k]``, predictions and targets ``[N, p]``."""
        _checked(self.sigma, x=x, t=t, pred=pred, target=target)
        if pred.shape != target.shape:
            refuse("pred", f"shape {tuple(target.shape)}, as target", pred)
        fit = conditional_cs_divergence(x, target, pred, self.sigma)
        if self.beta == 0:
            self.terms = kept_terms({"divergence": fit})
            return fit
        information = cs_mutual_information(x, t, self.sigma, normalized=self.normalized)
        self.terms = kept_terms({"divergence": fit, "information": information})
        return fit + self.beta * information

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[CauchySchwarzIBLoss, Sample]]:
        """Few and many columns, one target and two, both forms of the information, none of it."""
        cases: list[tuple[CauchySchwarzIBLoss, Sample]] = []
        shapes = (({"beta": 0.1}, 3, 2, 1), ({"beta": 0.5, "normalized": False, "sigma": 2.0}, 4, 18, 2),
                  ({"beta": 0.0}, 2, 2, 1))  # fmt: skip
        for hyper, d, k, p in shapes:
            parts = [torch.randn(7, width, generator=generator, dtype=torch.float64) for width in (d, k, p, p)]
            cases.append((cls(**hyper), (tuple(v.to(device, dtype) for v in parts), {})))
        return cases


def _log_kernel(u: Tensor, v: Tensor, sigma: float) -> Tensor:
    """``log k(u_i, v_j)``, ``[N, N]``; exactly 0 on the diagonal where v is u."""
    if u.shape[1] <= _FEW:
        squared = (u.unsqueeze(1) - v).square().sum(-1)
    else:
        middle = v.detach().mean(0)  # |u|^2 + |v|^2 - 2 u.v cancels where both lie far from 0
        a, b = u - middle, v - middle
        squared = (a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T).clamp_min(0)
        if u is v:
            squared = squared * (1 - torch.eye(len(u), dtype=u.dtype, device=u.device))
    return squared / (-2 * sigma**2)


def _information(k: Tensor, q: Tensor) -> Tensor:
    """The mutual information of two log-kernels; the powers of N cancel."""
    columns = k.logsumexp(0), q.logsumexp(0)
    joint, product = (k + q).logsumexp((0, 1)), columns[0].logsumexp(0) + columns[1].logsumexp(0)
    return joint + product - 2 * (columns[0] + columns[1]).logsumexp(0)


def _checked(sigma: float, **tensors: Tensor) -> list[Tensor]:
    """The tensors in float32 or wider, after the checks that all functions share."""
    check_number("sigma", sigma, low=0.0, open_low=True)
    first, rows = next(iter(tensors.items()))
    for name, value in tensors.items():
        check_tensor(name, value, ndim=2, floating=True)
        if value.shape[0] != rows.shape[0]:
            refuse(name, f"{rows.shape[0]} rows, as {first}", value)
    if not rows.shape[0]:
        refuse(first, "at least one row", rows)
    return [widen(value) for value in tensors.values()]
