"""Connectionist temporal classification with scores divided by a label prior, and why it is peaky without."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor
from torch.nn.functional import ctc_loss

from ...core.checks import (
    check_choice,
    check_domain,
    check_number,
    check_range,
    check_tensor,
    refuse,
    refuse_type,
    values_visible,
)
from ...core.loss import Loss, Sample
from ...core.reductions import widen

REDUCTIONS = ("mean", "sum", "none")
OPTIMIZERS = ("gd", "adam")
_LEAST = -1e6
"""In place of the log of a probability of 0, which has no gradient."""
_LEAST_PRIOR = -1e5
"""Least log of a prior: a label that is nowhere possible stays so."""


Lengths = Tensor | Sequence[int] | int
"""Of each sequence of a batch; one number, or a tensor of no dimension, without a batch."""


def ctc_occupancy(
    log_probs: F[Tensor, "frames *batch labels"],
    targets: I[Tensor, ...],
    input_lengths: Lengths,
    target_lengths: Lengths,
    *,
    blank: int = 0,
) -> F[Tensor, "frames *batch labels"]:
    r"""How much of each frame the alignments give to each label: the posterior at that frame.

    .. math:: \gamma_t(l) = \frac{\sum_{s \to y,\, s_t = l} \prod_u p(s_u | x_u)}
        {\sum_{s \to y} \prod_u p(s_u | x_u)}

    The gradient of -log p(y|x) in the logits of a frame is :math:`p_t - \gamma_t`.

    Args:
        log_probs: scores of the labels, ``[T, B, V]``, or ``[T, V]`` of one sequence; they need not be normalised.
        targets: labels, padded, ``[B, S]``, or those of all sequences one after the other; never ``blank``.
        input_lengths: frames of each sequence, ``[B]`` or a sequence of B numbers, in 0..T.
        target_lengths: labels of each sequence, likewise, in 0..S.
        blank: the label that stands for none.

    Returns:
        In the shape of ``log_probs``, in float32 or wider, without a gradient: each frame sums to 1, frames beyond the
        end to 0. NaN where no alignment is possible.

    Raises:
        ValueError: wrong shapes, a label or length out of range.
        TypeError: not tensors, or not of the right kind.

    Example:
        >>> uniform = torch.zeros(3, 1, 2)
        >>> ctc_occupancy(uniform, torch.tensor([[1]]), torch.tensor([3]), torch.tensor([1]))[:, 0, 1]
        tensor([0.5000, 0.6667, 0.5000])

    Source: Why does CTC result in peaky behavior?, arXiv:2105.14849.
    """
    wide, *rest = _batched(log_probs, targets, input_lengths, target_lengths, blank)
    with torch.enable_grad():
        scores = wide.detach().clamp_min(_LEAST).requires_grad_()
        (slope,) = torch.autograd.grad(_losses(scores, *rest, blank).sum(), scores)
    return -slope.reshape(log_probs.shape)


class LabelPriorCTCLoss(Loss):
    r"""CTC on scores that are divided by a label prior, which takes away the blank's head start.

    .. math:: L = -\log \sum_{s \to y} \prod_t \frac{p(s_t | x_t)}{p(s_t)^\kappa}, \qquad
        p(l) = \operatorname{mean}_{t, b} p(l | x_{t, b})

    The scores are not normalised: the loss may be negative, and only its changes mean something. Its gradient in the
    logits under ``log_probs`` is :math:`p_t - \gamma_t` with the occupancy of the divided scores (the prior detached).
    With kappa = 0 it is CTC. Here the gradient in ``log_probs`` themselves is the true one, :math:`-\gamma_t`, where
    torch gives :math:`p_t - \gamma_t`; in the logits both are the same.

    Args:
        blank: the label that stands for none.
        prior_scale: kappa >= 0.
        momentum: share of each batch in a running prior, in (0, 1], which eval mode uses as it is; None takes the prior
            of each batch by itself.
        num_labels: V, for a running prior.
        detach: False lets the gradient through the prior as well.
        reduction: ``"mean"`` (over sequences, each divided by the length of its target, as torch), ``"sum"`` or
            ``"none"``.
        zero_infinity: True gives sequences that no alignment fits a loss and a gradient of 0, in place of an infinite
            loss without a gradient.

    Raises:
        ValueError: wrong shapes, a label or length out of range, momentum without ``num_labels``.

    Example:
        >>> log_probs = torch.tensor([[[0.8, 0.2]], [[0.4, 0.6]], [[0.9, 0.1]]]).log()
        >>> target, frames, length = torch.tensor([[1]]), torch.tensor([3]), torch.tensor([1])
        >>> LabelPriorCTCLoss(prior_scale=0.0)(log_probs, target, frames, length)
        tensor(0.3510)
        >>> LabelPriorCTCLoss()(log_probs, target, frames, length)
        tensor(-1.8820)

    Source: Why does CTC result in peaky behavior?, arXiv:2105.14849.
    """

    name = "label_prior_ctc"
    stateful = True
    exempt = {"bad_input": "lengths may be lists, as in torch"}
    log_prior: Tensor
    seen: Tensor

    def __init__(
        self,
        blank: int = 0,
        prior_scale: float = 1.0,
        momentum: float | None = None,
        *,
        num_labels: int | None = None,
        detach: bool = True,
        reduction: str = "mean",
        zero_infinity: bool = False,
    ) -> None:
        super().__init__()
        check_number("blank", blank, low=0, integer=True)
        check_number("prior_scale", prior_scale, low=0.0)
        check_choice("reduction", reduction, REDUCTIONS)
        if momentum is not None:
            check_number("momentum", momentum, low=0.0, high=1.0, open_low=True)
            if num_labels is None:
                refuse("num_labels", "the number of labels, because momentum is given", num_labels)
            check_number("num_labels", num_labels, low=2, integer=True)
            self.register_buffer("log_prior", torch.full((num_labels,), -math.log(num_labels), dtype=torch.float64))
            self.register_buffer("seen", torch.tensor(False))
        self.blank, self.prior_scale, self.momentum = blank, prior_scale, momentum
        self.detach, self.reduction, self.zero_infinity = bool(detach), reduction, bool(zero_infinity)

    def forward(
        self,
        log_probs: F[Tensor, "frames *batch labels"],
        targets: I[Tensor, ...],
        input_lengths: Lengths,
        target_lengths: Lengths,
    ) -> Tensor:
        """The loss of log-probabilities, targets and the lengths of both, in the forms of :func:`ctc_occupancy`."""
        wide, labels, frames, lengths = _batched(log_probs, targets, input_lengths, target_lengths, self.blank)
        check_domain("log_probs", log_probs, "log_probabilities")
        scores = wide.clamp_min(_LEAST)
        if self.prior_scale:
            scores = scores - self.prior_scale * self._prior(scores, frames)
        losses = _losses(scores, labels, frames, lengths, self.blank, self.zero_infinity)
        if self.reduction == "mean":
            return (losses / lengths.clamp_min(1)).mean()
        if self.reduction == "sum":
            return losses.sum()
        return losses if log_probs.ndim == 3 else losses.squeeze(0)

    def _prior(self, log_probs: Tensor, input_lengths: Tensor) -> Tensor:
        prior = _log_prior(log_probs.detach() if self.detach else log_probs, input_lengths)
        if self.momentum is None:
            return prior
        if prior.shape != self.log_prior.shape:
            refuse("log_probs", f"{len(self.log_prior)} labels, as num_labels", log_probs)
        # copies: the buffers are written below, before the backward pass reads these
        log_prior, seen = self.log_prior.to(prior.dtype, copy=True), self.seen.clone()
        if not self.training:
            return torch.where(seen, log_prior, prior)
        share = self.momentum
        if share < 1:
            mixed = torch.logaddexp(log_prior + math.log1p(-share), prior + math.log(share))
            prior = torch.where(seen, mixed, prior)
        with torch.no_grad():
            self.log_prior.copy_(prior)
            self.seen.fill_(True)
        return prior

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[LabelPriorCTCLoss, Sample]]:
        """Two sequences of unequal length, with a repeated label; every kind of prior."""
        logits = torch.randn(7, 2, 4, generator=generator, dtype=torch.float64)
        log_probs = logits.log_softmax(-1).to(device, dtype)
        targets = torch.tensor([[1, 1, 3], [2, 0, 0]], device=device)
        rest = tuple(torch.tensor(v, device=device) for v in ([7, 5], [3, 1]))
        # not detached: a detached prior is no constant of the value, and differences would see it move
        losses = [
            cls(detach=False),
            cls(prior_scale=0.0, reduction="sum"),
            cls(prior_scale=0.5, detach=False),
            cls(momentum=0.1, num_labels=4, detach=False),
        ]
        return [(loss.to(device), ((log_probs, targets, *rest), {})) for loss in losses]


def ctc_peaky_experiment(
    m: int,
    n: int,
    steps: int,
    lr: float,
    prior_scale: float = 0.0,
    *,
    optimizer: str = "gd",
    detach: bool = True,
) -> dict[str, float]:
    """Train the table model p(label | x) on x = 0^m 1^n 0^m with the one target "a", from a uniform start, in float64.

    Args:
        m: frames of 0 on either side, >= 1.
        n: frames of 1, >= 1. Plain CTC has a second minimum at p(a|1) near 1/(n - 1) from n = 5 on.
        steps: full-batch steps, >= 0.
        lr: learning rate, > 0.
        prior_scale: kappa >= 0; 0 is plain CTC.
        optimizer: ``"gd"`` or ``"adam"``.
        detach: whether the prior is a constant to the gradient.

    Returns:
        ``loss``, ``p_a_given_0``, ``p_a_given_1``, and ``error``, the label error rate of greedy decoding.

    Raises:
        ValueError: a number out of range, an unknown optimizer.

    Example:
        >>> ctc_peaky_experiment(2, 8, steps=300, lr=1.0)["error"]
        1.0
        >>> ctc_peaky_experiment(2, 8, steps=300, lr=1.0, prior_scale=1.0)["error"]
        0.0

    Source: Why does CTC result in peaky behavior?, arXiv:2105.14849.
    """
    return ctc_peaky_table([(m, n)], steps, lr, prior_scale, optimizer=optimizer, detach=detach)[0]


def ctc_peaky_table(
    sizes: Sequence[tuple[int, int]],
    steps: int,
    lr: float,
    prior_scale: float = 0.0,
    *,
    optimizer: str = "gd",
    detach: bool = True,
) -> list[dict[str, float]]:
    """:func:`ctc_peaky_experiment` for several ``(m, n)`` at once, each a model of its own.

    Args:
        sizes: pairs ``(m, n)``.
        steps, lr, prior_scale, optimizer, detach: as there.

    Returns:
        One dictionary a pair.

    Raises:
        ValueError: no pairs, a number out of range, an unknown optimizer.

    Example:
        >>> [round(row["p_a_given_1"], 2) for row in ctc_peaky_table([(2, 3), (2, 8)], steps=300, lr=1.0)]
        [1.0, 0.15]
    """
    check_choice("optimizer", optimizer, OPTIMIZERS)
    check_number("steps", steps, low=0, integer=True)
    check_number("lr", lr, low=0.0, open_low=True)
    check_number("prior_scale", prior_scale, low=0.0)
    for m, n in sizes:
        check_number("m", m, low=1, integer=True)
        check_number("n", n, low=1, integer=True)
    if not sizes:
        refuse("sizes", "at least one pair", sizes)
    frames = torch.tensor([2 * m + n for m, n in sizes])
    at = torch.arange(int(frames.max()))[:, None]
    before = torch.tensor([m for m, _ in sizes])
    symbol = ((at >= before) & (at < frames - before)).long()  # [T, B]
    models, ones = torch.arange(len(sizes)), torch.ones(len(sizes), dtype=torch.long)
    table = torch.zeros(len(sizes), 2, 2, dtype=torch.float64, requires_grad=True)  # model, x, label
    adam = torch.optim.Adam([table], lr=lr)
    inside = (at < frames)[..., None]

    def loss() -> tuple[Tensor, Tensor]:
        log_probs = table.log_softmax(-1)[models, symbol]
        scores = log_probs
        if prior_scale:
            own = (log_probs.detach() if detach else log_probs).masked_fill(~inside, -torch.inf)
            scores = log_probs - prior_scale * (own.logsumexp(0) - frames.double().log()[:, None])
        return _losses(scores, ones[:, None], frames, ones, 0), log_probs.detach()

    for _ in range(steps):
        (slope,) = torch.autograd.grad(loss()[0].sum(), table)
        if optimizer == "adam":
            table.grad = slope
            adam.step()
        else:
            with torch.no_grad():
                table -= lr * slope
    with torch.no_grad():
        losses, log_probs = loss()
        p = table.softmax(-1)[..., 1].tolist()
        heard = (log_probs[..., 1] > log_probs[..., 0]) & inside[..., 0]
        begun = heard.long().diff(dim=0, prepend=torch.zeros(1, len(sizes), dtype=torch.long)) == 1
        errors = (begun.sum(0) - 1).abs()  # the only label there is, so many times in place of once
    return [
        {"loss": float(value), "p_a_given_0": zero, "p_a_given_1": one, "error": float(error)}
        for value, (zero, one), error in zip(losses, p, errors)
    ]


def _losses(
    scores: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    blank: int,
    zero_infinity: bool = False,
) -> Tensor:
    """-log of the summed scores of all alignments, ``[B]``, of scores that need not be normalised.

    torch's gradient is that of normalised log-probabilities only, so what a frame lacks of 1 is taken out first.
    """
    frames = scores.shape[0]
    mass = scores.logsumexp(-1)
    inside = torch.arange(frames, device=scores.device)[:, None] < input_lengths
    log_probs, rest = scores.log_softmax(-1), (targets, input_lengths, target_lengths, blank, "none")
    plain = ctc_loss(log_probs, *rest, zero_infinity=zero_infinity)
    losses = plain - torch.where(inside, mass, 0.0).sum(0)
    return torch.where(ctc_loss(log_probs.detach(), *rest).isinf(), 0.0, losses) if zero_infinity else losses


def _log_prior(log_probs: Tensor, input_lengths: Tensor) -> Tensor:
    """The log of the mean probability of each label over all frames, ``[V]``."""
    frames = torch.arange(log_probs.shape[0], device=log_probs.device)[:, None]
    outside = (frames >= input_lengths)[..., None]
    known = log_probs.masked_fill(outside, -torch.inf).flatten(0, 1)
    return (known.logsumexp(0) - input_lengths.sum().to(log_probs.dtype).log()).clamp_min(_LEAST_PRIOR)


def _batched(
    log_probs: Tensor, targets: Tensor, input_lengths: Lengths, target_lengths: Lengths, blank: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Checked log-probabilities ``[T, B, V]`` (float32 or wider), targets ``[B, S]`` or ``[sum]``, lengths ``[B]``."""
    check_tensor("log_probs", log_probs, ndim=(2, 3), floating=True)
    single = log_probs.ndim == 2
    wide = widen(log_probs.unsqueeze(1) if single else log_probs)
    frames, batch, labels = wide.shape
    if blank >= labels:
        refuse("blank", f"a label in 0..{labels - 1}", blank)
    check_tensor("targets", targets, floating=False, ndim=1 if single else (1, 2))
    if single:
        targets = targets.unsqueeze(0)
    elif targets.ndim == 2:
        check_tensor("targets", targets, shape=(batch, None))
    longest = targets.shape[-1]
    held, wanted = (
        _lengths(argument, lengths, batch, high, single).to(log_probs.device)
        for argument, lengths, high in (
            ("input_lengths", input_lengths, frames),
            ("target_lengths", target_lengths, longest),
        )
    )
    if values_visible(targets, wanted):
        if targets.ndim == 1 and int(wanted.sum()) != longest:
            refuse("targets", f"{int(wanted.sum())} labels, the sum of target_lengths", targets)
        places = torch.arange(longest, device=targets.device)
        used = targets if targets.ndim == 1 else targets[places < wanted.to(targets.device)[:, None]]
        check_range("targets", used, 0, labels - 1)
        if bool((used == blank).any()):
            refuse("targets", f"labels other than the blank {blank}", blank)
    return wide, targets.long(), held, wanted


def _lengths(argument: str, lengths: Lengths, batch: int, high: int, single: bool) -> Tensor:
    """Lengths ``[B]`` in 0..high, int64."""
    if not isinstance(lengths, Tensor):
        numbers = [lengths] if single and not isinstance(lengths, Sequence) else lengths
        if not isinstance(numbers, Sequence):
            refuse_type(argument, "a tensor or a sequence of integers", lengths)
        for number in numbers:
            check_number(argument, number, integer=True)
        lengths = torch.tensor(numbers, dtype=torch.long)
    elif single and lengths.ndim == 0:
        lengths = lengths.unsqueeze(0)
    check_tensor(argument, lengths, floating=False, shape=(batch,))
    check_range(argument, lengths, 0, high)
    return lengths.long()
