"""AnyLoss: one minus any score of a binary confusion matrix, made differentiable by a steep sigmoid."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import check_binary, check_choice, check_number, check_tensor, refuse, values_visible
from ...core.objective import Objective, Sample
from ...core.reductions import widen
from ...core.search import Choice, Float

METRICS = ("f1", "accuracy", "gmean", "balanced_accuracy")
Metric = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""A score of (TP, FN, FP, TN), higher is better."""

_TINY = 1e-12
"""Inside the root of the geometric mean, and least denominator of F_beta: only a batch without positives meets it."""


def soft_confusion(
    p: F[Tensor, " batch"], y: Tensor, L: float = 73.0
) -> tuple[F[Tensor, ""], F[Tensor, ""], F[Tensor, ""], F[Tensor, ""]]:
    r"""The soft confusion matrix of amplified probabilities.

    .. math:: A(p) = \sigma(L (p - \tfrac12)), \quad TP = \sum y A, \quad FN = \sum y (1 - A), \quad
        FP = \sum (1 - y) A, \quad TN = \sum (1 - y)(1 - A)

    1 - A is computed as sigmoid(-L (p - 1/2)), which does not round to 0 where A rounds to 1.

    Args:
        p: probabilities of class 1 ``[N]``, in [0, 1].
        y: labels ``[N]`` in {0, 1}.
        L: steepness > 0; at infinity the hard matrix at threshold 1/2.

    Returns:
        (TP, FN, FP, TN), scalars in float32 or wider. TP + FN and FP + TN are the class counts.

    Raises:
        ValueError: other shapes, probabilities outside [0, 1], labels outside {0, 1}, L <= 0.

    Example:
        >>> p, y = torch.tensor([0.52, 0.49, 0.51, 0.30]), torch.tensor([1, 1, 0, 0])
        >>> [round(float(count), 4) for count in soft_confusion(p, y)]
        [1.1367, 0.8633, 0.6748, 1.3252]

    Source: AnyLoss: Transforming Classification Metrics into Loss Functions, arXiv:2405.14745.
    """
    check_number("L", L, low=0.0, open_low=True)
    check_tensor("p", p, ndim=1, floating=True)
    check_binary(y, p, argument="y")
    if p.numel() and values_visible(p) and bool(((p < 0) | (p > 1)).any()):
        refuse("p", "probabilities in [0, 1]", [float(p.min()), float(p.max())])
    p = widen(p)
    y = y.to(p.dtype)
    high, low = torch.sigmoid(L * (p - 0.5)), torch.sigmoid(L * (0.5 - p))
    return (y * high).sum(), (y * low).sum(), ((1 - y) * high).sum(), ((1 - y) * low).sum()


def _accuracy(tp: Tensor, fn: Tensor, fp: Tensor, tn: Tensor) -> Tensor:
    return (tp + tn) / (tp + fn + fp + tn)


def _recalls(tp: Tensor, fn: Tensor, fp: Tensor, tn: Tensor) -> tuple[Tensor, Tensor]:
    # the denominators are class counts: below a half only where a class is absent, whose recall is taken as 0
    return tp / (tp + fn).clamp_min(0.5), tn / (tn + fp).clamp_min(0.5)


def _gmean(tp: Tensor, fn: Tensor, fp: Tensor, tn: Tensor) -> Tensor:
    positive, negative = _recalls(tp, fn, fp, tn)
    return torch.sqrt(positive * negative + _TINY)


def _balanced_accuracy(tp: Tensor, fn: Tensor, fp: Tensor, tn: Tensor) -> Tensor:
    absent = (tp + fn < 0.5) | (tn + fp < 0.5)
    if values_visible(tp) and bool(absent):
        warnings.warn("balanced accuracy of a batch with one class only: the absent class counts as 0", stacklevel=2)
    positive, negative = _recalls(tp, fn, fp, tn)
    return (positive + negative) / 2


def _f_beta(beta: float) -> Metric:
    square = beta * beta

    def score(tp: Tensor, fn: Tensor, fp: Tensor, tn: Tensor) -> Tensor:
        return (1 + square) * tp / ((1 + square) * tp + square * fn + fp).clamp_min(_TINY)

    return score


