"""Sorted events, sliding windows and one-dimensional clusters, many rows of unequal length at a time.

Rows ``[E, n]`` are padded at their end: residuals by 0, probabilities by infinity; ``counts`` ``[E]`` says how long
each is. Everything after the sort is prefix sums in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

WEIGHTINGS = ("cluster", "mean", "width", "density", "distance")
_ROUNDS = 30


def events(p: Tensor, target: Tensor, leave_one_out: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Sorted probabilities (detached), residuals p - o in that order, and counts: a row for each class that is left
    out and leaves something, or one row of all."""
    classes = p.shape[1]
    hot = torch.nn.functional.one_hot(target, classes).to(p)
    order = p.detach().flatten().argsort(stable=True)
    values, residual = p.detach().flatten()[order], (p - hot).flatten()[order]
    if not leave_one_out:
        return values[None], residual[None], torch.tensor([len(values)], device=p.device)
    keep = target[order // classes] != torch.arange(classes, device=p.device)[:, None]
    counts = keep.sum(1)
    keep, counts = keep[counts > 0], counts[counts > 0]
    row, column = keep.nonzero(as_tuple=True)
    place = (row, keep.cumsum(1)[row, column] - 1)
    shape = (len(counts), int(counts.max()))
    return (
        p.new_full(shape, torch.inf).index_put(place, values[column]),
        p.new_zeros(shape).index_put(place, residual[column]),
        counts,
    )


def prefix(values: Tensor) -> Tensor:
    """Sums of the first 0, 1, ..., n of each row."""
    return torch.nn.functional.pad(values.cumsum(1), (1, 0))


def window_means(residual: Tensor, window: int) -> Tensor:
    """Sums over ``window`` + 1 neighbours, over that number also at the ends."""
    n = residual.shape[1]
    place = torch.arange(n, device=residual.device)
    sums = prefix(residual)
    upper, lower = (place + window // 2 + 1).clamp_max(n), (place - window // 2).clamp_min(0)
    return (sums[:, upper] - sums[:, lower]) / (window + 1)


def weighted(error: Tensor, p: Tensor, counts: Tensor, weighting: str, clusters: int, window: int) -> Tensor:
    """One number a row of the errors, weighted as named."""
    inside = torch.arange(p.shape[1], device=p.device) < counts[:, None]
    error = torch.where(inside, error, 0.0)
    if weighting == "mean":
        return error.sum(1) / counts
    if weighting in ("cluster", "width"):
        edges = _clusters(p, counts, clusters) if weighting == "cluster" else _widths(p, counts, clusters)
        sizes = edges.diff(dim=1)
        means = prefix(error).gather(1, edges).diff(dim=1) / sizes.clamp_min(1)
        return means.sum(1) / (sizes > 0).sum(1)
    values = torch.where(inside, p, 0.0)
    place = torch.arange(p.shape[1], device=p.device).expand_as(p)
    last = counts[:, None] - 1
    if weighting == "density":
        upper = values.gather(1, torch.minimum(place + window // 2, last))
        spread = upper - values.gather(1, torch.minimum((place - window // 2).clamp_min(0), last))
        return (error * torch.where(inside, spread, 0.0)).sum(1) / max(window, 1)
    sums = prefix(values)
    upper = torch.minimum(place + window // 2, last).clamp_min(0)
    lower = torch.minimum((place - window // 2).clamp_min(0), last)
    here = torch.minimum(place, last)
    left, right = here - lower, upper - here
    below = left * values - (sums.gather(1, here) - sums.gather(1, lower))
    above = sums.gather(1, upper + 1) - sums.gather(1, here + 1) - right * values
    distance = (below + above) / (left + right).clamp_min(1)
    return (error * torch.where(inside, distance, 0.0)).sum(1)


def _with_ends(edges: Tensor, counts: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(counts)[:, None], edges, counts[:, None]], 1)


def _widths(p: Tensor, counts: Tensor, groups: int) -> Tensor:
    """Where groups of equal width over 0..1 begin and end in the sorted rows, ``[E, groups + 1]``."""
    cuts = torch.arange(1, groups, device=p.device, dtype=p.dtype) / groups
    return _with_ends(torch.searchsorted(p, cuts.expand(len(p), -1).contiguous()), counts)


def _clusters(p: Tensor, counts: Tensor, groups: int) -> Tensor:
    """The same for k-means: Lloyd's iterations from equally spaced centres, which makes them deterministic."""
    low, high = p[:, :1], p.gather(1, counts[:, None] - 1)
    steps = (torch.arange(groups, device=p.device, dtype=p.dtype) + 0.5) / groups
    centres = low + (high - low) * steps
    sums = prefix(torch.where(p.isinf(), 0.0, p))
    for _ in range(_ROUNDS):
        cuts = (centres[:, 1:] + centres[:, :-1]) / 2
        edges = _with_ends(torch.searchsorted(p, cuts.contiguous()), counts)
        sizes = edges.diff(dim=1)
        moved = torch.where(sizes > 0, sums.gather(1, edges).diff(dim=1) / sizes.clamp_min(1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return edges
