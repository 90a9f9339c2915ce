"""The ghost radius and its controller: the facts of its card, zeros counted by contour, a naive loop in NumPy."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from steepest.descent import ArrayBatches, Descent
from steepest.losses import CrossEntropyLoss
from steepest.optim import GhostRadius, GhostStepController, binary_ghost_radius, ghost_radius, logit_spread_radius


@pytest.mark.holds("ghost-radius", 1)
def test_two_classes():
    delta, spread = torch.tensor([1.0, 0.0, -1.0]), torch.tensor([2.0, 3.0, 2.0])
    wanted = torch.tensor([1.648454, math.pi / 3, 1.648454])
    torch.testing.assert_close(binary_ghost_radius(delta, spread), wanted, rtol=1e-6, atol=0.0)
    assert binary_ghost_radius(torch.tensor(1.0), torch.tensor(0.0)).item() == math.inf
    zero = complex(-0.5, math.pi / 2)  # of exp(0) + exp(1 + 2 t)
    assert abs(1 + np.exp(1 + 2 * zero)) < 1e-12
    assert abs(zero) == pytest.approx(binary_ghost_radius(delta, spread)[0].item(), rel=1e-6)


class Line(nn.Module):
    """Logits z + w a of one parameter w."""

    def __init__(self, z, a, temperature=1.0):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.z, self.a, self.temperature = (*(torch.tensor(v, dtype=torch.float64) for v in (z, a)), temperature)

    def forward(self, x):
        return (self.z + x * self.w * self.a) / self.temperature


ONE = torch.ones(1, 1, dtype=torch.float64)


def radius(model, length=1.0, **kw):
    return ghost_radius(model, model.parameters(), [torch.tensor([length]).double()], ONE, **kw).item()


def zeros_within(z, a, modulus):
    """How many zeros the partition function has in a disc, by the change of its argument around it."""
    z, a = np.array(z), np.array(a)
    t = modulus * np.exp(2j * np.pi * np.linspace(0, 1, 20_001))
    angles = np.unwrap(np.angle(np.exp(z + t[:, None] * a).sum(1)))
    return round((angles[-1] - angles[0]) / (2 * np.pi))


@pytest.mark.holds("ghost-radius", 2)
def test_three_classes():
    z, a = (0.0, 1.0, 2.0), (1.0, -1.0, 0.5)
    bound = radius(Line(z, a))
    assert bound == pytest.approx(1.570796, rel=1e-6)
    assert logit_spread_radius(torch.tensor([a])).item() == pytest.approx(bound)
    zero = complex(-0.701041, 2.042871)
    assert abs(sum(np.exp(zk + zero * ak) for zk, ak in zip(z, a))) < 1e-5
    assert abs(zero) == pytest.approx(2.159810, rel=1e-6)
    assert (zeros_within(z, a, 2.1598 - 1e-3), zeros_within(z, a, 2.1598 + 1e-3)) == (0, 2)


@pytest.mark.parametrize("seed", range(5))
def test_no_zero_lies_within_the_bound(seed):
    rng = np.random.default_rng(seed)
    z, a = rng.normal(size=(2, 4)) * 3
    bound = radius(Line(z, a))
    assert zeros_within(z, a, bound) == 0
    assert zeros_within(z, a, 20 * bound) > 0


@pytest.mark.holds("ghost-radius", 3)
def test_lengths_and_shifts():
    z, a = [0.3, -1.0, 2.0], [0.2, -0.7, 0.4]
    plain = radius(Line(z, a))
    assert radius(Line(z, a), 2.5) == pytest.approx(plain / 2.5)
    assert radius(Line(z, a), 1e-30) == pytest.approx(1e30 * plain)
    assert radius(Line(z, [v + 3.0 for v in a])) == pytest.approx(plain)
    assert radius(Line([v + 3.0 for v in z], a)) == plain


class Counts(nn.Module):
    """Counts its calls in a buffer, and draws a random number, in every mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x + 0 * torch.rand(())


def net(dtype=torch.float64):
    torch.manual_seed(1)
    layers = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3), Counts()
    model = nn.Sequential(*layers).to(dtype)
    return model, torch.randn(16, 4).to(dtype), torch.arange(16) % 3


def closure_of(optimizer, model, x, y):
    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss.detach()

    return closure


