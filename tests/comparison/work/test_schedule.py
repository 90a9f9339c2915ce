"""What is computed before a deadline: on a clock that only cells move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steepest.comparison.design.context import Context
from steepest.comparison.design.deadline import Deadline
from steepest.comparison.design.jobs import Job
from steepest.comparison.design.levels import Design, Level, designs
from steepest.comparison.design.settings import Settings
from steepest.comparison.read import table_from_arrays
from steepest.comparison.scores.outcome import Outcome
from steepest.comparison.verdict.basis import Basis, find_basis
from steepest.comparison.work import executor, schedule
from steepest.comparison.work.cells import CellResult
from steepest.comparison.work.costs import Costs
from steepest.comparison.work.schedule import Course, Schedule
from steepest.comparison.work.store import Store
from steepest.comparison.work.timing import LearnerTime

TRIAL = {"scores": [0.5], "epochs": [1], "curves": [[0.5]]}
NAMES = ("cross_entropy", "a", "b", "c", "d")


class Machine:
    """A machine on which a cell takes ``speed[name]`` seconds a trial and epoch; it does nothing else, at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **speed: float) -> None:
        self.now, self.speed, self.done, self.dropped, self.timed = 0.0, speed, [], [], []
        monkeypatch.setattr(schedule, "run_until", self.run)
        monkeypatch.setattr(executor, "run_until", self.run)
        monkeypatch.setattr(executor, "apart", lambda *_: False)
        monkeypatch.setattr(executor, "time_learner", self.time)
        monkeypatch.setattr(executor.Executor, "start", lambda _: None)
        monkeypatch.setattr(schedule.timing, "time_job", lambda context, job: self.cost(job, context.level))

    def cost(self, job: Job, level: Level) -> float:
        rows = level.rows / 2000
        if job.kind == "classical":
            return rows ** (2 if job.name == "square" else 1) * self.speed.get(job.name, 1.0)
        return rows * self.speed.get(job.name, 1.0) * (level.trials * level.epochs + level.epochs)

    def time(self, _: Context, job: Job) -> LearnerTime:
        assert job.level is not None
        self.now += (took := self.cost(job, job.level) / 2)
        self.timed.append((job.name, job.level.rows))
        return LearnerTime(job.level.rows, 1, took, 0.0)

    def run(self, context: Context, job: Job, known: Any, ends_at: float) -> list[CellResult] | None:
        assert job.level is not None
        took = self.cost(job, job.level)
        if self.now + took > ends_at:
            self.now = max(self.now, ends_at)
            self.dropped.append(job)
            return None
        self.now += took
        self.done.append(job)
        trials = {} if job.kind == "classical" else {t: {**TRIAL, "seconds": took} for t in range(job.level.trials)}
        values = {"seconds": took, "score": 0.5, "inner": [0.5], "metrics": {}}
        level = job.level.of(job.kind)
        return [CellResult(job.kind, job.name, *job.cells[0], values, Outcome(np.zeros(1)), level, trials, took)]


class Silent:
    def start(self, *_: Any) -> None: ...
    def level(self, *_: Any) -> None: ...
    def finished(self, *_: Any) -> None: ...
    def stop(self) -> None: ...


@pytest.fixture
def context() -> Context:
    rng = np.random.default_rng(0)
    table = table_from_arrays(rng.normal(size=(2500, 2)), np.arange(2500) % 2)
    return Context(table, Settings(NAMES, "cross_entropy", "accuracy", repeats=3, folds=5, patience=60))


def run(
    context: Context, machine: Machine, folder: Path, budget: float, spent: float = 0.0, typed: tuple[str, ...] = ()
) -> tuple[Schedule, Basis]:
    store = Store(folder)
    store.connection.execute("pragma synchronous=off")  # nobody pulls a plug here
    found = designs(context.settings, context.most_rows, 2, typed)
    deadline = Deadline(budget, spent, machine.now, clock=lambda: machine.now)
    done = Schedule(context, store, found, deadline, 1, Silent())
    done.work()
    return done, find_basis(context, store, found, store.fact("course")["last"])


def level_of(basis: Basis) -> tuple[int, int, int]:
    return basis.level.rows, basis.level.epochs, basis.level.trials


