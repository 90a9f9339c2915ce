"""A stack of models gives each the numbers that it gets alone, from ``torch.optim.AdamW`` in a run of its own."""

from __future__ import annotations

import copy
import functools
import inspect

import pytest
import torch
from torch import nn

from steepest.core.heads import ScalarHead
from steepest.core.objective import TaskInfo
from steepest.descent import (
    ArrayBatches,
    Descent,
    EarlyStopping,
    Hook,
    Stack,
    StackedAdamW,
    StackedBatches,
    StackedObjective,
    StackedStep,
    architecture,
    drop,
    stackable,
)
from steepest.losses import (
    ALDRLoss,
    AnyLoss,
    CompSumLoss,
    CrossEntropyLoss,
    CrossEntropyWithOPL,
    DeferredReweighting,
    DistanceHead,
    EnsLoss,
    FocalLoss,
    HarmonicLoss,
    HuberLoss,
    LDAMLoss,
    PSKDLoss,
)
from steepest.nn.networks import Network, Residual, mlp, residual_mlp

ROWS, WIDTH, MODELS = (20, 31, 24), 6, 4
WHICH, SEEDS = [0, 1, 2, 1], [5, 6, 7, 6]
RATES, DECAYS = [0.01, 0.003, 0.02, 0.001], [0.0, 0.1, 0.01, 0.3]


def datasets(kind, weighted):
    g = torch.Generator().manual_seed(2)
    found = []
    for rows in ROWS:
        x = torch.randn(rows, WIDTH, generator=g, dtype=torch.float64)
        y = (x[:, 0] > 0).long() + (2 * (x[:, 1] > 0.5).long() if kind == "multiclass" else 0)
        y = x[:, 0] * x[:, 1] if kind == "regression" else y.clamp_max(2)
        weight = torch.rand(rows, generator=g, dtype=torch.float64) + 0.1 if weighted else None
        found.append((x, y, weight))
    return found


def setting(make, kind, backbone, data):
    objectives, networks = [], []
    for m in range(MODELS):
        torch.manual_seed(m)
        y = data[WHICH[m]][1]
        counts = () if kind == "regression" else tuple(torch.bincount(y).tolist())
        info = TaskInfo(kind, len(y), max(1, len(counts)), counts, feature_dim=5, epochs=7, steps_per_epoch=4, seed=m)
        objectives.append(make(m, info))
        networks.append(Network(backbone(WIDTH, width=5, depth=2), objectives[-1].head(5, info)).double())
    return objectives, networks


class StopAfter(Hook):
    def __init__(self, epochs):
        self.epochs = epochs

    def on_epoch_end(self, descent):
        descent.stop = descent.epoch >= self.epochs


def alone(objective, network, data, m, epochs):
    x, y, weight = data
    return Descent(
        network,
        objective,
        ArrayBatches(x, y, batch_size=8, steps=4, seed=SEEDS[m], weight=weight),
        optimizer=torch.optim.AdamW(network.parameters(), lr=RATES[m], weight_decay=DECAYS[m]),
        hooks=[StopAfter(epochs)],
    ).fit(7)


class DropAt(Hook):
    """Takes models out after some epochs, and keeps what they were."""

    def __init__(self, plan):
        self.plan, self.alive, self.final = plan, list(range(MODELS)), {}

    def on_epoch_end(self, descent):
        gone = self.plan.get(descent.epoch, [])
        for position, model in enumerate(self.alive):
            if model in gone:
                self.final[model] = descent.model.member(position)
        if gone:
            going = [model not in gone for model in self.alive]
            drop(descent, going)
            self.alive = [m for m in self.alive if m not in gone]


