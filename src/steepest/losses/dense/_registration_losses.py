"""Terms of image registration: similarity of images, overlap of label maps, roughness of a displacement."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import check_binary, check_number, check_tensor, refuse, values_visible
from ...core.confusion import soft_counts
from ...core.reductions import widen

ROUNDING = 1e-3
"""How far warped labels may lie outside [0, 1]: interpolation in half precision rounds."""


def ncc_loss(warped: F[Tensor, "batch channels *space"], fixed: F[Tensor, "batch channels *space"]) -> Tensor:
    r"""One minus the correlation of two images over all their cells, averaged over the batch.

    .. math:: L = 1 - \frac{\langle F - \bar F, W - \bar W\rangle}{\|F - \bar F\| \, \|W - \bar W\|}

    It doesn't change when the intensities of an image are scaled by a positive number and shifted. An image of one
    intensity (up to rounding) correlates with nothing: loss 1, no gradient.

    Args:
        warped: W, ``[B, C, H, W]`` or ``[B, C, H, W, D]``.
        fixed: F, of the same shape.

    Returns:
        A scalar in [0, 2], in float32 or wider; NaN of an empty batch.

    Raises:
        ValueError: other shapes.
        TypeError: not floating tensors.

    Example:
        >>> fixed = torch.tensor([1.0, 2.0, 3.0, 5.0]).view(1, 1, 2, 2)
        >>> ncc_loss(torch.tensor([2.0, 2.0, 4.0, 7.0]).view(1, 1, 2, 2), fixed)
        tensor(0.0294)

    Source: Learning deep abdominal CT registration through adaptive loss weighting and synthetic data generation,
    doi 10.1371/journal.pone.0282110.
    """
    both = [image.flatten(1) for image in _pair(warped, fixed)]
    if not both[0].numel():
        return both[0].mean()
    centred = [image - image.mean(1, keepdim=True) for image in both]
    norms = [torch.linalg.vector_norm(image, dim=1) for image in centred]
    rounding = 8 * torch.finfo(both[0].dtype).eps
    varies = [n > rounding * torch.linalg.vector_norm(x.detach(), dim=1) for n, x in zip(norms, both)]
    product, known = norms[0] * norms[1], varies[0] & varies[1]
    correlation = (centred[0] * centred[1]).sum(1) / torch.where(known, product, 1.0)
    return (1 - torch.where(known, correlation, 0.0)).mean()


def ssim_loss(
    warped: F[Tensor, "batch channels *space"],
    fixed: F[Tensor, "batch channels *space"],
    *,
    window: int = 5,
    data_range: float = 1.0,
    k1: float = 0.01,
    k2: float = 0.03,
) -> Tensor:
    r"""Structural dissimilarity, over all windows that lie inside the images.

    .. math:: L = \frac{1 - \text{SSIM}}{2}, \qquad \text{SSIM} = \operatorname*{mean}_{\text{windows}}
        \frac{(2 \mu_F \mu_W + c_1)(2 \sigma_{FW} + c_2)}{(\mu_F^2 + \mu_W^2 + c_1)(\sigma_F^2 + \sigma_W^2 + c_2)},
        \qquad c_i = (k_i R)^2

    with means, variances and covariances over each window, every cell weighing the same.

    Args:
        warped: W, ``[B, C, H, W]`` or ``[B, C, H, W, D]``.
        fixed: F, of the same shape.
        window: side of a window, >= 1 and no larger than the images.
        data_range: R, the span of intensities, > 0.
        k1, k2: stabilisers of the means and of the variances, > 0.

    Returns:
        A scalar in [0, 1], in float32 or wider; NaN of an empty batch.

    Raises:
        ValueError: other shapes, a window larger than the images, numbers outside their range.
        TypeError: not floating tensors.

    Example:
        >>> image = torch.linspace(0, 1, 36).view(1, 1, 6, 6)
        >>> ssim_loss(image, image), ssim_loss(1 - image, image)
        (tensor(0.), tensor(0.9638))

    Source: Learning deep abdominal CT registration through adaptive loss weighting and synthetic data generation,
    doi 10.1371/journal.pone.0282110.
    """
    for name, value in (("data_range", data_range), ("k1", k1), ("k2", k2)):
        check_number(name, value, low=0.0, open_low=True)
    check_number("window", window, low=1, integer=True)
    w, f = _pair(warped, fixed)
    if min(w.shape[2:]) < window:
        refuse("warped", f"at least {window} cells along each axis, the window", warped)
    if not w.numel():
        return w.mean()
    pool = nnf.avg_pool2d if w.ndim == 4 else nnf.avg_pool3d
    # second moments about an intensity near both images lose fewer digits than about 0
    middle = f.detach().mean(tuple(range(2, f.ndim)), keepdim=True)
    low_w, low_f = w - middle, f - middle
    stacked = torch.cat([low_w, low_f, low_w * low_w, low_f * low_f, low_w * low_f], 1)
    mean_w, mean_f, square_w, square_f, product = pool(stacked, window, stride=1).chunk(5, 1)
    covariance = product - mean_w * mean_f
    variances = (square_w - mean_w * mean_w) + (square_f - mean_f * mean_f)
    mean_w, mean_f = mean_w + middle, mean_f + middle
    c1, c2 = (k1 * data_range) ** 2, (k2 * data_range) ** 2
    above = (2 * mean_w * mean_f + c1) * (2 * covariance + c2)
    below = (mean_w * mean_w + mean_f * mean_f + c1) * (variances + c2)
    return (1 - above / below).mean() / 2


def generalized_dice_loss(
    outputs: F[Tensor, "batch labels *space"], target: F[Tensor, "batch labels *space"], *, eps: float = 1e-6
) -> Tensor:
    r"""Overlap of soft label maps with rare labels counting as much as common ones, averaged over the batch.

    .. math:: L = 1 - \frac{2 \sum_l w_l \sum Y_l P_l + \epsilon}{\sum_l w_l (\sum Y_l + \sum P_l) + \epsilon},
        \qquad w_l = \frac{1}{(\sum Y_l)^2}

    A label that an image doesn't have takes the largest weight of those it has, or 1 where it has none.

    Args:
        outputs: P, probabilities or warped label maps in [0, 1], ``[B, L, H, W]`` or ``[B, L, H, W, D]``.
        target: Y, labels in {0, 1} of the same shape.
        eps: added above and below, >= 0: nothing to find and nothing found is no loss.

    Returns:
        A scalar in [0, 1], in float32 or wider; NaN of an empty batch.

    Raises:
        ValueError: other shapes, labels outside {0, 1}, outputs outside [0, 1], a negative ``eps``.
        TypeError: not tensors.

    Example:
        >>> p = torch.tensor([0.9, 0.8, 0.7, 0.4])
        >>> y = torch.tensor([1.0, 1.0, 1.0, 0.0])
        >>> two = [torch.stack([v, 1 - v]).view(1, 2, 2, 2) for v in (p, y)]
        >>> generalized_dice_loss(*two)
        tensor(0.3906)

    Source: Learning deep abdominal CT registration through adaptive loss weighting and synthetic data generation,
    doi 10.1371/journal.pone.0282110; the weights: arXiv:1707.03237.
    """
    check_number("eps", eps, low=0.0)
    p, y = _maps(outputs, target)
    if not p.numel():
        return p.mean()
    hit, missed, false, _ = soft_counts(p, y, tuple(range(2, p.ndim)))
    size = y.sum(tuple(range(2, y.ndim)))
    there = size > 0
    weight = torch.where(there, 1 / size.clamp_min(1).square(), 0.0)
    largest = weight.amax(1, keepdim=True)
    weight = torch.where(there, weight, torch.where(largest > 0, largest, 1.0))
    # the rarest label weighs 1, so that eps means the same whatever the size of the image
    weight = weight / weight.amax(1, keepdim=True)
    wrong = (weight * (missed + false)).sum(1)
    return (wrong / ((weight * (2 * hit + missed + false)).sum(1) + eps)).mean()


def hausdorff_erosion_loss(
    outputs: F[Tensor, "batch labels *space"], target: F[Tensor, "batch labels *space"], *, erosions: int = 10
) -> Tensor:
    r"""How thick the regions are where label maps disagree: an estimate of their Hausdorff distance.

    .. math:: L = \operatorname*{mean}_{b, l} \frac{1}{|\Omega|} \sum_{k=1}^{K} k^2 \sum_\Omega
        \operatorname{erode}^k\bigl((P - Y)^2\bigr), \qquad
        \operatorname{erode}(d) = \max(0, 2\, c * d - 1)

    c averages a cell with its neighbours across faces, those outside the image being 0. What is thinner than 2k cells
    or so is gone after k erosions.

    Args:
        outputs: P, probabilities or warped label maps in [0, 1], ``[B, L, H, W]`` or ``[B, L, H, W, D]``.
        target: Y, labels in {0, 1} of the same shape.
        erosions: K, >= 1.

    Returns:
        A scalar >= 0, in float32 or wider; NaN of an empty batch.

    Raises:
        ValueError: other shapes, labels outside {0, 1}, outputs outside [0, 1], ``erosions`` < 1.
        TypeError: not tensors.

    Example:
        >>> found, wanted = torch.zeros(2, 1, 1, 9, 9)
        >>> wanted[..., 2:7, 2:7] = 1
        >>> hausdorff_erosion_loss(found, wanted), hausdorff_erosion_loss(found, wanted, erosions=1)
        (tensor(0.8117), tensor(0.2099))

    Source: Learning deep abdominal CT registration through adaptive loss weighting and synthetic data generation,
    doi 10.1371/journal.pone.0282110; erosions: arXiv:1904.10030.
    """
    check_number("erosions", erosions, low=1, integer=True)
    p, y = _maps(outputs, target)
    if not p.numel():
        return p.mean()
    axes = p.ndim - 2
    cells = (p - y).square().flatten(0, 1).unsqueeze(1)
    cross = torch.zeros((3,) * axes, dtype=p.dtype, device=p.device)
    for axis in range(axes):
        cross[tuple(slice(None) if a == axis else 1 for a in range(axes))] = 1 / (2 * axes + 1)
    convolve = nnf.conv2d if axes == 2 else nnf.conv3d
    total = torch.zeros_like(cells)
    for k in range(1, erosions + 1):
        cells = (2 * convolve(cells, cross[None, None], padding=1) - 1).clamp_min(0)
        total = total + k**2 * cells
    return total.mean()


def smoothness_loss(displacement: F[Tensor, "batch axes *space"]) -> Tensor:
    r"""Mean squared forward difference of a displacement along each axis, averaged over the axes.

    .. math:: R = \frac1d \sum_{a=1}^{d} \operatorname{mean}\, \bigl(u(x + e_a) - u(x)\bigr)^2

    Args:
        displacement: u in cells, ``[B, 2, H, W]`` or ``[B, 3, H, W, D]``.

    Returns:
        A scalar >= 0, in float32 or wider; NaN of an empty batch.

    Raises:
        ValueError: another shape, an axis of fewer than 2 cells.
        TypeError: not a floating tensor.

    Example:
        >>> ramp = torch.arange(4.0).expand(1, 2, 4, 4)
        >>> smoothness_loss(ramp)
        tensor(0.5000)

    Source: Learning deep abdominal CT registration through adaptive loss weighting and synthetic data generation,
    doi 10.1371/journal.pone.0282110.
    """
    check_displacement(displacement)
    if min(displacement.shape[2:]) < 2:
        refuse("displacement", "at least 2 cells along each axis", displacement)
    u = widen(displacement)
    slopes = [u.diff(dim=axis).square().mean() for axis in range(2, u.ndim)]
    return torch.stack(slopes).mean()


def check_displacement(displacement: object, argument: str = "displacement") -> None:
    """Check a displacement ``[B, 2, H, W]`` or ``[B, 3, H, W, D]``."""
    check_tensor(argument, displacement, ndim=(4, 5), floating=True)
    assert isinstance(displacement, Tensor)
    if displacement.shape[1] != displacement.ndim - 2:
        refuse(argument, f"{displacement.ndim - 2} components in dimension 1, one for each axis", displacement)


def _pair(warped: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
    """Two images of one shape and type, float32 or wider."""
    check_tensor("warped", warped, ndim=(4, 5), floating=True)
    check_tensor("fixed", fixed, floating=True, shape=tuple(warped.shape))
    w, f = widen(warped), widen(fixed)
    wide = torch.promote_types(w.dtype, f.dtype)
    return w.to(wide), f.to(wide)


def _maps(outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Soft maps and labels of one shape and type, float32 or wider."""
    check_tensor("outputs", outputs, ndim=(4, 5), floating=True)
    check_binary(target, outputs)
    p = widen(outputs)
    if p.numel() and values_visible(p) and bool(((p < -ROUNDING) | (p > 1 + ROUNDING)).any()):
        refuse("outputs", "values in [0, 1]", [float(p.min()), float(p.max())])
    return p, target.to(p.dtype)
