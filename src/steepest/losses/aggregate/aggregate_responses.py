"""Learning from the mean response of bags: bag-level loss, instance-level loss, what lies between, and their risk."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor
from torch.nn.functional import softplus

from ...core.bags import bag_means, bag_sizes, bag_sums, check_bag_index, check_share
from ...core.checks import check_choice, check_number, check_tensor, refuse
from ...core.loss import Loss, Sample
from ...core.reductions import widen
from ...core.terms import kept_terms

Convex = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, Convex] = {
    "mse": lambda prediction, mean: (prediction - mean).square(),
    "mae": lambda prediction, mean: (prediction - mean).abs(),
    "logistic": lambda logit, mean: softplus(logit) - mean * logit,
}


def interpolated_bag_loss(
    predictions: F[Tensor, " rows"],
    bag_index: I[Tensor, " rows"],
    bag_mean: F[Tensor, " bags"],
    *,
    rho: float = 0.5,
    loss: str | Convex = "mse",
) -> Tensor:
    r"""Between the loss of a bag's mean prediction (rho = 0) and that of each prediction (rho = 1).

    .. math:: L_\rho = \sum_a \frac{k_a}{n} \Bigl[(1 - \rho)\, \ell(\bar y_a, \bar f_a)
        + \rho\, \frac1{k_a} \sum_{i \in a} \ell(\bar y_a, f_i)\Bigr]

    For the squared loss it is the bag loss plus rho times the mean squared distance of the predictions from their bag's
    mean. For a convex loss it increases with rho.

    Args:
        predictions: ``[N]``; logits for ``"logistic"``.
        bag_index: bags 0..M-1 of the rows, ``[N]``; sizes may differ, each bag weighs as many rows as it has.
        bag_mean: mean response of each bag, ``[M]``; in [0, 1] for ``"logistic"``.
        rho: in [0, 1].
        loss: ``"mse"``, ``"mae"``, ``"logistic"``, or a function of predictions and responses, convex in the first,
            that gives a loss for each.

    Returns:
        A scalar in float32 or wider.

    Raises:
        ValueError: rho outside [0, 1], wrong shapes, an empty bag, a bag outside the range.

    Example:
        >>> predictions, bags = torch.tensor([0.5, 2.0, 2.0, 5.0]), torch.tensor([0, 0, 1, 1])
        >>> [interpolated_bag_loss(predictions, bags, torch.tensor([1.0, 3.0]), rho=r).item() for r in (0.0, 1.0)]
        [0.15625, 1.5625]

    Source: Learning from Aggregate responses: Instance Level versus Bag Level Loss Functions, arXiv:2401.11081.
    """
    check_number("rho", rho, low=0.0, high=1.0)
    bag, instance = _parts(predictions, bag_index, bag_mean, loss)
    return (1 - rho) * bag + rho * instance


class InterpolatedBagLoss(Loss):
    """The interpolation as a module; see :func:`interpolated_bag_loss`. ``terms`` holds both ends.

    Args:
        rho: in [0, 1].
        loss: ``"mse"``, ``"mae"``, ``"logistic"`` or a convex function of predictions and responses.

    Example:
        >>> loss = InterpolatedBagLoss(rho=0.5)
        >>> loss(torch.tensor([0.0, 2.0]), torch.tensor([0, 0]), torch.tensor([1.0]))
        tensor(0.5000)
    """

    name = "interpolated_bag"

    def __init__(self, rho: float = 0.5, loss: str | Convex = "mse") -> None:
        super().__init__()
        check_number("rho", rho, low=0.0, high=1.0)
        if not callable(loss):
            check_choice("loss", loss, LOSSES)
        self.rho, self.loss = rho, loss

    def forward(
        self, predictions: F[Tensor, " rows"], bag_index: I[Tensor, " rows"], bag_mean: F[Tensor, " bags"]
    ) -> Tensor:
        """The loss of predictions, the bag of each row, and the mean response of each bag."""
        bag, instance = _parts(predictions, bag_index, bag_mean, self.loss)
        self.terms = kept_terms({"bag": bag, "instance": instance})
        return (1 - self.rho) * bag + self.rho * instance

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[InterpolatedBagLoss, Sample]]:
        predictions = torch.randn(6, generator=generator).to(device, dtype)
        index = torch.tensor([0, 1, 1, 0, 2, 1], device=device)
        means = torch.tensor([0.25, 0.5, 1.0], device=device, dtype=dtype)
        rhos = (0.0, 0.3, 1.0) if cls is InterpolatedBagLoss else (None,)
        return [
            (cls(loss=loss) if rho is None else cls(rho, loss), ((predictions, index, means), {}))
            for rho in rhos
            for loss in LOSSES
        ]


class BagLoss(InterpolatedBagLoss):
    r"""Only the mean prediction of a bag is fitted to its mean response: rho = 0.

    .. math:: L = \sum_a \frac{k_a}{n}\, \ell(\bar y_a, \bar f_a)

    Args:
        loss: ``"mse"``, ``"mae"``, ``"logistic"`` or a convex function of predictions and responses.

    Example:
        >>> BagLoss()(torch.tensor([0.0, 2.0]), torch.tensor([0, 0]), torch.tensor([1.0]))
        tensor(0.)

    Source: Learning from Aggregate responses: Instance Level versus Bag Level Loss Functions, arXiv:2401.11081.
    """

    name = "bag"

    def __init__(self, loss: str | Convex = "mse") -> None:
        super().__init__(0.0, loss)


class InstanceLoss(InterpolatedBagLoss):
    r"""Every prediction of a bag is fitted to the bag's mean response: rho = 1.

    .. math:: L = \frac1n \sum_a \sum_{i \in a} \ell(\bar y_a, f_i)

    Args:
        loss: ``"mse"``, ``"mae"``, ``"logistic"`` or a convex function of predictions and responses.

    Example:
        >>> InstanceLoss()(torch.tensor([0.0, 2.0]), torch.tensor([0, 0]), torch.tensor([1.0]))
        tensor(1.)

    Source: Learning from Aggregate responses: Instance Level versus Bag Level Loss Functions, arXiv:2401.11081.
    """

    name = "bag_instance"

    def __init__(self, loss: str | Convex = "mse") -> None:
        super().__init__(1.0, loss)


def aggregate_risk(
    x: F[Tensor, "rows features"], coefficients: F[Tensor, " features"], sigma: float, k: int, rho: float
) -> tuple[float, float]:
    r"""Squared bias and variance, given X, of least squares on the means of consecutive bags of k rows.

    .. math:: B = \bigl((1 - \rho) X^T S X + \rho X^T X\bigr)^{+} X^T S, \qquad
        \text{bias}^2 = \|B X \theta - \theta\|^2, \qquad \text{variance} = \sigma^2 \operatorname{tr} B B^T

    where S takes each row to its bag's mean and :math:`y = X \theta + \sigma \varepsilon`.

    Args:
        x: rows X, ``[N, D]``, N a multiple of ``k``.
        coefficients: the true :math:`\theta`, ``[D]``.
        sigma: standard deviation of the noise, >= 0.
        k: rows of a bag, >= 1.
        rho: in [0, 1]. Where rho = 0 and there are fewer bags than features the solution of least norm is taken.

    Returns:
        ``(bias^2, variance)``; their sum is the mean squared error of the coefficients.

    Raises:
        ValueError: wrong shapes, numbers outside their range.

    Example:
        >>> bias2, variance = aggregate_risk(torch.eye(4, dtype=torch.float64), torch.ones(4), 1.0, k=2, rho=1.0)
        >>> round(bias2, 6), round(variance, 6)
        (0.0, 2.0)

    Source: Learning from Aggregate responses: Instance Level versus Bag Level Loss Functions, arXiv:2401.11081.
    """
    check_tensor("x", x, ndim=2, floating=True)
    check_tensor("coefficients", coefficients, floating=True, shape=(x.shape[1],))
    check_number("sigma", sigma, low=0.0)
    check_number("k", k, low=1, integer=True)
    check_number("rho", rho, low=0.0, high=1.0)
    if x.shape[0] == 0 or x.shape[0] % k:
        refuse("x", f"a positive multiple of {k} rows", x)
    rows, truth = x.double(), coefficients.double()
    means = rows.reshape(-1, k, rows.shape[1]).mean(1)
    between = k * means.T @ means  # X'SX
    inverse = torch.linalg.pinv((1 - rho) * between + rho * rows.T @ rows, hermitian=True)
    bias = inverse @ (between @ truth) - truth
    return float(bias @ bias), sigma**2 * float((inverse @ between @ inverse).diagonal().sum())


def asymptotic_aggregate_risk(
    n: int, k: int, d: int, rho: float, sigma: float = 1.0, norm: float = 1.0
) -> tuple[float, float]:
    r"""The limit of :func:`aggregate_risk` for isotropic Gaussian rows, n and d growing together.

    With m = n/k bags and c = n - m, v > 0 solves d/v = p + q, p = m/(1 + v), q = c rho/(1 + rho v);

    .. math:: D = \frac{d}{v^2} - \frac{m}{(1 + v)^2} - \frac{c \rho^2}{(1 + \rho v)^2}, \quad
        V_1 = \frac{m}{(1 + v)^2 D}, \quad V_2 = \frac{c}{(1 + \rho v)^2 D}, \quad \delta = \frac{q}{p + q},

        \text{bias}^2 = \|\theta\|^2 \bigl[\delta^2 (1 + V_1) + (1 - \delta)^2 \rho^2 V_2\bigr], \qquad
        \text{variance} = \sigma^2 V_1.

    Args:
        n: rows, a multiple of ``k``.
        k: rows of a bag, >= 1.
        d: features, >= 1; below n, and below n/k where rho = 0.
        rho: in [0, 1].
        sigma: standard deviation of the noise, >= 0.
        norm: :math:`\|\theta\|`, >= 0.

    Returns:
        ``(bias^2, variance)``.

    Raises:
        ValueError: numbers outside their range; so many features that the normal matrix is singular.

    Example:
        >>> [round(sum(asymptotic_aggregate_risk(1200, 4, 100, rho)), 4) for rho in (0.0, 0.1, 1.0)]
        [0.5, 0.3118, 0.6023]

    Source: Learning from Aggregate responses: Instance Level versus Bag Level Loss Functions, arXiv:2401.11081. The
    limit follows from leaving one coordinate out of the normal equations.
    """
    for name, value in (("n", n), ("k", k), ("d", d)):
        check_number(name, value, low=1, integer=True)
    check_number("rho", rho, low=0.0, high=1.0)
    check_number("sigma", sigma, low=0.0)
    check_number("norm", norm, low=0.0)
    if n % k:
        refuse("n", f"a multiple of {k}", n)
    m = n // k
    c = n - m
    if d >= (n if rho > 0 and c else m):
        refuse("d", "fewer features than rows, and than bags where rho = 0", d)
    # d (1 + v)(1 + rho v) = m v (1 + rho v) + c rho v (1 + v): one positive root, written without cancellation
    square, linear = (n - d) * rho, m + c * rho - d - d * rho
    root = math.sqrt(linear**2 + 4 * square * d)
    v = 2 * d / (linear + root) if linear >= 0 else (root - linear) / (2 * square)
    p, q = m / (1 + v), c * rho / (1 + rho * v)
    slope = d / v**2 - m / (1 + v) ** 2 - c * rho**2 / (1 + rho * v) ** 2
    v1, v2 = m / ((1 + v) ** 2 * slope), c / ((1 + rho * v) ** 2 * slope)
    delta = q / (p + q)
    bias2 = norm**2 * (delta**2 * (1 + v1) + (1 - delta) ** 2 * rho**2 * v2)
    return bias2, sigma**2 * v1


def private_bag_means(
    y: F[Tensor, " rows"],
    bag_index: I[Tensor, " rows"],
    clip: float,
    epsilon: float,
    *,
    bags: int | None = None,
    generator: torch.Generator | None = None,
) -> F[Tensor, " bags"]:
    r"""Mean responses of bags, released with epsilon label-differential privacy by Laplace noise.

    .. math:: \bar y_a + \text{Laplace}\Bigl(\frac{2C}{k_a \epsilon}\Bigr), \qquad y_i \in [-C, C]

    Each response lies in one bag. Larger bags need less noise but are fewer. Floating-point noise protects against
    statistical inference, not against one who reads the last bits of the numbers.

    Args:
        y: responses ``[N]``, clipped to [-C, C].
        bag_index: bags 0..M-1 of the rows, ``[N]``.
        clip: C, > 0.
        epsilon: > 0.
        bags: M; None takes the largest index.
        generator: of the noise, on the device of ``y``; None is torch's own.

    Returns:
        ``[M]`` in float32 or wider.

    Raises:
        ValueError: epsilon or clip not above 0, wrong shapes, an empty bag.

    Example:
        >>> y, bags = torch.tensor([1.0, 2.0, 30.0, 4.0]), torch.tensor([0, 0, 1, 1])
        >>> private_bag_means(y, bags, clip=5.0, epsilon=1e9)
        tensor([1.5000, 4.5000])

    Source: Learning from Aggregate responses: Instance Level versus Bag Level Loss Functions, arXiv:2401.11081.
    """
    check_number("clip", clip, low=0.0, open_low=True)
    check_number("epsilon", epsilon, low=0.0, open_low=True)
    check_tensor("y", y, ndim=1, floating=True)
    check_tensor("bag_index", bag_index, ndim=1, floating=False)
    if bags is None:
        bags = int(bag_index.max()) + 1 if bag_index.numel() else 0
    check_bag_index(bag_index, y.shape[0], bags)
    wide = widen(y).clamp(-clip, clip)
    means = bag_means(wide, bag_index, bags)
    scale = 2 * clip / (bag_sizes(bag_index, bags, wide.dtype) * epsilon)
    first, second = (torch.empty_like(means).exponential_(generator=generator) for _ in range(2))
    return means + scale * (first - second)


def _parts(predictions: Tensor, bag_index: Tensor, bag_mean: Tensor, loss: str | Convex) -> tuple[Tensor, Tensor]:
    """The bag loss and the instance loss."""
    check_tensor("predictions", predictions, ndim=1, floating=True)
    check_tensor("bag_mean", bag_mean, ndim=1, floating=True)
    bags, rows = bag_mean.shape[0], predictions.shape[0]
    check_bag_index(bag_index, rows, bags)
    if not callable(loss):
        check_choice("loss", loss, LOSSES)
        if loss == "logistic":
            check_share("bag_mean", bag_mean)
    loss_of = loss if callable(loss) else LOSSES[loss]
    f = widen(predictions)
    mean = widen(bag_mean).to(f.dtype)
    sizes = bag_sizes(bag_index, bags, f.dtype)
    of_bags = loss_of(bag_sums(f, bag_index, bags) / sizes, mean)
    of_rows = loss_of(f, mean[bag_index])
    if of_bags.shape != mean.shape or of_rows.shape != f.shape:
        refuse("loss", "a loss for each prediction", of_rows)
    return (sizes * of_bags).sum() / rows, of_rows.mean()
