"""Multi-aspect distillation: further outputs learn what a teacher answers to yes-or-no questions about each sample."""

from __future__ import annotations

import warnings
from typing import Any, Self

import torch
from jaxtyping import Bool
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn
from torch.nn import functional

from ...core.checks import check_domain, check_index, check_number, check_tensor, refuse, values_visible
from ...core.logpartition import target_log_probability
from ...core.objective import Objective, Sample, TaskInfo
from ...core.reductions import reduce, widen
from ...core.rowwise import log_probability_rule, rowwise
from ...core.search import Float
from ...core.terms import kept_terms

LOOKED_AT = 256
"""Answers to each question that are looked at before a question counts as one that all rows answer alike."""


def yes_probability(yes_logit: F[Tensor, "*shape"], no_logit: F[Tensor, "*shape"]) -> F[Tensor, "*shape"]:
    r"""The share of "yes" in a language model's first answer token, between "yes" and "no" alone.

    .. math:: t = \frac{e^{l_{yes}}}{e^{l_{yes}} + e^{l_{no}}} = \sigma(l_{yes} - l_{no})

    Args:
        yes_logit: logits of the token "yes", of any shape.
        no_logit: those of the token "no", of the same shape.

    Returns:
        Probabilities in float32 or wider.

    Raises:
        ValueError: shapes that differ.

    Example:
        >>> yes_probability(torch.tensor([3.0, 0.0, 2000.0]), torch.tensor([1.0, 1.0, -2000.0]))
        tensor([0.8808, 0.2689, 1.0000])

    Source: Multi-aspect Knowledge Distillation with Large Language Model, arXiv:2501.13341.
    """
    check_tensor("yes_logit", yes_logit, floating=True)
    check_tensor("no_logit", no_logit, floating=True, shape=tuple(yes_logit.shape))
    return (widen(yes_logit) - widen(no_logit)).sigmoid()


