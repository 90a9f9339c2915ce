"""The table that fills: ranks, interim differences and folds from scores as they come; its lines on narrow screens."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from steepest.comparison.design.context import Context
from steepest.comparison.design.deadline import Deadline
from steepest.comparison.design.jobs import Job
from steepest.comparison.design.settings import Settings
from steepest.comparison.read import table_from_arrays
from steepest.comparison.report import terminal
from steepest.comparison.report.filling import Filling, Standing
from steepest.comparison.report.terminal import Terminal
from steepest.comparison.scores.outcome import Outcome
from steepest.comparison.statistics import corrected_resampled_ttest
from steepest.comparison.work.cells import CellResult
from steepest.comparison.work.store import Store

NAMES = ("cross_entropy", "comp_sum", "generalized_cross_entropy", "regression_with_classification")


@pytest.mark.parametrize("greater", [True, False])
def test_standings_are_paired_with_the_baseline_fold_by_fold(greater: bool) -> None:
    filling = Filling(NAMES, "cross_entropy", 5, greater, 0.25, 0.025)
    assert [standing.rank for standing in filling.standings()] == [None] * 4
    assert filling.best() is None
    sign = 1 if greater else -1
    base, good = np.array([0.5, 0.6, 0.7]), np.array([0.6, 0.65, 0.9])
    for fold in range(3):
        filling.add("cross_entropy", (0, fold), base[fold])
        filling.add("knn", (0, fold), 0.0)  # a classical learner
    assert filling.best() is None  # nothing to compare it with
    for fold in range(3):
        filling.add("comp_sum", (0, fold), base[fold] + sign * (good - base)[fold])
    filling.add(NAMES[2], (0, 4), 9.0)  # in no fold that the baseline has
    filling.add(NAMES[3], (0, 1), None)  # diverged: as bad as the worst of its fold
    first, second, third, last = filling.standings()
    test = corrected_resampled_ttest(good - base, test_fraction=0.2, confidence=0.975)
    assert (first.name, first.rank, first.folds) == ("comp_sum", 1, 3)
    assert first.difference == pytest.approx(sign * test.mean)
    assert first.half == pytest.approx(test.high - test.mean)
    assert first.score == pytest.approx(np.mean(base + sign * (good - base)))
    assert second == Standing("cross_entropy", 2, 3, pytest.approx(0.6), None, None)
    assert third == Standing(NAMES[3], 3, 1, pytest.approx(0.6), pytest.approx(0.0), None)
    assert (last.name, last.rank, last.folds, last.difference) == (NAMES[2], None, 1, None)
    assert filling.best() == first
    assert filling.line().startswith(f"best so far: comp_sum, {sign * test.mean:+.4f} ± ")


@pytest.fixture
def begun(blobs: Callable, tmp_path: Path) -> tuple[Context, Store]:
    x, y = blobs(60, 2)
    settings = Settings(NAMES[:3], "cross_entropy", "accuracy", repeats=1, folds=3)
    context = Context(table_from_arrays(x, y), settings)
    store = Store(tmp_path / "run")
    store.set_facts({"cells": 9, "looks": {"number": 1, "cells": 6}})
    return context, store


class Shown:
    """A terminal that has been told of a level, what it printed, and its cells as they come."""

    def __init__(self, begun: tuple[Context, Store], width: int, *, is_terminal: bool) -> None:
        self.context, store = begun
        self.out = io.StringIO()
        self.terminal = Terminal()
        self.terminal.console = Console(
            file=self.out, width=width, force_terminal=is_terminal, color_system=None, soft_wrap=True
        )
        self.clock = [100.0]
        deadline = Deadline(600, began=100.0, clock=lambda: self.clock[0])
        self.terminal.start(self.context, store, deadline, 1)
        self.out.truncate(self.out.seek(0))
        self.terminal.level(self.context, self.context.level, NAMES[:3], deadline)

    def cell(self, name: str, fold: int, score: float, *, rows: int | None = None) -> None:
        level = self.context.level if rows is None else replace(self.context.level, rows=rows)
        outcome = Outcome(np.zeros(1, dtype=np.int64))
        result = CellResult("objective", name, 0, fold, {"score": score}, outcome, level.text)
        self.terminal.finished(Job("objective", name, ((0, fold),)), [result])

    @property
    def lines(self) -> list[str]:
        return self.out.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 120])
def test_the_table_fits_its_width_and_keeps_names_whole(
    begun: tuple[Context, Store], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    monkeypatch.setattr(terminal, "Judge", lambda *given: built.append(given) or judge(*given))
    shown = Shown(begun, width, is_terminal=True)
    try:
        for fold in range(2):
            for place, name in enumerate(NAMES[:3]):
                shown.cell(name, fold, 0.8 + 0.05 * place + 0.01 * place * fold)
        shown.cell("cross_entropy", 2, 0.9, rows=7)  # of another level
        shown.clock[0] += 85
        view, out = shown.terminal._view(), io.StringIO()
    finally:
        shown.terminal.stop()
    assert len(built) == 1  # nothing is judged anew at each cell
    Console(file=out, width=width, color_system=None, soft_wrap=True).print(view)
    lines = out.getvalue().splitlines()
    words = " ".join(lines).split()
    assert lines[0].split()[:3] == ["objective", "#", "folds"]
    assert max(map(len, lines)) <= width
    assert [name for name in words if name in NAMES[:3]] == [NAMES[2], NAMES[1], NAMES[0]]
    assert {"interim", "98.75%", "2/3", "+0.1100", "baseline"} <= set(words)
    assert lines[-1].endswith("; 8:35 min left")
    row = next(line.split() for line in lines if line.startswith(NAMES[2]))
    assert row[:-2] == [NAMES[2], "1", "2/3", *(["0.9100"] if width == 120 else []), "+0.1100"]
    assert ("Accuracy" in lines[0].split()) == (width == 120)


def test_a_pipe_gets_a_line_at_the_first_comparison_and_then_as_time_passes(begun: tuple[Context, Store]) -> None:
    shown = Shown(begun, 60, is_terminal=False)
    speaker = shown.terminal._speaker
    assert speaker is not None
    shown.cell("cross_entropy", 0, 0.8)
    assert shown.lines == []
    shown.cell("comp_sum", 0, 0.9)
    (first,) = shown.lines
    assert first.startswith("best so far: comp_sum, +0.1000 to cross_entropy, 1 of 3 folds; ")
    assert first.endswith(" rows; 10:00 min left")
    shown.cell("comp_sum", 1, 0.9)
    assert shown.lines == [first]
    shown.clock[0] += 60
    shown.terminal.stop()
    assert not speaker.is_alive()
    assert shown.lines[0] == first
    assert shown.lines[1].endswith(" rows; 9:00 min left")


def test_the_line_comes_by_itself(begun: tuple[Context, Store], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "EVERY", 0.001)
    shown = Shown(begun, 60, is_terminal=False)
    while not shown.lines:
        time.sleep(0.001)
    shown.terminal.stop()
    assert shown.lines[0].startswith("no fold has two objectives yet; ")


judge = terminal.Judge
