"""Generalised mean absolute directional loss: predict the sign of the next return, weighted by its size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from jaxtyping import Float as F
from numpy.typing import ArrayLike
from torch import Tensor

from ...core.checks import check_number, refuse, values_visible
from ...core.loss import Loss, Sample
from ...core.objective import Objective, TaskInfo
from ...core.residuals import pair, per_sample
from ...core.search import Float

if TYPE_CHECKING:
    import pandas as pd


def _returns(outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    predicted, observed = pair(outputs, target)
    if observed.numel() and values_visible(observed) and not bool(observed.isfinite().all()):
        refuse("target", "finite returns", "NaN or infinity")
    return predicted, observed


def gmadl(
    outputs: F[Tensor, "batch ..."],
    target: F[Tensor, "batch ..."],
    *,
    a: float = 1000.0,
    b: float = 1.0,
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""The generalised mean absolute directional loss of predicted returns h and observed returns R.

    .. math:: \ell = -\bigl(\sigma(a R h) - \tfrac12\bigr)\, |R|^b

    It saturates at :math:`\pm |R|^b / 2`; a is a gain on the prediction, and a R h should be of the order of 1: far
    below, the loss is the linear :math:`-a R h |R|^b / 4`. Without a term of scale (weight decay, a bounded output)
    predictions grow without limit.

    Args:
        outputs: predicted returns ``[N, ...]``.
        target: observed returns, of the same shape, finite.
        a: slope > 0, in the inverse square of the unit of the returns (1000 suits returns near 0.03).
        b: power of the return's size, >= 0: the larger, the more the large moves count.
        weight: sample weights ``[N]`` >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        The loss in float32 or wider.

    Raises:
        ValueError: ``a`` <= 0, ``b`` < 0, returns that are not finite, wrong shapes.

    Example:
        >>> round(1e4 * gmadl(torch.tensor([0.02, 0.01, 0.001]), torch.tensor([0.01, -0.02, 0.005])).item(), 4)
        1.6403

    Source: Generalized Mean Absolute Directional Loss, arXiv:2412.18405.
    """
    check_number("a", a, low=0.0, open_low=True)
    check_number("b", b, low=0.0)
    predicted, observed = _returns(outputs, target)
    # sigmoid(x) - 1/2 = tanh(x / 2) / 2, which keeps its digits near 0
    return per_sample(-0.5 * torch.tanh(0.5 * a * observed * predicted) * observed.abs() ** b, weight, reduction)


def madl(
    outputs: F[Tensor, "batch ..."],
    target: F[Tensor, "batch ..."],
    *,
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""The mean absolute directional loss, a metric: minus the mean return of following the predicted sign.

    .. math:: \ell = -\mathrm{sign}(R h)\, |R|

    Its gradient is zero wherever it exists: train on :func:`gmadl`.

    Args:
        outputs: predicted returns h, ``[N, ...]``.
        target: observed returns R, of the same shape, finite.
        weight: sample weights ``[N]`` >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        The value in float32 or wider.

    Raises:
        ValueError: returns that are not finite, wrong shapes.

    Example:
        >>> madl(torch.tensor([2.0, 1.0]), torch.tensor([3.0, -1.0]))
        tensor(-1.)

    Source: Generalized Mean Absolute Directional Loss, arXiv:2412.18405.
    """
    predicted, observed = _returns(outputs, target)
    sign = torch.where(predicted.isnan(), predicted, torch.sign(predicted))  # torch gives the sign of NaN as 0
    return per_sample(-sign * observed, weight, reduction)


class GMADLLoss(Objective):
    """The generalised mean absolute directional loss as a module; see :func:`gmadl`.

    ``from_task`` takes a slope of 1 unless told otherwise, which suits targets of standard deviation 1; the default of
    the constructor is that of the paper, for raw returns. The size of a prediction says nothing but its certainty.

    Args:
        a: slope > 0.
        b: power of the return's size, >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Raises:
        ValueError: ``a`` <= 0, ``b`` < 0, returns that are not finite, wrong shapes.

    Example:
        >>> GMADLLoss(a=1.0)(torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.5]))
        tensor(-0.1598)
    """

    name = "gmadl"
    tasks = ("regression",)
    domain = "real"
    targets = ("real",)
    search = {"a": Float(0.1, 10.0, log=True), "b": Float(0.0, 2.0)}

    def __init__(self, a: float = 1000.0, b: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        check_number("a", a, low=0.0, open_low=True)
        check_number("b", b, low=0.0)
        self.a, self.b = a, b

    @classmethod
    def from_task(cls, info: TaskInfo, **hyper: Any) -> Self:
        """The objective with a slope for standardised targets."""
        return cls(**{"a": 1.0, **hyper})

    def forward(self, outputs: F[Tensor, "batch ..."], target: Tensor, *, weight: Tensor | None = None) -> Tensor:
        """The loss of predicted and observed returns."""
        self.check_call(outputs, target, weight)
        return gmadl(outputs, target, a=self.a, b=self.b, weight=weight, reduction=self.reduction)


class MADLLoss(Loss):
    """The mean absolute directional loss as a module, for measuring only; see :func:`madl`.

    Example:
        >>> MADLLoss()(torch.tensor([2.0, 1.0]), torch.tensor([3.0, -1.0]))
        tensor(-1.)
    """

    name = "madl"

    def forward(self, outputs: F[Tensor, "batch ..."], target: Tensor) -> Tensor:
        """The mean over predicted and observed returns."""
        return madl(outputs, target)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Seven predicted and observed returns."""
        two = torch.randn(2, 7, generator=generator, dtype=torch.float64).to(device, dtype)
        return [(cls(), ((two[0], two[1]), {}))]


