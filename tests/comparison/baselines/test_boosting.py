"""Gradient boosting: it stops where the validation loss is least, gives equal bits again, and its parameters act."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, mean_squared_error

from steepest.comparison.baselines import (
    BoostingBaseline,
    ForestBaseline,
    LightGBMBaseline,
    Validation,
    boosting,
    classical_learners,
    ladder,
)

KINDS = [BoostingBaseline, LightGBMBaseline]
CLASSES = [0, 2, 3]


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(boosting, "MOST_ROUNDS", 60)
    monkeypatch.setattr(boosting, "PATIENCE", 8)


def rows_of(classes, count=150, seed=0):
    """Inputs, a noisy target, weights; classes 0 is a real target far from 0."""
    generator = np.random.default_rng(seed)
    X = generator.normal(size=(count, 5))
    score = X[:, 0] * X[:, 1] + X[:, 2] + generator.normal(size=count)
    y = np.digitize(score, [-0.6, 0.6][: classes - 1]) if classes else 50 + 10 * score
    return X, y, generator.uniform(0.1, 3, count)


def learner_of(kind, classes, **options):
    return kind("classification" if classes else "regression", **options)


def losses(kind, classes, X, y, weight, valid):
    """The loss on the validation rows after each round, from one fit of all rounds."""
    model = learner_of(kind, classes, rounds=60).fit(X, y, weight).model
    if kind is LightGBMBaseline:
        stages = []
        for model.rounds in range(1, 61):
            stages.append(model.predict_proba(valid.X) if classes else model.predict(valid.X))
    else:
        stages = model.staged_predict_proba(valid.X) if classes else model.staged_predict(valid.X)
    scores = []
    for predicted in stages:
        if classes:
            scores.append(log_loss(valid.y, predicted, sample_weight=valid.weight))
        else:
            centre, scale = learner_scale(kind, y, weight)
            scores.append(mean_squared_error((valid.y - centre) / scale, predicted, sample_weight=valid.weight))
    return scores


def learner_scale(kind, y, weight):
    if not kind.scales_target:
        return 0.0, 1.0
    centre = np.average(y, weights=weight)
    return centre, np.sqrt(np.average((y - centre) ** 2, weights=weight))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("kind", KINDS)
def test_it_stops_at_the_least_validation_loss(kind, classes, weighted):
    X, y, weight = rows_of(classes)
    other_X, other_y, other_weight = rows_of(classes, seed=1)
    weight, other_weight = (weight, other_weight) if weighted else (None, None)
    valid = Validation(other_X, other_y, other_weight)
    learner = learner_of(kind, classes).fit(X, y, weight, valid=valid)
    expected = losses(kind, classes, X, y, weight, valid)
    best = 0
    for place, loss in enumerate(expected):
        if loss < expected[best]:
            best = place
        if place - best == 8:
            break
    assert learner.best == best + 1
    again = learner_of(kind, classes, rounds=best + 1).fit(X, y, weight)
    first, second = learner.outcome(other_X), again.outcome(other_X)
    np.testing.assert_allclose(first.predicted, second.predicted, rtol=1e-12)
    if classes:
        np.testing.assert_allclose(first.probabilities, second.probabilities, rtol=1e-12)
    assert learner.fit(X, y, weight).best == 100, "the rounds of a fit without validation rows"


@pytest.mark.parametrize("kind", KINDS)
def test_validation_rows_without_weight_or_of_unknown_classes_do_not_count(kind):
    X, y, _ = rows_of(2)
    other_X, other_y, _ = rows_of(2, seed=1)
    plain = kind().fit(X, y, num_classes=3, valid=Validation(other_X, other_y))
    unknown = np.where(np.arange(150) < 40, 2, other_y)
    rows = np.arange(150) >= 40
    fewer = kind().fit(X, y, num_classes=3, valid=Validation(other_X[rows], other_y[rows]))
    same = kind().fit(X, y, num_classes=3, valid=Validation(other_X, unknown))
    light = kind().fit(X, y, np.ones(150), num_classes=3, valid=Validation(other_X, 1 - other_y, 0.0 + rows))
    weighed = kind().fit(X, y, num_classes=3, valid=Validation(other_X[rows], 1 - other_y[rows]))
    assert (same.best, light.best) == (fewer.best, weighed.best)
    assert fewer.best != weighed.best
    assert plain.best > 1
    nothing = kind(rounds=7).fit(X, y, num_classes=3, valid=Validation(other_X, np.full(150, 2)))
    assert nothing.best == 7
    one_class = kind(rounds=7).fit(X, np.zeros(150, dtype=int), num_classes=2, valid=Validation(other_X, other_y))
    assert one_class.outcome(X).probabilities.tolist() == [[1.0, 0.0]] * 150


@pytest.mark.parametrize("classes", CLASSES)
def test_equal_seeds_give_equal_bits_and_no_thread_is_changed(classes):
    X, y, weight = rows_of(classes)
    before = torch.get_num_threads()
    first, second = (learner_of(LightGBMBaseline, classes, seed=3).fit(X, y, weight).outcome(X) for _ in range(2))
    assert torch.get_num_threads() == before
    name = "probabilities" if classes else "predicted"
    np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    third = learner_of(LightGBMBaseline, classes, seed=4).fit(X, y, weight).outcome(X)
    assert (getattr(first, name) != getattr(third, name)).any()


@pytest.mark.parametrize("kind", [*KINDS, ForestBaseline])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_every_tuned_argument_changes_the_model(kind, task):
    X, y, _ = rows_of(2 if task == "classification" else 0)
    name = "probabilities" if task == "classification" else "predicted"
    size = {"trees": 10} if kind is ForestBaseline else {"rounds": 10}
    plain = getattr(kind(task, **size).fit(X, y).outcome(X), name)
    for argument, space in kind.search.items():
        values = [
            getattr(kind(task, **size, **{argument: space.at(u)}).fit(X, y).outcome(X), name) for u in (0.0, 0.99)
        ]
        if (kind, task, argument) == (ForestBaseline, "regression", "criterion"):
            assert (values[0] == plain).all(), "numbers have one criterion"
        else:
            assert (values[0] != values[1]).any(), argument


@pytest.mark.parametrize("kind", [*KINDS, ForestBaseline])
def test_wrong_arguments_are_refused(kind):
    for argument in kind.search:
        with pytest.raises((ValueError, TypeError), match=argument):
            kind(**{argument: -1.5})


def test_a_comparison_takes_lightgbm_where_it_is_installed(monkeypatch):
    for installed, name in ((True, "lightgbm"), (False, "boosting")):
        monkeypatch.setattr(ladder, "has_lightgbm", lambda installed=installed: installed)
        for task in ("binary", "regression"):
            assert [one.name for one in classical_learners(task, 100)][-2:] == ["forest", name]
    with pytest.raises(ValueError, match="boosting"):
        classical_learners("binary", 100, boosting="xgboost")


@pytest.mark.parametrize("error", [ImportError("No module named 'lightgbm'"), OSError("libgomp.so.1: no such file")])
def test_lightgbm_that_cannot_be_loaded_is_not_there(error, monkeypatch):
    real = builtins.__import__

    def without(name, *more, **options):
        if name == "lightgbm":
            raise error
        return real(name, *more, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    boosting.has_lightgbm.cache_clear()
    try:
        assert [one.name for one in classical_learners("binary", 100)][-1] == "boosting"
        with pytest.raises(ImportError, match="extra trees"):
            LightGBMBaseline().fit(np.zeros((4, 1)), [0, 1, 0, 1])
    finally:
        boosting.has_lightgbm.cache_clear()
    monkeypatch.undo()
    assert [one.name for one in classical_learners("binary", 100)][-1] == "lightgbm"


def test_large_tables_have_larger_trees_on_all_cuts():
    sizes = {}
    for task in ("binary", "regression"):
        for rows in (4_999, 5_000):
            (learner,) = (one for one in classical_learners(task, rows, boosting="lightgbm") if one.name == "lightgbm")
            parameters = learner.again(rounds=3).parameters()
            sizes[task, rows] = parameters["num_leaves"], parameters["extra_trees"], parameters["learning_rate"]
    assert sizes == {
        ("binary", 4_999): (31, True, 0.05),
        ("binary", 5_000): (50, False, 0.05),
        ("regression", 4_999): (31, True, 0.04),
        ("regression", 5_000): (100, False, 0.04),
    }


def test_a_learner_again_has_the_arguments_of_its_recipe():
    (learner,) = (one for one in classical_learners("binary", 100, 5, boosting="boosting") if one.name == "boosting")
    again = learner.again(rounds=9, leaves=4)
    given = {"rate": 0.05, "min_leaf": 10, "features": 0.5, "l2": 0.0, "rounds": 9, "leaves": 4, "seed": 5}
    assert {name: getattr(again, name) for name in given} == given
