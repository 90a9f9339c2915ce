"""Alternating tasks and experts that choose: numbers of the card, plain loops, what a task leaves untouched."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import nn

from steepest.optim.optimizers import AlternatingGradientDescent, ExpertChoiceMoE, TaskSampler

OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.05),
}


def model_of(seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator)
    return model


@pytest.mark.holds("imp-agd", 1)
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("order", ["sample", "round_robin"])
def test_one_task_is_the_optimizer(name, order):
    data = [torch.randn(7, 3, generator=torch.Generator().manual_seed(9)) for _ in range(6)]
    ours, plain = model_of(), model_of()
    batches = iter(data)
    descent = AlternatingGradientDescent(
        OPTIMIZERS[name](ours.parameters()), {"only": lambda: ours(next(batches)).square().mean()}, order=order
    )
    optimizer = OPTIMIZERS[name](plain.parameters())
    for batch in data:
        optimizer.zero_grad()
        loss = plain(batch).square().mean()
        loss.backward()
        optimizer.step()
        assert descent.step() == ("only", loss.item())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters()))


def two_experts(**arguments):
    """FFN_0 = 2 x, FFN_1 = -x on tokens (value, log odds), of which the router reads the second."""
    layer = ExpertChoiceMoE(2, 2, experts=2, activation=nn.Identity(), **arguments).double()
    with torch.no_grad():
        layer.router.copy_(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
        layer.inner.copy_(torch.eye(2).expand(2, 2, 2))
        layer.outer.copy_(torch.stack([2 * torch.eye(2), -torch.eye(2)]))
        layer.inner_bias.zero_()
        layer.outer_bias.zero_()
    return layer


P = torch.tensor([0.9, 0.8, 0.3, 0.6], dtype=torch.float64)
TOKENS = torch.stack([torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64), (P / (1 - P)).log()], 1)[None]


@pytest.mark.holds("imp-agd", 2)
def test_the_numbers_of_the_card():
    y, taken = two_experts()(TOKENS)
    assert taken[0].tolist() == [[True, False], [True, False], [False, True], [False, True]]
    torch.testing.assert_close(y[0, :, 0], torch.tensor([1.8, 3.2, -2.1, -1.6]).double(), rtol=1e-6, atol=0.0)


@torch.no_grad()
def by_loop(layer, tokens, sizes, load):
    """Group by group, expert by expert, token by token."""
    y, start = torch.zeros_like(tokens), 0
    taken = torch.zeros(len(tokens), layer.experts, dtype=torch.bool)
    for size in sizes:
        scores = [[math.exp(float(w @ x)) for w in layer.router] for x in tokens[start : start + size]]
        probability = [[s / math.fsum(row) for s in row] for row in scores]
        for e in range(layer.experts):
            ranked = sorted(range(size), key=lambda t: -probability[t][e])
            for t in ranked[: load(size)]:
                x = tokens[start + t]
                inner = nn.functional.gelu(layer.inner[e].T @ x + layer.inner_bias[e, 0])
                y[start + t] += probability[t][e] * (layer.outer[e].T @ inner + layer.outer_bias[e, 0])
                taken[start + t, e] = True
        start += size
    return y, taken


@pytest.mark.holds("imp-agd", 3)
@pytest.mark.parametrize(
    ("capacity", "group", "sizes"),
    [(1.0, 2048, [15]), (1.0, 5, [5, 5, 5]), (0.5, 8, [8, 7]), (1.7, 4, [4, 4, 4, 3]), (4.0, 2048, [15])],
)
def test_every_expert_takes_its_load_as_a_loop_does(capacity, group, sizes):
    torch.manual_seed(0)
    layer = ExpertChoiceMoE(6, 4, experts=4, capacity=capacity, group=group).double()
    with torch.no_grad():
        layer.router.mul_(50)
    tokens = torch.randn(3, 5, 6, dtype=torch.float64)
    y, taken = layer(tokens)

    def load(n):
        return min(n, math.ceil(capacity * n / 4))

    wanted, wanted_taken = by_loop(layer, tokens.view(15, 6), sizes, load)
    torch.testing.assert_close(y.view(15, 6), wanted)
    assert torch.equal(taken.view(15, 4), wanted_taken)
    for chunk, size in zip(taken.view(15, 4).split(sizes), sizes):
        assert chunk.sum(0).tolist() == [load(size)] * 4
    if capacity == 4.0:
        assert bool(taken.all()), "a dense mixture"
        dense = nn.functional.linear(tokens, layer.router).softmax(-1)
        inner = nn.functional.gelu(torch.einsum("bni,eih->bneh", tokens, layer.inner) + layer.inner_bias[:, 0])
        outputs = torch.einsum("bneh,ehi->bnei", inner, layer.outer) + layer.outer_bias[:, 0]
        torch.testing.assert_close(y, (dense[..., None] * outputs).sum(2))


def test_loads_are_rounded_up_but_for_errors_of_floats():
    for capacity, experts, tokens, load in ((1.1, 10, 100, 11), (1.0, 8, 17, 3), (0.01, 8, 5, 1), (9.0, 8, 5, 5)):
        _, taken = ExpertChoiceMoE(2, 2, experts=experts, capacity=capacity)(torch.randn(1, tokens, 2))
        assert taken.sum((0, 1)).tolist() == [load] * experts


def test_groups_are_apart_and_ties_go_to_the_first():
    torch.manual_seed(0)
    layer = ExpertChoiceMoE(4, 8, experts=2, group=6)
    tokens = torch.randn(2, 6, 4)
    moved = tokens.clone()
    moved[1] += 3
    assert torch.equal(layer(tokens)[0][0], layer(moved)[0][0])
    layer.group = 2048
    with torch.no_grad():
        layer.router.copy_(torch.randn(2, 4))
    assert not torch.equal(layer(tokens)[0][0], layer(moved)[0][0])
    with torch.no_grad():
        layer.router.zero_()
    y, taken = layer(tokens)
    assert taken.view(12, 2)[:6].all()
    assert not taken.view(12, 2)[6:].any()
    assert torch.equal(y[1], torch.zeros(6, 4)), "what no expert takes gives 0"


def test_gradients_also_reach_the_router():
    torch.manual_seed(0)
    layer = ExpertChoiceMoE(3, 4, experts=2).double()
    tokens = torch.randn(1, 4, 3, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        layer.router.mul_(50)  # choices that a small step does not change
    weights = [p.detach().requires_grad_() for p in layer.parameters()]
    names = [name for name, _ in layer.named_parameters()]

    def value(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values)), (x,))[0]

    assert torch.autograd.gradcheck(value, (tokens, *weights))


def test_half_types_and_autocast():
    torch.manual_seed(0)
    layer = ExpertChoiceMoE(8, 16, experts=4, group=4000)
    tokens = torch.randn(2, 2000, 8)
    wanted, taken = layer(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, choices = layer(tokens)
    assert torch.equal(choices, taken), "the router is computed in float32"
    torch.testing.assert_close(y, wanted, rtol=0.05, atol=0.05)
    layer.capacity = 4.0  # a dense mixture: rounded inputs change no choice
    wanted, _ = layer(tokens[:, :10])
    half, _ = layer.bfloat16()(tokens[:, :10].bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), wanted, rtol=0.05, atol=0.05)


@pytest.mark.holds("imp-agd", 4)
def test_two_parabolas_end_in_a_cycle():
    w = nn.Parameter(torch.tensor(5.0, dtype=torch.float64))
    tasks = {"zero": lambda: 0.5 * w.square(), "one": lambda: 0.5 * (w - 1).square()}
    descent = AlternatingGradientDescent(torch.optim.SGD([w], lr=0.5), tasks, order="round_robin")
    for _ in range(60):
        descent.step()
    assert descent.step()[0] == "zero"
    assert w.item() == pytest.approx(1 / 3, abs=1e-15)
    assert descent.step()[0] == "one"
    assert w.item() == pytest.approx(2 / 3, abs=1e-15)


@pytest.mark.holds("imp-agd", 5)
def test_counts_follow_the_weights_and_the_seed_fixes_the_order():
    weights, n = {"a": 1.0, "b": 2.0, "c": 7.0, "d": 0.0}, 2000
    sampler = TaskSampler(list(weights), weights, seed=3)
    order = [next(sampler) for _ in range(n)]
    for name, weight in weights.items():
        share = weight / 10
        assert sampler.counts[name] == order.count(name)
        assert abs(order.count(name) - n * share) <= 3 * math.sqrt(n * share * (1 - share))
    scaled = TaskSampler(list(weights), {name: 10 * weight for name, weight in weights.items()}, seed=3)
    torch.manual_seed(77)
    assert [next(scaled) for _ in range(n)] == order
    assert [next(TaskSampler(list(weights), weights, seed=4)) for _ in range(50)] != order[:50]
    turns = TaskSampler(list(weights), weights, order="round_robin")
    assert [next(turns) for _ in range(4)] == ["a", "b", "c", "a"]


@pytest.mark.holds("imp-agd", 6)
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 0.0, "b": 0.0}, "weights: expected a positive sum"),
        ({"a": -1.0, "b": 2.0}, r"weights\['a'\]: expected a number >= 0"),
        ({"a": math.nan, "b": 2.0}, r"weights\['a'\]: expected"),
        ({"a": 1.0}, "weights: expected one for each of a, b"),
    ],
)
def test_weights_without_a_positive_sum_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        TaskSampler(["a", "b"], weights)
    w = nn.Parameter(torch.zeros(()))
    with pytest.raises(ValueError, match=message):
        AlternatingGradientDescent(torch.optim.SGD([w]), {"a": w.sum, "b": w.sum}, weights)


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 1), nn.Linear(4, 2)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_a_task_does_not_use_is_untouched(name):
    """Also by decay and by the momentum of steps before."""
    torch.manual_seed(0)
    model, x = Shared(), torch.randn(5, 3)
    tasks = {
        "a": lambda: model.a(model.encoder(x)).square().mean(),
        "b": lambda: [model.b(model.encoder(x)).square().mean(), model.b.weight.square().sum()],
    }
    optimizer = OPTIMIZERS[name](model.parameters())
    descent = AlternatingGradientDescent(optimizer, tasks, order="round_robin")
    for task, still, moved in (("a", "b", "a"), ("b", "a", "b"), ("a", "b", "a")):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        assert descent.step()[0] == task
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key]) == key.startswith(still), key
        assert getattr(model, moved).weight.grad is not None
    if name == "adamw":
        steps = {key: int(optimizer.state[p]["step"]) for key, p in model.named_parameters() if "weight" in key}
        assert steps == {"encoder.weight": 3, "a.weight": 2, "b.weight": 1}


def test_objectives_of_one_batch_are_summed_and_the_mean_step_is_that_of_the_weighted_sum():
    w = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    descent = AlternatingGradientDescent(torch.optim.SGD([w], lr=0.1), {"both": lambda: (w.square(), 3 * w)})
    assert descent.step() == ("both", 10.0)
    assert w.item() == pytest.approx(2.0 - 0.1 * 7)
    start, weights = 2.0, {"a": 1.0, "b": 3.0}
    tasks = {"a": lambda: w.square(), "b": lambda: 3 * w}
    descent = AlternatingGradientDescent(torch.optim.SGD([w], lr=1.0), tasks, weights)
    moves = []
    for _ in range(500):
        with torch.no_grad():
            w.fill_(start)
        descent.step()
        moves.append(start - w.item())
    moves = torch.tensor(moves, dtype=torch.float64)
    assert abs(moves.mean() - (0.25 * 4 + 0.75 * 3)) <= 3 * moves.std() / 500**0.5


def test_state_continues_bit_for_bit():
    def begun():
        model = model_of()
        x = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
        tasks = {"mean": lambda: model(x).mean(), "square": lambda: model(x).square().mean()}
        return model, AlternatingGradientDescent(OPTIMIZERS["adamw"](model.parameters()), tasks, seed=5)

    model, descent = begun()
    for _ in range(7):
        descent.step()
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "descent": descent.state_dict()}, file)
    file.seek(0)
    again, resumed = begun()
    state = torch.load(file, weights_only=True)
    again.load_state_dict(state["model"])
    resumed.load_state_dict(state["descent"])
    assert [descent.step() for _ in range(9)] == [resumed.step() for _ in range(9)]
    assert resumed.sampler.counts == descent.sampler.counts
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
    turns, later = (TaskSampler(["a", "b", "c"], order="round_robin") for _ in range(2))
    assert [next(turns), next(turns)] == ["a", "b"]
    later.load_state_dict(turns.state_dict())
    assert next(later) == "c"
    with pytest.raises(ValueError, match="state: expected one of the tasks x"):
        TaskSampler(["x"]).load_state_dict(state["descent"]["sampler"])


def test_what_it_refuses():
    w = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([w])
    with pytest.raises(TypeError, match="optimizer: expected an optimizer"):
        AlternatingGradientDescent(None, {"a": w.sum})
    with pytest.raises(TypeError, match=r"tasks\['a'\]: expected a callable"):
        AlternatingGradientDescent(optimizer, {"a": 1.0})
    with pytest.raises(TypeError, match=r"tasks\['a'\]: expected a scalar"):
        AlternatingGradientDescent(optimizer, {"a": lambda: 2 * w}).step()
    with pytest.raises(ValueError, match="order: expected one of"):
        AlternatingGradientDescent(optimizer, {"a": w.sum}, order="random")
    for tasks in ([], ["a", "a"]):
        with pytest.raises(ValueError, match="tasks: expected at least one"):
            TaskSampler(tasks)
    for arguments in ({"experts": 0}, {"capacity": 0.0}, {"group": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(arguments))}: expected"):
            ExpertChoiceMoE(2, 2, **arguments)
    with pytest.raises(ValueError, match="tokens: expected"):
        ExpertChoiceMoE(2, 2)(torch.ones(1, 4, 3))
    with pytest.raises(ValueError, match="tokens: expected at least one"):
        ExpertChoiceMoE(2, 2)(torch.ones(0, 4, 2))
