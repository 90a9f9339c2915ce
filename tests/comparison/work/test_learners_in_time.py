"""Classical learners have a part of the budget, and end with it: those that would not are stopped, and it is said."""

from __future__ import annotations

import math
import multiprocessing
import sys
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import steepest
from steepest.comparison.baselines import ConstantBaseline, KNNBaseline, LDABaseline, LogisticBaseline
from steepest.comparison.design import resolve
from steepest.comparison.design.context import Context
from steepest.comparison.design.jobs import Job
from steepest.comparison.design.levels import Level
from steepest.comparison.design.settings import Settings
from steepest.comparison.read import table_from_arrays
from steepest.comparison.work import executor, schedule
from steepest.comparison.work.costs import Costs
from steepest.comparison.work.executor import Executor
from steepest.comparison.work.timing import LearnerTime
from steepest.comparison.work.worker import Worker

SLOW_LEARNERS = '''
"""In a process that computes: some learners take a minute, to be timed or in a fold."""
import os
import time
from steepest.comparison.work import executor, schedule

real_time, real_run = executor.time_learner, executor.run_until

def time_learner(context, job):
    if job.name == "knn":
        time.sleep(60)
    return real_time(context, job)

def run_until(context, job, known, ends_at):
    if job.name == "logistic":
        time.sleep(60)
    return real_run(context, job, known, ends_at)

def failing(context):
    raise KeyError("no such thing")

def dying(context):
    os._exit(3)

def unsendable(context):
    return lambda: None

def process(context):
    return os.getpid(), len(context.table.target)
'''


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Such a module, which other processes import too."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "slow_learners.py").write_text(SLOW_LEARNERS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.delitem(sys.modules, "slow_learners", raising=False)
    import slow_learners

    monkeypatch.setattr(executor, "SHORT", 0)  # small tables need processes here
    return slow_learners


def make_context(rows: int = 90, **settings: Any) -> Context:
    rng = np.random.default_rng(0)
    table = table_from_arrays(rng.normal(size=(rows, 2)), np.arange(rows) % 2)
    return Context(table, Settings(("cross_entropy", "focal"), "cross_entropy", "accuracy", **settings))


