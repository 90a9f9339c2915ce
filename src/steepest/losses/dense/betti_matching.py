"""Betti matching: components and holes of two maps compared where they are the same feature at the same place."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ...core.checks import check_binary, check_choice, check_number, check_tensor, refuse, values_visible
from ...core.loss import Loss, Sample
from ...core.reductions import widen
from ...core.terms import kept_terms
from ...core.transforms import on_host
from ._persistence import Matching, Stack, betti_numbers, matchings
from .dice import soft_dice_loss

FILTRATIONS = ("superlevel", "sublevel", "bothlevel")
COMPARISONS = ("union", "intersection")


class PersistenceBars(NamedTuple):
    """Bars of an image, of one entry each, by dimension and then the longest first.

    ``dim`` is 0 (components) or 1 (holes); ``birth`` and ``death`` are values of the image and carry its gradient;
    ``birth_pixel`` and ``death_pixel`` are the pixels, row times width plus column, that set them; -1 for the death of
    the component that never dies.
    """

    dim: Tensor
    birth: Tensor
    death: Tensor
    birth_pixel: Tensor
    death_pixel: Tensor


def cubical_persistence(img: Tensor, *, filtration: str = "superlevel") -> PersistenceBars:
    """Persistence of components and holes of an image, with the pixels that set each birth and death.

    Pixels are the vertices of a cubical complex; an edge or a square appears with its last pixel (so the foreground is
    joined by sides, the background by sides and corners). In superlevel sets bright pixels come first. Of equal pixels
    the later one in reading order comes first. Bars of length 0 are left out.

    Args:
        img: ``[H, W]``, at least one pixel.
        filtration: ``"superlevel"`` or ``"sublevel"``.

    Returns:
        Bars; the component that never dies has death 0 (superlevel) or 1 (sublevel).

    Raises:
        ValueError: another number of dimensions, no pixel, an unknown filtration.
        TypeError: no floating tensor.

    Example:
        >>> img = torch.tensor([[0.9, 0.8, 0.9], [0.8, 0.2, 0.7], [0.9, 0.8, 0.9]])
        >>> bars = cubical_persistence(img)
        >>> [(d, round(b, 1), round(e, 1)) for d, b, e in zip(*(part.tolist() for part in bars[:3]))]
        [(0, 0.9, 0.0), (0, 0.9, 0.8), (0, 0.9, 0.8), (0, 0.9, 0.8), (1, 0.7, 0.2)]
        >>> bars.birth_pixel[-1].item(), bars.death_pixel[-1].item()
        (5, 4)

    Source: Topologically faithful image segmentation via induced matching of persistence barcodes, arXiv:2211.15272.
    """
    check_choice("filtration", filtration, FILTRATIONS[:2])
    check_tensor("img", img, ndim=2, floating=True)
    if not img.numel():
        refuse("img", "at least one pixel", img)
    sign = 1 if filtration == "superlevel" else -1
    values = widen(img)
    stack = Stack(sign * on_host(values)[None])
    parts = [(0, stack.order[:, 0], np.full(1, -1))]
    for number in (0, 1):
        bars = stack.bars(number)
        longest = np.argsort(stack.values[0, bars.death] - stack.values[0, bars.birth], kind="stable")
        parts.append((number, bars.birth[longest], bars.death[longest]))
    dims = np.repeat([number for number, *_ in parts], [len(birth) for _, birth, _ in parts])
    dim, birth_pixel, death_pixel = (
        torch.as_tensor(column, device=img.device)
        for column in (dims, *(np.concatenate([bars_of[i] for bars_of in parts]) for i in (1, 2)))
    )
    flat = values.reshape(-1)
    never = 0.0 if sign > 0 else 1.0
    death = torch.where(death_pixel < 0, never, flat[death_pixel.clamp_min(0)])
    return PersistenceBars(dim, flat[birth_pixel], death, birth_pixel, death_pixel)


def betti_matching_loss(
    outputs: Tensor,
    target: Tensor,
    *,
    filtration: str = "superlevel",
    comparison: str = "union",
    dims: Collection[int] = (0, 1),
    relative: bool = False,
    from_logits: bool = True,
) -> Tensor:
    r"""Squared differences of births and deaths of matched features, and squared lengths of all others.

    .. math:: L = \sum_{matched} 2 \left[(b_P - b_G)^2 + (d_P - d_G)^2\right] + \sum_{unmatched} (b - d)^2

    summed over dimensions, the mean over maps. Both maps go into their pointwise maximum M; a bar of the prediction P
    and one of the target G match if each lives on as the same bar of M, that is, if by image persistence it is born
    with the bar of P (G) and dies with that of M. The gradient reaches the pixels that set births and deaths, at most
    two for a bar; the matching is constant. The value jumps where the matching changes. The components that never die
    are matched.

    Args:
        outputs: logits, or probabilities in [0, 1], ``[..., H, W]``: every map is compared on its own.
        target: the same shape, values in [0, 1], as a rule labels in {0, 1}.
        filtration: ``"superlevel"``, bright first; ``"sublevel"``, dark first; ``"bothlevel"``, the sum of both.
        comparison: M is the ``"union"`` (the larger sublevel or superlevel sets) or the ``"intersection"``.
        dims: 0 (components), 1 (holes) or both.
        relative: whether maps are first framed with ones (superlevel) or zeros (sublevel), so that the border closes
            holes.
        from_logits: whether outputs are logits.

    Returns:
        A scalar >= 0, in float32 or wider; NaN of no map, or where a value is NaN.

    Raises:
        ValueError: other shapes, maps without a pixel, values outside [0, 1], unknown options.
        TypeError: not tensors.

    Example:
        >>> p = torch.tensor([[[0.9, 0.9, 0.9, 0.1], [0.9, 0.2, 0.9, 0.1], [0.9, 0.9, 0.9, 0.6]]])
        >>> y = torch.tensor([[[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0]]])
        >>> betti_matching_loss(p, y, from_logits=False)
        tensor(0.1200)
        >>> betti_matching_loss(p, y, dims=(0,), from_logits=False)
        tensor(0.0200)

    Source: Topologically faithful image segmentation via induced matching of persistence barcodes, arXiv:2211.15272.
    """
    dims = _check_options(filtration, comparison, dims)
    p, t = _check_maps(outputs, target, from_logits)
    return torch.stack(_parts(p, t, filtration, comparison, dims, relative)).sum()


class BettiMatchingLoss(Loss):
    """Betti matching as a loss of maps; see :func:`betti_matching_loss`. ``terms`` holds the share of each dimension.

    Args:
        filtration: ``"superlevel"``, ``"sublevel"`` or ``"bothlevel"``.
        comparison: ``"union"`` or ``"intersection"``.
        dims: 0, 1 or both.
        relative: whether maps are framed first.
        from_logits: whether outputs are logits; else probabilities.

    Example:
        >>> ring = torch.tensor([[[[1.0, 1, 1], [1, 0, 1], [1, 1, 1]]]])
        >>> broken = torch.tensor([[[[1.0, 0, 1], [1, 0, 1], [1, 1, 1]]]])
        >>> BettiMatchingLoss(from_logits=False)(broken, ring)
        tensor(1.)
    """

    name = "betti_matching"

    def __init__(
        self,
        filtration: str = "superlevel",
        comparison: str = "union",
        dims: Collection[int] = (0, 1),
        *,
        relative: bool = False,
        from_logits: bool = True,
    ) -> None:
        super().__init__()
        self.dims = _check_options(filtration, comparison, dims)
        self.filtration, self.comparison = filtration, comparison
        self.relative, self.from_logits = bool(relative), bool(from_logits)

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The loss of outputs and labels of one shape ``[..., H, W]``."""
        p, t = _check_maps(outputs, target, self.from_logits)
        parts = _parts(p, t, self.filtration, self.comparison, self.dims, self.relative)
        self.terms = kept_terms({f"dim_{dim}": of_dimension for dim, of_dimension in zip(self.dims, parts)})
        return torch.stack(parts).sum()

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[BettiMatchingLoss, Sample]]:
        """Every option, labels of several types."""
        outputs = torch.randn(2, 1, 6, 5, generator=generator, dtype=torch.float64).to(device, dtype)
        target = torch.rand(2, 1, 6, 5, generator=generator) < 0.5
        kinds = target.long().to(device), target.to(device, dtype), target.to(device)
        hypers: tuple[dict[str, Any], ...] = (
            {},
            {"filtration": "sublevel", "comparison": "intersection"},
            {"filtration": "bothlevel", "dims": (1,), "relative": True},
        )
        return [(cls(**hyper), ((outputs, labels), {})) for hyper, labels in zip(hypers, kinds)]


