"""QCRD: rationales of a teacher as positives, poor ones as negatives, both weighed by a judge of their quality."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from jaxtyping import Float as F
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ...core.checks import check_choice, check_interval, check_number, check_tensor, refuse, refuse_type
from ...core.loss import Loss, Sample
from ...core.reductions import widen
from ...core.terms import kept_terms
from ...core.token_reductions import masked

NEGATIVES = ("max", "min")


def qcrd_loss(
    label_loss: F[Tensor, "*batch"],
    pos_losses: F[Tensor, "batch positives"],
    neg_losses: F[Tensor, "batch negatives"],
    pos_quality: F[Tensor, "batch positives"],
    neg_quality: F[Tensor, "batch negatives"],
    pos_mask: Bool[Tensor, "batch positives"] | None = None,
    neg_mask: Bool[Tensor, "batch negatives"] | None = None,
    margin: float = 3.0,
    beta: float = 0.2,
    negative: str = "max",
    *,
    label_weight: float = 0.5,
    rationale_weight: float = 0.5,
) -> Tensor:
    r"""Distillation of one good rationale of a sample against one poor one, beside the loss of its label.

    .. math:: P = q(r^+)\, \ell(r^+), \quad r^+ = \arg\min_{S^+} \ell, \qquad
        N = (1 - q(r^-)) \min(\ell(r^-) - m, 0), \quad r^- = \arg\max_{S^-} \ell

        L = \frac1B \sum_b a_1 \ell_{\mathrm{label}} + a_2 (P - \beta N)

    with l the mean cross-entropy of a rationale's tokens and q the judged quality, a constant here. The loss of a
    negative is pushed up only until it reaches the margin. A sample without a positive has P = 0, one without a
    negative N = 0.

    Args:
        label_loss: of each sample ``[B]``, or their mean, a scalar.
        pos_losses: losses of the good rationales of each sample ``[B, m]``, of the student.
        neg_losses: losses of the poor ones ``[B, k]``.
        pos_quality: q of the good ones ``[B, m]``, in [0, 1]; no gradient flows into it.
        neg_quality: q of the poor ones ``[B, k]``.
        pos_mask: boolean ``[B, m]``, true where there is a candidate; None: everywhere. What stands elsewhere, NaN
            included, has no effect.
        neg_mask: likewise ``[B, k]``.
        margin: m >= 0.
        beta: factor of the negatives, >= 0.
        negative: ``"max"`` takes the negative of largest loss, ``"min"`` that of smallest.
        label_weight: a_1 >= 0.
        rationale_weight: a_2 >= 0.

    Returns:
        A scalar in float32 or wider. No samples: NaN.

    Raises:
        ValueError: wrong shapes, a quality outside [0, 1], a negative number.
        TypeError: losses that are no floating tensors, masks that are not boolean.

    Example:
        >>> good, poor = torch.tensor([[1.2, 0.8]]), torch.tensor([[2.0, 4.0]])
        >>> q_good, q_poor = torch.tensor([[0.9, 0.6]]), torch.tensor([[0.3, 0.1]])
        >>> only = {"label_weight": 0.0, "rationale_weight": 1.0}
        >>> qcrd_loss(torch.zeros(1), good, poor, q_good, q_poor, **only)
        tensor(0.4800)
        >>> qcrd_loss(torch.zeros(1), good, poor, q_good, q_poor, negative="min", **only)
        tensor(0.6200)

    Source: QCRD: Quality-guided Contrastive Rationale Distillation for Large Language Models, arXiv:2405.13014.
    """
    label, positive, negative_part = _parts(
        label_loss, pos_losses, neg_losses, pos_quality, neg_quality, pos_mask, neg_mask, margin, beta, negative
    )
    return _total(label, positive, negative_part, beta, label_weight, rationale_weight)


class QCRDLoss(Loss):
    """Quality-guided contrastive distillation of rationales as a module; see :func:`qcrd_loss`.

    ``terms`` holds the means of the label's loss, of P and of N.

    Args:
        margin: m >= 0.
        beta: factor of the negatives, >= 0.
        negative: ``"max"`` or ``"min"``.
        label_weight: a_1 >= 0.
        rationale_weight: a_2 >= 0.

    Example:
        >>> loss = QCRDLoss()
        >>> good, poor = torch.tensor([[1.2, 0.8]]), torch.tensor([[2.0, 2.5]])
        >>> loss(torch.tensor([1.0]), good, poor, torch.ones(1, 2), torch.zeros(1, 2))
        tensor(0.9500)
        >>> {name: round(float(term), 4) for name, term in loss.terms.items()}
        {'label': 1.0, 'positive': 0.8, 'negative': -0.5}
    """

    name = "qcrd"
    differentiable = (0, 1, 2)

    def __init__(
        self,
        margin: float = 3.0,
        beta: float = 0.2,
        negative: str = "max",
        label_weight: float = 0.5,
        rationale_weight: float = 0.5,
    ) -> None:
        super().__init__()
        _check_settings(margin, beta, negative)
        _check_weights(label_weight, rationale_weight)
        self.margin, self.beta, self.negative = margin, beta, negative
        self.label_weight, self.rationale_weight = label_weight, rationale_weight

    def forward(
        self,
        label_loss: F[Tensor, "*batch"],
        pos_losses: F[Tensor, "batch positives"],
        neg_losses: F[Tensor, "batch negatives"],
        pos_quality: F[Tensor, "batch positives"],
        neg_quality: F[Tensor, "batch negatives"],
        pos_mask: Bool[Tensor, "batch positives"] | None = None,
        neg_mask: Bool[Tensor, "batch negatives"] | None = None,
    ) -> Tensor:
        """The loss of labels and of two sets of candidates with their qualities and masks."""
        parts = _parts(
            label_loss, pos_losses, neg_losses, pos_quality, neg_quality, pos_mask, neg_mask,
            self.margin, self.beta, self.negative,
        )  # fmt: skip
        self.terms = kept_terms(dict(zip(("label", "positive", "negative"), (p.mean() for p in parts))))
        return _total(*parts, self.beta, self.label_weight, self.rationale_weight)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[QCRDLoss, Sample]]:
        """Both choices of the negative, some candidates masked, a sample without any; then without masks."""

        def drawn(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, dtype=torch.float64).to(device, dtype)

        label, good, poor = 3 * drawn(4), 2 * drawn(4, 3), 4 * drawn(4, 2)
        qualities = drawn(4, 3), drawn(4, 2)
        masks = [torch.arange(n, device=device) < torch.tensor([[n], [1], [n], [0]], device=device) for n in (3, 2)]
        call = (label, good, poor, *qualities)
        return [
            (cls(), ((*call, *masks), {})),
            (cls(2.0, 0.7, "min", 1.0, 0.3), ((*call, *masks), {})),
            (cls(), ((label.mean(), *call[1:]), {})),
        ]


class RationaleDiscriminator(nn.Module):
    r"""The judge of a rationale's quality: an encoder, the maximum over its tokens, two linear layers.

    .. math:: q = \sigma\bigl(w^\top \mathrm{relu}(W \max_t h_t + b) + c\bigr)

    It learns by :meth:`loss` from good (1) and poor (0) rationales; :meth:`quality` gives q for :func:`qcrd_loss`.

    Args:
        encoder: module of ``(inputs [N, T, ...], mask [N, T])`` that gives states ``[N, T, dim]``; the inputs are
            tokens of question and rationale together.
        dim: width of its states, >= 1.

    Example:
        >>> class Words(nn.Embedding):
        ...     def forward(self, tokens, mask):
        ...         return super().forward(tokens)
        >>> judge = RationaleDiscriminator(Words(20, 8), 8)
        >>> tokens, mask = torch.randint(20, (2, 3, 5)), torch.ones(2, 3, 5, dtype=torch.bool)
        >>> judge(tokens, mask).shape, bool((judge.quality(tokens, mask) < 1).all())
        (torch.Size([2, 3]), True)

    Source: QCRD: Quality-guided Contrastive Rationale Distillation for Large Language Models, arXiv:2405.13014.
    """

    def __init__(self, encoder: nn.Module, dim: int) -> None:
        super().__init__()
        if not isinstance(encoder, nn.Module):
            refuse_type("encoder", "a module", encoder)
        check_number("dim", dim, low=1, integer=True)
        self.encoder = encoder
        self.hidden, self.output = nn.Linear(dim, dim), nn.Linear(dim, 1)

    def forward(self, inputs: Tensor, mask: Bool[Tensor, "*candidates length"]) -> F[Tensor, "*candidates"]:
        """Logits of the quality ``[...]`` of candidates ``[..., T]``, or ``[..., T, features]``.

        Tokens where the mask ``[..., T]`` is false don't reach the maximum, nor the encoder where inputs are
        features; a candidate without tokens has the logit of zeros.

        Raises:
            ValueError: a mask of another shape, an encoder whose states have another width.
        """
        check_tensor("inputs", inputs)
        check_tensor("mask", mask)
        if mask.dtype != torch.bool:
            refuse_type("mask", "a boolean tensor", mask)
        if not mask.ndim or inputs.shape[: mask.ndim] != mask.shape:
            refuse("mask", f"the first dimensions of inputs {tuple(inputs.shape)}", mask)
        if inputs.is_floating_point():
            inputs = masked(inputs, mask.reshape(*mask.shape, *[1] * (inputs.ndim - mask.ndim)))
        rows = mask.flatten(0, -2) if mask.ndim > 1 else mask[None]
        states = self.encoder(inputs.reshape(*rows.shape, *inputs.shape[mask.ndim :]), rows)
        check_tensor("states of the encoder", states, shape=(*rows.shape, self.hidden.in_features))
        pooled = masked(states, rows[..., None], -torch.inf).amax(1)
        pooled = masked(pooled, rows.any(1)[:, None])
        logits: Tensor = self.output(self.hidden(pooled).relu())
        return logits.reshape(mask.shape[:-1])

    @torch.no_grad()
    def quality(self, inputs: Tensor, mask: Bool[Tensor, "*candidates length"]) -> F[Tensor, "*candidates"]:
        """q in [0, 1], without a graph."""
        return widen(self(inputs, mask)).sigmoid()

    @staticmethod
    def loss(
        logits: F[Tensor, "*candidates"],
        good: Bool[Tensor, "*candidates"],
        mask: Bool[Tensor, "*candidates"] | None = None,
    ) -> Tensor:
        """Binary cross-entropy, mean over the candidates that are there.

        Args:
            logits: of the quality, of any shape.
            good: boolean, true for good rationales, of the same shape.
            mask: boolean, true where there is a candidate; None: everywhere.

        Returns:
            A scalar in float32 or wider; 0 with a graph where there is none.

        Raises:
            ValueError: shapes that differ.

        >>> RationaleDiscriminator.loss(torch.tensor([2.0, 0.0]), torch.tensor([True, False]))
        tensor(0.4100)
        """
        check_tensor("logits", logits, floating=True)
        for argument, flags in (("good", good), ("mask", mask)):
            if flags is not None:
                _check_flags(argument, flags, logits)
        present = torch.ones_like(good) if mask is None else mask
        logits = masked(widen(logits), present)
        losses = binary_cross_entropy_with_logits(logits, good.to(logits.dtype), reduction="none")
        return masked(losses, present).sum() / present.sum().clamp_min(1)


@dataclass(frozen=True)
class QCRDSchedule:
    r"""The weight of the judge's own loss in an iteration, :math:`a_3 \cdot \mathrm{decay}^t`.

    Args:
        a3: weight in iteration 0, >= 0.
        decay: factor of an iteration, in (0, 1].

    Example:
        >>> schedule = QCRDSchedule()
        >>> [round(schedule(t), 4) for t in range(3)]
        [0.5, 0.45, 0.405]

    Source: QCRD: Quality-guided Contrastive Rationale Distillation for Large Language Models, arXiv:2405.13014.
    """

    a3: float = 0.5
    decay: float = 0.9

    def __post_init__(self) -> None:
        check_number("a3", self.a3, low=0.0)
        check_number("decay", self.decay, low=0.0, high=1.0, open_low=True)

    def __call__(self, iteration: int) -> float:
        """The weight in an iteration, counted from 0."""
        check_number("iteration", iteration, low=0, integer=True)
        return float(self.a3 * self.decay**iteration)


def _check_settings(margin: float, beta: float, negative: str) -> None:
    check_number("margin", margin, low=0.0)
    check_number("beta", beta, low=0.0)
    check_choice("negative", negative, NEGATIVES)


def _check_weights(label_weight: float, rationale_weight: float) -> None:
    check_number("label_weight", label_weight, low=0.0)
    check_number("rationale_weight", rationale_weight, low=0.0)


def _check_flags(argument: str, flags: Tensor, like: Tensor) -> None:
    check_tensor(argument, flags, shape=tuple(like.shape))
    if flags.dtype != torch.bool:
        refuse_type(argument, "a boolean tensor", flags)


def _chosen(
    side: str, losses: Tensor, quality: Tensor, mask: Tensor | None, rows: int | None, largest: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each sample the candidate of extreme loss: its loss, its quality, and whether there is any."""
    check_tensor(f"{side}_losses", losses, floating=True, shape=(rows, None))
    check_tensor(f"{side}_quality", quality, floating=True, shape=tuple(losses.shape))
    if mask is None:
        mask = torch.ones_like(losses, dtype=torch.bool)
    _check_flags(f"{side}_mask", mask, losses)
    losses, quality = masked(widen(losses), mask), masked(quality.detach(), mask).to(widen(losses).dtype)
    check_interval(f"{side}_quality", quality, 0.0, 1.0)
    if not losses.shape[1]:
        return losses.sum(1), quality.sum(1), mask.any(1)
    ranked = masked(losses.detach(), mask, -torch.inf if largest else torch.inf)
    place = (ranked.argmax(1) if largest else ranked.argmin(1))[:, None]
    return losses.gather(1, place)[:, 0], quality.gather(1, place)[:, 0], mask.any(1)


def _parts(
    label_loss: Tensor,
    pos_losses: Tensor,
    neg_losses: Tensor,
    pos_quality: Tensor,
    neg_quality: Tensor,
    pos_mask: Tensor | None,
    neg_mask: Tensor | None,
    margin: float,
    beta: float,
    negative: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The label's loss, P and N of each sample."""
    _check_settings(margin, beta, negative)
    good, q_good, _ = _chosen("pos", pos_losses, pos_quality, pos_mask, None, largest=False)
    poor, q_poor, any_poor = _chosen("neg", neg_losses, neg_quality, neg_mask, len(good), largest=negative == "max")
    check_tensor("label_loss", label_loss, ndim=(0, 1), floating=True)
    if label_loss.ndim:
        check_tensor("label_loss", label_loss, shape=tuple(good.shape))
    below = (poor - margin).clamp_max(0.0)
    return widen(label_loss).expand(good.shape), q_good * good, masked((1 - q_poor) * below, any_poor)


def _total(
    label: Tensor, positive: Tensor, negative: Tensor, beta: float, label_weight: float, rationale_weight: float
) -> Tensor:
    _check_weights(label_weight, rationale_weight)
    return (label_weight * label + rationale_weight * (positive - beta * negative)).mean()
