"""Distance covariance between predictions and protected attributes of any type, one by one and jointly."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import check_choice, check_number, check_tensor, refuse, refuse_type
from ...core.distances import cdist
from ...core.loss import Sample
from ...core.objective import Penalty
from ...core.reductions import widen

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("dcov", "ccdcov", "jdcov")
LINKS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda z: z,
    "sigmoid": torch.sigmoid,
    "softmax": lambda z: z.softmax(-1),
}
_CELLS = 2048
Fit = Callable[[float], tuple[float, object, object]]


def distance_covariance(x: Tensor, y: Tensor, *, unbiased: bool = True) -> F[Tensor, ""]:
    r"""The squared distance covariance of two samples, 0 in the population only under independence.

    .. math:: \frac{1}{n (n - 3)} \sum_{i \ne j} U_{ij}(x) U_{ij}(y), \qquad
        U_{ij} = \frac{a_{i \cdot} + a_{\cdot j}}{n - 2} - a_{ij} - \frac{a_{\cdot\cdot}}{(n - 1)(n - 2)},
        \quad a_{ij} = \|x_i - x_j\|_2

    The biased form centres with means over all n and divides by n^2; it is never negative. The unbiased one can be:
    take no root of it, and don't clamp it while training. Where two rows coincide the gradient of their distance is 0.

    Args:
        x: ``[N]`` or ``[N, P]``, of any real type.
        y: ``[N]`` or ``[N, Q]``.
        unbiased: the U-statistic, for N >= 4; False for the V-statistic.

    Returns:
        A scalar in float32 or wider. Memory grows with N^2.

    Raises:
        ValueError: other shapes, lengths that differ, fewer than 4 rows (unbiased) or none.
        TypeError: not tensors, complex numbers.

    Example:
        >>> x, s = torch.tensor([1.0, 2.0, 3.0, 4.0, 6.0]), torch.tensor([0, 0, 1, 1, 1])
        >>> distance_covariance(x, s)
        tensor(0.5333)
        >>> distance_covariance(x, s, unbiased=False)
        tensor(0.4416)

    Source: Machine Learning with Multitype Protected Attributes, arXiv:2509.08163.
    """
    first, second = _centred_all({"x": x, "y": y}, unbiased)
    return (first * second).sum() / _pairs(len(x), unbiased)


def joint_distance_covariance(*variables: Tensor, c: float = 1.0, unbiased: bool = True) -> F[Tensor, ""]:
    r"""The squared joint distance covariance of several samples, 0 in the population only under mutual independence.

    .. math:: \frac{1}{n (n - 3)} \sum_{i, j} \Bigl[ \prod_{k=1}^{m} (U_{ij}(v_k) + c) - c^m \Bigr]

    The diagonal, where U is 0, adds nothing. Of two variables it is :func:`distance_covariance`; of more it sums that
    of every pair times c^(m-2), of every triple times c^(m-3), and so on.

    Args:
        variables: two or more tensors ``[N]`` or ``[N, P]``, of any real type.
        c: weight of small sets of variables against large ones, > 0.
        unbiased: the U-statistic, for N >= 4; False for the V-statistic.

    Returns:
        A scalar in float32 or wider.

    Raises:
        ValueError: other shapes, lengths that differ, fewer than 4 rows (unbiased) or none, c <= 0, one variable.
        TypeError: not tensors, complex numbers.

    Example:
        >>> x, s = torch.tensor([1.0, 2.0, 3.0, 4.0, 6.0]), torch.tensor([0, 0, 1, 1, 1])
        >>> joint_distance_covariance(x, s, torch.tensor([0, 1, 0, 1, 1]))
        tensor(0.3407)

    Source: Machine Learning with Multitype Protected Attributes, arXiv:2509.08163.
    """
    check_number("c", c, low=0.0, open_low=True)
    if len(variables) < 2:
        refuse("variables", "two or more tensors", len(variables))
    centred = _centred_all({f"variables[{k}]": v for k, v in enumerate(variables)}, unbiased)
    product = functools.reduce(torch.mul, [u + c for u in centred])
    return (product - c ** len(centred)).sum() / _pairs(len(variables[0]), unbiased)


class DistanceCovariancePenalty(Penalty):
    r"""Dependence between predictions and protected attributes, as a penalty for any objective.

    ========  ======================================================================================
    kind      with :math:`S_1 \dots S_d` the attributes
    ========  ======================================================================================
    dcov      :math:`\sum_k \mathrm{dCov}^2(\hat y, S_k)`: each attribute for itself
    ccdcov    :math:`\mathrm{dCov}^2(\hat y, (S_1, \dots, S_d))`: groups that attributes form together
    jdcov     :math:`\mathrm{JdCov}^2(\hat y, S_1, \dots, S_d; c)`, which holds the dependence among the
              attributes as well: a part of the value, not of the gradient
    ========  ======================================================================================

    One-hot the categorical attributes and standardise the continuous ones; take batches of at least 64 rows.

    Args:
        kind: ``"dcov"``, ``"ccdcov"`` or ``"jdcov"``.
        unbiased: U-statistics, which are negative at times; False for V-statistics.
        c: of ``jdcov``, > 0.
        widths: columns of each attribute in a tensor ``[N, D]``; None for one column each.
        link: what is made of the outputs first: ``"identity"``, ``"sigmoid"`` or ``"softmax"``.

    Raises:
        ValueError: an unknown kind or link, c <= 0, widths that don't add up, fewer than 4 rows (unbiased).

    Example:
        >>> x, s = torch.tensor([1.0, 2.0, 3.0, 4.0, 6.0]), torch.tensor([[0, 0, 1, 1, 1], [0, 1, 0, 1, 1]]).T
        >>> DistanceCovariancePenalty()(x, s), DistanceCovariancePenalty("jdcov")(x, s)
        (tensor(0.5333), tensor(0.3407))

    Source: Machine Learning with Multitype Protected Attributes, arXiv:2509.08163.
    """

    name = "distance_covariance"
    wants = ("outputs", "attributes")
    differentiable = ("outputs",)

    def __init__(
        self,
        kind: str = "dcov",
        unbiased: bool = True,
        c: float = 1.0,
        *,
        widths: Sequence[int] | None = None,
        link: str = "identity",
    ) -> None:
        super().__init__()
        check_choice("kind", kind, KINDS)
        check_number("c", c, low=0.0, open_low=True)
        check_choice("link", link, LINKS)
        for width in widths or ():
            check_number("widths", width, low=1, integer=True)
        self.kind, self.unbiased, self.c, self.link = kind, bool(unbiased), c, link
        self.widths = None if widths is None else tuple(widths)

    def forward(self, outputs: Tensor, attributes: Tensor | Sequence[Tensor]) -> F[Tensor, ""]:
        """The penalty of outputs ``[N]`` or ``[N, P]``.

        ``attributes`` are ``[N]``, ``[N, D]``, or a sequence of tensors ``[N]`` or ``[N, P]``, one an attribute.
        """
        check_tensor("outputs", outputs, ndim=(1, 2), floating=True)
        predicted = LINKS[self.link](widen(outputs))
        parts = [attribute.to(predicted.dtype) for attribute in self._split(attributes)]
        if self.kind == "jdcov":
            return joint_distance_covariance(predicted, *parts, c=self.c, unbiased=self.unbiased)
        if self.kind == "ccdcov":
            parts = [torch.cat([attribute.reshape(attribute.shape[0], -1) for attribute in parts], 1)]
        names = [f"attributes[{k}]" for k in range(len(parts))]
        own, *others = _centred_all({"outputs": predicted, **dict(zip(names, parts))}, self.unbiased)
        # U is linear after the distances: the sum over attributes is taken before the product
        return (own * functools.reduce(torch.add, others)).sum() / _pairs(len(outputs), self.unbiased)

    def _split(self, attributes: Tensor | Sequence[Tensor]) -> list[Tensor]:
        if not isinstance(attributes, Tensor):
            if not isinstance(attributes, list | tuple) or not attributes:
                refuse_type("attributes", "a tensor, or a sequence of tensors", attributes)
            for k, attribute in enumerate(attributes):
                check_tensor(f"attributes[{k}]", attribute, ndim=(1, 2))
            if self.widths is not None:
                refuse("attributes", "one tensor, because widths are given", attributes)
            return list(attributes)
        check_tensor("attributes", attributes, ndim=(1, 2))
        columns = attributes.reshape(attributes.shape[0], -1)
        widths = self.widths or (1,) * columns.shape[1]
        if sum(widths) != columns.shape[1] or not widths:
            refuse("attributes", f"{sum(widths) or 'at least one'} columns", attributes)
        return list(columns.split(widths, 1))

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[DistanceCovariancePenalty, Sample]]:
        """Scores and class outputs, attributes as one tensor, as integers and as a sequence."""
        outputs = torch.randn(8, 3, generator=generator, dtype=torch.float64).to(device, dtype)
        bits = torch.tensor([[0, 0, 1, 1, 0, 1, 0, 1], [0, 1, 0, 1, 1, 1, 0, 0]], device=device).T
        age = torch.randn(8, generator=generator, dtype=torch.float64).to(device, dtype)
        cases = [
            ({}, outputs[:, 0], torch.cat([bits.to(dtype), age[:, None]], 1)),
            ({"unbiased": False}, outputs[:, 0], bits),
            ({"link": "softmax"}, outputs, [bits, age]),
        ]
        kinds = KINDS if cls is DistanceCovariancePenalty else ("",)
        return [
            (cls(*([kind] if kind else []), **hyper), ((), {"outputs": out, "attributes": attributes}))
            for kind in kinds
            for hyper, out, attributes in cases
        ]


class CCdCovPenalty(DistanceCovariancePenalty):
    """Distance covariance between predictions and all attributes side by side; see :class:`DistanceCovariancePenalty`.

    Args:
        unbiased: the U-statistic; False for the V-statistic.
        widths: columns of each attribute; nothing here depends on them.
        link: ``"identity"``, ``"sigmoid"`` or ``"softmax"``.

    Example:
        >>> x, s = torch.tensor([1.0, 2.0, 3.0, 4.0, 6.0]), torch.tensor([[0, 0, 1, 1, 1], [0, 1, 0, 1, 1]]).T
        >>> CCdCovPenalty()(x, s)
        tensor(0.3771)
    """

    name = "ccdcov"

    def __init__(self, unbiased: bool = True, *, widths: Sequence[int] | None = None, link: str = "identity") -> None:
        super().__init__("ccdcov", unbiased, widths=widths, link=link)


class JdCovPenalty(DistanceCovariancePenalty):
    """Joint distance covariance of predictions and attributes; see :class:`DistanceCovariancePenalty`.

    Args:
        unbiased: the U-statistic; False for the V-statistic.
        c: weight of pairs against larger sets, > 0.
        widths: columns of each attribute in a tensor ``[N, D]``; None for one column each.
        link: ``"identity"``, ``"sigmoid"`` or ``"softmax"``.

    Example:
        >>> x, s = torch.tensor([1.0, 2.0, 3.0, 4.0, 6.0]), torch.tensor([[0, 0, 1, 1, 1], [0, 1, 0, 1, 1]]).T
        >>> JdCovPenalty()(x, s)
        tensor(0.3407)
    """

    name = "jdcov"

    def __init__(
        self, unbiased: bool = True, c: float = 1.0, *, widths: Sequence[int] | None = None, link: str = "identity"
    ) -> None:
        super().__init__("jdcov", unbiased, c, widths=widths, link=link)


def group_divergence(predictions: object, groups: object, *, bandwidth: float | None = None) -> float:
    r"""The generalised Jensen-Shannon divergence of the groups' distributions of predictions, in bits.

    .. math:: H\Bigl(\sum_g w_g P_g\Bigr) - \sum_g w_g H(P_g)

    w are the groups' shares; the densities are kernel estimates of one bandwidth on one grid of 2048 cells. Small
    groups raise it: predictions that don't know the groups have a divergence a little above 0.

    Args:
        predictions: finite numbers ``[N]``.
        groups: the group of each row ``[N]``, of any type, none missing.
        bandwidth: of the kernel, > 0; None for Scott's rule on all predictions.

    Returns:
        Between 0 and log2 of the number of groups.

    Raises:
        ValueError: lengths that differ, nothing, a bandwidth <= 0, numbers that aren't finite, a missing group.

    Example:
        >>> round(group_divergence([0.0, 0.1, 9.0, 9.1], ["a", "a", "b", "b"], bandwidth=0.5), 3)
        1.0
    """
    import pandas as pd
    from scipy.ndimage import gaussian_filter1d

    if bandwidth is not None:
        check_number("bandwidth", bandwidth, low=0.0, open_low=True)
    values, labels = np.asarray(predictions, dtype=np.float64), np.asarray(groups)
    if values.ndim != 1 or labels.shape != values.shape or not values.size:
        refuse("groups", "one group for each of the predictions [N]", list(labels.shape))
    if not np.isfinite(values).all():
        refuse("predictions", "finite numbers", float(values[~np.isfinite(values)][0]))
    if pd.isna(labels).any():
        refuse("groups", "a group for each row", labels[pd.isna(labels)][0])
    values = values - values.min()
    if not values.any():  # all predictions are the same
        return 0.0
    width = float(values.std() * len(values) ** -0.2) if bandwidth is None else bandwidth
    ends = values.min() - 6 * width, values.max() + 6 * width
    cell = (ends[1] - ends[0]) / _CELLS
    mixture, parts = np.zeros(_CELLS), 0.0
    for group in np.unique(labels):
        own = values[labels == group]
        counts = np.histogram(own, _CELLS, ends)[0] / len(own)
        density = gaussian_filter1d(counts, width / cell, mode="constant", truncate=6.0)
        mixture += len(own) / len(values) * density
        parts += len(own) / len(values) * _entropy(density)
    return float(np.maximum(_entropy(mixture) - parts, 0.0))  # which keeps NaN, as Python's max does not


def calibrate_fairness_strength(
    fit: Fit, lambdas: Sequence[float], *, tolerance: float = 0.05, bandwidth: float | None = None
) -> pd.DataFrame:
    """Train at each strength of the penalty; divergence of the groups against the rise of the task loss.

    The chosen strength has the least divergence among those whose loss is at most ``tolerance`` (a share of it) above
    that of the smallest strength.

    Args:
        fit: of a strength, gives ``(task loss, predictions [N], groups [N])`` on held-out rows.
        lambdas: strengths >= 0, each once; begin with 0.
        tolerance: share of the loss, >= 0.
        bandwidth: of :func:`group_divergence`.

    Returns:
        A frame with a row for each strength, sorted: ``strength``, ``loss``, ``rise`` (share of the first loss),
        ``divergence`` (bits), ``chosen``.

    Raises:
        ValueError: no strengths, one twice, a negative one, a tolerance < 0.

    Example:
        >>> def fit(strength):  # groups drift together, the loss rises
        ...     apart = 2.0 / (1.0 + strength)
        ...     return 1.0 + 0.04 * strength, [0.0, 0.2, apart, apart + 0.2], [0, 0, 1, 1]
        >>> calibrate_fairness_strength(fit, [0.0, 1.0, 9.0], bandwidth=0.5).round(3)
           strength  loss  rise  divergence  chosen
        0       0.0  1.00  0.00       0.905   False
        1       1.0  1.04  0.04       0.472    True
        2       9.0  1.36  0.36       0.027   False

    Source: Machine Learning with Multitype Protected Attributes, arXiv:2509.08163.
    """
    import pandas as pd

    check_number("tolerance", tolerance, low=0.0)
    for strength in lambdas:
        check_number("lambdas", strength, low=0.0)
    if not len(lambdas) or len(set(lambdas)) != len(lambdas):
        refuse("lambdas", "strengths, each once", list(lambdas))
    rows = []
    for strength in sorted(lambdas):
        loss, predictions, groups = fit(strength)
        check_number("loss", float(loss))
        rows.append((float(strength), float(loss), group_divergence(predictions, groups, bandwidth=bandwidth)))
    table = pd.DataFrame(rows, columns=["strength", "loss", "divergence"])
    first = table["loss"].iloc[0]
    table.insert(2, "rise", (table["loss"] - first) / abs(first) if first else table["loss"] - first)
    near = table["divergence"].where(table["rise"] <= tolerance)
    table["chosen"] = table.index == near.idxmin()
    return table


def _entropy(p: np.ndarray) -> float:
    return float(-(p[p > 0] * np.log2(p[p > 0])).sum())


def _pairs(rows: int, unbiased: bool) -> int:
    return rows * (rows - 3) if unbiased else rows * rows


def _centred_all(variables: dict[str, Tensor], unbiased: bool) -> list[Tensor]:
    rows = None
    for argument, value in variables.items():
        check_tensor(argument, value, ndim=(1, 2))
        if value.is_complex():
            refuse_type(argument, "a real tensor", value)
        if rows is not None and value.shape[0] != rows:
            refuse(argument, f"{rows} rows", value)
        rows = value.shape[0]
        if rows < (4 if unbiased else 1):
            refuse(argument, "at least 4 rows" if unbiased else "at least one row", value)
    dtype = functools.reduce(torch.promote_types, [v.dtype for v in variables.values()], torch.float32)
    return [_centred(_distances(value.to(dtype)), unbiased) for value in variables.values()]


def _distances(x: Tensor) -> Tensor:
    if x.ndim == 1 or x.shape[1] == 1:
        flat = x.reshape(-1)
        return (flat[:, None] - flat).abs()
    # differences, not products: equal rows are at distance 0 exactly, where the gradient is 0
    return cdist(x, x)


def _centred(a: Tensor, unbiased: bool) -> Tensor:
    n, sums = a.shape[0], a.sum(1)
    if not unbiased:
        return sums[:, None] / n + sums / n - a - sums.sum() / n**2
    u = sums[:, None] / (n - 2) + sums / (n - 2) - a - sums.sum() / ((n - 1) * (n - 2))
    return u.masked_fill(torch.eye(n, dtype=torch.bool, device=a.device), 0.0)
