"""Metrics of regression, classification, detection, segmentation, faces and rankings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float as F
from sklearn import metrics as sk
from torch import Tensor

from ....core.checks import (
    check_binary,
    check_logits,
    check_number,
    check_range,
    check_simplex,
    check_tensor,
    refuse,
)
from ....core.reductions import widen
from .cards import chances_and_bits, check_boxes, logits_and_index, metric, normal, pair

REGRESSION, CLASSIFICATION, DETECTION = "regression", "classification", "detection"
SEGMENTATION, FACES, RANKING = "segmentation", "face verification", "ranking"


def _numbers(*values: Tensor) -> list[np.ndarray]:
    return [v.detach().cpu().double().numpy() if v.is_floating_point() else v.detach().cpu().numpy() for v in values]


@metric(REGRESSION, "1 - sum (y - f)^2 / sum (y - mean y)^2", "<= 1", True, normal(8))
def r2(outputs: Tensor, target: Tensor) -> float:
    """Share of the variance that is explained; minus infinity for equal targets, NaN where they are met."""
    check_tensor("outputs", outputs, ndim=1)
    f, y = _numbers(*pair(outputs, target))
    first = y[:1]  # about it equal targets have a variance of 0, without rounding
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(sk.r2_score(y - first, f - first, force_finite=False))


@metric(REGRESSION, "1 - (1 - R2) (n - 1) / (n - k - 1), k features", "<= 1", True, normal(8))
def adjusted_r2(outputs: Tensor, target: Tensor, *, features: int = 1) -> float:
    """R2 less what k features explain by chance."""
    rows = len(outputs)
    check_number("features", features, low=0, high=max(rows - 2, 0), integer=True)
    return 1 - (1 - r2(outputs, target)) * (rows - 1) / (rows - features - 1)


def _labels(g: torch.Generator) -> tuple[Any, ...]:
    return tuple(torch.randint(2, (12,), generator=g) for _ in range(2))


def _classes(outputs: Tensor, target: Tensor) -> list[np.ndarray]:
    for argument, value in (("outputs", outputs), ("target", target)):
        check_tensor(argument, value, ndim=1, floating=False)
    check_tensor("target", target, shape=tuple(outputs.shape))
    return _numbers(target, outputs)


def _bits(outputs: Tensor, target: Tensor) -> list[np.ndarray]:
    y, predicted = _classes(outputs, target)
    check_binary(target, outputs)
    check_binary(outputs, target, argument="outputs")
    return [y, predicted]


@metric(CLASSIFICATION, "share of predictions that are right", "[0, 1]", True, _labels)
def accuracy(outputs: Tensor, target: Tensor) -> float:
    """Accuracy of predicted classes ``[N]``."""
    return float(sk.accuracy_score(*_classes(outputs, target)))


@metric(CLASSIFICATION, "TP / (TP + FP)", "[0, 1]", True, _labels)
def precision(outputs: Tensor, target: Tensor) -> float:
    """Precision of predicted labels in {0, 1}; 0 where nothing is called positive."""
    return float(sk.precision_score(*_bits(outputs, target), zero_division=0))


@metric(CLASSIFICATION, "TP / (TP + FN)", "[0, 1]", True, _labels)
def recall(outputs: Tensor, target: Tensor) -> float:
    """Recall (sensitivity); 0 where nothing is positive."""
    return float(sk.recall_score(*_bits(outputs, target), zero_division=0))


@metric(CLASSIFICATION, "TN / (TN + FP)", "[0, 1]", True, _labels)
def specificity(outputs: Tensor, target: Tensor) -> float:
    """Recall of the negatives."""
    return float(sk.recall_score(*_bits(outputs, target), pos_label=0, zero_division=0))


@metric(CLASSIFICATION, "(1 + b^2) P R / (b^2 P + R)", "[0, 1]", True, _labels)
def f_beta(outputs: Tensor, target: Tensor, *, beta: float = 1.0) -> float:
    """F score: recall counts beta times as much as precision."""
    check_number("beta", beta, low=0.0, open_low=True)
    return float(sk.fbeta_score(*_bits(outputs, target), beta=beta, zero_division=0))


@metric(CLASSIFICATION, "mean recall over the classes", "[0, 1]", True, _labels)
def balanced_accuracy(outputs: Tensor, target: Tensor) -> float:
    """Accuracy with every class counted equally."""
    return float(sk.balanced_accuracy_score(*_classes(outputs, target)))


@metric(CLASSIFICATION, "(p_o - p_e) / (1 - p_e), p_e the agreement by chance", "[-1, 1]", True, _labels)
def kappa(outputs: Tensor, target: Tensor) -> float:
    """Cohen's kappa."""
    return float(sk.cohen_kappa_score(*_classes(outputs, target)))


