"""Cooldown: rare domains are sampled more often at first, by a temperature that falls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_choice, check_flag, check_number, check_range, check_tensor, refuse
from ...core.sampler import EpochSampler

SCHEDULES = ("switch", "linear", "cosine")
Sizes = Sequence[int] | I[Tensor, " domains"]


def temperature_probabilities(
    sizes: Sizes, temperature: float, *, allow_below_one: bool = False
) -> F[Tensor, " domains"]:
    r"""Probabilities of domains, flattened by a temperature.

    .. math:: p_i(T) = n_i^{1/T} \Big/ \sum_j n_j^{1/T}

    1 draws in proportion to the sizes, a large temperature all domains alike.

    Args:
        sizes: samples of each domain n ``[D]``, >= 1.
        temperature: T >= 1.
        allow_below_one: take T in (0, 1) too, which makes large domains still more frequent.

    Returns:
        ``[D]``, float64.

    Raises:
        ValueError: an empty domain, a temperature out of range.

    Example:
        >>> temperature_probabilities([1000, 100, 10], 5.0)
        tensor([0.4928, 0.3110, 0.1962], dtype=torch.float64)

    Source: Upsample or Upweight? Balanced Training on Heavily Imbalanced Datasets, arXiv:2410.04579.
    """
    check_flag("allow_below_one", allow_below_one)
    check_number("temperature", temperature, low=0.0 if allow_below_one else 1.0, open_low=allow_below_one)
    logs = _sizes(sizes).log()
    return ((logs - logs.max()) / temperature).softmax(0)


def scalarization_weights(sizes: Sizes, temperature: float) -> F[Tensor, " domains"]:
    r"""Weights of the losses of domains that give, under proportional sampling, the mean gradient of a temperature.

    .. math:: w_i = p_i(T) / p_i(1)

    In expectation they do what :func:`temperature_probabilities` do; :func:`gradient_second_moment` tells the noise.

    Args:
        sizes: samples of each domain ``[D]``, >= 1.
        temperature: T >= 1.

    Returns:
        ``[D]``, float64, of mean 1 under proportional sampling.

    Raises:
        ValueError: an empty domain, a temperature below 1.

    Example:
        >>> scalarization_weights([1000, 100, 10], 5.0)
        tensor([ 0.5471,  3.4517, 21.7785], dtype=torch.float64)

    Source: Upsample or Upweight? Balanced Training on Heavily Imbalanced Datasets, arXiv:2410.04579.
    """
    return temperature_probabilities(sizes, temperature) / temperature_probabilities(sizes, 1.0)


def gradient_second_moment(
    probabilities: F[Tensor, " domains"], weights: F[Tensor, " domains"], moments: F[Tensor, " domains"]
) -> Tensor:
    r"""The second moment of the stochastic gradient of one sample.

    .. math:: M = \sum_i p_i w_i^2 V_i, \qquad V_i = \mathbb{E} \|g_i\|^2

    Sampling by p(T) has weights 1, weighted losses have p(1) and p(T) / p(1). With equal V the second exceeds the first
    by V times the chi-square distance of p(T) from p(1). The variance of a batch of b is (M - |mean|^2) / b.

    Args:
        probabilities: p of domains ``[D]``, of sum 1.
        weights: w of their losses ``[D]``, >= 0.
        moments: V ``[D]``, >= 0.

    Returns:
        A scalar in float64.

    Raises:
        ValueError: shapes that differ, a negative number, probabilities that don't sum to 1.

    Example:
        >>> p, w = temperature_probabilities([1000, 100, 10], 5.0), torch.ones(3)
        >>> float(gradient_second_moment(p, w, torch.tensor([4.0, 1.0, 0.25])))
        2.3313...

    Source: Upsample or Upweight? Balanced Training on Heavily Imbalanced Datasets, arXiv:2410.04579.
    """
    check_tensor("probabilities", probabilities, ndim=1, floating=True)
    for name, value in (("probabilities", probabilities), ("weights", weights), ("moments", moments)):
        check_tensor(name, value, floating=True, shape=tuple(probabilities.shape))
        if bool((value < 0).any()):
            refuse(name, "numbers >= 0", float(value.min()))
    p = probabilities.double()
    if abs(float(p.sum()) - 1.0) > 1e-6:
        refuse("probabilities", "a sum of 1", float(p.sum()))
    return (p * weights.double().square() * moments.double()).sum()


class CooldownSampler(EpochSampler):
    r"""Batches whose domains are drawn by a temperature that falls from step to step.

    Each row is of a domain drawn from :func:`temperature_probabilities` at the temperature of its step, and uniform in
    that domain, with replacement. An epoch has as many steps as a pass over the rows would take. The temperature is
    ``high`` until a share of the steps and ``low`` from then on, or goes down evenly, or along half a cosine; after
    ``total_steps`` it is ``low``. :meth:`cool_down` lowers it from the next epoch on, whatever the schedule: for when
    the validation loss of a rare domain turns up.

    Rare rows repeat: a row of domain i comes :math:`b\, p_i(T) / n_i` times in a step of b rows. The loss stays
    unweighted.

    Args:
        domain_ids: domain of each row ``[N]``, 0..D-1, none without a row.
        batch_size: rows of a step on one rank.
        total_steps: steps of the training, >= 1.
        high: temperature at the start, >= 1.
        low: temperature at the end, from 1 to ``high``.
        schedule: "switch", "linear" or "cosine".
        switch: share of the steps with ``high``, in [0, 1]; of "switch" alone.
        **options: ``seed``, ``drop_last``, ``num_replicas``, ``rank``; see
            :class:`~steepest.core.sampler.EpochSampler`.

    Raises:
        ValueError: an empty domain, temperatures that rise, a share beside another schedule.

    Example:
        >>> domains = torch.tensor([0] * 90 + [1] * 10)
        >>> sampler = CooldownSampler(domains, 50, total_steps=4, high=5.0)
        >>> len(sampler), sampler.temperature(0), sampler.temperature(2)
        (2, 5.0, 1.0)

    Source: Upsample or Upweight? Balanced Training on Heavily Imbalanced Datasets, arXiv:2410.04579.
    """

    name = "cooldown"
    exact = False
    saved = ("cooled_at",)

    def __init__(
        self,
        domain_ids: I[Tensor, " samples"],
        batch_size: int,
        total_steps: int,
        high: float = 5.0,
        low: float = 1.0,
        schedule: str = "switch",
        switch: float | None = None,
        **options: Any,
    ) -> None:
        check_tensor("domain_ids", domain_ids, ndim=1, floating=False)
        super().__init__(len(domain_ids), batch_size, **options)
        check_number("total_steps", total_steps, low=1, integer=True)
        check_number("high", high, low=1.0, open_high=schedule != "switch")
        check_number("low", low, low=1.0, high=high)
        check_choice("schedule", schedule, SCHEDULES)
        if switch is not None and schedule != "switch":
            refuse("switch", f"None with schedule={schedule!r}", switch)
        check_number("switch", 0.5 if switch is None else switch, low=0.0, high=1.0)
        ids = domain_ids.detach().cpu().long()
        check_range("domain_ids", ids, 0, len(ids) - 1)
        self._sizes = torch.bincount(ids)
        _sizes(self._sizes, "domain_ids")
        self._by_domain = torch.argsort(ids, stable=True)
        self._first = self._sizes.cumsum(0) - self._sizes
        self._domains = ids
        self.total_steps, self.high, self.low, self.schedule = total_steps, high, low, schedule
        self.switch = 0.5 if switch is None else switch
        self.cooled_at: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch."""
        steps = self.num_samples / self.joint_size
        return math.floor(steps) if self.drop_last else math.ceil(steps)

    def temperature(self, step: int) -> float:
        """The temperature of a step, from 0 on; it never rises."""
        check_number("step", step, low=0, integer=True)
        if self.schedule == "switch":
            return self.high if step < self.switch * self.total_steps else self.low
        share = min(1.0, step / max(1, self.total_steps - 1))
        falls = share if self.schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * share)
        return self.high + (self.low - self.high) * falls

    def cool_down(self) -> None:
        """The low temperature from the next epoch on (from this one where none of its batches was taken)."""
        if self.cooled_at is None:
            self.cooled_at = self.epoch + (self.position > 0)
            self._planned = None if self.cooled_at == self.epoch else self._planned

    def _probabilities(self, epoch: int) -> Tensor:
        """Of domains at each step of an epoch ``[S, D]``."""
        steps = range(epoch * self.steps_per_epoch, (epoch + 1) * self.steps_per_epoch)
        cooled = self.cooled_at is not None and epoch >= self.cooled_at
        temperatures = [self.low if cooled else self.temperature(step) for step in steps]
        logs = self._sizes.double().log()
        return (logs / torch.tensor(temperatures, dtype=torch.float64)[:, None]).softmax(1)

    def _rows_of_steps(self) -> Tensor:
        """Rows of each step of an epoch ``[S]``."""
        full = torch.full((self.steps_per_epoch,), self.joint_size)
        full[-1:] = min(self.joint_size, self.num_samples - (self.steps_per_epoch - 1) * self.joint_size)
        return full

    def order(self, epoch: int, generator: torch.Generator) -> list[Tensor]:
        """Domains first, then rows of them."""
        upper = self._probabilities(epoch).cumsum(1)
        shape = (len(upper), self.joint_size)
        draws = torch.rand(2, *shape, generator=generator, dtype=torch.float64)
        domain = torch.searchsorted(upper / upper[:, -1:], draws[0], right=True).clamp_max(len(self._sizes) - 1)
        size = self._sizes[domain]
        row = self._by_domain[self._first[domain] + (draws[1] * size).long().clamp_max(size - 1)]
        return [batch[:count] for batch, count in zip(row, self._rows_of_steps().tolist())]

    def times(self, epoch: int) -> Tensor:
        """Expected counts of an epoch ``[N]``."""
        rows = self._rows_of_steps().double()
        left_out = rows < self.num_replicas
        of_domains = rows.masked_fill(left_out, 0.0) @ self._probabilities(epoch)
        return (of_domains / self._sizes)[self._domains]

    @classmethod
    def samples(cls, **options: Any) -> list[Self]:
        """Three domains of sizes that differ, each schedule."""
        ids = torch.tensor([1] * 6 + [0] * 20 + [2] * 3)
        return [cls(ids, 4, 16, 4.0, 1.5, schedule, **options) for schedule in SCHEDULES]


def _sizes(sizes: Sizes, argument: str = "sizes") -> Tensor:
    """Sizes of domains in float64, none 0."""
    counts = torch.as_tensor(sizes)
    check_tensor(argument, counts, ndim=1, floating=False)
    if not len(counts) or bool((counts < 1).any()):
        refuse(argument, "domains with one sample and more", counts.tolist())
    return counts.double()
