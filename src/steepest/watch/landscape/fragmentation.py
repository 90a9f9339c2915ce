"""Fragmentation: how often a classifier changes its class on the way from one point to another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float as F
from jaxtyping import Int
from torch import Tensor, nn

from ...core.checks import check_choice, check_number, check_tensor, refuse, refuse_type
from ...core.parameter_directions import evaluated

ROWS = 8192
"""Points that are classified at once."""
Classifier = Callable[[Tensor], Tensor]


def path_label_changes(labels: Int[Tensor, "... points"]) -> Int[Tensor, ...]:
    """How often the label changes along a path; one more is the number of its regions.

    Args:
        labels: in the last dimension, in the order of the path; of any integer type.

    Returns:
        one count a path.

    Raises:
        ValueError: no point.

    Example:
        >>> path_label_changes(torch.tensor([0, 0, 1, 0, 2, 2, 2]))
        tensor(3)

    Source: Is network fragmentation a useful complexity measure?, arXiv:2411.04695.
    """
    check_tensor("labels", labels, floating=False)
    if labels.ndim == 0 or labels.shape[-1] == 0:
        refuse("labels", "at least one point in the last dimension", labels)
    return (labels[..., 1:] != labels[..., :-1]).sum(-1)


def region_count(model: nn.Module | Classifier, triplet: F[Tensor, "3 ..."], grid: int = 50) -> int:
    """The regions of one class in the plane of three points, over their box widened by half on each side.

    Points of one class that touch, also by a corner, are one region; the count is the sum over classes. In the plane
    the first two points lie on the first axis.

    Args:
        model: gives scores ``[N, C]``; it is in evaluation mode meanwhile.
        triplet: three inputs.
        grid: points along each side of the box.

    Returns:
        the number of regions.

    Raises:
        ValueError: three points on a line, grid below 1, another number of points.

    Example:
        >>> points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> region_count(lambda x: torch.stack([x[:, 0].sin() * 8, torch.ones(len(x))], 1), points)
        2

    Source: Is network fragmentation a useful complexity measure?, arXiv:2411.04695; code somepago/dbViz.
    """
    check_tensor("triplet", triplet, floating=True)
    if triplet.ndim < 2 or len(triplet) != 3:
        refuse("triplet", "three inputs", triplet)
    check_number("grid", grid, low=1, integer=True)
    from scipy import ndimage

    flat = triplet.flatten(1).double()
    first, second = flat[1] - flat[0], flat[2] - flat[0]
    width = first.norm()
    along = first / width
    across = second - (second @ along) * along
    height = across.norm()
    if not bool(width > 0) or not bool(height > 1e-6 * second.norm()):
        refuse("triplet", "three points that span a plane", "points on a line")
    across = across / height
    reach = second @ along
    left, right = reach.clamp(max=0.0), torch.maximum(reach, width)
    box = torch.linspace(-0.5, 1.5, grid, dtype=torch.float64, device=flat.device) if grid > 1 else flat.new_zeros(1)
    a, b = left + box * (right - left), box * height
    places = flat[0] + a[:, None, None] * along + b[None, :, None] * across
    labels = _labels(model, places.flatten(0, 1).to(triplet.dtype).view(-1, *triplet.shape[1:])).view(grid, grid)
    shown = labels.cpu().numpy()
    touching = [[1, 1, 1]] * 3
    return sum(int(ndimage.label(shown == label, touching)[1]) for label in labels.unique().tolist())


def fragmentation_score(
    model: nn.Module | Classifier,
    x: F[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    pairs: int = 500,
    steps: int = 100,
    kind: str = "all",
    layer: str | None = None,
    generator: torch.Generator | None = None,
    *,
    by: str = "label",
    grid: int = 50,
) -> dict[str, Tensor]:
    r"""The mean number of class changes beyond those that must be, along straight ways between random points.

    .. math:: x_k = (1 - k/K)\, x_a + (k/K)\, x_b, \quad k = 0 \dots K, \qquad
        F = \mathrm{mean}_{(a, b)} \begin{cases} \text{changes} & y_a = y_b \\ \max(0, \text{changes} - 1) &
        y_a \ne y_b \end{cases}

    A linear classifier has 0 between points that it puts into one class. A network with a higher score is expected to
    generalise worse. Ways between images leave the images' manifold, so that both kinds of pairs are reported apart.

    Args:
        model: gives scores ``[N, C]``; it is in evaluation mode meanwhile.
        x: inputs, those of training.
        y: their labels.
        pairs: M, drawn with replacement, of two different rows each.
        steps: K; more of them on the same grid (twice as many) never lower a count.
        kind: ``"all"``; ``"same"`` or ``"different"``: pairs of one or of two classes alone; ``"plane"``: instead the
            mean :func:`region_count` of so many triplets.
        layer: the name of a module of the model: ways lead between its outputs, and what comes behind it classifies
            them. What goes around it (skip connections) comes from the first point.
        generator: of the pairs; torch's own by default.
        by: whether a pair is of one class by its ``"label"`` or by the model's ``"prediction"``.
        grid: points along each side of a plane.

    Returns:
        ``score``; ``per_pair`` ``[M]``, what it is the mean of, and ``changes`` ``[M]``; ``same`` and ``different``,
        the means over pairs of one and of two classes, NaN where there are none; ``rows`` ``[M, 2]`` (or 3). For
        planes ``score``, ``per_pair`` and ``rows``.

    Raises:
        ValueError: no pair of the kind, numbers below 1, another kind, no such layer.

    Example:
        >>> x = torch.tensor([[-1.0], [1.0], [3.0]])
        >>> waves = lambda x: torch.cat([(3 * x).sin(), (3 * x).cos() * 0], 1)
        >>> fragmentation_score(waves, x, torch.tensor([0, 1, 1]), pairs=50, kind="same")["score"]
        tensor(2.)

    Source: Is network fragmentation a useful complexity measure?, arXiv:2411.04695.
    """
    check_tensor("x", x, floating=True)
    check_tensor("y", y, floating=False, shape=(len(x),))
    check_number("pairs", pairs, low=1, integer=True)
    check_number("steps", steps, low=1, integer=True)
    check_choice("kind", kind, ("all", "same", "different", "plane"))
    check_choice("by", by, ("label", "prediction"))
    if layer is not None and not (isinstance(model, nn.Module) and layer in dict(model.named_modules())):
        refuse("layer", "the name of a module of the model", layer)
    if kind == "plane":
        rows = torch.rand(pairs, len(x), generator=generator).argsort(1)[:, :3]
        counts = torch.tensor([region_count(model, x[row], grid) for row in rows], dtype=torch.float32)
        return {"score": counts.mean(), "per_pair": counts, "rows": rows}
    classes = y if by == "label" else _labels(model, x)
    rows = _pairs(classes.cpu(), pairs, kind, generator)
    changes = _changes(model, x[rows[:, 0]], x[rows[:, 1]], steps, layer)
    same = classes[rows[:, 0]] == classes[rows[:, 1]]
    excess = torch.where(same, changes, (changes - 1).clamp(min=0)).float()
    parts = {"same": excess[same].mean(), "different": excess[~same].mean()}
    return {"score": excess.mean(), "per_pair": excess, "changes": changes, **parts, "rows": rows}


def _pairs(classes: Tensor, count: int, kind: str, generator: torch.Generator | None) -> Tensor:
    """Two different rows each, ``[count, 2]``, of the kind: uniform over such pairs."""
    n = len(classes)
    if kind == "all":
        if n < 2:
            refuse("x", "at least two rows", n)
        first = torch.randint(n, (count,), generator=generator)
        return torch.stack([first, (first + torch.randint(1, n, (count,), generator=generator)) % n], 1)
    _, group, sizes = classes.unique(return_inverse=True, return_counts=True)
    members = sizes[group]
    partners = (members - 1 if kind == "same" else n - members).double()
    if not bool(partners.any()):
        refuse("y", f"a pair of {'one class' if kind == 'same' else 'two classes'}", classes)
    first = torch.multinomial(partners, count, replacement=True, generator=generator)
    order = group.argsort(stable=True)
    begin = (sizes.cumsum(0) - sizes)[group[first]]
    place = torch.empty(n, dtype=torch.long)
    place[order] = torch.arange(n)
    draw = (torch.rand(count, generator=generator, dtype=torch.float64) * partners[first]).long()
    if kind == "same":
        own = place[first] - begin
        return torch.stack([first, order[begin + (own + 1 + draw) % members[first]]], 1)
    return torch.stack([first, order[(begin + members[first] + draw) % n]], 1)


def _changes(model: Any, a: Tensor, b: Tensor, steps: int, layer: str | None = None) -> Tensor:
    """Label changes on the ways from rows of ``a`` to those of ``b``."""
    shares = torch.arange(steps + 1, device=a.device)
    ahead, back = (share.to(a.dtype) / steps for share in (shares, steps - shares))
    counts = []
    for x, z in zip(a.split(max(1, ROWS // (steps + 1))), b.split(max(1, ROWS // (steps + 1)))):
        if layer is None:
            labels = _labels(model, _between(x, z, ahead, back))
        else:
            labels = _labels_behind(model, layer, x, z, ahead, back)
        counts.append(path_label_changes(labels.view(len(x), steps + 1)))
    return torch.cat(counts)


def _between(x: Tensor, z: Tensor, ahead: Tensor, back: Tensor) -> Tensor:
    """Points on the ways, way after way; the way back has the same."""
    shape = (1, -1, *[1] * (x.ndim - 1))
    return (back.to(x).view(shape) * x[:, None] + ahead.to(x).view(shape) * z[:, None]).flatten(0, 1)


def _labels_behind(model: nn.Module, layer: str, x: Tensor, z: Tensor, ahead: Tensor, back: Tensor) -> Tensor:
    module = model.get_submodule(layer)
    outputs: list[Tensor] = []
    with evaluated(model), torch.no_grad():
        with _hooked(module, lambda output: outputs.append(output)):
            model(x)
            model(z)
        between = _between(outputs[0], outputs[1], ahead, back)
        with _hooked(module, lambda output: between):
            scores = model(x.repeat_interleave(len(ahead), 0))
    return _argmax(scores)


@contextmanager
def _hooked(module: nn.Module, action: Callable[[Tensor], Any]) -> Iterator[None]:
    """Inside the block a module's output goes to ``action``, and what it gives takes its place."""
    handle = module.register_forward_hook(lambda _module, _inputs, output: action(output))
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def _labels(model: Any, x: Tensor) -> Tensor:
    if not callable(model):
        refuse_type("model", "a model or a function", model)
    with evaluated(model) if isinstance(model, nn.Module) else nullcontext():
        return torch.cat([_argmax(model(rows)) for rows in x.split(ROWS)])


def _argmax(scores: Tensor) -> Tensor:
    check_tensor("scores of the model", scores, ndim=2, floating=True)
    return scores.argmax(1)
