"""Jobs: a cell of one objective or classical learner at a level, computed by one process."""

from __future__ import annotations

from dataclasses import dataclass

from .context import Context, Pair
from .levels import Level


@dataclass(frozen=True)
class Job:
    """Cells of one objective or classical learner that are computed together.

    Attributes:
        kind: "objective" or "classical".
        name: of it.
        cells: repeat and fold of each.
        level: of the cells; None is that of the context that computes them.
        groups: where the trials are parted into stacks; empty is one stack.
    """

    kind: str
    name: str
    cells: tuple[Pair, ...]
    level: Level | None = None
    groups: tuple[int, ...] = ()


def make_jobs(context: Context) -> list[Job]:
    """The jobs of the whole design, a cell each, fold by fold: a paired comparison of everything exists early."""
    settings = context.settings
    named = [("objective", name) for name in settings.objectives] + [("classical", name) for name in settings.classical]
    return [Job(kind, name, (pair,)) for pair in context.folds for kind, name in named]
