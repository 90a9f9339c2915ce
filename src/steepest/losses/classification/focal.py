"""Focal loss: cross-entropy scaled down where the model is already right."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as nnf
from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import (
    check_choice,
    check_number,
    check_tensor,
    check_weight,
    refuse,
    values_visible,
)
from ...core.logpartition import class_mask, pick
from ...core.objective import Objective, Sample
from ...core.reductions import reduce, widen
from ...core.rowwise import rowwise
from ...core.scalars import is_number
from ...core.search import Float
from ._focal import focal_rule
from ._targets import class_targets

FORMS = (None, "softmax", "sigmoid")


def focal_loss(
    logits: F[Tensor, "batch ..."],
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float | F[Tensor, " classes"] | None = None,
    form: str | None = None,
    ignore_index: int | None = -100,
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""The focal loss: of softmax probabilities, or of each sigmoid by itself, as its paper has it for detection.

    .. math:: \ell = -\alpha_y (1 - p_y)^\gamma \log p_y

    The softmax form takes both factors from the margin m = f_y - log sum_{k != y} exp(f_k): log p_y = log sigmoid(m),
    log(1 - p_y) = log sigmoid(-m). So the slope is finite everywhere, also for gamma < 1 as p_y goes to 1. In the
    sigmoid form m is f for a label 1 and -f for a label 0; between them cross-entropy and 1 - p_t are interpolated.

    Args:
        logits: ``[N, C]`` or maps ``[N, C, d1, ...]`` with C >= 2; scores ``[N]``; any shape for the sigmoid form.
        target: softmax: class indices ``[N]`` or ``[N, d1, ...]``, or with ``form="softmax"`` probabilities of the
            shape of ``logits``, over which the loss is averaged. Sigmoid: labels in [0, 1] of the shape of ``logits``.
        gamma: focusing exponent, >= 0.
        alpha: factor of each class ``[C]`` >= 0 (``[2]`` for the labels 0 and 1 of the sigmoid form), or None for ones.
            A number in [0, 1] is that of the label 1, and one less it that of 0. The mean stays the plain one.
        form: ``"softmax"``, ``"sigmoid"``, or None: the sigmoid where ``target`` has the shape of ``logits``.
        ignore_index: entries of ``target`` with this value don't count; None for none. Rows of probabilities have none.
        weight: sample weights ``[N]`` >= 0, those of every entry of a sample.
        reduction: ``"none"`` (one number for each index or label), ``"mean"`` or ``"sum"`` over all of them.

    Returns:
        The loss in float32 or wider.

    Raises:
        ValueError: a negative ``gamma``, a class out of range, wrong shapes.

    Example:
        >>> focal_loss(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]), gamma=2.0)
        tensor(0.0457)
        >>> focal_loss(torch.tensor([2.0, -1.0]), torch.tensor([1, 0]), alpha=0.25)
        tensor(0.0087)

    Source: Focal Loss for Dense Object Detection, arXiv:1708.02002.
    """
    check_number("gamma", gamma, low=0.0)
    check_choice("form", form, FORMS)
    if ignore_index is not None:
        check_number("ignore_index", ignore_index, integer=True)
    check_tensor("outputs", logits, floating=True)
    check_tensor("target", target)
    entrywise = form == "sigmoid" or (form is None and (logits.ndim < 2 or target.shape == logits.shape))
    if not entrywise and logits.ndim < 2:
        refuse("outputs", "at least 2 dimensions", logits)
    factors = _factors(alpha, 2 if entrywise else logits.shape[1])
    if entrywise:
        loss, valid = _of_labels(logits, target, gamma, factors, ignore_index)
    elif logits.ndim == 2:
        loss, valid = _of_rows(logits, target, gamma, factors, ignore_index)
    else:  # every place of a map is a row
        places = (logits.shape[0], *logits.shape[2:])
        soft = target.ndim == logits.ndim
        check_tensor("target", target, floating=soft, shape=tuple(logits.shape) if soft else places)
        rows, flat = (
            t.movedim(1, -1).flatten(0, -2) if t.ndim == logits.ndim else t.flatten() for t in (logits, target)
        )
        loss, valid = _of_rows(rows, flat, gamma, factors, ignore_index)
        loss, valid = loss.view(places), None if valid is None else valid.view(places)
    if weight is not None:
        check_weight(weight, logits.shape[0])
        weight = weight.view(-1, *[1] * (loss.ndim - 1)).expand_as(loss)
    return reduce(loss, reduction, weight, valid)


