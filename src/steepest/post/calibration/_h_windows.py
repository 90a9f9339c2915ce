"""The windowed calibration error of sorted events, one pass at a time: its value and its slope in the probabilities.

A pass is all entries of an ``[N, C]`` matrix whose row has not the class that is left out. The matrix is sorted once;
a pass is a choice of the sorted entries, and everything after it is prefix sums in float64. Of the C passes one is
held at a time, so that memory is O(N C).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

WEIGHTINGS = ("cluster", "mean", "width", "density", "distance")
_ROUNDS = 30


def pass_sizes(target: Tensor, classes: int, leave_one_out: bool) -> Tensor:
    """Entries of the pass without class 0, 1, ... and, last, of the pass over all; 0 for a pass that is not made."""
    counts = torch.bincount(target, minlength=classes)
    left = (len(target) - counts) * classes
    every = target.new_tensor([len(target) * classes])
    return torch.cat([left, 0 * every] if leave_one_out else [0 * left, every])


def window_within(window: int, sizes: Tensor) -> int:
    """The widest even window, at most ``window``, that every pass can fill."""
    return min(window, (int(sizes[sizes > 0].min()) - 1) // 2 * 2)


def error_and_slope(
    p: Tensor, target: Tensor, window: int, eps: float, clusters: int, weighting: str, leave_one_out: bool
) -> tuple[Tensor, Tensor]:
    """The mean over the passes and its slope in ``p``, with order, groups and weights held constant.

    Args:
        p: ``[N, C]`` in float64.
        target: int64 ``[N]``.
        window: even; narrowed where a pass has too few entries.
        eps, clusters, weighting, leave_one_out: as in ``h_calibration_loss``.
    """
    classes = p.shape[1]
    sizes = pass_sizes(target, classes, leave_one_out)
    window = window_within(window, sizes)
    passes = sizes.nonzero().squeeze(1)
    flat = p.flatten()
    order = flat.argsort(stable=True)
    values = flat[order]
    residual = (p - torch.nn.functional.one_hot(target, classes)).flatten()[order]
    owner = target[order // classes]
    by_class = _ByClass(owner, passes)
    edges: list[Tensor | None] = [None] * len(passes)
    if weighting in ("cluster", "width"):
        edges = list((_clusters if weighting == "cluster" else _widths)(values, by_class, clusters))
    total, slope = p.new_zeros(()), torch.zeros_like(flat)
    for one, groups in enumerate(edges):
        rows = by_class.kept(one)
        means = window_sums(residual.index_select(0, rows), window) / (window + 1)
        error = (means.abs() - eps).clamp_min_(0.0)
        if groups is None:
            weight = _weights(values.index_select(0, rows), weighting, window)
        else:
            counts = groups.diff()
            share = 1 / (counts.clamp_min(1) * (counts > 0).sum()).to(p)
            weight = torch.repeat_interleave(share, counts, output_size=len(rows))
        total += error @ weight
        # a window's sum goes back to each of its members
        pull = means.sign_().mul_(error.sign_()).mul_(weight)
        slope.index_add_(0, rows, window_sums(pull, window))
    slopes = torch.empty_like(slope).index_copy_(0, order, slope)
    return total / len(passes), (slopes / ((window + 1) * len(passes))).view_as(p)


windowed_error = torch.library.custom_op("steepest::windowed_error", error_and_slope, mutates_args=())
"""One operation, so that compilers and transforms look at its shapes and not inside."""


@windowed_error.register_fake
def _(
    p: Tensor, target: Tensor, window: int, eps: float, clusters: int, weighting: str, leave_one_out: bool
) -> tuple[Tensor, Tensor]:
    return p.new_empty(()), torch.empty_like(p)


@windowed_error.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], p: Tensor, target: Tensor, *rest: Any) -> tuple[Any, Any]:
    ps = p.movedim(in_dims[0], 0) if in_dims[0] is not None else p.expand(info.batch_size, *p.shape)
    targets = target.movedim(in_dims[1], 0) if in_dims[1] is not None else target.expand(info.batch_size, -1)
    of_models = [windowed_error(a, b, *rest) for a, b in zip(ps.contiguous(), targets.contiguous())]
    return (torch.stack([value for value, _ in of_models]), torch.stack([slope for _, slope in of_models])), (0, 0)


def prefix(values: Tensor) -> Tensor:
    """Sums of the first 0, 1, ..., n."""
    return torch.cat([values.new_zeros(1), values.cumsum(0)])


def window_sums(values: Tensor, window: int) -> Tensor:
    """Sums over ``window`` + 1 neighbours, with zeros beyond both ends."""
    sums, half = values.cumsum(0), window // 2
    sums = torch.cat([sums.new_zeros(half + 1), sums, sums[-1:].expand(half)])
    return sums[window + 1 :] - sums[: len(values)]


def _weights(p: Tensor, weighting: str, window: int) -> Tensor:
    """What each error counts, given the sorted probabilities of a pass."""
    n, half = len(p), window // 2
    if weighting == "mean":
        return p.new_full((n,), 1 / n)
    here = torch.arange(n, device=p.device)
    upper, lower = (here + half).clamp_max(n - 1), (here - half).clamp_min(0)
    if weighting == "density":
        return (p[upper] - p[lower]) / max(window, 1)
    sums = prefix(p)
    below = (here - lower) * p - (sums[here] - sums[lower])
    above = sums[upper + 1] - sums[here + 1] - (upper - here) * p
    return (below + above) / (upper - lower).clamp_min(1)


class _ByClass:
    """The places of each class in the sorted list: what a pass leaves out, found without making the passes."""

    def __init__(self, owner: Tensor, passes: Tensor) -> None:
        self.owner, self.passes = owner, passes[:, None]
        self.place = torch.arange(len(owner), device=owner.device)
        self.order = owner.argsort(stable=True)
        self.keys = owner[self.order] * (len(owner) + 1) + self.order
        self.start = torch.searchsorted(self.keys, self.passes * (len(owner) + 1))
        self.end = torch.searchsorted(self.keys, (self.passes + 1) * (len(owner) + 1)).squeeze(1).tolist()

    def kept(self, one: int) -> Tensor:
        """The places that pass number ``one`` keeps, in order."""
        left_out = self.order[int(self.start[one]) : self.end[one]]
        count = len(self.place) - len(left_out)
        # a kept place moves by how many are left out before it
        moves = torch.bincount(left_out - self.place[: len(left_out)], minlength=count + 1)[:count]
        return moves.cumsum(0).add_(self.place[:count])

    def ends(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The first and the last value of each pass, ``[E, 1]``."""
        ends = []
        for end in (0, -1):
            # it is in every pass but that of its own class
            others = (self.owner != self.owner[end]).nonzero().squeeze(1)
            inside = values[others[end]] if len(others) else values[end]
            ends.append(torch.where(self.passes == self.owner[end], inside, values[end]))
        return ends[0], ends[1]

    def left_out(self, places: Tensor) -> Tensor:
        """Where the places ``[E, K]`` of the list come in the order by class, among those of the pass's own class."""
        return torch.searchsorted(self.keys, self.passes * (len(self.owner) + 1) + places)


