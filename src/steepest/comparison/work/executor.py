"""Compute jobs here or in processes of one thread each, and end what is not done when its time is over."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from ..design.context import Context
from ..design.deadline import OutOfTime
from ..design.jobs import Job
from . import timing
from .cells import CellResult, Known, run_job
from .timing import LearnerTime
from .worker import Worker

GRACE = 0.5
"""Seconds after its time that a training has to say by itself that it is over, before its process is ended."""
SHORT = 20_000
"""Numbers of a table: below it no classical learner needs a process."""


def run_until(context: Context, job: Job, known: Known, ends_at: float) -> list[CellResult] | None:
    """The cells of a job; None where they were not done by ``ends_at``, a time of the system's clock."""
    over = None if math.isinf(ends_at) else lambda: time.time() >= ends_at
    try:
        return run_job(context, job, known, over)
    except OutOfTime:
        return None


def time_learner(context: Context, job: Job) -> LearnerTime:
    """What a classical learner takes at the level of a job."""
    return timing.time_learner_at(context if job.level is None else context.at(job.level), job)


def apart(context: Context, job: Job, ends_at: float) -> bool:
    """Whether a job needs a process that can be ended: no classical learner asks whether its time is over.

    Where a table has less than :data:`SHORT` numbers each of them takes about as long as a process does to start.
    """
    return job.kind == "classical" and not math.isinf(ends_at) and _numbers(context) >= SHORT


def _numbers(context: Context) -> int:
    """Rows times columns, times classes or labels."""
    width = context.split(next(iter(context.folds)), 0).inputs[0].numel()
    return len(context.table.target) * width * max(1, context.classes)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch here, and for every library in the processes started meanwhile."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    threads = torch.get_num_threads()
    os.environ.update(dict.fromkeys(names, "1"))
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@dataclass
class _Task:
    """A call for a job, dropped when it is not done by ``ends_at``, or ``seconds`` after it has begun."""

    job: Job
    ends_at: float
    call: Callable[..., Any]
    args: tuple[Any, ...]
    seconds: float = math.inf
    given: float = 0.0
    begun: float = math.inf
    """When its process was ready for it."""

    @property
    def over(self) -> float:
        """When its process is ended."""
        return min(self.ends_at, self.begun + self.seconds) + GRACE