def test_the_cost_of_a_learner_grows_as_it_was_measured() -> None:
    """Fits are linear in the rows here and predictions bilinear: each split of a cell counts, its test part whole."""
    context = make_context(6000, folds=5, repeats=1)
    costs = Costs(context)

    def seconds(rows: int, others: int) -> tuple[float, float]:
        return 1e-4 * rows, 1e-6 * rows * others

    for rows in (300, 900):
        costs.learner_timed("knn", LearnerTime(rows, rows // 3, *seconds(rows, rows // 3)))
    for rows in (4800, 2400):
        level = context.at(Level(rows, 1, 1))
        pair = next(iter(level.folds))
        splits = [(len(fit), len(valid)) for fit, valid in level.inner(pair)]
        expected = sum(sum(seconds(*sizes)) for sizes in (*splits, (rows, 1200)))
        assert costs.cell("knn", "classical", Level(rows, 9, 9)) == pytest.approx(expected, rel=1e-9)
    costs.finished("knn", "classical", Level(2400, 3, 3), 7.0)  # neither epochs nor trials matter
    assert costs.cell("knn", "classical", Level(2400, 9, 9)) == 7.0


def test_the_cost_of_a_tuned_learner_grows_with_its_trials() -> None:
    """A trial is a fit in each inner split, the best one a fit on the whole, what cells took tells before timings."""
    context = make_context(300, folds=5, repeats=1)
    costs, inner = Costs(context), len(context.inner((0, 0)))
    costs.learner_timed("forest", LearnerTime(100, 50, 0.0, 0.0))
    assert costs.cell("forest", "classical", Level(240, 9, 8)) == 0.0
    costs.finished("forest", "classical", Level(240, 9, 4), 2.0 * (4 * inner + 1))
    for trials in (1, 4, 8):
        assert costs.cell("forest", "classical", Level(240, 3, trials)) == pytest.approx(2.0 * (trials * inner + 1))
        done = [costs.learner_done(name, Level(240, 3, trials)) for name in ("forest", "lightgbm")]
        assert done == [trials == 4, False]
    assert math.isinf(costs.cell("lightgbm", "classical", Level(240, 9, 4)))
    assert (costs.timed_rows("forest"), costs.timed_rows("lightgbm")) == (100, 0)
    for rows, seconds in ((100, 1.0), (200, 2.0)):
        costs.learner_timed("lightgbm", LearnerTime(rows, 50, seconds, 0.0))
    one, four = (costs.cell("lightgbm", "classical", Level(240, 9, trials)) for trials in (1, 4))
    fits = [len(fit) / 100 for fit, _ in context.inner((0, 0))]
    assert one == pytest.approx(sum(fits) + 2.4)
    assert four == pytest.approx(4 * sum(fits) + 2.4)
    assert costs.one_fit("lightgbm", Level(240, 9, 4)) == pytest.approx(fits[0])


def test_a_learner_here_ends_between_fits_with_its_part_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tables need no process: it is asked there whether the seconds of a learner are over."""
    computing = Executor(make_context(trials=3, repeats=1, folds=3), 1)
    clock = [1000.0]

    def later() -> float:
        clock[0] += 1.0
        return clock[0]

    monkeypatch.setattr(executor.time, "time", later)
    for seconds, done in ((2.0, False), (1e6, True)):
        computing.submit(Job("classical", "forest", ((0, 0),), Level(60, 1, 2)), {}, 1e9, seconds)
        ((_, cells),) = computing.collect()
        assert (cells is not None) == done
    computing.close()


def test_long_learners_alone_need_a_process() -> None:
    job = Job("classical", "knn", ((0, 0),))
    short, long = make_context(1000), make_context(6000)  # two columns, two classes
    assert [executor.apart(context, job, 1e9) for context in (short, long)] == [False, True]
    assert not executor.apart(long, job, math.inf)
    assert not executor.apart(long, Job("objective", "focal", ((0, 0),)), 1e9)


@pytest.mark.slow  # processes
def test_a_process_answers_raises_dies_and_is_ended(slow: Any) -> None:
    context = make_context()
    first, second = (Worker(context.table, context.settings, None) for _ in range(2))
    first.answer()
    assert first.ready
    first.give(slow.process)
    pid, rows = first.answer()
    assert rows == 90
    first.give(slow.failing)
    with pytest.raises(KeyError, match="no such thing") as caught:
        first.answer()
    assert "in failing" in caught.value.__notes__[0]
    first.give(slow.unsendable)
    with pytest.raises(RuntimeError, match="lambda"):
        first.answer()
    first.give(slow.process)
    assert first.answer()[0] == pid, "none of that has ended it"
    first.give(slow.dying)
    with pytest.raises(BrokenExecutor, match="code 3"):
        first.answer()
    first.end()
    second.end()  # while it starts
    assert multiprocessing.active_children() == []


@pytest.mark.slow  # processes
def test_a_job_is_ended_with_its_time_and_others_go_on(slow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "run_until", slow.run_until)
    monkeypatch.setattr(executor, "time_learner", slow.time_learner)
    computing = Executor(make_context(folds=3, repeats=1), 2)
    level = Level(60, 1, 1)
    jobs = {name: Job("classical", name, ((0, 0),), level) for name in ("knn", "logistic", "lda", "constant")}
    now = executor.time.time()
    taken = computing.times(list(jobs.values()), 5.0, now + 300)
    assert {name for name, took in taken.items() if took is None} == {"knn"}
    now = executor.time.time()
    for name in ("logistic", "lda", "constant"):
        computing.submit(jobs[name], {}, now + 300, 1.0 if name == "logistic" else 300.0)
    computing.submit(jobs["knn"], {}, now + 300)
    computing.withdraw("knn")
    found: dict[str, Any] = {}
    while computing.running:
        found |= {job.name: cells for job, cells in computing.collect()}
    assert found["logistic"] is None
    assert found["lda"][0].values["score"] is not None
    assert found.keys() == {"logistic", "lda", "constant"}
    computing.close()
    assert multiprocessing.active_children() == []


@pytest.mark.slow  # processes
def test_learners_that_take_minutes_are_stopped_and_a_larger_budget_runs_them(
    slow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 2)), np.arange(60) % 2
    options = {"objectives": "focal", "folds": 6, "repeats": 1, "trials": 1, "epochs": 2, "out": tmp_path, "workers": 1}
    quick = [ConstantBaseline(), KNNBaseline(), LogisticBaseline(), LDABaseline()]  # so is no machine too slow for them
    monkeypatch.setattr(resolve, "classical_learners", lambda *_: quick)
    with monkeypatch.context() as patch:
        patch.setattr(executor, "run_until", slow.run_until)
        patch.setattr(executor, "time_learner", slow.time_learner)
        patch.setattr(schedule, "LEARNERS", 0.05)  # half a minute, for a learner a sixth of that in a fold
        done = steepest.compare(x, y, budget="10m", quiet=True, **options)
    assert done.results["basis"]["cut"] == []
    assert done.results["basis"]["left_out"].keys() == {"knn", "logistic"}
    said = [text for text in done.results["data"]["warnings"] if "classical learner" in text]
    assert said[0].startswith("the classical learner knn was stopped; ")
    assert said[1].startswith("the classical learner logistic was stopped: it needs ")
    names = {row["name"] for row in done.results["rows"] if row["kind"] == "classical"}
    assert names == {"constant", "lda"}
    more = steepest.compare(x, y, budget="11m", quiet=True, **options)
    assert more.folder == done.folder
    assert more.results["basis"]["left_out"] == {}
    names = {row["name"] for row in more.results["rows"] if row["kind"] == "classical"}
    assert names == {"constant", "knn", "logistic", "lda"}
    assert multiprocessing.active_children() == []
