"""One run of a comparison: where it lives, what there is to do, what that costs, and how it is computed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__
from ..design.context import Context
from ..design.deadline import EVER, Deadline
from ..design.jobs import Job, make_jobs
from ..design.levels import designs, levels_of
from ..design.plan import Plan, make_plan
from ..read.images import Images
from ..read.inputs import Data
from ..read.texts import Texts
from . import timing
from .cells import CellResult, run_job
from .engine import Engine
from .schedule import REPORT, Schedule
from .store import Store, open_store
from .stored import check_cells
from .team import Team
from .watcher import Watcher


class Run:
    """A context, where its run lives, what there is to do, and how much of it fits a budget.

    Args:
        context: of the comparison, at the level that was asked for.
        out: where run folders live.
        typed: what the user asked for by name, which is cut last.
        url: of the database that keeps it; None keeps it in its folder.
    """

    def __init__(self, context: Context, out: Path, typed: Sequence[str] = (), url: str | None = None) -> None:
        table, settings = context.table, context.settings
        self.context, self.url = context, url
        self.folder = out / settings.run_id(table.sha256, _table_hash(table) + __version__)
        self.designs = designs(settings, context.most_rows, len(table.classes), typed)
        self.known = [*self.designs, *designs(settings, context.most_rows, len(table.classes))]
        """Also those of a call that asked for nothing by name: their cells count too."""
        self.pilot: list[CellResult] = []
        self._deadline, self._working = Deadline(0.0), False

    @property
    def seconds(self) -> float:
        """Seconds that it took until now, over all its calls that computed anything."""
        return self._deadline.spent + (self._deadline.elapsed if self._working else 0.0)

    @property
    def fit_ends_at(self) -> float:
        """When the winner has to be fitted, by the system's clock, so that what follows it is not late."""
        return self._deadline.ends_at - min(REPORT, self._deadline.seconds / 4) / 2

    @cached_property
    def begun(self) -> bool:
        """Whether a run of it is there."""
        if self.url is None:
            return (self.folder / "run.sqlite").exists()
        from .postgres import postgres_runs

        return self.folder.name in postgres_runs(self.url)

    @cached_property
    def jobs(self) -> list[Job]:
        """All jobs of the whole design."""
        return make_jobs(self.context)

    def missing(self, store: Store) -> list[Job]:
        """The jobs of the whole design that are not finished."""
        finished, level = store.finished(), self.context.level
        return [job for job in self.jobs if (job.name, *job.cells[0], level.of(job.kind, job.name)) not in finished]

    def plan(self, workers: int, budget: float) -> Plan | None:
        """What is to do for the whole design, and how long it takes; None where nothing is.

        Where it depends on early stopping whether it fits into ``budget`` seconds, the first job is computed, and kept.
        """
        measured: dict[str, float] = {}
        missing = self.jobs
        if self.begun:
            store = open_store(self.folder, self.url)
            try:
                missing = self.missing(store)
                cells = store.cells(self.context.level)
            finally:
                store.close()
            measured = {name: float(np.mean([c["seconds"] for c in own.values()])) for name, own in cells.items()}
        if not missing:
            return None
        plan = make_plan(self.context, workers, timing.measure, missing, measured)
        if plan.wants_pilot(budget) and missing[0].kind == "objective":
            self.pilot = run_job(self.context, missing[0])
            plan = plan.after(missing[0], self.pilot[0].values["seconds"])
        return plan

    @contextmanager
    def opened(self) -> Iterator[Store]:
        """Its store, which no other process writes meanwhile."""
        store = open_store(self.folder, self.url)
        try:
            with store.locked():
                for level in levels_of(self.known):
                    if cells := store.cells(level):
                        check_cells(cells, self.context.at(level), f"run {self.folder.name}")
                yield store
        finally:
            store.close()

    def work(
        self,
        store: Store,
        command: str,
        workers: int,
        budget: float,
        began: float,
        watcher: Watcher,
        engine: Engine | None = None,
    ) -> bool:
        """Compute what is missing and fits; whether anything was computed.

        What earlier calls spent counts; a budget for which the answer is there buys nothing.

        Args:
            store: as :meth:`opened` gives it.
            command: the command line, for the list of runs.
            workers: processes.
            budget: seconds; infinite for the whole design.
            began: when this call began, by the system's clock.
            watcher: told what is computed, and of each job as its cells are stored.
            engine: what computes beside this command; None is whoever joins the run.
        """
        spent = float(store.fact("seconds") or 0.0)
        self._deadline, self._working = Deadline(budget, spent, began), False
        answered = store.fact("answered") is not None and min(budget, EVER) <= store.fact("answered")
        if not self.missing(store) or (answered and store.fact("results") is not None):
            return False
        settings = self.context.settings
        facts: dict[str, Any] = {"command": command, "begun": store.now()}
        if store.fact("settings") is None:
            facts |= {
                "settings": settings.to_json(),
                "data": self.context.table.name,
                "cells": len(self.jobs),
                "levels": [level.text for level in levels_of(self.designs)],
            }
        store.set_facts(facts)
        if any((cell.name, cell.repeat, cell.fold, cell.level) not in store.finished() for cell in self.pilot):
            store.put(self.pilot)
        self._working = True
        schedule = Schedule(self.context, store, self.designs, self._deadline, workers, watcher, engine or Team(store))
        watcher.start(self.context, store, self._deadline, schedule.processes)
        try:
            computed = schedule.work()
        finally:
            watcher.stop()
        store.set_facts(
            {
                "seconds": self.seconds,
                "needed": schedule.needed(),
                "late": schedule.late,
                "left_out": schedule.left_out,
            }
        )
        return computed > 0


def _table_hash(table: Data) -> str:
    """What was kept of the data: columns (or the shape of images), task, classes."""
    if isinstance(table, Texts):
        words = [table.answers, list(table.longest), len(table.rows), table.name]
        digest = hashlib.sha256(json.dumps(words).encode())
        for text in (text for row in table.rows for text in row):
            digest.update(text.encode() + b"\0")
        digest.update(np.ascontiguousarray(table.groups).tobytes())
        return digest.hexdigest()
    columns = list(table.pixels.shape) if isinstance(table, Images) else list(map(str, table.frame.columns))
    facts = [columns, table.task, list(table.classes), table.target_name, len(table.target)]
    facts += [] if isinstance(table, Images) else [[list(vars(kind).values()) for kind in table.types.values()]]
    roles = (table.groups, table.times, table.weights, getattr(table, "queries", None))
    parts = [p for p in roles if p is not None]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for array in parts:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
