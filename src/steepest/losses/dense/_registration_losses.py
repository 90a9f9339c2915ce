"""Terms of image registration: similarity of images, overlap of label maps, roughness of a displacement."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as nnf
from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import check_binary, check_interval, check_number, check_tensor, refuse
from ...core.confusion import soft_counts
from ...core.reductions import widen

ROUNDING = 1e-3
"""How far warped labels may lie outside [0, 1]: interpolation in half precision rounds."""


def ncc_loss(warped: F[Tensor, "batch channels *space"], fixed: F[Tensor, "batch channels *space"]) -> Tensor:
    r"""One minus the correlation of two images over all their cells, averaged over the batch.

    .. math:: L = 1 - \frac{\langle F - \bar F, W - \bar W\rangle}{\|F - \bar F\| \, \|W - \bar W\|}

    It doesn't change when the intensities of an image are scaled by a positive number and shifted. The authors' code
    divides by the norms of the images as they are, not of the centred ones: no correlation, and a shift changes it. An
    image of one intensity (up to rounding) correlates with nothing: loss 1, no gradient.

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
    even = [n <= rounding * torch.linalg.vector_norm(x.detach(), dim=1) for n, x in zip(norms, both)]
    product, nothing = norms[0] * norms[1], even[0] | even[1]
    correlation = (centred[0] * centred[1]).sum(1) / torch.where(nothing, 1.0, product)
    return (1 - torch.where(nothing, 0.0, correlation)).mean()


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

    with means, variances and covariances over each window, every cell weighing the same. The authors' code sets windows
    of 32 cells side by side; here they overlap, one at every cell.

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

    A label that an image doesn't have takes the largest weight of those it has, or 1 where it has none. In the authors'
    code its weight is 0, and to find it costs nothing.

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

    .. math:: L = \operatorname*{mean}_{b, l} \frac{1}{|\Omega|} \sum_{k=1}^{K} k^2 \sum_{x \in \Omega}
        \operatorname{erode}^k(d)(x), \qquad d = (P - Y)^2,

        \operatorname{erode}(e)(x) = \max\Bigl(0, 2 \operatorname*{mean}_{y \in N(x)} \min(e(y), t(x)) - t(x)\Bigr),
        \qquad t(x) = \operatorname*{median}_{y \in N(x)} d(y)

    N(x) is a cell with its neighbours across faces, those outside the image being 0. Of hard maps t is 1 where most of
    N(x) is wrong, and an erosion is twice the mean less 1: what is thinner than 2k cells or so is gone after k of them.
    The level t carries that over to soft maps: of errors alike the loss is that of hard maps times their square. (An
    absolute threshold of 1/2 takes errors of less than 0.7 for none, and in the authors' code leaves no gradient.) The
    level is a constant to the gradient, which thus never points away from Y.

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
    cells = (p - y).square()
    level = torch.stack(_around(cells.detach())).median(0).values
    total = torch.zeros_like(cells)
    for k in range(1, erosions + 1):
        around = _around(cells)
        capped = functools.reduce(torch.add, [torch.minimum(cell, level) for cell in around])
        cells = (2 * capped / len(around) - level).clamp_min(0)
        total = total + k**2 * cells
    return total.mean()


def _around(cells: Tensor) -> list[Tensor]:
    """The cells ``[B, L, ...]`` and, of each, the neighbours across its faces; 0 outside the image."""
    neighbours = [cells]
    for axis, length in enumerate(cells.shape[2:], 2):
        edges = [0, 0] * (cells.ndim - 1 - axis) + [1, 1]
        padded = nnf.pad(cells, edges)
        neighbours += [padded.narrow(axis, start, length) for start in (0, 2)]
    return neighbours


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
    check_interval("outputs", p, 0.0, 1.0, rounding=ROUNDING)
    return p, target.to(p.dtype)
