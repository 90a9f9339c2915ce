"""What will be computed, and what is offered where it takes too long."""

from __future__ import annotations

import shlex
from collections.abc import Callable

import numpy as np
import pytest

from steepest.comparison import plan as planning
from steepest.comparison.cells import Context, Job
from steepest.comparison.plan import Plan, fitting_commands, from_json, make_jobs, make_plan, to_json
from steepest.comparison.settings import Settings
from steepest.comparison.tables import table_from_arrays


def context_of(blobs: Callable, **changed: object) -> Context:
    values = {
        "objectives": ("cross_entropy", "comp_sum", "focal"), "baseline": "cross_entropy", "metric": "accuracy",
        "repeats": 2, "folds": 3, "trials": 3, "epochs": 2, "classical": ("majority",),
    }  # fmt: skip
    return Context(table_from_arrays(*blobs(60, 2)), Settings(**{**values, **changed}))


@pytest.mark.parametrize("work", [1.0, 3e9, 1e15])
def test_jobs_cover_every_cell_once(blobs: Callable, monkeypatch: pytest.MonkeyPatch, work: float) -> None:
    monkeypatch.setattr(planning, "STACK_WORK", work)
    context = context_of(blobs)
    jobs = make_jobs(context)
    cells = [(job.kind, job.name, pair) for job in jobs for pair in job.cells]
    expected = {("objective", n, p) for n in context.settings.objectives for p in context.folds}
    expected |= {("classical", "majority", p) for p in context.folds}
    assert len(cells) == len(set(cells))
    assert set(cells) == expected
    assert jobs == make_jobs(context_of(blobs))
    assert from_json(to_json(jobs)) == jobs
    sizes = {len(job.cells) for job in jobs if job.kind == "objective"}
    assert sizes == ({1} if work == 1.0 else {6} if work == 1e15 else sizes)


def test_the_first_fold_of_all_objectives_comes_first(blobs: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "STACK_WORK", 1.0)
    jobs = make_jobs(context_of(blobs))
    assert [job.name for job in jobs[:4]] == ["cross_entropy", "comp_sum", "focal", "majority"]
    assert {job.cells[0] for job in jobs[:4]} == {(0, 0)}


def test_the_plan_counts_trainings_and_measures_each_objective(blobs: Callable) -> None:
    context = context_of(blobs)
    found = make_plan(context, 2)
    assert found.trainings == 3 * 6 * (3 * 3 + 1)
    assert set(found.seconds) == set(context.settings.objectives)
    assert all(0 < s < 60 for s in found.seconds.values())
    assert found.expected == pytest.approx(sum(found.seconds.values()) / 2)


def test_measuring_leaves_the_random_state_alone(blobs: Callable) -> None:
    import torch

    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    make_plan(context_of(blobs), 1)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()  # noqa: NPY002


def offered(blobs: Callable, budget: float, seconds: dict[str, float] | None = None, **changed: object) -> list[str]:
    context = context_of(blobs, **{"trials": 8, "repeats": 3, **changed})
    each = {"cross_entropy": 100.0, "comp_sum": 100.0, "focal": 100.0} if seconds is None else seconds
    jobs = (Job("objective", "cross_entropy", ((0, 0),)),)
    return fitting_commands(Plan(jobs, each, 1, 1), context, budget, ["steepest", "compare", "a b.csv", "--trials=8"])


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


def test_too_little_for_anything_offers_a_larger_budget_only(blobs: Callable) -> None:
    assert [shlex.split(line)[-2] for line in offered(blobs, 1.0)] == ["--budget"]
