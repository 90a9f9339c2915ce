"""Every measure of one classifier, before and after temperature scaling; which measures rank classifiers alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import pandas as pd
import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from scipy.optimize import brentq
from scipy.stats import kendalltau
from sklearn.metrics import roc_auc_score
from torch import Tensor

from ....core.calibrator import Calibrator
from ....core.checks import check_index, check_logits, check_number, refuse
from ....core.reductions import widen
from . import measures
from .measures import BINS

TEMPERATURES = (1e-3, 1e3)
REFERENCE = "ece 15"
_BINNED: dict[str, Callable[..., float]] = {
    "ece": measures.ece,
    "ece equal mass": measures.ece_equal_mass,
    "classwise": measures.classwise_ece,
    "classwise equal mass": lambda p, y, bins: measures.classwise_ece(p, y, bins=bins, equal_mass=True),
    "mce": measures.mce,
}
_OTHER: dict[str, Callable[[Tensor, Tensor], float]] = {
    "ks": measures.ks_calibration_error,
    "kde": measures.kde_calibration_error,
    "mmce": measures.mmce,
}


def temperature_scale(logits: F[Tensor, "samples classes"], target: I[Tensor, " samples"]) -> float:
    r"""The temperature whose softmax has the least negative log-likelihood.

    .. math:: T = \arg\min_T \; -\frac1N \sum_i \log \mathrm{softmax}(z_i / T)_{y_i}

    In 1/T the likelihood is concave, so the root of its slope is the one optimum.

    Args:
        logits: ``[N, C]``, finite, of rows the classifier was not trained on.
        target: class indices ``[N]``.

    Returns:
        T in 0.001..1000; an end of the range where the optimum lies beyond it (every row right, or worse than chance).

    Raises:
        ValueError: no rows, wrong shapes, labels out of range, logits that are not finite.

    Example:
        >>> z = torch.tensor([[1.0, 0.0]]).log1p() * 4
        >>> round(temperature_scale(z.expand(3, 2), torch.tensor([0, 0, 1])), 4)
        4.0

    Source: A Benchmark Study on Calibration, arXiv:2308.11838.
    """
    check_logits(logits, argument="logits")
    check_index(target, logits)
    if not len(logits):
        refuse("logits", "at least one row", logits)
    z = logits.detach().double()
    if not bool(torch.isfinite(z).all()):
        refuse("logits", "finite numbers", logits)
    # differences to the own logit: nothing cancels where the logits are large
    z = z - z.gather(1, target.long()[:, None])

    def slope(log_t: float) -> float:
        return float(((z / math.exp(log_t)).softmax(1) * z).sum(1).mean())

    low, high = map(math.log, TEMPERATURES)
    if slope(high) >= 0.0:  # even an almost even softmax is too sure
        return TEMPERATURES[1]
    if slope(low) <= 0.0:
        return TEMPERATURES[0]
    return math.exp(brentq(slope, low, high, xtol=1e-12))


class TemperatureCalibrator(Calibrator):
    """``softmax(logits / T)`` with the temperature of :func:`temperature_scale`.

    Example:
        >>> logits = torch.tensor([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0]])
        >>> TemperatureCalibrator().fit_transform(logits, torch.tensor([0, 0, 1]))[0]
        tensor([0.6667, 0.3333])

    Source: A Benchmark Study on Calibration, arXiv:2308.11838.
    """

    name = "temperature"
    temperature: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones((), dtype=torch.float64))

    def _fit(self, logits: Tensor, target: Tensor) -> None:
        self.temperature.fill_(temperature_scale(logits, target))

    def _transform(self, logits: Tensor) -> Tensor:
        return (logits / self.temperature.to(logits)).softmax(1)

    @classmethod
    def instances(cls) -> list[Self]:
        """One."""
        return [cls()]


def calibration_report(
    logits: F[Tensor, "samples classes"],
    target: I[Tensor, " samples"],
    bins: Sequence[int] = BINS,
    *,
    held_out: tuple[Tensor, Tensor] | None = None,
    ood_logits: Mapping[str, Tensor] | None = None,
) -> dict[str, float]:
    """All measures of one classifier.

    For each number of bins ``ece``, ``ece equal mass``, ``classwise``, ``classwise equal mass`` and ``mce`` (such as
    ``"ece 15"``); ``ks``, ``kde``, ``mmce``, ``nll``, ``brier`` (summed over classes) and ``accuracy``. With
    ``held_out`` the same again of the logits over a fitted temperature (``"ece 15 scaled"``), and ``temperature``.
    With ``ood_logits`` the area under the ROC curve of the confidence against each of those sets (``"auroc NAME"``).

    Args:
        logits: ``[N, C]``, finite.
        target: class indices ``[N]``.
        bins: numbers of bins, each >= 1.
        held_out: logits and labels of other rows, for the temperature.
        ood_logits: logits ``[M, C]`` of inputs of another kind, by name.

    Returns:
        Numbers by name; with nine numbers of bins, ``held_out`` and two other sets: 90 bin-based and 12 others, beside
        accuracy and temperature.

    Raises:
        ValueError: no rows, wrong shapes, labels out of range, logits that are not finite.

    Example:
        >>> found = calibration_report(torch.tensor([[2.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]), bins=(15,))
        >>> round(found["ece 15"], 4), found["accuracy"]
        (0.4251, 0.5)

    Source: A Benchmark Study on Calibration, arXiv:2308.11838.
    """
    check_logits(logits, argument="logits")
    check_index(target, logits)
    if not len(logits):
        refuse("logits", "at least one row", logits)
    if not bool(torch.isfinite(logits).all()):
        refuse("logits", "finite numbers", logits)
    for count in bins:
        check_number("bins", count, low=1, integer=True)
    z = widen(logits.detach()).double()
    report = _measured(z, target, bins)
    if held_out is not None:
        report["temperature"] = temperature_scale(*held_out)
        scaled = _measured(z / report["temperature"], target, bins)
        report |= {f"{name} scaled": value for name, value in scaled.items() if name != "accuracy"}
    for name, ood in (ood_logits or {}).items():
        check_logits(ood, argument=f"ood_logits[{name!r}]")
        sure = torch.cat([z.softmax(1).max(1).values, ood.detach().double().softmax(1).max(1).values])
        inside = torch.arange(len(sure)) < len(z)
        report[f"auroc {name}"] = float(roc_auc_score(inside.numpy(), sure.cpu().numpy()))
    return report


def _measured(logits: Tensor, target: Tensor, bins: Sequence[int]) -> dict[str, float]:
    p, y = logits.softmax(1), target.long()
    hot = torch.nn.functional.one_hot(y, p.shape[1]).to(p)
    return {
        **{f"{name} {count}": function(p, y, bins=count) for name, function in _BINNED.items() for count in bins},
        **{name: function(p, y) for name, function in _OTHER.items()},
        "nll": float(torch.nn.functional.cross_entropy(logits, y)),
        "brier": float((p - hot).square().sum(1).mean()),
        "accuracy": float((logits.argmax(1) == y).double().mean()),
    }


Model = Callable[[Tensor], Tensor]
Data = tuple[Tensor, Tensor, Tensor, Tensor]


def calibration_study(
    models: Mapping[str, Sequence[Model]], datasets: Mapping[str, Data], *, bins: Sequence[int] = BINS, top: float = 0.1
) -> pd.DataFrame:
    """Rank correlations over many classifiers: do measures transfer between data sets, and agree with each other?

    Args:
        models: for each data set its classifiers, inputs to logits, the same architectures in the same order.
        datasets: by the same names ``(inputs, labels)`` held out for the temperature, then those to measure on.
        bins: numbers of bins; 15 is always among them.
        top: share of the most accurate classifiers in the study ``"accuracy, top"``, in 0..1; at least 2 of them.

    Returns:
        Kendall's tau of each pair, a table with the columns ``study``, ``data``, ``first``, ``second`` and ``tau`` (NaN
        where one side is constant). The studies: ``"between data sets"`` (each measure), ``"between measures"`` (each
        against ``ece 15``, scaled with scaled), ``"accuracy"`` and ``"accuracy, top"`` (against ``ece 15``), and
        ``"scaling"`` (each measure before against after).

    Raises:
        ValueError: other data sets than models, fewer than two classifiers, unequal numbers of them.

    Example:
        >>> x, y = torch.tensor([[2.0, 0.0], [0.5, 0.0], [0.0, 1.0]]), torch.tensor([0, 1, 1])
        >>> nets = [lambda x, k=k: k * x for k in (1, 2, 4)]
        >>> table = calibration_study({"a": nets, "b": nets}, {"a": (x, y, x, y), "b": (x, y, x, y)}, bins=(15,))
        >>> table[table.study == "between data sets"].tau.dropna().round(6).unique().tolist()
        [1.0]

    Source: A Benchmark Study on Calibration, arXiv:2308.11838.
    """
    check_number("top", top, low=0.0, high=1.0)
    if set(models) != set(datasets) or not models:
        refuse("datasets", f"the data sets of models, {sorted(models)}", sorted(datasets))
    counts = {len(of_model) for of_model in models.values()}
    if len(counts) != 1 or min(counts) < 2:
        refuse("models", "equally many classifiers for each data set, at least 2", sorted(counts))
    numbers = sorted({*bins, 15})
    reports = {}
    for name, (x_held, y_held, x, y) in datasets.items():
        with torch.no_grad():
            reports[name] = pd.DataFrame(
                [calibration_report(m(x), y, numbers, held_out=(m(x_held), y_held)) for m in models[name]]
            )
    rows = []
    names = list(reports)
    columns = list(reports[names[0]].columns)
    for place, one in enumerate(names):
        rows += [
            ("between data sets", f"{one}, {two}", column, column, reports[one][column], reports[two][column])
            for two in names[place + 1 :]
            for column in columns
        ]
        own = reports[one]
        best = own.nlargest(max(2, round(top * len(own))), "accuracy")
        rows += [
            ("accuracy", one, "accuracy", REFERENCE, own["accuracy"], own[REFERENCE]),
            ("accuracy, top", one, "accuracy", REFERENCE, best["accuracy"], best[REFERENCE]),
        ]
        for column in columns:
            base = f"{REFERENCE} scaled" if column.endswith(" scaled") else REFERENCE
            if column not in (base, "accuracy", "temperature"):
                rows.append(("between measures", one, base, column, own[base], own[column]))
            if f"{column} scaled" in own:
                rows.append(("scaling", one, column, f"{column} scaled", own[column], own[f"{column} scaled"]))
    return pd.DataFrame(
        [(*row[:4], float(kendalltau(*row[4:]).statistic)) for row in rows],
        columns=["study", "data", "first", "second", "tau"],
    )
