"""What computes the jobs of a run: processes of this command, of others that have joined it, or of a cluster."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from ..design.jobs import Job
from .cells import Known
from .executor import Executor
from .timing import LearnerTime


class Executing(Protocol):
    """What jobs are given to, and what gives their cells back as they are computed."""

    @property
    def waited(self) -> float:
        """Seconds for which processes were waited for that had to start."""

    @property
    def running(self) -> list[Job]:
        """Jobs that were given and have not come back."""

    @property
    def free(self) -> bool:
        """Whether one more job keeps something busy."""

    def submit(self, job: Job, known: Known, ends_at: float, seconds: float = math.inf) -> None:
        """Give a job; it is dropped when it is not done by ``ends_at``, or so many seconds after it began."""

    def withdraw(self, name: str) -> None:
        """Forget the jobs of a name that have not begun."""

    def start(self) -> None:
        """Prepare while others compute."""

    def times(self, jobs: Sequence[Job], seconds: float, ends_at: float) -> dict[str, LearnerTime | None]:
        """What classical learners take, by name."""

    def collect(self, seconds: float = math.inf) -> list[tuple[Job, Any]]:
        """Wait for a job; each with its cells, or None where it was dropped. It may come back with none."""

    def close(self) -> None:
        """End what is running."""


class Engine(Protocol):
    """Where the jobs of a run are computed besides in processes of the command itself."""

    def processes(self, own: int) -> int:
        """How many jobs are computed at a time where the command itself has so many processes."""

    def executor(self, own: Executor) -> Executing:
        """What computes them; ``own`` has not begun."""


@contextmanager
def engine_for(executor: str | None, workers: int) -> Iterator[Engine | None]:
    """The engine that ``--executor`` names; None is the command itself, with whoever joins its run.

    Args:
        executor: None, ``ray`` or ``ray://ADDRESS``.
        workers: processes of a cluster that is started here.
    """
    if executor is None or executor == "local":
        yield None
        return
    from .on_ray import RayEngine

    engine = RayEngine(executor.partition("://")[2] or None, workers)
    try:
        yield engine
    finally:
        engine.close()


class Alone:
    """The command itself and nothing else."""

    def processes(self, own: int) -> int:
        """Its own processes."""
        return own

    def executor(self, own: Executor) -> Executing:
        """Its own executor."""
        return own
