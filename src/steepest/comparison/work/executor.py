"""Compute jobs in worker processes of one thread each; what they find comes back to the parent, which keeps it."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager

import torch

from ..design.context import Context
from ..design.deadline import OutOfTime
from ..design.jobs import Job
from ..design.settings import Settings
from ..read import Table
from .cells import CellResult, Known, run_job

_context: Context | None = None


def _start(table: Table, settings: Settings, test: Table | None) -> None:
    """Set a worker up; it ends itself when its parent is gone, however that died."""
    global _context
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    torch.set_num_threads(1)
    _context = Context(table, settings, test)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _work(job: Job, known: Known, ends_at: float) -> list[CellResult] | None:
    assert _context is not None
    return run_until(_context, job, known, ends_at)


def run_until(context: Context, job: Job, known: Known, ends_at: float) -> list[CellResult] | None:
    """The cells of a job; None where they were not done by ``ends_at``, a time of the system's clock."""
    over = None if math.isinf(ends_at) else lambda: time.time() >= ends_at
    try:
        return run_job(context, job, known, over)
    except OutOfTime:
        return None


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


class Executor:
    """Computes jobs, one after the other here or several at a time in other processes.

    The processes start with the first job, and read nothing but what they are given.

    Args:
        context: of the comparison, at the level that was asked for; jobs say theirs.
        workers: processes; 1 computes here.
    """

    def __init__(self, context: Context, workers: int) -> None:
        self.context, self.workers = context, workers
        self._pool: ProcessPoolExecutor | None = None
        self._running: dict[Future[list[CellResult] | None], Job] = {}
        self._here: deque[tuple[Job, Known, float]] = deque()

    @property
    def running(self) -> list[Job]:
        """Jobs that were given and have not come back."""
        return [*self._running.values(), *(job for job, *_ in self._here)]

    @property
    def free(self) -> bool:
        """Whether one more job keeps a worker busy; one spare job in the queue does."""
        return len(self.running) <= (self.workers if self.workers > 1 else 0)

    def submit(self, job: Job, known: Known, ends_at: float) -> None:
        """Give a job; it is dropped when it is not done by ``ends_at``."""
        if self.workers == 1:
            self._here.append((job, known, ends_at))
            return
        if self._pool is None:
            context = self.context
            self._pool = ProcessPoolExecutor(
                max_workers=self.workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start,
                initargs=(context.table, context.settings, context.test),
            )
        with _no_interrupt(), _without_main():
            self._running[self._pool.submit(_work, job, dict(known), ends_at)] = job

    def collect(self) -> list[tuple[Job, list[CellResult] | None]]:
        """Wait for a job at least; each with its cells, or None where it was dropped."""
        if self._here:
            job, known, ends_at = self._here[0]
            outcomes = run_until(self.context, job, known, ends_at)
            self._here.popleft()
            return [(job, outcomes)]
        done, _ = wait(self._running, return_when=FIRST_COMPLETED)
        return [(self._running.pop(future), future.result()) for future in done]

    def close(self, *, now: bool = False) -> None:
        """Let the processes end; ``now`` ends them in the middle of their jobs."""
        if self._pool is None:
            return
        if now:
            for process in list((self._pool._processes or {}).values()):
                process.terminate()
        self._pool.shutdown(wait=not now, cancel_futures=True)
        self._pool = None


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Hold Ctrl-C back while processes start: they inherit that, and never hear of it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _without_main() -> Iterator[None]:
    """Start processes that don't run the caller's script again: a script needs no ``if __name__ == "__main__"``."""
    main = sys.modules["__main__"]
    names_of_main = {name: vars(main)[name] for name in ("__file__", "__spec__") if name in vars(main)}
    for name in names_of_main:
        delattr(main, name)
    main.__spec__ = None
    try:
        yield
    finally:
        del main.__spec__
        vars(main).update(names_of_main)
