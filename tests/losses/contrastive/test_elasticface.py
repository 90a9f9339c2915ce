"""Elastic margins: known numbers, the ranks of draws, fixed margins in eval mode, streams that resume."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from pytorch_metric_learning.losses import ArcFaceLoss as PeerArcFace
from pytorch_metric_learning.losses import CosFaceLoss as PeerCosFace

from steepest.core.heads import NormedLinear
from steepest.losses.contrastive import ElasticArcFaceLoss, ElasticCosFaceLoss, arc_face_loss, elastic_margin

ROW, FIRST = torch.tensor([[0.6, 0.2, -0.1]], dtype=torch.float64), torch.tensor([0])


@pytest.mark.holds("elasticface", 1)
def test_known_numbers_of_fixed_margins():
    for margin, scale, loss in ((0.5, 64.0, 3.673142), (0.5, 8.0, 1.000910), (0.55, 8.0, 1.269695)):
        assert ElasticArcFaceLoss(margin, 0.0, scale)(ROW, FIRST).item() == pytest.approx(loss, abs=1e-6)
        turned = math.cos(math.acos(0.6) + margin)
        others = math.exp(scale * (0.2 - turned)) + math.exp(scale * (-0.1 - turned))
        assert loss == pytest.approx(math.log1p(others), abs=1e-6)
    assert ElasticCosFaceLoss(0.35, 0.0, 8.0)(ROW, FIRST).item() == pytest.approx(0.548774, abs=1e-6)


@pytest.mark.holds("elasticface", 1)
@pytest.mark.parametrize(
    ("ours", "peer"),
    [
        (
            ElasticArcFaceLoss(math.radians(20), 0.0, 16.0, monotone=True),
            PeerArcFace(4, 5, margin=20, scale=16),
        ),
        (ElasticCosFaceLoss(0.2, 0.0, 16.0), PeerCosFace(4, 5, margin=0.2, scale=16)),
        (ElasticCosFaceLoss(0.2, 0.3, 16.0).eval(), PeerCosFace(4, 5, margin=0.2, scale=16)),
    ],
    ids=["ArcFace", "CosFace", "eval mode"],
)
def test_without_spread_they_are_the_losses_of_the_peer(ours, peer):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(4, (8,), generator=generator)
    head, peer = NormedLinear(5, 4).double(), peer.double()
    with torch.no_grad():
        head.weight.copy_(peer.W.T)
    torch.testing.assert_close(ours(head(features), target), peer(features, target), rtol=1e-6, atol=1e-6)


@pytest.mark.holds("elasticface", 2)
def test_the_farthest_from_its_direction_gets_the_largest_margin(monkeypatch):
    draws = torch.tensor([0.02, -0.03, 0.0, 0.05]) / 0.05
    monkeypatch.setattr(torch, "randn", lambda *args, **kwargs: draws.clone())
    cosines = torch.tensor([0.1, 0.9, 0.4, 0.7])
    margins = elastic_margin(cosines, 0.5, 0.05, plus=True)
    assert margins.tolist() == pytest.approx([0.55, 0.47, 0.52, 0.50], abs=1e-6)
    assert elastic_margin(cosines, 0.5, 0.05).tolist() == pytest.approx([0.52, 0.47, 0.50, 0.55], abs=1e-6)


@pytest.mark.holds("elasticface", 3)
def test_ranks_hand_out_the_same_draws():
    cosines = torch.rand(50, generator=torch.Generator().manual_seed(3))
    plain, plus = (elastic_margin(cosines, 0.5, 0.1, plus, torch.Generator().manual_seed(1)) for plus in (False, True))
    assert torch.equal(plain.sort().values, plus.sort().values)
    assert torch.equal(plus[cosines.argsort(descending=True)], plus.sort().values)
    assert not torch.equal(plain, plus)


@pytest.mark.holds("elasticface", 4)
@pytest.mark.parametrize("cls", [ElasticArcFaceLoss, ElasticCosFaceLoss])
def test_seeds_ends_and_ranges(cls):
    generator = torch.Generator().manual_seed(0)
    cosines, target = torch.rand(6, 3, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2])
    a, b = cls(seed=4), cls(seed=4)
    first, second = a(cosines, target), a(cosines, target)
    assert first != second
    assert b(cosines, target) == first
    resumed = cls(seed=5)
    resumed.load_state_dict(b.state_dict())
    assert resumed(cosines, target) == second
    assert copy.deepcopy(b)(cosines, target) == second
    given = [cls(seed=9)(cosines, target, generator=torch.Generator().manual_seed(2)) for _ in range(2)]
    assert given[0] == given[1]
    assert given[0] != first

    ends = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 1.0]], requires_grad=True)
    for plus in (False, True):
        loss = cls(plus=plus, std=0.5)(ends, torch.tensor([0, 0]))
        assert torch.autograd.grad(loss, ends)[0].isfinite().all()
    for name in ("margin", "std"):
        with pytest.raises(ValueError, match=f"^{name}: expected a number >= 0, got -0.1$"):
            cls(**{name: -0.1})
        with pytest.raises(ValueError, match=f"^{name}: expected a number >= 0, got -0.1$"):
            elastic_margin(torch.zeros(2), **{"margin": 0.5, "std": 0.1, name: -0.1})
    with pytest.raises(ValueError, match=r"^target: expected values in 0\.\.2"):
        cls()(cosines, torch.tensor([0, 1, 2, 0, -1, 2]))


@pytest.mark.holds("elasticface", 5)
def test_margins_have_the_mean_and_the_spread_that_were_asked():
    margins = elastic_margin(torch.zeros(20_000), 0.5, 0.05, generator=torch.Generator().manual_seed(0))
    assert abs(margins.mean().item() - 0.5) < 3 * 0.05 / math.sqrt(20_000)
    assert abs(margins.std().item() - 0.05) < 3 * 0.05 / math.sqrt(2 * 20_000)


def test_a_margin_of_each_sample_is_that_of_its_row_without_a_gradient():
    generator = torch.Generator().manual_seed(0)
    cosines = torch.rand(4, 3, generator=generator, dtype=torch.float64)
    target = torch.tensor([0, 1, 2, 0])
    loss = ElasticArcFaceLoss(0.4, 0.1, 8.0, reduction="none")
    losses = loss(cosines, target, generator=torch.Generator().manual_seed(2))
    margins = elastic_margin(
        cosines[range(4), target].requires_grad_(), 0.4, 0.1, False, torch.Generator().manual_seed(2)
    )
    assert not margins.requires_grad
    for i in range(4):
        alone = arc_face_loss(cosines[i : i + 1], target[i : i + 1], margin=float(margins[i]), scale=8.0)
        assert losses[i].item() == pytest.approx(alone.item(), rel=1e-12)
    with pytest.raises(ValueError, match=r"margin: expected shape \(4\)"):
        arc_face_loss(cosines, target, margin=margins[:3])
