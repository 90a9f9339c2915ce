"""Arms of an experiment: each own seed, and rates chosen on splits that serve nothing else."""

from __future__ import annotations

import numpy as np
import torch

from steepest.lab.classify import Arm, train
from steepest.lab.settings import best_rates
from steepest.losses.classification.cross_entropy import CrossEntropyLoss
from steepest.losses.regression.squared_error import SquaredErrorLoss


def data(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, x_test = rng.normal(size=(2, 40, 3)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(int), x_test, (x_test[:, 0] > 0).astype(int)


def test_an_arm_with_its_own_seed_is_the_arm_of_that_seed():
    """In a stack and alone: weights, order and outputs are those of a call with this seed."""
    for alone in (False, True):
        arms = [Arm("first", CrossEntropyLoss), Arm("own", CrossEntropyLoss, seed=5)]
        train(arms, data(0), epochs=2, seed=1, width=8, alone=alone)
        for arm, seed in zip(arms, (1, 5)):
            wanted = Arm("wanted", CrossEntropyLoss)
            train([wanted], data(0), epochs=2, seed=seed, width=8, alone=alone)
            torch.testing.assert_close(arm.outputs, wanted.outputs)
        assert not torch.allclose(arms[0].outputs, arms[1].outputs)


def test_each_arm_has_the_rate_of_its_own_highest_mean_score():
    arms = [Arm("entropy", CrossEntropyLoss), Arm("square", SquaredErrorLoss)]
    rates = (1e-9, 1e-2, 1e3)
    by_label = {"entropy": (0.1, 0.2, 0.3), "square": (0.3, 0.2, 0.1)}
    seen = []

    def score(arm: Arm, y: np.ndarray) -> float:
        seen.append((arm.label, arm.lr, y[:3].tolist()))
        return by_label[arm.label][rates.index(arm.lr)]

    chosen = best_rates(arms, [data(0), data(1)], rates, score=score, epochs=1, width=8)
    assert chosen == {"entropy": 1e3, "square": 1e-9}
    assert [(label, rate) for label, rate, _ in seen] == 2 * [(arm.label, rate) for arm in arms for rate in rates]
    assert {tuple(y) for _, _, y in seen} == {tuple(data(seed)[3][:3].tolist()) for seed in (0, 1)}
    assert [arm.lr for arm in arms] == [1e-3, 1e-3]
