"""Dice loss of maps of labels, and the segment scores of sound event detection."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.checks import check_binary, check_choice, check_domain, check_number, check_tensor, refuse
from ...core.confusion import soft_counts
from ...core.objective import Objective, Sample, TaskInfo
from ...core.reductions import widen
from ...core.search import Choice

REDUCE = ("micro", "class", "sample")


def soft_dice_loss(
    outputs: Tensor,
    target: Tensor,
    *,
    squared: bool = False,
    reduce: str = "micro",
    eps: float = 1e-6,
    from_logits: bool = True,
    class_dim: int = -1,
    skip_empty: bool = False,
) -> Tensor:
    r"""One minus the Dice coefficient of soft predictions: a soft F1, blind to true negatives.

    .. math:: L = 1 - \frac{2 \sum p y + \epsilon}{\sum p + \sum y + \epsilon}
        = \frac{\sum p (1 - y) + \sum (1 - p) y}{\sum p + \sum y + \epsilon}

    The second form, which has no cancellation near 0, is what is computed. Squared, the denominator holds
    :math:`\sum p^2 + \sum y^2` and the numerator :math:`\sum (p - y)^2`. A cell without the label adds the same slope
    :math:`2I / S^2` wherever it lies (linear form, in p). Outputs become near-binary: they are poor probabilities.

    Args:
        outputs: logits, or probabilities in [0, 1], of two dimensions or more: ``[B, T, C]`` frames and classes,
            ``[N, C]``, ``[B, C, H, W]`` with ``class_dim=1``.
        target: labels in {0, 1} of the same shape.
        squared: whether the denominator holds squares.
        reduce: what sums run over: ``"micro"`` all cells, ``"class"`` the cells of each class, ``"sample"`` the cells
            of each sample (dimension 0); then the mean over classes or samples.
        eps: added above and below, >= 0: 1 - L is 1 where there is nothing to find and nothing found.
        from_logits: whether outputs are logits.
        class_dim: the dimension of the classes, for ``"class"``.
        skip_empty: whether classes (samples) without a positive label are left out of the mean; none left gives 0.

    Returns:
        A scalar in [0, 1], in float32 or wider; NaN of an empty tensor.

    Raises:
        ValueError: other shapes, labels outside {0, 1}, probabilities outside [0, 1], an unknown ``reduce``.
        TypeError: not tensors.

    Example:
        >>> p = torch.tensor([[0.8, 0.1], [0.4, 0.0], [0.6, 0.3]])
        >>> y = torch.tensor([[1, 0], [0, 0], [1, 1]])
        >>> soft_dice_loss(p, y, from_logits=False)
        tensor(0.3462)
        >>> soft_dice_loss(p, y, from_logits=False, reduce="class", squared=True)
        tensor(0.2842)

    Source: Improving Polyphonic Sound Event Detection on Multichannel Recordings with the Sorensen-Dice Coefficient
    Loss and Transfer Learning, arXiv:2107.10471.
    """
    check_choice("reduce", reduce, REDUCE)
    check_number("eps", eps, low=0.0)
    check_tensor("outputs", outputs, floating=True)
    if outputs.ndim < 2:
        refuse("outputs", "two dimensions or more", outputs)
    check_number("class_dim", class_dim, low=-outputs.ndim, high=outputs.ndim - 1, integer=True)
    check_binary(target, outputs)
    z = widen(outputs)
    if from_logits:
        p, q = torch.sigmoid(z), torch.sigmoid(-z)
    else:
        check_domain("outputs", z, "probabilities")
        p, q = z, 1 - z
    if not z.numel():
        return p.mean()
    left = {"micro": None, "class": class_dim % z.ndim, "sample": 0}[reduce]
    dim = tuple(d for d in range(z.ndim) if d != left)
    y = target.to(z.dtype)
    if squared:
        p, q = p.square(), q.square()
    hit, missed, false, _ = soft_counts(p, y, dim, complement=q)
    positives = y.sum(dim)
    losses = (missed + false) / (hit + false + positives + eps)
    if not skip_empty:
        return losses.mean()
    present = (positives > 0).to(losses.dtype)
    return (losses * present).sum() / present.sum().clamp_min(1)


class DiceLoss(Objective):
    """Dice as an objective of several labels a sample, or of maps; see :func:`soft_dice_loss`.

    Of several ranks each has the ratios of its own batch.

    Args:
        squared: whether the denominator holds squares.
        reduce: ``"micro"``, ``"class"`` or ``"sample"``.
        eps: added above and below, >= 0.
        from_logits: whether outputs are logits; else probabilities.
        class_dim: the dimension of the classes.
        skip_empty: whether classes (samples) without a positive label are left out.
        reduction: ``"mean"`` only.

    Example:
        >>> p = torch.tensor([[0.8, 0.1], [0.4, 0.0], [0.6, 0.3]])
        >>> DiceLoss()(torch.logit(p, 1e-9), torch.tensor([[1, 0], [0, 0], [1, 1]]))
        tensor(0.3462)
    """

    name = "dice"
    tasks = ("multilabel",)
    targets = ("multi_hot",)
    unit = "batch"
    search = {"reduce": Choice(("micro", "class", "sample")), "squared": Choice((False, True))}

    def __init__(
        self,
        squared: bool = False,
        reduce: str = "micro",
        eps: float = 1e-6,
        from_logits: bool = True,
        *,
        class_dim: int = -1,
        skip_empty: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        check_choice("reduce", reduce, REDUCE)
        check_number("eps", eps, low=0.0)
        check_number("class_dim", class_dim, integer=True)
        self.squared, self.reduce, self.eps = bool(squared), reduce, eps
        self.from_logits, self.class_dim, self.skip_empty = bool(from_logits), class_dim, bool(skip_empty)

    def forward(self, outputs: Tensor, target: Tensor, *, weight: None = None) -> Tensor:
        """The loss of outputs and labels of one shape."""
        self.check_call(outputs, target, weight)
        return soft_dice_loss(
            outputs,
            target,
            squared=self.squared,
            reduce=self.reduce,
            eps=self.eps,
            from_logits=self.from_logits,
            class_dim=self.class_dim,
            skip_empty=self.skip_empty,
        )

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Of each label on its own, of the shape of outputs; only their side of 1/2 was trained."""
        return torch.sigmoid(outputs) if self.from_logits else outputs

    def predict(self, outputs: Tensor) -> Tensor:
        """1 where the probability of a label is above 1/2."""
        return (outputs > (0.0 if self.from_logits else 0.5)).long()

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[DiceLoss, Sample]]:
        """Floating and integer targets, every reduction; one sample has no label."""
        target = torch.rand(7, 5, generator=generator) < 0.4
        target[0], target[1] = True, False
        counts = tuple(target.sum(0).tolist())
        info = TaskInfo("multilabel", 7, 5, counts, feature_dim=6, epochs=10, steps_per_epoch=3, seed=1)
        outputs = torch.randn(7, 5, generator=generator, dtype=torch.float64).to(device, dtype)
        hypers = ({}, {"squared": True}, {"reduce": "class"}, {"reduce": "sample", "skip_empty": True, "eps": 1.0})
        return [
            (cls.from_task(info, **hyper), ((outputs, labels), {}))
            for hyper, labels in zip(hypers, [target.to(device, dtype), *[target.long().to(device)] * 3])
        ]