LENGTHS = {0: 5, 1: 3, 2: 7, 3: 5}
"""Epochs of each model."""
CASES = {
    "shared": (lambda m, i: CrossEntropyLoss(), "multiclass", mlp, False),
    "shared-weights": (lambda m, i: CrossEntropyLoss(), "multiclass", residual_mlp, True),
    "shared-sum": (lambda m, i: CrossEntropyLoss(reduction="sum"), "multiclass", mlp, True),
    "two-groups": (lambda m, i: CompSumLoss(tau=(1.0, 0.5)[m % 2]), "multiclass", mlp, False),
    "each-its-own": (lambda m, i: FocalLoss(gamma=1.0 + m), "multiclass", residual_mlp, True),
    "scalar-head": (lambda m, i: HuberLoss(delta=0.5), "regression", mlp, True),
    "cosine-head": (lambda m, i: LDAMLoss.from_task(i, scale=10.0), "multiclass", mlp, False),
    "class-weights": (lambda m, i: LDAMLoss.from_task(i, scale=10.0, deferred=0.2), "multiclass", mlp, True),
    "late-weights": (lambda m, i: DeferredReweighting.from_task(i, start=0.2), "multiclass", mlp, False),
    "distance-head": (lambda m, i: HarmonicLoss(n=2.0 + m), "multiclass", mlp, True),
    "batch": (lambda m, i: AnyLoss("f1"), "binary", mlp, False),
    "batch-features": (lambda m, i: CrossEntropyWithOPL(0.5), "multiclass", mlp, False),
    "batch-features-own": (lambda m, i: CrossEntropyWithOPL(0.5, gamma=0.1 + m), "multiclass", residual_mlp, False),
    "ps-kd": (lambda m, i: PSKDLoss.from_task(i, alpha=0.5 + 0.1 * m), "multiclass", mlp, True),
    "aldr": (lambda m, i: ALDRLoss.from_task(i), "multiclass", residual_mlp, False),
    "ensloss": (lambda m, i: EnsLoss.from_task(i, period=1 + m), "binary", mlp, False),
}


@functools.cache
def trained_alone(name):
    """Of each model by itself, its parameters at the start and at its end."""
    make, kind, backbone, weighted = CASES[name]
    data = datasets(kind, weighted)
    states = []
    for m, (objective, network) in enumerate(zip(*setting(make, kind, backbone, data))):
        start = {k: v.clone() for k, v in network.state_dict().items()}
        alone(objective, network, data[WHICH[m]], m, LENGTHS[m])
        states.append((start, network.state_dict()))
    return states


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_each_model_as_alone(name, by_hand):
    """28 steps; model 1 leaves after 3 epochs, models 0 and 3 after 5."""
    make, kind, backbone, weighted = CASES[name]
    data = datasets(kind, weighted)
    objectives, networks = setting(make, kind, backbone, data)
    stack = Stack(networks)
    watch = DropAt({epochs: [m for m in LENGTHS if LENGTHS[m] == epochs] for epochs in (3, 5)})
    Descent(
        stack,
        StackedObjective(objectives),
        StackedBatches(data, WHICH, SEEDS, batch_size=8, steps=4),
        method=StackedStep(by_hand),
        optimizer=StackedAdamW(stack, lr=RATES, weight_decay=DECAYS),
        hooks=[watch],
    ).fit(7)
    watch.final[2] = stack.member(0)
    for m, (start, end) in enumerate(trained_alone(name)):
        for key, value in end.items():
            torch.testing.assert_close(watch.final[m][key], value, rtol=1e-9, atol=1e-9)
        assert any((start[key] - value).abs().max() > 1e-3 for key, value in end.items()), "it trained"


def test_ignored_rows_count_for_no_model():
    z, target = torch.randn(2, 5, 3), torch.tensor([[0, 1, -100, 2, -100], [0, -100, 1, 2, 2]])
    for weight in (None, torch.rand(2, 5)):
        named = {} if weight is None else {"weight": weight}
        joint = StackedObjective([CrossEntropyLoss(), CrossEntropyLoss()])
        joint(z, target, **named)
        for m in range(2):
            own = CrossEntropyLoss()(z[m], target[m], **{k: v[m] for k, v in named.items()})
            torch.testing.assert_close(joint.losses[m], own)


