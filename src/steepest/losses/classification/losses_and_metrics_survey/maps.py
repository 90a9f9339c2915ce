"""Losses of boxes, segmentation maps, depth and generated images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from jaxtyping import Float as F
from torch import Tensor

from ....core.checks import (
    check_binary,
    check_domain,
    check_number,
    check_range,
    check_tensor,
    refuse,
    values_visible,
)
from ....core.reductions import widen
from .cards import chances_and_bits, check_boxes, logits_and_bits, logits_and_index, loss, normal, pair, positive

DETECTION, SEGMENTATION, DEPTH, IMAGES = "detection", "segmentation", "depth", "image generation"
_TRUTH = "the truth"
Boxes = F[Tensor, "boxes 4"]


def _boxes(g: torch.Generator) -> tuple[Any, ...]:
    corner = torch.rand(5, 4, generator=g, dtype=torch.float64)
    first = torch.cat([corner[:, :2], corner[:, :2] + 1 + corner[:, 2:]], 1)
    return first, first + 0.3 * torch.randn(5, 4, generator=g, dtype=torch.float64)


@loss(DETECTION, "e^2 / (2 beta) for |e| < beta, else |e| - beta/2", ">= 0", "between mean and median", True,
      normal(5, 4), outliers=True)  # fmt: skip
def smooth_l1(outputs: Tensor, target: Tensor, *, beta: float = 1.0) -> Tensor:
    """Smooth L1 loss of coordinates: Huber's loss over beta."""
    check_number("beta", beta, low=0.0, open_low=True)
    return nnf.smooth_l1_loss(*pair(outputs, target), beta=beta)


def _overlap(outputs: Boxes, target: Boxes) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Boxes, their IoU, union and the sides of the box around both."""
    check_tensor("outputs", outputs, shape=(None, 4))
    a, b = pair(outputs, target)
    check_boxes("outputs", a)
    check_boxes("target", b)
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    shared = (high - low).clamp_min(0).prod(-1)
    union = (a[:, 2:] - a[:, :2]).prod(-1) + (b[:, 2:] - b[:, :2]).prod(-1) - shared
    around = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
    return a, b, shared / union, union, around


def _centres(a: Tensor, b: Tensor, around: Tensor) -> Tensor:
    apart = (a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:]) / 2
    return apart.square().sum(-1) / around.square().sum(-1)


@loss(DETECTION, "1 - IoU", "[0, 1]", _TRUTH, False, _boxes)
def iou(outputs: Boxes, target: Boxes) -> Tensor:
    """IoU loss of boxes x1, y1, x2, y2 with positive sides; no gradient where they don't meet."""
    return (1 - _overlap(outputs, target)[2]).mean()


@loss(DETECTION, "1 - IoU + |C minus union| / |C|, C the box around both", "[0, 2]", _TRUTH, False, _boxes)
def giou(outputs: Boxes, target: Boxes) -> Tensor:
    """Generalised IoU loss."""
    _, _, ratio, union, around = _overlap(outputs, target)
    hull = around.prod(-1)
    return (1 - ratio + (hull - union) / hull).mean()


@loss(DETECTION, "1 - IoU + |centres' difference|^2 / diag(C)^2", "[0, 2]", _TRUTH, False, _boxes)
def diou(outputs: Boxes, target: Boxes) -> Tensor:
    """Distance IoU loss."""
    a, b, ratio, _, around = _overlap(outputs, target)
    return (1 - ratio + _centres(a, b, around)).mean()


@loss(DETECTION, "DIoU loss + alpha v, v = (4/pi^2) (arctan w/h - arctan w'/h')^2, alpha = v / (1 - IoU + v)", ">= 0",
      _TRUTH, False, _boxes, gradient="surrogate")  # fmt: skip
def ciou(outputs: Boxes, target: Boxes) -> Tensor:
    """Complete IoU loss; alpha is held fixed in the gradient, as in its paper."""
    a, b, ratio, _, around = _overlap(outputs, target)
    angle = [torch.atan2(x[:, 2] - x[:, 0], x[:, 3] - x[:, 1]) for x in (a, b)]
    v = 4 / math.pi**2 * (angle[0] - angle[1]).square()
    below = (1 - ratio + v).detach()
    alpha = torch.where(below > 0, v.detach() / torch.where(below > 0, below, 1.0), 0.0)
    return (1 - ratio + _centres(a, b, around) + alpha * v).mean()


