"""USEFUL: which samples are shown twice."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, softplus

from steepest.data.sampling import EarlyLossUpsampler, two_feature_data, useful_weights


def drawn(seed=0, n=60, classes=4):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    learned = torch.rand(n, generator=generator) < 0.6
    outputs = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    outputs += 6.0 * (learned[:, None] * torch.nn.functional.one_hot(labels, classes))
    return outputs, cross_entropy(outputs, labels, reduction="none"), labels, learned


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.holds("useful", 1)
def test_one_class_of_two_clusters():
    outputs = torch.tensor([[0.0], [0.1], [0.05], [3.0], [3.1]])
    losses = torch.tensor([0.1, 0.2, 0.15, 2.0, 1.8])
    weights = useful_weights(outputs, losses, torch.zeros(5, dtype=torch.long))
    assert weights.tolist() == [1, 1, 1, 2, 2]
    assert losses[weights == 1].mean().item() == pytest.approx(0.15)
    assert losses[weights == 2].mean().item() == pytest.approx(1.9)
    assert useful_weights(outputs, losses.flip(0), torch.zeros(5, dtype=torch.long)).tolist() == [2, 2, 2, 1, 1]


@pytest.mark.holds("useful", 2)
def test_classes_are_apart_and_order_does_not_count():
    outputs, losses, labels, learned = drawn()
    weights = useful_weights(outputs, losses, labels, generator=seeded())
    assert torch.equal(weights == 2, ~learned)
    for label in labels.unique():
        rows = labels == label
        assert torch.equal(useful_weights(outputs[rows], losses[rows], labels[rows], generator=seeded()), weights[rows])
    for seed in range(5):
        noise = torch.randn(60, 4, generator=seeded(seed), dtype=torch.float64)  # without clear clusters
        wanted = useful_weights(noise, losses, labels, generator=seeded(seed))
        assert torch.equal(useful_weights(noise, losses, labels, generator=seeded(seed)), wanted)
        order = torch.randperm(60, generator=seeded(seed))
        moved = useful_weights(noise[order], losses[order], labels[order], generator=seeded(seed))
        assert torch.equal(moved, wanted[order])


@pytest.mark.holds("useful", 3)
def test_classes_that_are_not_cut():
    outputs = torch.tensor([[1.0, 2.0], [3.0, 0.0], [3.0, 0.0], [0.0, 0.0], [5.0, 0.0]])
    labels, losses = torch.tensor([7, -1, -1, 2, 2]), torch.tensor([9.0, 1.0, 2.0, 0.5, 0.5])
    assert useful_weights(outputs, losses, labels).tolist() == [1] * 5
    assert useful_weights(outputs[:0], losses[:0], labels[:0]).shape == (0,)


@pytest.mark.holds("useful", 4)
@pytest.mark.parametrize("upsample", [1, 2, 5])
def test_counts(upsample):
    outputs, losses, labels, learned = drawn()
    sampler = EarlyLossUpsampler(lambda epochs: (outputs, losses), upsample=upsample, generator=seeded())
    rows = sampler.fit(labels).rows()
    assert len(rows) == 60 + (upsample - 1) * int((~learned).sum())
    assert torch.equal(torch.bincount(rows), sampler.weights)
    assert upsample > 1 or sampler.weights.tolist() == [1] * 60


@pytest.mark.holds("useful", 5)
@pytest.mark.parametrize("steps", [20, 60, 400])
def test_samples_without_the_easy_feature_are_shown_twice(steps):
    x, y, easy = two_feature_data(600, generator=seeded())
    filters = (0.1 * torch.randn(50, 20, generator=seeded(1))).requires_grad_()
    for _ in range(steps):
        loss = softplus(-y * ((x @ filters) ** 3).sum((1, 2))).mean()
        (slope,) = torch.autograd.grad(loss, filters)
        filters = (filters - 0.05 * slope).detach().requires_grad_()
    outputs = ((x @ filters.detach()) ** 3).sum((1, 2))
    weights = useful_weights(outputs[:, None], softplus(-y * outputs), (y > 0).long(), generator=seeded())
    assert 0.05 < (~easy).float().mean() < 0.15
    assert torch.equal(weights == 2, ~easy)


def test_the_data_are_what_they_are_said_to_be():
    x, y, easy = two_feature_data(4000, 20, 5, 3.0, 0.5, 0.75, 2.0, generator=seeded())
    strong, weak = x[:, :, 0].abs().max(1).values, (x[:, :, 1] * y[:, None]).max(1).values
    rest = x.clone()
    rest[(x[:, :, 0].abs() == 3.0)] = 0.0
    assert easy.float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert torch.equal((x * y[:, None, None])[..., 0].max(1).values >= 3.0, easy | (strong > 3.0))
    assert (weak >= 0.5).all()
    noise = x[(x[..., 2:] != 0).any(-1)]
    assert len(noise) == 4000 * 3
    assert noise.var().item() == pytest.approx(4.0 / 20, rel=0.02)
    assert y.mean().abs() < 0.06
    first = (x[:, 0, 0].abs() == 3.0).float().mean().item()
    assert first == pytest.approx(0.75 / 5, abs=0.03), "patches stay in their places"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"upsample": 0}, "upsample: expected an integer >= 1"),
        ({"losses": torch.zeros(3)}, "losses: expected shape"),
        ({"labels": torch.zeros(5)}, "labels: expected an integer"),
        ({"outputs": torch.full((5, 1), torch.nan)}, "outputs: expected finite numbers"),
        ({"losses": torch.full((5,), torch.inf)}, "losses: expected finite numbers"),
    ],
)
def test_refusals(change, message):
    given = {"outputs": torch.rand(5, 1), "losses": torch.rand(5), "labels": torch.zeros(5).long(), **change}
    with pytest.raises((ValueError, TypeError), match=message):
        useful_weights(**given)


def test_more_refusals():
    with pytest.raises(TypeError, match="train_fn: expected a function"):
        EarlyLossUpsampler(3)
    with pytest.raises(ValueError, match="epochs_early: expected an integer >= 1"):
        EarlyLossUpsampler(lambda epochs: None, epochs_early=0)
    with pytest.raises(ValueError, match="rows: expected a call of fit before"):
        EarlyLossUpsampler(lambda epochs: None).rows()
    with pytest.raises(ValueError, match="alpha: expected a number >= 0 and <= 1"):
        two_feature_data(alpha=1.5)
    with pytest.raises(ValueError, match="d: expected an integer >= 2"):
        two_feature_data(d=1)