@pytest.mark.holds("ghost-radius", 4)
@pytest.mark.parametrize("base", ["momentum", "adamw"])
def test_no_step_leaves_the_radius(base):
    """Measured anew, of the update that was applied, in evaluation mode at the weights before."""
    model, x, y = net()
    params = list(model.parameters())
    if base == "momentum":
        own = torch.optim.SGD(params, lr=50.0, momentum=0.9, weight_decay=0.01)
    else:
        own = torch.optim.AdamW(params, lr=3.0)
    optimizer = GhostStepController(own, model, samples=x)
    for _ in range(5):
        twin = copy.deepcopy(model)
        before = [p.detach().clone() for p in params]
        optimizer.step(closure_of(optimizer, model, x, y))
        assert optimizer.scale < 1
        assert float(optimizer.r) > 1
        twin.load_state_dict({**model.state_dict(), **dict(zip(dict(twin.named_parameters()), before))})
        update = [p.detach() - b for p, b in zip(params, before)]
        applied = GhostRadius(twin).ratio(list(twin.parameters()), update, x).item()
        assert applied == pytest.approx(1.0, abs=1e-6)
        assert applied <= 1 + 1e-6


@pytest.mark.holds("ghost-radius", 4)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_within_the_radius_keeps_its_bits(dtype):
    results = []
    for controlled in (True, False):
        model, x, y = net(dtype)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        if controlled:
            optimizer = GhostStepController(optimizer, model, samples=x)
        torch.manual_seed(5)
        for _ in range(4):
            optimizer.step(closure_of(optimizer, model, x, y))
            assert not controlled or (0 < float(optimizer.r) < 1 and optimizer.scale == 1.0)
        results.append(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(results[0].values(), results[1].values()))


@pytest.mark.holds("ghost-radius", 5)
@pytest.mark.parametrize("temperature", [0.2, 7.0])
def test_a_temperature_multiplies_the_radius(temperature):
    z, a = [0.3, -1.0, 2.0], [0.2, -0.7, 0.4]
    assert radius(Line(z, a, temperature)) == pytest.approx(temperature * radius(Line(z, a)))


@pytest.mark.holds("ghost-radius", 6)
def test_what_it_refuses():
    model = Line([0.0, 1.0], [1.0, 0.0])
    with pytest.raises(ValueError, match="direction: expected a length above 0"):
        radius(model, 0.0)
    with pytest.raises(ValueError, match="logits of at least 2 classes"):
        radius(Line([0.0], [1.0]))
    with pytest.raises(ValueError, match="logits of at least 2 classes"):
        logit_spread_radius(torch.ones(3, 1))
    with pytest.raises(ValueError, match="reduce: expected 'max', 'none' or a number"):
        logit_spread_radius(torch.ones(3, 2), reduce="mean")
    with pytest.raises(ValueError, match="params: expected parameters of the model"):
        ghost_radius(model, [torch.ones(1)], [torch.ones(1)], ONE)
    with pytest.raises(ValueError, match="direction: expected 1 tensors"):
        ghost_radius(model, model.parameters(), [torch.ones(1)] * 2, ONE)
    own = torch.optim.SGD(model.parameters(), lr=1.0)
    with pytest.raises(ValueError, match="r_max: expected"):
        GhostStepController(own, model, 0.0)
    with pytest.raises(ValueError, match="reduce: expected"):
        GhostStepController(own, model, reduce="none")
    with pytest.raises(TypeError, match="model: expected a module"):
        GhostStepController(own, lambda x: x)
    with pytest.raises(ValueError, match="params: expected parameters of the model"):
        GhostStepController(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0), model)
    with pytest.raises(TypeError, match="inputs: expected a sample set"):
        GhostStepController(own, model).step()