class AnyLoss(Objective):
    r"""One minus a score of the soft confusion matrix of a batch; see :func:`soft_confusion`.

    .. math:: F_\beta = \frac{(1 + \beta^2) TP}{(1 + \beta^2) TP + \beta^2 FN + FP}, \quad
        G = \sqrt{TPR \cdot TNR}, \quad BA = \frac{TPR + TNR}{2}

    The slope of A is about L exp(-L/2) where p is near 0 or 1: confident errors get almost no gradient, so start from
    small logits. Ratios of small batches are biased; of several ranks each has those of its own batch.

    The authors' code takes the root in G as it is, with an infinite slope where a recall vanishes, and has NaN for a
    batch of one class. Here 1e-12 is added below the root, and the recall of an absent class is 0: without positives
    (or negatives) F_beta and the geometric mean are 0 up to 1e-6 with a gradient near 0; balanced accuracy warns (where
    values may be looked at).

    Args:
        metric: ``"f1"`` (F_beta with ``beta``), ``"accuracy"``, ``"gmean"``, ``"balanced_accuracy"``, or a function
            of (TP, FN, FP, TN), higher is better.
        L: steepness of the amplifier, > 0.
        beta: weight of recall in F_beta, > 0.
        from_logits: whether outputs are logits; else probabilities of class 1.
        reduction: ``"mean"`` only.

    Raises:
        ValueError: an unknown metric, outputs that aren't ``[N]``, labels outside {0, 1}.

    Example:
        >>> p, y = torch.tensor([0.52, 0.49, 0.51, 0.30]), torch.tensor([1, 1, 0, 0])
        >>> AnyLoss("f1")(torch.logit(p), y)
        tensor(0.4035)
        >>> AnyLoss(lambda tp, fn, fp, tn: tp / (tp + fn), from_logits=False)(p, y)
        tensor(0.4316)

    Source: AnyLoss: Transforming Classification Metrics into Loss Functions, arXiv:2405.14745.
    """

    name = "anyloss"
    tasks = ("binary",)
    domain = "score"
    unit = "batch"
    search = {"metric": Choice(("f1", "gmean", "balanced_accuracy")), "L": Float(10.0, 100.0, log=True)}

    def __init__(
        self,
        metric: str | Metric = "f1",
        L: float = 73.0,
        beta: float = 1.0,
        from_logits: bool = True,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        check_number("L", L, low=0.0, open_low=True, high=math.inf, open_high=True)
        check_number("beta", beta, low=0.0, open_low=True)
        if not callable(metric):
            check_choice("metric", metric, METRICS)
        known = {
            "f1": _f_beta(beta),
            "accuracy": _accuracy,
            "gmean": _gmean,
            "balanced_accuracy": _balanced_accuracy,
        }
        self.metric = metric
        self.score: Metric = metric if callable(metric) else known[metric]
        self.L, self.beta, self.from_logits = L, beta, from_logits

    def forward(self, outputs: F[Tensor, " batch"], target: Tensor, *, weight: None = None) -> Tensor:
        """One minus the score of outputs ``[N]`` and labels ``[N]`` in {0, 1}."""
        self.check_call(outputs, target, weight)
        check_tensor("outputs", outputs, ndim=1)
        check_binary(target, outputs)
        p = widen(outputs)
        if self.from_logits:
            p = torch.sigmoid(p)
        if outputs.shape[0] == 0:
            return p.mean()
        return 1 - self.score(*soft_confusion(p, target, self.L))

    def probabilities(self, outputs: Tensor) -> Tensor:
        """``[N, 2]`` from the sigmoid; only its side of 1/2 was trained."""
        if self.from_logits:
            return torch.stack([torch.sigmoid(-outputs), torch.sigmoid(outputs)], dim=-1)
        return torch.stack([1 - outputs, outputs], dim=-1)

    def predict(self, outputs: Tensor) -> Tensor:
        """1 where the probability of class 1 is above 1/2."""
        return (outputs > (0.0 if self.from_logits else 0.5)).long()

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[AnyLoss, Sample]]:
        """The default ones; for the general class one with each metric."""
        cases = super().samples(generator, dtype, device)
        rest = [(cls(metric=m, L=20.0), cases[0][1]) for m in METRICS[1:]] if cls is AnyLoss else []
        return [*cases, *rest]


class FBetaLoss(AnyLoss):
    """One minus the soft F_beta score; see :class:`AnyLoss`.

    Args:
        beta: weight of recall, > 0; 1 is F1.
        L: steepness of the amplifier, > 0.
        from_logits: whether outputs are logits; else probabilities of class 1.
        reduction: ``"mean"`` only.

    Example:
        >>> p, y = torch.tensor([0.52, 0.49, 0.51, 0.30]), torch.tensor([1, 1, 0, 0])
        >>> FBetaLoss(from_logits=False)(p, y)
        tensor(0.4035)
    """

    name = "f_beta"
    search = {"beta": Float(0.5, 2.0, log=True), "L": Float(10.0, 100.0, log=True)}

    def __init__(self, beta: float = 1.0, L: float = 73.0, from_logits: bool = True, reduction: str = "mean") -> None:
        super().__init__("f1", L, beta, from_logits, reduction)


class _OfRecalls(AnyLoss):
    """One minus a score of both recalls, which weighs none of them."""

    name = ""
    of: str
    search = {"L": Float(10.0, 100.0, log=True)}

    def __init__(self, L: float = 73.0, from_logits: bool = True, reduction: str = "mean") -> None:
        super().__init__(self.of, L, 1.0, from_logits, reduction)


class GMeanLoss(_OfRecalls):
    """One minus the geometric mean of the soft recalls of both classes; see :class:`AnyLoss`.

    Args:
        L: steepness of the amplifier, > 0.
        from_logits: whether outputs are logits; else probabilities of class 1.
        reduction: ``"mean"`` only.

    Example:
        >>> p, y = torch.tensor([0.52, 0.49, 0.51, 0.30]), torch.tensor([1, 1, 0, 0])
        >>> GMeanLoss(from_logits=False)(p, y)
        tensor(0.3863)
    """

    name = "g_mean"
    of = "gmean"


class BalancedAccuracyLoss(_OfRecalls):
    """One minus the mean of the soft recalls of both classes; see :class:`AnyLoss`.

    Args:
        L: steepness of the amplifier, > 0.
        from_logits: whether outputs are logits; else probabilities of class 1.
        reduction: ``"mean"`` only.

    Example:
        >>> p, y = torch.tensor([0.52, 0.49, 0.51, 0.30]), torch.tensor([1, 1, 0, 0])
        >>> BalancedAccuracyLoss(from_logits=False)(p, y)
        tensor(0.3845)
    """

    name = of = "balanced_accuracy"
