"""What the terminal shows: decisions, the plan, a table that fills as cells finish, time left."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from ...core.terminal import table_lines, wrapped
from ..design.context import Context
from ..design.deadline import Deadline
from ..design.jobs import Job
from ..design.levels import Level
from ..design.plan import Plan
from ..design.settings import Settings
from ..names import varied
from ..statistics import next_look
from ..verdict.judge import Judge
from ..work.cells import CellResult
from ..work.store import Store
from .filling import Filling
from .numbers import chance
from .tables import confidence_of, three_probabilities


@dataclass(frozen=True)
class Table:
    """A head and rows of text, with a style for each row and the places of the columns of numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    styles: Sequence[str]
    right: Sequence[int] = ()


EVERY = 10.0
"""Seconds between two lines where there is no terminal."""
STYLES = {"better": "green", "worse": "red", "baseline": "bold"}


class Terminal:
    """Writes for people: lines at once, a live table while training on a terminal, plain lines elsewhere.

    Args:
        quiet: nothing but the end.
        to_stderr: leave standard output to a machine.
    """

    def __init__(self, *, quiet: bool = False, to_stderr: bool = False) -> None:
        self.console = Console(stderr=to_stderr, quiet=quiet, highlight=False, soft_wrap=True)
        self.live: Live | None = None
        self.filling: Filling | None = None
        self._speaker: threading.Thread | None = None
        self._compared = False

    def line(self, text: str, style: str = "") -> None:
        """One line; what users typed is never read as markup."""
        lines = wrapped(text, self._width, indent="  ")
        self.console.print(Text("\n".join(lines), style=style))

    def table(self, table: Table) -> None:
        """A table, fitted to the terminal."""
        self.console.print(self._table(table))

    def _table(self, table: Table) -> Text:
        head, *rows = table_lines(table.head, table.rows, self._width, right=table.right)
        lines = [Text(line, style="bold") for line in head]
        lines += [Text(line, style=style) for own, style in zip(rows, table.styles) for line in own]
        return Text("\n").join(lines)

    @property
    def _width(self) -> int | None:
        """The columns of the terminal; a file or a pipe has none, and rows stay whole there."""
        return self.console.width if self.console.is_terminal else None

    def start(self, context: Context, store: Store, deadline: Deadline, workers: int) -> None:
        """Begin to show what a run computes; ``context`` is the whole design."""
        self.store = store
        settings, ends = context.settings, ""
        if not math.isinf(deadline.seconds):
            spent = f", of which {clock(deadline.spent)} are spent" if deadline.spent else ""
            ends = f"; what fits {clock(deadline.seconds)}{spent}"
        self.line(
            f"plan: {len(settings.objectives)} {settings.vary}s and {len(settings.classical)} classical learners in "
            f"{len(context.folds)} outer folds{ends}, on {workers} {'process' if workers == 1 else 'processes'}"
        )
        done = store.done
        if done:
            self.line(f"going on with run {store.folder.name}: {done} of {store.fact('cells')} cells are done")

    def level(self, context: Context, level: Level, objectives: Sequence[str], deadline: Deadline) -> None:
        """Show what is computed now: ``context`` at this level, these objectives of it, until the deadline."""
        self.filling = filling_of(context, self.store, objectives)
        self.label, self.deadline, self.text = context.metric.label, deadline, level.text
        self.at = (
            f"{level.trials} {'trial' if level.trials == 1 else 'trials'}, {level.epochs} epochs, {level.rows:,} rows"
        )
        if self.console.quiet:
            return
        if self.live is not None:
            self.live.update(self._view())
        elif self.console.is_terminal:
            self.live = Live(self._view(), console=self.console, refresh_per_second=4, transient=True)
            self.live.start()
        elif self._speaker is None:
            self._ended = threading.Event()
            self._speaker = threading.Thread(target=self._speak, daemon=True)
            self._speaker.start()

    def finished(self, job: Job, results: Sequence[CellResult]) -> None:
        """A job's cells are stored; those of another level than the one that is shown are not in the table."""
        if self.filling is None:
            return
        for cell in results:
            if cell.level == self.text:
                self.filling.add(cell.name, (cell.repeat, cell.fold), cell.values["score"])
        if self.live is not None:
            self.live.update(self._view())
        elif self._speaker is not None and not self._compared and self.filling.best() is not None:
            self._compared = True
            self.say()

    def stop(self) -> None:
        """Take the live view away, or say how far it came."""
        if self.live is not None:
            self.live.stop()
            self.live = None
        elif self._speaker is not None:
            self._ended.set()
            self._speaker.join()
            self._speaker = None
            self.say()

    def say(self) -> None:
        """One line of where the comparison stands, for what is no terminal."""
        assert self.filling is not None
        self.line(f"{self.filling.line()}; {self.state}")

    @property
    def state(self) -> str:
        """The level, and the time left."""
        left = "" if math.isinf(self.deadline.seconds) else f"; {clock(self.deadline.left)} left"
        return f"{self.at}{left}"

    def _speak(self) -> None:
        while not self._ended.wait(EVERY):
            self.say()

    def _view(self) -> Group:
        assert self.filling is not None
        head, rows = self.filling.head(self.label), self.filling.rows()
        styles = [STYLES["baseline"] if row[0] == self.filling.baseline else "" for row in rows]
        whole, *_ = table_lines(head, rows, self._width)
        if not whole:  # no room side by side: the score is what one can do without
            score = head.index(self.label)
            head, *rows = [row[:score] + row[score + 1 :] for row in (head, *rows)]
        return Group(self._table(Table(head, rows, styles, right=range(1, len(head)))), _State(self))