class Executor:
    """Computes jobs, one after the other here or several at a time in other processes.

    The processes start with the first job. One that is busy when the time of its job is over is ended.

    Args:
        context: of the comparison, at the level that was asked for; jobs say theirs.
        workers: processes; 1 computes here what can ask the time, and the rest in one process.
        here: whether one process may be this one.
    """

    def __init__(self, context: Context, workers: int, *, here: bool = True) -> None:
        self.context, self.workers, self.here = context, workers, here
        self.waited = 0.0
        """Seconds for which processes were waited for that had to start."""
        self._idle: list[Worker] = []
        self._busy: dict[Connection, tuple[Worker, _Task]] = {}
        self._waiting: deque[_Task] = deque()

    @property
    def running(self) -> list[Job]:
        """Jobs that were given and have not come back."""
        return [task.job for task in (*(task for _, task in self._busy.values()), *self._waiting)]

    @property
    def free(self) -> bool:
        """Whether one more job keeps a worker busy; one spare job in the queue does."""
        return len(self.running) <= (self.workers if self.workers > 1 else 0)

    def submit(self, job: Job, known: Known, ends_at: float, seconds: float = math.inf) -> None:
        """Give a job; it is dropped when it is not done by ``ends_at``, or in a process after so many seconds."""
        self._waiting.append(_Task(job, ends_at, run_until, (job, dict(known), ends_at), seconds))
        self._hand_out()

    def withdraw(self, name: str) -> None:
        """Forget the jobs of a name that have not begun."""
        self._waiting = deque(task for task in self._waiting if task.job.name != name)

    def start(self) -> None:
        """Let a process start while this one computes; jobs of learners that need one will not have to wait for it."""
        if _numbers(self.context) >= SHORT and not (self._idle or self._busy):
            self._add()

    def times(self, jobs: Sequence[Job], seconds: float, ends_at: float) -> dict[str, LearnerTime | None]:
        """What classical learners take, by name; None of those that are not done after so many seconds, or in time.

        Args:
            jobs: one for each learner, of the level that is timed. No other may be running.
            seconds: that each may take, once a process is ready.
            ends_at: when all of them are over.
        """
        if not any(apart(self.context, job, ends_at) for job in jobs):
            return {job.name: time_learner(self.context, job) for job in jobs}
        taken: dict[str, LearnerTime | None] = {}
        left = deque(jobs)
        while left or self._busy:
            spare = min(len(left), self.workers - len(self._busy))
            if spare and not self._ready(spare, ends_at):
                self.close()
                return {job.name: taken.get(job.name) for job in jobs}
            for _ in range(spare):
                job = left.popleft()
                self._waiting.append(_Task(job, ends_at, time_learner, (job,), seconds))
            taken |= {job.name: result for job, result in self.collect()}
        return taken

    def _ready(self, count: int, ends_at: float) -> bool:
        """So many processes that begin at once, with what learners need imported; whether they are there in time."""
        began = time.time()
        try:
            return self._started(count, ends_at)
        finally:
            self.waited += time.time() - began

    def _started(self, count: int, ends_at: float) -> bool:
        while len(self._idle) < count:
            self._add()
        for worker in self._idle:
            worker.prepare(timing.import_learners)
        while starting := {worker.connection: worker for worker in self._idle if not worker.ready}:
            answering = wait(list(starting), max(0.0, ends_at - time.time()))
            if not answering:
                return False
            for connection in answering:
                starting[connection].answer()  # type: ignore[index]
        return True

    def _add(self) -> None:
        self._idle.append(Worker(self.context.table, self.context.settings, self.context.test))

    def _apart(self, task: _Task) -> bool:
        return self.workers > 1 or not self.here or apart(self.context, task.job, task.ends_at)

    def _hand_out(self) -> None:
        """Give waiting tasks to processes that have none, those of them that need one."""
        while self._waiting and self._apart(self._waiting[0]) and len(self._busy) < self.workers:
            if not self._idle:
                self._add()
            worker, task = self._idle.pop(), self._waiting.popleft()
            if task.job.kind == "classical":
                worker.prepare(timing.import_learners)
            worker.give(task.call, *task.args)
            task.given = time.time()
            task.begun = task.given if worker.ready else math.inf
            self._busy[worker.connection] = worker, task

    def collect(self, seconds: float = math.inf) -> list[tuple[Job, Any]]:
        """Wait for a job, so many seconds at most; each with its cells, or None where it was dropped."""
        self._hand_out()
        if not self._busy:
            task = self._waiting[0]
            args = task.args
            if task.call is run_until and not math.isinf(task.seconds):  # a learner's part of the time is over sooner
                args = (*args[:-1], min(task.ends_at, time.time() + task.seconds))
            result = task.call(self.context, *args)
            self._waiting.popleft()
            return [(task.job, result)]
        ended: list[tuple[Job, Any]] = []
        until = time.time() + seconds
        while not ended and time.time() < until:
            over = min(until, *(task.over for _, task in self._busy.values()))
            for connection in wait(list(self._busy), None if math.isinf(over) else max(0.0, over - time.time())):
                worker, task = self._busy[connection]  # type: ignore[index]
                if not worker.ready:
                    worker.answer()
                    if worker.ready:
                        task.begun = time.time()
                        self.waited += task.begun - task.given
                    continue
                result = worker.answer()
                del self._busy[worker.connection]
                self._idle.append(worker)
                ended.append((task.job, result))
            for worker, task in list(self._busy.values()):
                if time.time() >= task.over and not worker.connection.poll():
                    del self._busy[worker.connection]
                    worker.end()
                    ended.append((task.job, None))
        self._hand_out()
        return ended

    def close(self) -> None:
        """End the processes, in the middle of what they may be doing."""
        workers = [*self._idle, *(worker for worker, _ in self._busy.values())]
        self._idle, self._busy = [], {}
        self._waiting.clear()
        for worker in workers:
            worker.end()
