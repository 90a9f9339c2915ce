"""What a job costs on this machine: a few steps of its own stack, or one fit, timed before anything is trained."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ..baselines import ConstantBaseline
from ..design.context import Context, Split
from ..design.jobs import Job
from ..design.networks import share_of_one
from ..metrics.metric import Metric
from .cells import member_of, numpy_seed, recipe_of
from .classical import fit_learners, learners_of, outcome_of_learners, trials_of_learner
from .training import Member, Recipe, train


def measure(context: Context, job: Job) -> float:
    """Expected seconds of one core that a job takes at full length."""
    return time_learner(context, job) if job.kind == "classical" else time_job(context, job)


def time_job(context: Context, job: Job, steps: int = 4) -> float:
    """Expected seconds of a job at full length, from a few steps of its own stack.

    The stack of the first fold runs short epochs; the fastest of them, scaled to all epochs, splits and refits.
    """
    settings, pair = context.settings, job.cells[0]
    epoch, take, recipe = _time_epoch(context, job, steps)
    search = _search(context, job, epoch, take, recipe)
    if settings.fixed_length:
        return search * len(job.cells)
    _, refit_steps = recipe.steps(len(context.split(pair, -1).inputs))
    share = share_of_one(context, len(context.trials(job.name)))
    refit = settings.epochs * (refit_steps / take) * epoch * share
    return (search + refit) * len(job.cells)


def time_trials(context: Context, job: Job, steps: int) -> float:
    """Expected seconds of all trials of a job's first cell at full length, without the training on all rows."""
    return _search(context, job, *_time_epoch(context, job, steps))


def _search(context: Context, job: Job, epoch: float, take: int, recipe: Recipe) -> float:
    pair = job.cells[0]
    _, full_steps = recipe.steps(len(context.split(pair, 0).inputs))
    return context.settings.epochs * (full_steps / take) * epoch * len(context.inner(pair))


def _time_epoch(context: Context, job: Job, steps: int) -> tuple[float, int, Recipe]:
    """Seconds of an epoch of at most so many steps of all trials in the first fold, its steps, and their recipe."""
    cls = context.objective(job.name)
    pair = job.cells[0]
    chosen = context.trials(job.name)
    recipe = recipe_of(context, cls, arm=context.arm(job.name))
    _, full_steps = recipe.steps(len(context.split(pair, 0).inputs))
    take = min(full_steps, steps)
    short = _Short(**{**vars(recipe), "epochs": 4, "patience": 5}, cut=take)
    members: list[Member] = [member_of(context, pair, 0, trial) for trial in chosen]
    # looking at all rows that are held out would be most of so short an epoch
    split = _shortened(members[0].split, take / full_steps)
    for member in members:
        member.split = split
    clock = EpochClock(context.metric)
    with torch.random.fork_rng(devices=[]):
        started = time.perf_counter()
        train(replace(short, metric=clock.metric()), members)
        took = time.perf_counter() - started
    return clock.fastest(len(members), took), take, recipe


def _shortened(split: Split, share: float) -> Split:
    """The same with a share of the rows to look at."""
    step = max(1, round(1 / share))
    weight = None if split.other_weight is None else split.other_weight[::step]
    texts = None if split.texts is None else replace(split.texts, others=split.texts.others[::step])
    return replace(
        split,
        other_inputs=split.other_inputs[::step],
        other_target=split.other_target[::step],
        other_weight=weight,
        test_inputs=None,
        texts=texts,
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
class LearnerTime:
    """Seconds of one core that a classical learner takes to fit so many rows, and then to predict others."""

    rows: int
    others: int
    fit: float
    predict: float


def import_learners(context: Context) -> None:
    """Import the libraries of the classical learners, so that no timing has it among its seconds."""
    learners = learners_of(context.table.task, len(context.table.target))
    for name in context.settings.classical:
        if name in learners:
            learners[name].estimator()
    ConstantBaseline("regression").fit(np.zeros((2, 1)), np.zeros(2)).outcome(np.zeros((1, 1)))


def time_learner_at(context: Context, job: Job) -> LearnerTime:
    """What a classical learner takes on the first inner split of a job.

    What takes under a second is timed twice: the first may have to import its library.
    """
    split = context.split(job.cells[0], 0)
    inputs = split.other_inputs.numpy().astype(np.float64)
    times = []
    with numpy_seed(0):  # scikit-learn's SVC draws from it
        for _ in range(2):
            started = time.process_time()  # what others do meanwhile would hide how it grows
            rows = len(context.table.target)
            learners = fit_learners(job.name, split, classes=context.classes, rows=rows, seed=0, stop=True)
            fitted = time.process_time()
            outcome_of_learners(learners, split.task, inputs)
            times.append((fitted - started, time.process_time() - fitted))
            if sum(times[0]) > 1:
                break
    fit, predict = (min(own) for own in zip(*times))
    return LearnerTime(len(split.inputs), len(inputs), fit, predict)


def time_learner(context: Context, job: Job) -> float:
    """Expected seconds of a classical learner's job, from one fit on its first inner split."""
    timed = time_learner_at(context, job)
    tuning = len(context.inner(job.cells[0])) * len(trials_of_learner(context, job.name))
    return (timed.fit + timed.predict) * (tuning + 1) * len(job.cells)


@dataclass(frozen=True)
class _Short(Recipe):
    """A recipe whose epochs are cut to a few steps."""

    cut: int = 3

    def steps(self, rows: int) -> tuple[int, int]:
        batch, steps = super().steps(rows)
        return batch, min(steps, self.cut)
