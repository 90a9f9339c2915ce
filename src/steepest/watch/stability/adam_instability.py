"""The ratio m / sqrt(v) of Adam, whose two peaks near +1 and -1 come before a loss that jumps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float as F
from torch import Tensor, nn
from torch.optim import Adamax, NAdam, Optimizer, RAdam

from ...core.checks import check_number, check_tensor, refuse, refuse_type
from ...core.probe import Array, Moment, Probe, Reading
from ...core.reductions import widen

BIMODALITY, SPREAD, NEAR_ONE = 0.555, 0.5, 0.9
"""Where an alarm begins: the coefficient of a uniform distribution, and the standard deviation of the ratio; and from
which size on a ratio counts as near 1."""


def update_ratio(
    m: F[Tensor, "*any"],
    v: F[Tensor, "*any"],
    step: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> F[Tensor, "*any"]:
    r"""Adam's step over its rate, element by element, from its state after that step.

    .. math:: r = \frac{\hat m}{\sqrt{\hat v} + \epsilon}, \qquad
        \hat m = \frac{m}{1 - \beta_1^t}, \quad \hat v = \frac{v}{1 - \beta_2^t}

    Args:
        m, v: running means of the gradient and of its square (``exp_avg``, ``exp_avg_sq``), of one shape.
        step: t >= 1, how many steps they have seen.
        betas: of the running means, each in [0, 1).
        eps: >= 0, outside the root, as in torch.

    Raises:
        ValueError: shapes that differ, numbers outside their range.

    Example:
        >>> update_ratio(torch.tensor([0.1, -0.2]), torch.tensor([0.001, 0.004]), step=1)
        tensor([ 1., -1.])

    Source: A Theory on Adam Instability in Large-Scale Machine Learning, arXiv:2304.09871.
    """
    check_tensor("m", m, floating=True)
    check_tensor("v", v, floating=True, shape=tuple(m.shape))
    if not isinstance(step, Tensor):
        check_number("step", step, low=1)
    for beta in betas:
        check_number("betas", beta, low=0.0, high=1.0, open_high=True)
    check_number("eps", eps, low=0.0)
    m, v = widen(m.detach()), widen(v.detach())
    t = (
        step.to(m.device, torch.float64 if m.dtype == torch.float64 else torch.float32)
        if isinstance(step, Tensor)
        else step
    )
    return (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + eps)


def update_ratio_stats(
    m: F[Tensor, "*any"],
    v: F[Tensor, "*any"],
    step: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    *,
    gradient: F[Tensor, "*any"] | None = None,
) -> dict[str, Tensor]:
    r"""How Adam's ratio is distributed over the elements of a tensor: bell-shaped around 0, or piled up near +-1.

    While gradients are large and not correlated over time, r is about normal and small
    (:func:`stationary_ratio_sd`). Where they come near epsilon and are correlated, it has two peaks:

    .. math:: BC = \frac{\text{skew}^2 + 1}{\text{kurtosis}}

    is 1 of two points, 0.555 of a uniform and 0.333 of a normal distribution. Elements whose v is exactly 0 never had a
    gradient (rows of an embedding that were not drawn) and are left out.

    Args:
        m, v, step, betas, eps: the state of Adam, as :func:`update_ratio` takes it.
        gradient: of another batch, of the same shape; its cosine with r is then given too.

    Returns:
        numbers without dimension, which nothing has read from the device: ``"sd"`` of r; ``"near_one"``, the share with
        \|r\| > 0.9; ``"bimodality"`` (NaN where all r are equal); ``"over_eps"``, the median of sqrt(v) over eps;
        ``"norm"`` of r; ``"touched"``, how many elements count; with a gradient, ``"descent_cosine"``. Without any
        element that counts, NaN and 0.

    Raises:
        ValueError: as :func:`update_ratio`.

    Example:
        >>> signs = torch.tensor([1.0, 1.0, -1.0, -1.0])
        >>> stats = update_ratio_stats(0.1 * signs, 0.001 * signs**2, step=1)
        >>> round(float(stats["bimodality"]), 4), float(stats["near_one"])
        (1.0, 1.0)

    Source: A Theory on Adam Instability in Large-Scale Machine Learning, arXiv:2304.09871. The coefficient and the
    levels of an alarm are this library's.
    """
    r = update_ratio(m, v, step, betas, eps).flatten()
    second = widen(v.detach()).flatten()
    touched = second != 0
    count = touched.sum()
    r = torch.where(touched, r, 0.0)
    mean = r.sum() / count
    centred = torch.where(touched, r - mean, 0.0)
    squares = centred.square()
    variance, cubes, fourths = (
        squares.sum() / count,
        (squares * centred).sum() / count,
        squares.square().sum() / count,
    )
    t = step.to(second.device) if isinstance(step, Tensor) else step
    root = torch.where(touched, second, torch.nan).nanmedian() if r.numel() else second.sum() / count
    stats = {
        "sd": variance.sqrt(),
        "near_one": (r.abs() > NEAR_ONE).sum() / count,
        # (skew^2 + 1) / kurtosis, both multiplied by the variance's third power
        "bimodality": (cubes.square() / variance + variance.square()) / fourths,
        "over_eps": (root / (1 - betas[1] ** t)).sqrt() / eps,
        "norm": torch.linalg.vector_norm(r),
        "touched": count,
    }
    if gradient is not None:
        check_tensor("gradient", gradient, floating=True, shape=tuple(m.shape))
        g = widen(gradient.detach()).flatten().to(r)
        stats["descent_cosine"] = (r @ g) / (stats["norm"] * torch.linalg.vector_norm(g))
    return stats


def stationary_ratio_sd(rho: float, beta1: float = 0.9) -> float:
    r"""Standard deviation of Adam's ratio for gradients of zero mean far above epsilon, correlated rho^k at lag k.

    .. math:: \operatorname{var} r = \frac{1 - \beta_1}{1 + \beta_1} \cdot \frac{1 + \beta_1 \rho}{1 - \beta_1 \rho}

    in the limit of beta_2 -> 1. At rho = 1 it is 1: r is the sign of the gradient.

    Args:
        rho: correlation of successive gradients, in [-1, 1].
        beta1: in [0, 1).

    Raises:
        ValueError: numbers outside their range.

    Example:
        >>> round(stationary_ratio_sd(0.0), 6), round(stationary_ratio_sd(0.5), 6)
        (0.229416, 0.3725)
    """
    check_number("rho", rho, low=-1.0, high=1.0)
    check_number("beta1", beta1, low=0.0, high=1.0, open_high=True)
    return math.sqrt((1 - beta1) / (1 + beta1) * (1 + beta1 * rho) / (1 - beta1 * rho))


def time_domain_correlation(gradients: F[Tensor, "steps ..."], lag: int = 1) -> Tensor:
    r"""Correlation of gradients with those ``lag`` steps later, each element over time, averaged over elements.

    .. math:: \rho = \operatorname{mean}_i \frac{2 \sum_t g_{t, i}\, g_{t + lag, i}}
        {\sum_t (g_{t, i}^2 + g_{t + lag, i}^2)}

    Nothing is centred, as the theory takes gradients of zero mean: a constant gradient has 1, one that turns its sign
    at every step -1. Elements that are 0 throughout are left out; NaN where that leaves none.

    Args:
        gradients: of successive steps, ``[T, ...]``, T > lag.
        lag: >= 1.

    Returns:
        a number without dimension, in [-1, 1].

    Raises:
        ValueError: too few steps.

    Example:
        >>> round(float(time_domain_correlation(torch.tensor([[1.0, 1.0], [1.0, -1.0], [1.0, 1.0], [1.0, -1.0]]))), 4)
        0.0

    Source: A Theory on Adam Instability in Large-Scale Machine Learning, arXiv:2304.09871.
    """
    check_tensor("gradients", gradients, floating=True)
    check_number("lag", lag, low=1, integer=True)
    if gradients.ndim == 0 or len(gradients) <= lag:
        refuse("gradients", f"more than {lag} steps in dimension 0", gradients)
    g = widen(gradients.detach()).flatten(1) if gradients.ndim > 1 else widen(gradients.detach())[:, None]
    size = g.abs().amax(0)
    touched = size != 0
    g = g / torch.where(touched, size, 1.0)  # squares of small gradients leave float32
    now, later = g[:-lag], g[lag:]
    both = (now.square() + later.square()).sum(0)
    one = torch.where(both == 0, 0.0, 2 * (now * later).sum(0) / torch.where(both == 0, 1.0, both))
    return torch.where(touched, one, 0.0).sum() / touched.sum()


def is_bimodal(stats: Mapping[str, Tensor], *, bimodality: float = BIMODALITY, spread: float = SPREAD) -> Tensor:
    """Whether Adam's ratio has two peaks, true or false without dimension: a coefficient and a spread above levels.

    >>> is_bimodal({"bimodality": torch.tensor(0.9), "sd": torch.tensor(0.7)})
    tensor(True)
    """
    return (stats["bimodality"] > bimodality) & (stats["sd"] > spread)


class AdamUpdateMonitor(Probe):
    r"""Watches how Adam's ratio m / sqrt(v) is distributed in each weight, and warns where it has two peaks.

    The chain that the theory predicts: gradients of an early layer fall towards epsilon; their components synchronise,
    the ratio has two peaks and the update is long; the loss jumps, gradients grow, and the ratio is bell-shaped again.
    A lower epsilon or rate, a smaller beta_2 or a skipped batch break it.

    Readings: arrays by parameter ``"sd"``, ``"bimodality"``, ``"near_one"`` and ``"over_eps"`` of
    :func:`update_ratio_stats`, and, where gradients are still there, ``"descent_cosine"`` with that of the same batch;
    numbers ``"largest_bimodality"``, ``"largest_sd"``, ``"least_over_eps"``, ``"update_norm"`` (of the step of all that
    is read, without decay), and ``"alarm"``: how many parameters have been bimodal (:func:`is_bimodal`) for ``reports``
    readings in a row. Parameters without Adam's state are not read, and a coefficient that is NaN counts nowhere; where
    nothing is read, numbers are NaN and the alarm is 0.

    Args:
        bimodality: the coefficient from which on an alarm counts, in [0, 1].
        spread: the standard deviation from which on it counts, >= 0.
        reports: readings in a row, >= 1.
        elements: a smaller parameter is not read: its coefficient says little. >= 1.
        every: how many steps apart.

    Raises:
        ValueError: numbers outside their range; to be attached to an optimizer that keeps no ``exp_avg`` and
            ``exp_avg_sq`` or steps otherwise with them.

    Example:
        >>> layer = torch.nn.Linear(8, 8)
        >>> adam = torch.optim.Adam(layer.parameters())
        >>> layer(torch.ones(1, 8)).sum().backward()
        >>> adam.step()
        >>> reading = AdamUpdateMonitor(elements=8).measure(Moment(1, "stepped", layer, optimizer=adam))
        >>> round(float(reading.numbers["update_norm"]), 4)  # 72 steps of a thousandth
        0.0085

    Source: A Theory on Adam Instability in Large-Scale Machine Learning, arXiv:2304.09871. Levels of the alarm are this
    library's.
    """

    name: ClassVar[str] = "adam_update"
    phases: ClassVar[tuple[str, ...]] = ("stepped",)
    needs: ClassVar[tuple[str, ...]] = ("optimizer",)
    cost: ClassVar[str] = "some ten passes over the state of the optimizer, and a median of each parameter"

    def __init__(
        self,
        bimodality: float = BIMODALITY,
        spread: float = SPREAD,
        *,
        reports: int = 3,
        elements: int = 32,
        every: int = 50,
    ) -> None:
        check_number("bimodality", bimodality, low=0.0, high=1.0)
        check_number("spread", spread, low=0.0)
        check_number("reports", reports, low=1, integer=True)
        check_number("elements", elements, low=1, integer=True)
        self.bimodality, self.spread, self.reports, self.elements = bimodality, spread, reports, elements
        self.every = every
        self._in_a_row: dict[str, Tensor] = {}

    def check(self, model: nn.Module, optimizer: Optimizer | None) -> None:
        """Refuse an optimizer that does not step by m / (sqrt(v) + eps)."""
        if not isinstance(optimizer, Optimizer):
            refuse_type("optimizer", "Adam or AdamW", optimizer)
        inner = getattr(optimizer, "base_optimizer", optimizer)
        alike = any("betas" in group and "eps" in group for group in optimizer.param_groups)
        states = [state for state in optimizer.state.values() if state]
        without = bool(states) and not any("exp_avg" in state and "exp_avg_sq" in state for state in states)
        if not alike or without or isinstance(inner, (Adamax, NAdam, RAdam)):
            refuse("optimizer", "Adam or AdamW, which keep exp_avg and exp_avg_sq", type(inner).__name__)

    def measure(self, moment: Moment) -> Reading:
        """The distribution of the ratio in each parameter, from the state of the optimizer."""
        assert moment.optimizer is not None
        named = {id(p): name for name, p in moment.parameters().items()}
        slopes = moment.gradients()
        by_parameter: dict[str, dict[str, Tensor]] = {}
        squares: list[Tensor] = []
        for group in moment.optimizer.param_groups:
            for p in group["params"]:
                name, state = named.get(id(p)), moment.optimizer.state.get(p, {})
                if name is None or p.numel() < self.elements or not _readable(p, state):
                    continue
                slope = slopes.get(name)
                stats = update_ratio_stats(
                    _real(state["exp_avg"]),
                    _real(state.get("max_exp_avg_sq", state["exp_avg_sq"])),
                    state["step"],
                    (float(group["betas"][0]), float(group["betas"][1])),
                    float(group["eps"]),
                    gradient=_real(slope) if slope is not None and slope.shape == p.shape else None,
                )
                by_parameter[name] = stats
                squares.append((stats["norm"] * group["lr"]).square().float())
        if not by_parameter:
            nothing = dict.fromkeys(("largest_bimodality", "largest_sd", "least_over_eps", "update_norm"), math.nan)
            return Reading({**nothing, "alarm": 0.0})
        device = squares[0].device  # of a model on several, the first

        def column(values: Iterable[Tensor]) -> Tensor:
            return torch.stack([value.to(device, torch.float32) for value in values])

        counts: dict[str, Tensor] = {}
        for name, stats in by_parameter.items():
            now = is_bimodal(stats, bimodality=self.bimodality, spread=self.spread)
            before = self._in_a_row.get(name, torch.zeros_like(now, dtype=torch.long)).to(now.device)
            counts[name] = torch.where(now, before + 1, 0)
        self._in_a_row = counts
        missing = torch.tensor(math.nan)
        columns = {
            key: column(stats.get(key, missing) for stats in by_parameter.values())
            for key in ("sd", "bimodality", "near_one", "over_eps", "descent_cosine")
        }
        axes = {"parameter": list(by_parameter)}
        return Reading(
            {
                "largest_bimodality": _largest(columns["bimodality"]),
                "largest_sd": _largest(columns["sd"]),
                "least_over_eps": -_largest(-columns["over_eps"]),
                "update_norm": column(squares).sum().sqrt(),
                "alarm": (column(counts.values()) >= self.reports).sum(),
            },
            {key: Array(values, axes) for key, values in columns.items()},
        )

    def state_dict(self) -> dict[str, Any]:
        """Readings in a row in which each parameter was bimodal."""
        return {"in_a_row": {name: int(count) for name, count in self._in_a_row.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from such counts."""
        self._in_a_row = {name: torch.tensor(count) for name, count in state["in_a_row"].items()}

    def reset(self) -> None:
        """Forget the counts."""
        self._in_a_row = {}


def _readable(p: Tensor, state: Mapping[str, Any]) -> bool:
    """Whether a parameter has Adam's state, and has stepped."""
    means = [state.get("exp_avg"), state.get("exp_avg_sq")]
    return "step" in state and all(isinstance(mean, Tensor) and mean.shape == p.shape for mean in means)


def _real(value: Tensor) -> Tensor:
    """Parts of complex numbers, which Adam takes as numbers of their own."""
    return torch.view_as_real(value) if value.is_complex() else value


def _largest(values: Tensor) -> Tensor:
    """The largest number, NaN where all are."""
    numbers = torch.where(values.isnan(), -torch.inf, values).amax()
    return torch.where(numbers == -torch.inf, torch.nan, numbers)
