"""Classical learners of label sets: one a label, on the same rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from steepest.comparison.baselines import LogisticBaseline
from steepest.comparison.design.context import Split
from steepest.comparison.work.classical import fit_classical, learners_of


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
    found = fit_classical("logistic", split, classes=3, rows=60, seed=0)
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
    found = fit_classical("svm", split, classes=3, rows=60, seed=0)
    assert found.probabilities is None
    assert found.decision.shape == (25, 3)


def test_the_learner_of_a_name_is_that_of_the_task():
    assert learners_of("regression", 60)["ridge"].task == "regression"
    assert learners_of("multilabel", 60)["forest"].task == "classification"
