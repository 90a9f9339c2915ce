"""Quantile loss against scikit-learn, and the quantile that minimises it."""

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_pinball_loss

from steepest.losses.regression.quantile import QuantileLoss

F, Y = torch.randn(2, 101, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.holds("quantile")
@pytest.mark.parametrize("q", [0.05, 0.5, 0.9])
def test_agrees_with_scikit_learn(q):
    assert QuantileLoss(q)(F, Y).item() == pytest.approx(mean_pinball_loss(Y, F, alpha=q))


@pytest.mark.holds("quantile")
@pytest.mark.parametrize("q", [0.05, 0.5, 0.9])
def test_no_constant_beats_the_quantile(q):
    loss = QuantileLoss(q)
    risks = torch.stack([loss(c.expand_as(Y), Y) for c in Y])
    best = np.quantile(Y.numpy(), q, method="inverted_cdf")
    assert Y[risks.argmin()].item() == pytest.approx(best)


@pytest.mark.parametrize("q", [0.0, 1.0, -0.5])
def test_refused(q):
    with pytest.raises(ValueError, match="q: expected"):
        QuantileLoss(q)
