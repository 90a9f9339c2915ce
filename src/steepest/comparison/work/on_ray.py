"""Jobs as tasks of a Ray cluster: the data go to its object store once, and a node that is lost is no failure."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..design.context import Context
from ..design.jobs import Job
from ..errors import InputError
from . import timing
from .cells import Known
from .executor import GRACE, Executor, run_until, time_learner
from .timing import LearnerTime

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
try:
    import ray
    from ray import exceptions
except ImportError as error:
    raise InputError(f"--executor: {error}; pip install 'steepest[ray]'") from error

HERE = "127.0.0.1"
MOST_CRASHES = 3
"""How often the process of one job may end by itself, on a node that lives on, before that is an error."""
STARTING = 15.0
"""Seconds that a process of a cluster may take to start and to import what it needs."""
LOOK = 1.0
"""Seconds between looks at the cluster."""


class RayEngine:
    """A cluster that is there, or one of this machine alone that is started, and ended by :meth:`close`.

    Args:
        address: as ``ray start --head`` prints it (``host:6379``), or ``auto``; None starts one here.
        workers: processes of a cluster that is started here.

    Raises:
        InputError: there is no cluster.
    """

    def __init__(self, address: str | None, workers: int) -> None:
        self._started = not ray.is_initialized()
        if self._started:
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
            try:
                if address is None:
                    ray.init("local", num_cpus=workers, include_dashboard=False, _node_ip_address=HERE, **quiet)
                else:
                    _knock(address)
                    ray.init(address=address, **quiet)
            except (ConnectionError, RuntimeError, ValueError, OSError) as error:
                where = "here" if address is None else f"at {address!r}"
                raise InputError(f"--executor: no Ray cluster {where}: {' '.join(str(error).split())[:200]}") from error
        self._counted, self._looked = 1, -math.inf

    def processes(self, own: int) -> int:
        """The processors of the cluster, as many as it has by now."""
        if time.monotonic() - self._looked >= LOOK:
            self._counted, self._looked = int(ray.cluster_resources().get("CPU", 1)), time.monotonic()
        return max(1, self._counted)

    def executor(self, own: Executor) -> RayExecutor:
        """What computes jobs on it."""
        return RayExecutor(own.context, self)

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        if self._started:
            ray.shutdown()


@dataclass
class _Task:
    """A call for a job, and how often its process has crashed."""

    job: Job
    call: Callable[..., Any]
    args: tuple[Any, ...]
    ends_at: float
    over: float
    nodes: frozenset[str] = frozenset()
    crashes: int = 0


class RayExecutor:
    """Computes jobs as tasks, one processor each.

    Args:
        context: of the comparison, at the level that was asked for; jobs say theirs.
        engine: the cluster.
    """

    def __init__(self, context: Context, engine: RayEngine) -> None:
        self.context, self.engine = context, engine
        self.waited = 0.0
        self._data = ray.put((context.table, context.settings, context.test))
        self._key = self._data.hex()
        self._compute = ray.remote(num_cpus=1, max_retries=0)(_compute)
        self._tasks: dict[Any, _Task] = {}

    @property
    def running(self) -> list[Job]:
        """Jobs that were given and have not come back."""
        return [task.job for task in self._tasks.values()]

    @property
    def free(self) -> bool:
        """Whether one more job keeps a processor busy; one spare job in the queue does."""
        return len(self._tasks) <= self.engine.processes(1)

    def submit(self, job: Job, known: Known, ends_at: float, seconds: float = math.inf) -> None:
        """Give a job; it is dropped when it is not done by ``ends_at``, or so many seconds after it began."""
        over = min(ends_at + GRACE, time.time() + seconds + STARTING)
        self._give(_Task(job, _run, (job, dict(known)), ends_at, over))

    def _give(self, task: _Task) -> None:
        task.nodes = _living()
        left = task.ends_at - time.time()  # clocks of nodes may differ
        reference = self._compute.remote([self._data], self._key, task.call, task.args, left)
        self._tasks[reference] = task

    def withdraw(self, name: str) -> None:
        """Forget the jobs of a name."""
        for reference, task in list(self._tasks.items()):
            if task.job.name == name:
                ray.cancel(reference, force=True)
                del self._tasks[reference]

    def start(self) -> None:
        """Nothing: a cluster starts its processes by itself."""

    def times(self, jobs: Sequence[Job], seconds: float, ends_at: float) -> dict[str, LearnerTime | None]:
        """What classical learners take, by name; None of those that are not done after so many seconds, or in time."""
        over = min(ends_at + GRACE, time.time() + seconds + STARTING)
        for job in jobs:
            self._give(_Task(job, _time, (job,), ends_at, over))
        taken: dict[str, LearnerTime | None] = {}
        while self._tasks:
            taken |= {job.name: result for job, result in self.collect()}
        return taken

    def collect(self, seconds: float = math.inf) -> list[tuple[Job, Any]]:
        """Wait for a job, so many seconds at most; each with its cells, or None where it was dropped.

        Raises:
            BrokenExecutor: the process of a job has crashed more than :data:`MOST_CRASHES` times.
            Exception: what the job raised.
        """
        ended: list[tuple[Job, Any]] = []
        until = time.time() + seconds
        while not ended and self._tasks and time.time() < until:
            over = min(until, time.time() + LOOK, *(task.over for task in self._tasks.values()))
            done, _ = ray.wait(list(self._tasks), num_returns=1, timeout=max(0.01, over - time.time()))
            for reference in done:
                task = self._tasks.pop(reference)
                try:
                    ended.append((task.job, ray.get(reference)))
                except exceptions.TaskCancelledError:
                    ended.append((task.job, None))
                except exceptions.RayTaskError as error:
                    raise (error.cause or error) from None
                except (
                    exceptions.WorkerCrashedError,
                    exceptions.NodeDiedError,
                    exceptions.ObjectLostError,
                    exceptions.OutOfMemoryError,
                ) as error:
                    self._again(task, error)
            for reference, task in list(self._tasks.items()):
                if time.time() >= task.over:
                    ray.cancel(reference, force=True)
                    del self._tasks[reference]
                    ended.append((task.job, None))
        return ended

    def _again(self, task: _Task, error: Exception) -> None:
        """Give a job again whose process is gone; only where its node lives on does that count."""
        lost = isinstance(error, (exceptions.NodeDiedError, exceptions.ObjectLostError)) or task.nodes - _living()
        task.crashes += not lost
        if task.crashes > MOST_CRASHES:
            raise BrokenExecutor(f"the process of {task.job.name} has ended {task.crashes} times: {error}") from error
        self._give(replace(task))

    def close(self) -> None:
        """Cancel what is running."""
        for reference in self._tasks:
            ray.cancel(reference, force=True)
        self._tasks.clear()
        del self._data


def _knock(address: str) -> None:
    """Refuse an address where nobody listens, which Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _living() -> frozenset[str]:
    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])


_CONTEXTS: dict[str, Context] = {}
"""Of the run that a process of a cluster computes for."""


def _compute(data: list[Any], key: str, call: Callable[..., Any], args: tuple[Any, ...], left: float) -> Any:
    """What a task does: the data come from the object store of its node, once for each process."""
    torch.set_num_threads(1)
    ends_at = time.time() + left
    if key not in _CONTEXTS:
        _CONTEXTS.clear()
        _CONTEXTS[key] = Context(*ray.get(data[0]))
    return call(_CONTEXTS[key], *args, ends_at)


def _run(context: Context, job: Job, known: Known, ends_at: float) -> Any:
    return run_until(context, job, known, ends_at)


def _time(context: Context, job: Job, ends_at: float) -> LearnerTime:
    timing.import_learners(context)
    return time_learner(context, job)
