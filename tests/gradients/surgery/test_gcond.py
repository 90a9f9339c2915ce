"""GCond: conflicts by hand and by a loop in gradient space, its state, and what the conductor accumulates."""

from __future__ import annotations

import io
import math

import pytest
import torch
import torchjd.aggregation as peers
from torch import nn

from steepest.gradients import GCond, GradientConductor, gcond_resolve
from steepest.gradients.surgery.gcond import ConflictState

THRESHOLDS = (-0.8, -0.5, 0.0)


def rows(*values):
    return torch.tensor(values)


@pytest.mark.holds("gcond", 1)
@pytest.mark.holds("gcond", 2)
@pytest.mark.holds("gcond", 3)
@pytest.mark.parametrize("size", [1.0, 1e3])
@pytest.mark.parametrize(
    ("second", "zones", "smooth"),
    [
        ((-0.25, 1.0), (0.941176, 1.235294), (0.881975, 1.162431)),
        ((-0.6, 0.8), (1.0, 0.8), (0.645469, 1.272708)),
        ((-0.45, 0.05), (1.0, 0.0), (1.0, 0.05)),
    ],
    ids=["weak", "main", "critical"],
)
def test_a_pair_by_hand(second, zones, smooth, size):
    """The third pair is twice that of the card's halves."""
    jacobian = size * rows((1.0, 0.0), second)
    torch.testing.assert_close(gcond_resolve(jacobian, smooth=False)[0], size * rows(*zones), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(gcond_resolve(jacobian)[0], size * rows(*smooth), rtol=1e-6, atol=1e-6 * size)
    torch.testing.assert_close(GCond(smooth=False)(jacobian), size * rows(*zones), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(GCond()(jacobian), size * rows(*smooth), rtol=1e-6, atol=1e-6 * size)


@pytest.mark.holds("gcond", 3)
def test_the_critical_pair_of_the_card():
    jacobian = rows((2.0, 0.0), (-0.9, 0.1))
    assert torch.equal(gcond_resolve(jacobian, smooth=False)[0], rows(2.0, 0.0))
    torch.testing.assert_close(gcond_resolve(jacobian)[0], rows(2.0, 0.1))


@pytest.mark.holds("gcond", 4)
@pytest.mark.parametrize("smooth", [True, False])
def test_without_conflict_it_is_the_sum(smooth):
    agreeing = torch.randn(4, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64).abs()
    orthogonal = torch.eye(3, dtype=torch.float64)
    for jacobian in (agreeing, orthogonal, -agreeing[:1], 1e-5 * rows((1.0, 0.0), (-1.0, 1.0))):
        torch.testing.assert_close(gcond_resolve(jacobian, smooth=smooth)[0], jacobian.sum(0), rtol=1e-15, atol=0.0)


def resolved_in_a_loop(gradients, memory, thresholds, smooth):
    """The card's algorithm on the gradients themselves, in lists; ``memory`` is changed."""

    def dot(a, b):
        return sum(x * y for x, y in zip(a, b))

    g, count, (critical, main, weak) = [list(map(float, row)) for row in gradients], len(gradients), thresholds
    for k in range(count):
        memory["norms"][k] = 0.95 * memory["norms"][k] + 0.05 * math.sqrt(dot(g[k], g[k]))

    def arbitrate(i, j):
        last = memory["winners"][-3:]
        for one, rival in ((i, j), (j, i)):
            if last == [one] * 3:
                return rival, one
        score = {}
        for k in (i, j):
            before = memory["before"][k]
            lengths = math.sqrt(dot(g[k], g[k]) * dot(before, before))
            scaled = {n: math.sqrt(dot(g[n], g[n])) / memory["norms"][n] for n in (i, j)}
            stability = max(0.0, dot(g[k], before) / lengths) if lengths else 0.0
            score[k] = 0.8 * stability + 0.2 * scaled[k] / (scaled[i] + scaled[j])
        return (j, i) if score[j] > score[i] else (i, j)

    for _ in range(2 * count):
        pairs = [
            (dot(g[i], g[j]) / math.sqrt(dot(g[i], g[i]) * dot(g[j], g[j])), i, j)
            for i in range(count)
            for j in range(i + 1, count)
            if min(dot(g[i], g[i]), dot(g[j], g[j])) >= 1e-8
        ]
        c, i, j = min(pairs, default=(1.0, 0, 0))
        if c >= weak - 1e-12:
            break
        if not smooth and c >= main:
            w, loser, give, take = i, j, 1.0, 1.0
        else:
            w, loser = arbitrate(i, j)
            memory["winners"].append(w)
            give, take = 0.0, 1.0
            if smooth and c >= main:
                alpha = math.pi / 2 * (1 - (c - main) / (weak - main))
                give, take = math.sin(alpha), math.sin(min(alpha, math.pi / 2))
            elif smooth and c > critical:
                give = math.sin(math.pi / 2 + math.pi / 2 * ((c - main) / (critical - main)) ** 2)
        a, b = list(g[w]), list(g[loser])
        g[w] = [x - give * dot(a, b) / dot(b, b) * y for x, y in zip(a, b)]
        g[loser] = [y - take * dot(a, b) / dot(a, a) * x for x, y in zip(a, b)]
        if not smooth and c < critical:
            g[loser] = [0.0] * len(b)
    memory["before"] = g
    return [sum(column) for column in zip(*g)]


@pytest.mark.parametrize("smooth", [True, False])
def test_several_steps_by_a_loop_in_gradient_space(smooth):
    """Conflicts of every kind, winners three times in a row, lengths of many sizes; momentum by its formula."""
    generator = torch.Generator().manual_seed(3)
    for count, width in ((2, 3), (4, 3), (6, 5)):
        memory = {"norms": [1.0] * count, "winners": [], "before": [[0.0] * width] * count}
        aggregator, state, average = GCond(smooth=smooth), None, torch.zeros(width, dtype=torch.float64)
        drift = torch.randn(count, width, generator=generator, dtype=torch.float64)
        drift[1] -= 1.5 * drift[0]
        for step in range(1, 9):
            noise = torch.randn(count, width, generator=generator, dtype=torch.float64)
            jacobian = (drift + 0.5 * noise) * torch.logspace(0, 2, count, dtype=torch.float64).unsqueeze(1)
            wanted = torch.tensor(resolved_in_a_loop(jacobian, memory, THRESHOLDS, smooth), dtype=torch.float64)
            total, state = gcond_resolve(jacobian, state, smooth=smooth)
            size = float(jacobian.abs().max())
            torch.testing.assert_close(total, wanted, rtol=1e-9, atol=1e-9 * size)
            before = torch.tensor(memory["before"], dtype=torch.float64)
            torch.testing.assert_close(state.resolved, before, rtol=1e-9, atol=1e-9 * size)
            torch.testing.assert_close(state.norms, torch.tensor(memory["norms"], dtype=torch.float64))
            assert state.winners.tolist() == ([-1] * 3 + memory["winners"])[-3:]
            average = 0.85 * average + 0.15 * wanted
            direction = aggregator(jacobian)
            torch.testing.assert_close(direction, average / (1 - 0.85**step), rtol=1e-9, atol=1e-9 * size)
        assert len(memory["winners"]) >= 4


def test_two_weak_conflicts_are_pcgrad():
    jacobian = rows((1.0, 0.2), (-0.3, 0.9))
    torch.testing.assert_close(gcond_resolve(jacobian, smooth=False)[0], peers.PCGrad()(jacobian))


def test_who_has_won_three_times_loses():
    """The first of equal ones wins until the fourth conflict; without a window always. Stability is kept out of it."""
    jacobian = rows((1.0, 0.0), (-0.6, 0.8))
    wanted = {3: [(1.0, 0.8)] * 3 + [(0.64 - 0.6, 0.48 + 0.8)] + [(1.0, 0.8)], 0: [(1.0, 0.8)] * 5}
    for window, directions in wanted.items():
        state = None
        for direction in directions:
            total, state = gcond_resolve(jacobian, state, smooth=False, window=window)
            torch.testing.assert_close(total, rows(*direction))
            state = state._replace(resolved=torch.zeros(2, 2))


def test_a_gradient_that_stays_as_it_was_wins_over_a_longer_one():
    """Stability counts four times as much as length; it is measured with the resolved gradients of before."""
    before = ConflictState(rows((0.0, 1.0), (-0.6, 0.8)), torch.ones(2, dtype=torch.float64), torch.full((3,), -1))
    jacobian = rows((2.0, 0.0), (-0.6, 0.8))
    torch.testing.assert_close(gcond_resolve(jacobian, before, smooth=False)[0], rows(2 * 0.64 - 0.6, 2 * 0.48 + 0.8))
    torch.testing.assert_close(gcond_resolve(jacobian, smooth=False)[0], rows(2.0, 0.8))


def test_long_gradients_are_shortened_before():
    jacobian = rows((30.0, 40.0), (0.3, 0.4))
    torch.testing.assert_close(gcond_resolve(jacobian, norm_cap=5.0)[0], rows(3.3, 4.4))
    _, state = gcond_resolve(jacobian, norm_cap=5.0)
    torch.testing.assert_close(state.norms, torch.tensor([0.95 + 2.5, 0.95 + 0.025], dtype=torch.float64))


def test_a_gradient_that_turned_round_is_as_stable_as_a_new_one():
    before = ConflictState(rows((0.0, 1.0), (0.6, -0.8)), torch.ones(2, dtype=torch.float64), torch.full((3,), -1))
    jacobian = rows((1.0, 0.0), (-0.6, 0.8))
    torch.testing.assert_close(gcond_resolve(jacobian, before, smooth=False)[0], rows(1.0, 0.8))


@pytest.mark.parametrize("scale", [1e-3, 1e15, 1e200])
def test_opposite_gradients_of_any_size(scale):
    """What is left of the one is 0, and not rounding that conflicts again; 1e200 has no square."""
    generator = torch.Generator().manual_seed(0)
    for smooth in (True, False):
        for _ in range(20):
            first, other = torch.randn(2, 5, generator=generator, dtype=torch.float64)
            other = other * (first @ other).sign()  # in no conflict with the winner
            jacobian = scale * torch.stack([first, -0.37 * first, 1e-3 * other])
            total = gcond_resolve(jacobian, smooth=smooth)[0] / scale
            torch.testing.assert_close(total, first + 1e-3 * other, rtol=0.0, atol=1e-14 * float(first.norm()))


def test_the_state_is_complete():
    calls = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(1))
    whole, again = GCond(), GCond()
    for jacobian in calls[:4]:
        whole(jacobian)
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    for jacobian in calls[4:]:
        assert torch.equal(again(jacobian), whole(jacobian))
    assert set(whole.state_dict()) == {"resolved", "norms", "winners", "average", "steps"}
    assert whole.winners.min() >= 0
    whole.reset()
    assert whole.state_dict().keys() == GCond().state_dict().keys()
    assert all(torch.equal(v, GCond().state_dict()[k]) for k, v in whole.state_dict().items())


class Net(nn.Module):
    """A layer that is used, a norm with running statistics, and a layer that is not used."""

    def __init__(self):
        super().__init__()
        self.body, self.norm, self.unused = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(2, 2)
        self.first, self.second = nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, x, scale=1.0):
        hidden = self.norm(self.body(scale * x)).tanh()
        return self.first(hidden), self.second(hidden)


