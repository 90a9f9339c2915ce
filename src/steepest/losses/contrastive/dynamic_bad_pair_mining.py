"""Positive pairs that are noisy or broken, told by the history of their losses, and weighted down."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn

from ...core.arguments import Arguments
from ...core.checks import check_choice, check_number, check_tensor, refuse
from ...core.cosine import unit_rows
from ...core.memory import SampleMemory
from ...core.reductions import widen
from ...kernels.pair_log_partition import pair_log_partition

PEAKS = ("density", "one")


def pair_losses(views: F[Tensor, "2 batch width"], temperature: float = 0.2) -> F[Tensor, " batch"]:
    r"""The contrastive loss of each pair of views, the mean of both directions.

    With cosines s and i' the partner of view i, -log of :math:`e^{s_{ii'} / \tau}` over that and the terms of the
    2B - 2 views of other items. Their mean is NT-Xent.

    Args:
        views: ``[2, B, d]``, of any length.
        temperature: tau > 0.

    Returns:
        ``[B]`` in float32 or wider.

    Raises:
        ValueError: another shape, a temperature that is not positive.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> pair_losses(torch.stack([z, z]), temperature=1.0)
        tensor([1.3180, 1.3180, 0.9048])

    Source: Towards Enhancing Time Series Contrastive Learning: A Dynamic Bad Pair Mining Approach, its code.
    """
    check_tensor("views", views, floating=True, shape=(2, None, None))
    check_number("temperature", temperature, low=0.0, open_low=True)
    rows = unit_rows(views).flatten(0, 1)
    places = torch.arange(views.shape[1], device=rows.device)
    positive = torch.cat([places + len(places), places])
    pairs = pair_log_partition(rows, rows, scale=1 / temperature, positive=positive, ids=places.repeat(2))
    assert pairs.log_p is not None
    return -pairs.log_p.unflatten(0, (2, -1)).mean(0) if len(places) else rows.sum(1)


def bad_pair_weights(
    history: F[Tensor, "samples epochs"],
    losses: F[Tensor, " samples"],
    *,
    total_epochs: int,
    beta_noisy: float = 2.0,
    beta_faulty: float = 3.0,
    peak: str = "density",
) -> F[Tensor, " samples"]:
    r"""Weights of pairs: small for those whose losses were unusually low or high over the epochs so far.

    .. math:: m_i = \operatorname{mean}_j \frac{1 + j}{E} l_i(j), \qquad
        \text{noisy: } m_i \le \mu - \beta_n \sigma, \quad \text{faulty: } m_i \ge \mu + \beta_f \sigma

    with j = 0, 1, ... the epochs that a pair has a loss of, and mu, sigma the mean and the biased deviation of m over
    pairs. A noisy or faulty pair has the weight

    .. math:: w_i = \frac{1}{\sigma \sqrt{2 \pi}} e^{-(l_i - \mu)^2 / (2 \sigma^2)}

    at its loss of now, the others 1. This density exceeds 1 where sigma is small: ``peak="one"`` leaves the factor
    before the exponential away. mu is of losses that (1 + j) / E has made smaller than those of now.

    Args:
        history: losses l ``[N, e]`` of the epochs so far; NaN where a pair was not seen.
        losses: of now ``[N]``.
        total_epochs: E >= e.
        beta_noisy, beta_faulty: deviations below and above the mean, >= 0.
        peak: "density" as published, or "one", with which no weight exceeds 1.

    Returns:
        ``[N]`` in float32 or wider, without a gradient. Pairs without a loss so far have 1, all have if m does not
        vary.

    Raises:
        ValueError: other shapes, a number out of range.

    Example:
        >>> history = torch.tensor([[1.0, 0.8, 0.6], [2.0, 2.0, 2.0], [0.1, 0.1, 0.1], [1.2, 1.0, 0.7]])
        >>> now = torch.tensor([0.5, 1.9, 0.1, 0.6])
        >>> bad_pair_weights(history, now, total_epochs=10, beta_noisy=1.0, peak="one")
        tensor([1.0000, 1.0000, 0.8216, 1.0000])

    Source: Towards Enhancing Time Series Contrastive Learning: A Dynamic Bad Pair Mining Approach, its code.
    """
    check_tensor("history", history, ndim=2, floating=True)
    check_tensor("losses", losses, floating=True, shape=(len(history),))
    _check_options(total_epochs, beta_noisy, beta_faulty, peak)
    if history.shape[1] > total_epochs:
        refuse("history", f"at most {total_epochs} epochs", history)
    noisy, faulty, mean, deviation = _tails(history, total_epochs, beta_noisy, beta_faulty)
    return _weights(losses, noisy | faulty, mean, deviation, peak)


def _check_options(total_epochs: int, beta_noisy: float, beta_faulty: float, peak: str) -> None:
    check_number("total_epochs", total_epochs, low=1, integer=True)
    check_number("beta_noisy", beta_noisy, low=0.0)
    check_number("beta_faulty", beta_faulty, low=0.0)
    check_choice("peak", peak, PEAKS)


def _tails(history: Tensor, epochs: int, low: float, high: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which pairs are noisy and faulty, and mean and deviation of m, in float64."""
    values = history.detach().double()
    known = ~values.isnan()
    shares = torch.arange(1, values.shape[1] + 1, dtype=torch.float64, device=values.device) / epochs
    counts = known.sum(1)
    means = torch.where(known, values * shares, 0.0).sum(1) / counts.clamp_min(1)
    some = counts > 0
    number = some.sum().clamp_min(1)
    mean = torch.where(some, means, 0.0).sum() / number
    deviation = (torch.where(some, means - mean, 0.0).square().sum() / number).sqrt()
    alike = not bool(some.any()) or bool(means[some].min() == means[some].max())
    some = some & (not alike)
    return some & (means <= mean - low * deviation), some & (means >= mean + high * deviation), mean, deviation


def _weights(losses: Tensor, bad: Tensor, mean: Tensor, deviation: Tensor, peak: str) -> Tensor:
    safe = torch.where(deviation > 0, deviation, 1.0)
    bell = (-0.5 * ((losses.detach().double() - mean) / safe).square()).exp()
    if peak == "density":
        bell = bell / (safe * math.sqrt(2 * math.pi))
    return torch.where(bad, bell, 1.0).to(widen(losses).dtype)


class BadPairMiner(Arguments, nn.Module):
    """Memory of the losses of pairs over epochs, and the weights that it gives; see :func:`bad_pair_weights`.

    Of an epoch ``start_epoch`` comes first; of each step the losses of its pairs are weighted and remembered, which a
    call does in one: ``miner(losses, index)``. In evaluation mode nothing is remembered. A loss that is not finite is
    not remembered; of a pair that occurs twice in a batch the mean is, of one that comes again in an epoch the last.

    Args:
        num_samples: pairs of the training split, N >= 1. The memory has N x E numbers.
        total_epochs: E >= 1.
        warmup: epochs without weights, from 0 to E; None: five eighths of E (50 of 80), rounded down.
        beta_noisy, beta_faulty, peak: as of :func:`bad_pair_weights`.

    Attributes:
        noisy, faulty: boolean ``[N]``, of this epoch.

    Example:
        >>> miner = BadPairMiner(4, total_epochs=10, warmup=1, beta_noisy=1.0, beta_faulty=1.0)
        >>> miner.start_epoch(1)
        >>> miner(torch.tensor([1.0, 5.0, 0.1, 1.0]), torch.arange(4))
        tensor(1.7750)
        >>> miner.start_epoch(2)
        >>> miner.faulty.tolist(), miner.weights(torch.tensor([1]), torch.tensor([5.0]))
        ([False, True, False, False], tensor([0.]))

    Source: Towards Enhancing Time Series Contrastive Learning: A Dynamic Bad Pair Mining Approach, its code.
    """

    noisy: Tensor
    faulty: Tensor
    mean: Tensor
    deviation: Tensor
    epoch: Tensor

    def __init__(
        self,
        num_samples: int,
        total_epochs: int,
        warmup: int | None = None,
        beta_noisy: float = 2.0,
        beta_faulty: float = 3.0,
        peak: str = "density",
    ) -> None:
        super().__init__()
        _check_options(total_epochs, beta_noisy, beta_faulty, peak)
        self.warmup = total_epochs * 5 // 8 if warmup is None else warmup
        check_number("warmup", self.warmup, low=0, high=total_epochs, integer=True)
        self.total_epochs, self.beta_noisy, self.beta_faulty, self.peak = total_epochs, beta_noisy, beta_faulty, peak
        self.memory = SampleMemory(num_samples, (total_epochs,), initial=math.nan)
        for name in ("noisy", "faulty"):
            self.register_buffer(name, torch.zeros(num_samples, dtype=torch.bool))
        for name in ("mean", "deviation"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))

    def start_epoch(self, epoch: int, epochs: int | None = None) -> None:
        """An epoch begins: after the warm-up, find what is noisy and faulty in the epochs before it.

        Args:
            epoch: from 1 on.
            epochs: None, or the number that the miner was given.
        """
        check_number("epoch", epoch, low=1, high=self.total_epochs, integer=True)
        if epochs is not None and epochs != self.total_epochs:
            refuse("epochs", f"{self.total_epochs}, as given at the start", epochs)
        self.epoch.fill_(epoch)
        if epoch > self.warmup:
            history = self.memory.values[:, : epoch - 1]
            tails = _tails(history, self.total_epochs, self.beta_noisy, self.beta_faulty)
            for buffer, value in zip((self.noisy, self.faulty, self.mean, self.deviation), tails):
                buffer.copy_(value)
        else:
            self.noisy.zero_(), self.faulty.zero_()

    def weights(self, index: I[Tensor, " batch"], losses: F[Tensor, " batch"]) -> F[Tensor, " batch"]:
        """Weights of pairs ``[B]`` by their losses of now, without a gradient."""
        self._check(index, losses)
        return _weights(losses, (self.noisy | self.faulty)[index], self.mean, self.deviation, self.peak)

    def record(self, index: I[Tensor, " batch"], losses: F[Tensor, " batch"]) -> None:
        """Remember the losses of pairs ``[B]``, before any weight, for this epoch.

        Raises:
            ValueError: no epoch has begun.
        """
        self._check(index, losses)
        if int(self.epoch) < 1:
            refuse("record", "a call of start_epoch before", int(self.epoch))
        if not self.training:
            return
        values = losses.detach()
        finite = values.isfinite()
        place, values = index[finite], values[finite]
        rows = self.memory.read(place).clone()
        rows[:, int(self.epoch) - 1] = values.to(rows.dtype)
        self.memory.write(place, rows)

    def forward(self, losses: F[Tensor, " batch"], index: I[Tensor, " batch"]) -> F[Tensor, ""]:
        """The weighted mean of losses ``[B]``, which are remembered; 0 of none."""
        weights = self.weights(index, losses)
        self.record(index, losses)
        return (weights * widen(losses)).sum() / max(len(losses), 1)

    def _check(self, index: Tensor, losses: Tensor) -> None:
        check_tensor("losses", losses, ndim=1, floating=True)
        self.memory.check(index, len(losses))
