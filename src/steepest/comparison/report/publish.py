"""What a finished run leaves behind: the winner, the report, and the lines that say so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..design.context import Context, Pair
from ..design.deadline import EVER, OutOfTime
from ..design.levels import Level
from ..read import Table
from ..request import SERVED, Request
from ..work.run import Run
from ..work.store import Store
from .advice import advice
from .finished import Comparison
from .numbers import clean
from .terminal import Terminal, clock, practical_line, summary
from .winner.facts import KINDS
from .winner.fit import arm_of, fit_winner, saved_winner
from .winner.retrieval import RetrievalWinner
from .winner.texts import TextWinner
from .winner.use import python_lines, shell_line
from .winner.winner import Winner
from .writing import write_report

SHORT = "the winner is fitted on"
WHY = "the time was over before it was fitted on as many as were compared; a larger --budget fits it again"


def publish(
    request: Request,
    run: Run,
    store: Store,
    results: dict[str, Any],
    *,
    computed: bool,
    screen: Terminal,
    budget: float,
) -> Comparison:
    """Fit and save the winner, write the report, and say what was found.

    Args:
        request: what the user asked for.
        run: the run, finished.
        store: of its cells, where results are kept.
        results: the verdict; or what was kept of an earlier one, its winner in it.
        computed: whether a cell was computed now, so that a saved winner is none.
        screen: where lines go.
        budget: seconds that this answer is for.
    """
    context, folder = run.context, run.folder
    classical = results["classical"]
    kind = KINDS[1] if classical is not None and classical["wins"] and request.winner == SERVED[0] else KINDS[0]
    winner_folder = folder / "winner"
    cut = (store.fact("winner_rows") or 0) > 0 and min(budget, EVER) > (store.fact("answered") or 0.0)
    winner: Winner | TextWinner | RetrievalWinner | None = (
        None if computed or cut else saved_winner(winner_folder, context, kind)
    )
    said = results.get("winner", {})
    named = None if winner is None else (kind, arm_of(winner, context.settings)[0])
    finished = named is not None and (said.get("kind"), said.get("objective")) == named
    if winner is None:
        basis = results["basis"]
        level = Level(basis["rows"], basis["epochs"], basis["trials"])
        pairs = [(repeat, fold) for repeat, fold in results["folds"]]
        ends_at = run.fit_ends_at if computed or cut else math.inf
        winner, fewer = _fitted(context.at(level), store, kind, pairs, ends_at, run.designs[-1].level.rows)
        store.set_fact("winner_rows", fewer)
        warnings = [text for text in results["data"]["warnings"] if not text.startswith(SHORT)]
        results["data"]["warnings"] = [*warnings, *([f"{SHORT} {fewer:,} rows: {WHY}"] if fewer else [])]
        winner.save(winner_folder)
    if not finished:
        facts = winner.facts
        name, settings = arm_of(winner, context.settings)
        own = context.settings.own_parts & {winner.name, facts.get("model", "")}
        reading = vars(context.table.options) if isinstance(context.table, Table) else {}
        results["seconds"] = results["seconds"] or round(run.seconds, 2)  # of kept results they stay
        results["winner"] = {
            "kind": kind,
            "objective": name,
            "settings": settings,
            "command": shell_line(winner, folder, request.source, reading, own),
        }
        results["usage"] = python_lines(winner, folder, request.source, reading, own)
        results["advice"] = advice(results)
        results = clean(results)
        store.set_facts({"sentence": results["sentence"], "results": results})
    store.set_fact("answered", max(min(budget, EVER), store.fact("answered") or 0.0))
    written = write_report(results, folder, missing=finished)
    if finished:
        again = f"; written again: {', '.join(path.name for path in written)}" if written else ""
        screen.line(f"finished on {results['created']}: nothing is computed{again}")
    if computed:
        store.set_fact("seconds", run.seconds)  # the fit and the report are of the budget too
    comparison = Comparison(results, folder, trust=context.settings.own_parts)
    screen.table(summary(results))
    screen.line("")
    screen.line(results["sentence"], "bold")
    if line := practical_line(results):
        screen.line(line[:1].upper() + line[1:])
    if results.get("advice"):
        screen.line(f"So do this: {results['advice']}", "bold")
    if classical is not None and not classical["wins"]:
        screen.line(f"Beside the networks: {classical['sentence']}")
    basis = results.get("basis")
    if basis and basis["undo"]:
        screen.line(f"{basis['undo']} would undo what was cut", "yellow")
    rows = f"{basis['rows']:,} rows" if basis and any("training rows" in text for text in basis["cut"]) else "all rows"
    short = store.fact("winner_rows") or 0
    rows = f"{short:,} rows, for {WHY}" if short else rows
    plain = "a language model" if context.table.task == "text" else "a network"
    what = "the classical learner" if kind == KINDS[1] else f"{plain} trained with"
    saved = results["winner"]
    new = "prompts" if context.table.task == "text" else "new rows"
    screen.line(f"winner: {what} {saved['objective']}, fitted on {rows}; {new}: {saved['command']}")
    screen.line(f"report: {comparison.report}   ({clock(run.seconds)})")
    return comparison


def _fitted(
    context: Context, store: Store, kind: str, pairs: Sequence[Pair], ends_at: float, least: int
) -> tuple[Winner | TextWinner | RetrievalWinner, int]:
    """The winner, fitted by ``ends_at``: else on ``least`` rows, which then are said, 0 otherwise."""
    if context.most_rows <= least:
        return fit_winner(context, store, kind, pairs), 0
    try:
        return fit_winner(context, store, kind, pairs, ends_at=ends_at), 0
    except OutOfTime:
        return fit_winner(context, store, kind, pairs, rows=least), least