LOSSES = {
    "square": lambda out, y: (out[0].squeeze(1) - y).square().mean(),
    "size": lambda out, y: out[1].abs().mean() + out[0].exp().mean(),
}
WEIGHTS = {"square": 0.85, "size": 0.15}


def provider(count, dtype=torch.float32):
    generator = torch.Generator().manual_seed(5)
    batches = [
        (torch.randn(6, 3, generator=generator).to(dtype), torch.randn(6, generator=generator).to(dtype))
        for _ in range(count)
    ]
    return batches, iter(batches).__next__


@pytest.mark.holds("gcond", 4)
@pytest.mark.parametrize("stochastic", [True, False])
def test_what_is_accumulated(stochastic):
    """Beside plain backward passes; momentum 0 and no conflicts, so that ``.grad`` is the weighted sum of means."""
    torch.manual_seed(0)
    model = Net().double()
    batches, give = provider(6, torch.float64)
    conductor = GradientConductor(
        model, LOSSES, WEIGHTS, 6, thresholds=(-1.0, -1.0, -1.0), stochastic=stochastic, momentum=0.0
    )
    model.body.weight.grad = torch.full_like(model.body.weight, 9.0)  # is written over
    statistics = conductor.step(give)
    wanted, losses = {}, {}
    model.eval()
    for number, (name, loss) in enumerate(LOSSES.items()):
        own = batches[3 * number : 3 * number + 3] if stochastic else batches
        value = torch.stack([loss(model(x), y) for x, y in own]).mean()
        losses[name] = value.item()
        names, parameters = zip(*model.named_parameters())
        for key, g in zip(names, torch.autograd.grad(WEIGHTS[name] * value, parameters, allow_unused=True)):
            if g is not None:
                wanted[key] = wanted.get(key, 0.0) + g
    for key, parameter in model.named_parameters():
        if key in wanted:
            torch.testing.assert_close(parameter.grad, wanted[key], rtol=1e-10, atol=1e-12)
        else:
            assert parameter.grad is None
    assert "unused.weight" not in wanted
    length = torch.cat([g.flatten() for g in wanted.values()]).norm().item()
    assert statistics == pytest.approx({f"loss/{k}": v for k, v in losses.items()} | {"length": length})