def multi_aspect_kd_loss(
    logits: F[Tensor, "batch outputs"],
    target: I[Tensor, " batch"],
    *,
    attributes: F[Tensor, "batch aspects"],
    mask: Bool[Tensor, "batch aspects"] | None = None,
    alpha: float = 1.0,
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy of the first C outputs, plus binary cross-entropy of the others against a teacher's answers.

    .. math:: L = \frac{1}{B} \sum_i -\log \mathrm{softmax}(z_{i, 1:C})_{y_i}
        + \frac{\alpha}{|A|} \sum_{(i, q) \in A} -\bigl[t_{iq} \log \sigma(z_{i, C+q})
        + (1 - t_{iq}) \log (1 - \sigma(z_{i, C+q}))\bigr]

    A are the answers of the batch: B Q of them, or those that the mask leaves; none of them leaves cross-entropy. The
    mean over them needs no other alpha where Q grows. The second term does not reach 0: its floor is the mean entropy
    of t. Single losses hold the share of their own answers in that mean, times B.

    Args:
        logits: z ``[N, C + Q]``, C >= 2: classes first, then a column a question.
        target: class indices ``[N]`` in 0..C-1.
        attributes: probabilities of "yes", t ``[N, Q]`` in [0, 1]; no gradient flows into them. C is the width of the
            logits less their Q, which may be 0.
        mask: boolean ``[N, Q]``; where it is False the question was not answered, and t may be anything. None: all
            were.
        alpha: factor of the answers, >= 0; the published settings have 1 to 4.
        weight: sample weights ``[N]`` >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        The loss in float32 or wider.

    Raises:
        ValueError: wrong shapes, fewer than two columns beside those of the questions, a class out of range, an answer
            outside [0, 1], a negative ``alpha``.

    Example:
        >>> z = torch.tensor([[2.0, 0.5, -1.0, 1.0, -2.0]])
        >>> t = torch.tensor([[0.880797, 0.268941]])
        >>> multi_aspect_kd_loss(z, torch.tensor([0]), attributes=t)
        tensor(0.7899)

    Source: Multi-aspect Knowledge Distillation with Large Language Model, arXiv:2501.13341.
    """
    check_number("alpha", alpha, low=0.0)
    classes, aspects = _losses(logits, target, attributes, mask)
    return reduce(_joined(classes, aspects, alpha), reduction, weight)


def _joined(classes: Tensor, aspects: Tensor, alpha: float) -> Tensor:
    return classes + alpha * aspects if alpha else classes


def _losses(logits: Tensor, target: Tensor, attributes: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Cross-entropy ``[N]``, and each sample's share of the mean over all answers, times N."""
    check_tensor("logits", logits, ndim=2, floating=True)
    check_tensor("attributes", attributes, floating=True, shape=(logits.shape[0], None))
    questions = attributes.shape[1]
    classes = logits.shape[1] - questions
    if classes < 2:
        refuse("logits", f"at least {2 + questions} columns, of two classes and {questions} questions", logits)
    z, t = widen(logits), attributes.detach()
    check_index(target, z[:, :classes])
    entropy = _cross_entropy(z[:, :classes].contiguous(), target.long())
    own, valid = z[:, classes:], None
    if mask is not None:
        check_tensor("mask", mask, floating=False, shape=tuple(t.shape))
        valid = mask.bool()
        own, t = torch.where(valid, own, 0.0), torch.where(valid, t, 0.0)
    check_domain("attributes", t, "probabilities")
    losses = functional.binary_cross_entropy_with_logits(own, t.to(z.dtype), reduction="none")
    if valid is None:
        return entropy, losses.sum(1) / max(questions, 1)
    answers = valid.sum().clamp_min(1).to(z.dtype)
    return entropy, torch.where(valid, losses, 0.0).sum(1) * (len(t) / answers)


def _cross_entropy(z: Tensor, target: Tensor) -> Tensor:
    def phi(log_p: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        return -log_p, torch.full_like(log_p, -1.0)

    return rowwise(z, lambda z: -target_log_probability(z, target), log_probability_rule(target, phi))


class MultiAspectKDLoss(Objective):
    """Multi-aspect distillation as a module; see :func:`multi_aspect_kd_loss`.

    The model has C + Q outputs; predictions use the first C. In training, after 256 answers to each question, questions
    that all rows answer alike are named in a warning, once: they carry no signal.

    Args:
        num_classes: C >= 2.
        num_aspects: Q >= 0 questions.
        alpha: factor of the answers, >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Example:
        >>> loss = MultiAspectKDLoss(num_classes=3, num_aspects=2)
        >>> z = torch.tensor([[2.0, 0.5, -1.0, 1.0, -2.0]])
        >>> loss(z, torch.tensor([0]), attributes=torch.tensor([[0.9, 0.2]]), mask=torch.tensor([[True, False]]))
        tensor(0.6546)
        >>> loss.predict(z)
        tensor([0])
    """

    name = "multi_aspect_kd"
    tasks = ("binary", "multiclass")
    needs = ("attributes", "mask")
    search = {"alpha": Float(0.1, 10.0, log=True)}

    def __init__(self, num_classes: int, num_aspects: int, alpha: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        check_number("num_classes", num_classes, low=2, integer=True)
        check_number("num_aspects", num_aspects, low=0, integer=True)
        check_number("alpha", alpha, low=0.0)
        self.num_classes, self.num_aspects, self.alpha = num_classes, num_aspects, alpha
        self._looked_at = 0
        self._range: tuple[Tensor, Tensor] | None = None

    @classmethod
    def from_task(cls, info: TaskInfo, **hyper: Any) -> Self:
        """With the classes of the task, and no question where their number is not given."""
        return cls(info.num_classes, **{"num_aspects": 0, **hyper})

    def head(self, feature_dim: int, info: TaskInfo) -> nn.Module:
        """A linear layer with a column for each class and question."""
        return nn.Linear(feature_dim, self.num_classes + self.num_aspects)

    def forward(
        self,
        outputs: F[Tensor, "batch outputs"],
        target: I[Tensor, " batch"],
        *,
        attributes: F[Tensor, "batch aspects"],
        mask: Bool[Tensor, "batch aspects"] | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """The loss of logits, class indices and answers; see the function for shapes."""
        self.check_call(outputs, target, weight)
        check_tensor("outputs", outputs, shape=(None, self.num_classes + self.num_aspects))
        check_tensor("attributes", attributes, shape=(len(outputs), self.num_aspects))
        classes, aspects = _losses(outputs, target, attributes, mask)
        if self.training and self._looked_at < LOOKED_AT and values_visible(attributes):
            self._look_at(attributes.detach(), mask)
        self.terms = kept_terms(
            {"classes": reduce(classes, "mean", weight), "aspects": reduce(aspects, "mean", weight)}
        )
        return reduce(_joined(classes, aspects, self.alpha), self.reduction, weight)

    def _look_at(self, attributes: Tensor, mask: Tensor | None) -> None:
        """Follow the range of the answers to each question; the one warning."""
        valid = torch.ones_like(attributes, dtype=torch.bool) if mask is None else mask.bool()
        if not attributes.numel():
            return
        low = torch.where(valid, attributes, torch.inf).amin(0)
        high = torch.where(valid, attributes, -torch.inf).amax(0)
        if self._range is not None:
            low, high = torch.minimum(low, self._range[0]), torch.maximum(high, self._range[1])
        self._range = low, high
        self._looked_at += int(valid.sum(0).min())
        if self._looked_at >= LOOKED_AT and bool((low == high).any()):
            alike = (low == high).nonzero().flatten().tolist()
            message = f"attributes: {self._looked_at} rows answer the questions {alike} alike, which carry no signal"
            warnings.warn(message, stacklevel=3)

    def predict(self, outputs: Tensor) -> Tensor:
        """The most probable class."""
        return outputs[:, : self.num_classes].argmax(-1)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Softmax over the classes; the questions serve training alone."""
        return outputs[:, : self.num_classes].softmax(-1)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Two classes with all questions answered, five with some that are not."""
        cases: list[tuple[Self, Sample]] = []
        for classes, questions, alpha in ((2, 3, 1.0), (5, 4, 0.5)):
            outputs = torch.randn(7, classes + questions, generator=generator, dtype=torch.float64)
            answers = torch.rand(7, questions, generator=generator, dtype=torch.float64)
            mask = torch.rand(7, questions, generator=generator) < (1.0 if classes == 2 else 0.7)
            target = torch.randint(classes, (7,), generator=generator)
            kwargs = {"attributes": answers.to(device, dtype), "mask": mask.to(device)}
            objective = cls(classes, questions, alpha).to(device)
            cases.append((objective, ((outputs.to(device, dtype), target.to(device)), kwargs)))
        return cases