@metric(CLASSIFICATION, "correlation of predicted and true classes", "[-1, 1]", True, _labels)
def mcc(outputs: Tensor, target: Tensor) -> float:
    """Matthews correlation coefficient."""
    return float(sk.matthews_corrcoef(*_classes(outputs, target)))


def _scores(outputs: Tensor, target: Tensor) -> list[np.ndarray]:
    check_tensor("outputs", outputs, ndim=1, floating=True)
    check_binary(target, outputs)
    return _numbers(target, outputs)


@metric(CLASSIFICATION, "P(score of a positive > score of a negative)", "[0, 1]", True, chances_and_bits(12))
def roc_auc(outputs: Tensor, target: Tensor) -> float:
    """Area under the ROC curve of scores ``[N]``."""
    return float(sk.roc_auc_score(*_scores(outputs, target)))


@metric(CLASSIFICATION, "sum of precision times step of recall", "[0, 1]", True, chances_and_bits(12))
def pr_auc(outputs: Tensor, target: Tensor) -> float:
    """Area under the precision-recall curve as average precision, without interpolation."""
    return float(sk.average_precision_score(*_scores(outputs, target)))


def _where_known(values: Tensor, scores: Tensor) -> float:
    """The mean of one value a row; NaN among its scores, which have no order, makes a row NaN."""
    return float(torch.where(scores.isnan().any(-1), torch.nan, values).mean())


@metric(CLASSIFICATION, "share of rows whose class is among the k largest", "[0, 1]", True, logits_and_index(9, 4))
def top_k(outputs: Tensor, target: Tensor, *, k: int = 5) -> float:
    """Top-k accuracy of logits ``[N, C]``; 1 for k >= C."""
    check_number("k", k, low=1, integer=True)
    check_logits(outputs)
    check_tensor("target", target, floating=False, shape=(outputs.shape[0],))
    check_range("target", target, 0, outputs.shape[1] - 1)
    best = outputs.topk(min(k, outputs.shape[1])).indices
    return _where_known((best == target[:, None]).any(-1).double(), outputs)


def _rows(g: torch.Generator) -> tuple[Any, ...]:
    logits, index = logits_and_index(9, 3)(g)
    return logits.softmax(-1), index


@metric(CLASSIFICATION, "mean of -log p_y", ">= 0", False, _rows)
def log_loss(outputs: Tensor, target: Tensor) -> float:
    """Log loss of probabilities ``[N, C]``."""
    check_logits(outputs)
    check_simplex("outputs", outputs)
    check_tensor("target", target, floating=False, shape=(outputs.shape[0],))
    check_range("target", target, 0, outputs.shape[1] - 1)
    return float(-widen(outputs).gather(1, target.long()[:, None]).log().mean())


@metric(CLASSIFICATION, "counts, row true class, column predicted", ">= 0", None, _labels)
def confusion_matrix(outputs: Tensor, target: Tensor, *, num_classes: int | None = None) -> Tensor:
    """Counts ``[C, C]`` of true by predicted classes."""
    y, predicted = _classes(outputs, target)
    labels = None if num_classes is None else range(num_classes)
    return torch.from_numpy(sk.confusion_matrix(y, predicted, labels=labels))


Boxes = F[Tensor, "boxes 4"]


def _boxes(g: torch.Generator, rows: int = 4) -> Tensor:
    corner = torch.rand(rows, 4, generator=g, dtype=torch.float64)
    return torch.cat([corner[:, :2], corner[:, :2] + 0.2 + corner[:, 2:]], 1)