def test_running_statistics_and_modes_are_left_as_they_are():
    model = Net()
    model.second.eval()
    _, give = provider(4)
    GradientConductor(model, LOSSES, WEIGHTS, 2).step(give)
    assert model.norm.training
    assert not model.second.training
    assert torch.equal(model.norm.running_mean, torch.zeros(4))
    GradientConductor(model, LOSSES, WEIGHTS, 2, freeze_norms=False).step(give)
    assert not torch.equal(model.norm.running_mean, torch.zeros(4))
    conductor = GradientConductor(model, {"broken": lambda out, y: out[0].squeeze(1)}, {"broken": 1.0}, 1)
    with pytest.raises(ValueError, match="loss_fns, broken: expected 0 dimensions"):
        conductor.step(provider(1)[1])
    assert model.norm.training


def test_one_loss_is_its_mean_and_signs_have_one_size():
    model = nn.Linear(3, 1)
    batches, give = provider(8)
    loss = {"square": lambda out, y: (out.squeeze(1) - y).square().mean()}
    GradientConductor(model, loss, {"square": 2.0}, 4).step(give)
    total = 2 * torch.stack([loss["square"](model(x), y) for x, y in batches[:4]]).mean()
    wanted = torch.autograd.grad(total, model.weight)[0]
    torch.testing.assert_close(model.weight.grad, wanted)
    GradientConductor(model, loss, {"square": 2.0}, 4, lion=True).step(iter(batches).__next__)
    ratio = min(100.0, (model.weight.norm() / wanted.norm()).item())
    torch.testing.assert_close(model.weight.grad, 1e-4 * ratio * wanted.sign())
    GradientConductor(model, loss, {"square": 1e-5}, 4, lion=True).step(iter(batches).__next__)
    torch.testing.assert_close(model.weight.grad, 1e-2 * wanted.sign())


