"""Gradient collision: mean cosine of chunk gradients, its gradient, the method over batches, piggyback learning."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity, cross_entropy

from steepest.core.objective import Batch
from steepest.losses.classification.cross_entropy import CrossEntropyLoss
from steepest.losses.unlearning.gradient_collision import (
    GradientCollisionLoss,
    gradient_collision_loss,
    piggyback_accuracy,
)
from steepest.nn.networks import Network

CARD = ((1.0, 0.0), (1.0, 1.0), (0.0, 2.0))


def weights(*values):
    return torch.tensor(values or (0.0, 0.0), dtype=torch.float64, requires_grad=True)


def linear(rows, w):
    """Losses whose gradients are the rows."""
    return [torch.tensor(row, dtype=torch.float64) @ w for row in rows]


def tanh_net(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def data(rows=12, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (rows,), generator=generator)


def losses_of(model, chunks=3):
    x, y = data()
    return [cross_entropy(model(a), b) for a, b in zip(x.chunk(chunks), y.chunk(chunks))]


def by_pairs(losses, params, normalize=True):
    """The equation as a loop over pairs, from gradients that torch flattens."""
    rows = []
    for loss in losses:
        slopes = torch.autograd.grad(loss, params, create_graph=True, materialize_grads=True, allow_unused=True)
        rows.append(nn.utils.parameters_to_vector(slopes))
    pairs = list(itertools.combinations(rows, 2))
    return sum(cosine_similarity(a, b, 0) if normalize else a @ b for a, b in pairs) / len(pairs)


@pytest.mark.holds("gradient-collision", 1)
def test_card_values():
    w = weights()
    assert gradient_collision_loss(linear(CARD, w), [w]).item() == pytest.approx(2**0.5 / 3, abs=1e-12)
    assert gradient_collision_loss(linear(CARD, w), [w], normalize=False).item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.holds("gradient-collision", 2)
def test_identical_and_opposite_chunks():
    model = tanh_net()
    loss = losses_of(model)[0]
    params = list(model.parameters())
    assert gradient_collision_loss([loss, loss, loss], params).item() == pytest.approx(1.0, abs=1e-12)
    assert gradient_collision_loss([loss, -loss], params).item() == pytest.approx(-1.0, abs=1e-12)


@pytest.mark.holds("gradient-collision", 3)
def test_blind_to_the_scale_of_each_loss():
    model = tanh_net()
    params = list(model.parameters())
    losses = losses_of(model)
    scaled = [c * loss for c, loss in zip((1e-3, 1.0, 500.0), losses)]
    both = [gradient_collision_loss(own, params) for own in (losses, scaled)]
    assert both[0].item() == pytest.approx(both[1].item(), abs=1e-12)
    slopes = [torch.autograd.grad(value, params, retain_graph=True) for value in both]
    for a, b in zip(*slopes):
        assert torch.allclose(a, b, atol=1e-12)
    inner = [gradient_collision_loss(own, params, normalize=False).item() for own in (losses, scaled)]
    assert inner[1] != pytest.approx(inner[0], rel=0.1)


@pytest.mark.holds("gradient-collision", 4)
@pytest.mark.parametrize("normalize", [True, False])
def test_gradient_is_that_of_differences(normalize):
    model = tanh_net()
    params = list(model.parameters())
    slopes = torch.autograd.grad(gradient_collision_loss(losses_of(model), params, normalize), params)
    step = 1e-6
    for p, slope in zip(params, slopes):
        for place in range(0, p.numel(), 3):
            ends = []
            for sign in (1, -1):
                with torch.no_grad():
                    p.view(-1)[place] += sign * step
                ends.append(gradient_collision_loss(losses_of(model), params, normalize).item())
                with torch.no_grad():
                    p.view(-1)[place] -= sign * step
            assert slope.view(-1)[place].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-8)


@pytest.mark.parametrize("normalize", [True, False])
def test_value_and_gradient_are_those_of_the_loop_over_pairs(normalize):
    model = tanh_net(3)
    params = list(model.parameters())
    for chunks in (2, 3, 6):
        losses = losses_of(model, chunks)
        ours = gradient_collision_loss(losses, params, normalize)
        wanted = by_pairs(losses, params, normalize)
        assert ours.item() == pytest.approx(wanted.item(), abs=1e-12)
        slopes = torch.autograd.grad(3 * ours, params, retain_graph=True)
        for a, b in zip(slopes, torch.autograd.grad(3 * wanted, params)):
            assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.holds("gradient-collision", 5)
def test_one_loss_is_refused():
    w = weights()
    with pytest.raises(ValueError, match="losses: expected two or more, got 1"):
        gradient_collision_loss(linear(CARD[:1], w), [w])


@pytest.mark.holds("gradient-collision", 5)
def test_a_gradient_of_zero_has_no_cosines():
    w = weights(0.5, -1.0)
    losses = [w.square().sum(), (w - 1).square().sum(), 0.0 * w.sum()]
    value = gradient_collision_loss(losses, [w])
    assert value.item() == pytest.approx(by_pairs(losses[:2], [w]).item() / 3, abs=1e-12)
    (slope,) = torch.autograd.grad(value, [w], retain_graph=True)
    (wanted,) = torch.autograd.grad(by_pairs(losses[:2], [w]) / 3, [w])
    assert torch.allclose(slope, wanted, atol=1e-12)
    assert gradient_collision_loss([0.0 * w.sum()] * 2, [w]).item() == 0.0


def test_a_stationary_loss_has_no_gradient_either():
    """Its gradient is 0 here but not next to here: the slope of a cosine would be infinite."""
    w = weights(0.0, 0.0)
    losses = [w.square().sum(), (w - 1).square().sum(), (w + torch.tensor([1.0, 2.0])).square().sum()]
    (slope,) = torch.autograd.grad(gradient_collision_loss(losses, [w]), [w])
    assert bool(slope.isfinite().all())
    assert slope.abs().max() < 10


def test_eps_is_the_length_that_counts_as_zero():
    w = weights(0.5, -1.0)
    losses = [w.sum(), 1e-5 * w.sum()]
    assert gradient_collision_loss(losses, [w]).item() == pytest.approx(1.0)
    assert gradient_collision_loss(losses, [w], eps=1e-4).item() == pytest.approx(0.0, abs=1e-15)
    assert gradient_collision_loss([w.sum(), 1e-9 * w.sum()], [w]).item() == pytest.approx(0.0, abs=1e-15)


def test_nan_stays():
    w = weights(0.5, -1.0)
    assert gradient_collision_loss([w.sum(), torch.nan * w.sum()], [w]).isnan()


def test_a_parameter_that_a_loss_does_not_use():
    a, b = weights(1.0, 2.0), weights(3.0)
    value = gradient_collision_loss([a.sum() + b.sum(), a.sum()], [a, b])
    assert value.item() == pytest.approx((2 / 3) ** 0.5, abs=1e-12)


def test_half_parameters_give_float32():
    model = tanh_net(dtype=torch.bfloat16)
    x, y = data()
    losses = [cross_entropy(model(a.bfloat16()), b) for a, b in zip(x.chunk(2), y.chunk(2))]
    params = list(model.parameters())
    value = gradient_collision_loss(losses, params)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(by_pairs(losses, list(params)).item(), abs=0.02)
    assert all(slope.dtype == torch.bfloat16 for slope in torch.autograd.grad(value, params))


@pytest.mark.parametrize(
    ("losses", "params", "options", "error", "message"),
    [
        (lambda w: [w.sum(), w], lambda w: [w], {}, ValueError, "losses: expected 0 dimensions"),
        (
            lambda w: [w.sum(), torch.tensor(1.0)],
            lambda w: [w],
            {},
            ValueError,
            "losses: expected scalars with a graph",
        ),
        (lambda w: [w.sum(), 1.0], lambda w: [w], {}, TypeError, "losses: expected a tensor"),
        (lambda w: [w.sum()] * 2, lambda w: [], {}, ValueError, "params: expected tensors that need gradients"),
        (lambda w: [w.sum()] * 2, lambda w: [w.detach()], {}, ValueError, "params: expected tensors that need"),
        (lambda w: [w.sum()] * 2, lambda w: [w], {"eps": 0.0}, ValueError, "eps: expected a number > 0"),
        (lambda w: [w.sum()] * 2, lambda w: [w], {"normalize": 2}, TypeError, "normalize: expected True or False"),
    ],
)
def test_refused(losses, params, options, error, message):
    w = weights()
    with pytest.raises(error, match=message):
        gradient_collision_loss(losses(w), params(w), **options)


def test_no_second_derivatives():
    model = tanh_net()
    params = list(model.parameters())
    (slope, *_) = torch.autograd.grad(gradient_collision_loss(losses_of(model), params), params, create_graph=True)
    with pytest.raises(RuntimeError, match="gradient collision has no second derivatives"):
        slope.sum().backward()


def method_parts():
    torch.manual_seed(2)
    return Network(nn.Sequential(nn.Linear(4, 5), nn.Tanh()), nn.Linear(5, 3)).double(), Batch(*data(11))


@pytest.mark.parametrize("chunks", [2, 4])
def test_method_cuts_the_batch_in_order(chunks):
    model, batch = method_parts()
    method = GradientCollisionLoss(chunks)
    ends = [11 * i // chunks for i in range(chunks + 1)]
    losses = [cross_entropy(model(batch.inputs[a:b]), batch.target[a:b]) for a, b in itertools.pairwise(ends)]
    value = method.loss(model, batch, CrossEntropyLoss())
    assert value.item() == pytest.approx(by_pairs(losses, list(model.parameters())).item(), abs=1e-12)
    assert method.terms["collision"].item() == value.item()


def test_method_options_act():
    model, batch = method_parts()
    objective = CrossEntropyLoss()
    plain = GradientCollisionLoss().loss(model, batch, objective).item()
    inner = GradientCollisionLoss(normalize=False).loss(model, batch, objective).item()
    kept = GradientCollisionLoss(lam=2.5, retain=lambda m: m.head.bias.sum()).loss(model, batch, objective).item()
    assert kept == pytest.approx(2.5 * plain + model.head.bias.sum().item(), abs=1e-12)
    losses = [cross_entropy(model(batch.inputs[a:b]), batch.target[a:b]) for a, b in ((0, 2), (2, 5), (5, 8), (8, 11))]
    assert inner == pytest.approx(by_pairs(losses, list(model.parameters()), False).item(), abs=1e-12)
    names = ["backbone.0.weight", "backbone.0.bias"]
    shared = GradientCollisionLoss(params=names).loss(model, batch, objective).item()
    assert shared == pytest.approx(by_pairs(losses, list(model.backbone.parameters())).item(), abs=1e-12)
    assert shared != pytest.approx(plain, abs=1e-3)


def test_method_hands_weights_to_the_objective():
    model, batch = method_parts()
    weight = torch.linspace(0.1, 2.0, 11, dtype=torch.float64)
    batch = Batch(batch.inputs, batch.target, index=torch.arange(11), weight=weight)
    losses = [
        CrossEntropyLoss()(model(batch.inputs[a:b]), batch.target[a:b], weight=weight[a:b])
        for a, b in ((0, 5), (5, 11))
    ]
    value = GradientCollisionLoss(2).loss(model, batch, CrossEntropyLoss())
    assert value.item() == pytest.approx(by_pairs(losses, list(model.parameters())).item(), abs=1e-12)


def test_batch_norm_uses_running_averages_and_leaves_them():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double().train()
    before = copy.deepcopy(model.state_dict())
    x, y = data()
    value = GradientCollisionLoss(3).loss(model, Batch(x, y), CrossEntropyLoss())
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    assert all(module.training for module in model.modules())
    model.eval()
    assert GradientCollisionLoss(3).loss(model, Batch(x, y), CrossEntropyLoss()).item() == value.item()


def test_attention_has_a_gradient():
    torch.manual_seed(0)

    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))

    model = Attending()
    loss = GradientCollisionLoss(2).loss(model, Batch(torch.randn(6, 3, 4), torch.arange(6) % 3), CrossEntropyLoss())
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_method_refuses():
    model, batch = method_parts()
    with pytest.raises(ValueError, match="batch: expected at least 12 rows, one a chunk, got 11"):
        GradientCollisionLoss(12).loss(model, batch, CrossEntropyLoss())
    with pytest.raises(ValueError, match="chunks: expected an integer >= 2, got 1"):
        GradientCollisionLoss(1)
    with pytest.raises(ValueError, match="lam: expected a number > 0"):
        GradientCollisionLoss(lam=0.0)
    with pytest.raises(TypeError, match="retain: expected a function of the model"):
        GradientCollisionLoss(retain=1.0)


def test_piggyback_is_descent_on_a_copy():
    torch.manual_seed(0)
    extractor = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.0)).double().eval()
    extractor[0].weight.requires_grad_(False)
    before = copy.deepcopy(extractor.state_dict())
    train, test = data(20, 1), data(200, 2)
    test = (test[0], (test[0] @ torch.ones(4, dtype=torch.float64) > 0).long())
    train = (train[0], (train[0] @ torch.ones(4, dtype=torch.float64) > 0).long())
    head = nn.Linear(5, 2).double()
    accuracy = piggyback_accuracy(extractor, lambda: copy.deepcopy(head), train, test, steps=7, lr=0.3)
    w = [t.detach().clone().requires_grad_() for t in (*extractor.state_dict().values(), *head.state_dict().values())]
    for _ in range(7):
        logits = torch.tanh(train[0] @ w[0].T + w[1]) @ w[2].T + w[3]
        slopes = torch.autograd.grad(cross_entropy(logits, train[1]), w)
        w = [(a - 0.3 * b).detach().requires_grad_() for a, b in zip(w, slopes)]
    right = ((torch.tanh(test[0] @ w[0].T + w[1]) @ w[2].T + w[3]).argmax(1) == test[1]).double().mean()
    assert accuracy == pytest.approx(right.item(), abs=1e-12)
    assert all(torch.equal(before[name], now) for name, now in extractor.state_dict().items())
    assert not extractor.training
    assert not extractor[0].weight.requires_grad
    untrained = piggyback_accuracy(extractor, lambda: copy.deepcopy(head), train, test, steps=1, lr=1e-9)
    assert accuracy > untrained


@pytest.mark.parametrize(
    ("options", "message"),
    [({"steps": 0}, "steps: expected an integer >= 1"), ({"lr": 0.0}, "lr: expected a number > 0")],
)
def test_piggyback_refuses_numbers(options, message):
    pair = data(4)
    with pytest.raises(ValueError, match=message):
        piggyback_accuracy(nn.Identity(), lambda: nn.Linear(4, 3).double(), pair, pair, **options)


def test_piggyback_refuses_rows():
    x, y = data(4)
    with pytest.raises(ValueError, match="test: expected inputs and labels of equally many rows"):
        piggyback_accuracy(nn.Identity(), lambda: nn.Linear(4, 3).double(), (x, y), (x, y[:3]))
    with pytest.raises(TypeError, match="train: expected an integer tensor"):
        piggyback_accuracy(nn.Identity(), lambda: nn.Linear(4, 3).double(), (x, y.double()), (x, y))


def test_piggyback_is_judged_in_evaluation_mode():
    def make_head():
        head = nn.Linear(2, 2)
        nn.init.eye_(head.weight)
        nn.init.zeros_(head.bias)
        return head

    x, y = torch.eye(2), torch.tensor([0, 1])
    assert piggyback_accuracy(nn.Dropout(1.0), make_head, (x, y), (x, y), steps=1) == 1.0


def test_autocast_rounds_nothing_of_the_agreement():
    model = tanh_net(dtype=torch.float32)
    x, y = data()
    losses = [cross_entropy(model(a), b) for a, b in zip(x.float().chunk(3), y.chunk(3))]
    parameters = list(model.parameters())

    wanted = gradient_collision_loss(losses, parameters)
    with torch.autocast("cpu", torch.bfloat16):
        result = gradient_collision_loss(losses, parameters)
    assert torch.equal(result, wanted)
    slopes = [torch.autograd.grad(value, parameters, retain_graph=True) for value in (result, wanted)]
    assert all(map(torch.equal, *slopes))
