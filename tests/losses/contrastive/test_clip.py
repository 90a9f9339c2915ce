"""Two towers against cross-entropy of a whole matrix; duplicates, a learned scale."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from steepest.losses.contrastive import CLIPLoss, clip_loss

pytestmark = pytest.mark.holds("clip")


def drawn(items=5, width=4, seed=0):
    return torch.randn(2, items, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_is_the_mean_cross_entropy_of_rows_and_columns():
    z, log_scale = drawn().requires_grad_(), torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    s = log_scale.exp() * normalize(z[0], dim=1) @ normalize(z[1], dim=1).T
    wanted = (cross_entropy(s, torch.arange(5)) + cross_entropy(s.T, torch.arange(5))) / 2
    ours = clip_loss(*z, scale=log_scale.exp())
    torch.testing.assert_close(ours, wanted)
    for one, two in zip(torch.autograd.grad(ours, (z, log_scale)), torch.autograd.grad(wanted, (z, log_scale))):
        torch.testing.assert_close(one, two)


def test_a_duplicate_is_no_negative_of_itself():
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert clip_loss(z, z, scale=1.0).item() == pytest.approx(0.758478, abs=1e-6)
    assert clip_loss(z, z, scale=1.0, ids=torch.tensor([7, 7, 3])).item() == pytest.approx(0.392656, abs=1e-6)


def test_the_scale_is_learned_and_cut():
    loss = CLIPLoss(temperature=0.5, max_scale=3.0)
    (slope,) = torch.autograd.grad(loss(drawn(), torch.arange(5)), loss.log_scale)
    assert slope != 0
    loss.after_step()
    assert loss.log_scale.exp().item() == pytest.approx(2.0)
    with torch.no_grad():
        loss.log_scale.fill_(7.0)
    loss.after_step()
    assert loss.log_scale.exp().item() == pytest.approx(3.0)
    assert not list(CLIPLoss(learnable=False).parameters())
    with pytest.raises(ValueError, match="max_scale: expected None unless learnable=True"):
        CLIPLoss(learnable=False, max_scale=3.0)