def adam_by_hand(x, y, w, *, lr, steps, spike):
    """The publication's loop on a linear model: Adam's direction, its length held below pi over the largest spread."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    scales = []
    for t in range(1, steps + 1):
        z = x @ w.T
        q = np.exp(z - z.max(1, keepdims=True))
        q /= q.sum(1, keepdims=True)
        g = (q - np.eye(len(w))[y]).T @ x / len(x)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        direction = -(m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        norm = np.linalg.norm(direction)
        a = x @ (direction / norm).T
        rho = np.pi / (a.max(1) - a.min(1)).max()
        rate = lr * (spike if t > 3 else 1.0)
        scales.append(min(1.0, rho / (rate * norm)))
        w = w + scales[-1] * rate * direction
    return w, scales


def test_a_loop_in_numpy():
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(30, 5)), rng.integers(4, size=30), rng.normal(size=(4, 5))
    wanted, scales = adam_by_hand(x, y, w, lr=0.01, steps=8, spike=1000.0)
    model = nn.Linear(5, 4, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor(w))
    inputs, target = torch.tensor(x), torch.tensor(y)
    optimizer = GhostStepController(torch.optim.Adam(model.parameters(), lr=0.01), model, samples=inputs)
    for number in range(8):
        optimizer.param_groups[0]["lr"] = 0.01 * (1000.0 if number >= 3 else 1.0)
        optimizer.step(closure_of(optimizer, model, inputs, target))
        assert optimizer.scale == pytest.approx(scales[number], rel=1e-9)
    assert [s < 1 for s in scales] == [False] * 3 + [True] * 5
    np.testing.assert_allclose(model.weight.detach().numpy(), wanted, rtol=1e-9)


def test_derivatives_are_those_of_the_network_in_evaluation_mode():
    """Against central differences, sample by sample: an error of h^2 and one of rounding over h."""
    model, x, _ = net()
    model(x)  # batch norm has statistics
    params = list(model.parameters())
    generator = torch.Generator().manual_seed(3)
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in params]
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    radii = ghost_radius(model, params, direction, x, reduce="none")
    assert model.training
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in params)
    model.eval()
    ends = []
    for h in (1e-5, -1e-5):
        with torch.no_grad():
            for p, b, d in zip(params, state_of(model, state), direction):
                p.copy_(b + h * d)
            ends.append(model(x))
    a = (ends[0] - ends[1]) / 2e-5
    torch.testing.assert_close(radii, math.pi / (a.amax(1) - a.amin(1)), rtol=1e-6, atol=0.0)
    with torch.no_grad():
        for p, b in zip(params, state_of(model, state)):
            p.copy_(b)
    assert ghost_radius(model, params, direction, x).item() == pytest.approx(radii.min().item())
    median = ghost_radius(model, params, direction, x, reduce=0.5).item()
    assert median == pytest.approx(math.pi / (math.pi / radii).median().item(), rel=0.2)
    assert median > radii.min().item()


def state_of(model, state):
    return [state[name] for name, _ in model.named_parameters()]


class Tokens(nn.Module):
    """A transformer that takes words and gives an output with logits."""

    def __init__(self):
        super().__init__()
        self.symbols = nn.Embedding(7, 8)
        self.body = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 7)

    def forward(self, ids, *, mask=None):
        class Output:
            logits = self.head(self.body(self.symbols(ids), src_key_padding_mask=mask))

        return Output()


def test_a_transformer():
    torch.manual_seed(0)
    model, ids = Tokens(), torch.randint(7, (3, 5))
    optimizer = GhostStepController(torch.optim.SGD(model.parameters(), lr=1e3), model)
    model(ids).logits.square().mean().backward()
    optimizer.step(inputs={"ids": ids})
    assert float(optimizer.r) * optimizer.scale == pytest.approx(1.0)
    assert torch.backends.mha.get_fastpath_enabled()
    params = list(model.parameters())
    update = [p.detach() for p in params]
    as_tuple = GhostRadius(model).ratio(params, update, (ids,))
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(GhostRadius(compiled).ratio(params, update, ids), as_tuple)


def test_the_radius_sets_the_rate():
    model, x, y = net()
    optimizer = GhostStepController(torch.optim.SGD(model.parameters(), lr=1e-4), model, 0.3, cap=False)
    for _ in range(3):
        closure_of(optimizer, model, x, y)()
        optimizer.step(inputs=x)
        assert optimizer.scale > 1
        assert float(optimizer.r) * optimizer.scale == pytest.approx(0.3)


def test_in_the_loop_the_batch_is_the_sample_set():
    model, x, y = net(torch.float32)
    optimizer = GhostStepController(torch.optim.Adam(model.parameters(), lr=1e3), model)
    Descent(model, CrossEntropyLoss(), ArrayBatches(x, y, batch_size=8, seed=0), optimizer=optimizer).fit(1)
    assert float(optimizer.r) * optimizer.scale == pytest.approx(1.0)
    assert max(float(p.detach().abs().max()) for p in model.parameters()) < 100


def test_an_update_that_is_not_finite_shows():
    model, x, y = net(torch.float32)
    optimizer = GhostStepController(torch.optim.SGD(model.parameters(), lr=1.0), model, samples=x)
    closure_of(optimizer, model, x, y)()
    next(model.parameters()).grad[0, 0] = torch.nan
    optimizer.step()
    assert torch.isnan(optimizer.r)
    assert torch.isnan(next(model.parameters())[0, 0])


def test_all_ranks_take_the_smallest_step(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda r, op: r.fill_(8.0))
    model = Line([0.0, 1.0], [1.0, 0.0])
    optimizer = GhostStepController(torch.optim.SGD(model.parameters(), lr=1.0), model, samples=ONE)
    model.w.grad = torch.ones(1, dtype=torch.float64)
    optimizer.step()
    assert model.w.item() == -1 / 8
