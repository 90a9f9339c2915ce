"""Several heads and temperatures of pairs: an anchor's known numbers, loops, limits of temperatures."""

from __future__ import annotations

import math

import pytest
import torch

from steepest.losses.contrastive import (
    AdaptiveMultiHeadContrastiveLoss,
    MultiHeadProjector,
    PairTemperature,
    multihead_contrastive_loss,
    temperature_penalty,
)

ANCHORS = (((0.8, 0.3, -0.1), (0.2, 0.5, 0.4)), ((0.5, 0.4, 0.2), (0.3, 0.3, 0.6)))


def omega(tau, dimension):
    return dimension / 2 * math.log(tau) + 1 / tau


def by_loops(z1, z2, tau, beta, dimension, negatives):
    """A number at a time; of each anchor the parts of similarities and of the penalty."""
    rows = torch.nn.functional.normalize(torch.cat([z1, z2], 1), dim=2)
    heads, count, _ = rows.shape
    items, total = count // 2, 0.0
    for i in range(count):
        p = (i + items) % count
        others = [n for n in range(count) if n % items != i % items]
        for c in range(heads):
            s, t = (rows[c, i] @ rows[c].T).tolist(), tau[c, i].tolist()
            worst = max(others, key=s.__getitem__)
            far = s[worst] / t[worst]
            if negatives == "logsumexp":
                far = math.log(sum(math.exp(s[n] / t[n]) for n in others))
            total += far - s[p] / t[p] + beta * (omega(t[p], dimension) - omega(t[worst], dimension))
    return total / count


def of_anchors():
    """Three items whose first row has, in each head, the known similarities and temperatures, and others of 0."""
    z1, z2, tau = torch.zeros(2, 3, 8).double(), torch.zeros(2, 3, 8).double(), torch.ones(2, 6, 6).double()
    for head, (similarities, temperatures) in enumerate(ANCHORS):
        z1[head, 0, 0] = 1.0
        for place, s in enumerate(similarities):
            row = torch.zeros(8).double()
            row[0], row[place + 1] = s, math.sqrt(1 - s * s)
            z2[head, place] = row
            if place:
                z1[head, place, 7] = -1.0  # a negative far away, with a similarity of 0
        tau[head, 0, 3:] = torch.tensor(temperatures, dtype=torch.float64)
    return z1, z2, tau


@pytest.mark.holds("adaptive-multihead-contrastive", 1)
def test_known_numbers_of_one_anchor():
    """Each part by its formula, and the function against loops that have these formulas."""
    parts = []
    for (sp, *sn), (tp, *tn) in ANCHORS:
        worst = max(range(2), key=sn.__getitem__)
        log_sum = math.log(sum(math.exp(s / t) for s, t in zip(sn, tn)))
        parts.append((sn[worst] / tn[worst] - sp / tp, 0.1 * (omega(tp, 2) - omega(tn[worst], 2)), log_sum - sp / tp))
    assert [p[0] for p in parts] == pytest.approx([-3.4, -0.333333], abs=1e-6)
    assert [p[1] for p in parts] == pytest.approx([0.208371, 0.0], abs=1e-6)
    assert [p[2] for p in parts] == pytest.approx([-3.044135, -0.020072], abs=1e-6)
    assert sum(p[0] + p[1] for p in parts) == pytest.approx(-3.524962, abs=1e-6)
    z1, z2, tau = of_anchors()
    (grad,) = torch.autograd.grad(multihead_contrastive_loss(z1, z2, tau.requires_grad_(), d_eff=2.0), tau)
    for head, ((sp, *sn), (tp, *tn)) in enumerate(ANCHORS):  # of the first row alone these are 1/6 of the mean
        wanted = sp / tp**2 + 0.1 * (1 / tp - 1 / tp**2), -sn[0] / tn[0] ** 2 - 0.1 * (1 / tn[0] - 1 / tn[0] ** 2)
        assert (6 * grad[head, 0, 3:5]).tolist() == pytest.approx(wanted, abs=1e-9)


