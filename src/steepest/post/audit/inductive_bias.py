"""How much a learner must know beforehand to generalise: the information that chance would need beside the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float as F
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import gammaln, log_ndtr
from torch import Tensor, nn

from ...core.checks import check_choice, check_number, check_tensor, refuse
from ...core.random import seed_all
from ...descent import (
    ArrayBatches,
    Descent,
    Stack,
    StackedAdamW,
    StackedBatches,
    StackedObjective,
    StackedStep,
    architecture,
    stackable,
)
from ...losses.regression.squared_error import SquaredErrorLoss

Kernel = Callable[[Tensor, Tensor], Tensor]
Array = NDArray[np.float64]
SUMMED = 1e6
"""Up to this df + nc probabilities are summed; above, which takes that many terms, they are approximated."""
UNIFORM = 25.0
"""From this order on Bessel functions follow their uniform expansion, within 1e-7."""
LEAST_SHARE = 1e-9
"""Of nc in df + nc where errors are fitted, and of df."""


class LossDistribution(NamedTuple):
    """Of an error ``scale * X``, X non-central chi-square: degrees of freedom, non-centrality, scale.

    Args:
        df: > 0. nc: >= 0. scale: > 0, in the unit of the error.
    """

    df: float
    nc: float
    scale: float


class InductiveBias(float):
    """A number of nats or bits, with the least sampled error, below which it rests on the model of errors alone.

    Args:
        value: the number.
        eps: the error that was asked for.
        least_error: the least of the sampled errors; NaN where only a distribution was given.

    Example:
        >>> bias = InductiveBias(3.5, eps=0.1, least_error=0.2)
        >>> bias + 1, bias.extrapolated
        (4.5, True)
    """

    eps: float
    least_error: float

    def __new__(cls, value: float, eps: float = math.nan, least_error: float = math.nan) -> InductiveBias:
        bias = super().__new__(cls, value)
        bias.eps, bias.least_error = eps, least_error
        return bias

    @property
    def extrapolated(self) -> bool:
        """Whether no sample was as good as ``eps``."""
        return self.eps < self.least_error


def inductive_bias(
    errors: F[Tensor, " samples"] | LossDistribution | tuple[float, float, float], eps: float, unit: str = "nats"
) -> InductiveBias:
    r"""The information that must be built into a learner so that it generalises.

    .. math:: I(\epsilon) = -\ln P(e(h) \le \epsilon \mid h \text{ fits the training data}), \qquad
        e \sim s\, \chi'^2_{df}(nc)

    over hypotheses h of a base space, of which ``errors`` are samples. What an architecture A carries beside a space B
    is the difference of both at one error. Probabilities are exact at any depth,

    .. math:: P = \sum_{i \ge 0} \frac{(x/2)^{df/2 + i} e^{-x/2}}{\Gamma(df/2 + i + 1)}
        \sum_{j \le i} \frac{(nc/2)^j e^{-nc/2}}{j!}, \qquad x = \epsilon / s,

    summed by logarithms. The publication's approximation by Sankaran's normal variable serves only where df + nc is
    above a million, with its whole tail :math:`-\ln \Phi(z)` and never less than Chernoff's bound allows: by itself it
    lies an eighth below at a twentieth of the mean error. Far below the least sampled error the result depends on the
    model of errors, hence its ``extrapolated`` and ``least_error``.

    Args:
        errors: test errors of sampled hypotheses ``[S]``, > 0, S >= 3 (fitted by :func:`fit_loss_distribution`); or
            (df, nc, scale).
        eps: the error of a good model, >= 0, in the unit of the errors.
        unit: ``"nats"`` or ``"bits"``.

    Returns:
        the information, >= 0; infinite at eps = 0.

    Raises:
        ValueError: numbers outside their range, another unit.

    Example:
        >>> round(inductive_bias((4.0, 0.0, 1.0), 0.5), 6), round(inductive_bias((4.0, 0.0, 1.0), 0.5, "bits"), 6)
        (3.630647, 5.237917)

    Source: Towards Exact Computation of Inductive Bias, arXiv:2406.15941.
    """
    check_number("eps", eps, low=0.0)
    check_choice("unit", unit, ("nats", "bits"))
    least = math.nan
    if isinstance(errors, Tensor):
        distribution = fit_loss_distribution(errors)
        least = float(errors.min())
    else:
        distribution = _checked(errors)
    df, nc, scale = distribution
    nats = max(0.0, -_log_probability(float(eps) / scale, df, nc))
    return InductiveBias(nats if unit == "nats" else nats / math.log(2), float(eps), least)


def fit_loss_distribution(errors: F[Tensor, " samples"]) -> LossDistribution:
    r"""The scaled non-central chi-square under which errors are most likely, with no offset.

    .. math:: \max_{df, nc, s} \sum_i \ln \tfrac1s f(e_i / s), \qquad f(x) = \tfrac12 e^{-(x + nc)/2}
        (x/nc)^{df/4 - 1/2} I_{df/2 - 1}(\sqrt{nc\, x})

    The mean and the variance fix two of the three numbers. The third, which share nc has in df + nc, is told by the
    skewness, which lies between 0.75 and 1 times that of a gamma distribution: few samples, or errors that vary by
    little, leave it open.

    Args:
        errors: test errors of sampled hypotheses ``[S]``, finite, > 0, S >= 3, not all equal.

    Returns:
        df, nc and scale.

    Raises:
        ValueError: numbers outside their range.

    Example:
        >>> x = torch.distributions.Chi2(4.0).sample((4000,)) if torch.manual_seed(0) else None
        >>> df, nc, scale = fit_loss_distribution(x)
        >>> abs(scale * (df + nc) - float(x.mean())) < 0.02
        True

    Source: Towards Exact Computation of Inductive Bias, arXiv:2406.15941.
    """
    check_tensor("errors", errors, ndim=1, floating=True)
    e = errors.detach().double().cpu().numpy()
    if len(e) < 3 or not bool(np.isfinite(e).all()) or not bool((e > 0).all()):
        refuse("errors", "at least 3 finite numbers above 0", errors if len(e) < 3 else float(e.min()))
    mean = float(e.mean())
    x = e / mean
    spread = float(x.var())
    if spread <= np.finfo(np.float64).eps:
        refuse("errors", "numbers that differ", mean)
    # in units of what samples leave open, so that all directions are alike to the search
    units = math.sqrt(spread / len(x)), math.sqrt(4 / len(x))

    def distribution(place: Array) -> LossDistribution:
        """From the logarithms of the mean and of 2 mean^2 / variance, and the share of nc in df + nc."""
        share = float(place[2])
        total = 2 / spread * math.exp(units[1] * place[1]) * (1 + share)
        return LossDistribution(total * (1 - share), total * share, math.exp(units[0] * place[0]) / total)

    def cost(place: Array) -> float:
        df, nc, scale = distribution(place)
        return len(x) * math.log(scale) - float(_log_density(x / scale, df, nc).sum())

    bounds = [*((-3 / unit, 3 / unit) for unit in units), (LEAST_SHARE, 1 - LEAST_SHARE)]
    options = {"eps": 1e-5, "ftol": 1e-13, "gtol": 1e-4}
    fits = [
        minimize(cost, (0.0, 0.0, share), method="L-BFGS-B", bounds=bounds, options=options)
        for share in (0.1, 0.5, 0.9)
    ]
    best = min(fits, key=lambda fit: float(fit.fun))
    df, nc, scale = distribution(best.x)
    return LossDistribution(df, nc, scale * mean)


def isotropic_loss_distribution(variance: float, bias: Tensor) -> LossDistribution:
    r"""The exact distribution of the mean squared error of outputs with one variance and no correlation.

    .. math:: f \sim N(y + d, s I_n): \qquad e = \tfrac1n \|f - y\|^2 \sim \tfrac{s}{n} \chi'^2_n(\|d\|^2 / s)

    Args:
        variance: s > 0.
        bias: d, the mean less the target, of any shape with n >= 1 numbers.

    Returns:
        df, nc and scale.

    Raises:
        ValueError: numbers outside their range.

    Example:
        >>> round(inductive_bias(isotropic_loss_distribution(0.04, torch.tensor([0.3, -0.4])), 0.01), 6)
        4.279332

    Source: Towards Exact Computation of Inductive Bias, arXiv:2406.15941.
    """
    check_number("variance", variance, low=0.0, open_low=True, high=math.inf, open_high=True)
    check_tensor("bias", bias, floating=True)
    if not bias.numel():
        refuse("bias", "at least one number", bias)
    n = bias.numel()
    return _checked((float(n), float(bias.detach().double().square().sum()) / variance, variance / n))


def gp_posterior(
    x: F[Tensor, "train features"],
    y: F[Tensor, "train ..."],
    xt: F[Tensor, "test features"],
    kernel: Kernel | None = None,
    *,
    jitter: float = 1e-6,
) -> tuple[F[Tensor, "test ..."], F[Tensor, "test test"]]:
    r"""Mean and covariance of functions of a Gaussian process that go through the training labels.

    .. math:: m = K_*^\top K^{-1} y, \qquad C = K_{**} - K_*^\top K^{-1} K_*

    Args:
        x: training inputs ``[N, D]``. y: their labels, ``[N]`` or ``[N, C]``, each output a process of its own.
        xt: test inputs ``[M, D]``.
        kernel: ``kernel(a, b)``, ``[n, D]`` and ``[m, D]`` to ``[n, m]``; None for
            :math:`\exp(-\|a - b\|^2 / 2)`. Another width is another scale of the inputs.
        jitter: >= 0, added to the diagonal of K: a variance by which labels may be missed.

    Returns:
        the mean, ``[M]`` or ``[M, C]``, and the covariance of each output, ``[M, M]``, in float64.

    Raises:
        ValueError: wrong shapes, a kernel matrix that is not positive definite.

    Example:
        >>> mean, covariance = gp_posterior(torch.zeros(1, 1), torch.ones(1), torch.ones(1, 1), jitter=0.0)
        >>> round(float(mean), 6), round(float(covariance), 6)
        (0.606531, 0.632121)

    Source: Towards Exact Computation of Inductive Bias, arXiv:2406.15941.
    """
    check_tensor("x", x, ndim=2, floating=True)
    check_tensor("y", y, ndim=(1, 2), floating=True)
    check_tensor("xt", xt, floating=True, shape=(None, x.shape[1]))
    check_number("jitter", jitter, low=0.0)
    if len(y) != len(x) or not len(x):
        refuse("y", f"{len(x)} rows, as x, and at least one", y)
    of = _rbf if kernel is None else kernel
    x, y, xt = x.detach().double(), y.detach().double(), xt.detach().double()
    across = of(x, xt)
    if across.shape != (len(x), len(xt)):
        refuse("kernel", f"values of shape ({len(x)}, {len(xt)})", across)
    gram = of(x, x) + jitter * torch.eye(len(x)).to(x)
    factor, info = torch.linalg.cholesky_ex(gram)
    if int(info):
        refuse("kernel", "a positive definite matrix (a larger jitter may make it so)", gram)
    white = torch.linalg.solve_triangular(factor, across, upper=False)
    labels = torch.linalg.solve_triangular(factor, y.reshape(len(y), -1), upper=False)
    return (white.T @ labels).reshape(len(xt), *y.shape[1:]), of(xt, xt) - white.T @ white


def gp_hypotheses(
    x: F[Tensor, "train features"],
    y: F[Tensor, "train ..."],
    xt: F[Tensor, "test features"],
    kernel: Kernel | None = None,
    n: int = 10_000,
    *,
    jitter: float = 1e-6,
    generator: torch.Generator | None = None,
) -> F[Tensor, "n test ..."]:
    r"""Test outputs of random functions of a Gaussian process that fit the training labels (:func:`gp_posterior`).

    Args:
        x, y, xt, kernel, jitter: as of :func:`gp_posterior`; y one-hot for classes.
        n: functions, >= 1; all outputs are held at once.
        generator: of the draws, on the CPU; None for torch's own.

    Returns:
        ``[n, M]`` or ``[n, M, C]``, in float64.

    Raises:
        ValueError: as of :func:`gp_posterior`; n below 1.

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([1.0, -1.0])
        >>> f = gp_hypotheses(x, y, x, n=5)
        >>> f.shape, bool((f - y).abs().max() < 0.01)
        (torch.Size([5, 2]), True)

    Source: Towards Exact Computation of Inductive Bias, arXiv:2406.15941.
    """
    check_number("n", n, low=1, integer=True)
    mean, covariance = gp_posterior(x, y, xt, kernel, jitter=jitter)
    values, axes = torch.linalg.eigh(covariance)
    root = (axes * values.clamp_min(0.0).sqrt()) @ axes.T  # the symmetric one is unique, so draws are on any machine
    noise = torch.randn(n, len(mean), mean[:1].numel(), generator=generator, dtype=torch.float64).to(mean.device)
    return mean + (root @ noise).view(n, *mean.shape)


def trained_hypotheses(
    make_model: Callable[[], nn.Module],
    train: tuple[Tensor, Tensor],
    n: int,
    xt: Tensor,
    *,
    epochs: int = 100,
    lr: float = 1e-3,
    batch_size: int = 64,
    seed: int = 0,
) -> F[Tensor, "n test ..."]:
    r"""Test outputs of networks trained from fresh weights, each in an order of its own, by Adam on squared errors.

    Their errors tell what a task still asks for beside the architecture. How well they fit the training data is seen
    from outputs at these: give both as ``xt``. Networks without buffers and dropout train as one stack.

    Args:
        make_model: ``make_model()``, a module with fresh weights, one architecture.
        train: inputs ``[N, ...]``, and real targets of the shape of outputs, or classes ``[N]`` (then their one-hot
            code, and the mean over outputs).
        n: networks, >= 1.
        xt: test inputs ``[M, ...]``.
        epochs: >= 1. lr: > 0. batch_size: >= 1.
        seed: >= 0, of weights and orders.

    Returns:
        ``[n, M, ...]``, in evaluation mode.

    Raises:
        ValueError: numbers outside their range; a model that is given twice.

    Example:
        >>> x = torch.linspace(-1, 1, 20)[:, None]
        >>> trained_hypotheses(lambda: nn.Linear(1, 1), (x, 2 * x), 3, x, epochs=2).shape
        torch.Size([3, 20, 1])

    Source: Towards Exact Computation of Inductive Bias, arXiv:2406.15941.
    """
    for name, number in (("n", n), ("epochs", epochs), ("batch_size", batch_size)):
        check_number(name, number, low=1, integer=True)
    check_number("lr", lr, low=0.0, open_low=True)
    check_number("seed", seed, low=0, integer=True)
    x, y = train
    check_tensor("train", x)
    check_tensor("train", y)
    check_tensor("xt", xt)
    if len(x) != len(y) or not len(x):
        refuse("train", "inputs and targets of one length, at least 1", (len(x), len(y)))
    seeds = [int(word) for word in np.random.SeedSequence(seed).generate_state(2 * n, np.uint32)]
    models = []
    for own in seeds[:n]:
        with torch.random.fork_rng(devices=[]):
            seed_all(own)
            models.append(make_model())
    if len({id(model) for model in models}) < n:
        refuse("make_model", "a new module at each call", models[0].__class__.__name__)
    rows, orders = min(batch_size, len(x)), seeds[n:]
    if all(map(stackable, models)) and len(set(map(architecture, models))) == 1:
        stack, steps = Stack(models), -(-len(x) // rows)
        Descent(
            stack,
            StackedObjective([SquaredErrorLoss() for _ in models]),
            StackedBatches([(x, y, None)], [0] * n, orders, batch_size=rows, steps=steps),
            method=StackedStep(by_hand=True),
            optimizer=StackedAdamW(stack, lr=[lr] * n, weight_decay=[0.0] * n),
        ).fit(epochs)
        with torch.no_grad():
            outputs: Tensor = stack(xt.expand(n, *xt.shape))
        return outputs
    of_models = []
    for model, own in zip(models, orders):
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        with torch.random.fork_rng(devices=[]):
            seed_all(own)  # of what a network draws as it trains
            batches = ArrayBatches(x, y, batch_size=rows, seed=own)
            Descent(model, SquaredErrorLoss(), batches, optimizer=optimizer).fit(epochs)
        with torch.no_grad():
            of_models.append(model.train(False)(xt))
    return torch.stack(of_models)


def _checked(parameters: Sequence[float]) -> LossDistribution:
    if not isinstance(parameters, (tuple, list)) or len(parameters) != 3:
        refuse("errors", "a tensor [S], or (df, nc, scale)", parameters)
    df, nc, scale = parameters
    check_number("df", df, low=0.0, high=math.inf, open_low=True, open_high=True)
    check_number("nc", nc, low=0.0, high=math.inf, open_high=True)
    check_number("scale", scale, low=0.0, high=math.inf, open_low=True, open_high=True)
    return LossDistribution(float(df), float(nc), float(scale))


def _rbf(a: Tensor, b: Tensor) -> Tensor:
    return torch.exp(-0.5 * torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square())


def _log_probability(x: float, df: float, nc: float) -> float:
    """The logarithm of P(X <= x) of a non-central chi-square."""
    if x <= 0:
        return -math.inf
    total, spread = df + nc, math.sqrt(2 * (df + 2 * nc))
    if x > total + 50 * spread + 5000:  # less than e^-700 lies above
        return 0.0
    if total > SUMMED:
        return min(_sankaran(x, df, nc), _chernoff(x, df, nc))
    largest = max(nc, x - df, 0.0) / 2
    i = np.arange(math.ceil(largest + 12 * math.sqrt(max(nc, x) / 2) + 60.0))
    of_gamma = (df / 2 + i) * math.log(x / 2) - x / 2 - gammaln(df / 2 + i + 1)
    if not nc:
        return float(np.logaddexp.reduce(of_gamma))
    of_poisson = i * math.log(nc / 2) - nc / 2 - gammaln(i + 1)
    return float(np.logaddexp.reduce(of_gamma + np.logaddexp.accumulate(of_poisson)))


def _sankaran(x: float, df: float, nc: float) -> float:
    """The same by a power of x that is nearly normal."""
    total, doubled = df + nc, df + 2 * nc
    h = 1 - 2 / 3 * total * (df + 3 * nc) / doubled**2
    p = doubled / total**2
    m = (h - 1) * (1 - 3 * h)
    mean = 1 + h * p * (h - 1 - 0.5 * (2 - h) * m * p)
    return float(log_ndtr(((x / total) ** h - mean) / (h * math.sqrt(2 * p) * (1 + 0.5 * m * p))))


def _chernoff(x: float, df: float, nc: float) -> float:
    """What the same is at most."""
    u = 2 * x / (df + math.sqrt(df * df + 4 * nc * x))  # 1 / (1 - 2 t) of the best exponent t
    t = (1 - 1 / u) / 2
    return min(0.0, nc * t * u + df / 2 * math.log(u) - t * x) if t < 0 else 0.0


def _log_density(x: Array, df: float, nc: float) -> Array:
    order = df / 2 - 1
    log_ratio: Array = np.log(x / nc)
    return -math.log(2) - (x + nc) / 2 + order / 2 * log_ratio + _log_bessel(order, np.sqrt(nc * x))


def _log_bessel(order: float, z: Array) -> Array:
    """The logarithm of I_order(z), order > -1, z > 0: of a high order, and down from it by the recurrence."""
    above = max(0, math.ceil(UNIFORM - order))
    top = order + above
    value = _uniform(top, z)
    if above:
        ratio = np.exp(_uniform(top + 1, z) - value)
        for step in range(above):  # I_(v-1) = I_(v+1) + 2 v / z I_v
            ratio = 1 / (ratio + 2 * (top - step) / z)
            value = value - np.log(ratio)
    return value


def _uniform(order: float, z: Array) -> Array:
    """The uniform expansion in 1 / order to its third term."""
    y = z / order
    root = np.sqrt(1 + y * y)
    p = 1 / root
    u1 = (3 * p - 5 * p**3) / 24
    u2 = (81 * p**2 - 462 * p**4 + 385 * p**6) / 1152
    u3 = (30375 * p**3 - 369603 * p**5 + 765765 * p**7 - 425425 * p**9) / 414720
    exponent = order * (root + np.log(y / (1 + root)))
    value: Array = (
        exponent + 0.5 * np.log(p / (2 * math.pi * order)) + np.log1p((u1 + (u2 + u3 / order) / order) / order)
    )
    return value
