"""Several processes at one run, on one machine or many: the command that began it posts jobs, who joins claims them.

The command (``steepest compare``) decides what is computed and when it is over; it computes too, and posts what its own
processes have no room for. Members (``steepest work``) claim posted jobs, hold them by a lease that they renew, and put
the cells into the store. A member that is gone loses its lease, and somebody else claims the job: that is no failure.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..design.context import Context
from ..design.jobs import Job
from ..design.levels import Level
from ..errors import InputError
from .cells import Known
from .executor import GRACE, Executor
from .store import LONGEST, Posted, Store, cell_of, find_run
from .timing import LearnerTime

LEASE = 60.0
"""Seconds after which the jobs of a member that said nothing are free; it renews them three times as often."""
POLL = 0.2
"""Seconds between looks at the store."""
LATE = 2.0
"""Seconds after its end for which a job of a member is waited for: it has to be stored."""


class Team:
    """Members that have joined a run, as many as there are at the time."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._helpers, self._looked = 0, -math.inf

    def helpers(self) -> int:
        """Processes of members; asked of the store once a second at most."""
        if time.monotonic() - self._looked >= 1.0:
            self._helpers, self._looked = self.store.helpers(), time.monotonic()
        return self._helpers

    def processes(self, own: int) -> int:
        """Those of the command and of all members."""
        return own + self.helpers()

    def executor(self, own: Executor) -> TeamExecutor:
        """The command's executor, which posts what members have room for."""
        return TeamExecutor(own, self)


class TeamExecutor:
    """Computes jobs in processes of its own, and has members compute others; while there are none, it is the first."""

    def __init__(self, own: Executor, team: Team) -> None:
        self.own, self.team, self.store = own, team, team.store
        self._posted: dict[tuple[str, int, int, str], tuple[Job, dict[Any, Any], float, float]] = {}
        self._taken: set[tuple[str, int, int, str]] = set()

    @property
    def waited(self) -> float:
        """Seconds for which its own processes had to start."""
        return self.own.waited

    @property
    def running(self) -> list[Job]:
        """Jobs that were given and have not come back."""
        return [*self.own.running, *(job for job, *_ in self._posted.values())]

    @property
    def free(self) -> bool:
        """Whether one more job keeps somebody busy."""
        helpers = self.team.helpers()
        return self.own.free or (helpers > 0 and len(self._posted.keys() - self._taken) <= helpers)

    def submit(self, job: Job, known: Known, ends_at: float, seconds: float = math.inf) -> None:
        """Give a job to an own process that is free, else to the members."""
        if self.own.free or not self.team.helpers():
            self.own.submit(job, known, ends_at, seconds)
            return
        self.store.post(job, ends_at + self.store.skew, seconds)
        self._posted[cell_of(job)] = job, dict(known), ends_at, seconds

    def withdraw(self, name: str) -> None:
        """Forget the jobs of a name that have not begun."""
        self.own.withdraw(name)
        for cell, (job, *_) in list(self._posted.items()):
            if job.name == name and self.store.take_back(job):
                del self._posted[cell]

    def start(self) -> None:
        """Let an own process start."""
        self.own.start()

    def times(self, jobs: Sequence[Job], seconds: float, ends_at: float) -> dict[str, LearnerTime | None]:
        """What classical learners take, in own processes."""
        return self.own.times(jobs, seconds, ends_at)

    def collect(self, seconds: float = math.inf) -> list[tuple[Job, Any]]:
        """Wait for a job, a moment at most where members may have one or may come."""
        ended: list[tuple[Job, Any]] = []
        if self.own.running:
            ended = self.own.collect(min(seconds, POLL))
        elif self._posted:
            time.sleep(min(seconds, POLL))
        return ended + self._collect_posted() if self._posted else ended

    def _collect_posted(self) -> list[tuple[Job, Any]]:
        ended: list[tuple[Job, Any]] = []
        at_store = {posted.cell: posted for posted in self.store.posted()}
        self._taken = {cell for cell in self._posted if cell in at_store and at_store[cell].taken}
        for cell, (job, known, ends_at, seconds) in list(self._posted.items()):
            posted = at_store.get(cell)
            if posted is None:
                result = self.store.result(job)
                if result is None:  # the job is gone without a cell
                    self.store.post(job, ends_at + self.store.skew, seconds)
                    continue
                ended.append((job, [result]))
            elif posted.seconds == 0 or time.time() > ends_at + GRACE + LATE:
                self.store.withdraw([job], taken=True)
                ended.append((job, None))
            elif not posted.taken and self.own.free and self.store.take_back(job):
                self.own.submit(job, known, ends_at, seconds)
            else:
                continue
            del self._posted[cell]
        return ended

    def close(self) -> None:
        """End own processes, and wait for no member any more; what they have begun they may put."""
        self.own.close()
        self.store.withdraw([job for job, *_ in self._posted.values()])
        self._posted.clear()


