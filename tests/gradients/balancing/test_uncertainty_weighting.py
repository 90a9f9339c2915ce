"""Uncertainty weighting beside TorchJD's, loops and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torchjd.scalarization import UW

from steepest.gradients import HomoscedasticLoss, UncertaintyWeighting

KINDS = ["regression", "classification", "laplace"]


def at(balancer, *log_variance):
    with torch.no_grad():
        balancer.log_variance.copy_(torch.tensor(log_variance).view_as(balancer.log_variance))
    return balancer


@pytest.mark.holds("uncertainty-weighting", 1)
def test_value_gradient_and_least_value():
    losses = torch.tensor([2.0, 0.5])
    balancer = UncertaintyWeighting(KINDS[:2])
    total = balancer(losses)
    total.backward()
    assert total.item() == pytest.approx(1.5)
    torch.testing.assert_close(balancer.log_variance.grad, torch.tensor([-0.5, 0.0]))
    least = (math.log(2), 0.0)
    balancer.zero_grad()
    total = at(balancer, *least)(losses)
    total.backward()
    assert total.item() == pytest.approx(1.346574, abs=1e-6)
    torch.testing.assert_close(balancer.log_variance.grad, torch.zeros(2), atol=1e-7, rtol=0.0)
    for shift in ((0.1, 0.0), (-0.1, 0.0), (0.0, 0.1), (0.0, -0.1)):
        assert at(balancer, *(s + d for s, d in zip(least, shift)))(losses) > total


@pytest.mark.holds("uncertainty-weighting", 2)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_at_the_best_noise_the_scale_of_a_loss_changes_nothing(scale):
    """The regression loss is then (1 + log l) / 2."""
    w = torch.tensor([0.3, -0.7], dtype=torch.float64, requires_grad=True)
    loss = (w @ torch.tensor([1.0, 2.0], dtype=torch.float64) - 0.5).square()
    balancer = UncertaintyWeighting(["regression"]).double()
    with torch.no_grad():
        balancer.log_variance.copy_((scale * loss).log())
    total = balancer([scale * loss])
    assert total.item() == pytest.approx(0.5 * (1 + math.log(scale * loss.item())), rel=1e-12)
    (gradient,) = torch.autograd.grad(total, w, retain_graph=True)
    (wanted,) = torch.autograd.grad(0.5 * loss.log(), w)
    torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("loss", [1e-3, 0.7, 50.0])
def test_weights_at_the_best_noise(loss):
    """exp(s) is l, 2 l and l; weights 1 / (2 l), 1 / (2 l), 1 / l."""
    balancer = at(UncertaintyWeighting(KINDS), math.log(loss), math.log(2 * loss), math.log(loss))
    balancer(torch.full((3,), loss)).backward()
    torch.testing.assert_close(balancer.log_variance.grad, torch.zeros(3), atol=1e-6, rtol=0.0)
    torch.testing.assert_close(balancer.weights(), torch.tensor([0.5, 0.5, 1.0]) / loss)


@pytest.mark.holds("uncertainty-weighting", 3)
def test_without_noise_to_learn():
    """s = 0: half the squared error, the cross-entropy itself."""
    losses = torch.tensor([2.0, 0.7], requires_grad=True)
    total = UncertaintyWeighting(KINDS[:2])(losses)
    assert total.item() == pytest.approx(0.5 * 2.0 + 0.7)
    total.backward()
    torch.testing.assert_close(losses.grad, torch.tensor([0.5, 1.0]))


def test_as_torchjd_where_all_are_regressions():
    ours, theirs = UncertaintyWeighting(3), UW(3)
    optimizers = [torch.optim.SGD(own.parameters(), lr=0.1) for own in (ours, theirs)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        losses = 0.1 + 3 * torch.rand(3, generator=generator)
        for own, optimizer in zip((ours, theirs), optimizers):
            optimizer.zero_grad()
            own(losses).backward()
            optimizer.step()
        torch.testing.assert_close(ours(losses), theirs(losses))
    torch.testing.assert_close(ours.log_variance.data, theirs.log_var.data)


def test_is_the_sum_over_tasks():
    s, losses = [0.4, -1.2, 2.5], [0.3, 2.0, 11.0]
    terms = [
        losses[0] / (2 * math.exp(s[0])) + 0.5 * s[0],
        losses[1] / math.exp(s[1]) + math.log(math.exp(s[1]) ** 0.5),
        losses[2] / math.exp(s[2]) + s[2],
    ]
    assert at(UncertaintyWeighting(KINDS), *s)(torch.tensor(losses)).item() == pytest.approx(sum(terms), rel=1e-6)


@pytest.mark.holds("uncertainty-weighting", 4)
def test_exact_and_approximate_softmax():
    logits, target = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([0])
    exact = HomoscedasticLoss("classification", init=math.log(1.5), exact=True)(logits, target)
    assert exact.item() == pytest.approx(0.574935, abs=1e-6)
    assert HomoscedasticLoss("classification", init=math.log(1.5))(logits, target).item() == pytest.approx(
        0.474470, abs=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_one_task_of_outputs_and_targets_is_its_term(kind):
    generator = torch.Generator().manual_seed(3)
    outputs = torch.randn(6, 4, generator=generator)
    target = torch.arange(6) % 4 if kind == "classification" else torch.randn(6, 4, generator=generator)
    rows = zip(outputs.double(), target)
    own = {
        "regression": lambda o, t: float((o - t).square().mean()),
        "laplace": lambda o, t: float((o - t).abs().mean()),
        "classification": lambda o, t: float(o.exp().sum().log() - o[t]),
    }[kind]
    loss = torch.tensor([sum(own(*row) for row in rows) / 6])
    wanted = at(UncertaintyWeighting([kind]), 0.6)(loss)
    torch.testing.assert_close(HomoscedasticLoss(kind, init=0.6)(outputs, target), wanted)
    half = HomoscedasticLoss(kind, init=0.6)(outputs.bfloat16(), target)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, wanted, rtol=2.0**-6, atol=0.0)


def test_exact_of_a_regression_is_refused():
    with pytest.raises(ValueError, match="exact: expected False"):
        HomoscedasticLoss("laplace", exact=True)
    with pytest.raises(ValueError, match="target: expected shape"):
        HomoscedasticLoss()(torch.ones(3, 1), torch.ones(3))


def test_the_noise_of_one_task_starts_again():
    loss = at(HomoscedasticLoss(init=0.25), 3.0)
    loss.reset()
    assert loss.log_variance.item() == 0.25


@pytest.mark.holds("uncertainty-weighting", 5)
def test_weights_are_positive_where_the_total_is_not():
    balancer = at(UncertaintyWeighting(KINDS), -20.0, -5.0, 85.0)
    assert balancer(torch.tensor([1e-12, 1e-6, 1e30])).item() > 0
    assert (balancer.weights() > 0).all()
    balancer = at(balancer, -20.0, -5.0, -1.0)
    assert balancer(torch.tensor([1e-12, 1e-6, 1e-3])).item() < 0
    assert (balancer.weights() > 0).all()


@pytest.mark.holds("uncertainty-weighting", 6)
def test_a_loss_for_each_kind():
    with pytest.raises(ValueError, match="losses: expected 2 losses, one a task"):
        UncertaintyWeighting(KINDS[:2])(torch.ones(3))
    with pytest.raises(ValueError, match="kinds: expected one of 'regression', 'classification', 'laplace'"):
        UncertaintyWeighting(["regression", "ranking"])
    with pytest.raises(TypeError, match="kinds: expected a list of kinds"):
        UncertaintyWeighting("regression")
    for nothing in ([], 0):
        with pytest.raises(ValueError, match="kinds: expected"):
            UncertaintyWeighting(nothing)
