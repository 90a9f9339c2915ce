"""Groups of outliers with a strong feature that pull a network in opposite directions: a search, a probe, a toy."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import check_number, check_tensor, refuse
from ...core.probe import Array, Moment, Probe, Reading
from ...core.reductions import widen
from ...core.sample_gradients import count_samples, frozen_samples, loss_of_moment, rows_of, sample_losses

MOST = 256
"""Samples of a first batch that a monitor keeps."""


class OpposingPair(NamedTuple):
    """Two groups of samples whose losses move in opposite directions.

    Args:
        first, second: places of their samples, ascending; the first holds the sample that moves most.
        correlation: Pearson's, of the mean changes of the two groups over steps.
        share: of the changes of all losses, each without its sign, what the two groups move as wholes.
        cosine: of their mean gradients; NaN where none were given.
    """

    first: Tensor
    second: Tensor
    correlation: float
    share: float
    cosine: float


def find_opposing_groups(
    loss_before: F[Tensor, "steps samples"],
    loss_after: F[Tensor, "steps samples"],
    k: int = 20,
    *,
    gradients: F[Tensor, "samples parameters"] | None = None,
    correlation: float = -0.5,
    cosine: float = -0.5,
    excess: float = 3.0,
) -> list[OpposingPair]:
    r"""The groups among the samples of largest loss changes whose losses rise and fall in turn.

    .. math:: D_i(t) = \ell_i(w_{t+1}) - \ell_i(w_t), \qquad o_i = \frac1T \sum_t |D_i(t)|

    Of the samples that are among the k largest or the k most negative changes of some step, the 2k of the largest
    :math:`o_i` are candidates. Two means of their rows of D, each divided by its length, so that it is the pattern of
    signs that counts, split them in two groups; a candidate that does not move stands in none. They are a pair where
    the means of D over the groups correlate over steps by less than ``correlation``, and, where gradients are given,
    the mean gradients of the groups have a cosine below ``cosine`` and are longer than ``excess`` times the median
    sample's. The thresholds are chosen here; the publication looks at groups by eye.

    Args:
        loss_before, loss_after: the loss of each sample before and after each step, ``[T, n]``: full or large batches
            near the edge of stability, 20 steps or more.
        k: candidates of either sign, >= 1; the publication takes 20, or half a percent of n.
        gradients: of samples, ``[n, p]``, at one of the steps.
        correlation, cosine: thresholds in [-1, 1].
        excess: how many times longer than the median, > 0.

    Returns:
        One pair or none. Samples that all move alike are no pair; nor are losses that are not finite.

    Raises:
        ValueError: wrong shapes, fewer than three steps, a number outside its range.

    Example:
        >>> swing = torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None]
        >>> before = torch.ones(4, 6)
        >>> after = before + swing * torch.tensor([0.01, -5.0, 4.0, 0.0, -4.0, 5.0])
        >>> pair = find_opposing_groups(before, after, k=2)[0]
        >>> pair.first, pair.second, round(pair.correlation, 4), round(pair.share, 4)
        (tensor([1, 4]), tensor([2, 5]), -1.0, 0.9994)

    Source: Outliers with Opposing Signals Have an Outsized Effect on Neural Network Optimization, arXiv:2311.04163.
    """
    check_tensor("loss_before", loss_before, ndim=2, floating=True)
    check_tensor("loss_after", loss_after, floating=True, shape=tuple(loss_before.shape))
    check_number("k", k, low=1, integer=True)
    check_number("correlation", correlation, low=-1.0, high=1.0)
    check_number("cosine", cosine, low=-1.0, high=1.0)
    check_number("excess", excess, low=0.0, open_low=True)
    steps, samples = loss_before.shape
    if steps < 3 or samples < 1:
        refuse("loss_before", "losses [steps, samples] of at least three steps and one sample", loss_before)
    if gradients is not None:
        check_tensor("gradients", gradients, ndim=2, floating=True, shape=(samples, None))
    changes = (widen(loss_after) - widen(loss_before)).double()
    if not bool(changes.isfinite().all()):
        return []
    places = _candidates(changes, k)
    rows = changes[:, places].T
    groups = _two_groups(rows)
    if groups is None:
        return []
    means = torch.stack([rows[own].mean(0) for own in groups])
    together = _pearson(means[0], means[1])
    if not together < correlation:
        return []
    first, second = (places[own].sort().values for own in groups)
    opposed = math.nan
    if gradients is not None:
        of_groups = [widen(gradients)[own].mean(0) for own in (first, second)]
        lengths = torch.linalg.vector_norm(widen(gradients), dim=1)
        a, b = (torch.linalg.vector_norm(gradient) for gradient in of_groups)
        opposed = float(of_groups[0] @ of_groups[1] / (a * b))
        if not (opposed < cosine and min(float(a), float(b)) >= excess * float(lengths.median())):
            return []
    moved = sum(changes[:, own].sum(1).abs().sum() for own in (first, second))
    share = float(moved / changes.abs().sum())
    return [OpposingPair(first, second, together, share, opposed)]


@dataclass(frozen=True)
class OpposingHistory:
    """A run of the toy, by step; the first entries are those of the start.

    Args:
        losses: ``[steps + 1]``.
        sharpness: the largest eigenvalue of the Hessian, ``[steps + 1]``.
        along: c^2 p s^2, the curvature along the weight of the strong feature, ``[steps + 1]``.
        groups: the loss of a sample of either group, ``[steps + 1, 2]``.
        c, b: weights, ``[steps + 1]`` and ``[steps + 1, d + 1]``; the strong feature's is the last.
    """

    losses: Tensor
    sharpness: Tensor
    along: Tensor
    groups: Tensor
    c: Tensor
    b: Tensor


class OpposingToy:
    r"""Two linear layers, a smooth signal, and few samples of one strong feature with labels of either sign.

    .. math::
        f(x) = c \, b^T x, \qquad L = \frac{1}{2n} \sum_i (f(x_i) - y_i)^2

    A share p of the samples has only the strong feature, of size s, half of them the label a and half -a; the others
    have :math:`x \sim N(0, I)` without it and :math:`y = \beta^T x`. As c grows with the signal, so does the curvature
    :math:`c^2 p s^2` along the weight of the strong feature, whose gradient is 0 in balance. The flow of gradients
    keeps :math:`\delta = c^2 - \|b\|^2` and ends at :math:`c^2 = (\delta + \sqrt{\delta^2 + 4 \|\beta\|^2}) / 2`; where
    the curvature passes 2 / lr, descent swings across, the two groups' losses rise in turn, and c falls again.

    Args:
        beta: the signal, ``[d]``.
        s: size of the strong feature, > 0.
        p: share of its samples, in (0, 1); their number is rounded to an even one.
        a: their label, without its sign, >= 0.
        n: samples, >= 2.

    Raises:
        ValueError: a number outside its range, fewer than two samples of the strong feature, or no others.

    Example:
        >>> toy = OpposingToy(torch.tensor([2.0]), s=10.0, p=0.1)
        >>> round(toy.limit(0.0), 4)
        20.0
        >>> history = toy.run(0.12, 100, generator=torch.Generator().manual_seed(0))
        >>> bool(history.along.max() > 2 / 0.12 > history.along[-1])
        True

    Source: Outliers with Opposing Signals Have an Outsized Effect on Neural Network Optimization, arXiv:2311.04163.
    """

    def __init__(self, beta: F[Tensor, " d"], s: float = 10.0, p: float = 0.1, a: float = 1.0, n: int = 1000) -> None:
        check_tensor("beta", beta, ndim=1, floating=True)
        check_number("s", s, low=0.0, open_low=True)
        check_number("p", p, low=0.0, high=1.0, open_low=True, open_high=True)
        check_number("a", a, low=0.0)
        check_number("n", n, low=2, integer=True)
        self.outliers = 2 * round(p * n / 2)
        if not 0 < self.outliers < n:
            refuse("p", f"a share with two outliers of {n} samples and some others", p)
        self.beta, self.s, self.p, self.a, self.n = beta.double(), s, p, a, n

    def limit(self, delta: float) -> float:
        """The curvature along the strong feature to which the flow of gradients leads from c^2 - |b|^2 = delta."""
        return self.p * self.s**2 * (delta + math.sqrt(delta**2 + 4 * float(self.beta @ self.beta))) / 2

    def samples(self, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """``(x [n, d + 1], y [n])`` in float64; outliers first, those of label a before those of -a."""
        plain = torch.randn(self.n - self.outliers, len(self.beta), generator=generator, dtype=torch.float64)
        x = torch.zeros(self.n, len(self.beta) + 1, dtype=torch.float64)
        x[: self.outliers, -1] = self.s
        x[self.outliers :, :-1] = plain
        half = self.outliers // 2
        signs = torch.tensor([self.a, -self.a], dtype=torch.float64).repeat_interleave(half)
        return x, torch.cat([signs, plain @ self.beta])

    def run(
        self, lr: float, steps: int = 300, c0: float = 0.3, *, generator: torch.Generator | None = None
    ) -> OpposingHistory:
        """Full-batch descent from c = c0 and b of normal numbers of deviation 0.01.

        Args:
            lr: rate, > 0.
            steps: >= 1.
            c0: the first weight.
            generator: for samples and start.
        """
        check_number("lr", lr, low=0.0, open_low=True)
        check_number("steps", steps, low=1, integer=True)
        check_number("c0", c0)
        x, y = self.samples(generator)
        b = 0.01 * torch.randn(x.shape[1], generator=generator, dtype=torch.float64)
        c = torch.tensor(c0, dtype=torch.float64)
        moments, with_labels, power = x.T @ x / self.n, x.T @ y / self.n, y @ y / self.n
        path: list[tuple[Tensor, Tensor]] = []
        for _ in range(steps + 1):
            path.append((c, b))
            seen = moments @ b
            c, b = c - lr * (c * (b @ seen) - b @ with_labels), b - lr * (c**2 * seen - c * with_labels)
        cs, bs = (torch.stack(values) for values in zip(*path))
        seen = bs @ moments
        losses = (cs**2 * (bs * seen).sum(1) - 2 * cs * (bs @ with_labels) + power) / 2
        hessian = torch.zeros(steps + 1, x.shape[1] + 1, x.shape[1] + 1, dtype=torch.float64)
        hessian[:, 0, 0] = (bs * seen).sum(1)
        hessian[:, 0, 1:] = hessian[:, 1:, 0] = 2 * cs[:, None] * seen - with_labels
        hessian[:, 1:, 1:] = cs[:, None, None] ** 2 * moments
        reached = hessian.isfinite().all(-1).all(-1)
        sharpness = torch.linalg.eigvalsh(torch.where(reached[:, None, None], hessian, 0.0))[:, -1]
        q = cs * bs[:, -1] * self.s
        groups = 0.5 * torch.stack([(q - self.a) ** 2, (q + self.a) ** 2], 1)
        share = self.outliers / self.n
        return OpposingHistory(
            losses, torch.where(reached, sharpness, torch.nan), cs**2 * share * self.s**2, groups, cs, bs
        )


class OpposingSignalMonitor(Probe):
    r"""Follows the losses of the same samples over steps, and looks for groups that move in opposite directions.

    Each moment gives a row of changes, the losses after the step less those before it, in evaluation mode; over the
    last ``window`` rows :func:`find_opposing_groups` searches. A reading has the number of ``pairs`` (0 or 1), their
    ``correlation``, ``share``, and ``samples`` in the pair, all NaN until there are three rows or where there is no
    pair, the ``change`` of the mean loss, and the mean absolute change of each sample.

    Args:
        data: ``(inputs, targets)`` of the samples; None takes the first batch that it sees, at most 256 of it.
        k: candidates of either sign, >= 1.
        window: rows, >= 3.
        every: steps between readings, odd, so that it does not beat with a swing of two steps.

    Raises:
        ValueError: a number outside its range, an even ``every``.

    Example:
        >>> from torch import nn
        >>> from steepest.core.probe import Moment
        >>> model, x = nn.Linear(1, 1, bias=False), torch.tensor([[3.0], [3.0], [0.1]])
        >>> _ = nn.init.zeros_(model.weight)
        >>> monitor = OpposingSignalMonitor((x, torch.tensor([[1.0], [-1.0], [0.0]])), k=1)
        >>> for step in range(1, 5):
        ...     before = {"weight": model.weight.detach().clone()}
        ...     _ = model.weight.data.neg_().add_(0.1)
        ...     moment = Moment(step, "stepped", model, objective=nn.functional.mse_loss, before=before)
        ...     reading = monitor.measure(moment)
        >>> reading.numbers["pairs"], round(reading.numbers["correlation"], 2)
        (1.0, -1.0)

    Source: Outliers with Opposing Signals Have an Outsized Effect on Neural Network Optimization, arXiv:2311.04163.
    """

    name: ClassVar[str] = "opposing_signals"
    phases: ClassVar[tuple[str, ...]] = ("stepped",)
    needs: ClassVar[tuple[str, ...]] = ("objective", "batch")
    cost: ClassVar[str] = "two forward passes of the samples"

    def __init__(self, data: tuple[Any, Any] | None = None, k: int = 20, window: int = 40, *, every: int = 5) -> None:
        check_number("k", k, low=1, integer=True)
        check_number("window", window, low=3, integer=True)
        check_number("every", every, low=1, integer=True)
        if every % 2 == 0:
            refuse("every", "an odd number", every)
        self.data, self.k, self.window, self.every = data, k, window, every
        self.reset()

    def reset(self) -> None:
        self._samples: tuple[Any, Any] | None = self.data
        self._rows: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        own = None if self._samples is self.data else copy.deepcopy(self._samples)
        return {"samples": own, "rows": [row.clone() for row in self._rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._samples = self.data if state["samples"] is None else tuple(copy.deepcopy(state["samples"]))
        self._rows = [row.clone() for row in state["rows"]]

    def measure(self, moment: Moment) -> Reading:
        if self._samples is None and count_samples(moment.inputs, moment.targets):
            first = slice(0, MOST)
            self._samples = copy.deepcopy((rows_of(moment.inputs, first), rows_of(moment.targets, first)))
        nothing = dict.fromkeys(("pairs", "correlation", "share", "samples", "change"), math.nan)
        if self._samples is None or moment.before is None:
            return Reading(nothing)
        with frozen_samples(moment) as model:
            losses = [
                sample_losses(model, loss_of_moment(moment), *self._samples, weights=weights).double().cpu()
                for weights in (moment.before, None)
            ]
        self._rows = [*self._rows, losses[1] - losses[0]][-self.window :]
        changes = torch.stack(self._rows)
        numbers = nothing | {"change": float(self._rows[-1].mean())}
        if len(changes) >= 3:
            pairs = find_opposing_groups(torch.zeros_like(changes), changes, self.k)
            numbers["pairs"] = float(len(pairs))
            for pair in pairs:
                numbers |= {"correlation": pair.correlation, "share": pair.share}
                numbers["samples"] = float(len(pair.first) + len(pair.second))
        return Reading(numbers, {"mean absolute change": Array(changes.abs().mean(0), {"sample": None})})


def _candidates(changes: Tensor, k: int) -> Tensor:
    """The samples among the k largest or the k most negative changes of a step, 2k of them by their mean size."""
    count = min(k, changes.shape[1])
    outermost = torch.cat([changes.topk(count, 1).indices, changes.topk(count, 1, largest=False).indices]).unique()
    size = changes[:, outermost].abs().mean(0)
    outermost = outermost[size > 0]
    order = size[size > 0].argsort(descending=True, stable=True)
    chosen: Tensor = outermost[order[: 2 * k]]
    return chosen


def _two_groups(rows: Tensor) -> tuple[Tensor, Tensor] | None:
    """Two means of rows of length 1: masks of the rows in either group, the first row in the first one."""
    if len(rows) < 2:
        return None
    patterns = torch.nn.functional.normalize(rows, dim=1)
    centres = patterns[[0, int((patterns @ patterns[0]).argmin())]]
    first = torch.zeros(len(rows), dtype=torch.bool)
    for _ in range(100):
        nearer = (patterns @ centres.T).diff(dim=1)[:, 0] <= 0
        if bool(nearer.all()) or not bool(nearer.any()):
            return None
        if torch.equal(nearer, first):
            break
        first = nearer
        centres = torch.stack([patterns[first].mean(0), patterns[~first].mean(0)])
        centres = torch.nn.functional.normalize(centres, dim=1)
    return (first, ~first) if bool(first[0]) else (~first, first)


def _pearson(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / (torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b)))
