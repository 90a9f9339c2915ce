"""``steepest.compare``: which objective to use on this data, how much better, how sure, at what cost."""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import __version__
from ..core.scalars import is_number
from . import plan as planning
from .cells import Context, Job
from .errors import InputError
from .images import Images
from .inputs import Data
from .preparing import default_workers, prepare
from .progress import Terminal, clock, summary
from .report import write_report
from .results import assemble
from .runner import compute, one_thread, remaining
from .store import RUNS, Store
from .winner import Winner, fit_winner, usage


class OverBudget(InputError):
    """The plan takes longer than the budget; ``commands`` would fit."""

    def __init__(self, message: str, commands: Sequence[str]) -> None:
        super().__init__(message)
        self.commands = list(commands)


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        results: everything, as in ``results.json``.
        folder: of the run: report, leaderboard, store, winner.
    """

    results: dict[str, Any]
    folder: Path

    @property
    def sentence(self) -> str:
        """The answer to the question that was declared beforehand."""
        return str(self.results["sentence"])

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder / "report.html"

    @cached_property
    def leaderboard(self) -> pd.DataFrame:
        """One row for each objective and classical learner: tier, difference to the baseline, all metrics."""
        rows = []
        for row in self.results["rows"]:
            flat = {
                k: row[k] for k in ("name", "kind", "tier", "difference", "low", "high", "p", "p_holm", "detectable")
            }
            flat |= {name: value["mean"] for name, value in row["metrics"].items()}
            rows.append(flat)
        return pd.DataFrame(rows)

    @property
    def fold_scores(self) -> pd.DataFrame:
        """The metric in each outer fold, a column a name."""
        return pd.DataFrame(self.results["fold_scores"])

    @cached_property
    def winner(self) -> Winner:
        """What inner validation picks, fitted on all rows."""
        return Winner.load(self.folder / "winner")

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The winner's predictions for new rows."""
        return self.winner.predict(frame)

    def _repr_html_(self) -> str:
        return f"<p>{self.sentence}</p>" + str(self.leaderboard.to_html(float_format="%.4f", na_rep="-"))

    def __repr__(self) -> str:
        return f"<Comparison {self.folder.name}: {self.sentence}>"


def execute(
    context: Context,
    notes: Sequence[str] = (),
    *,
    budget: float = 30.0,
    workers: int | None = None,
    out: str | Path = RUNS,
    command: Sequence[str] = ("steepest", "compare"),
    terminal: Terminal | None = None,
    dry_run: bool = False,
) -> Comparison | None:
    """Plan, compute what is missing, judge, write the report and the winner.

    Args:
        context: from :func:`prepare`.
        notes: lines to print after the data's decisions.
        budget: minutes that the plan may take.
        workers: processes.
        out: where run folders live.
        command: the command line, for the report.
        terminal: where lines go.
        dry_run: print the plan only.

    Returns:
        The comparison, or None for a dry run.

    Raises:
        OverBudget: the plan takes longer than ``budget``.
        InputError: the run folder cannot be used.
    """
    screen = Terminal(quiet=True) if terminal is None else terminal
    settings, table = context.settings, context.table
    count = default_workers(settings) if workers is None else workers
    if not is_number(budget) or not budget > 0:
        raise InputError(f"--budget: expected minutes above 0, got {budget!r}")
    if not is_number(count, integer=True) or not 1 <= count <= 256:
        raise InputError(f"--workers: expected an integer in 1..256, got {count!r}")
    for text in (*table.decisions, *notes):
        screen.line(text)
    for text in table.warnings:
        screen.line(f"warning: {text}", "yellow")
    folder = Path(out) / settings.run_id(table.sha256, _table_hash(table) + __version__)
    with one_thread():
        jobs, missing = _stored_jobs(context, folder)
        if any(job.kind == "objective" for job in missing):
            found = planning.make_plan(context, count, jobs)
            share = sum(len(j.cells) for j in missing if j.kind == "objective") / max(
                1, sum(len(j.cells) for j in jobs if j.kind == "objective")
            )
            expected = found.expected * share
            screen.line(
                f"plan: {len(settings.objectives)} objectives and {len(settings.classical)} classical learners in "
                f"{len(context.folds)} outer folds; {found.trainings} trainings in {len(missing)} jobs to do "
                f"(of {len(jobs)}); at most {clock(expected)} on {count} {'process' if count == 1 else 'processes'}"
            )
            for name, seconds in found.seconds.items():
                screen.line(f"  {name}: at most {clock(seconds * share)} of one core")
            if expected > budget * 60:
                raise OverBudget(
                    f"the plan takes up to {clock(expected)}, over the budget of {budget:g} minutes; these would fit:",
                    planning.fitting_commands(found, context, budget * 60, command),
                )
        else:
            expected = 0.0
        if dry_run:
            return None
        store = Store(folder)
        try:
            with store.locked():
                missing = remaining(jobs, store)  # another process may have ended since the plan
                return _run(context, store, jobs, missing, expected, count, command, screen)
        finally:
            store.close()


