"""The roughness index: how much the oscillation of a loss differs between random cuts through the weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float as F
from torch import Tensor, nn

from ...core.checks import check_choice, check_number, check_tensor, refuse, refuse_type
from ...core.displaced import length
from ...core.parameter_directions import closure_values, values_at
from ...core.reductions import widen
from .filter_normalized_landscape import filter_normalize_

NORMALIZE_TV = ("range", "length")


class RoughnessResult(NamedTuple):
    """The roughness of a loss around weights.

    Attributes:
        ri: standard deviation over mean of the normalised total variations, NaN where no cut varies.
        mean, std: of these, over the cuts that vary; the deviation is that of the population.
        variations: ``[M]``, one a cut; NaN where a cut does not vary.
        cuts: ``[M, points]``, the losses.
    """

    ri: Tensor
    mean: Tensor
    std: Tensor
    variations: Tensor
    cuts: Tensor


def normalized_total_variation(cuts: F[Tensor, "... points"], radius: float | None = None) -> F[Tensor, ...]:
    r"""The total variation of sampled curves in units of their range.

    .. math:: T = \frac{\sum_k |f_{k+1} - f_k|}{\max_k f_k - \min_k f_k} \ge 1

    It is 1 for a monotone curve, 2 for an even convex one over a symmetric interval, NaN for a constant one, and the
    same for every multiple of a curve plus a constant.

    Args:
        cuts: values at evenly spaced points, in the last dimension.
        radius: where given, the divisor is the interval's length, twice this, in place of the range; a constant curve
            has then 0.

    Returns:
        one number a curve, in float32 or wider.

    Raises:
        ValueError: fewer than two points, radius not above 0.

    Example:
        >>> s = torch.linspace(-1, 1, 2001, dtype=torch.float64)
        >>> normalized_total_variation(torch.stack([s ** 2, s]))
        tensor([2., 1.], dtype=torch.float64)

    Source: Roughness Index for Loss Landscapes of Neural Network Models of Partial Differential Equations,
    arXiv:2103.11069.
    """
    check_tensor("cuts", cuts, floating=True)
    if cuts.ndim == 0 or cuts.shape[-1] < 2:
        refuse("cuts", "at least 2 points in the last dimension", cuts)
    cuts = widen(cuts)
    total = cuts.diff(dim=-1).abs().sum(-1)
    if radius is not None:
        check_number("radius", radius, low=0.0, open_low=True)
        return total / (2 * radius)
    span = cuts.amax(-1) - cuts.amin(-1)
    return torch.where(span == 0, torch.nan, total / span)


def roughness_index(
    loss_fn: Callable[..., Any],
    params: nn.Module | Iterable[Tensor],
    directions: int = 100,
    radius: float = 1.0,
    points: int = 201,
    normalize: str = "unit",
    generator: torch.Generator | None = None,
    *,
    normalize_tv: str = "range",
    chunk: int | None = None,
) -> RoughnessResult:
    r"""The spread of the oscillation of a loss over random cuts through the weights, relative to its mean.

    .. math:: f_m(s) = L(\theta + s\, d_m), \quad s \in [-l, l], \qquad
        T_m = \frac{TV(f_m)}{\max f_m - \min f_m}, \qquad RI = \frac{\mathrm{sd}_m T_m}{\mathrm{mean}_m T_m}

    Directions have independent normal entries. At the minimizer of a quadratic every T is 2 and the index 0. A loss on
    batches that change adds variation of its own, which grows with the number of points: keep its points fixed. Draws
    of random numbers inside the loss are the same at all points. Parameters are afterwards what they were, bit for bit.

    The official code divides T by the interval's length too, which the index leaves out, and squares by M - 1, so that
    its index is larger by :math:`\sqrt{M / (M - 1)}`. Its directions are those of ``"filter"``, except that biases
    move along themselves.

    Args:
        loss_fn: ``loss_fn(model)`` where ``params`` is a model, evaluated at many points at once where it can be, else
            ``loss_fn()``, which uses the parameters.
        params: a model, or tensors.
        directions: M >= 1.
        radius: l > 0, in units of a direction.
        points: of a cut, odd, >= 3.
        normalize: ``"unit"``: length 1 over all parameters; ``"filter"`` or ``"layer"``: the scale of each filter or
            tensor of the weights, biases too.
        generator: of the directions; torch's own by default.
        normalize_tv: ``"range"``, or ``"length"``: the total variation per length of the interval; curves that
            rise more then count more.
        chunk: points at once, for a model.

    Returns:
        index, mean and deviation, and what they are made of. Cuts that don't vary are left out, with a warning.

    Raises:
        ValueError: numbers outside their ranges, no parameters.

    Example:
        >>> w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        >>> result = roughness_index(lambda: (w ** 2).sum(), [w], directions=5, points=21)
        >>> round(float(result.mean), 6), round(float(result.ri), 6)
        (2.0, 0.0)

    Source: Roughness Index for Loss Landscapes of Neural Network Models of Partial Differential Equations,
    arXiv:2103.11069.
    """
    check_number("directions", directions, low=1, integer=True)
    check_number("radius", radius, low=0.0, open_low=True)
    check_number("points", points, low=3, integer=True)
    if points % 2 == 0:
        refuse("points", "an odd number", points)
    check_choice("normalize", normalize, ("unit", "filter", "layer"))
    check_choice("normalize_tv", normalize_tv, NORMALIZE_TV)
    if not callable(loss_fn):
        refuse_type("loss_fn", "a function", loss_fn)
    weights: list[Tensor] = list(params.parameters()) if isinstance(params, nn.Module) else list(params)
    if not weights:
        refuse("params", "at least one parameter", weights)
    half = points // 2
    places = torch.arange(-half, half + 1, dtype=torch.float64) * (radius / half)
    cuts = []
    for _ in range(directions):
        direction = _direction(weights, normalize, generator)
        if isinstance(params, nn.Module):
            training = params.training
            cuts.append(values_at(params, loss_fn, [direction], places[:, None], chunk=chunk, training=training))
        else:
            cuts.append(closure_values(loss_fn, weights, direction, places.tolist()))
    return _result(torch.stack(cuts), radius if normalize_tv == "length" else None)


def _result(cuts: Tensor, radius: float | None) -> RoughnessResult:
    variations = normalized_total_variation(cuts, radius)
    span = widen(cuts).amax(-1) - widen(cuts).amin(-1)
    variations = torch.where(span == 0, torch.nan, variations)
    constant = int((span == 0).sum())
    if constant:
        warnings.warn(f"{constant} of {len(cuts)} cuts don't vary and are left out", stacklevel=3)
    varying = variations[span != 0]
    mean, std = varying.mean(), varying.std(correction=0) if len(varying) else varying.mean()
    return RoughnessResult(std / mean, mean, std, variations, cuts)


def _direction(weights: list[Tensor], normalize: str, generator: torch.Generator | None) -> list[Tensor]:
    """Normal entries, of length 1 in all or of the weights' scale."""
    device = "cpu" if generator is None else generator.device
    direction = [
        torch.randn(w.shape, generator=generator, dtype=widen(w).dtype, device=device).to(w.device) for w in weights
    ]
    if normalize == "unit":
        whole = length(direction)
        return [d / whole.to(d) for d in direction]
    filter_normalize_(direction, weights, normalize, ignore=None)
    return direction