def walk_forward(n: int, train: int, val: int, test: int) -> Iterator[tuple[slice, slice, slice]]:
    """Training, validation and test windows over time, each trio one test length after the one before.

    Args:
        n: number of time steps.
        train, val, test: lengths of the windows, >= 1; validation follows training, the test follows validation.

    Yields:
        ``(train, val, test)`` slices; the tests of all trios do not overlap, and a rest shorter than ``test`` is left.

    Raises:
        ValueError: a length below 1, windows longer than the data.

    Example:
        >>> [(a.start, b.start, c.start, c.stop) for a, b, c in walk_forward(10, 4, 2, 2)]
        [(0, 4, 6, 8), (2, 6, 8, 10)]
    """
    for name, length in {"n": n, "train": train, "val": val, "test": test}.items():
        check_number(name, length, low=1, integer=True)
    if train + val + test > n:
        refuse("train + val + test", f"at most n = {n}", train + val + test)
    return (
        (slice(k, k + train), slice(k + train, k + train + val), slice(k + train + val, k + train + val + test))
        for k in range(0, n - train - val - test + 1, test)
    )


def _trades(
    pred: ArrayLike, ret: ArrayLike, cost: float, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, changes of position and net returns."""
    check_number("cost", cost, low=0.0)
    check_number("threshold", threshold, low=0.0)
    h, r = np.asarray(pred, dtype=np.float64), np.asarray(ret, dtype=np.float64)
    if h.ndim != 1 or h.shape != r.shape:
        refuse("pred, ret", "two series of one length", (h.shape, r.shape))
    if not (np.isfinite(h).all() and np.isfinite(r).all()):
        refuse("pred, ret", "finite values", "NaN or infinity")
    position = np.where(np.abs(h) < threshold, 0.0, np.sign(h))
    change = np.abs(np.diff(position, prepend=0.0))
    return position, change, position * r - cost * change


def strategy_return(pred: ArrayLike, ret: ArrayLike, cost: float = 0.0, threshold: float = 0.0) -> pd.Series:
    r"""Net return of each step of following the predicted sign.

    .. math:: g_t = p_t R_t - \text{cost}\, |p_t - p_{t-1}|, \qquad
        p_t = \mathrm{sign}(h_t)\, [|h_t| \ge \text{threshold}]

    The position before the first step is 0. ``pred[t]`` must be known before ``ret[t]`` is earned.

    Args:
        pred: predicted returns h, ``[T]``.
        ret: observed returns R, ``[T]``.
        cost: of one unit of change of position, >= 0.
        threshold: predictions that are smaller hold no position, >= 0.

    Returns:
        A ``pandas.Series`` of ``T`` net returns, with the index of ``ret`` where it has one.

    Raises:
        ValueError: other lengths, values that are not finite, a negative cost or threshold.

    Example:
        >>> strategy_return([1.0, -2.0, 0.1], [0.01, 0.02, 0.03], cost=0.001, threshold=0.5).round(6).tolist()
        [0.009, -0.022, -0.001]
    """
    import pandas as pd

    _, _, net = _trades(pred, ret, cost, threshold)
    return pd.Series(net, index=ret.index if isinstance(ret, pd.Series) else None, name="net return")


def strategy_report(
    pred: ArrayLike, ret: ArrayLike, cost: float = 0.0, threshold: float = 0.0, periods: float = 252.0
) -> dict[str, float]:
    """What a strategy earned: the arguments are those of :func:`strategy_return`.

    Args:
        pred, ret, cost, threshold: see :func:`strategy_return`.
        periods: steps in a year, > 0.

    Returns:
        ``return`` and ``volatility`` of a year (simple returns added up), their ratio ``information ratio`` (0 without
        volatility), ``drawdown`` (largest fall of the cumulative sum from its height, >= 0) and ``trades``
        (positions opened, the opposite one after a change of sign included).

    Raises:
        ValueError: as :func:`strategy_return`; ``periods`` <= 0.

    Example:
        >>> strategy_report([1.0, 1.0, -1.0], [0.02, -0.01, 0.0])["trades"]
        2.0
    """
    check_number("periods", periods, low=0.0, open_low=True)
    position, change, net = _trades(pred, ret, cost, threshold)
    if not net.size:
        return dict.fromkeys(("return", "volatility", "information ratio", "drawdown", "trades"), 0.0)
    gain, spread = periods * float(net.mean()), math.sqrt(periods) * float(net.std())
    path = np.concatenate([[0.0], np.cumsum(net)])
    return {
        "return": gain,
        "volatility": spread,
        "information ratio": gain / spread if spread > 0 else 0.0,
        "drawdown": float((np.maximum.accumulate(path) - path).max()),
        "trades": float(((change > 0) & (position != 0)).sum()),
    }