def _factors(alpha: float | Tensor | None, classes: int) -> Tensor | None:
    """The factor of each class; a number is that of the second of two."""
    if alpha is None:
        return None
    if not isinstance(alpha, Tensor):
        check_number("alpha", alpha, low=0.0, high=1.0)
        alpha = torch.tensor([1.0 - alpha, alpha], dtype=torch.float64)
    check_tensor("alpha", alpha, floating=True, shape=(classes,))
    return alpha


def _of_rows(
    logits: Tensor, target: Tensor, gamma: float, factors: Tensor | None, ignore_index: int | None
) -> tuple[Tensor, Tensor | None]:
    """The softmax form of rows ``[N, C]``, and which of them count."""
    target, valid = class_targets(logits, target, ignore_index)
    z = widen(logits)
    if target.ndim == 2:
        return _of_shares(z, target, gamma, factors), None

    def plain(z: Tensor) -> Tensor:
        others = z.masked_fill(class_mask(target, z.shape[1]), -torch.inf)
        margin = pick(z, target) - torch.logsumexp(others, dim=-1)
        return -torch.exp(gamma * nnf.logsigmoid(-margin)) * nnf.logsigmoid(margin)

    loss = rowwise(z, plain, focal_rule(target.long(), gamma))
    return loss if factors is None else factors.to(loss)[target.long()] * loss, valid


def _of_shares(z: Tensor, shares: Tensor, gamma: float, factors: Tensor | None) -> Tensor:
    """The mean of the losses of all classes of a row, each with its share."""
    largest = class_mask(z.argmax(1), z.shape[1])
    margin = z.amax(1) - torch.logsumexp(z.masked_fill(largest, -torch.inf), dim=1)
    log_p = torch.where(largest, nnf.logsigmoid(margin).unsqueeze(1), torch.log_softmax(z, 1))
    # only the largest probability can round to 1
    small = torch.log1p(-torch.where(largest, 0.0, torch.softmax(z, 1)))
    log_rest = torch.where(largest, nnf.logsigmoid(-margin).unsqueeze(1), small)
    loss = -torch.exp(gamma * log_rest) * log_p
    loss = loss if factors is None else factors.to(loss) * loss
    return torch.where(shares == 0, 0.0, shares.to(z) * loss).sum(1)


def _of_labels(
    logits: Tensor, target: Tensor, gamma: float, factors: Tensor | None, ignore_index: int | None
) -> tuple[Tensor, Tensor | None]:
    """The loss of each sigmoid, and which labels count."""
    if logits.ndim == 0:
        refuse("outputs", "at least 1 dimension", logits)
    check_tensor("target", target, shape=tuple(logits.shape))
    valid = None if ignore_index is None else target != ignore_index
    t = target if valid is None else target.masked_fill(~valid, 0)
    if t.numel() and values_visible(t) and bool(((t < 0) | (t > 1)).any()):
        extra = "" if ignore_index is None else f" or {ignore_index}"
        refuse("target", f"labels in [0, 1]{extra}", [t.min().item(), t.max().item()])
    z = widen(logits)
    t = t.to(z.dtype)
    log_p, log_rest = nnf.logsigmoid(z), nnf.logsigmoid(-z)
    entropy = -(t * log_p + (1 - t) * log_rest)
    wrong = torch.logaddexp((1 - t).log() + log_p, t.log() + log_rest)
    loss = torch.exp(gamma * wrong) * entropy
    return loss if factors is None else (factors[0].to(z) * (1 - t) + factors[1].to(z) * t) * loss, valid


