"""The cards of the catalogue, and how a function gets one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ....core.checks import check_interval, check_tensor
from ....core.reductions import widen

Example = Callable[[torch.Generator], tuple[Any, ...]]
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class LossCard:
    """One loss.

    Args:
        fn: the function, to one number.
        task: what it is for.
        formula: in words of its arguments, a mean over samples unless said.
        range: values it takes.
        minimiser: the best output.
        convex: in its raw output (first argument); None where the word has no meaning.
        outliers: whether far or wrong targets move it little.
        imbalance: whether a rare class keeps its say.
        example: valid float64 arguments from a generator.
        gradient: ``"exact"``, or ``"surrogate"`` where a factor is held fixed.
    """

    fn: Callable[..., Tensor]
    task: str
    formula: str
    range: str
    minimiser: str
    convex: bool | None
    outliers: bool
    imbalance: bool
    example: Example
    gradient: str = "exact"

    @property
    def defaults(self) -> dict[str, Any]:
        """Parameters with their defaults."""
        return _defaults(self.fn)


@dataclass(frozen=True)
class MetricCard:
    """One metric: never to be minimised through thresholds, it only reads.

    Args:
        fn: the function; a float, or a tensor of counts or overlaps.
        task: what it is for.
        formula: in words.
        range: values it takes.
        higher: whether more is better; None where neither is.
        example: valid arguments from a generator.
    """

    fn: Callable[..., Any]
    task: str
    formula: str
    range: str
    higher: bool | None
    example: Example

    @property
    def defaults(self) -> dict[str, Any]:
        """Parameters with their defaults."""
        return _defaults(self.fn)


LOSSES: dict[str, LossCard] = {}
METRICS: dict[str, MetricCard] = {}


def loss(
    task: str,
    formula: str,
    range: str,
    minimiser: str,
    convex: bool | None,
    example: Example,
    *,
    outliers: bool = False,
    imbalance: bool = False,
    gradient: str = "exact",
    name: str | None = None,
) -> Callable[[Function], Function]:
    """Give a function its card, under its own name or another."""

    def give(fn: Function) -> Function:
        LOSSES[name or fn.__name__] = LossCard(
            fn, task, formula, range, minimiser, convex, outliers, imbalance, example, gradient
        )
        return fn

    return give


def metric(
    task: str, formula: str, range: str, higher: bool | None, example: Example
) -> Callable[[Function], Function]:
    """The same for a metric."""

    def give(fn: Function) -> Function:
        METRICS[fn.__name__] = MetricCard(fn, task, formula, range, higher, example)
        return fn

    return give


def pair(outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and targets of one shape, in float32 or wider."""
    check_tensor("outputs", outputs, floating=True)
    check_tensor("target", target, shape=tuple(outputs.shape))
    wide = widen(outputs)
    return wide, target.to(wide.dtype) if not target.is_floating_point() else widen(target)


def check_boxes(argument: str, boxes: Tensor) -> None:
    """Check that boxes x1, y1, x2, y2 have no negative side."""
    check_interval(argument, boxes[:, 2:] - boxes[:, :2], 0.0, what="boxes x1, y1, x2, y2 with sides", rounding=0.0)


def normal(*shape: int) -> Example:
    """Two independent standard normal tensors."""

    def draw(g: torch.Generator) -> tuple[Any, ...]:
        return tuple(torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))

    return draw


def positive(*shape: int) -> Example:
    """Two tensors in 0.5..2.5."""

    def draw(g: torch.Generator) -> tuple[Any, ...]:
        return tuple(0.5 + 2 * torch.rand(shape, generator=g, dtype=torch.float64) for _ in range(2))

    return draw


def logits_and_index(*shape: int) -> Example:
    """Logits ``[N, C, ...]`` and class indices ``[N, ...]``."""

    def draw(g: torch.Generator) -> tuple[Any, ...]:
        logits = torch.randn(shape, generator=g, dtype=torch.float64)
        return logits, torch.randint(shape[1], (shape[0], *shape[2:]), generator=g)

    return draw


def logits_and_bits(*shape: int) -> Example:
    """Logits and labels in {0, 1}, both of which occur."""

    def draw(g: torch.Generator) -> tuple[Any, ...]:
        bits = torch.randint(2, shape, generator=g).flatten()
        bits[:2] = torch.tensor([0, 1])
        return torch.randn(shape, generator=g, dtype=torch.float64), bits.view(shape)

    return draw


def chances_and_bits(*shape: int) -> Example:
    """Probabilities and labels in {0, 1}."""

    def draw(g: torch.Generator) -> tuple[Any, ...]:
        logits, bits = logits_and_bits(*shape)(g)
        return logits.sigmoid(), bits

    return draw


def _defaults(fn: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(fn).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