def _places(values: Tensor, cuts: Tensor) -> Tensor:
    """Where the cuts ``[E, K]`` lie in the sorted list, with its two ends."""
    return torch.nn.functional.pad(
        torch.nn.functional.pad(torch.searchsorted(values, cuts.contiguous()), (1, 0)), (0, 1), value=len(values)
    )


def _widths(values: Tensor, by_class: _ByClass, groups: int) -> Tensor:
    """Where groups of equal width over 0..1 begin and end in each pass, ``[E, groups + 1]``."""
    cuts = torch.arange(1, groups, device=values.device, dtype=values.dtype) / groups
    places = _places(values, cuts.expand(len(by_class.passes), -1))
    return places - (by_class.left_out(places) - by_class.start)


def _clusters(values: Tensor, by_class: _ByClass, groups: int) -> Tensor:
    """The same for k-means: Lloyd's iterations from equally spaced centres, which makes them deterministic."""
    low, high = by_class.ends(values)
    steps = (torch.arange(groups, device=values.device, dtype=values.dtype) + 0.5) / groups
    centres = low + (high - low) * steps
    every, own = prefix(values), prefix(values[by_class.order])
    for _ in range(_ROUNDS):
        places = _places(values, (centres[:, 1:] + centres[:, :-1]) / 2)
        removed = by_class.left_out(places)
        # counts and sums of a pass are those of all less those of the class that it leaves out
        edges, sums = places - (removed - by_class.start), every[places] - (own[removed] - own[by_class.start])
        sizes = edges.diff(dim=1)
        moved = torch.where(sizes > 0, sums.diff(dim=1) / sizes.clamp_min(1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return edges