class DiceBettiMatchingLoss(BettiMatchingLoss):
    r"""Dice and Betti matching together: what is where, and how it hangs together.

    .. math:: L = L_{Dice} + \alpha L_{Betti}

    both the mean over maps, the Dice coefficient of each map with 1e-5 added above and below. ``terms`` holds both and
    the share of each dimension, before the weight.

    Args:
        filtration: ``"superlevel"``, ``"sublevel"`` or ``"bothlevel"``.
        comparison: ``"union"`` or ``"intersection"``.
        dims: 0, 1 or both.
        alpha: weight of Betti matching, >= 0.
        relative: whether maps are framed first, for Betti matching.
        from_logits: whether outputs are logits; else probabilities.

    Example:
        >>> ring = torch.tensor([[[[1.0, 1, 1], [1, 0, 1], [1, 1, 1]]]])
        >>> broken = torch.tensor([[[[1.0, 0, 1], [1, 0, 1], [1, 1, 1]]]])
        >>> loss = DiceBettiMatchingLoss(from_logits=False)
        >>> loss(broken, ring), loss.terms["dice"]
        (tensor(0.5667), tensor(0.0667))

    Source: Topologically faithful image segmentation via induced matching of persistence barcodes, arXiv:2211.15272.
    """

    name = "dice_betti_matching"

    def __init__(
        self,
        filtration: str = "superlevel",
        comparison: str = "union",
        dims: Collection[int] = (0, 1),
        *,
        alpha: float = 0.5,
        relative: bool = False,
        from_logits: bool = True,
    ) -> None:
        super().__init__(filtration, comparison, dims, relative=relative, from_logits=from_logits)
        check_number("alpha", alpha, low=0.0)
        self.alpha = alpha

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The loss of outputs and labels of one shape ``[..., H, W]``; labels in {0, 1}."""
        betti = super().forward(outputs, target)
        maps = (maps_of.reshape(-1, maps_of.shape[-2] * maps_of.shape[-1]) for maps_of in (outputs, target))
        dice = soft_dice_loss(*maps, reduce="sample", eps=1e-5, from_logits=self.from_logits)
        self.terms = kept_terms({"dice": dice, "betti_matching": betti}) | self.terms
        return dice + self.alpha * betti


def betti_matching_error(
    pred_mask: Tensor,
    target_mask: Tensor,
    *,
    filtration: str = "superlevel",
    comparison: str = "union",
    dims: Collection[int] = (0, 1),
    relative: bool = False,
) -> Tensor:
    """How many components and holes of two masks have no partner in the other one.

    It is :func:`betti_matching_loss` of each pair of masks. The components that come first are partners wherever they
    lie; that a mask is empty and the other is not counts 2.

    Args:
        pred_mask: in {0, 1}, ``[..., H, W]``.
        target_mask: in {0, 1}, the same shape.
        filtration, comparison, dims, relative: as in :func:`betti_matching_loss`; ``"bothlevel"`` counts twice.

    Returns:
        int64 counts, one for each map, ``[...]``.

    Raises:
        ValueError: other shapes, maps without a pixel, values outside {0, 1}, unknown options.
        TypeError: not tensors.

    Example:
        >>> ring = torch.tensor([[0, 1, 1, 1, 0], [0, 1, 0, 1, 0], [0, 1, 1, 1, 0]])
        >>> betti_matching_error(ring, ring.roll(1, 1)), betti_number_error(ring, ring.roll(1, 1))
        (tensor(2), tensor(0))

    Source: Topologically faithful image segmentation via induced matching of persistence barcodes, arXiv:2211.15272.
    """
    dims = _check_options(filtration, comparison, dims)
    check_tensor("pred_mask", pred_mask)
    check_binary(pred_mask, pred_mask, argument="pred_mask")
    check_binary(target_mask, pred_mask, argument="target_mask")
    _check_size("pred_mask", pred_mask)
    p, t = (matching.detach().cpu().float().reshape(-1, *matching.shape[-2:]) for matching in (pred_mask, target_mask))
    unmatched = np.zeros(len(p), dtype=np.int64)
    for a, b, matching in _levels(p, t, filtration, comparison, dims, relative):
        pixels, (first, second) = a[0].numel(), matching.matched
        apart = (a.reshape(-1).numpy()[first] != b.reshape(-1).numpy()[second]).nonzero()[0]
        for places in (first[apart], first[apart], *(bars[:, 0] for bars in matching.unmatched)):
            unmatched += np.bincount(places // pixels, minlength=len(p))
    return torch.as_tensor(unmatched, device=pred_mask.device).reshape(pred_mask.shape[:-2])


def betti_number_error(pred: Tensor, target: Tensor, *, threshold: float = 0.5) -> Tensor:
    r"""Difference of the numbers of components and of holes, wherever they lie.

    .. math:: |b_0(P) - b_0(G)| + |b_1(P) - b_1(G)|

    Args:
        pred: masks or probabilities, ``[..., H, W]``.
        target: the same shape.
        threshold: pixels of at least this value are foreground (joined by sides; the background also by corners).

    Returns:
        int64 counts, one for each map, ``[...]``.

    Raises:
        ValueError: other shapes, maps without a pixel.
        TypeError: not tensors, no number.

    Example:
        >>> ring = torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 1]])
        >>> betti_number_error(ring, 1 - ring)
        tensor(1)
    """
    check_number("threshold", threshold)
    check_tensor("pred", pred)
    check_tensor("target", target, shape=tuple(pred.shape))
    _check_size("pred", pred)
    numbers = [betti_numbers((mask.detach() >= threshold).cpu().numpy()) for mask in (pred, target)]
    errors = np.abs(numbers[0] - numbers[1]).sum(0)
    return torch.as_tensor(errors, device=pred.device).reshape(pred.shape[:-2])


def _check_options(filtration: str, comparison: str, dims: Collection[int]) -> tuple[int, ...]:
    check_choice("filtration", filtration, FILTRATIONS)
    check_choice("comparison", comparison, COMPARISONS)
    dimensions = tuple(dims)
    if not dimensions or set(dimensions) - {0, 1} or len(set(dimensions)) < len(dimensions):
        refuse("dims", "0, 1 or both", dims)
    return dimensions


def _check_size(argument: str, maps: Tensor) -> None:
    if maps.ndim < 2 or not maps.shape[-1] or not maps.shape[-2]:
        refuse(argument, "maps [..., H, W] of at least one pixel", maps)


def _check_maps(outputs: Tensor, target: Tensor, from_logits: bool) -> tuple[Tensor, Tensor]:
    """Probabilities and labels, ``[maps, H, W]``."""
    check_tensor("outputs", outputs, floating=True)
    _check_size("outputs", outputs)
    check_tensor("target", target, shape=tuple(outputs.shape))
    p = widen(outputs)
    if from_logits:
        p = torch.sigmoid(p)
    for name, value in (("outputs", p), ("target", target)):
        if value.numel() and values_visible(value) and bool(((value < 0) | (value > 1)).any()):
            refuse(name, "values in [0, 1]", [float(value.min()), float(value.max())])
    size = outputs.shape[-2:]
    return p.reshape(-1, *size), target.to(p.dtype).reshape(-1, *size)


def _levels(
    p: Tensor, t: Tensor, filtration: str, comparison: str, dims: tuple[int, ...], relative: bool
) -> Iterator[tuple[Tensor, Tensor, Matching]]:
    """The maps, framed where that is asked for, and their matching: for each filtration and dimension."""
    for level in FILTRATIONS[:2] if filtration == "bothlevel" else (filtration,):
        sign = 1 if level == "superlevel" else -1
        a, b = p, t
        if relative:
            a, b = (functional.pad(matching, (1, 1, 1, 1), value=float(sign > 0)) for matching in (p, t))
        values = (sign * on_host(matching) for matching in (a, b))
        for matching in matchings(*values, union=comparison == "union", dims=dims):
            yield a, b, matching


def _parts(
    p: Tensor, t: Tensor, filtration: str, comparison: str, dims: tuple[int, ...], relative: bool
) -> list[Tensor]:
    """The share of each dimension, the mean over maps."""
    # nothing, unless a value is NaN
    totals = [0 * (p.sum() + t.sum())] * len(dims)
    for number, (a, b, matching) in enumerate(_levels(p, t, filtration, comparison, dims, relative)):
        first, second = a.reshape(-1), b.reshape(-1)
        cells, bars = (
            [torch.as_tensor(x, device=p.device) for x in pair] for pair in (matching.matched, matching.unmatched)
        )
        share = 2 * (first[cells[0]] - second[cells[1]]).square().sum()
        for values, own in ((first, bars[0]), (second, bars[1])):
            share = share + (values[own[:, 0]] - values[own[:, 1]]).square().sum()
        totals[number % len(dims)] = totals[number % len(dims)] + share
    return [total / len(p) for total in totals]