@metric(DETECTION, "area shared / area of both, for every pair", "[0, 1]", True, lambda g: (_boxes(g), _boxes(g)))
def box_iou(outputs: Boxes, target: Boxes) -> Tensor:
    """IoU ``[N, M]`` of boxes x1, y1, x2, y2."""
    for argument, value in (("outputs", outputs), ("target", target)):
        check_tensor(argument, value, floating=True, shape=(None, 4))
        check_boxes(argument, value)
    a, b = widen(outputs)[:, None], widen(target)[None]
    sides = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    shared = sides.clamp_min(0).prod(-1)
    return shared / ((a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared)


def _images(g: torch.Generator) -> tuple[Any, ...]:
    flat_outputs, wanted = [], []
    for _ in range(3):
        boxes = _boxes(g)
        flat_outputs.append((boxes + 0.02, torch.rand(4, generator=g, dtype=torch.float64)))
        wanted.append(boxes[:3])
    return flat_outputs, wanted


@metric(DETECTION, "area under precision over recall, precision made monotone", "[0, 1]", True, _images)
def average_precision(
    outputs: Sequence[tuple[Tensor, Tensor]], target: Sequence[Tensor], *, threshold: float = 0.5
) -> float:
    """AP of one class at an IoU threshold: (boxes, scores) and true boxes of every image.

    Detections by falling score take the free true box that they meet most, if by ``threshold`` or more.
    """
    check_number("threshold", threshold, low=0.0, high=1.0)
    if len(outputs) != len(target):
        refuse("target", f"true boxes of {len(outputs)} images", len(target))
    overlaps = []
    for (boxes, scores), truth in zip(outputs, target):
        check_tensor("scores", scores, floating=True, shape=(len(boxes),))
        overlaps.append(box_iou(boxes, truth))
    wanted = sum(len(truth) for truth in target)
    ranked = sorted(
        ((float(s), image, place) for image, (_, scores) in enumerate(outputs) for place, s in enumerate(scores)),
        key=lambda item: -item[0],
    )
    free = [torch.ones(len(truth), dtype=torch.bool) for truth in target]
    hits = np.zeros(len(ranked))
    for rank, (_, image, place) in enumerate(ranked):
        row = torch.where(free[image], overlaps[image][place].cpu(), -1.0)
        if row.numel() and float(row.max()) >= threshold:
            free[image][int(row.argmax())] = False
            hits[rank] = 1
    if not wanted or not len(ranked):
        return float("nan") if not wanted else 0.0
    hits_so_far = hits.cumsum()
    best = np.maximum.accumulate((hits_so_far / np.arange(1, len(hits) + 1))[::-1])[::-1]
    return float((best * hits).sum() / wanted)


@metric(
    DETECTION, "mean AP over classes and IoU thresholds", "[0, 1]", True, lambda g: ([_images(g)[0]], [_images(g)[1]])
)
def mean_average_precision(
    outputs: Sequence[Sequence[tuple[Tensor, Tensor]]],
    target: Sequence[Sequence[Tensor]],
    *,
    thresholds: Sequence[float] = tuple(round(0.5 + 0.05 * i, 2) for i in range(10)),
) -> float:
    """mAP of classes: for each one what :func:`average_precision` takes; classes without a true box don't count."""
    if len(outputs) != len(target):
        refuse("target", f"{len(outputs)} classes, as outputs", len(target))
    values = [average_precision(o, t, threshold=x) for o, t in zip(outputs, target) for x in thresholds]
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _maps(g: torch.Generator) -> tuple[Any, ...]:
    return tuple(torch.randint(2, (2, 6, 6), generator=g) for _ in range(2))


def _two_maps(outputs: Tensor, target: Tensor, ndim: int | None = None) -> None:
    check_tensor("outputs", outputs, ndim=ndim, floating=False)
    check_tensor("target", target, floating=False, shape=tuple(outputs.shape))


@metric(SEGMENTATION, "share of pixels that are right", "[0, 1]", True, _maps)
def pixel_accuracy(outputs: Tensor, target: Tensor) -> float:
    """Accuracy of class maps."""
    _two_maps(outputs, target)
    return float((outputs == target).double().mean())


@metric(SEGMENTATION, "mean over classes of TP / (TP + FP + FN)", "[0, 1]", True, _maps)
def mean_iou(outputs: Tensor, target: Tensor, *, num_classes: int = 2) -> float:
    """IoU of class maps, in the mean over the classes that occur in either."""
    check_number("num_classes", num_classes, low=1, integer=True)
    _two_maps(outputs, target)
    for argument, value in (("outputs", outputs), ("target", target)):
        check_range(argument, value, 0, num_classes - 1)
    table = confusion_matrix(outputs.flatten(), target.flatten(), num_classes=num_classes).double()
    either = table.sum(0) + table.sum(1) - table.diag()
    return float((table.diag() / either)[either > 0].mean())


@metric(SEGMENTATION, "2 TP / (2 TP + FP + FN)", "[0, 1]", True, _maps)
def dice_score(outputs: Tensor, target: Tensor) -> float:
    """Dice coefficient of masks in {0, 1}; 1 where both are empty."""
    _two_maps(outputs, target)
    check_binary(outputs, target, argument="outputs")
    check_binary(target, outputs)
    size = float(outputs.sum() + target.sum())
    return 2 * float((outputs * target).sum()) / size if size else 1.0


@metric(SEGMENTATION, "F1 of border pixels within a distance of each other", "[0, 1]", True, _maps)
def boundary_f1(outputs: Tensor, target: Tensor, *, tolerance: float = 2.0) -> float:
    """Boundary F1 of masks ``[N, H, W]`` in {0, 1}: the mean over images; 1 where neither has a border."""
    from scipy.ndimage import binary_erosion, distance_transform_edt

    check_number("tolerance", tolerance, low=0.0)
    _two_maps(outputs, target, 3)
    check_binary(outputs, target, argument="outputs")
    check_binary(target, outputs)
    scores = []
    for masks in zip(*(m.cpu().numpy().astype(bool) for m in (outputs, target))):
        borders = [m & ~binary_erosion(m) for m in masks]
        if not any(b.any() for b in borders):
            scores.append(1.0)
        elif not all(b.any() for b in borders):
            scores.append(0.0)
        else:
            near = [float((distance_transform_edt(~opposite)[own] <= tolerance).mean())
                    for own, opposite in (borders, borders[::-1])]  # fmt: skip
            scores.append(2 * near[0] * near[1] / sum(near) if sum(near) else 0.0)
    return float(np.mean(scores))


def _roc(outputs: Tensor, target: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Rates of false and of true positives; none where the labels are all of one kind."""
    y, scores = _scores(outputs, target)
    if len(np.unique(y)) < 2:
        return np.empty(0), np.empty(0)
    false, true, _ = sk.roc_curve(y, scores, drop_intermediate=False)
    return false, true


@metric(FACES, "share of genuine pairs accepted where far of the impostors are", "[0, 1]", True, chances_and_bits(12))
def verification_rate(outputs: Tensor, target: Tensor, *, far: float = 0.001) -> float:
    """Genuine pairs accepted at a false accept rate of at most ``far``: scores ``[N]``, 1 for genuine pairs.

    NaN without pairs of either kind.
    """
    check_number("far", far, low=0.0, high=1.0)
    false, true = _roc(outputs, target)
    return float(true[false <= far].max()) if len(true) else float("nan")


@metric(FACES, "the rate at which false accepts and false rejects are equal", "[0, 1]", False, chances_and_bits(12))
def equal_error_rate(outputs: Tensor, target: Tensor) -> float:
    """Equal error rate of scores ``[N]``, between the points of the ROC curve by a line; NaN with one kind of pairs."""
    false, true = _roc(outputs, target)
    if not len(true):
        return float("nan")
    gap = false - (1 - true)  # rises from -1 to 1
    place = int(np.argmax(gap >= 0))
    if gap[place] == 0 or place == 0:
        return float(false[place])
    share = -gap[place - 1] / (gap[place] - gap[place - 1])
    return float(false[place - 1] + share * (false[place] - false[place - 1]))


def _lists(g: torch.Generator) -> tuple[Any, ...]:
    scores = torch.randn(4, 6, generator=g, dtype=torch.float64)
    return scores, torch.eye(6, dtype=torch.long)[:4]


def _two_lists(outputs: Tensor, target: Tensor) -> None:
    check_tensor("outputs", outputs, ndim=2, floating=True)
    check_tensor("target", target, shape=tuple(outputs.shape))


@metric(RANKING, "mean of 1 / rank of the first relevant item", "[0, 1]", True, _lists)
def mrr(outputs: Tensor, target: Tensor) -> float:
    """Mean reciprocal rank of scores ``[N, L]`` with relevances in {0, 1}; a list without a relevant item counts 0."""
    _two_lists(outputs, target)
    check_binary(target, outputs)
    order = outputs.argsort(dim=-1, descending=True, stable=True)
    hit = target.gather(1, order) == 1
    first = hit.long().argmax(-1) + 1
    return _where_known(torch.where(hit.any(-1), 1 / first.double(), 0.0), outputs)


@metric(RANKING, "DCG / ideal DCG, gains y, discounts log2(rank + 1)", "[0, 1]", True, _lists)
def ndcg(outputs: Tensor, target: Tensor, *, k: int | None = None) -> float:
    """NDCG of scores ``[N, L]`` with relevances >= 0, tied scores averaged."""
    _two_lists(outputs, target)
    scores, y = _numbers(outputs, target)
    return float(sk.ndcg_score(y, scores, k=k))
