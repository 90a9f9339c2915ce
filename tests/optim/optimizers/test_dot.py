"""Two momenta for distillation: the facts of the card, torch's SGD, all ways to step, scaled gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from steepest.optim import DOT, DistillationOrientedTrainer


def parameter(*values):
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def fed(optimizer, pairs):
    """One step by gradients ``(parameter, task's, teacher's)``, None where there is none."""
    for p, _, teacher in pairs:
        p.grad = None if teacher is None else torch.tensor([teacher], dtype=p.dtype)
    optimizer.step_kd()
    for p, task, _ in pairs:
        assert p.grad is None
        p.grad = None if task is None else torch.tensor([task], dtype=p.dtype)
    optimizer.step()


@pytest.mark.holds("dot", 1)
def test_card_values():
    w = parameter(0.0)
    optimizer = DOT([w], 0.1)
    for _ in range(3):
        fed(optimizer, [(w, 1.0, 2.0)])
    assert float(w.detach()) == pytest.approx(-1.7131875)
    assert float(optimizer.state[w]["task_buffer"]) == pytest.approx(2.505625)
    assert float(optimizer.state[w]["kd_buffer"]) == pytest.approx(5.85125)
    again = parameter(0.0)
    optimizer = DistillationOrientedTrainer([again], 0.1)
    for _ in range(3):
        wanted = 1 + 3 * float(again.detach())
        assert float(optimizer.step(again.sum() + 1, 2 * again.sum())) == pytest.approx(wanted)
    assert torch.equal(again, w)


def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return model, torch.randn(9, 3).double(), torch.randn(9, 2).double()


def losses(model, x, y):
    outputs = model(x)
    return 0.3 * (outputs - y).square().mean(), 0.7 * outputs.abs().mean()


@pytest.mark.holds("dot", 2)
def test_without_delta_it_is_sgd_on_the_sum():
    w = parameter(0.0)
    optimizer = DOT([w], 0.1, delta=0.0)
    for _ in range(3):
        fed(optimizer, [(w, 1.0, 2.0)])
    assert float(w.detach()) == pytest.approx(-1.683)
    model, x, y = net()
    twin = copy.deepcopy(model)
    ours = DOT(model.parameters(), 0.05, delta=0.0, weight_decay=0.1)
    theirs = torch.optim.SGD(twin.parameters(), 0.05, momentum=0.9, weight_decay=0.1)
    for _ in range(5):
        ours.step(*losses(model, x, y))
        theirs.zero_grad()
        sum(losses(twin, x, y)).backward()
        theirs.step()
    for a, b in zip(model.parameters(), twin.parameters()):
        torch.testing.assert_close(a, b)


@pytest.mark.holds("dot", 3)
def test_deltas_that_are_refused():
    w = parameter(1.0)
    for options in ({"delta": 0.1}, {"delta": -0.01}, {"momentum": 0.3, "delta": 0.4}, {"momentum": 0.0}):
        with pytest.raises(ValueError, match="delta: expected"):
            DOT([w], **options)
        with pytest.raises(ValueError, match="delta: expected"):
            DOT([{"params": [w], **options}])
    for wrong in ({"lr": -1.0}, {"momentum": 1.0}, {"weight_decay": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            DOT([w], **{"delta": 0.0, **wrong})


@pytest.mark.holds("dot", 4)
def test_parameters_with_one_gradient_have_the_plain_momentum():
    both, task, teacher, none = (parameter(1.0) for _ in range(4))
    optimizer = DOT([both, task, teacher, none], 0.1, weight_decay=0.2)
    rivals = {"task": parameter(1.0), "teacher": parameter(1.0)}
    theirs = torch.optim.SGD(rivals.values(), 0.1, momentum=0.9, weight_decay=0.2)
    w, v, u = 1.0, 0.0, 0.0
    for a, b in ((1.0, 2.0), (0.5, -1.0), (2.0, 3.0)):
        fed(optimizer, [(both, a, b), (task, a, None), (teacher, None, b), (none, None, None)])
        rivals["task"].grad, rivals["teacher"].grad = torch.tensor([a]).double(), torch.tensor([b]).double()
        theirs.step()
        v, u = 0.825 * v + a + 0.2 * w, 0.975 * u + b
        w -= 0.1 * (v + u)
    assert float(both.detach()) == pytest.approx(w)
    torch.testing.assert_close(task, rivals["task"])
    torch.testing.assert_close(teacher, rivals["teacher"])
    assert float(none.detach()) == 1.0
    assert teacher.grad is None


@pytest.mark.holds("dot", 5)
def test_velocities_of_constant_gradients():
    w = parameter(0.0)
    optimizer = DOT([w], 1e-3)
    for _ in range(900):
        fed(optimizer, [(w, 1.0, 2.0)])
    assert float(optimizer.state[w]["task_buffer"]) == pytest.approx(1 / (1 - 0.9 + 0.075))
    assert float(optimizer.state[w]["kd_buffer"]) == pytest.approx(2 / (1 - 0.9 - 0.075))


@pytest.mark.holds("dot", 6)
def test_buffers_are_saved_also_between_the_two_gradients():
    w = parameter(0.5)
    optimizer = DOT([w], 0.1)
    fed(optimizer, [(w, 1.0, 2.0)])
    w.grad = torch.tensor([3.0]).double()
    optimizer.step_kd()
    twin = nn.Parameter(w.detach().clone())
    fresh = DOT([twin], 9.0)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p, own in ((w, optimizer), (twin, fresh)):
        p.grad = torch.tensor([1.0]).double()
        own.step()
        fed(own, [(p, 0.1, 0.2)])
    assert torch.equal(w, twin)
    assert set(fresh.state[twin]) == {"task_buffer", "kd_buffer"}


@pytest.mark.parametrize("broken", [None, "task", "teacher"])
def test_a_scaler_divides_both_gradients(broken):
    model, x, y = net()
    twin = copy.deepcopy(model)
    scaled, plain = DOT(model.parameters(), 0.05), DOT(twin.parameters(), 0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = copy.deepcopy(model)
    task, teacher = losses(model, x, y)
    scaler.scale(teacher).backward(retain_graph=True)
    if broken == "teacher":
        model[0].weight.grad[0, 0] = torch.inf
    scaled.step_kd()
    scaler.scale(task).backward()
    if broken == "task":
        model[0].weight.grad[0, 0] = torch.inf
    scaler.step(scaled)
    scaler.update()
    plain.step(*losses(twin, x, y))
    for p, old, wanted in zip(model.parameters(), before.parameters(), twin.parameters()):
        torch.testing.assert_close(p, wanted if broken is None else old)
    assert not any("kd_gradient" in state for state in scaled.state.values())


def test_what_cannot_be_right_is_refused():
    model, x, y = net()
    optimizer = DOT(model.parameters(), 0.05)
    scaler = torch.amp.GradScaler("cpu")
    task, teacher = losses(model, x, y)
    scaler.scale(teacher).backward(retain_graph=True)
    optimizer.step_kd()
    scaler.scale(task).backward()
    scaler.unscale_(optimizer)
    with pytest.raises(ValueError, match="step_kd: expected"):
        scaler.step(optimizer)
    with pytest.raises(TypeError, match="task_loss: expected"):
        optimizer.step(lambda: task, teacher)
    rows = nn.Embedding(3, 2, sparse=True)
    sparse = DOT(rows.parameters())
    rows(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="params: expected dense gradients"):
        sparse.step_kd()
