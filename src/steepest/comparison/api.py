"""``steepest.compare``: which objective to use on this data, how much better, how sure, at what cost."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..core.lazy import import_late
from .budget import words_of
from .defaults import BUDGET
from .design.context import Context
from .design.effort import default_workers
from .design.jobs import Job
from .design.models import TABMS
from .design.networks import (
    CANDIDATES,
    TABM_HERE,
    TABM_STEPS,
    choose_network,
    round_of_tabm,
    tabm_level,
    tabm_slowness,
    with_network,
)
from .design.objectives import find_objective, shortlist
from .design.plan import fitting_commands
from .design.resolve import resolve
from .errors import InputError, nearest
from .joining import tell
from .names import AUTO
from .read.given import read_data
from .report.finished import Comparison
from .report.publish import publish
from .report.stored import kept_results
from .report.terminal import Terminal, about, plan_lines
from .request import OPTIONS, RUNS, SERVED, Request, without_password
from .statistics.looks import next_look
from .tracking import Tracked, hook_of
from .verdict.basis import find_basis
from .verdict.results import assemble
from .work.engine import engine_for
from .work.executor import one_thread
from .work.run import Run
from .work.store import Store
from .work.timing import time_trials


class OverBudget(InputError):
    """The plan takes longer than the budget; ``commands`` would fit."""

    def __init__(self, message: str, commands: Sequence[str]) -> None:
        super().__init__(message)
        self.commands = list(commands)


def import_all() -> None:
    """Import what a comparison of the shortlist uses, so that its clock counts its own work alone."""
    import_late()
    for name in shortlist():
        find_objective(name)


def prepare(request: Request) -> tuple[Context, list[str]]:
    """Read the data and fix the design; gives the context and lines about what was left out.

    Where the network is chosen, and a run with another one is there, that goes on: a larger budget adds to it. TabM
    for which this machine is too slow, or too busy, gives way to fewer members or plain networks: fewer epochs would
    cost more.

    Raises:
        InputError: for whatever cannot be used, in one line.
    """
    context, notes = resolve(request, *read_data(request))
    if context.choice:
        context = _network_here(request, context)
        notes.append(f"network: {context.settings.model} ({context.choice})")
    return context, notes


def _network_here(request: Request, context: Context) -> Context:
    """The comparison with the network of its run, where one has begun, or that this machine has time for now."""
    model = context.settings.model
    if _begun(request, context):
        return context
    for name in CANDIDATES:
        another = with_network(request, context, name)
        if name != model and _begun(request, another):
            another.choice = f"{AUTO}: as this run began; --model {model} would now be chosen"
            return another
    if model not in TABMS or context.settings.device != "cpu" or math.isinf(request.budget_seconds):
        return context
    fewer = TABMS[TABMS.index(model) :]
    where = " on this machine as it is now"
    chosen, why = choose_network(request, context, fewer, seconds_of=_timed_round, share=TABM_HERE, where=where)
    if chosen == model:
        return context
    another = with_network(request, context, chosen)
    another.choice = why
    return another


def _timed_round(request: Request, context: Context) -> float:
    """Seconds of a round of TabM by its first steps."""
    job = Job("objective", context.settings.baseline, (next(iter(context.folds)),))
    with one_thread():
        timed = time_trials(context.at(tabm_level(context)), job, TABM_STEPS)
    return round_of_tabm(request, context) * tabm_slowness(context, timed)


def _begun(request: Request, context: Context) -> bool:
    try:
        return _run_of(request, context).begun
    except InputError:  # no database answers: what opens the run says so
        return False


def _run_of(request: Request, context: Context) -> Run:
    return Run(context, Path(request.out), request.typed, request.store)


def execute(
    request: Request,
    context: Context,
    notes: Sequence[str] = (),
    screen: Terminal | None = None,
    began: float | None = None,
) -> Comparison | None:
    """Work until the deadline, judge, report.

    Args:
        request: what the user asked for.
        context, notes: from :func:`prepare`.
        screen: where lines go.
        began: when the budget began to run, by the system's clock; None is now.

    Returns:
        The comparison, or None for a dry run.

    Raises:
        OverBudget: the whole design takes longer than the budget, and ``strict`` allows nothing less.
        InputError: the run folder cannot be used.
    """
    screen = Terminal(quiet=True) if screen is None else screen
    began = time.time() if began is None else began
    command = without_password(shlex.join(request.command or ("steepest.compare", context.table.name)))
    workers = default_workers(context.settings) if request.workers is None else request.workers
    hook = None if request.dry_run else hook_of(request.track)
    watcher = screen if hook is None else Tracked(screen, hook, screen.line)
    for text in (*context.table.decisions, *notes):
        screen.line(text)
    for text in context.table.warnings:
        screen.line(f"warning: {text}", "yellow")
    with one_thread():
        run = _run_of(request, context)
        if request.strict or request.dry_run:
            _plan(request, run, workers, screen)
        if request.dry_run:
            return None
        budget = math.inf if request.strict else request.budget_seconds
        with run.opened() as store, engine_for(request.executor, workers) as engine:
            tell(run, store, request)
            computed = run.work(store, command, workers, budget, began, watcher, engine)
            results = None if computed else kept_results(store)
            if results is None or not _same_rope(results, request.rope):
                results = _judged(run, store, command, request.rope)
            done = publish(request, run, store, results, computed=computed, screen=screen, budget=budget)
            if isinstance(watcher, Tracked):
                watcher.begin(context, run.folder.name)
                watcher.tell("end", {"results": done.results, "folder": done.folder})
            store.set_fact("ended", store.now())
            return done


def _same_rope(results: dict[str, Any], rope: float | None) -> bool:
    """Whether kept results have the region of practical equivalence that is asked for now."""
    stored = results.get("rope", {"value": None, "asked": False})
    return not stored["asked"] if rope is None else bool(stored["value"] == rope)


def _judged(run: Run, store: Store, command: str, rope: float | None) -> dict[str, Any]:
    """The verdict on what is finished: a look at it, unless the whole design was computed at once."""
    course, last = store.fact("course"), store.fact("looks")
    basis = find_basis(run.context, store, run.known, course["last"] if course else ())
    look = next_look(last, len(store.finished())) if last is not None or run.missing(store) else None
    results = assemble(run.context, store, command=command, version=__version__, look=look, basis=basis, rope=rope)
    if look is not None:
        store.set_fact("looks", look.fact)
    return results


def _plan(request: Request, run: Run, workers: int, screen: Terminal) -> None:
    """Say what the whole design costs; with ``--strict`` refuse it where it takes longer than the budget."""
    budget = request.budget_seconds
    plan = run.plan(workers, budget)
    if plan is None:
        screen.line("finished: nothing is left to compute")
        return
    for line in plan_lines(plan, run.context.settings, len(run.context.folds), len(run.jobs)):
        screen.line(line)
    if plan.expected <= budget:
        return
    over = f"{about(plan)}, over the budget of {words_of(budget)}"
    if request.strict:
        words = request.command or ("steepest.compare", run.context.table.name)
        offers = fitting_commands(plan, run.context, budget, words)
        raise OverBudget(f"the plan takes {over}; these would fit:", offers)
    screen.line(f"that is {over}: less is computed, as much as fits", "yellow")


def compare(
    data: Any,
    y: Any = None,
    *,
    budget: float | str = BUDGET,
    strict: bool = False,
    workers: int | None = None,
    out: str | Path = RUNS,
    quiet: bool = False,
    winner: str = SERVED[0],
    **options: Any,
) -> Comparison:
    """Which objective to use on this data: every objective tuned and tested in the same nested folds.

    Args:
        data: features ``[rows, columns]`` (array or frame) with ``y``; or a frame whose column ``target`` (default the
            last) is the target; or a file; or a built-in name (digits, wine, iris, breast_cancer, diabetes, lists).
        y: the target ``[rows]``.
        budget: the time that it may take: ``"90s"``, ``"10m"``, ``"1h30m"``, or a number of minutes. What does not
            fit is cut: repeats, trials, objectives, epochs, training rows, what was asked for by name last.
        strict: compute the whole design, or refuse it where it takes longer than ``budget``.
        workers: processes; default one a core.
        out: where run folders live; the same call goes on where it stopped.
        quiet: print nothing.
        winner: which winner is saved: ``"best"``, a classical learner where one wins; or always the best ``"network"``.
        **options: target, task, objectives, metric, model, repeats, folds, trials, epochs, patience, batch_size, noise,
            seed, classical, drop, group, time, weight, query, rare, positive, encoding, separator, header, missing,
            dayfirst, types, test, device, name, embedding, rope, store, executor, track, as ``steepest compare --help``
            lists them. Classes and functions may stand for names in objectives, model and metric; arrays ``groups``,
            ``times``, ``sample_weight``, ``queries`` ``[rows]`` for the columns that group, time, weight and query
            name; a callable for track.

    Returns:
        A :class:`Comparison`: ``sentence``, ``leaderboard``, ``fold_scores``, ``report``, ``winner``, ``predict``.

    Raises:
        InputError: for whatever cannot be used, in one line.
        OverBudget: the whole design takes longer than ``budget``, and ``strict`` is true.
    """
    for option in options:
        if option not in OPTIONS:
            raise InputError(f"compare: no option {option!r}{nearest(option, OPTIONS)}")
    import_all()
    began = time.time()
    request = Request(data, y, budget=budget, strict=strict, workers=workers, out=out, winner=winner, **options)
    comparison = execute(request, *prepare(request), Terminal(quiet=quiet), began)
    assert comparison is not None
    return comparison
