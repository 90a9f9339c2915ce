"""What is computed before a deadline: a full round of folds at the highest level that fits, then more."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ..design.context import Context, Pair
from ..design.deadline import EVER, Deadline
from ..design.jobs import Job
from ..design.levels import FEWEST_OBJECTIVES, Design, Level, levels_of, trial_groups
from . import timing
from .costs import Costs
from .engine import Alone, Engine, Executing
from .executor import Executor, run_until
from .store import Store
from .watcher import Watcher

FILLED = 0.7
"""The part of what is left that the first round may fill, by the estimates."""
SLIP = 1.5
"""A cell that takes so many times its estimate has the level looked at again."""
PROBED = 50.0
"""Below this budget (seconds) the lowest level tells what objectives cost; above it a few of their steps are timed."""
TOLD = 0.3
"""The part of such a budget that this takes at most."""
ALONE = 5.0
"""Below this budget, or for so little work, nothing but this process computes."""
SOON = 5.0
"""Where the first cell takes longer (seconds), the baseline goes first at the lowest level."""
REPORT, SPAWN = 3.0, 4.0
"""Seconds of one core that the report takes, and the start of a process."""
MOST_SLOW = 6.0
"""Wall seconds to a second of one core that are believed at most."""
LEARNERS, EARLY = 0.25, 0.1
"""The part of a budget that classical learners may take, and of it what they may take before objectives."""
TIMED_ROWS, TIMED_ROWS_LEARNER = 5000, 500
"""Most training rows of what is only timed; of a learner at first, then :data:`TIMED_GROWTH` times as many."""
TIMED_GROWTH, TIMED_LEARNER = 4, 0.04
"""The part of the time of all learners that one fit may be expected to take at a size at which a learner is timed."""


@dataclass(frozen=True)
class Course:
    """What was decided: a level, what is computed at it, and what comes last.

    Attributes:
        level: of all cells.
        objectives: that are compared, the baseline first.
        repeats: rounds of folds that were promised; more come where time is left.
        last: objectives that run when the others are through, because the level is higher without them.
        learners: classical learners beside them.
    """

    level: Level
    objectives: tuple[str, ...]
    repeats: int
    last: tuple[str, ...] = ()
    learners: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As the store keeps it."""
        return {**vars(self), "level": self.level.text} | {
            key: list(getattr(self, key)) for key in ("objectives", "last", "learners")
        }

    @property
    def first(self) -> tuple[str, ...]:
        """The objectives that a round of folds needs."""
        return tuple(name for name in self.objectives if name not in self.last)


