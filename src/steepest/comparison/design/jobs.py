"""Jobs: cells of one objective or classical learner that are computed together, fixed by data and settings alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..read.images import Images
from .context import Context, Pair

STACK_WORK = 60e9
"""Floating-point operations that one job may take: about two to four seconds of one core."""


@dataclass(frozen=True)
class Job:
    """Cells of one objective or classical learner that are computed together."""

    kind: str
    name: str
    cells: tuple[Pair, ...]


def _parameters(width: int, classes: int) -> int:
    return width * 128 + 128 * 128 + 128 * max(classes, 1)


def make_jobs(context: Context) -> list[Job]:
    """The jobs: fixed by data and settings alone, so that a resumed run makes the same.

    Consecutive folds of one objective are joined as long as their trainings stay within :data:`STACK_WORK`.
    """
    settings = context.settings
    pairs = list(context.folds)
    rows = len(context.folds[pairs[0]].train)
    batch = min(settings.batch_size, rows)
    inner = len(context.inner(pairs[0]))
    together = 1
    if not isinstance(context.table, Images):
        width = int(context.split(pairs[0], -1).inputs.shape[1])
        step_work = 6.0 * batch * _parameters(width, context.classes)
        fold_work = settings.trials * inner * settings.epochs * math.ceil(rows / batch) * step_work
        together = max(1, int(STACK_WORK / fold_work))
    jobs = [
        Job("objective", name, tuple(pairs[i : i + together]))
        for name in settings.objectives
        for i in range(0, len(pairs), together)
    ]
    jobs += [Job("classical", name, (pair,)) for name in settings.classical for pair in pairs]
    first = {pair: number for number, pair in enumerate(pairs)}
    kinds = {"objective": 0, "classical": 1}
    # fold by fold, the objectives side by side: a paired comparison of everything exists early
    return sorted(jobs, key=lambda job: (first[job.cells[0]], kinds[job.kind]))


def to_json(jobs: Sequence[Job]) -> list[list[Any]]:
    """Jobs as plain lists."""
    return [[job.kind, job.name, [list(pair) for pair in job.cells]] for job in jobs]


def from_json(values: Sequence[Sequence[Any]]) -> list[Job]:
    """What :func:`to_json` gave."""

    def pair(value: Sequence[int]) -> Pair:
        return value[0], value[1]

    return [Job(kind, name, tuple(pair(v) for v in cells)) for kind, name, cells in values]