def test_settings_of_parts_separate_groups():
    same = StackedObjective([CrossEntropyWithOPL(1.0, 0.1), CrossEntropyWithOPL(1.0, 0.1)])
    other = StackedObjective([CrossEntropyWithOPL(1.0, 0.1), CrossEntropyWithOPL(1.0, 0.2)])
    assert (len(same.groups), len(other.groups)) == (1, 2)
    counts = StackedObjective([LDAMLoss((5, 3)), LDAMLoss((5, 3)), LDAMLoss((3, 5))])
    assert counts.groups == [[0], [1], [2]], "each weighs its mean"
    factors = StackedObjective([FocalLoss(alpha=[1.0, 2.0]), FocalLoss(alpha=[1.0, 2.0]), FocalLoss(alpha=[2.0, 1.0])])
    assert factors.groups == [[0, 1], [2]]


def test_early_stopping_of_a_stack_takes_models_out():
    data = datasets("multiclass", False)
    objectives, networks = setting(lambda m, i: CrossEntropyLoss(), "multiclass", mlp, data)
    stack = Stack(networks)
    curves = {0: [3, 2, 1, 0, 0, 0], 1: [1, 2, 3, 4, 5, 6], 2: [1, 2, 1, 1, 1, 1], 3: [0, 0, 1, 0, 0, 0]}

    def evaluate(descent):
        return [float(curves[m][descent.epoch - 1]) for m in stopping.alive or range(MODELS)]

    stopping = EarlyStopping(evaluate, patience=2)
    run = Descent(
        stack,
        StackedObjective(objectives),
        StackedBatches(data, WHICH, SEEDS, batch_size=8, steps=2),
        method=StackedStep(),
        optimizer=StackedAdamW(stack, lr=RATES, weight_decay=DECAYS),
        hooks=[stopping],
    ).fit(6)
    assert run.epoch == 6
    assert stopping.best_epoch == [1, 6, 2, 3]
    assert [len(curve) for curve in stopping.curves] == [3, 6, 4, 5]
    assert stopping.alive == [1]
    assert len(stack) == len(run.objective.members) == len(run.optimizer.first) == 1


def test_refusals():
    with pytest.raises(ValueError, match="models: expected at least one"):
        Stack([])
    with pytest.raises(ValueError, match="models: expected one architecture"):
        Stack([nn.Linear(3, 2), nn.Linear(3, 3)])
    with pytest.raises(ValueError, match=r"models: expected one architecture, got .*LeakyReLU.*0\.3"):
        Stack([nn.Sequential(nn.Linear(3, 2), nn.LeakyReLU(s)) for s in (0.1, 0.3)])
    assert architecture(nn.Linear(3, 2)) != architecture(nn.Linear(3, 2, bias=False))
    with pytest.raises(ValueError, match="model: expected layers without buffers and dropout in a stack"):
        Stack([nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.1))])
    assert not stackable(nn.BatchNorm1d(3))
    assert stackable(nn.LayerNorm(3))
    stack = Stack([nn.Linear(3, 2)] * 3)
    with pytest.raises(ValueError, match="lr, weight_decay: expected 3 values"):
        StackedAdamW(stack, lr=[0.1], weight_decay=[0.0] * 3)
    with pytest.raises(TypeError, match="one_pass: expected True or False"):
        StackedAdamW(stack, lr=[0.1] * 3, weight_decay=[0.0] * 3, one_pass=None)
    with pytest.raises(ValueError, match="lr: expected a number > 0"):
        StackedAdamW(stack, lr=[0.1, 0.0, 1.0], weight_decay=[0.0] * 3)
    with pytest.raises(ValueError, match="flat: expected 3 models of 8 numbers, as now"):
        stack.load_state_dict(Stack([nn.Linear(3, 2)]).state_dict())
    x, y = torch.zeros(5, 3), torch.zeros(5)
    with pytest.raises(ValueError, match="batch_size: expected at most the rows of the smallest"):
        StackedBatches([(x, y, None)], [0], [1], batch_size=6, steps=1)
    with pytest.raises(ValueError, match="datasets: expected weights for all or for none"):
        StackedBatches([(x, y, None), (x, y, y)], [0, 1], [1, 1], batch_size=2, steps=1)