def job_of(posted: Posted, context: Context) -> Job:
    """The job that somebody waits for, if it is of this comparison.

    Raises:
        InputError: it is not: whoever wrote it has no such settings.
    """
    settings = context.settings
    where = f"a posted job: {posted.name!r:.80}, repeat {posted.repeat}, fold {posted.fold}"
    names = {"objective": settings.objectives, "classical": settings.classical}.get(posted.kind, ())
    if posted.name not in names or (posted.repeat, posted.fold) not in context.folds:
        raise InputError(f"{where}: not of the settings of this run")
    form = re.fullmatch(r"(\d{1,9}/\d{1,9}/\d{1,9});((?:\d{1,9},)*\d{1,9})?", posted.size, re.ASCII)
    if form is None:
        raise InputError(f"{where}: {posted.size!r:.80} is no level")
    level, most = Level.of_text(form[1]), context.level
    groups = tuple(int(word) for word in form[2].split(",")) if form[2] else ()
    if not (0 < level.rows <= most.rows and 0 < level.epochs <= most.epochs and 0 < level.trials <= most.trials):
        raise InputError(f"{where}: {form[1]} is no level of this run")
    if level.of(posted.kind, posted.name) != posted.level or (groups and [*sorted({*groups, 0})][-1] != level.trials):
        raise InputError(f"{where}: {posted.size!r:.80} does not fit {posted.level!r:.80}")
    return Job(posted.kind, posted.name, ((posted.repeat, posted.fold),), level, tuple(sorted(set(groups))))


def wait_for(run: str, url: str | None, out: Path, seconds: float) -> Store:
    """The store of a run, as soon as somebody has begun it.

    Args:
        run: ID, the start of one, folder, or last: the one that began last and has not come to its end.
        url: of the database, or None.
        out: where run folders live.
        seconds: to wait.

    Raises:
        InputError: nobody has.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            store = _begun(run, url, out)
            if store.fact("asked") is None:
                said = "was not begun by `steepest compare`"
            elif run == "last" and store.over():
                said = "is over, and none has begun since"
            else:
                return store
            store.close()
            raise InputError(f"run {store.folder.name} {said}")
        except InputError:
            if time.monotonic() >= until:
                raise
            time.sleep(1.0)


def _begun(run: str, url: str | None, out: Path) -> Store:
    if url is None:
        return Store(find_run(run, out))
    from .postgres import PostgresStore, latest_run, postgres_runs

    if run == "last":
        fitting = [name for name in (latest_run(url),) if name]
    else:
        fitting = [name for name in postgres_runs(url) if name.startswith(run)]
    if len(fitting) != 1:
        said = f"fits {len(fitting)} runs: {', '.join(fitting)}" if fitting else "is not there"
        raise InputError(f"run {run!r} {said}")
    return PostgresStore(out / fitting[0], url=url, make=False)


def help_out(
    context: Context,
    store: Store,
    workers: int,
    *,
    wait: float,
    lease: float = LEASE,
    say: Callable[[str], None] = lambda _: None,
) -> int:
    """Compute jobs that a run waits for; gives how many were computed.

    It ends with the command that posts them, or when none was posted for ``wait`` seconds.

    Args:
        context: of the run, made from its own plan.
        store: of the run.
        workers: processes.
        wait: seconds.
        lease: for which a job is claimed at a time.
        say: told of each job that is done.

    Raises:
        InputError: a job is not of this run.
    """
    executor = Executor(context, workers, here=False)
    computed, idle_since, renewed, was_over = 0, time.monotonic(), -math.inf, store.over()
    try:
        while True:
            if time.monotonic() - renewed > lease / 3:
                store.renew(lease, workers)
                renewed = time.monotonic()
            room = workers - len(executor.running)
            for posted in store.posted() if room else ():
                if not room:
                    break
                if posted.taken or not posted.seconds or posted.ends_at <= time.time() + store.skew:
                    continue
                job = job_of(posted, context)
                if not store.claim(job, lease):
                    continue
                assert job.level is not None
                (pair,) = job.cells
                known = {} if job.kind == "classical" else store.trials(job.name, pair, job.level)
                ends_at = math.inf if posted.ends_at >= LONGEST else posted.ends_at - store.skew
                seconds = math.inf if posted.seconds >= LONGEST else posted.seconds
                executor.submit(job, {(pair, number): record for number, record in known.items()}, ends_at, seconds)
                room -= 1
            if not executor.running:
                over = store.over()
                if time.monotonic() - idle_since > wait or (over and not was_over):
                    return computed
                was_over = over
                time.sleep(POLL)
                continue
            for job, results in executor.collect(POLL):
                if results is None:
                    store.give_up(job)
                    continue
                store.put(results)
                computed += 1
                say(f"{job.name}, repeat {job.cells[0][0]}, fold {job.cells[0][1]}: {results[0].took:.1f} s")
            idle_since = time.monotonic()
    finally:
        executor.close()
        store.leave()
