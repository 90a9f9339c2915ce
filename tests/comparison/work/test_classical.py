"""Classical learners of label sets: one a label, on the same rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from steepest.comparison.baselines import LogisticBaseline
from steepest.comparison.baselines.boosting import PATIENCE, RoundsBaseline
from steepest.comparison.design.context import Context, Split
from steepest.comparison.design.deadline import OutOfTime
from steepest.comparison.design.jobs import Job
from steepest.comparison.design.settings import Settings
from steepest.comparison.design.trials import seed_of, words_of_trial
from steepest.comparison.read import table_from_arrays
from steepest.comparison.work.cells import run_job
from steepest.comparison.work.classical import (
    fit_learners,
    learner_of,
    learners_of,
    outcome_of_split,
    rounds_of,
    trials_of_learner,
)


@pytest.fixture
def split():
    rng = np.random.default_rng(0)
    x, other = rng.normal(size=(60, 4)), rng.normal(size=(25, 4))
    y = np.stack([x[:, 0] + 0.5 * rng.normal(size=60) > 0, x[:, 1] > 0.8, np.ones(60)], 1).astype(np.float32)
    as_tensor = torch.as_tensor
    return Split(as_tensor(x), as_tensor(y), None, as_tensor(other), np.zeros((25, 3)), None, task="multilabel")


@pytest.mark.parametrize("weighted", [False, True])
def test_each_label_is_a_learner_of_its_own(split, weighted):
    weight = torch.linspace(0.1, 2.0, 60) if weighted else None
    split = Split(**{**vars(split), "weight": weight})
    found = outcome_of_split(fit_learners("logistic", split, classes=3, rows=60, seed=0), split)
    assert found.predicted.shape == found.probabilities.shape == found.decision.shape == (25, 3)
    penalty = LogisticBaseline("classification").estimator().C
    for label in (0, 1):
        peer = LogisticRegression(C=penalty, max_iter=1000).fit(
            split.inputs.numpy(),
            split.target[:, label].numpy().astype(int),
            None if weight is None else weight.numpy().astype(np.float64),
        )
        wanted = peer.predict_proba(split.other_inputs.numpy())[:, 1]
        np.testing.assert_allclose(found.probabilities[:, label], wanted, atol=1e-3)
        assert (found.predicted[:, label] == (wanted > 0.5)).all()
    # a label with one value only is that value
    assert (found.predicted[:, 2] == 1).all()
    assert (found.probabilities[:, 2] == 1).all()


def test_a_learner_without_probabilities_has_a_decision(split):
    found = outcome_of_split(fit_learners("svm", split, classes=3, rows=60, seed=0), split)
    assert found.probabilities is None
    assert found.decision.shape == (25, 3)


def test_the_learner_of_a_name_is_that_of_the_task():
    assert learners_of("regression", 60)["ridge"].task == "regression"
    assert learners_of("multilabel", 60)["forest"].task == "classification"


def test_a_trial_changes_its_arguments_alone():
    plain, large = learners_of("binary", 60)["lightgbm"], learners_of("binary", 6000)["lightgbm"]
    assert (plain.large, large.large) == (False, True)
    assert learner_of("lightgbm", "binary", 6000, 3, {}, 7).parameters() == {**large.parameters(), "seed": 3}
    tuned = learner_of("lightgbm", "binary", 60, 0, {"rate": 0.03, "random_cuts": False})
    changed = {"learning_rate": 0.03, "extra_trees": False}
    assert tuned.parameters() == {**plain.parameters(), **changed}
    forest = learner_of("forest", "regression", 60, 5, {"min_leaf": 3})
    assert (forest.min_leaf, forest.seed, forest.task, forest.trees) == (3, 5, "regression", 200)


@pytest.mark.parametrize("name", ["boosting", "lightgbm"])
def test_boosting_stops_one_label_at_a_time(split, name):
    """The third label is always there: it needs one round. Without ``stop`` nothing looks at the other rows."""
    other = np.random.default_rng(1).integers(0, 2, (25, 3)).astype(np.float32)
    split = Split(**{**vars(split), "other_target": other})
    tuned = fit_learners(name, split, classes=3, rows=60, seed=0, stop=True)
    assert all(isinstance(learner, RoundsBaseline) for learner in tuned)
    rounds = rounds_of([tuned])
    assert all(1 <= count < 1000 - PATIENCE for count in rounds)
    assert rounds_of([tuned, tuned]) == rounds
    again = fit_learners(name, split, classes=3, rows=60, seed=0, rounds=rounds)
    found = [outcome_of_split(learners, split).probabilities for learners in (tuned, again)]
    np.testing.assert_allclose(*found, rtol=1e-12)  # the best round is the model of so many rounds
    moved = Split(**{**vars(split), "other_target": 1 - other})
    blind = fit_learners(name, moved, classes=3, rows=60, seed=0, rounds=rounds)
    np.testing.assert_array_equal(outcome_of_split(blind, split).probabilities, found[1])
    assert rounds_of([fit_learners("knn", split, classes=3, rows=60, seed=0)]) == []


def context_of(rows=90, **settings):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 4))
    table = table_from_arrays(x, (x[:, 0] * x[:, 1] + 0.3 * rng.normal(size=rows) > 0).astype(int))
    names = ("forest", "lightgbm", "knn")
    options = {"trials": 3, "repeats": 1, "folds": 3, "classical": names, **settings}
    return Context(table, Settings(("cross_entropy",), "cross_entropy", "auroc", **options))


def test_tuned_learners_get_as_many_trials_as_objectives():
    context = context_of()
    trials = {name: trials_of_learner(context, name) for name in context.settings.classical}
    assert {name: len(own) for name, own in trials.items()} == {"forest": 3, "lightgbm": 3, "knn": 1}
    for name in ("forest", "lightgbm"):
        space = learners_of("binary", 90)[name].search
        assert trials[name][0] == {}
        assert all(set(hyper) == set(space) for hyper in trials[name][1:])
        assert trials[name] == trials_of_learner(context_of(trials=8), name)[:3], "fewer are the start of more"


@pytest.mark.parametrize("name", ["forest", "lightgbm", "knn"])
def test_a_cell_is_that_of_the_best_trial_on_inner_validation(name):
    context = context_of()
    (cell,) = run_job(context, Job("classical", name, ((0, 1),)))
    trials = trials_of_learner(context, name)
    splits = [context.split((0, 1), i) for i in range(len(context.inner((0, 1))))]
    seed = cell_seed(context)
    options = {"classes": 2, "rows": 90, "seed": seed}
    scores, rounds = [], []
    for hyper in trials:
        tuned = [fit_learners(name, split, hyper=hyper, stop=True, **options) for split in splits]
        scores.append(
            np.mean([context.metric(s.other_target, outcome_of_split(t, s), None) for t, s in zip(tuned, splits)])
        )
        rounds.append(rounds_of(tuned))
    assert cell.values["inner"] == pytest.approx(scores, rel=1e-12)
    best = int(np.argmax(scores))
    assert cell.values["trial"] == best
    whole = context.split((0, 1), -1)
    wanted = outcome_of_split(fit_learners(name, whole, hyper=trials[best], rounds=rounds[best], **options), whole)
    np.testing.assert_array_equal(cell.outcome.decision, wanted.decision)
    assert cell.level == f"60/0/{0 if name == 'knn' else 3}"
    assert cell.values["trial_text"] == ("" if name == "knn" else words_of_trial(trials[best]))


def cell_seed(context):
    return seed_of(context.settings.seed, 0, 1, "classical") % 2**31


def test_a_learner_asks_between_fits_whether_its_time_is_over():
    asked = []

    def over():
        asked.append(0)
        return len(asked) > 4

    with pytest.raises(OutOfTime):
        run_job(context_of(), Job("classical", "forest", ((0, 0),)), over=over)
    assert len(asked) == 5
