"""What will be computed, and what is offered where it takes too long."""

from __future__ import annotations

import shlex
from collections.abc import Callable

import numpy as np
import pytest

from steepest.comparison.design.context import Context
from steepest.comparison.design.jobs import Job, make_jobs
from steepest.comparison.design.plan import Plan, fitting_commands, make_plan
from steepest.comparison.design.settings import Settings
from steepest.comparison.read import table_from_arrays
from steepest.comparison.work import timing


def context_of(blobs: Callable, **changed: object) -> Context:
    values = {
        "objectives": ("cross_entropy", "comp_sum", "focal"), "baseline": "cross_entropy", "metric": "accuracy",
        "repeats": 2, "folds": 3, "trials": 3, "epochs": 2, "classical": ("constant",),
    }  # fmt: skip
    return Context(table_from_arrays(*blobs(60, 2)), Settings(**{**values, **changed}))


def test_jobs_cover_every_cell_once_and_the_first_fold_of_everything_comes_first(blobs: Callable) -> None:
    context = context_of(blobs)
    jobs = make_jobs(context)
    cells = [(job.kind, job.name, *job.cells) for job in jobs]
    expected = {("objective", n, p) for n in context.settings.objectives for p in context.folds}
    expected |= {("classical", "constant", p) for p in context.folds}
    assert len(cells) == len(set(cells))
    assert set(cells) == expected
    assert [job.name for job in jobs[:4]] == ["cross_entropy", "comp_sum", "focal", "constant"]
    assert {job.cells[0] for job in jobs[:4]} == {(0, 0)}


def test_the_plan_counts_trainings_and_measures_each_name(blobs: Callable) -> None:
    context = context_of(blobs)
    found = make_plan(context, 2, timing.measure)
    assert found.trainings == 3 * 6 * (3 * 3 + 1)
    assert set(found.seconds) == {*context.settings.objectives, "constant"}
    assert all(0 < s < 60 for s in found.seconds.values())
    assert found.expected >= sum(found.seconds.values()) / 2


def timed(monkeypatch: pytest.MonkeyPatch, seconds: float, learner: float = 0.0) -> list[str]:
    """A clock by which every cell of an objective takes ``seconds``, of a learner ``learner``; gives what was timed."""
    asked: list[str] = []

    def time_job(context: Context, job: Job) -> float:
        asked.append(job.name)
        return seconds * len(job.cells)

    monkeypatch.setattr(timing, "time_job", time_job)
    monkeypatch.setattr(timing, "time_learner", lambda context, job: learner * len(job.cells))
    return asked


def test_expected_seconds_count_early_stopping_learners_and_the_winner(
    blobs: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, 10.0, learner=1.0)
    context = context_of(blobs, epochs=60, patience=15)
    plan = make_plan(context, 2, timing.measure)
    # six cells of three objectives and of one learner on two processes; the winner: one setting of three on all rows
    winner = 60 / 40 * 4 / 10 * 10.0
    assert plan.most == pytest.approx((18 * 10 + 6 * 1) / 2 + winner)
    assert plan.least == pytest.approx((18 * 2.5 + 6 * 1) / 2 + winner / 4)
    assert plan.expected == plan.most
    assert [plan.wants_pilot(s) for s in (plan.least - 1, plan.least, plan.most - 1, plan.most)] == [
        False, True, True, False,
    ]  # fmt: skip
    after = plan.after(plan.jobs[0], 4.0)
    assert after.share == pytest.approx(0.4)
    assert after.expected == pytest.approx((17 * 4 + 6 * 1) / 2 + 0.4 * winner)
    assert not after.wants_pilot(60.0)
    cycle = context_of(blobs, epochs=60, fixed_length=True)
    assert make_plan(cycle, 1, timing.measure).floor == 1.0  # nothing stops early there


def test_finished_cells_are_measured_where_a_run_goes_on(blobs: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = timed(monkeypatch, 10.0, learner=100.0)
    context = context_of(blobs, epochs=60)
    jobs = make_jobs(context)
    known = {"cross_entropy": 3.0, "constant": 1.0}
    left = [job for job in jobs if job.name != "cross_entropy"]
    plan = make_plan(context, 1, timing.measure, left, known)
    assert asked == ["cross_entropy", "comp_sum", "focal"]  # one that is known, for the share, and what is not
    assert plan.seconds == pytest.approx({"comp_sum": 18.0, "focal": 18.0, "constant": 6.0})
    asked.clear()
    everything = make_plan(context, 1, timing.measure, left, {**known, "comp_sum": 2.0, "focal": 5.0})
    assert asked == []
    assert everything.seconds == pytest.approx({"comp_sum": 12.0, "focal": 30.0, "constant": 6.0})
    assert everything.least == everything.expected == everything.most


def test_the_share_stays_within_what_can_be(blobs: Callable) -> None:
    """No clock: trainings that stop at once leave the least share, whatever the machine."""
    context = context_of(blobs, epochs=40, patience=4)
    plan = make_plan(context, 1, timing.measure)
    first = plan.jobs[0]
    after = plan.after(first, 0.0)
    assert after.share == plan.floor == 0.1
    assert plan.after(first, 1e9).share == 1.0


def test_measuring_leaves_the_random_state_alone(blobs: Callable) -> None:
    import torch

    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    make_plan(context_of(blobs), 1, timing.measure)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()  # noqa: NPY002


def offered(blobs: Callable, budget: float, seconds: dict[str, float] | None = None, **changed: object) -> list[str]:
    """The offers where the cells of a name take so many seconds in all."""
    context = context_of(blobs, **{"trials": 8, "repeats": 3, "classical": ("knn",), **changed})
    totals = {"cross_entropy": 100.0, "comp_sum": 100.0, "focal": 100.0} if seconds is None else seconds
    kinds = {"knn": "classical"}
    jobs = tuple(Job(kinds.get(name, "objective"), name, ((0, 0),)) for name in totals)
    plan = Plan(jobs, 1, 1, {}, totals, 0.5, winner=0.0)
    return fitting_commands(plan, context, budget, ["steepest", "compare", "a b.csv", "--trials=8"])


def test_offers_change_one_thing_each_and_fit(blobs: Callable) -> None:
    lines = offered(blobs, 200.0)
    words = [shlex.split(line) for line in lines]
    assert all(w[:3] == ["steepest", "compare", "a b.csv"] for w in words)
    assert [w[-2] for w in words] == ["--trials", "--repeats", "--budget"]
    trials, repeats, minutes = (int(w[-1]) for w in words)
    assert trials >= 3
    assert 300 * trials / 8 <= 200
    assert 300 * repeats / 3 <= 200
    assert minutes * 60 >= 300
    assert "--trials=8" not in words[0]
    assert words[1][3] == "--trials=8"


def test_a_cheaper_set_of_objectives_keeps_the_baseline(blobs: Callable) -> None:
    lines = offered(blobs, 60.0, {"cross_entropy": 10.0, "comp_sum": 1000.0, "focal": 10.0})
    assert any("--objectives cross_entropy,focal" in line for line in lines)


def test_dear_classical_learners_are_offered_to_be_left_out(blobs: Callable) -> None:
    lines = offered(blobs, 60.0, {"cross_entropy": 10.0, "comp_sum": 10.0, "focal": 10.0, "knn": 1000.0})
    assert [line.split(" --")[-1].split()[0] for line in lines] == ["no-classical", "budget"]


def test_too_little_for_anything_offers_a_larger_budget_only(blobs: Callable) -> None:
    assert [shlex.split(line)[-2] for line in offered(blobs, 1.0)] == ["--budget"]