def test_a_thousand_half_gradients_are_not_lost():
    """In bfloat16 sums of 1024 equal ones stop at 256."""
    model = nn.Linear(1, 1, bias=False).bfloat16()
    batch = torch.ones(1, 1, dtype=torch.bfloat16), torch.zeros(1)
    GradientConductor(model, {"sum": lambda out, y: out.sum()}, {"sum": 1.0}, 1024).step(lambda: batch)
    assert model.weight.grad.dtype == torch.bfloat16
    assert model.weight.grad.item() == 1.0


def test_a_conductor_goes_on_where_it_was():
    """After loading the next gradient has the same bits; inputs may be a tuple or a dict of arguments."""
    torch.manual_seed(0)
    model = Net()
    batches, _ = provider(6)
    kinds = [(lambda b: (b[0], b[1])), (lambda b: ((b[0],), b[1])), (lambda b: ({"x": b[0]}, b[1]))]
    given = [kinds[n % 3](batch) for n, batch in enumerate(batches)]
    whole, again = (GradientConductor(model, LOSSES, WEIGHTS, 2) for _ in range(2))
    for start in (0, 2):
        whole.step(iter(given[start : start + 2]).__next__)
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    gradients = []
    for conductor in (whole, again):
        conductor.step(iter(given[4:]).__next__)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.equal(*gradients)
    assert model.unused.weight.grad is None


