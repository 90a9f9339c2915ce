"""Distances between tokens against transport plans of another library, loops and closed forms."""

from __future__ import annotations

import importlib
import math

import numpy as np
import ot
import pytest
import torch
from torch.nn.functional import cross_entropy

from steepest.losses.language import EMOLoss, demd, emo_loss

THREE = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
Z = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64)


def drawn(scale=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = (scale * torch.randn(3, 5, 7, generator=generator, dtype=torch.float64)).to(dtype)
    labels = torch.randint(7, (3, 5), generator=generator)
    labels[0, 0] = labels[2, 3:] = -100
    embedding = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    return logits, labels, embedding


def costs_of(embedding):
    unit = embedding / embedding.norm(dim=1, keepdim=True)
    costs = 1 - unit @ unit.T
    return costs.fill_diagonal_(0.0)


@pytest.mark.holds("emo", 1)
def test_numbers_of_the_card():
    z, y = Z.clone().requires_grad_(), torch.tensor([0])
    distance = demd(z, y, THREE)
    assert costs_of(THREE)[0].tolist() == pytest.approx([0, 1, 0.292893], abs=1e-6)
    assert distance.item() == pytest.approx(0.271098, abs=1e-6)
    (slope,) = torch.autograd.grad(distance.sum(), z)
    assert slope[0].tolist() == pytest.approx([-0.1803, 0.1784, 0.0020], abs=5e-5)
    value = emo_loss(z, y, THREE)
    assert value.item() == pytest.approx(0.407606, abs=1e-6)
    assert cross_entropy(z, y).item() == pytest.approx(0.407606, abs=1e-6)
    (slope,) = torch.autograd.grad(value, z)
    assert slope[0].tolist() == pytest.approx([-0.302958, 0.256467, 0.046490], abs=1e-6)
    assert value.item() / distance.item() == pytest.approx(1.503538, abs=1e-6)


@pytest.mark.holds("emo", 2)
@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
def test_its_value_is_cross_entropy(scale):
    logits, labels, embedding = drawn(scale)
    wanted = cross_entropy(logits.flatten(0, 1), labels.flatten()).item()
    assert emo_loss(logits, labels, embedding).item() == pytest.approx(wanted, rel=1e-6)
    assert EMOLoss(embedding)(logits, labels).item() == pytest.approx(wanted, rel=1e-6)
    assert emo_loss(logits, labels, embedding, reduction="sum").item() == pytest.approx(12 * wanted, rel=1e-6)
    losses = emo_loss(logits, labels, embedding, reduction="none")
    assert losses.shape == labels.shape
    assert not losses[labels == -100].any()


@pytest.mark.holds("emo", 3)
def test_what_is_nearer_than_the_mean_is_pushed_up():
    logits, labels, embedding = drawn()
    logits.requires_grad_()
    distance = demd(logits, labels, embedding)
    (slope,) = torch.autograd.grad(distance.sum(), logits)
    valid = labels != -100
    costs, q = costs_of(embedding)[labels[valid]], logits[valid].softmax(-1)
    torch.testing.assert_close(slope[valid], q * (costs - distance[valid].unsqueeze(-1)), rtol=0, atol=1e-14)
    assert slope.sum(-1).abs().max() < 1e-15
    assert not slope[~valid].any()
    nearer = (costs < distance[valid].unsqueeze(-1)) & (costs > 0)
    assert (slope[valid][nearer] < 0).all()
    assert nearer.any()


@pytest.mark.holds("emo", 4)
def test_unrelated_tokens_cost_one():
    logits, labels, _ = drawn()
    q = logits.softmax(-1).gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    wanted = torch.where(labels == -100, 0.0, 1 - q)
    torch.testing.assert_close(demd(logits, labels, torch.eye(7, dtype=torch.float64)), wanted, rtol=0, atol=1e-15)


@pytest.mark.holds("emo", 5)
def test_the_embedding_is_a_constant():
    logits, labels, embedding = drawn()
    live = torch.nn.Parameter(embedding.clone())
    lengths = torch.linspace(0.1, 30, 7, dtype=torch.float64).unsqueeze(1)
    loss = EMOLoss(live)
    before = demd(logits, labels, live)
    torch.testing.assert_close(demd(logits, labels, live * lengths), before, rtol=1e-13, atol=0)
    loss(logits.requires_grad_(), labels).backward()
    assert live.grad is None
    assert not list(loss.parameters())
    with torch.no_grad():
        live.mul_(torch.randn_like(live))
    assert loss(logits, labels).item() == emo_loss(logits, labels, embedding).item(), "a copy, not the trained one"
    with pytest.raises(ValueError, match="cost_embedding: expected rows that are not zero, got 'zeros in row 2'"):
        EMOLoss(torch.cat([THREE[:2], torch.zeros(1, 2)]))
    with pytest.raises(ValueError, match="source: expected 3 classes, as cost_embedding"):
        EMOLoss(THREE)(logits, labels)


def test_against_transport_plans():
    """For a label the distance is exact; for a distribution it bounds that of the best plan from above."""
    logits, labels, embedding = drawn()
    costs = costs_of(embedding).numpy()
    q = logits.softmax(-1)
    for place in ((0, 1), (1, 3), (2, 0)):
        point = np.eye(7)[int(labels[place])]
        best = ot.emd2(point, q[place].numpy(), costs)
        assert demd(logits, labels, embedding)[place].item() == pytest.approx(best, rel=1e-12)
    p = torch.softmax(logits.flip(0), -1)
    bound = demd(logits, p, embedding)
    for place in np.ndindex(3, 5):
        best = ot.emd2(p[place].numpy(), q[place].numpy(), costs)
        assert best <= bound[place].item()
        naive = sum(p[place][i] * q[place][j] * costs[i, j] for i in range(7) for j in range(7))
        assert bound[place].item() == pytest.approx(naive.item(), rel=1e-12)


@pytest.mark.parametrize("top", [15.0, 18.0, 20.0])
def test_nothing_cancels_where_the_model_is_certain(top):
    z = torch.tensor([[top, 0.0, -1.0]])
    distance = demd(z, torch.tensor([0]), THREE.float())
    weights = [math.exp(v) for v in (top, 0.0, -1.0)]
    wanted = (weights[1] + (1 - math.sqrt(0.5)) * weights[2]) / sum(weights)
    assert distance.item() == pytest.approx(wanted, rel=2e-6)
    ratio = cross_entropy(z.double(), torch.tensor([0])).item() / (wanted + 1e-10)
    z.requires_grad_()
    (slope,) = torch.autograd.grad(emo_loss(z, torch.tensor([0]), THREE.float()), z)
    q = z.detach().double().softmax(-1)[0]
    plain = 0.5 * (ratio * q * (costs_of(THREE)[0] - wanted) + q - torch.tensor([1.0, 0.0, 0.0]))
    assert slope[0, 1].item() == pytest.approx(plain[1].item(), rel=1e-5)


def test_labels_by_groups(monkeypatch):
    """More labels than costs may be formed for at a time: the same, in another order."""
    _, labels, embedding = drawn()
    hidden, head = torch.randn(3, 5, 2, dtype=torch.float64), torch.randn(7, 2, dtype=torch.float64)
    module, loss = importlib.import_module("steepest.losses.language.emo"), EMOLoss(embedding)

    def value_and_slopes():
        leaves = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        value = loss(leaves[0], labels, leaves[1])
        return [value, *torch.autograd.grad(value, leaves)]

    whole = value_and_slopes()
    for rows in (1, 2, 3):
        monkeypatch.setattr(module, "TABLE", 7 * rows)
        for by_group, at_once in zip(value_and_slopes(), whole):
            torch.testing.assert_close(by_group, at_once, rtol=1e-13, atol=1e-16)


def test_state_and_refusals():
    logits, labels, embedding = drawn()
    loss, twin = EMOLoss(embedding), EMOLoss(embedding.flip(0))
    twin.load_state_dict(loss.state_dict())
    assert twin(logits, labels).item() == loss(logits, labels).item()
    with pytest.raises(ValueError, match="reduction: expected one of"):
        emo_loss(logits, labels, embedding, reduction="median")
    with pytest.raises(ValueError, match="target: expected shape"):
        demd(logits, logits[..., :2], embedding)


def test_costs_are_of_the_embedding_as_it_is():
    logits, labels, embedding = drawn(dtype=torch.float32)
    embedding = embedding.float()
    wanted = EMOLoss(embedding)(logits, labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(EMOLoss(embedding)(logits, labels), wanted)
        assert torch.equal(demd(logits, logits.softmax(-1), embedding), demd(logits, logits.softmax(-1), embedding))
    for scale in (2.0**66, 2.0**-66):  # squares of which are no float32
        torch.testing.assert_close(EMOLoss(embedding * scale).directions, EMOLoss(embedding).directions)