class FocalLoss(Objective):
    """The focal loss as a module; see :func:`focal_loss` for what it takes and for its two forms.

    Args:
        gamma: focusing exponent, >= 0; 0 is cross-entropy.
        alpha: factor of each class, C numbers >= 0 (2 for the sigmoid form), a number in [0, 1] for the second of two
            classes, or None.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        form: ``"softmax"``, ``"sigmoid"``, or None: the sigmoid where targets have the shape of outputs.
        ignore_index: entries of the target with this value don't count; None for none.

    Example:
        >>> FocalLoss(gamma=2.0)(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]))
        tensor(0.0457)
    """

    name = "focal"
    tasks = ("binary", "multiclass")
    targets = ("index", "soft", "multi_hot")
    search = {"gamma": Float(0.25, 5.0, log=True)}
    alpha: Tensor | None

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: float | Sequence[float] | None = None,
        reduction: str = "mean",
        *,
        form: str | None = None,
        ignore_index: int | None = -100,
    ) -> None:
        super().__init__(reduction)
        check_number("gamma", gamma, low=0.0)
        check_choice("form", form, FORMS)
        if ignore_index is not None:
            check_number("ignore_index", ignore_index, integer=True)
        self.gamma, self.form, self.ignore_index = gamma, form, ignore_index
        if is_number(alpha):
            factors = _factors(alpha, 2)
        else:
            factors = None if alpha is None else torch.as_tensor(alpha, dtype=torch.float64)
        if factors is not None and (factors.ndim != 1 or bool((factors < 0).any())):
            refuse("alpha", "one number >= 0 for each class, or one in [0, 1]", alpha)
        self.register_buffer("alpha", factors)

    def forward(self, outputs: F[Tensor, "batch ..."], target: Tensor, *, weight: Tensor | None = None) -> Tensor:
        """The loss of logits and class indices, or of scores and labels of the same shape."""
        self.check_call(outputs, target, weight)
        return focal_loss(
            outputs,
            target,
            gamma=self.gamma,
            alpha=self.alpha,
            form=self.form,
            ignore_index=self.ignore_index,
            weight=weight,
            reduction=self.reduction,
        )

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Softmax: for gamma > 0 the minimiser is flatter than q, with the same argmax (where alpha is even).

        Of scores ``[N]`` both classes ``[N, 2]``; of the sigmoid form each label's own, of the shape of ``outputs``.
        """
        if outputs.ndim == 1:
            return torch.sigmoid(torch.stack([-outputs, outputs], 1))
        return torch.sigmoid(outputs) if self.form == "sigmoid" else outputs.softmax(1)

    def predict(self, outputs: Tensor) -> Tensor:
        """The class with the largest logit, along dimension 1; of scores and of the sigmoid form the labels 0 and 1."""
        return (outputs > 0).long() if outputs.ndim == 1 or self.form == "sigmoid" else outputs.argmax(1)

    def decision(self, outputs: Tensor) -> Tensor:
        """The outputs, of two classes their difference: they rank as probabilities do."""
        two = outputs.ndim == 2 and outputs.shape[1] == 2 and self.form != "sigmoid"
        return outputs[:, 1] - outputs[:, 0] if two else outputs

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[FocalLoss, Sample]]:
        """The default ones, one with gamma < 1 and class factors, and one with probabilities for a target."""
        cases = super().samples(generator, dtype, device)
        (_, sample) = cases[-1]
        outputs = sample[0][0]
        alpha = [0.25 + k for k in range(outputs.shape[1])]
        shares = torch.rand(outputs.shape, generator=generator, dtype=torch.float64).softmax(1).to(device, dtype)
        soft = cls(gamma=0.5, alpha=alpha, form="softmax").to(device)
        return [*cases, (cls(gamma=0.5, alpha=alpha).to(device), sample), (soft, ((outputs, shares), {}))]
