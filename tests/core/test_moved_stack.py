"""Losses of stacks of layers at many points, against the model itself with its weights moved, one point at a time."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from steepest.core import moved_stack, parameter_directions
from steepest.core.moved_stack import MovedStack, layers_of
from steepest.core.parameter_directions import MeanLoss, values_at

POINTS = torch.cartesian_prod(torch.linspace(-1, 1, 4), torch.linspace(-2, 1, 3))


def perceptron(act=nn.ReLU, bias=True):
    return nn.Sequential(nn.Linear(3, 5, bias), act(), nn.Sequential(nn.Linear(5, 6, bias), nn.Tanh()), nn.Linear(6, 4))


def convolutions():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, 2, 1), nn.ReLU(), nn.Conv2d(3, 4, 2, bias=False), nn.GELU(), nn.Conv2d(4, 2, 1, padding=1),
        nn.Flatten(), nn.Linear(72, 4),
    )  # fmt: skip


MODELS = {
    "perceptron": (perceptron, (7, 3)),
    "sigmoid": (lambda: perceptron(nn.Sigmoid), (7, 3)),
    "silu, no bias": (lambda: perceptron(nn.SiLU, bias=False), (7, 3)),
    "flat images": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), (7, 3, 4)),
    "a function first": (lambda: nn.Sequential(nn.ReLU(), nn.Dropout(), nn.Linear(3, 4)), (7, 3)),
    "a layer": (lambda: nn.Linear(3, 4), (7, 3)),
    "a function last": (lambda: nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 4), nn.Softplus()), (7, 3)),
    "convolutions": (convolutions, (5, 2, 9, 9)),
}
LOSSES = {
    "cross-entropy": functional.cross_entropy,
    "its module": nn.CrossEntropyLoss(),
    "smoothed": nn.CrossEntropyLoss(label_smoothing=0.2),
    "a function": lambda outputs, targets: functional.mse_loss(outputs, functional.one_hot(targets, 4).to(outputs)),
}


def directions(model):
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(p.shape, generator=generator).to(p) for p in model.parameters()] for _ in range(2)]


def moved_losses(model, measure, ways):
    """By writing weights into a copy."""
    values = []
    for row in POINTS.tolist():
        moved = copy.deepcopy(model).eval()
        with torch.no_grad():
            for p, *own in zip(moved.parameters(), *ways):
                p += sum(factor * d for factor, d in zip(row, own))
            values.append(measure(moved))
    return torch.stack(values)


@pytest.fixture
def stacks(monkeypatch):
    """How many rows went through stacks."""
    rows = []
    whole = MovedStack.losses

    def counted(self, coefficients):
        rows.append(len(coefficients))
        return whole(self, coefficients)

    monkeypatch.setattr(MovedStack, "losses", counted)
    return rows


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", MODELS)
def test_losses_are_those_of_the_model_with_moved_weights(name, loss, stacks):
    torch.manual_seed(0)
    build, shape = MODELS[name]
    model = build().double()
    batches = [(torch.randn(shape).double(), torch.arange(shape[0]) % 4) for _ in range(2)]
    batches.append((torch.randn(2, *shape[1:]).double(), torch.tensor([3, 0])))
    inputs = [x.clone() for x, _ in batches]
    measure, ways = MeanLoss(LOSSES[loss], batches), directions(model)
    values = values_at(model, measure, ways, POINTS)
    torch.testing.assert_close(values, moved_losses(model, measure, ways), rtol=1e-12, atol=1e-12)
    assert sum(stacks) == len(POINTS)
    assert all(torch.equal(x, own) for (x, _), own in zip(batches, inputs))


@pytest.mark.parametrize("chunk", [2, 5, None])
def test_float32_and_every_number_of_points_at_once(chunk, stacks):
    torch.manual_seed(0)
    model = perceptron()
    measure, ways = MeanLoss(functional.cross_entropy, (torch.randn(9, 3), torch.arange(9) % 4)), directions(model)
    values = values_at(model, measure, ways, POINTS, chunk=chunk)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, moved_losses(model, measure, ways), rtol=1e-5, atol=1e-5)
    assert max(stacks) == (chunk or len(POINTS) - 1)


def test_one_point_at_a_time_where_it_is_asked_for(stacks):
    model = perceptron()
    values_at(model, MeanLoss(functional.cross_entropy, (torch.ones(1, 3), torch.ones(1).long())), directions(model),
              POINTS, chunk=1)  # fmt: skip
    assert stacks == []


def test_few_points_at_once_where_layers_are_wide(stacks, monkeypatch):
    monkeypatch.setattr(moved_stack, "IN_CACHE", 2 * 9 * 6)
    model = perceptron()
    measure = MeanLoss(functional.cross_entropy, (torch.randn(9, 3), torch.arange(9) % 4))
    values_at(model, measure, directions(model), POINTS)
    assert max(stacks) == 2


def test_small_losses_keep_their_digits():
    """A loss of 1e-6 beside logits of 40: the difference of logits is taken before the logarithm is added."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2)[:, :1])
        model[1].weight.copy_(torch.tensor([[40.0, 0.0], [26.0, 0.0]]))
    measure = MeanLoss(functional.cross_entropy, (torch.ones(1, 1), torch.zeros(1).long()))
    values = values_at(model, measure, [[torch.zeros_like(p) for p in model.parameters()]], torch.zeros(3, 1))
    expected = functional.cross_entropy(torch.tensor([[40.0, 26.0]]).double(), torch.zeros(1).long()).float()
    torch.testing.assert_close(values, expected.expand(3), rtol=0.1, atol=0.0)


