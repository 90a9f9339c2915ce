"""Per-class normalised gradient descent beside loops, torch.func and closed forms."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from steepest.gradients import PCNGD, PCNSGD, PerClassNormalized, per_class_gradients
from steepest.testing.aggregator import jacobians


def problem(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4)).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=dtype))
    x, y = torch.randn(12, 3, generator=generator, dtype=dtype), torch.tensor([0] * 7 + [1] * 4 + [3])
    return model, x, y


def per_sample(outputs, y):
    return cross_entropy(outputs, y, reduction="none")


@pytest.mark.holds("per-class-gradients", 1)
def test_the_sum_of_gradients_raises_the_minority_and_the_sum_of_directions_does_not():
    g = torch.tensor([[9.0, 0.0], [-0.6, 0.8]])
    assert float(g[1] @ g.sum(0)) == pytest.approx(-4.4)
    d = PCNGD()(g)
    torch.testing.assert_close(d, torch.tensor([0.4, 0.8]))
    torch.testing.assert_close(g @ d, torch.tensor([3.6, 0.4]))


def test_two_classes_never_conflict():
    """g_l . d = |g_l| (1 + cos)."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        g = torch.randn(2, 3, generator=generator, dtype=torch.float64) * torch.tensor([[100.0], [0.01]])
        lengths = g.norm(dim=1)
        cosine = g[0] @ g[1] / lengths.prod()
        torch.testing.assert_close(g @ PCNGD()(g), lengths * (1 + cosine))
    opposite = torch.tensor([[2.0, 0.0], [-3.0, 0.0]])
    assert torch.equal(PCNGD()(opposite), torch.zeros(2))


