"""``steepest.compare``: which objective to use on this data, how much better, how sure, at what cost."""

from __future__ import annotations

import hashlib
import inspect
import json
import shlex
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from . import plan as planning
from .cells import CellResult, Context, Job, run_job
from .errors import InputError, nearest
from .finished import Comparison
from .images import Images
from .inputs import Data
from .preparing import default_workers, prepare
from .progress import Terminal, clock, summary
from .report import write_report
from .report.advice import advice
from .report.numbers import clean
from .report.stored import kept_results
from .results import assemble
from .runner import compute, one_thread, remaining
from .settings import Settings, check_effort
from .store import RUNS, Store
from .stored import check_cells, check_plan
from .winner_facts import KINDS
from .winner_fit import fit_winner, saved_winner
from .winner_use import python_lines, shell_line

SERVED = ("best", "network")
"""Which winner a comparison saves."""


class OverBudget(InputError):
    """The plan takes longer than the budget; ``commands`` would fit."""

    def __init__(self, message: str, commands: Sequence[str]) -> None:
        super().__init__(message)
        self.commands = list(commands)


def execute(
    context: Context,
    notes: Sequence[str] = (),
    *,
    budget: float = 30.0,
    cut: bool = False,
    workers: int | None = None,
    out: str | Path = RUNS,
    command: Sequence[str] = ("steepest", "compare"),
    terminal: Terminal | None = None,
    dry_run: bool = False,
    winner: str = SERVED[0],
    source: str | None = None,
) -> Comparison | None:
    """Plan, compute what is missing, judge, write the report and the winner.

    Args:
        context: from :func:`prepare`.
        notes: lines to print after the data's decisions.
        budget: minutes that the plan may take.
        cut: over the budget, take the largest smaller design that fits, or the smallest there is.
        workers: processes.
        out: where run folders live.
        command: the command line, for the report.
        terminal: where lines go.
        dry_run: print the plan only.
        winner: which winner is saved: "best", or "network" also where a classical learner wins.
        source: what the data were read from, for the lines that use the winner.

    Returns:
        The comparison, or None for a dry run.

    Raises:
        OverBudget: the plan takes longer than ``budget``, and ``cut`` is false.
        InputError: the run folder cannot be used.
    """
    screen = Terminal(quiet=True) if terminal is None else terminal
    settings, table = context.settings, context.table
    count = default_workers(settings) if workers is None else workers
    check_effort(budget, count)
    if winner not in SERVED:
        raise InputError(f"--winner: expected {' or '.join(SERVED)}, got {winner!r:.80}")
    for text in (*table.decisions, *notes):
        screen.line(text)
    for text in table.warnings:
        screen.line(f"warning: {text}", "yellow")
    with one_thread():
        designs = [Design(context, Path(out))]
        if cut:
            smaller = [Context(table, less, context.test) for less in planning.cuts(settings)]
            designs += [Design(each, Path(out)) for each in smaller]
        design, found = choose_design(designs, count, budget * 60)
        was_cut = planning.cut_text(settings, design.context.settings)
        if was_cut:
            screen.line(was_cut, "yellow")
        expected = 0.0 if found is None else found.expected
        if found is not None:
            _show(found, design, screen)
            if expected > budget * 60:
                over = f"{_about(found)}, over the budget of {budget:g} minutes"
                if not cut:
                    offers = planning.fitting_commands(found, design.context, budget * 60, command)
                    raise OverBudget(f"the plan takes {over}; these would fit:", offers)
                screen.line(f"nothing smaller is left to cut: {over}", "yellow")
        elif dry_run:
            screen.line("finished: nothing is left to compute")
        if dry_run:
            return None
        store = Store(design.folder)
        try:
            with store.locked():
                missing = remaining(design.jobs, store)  # another process may have ended since the plan
                return _run(design, store, missing, expected, count, command, screen, was_cut, winner, source)
        finally:
            store.close()