def sed_f1(pred: Tensor, target: Tensor, *, segment: int = 1) -> Tensor:
    r"""F1 of sound events over all segments and classes: :math:`2 TP / (2 TP + FP + FN)`.

    Args:
        pred: decisions in {0, 1}, ``[..., T, C]``.
        target: labels in {0, 1} of the same shape.
        segment: frames of a segment, >= 1; a class is active in a segment where it is in one of its frames.

    Returns:
        A float64 scalar in [0, 1], NaN where nothing is there and nothing found.

    Raises:
        ValueError: other shapes, values outside {0, 1}, a segment < 1.

    Example:
        >>> pred, target = torch.tensor([[1, 0], [1, 1], [0, 0]]), torch.tensor([[1, 0], [0, 1], [0, 1]])
        >>> sed_f1(pred, target).item(), sed_f1(pred, target, segment=3).item()
        (0.6666666666666666, 1.0)
    """
    hits, missed, false = _segment_counts(pred, target, segment)
    twice = 2 * hits.sum()
    return twice / (twice + missed.sum() + false.sum())


def sed_error_rate(pred: Tensor, target: Tensor, *, segment: int = 1) -> Tensor:
    r"""Error rate of sound events: substitutions, deletions and insertions for each event that is there.

    .. math:: ER = \frac{\sum_t (S_t + D_t + I_t)}{\sum_t N_t}, \quad S = \min(FN, FP),
        \; D = \max(0, FN - FP), \; I = \max(0, FP - FN)

    Args:
        pred: decisions in {0, 1}, ``[..., T, C]``.
        target: labels in {0, 1} of the same shape.
        segment: frames of a segment, >= 1.

    Returns:
        A float64 scalar >= 0, above 1 at times; NaN or infinite where no event is there.

    Raises:
        ValueError: other shapes, values outside {0, 1}, a segment < 1.

    Example:
        >>> pred, target = torch.tensor([[1, 0], [1, 1], [0, 0]]), torch.tensor([[1, 0], [0, 1], [0, 1]])
        >>> sed_error_rate(pred, target).item()
        0.6666666666666666
    """
    hits, missed, false = _segment_counts(pred, target, segment)
    # a segment's substitutions, deletions and insertions add up to the larger of its two kinds of error
    return torch.maximum(missed, false).sum() / (hits + missed).sum()


def _segment_counts(pred: Tensor, target: Tensor, segment: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hits, misses and false alarms of each segment, ``[..., segments]``."""
    check_number("segment", segment, low=1, integer=True)
    check_tensor("pred", pred)
    if pred.ndim < 2:
        refuse("pred", "two dimensions or more", pred)
    check_binary(pred, pred, argument="pred")
    check_binary(target, pred)
    frames = pred.shape[-2]
    short = -frames % segment
    both = []
    for value in (pred, target):
        cells = torch.nn.functional.pad(value.double(), (0, 0, 0, short))
        both.append(cells.unflatten(-2, ((frames + short) // segment, segment)).amax(-2))
    hits, missed, false, _ = soft_counts(both[0], both[1], (-1,))
    return hits, missed, false
