"""A higher level takes what a lower one has trained, and is what it would be at once; a training asks the time."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from steepest.comparison.design.context import Context
from steepest.comparison.design.deadline import OutOfTime
from steepest.comparison.design.jobs import Job
from steepest.comparison.design.levels import Level
from steepest.comparison.design.settings import Settings
from steepest.comparison.errors import InputError
from steepest.comparison.read import table_from_arrays
from steepest.comparison.work import cells, training
from steepest.comparison.work.cells import CellResult, run_job

COSTS = ("seconds", "seconds_per_epoch", "peak_memory_mb")
PAIR = (0, 1)


@pytest.fixture
def context(blobs: Callable) -> Context:
    table = table_from_arrays(*blobs(90, 2, spread=2.0))
    names = ("cross_entropy", "comp_sum")
    return Context(
        table, Settings(names, "cross_entropy", "nll", repeats=1, folds=3, trials=4, epochs=5, batch_size=16)
    )


def at(context: Context, trials: int, known: dict | None = None, name: str = "comp_sum") -> CellResult:
    """The cell at so many trials, of which those of four are parted into three and one."""
    level = Level(60, 5, trials)
    groups = (trials,) if trials <= 3 else (3, trials)
    (found,) = run_job(context, Job("objective", name, (PAIR,), level, groups), known)
    return found


def stored(found: CellResult) -> dict:
    """Its trials as they come back from a file."""
    return {(PAIR, number): json.loads(json.dumps(record)) for number, record in found.trials.items()}


def numbers(found: CellResult) -> tuple:
    values = {key: value for key, value in found.values.items() if key not in COSTS}
    return values, found.outcome.probabilities.tobytes(), found.outcome.predicted.tobytes()


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of models of each stack that is trained."""
    sizes: list[int] = []
    real = cells.train

    def counting(recipe: training.Recipe, members: list) -> dict[str, float]:
        sizes.append(len(members))
        return real(recipe, members)

    monkeypatch.setattr(cells, "train", counting)
    return sizes


def test_a_level_after_a_lower_one_is_the_level_at_once_to_the_bit(context: Context, trained: list[int]) -> None:
    low = at(context, 3)
    assert trained == [9, 1]  # three trials in three inner splits, and the fit of the best
    trained.clear()
    after = at(context, 4, stored(low))
    assert trained == [3, 1]  # the new trial alone, and the fit
    trained.clear()
    at_once = at(context, 4)
    assert trained == [9, 3, 1]
    assert numbers(after) == numbers(at_once)
    assert after.values["seconds"] > 0
    assert set(after.trials) == {3}
    assert {**stored(low), **stored(after)}.keys() == stored(at_once).keys()


def test_a_lower_level_after_a_higher_one_trains_what_its_operating_point_needs(
    context: Context, trained: list[int]
) -> None:
    high, low = at(context, 4), at(context, 3)
    known = stored(high)
    trained.clear()
    again = at(context, 3, known)
    assert numbers(again) == numbers(low)
    same = high.values["trial"] == low.values["trial"]
    assert trained == ([1] if same else [9, 1])
    for record in known.values():  # as if another trial had been the best
        record.pop("point", None)
    trained.clear()
    assert numbers(at(context, 3, known)) == numbers(low)
    assert trained == [9, 1]


def test_other_rows_or_epochs_are_other_trainings(context: Context) -> None:
    whole = at(context, 3)
    for level in (Level(60, 4, 3), Level(40, 5, 3)):
        (found,) = run_job(context, Job("objective", "comp_sum", (PAIR,), level))
        assert found.level == level.text
        assert found.trials[0] != whole.trials[0]
        assert len(found.outcome.predicted) == len(whole.outcome.predicted)


def test_a_training_asks_the_time_every_fifty_steps_and_leaves_nothing(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def over() -> bool:
        asked.append(1)
        return len(asked) == 3

    job = Job("objective", "comp_sum", (PAIR,), Level(60, 5, 3))
    monkeypatch.setattr(training, "ASKED", 2)
    monkeypatch.setattr(training, "SILENT", float("inf"))  # by steps alone, however slow they are
    with pytest.raises(OutOfTime):
        run_job(context, job, None, over)
    assert len(asked) == 3
    monkeypatch.setattr(training, "stackable", lambda module: False)
    asked.clear()
    with pytest.raises(OutOfTime):
        run_job(context, job, None, over)
    assert len(asked) == 3
    monkeypatch.setattr(training, "ASKED", 50)
    assert run_job(context, Job("objective", "comp_sum", (PAIR,), Level(60, 5, 1)), None, lambda: True)  # 50 are not
    monkeypatch.setattr(training, "SILENT", 0.0)
    with pytest.raises(OutOfTime):
        run_job(context, Job("objective", "comp_sum", (PAIR,), Level(60, 5, 1)), None, lambda: True)


def test_a_cell_that_raises_is_finished_with_no_score(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    real = cells._objective

    def failing(context: Context, job: Job, *more: object) -> list[CellResult]:
        if job.name == "comp_sum":
            raise RuntimeError("out of\nideas")
        return real(context, job, *more)

    monkeypatch.setattr(cells, "_objective", failing)
    found = at(context, 3)
    assert found.values["failed"] == "RuntimeError: out of ideas"
    assert (found.values["score"], found.values["inner"]) == (None, [None] * 3)
    assert len(found.outcome.predicted) == len(context.split(PAIR, -1).other_target)
    assert not found.outcome.finite
    assert at(context, 1, name="cross_entropy").values["score"] is not None
    monkeypatch.setattr(cells, "_objective", lambda *_: (_ for _ in ()).throw(InputError("not built in")))
    with pytest.raises(InputError):  # what the user did wrong is said
        at(context, 3)
    monkeypatch.setattr(cells, "_objective", lambda *_: (_ for _ in ()).throw(RuntimeError("the baseline")))
    with pytest.raises(RuntimeError):  # without a baseline there is nothing to compare with
        at(context, 1, name="cross_entropy")
