"""Compute what a plan lacks: worker processes of one thread each, results written by the parent as they come."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager

import torch

from ..design.context import Context
from ..design.jobs import Job
from ..design.settings import Settings
from ..read import Table
from .cells import CellResult, run_job
from .store import Store

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


def _work(job: Job) -> list[CellResult]:
    assert _context is not None
    return run_job(_context, job)


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


def remaining(jobs: Sequence[Job], store: Store) -> list[Job]:
    """Jobs with a cell that is not finished; a job's cells are written together, so it is all of them."""
    finished = store.finished()
    return [job for job in jobs if any((job.name, *pair) not in finished for pair in job.cells)]


def compute(
    context: Context,
    jobs: Sequence[Job],
    store: Store,
    *,
    workers: int,
    progress: Callable[[Job, list[CellResult]], None],
) -> None:
    """Compute ``jobs`` and store each as it finishes.

    Args:
        context: table and settings.
        jobs: what is missing.
        store: written by this process alone.
        workers: processes; 1 computes here.
        progress: called after a job's cells are stored.
    """
    if workers == 1 or len(jobs) <= 1:
        for job in jobs:
            results = run_job(context, job)
            store.add(results)
            progress(job, results)
        return
    pool = ProcessPoolExecutor(
        max_workers=min(workers, len(jobs)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(context.table, context.settings, context.test),
    )
    queue = iter(jobs)
    running: dict[Future[list[CellResult]], Job] = {}
    try:
        for job in queue:
            with _no_interrupt(), _without_main():
                running[pool.submit(_work, job)] = job
            if len(running) <= workers:  # one spare job in the queue keeps every worker busy
                continue
            _collect(running, store, progress)
        while running:
            _collect(running, store, progress)
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


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
    kept = {name: vars(main)[name] for name in ("__file__", "__spec__") if name in vars(main)}
    for name in kept:
        delattr(main, name)
    main.__spec__ = None
    try:
        yield
    finally:
        del main.__spec__
        vars(main).update(kept)


def _collect(
    running: dict[Future[list[CellResult]], Job],
    store: Store,
    progress: Callable[[Job, list[CellResult]], None],
) -> None:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        job = running.pop(future)
        results = future.result()
        store.add(results)
        progress(job, results)
