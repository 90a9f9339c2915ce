"""``steepest.compare``: which objective to use on this data, how much better, how sure, at what cost."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from .budget import words_of
from .design.context import Context
from .design.plan import Plan, cut_text, cuts, fitting_commands
from .design.resolve import resolve
from .errors import InputError, nearest
from .read.given import read_data
from .report.finished import Comparison
from .report.publish import publish
from .report.stored import kept_results
from .report.terminal import Terminal, about, plan_lines
from .request import OPTIONS, RUNS, SERVED, Request
from .verdict.results import assemble
from .work.executor import one_thread
from .work.run import Run, choose_run, default_workers


class OverBudget(InputError):
    """The plan takes longer than the budget; ``commands`` would fit."""

    def __init__(self, message: str, commands: Sequence[str]) -> None:
        super().__init__(message)
        self.commands = list(commands)


def prepare(request: Request) -> tuple[Context, list[str]]:
    """Read the data and fix the design; gives the context and lines about what was left out.

    Raises:
        InputError: for whatever cannot be used, in one line.
    """
    return resolve(request, *read_data(request))


def execute(
    request: Request, context: Context, notes: Sequence[str] = (), screen: Terminal | None = None
) -> Comparison | None:
    """Plan, work, judge, report.

    Args:
        request: what the user asked for.
        context, notes: from :func:`prepare`.
        screen: where lines go.

    Returns:
        The comparison, or None for a dry run.

    Raises:
        OverBudget: the plan takes longer than the budget, and nothing may be cut.
        InputError: the run folder cannot be used.
    """
    screen = Terminal(quiet=True) if screen is None else screen
    command = shlex.join(request.command or ("steepest.compare", context.table.name))
    workers = default_workers(context.settings) if request.workers is None else request.workers
    for text in (*context.table.decisions, *notes):
        screen.line(text)
    for text in context.table.warnings:
        screen.line(f"warning: {text}", "yellow")
    with one_thread():
        run, plan, was_cut = _fitting(request, context, workers, screen)
        if request.dry_run:
            return None
        with run.opened() as store:
            computed = run.work(store, command, workers, 0.0 if plan is None else plan.expected, screen)
            results = None if computed else kept_results(store)
            if results is None:
                results = assemble(run.context, store, command=command, version=__version__)
                results["data"]["warnings"] += [was_cut] if was_cut else []
            return publish(request, run, store, results, computed=computed, screen=screen)


def _fitting(request: Request, context: Context, workers: int, screen: Terminal) -> tuple[Run, Plan | None, str]:
    """The run whose design fits the budget, its plan, and what was cut."""
    settings, budget, out = context.settings, request.budget_seconds, Path(request.out)
    contexts = [context]
    if request.cut:
        contexts += [Context(context.table, less, context.test) for less in cuts(settings)]
    run, plan = choose_run([Run(design, out) for design in contexts], workers, budget)
    was_cut = cut_text(settings, run.context.settings)
    if was_cut:
        screen.line(was_cut, "yellow")
    if plan is not None:
        for line in plan_lines(plan, run.context.settings, len(run.context.folds), len(run.jobs)):
            screen.line(line)
        if plan.expected > budget:
            over = f"{about(plan)}, over the budget of {words_of(budget)}"
            if not request.cut:
                words = request.command or ("steepest.compare", context.table.name)
                offers = fitting_commands(plan, run.context, budget, words)
                raise OverBudget(f"the plan takes {over}; these would fit:", offers)
            screen.line(f"nothing smaller is left to cut: {over}", "yellow")
    elif request.dry_run:
        screen.line("finished: nothing is left to compute")
    return run, plan, was_cut


def compare(
    data: Any,
    y: Any = None,
    *,
    budget: float | str = 30.0,
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
        budget: time that the plan may take, early stopping counted in: ``"90s"``, ``"10m"``, ``"1h30m"``, or a number
            of minutes; beyond it the comparison is refused.
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
    for option in options:
        if option not in OPTIONS:
            raise InputError(f"compare: no option {option!r}{nearest(option, OPTIONS)}")
    request = Request(data, y, budget=budget, cut=cut, workers=workers, out=out, winner=winner, **options)
    comparison = execute(request, *prepare(request), Terminal(quiet=quiet))
    assert comparison is not None
    return comparison