@pytest.mark.holds("per-class-gradients", 2)
@pytest.mark.parametrize("cls", [PCNGD, PCNSGD])
def test_weights_of_classes_change_nothing(cls):
    g = jacobians()["typical 5x3"].double()
    weights = torch.tensor([[1e-30], [3.0], [1e20], [1.0], [0.5]], dtype=torch.float64)
    torch.testing.assert_close(cls()(weights * g), cls()(g), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(cls()(g), (g / g.norm(dim=1, keepdim=True)).sum(0), rtol=1e-12, atol=1e-12)
    projected = PCNSGD("projection")
    projected.set_reference(g + 0.1)
    direction = projected(g)
    projected.set_reference(weights.flip(0) * (g + 0.1))
    torch.testing.assert_close(projected(weights * g), direction, rtol=1e-12, atol=1e-12)


@pytest.mark.holds("per-class-gradients", 3)
def test_length_of_a_step_and_classes_that_are_absent():
    for j in jacobians().values():
        assert float(PCNGD()(j).double().norm()) <= len(j) * (1 + 1e-6)
    g = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    torch.testing.assert_close(PCNGD()(g), torch.tensor([0.6, 0.8]))
    model, x, y = problem()
    rows = per_class_gradients(model, per_sample, x, y, 4)
    assert torch.equal(rows[2], torch.zeros_like(rows[2]))
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    normalized = PerClassNormalized(torch.optim.SGD(model.parameters(), lr=0.1), num_classes=4)
    normalized.step(per_sample(model(x), y), y)
    step = before - torch.cat([p.detach().flatten() for p in model.parameters()])
    present = rows[[0, 1, 3]]
    torch.testing.assert_close(step, 0.1 * (present / present.norm(dim=1, keepdim=True)).sum(0))
    assert float(step.norm()) <= 0.1 * 3


@pytest.mark.holds("per-class-gradients", 4)
def test_projection_onto_the_gradient_in_all_data():
    aggregator = PCNSGD("projection")
    aggregator.set_reference(torch.tensor([[1.0, 1.0]]))
    batch = torch.tensor([[2.0, 0.0]])
    torch.testing.assert_close(aggregator.projections(batch).float(), torch.tensor([0.707107]), atol=1e-6, rtol=0.0)
    torch.testing.assert_close(aggregator(batch), torch.tensor([1.414214, 0.0]), atol=1e-6, rtol=0.0)


def test_projections_are_cosines_class_by_class():
    generator = torch.Generator().manual_seed(2)
    batch, whole = torch.randn(3, 6, generator=generator), torch.randn(3, 6, generator=generator)
    whole += 2 * batch
    aggregator = PCNSGD("projection")
    aggregator.set_reference(whole)
    wanted = torch.zeros(6)
    for own, full in zip(batch, whole):
        wanted += own / own.norm() / torch.cosine_similarity(own, full, dim=0)
    torch.testing.assert_close(aggregator(batch), wanted)
    whole[1] = 0.0  # no direction to correct by
    aggregator.set_reference(whole)
    assert float(aggregator.projections(batch)[1]) == 1.0


@pytest.mark.holds("per-class-gradients", 5)
def test_one_class_is_normalised_gradient_descent():
    g = torch.tensor([[3e-30, -4e-30]])
    torch.testing.assert_close(PCNGD()(g), torch.tensor([0.6, -0.8]))


@pytest.mark.holds("per-class-gradients", 6)
@pytest.mark.parametrize("whole", [[-1.0, 0.2], [0.0, 1.0], [0.1, 2.0]])
def test_projections_stop_at_a_floor(whole):
    aggregator = PCNSGD("projection", floor=0.25)
    aggregator.set_reference(torch.tensor([whole]))
    torch.testing.assert_close(aggregator(torch.tensor([[2.0, 0.0]])), torch.tensor([4.0, 0.0]))


def test_gradients_are_those_of_each_class_alone():
    model, x, y = problem()
    rows = per_class_gradients(model, per_sample, x, y, 4)
    assert all(p.grad is None for p in model.parameters())
    for label in range(4):
        own = per_sample(model(x), y)[y == label].sum() / 12
        wanted = torch.autograd.grad(own, model.parameters())
        torch.testing.assert_close(rows[label], torch.cat([g.flatten() for g in wanted]))
    parameters = dict(model.named_parameters())

    def loss_of(parameters, one, label):
        return cross_entropy(torch.func.functional_call(model, parameters, (one,)), label)

    each = torch.func.vmap(torch.func.grad(loss_of), in_dims=(None, 0, 0))(parameters, x, y)
    samples = torch.cat([g.flatten(1) for g in each.values()], 1)
    for label in range(4):
        torch.testing.assert_close(rows[label], samples[y == label].sum(0) / 12)


def test_steps_with_a_projection_and_their_state():
    model, x, y = problem()
    few = [0, 1, 7, 11]
    model.register_parameter("unused", nn.Parameter(torch.ones(2, dtype=torch.float64)))

    def optimizer_of(own):
        return PerClassNormalized(
            torch.optim.SGD(own.parameters(), lr=0.05, momentum=0.9), 4, correction="projection", floor=0.2
        )

    normalized = optimizer_of(model)
    with pytest.raises(ValueError, match="correction: expected a reference for the projection"):
        normalized.step(per_sample(model(x[few]), y[few]), y[few])
    normalized.set_reference(per_sample(model(x), y), y)
    assert normalized.param_groups is normalized.optimizer.param_groups
    whole = per_class_gradients(model, per_sample, x, y, 4)
    batch = per_class_gradients(model, per_sample, x[few], y[few], 4)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    wanted = before.clone()
    for label in (0, 1, 3):
        own = batch[label] / batch[label].norm()
        wanted -= 0.05 * own / float(torch.cosine_similarity(batch[label], whole[label], dim=0).clamp_min(0.2))
    normalized.step(per_sample(model(x[few]), y[few]), y[few])
    torch.testing.assert_close(torch.cat([p.detach().flatten() for p in model.parameters()]), wanted)
    assert model.unused.grad is None

    twin = copy.deepcopy(model)
    again = optimizer_of(twin)
    file = io.BytesIO()
    torch.save(normalized.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    for own, descent in ((model, normalized), (twin, again)):
        descent.step(per_sample(own(x), y), y)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters()))
    normalized.aggregator.reset()
    assert normalized.aggregator.reference.numel() == 0


def test_what_is_refused():
    model, x, y = problem()
    with pytest.raises(ValueError, match=r"target: expected values in 0\.\.2"):
        per_class_gradients(model, per_sample, x, y, 3)
    with pytest.raises(ValueError, match="losses: expected 1 dimensions"):
        per_class_gradients(model, cross_entropy, x, y, 4)
    with pytest.raises(ValueError, match="correction: expected one of None, 'projection'"):
        PCNSGD("mean")
    with pytest.raises(ValueError, match="floor: expected a number > 0"):
        PCNSGD(floor=0.0)
    aggregator = PCNSGD("projection")
    aggregator.set_reference(torch.ones(2, 3))
    with pytest.raises(ValueError, match="jacobian: expected the shape of the reference"):
        aggregator(torch.ones(2, 4))
