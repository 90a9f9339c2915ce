"""Members of a run compute what it posts, and nothing that is not of its own settings."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steepest.comparison.design.context import Context
from steepest.comparison.design.jobs import Job, make_jobs
from steepest.comparison.design.levels import Level
from steepest.comparison.design.settings import Settings
from steepest.comparison.errors import InputError
from steepest.comparison.read import table_from_arrays
from steepest.comparison.work import team
from steepest.comparison.work.cells import run_job
from steepest.comparison.work.executor import Executor
from steepest.comparison.work.store import Posted, Store, cell_of
from steepest.comparison.work.team import Team, TeamExecutor, help_out, job_of

NAMES = ("cross_entropy", "comp_sum")
Opening = Callable[[], Store]
COSTS = ("seconds", "seconds_per_epoch", "peak_memory_mb")


@pytest.fixture(scope="module")
def context(blobs: Callable[..., Any]) -> Context:
    settings = Settings(
        NAMES, "cross_entropy", "accuracy", repeats=1, folds=3, trials=1, epochs=1, batch_size=16, classical=("knn",)
    )
    return Context(table_from_arrays(*blobs(60, 2)), settings)


class Busy(Executor):
    """An executor without room: all that it is given goes to members."""

    free = property(lambda self: False)  # type: ignore[assignment]


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "Executor", lambda context, workers, here: Executor(context, workers))
    monkeypatch.setattr(team, "POLL", 0.01)


def jobs_of(context: Context) -> list[Job]:
    return [replace(job, level=context.level, groups=(1,)) for job in make_jobs(context)]


def numbers(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in COSTS}


def finish(executor: TeamExecutor) -> dict[tuple[str, int, int, str], Any]:
    found = {}
    while executor.running:
        found |= {cell_of(job): results for job, results in executor.collect()}
    return found


@pytest.mark.usefixtures("in_this_process")
def test_members_compute_what_is_posted_and_it_comes_back_to_the_bit(context: Context, opening: Opening) -> None:
    store, jobs = opening(), jobs_of(context)
    store.renew(60)  # nobody counts himself as a helper
    done: list[int] = []

    member = opening()

    def help_with() -> None:
        with member.again() as own:
            done.append(help_out(context, own, 1, wait=0.3))

    opening().renew(60, processes=1)  # a member, so that jobs are posted
    executor = TeamExecutor(Busy(context, 1), Team(store))
    assert executor.free
    for job in jobs:
        executor.submit(job, {}, time.time() + 100)
    assert len(executor.running) == len(jobs)
    assert not executor.free, "enough is posted for one member"
    helper = threading.Thread(target=help_with)
    helper.start()
    found = finish(executor)
    helper.join()
    assert done == [len(jobs)]
    assert set(found) == {cell_of(job) for job in jobs} == store.finished()
    assert store.posted() == []
    assert set(store.counters()) == {1}
    for job in jobs:
        (own,) = run_job(context, job)
        (back,) = found[cell_of(job)]
        assert back.stored
        assert numbers(back.values) == numbers(own.values)
        assert np.array_equal(back.outcome.predicted, own.outcome.predicted)


def test_without_members_nothing_is_posted(context: Context, opening: Opening) -> None:
    store = opening()
    executor = Team(store).executor(Executor(context, 1))
    job = jobs_of(context)[0]
    executor.submit(job, {}, time.time() + 100)
    assert store.posted() == []
    assert not executor.free
    ((same, found),) = executor.collect()
    assert same == job
    assert not found[0].stored


def test_a_command_takes_back_what_nobody_has_taken(context: Context, opening: Opening) -> None:
    store, member = opening(), opening()
    member.renew(60, processes=2)
    own = Executor(context, 1)
    executor = TeamExecutor(own, Team(store))
    one, two, three, *_ = jobs_of(context)
    for job in (one, two, three):
        executor.submit(job, {}, time.time() + 100)
    assert {posted.cell for posted in store.posted()} == {cell_of(two), cell_of(three)}
    assert member.claim(two, 60)
    member.leave()  # it is gone: its job is free again
    assert set(finish(executor)) == {cell_of(job) for job in (one, two, three)}
    assert store.posted() == []


def test_what_is_given_up_or_over_comes_back_with_nothing(context: Context, opening: Opening) -> None:
    store, member = opening(), opening()
    member.renew(60, processes=3)
    executor = TeamExecutor(Busy(context, 1), Team(store))
    one, two, three, *_ = jobs_of(context)
    executor.submit(one, {}, time.time() + 100)
    executor.submit(two, {}, time.time() - 100)
    executor.submit(three, {}, time.time() + 100)
    for job in (one, two):
        assert member.claim(job, 60)
    member.give_up(one)
    assert executor.collect() == [(one, None), (two, None)]
    executor.withdraw(three.name)
    assert executor.running == []
    assert store.posted() == []


@pytest.mark.usefixtures("in_this_process")
def test_a_member_holds_its_jobs_and_gives_them_back(
    context: Context, opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, job = opening(), jobs_of(context)[0]
    store.post(job, store.now() + 100, 100.0)
    seen: list[Any] = []

    def interrupted(*_: Any) -> Any:
        seen.append((store.claim(job, 60), store.helpers()))
        raise KeyboardInterrupt

    monkeypatch.setattr(Executor, "collect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        help_out(context, opening(), 2, wait=0.0)
    assert seen == [(False, 2)]
    assert store.claim(job, 60)
    assert store.helpers() == 0


@pytest.mark.usefixtures("in_this_process")
def test_a_member_leaves_alone_what_is_over_or_taken(context: Context, opening: Opening) -> None:
    store, jobs = opening(), jobs_of(context)
    store.post(jobs[0], store.now() - 1, 100.0)
    store.post(jobs[1], store.now() + 100, 0.0)
    assert store.claim(jobs[2], 60)
    assert help_out(context, opening(), 1, wait=0.0) == 0
    assert store.finished() == set()


class Fast(Store):
    """A store whose clock is ahead of this machine's by an hour and more."""

    NOW = f"{Store.NOW} + 5000.0"
    skew = 5000.0