class Schedule:
    """Computes what fits before a deadline and keeps it.

    Args:
        context: of the comparison, at the level that was asked for.
        store: of its run.
        designs: from what was asked for to the smallest, in the order in which it is cut.
        deadline: of this call; None computes the first design whole.
        workers: processes.
        watcher: told what is computed.
        engine: what computes beside this command.
    """

    def __init__(
        self,
        context: Context,
        store: Store,
        designs: Sequence[Design],
        deadline: Deadline | None,
        workers: int,
        watcher: Watcher,
        engine: Engine | None = None,
    ) -> None:
        self.context, self.store, self.designs, self.watcher = context, store, list(designs), watcher
        self.deadline = Deadline(math.inf) if deadline is None else deadline
        self.levels = levels_of(self.designs)
        self.workers = 1 if self.deadline.seconds < ALONE else workers
        self.engine = engine or Alone()
        self.costs = Costs(context)
        self.folds = list(context.folds)
        self.first_round = [pair for pair in self.folds if pair[0] == self.folds[0][0]]
        self.finished = store.finished()
        self.compared = context.settings.objectives[:1]
        """Objectives of which one will be fitted again."""
        self.late: dict[str, float] = {}
        """Seconds that objectives which did not fit would take."""
        self.learners: tuple[str, ...] = ()
        """Classical learners of which one may be fitted again."""
        self.left_out: dict[str, dict[str, Any]] = {}
        """Classical learners that have no time, or were stopped: the seconds of one core that a round would take."""
        self._learned, self._learners_end = 0.0, math.inf
        self.slow = 1.0
        """Wall seconds to a second of one core: others may be at work on this machine."""
        self._clocks = self.deadline.clock(), time.process_time()
        self.computed = 0
        self.warm = False
        self._kinds = {
            **dict.fromkeys(context.settings.classical, "classical"),
            **dict.fromkeys(context.settings.objectives, "objective"),
        }
        self._know_what_is_stored()

    @property
    def processes(self) -> int:
        """How many jobs are computed at a time."""
        return self.engine.processes(self.workers)

    # ---- what things cost ----

    def _know_what_is_stored(self) -> None:
        for level in self.levels:
            for name, own in self.store.cells(level).items():
                for values in own.values():
                    if name in self._kinds:
                        self.costs.finished(name, self._kinds[name], level, values["seconds"])

    def _measure(self) -> None:
        """Learn what each objective costs: of the lowest level whole where time is short, else of a few steps."""
        settings, pair = self.context.settings, self.folds[0]
        unknown = [name for name in settings.objectives if not self.costs.known(name)]
        if self.deadline.seconds < PROBED:
            enough = self.deadline.left * (1 - TOLD)
            for name in unknown:
                job = self._job(name, pair, self.levels[-1])
                if self.deadline.left < enough or not self._fits(self.costs.cell(name, "objective", self.levels[-1])):
                    break
                self._here(job)
            return
        top = self.levels[0]
        level = replace(top, rows=min(top.rows, TIMED_ROWS))
        for name in unknown:
            seconds = timing.time_job(self.context.at(level), Job("objective", name, (pair,)))
            self.costs.timed(name, level, seconds)

    def _measure_learners(self, level: Level, executor: Executing, share: float) -> tuple[str, ...]:
        """Those classical learners whose round of folds fits this share of the budget, the cheap ones first."""
        if self.deadline.seconds < 2 * ALONE or not self.context.settings.classical:
            return ()
        self.learners = ()
        seconds = min(share * self.deadline.seconds - self._learned, self.deadline.left - self._reserve(level))
        if seconds <= 0:
            for name in self.context.settings.classical:
                if self._missing([name], self.first_round, level):
                    self._leave_out(name, level, stopped=False)
                else:
                    self.learners = (*self.learners, name)
            return self.learners
        began, waited = self.deadline.clock(), executor.waited
        self._time_learners(level, seconds, executor)
        self._learners_end = began + seconds - waited  # processes that start are no work of learners
        spent = 0.0
        for name in self.context.settings.classical:
            if name in self.left_out:
                continue
            cost = self.costs.cell(name, "classical", level) * len(self._missing([name], self.first_round, level))
            took = (spent + cost) / self.processes
            if took <= self._learners_left(executor) and self._fits(took, level, name):
                self.learners = (*self.learners, name)
                spent += cost
            else:
                self._leave_out(name, level, stopped=False)
        return self.learners

    def _time_learners(self, level: Level, seconds: float, executor: Executing) -> None:
        """Time classical learners at more and more rows, as long as that is cheap: cost grows by a power of its own."""
        names = [name for name in self.context.settings.classical if not self.costs.learner_done(name, level)]
        rows, pair = min(TIMED_ROWS_LEARNER, level.rows), self.folds[0]
        most = seconds * self.processes / len(self.first_round)
        while names:
            small = replace(level, rows=rows)
            jobs = [Job("classical", name, (pair,), small) for name in names if self.costs.timed_rows(name) < rows]
            for name, took in executor.times(jobs, most, self.deadline.ends_at - self._reserve(level)).items():
                if took is None:  # no round of it has time
                    self._leave_out(name, level, stopped=True)
                else:
                    self.costs.learner_timed(
                        name, replace(took, fit=self.slow * took.fit, predict=self.slow * took.predict)
                    )
            if rows == level.rows:
                return
            rows = min(level.rows, TIMED_GROWTH * rows)
            small = replace(level, rows=rows)
            names = [name for name in names if name not in self.left_out]
            names = [name for name in names if self.costs.one_fit(name, small) <= TIMED_LEARNER * seconds]

    def _learners_left(self, executor: Executing) -> float:
        """Seconds that are left of the part of the budget that classical learners have."""
        return self._learners_end + executor.waited - self.deadline.clock()

    def _part_fits(self, job: Job, level: Level, executor: Executing) -> bool:
        """Whether what is missing of a learner's round fits that part, by what its cells have taken."""
        missing = self._missing([job.name], self.first_round, level)
        return len(missing) * self._cost(job) / self.processes <= self._learners_left(executor)

    def _leave_out(self, name: str, level: Level, *, stopped: bool) -> None:
        """A classical learner has no time; what a round of folds would take of one core is kept, 0 where unknown."""
        cost = self.costs.cell(name, "classical", level) * len(self.first_round)
        self.left_out[name] = {"seconds": cost if math.isfinite(cost) else 0.0, "stopped": stopped}

    def _reserve(self, level: Level, names: Sequence[str] | None = None, learner: str | None = None) -> float:
        """Seconds for the fit of the winner, one of ``names`` or of the learners that run, and the report."""
        if math.isinf(self.deadline.seconds):
            return 0.0
        one = replace(level, trials=1)
        learners = self.learners if learner is None else (*self.learners, learner)
        dearest = max(
            *(self.costs.cell(name, "objective", one) for name in names or self.compared),
            *(self.costs.cell(name, "classical", one) for name in learners),
            0.0,
        )
        return 1.3 * dearest + min(REPORT * self.slow, self.deadline.seconds / 4)

    def _fits(self, seconds: float, level: Level | None = None, learner: str | None = None) -> bool:
        return self.deadline.fits(seconds + self._reserve(level or self.levels[-1], learner=learner))

    # ---- what is decided ----

    def _round_cost(self, level: Level, names: Sequence[str], repeats: int) -> float:
        """Seconds on the clock that what is missing of so many rounds takes."""
        cells = [
            (name, "objective", level)
            for pair in self.folds
            for name in names
            if pair[0] - self.folds[0][0] < repeats and (name, *pair, level.text) not in self.finished
        ]
        if not cells:
            return 0.0
        return max(self.costs.total(cells) / self.processes, max(self.costs.cell(*cell) for cell in set(cells)))

    def choose(self, start: int = 0, part: float = FILLED) -> tuple[int, Course]:
        """The first design from ``start`` on that fits, and its place.

        Slow objectives come last where that raises the level.
        """
        room = self.deadline.left * part
        if self.context.settings.classical and self.deadline.seconds >= 2 * ALONE and not math.isinf(room):
            room -= 0.15 * self.deadline.left

        def fitting(without: bool) -> tuple[int, Course]:
            for place in range(start, len(self.designs)):
                course = self._course(self.designs[place], without)
                cost = self._round_cost(course.level, course.first, course.repeats)
                if cost + self._reserve(course.level, course.first) <= room:
                    break
            return place, course

        place, course = fitting(without=False)
        place_without, without = fitting(without=True)
        higher = self.levels.index(without.level) < self.levels.index(course.level)
        return (place_without, without) if without.last and higher else (place, course)

    def _decided(self) -> tuple[int, Course] | None:
        """What an interrupted call of this budget had decided, and its place among the designs."""
        decided = self.store.fact("course")
        if decided is None or not decided["fixed"] or decided["budget"] != self.deadline.seconds:
            return None
        for place, design in enumerate(self.designs):
            names = self.context.settings.objectives[: design.objectives]
            last = tuple(name for name in names[1:] if name in decided["last"])
            if design.level.text == decided["level"] and list(names) == decided["objectives"]:
                return place, Course(design.level, names, design.repeats, last)
        return None

    def _course(self, design: Design, without: bool) -> Course:
        """The course of a design; ``without`` its slow objectives, of which each is over a third of a fold."""
        names = self.context.settings.objectives[: design.objectives]
        last = self.costs.slow(names, design.level) if without else ()
        return Course(design.level, names, design.repeats, last)

    # ---- what is computed ----

    def _job(self, name: str, pair: Pair, level: Level) -> Job:
        return Job(self._kinds[name], name, (pair,), level, trial_groups(self.levels, level))

    def _known(self, job: Job) -> dict[tuple[Pair, int], dict[str, Any]]:
        if job.kind == "classical" or job.level is None:
            return {}
        (pair,) = job.cells
        return {(pair, number): record for number, record in self.store.trials(job.name, pair, job.level).items()}

    def _here(self, job: Job, ends_at: float = math.inf) -> None:
        """Compute a job in this process."""
        self._keep(job, run_until(self.context, job, self._known(job), ends_at))

    def _keep(self, job: Job, found: Sequence[Any] | None, executor: Executing | None = None) -> bool:
        """Keep what a job found; whether its cells took far longer than expected."""
        if found is None and job.level is not None and self._in_part(job):
            self._leave_out(job.name, job.level, stopped=True)
            if executor is not None:
                executor.withdraw(job.name)
        if found is None or job.level is None:
            return False
        expected = self.costs.cell(job.name, job.kind, job.level)
        if not self.computed:
            self.store.set_fact("results", None)  # they rest on fewer cells
        if fresh := [cell for cell in found if not cell.stored]:
            self.store.put(fresh)
        self.computed += len(found)
        for cell in found:
            self.finished.add((cell.name, cell.repeat, cell.fold, cell.level))
            took = cell.took if self.warm else cell.values["seconds"]  # the first imports what all use
            self.costs.finished(job.name, job.kind, job.level, took)
            self._learned += cell.took / self.processes * (job.kind == "classical")
        self.warm = True
        self.store.set_fact("seconds", self.deadline.spent + self.deadline.elapsed)
        self.watcher.finished(job, found)
        return any(cell.took > SLIP * expected for cell in found)

    def _missing(self, names: Sequence[str], pairs: Sequence[Pair], level: Level) -> list[Job]:
        jobs_missing = []
        for pair in pairs:
            for name in names:
                job = self._job(name, pair, level)
                if (name, *pair, level.of(job.kind, name)) not in self.finished:
                    jobs_missing.append(job)
        return jobs_missing

    def _rest(self, course: Course, executor: Executing) -> Iterator[list[Job]]:
        """What follows the first round, each part to be done whole: learners, slow objectives, further folds."""
        names, begun = course.first, {pair[0] for pair in self.first_round}
        learners = self._measure_learners(course.level, executor, LEARNERS)
        yield from ([job] for job in self._missing(learners, self.first_round, course.level))
        for name in course.last:
            jobs = self._missing([name], self.first_round, course.level)
            if self._fits(sum(self._cost(job) for job in jobs) / self.processes, course.level):
                names = self.compared = (*names, name)
                yield from ([job] for job in jobs)
            else:
                self.late[name] = sum(self._cost(job) for job in jobs)
        for pair in self.folds:
            if pair[0] not in begun:
                yield self._missing((*names, *learners), [pair], course.level)

    def _cost(self, job: Job) -> float:
        assert job.level is not None
        return self.costs.cell(job.name, job.kind, job.level)

    def work(self) -> int:
        """Compute what fits; gives how many cells were computed."""
        settings, lowest = self.context.settings, self.levels[-1]
        if math.isinf(self.deadline.seconds):
            design = self.designs[0]
            course = Course(design.level, settings.objectives, design.repeats, (), settings.classical)
            self._begin(course)
            with self._executor(course) as executor:
                self._run(
                    self._missing((*course.objectives, *course.learners), self.folds, course.level),
                    course,
                    None,
                    executor,
                )
            return self.computed
        if self.deadline.over and any(name == settings.baseline for name, *_ in self.finished):
            return 0
        if self.deadline.seconds < PROBED:
            self._first(lowest)
        self._measure()
        self._time_others()
        place, course = self._decided() or self.choose()
        if self._cost(self._job(settings.baseline, self.folds[0], course.level)) > SOON:
            self._first(lowest, FEWEST_OBJECTIVES)  # a first table, soon
        pilot = self._missing(settings.objectives[:1], self.folds[:1], course.level)
        if pilot and self._fits(self._cost(pilot[0]), course.level):
            self._begin(course, fixed=False)
            self._here(pilot[0], self._ends_at(course.level))  # what early stopping leaves is known then
            place, course = self._decided() or self.choose()
        higher: tuple[int, Course] | None = (place, course)
        with self._executor(course) as executor:
            while higher is not None:
                place, course = higher
                self._begin(course)
                if self.computed and not self.learners:
                    self._learn_early(course, executor)
                course = self._run(self._missing(course.first, self.first_round, course.level), course, place, executor)
                higher = self._higher(course) if self._finish(course, executor) else None
        if not any(cell[0] == settings.baseline for cell in self.finished):
            self._first(lowest)
        return self.computed

    def _finish(self, course: Course, executor: Executing) -> bool:
        """What follows the first round, as far as it fits; whether all of it did."""
        if self._missing(course.first, self.first_round, course.level):
            return False
        return self._follow(self._rest(course, executor), course, executor)

    def _learn_early(self, course: Course, executor: Executing) -> None:
        """Compute the learners that take little before the objectives, which may take all that is left.

        The others are looked at again when the first round is done.
        """
        learners = self._measure_learners(course.level, executor, min(EARLY, LEARNERS))
        jobs = self._missing(learners, self.first_round, course.level)
        self._follow(([job] for job in jobs), course, executor)
        self.left_out.clear()

    def _follow(self, parts: Iterable[list[Job]], course: Course, executor: Executing) -> bool:
        """Compute parts of the work whole, as long as each fits; whether all of them did."""
        for jobs in parts:
            jobs = [job for job in jobs if job.name not in self.left_out]
            if jobs and self._in_part(jobs[0]) and not self._part_fits(jobs[0], course.level, executor):
                self._leave_out(jobs[0].name, course.level, stopped=True)
                continue
            if jobs and not self._fits(sum(self._cost(job) for job in jobs) / self.processes, course.level):
                return False
            self._run(jobs, course, None, executor)
        return True

    def _higher(self, course: Course) -> tuple[int, Course] | None:
        """A larger design that fits what is left, and its place, when one is done; estimates were too high then."""
        if self.late:
            return None
        here = [(design.level, design.objectives) for design in self.designs].index(
            (course.level, len(course.objectives))
        )
        self.learners = ()  # at another level others have time
        place, larger = self.choose()
        return (place, larger) if place < here else None

    def _time_others(self) -> None:
        """How much others slow this process down: it alone has worked until now."""
        wall, core = self.deadline.clock() - self._clocks[0], time.process_time() - self._clocks[1]
        self.slow = min(MOST_SLOW, max(1.0, wall / core)) if core > 0.05 else 1.0

    def _first(self, lowest: Level, count: int = 1) -> None:
        """The baseline in the first fold at the lowest level, however little time there is: an answer of some sort.

        Others beside it, up to ``count``, where they fit.
        """
        names = self.context.settings.objectives[:count]
        for job in self._missing(names, self.folds[:1], lowest):
            if job.name == names[0] or self._fits(self._cost(job)):
                self._begin(Course(lowest, names, 1), fixed=False)
                self._here(job)

    @contextmanager
    def _executor(self, course: Course) -> Iterator[Executing]:
        """What computes a course; it has done all that it was given when it ends."""
        rounds = len(self.folds) // len(self.first_round)
        if self.deadline.seconds < math.inf:
            work = self._round_cost(course.level, course.first, rounds) * self.processes
            if min(work, self.deadline.left) < max(ALONE, 2 * SPAWN * self.slow):
                self.workers = 1
        executor = self.engine.executor(Executor(self.context, self.workers))
        if self.context.settings.classical and 2 * ALONE <= self.deadline.seconds < math.inf:
            executor.start()
        try:
            yield executor
            while executor.running:
                for job, outcomes in executor.collect():
                    self._keep(job, outcomes, executor)
        finally:
            executor.close()

    def needed(self) -> float:
        """The budget, in seconds, in which the whole design would fit."""
        course = Course(self.designs[0].level, self.context.settings.objectives, self.designs[0].repeats)
        if math.isinf(self.deadline.seconds):
            return 0.0
        rest, spent = self._round_cost(course.level, course.first, course.repeats), self.deadline.spent
        if not rest:
            return spent + self.deadline.elapsed
        seconds = spent + self.deadline.elapsed + (rest + self._reserve(course.level)) / FILLED
        seconds = max(seconds, 1.2 * self.deadline.seconds)
        step = 10 if seconds <= 120 else 60 if seconds <= 7200 else 1800
        return min(EVER, float(math.ceil(seconds / step) * step))

    def _begin(self, course: Course, *, fixed: bool = True) -> None:
        """A course is taken from here on; one that is not ``fixed`` is decided anew by a call that goes on."""
        self.compared = course.first
        decided = {**course.to_json(), "budget": min(self.deadline.seconds, EVER), "fixed": fixed}
        ends_at = min(self.deadline.ends_at + self.store.skew, EVER)
        self.store.set_facts({"course": decided, "ends_at": ends_at})
        self.watcher.level(self.context.at(course.level), course.level, course.objectives, self.deadline)

    def _ends_at(self, level: Level) -> float:
        return self.deadline.ends_at - self._reserve(level)

    def _submit(self, job: Job, level: Level, executor: Executing) -> None:
        """Give a job; a learner that takes so long that its round would not fit the part of learners is stopped."""
        seconds = math.inf
        if self._in_part(job):
            missing = self._missing([job.name], self.first_round, level)
            seconds = self._learners_left(executor) * self.processes / max(1, len(missing))
        executor.submit(job, self._known(job), self._ends_at(level), seconds)

    def _in_part(self, job: Job) -> bool:
        """Whether a job is of a learner that the report rests on only where it is done."""
        return job.kind == "classical" and job.cells[0] in self.first_round

    def _run(self, jobs: Sequence[Job], course: Course, place: int | None, executor: Executing) -> Course:
        """Compute jobs as long as each fits.

        With a ``place`` among the designs the level falls where they no longer do, and all are done when it comes back;
        without one some may still run.
        """
        queue = list(jobs)
        while queue or (executor.running and place is not None):
            if queue and executor.free:
                if self._fits(self._cost(queue[0]), course.level):
                    job = queue.pop(0)
                    self._submit(job, course.level, executor)
                    continue
                lower = None if place is None else self._lower(place)
                if lower is None:
                    break
                place, course, queue = lower
                continue
            slipped = [self._keep(job, outcomes, executor) for job, outcomes in executor.collect()]
            if any(slipped) and place is not None and not self._round_fits(course):
                lower = self._lower(place)
                if lower is not None:
                    place, course, queue = lower
        while executor.running and place is not None:
            for job, outcomes in executor.collect():
                self._keep(job, outcomes, executor)
        return course

    def _round_fits(self, course: Course) -> bool:
        return self._fits(self._round_cost(course.level, course.first, 1), course.level)

    def _lower(self, place: int) -> tuple[int, Course, list[Job]] | None:
        """A later design that fits what is left, and its jobs; None where nothing lower fits."""
        below = [p for p in range(place + 1, len(self.designs)) if self.designs[p] != self.designs[place]]
        if not below:
            return None
        chosen, course = self.choose(below[0])
        if not self._fits(self._round_cost(course.level, course.first, 1), course.level):
            return None
        self._begin(course)
        return chosen, course, self._missing(course.first, self.first_round, course.level)
