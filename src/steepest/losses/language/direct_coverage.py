"""Direct coverage: the probability that one of N sampled answers is right, as a loss."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_choice, check_number, check_range, check_tensor, refuse, values_visible
from ...core.log_complement import log1mexp
from ...core.loss import Sample
from ...core.reductions import reduce, widen
from ...core.search import Float
from ...core.token_loss import TokenLoss
from ...core.token_reductions import masked, runs_of_tokens, sequence_sums
from ...kernels.token_statistics import token_statistics

ANSWERS = ("sequence", "token")
_SMALL = -1.0
"""Logarithm of N p under which coverage is N p and a correction."""


def dco_loss(
    logp: F[Tensor, " batch"] | F[Tensor, "batch rationales"],
    n: float,
    *,
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Negative logarithm of the coverage of N samples.

    .. math:: L = -\log C_N, \qquad C_N = 1 - (1 - p)^N, \qquad
        \frac{\partial L}{\partial \log p} = -\frac{N p (1 - p)^{N - 1}}{1 - (1 - p)^N}

    The factor is 1 for N = 1 (cross-entropy), near 1 for rare answers, and vanishes once N samples are likely to hold
    one that is right. Nothing cancels for p near 0 or 1: large -log p gives -log p - log N.

    Args:
        logp: log-probabilities of whole answers ``[B]``, <= 0; or ``[B, k]`` of the answer after each of k sampled
            rationales, whose mean probability is taken.
        n: N >= 1, samples at test time; need not be an integer.
        weight: of answers ``[B]`` >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        The loss in float32 or wider; the mean of no answers is 0, with a graph.

    Raises:
        ValueError: N below 1, log-probabilities above 0.

    Example:
        >>> dco_loss(torch.tensor([0.1, 0.5]).log(), 4, reduction="none")
        tensor([1.0674, 0.0645])

    Source: Rethinking Fine-Tuning when Scaling Test-Time Compute: Limiting Confidence Improves Mathematical Reasoning,
    arXiv:2502.07154.
    """
    check_tensor("logp", logp, ndim=(1, 2), floating=True)
    if values_visible(logp) and bool((logp > 0).any()):
        refuse("logp", "logarithms of probabilities, <= 0", f"{float(logp.max()):g}")
    check_number("n", n, low=1.0, open_high=True)
    wide = widen(logp)
    if wide.ndim == 2:
        wide = (wide.logsumexp(1) - math.log(wide.shape[1])).clamp(max=0.0)
    return reduce(-_log_coverage(wide, n), reduction, weight, empty="zero")


def _log_coverage(logp: Tensor, n: float) -> Tensor:
    """log C_N of log-probabilities of any shape; minus infinity stays."""
    if n == 1:
        return logp
    small = logp + math.log(n) < _SMALL
    # N p and a correction, where p may be too small for its own exponential
    rare = torch.where(small, logp, _SMALL - math.log(n))
    p = rare.exp()
    seen = p > torch.finfo(p.dtype).tiny
    q = torch.log1p(-torch.where(seen, p, 0.5))
    excess = (-q / torch.where(seen, p, 0.5)).log()
    expected = -n * q
    correction = excess + (-torch.expm1(-expected) / expected).log()
    few = rare + math.log(n) + torch.where(seen, correction, 0.0)
    many = log1mexp(n * log1mexp(torch.where(small, _SMALL, logp)))
    return torch.where(small, few, many)


