"""Plain mixing of a batch: coefficients, partners, the loss of a mixed label."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import nn

from steepest.core.objective import Batch
from steepest.data.mixing._mixtures import Mixup, beta_draws, draw_mixture, row_losses
from steepest.losses import AnyLoss, CrossEntropyLoss, PSKDLoss
from steepest.losses.classification.orthogonal_projection import CrossEntropyWithOPL
from steepest.testing import check_method


@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.0])
def test_coefficients_are_of_the_beta_law(alpha):
    draws = beta_draws(alpha, (4000,), torch.Generator().manual_seed(0))
    assert stats.kstest(draws.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    assert torch.equal(draws, beta_draws(alpha, (4000,), torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("per_sample", [False, True])
def test_mixture(per_sample):
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    mixed, partner, lam = draw_mixture(x, 1.0, torch.Generator().manual_seed(0), per_sample=per_sample)
    assert sorted(partner.tolist()) == list(range(6))
    assert len(set(lam.tolist())) == (6 if per_sample else 1)
    for i in range(6):
        a = lam[i].double()
        torch.testing.assert_close(mixed[i], a * x[i] + (1 - a) * x[partner[i]])


def test_mixup_is_cross_entropy_with_mixed_labels():
    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 3), torch.randn(10, 4), torch.arange(10) % 3
    found = Mixup(per_sample=True, seed=5).loss(model, Batch(x, y), CrossEntropyLoss())
    mixed, partner, lam = draw_mixture(x, 1.0, torch.Generator().manual_seed(5), per_sample=True)
    eye = torch.eye(3)
    labels = lam[:, None] * eye[y] + (1 - lam[:, None]) * eye[y[partner]]
    assert found.item() == pytest.approx(nn.functional.cross_entropy(model(mixed), labels).item(), rel=1e-6)


def test_samples_of_weight_zero_do_not_count():
    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 3), torch.randn(10, 4), torch.arange(10) % 3
    weight = torch.zeros(10)
    weight[3] = 2.0
    found = Mixup(seed=5).loss(model, Batch(x, y, weight=weight), CrossEntropyLoss())
    mixed, partner, lam = draw_mixture(x, 1.0, torch.Generator().manual_seed(5))
    losses = nn.functional.cross_entropy(model(mixed), y[3].expand(10), reduction="none")
    (as_partner,) = (partner == 3).nonzero()[:, 0].tolist()
    wanted = lam[0] * losses[3] + (1 - lam[0]) * losses[as_partner]
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_mixup_keeps_the_contract_of_methods():
    check_method(Mixup)


def test_losses_of_the_batch_are_refused():
    with pytest.raises(ValueError, match="loss of samples"):
        row_losses(CrossEntropyWithOPL(), torch.zeros(2, 3), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    "objective", [AnyLoss("f1"), PSKDLoss(3, 3, 10), CrossEntropyWithOPL(0.5)], ids=["of the batch", "needs", "both"]
)
def test_a_mixed_label_needs_a_loss_of_rows_and_nothing_else(objective):
    outputs = torch.randn(3) if objective.name == "anyloss" else torch.randn(3, 3)
    with pytest.raises(ValueError, match="objective: expected a loss of samples that needs outputs and target only"):
        row_losses(objective, outputs, torch.tensor([0, 1, 1]))
