"""Dependence as the Wasserstein distance of a joint law from the product of its marginals; predictive coding by it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float as F
from torch import Tensor, nn

from ...core.checks import check_number, check_tensor, refuse, refuse_type
from ...core.loss import Loss, Sample
from ...core.reductions import widen
from ...core.terms import kept_terms


def wasserstein_dependency(scores: F[Tensor, "batch batch"]) -> F[Tensor, ""]:
    r"""The Wasserstein dependency that a critic sees in a batch of pairs.

    .. math:: \frac1N \sum_i f_{ii} - \frac{1}{N (N - 1)} \sum_{i \ne j} f_{ij}, \qquad f_{ij} = f(x_i, y_j)

    In expectation a lower bound of W1(joint, product of marginals) for a critic that is 1-Lipschitz in the pair (x, y);
    for any other critic it bounds nothing.

    Args:
        scores: of the critic, ``[N, N]``, rows x and columns y, the joint pairs on the diagonal; N >= 2.

    Returns:
        A scalar in float32 or wider.

    Raises:
        ValueError: not square, fewer than two pairs.
        TypeError: not a floating tensor.

    Example:
        >>> wasserstein_dependency(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        tensor(1.5000)

    Source: Wasserstein Dependency Measure for Representation Learning, arXiv:1903.11780.
    """
    wide = _checked_scores(scores)
    n, joint = len(wide), wide.diagonal()
    # each row by its own pair's score: no sum of all of a matrix is taken off another
    return (joint[:, None] - wide).sum() / (n * (n - 1))


def predictive_coding_bound(scores: F[Tensor, "batch batch"]) -> F[Tensor, ""]:
    r"""The contrastive predictive coding term, a lower bound of the mutual information that never exceeds log N.

    .. math:: \frac1N \sum_i \Bigl[ f_{ii} - \log \frac1N \sum_j \exp f_{ij} \Bigr]

    It is log N less InfoNCE.

    Args:
        scores: of the critic, ``[N, N]``, rows x and columns y, the joint pairs on the diagonal; N >= 2.

    Returns:
        A scalar in float32 or wider, in nats.

    Raises:
        ValueError: not square, fewer than two pairs.
        TypeError: not a floating tensor.

    Example:
        >>> predictive_coding_bound(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        tensor(0.4731)

    Source: Wasserstein Dependency Measure for Representation Learning, arXiv:1903.11780.
    """
    wide = _checked_scores(scores)
    return wide.log_softmax(1).diagonal().mean() + math.log(len(wide))


def exact_wasserstein_dependency(P: Any, X: Any, Y: Any) -> float:
    r"""W1 between a discrete joint law and the product of its marginals, by linear programming.

    .. math:: I_W(X; Y) = \min_{\pi} \sum \pi_{(ij), (kl)} \|(x_i, y_j) - (x_k, y_l)\|_2

    over the plans from :math:`P_{ij}` to :math:`\sum_b P_{ib} \sum_a P_{aj}`. The cost is a metric, so only the mass
    by which the two differ moves: S cells that have too much, T that have too little, S T unknowns.

    Args:
        P: joint probabilities ``[n, m]``, >= 0, of sum 1.
        X: the points of the rows, ``[n]`` or ``[n, p]``, finite.
        Y: the points of the columns, ``[m]`` or ``[m, q]``, finite.

    Returns:
        The dependency >= 0, in the unit of the points; 0 under independence.

    Raises:
        ValueError: shapes that don't match, numbers that aren't finite, probabilities < 0 or of another sum.

    Example:
        >>> round(exact_wasserstein_dependency([[0.5, 0.0], [0.0, 0.5]], [0, 1], [0, 1]), 6)
        0.5

    Source: Wasserstein Dependency Measure for Representation Learning, arXiv:1903.11780.
    """
    from scipy.optimize import linprog
    from scipy.sparse import eye_array, kron, vstack
    from scipy.spatial.distance import cdist

    joint = np.asarray(P, dtype=np.float64)
    if joint.ndim != 2 or not joint.size:
        refuse("P", "a matrix [n, m] of probabilities", list(joint.shape))
    if not (joint >= 0).all() or abs(joint.sum() - 1) > 1e-6:
        refuse("P", "probabilities >= 0 of sum 1", f"a least value of {joint.min():g} and a sum of {joint.sum():g}")
    joint = joint / joint.sum()
    x, y = _points("X", X, joint.shape[0]), _points("Y", Y, joint.shape[1])
    moved = (joint - joint.sum(1, keepdims=True) * joint.sum(0)).reshape(-1)
    moved[np.abs(moved) <= 4 * np.finfo(np.float64).eps * joint.max()] = 0.0
    have, lack = np.flatnonzero(moved > 0), np.flatnonzero(moved < 0)
    if not len(have) or not len(lack):
        return 0.0
    pairs = np.hstack([np.repeat(x, len(y), axis=0), np.tile(y, (len(x), 1))])
    cost = cdist(pairs[have], pairs[lack])
    supply, demand, mass = moved[have], -moved[lack], moved[have].sum()
    # of sums 1, so that the solver's tolerances are relative
    wanted = np.concatenate([supply / supply.sum(), demand / demand.sum()])
    out = kron(eye_array(len(have)), np.ones((1, len(lack))))
    into = kron(np.ones((1, len(have))), eye_array(len(lack)))
    unit = float(cost.max()) or 1.0
    solution = linprog(cost.reshape(-1) / unit, A_eq=vstack([out, into], format="csr"), b_eq=wanted, method="highs")
    if not solution.success:
        raise RuntimeError(f"the transport problem was not solved: {solution.message}")
    return float(mass * unit * solution.fun)


class SeparableCritic(nn.Module):
    r"""A critic of two encoders, :math:`f(x, y) = h(x)^\top g(y)`.

    A critic of another form is any module ``critic(x, y) -> [N]`` that scores row by row; one with a method
    ``matrix(x, y) -> [N, M]`` scores all pairs by that.

    Args:
        h: encoder ``[N, ...] -> [N, D]``.
        g: encoder of y to the same D.

    Example:
        >>> critic = SeparableCritic(nn.Identity(), nn.Identity())
        >>> critic.matrix(torch.eye(2), torch.ones(3, 2)).shape
        torch.Size([2, 3])
    """

    def __init__(self, h: nn.Module, g: nn.Module) -> None:
        super().__init__()
        self.h, self.g = h, g

    def forward(self, x: Tensor, y: Tensor) -> F[Tensor, batch]:
        """The score of each row of ``x`` with the same row of ``y``."""
        return (widen(self.h(x)) * widen(self.g(y))).sum(-1)

    def matrix(self, x: Tensor, y: Tensor) -> F[Tensor, "rows columns"]:
        """The score of each row of ``x`` with each row of ``y``."""
        return widen(self.h(x)) @ widen(self.g(y)).mT


def lipschitz_penalty(
    critic: nn.Module, x: Tensor, y: Tensor, *, one_sided: bool = False, generator: torch.Generator | None = None
) -> F[Tensor, ""]:
    r"""How far the critic's slope in the pair is from 1, between joint samples and samples of the product.

    .. math:: \frac1N \sum_i \bigl( \|\nabla_{(u, v)} f(u_i, v_i)\|_2 - 1 \bigr)^2, \qquad
        (u_i, v_i) = t_i (x_i, y_i) + (1 - t_i) (x_a, y_b)

    with one t ~ U(0, 1) a pair, a a permutation, b uniform among the others than a. Gradients flow through the points
    as well as the critic. A penalty pulls towards 1-Lipschitz critics, it does not enforce it.

    Args:
        critic: ``critic(x, y) -> [N]``, row by row: what mixes rows (batch normalisation) has no gradient of a pair.
        x: ``[N, ...]``, N >= 2.
        y: ``[N, ...]``.
        one_sided: only slopes above 1 count.
        generator: of t, a and b, on the device of ``x``; None for torch's own.

    Returns:
        A scalar >= 0 in float32 or wider.

    Raises:
        ValueError: lengths that differ, fewer than two pairs, scores of another shape.
        TypeError: not floating tensors.

    Example:
        >>> critic = SeparableCritic(nn.Identity(), nn.Identity())
        >>> x = torch.tensor([[3.0], [3.0]])  # the slope of f = x y is that of its point
        >>> lipschitz_penalty(critic, x, 4 * x / 3)
        tensor(16.)

    Source: Wasserstein Dependency Measure for Representation Learning, arXiv:1903.11780; Improved Training of
    Wasserstein GANs, arXiv:1704.00028.
    """
    _check_pairs(x, y)
    x, y = _as_critic(critic, x), _as_critic(critic, y)
    n, device = len(x), x.device
    a = torch.randperm(n, generator=generator, device=device)
    b = (a + torch.randint(1, n, (n,), generator=generator, device=device)) % n
    t = torch.rand(n, generator=generator, device=device, dtype=torch.promote_types(x.dtype, torch.float32))
    u, v = (_between(t, z, z[paired]) for z, paired in ((x, a), (y, b)))
    slopes = torch.func.grad(lambda u, v: _row_scores(critic, u, v).sum(), argnums=(0, 1))(u, v)
    # one norm of both halves, which has slope 0 where it is 0
    norm = torch.linalg.vector_norm(torch.cat([widen(s).flatten(1) for s in slopes], 1), dim=1)
    excess = (norm - 1).relu() if one_sided else norm - 1
    return excess.square().mean()


class WassersteinDependencyLoss(Loss):
    r"""Minus the Wasserstein dependency of a batch as its critic sees it, with a penalty on the critic's slope.

    .. math:: -\frac1N \sum_i f_{ii} + \frac{1}{N (N - 1)} \sum_{i \ne j} f_{ij} + \lambda\,
        \mathrm{E} \bigl( \|\nabla f(u, v)\|_2 - 1 \bigr)^2

    :func:`lipschitz_penalty` says at which points. ``terms`` holds ``bound`` (the dependency, an estimate) and
    ``penalty`` (before the weight). Scale inputs alike: the metric is Euclidean on the pair that the critic is given.

    Args:
        critic: a module ``critic(x, y) -> [N]``; see :class:`SeparableCritic`. Its parameters are the loss's; inputs
            are cast to their precision.
        penalty: lambda >= 0; 0 leaves the penalty out, and the value then grows without bound in training: constrain
            the critic by its layers instead.
        one_sided: only slopes above 1 are penalised.

    Raises:
        ValueError: a negative penalty, batch normalisation in a penalised critic, fewer than two pairs, lengths that
            differ, scores of another shape.
        TypeError: a critic that isn't a module, pairs that aren't floating tensors.

    Example:
        >>> loss = WassersteinDependencyLoss(SeparableCritic(nn.Identity(), nn.Identity()), penalty=0.0)
        >>> loss(torch.eye(2), torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        tensor(-1.5000)

    Source: Wasserstein Dependency Measure for Representation Learning, arXiv:1903.11780.
    """

    name = "wasserstein_dependency"
    differentiable = (0, 1)

    def __init__(self, critic: nn.Module, penalty: float = 10.0, one_sided: bool = False) -> None:
        super().__init__()
        if not isinstance(critic, nn.Module):
            refuse_type("critic", "a module", critic)
        check_number("penalty", penalty, low=0.0, open_high=True, high=math.inf)
        if penalty:
            for module in critic.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    refuse("critic", "no batch normalisation, under which a pair has no gradient of its own", module)
        self.critic, self.penalty, self.one_sided = critic, penalty, bool(one_sided)

    def forward(self, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> F[Tensor, ""]:
        """The loss of N >= 2 pairs ``[N, ...]``; ``generator`` draws the points of the penalty."""
        _check_pairs(x, y)
        bound = self._bound(_all_scores(self.critic, _as_critic(self.critic, x), _as_critic(self.critic, y)))
        if not self.penalty:
            self.terms = kept_terms({"bound": bound})
            return -bound
        penalty = lipschitz_penalty(self.critic, x, y, one_sided=self.one_sided, generator=generator)
        self.terms = kept_terms({"bound": bound, "penalty": penalty})
        return self.penalty * penalty - bound

    def _bound(self, scores: Tensor) -> Tensor:
        return wasserstein_dependency(scores)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[WassersteinDependencyLoss, Sample]]:
        """Vectors under two encoders and under a network of the pair, small images, with each kind of penalty."""
        wide = torch.promote_types(dtype, torch.float32)

        def encoder(size: int) -> nn.Module:
            layers = nn.Sequential(nn.Flatten(), nn.Linear(size, 5), nn.Tanh(), nn.Linear(5, 3))
            for p in layers.parameters():
                p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64) / 2
            return layers.to(device, wide)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

        two = SeparableCritic(encoder(4), encoder(2))
        images = SeparableCritic(encoder(4), encoder(4))
        return [
            (cls(two), ((draw(6, 4), draw(6, 2)), {})),
            (cls(two, 1.0, one_sided=True), ((draw(2, 4), draw(2, 2)), {})),
            (cls(_OnPair(encoder(6)).to(device)), ((draw(5, 4), draw(5, 2)), {})),
            (cls(images, penalty=0.0), ((draw(4, 1, 2, 2), draw(4, 1, 2, 2)), {})),
        ]


class WPCLoss(WassersteinDependencyLoss):
    r"""Wasserstein predictive coding: contrastive predictive coding with a penalty on the critic's slope.

    .. math:: -\frac1N \sum_i \Bigl[ f_{ii} - \log \frac1N \sum_j \exp f_{ij} \Bigr] + \lambda\,
        \mathrm{E} \bigl( \|\nabla f(u, v)\|_2 - 1 \bigr)^2

    With ``penalty=0`` it is InfoNCE less log N. Arguments, ``terms`` and errors are those of
    :class:`WassersteinDependencyLoss`; ``bound`` is :func:`predictive_coding_bound`.

    Args:
        critic: a module ``critic(x, y) -> [N]``; see :class:`SeparableCritic`.
        penalty: lambda >= 0.
        one_sided: only slopes above 1 are penalised.

    Example:
        >>> loss = WPCLoss(SeparableCritic(nn.Identity(), nn.Identity()), penalty=0.0)
        >>> loss(torch.eye(2), torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        tensor(-0.4731)

    Source: Wasserstein Dependency Measure for Representation Learning, arXiv:1903.11780.
    """

    name = "wasserstein_predictive_coding"

    def _bound(self, scores: Tensor) -> Tensor:
        return predictive_coding_bound(scores)


class _OnPair(nn.Module):
    """A network on the flat pair, its outputs summed."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scores: Tensor = self.net(torch.cat([x.flatten(1), y.flatten(1)], 1)).sum(1)
        return scores


def _checked_scores(scores: Tensor) -> Tensor:
    check_tensor("scores", scores, ndim=2, floating=True)
    if scores.shape[0] != scores.shape[1] or scores.shape[0] < 2:
        refuse("scores", "a square matrix [N, N] with N >= 2", scores)
    return widen(scores)


def _check_pairs(x: Tensor, y: Tensor) -> None:
    for argument, value in (("x", x), ("y", y)):
        check_tensor(argument, value, floating=True)
        if not value.ndim or len(value) < 2:
            refuse(argument, "at least two rows [N, ...]", value)
    if len(y) != len(x):
        refuse("y", f"{len(x)} rows, as x", y)


def _as_critic(critic: nn.Module, value: Tensor) -> Tensor:
    own = next((p.dtype for p in critic.parameters() if p.is_floating_point()), None)
    return widen(value) if own is None else value.to(own)


def _between(t: Tensor, first: Tensor, second: Tensor) -> Tensor:
    share = t.to(first.dtype).reshape(-1, *[1] * (first.ndim - 1))
    return share * first + (1 - share) * second


def _row_scores(critic: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    scores: Tensor = critic(x, y)
    if tuple(scores.shape) not in ((len(x),), (len(x), 1)):
        refuse("critic", f"scores of shape ({len(x)},) for {len(x)} pairs", scores)
    return scores.reshape(-1)


def _all_scores(critic: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    n = len(x)
    matrix = getattr(critic, "matrix", None)
    if not callable(matrix):
        return _row_scores(critic, x.repeat_interleave(n, 0), y.repeat(n, *[1] * (y.ndim - 1))).reshape(n, n)
    scores: Tensor = matrix(x, y)
    if tuple(scores.shape) != (n, n):
        refuse("critic", f"a matrix of scores of shape ({n}, {n})", scores)
    return scores


def _points(argument: str, values: Any, rows: int) -> np.ndarray:
    points = np.asarray(values, dtype=np.float64)
    if points.ndim not in (1, 2) or points.shape[0] != rows:
        refuse(argument, f"points of shape ({rows},) or ({rows}, *)", list(points.shape))
    if not np.isfinite(points).all():
        refuse(argument, "finite numbers", float(points[~np.isfinite(points)][0]))
    return points.reshape(rows, -1)
