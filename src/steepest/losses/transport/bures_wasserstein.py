"""Bures-Wasserstein distance of covariances, and deep linear networks that generate Gaussians by it."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import check_number, check_tensor, refuse, values_visible
from ...core.closed_form import with_gradient
from ...core.loss import Loss, Sample
from ...core.reductions import widen

_MOST_POINTS = 100_000
"""Critical points that are listed at most."""


def bures_wasserstein_distance(
    s: F[Tensor, "*batch d d"], s0: F[Tensor, "*batch d d"], *, squared: bool = True, tau: float = 0.0
) -> F[Tensor, "*batch"]:
    r"""The 2-Wasserstein distance of the centred Gaussians with two covariances.

    .. math:: B^2(\Sigma, \Sigma_0) = \operatorname{tr} \Sigma + \operatorname{tr} \Sigma_0
        - 2 \operatorname{tr} \bigl(\Sigma_0^{1/2} \Sigma\, \Sigma_0^{1/2}\bigr)^{1/2}

    Its gradient in :math:`\Sigma` is :math:`I - T`, T the transport map from :math:`\Sigma` to :math:`\Sigma_0`, in
    closed form: repeated eigenvalues are no trouble. Where a covariance is singular B^2 has no gradient; T is then that
    of the range, which is what the chain rule through :math:`\Sigma = W W^T` asks for. There are no second derivatives.

    Args:
        s: covariances :math:`\Sigma`, symmetric and positive semi-definite, ``[..., d, d]``.
        s0: the other covariances, likewise; leading dimensions broadcast.
        squared: whether B^2 is returned, else B (whose gradient at B = 0 is taken as 0).
        tau: >= 0, added to the diagonal of ``s``.

    Returns:
        ``[...]`` in float32 or wider, never negative.

    Raises:
        ValueError: not square, other sizes, not symmetric, an eigenvalue below 0, a negative ``tau``.
        torch.linalg.LinAlgError: entries that are not finite.

    Example:
        >>> bures_wasserstein_distance(torch.diag(torch.tensor([1.0, 4.0])), torch.diag(torch.tensor([4.0, 1.0])))
        tensor(2.)

    Source: Critical Points and Convergence Analysis of Generative Deep Linear Networks Trained with Bures-Wasserstein
    Loss, arXiv:2303.03027.
    """
    check_number("tau", tau, low=0.0)
    _check_covariance("s", s)
    _check_covariance("s0", s0)
    if s.shape[-1] != s0.shape[-1]:
        refuse("s0", f"shape (..., {s.shape[-1]}, {s.shape[-1]})", s0)
    squared_distance = _squared(widen(s), widen(s0), tau)
    if squared:
        return squared_distance
    zero = squared_distance <= 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squared_distance).sqrt())


class BuresWassersteinLoss(Loss):
    r"""Squared distance of what a linear generator W makes of standard noise from a target covariance, smoothed by tau.

    .. math:: L_\tau(W) = B^2(W W^T + \tau I, \Sigma_0), \qquad \nabla L_\tau(W) = 2 (I - T) W

    tau > 0 keeps the Hessian bounded where the rank of W drops, and moves the minimum: the loss is 0 only where
    :math:`\Sigma_0 - \tau I` can be reached.

    Args:
        s0: the target covariance, symmetric and positive semi-definite, ``[d, d]``.
        tau: >= 0.

    Example:
        >>> loss = BuresWassersteinLoss(torch.diag(torch.tensor([4.0, 1.0])))
        >>> loss(torch.eye(2))
        tensor(1.)

    Source: Critical Points and Convergence Analysis of Generative Deep Linear Networks Trained with Bures-Wasserstein
    Loss, arXiv:2303.03027.
    """

    name = "bures_wasserstein"
    s0: Tensor

    def __init__(self, s0: F[Tensor, "d d"], tau: float = 0.0) -> None:
        super().__init__()
        check_tensor("s0", s0, ndim=2, floating=True)
        _check_covariance("s0", s0)
        check_number("tau", tau, low=0.0)
        self.register_buffer("s0", s0.detach().clone())
        self.tau = tau

    def forward(self, w: F[Tensor, "d k"]) -> Tensor:
        """The loss of an end-to-end matrix ``[d, k]``."""
        check_tensor("w", w, floating=True, shape=(self.s0.shape[0], None))
        wide = widen(w)
        return _squared(wide @ wide.T, self.s0.to(wide), self.tau)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[BuresWassersteinLoss, Sample]]:
        root = torch.randn(4, 4, generator=generator)
        s0 = (root @ root.T + torch.eye(4)).to(device)
        wide, thin = (torch.randn(4, k, generator=generator).to(device, dtype) for k in (4, 2))
        return [(cls(s0), ((wide,), {})), (cls(s0, tau=0.1), ((thin,), {})), (cls(s0), ((thin,), {}))]


def rank_bounded_critical_points(s0: F[Tensor, "d d"], k: int) -> list[tuple[Tensor, float, bool]]:
    r"""The critical points of rank k of B^2(., Sigma_0) among covariances of rank at most k.

    .. math:: \Sigma_J = U_J \operatorname{diag}(\lambda_J) U_J^T,\ |J| = k, \qquad
        B^2(\Sigma_J, \Sigma_0) = \sum_{i \notin J} \lambda_i

    for :math:`\Sigma_0 = U \operatorname{diag}(\lambda) U^T`. J of the k largest is the minimum, the others are
    saddles. Where eigenvalues repeat there are whole families, of which the members along ``eigh``'s basis are listed.

    Args:
        s0: the target covariance, positive definite, ``[d, d]``.
        k: rank, 1..d.

    Returns:
        ``(covariance [d, d], value, is the global minimum)``, by increasing value.

    Raises:
        ValueError: not positive definite, ``k`` outside 1..d, more than 100,000 points.

    Example:
        >>> points = rank_bounded_critical_points(torch.diag(torch.tensor([4.0, 2.0, 1.0])), k=1)
        >>> [(value, best) for _, value, best in points]
        [(3.0, True), (5.0, False), (6.0, False)]

    Source: Critical Points and Convergence Analysis of Generative Deep Linear Networks Trained with Bures-Wasserstein
    Loss, arXiv:2303.03027.
    """
    check_tensor("s0", s0, ndim=2, floating=True)
    _check_covariance("s0", s0)
    d = s0.shape[0]
    check_number("k", k, low=1, high=d, integer=True)
    if math.comb(d, k) > _MOST_POINTS:
        refuse("k", f"at most {_MOST_POINTS:,} critical points", math.comb(d, k))
    values, vectors = torch.linalg.eigh(widen(s0))
    if float(values[0]) <= float(values[-1]) * d * torch.finfo(values.dtype).eps:
        refuse("s0", "a positive definite matrix", f"a least eigenvalue of {float(values[0]):g}")
    total = float(values.sum())
    points = []
    for chosen in itertools.combinations(range(d), k):
        basis, eigenvalues = vectors[:, list(chosen)], values[list(chosen)]
        points.append(((basis * eigenvalues) @ basis.T, total - float(eigenvalues.sum())))
    points.sort(key=lambda point: point[1])
    least = points[0][1] + total * d * torch.finfo(values.dtype).eps
    return [(point, value, value <= least) for point, value in points]


@dataclass(frozen=True)
class DeepLinearRun:
    """Gradient descent of a deep linear generator.

    Args:
        losses: smoothed loss before each step and after the last, ``[steps + 1]``.
        minimum: the least smoothed loss that the width allows.
        layers: W_1, ..., W_N after the last step.
        imbalance: largest entry of :math:`W_{j+1}^T W_{j+1} - W_j W_j^T` after the last step.
    """

    losses: Tensor
    minimum: float
    layers: list[Tensor]
    imbalance: float

    @property
    def product(self) -> Tensor:
        """The end-to-end matrix W_N ... W_1, ``[d, width]``."""
        return _product(self.layers)


def deep_linear_bw_experiment(
    s0: F[Tensor, "d d"],
    depth: int,
    width: int,
    lr: float,
    steps: int,
    seed: int = 0,
    *,
    tau: float = 0.0,
    start: F[Tensor, "d width"] | None = None,
) -> DeepLinearRun:
    r"""Gradient descent on :math:`L_\tau(W_N \cdots W_1)` from a balanced start.

    .. math:: W_j \leftarrow W_j - \eta\, W_{j+1:N}^T\, 2 (I - T) W\, W_{1:j-1}^T, \qquad
        W_{j+1}^T W_{j+1} = W_j W_j^T \text{ at the start}

    The least loss is :math:`\sum_{i > k} (\sqrt{\lambda_i} - \sqrt\tau)^2`, over the eigenvalues of ``s0`` beyond the
    ``width`` largest, as long as those kept are at least tau.

    Args:
        s0: the target covariance, positive definite, ``[d, d]``; the run has its precision.
        depth: N, number of layers, >= 1.
        width: size of the noise and of every hidden layer, 1..d: the bound on the rank.
        lr: step size, > 0.
        steps: of gradient descent, >= 0.
        seed: of the start.
        tau: >= 0, below the ``width`` largest eigenvalues of ``s0``.
        start: end-to-end matrix to start from, ``[d, width]``; None draws standard normal entries over sqrt(d).

    Returns:
        Losses, the least loss and the layers.

    Raises:
        ValueError: wrong shapes, numbers outside their range.

    Example:
        >>> run = deep_linear_bw_experiment(torch.diag(torch.tensor([4.0, 2.0, 1.0])), 2, 1, 0.05, 300)
        >>> run.minimum, round(run.losses[-1].item(), 4)
        (3.0, 3.0)

    Source: Critical Points and Convergence Analysis of Generative Deep Linear Networks Trained with Bures-Wasserstein
    Loss, arXiv:2303.03027.
    """
    loss = BuresWassersteinLoss(s0, tau)
    d = s0.shape[0]
    check_number("depth", depth, low=1, integer=True)
    check_number("width", width, low=1, high=d, integer=True)
    check_number("lr", lr, low=0.0, open_low=True)
    check_number("steps", steps, low=0, integer=True)
    target = widen(s0)
    if start is None:
        draw = torch.randn(d, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        start = draw / math.sqrt(d)
    check_tensor("start", start, floating=True, shape=(d, width))
    u, size, vh = torch.linalg.svd(start.to(target), full_matrices=False)
    root = size ** (1 / depth)
    # all inner bases are the identity: W_1 = R V', W_j = R, W_N = U R, with R^N the singular values
    layers = [torch.diag(root) for _ in range(depth)]
    layers[0] = layers[0] @ vh
    layers[-1] = u @ layers[-1]
    layers = [layer.clone().requires_grad_() for layer in layers]
    losses = []
    for _ in range(steps):
        value = loss(_product(layers))
        gradients = torch.autograd.grad(value, layers)
        losses.append(value.detach())
        with torch.no_grad():
            for layer, gradient in zip(layers, gradients):
                layer -= lr * gradient
    final = [layer.detach() for layer in layers]
    losses.append(loss(_product(final)))
    eigenvalues = torch.linalg.eigvalsh(target)
    if tau > float(eigenvalues[d - width]):
        refuse("tau", f"at most {float(eigenvalues[d - width]):g}, the least eigenvalue kept", tau)
    dropped = eigenvalues[: d - width].clamp_min(0).sqrt() - math.sqrt(tau)
    gaps = [(upper.T @ upper - lower @ lower.T).abs().max() for lower, upper in itertools.pairwise(final)]
    return DeepLinearRun(torch.stack(losses), float(dropped.square().sum()), final, float(max(gaps)) if gaps else 0.0)


def _product(layers: list[Tensor]) -> Tensor:
    product = layers[0]
    for layer in layers[1:]:
        product = layer @ product
    return product


def _squared(s: Tensor, s0: Tensor, tau: float) -> Tensor:
    dtype = torch.promote_types(s.dtype, s0.dtype)
    if tau:
        s = s + tau * torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
    s, s0 = torch.broadcast_tensors(s.to(dtype), s0.to(dtype))
    return _squared_distance(s, s0)


def _root(s: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(s)
    # the root would blow the rounding of a zero eigenvalue up to sqrt(eps)
    noise = values[..., -1:] * (s.shape[-1] * torch.finfo(s.dtype).eps)
    return (vectors * torch.where(values > noise, values, 0.0).sqrt().unsqueeze(-2)) @ vectors.mT


def _squared_distance(s: Tensor, s0: Tensor) -> Tensor:
    """B^2 by the singular values of Sigma^(1/2) Sigma_0^(1/2) = P diag(c) Q'; no eigenvalue is squared on the way."""
    a, b = s.detach(), s0.detach()
    root, root0 = _root((a + a.mT) / 2), _root((b + b.mT) / 2)
    p, c, qh = torch.linalg.svd(root @ root0)
    trace = a.diagonal(dim1=-2, dim2=-1).sum(-1) + b.diagonal(dim1=-2, dim2=-1).sum(-1)

    def slopes() -> tuple[Tensor, ...]:
        # Sigma_0^(1/2) Sigma Sigma_0^(1/2) = Q c^2 Q', so that T = (Sigma_0^(1/2) Q) c^(-1) (Sigma_0^(1/2) Q)'
        least = c[..., :1] * (10 * c.shape[-1] * torch.finfo(c.dtype).eps)
        inverse = torch.where(c > least, 1 / c, 0.0).unsqueeze(-2)
        unit = torch.eye(c.shape[-1], dtype=c.dtype, device=c.device)
        return tuple(unit - (turned * inverse) @ turned.mT for turned in (root0 @ qh.mT, root @ p))

    value = (trace - 2 * c.sum(-1)).clamp_min(0)
    return with_gradient(value, (s, s0), slopes, "the Bures-Wasserstein distance")


def _check_covariance(argument: str, s: object) -> None:
    check_tensor(argument, s, floating=True)
    assert isinstance(s, Tensor)
    if s.ndim < 2 or s.shape[-1] != s.shape[-2] or s.shape[-1] == 0:
        refuse(argument, "square matrices [..., d, d]", s)
    if not s.numel() or not values_visible(s) or not bool(s.isfinite().all()):
        return
    wide = widen(s.detach())
    rounding = 10 * s.shape[-1] * torch.finfo(s.dtype).eps * float(wide.abs().max())
    if float((wide - wide.mT).abs().max()) > rounding:
        refuse(argument, "symmetric matrices", f"entries that differ by {float((wide - wide.mT).abs().max()):.3g}")
    least = float(torch.linalg.eigvalsh((wide + wide.mT) / 2).min())
    if least < -rounding:
        refuse(argument, "positive semi-definite matrices", f"an eigenvalue of {least:.3g}")