@pytest.mark.holds("adaptive-multihead-contrastive", 1)
@pytest.mark.parametrize("negatives", ["max", "logsumexp"])
def test_values_are_those_of_loops(negatives):
    generator = torch.Generator().manual_seed(0)
    z1, z2 = torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.float64).unbind(0)
    tau = 0.1 + torch.rand(3, 10, 10, generator=generator, dtype=torch.float64)
    for beta, d_eff in ((0.1, None), (0.4, 2.0)):
        wanted = by_loops(z1, z2, tau, beta, d_eff or 4, negatives)
        value = AdaptiveMultiHeadContrastiveLoss(beta, d_eff, negatives)(z1, z2, tau)
        assert value.item() == pytest.approx(wanted, rel=1e-9)
    z1, z2, tau = of_anchors()
    wanted = by_loops(z1, z2, tau, 0.1, 2, negatives)
    assert multihead_contrastive_loss(z1, z2, tau, d_eff=2.0, negatives=negatives).item() == pytest.approx(wanted)


@pytest.mark.holds("adaptive-multihead-contrastive", 2)
def test_without_beta_only_similarities_count():
    parts = [-sp / tp + max(zip(sn, tn))[0] / max(zip(sn, tn))[1] for (sp, *sn), (tp, *tn) in ANCHORS]
    assert sum(parts) == pytest.approx(-3.733333, abs=1e-6)
    z1, z2, tau = of_anchors()
    value = multihead_contrastive_loss(z1, z2, tau, beta=0.0)
    assert value.item() == pytest.approx(by_loops(z1, z2, tau, 0.0, 7, "max"), rel=1e-9)
    assert value == multihead_contrastive_loss(z1, z2, tau, beta=0.0, d_eff=50.0)


@pytest.mark.holds("adaptive-multihead-contrastive", 3)
def test_one_head_of_one_temperature_is_nt_xent_without_the_positive_below_the_line():
    generator = torch.Generator().manual_seed(0)
    z1, z2 = torch.randn(2, 1, 6, 4, generator=generator, dtype=torch.float64).unbind(0)
    tau = torch.full((1, 12, 12), 0.3, dtype=torch.float64)
    rows = torch.nn.functional.normalize(torch.cat([z1, z2], 1)[0], dim=1)
    s, item = rows @ rows.T / 0.3, torch.arange(12) % 6
    below = s.masked_fill(item.unsqueeze(1) == item, -torch.inf).logsumexp(1)
    wanted = (below - s[torch.arange(12), torch.arange(12).roll(6)]).mean()
    for beta in (0.0, 0.5):
        value = multihead_contrastive_loss(z1, z2, tau, beta=beta, negatives="logsumexp")
        torch.testing.assert_close(value, wanted)


@pytest.mark.holds("adaptive-multihead-contrastive", 4)
def test_the_likeliest_temperature():
    for s, dimension, best in ((0.9, 2, 0.1), (0.5, 8, 0.125), (-0.2, 3, 0.8)):
        tau = torch.linspace(0.02, 2, 100_001, dtype=torch.float64)
        least = tau[(temperature_penalty(tau, dimension) - s / tau).argmin()]
        assert least.item() == pytest.approx(best, abs=3e-5)
        assert best == pytest.approx(2 * (1 - s) / dimension)