@pytest.mark.holds("gcond", 5)
def test_what_is_refused():
    for wrong in ((-0.5, -0.8, 0.0), (-0.8, 0.1, 0.0), (-0.8, -0.5), (-1.5, 0.0, 0.0)):
        for make in (
            lambda t: GCond(t),
            lambda t: gcond_resolve(torch.eye(2), thresholds=t),
            lambda t: GradientConductor(Net(), LOSSES, WEIGHTS, 2, thresholds=t),
        ):
            with pytest.raises(ValueError, match="thresholds: expected"):
                make(wrong)
    with pytest.raises(ValueError, match="accumulation_steps: expected a multiple of 2"):
        GradientConductor(Net(), LOSSES, WEIGHTS, 3)
    GradientConductor(Net(), LOSSES, WEIGHTS, 3, stochastic=False)
    with pytest.raises(ValueError, match="lambdas: expected a weight for each of square, size"):
        GradientConductor(Net(), LOSSES, {"square": 1.0}, 2)
    with pytest.raises(ValueError, match="loss_fns: expected a loss free that depends"):
        GradientConductor(Net(), {"free": lambda out, y: y.sum()}, {"free": 1.0}, 1).step(provider(1)[1])
    aggregator = GCond()
    aggregator(torch.eye(2))
    with pytest.raises(ValueError, match=r"shape \(2, 2\) as in the calls before"):
        aggregator(torch.ones(2, 3))


@pytest.mark.parametrize("name", ["sequential", "stochastic"])
def test_the_experiment_takes_micro_batches_of_a_loss_as_one_batch(name):
    from steepest.lab.gradients.surgery import gcond as experiment

    images = torch.rand(128, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    arm = experiment.Arm(name, 0.01, images.mean(0), 1)
    model = experiment.autoencoder(images.mean(0), 1)
    conductor = experiment.conductor(model, stochastic=name == "stochastic")
    for _ in range(5):
        images = images.roll(16, 0)
        arm.gradients(images)
        conductor.step(iter([(rows, rows) for rows in images.split(16)]).__next__)
        for own, wanted in zip(arm.model.parameters(), model.parameters()):
            torch.testing.assert_close(own.grad, wanted.grad, rtol=1e-9, atol=1e-12)


def test_a_loss_that_runs_the_network_itself_has_the_same_gradient():
    from steepest.lab.gradients.surgery import gcond as experiment

    images = torch.rand(128, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    models = [experiment.autoencoder(images.mean(0), 1) for _ in range(2)]
    for conductor in (experiment.conductor(models[0], stochastic=False), experiment.forward_for_each(models[1])):
        conductor.step(iter([(rows, rows) for rows in images.split(16)]).__next__)
    for one, two in zip(*(model.parameters() for model in models)):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-9, atol=1e-12)