@loss(SEGMENTATION, "-log p_y of each pixel", ">= 0", "log P(y), up to a constant", True, logits_and_index(2, 3, 4, 4))
def pixel_cross_entropy(outputs: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of logits ``[N, C, ...]`` with class maps ``[N, ...]``."""
    check_tensor("outputs", outputs, floating=True)
    if outputs.ndim < 3:
        refuse("outputs", "logits [N, C, ...] of maps", outputs)
    check_tensor("target", target, floating=False, shape=(outputs.shape[0], *outputs.shape[2:]))
    check_range("target", target, 0, outputs.shape[1] - 1)
    return nnf.cross_entropy(widen(outputs), target.long())


def _counts(outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Soft TP, FP and FN of probabilities, over all pixels of the batch."""
    check_tensor("outputs", outputs, floating=True)
    check_binary(target, outputs)
    p, y = pair(outputs, target)
    check_domain("outputs", p, "probabilities")
    return (p * y).sum(), (p * (1 - y)).sum(), ((1 - p) * y).sum()


def _missing(part: Tensor, whole: Tensor) -> Tensor:
    # nothing wanted and nothing found is no error; NaN is not nothing
    nothing = whole == 0
    return torch.where(nothing, 0.0, 1 - part / torch.where(nothing, 1.0, whole))


@loss(SEGMENTATION, "1 - 2 TP / (2 TP + FP + FN), soft counts", "[0, 1]", "a mask cut at a level", False,
      chances_and_bits(2, 4, 4), imbalance=True)  # fmt: skip
def dice(outputs: Tensor, target: Tensor) -> Tensor:
    """Dice loss of probabilities over the batch, without smoothing; 0 where both are empty."""
    tp, fp, fn = _counts(outputs, target)
    return _missing(2 * tp, 2 * tp + fp + fn)


@loss(SEGMENTATION, "1 - TP / (TP + FP + FN), soft counts", "[0, 1]", "a mask cut at a level", False,
      chances_and_bits(2, 4, 4), imbalance=True)  # fmt: skip
def jaccard(outputs: Tensor, target: Tensor) -> Tensor:
    """Jaccard (soft IoU) loss of probabilities."""
    tp, fp, fn = _counts(outputs, target)
    return _missing(tp, tp + fp + fn)


@loss(SEGMENTATION, "1 - TP / (TP + a FP + b FN), soft counts", "[0, 1]", "a mask cut at a level", False,
      chances_and_bits(2, 4, 4), imbalance=True)  # fmt: skip
def tversky(outputs: Tensor, target: Tensor, *, alpha: float = 0.3, beta: float = 0.7) -> Tensor:
    """Tversky loss of probabilities: alpha weighs false positives, beta false negatives."""
    check_number("alpha", alpha, low=0.0)
    check_number("beta", beta, low=0.0)
    tp, fp, fn = _counts(outputs, target)
    return _missing(tp, tp + alpha * fp + beta * fn)


@loss(SEGMENTATION, "(Tversky loss)^g", "[0, 1]", "a mask cut at a level", False, chances_and_bits(2, 4, 4),
      imbalance=True)  # fmt: skip
def focal_tversky(
    outputs: Tensor, target: Tensor, *, alpha: float = 0.3, beta: float = 0.7, gamma: float = 0.75
) -> Tensor:
    """Focal Tversky loss; its slope is infinite at 0 for gamma below 1."""
    check_number("gamma", gamma, low=0.0, open_low=True)
    return tversky(outputs, target, alpha=alpha, beta=beta) ** gamma


@loss(SEGMENTATION, "convex extension of the Jaccard loss at the hinge errors", ">= 0", "the sign of the best mask",
      True, logits_and_bits(2, 4, 4), imbalance=True)  # fmt: skip
def lovasz(outputs: Tensor, target: Tensor) -> Tensor:
    """Lovasz hinge of logits, over all pixels of the batch."""
    check_tensor("outputs", outputs, floating=True)
    check_binary(target, outputs)
    f, y = (t.flatten() for t in pair(outputs, target))
    error, order = (1 - (2 * y - 1) * f).sort(descending=True)
    wanted = y[order]
    union = wanted.sum() + (1 - wanted).cumsum(0)
    index = 1 - (wanted.sum() - wanted.cumsum(0)) / union.clamp_min(1)
    steps = torch.cat([index[:1], index[1:] - index[:-1]])
    return (nnf.relu(error) * steps).sum()


def signed_distance(mask: Tensor) -> Tensor:
    """Distance of each pixel to the border of its mask ``[N, H, W]``, negative inside; 0 for an empty or full one."""
    from scipy.ndimage import distance_transform_edt

    distances = []
    for inside in mask.detach().cpu().numpy().astype(bool):
        if not inside.any() or inside.all():
            distances.append(np.zeros(inside.shape))
        else:
            distances.append(distance_transform_edt(~inside) - (distance_transform_edt(inside) - 1) * inside)
    return torch.from_numpy(np.stack(distances)).to(mask.device)


@loss(SEGMENTATION, "mean of p phi, phi the signed distance to the border of y", "any real", "the mask of y", True,
      chances_and_bits(2, 5, 5))  # fmt: skip
def boundary(outputs: Tensor, target: Tensor) -> Tensor:
    """Boundary loss of probabilities ``[N, H, W]``: mass far outside the mask costs most."""
    check_tensor("outputs", outputs, ndim=3, floating=True)
    check_binary(target, outputs)
    p, _ = pair(outputs, target)
    check_domain("outputs", p, "probabilities")
    return (p * signed_distance(target).to(p.dtype)).mean()


@loss(DEPTH, "mean d^2 - lam (mean d)^2, d = log f - log y", ">= 0", "the geometric mean of y", False, positive(6))
def scale_invariant_log(outputs: Tensor, target: Tensor, *, lam: float = 0.5) -> Tensor:
    """Scale-invariant log error of depths > 0; with lam = 1 a common factor costs nothing."""
    check_number("lam", lam, low=0.0, high=1.0)
    outputs, target = pair(outputs, target)
    for argument, value in (("outputs", outputs), ("target", target)):
        if value.numel() and values_visible(value) and bool((value <= 0).any()):
            refuse(argument, "depths > 0", float(value.min()))
    d = outputs.log() - target.log()
    return d.square().mean() - lam * d.mean().square()


@loss(IMAGES, "softplus(-D(real)) + softplus(D(fake))", ">= 0", "log(p_real / p_fake)", True, normal(6))
def adversarial(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss of its logits of real and generated images."""
    check_tensor("real", real, floating=True)
    check_tensor("fake", fake, floating=True)
    return nnf.softplus(-widen(real)).mean() + nnf.softplus(widen(fake)).mean()


@loss(IMAGES, "softplus(-D(fake))", ">= 0", "fakes that pass for real", True, lambda g: normal(6)(g)[:1])
def adversarial_generator(fake: Tensor) -> Tensor:
    """The generator's non-saturating loss of the discriminator's logits."""
    check_tensor("fake", fake, floating=True)
    return nnf.softplus(-widen(fake)).mean()


@loss(IMAGES, "D(fake) - D(real)", "any real", "unbounded unless D is 1-Lipschitz", True, normal(6))
def wasserstein(real: Tensor, fake: Tensor) -> Tensor:
    """The critic's Wasserstein loss; the generator's is minus the mean of D(fake)."""
    check_tensor("real", real, floating=True)
    check_tensor("fake", fake, floating=True)
    return widen(fake).mean() - widen(real).mean()


@loss(IMAGES, "|x - f|^p", ">= 0", "mean (p = 2) or median (p = 1) of x", True, normal(2, 3))
def reconstruction(outputs: Tensor, target: Tensor, *, p: int = 1) -> Tensor:
    """Mean absolute (p = 1) or squared (p = 2) error of pixels."""
    if p not in (1, 2):
        refuse("p", "1 or 2", p)
    outputs, target = pair(outputs, target)
    return nnf.l1_loss(outputs, target) if p == 1 else nnf.mse_loss(outputs, target)


def _layers(g: torch.Generator) -> tuple[Any, ...]:
    first, second = normal(2, 3)(g), normal(2, 5)(g)
    return [first[0], second[0]], [first[1], second[1]]


@loss(IMAGES, "sum over layers of the mean squared difference of features", ">= 0", "equal features", None, _layers)
def perceptual(outputs: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """Perceptual loss of the features that a fixed network gives two images, a list of layers each."""
    if not len(outputs) or len(outputs) != len(target):
        refuse("target", f"{len(outputs)} layers, as outputs, and at least one", len(target))
    return torch.stack([nnf.mse_loss(*pair(a, b)) for a, b in zip(outputs, target)]).sum()


def _latent(g: torch.Generator) -> tuple[Any, ...]:
    return *normal(4, 5)(g), *normal(4, 2)(g)


@loss(IMAGES, "sum (x - f)^2 / 2 + beta KL(N(mu, e^v) || N(0, 1))", ">= 0", "the posterior, for a rich encoder", True,
      _latent)  # fmt: skip
def vae_elbo(outputs: Tensor, target: Tensor, mu: Tensor, log_var: Tensor, *, beta: float = 1.0) -> Tensor:
    """Negative evidence bound of a variational auto-encoder with unit Gaussian pixels, up to a constant."""
    check_number("beta", beta, low=0.0)
    f, x = pair(outputs, target)
    m, v = pair(mu, log_var)
    if len(m) != len(f):
        refuse("mu", f"{len(f)} rows, as outputs", mu)
    divergence = (m.square() + v.exp() - 1 - v).flatten(1).sum(1) / 2
    return ((f - x).square().flatten(1).sum(1) / 2 + beta * divergence).mean()