def test_times_go_by_the_clock_of_the_store(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's time on its own machine is the same moment for a member on its own."""
    given: list[tuple[Any, ...]] = []

    class Recorded(Executor):
        def submit(self, *words: Any) -> None:
            given.append(words)
            raise KeyboardInterrupt

    monkeypatch.setattr(team, "Executor", lambda context, workers, here: Recorded(context, workers))
    with Fast(tmp_path / "run") as store, Fast(tmp_path / "run") as member:
        member.renew(60, processes=1)
        executor = TeamExecutor(Busy(context, 1), Team(store))
        one, two, *_ = jobs_of(context)
        ends_at = time.time() + 100
        executor.submit(one, {}, time.time() - 1)  # over
        executor.submit(two, {}, ends_at, 7.0)
        assert [posted.ends_at > time.time() + 4000 for posted in store.posted()] == [True, True]
        with pytest.raises(KeyboardInterrupt):
            help_out(context, member, 2, wait=0.0)
        ((job, known, when, seconds),) = given
        assert (job, known, seconds) == (two, {}, 7.0)
        assert when == pytest.approx(ends_at, abs=1e-3)


def test_what_was_decided_ends_by_the_clock_of_the_store(context: Context, tmp_path: Path) -> None:
    from steepest.comparison.design.deadline import Deadline
    from steepest.comparison.design.levels import designs
    from steepest.comparison.work.schedule import Course, Schedule

    class Silent:
        def level(self, *_: Any) -> None: ...

    with Fast(tmp_path / "run") as store:
        deadline = Deadline(100.0)
        plan = Schedule(context, store, designs(context.settings, 40, 2), deadline, 1, Silent())  # type: ignore[arg-type]
        plan._begin(Course(context.level, NAMES, 1))
        assert store.fact("ends_at") == pytest.approx(deadline.ends_at + 5000.0)
        assert store.now() == pytest.approx(time.time() + 5000.0, abs=60)


@pytest.mark.usefixtures("in_this_process")
def test_a_member_ends_with_the_command(context: Context, opening: Opening) -> None:
    """It waits where it has joined what was over, for somebody to go on."""
    store = opening()
    store.set_fact("begun", 1.0)
    assert not store.over()
    said: list[int] = []
    member = opening()

    def end(*_: Any) -> None:
        store.set_fact("ended", 2.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(team.time, "sleep", end)
        said.append(help_out(context, member, 1, wait=1e9))
    assert said == [0]
    assert store.over()

    def begin_and_end(*_: Any) -> None:
        store.set_facts({"begun": 3.0} if store.over() else {"ended": 4.0})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(team.time, "sleep", begin_and_end)
        assert help_out(context, opening(), 1, wait=1e9) == 0
    assert (store.fact("begun"), store.fact("ended")) == (3.0, 4.0)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": "steepest_canary:Loss"}, "not of the settings"),
        ({"name": "focal"}, "not of the settings"),
        ({"kind": "classical"}, "not of the settings"),
        ({"fold": 7}, "not of the settings"),
        ({"size": "40/1"}, "is no level"),
        ({"size": "40/1/1;x"}, "is no level"),
        ({"size": "99999/1/1;"}, "is no level of this run"),
        ({"size": "40/0/1;"}, "is no level of this run"),
        ({"size": "30/1/1;"}, "does not fit"),
        ({"size": "40/1/1;2"}, "does not fit"),
    ],
)
def test_a_job_that_is_not_of_the_run_is_refused(context: Context, changed: dict[str, Any], said: str) -> None:
    posted = Posted("objective", "comp_sum", 0, 0, "40/1/1", "40/1/1;1", 1e9, 1e9, False)
    assert job_of(posted, context) == Job("objective", "comp_sum", ((0, 0),), Level(40, 1, 1), (1,))
    with pytest.raises(InputError, match=said):
        job_of(replace(posted, **changed), context)