def _stored_jobs(context: Context, folder: Path) -> tuple[list[Job], list[Job]]:
    """All jobs and the missing ones, as a run that was begun fixed them; makes no folder."""
    if not (folder / "run.sqlite").exists():
        jobs = planning.make_jobs(context)
        return jobs, jobs
    store = Store(folder)
    try:
        plan = store.fact("plan")
        jobs = planning.make_jobs(context) if plan is None else planning.from_json(plan)
        return jobs, remaining(jobs, store)
    finally:
        store.close()


def _table_hash(table: Data) -> str:
    """What was kept of the data: columns (or the shape of images), task, classes."""
    columns = list(table.pixels.shape) if isinstance(table, Images) else list(map(str, table.frame.columns))
    facts = [columns, table.task, list(table.classes), table.target_name, len(table.target)]
    parts = [p for p in (table.groups, table.times, table.weights) if p is not None]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for part in parts:
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def _run(
    context: Context,
    store: Store,
    jobs: Sequence[Any],
    missing: Sequence[Any],
    expected: float,
    workers: int,
    command: Sequence[str],
    screen: Terminal,
) -> Comparison:
    if store.fact("plan") is None:
        store.set_facts(
            {
                "plan": planning.to_json(jobs),
                "settings": context.settings.to_json(),
                "data": context.table.name,
                "cells": sum(len(job.cells) for job in jobs),
                "command": shlex.join(command),
            }
        )
    else:
        store.set_fact("command", shlex.join(command))
    started = time.monotonic()
    before = float(store.fact("seconds") or 0.0)
    if missing:
        done = len(jobs) - len(missing)
        if done:
            screen.line(f"going on with run {store.folder.name}: {done} of {len(jobs)} jobs are done")
        screen.start(context, store, missing, expected, workers)

        def progress(job: Any, results: Any) -> None:
            store.set_fact("seconds", before + time.monotonic() - started)
            screen.finished(job, results)

        try:
            compute(context, missing, store, workers=workers, progress=progress)
        finally:
            screen.stop()
    folder = store.folder
    winner_folder = folder / "winner"
    if missing or not (winner_folder / "winner.json").exists():
        winner = fit_winner(context, store)
        winner.save(winner_folder)
    facts = json.loads((winner_folder / "winner.json").read_text(encoding="utf-8"))
    seconds = before + (time.monotonic() - started if missing else 0.0)
    store.set_fact("seconds", seconds)
    results = assemble(context, store, command=shlex.join(command), seconds=seconds, version=__version__)
    results["winner"] = {"objective": facts["objective"], "settings": facts["settings"]}
    new = "new-images.npz" if isinstance(context.table, Images) else "new-rows.csv"
    results["usage"] = usage(folder, facts["objective"], facts["hyper"], new)
    write_report(results, folder)
    store.set_fact("sentence", results["sentence"])
    comparison = Comparison(results, folder)
    screen.console.print(summary(results))
    screen.line("")
    screen.line(results["sentence"], "bold")
    classical = results["classical"]
    if classical is not None and not classical["wins"]:
        screen.line(f"Beside the networks: {classical['sentence']}")
    screen.line(f"report: {comparison.report}   ({clock(seconds)})")
    return comparison


def compare(
    data: Any,
    y: Any = None,
    *,
    budget: float = 30.0,
    workers: int | None = None,
    out: str | Path = RUNS,
    quiet: bool = False,
    **options: Any,
) -> Comparison:
    """Which objective to use on this data: every objective tuned and tested in the same nested folds.

    Args:
        data: features ``[rows, columns]`` (array or frame) with ``y``; or a frame whose column ``target`` (default the
            last) is the target; or a file; or a built-in name (digits, wine, iris, breast_cancer, diabetes).
        y: the target ``[rows]``.
        budget: minutes that the plan may take; beyond it nothing is trained.
        workers: processes; default one a core.
        out: where run folders live; the same call goes on where it stopped.
        quiet: print nothing.
        **options: target, task, objectives, metric, model, repeats, folds, trials, epochs, patience, batch_size, noise,
            seed, classical, drop, group, time, weight, rare, test, device, name, as ``steepest compare --help`` lists
            them. Classes and functions may stand for names in objectives, model and metric.

    Returns:
        A :class:`Comparison`: ``sentence``, ``leaderboard``, ``fold_scores``, ``report``, ``winner``, ``predict``.

    Raises:
        InputError: for whatever cannot be used, in one line.
        OverBudget: the plan takes longer than ``budget``.
    """
    context, notes = prepare(data, y, **options)
    found = execute(
        context,
        notes,
        budget=budget,
        workers=workers,
        out=out,
        command=["steepest.compare", context.table.name],
        terminal=Terminal(quiet=quiet),
    )
    assert found is not None
    return found
