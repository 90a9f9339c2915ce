"""Decoupled decay: the facts of the card, torch's own, naive loops in float64, rounds of a cosine."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from steepest.optim import SGDW, AdamW, CosineWarmRestarts, normalized_weight_decay


def parameter(*values, dtype=torch.float64):
    return nn.Parameter(torch.tensor(values, dtype=dtype))


def stepped(make, values, *gradients):
    p = parameter(*values)
    optimizer = make([p])
    for gradient in gradients:
        p.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    return p.detach()


def close(a, b, **tolerance):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), **tolerance)


@pytest.mark.holds("adamw", 1)
def test_card_values():
    start, slope = (1.0, -2.0), [0.3, -0.4]
    close(stepped(lambda p: AdamW(p, 0.1, weight_decay=0.5), start, slope), [0.85, -1.8], rtol=0.0, atol=1e-6)
    close(stepped(lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.5), start, slope), [0.9, -1.9], rtol=0, atol=1e-6)


@pytest.mark.holds("adamw", 2)
@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}, {"amsgrad": True}])
def test_it_is_the_one_of_torch(options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
    twin, x = copy.deepcopy(model), torch.randn(9, 4)
    pairs = [(model, AdamW(model.parameters(), 0.01, weight_decay=0.1, **options))]
    plain = {name: value for name, value in options.items() if name == "amsgrad"}
    pairs.append((twin, torch.optim.AdamW(twin.parameters(), 0.01, weight_decay=0.1, **plain)))
    for network, optimizer in pairs:
        for _ in range(100):
            optimizer.zero_grad()
            network(x).square().mean().backward()
            optimizer.step()
    for a, b in zip(model.parameters(), twin.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.holds("adamw", 3)
def test_without_decay_it_is_adam_and_without_gradient_it_shrinks():
    slopes = [[0.3, -2.0], [0.1, 4.0], [-1.0, 0.2]]
    start = (1.0, -2.0)
    adam = stepped(lambda p: torch.optim.Adam(p, 0.1), start, *slopes)
    assert torch.equal(stepped(lambda p: AdamW(p, 0.1, weight_decay=0.0), start, *slopes), adam)
    for make in (
        lambda p: AdamW(p, 0.1, weight_decay=0.5),
        lambda p: AdamW(p, 0.1, weight_decay=0.05, mode="paper"),
        lambda p: SGDW(p, 0.1, weight_decay=0.5),
        lambda p: SGDW(p, 0.1, weight_decay=0.05, mode="paper"),
    ):
        close(stepped(make, start, *[[0.0, 0.0]] * 7), [0.95**7, -2 * 0.95**7])


@pytest.mark.holds("adamw", 4)
def test_normalised_decay():
    assert normalized_weight_decay(0.025, 128, 50_000, 100) == pytest.approx(1.264911e-4, rel=1e-6)
    assert normalized_weight_decay(0.3, 10, 40, 9) == pytest.approx(0.3 / math.sqrt(36))  # 36 steps
    for wrong in ((-0.1, 1, 1, 1), (0.1, 0, 1, 1), (0.1, 1, 0, 1), (0.1, 1, 1, 0.0)):
        with pytest.raises(ValueError, match="expected"):
            normalized_weight_decay(*wrong)


@pytest.mark.holds("adamw", 5)
def test_without_momentum_sgdw_is_sgd_with_the_penalty():
    slopes, start = [[0.3, -2.0], [0.1, 4.0], [-1.0, 0.2]], (1.0, -2.0)
    sgd = stepped(lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.3), start, *slopes)
    close(stepped(lambda p: SGDW(p, 0.1, 0.0, 0.3), start, *slopes), sgd)
    close(stepped(lambda p: SGDW(p, 0.1, 0.0, 0.03, mode="paper"), start, *slopes), sgd)  # lam / alpha
    with_momentum = stepped(lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), start, *slopes)
    close(stepped(lambda p: SGDW(p, 0.1), start, *slopes), with_momentum)


@pytest.mark.holds("adamw", 6)
@pytest.mark.parametrize("cls", [AdamW, SGDW])
def test_bad_options_and_groups(cls):
    with pytest.raises(ValueError, match="lr: expected"):
        cls([parameter(1.0)], lr=-0.1)
    with pytest.raises(ValueError, match="weight_decay: expected"):
        cls([parameter(1.0)], weight_decay=-0.1)
    with pytest.raises(ValueError, match="weight_decay: expected"):
        cls([{"params": [parameter(1.0)], "weight_decay": -0.1}])
    with pytest.raises(ValueError, match="mode: expected"):
        cls([parameter(1.0)], mode="other")
    with pytest.raises(ValueError, match="lr: expected"):
        cls([parameter(1.0)], lr=0.0, weight_decay=0.1, mode="paper")
    layer = nn.Linear(2, 2)
    nn.init.ones_(layer.bias)
    everything = cls(layer.parameters(), lr=0.1, weight_decay=0.5)
    layer.weight.grad, layer.bias.grad = torch.zeros(2, 2), torch.zeros(2)
    everything.step()
    assert torch.equal(layer.bias.detach(), torch.full((2,), 0.95))
    grouped = cls([{"params": [layer.weight]}, {"params": [layer.bias], "weight_decay": 0.0}], lr=0.1, weight_decay=0.5)
    before = layer.weight.detach().clone()
    grouped.step()
    assert torch.equal(layer.bias.detach(), torch.full((2,), 0.95))
    torch.testing.assert_close(layer.weight.detach(), 0.95 * before)


def test_what_users_of_another_sgdw_reported():
    assert stepped(lambda p: SGDW(p, 0.1, 0.9, 0.0), (1.0,), [0.0]).item() == 1.0  # the buffer started as the weights
    close(stepped(lambda p: SGDW(p, 0.1, 0.9, 0.5), (-2.0,), [0.0]), [-1.9])  # the decay was lr wd, not lr wd p


ETA = (1.0, 0.5, 0.25, 0.8)


@pytest.mark.parametrize("cls", [AdamW, SGDW])
def test_the_paper_in_a_naive_loop_under_a_schedule(cls):
    alpha, lam, b1, b2, eps = 0.05, 0.02, 0.9, 0.999, 1e-8
    slopes = [[0.3, -2.0], [0.1, 4.0], [-1.0, 0.2], [0.5, 0.5]]
    p = parameter(1.0, -2.0)
    groups = [{"params": [p], "lr": alpha}]
    optimizer = cls(groups, lr=9.0, weight_decay=lam, mode="paper")
    theta, m, v = [1.0, -2.0], [0.0, 0.0], [0.0, 0.0]
    for t, (eta, slope) in enumerate(zip(ETA, slopes), start=1):
        optimizer.param_groups[0]["lr"] = eta * alpha
        p.grad = torch.tensor(slope, dtype=torch.float64)
        optimizer.step()
        for i, g in enumerate(slope):
            if cls is SGDW:
                m[i] = b1 * m[i] + eta * alpha * g
                theta[i] = theta[i] - m[i] - eta * lam * theta[i]
            else:
                m[i], v[i] = b1 * m[i] + (1 - b1) * g, b2 * v[i] + (1 - b2) * g * g
                along = (m[i] / (1 - b1**t)) / (math.sqrt(v[i] / (1 - b2**t)) + eps)
                theta[i] -= eta * (alpha * along + lam * theta[i])
        close(p.detach(), theta)


def test_copies_know_how_decay_counts():
    optimizer = copy.deepcopy(AdamW([parameter(1.0)], 0.1, weight_decay=0.05, mode="paper"))
    optimizer.add_param_group({"params": [parameter(1.0)], "lr": 0.2})
    assert [group["weight_decay"] for group in optimizer.param_groups] == pytest.approx([0.5, 0.25])


def rates(schedule, steps):
    got = []
    for _ in range(steps):
        got.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    return got


@pytest.mark.parametrize(("first", "factor"), [(2, 2), (5, 1), (3, 3)])
def test_rounds_are_those_of_torch_whatever_the_start(first, factor):
    def optimizer():
        return torch.optim.SGD([parameter(1.0)], 0.1)

    theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer(), first, factor, eta_min=0.01)
    wanted = rates(theirs, 20)
    ours = rates(CosineWarmRestarts(optimizer(), first, factor, eta_min=0.1), 20)
    assert ours == pytest.approx(wanted)
    for step in range(1, 20):
        late = optimizer()
        late.param_groups[0]["initial_lr"] = 0.1
        again = CosineWarmRestarts(late, first, factor, eta_min=0.1, last_epoch=step - 1)
        assert again.get_last_lr()[0] == ours[step]


def test_the_case_that_users_reported():
    """T_0 = 2, T_mult = 2, rate 0.1, rebuilt at step 10: 0.05, where torch says 0.1."""
    optimizer = torch.optim.SGD([{"params": [parameter(1.0)], "initial_lr": 0.1}], 0.1)
    assert CosineWarmRestarts(optimizer, 2, 2, last_epoch=9).get_last_lr()[0] == pytest.approx(0.05)


def test_each_round_has_the_decay_of_its_length():
    groups = [{"params": [parameter(1.0)]}, {"params": [parameter(1.0)], "weight_decay": 0.0}]
    optimizer = AdamW(groups, 0.1, weight_decay=1.0, mode="paper")
    schedule = CosineWarmRestarts(optimizer, 4, 2, normalized_decay=0.3)
    seen = []
    for step in range(30):
        seen.append(optimizer.param_groups[0]["weight_decay"] * 0.1)
        assert optimizer.param_groups[1]["weight_decay"] == 0.0
        optimizer.step()
        schedule.step()
        assert schedule.round_length(step) == (4 if step < 4 else 8 if step < 12 else 16 if step < 28 else 32)
    wanted = [0.3 / math.sqrt(4 if s < 4 else 8 if s < 12 else 16 if s < 28 else 32) for s in range(30)]
    assert seen == pytest.approx(wanted)
    assert wanted[0] == pytest.approx(normalized_weight_decay(0.3, 10, 20, 2))  # 2 epochs of 2 steps
    with pytest.raises(ValueError, match="optimizer: expected a rate > 0"):
        CosineWarmRestarts(torch.optim.Rprop([parameter(1.0)]), 4, normalized_decay=0.3)
    for wrong in ({"T_0": 0}, {"T_mult": 0.0}, {"eta_min": 2.0}, {"normalized_decay": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            CosineWarmRestarts(optimizer, **{"T_0": 3, **wrong})


def test_rounds_that_get_shorter_end():
    optimizer = torch.optim.SGD([parameter(1.0)], 1.0)
    schedule = CosineWarmRestarts(optimizer, 4, 0.5)
    got = rates(schedule, 10)
    assert got[:7] == pytest.approx([1.0, 0.8535534, 0.5, 0.1464466, 1.0, 0.5, 1.0])
    assert got[7:] == [0.0, 0.0, 0.0]
    assert [schedule.round_length(s) for s in (0, 4, 6, 9)] == [4, 2, 1, 1]


def test_a_fused_step_of_weights_with_gaps_is_refused():
    """On the CPU torch's own runs through their memory: it moves what lies between the weights' numbers."""
    held = torch.full((4, 3, 2), 7.0)
    gaps, fine = nn.Parameter(held[..., 0]), parameter(1.0, 2.0, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"fused: expected contiguous weights.*\(4, 3\)"):
        AdamW([fine, gaps], 0.1, fused=True)
    optimizer = AdamW([fine], 0.1, fused=True)
    with pytest.raises(ValueError, match="fused: expected contiguous weights"):
        optimizer.add_param_group({"params": [gaps]})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [gaps], "fused": False})
    gaps.grad, fine.grad = torch.ones(4, 3), torch.ones(2)
    optimizer.step()
    assert bool((held[..., 1] == 7.0).all())
    close(held[..., 0], torch.full((4, 3), 7.0 - 0.1 - 0.1 * 1e-2 * 7.0), rtol=1e-6, atol=0.0)