def test_ignored_targets_and_losses_that_are_not_finite():
    torch.manual_seed(0)
    model = perceptron().double()
    ways = directions(model)
    x, y = torch.randn(6, 3).double(), torch.tensor([0, -100, 2, 3, -100, 1])
    measure = MeanLoss(functional.cross_entropy, (x, y))
    torch.testing.assert_close(values_at(model, measure, ways, POINTS), moved_losses(model, measure, ways))
    far = [[1e200 * d for d in way] for way in ways]
    expected = moved_losses(model, MeanLoss(functional.cross_entropy, (x, y.abs() % 4)), far)
    values = values_at(model, MeanLoss(functional.cross_entropy, (x, y.abs() % 4)), far, POINTS)
    assert torch.equal(values.isfinite(), expected.isfinite())


def test_a_shared_layer_moves_at_both_places(stacks):
    torch.manual_seed(0)
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(3, 4)).double()
    measure, ways = (
        MeanLoss(functional.cross_entropy, (torch.randn(5, 3).double(), torch.arange(5) % 4)),
        directions(model),
    )
    torch.testing.assert_close(values_at(model, measure, ways, POINTS), moved_losses(model, measure, ways))
    assert sum(stacks) == len(POINTS)


def test_models_that_are_no_plain_stacks_take_the_other_ways(stacks):
    torch.manual_seed(0)
    x, y = torch.randn(6, 3).double(), torch.arange(6) % 4

    def same(model, measure, tried=0):
        stacks.clear()
        ways = directions(model)
        torch.testing.assert_close(values_at(model, measure, ways, POINTS), moved_losses(model, measure, ways))
        assert sum(stacks) == tried

    plain = MeanLoss(functional.cross_entropy, (x, y))
    hooked = perceptron().double()
    hooked[0].register_forward_hook(lambda module, inputs, outputs: 2 * outputs)
    same(hooked, plain)
    hooked = perceptron().double()
    hooked[1].forward = torch.sigmoid
    same(hooked, plain)

    class Own(nn.Sequential):
        pass

    same(Own(nn.Linear(3, 4)).double(), plain)
    same(nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 4)).double(), plain)
    same(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4).double()), plain)
    same(nn.Sequential(nn.Linear(3, 4)).double(), lambda model: functional.cross_entropy(model(x), y))


def test_a_loss_that_draws_has_the_same_numbers_at_every_point(stacks):
    model = nn.Sequential(nn.Linear(3, 4)).double()
    batch = torch.ones(2, 3).double(), torch.ones(2)
    measure = MeanLoss(lambda outputs, targets: outputs.mean() * 0 + torch.rand(()), batch)
    values = values_at(model, measure, directions(model), POINTS)
    assert len(values.unique()) == 1
    assert stacks == [1]


def test_layers_are_known_by_kind():
    def known(*layers):
        model = nn.Sequential(*layers)
        return layers_of(model, dict(model.named_parameters())) is not None

    assert known(nn.Conv2d(2, 2, 1), nn.Flatten(), nn.Identity())
    assert not known(nn.Conv2d(2, 2, 1, groups=2))
    assert not known(nn.Conv2d(2, 2, 3, padding="same"))
    assert not known(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"))
    assert not known(nn.Flatten(0))
    assert not known(nn.Softmax(1))
    assert not known(nn.BatchNorm1d(2))
    old = nn.utils.weight_norm(nn.Linear(2, 2))
    assert layers_of(old, dict(old.named_parameters())) is None


def test_types_and_devices_of_batches():
    def plain(x, model):
        return parameter_directions._plain_batches(MeanLoss(functional.mse_loss, [(x, torch.ones(1))]),
                                                   dict(model.named_parameters()))  # fmt: skip

    layer = nn.Linear(1, 1)
    assert plain(torch.ones(1, 1), layer)
    assert not plain(torch.ones(1, 1).double(), layer)
    assert not plain(torch.ones(1, 1).half(), nn.Linear(1, 1).half())
    assert not plain((torch.ones(1, 1),), layer)
    assert not plain(torch.ones(1, 1, device="meta"), layer)
    with torch.autocast("cpu"):
        assert not plain(torch.ones(1, 1), layer)


def test_what_a_model_refuses_is_told_by_the_model():
    measure = MeanLoss(functional.cross_entropy, (torch.ones(2, 7), torch.ones(2).long()))
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        values_at(perceptron(), measure, directions(perceptron()), POINTS)


def test_hooks_and_replaced_passes_are_no_layers():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    assert layers_of(model, dict(model.named_parameters())) is not None
    for module, register in ((model[0], "register_forward_hook"), (model, "register_forward_pre_hook")):
        hook = getattr(module, register)(lambda *_: None)
        assert layers_of(model, dict(model.named_parameters())) is None
        hook.remove()
    model[1].forward = torch.sigmoid
    assert layers_of(model, dict(model.named_parameters())) is None