class Design:
    """A context, where its run lives, what there is to do, and what is finished or was computed to plan it."""

    def __init__(self, context: Context, out: Path) -> None:
        table, settings = context.table, context.settings
        self.context = context
        self.folder = out / settings.run_id(table.sha256, _table_hash(table) + __version__)
        self.pilot: list[CellResult] = []

    @cached_property
    def begun(self) -> bool:
        """Whether a run of it is there."""
        return (self.folder / "run.sqlite").exists()

    @cached_property
    def _stored(self) -> tuple[list[Job], list[Job], dict[str, float]]:
        if not self.begun:
            jobs = planning.make_jobs(self.context)
            return jobs, jobs, {}
        store = Store(self.folder)
        try:
            plan = store.fact("plan")
            jobs = planning.make_jobs(self.context) if plan is None else planning.from_json(plan)
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

    def plan(self, workers: int, budget: float, like: tuple[Settings, planning.Plan] | None) -> planning.Plan | None:
        """What is to do and how long it takes; None where nothing is.

        Where it depends on early stopping whether it fits into ``budget`` seconds, the first job is computed, and kept.
        """
        _, missing, measured = self._stored
        if not missing:
            return None
        found = planning.make_plan(self.context, workers, missing, measured, like)
        if found.wants_pilot(budget) and missing[0].kind == "objective":
            self.pilot = run_job(self.context, missing[0])
            found = found.after(missing[0], self.pilot)
        return found


def choose_design(designs: Sequence[Design], workers: int, budget: float) -> tuple[Design, planning.Plan | None]:
    """The first design that fits into ``budget`` seconds, else the last; a run that was begun goes on."""
    chosen = [design for design in designs if design.begun][:1] or designs
    like = None
    for design in chosen:
        found = design.plan(workers, budget, like)
        if found is None or found.expected <= budget:
            break
        like = design.context.settings, found
    return design, found


def _about(plan: planning.Plan) -> str:
    """How long a plan takes, and how sure that is."""
    if plan.share is not None or plan.least == plan.most:
        return f"about {clock(plan.expected)}"
    return f"{clock(plan.least)} to {clock(plan.most)}"


def _show(plan: planning.Plan, design: Design, screen: Terminal) -> None:
    settings = design.context.settings
    screen.line(
        f"plan: {len(settings.objectives)} objectives and {len(settings.classical)} classical learners in "
        f"{len(design.context.folds)} outer folds; {plan.trainings} trainings in {len(plan.jobs)} jobs to do "
        f"(of {len(design.jobs)}); {_about(plan)} on {plan.workers} {'process' if plan.workers == 1 else 'processes'}"
    )
    seconds = plan.seconds
    learners = [name for name in seconds if name in settings.classical]
    for name in (name for name in seconds if name not in learners):
        bound = "at most" if plan.share is None and name not in plan.measured else "about"
        screen.line(f"  {name}: {bound} {clock(seconds[name])} of one core")
    if learners:
        screen.line(f"  classical learners: about {clock(sum(seconds[name] for name in learners))} of one core")


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


