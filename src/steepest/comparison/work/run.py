"""One run of a comparison: where it lives, what there is to do, what that costs, and how it is computed."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from ... import __version__
from ..design.context import Context
from ..design.jobs import Job, from_json, make_jobs, to_json
from ..design.plan import Plan, make_plan
from ..design.settings import Settings
from ..read.images import Images
from ..read.inputs import Data
from . import timing
from .cells import CellResult, run_job
from .executor import compute, remaining
from .store import Store
from .stored import check_cells, check_plan


class Watcher(Protocol):
    """Who looks on while a run computes."""

    def start(self, context: Context, store: Store, jobs: Sequence[Job], expected: float, workers: int) -> None:
        """Jobs are going to be computed; ``expected`` seconds is the plan's estimate."""

    def finished(self, job: Job, results: Sequence[CellResult]) -> None:
        """A job's cells are stored."""

    def stop(self) -> None:
        """Nothing more is computed."""


class Run:
    """A context, where its run lives, what there is to do, and what is finished or was computed to plan it."""

    def __init__(self, context: Context, out: Path) -> None:
        table, settings = context.table, context.settings
        self.context = context
        self.folder = out / settings.run_id(table.sha256, _table_hash(table) + __version__)
        self.pilot: list[CellResult] = []
        self._before = 0.0
        self._started: float | None = None

    @cached_property
    def begun(self) -> bool:
        """Whether a run of it is there."""
        return (self.folder / "run.sqlite").exists()

    @cached_property
    def _stored(self) -> tuple[list[Job], list[Job], dict[str, float]]:
        if not self.begun:
            jobs = make_jobs(self.context)
            return jobs, jobs, {}
        store = Store(self.folder)
        try:
            plan = store.fact("plan")
            jobs = make_jobs(self.context) if plan is None else from_json(plan)
            cells = store.cells()
            check_plan(jobs, self.context, f"run {self.folder.name}")
            check_cells(cells, self.context, f"run {self.folder.name}")
            seconds = {name: float(np.mean([c["seconds"] for c in own.values()])) for name, own in cells.items()}
            return jobs, remaining(jobs, store), seconds
        finally:
            store.close()

    @property
    def jobs(self) -> list[Job]:
        """All jobs, as a run that was begun fixed them."""
        return self._stored[0]

    def plan(self, workers: int, budget: float, like: tuple[Settings, Plan] | None) -> Plan | None:
        """What is to do and how long it takes; None where nothing is.

        Where it depends on early stopping whether it fits into ``budget`` seconds, the first job is computed, and kept.
        """
        _, missing, measured = self._stored
        if not missing:
            return None
        plan = make_plan(self.context, workers, timing.measure, missing, measured, like)
        if plan.wants_pilot(budget) and missing[0].kind == "objective":
            self.pilot = run_job(self.context, missing[0])
            plan = plan.after(missing[0], sum(cell.values["seconds"] for cell in self.pilot) / len(self.pilot))
        return plan

    @contextmanager
    def opened(self) -> Iterator[Store]:
        """Its store, which no other process writes meanwhile."""
        store = Store(self.folder)
        try:
            with store.locked():
                yield store
        finally:
            store.close()

    def work(self, store: Store, command: str, workers: int, expected: float, watcher: Watcher) -> bool:
        """Compute what is missing; whether anything was.

        Args:
            store: as :meth:`opened` gives it.
            command: the command line, for the list of runs.
            workers: processes.
            expected: seconds that the plan expects.
            watcher: told what is computed, and of each job as its cells are stored.
        """
        jobs = self.jobs
        missing = remaining(jobs, store)  # another process may have ended since the plan
        if store.fact("plan") is None:
            store.set_facts(
                {
                    "plan": to_json(jobs),
                    "settings": self.context.settings.to_json(),
                    "data": self.context.table.name,
                    "cells": sum(len(job.cells) for job in jobs),
                    "command": command,
                }
            )
        elif missing:
            store.set_fact("command", command)
        self._before = float(store.fact("seconds") or 0.0) + sum(cell.values["seconds"] for cell in self.pilot)
        piloted = {(cell.name, cell.repeat, cell.fold) for cell in self.pilot}
        if piloted and not piloted & store.finished():
            store.add(self.pilot)
            missing = remaining(missing, store)
        if not missing:
            return False
        self._started = time.monotonic()
        watcher.start(self.context, store, missing, expected, workers)

        def progress(job: Job, results: list[CellResult]) -> None:
            store.set_fact("seconds", self.seconds)
            watcher.finished(job, results)

        try:
            compute(self.context, missing, store, workers=workers, progress=progress)
        finally:
            watcher.stop()
        return True

    @property
    def seconds(self) -> float:
        """Seconds that it took until now, over all its calls that computed anything."""
        return self._before + (0.0 if self._started is None else time.monotonic() - self._started)


def choose_run(runs: Sequence[Run], workers: int, budget: float) -> tuple[Run, Plan | None]:
    """The first run that fits into ``budget`` seconds, else the last; one that was begun goes on."""
    like = None
    for run in [run for run in runs if run.begun][:1] or runs:
        plan = run.plan(workers, budget, like)
        if plan is None or plan.expected <= budget:
            break
        like = run.context.settings, plan
    return run, plan


def _table_hash(table: Data) -> str:
    """What was kept of the data: columns (or the shape of images), task, classes."""
    columns = list(table.pixels.shape) if isinstance(table, Images) else list(map(str, table.frame.columns))
    facts = [columns, table.task, list(table.classes), table.target_name, len(table.target)]
    facts += [] if isinstance(table, Images) else [[list(vars(kind).values()) for kind in table.types.values()]]
    parts = [p for p in (table.groups, table.times, table.weights) if p is not None]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for part in parts:
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def default_workers(settings: Settings) -> int:
    """As many processes as cores, at most 8; one where own code lives in ``__main__`` or a GPU trains."""
    own = [*settings.objectives, settings.model, settings.metric]
    if settings.device != "cpu" or any(spec.startswith("__main__:") for spec in own):
        return 1
    return max(1, min(8, os.cpu_count() or 1))
