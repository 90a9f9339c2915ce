"""What the regression losses of the survey are, as data: the facts by which one is chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class SurveyCard:
    """One regression loss.

    Args:
        function: ``(outputs, target, **params) -> loss``.
        range: values it takes.
        unit: of its value, where y is the unit of the target.
        optimum: what of the target's distribution the best constant prediction is.
        outliers: how it answers to a far target.
        gradient_bound: bound of the slope in one prediction, before averaging.
        domain: what predictions and targets must be.
        over: ``"samples"`` (reductions none, mean, sum; weights) or ``"batch"`` (mean only).
    """

    function: Callable[..., Tensor]
    range: str
    unit: str
    optimum: str
    outliers: str
    gradient_bound: str
    domain: str
    over: str

    @property
    def name(self) -> str:
        """Its word."""
        return self.function.__name__

    def module(self, **params: Any) -> nn.Module:
        """The loss as a module with these parameters fixed."""
        return _SurveyModule(self.function, params)


class _SurveyModule(nn.Module):
    def __init__(self, function: Callable[..., Tensor], params: dict[str, Any]) -> None:
        super().__init__()
        self.function, self.params = function, params

    def forward(self, outputs: Tensor, target: Tensor, **kwargs: Any) -> Tensor:
        return self.function(outputs, target, **self.params, **kwargs)

    def extra_repr(self) -> str:
        return ", ".join([self.function.__name__, *(f"{k}={v!r}" for k, v in self.params.items())])


_ANY = "any reals"
_VARIED = "targets that differ"

CARDS = {
    "mae": (">= 0", "y", "the median", "linear", "1", _ANY, "samples"),
    "mse": (">= 0", "y^2", "the mean", "quadratic", "unbounded", _ANY, "samples"),
    "mbe": ("all reals", "y", "none: unbounded below", "linear, signs cancel", "1", _ANY, "samples"),
    "rae": (">= 0", "none", "the median", "linear", "1 / mean |y - ybar|", _VARIED, "batch"),
    "rse": (">= 0", "none", "the mean", "quadratic", "unbounded", _VARIED, "batch"),
    "mape": (">= 0", "percent", "the median of the distribution weighted by 1/|y|", "linear, small |y| dominates",
             "100 / |y|", "y != 0", "samples"),
    "rmse": (">= 0", "y", "the mean", "quadratic inside the root", "sqrt(n) with 1/n averaging", _ANY, "batch"),
    "msle": (">= 0", "log(1 + y)^2", "the geometric mean of 1 + y, less 1", "logarithmic",
             "unbounded as f -> -1", "y, f > -1", "samples"),
    "rmsle": (">= 0", "log(1 + y)", "the geometric mean of 1 + y, less 1", "logarithmic",
              "unbounded as f -> -1", "y, f > -1", "batch"),
    "nrmse": (">= 0", "none", "the mean", "quadratic inside the root", "sqrt(n) / scale", "a scale other than 0",
              "batch"),
    "rrmse": (">= 0", "none", "by outputs mean(y^2) / mean(y), by target the mean", "quadratic inside the root",
              "unbounded as f -> 0 by outputs", "a divisor other than 0", "batch"),
    "huber": (">= 0", "y^2", "between mean and median", "quadratic to delta, then linear", "delta", _ANY, "samples"),
    "log_cosh": (">= 0", "y^2 near 0, y far off", "between mean and median", "quadratic near 0, then linear", "1",
                 _ANY, "samples"),
    "quantile_loss": (">= 0", "y", "the q-quantile", "linear", "max(q, 1 - q)", _ANY, "samples"),
}  # fmt: skip