class DirectCoverageLoss(TokenLoss):
    r"""Coverage of N samples of an answer, from logits; see :func:`dco_loss`.

    An answer is a sequence: p is the product of the probabilities of its tokens that count. With ``answer="token"``
    each token is one (classes ``[B, C]`` with labels ``[B]``). Where ``steps`` come with a batch, p is that of each
    step, and the loss of a sequence the sum over its steps, N being the effective number of tries of a step.

    Args:
        n: N >= 1.
        answer: "sequence" or "token".
        ignore_index: label of tokens that don't count.

    Example:
        >>> loss = DirectCoverageLoss(4)
        >>> z = torch.tensor([[[0.0, 0.0], [9.0, 9.0]]])
        >>> loss(z, torch.tensor([[0, -100]]))
        tensor(0.0645)
    """

    name = "direct_coverage"
    unit = "sequence"
    further = ("steps",)
    alternatives = {"n": 2.5, "answer": "token"}
    search = {"n": Float(1.0, 256.0, log=True)}

    def __init__(self, n: float = 16.0, answer: str = "sequence", *, ignore_index: int = -100) -> None:
        super().__init__(ignore_index=ignore_index)
        check_number("n", n, low=1.0, open_high=True)
        check_choice("answer", answer, ANSWERS)
        self.n, self.answer = n, answer

    def count_items(self, labels: Tensor, segments: Tensor | None = None) -> Tensor:
        if self.answer == "token":
            return (labels != self.ignore_index).sum()
        return super().count_items(labels, segments)

    def sequence_losses(
        self,
        source: Tensor,
        labels: Tensor,
        head: Tensor | None,
        *,
        segments: Tensor | None,
        steps: I[Tensor, "batch time"] | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor]:
        """Of sequences; a step is a run of tokens of one number in ``steps`` ``[B, T]``, 0..T-1."""
        of_tokens = token_statistics(source, labels, head, want=("log_p",), ignore_index=self.ignore_index, **options)
        log_p, valid = of_tokens.log_p, of_tokens.valid
        assert log_p is not None
        if self.answer == "token":
            if steps is not None:
                refuse("steps", 'None with answer="token", where each token is an answer', steps)
            return -_log_coverage(log_p.flatten(), self.n), valid.flatten().to(log_p.dtype)
        if steps is None:
            sums, counts = sequence_sums(log_p, valid, segments)
            return -masked(_log_coverage(masked(sums, counts > 0, _SMALL), self.n), counts > 0), counts
        check_tensor("steps", steps, shape=tuple(labels.shape), floating=False)
        check_range("steps", torch.where(valid, steps, 0), 0, labels.shape[1] - 1)
        number, first = runs_of_tokens(steps if segments is None else segments * labels.shape[1] + steps, valid)
        sums, counts = sequence_sums(log_p, valid, number)
        of_steps = -_log_coverage(masked(sums, counts > 0, _SMALL), self.n).reshape(labels.shape)
        return sequence_sums(torch.where(first, of_steps.gather(1, number), 0.0), valid, segments)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Answers of a few tokens, steps of them, and tokens as answers."""
        sample = cls.sample_tokens(generator, dtype, device)
        steps = torch.tensor([0, 0, 1, 1, 1]).expand(3, 5).clone().to(device)
        return [(cls(4.0), (sample, {})), (cls(1.5), (sample, {"steps": steps})), (cls(16.0, "token"), (sample, {}))]


def pass_at_n(
    num_correct: int | I[Tensor, "*batch"], num_samples: int | I[Tensor, "*batch"], n: int
) -> F[Tensor, "*batch"]:
    r"""The unbiased estimate that one of N samples is right, from more samples.

    .. math:: 1 - \binom{m - c}{N} \Big/ \binom{m}{N}

    Args:
        num_correct: c, how many were right, any shape.
        num_samples: m >= N, how many there were.
        n: N >= 1.

    Returns:
        float64, of the common shape.

    Raises:
        ValueError: fewer samples than N, more right ones than samples.

    Example:
        >>> pass_at_n(torch.tensor([1, 3]), 4, 2)
        tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    check_number("n", n, low=1, integer=True)
    c, m = torch.broadcast_tensors(torch.as_tensor(num_correct), torch.as_tensor(num_samples))
    for name, value in (("num_correct", c), ("num_samples", m)):
        check_tensor(name, value, floating=False)
    if values_visible(c, m):
        if bool((m < n).any()):
            refuse("num_samples", f"{n} or more", int(m.min()))
        if bool(((c < 0) | (c > m)).any()):
            refuse("num_correct", "numbers from 0 to num_samples", c.tolist())
    wrong, total = (m - c).double(), m.double()
    enough = wrong >= n
    wrong = torch.where(enough, wrong, float(n))
    logs = ((wrong + 1).lgamma() - (total + 1).lgamma()) - ((wrong - n + 1).lgamma() - (total - n + 1).lgamma())
    return torch.where(enough, -torch.expm1(logs.clamp(max=0.0)), 1.0)