class Doubled(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Linear(3, 2, bias=False), lambda: ScalarHead(3), lambda: nn.LayerNorm(3), lambda: nn.Softmax(-1),
        lambda: Residual(nn.Linear(3, 3)), lambda: Doubled(nn.Linear(3, 2)), nn.GELU, lambda: mlp(3, width=4),
        lambda: residual_mlp(3, width=4), lambda: nn.Sequential(nn.ReLU(), nn.Linear(3, 2)),
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.ReLU(), nn.ReLU(), nn.Linear(4, 2)),
        lambda: DistanceHead(3, 4, "euclidean", n=2.0), lambda: DistanceHead(3, 4, "manhattan"),
        lambda: DistanceHead(3, 4, "cosine"), lambda: DistanceHead(3, 4, "chebyshev"),
    ],
)  # fmt: skip
def test_outputs_and_gradients_of_layers(layer):
    models = [nn.Sequential(nn.Linear(3, 3), layer()).double() for _ in range(3)]
    stack, x = Stack(models), torch.randn(3, 4, 3, dtype=torch.float64)
    outputs = stack(x)
    (outputs**2).sum().backward()
    for m, model in enumerate(models):
        wanted = model(x[m])
        torch.testing.assert_close(outputs[m], wanted, rtol=1e-12, atol=1e-12)
        (wanted**2).sum().backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(stack.views[name].grad[m], p.grad, rtol=1e-12, atol=1e-12)
    graph = {name: view.grad for name, view in stack.views.items()}
    with torch.no_grad():
        by_hand = stack.outputs_by_hand(x)
        gradients = stack.gradients_by_hand(2 * by_hand)
    torch.testing.assert_close(by_hand, outputs.detach(), rtol=1e-12, atol=1e-12)
    for name, gradient in zip(stack.views, gradients, strict=True):
        torch.testing.assert_close(gradient, graph[name], rtol=1e-12, atol=1e-12)


def test_gradients_of_cosines_where_they_are_1_or_rows_are_0():
    head = DistanceHead(3, 4, "cosine", n=2.0).double()
    with torch.no_grad():
        head.weight[1] = 0.0
        head.weight[2] = torch.tensor([3.0, 4.0, 0.0])
    stack, x = Stack([nn.Sequential(nn.Linear(3, 3), head)] * 2), torch.zeros(2, 4, 3, dtype=torch.float64)
    with torch.no_grad():
        for name, value in (("0.weight", torch.eye(3)), ("0.bias", torch.zeros(3))):
            stack.views[name].copy_(value.expand_as(stack.views[name]))
    x[0, 1], x[1, 2] = torch.tensor([6.0, 8.0, 0.0]), torch.tensor([0.0, -1.0, 2.0])
    stack(x).sum().backward()
    graph = {name: view.grad for name, view in stack.views.items()}
    with torch.no_grad():
        gradients = stack.gradients_by_hand(torch.ones_like(stack.outputs_by_hand(x)))
    for name, gradient in zip(stack.views, gradients, strict=True):
        assert gradient.isfinite().all()
        torch.testing.assert_close(gradient, graph[name], rtol=1e-9, atol=1e-9)


def test_state_and_schedule():
    models = [nn.Linear(3, 2) for _ in range(2)]
    x, y = torch.randn(2, 8, 3), torch.randint(2, (2, 8))

    def run(epochs, state=None):
        stack = Stack(models)
        optimizer = StackedAdamW(stack, lr=[0.1, 0.2], weight_decay=[0.0, 0.1])
        descent = Descent(
            stack,
            StackedObjective([CrossEntropyLoss(), CrossEntropyLoss()]),
            StackedBatches([(x[0], y[0], None), (x[1], y[1], None)], [0, 1], [1, 2], batch_size=4, steps=2),
            method=StackedStep(),
            optimizer=optimizer,
            schedule=torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5),
        )
        if state is not None:
            descent.load_state_dict(state)
        return descent.fit(epochs)

    whole, part = run(4), run(2)
    again = run(4, copy.deepcopy(part.state_dict()))
    assert torch.equal(whole.model.flat, again.model.flat)
    assert whole.optimizer.param_groups[0]["lr"] == pytest.approx(0.5**8)
    with pytest.raises(ValueError, match="first: expected averages of 2 models"):
        part.optimizer.load_state_dict({**part.optimizer.state_dict(), "first": torch.zeros(1, 8)})


