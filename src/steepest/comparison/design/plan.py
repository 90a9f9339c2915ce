"""What will be computed, as jobs, how long that takes, and what would take less."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .context import Context
from .jobs import Job, make_jobs

MARGIN = 0.7
"""The part of a budget that offered commands fill: a second measurement of the same steps differs."""


@dataclass(frozen=True)
class Plan:
    """The jobs that a comparison has to do, and what they cost on this machine.

    Early stopping makes a training shorter than its epochs by a share that nobody knows beforehand: it lies between
    :attr:`floor` and 1 and is measured on finished cells, whose objective is in ``longest`` and in ``measured``.

    Attributes:
        jobs: what is to do, in order.
        trainings: of these jobs, refits included.
        workers: processes.
        longest: seconds of one core that a cell of an objective takes if every training uses all its epochs.
        measured: seconds that a finished cell of a name took; of classical learners, what one fit tells.
        floor: the least share of its epochs that a training runs.
        winner: cells that the fit of the winner amounts to.
    """

    jobs: tuple[Job, ...]
    trainings: int
    workers: int
    longest: dict[str, float]
    measured: dict[str, float]
    floor: float
    winner: float

    @property
    def share(self) -> float | None:
        """The share of its longest time that a cell takes, None while that is unknown."""
        known = [name for name in self.longest if name in self.measured]
        if not known:
            return None
        measured_share = sum(self.measured[name] for name in known) / sum(self.longest[name] for name in known)
        return min(1.0, max(self.floor, measured_share))

    def each(self, share: float) -> dict[str, float]:
        """Seconds of one core for each name, over all its cells to do."""
        cells: dict[str, int] = {}
        for job in self.jobs:
            cells[job.name] = cells.get(job.name, 0) + len(job.cells)
        return {name: count * self._cell(name, share) for name, count in cells.items()}

    def _cell(self, name: str, share: float) -> float:
        return self.measured[name] if name in self.measured else self.longest[name] * share

    def _clock(self, share: float) -> float:
        dearest = max((self._cell(name, share) for name in self._objectives()), default=0.0)
        return sum(self.each(share).values()) / self.workers + self.winner * dearest

    def _objectives(self) -> set[str]:
        return {job.name for job in self.jobs if job.kind == "objective"}

    @property
    def least(self) -> float:
        """Seconds on the clock if every training stopped as early as it can."""
        return self._clock(self.floor)

    @property
    def expected(self) -> float:
        """Expected seconds on the clock; at full length while the share is unknown."""
        return self._clock(1.0 if self.share is None else self.share)

    @property
    def most(self) -> float:
        """Seconds on the clock if every training used all its epochs."""
        return self._clock(1.0)

    @property
    def seconds(self) -> dict[str, float]:
        """Expected seconds of one core for each name."""
        return self.each(1.0 if self.share is None else self.share)

    def wants_pilot(self, budget: float) -> bool:
        """Whether it depends on the unknown share if the plan fits into ``budget`` seconds."""
        return self.share is None and self.least <= budget < self.most

    def after(self, job: Job, seconds: float) -> Plan:
        """The plan when its job ``job`` is done, a cell of which took so many seconds: that tells the share."""
        left = tuple(waiting for waiting in self.jobs if waiting != job)
        return replace(self, jobs=left, measured={**self.measured, job.name: seconds})


Measure = Callable[[Context, Job], float]
"""Expected seconds of one core that a job takes at full length."""


def make_plan(
    context: Context,
    workers: int,
    measure: Measure,
    jobs: Sequence[Job] | None = None,
    measured: Mapping[str, float] | None = None,
) -> Plan:
    """The plan of a comparison. What no finished cell tells is timed: one short stack of each objective, one fit of
    each learner.

    Args:
        context: of the comparison.
        workers: processes.
        measure: times what is not known, a job at a time.
        jobs: those to do; None is all.
        measured: seconds that a finished cell of a name took, where a run goes on.
    """
    settings = context.settings
    to_run = tuple(make_jobs(context) if jobs is None else jobs)
    known = dict(measured or {})
    longest: dict[str, float] = {}
    first: dict[str, Job] = {}
    trainings = 0
    refits = 0 if settings.fixed_length else 1
    for job in to_run:
        first.setdefault(job.name, job)
        if job.kind == "objective":
            trainings += sum(settings.trials * len(context.inner(pair)) + refits for pair in job.cells)
    unknown = [name for name in settings.objectives if name in first and name not in known]
    # beside these one that is known: what its cells took tells the share of their epochs that trainings run
    timed = [*[name for name in settings.objectives if name in known and unknown][:1], *unknown]
    for name in timed:
        if name not in longest:
            job = first[name] if name in first else replace(first[unknown[0]], name=name)
            longest[name] = measure(context, job) / len(job.cells)
    for name, job in first.items():
        if job.kind == "classical" and name not in known:
            known[name] = measure(context, job) / len(job.cells)
    pair = next(iter(context.folds))
    inner = len(context.inner(pair))
    rows = len(context.table.target) / len(context.folds[pair].train)
    return Plan(
        to_run,
        trainings,
        workers,
        longest,
        known,
        floor=1.0 if settings.fixed_length else min(1.0, settings.patience / settings.epochs),
        winner=rows * (inner + 1) / (settings.trials * inner + refits),
    )


def fitting_commands(plan: Plan, context: Context, budget: float, command: Sequence[str]) -> list[str]:
    """Command lines that would fit into ``budget`` seconds: each changes one thing."""
    settings, seconds, total = context.settings, plan.seconds, plan.expected
    lines = []
    budget *= MARGIN
    learners = sum(seconds[name] for name in settings.classical if name in seconds) / plan.workers
    networks = total - learners
    fewer = int(settings.trials * (budget - learners) / networks) if networks > 0 else 0
    if 3 <= fewer < settings.trials:
        lines.append(_with(command, "--trials", fewer))
    if settings.repeats > 1 and not settings.test and total / settings.repeats <= budget:
        lines.append(_with(command, "--repeats", max(1, int(settings.repeats * budget / total))))
    affordable, spent = [settings.baseline], learners + seconds.get(settings.baseline, 0.0) / plan.workers
    for name in settings.objectives:
        cost = seconds.get(name, 0.0) / plan.workers
        if name != settings.baseline and spent + cost <= budget:
            affordable.append(name)
            spent += cost
    if len(affordable) > 1 and spent <= budget:
        lines.append(_with(command, "--objectives", ",".join(affordable)))
    if learners and networks <= budget:
        lines.append(_with([word for word in command if word != "--classical"], "--no-classical"))
    lines.append(_with(command, "--budget", math.ceil(total / 60 / MARGIN)))
    return lines


def _with(command: Sequence[str], option: str, value: Any = None) -> str:
    """The command with one option, or flag, set anew."""
    import shlex

    words = list(command)
    for i, word in enumerate(words):
        if word == option:
            del words[i : i + (1 if value is None else 2)]
            break
        if word.startswith(option + "="):
            del words[i]
            break
    return shlex.join([*words, option] if value is None else [*words, option, str(value)])