class _State:
    """The line under the table; the time left runs down between two cells."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal

    def __rich__(self) -> Text:
        return Text("\n".join(wrapped(self.terminal.state, self.terminal.console.width, indent="  ")))


def filling_of(context: Context, store: Store, objectives: Sequence[str]) -> Filling:
    """The table of a level with what is finished of it; its intervals are at the level of the next look."""
    judge = Judge(context, store)
    look = next_look(store.fact("looks"), sys.maxsize)
    baseline, greater = context.settings.baseline, judge.metric.greater_is_better
    filling = Filling(objectives, baseline, len(judge.pairs), greater, judge.ratio, look.alpha)
    for name, own in judge.cells.items():
        for pair, values in own.items():
            filling.add(name, pair, values["score"])
    return filling


def clock(seconds: float) -> str:
    """Seconds for people.

    >>> clock(5), clock(65), clock(3700)
    ('5 s', '1:05 min', '1:01 h')
    """
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    big, unit = (seconds // 60, "min") if seconds < 3600 else (seconds // 3600, "h")
    small = seconds % 60 if seconds < 3600 else seconds % 3600 // 60
    return f"{big}:{small:02d} {unit}"


def plan_lines(plan: Plan, settings: Settings, folds: int, jobs: int) -> list[str]:
    """What a plan of ``jobs`` jobs has still to do, and how long that takes."""
    seconds = plan.seconds
    lines = [
        f"plan: {len(settings.objectives)} {settings.vary}s and {len(settings.classical)} classical learners in "
        f"{folds} outer folds; {plan.trainings} trainings in {len(plan.jobs)} jobs to do "
        f"(of {jobs}); {about(plan)} on {plan.workers} {'process' if plan.workers == 1 else 'processes'}"
    ]
    learners = [name for name in seconds if name in settings.classical]
    for name in (name for name in seconds if name not in learners):
        bound = "at most" if plan.share is None and name not in plan.measured else "about"
        lines.append(f"  {name}: {bound} {clock(seconds[name])} of one core")
    if learners:
        lines.append(f"  classical learners: about {clock(sum(seconds[name] for name in learners))} of one core")
    return lines


def about(plan: Plan) -> str:
    """How long a plan takes, and how sure that is."""
    if plan.share is not None or plan.least == plan.most:
        return f"about {clock(plan.expected)}"
    return f"{clock(plan.least)} to {clock(plan.most)}"


def summary(results: dict[str, Any]) -> Table:
    """The final tiers and scores."""
    metric, head = results["metric"], results["headline"]
    sign = -1 if metric["greater_is_better"] else 1
    order = {"better": 0, "baseline": 1, "not told apart": 2, "worse": 3, "": 4}

    def key(row: dict[str, Any]) -> tuple[int, float]:
        value = row["metrics"][metric["name"]]["mean"]
        return order[row["tier"]], sign * (value if value is not None else -sign * float("inf"))

    known = any(three_probabilities(row) for row in results["rows"])
    rows, styles = [], []
    for row in sorted((r for r in results["rows"] if r["kind"] != "procedure"), key=key):
        value = row["metrics"][metric["name"]]["mean"]
        compared = row["difference"] is not None
        tier = row["tier"] or "classical learner"
        if tier == "not told apart" and row["detectable"]:
            tier += f" (could have found {row['detectable']:.4f})"
        rows.append(
            (
                row["name"],
                "-" if value is None else f"{value:.4f}",
                f"{row['difference']:+.4f}" if compared else "",
                f"{row['low']:+.4f} .. {row['high']:+.4f}" if compared and row["low"] is not None else "",
                f"{row['p_holm']:.3g}" if row["p_holm"] is not None else "",
                *([three_probabilities(row)] if known else []),
                tier,
            )
        )
        styles.append(STYLES.get(row["tier"], "" if row["tier"] else "dim"))
    titles = (
        varied(results),
        metric["label"],
        f"to {head['baseline']}",
        f"{confidence_of(results)} interval",
        "p (Holm)",
        *(["P better, same, worse"] if known else []),
        "",
    )
    return Table(titles, rows, styles, right=range(1, len(titles) - 1))


def practical_line(results: dict[str, Any]) -> str:
    """What the probabilities say of the declared question, and which differences are practically none; "" without."""
    head, rope = results["headline"], results.get("rope")
    if rope is None or head.get("prob_same") is None:
        return ""
    return (
        f"choosing is better with probability {chance(head['prob_better'])}, practically the same (within "
        f"{rope['value']:.4g} of {head['baseline']}) with {chance(head['prob_same'])}, worse with "
        f"{chance(head['prob_worse'])}"
    )