@pytest.mark.parametrize("one_pass", [False, True])
def test_float32_moves_as_float64_does(one_pass):
    """Weights after 25 steps with the gradients of given outputs, which depend on no weight."""
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3)) for _ in range(3)]

    def run(dtype, **how):
        stack = Stack([copy.deepcopy(m).to(dtype) for m in models])
        optimizer = StackedAdamW(stack, lr=[0.1, 0.01, 0.02], weight_decay=[0.0, 0.1, 0.3], **how)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        g = torch.Generator().manual_seed(1)
        for step in range(25):
            for view in stack.parameters():
                view.grad = torch.randn(view.shape, generator=g, dtype=torch.float64).to(dtype)
            if step == 20:
                for of_models in (stack, optimizer):
                    of_models.keep([True, False, True])
                for view in stack.parameters():
                    view.grad = torch.ones_like(view)
            optimizer.step()
            if step < 10:
                schedule.step()
        return stack.flat

    exact, own = run(torch.float64), run(torch.float32, one_pass=one_pass)
    # a step moves by about lr <= 0.1 and adds a rounding of the weight and a few of the move
    scale = float(exact.abs().max())
    torch.testing.assert_close(own.double(), exact, rtol=0.0, atol=25 * 4 * torch.finfo(torch.float32).eps * scale)


@pytest.mark.parametrize(
    ("by_hand", "objective", "scheduled", "graph"),
    [
        (True, CrossEntropyLoss, False, False),
        (False, CrossEntropyLoss, False, True),
        (True, CrossEntropyLoss, True, True),
        (True, lambda: CrossEntropyWithOPL(0.5), False, True),
    ],
)
def test_a_whole_step_needs_no_graph(by_hand, objective, scheduled, graph):
    """And is left to the loop where a schedule, or what an objective needs, takes part."""
    networks = [Network(mlp(3, width=4), nn.Linear(4, 2)) for _ in range(2)]
    stack = Stack(networks)
    optimizer = StackedAdamW(stack, lr=[0.1, 0.2], weight_decay=[0.0, 0.1])
    data = [(torch.randn(8, 3), torch.arange(8) % 2, None)]
    before = stack.flat.clone()
    Descent(
        stack,
        StackedObjective([objective(), objective()]),
        StackedBatches(data, [0, 0], [1, 2], batch_size=4, steps=2),
        method=StackedStep(by_hand),
        optimizer=optimizer,
        schedule=torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5) if scheduled else None,
    ).fit(1)
    assert [view.grad is not None for view in stack.views.values()] == [graph] * len(stack.views)
    assert optimizer.steps == 2
    assert not torch.equal(stack.flat, before)


def test_losses_stand_in_the_order_of_the_models():
    """Also where models that share a call stand apart."""
    g = torch.Generator().manual_seed(3)
    outputs, target = torch.randn(5, 7, 3, generator=g), torch.randint(3, (5, 7), generator=g)
    members = [FocalLoss(gamma=gamma) for gamma in (1.0, 2.0, 1.0, 3.0, 2.0)]
    stacked = StackedObjective(members)
    total = stacked(outputs, target)
    alone = torch.stack([member(o, t) for member, o, t in zip(members, outputs, target)])
    torch.testing.assert_close(stacked.losses, alone)
    torch.testing.assert_close(total, alone.sum())


def test_the_optimizer_imports_no_compiler(monkeypatch):
    """What torch keeps from its compiler it imports the compiler for."""

    def refusing(own):
        @functools.wraps(own)
        def refuse(*_, **__):
            raise AssertionError("this imports torch._dynamo")

        return refuse

    for name in ("add_param_group", "zero_grad"):
        own = inspect.unwrap(getattr(torch.optim.Optimizer, name))
        monkeypatch.setattr(torch.optim.Optimizer, name, refusing(own))
    stack = Stack([nn.Linear(2, 2)])
    optimizer = StackedAdamW(stack, lr=[0.1], weight_decay=[0.0])
    stack(torch.ones(1, 3, 2)).sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    assert all(not view.grad.any() for view in stack.parameters())
    optimizer.zero_grad()
    assert all(view.grad is None for view in stack.parameters())
    assert optimizer.param_groups[0]["params"] == list(stack.parameters())
