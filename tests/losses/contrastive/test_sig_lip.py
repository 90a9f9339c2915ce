"""Every pair by itself, by a loop in float64; duplicates, learned scale and bias."""

from __future__ import annotations

import math

import pytest
import torch

from steepest.losses.contrastive import SigLIPLoss, sig_lip_loss

pytestmark = pytest.mark.holds("sig-lip")


def by_definition(z, scale, bias, ids):
    rows = [[v / v.norm() for v in tower] for tower in z]
    total = 0.0
    for i, a in enumerate(rows[0]):
        for j, b in enumerate(rows[1]):
            if i != j and ids[i] == ids[j]:
                continue
            s = scale * float(a @ b) + bias
            total += math.log1p(math.exp(-s if i == j else s))
    return total / len(rows[0])


@pytest.mark.parametrize("ids", [[0, 1, 2, 3], [0, 1, 0, 3]])
def test_it_is_its_definition(ids):
    z = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = sig_lip_loss(*z, scale=3.0, bias=-1.0, ids=torch.tensor(ids))
    assert result.item() == pytest.approx(by_definition(z, 3.0, -1.0, ids), rel=1e-12)


def test_scale_and_bias_are_learned():
    z = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    loss = SigLIPLoss(scale=3.0, bias=-1.0)
    assert loss(z, torch.arange(4)).item() == pytest.approx(sig_lip_loss(*z, scale=3.0, bias=-1.0).item(), rel=1e-6)
    assert all(slope != 0 for slope in torch.autograd.grad(loss(z, torch.arange(4)), list(loss.parameters())))
    assert not list(SigLIPLoss(learnable=False).parameters())


def test_scale_and_bias_are_single_numbers_and_autocast_rounds_nothing():
    z = torch.eye(3)
    for wrong in ({"scale": torch.ones(3)}, {"bias": torch.zeros(1)}, {"scale": math.nan}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
            sig_lip_loss(z, z, **wrong)
    with pytest.raises(TypeError, match="scale: expected a number"):
        sig_lip_loss(z, z, scale="x")
    first, second = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    wanted = sig_lip_loss(first, second, scale=100.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sig_lip_loss(first, second, scale=100.0), wanted)