def _run(
    design: Design,
    store: Store,
    missing: Sequence[Job],
    expected: float,
    workers: int,
    command: Sequence[str],
    screen: Terminal,
    was_cut: str,
    served: str,
    source: str | None,
) -> Comparison:
    context, jobs = design.context, design.jobs
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
    elif missing:
        store.set_fact("command", shlex.join(command))
    started = time.monotonic()
    before = float(store.fact("seconds") or 0.0) + sum(cell.values["seconds"] for cell in design.pilot)
    piloted = {(cell.name, cell.repeat, cell.fold) for cell in design.pilot}
    if piloted and not piloted & store.finished():
        store.add(design.pilot)
        missing = remaining(missing, store)
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
    kept = None if missing else kept_results(store)
    results = kept
    if results is None:
        results = assemble(context, store, command=shlex.join(command), seconds=0.0, version=__version__)
        results["data"]["warnings"] += [was_cut] if was_cut else []
    classical = results["classical"]
    kind = KINDS[1] if classical is not None and classical["wins"] and served == SERVED[0] else KINDS[0]
    winner_folder = folder / "winner"
    winner = None if missing else saved_winner(winner_folder, context, kind)
    said = None if kept is None else (kept["winner"].get("kind"), kept["winner"]["objective"])
    finished = winner is not None and said == (kind, winner.name)
    if winner is None:
        winner = fit_winner(context, store, kind)
        winner.save(winner_folder)
    seconds = before + (time.monotonic() - started if missing else 0.0)
    if not finished:
        facts = winner.facts
        own = context.settings.own_parts & {winner.name, facts.get("model", "")}
        reading = {} if isinstance(context.table, Images) else vars(context.table.options)
        results["seconds"] = round(seconds, 2)
        results["winner"] = {
            "kind": kind,
            "objective": winner.name,
            "settings": facts["settings"],
            "command": shell_line(winner, folder, source, reading, own),
        }
        results["usage"] = python_lines(winner, folder, source, reading, own)
        results["advice"] = advice(results)
        results = clean(results)
        store.set_facts({"seconds": seconds, "sentence": results["sentence"], "results": results})
    written = write_report(results, folder, missing=finished)
    if finished:
        again = f"; written again: {', '.join(path.name for path in written)}" if written else ""
        screen.line(f"finished on {results['created']}: nothing is computed{again}")
    comparison = Comparison(results, folder, trust=context.settings.own_parts)
    screen.table(summary(results))
    screen.line("")
    screen.line(results["sentence"], "bold")
    if results.get("advice"):
        screen.line(f"So do this: {results['advice']}", "bold")
    if classical is not None and not classical["wins"]:
        screen.line(f"Beside the networks: {classical['sentence']}")
    what = "the classical learner" if kind == KINDS[1] else "a network trained with"
    screen.line(f"winner: {what} {winner.name}, fitted on all rows; new rows: {results['winner']['command']}")
    screen.line(f"report: {comparison.report}   ({clock(seconds)})")
    return comparison


def compare(
    data: Any,
    y: Any = None,
    *,
    budget: float = 30.0,
    cut: bool = False,
    workers: int | None = None,
    out: str | Path = RUNS,
    quiet: bool = False,
    winner: str = SERVED[0],
    **options: Any,
) -> Comparison:
    """Which objective to use on this data: every objective tuned and tested in the same nested folds.

    Args:
        data: features ``[rows, columns]`` (array or frame) with ``y``; or a frame whose column ``target`` (default the
            last) is the target; or a file; or a built-in name (digits, wine, iris, breast_cancer, diabetes).
        y: the target ``[rows]``.
        budget: minutes that the plan may take, early stopping counted in; beyond it the comparison is refused.
        cut: beyond the budget make the design smaller instead: fewer repeats, then trials, objectives, epochs.
        workers: processes; default one a core.
        out: where run folders live; the same call goes on where it stopped.
        quiet: print nothing.
        winner: which winner is saved: ``"best"``, a classical learner where one wins; or always the best ``"network"``.
        **options: target, task, objectives, metric, model, repeats, folds, trials, epochs, patience, batch_size, noise,
            seed, classical, drop, group, time, weight, rare, positive, encoding, separator, header, missing, dayfirst,
            types, test, device, name, as ``steepest compare --help`` lists them. Classes and functions may stand for
            names in objectives, model and metric; arrays ``groups``, ``times``, ``sample_weight`` ``[rows]`` for the
            columns that group, time and weight name.

    Returns:
        A :class:`Comparison`: ``sentence``, ``leaderboard``, ``fold_scores``, ``report``, ``winner``, ``predict``.

    Raises:
        InputError: for whatever cannot be used, in one line.
        OverBudget: the plan takes longer than ``budget``, and ``cut`` is false.
    """
    known = inspect.signature(prepare).parameters
    for option in options:
        if option not in known:
            raise InputError(f"compare: no option {option!r}{nearest(option, known)}")
    context, notes = prepare(data, y, **options)
    found = execute(
        context,
        notes,
        budget=budget,
        cut=cut,
        workers=workers,
        out=out,
        command=["steepest.compare", context.table.name],
        terminal=Terminal(quiet=quiet),
        winner=winner,
        source=str(data) if y is None and isinstance(data, (str, Path)) else None,
    )
    assert found is not None
    return found
