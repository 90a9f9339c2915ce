"""What will be computed, as jobs, and how long that takes: known before the first training."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from .cells import Context, Job, Pair
from .design import trials
from .images import Images
from .metrics import Metric
from .training import Member, Recipe, Split, train

STACK_WORK = 60e9
"""Floating-point operations that one job may take: about two to four seconds of one core."""

MARGIN = 0.7
"""The part of a budget that offered commands fill: a second measurement of the same steps differs."""


@dataclass(frozen=True)
class Plan:
    """The jobs of a comparison in order, and their measured cost.

    Attributes:
        jobs: every job.
        seconds: expected seconds of one core for each objective, over all its cells, at full length.
        trainings: trainings in all, refits included.
    """

    jobs: tuple[Job, ...]
    seconds: dict[str, float]
    trainings: int
    workers: int

    @property
    def expected(self) -> float:
        """Expected seconds on the clock, if every training used all its epochs."""
        return sum(self.seconds.values()) / self.workers


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


def time_job(context: Context, job: Job, steps: int = 4) -> float:
    """Expected seconds of a job at full length, from a few steps of its own stack.

    The stack of the first fold runs short epochs; the fastest of them, scaled to all epochs, splits and refits.
    """
    settings = context.settings
    cls = context.objective(job.name)
    pair = job.cells[0]
    chosen = trials(cls, settings.trials, settings.seed)
    recipe = context.recipe(cls)
    _, full_steps = recipe.steps(len(context.split(pair, 0).inputs))
    take = min(full_steps, steps)
    short = _Short(**{**vars(recipe), "epochs": 4, "patience": 5}, cut=take)
    members: list[Member] = [context.member(pair, 0, trial) for trial in chosen]
    if settings.one_cycle:  # looking at all held-out images would be most of so short an epoch
        for member in members:
            member.split = _shortened(member.split, take / full_steps)
    clock = EpochClock(context.metric)
    with torch.random.fork_rng(devices=[]):
        started = time.perf_counter()
        train(replace(short, metric=clock.metric()), members)
        took = time.perf_counter() - started
    epoch = clock.fastest(len(members), took)
    search = settings.epochs * (full_steps / take) * epoch * len(context.inner(pair))
    if settings.one_cycle:
        return search * len(job.cells)
    _, refit_steps = recipe.steps(len(context.split(pair, -1).inputs))
    refit = settings.epochs * (refit_steps / take) * epoch / max(1.0, len(chosen) / 3)
    return (search + refit) * len(job.cells)


def _shortened(split: Split, share: float) -> Split:
    """The same with a share of the rows to look at."""
    step = max(1, round(1 / share))
    weight = None if split.other_weight is None else split.other_weight[::step]
    return replace(
        split,
        other_inputs=split.other_inputs[::step],
        other_target=split.other_target[::step],
        other_weight=weight,
        test_inputs=None,
    )


class EpochClock:
    """A metric that notes when it is called, to tell how long an epoch of a stack takes."""

    def __init__(self, metric: Metric) -> None:
        self.inner, self.calls = metric, [time.perf_counter()]

    def metric(self) -> Metric:
        """The same metric, noting each call."""

        def function(y: Any, outcome: Any, weights: Any) -> float | None:
            value = self.inner(y, outcome, weights)
            self.calls.append(time.perf_counter())
            return value

        return replace(self.inner, function=function)

    def fastest(self, models: int, took: float) -> float:
        """Seconds of the fastest epoch: from one epoch's last call to the next one's."""
        ends = self.calls[models::models]
        gaps = [b - a for a, b in pairwise(ends)]
        return max(min(gaps, default=took), 1e-6)


@dataclass(frozen=True)
class _Short(Recipe):
    """A recipe whose epochs are cut to a few steps."""

    cut: int = 3

    def steps(self, rows: int) -> tuple[int, int]:
        batch, steps = super().steps(rows)
        return batch, min(steps, self.cut)


def make_plan(context: Context, workers: int, jobs: Sequence[Job] | None = None) -> Plan:
    """The plan of a comparison, its cost measured with one short stack of each objective."""
    settings = context.settings
    found = tuple(make_jobs(context) if jobs is None else jobs)
    seconds: dict[str, float] = {}
    trainings = 0
    for name in settings.objectives:
        own = [job for job in found if job.name == name and job.kind == "objective"]
        cells = sum(len(job.cells) for job in own)
        seconds[name] = time_job(context, own[0]) / len(own[0].cells) * cells
        refits = 0 if settings.one_cycle else 1
        trainings += cells * (settings.trials * len(context.inner(own[0].cells[0])) + refits)
    return Plan(found, seconds, trainings, workers)


def fitting_commands(plan: Plan, context: Context, budget: float, command: Sequence[str]) -> list[str]:
    """Command lines that would fit into ``budget`` seconds: each changes one thing."""
    settings = context.settings
    total = plan.expected
    lines = []
    budget *= MARGIN
    share = budget / total
    fewer = int(settings.trials * share)
    if fewer >= 3:
        lines.append(_with(command, "--trials", fewer))
    if settings.repeats > 1 and not settings.test and 1 / settings.repeats <= share:
        lines.append(_with(command, "--repeats", max(1, int(settings.repeats * share))))
    kept, spent = [settings.baseline], plan.seconds[settings.baseline] / plan.workers
    for name in settings.objectives:
        cost = plan.seconds[name] / plan.workers
        if name != settings.baseline and spent + cost <= budget:
            kept.append(name)
            spent += cost
    if len(kept) > 1 and spent <= budget:
        lines.append(_with(command, "--objectives", ",".join(kept)))
    lines.append(_with(command, "--budget", math.ceil(total / 60 / MARGIN)))
    return lines


def _with(command: Sequence[str], option: str, value: Any) -> str:
    """The command with one option set anew."""
    import shlex

    words = list(command)
    for i, word in enumerate(words):
        if word == option:
            del words[i : i + 2]
            break
        if word.startswith(option + "="):
            del words[i]
            break
    return shlex.join([*words, option, str(value)])


def to_json(jobs: Sequence[Job]) -> list[list[Any]]:
    """Jobs as plain lists."""
    return [[job.kind, job.name, [list(pair) for pair in job.cells]] for job in jobs]


def from_json(values: Sequence[Sequence[Any]]) -> list[Job]:
    """What :func:`to_json` gave."""

    def pair(value: Sequence[int]) -> Pair:
        return value[0], value[1]

    return [Job(kind, name, tuple(pair(v) for v in cells)) for kind, name, cells in values]