def test_what_fits_is_computed_whole(context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine(monkeypatch, **dict.fromkeys(NAMES, 1e-4))  # 75 cells of 0.054 s
    done, basis = run(context, machine, tmp_path, 60)
    assert level_of(basis) == (2000, 60, 8)
    assert (len(basis.pairs), basis.names, basis.whole) == (15, NAMES, True)
    assert len(machine.done) == 75
    assert done.needed() <= 60


def test_a_full_round_comes_before_a_second_and_the_deadline_holds(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Machine(monkeypatch, **dict.fromkeys(NAMES, 0.01))  # a round of the whole design takes 135 s
    _, basis = run(context, machine, tmp_path, 130)
    assert level_of(basis) == (2000, 60, 4)  # a round of 75 s fits 0.7 of 130 s
    assert basis.whole
    assert len(basis.pairs) >= 5
    assert machine.now <= 130
    rounds = [job.cells[0][0] for job in machine.done if job.level == basis.level]
    assert rounds == sorted(rounds)


@pytest.mark.parametrize("budget", [1.0, 3.0, 10.0, 30.0, 100.0, 1000.0, 10_000.0])
def test_the_deadline_holds_and_something_is_there(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, budget: float
) -> None:
    machine = Machine(monkeypatch, **dict.fromkeys(NAMES, 0.01))
    done, basis = run(context, machine, tmp_path, budget)
    first = machine.cost(Job("objective", "cross_entropy", ((0, 0),)), done.levels[-1])
    assert machine.now <= max(budget, first)
    assert basis.names[0] == "cross_entropy"


def test_without_time_the_baseline_alone_is_there(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Machine(monkeypatch, **dict.fromkeys(NAMES, 10.0))
    done, basis = run(context, machine, tmp_path, 1)
    assert [job.name for job in machine.done] == ["cross_entropy"]
    assert machine.done[0].level == done.levels[-1]
    assert basis == Basis(done.levels[-1], ("cross_entropy",), ((0, 0),), whole=False)


def test_more_budget_goes_on_and_computes_no_cell_twice(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Machine(monkeypatch, **dict.fromkeys(NAMES, 0.01))
    reached = []
    spent = 0.0
    for budget in (20.0, 150.0, 1000.0):
        _, basis = run(context, machine, tmp_path, budget, spent)
        spent = machine.now
        reached.append((*level_of(basis), len(basis.pairs)))
        assert machine.now <= budget
    assert reached == sorted(reached)
    assert reached[-1] == (2000, 60, 8, 15)
    cells = [(job.name, job.cells, job.level) for job in machine.done]
    assert len(cells) == len(set(cells))
    assert {job.groups for job in machine.done if job.level == basis.level} == {(4, 8)}  # as a lower level parts them
    at_once = Machine(monkeypatch, **dict.fromkeys(NAMES, 0.01))
    _, whole = run(context, at_once, tmp_path / "at once", 1000.0)
    assert whole == basis


def test_a_slow_objective_comes_last_where_the_level_rises_without_it(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Machine(monkeypatch, **{**dict.fromkeys(NAMES, 0.001), "b": 0.1})
    done, basis = run(context, machine, tmp_path, 100)
    assert "b" not in basis.names
    assert done.late.keys() == {"b"}
    assert done.store.fact("course")["last"] == ["b"]
    assert level_of(basis) == (2000, 60, 8)
    _, more = run(context, machine, tmp_path, 2000, machine.now)
    assert set(more.names) == set(NAMES)


def test_where_cells_are_long_a_small_table_comes_first(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Machine(monkeypatch, **dict.fromkeys(NAMES, 0.03))  # 16 s for a cell of the whole design
    done, _ = run(context, machine, tmp_path, 1000)
    lowest, cell = done.levels[-1], machine.cost(machine.done[0], done.levels[-1])
    assert [(job.name, job.level) for job in machine.done[:3]] == [(name, lowest) for name in NAMES[:3]]
    assert 3 * cell < 20


def test_processes_start_where_that_pays(context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """None below five seconds, none for work that is done before they are there, as many as were asked for else."""
    machine = Machine(monkeypatch, **dict.fromkeys(NAMES, 0.01))
    found = designs(context.settings, context.most_rows, 2)
    for budget, work, expected in ((4.0, 0.01, 1), (100.0, 0.01, 3), (100.0, 1e-5, 1)):
        machine.speed = dict.fromkeys(NAMES, work)
        store = Store(tmp_path / f"{budget} {work}")
        plan = Schedule(context, store, found, Deadline(budget, clock=lambda: machine.now), 3, Silent())
        plan._measure()
        _, course = plan.choose()
        with plan._executor(course) as made:
            assert made.workers == expected


def test_on_a_loaded_machine_more_time_is_kept_for_the_report(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Machine(monkeypatch, **dict.fromkeys(NAMES, 0.01))
    plan = Schedule(
        context, Store(tmp_path), designs(context.settings, 2000, 2), Deadline(100.0, clock=lambda: machine.now), 1,
        Silent(),
    )  # fmt: skip
    plan._measure()
    before = plan._reserve(plan.levels[0])
    core = plan._clocks[1]
    monkeypatch.setattr(schedule.time, "process_time", lambda: core + 2.0)
    machine.now += 6.0  # it got a third of a core
    plan._time_others()
    assert plan.slow == pytest.approx(3.0)
    assert plan._reserve(plan.levels[0]) == pytest.approx(before + 2 * schedule.REPORT)


def test_one_objective_beside_the_baseline_is_never_put_last(context: Context) -> None:
    costs = Costs(context)
    level = Level(2000, 60, 8)
    for name, seconds in {"cross_entropy": 1.0, "a": 30.0, "b": 20.0, "c": 5.0}.items():
        costs.timed(name, level, seconds)
    assert costs.slow(("cross_entropy", "a", "b", "c"), level) == ("a", "b")
    assert costs.slow(("cross_entropy", "a", "b"), level) == ("a",)
    assert costs.slow(("cross_entropy", "a"), level) == ()
    assert costs.slow(("cross_entropy",), level) == ()
    costs.finished("cross_entropy", "objective", level, 0.1)  # a cell tells of the baseline what others have not
    assert costs.slow(("cross_entropy", "a", "c"), level) == ("a",)


@pytest.mark.parametrize(("folds", "names"), [((4, 4, 1), NAMES[:2]), ((1, 1, 1), NAMES[:3]), ((5, 5, 2), NAMES[:2])])
def test_without_a_round_of_all_a_report_rests_on_what_has_most_folds(
    context: Context, tmp_path: Path, folds: tuple[int, ...], names: tuple[str, ...]
) -> None:
    three = Context(context.table, Settings(NAMES[:3], "cross_entropy", "accuracy", repeats=1))
    level, store = Level(2000, 60, 4), Store(tmp_path)
    for name, count in zip(NAMES, folds):
        for fold in range(count):
            values = {"seconds": 1.0, "score": 0.5, "inner": [0.5], "metrics": {}}
            store.put([CellResult("objective", name, 0, fold, values, Outcome(np.zeros(1)), level.text)])
    found = [Design(1, count, level) for count in (3, 2)]
    basis = find_basis(three, store, found)
    assert basis.names == names
    assert len(basis.pairs) == folds[len(names) - 1]
    assert basis.whole is (folds[1] == 5)


def test_an_interrupted_call_goes_on_with_what_it_had_decided(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Machine(monkeypatch, **dict.fromkeys(NAMES, 0.01))
    _, basis = run(context, machine, tmp_path / "whole", 200.0)
    hurt = Machine(monkeypatch, **dict.fromkeys(NAMES, 0.01))

    def interrupted(_: object, job: Job, results: object) -> None:
        if len(hurt.done) == 9:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Silent, "finished", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(context, hurt, tmp_path / "hurt", 200.0)
    with monkeypatch.context() as patch:  # what others took by now decides nothing anew
        patch.setattr(Schedule, "choose", lambda *_: pytest.fail("chosen anew"))
        _, after = run(context, hurt, tmp_path / "hurt", 200.0, hurt.now)
    assert after.level == basis.level
    assert after.names == basis.names
    cells = [(job.name, job.cells, job.level) for job in hurt.done]
    assert len(cells) == len(set(cells))
    hurt.speed = dict.fromkeys(NAMES, 0.001)
    _, more = run(context, hurt, tmp_path / "hurt", 2000.0, hurt.now)
    assert more.level.trials == 8  # another budget decides anew


def test_two_equal_objectives_are_both_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, context: Context) -> None:
    two = Context(context.table, Settings(NAMES[:2], "cross_entropy", "accuracy", repeats=1, patience=60))
    machine = Machine(monkeypatch, cross_entropy=0.01, a=0.01)
    done, basis = run(two, machine, tmp_path, 30)
    assert basis.names == NAMES[:2]
    assert done.late == {}


def test_a_cell_far_over_its_estimate_lowers_the_level_for_all(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Machine(monkeypatch, **dict.fromkeys(NAMES, 0.01))
    real = machine.run

    def slower(context: Context, job: Job, known: Any, ends_at: float) -> Any:
        if len(machine.done) == 3:
            machine.speed = dict.fromkeys(NAMES, 0.04)  # somebody else takes the machine
        return real(context, job, known, ends_at)

    for module in (schedule, executor):
        monkeypatch.setattr(module, "run_until", slower)
    _, basis = run(context, machine, tmp_path, 200)
    assert basis.whole
    assert len(basis.pairs) >= 5
    assert len({job.level for job in machine.done if job.name == "a"}) > 1
    assert machine.now <= 200


def test_the_level_rises_where_all_is_done_long_before_the_deadline(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Machine(monkeypatch, **dict.fromkeys(NAMES, 0.04))  # somebody else has the machine
    real = machine.run

    def faster(context: Context, job: Job, known: Any, ends_at: float) -> Any:
        if len(machine.done) == 3:
            machine.speed = dict.fromkeys(NAMES, 0.0004)
        return real(context, job, known, ends_at)

    for module in (schedule, executor):
        monkeypatch.setattr(module, "run_until", faster)
    _, basis = run(context, machine, tmp_path, 100)
    assert level_of(basis) == (2000, 60, 8)
    assert (len(basis.pairs), basis.names, basis.whole) == (15, NAMES, True)
    levels = list(dict.fromkeys(job.level for job in machine.done if job.name == "a"))
    assert levels[0] != levels[-1] == basis.level, "it began lower"
    assert machine.now <= 110
    assert len({(job.name, job.cells, job.level) for job in machine.done}) == len(machine.done)


def test_what_was_typed_is_kept_before_the_rest(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Machine(monkeypatch, **dict.fromkeys(NAMES, 0.01))
    _, basis = run(context, machine, tmp_path, 60, typed=("trials",))
    assert basis.level.trials == 8
    assert basis.level.epochs < 60


def test_learners_take_a_quarter_at_most_and_all_folds_of_the_round(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = Settings(NAMES, "cross_entropy", "accuracy", patience=60, classical=("cheap", "dear"))
    beside = Context(context.table, settings)
    machine = Machine(monkeypatch, **{**dict.fromkeys(NAMES, 0.01), "cheap": 0.5, "dear": 50.0})
    _, basis = run(beside, machine, tmp_path, 150)
    learned = [job for job in machine.done if job.kind == "classical"]
    assert {job.name for job in learned} == {"cheap"}
    assert len(learned) >= 5
    assert basis.whole
    assert machine.now <= 150


def test_learners_that_take_little_come_before_objectives_and_others_after(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = Settings(NAMES, "cross_entropy", "accuracy", patience=60, repeats=1, classical=("dear", "cheap"))
    machine = Machine(monkeypatch, **{**dict.fromkeys(NAMES, 0.01), "cheap": 0.5, "dear": 4.0})
    done, basis = run(Context(context.table, settings), machine, tmp_path, 150)  # dear: 20 of 37.5 s, cheap: 2.5 of 15
    kinds = [job.name if job.kind == "classical" else "objective" for job in machine.done if job.level == basis.level]
    assert kinds == ["objective", *["cheap"] * 5, *["objective"] * 24, *["dear"] * 5]
    assert done.left_out == {}
    assert machine.now <= 150


def test_learners_that_are_done_stay_where_no_time_is_left_for_others(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = Settings(NAMES, "cross_entropy", "accuracy", patience=60, repeats=1, classical=("dear", "cheap"))
    machine = Machine(monkeypatch, **{**dict.fromkeys(NAMES, 0.01), "cheap": 0.5, "dear": 50.0})
    done, basis = run(Context(context.table, settings), machine, tmp_path, 150)
    seconds = done.left_out.pop("dear")["seconds"]
    with done._executor(Course(basis.level, NAMES, 1)) as waiting:
        assert done._measure_learners(basis.level, waiting, 0.0) == ("cheap",)
    assert done.left_out == {"dear": {"seconds": seconds, "stopped": False}}


def test_a_learner_is_timed_at_more_rows_and_left_out_where_its_growth_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By 500 rows alone a cell of ``square`` would take half a second; it takes 13 s."""
    rng = np.random.default_rng(0)
    table = table_from_arrays(rng.normal(size=(20_000, 2)), np.arange(20_000) % 2)
    settings = Settings(NAMES, "cross_entropy", "accuracy", patience=60, repeats=1, classical=("square", "cheap"))
    long = Context(table, settings)
    machine = Machine(monkeypatch, **{**dict.fromkeys(NAMES, 1e-4), "square": 0.2, "cheap": 0.01})
    done, basis = run(long, machine, tmp_path, 150)
    assert [rows for name, rows in machine.timed if name == "square"] == [500, 2000, 8000]
    assert [rows for name, rows in machine.timed if name == "cheap"] == [500, 2000, 8000, 16000]
    assert {job.name for job in machine.done if job.kind == "classical"} == {"cheap"}
    assert done.left_out.keys() == {"square"}
    assert not done.left_out["square"]["stopped"]
    assert done.left_out["square"]["seconds"] > 150 * schedule.LEARNERS
    assert (basis.level.rows, basis.whole) == (16_000, True)
    again, _ = run(long, machine, tmp_path, 1000, machine.now)
    assert again.left_out == {}
    assert {(job.name, job.cells[0]) for job in machine.done if job.kind == "classical"} == {
        (name, (0, fold)) for name in ("square", "cheap") for fold in range(5)
    }
    assert len({(job.name, job.cells, job.level) for job in machine.done}) == len(machine.done)


def test_a_learner_that_takes_longer_than_it_was_timed_leaves_the_part_to_others(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = Settings(NAMES, "cross_entropy", "accuracy", patience=60, classical=("liar", "cheap"))
    machine = Machine(monkeypatch, **{**dict.fromkeys(NAMES, 0.001), "cheap": 0.1, "liar": 0.5})
    real = machine.run

    def slower(context: Context, job: Job, known: Any, ends_at: float) -> Any:
        machine.speed["liar"] = 20.0
        return real(context, job, known, ends_at)

    for module in (schedule, executor):
        monkeypatch.setattr(module, "run_until", slower)
    monkeypatch.setattr(machine, "time", lambda context, job: LearnerTime(job.level.rows, 1, 0.1, 0.0))
    monkeypatch.setattr(executor, "time_learner", machine.time)
    done, basis = run(Context(context.table, settings), machine, tmp_path, 150)
    liars = [job for job in machine.done if job.name == "liar"]
    assert len(liars) == 1, "its first fold says that five do not fit a quarter of the time"
    assert done.left_out["liar"]["seconds"] == pytest.approx(100)
    assert len([job for job in machine.done if job.name == "cheap"]) == len(basis.pairs)
    assert machine.now <= 150


def test_the_fit_of_a_winner_that_may_be_a_learner_is_kept_time_for(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = Settings(NAMES, "cross_entropy", "accuracy", patience=60, classical=("dear",))
    machine = Machine(monkeypatch, **{**dict.fromkeys(NAMES, 1e-4), "dear": 10.0})
    with monkeypatch.context() as patch:
        patch.setattr(Schedule, "_higher", lambda *_: None)
        done, _ = run(Context(context.table, settings), machine, tmp_path, 300)
    assert len([job for job in machine.done if job.name == "dear"]) >= 5
    assert done.learners == ("dear",)
    assert done._reserve(done.levels[0]) == pytest.approx(1.3 * 10.0 + schedule.REPORT)
    assert machine.now <= 300 - 13
    kept_for = []
    monkeypatch.setattr(done, "choose", lambda: kept_for.append(done.learners) or (0, None))
    done._higher(Course(done.levels[0], NAMES, 3))
    assert kept_for == [()], "at another level others have time"


def test_without_time_for_learners_none_is_timed_and_that_is_said(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = Settings(NAMES, "cross_entropy", "accuracy", patience=60, repeats=1, classical=("cheap",))
    machine = Machine(monkeypatch, **dict.fromkeys(NAMES, 1e-4))
    monkeypatch.setattr(schedule, "LEARNERS", 0.0)
    done, basis = run(Context(context.table, settings), machine, tmp_path, 150)
    assert machine.timed == []
    assert done.left_out == {"cheap": {"seconds": 0.0, "stopped": False}}
    assert basis.whole