@pytest.mark.holds("adaptive-multihead-contrastive", 5)
def test_temperatures_are_symmetric_and_stay_within_their_limits():
    module = PairTemperature(4, heads=2, low=0.1, high=1.5)
    z = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    tau = module(z)
    assert torch.equal(tau, tau.mT)
    phi = module.networks[1](z[1])
    torch.testing.assert_close(tau[1], 0.1 + 1.4 * (phi @ phi.T).sigmoid())
    for size, bound in ((1e4, 1.5), (0.0, 0.8)):
        for network in module.networks:
            torch.nn.init.constant_(network[2].weight, size)
            torch.nn.init.constant_(network[2].bias, size)
        tau = module(z)
        assert ((tau > 0.1) & (tau < 1.5)).all()
        assert tau.max().item() == pytest.approx(bound, abs=1e-6)
    with torch.no_grad():  # two rows of opposite phi
        for network in module.networks:
            network[0].weight.copy_(torch.eye(4))
            network[0].bias.zero_()
            network[2].weight.copy_(1e3 * torch.tensor([[1.0, -1, 0, 0]] * 4))
            network[2].bias.zero_()
    tau = module(torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]).expand(2, 2, 4))
    assert (tau[:, 0, 1] > 0.1).all()
    assert tau[0, 0, 1].item() == pytest.approx(0.1, abs=1e-6)
    for wrong in ({"low": 0.0}, {"low": 0.5, "high": 0.5}):
        with pytest.raises(ValueError, match=r"(low|high): expected a number > "):
            PairTemperature(4, **wrong)


@pytest.mark.holds("adaptive-multihead-contrastive", 6)
def test_of_negatives_only_the_hardest_moves_its_temperature():
    generator = torch.Generator().manual_seed(2)
    z1, z2 = torch.randn(2, 2, 4, 3, generator=generator, dtype=torch.float64).unbind(0)
    tau = (0.2 + torch.rand(2, 8, 8, generator=generator, dtype=torch.float64)).requires_grad_()
    rows = torch.nn.functional.normalize(torch.cat([z1, z2], 1), dim=2)
    s, item = rows @ rows.mT, torch.arange(8) % 4
    hardest = s.masked_fill(item.unsqueeze(1) == item, -2).argmax(2)
    moves = torch.zeros(2, 8, 8, dtype=torch.bool).scatter(2, hardest.unsqueeze(2), True)
    moves |= torch.arange(8).roll(4).unsqueeze(1) == torch.arange(8)
    (slope,) = torch.autograd.grad(multihead_contrastive_loss(z1, z2, tau), tau)
    assert torch.equal(slope != 0, moves)


def test_projections_gradients_and_wrong_arguments():
    projector, temperature = MultiHeadProjector(6, 4, heads=2), PairTemperature(4, heads=2)
    features = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    z1, z2 = projector(features).unbind(1)
    torch.testing.assert_close(z1.norm(dim=2), torch.ones(2, 5))
    torch.testing.assert_close(z2[1], torch.nn.functional.normalize(projector.projections[1](features[1]), dim=1))
    loss = AdaptiveMultiHeadContrastiveLoss()(z1, z2, temperature(torch.cat([z1, z2], 1)))
    leaves = [features, *projector.parameters(), *temperature.parameters()]
    assert all(slope.abs().max() > 0 for slope in torch.autograd.grad(loss, leaves))
    for items in (0, 1):
        z = torch.randn(2, items, 4, requires_grad=True)
        value = multihead_contrastive_loss(z, z, torch.ones(2, 2 * items, 2 * items))
        assert value == 0
        assert value.requires_grad
    half = torch.zeros(1, 3, 2, dtype=torch.float16, requires_grad=True)
    value = multihead_contrastive_loss(half, half, torch.full((1, 6, 6), 1e-4))
    assert value.dtype == torch.float32
    assert torch.autograd.grad(value, half)[0].isfinite().all()
    with pytest.raises(ValueError, match=r"tau: expected shape \(2, 10, 10\)"):
        multihead_contrastive_loss(z1, z2, torch.ones(2, 5, 5))
    with pytest.raises(ValueError, match="tau: expected temperatures"):
        multihead_contrastive_loss(z1, z2, torch.zeros(2, 10, 10))
    with pytest.raises(ValueError, match="negatives: expected one of 'max', 'logsumexp'"):
        AdaptiveMultiHeadContrastiveLoss(negatives="all")
