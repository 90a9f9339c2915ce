"""X, y, groups and weights as arrays; which task, which positive class, and what a class without rows does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics as sk

from steepest.comparison import InputError
from steepest.comparison.api import prepare
from steepest.comparison.design.jobs import Job
from steepest.comparison.design.objectives import known_objectives, why_not
from steepest.comparison.request import Request
from steepest.comparison.scores.operating_point import tune_threshold
from steepest.comparison.scores.outcome import Outcome
from steepest.comparison.work.cells import run_job
from steepest.core.objective import TaskInfo

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 3))


def decided(y: Any, metric: str | None, **options: Any) -> tuple[str, list[str]]:
    """The task, and the lines that speak of it."""
    context, _ = prepare(Request(X[: len(y)], y, metric=metric, **options))
    return context.table.task, [line for line in context.table.decisions if line.startswith("task: ")]


STARS = np.arange(120) % 5 + 1.0


@pytest.mark.parametrize("y", [STARS, STARS.astype(int)])
def test_the_metric_makes_small_integers_numbers(y: Any) -> None:
    task, lines = decided(y, "rmse")
    assert task == "regression"
    assert lines[-1] == "task: numbers, as rmse needs them"
    assert decided(y, None)[0] == decided(y, "accuracy")[0] == "multiclass"
    assert len(decided(y, "accuracy")[1]) == 1  # the two agree: nothing to say


def test_two_values_are_two_classes_unless_the_metric_is_for_numbers() -> None:
    y = np.where(X[:, 0] > 0, 0.9, 0.1)
    assert decided(y, None)[0] == decided(y, "f1")[0] == "binary"
    assert decided(y, "mae") == ("regression", decided(y, "mae")[1])
    assert decided(y, "mae")[1][-1] == "task: numbers, as mae needs them"


def test_integers_are_classes_where_the_metric_is_for_classes_and_few_differ() -> None:
    x, y = np.tile(X, (3, 1)), np.arange(360) % 12
    few = prepare(Request(x, y, metric="macro_f1"))[0].table
    assert few.task == "multiclass"
    assert "task: classes, as macro_f1 needs them" in few.decisions
    assert prepare(Request(x, y))[0].table.task == "regression"
    with pytest.raises(
        InputError, match="'macro_f1' is for binary, multiclass, multilabel, not for regression; --task"
    ):
        prepare(Request(x[:120], y[:120], metric="macro_f1"))  # 12 of 120: a tenth
    with pytest.raises(InputError, match="not for regression"):
        prepare(Request(x, y + 0.5, metric="accuracy"))


def test_a_task_that_is_asked_for_is_kept() -> None:
    with pytest.raises(InputError, match="'rmse' is for regression, not for multiclass"):
        prepare(Request(X, STARS, metric="rmse", task="multiclass"))


def test_a_metric_by_another_name_is_said_and_is_the_same_run() -> None:
    y = np.where(X[:, 0] > 0, "a", "b")
    asked = {"objectives": "comp_sum", "model": "plain"}
    contexts = [prepare(Request(X, y, metric=word, **asked)) for word in ("roc_auc", "auroc")]
    assert [notes for _, notes in contexts] == [["metric: roc_auc is auroc here"], []]
    assert contexts[0][0].settings == contexts[1][0].settings


@pytest.mark.parametrize("positive", ["<=50K", ">50K", None])
def test_what_looks_for_a_class_looks_for_the_positive_one(positive: str | None) -> None:
    y = np.where(X[:, 0] + RNG.normal(size=120) > 0.8, ">50K", "<=50K")
    context, _ = prepare(Request(X, y, positive=positive, metric="average_precision"))
    looked_for = positive or ">50K"
    chosen = "as asked" if positive else "the later in order; --positive names the other"
    assert f"positive class: '{looked_for}' ({chosen})" in context.table.decisions
    hits, codes = y == looked_for, context.table.target
    assert context.table.classes[1] == looked_for
    score = X[:, 0] if looked_for == ">50K" else -X[:, 0]
    p = 1 / (1 + np.exp(-score))
    outcome = Outcome((score > 0).astype(int), np.stack([1 - p, p], 1), score)
    assert context.metric(codes, outcome) == pytest.approx(sk.average_precision_score(hits, score))
    for name, scorer in (("recall", sk.recall_score), ("precision", sk.precision_score), ("f1", sk.f1_score)):
        own = prepare(Request(X, y, positive=positive, metric=name))[0].metric
        assert own(codes, outcome) == pytest.approx(scorer(hits, score > 0)), name
    threshold = tune_threshold(codes, outcome.decision)
    other = tune_threshold(1 - codes, -outcome.decision)  # the other class's threshold is the same cut, seen from there
    assert sk.f1_score(hits, score > threshold, average="macro") == pytest.approx(
        sk.f1_score(~hits, -score > other, average="macro")
    )


def test_groups_stay_on_one_side_and_a_class_of_one_group_is_warned_of() -> None:
    y, groups = np.repeat([1, 1, 0, 0, 1, 2, 1, 1, 0, 0, 1, 0], 6), np.repeat(list("abbccdeffggh"), 6)
    fast = {"folds": 2, "repeats": 2, "trials": 1, "epochs": 1, "metric": "accuracy", "objectives": "ldam"}
    context, _ = prepare(Request(X[:72], y, groups=groups, **fast))
    assert [line for line in context.table.warnings if "lives in" in line] == [
        "the class '2' lives in one group 'd': no fold can both learn and test it"
    ]
    for fold in context.folds.values():
        assert not {*groups[fold.train]} & {*groups[fold.test]}
    lacking = [pair for pair, fold in context.folds.items() if 2 not in y[fold.train]]
    assert [min(context.info(pair, -1).class_counts) for pair in lacking] == [1, 1]  # one of the folds in each round
    cells = run_job(context, Job("objective", "ldam", tuple(lacking)))
    assert all(cell.outcome.finite and not cell.values["diverged"] for cell in cells)
    scattered, _ = prepare(Request(X[:72], np.where(y == 2, 0, y), groups=groups))
    assert not [line for line in scattered.table.warnings if "lives in" in line]


USABLE = [name for name, (cls, _) in known_objectives().items() if not why_not(cls, "multiclass", False)]


@pytest.mark.parametrize("name", USABLE)
def test_a_class_without_rows_gives_finite_losses(name: str) -> None:
    cls = known_objectives()[name][0]
    info = TaskInfo("multiclass", 8, 3, (5, 3, 0), feature_dim=4, epochs=2, steps_per_epoch=2)
    generator = torch.Generator().manual_seed(0)
    features, target = torch.randn(8, 4, generator=generator), torch.tensor([0, 0, 0, 0, 0, 1, 1, 1])
    objective = cls.from_task(info)
    head = objective.head(4, info)
    given = {"index": torch.arange(8), "features": features}
    for epoch in (1, 2):
        objective.start_epoch(epoch, 2)
        loss = objective(head(features), target, **{need: given[need] for need in cls.needs})
        loss.backward()
        objective.after_step()
        assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)


def test_arrays_are_the_same_as_columns(blobs: Callable) -> None:
    x, y = blobs(60, 2)
    weights, groups = np.where(y == 0, 1.0, 2.5), np.arange(60) // 3
    frame = pd.DataFrame(x, columns=list("abcd")).assign(w=weights, g=groups)
    by_name, _ = prepare(Request(frame, y, weight="w", group="g"))
    index = np.arange(60) + 7
    for own in (
        prepare(Request(x, y, sample_weight=weights, groups=groups))[0],
        prepare(Request(frame[list("abcd")], y, sample_weight=list(weights), groups=groups))[0],
        prepare(Request(
            frame[list("abcd")].assign(goal=y).set_index(index),
            sample_weight=pd.Series(weights, index), groups=pd.Series(groups, index),
        ))[0],
    ):  # fmt: skip
        assert own.table.weights.tolist() == weights.tolist()
        assert own.table.groups.tolist() == by_name.table.groups.tolist()
        assert own.table.target.tolist() == y.tolist()
        assert own.table.frame.shape == (60, 4)
    later, _ = prepare(Request(x, y, times=np.arange(60)[::-1]))
    assert later.table.times.tolist() == np.arange(60)[::-1].tolist()


def test_a_class_of_weight_0_is_left_out(blobs: Callable) -> None:
    x, y = blobs(90, 3)
    table = prepare(Request(x, y, sample_weight=(y != 1).astype(float)))[0].table
    assert table.classes == ("0", "2")
    assert len(table.target) == 60


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sample_weight": [1.0, 2.0]}, r"^sample_weight: expected 120 values, one a row of X, got shape \(2,\)"),
        ({"groups": np.ones((120, 2))}, r"^groups: expected 120 values, one a row of X, got shape \(120, 2\)"),
        ({"groups": [1] * 120, "group": "c1"}, r"^groups: an array, or group with the name of a column, not both"),
        ({"sample_weight": [-1.0] * 120}, r"expected finite numbers >= 0"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(options: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        prepare(Request(X, STARS, **options))


def test_rows_in_another_order_and_files_are_refused() -> None:
    frame = pd.DataFrame(X, columns=list("abc"))
    with pytest.raises(InputError, match=r"^X and sample_weight have the same row labels in another order"):
        prepare(Request(frame, STARS, sample_weight=pd.Series(np.ones(120), index=np.arange(120)[::-1])))
    with pytest.raises(InputError, match=r"^groups goes with arrays and frames; of a file, name the column: group="):
        prepare(Request("iris", groups=np.arange(150)))


def test_a_list_of_labels_is_a_target() -> None:
    assert prepare(Request(X, ["a", "b", "c"] * 40))[0].table.classes == ("a", "b", "c")
