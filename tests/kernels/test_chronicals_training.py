"""LoRA+ groups beside PEFT's, and the guard against gradients that are zero."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from torch import nn

from steepest.kernels import LoRAPlus, ZeroGradientGuard, lora_plus_groups


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.first, self.second = nn.Embedding(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, ids):
        return self.second(self.first(self.embed(ids)).tanh())


def adapted(**config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(Small(), LoraConfig(r=2, **config))


def rates(groups):
    return {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["first", "second"]},
        {"target_modules": ["first"], "modules_to_save": ["second"]},
        {"target_modules": ["first", "embed"]},
    ],
)
def test_groups_are_those_of_peft(config):
    model = adapted(**config)
    if "modules_to_save" in config:
        model.base_model.model.second.modules_to_save["default"].bias.requires_grad_(False)  # see the next test
    theirs = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16)
    ours = lora_plus_groups(model, 1e-3, lr_embedding=1e-6)
    assert rates(ours) == rates(theirs.param_groups)
    assert len(rates(ours)) == sum(p.requires_grad for p in model.parameters())


def test_other_weights_have_the_rate_of_a():
    """As in the card; PEFT gives trained biases the rate of B."""
    model = adapted(target_modules=["first"], modules_to_save=["second"])
    groups = {g["name"]: g for g in lora_plus_groups(model, 1e-3, ratio=4, weight_decay=0.1)}
    assert {name: (g["lr"], g["weight_decay"], len(g["params"])) for name, g in groups.items()} == {
        "lora_A": (1e-3, 0.0, 1),
        "lora_B": (4e-3, 0.0, 1),
        "other": (1e-3, 0.1, 2),
    }


def test_optimizer_steps_as_adamw_with_two_rates():
    """Adam's first step is the rate times the sign: the movement shows the rate."""
    model = adapted(target_modules=["first"])
    start = copy.deepcopy(model.state_dict())
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.grad = torch.ones_like(p)
    optimizer = LoRAPlus(model, 1e-3, betas=(0.5, 0.9), eps=0.0)
    optimizer.step()
    moved = {name: (start[name] - value).abs().max().item() for name, value in model.state_dict().items()}
    for name, distance in moved.items():
        wanted = 16e-3 if "lora_B" in name else 1e-3 if "lora_A" in name else 0.0
        assert distance == pytest.approx(wanted, rel=1e-3), name
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.9)
    again = LoRAPlus(model, 1.0)
    again.load_state_dict(optimizer.state_dict())
    assert [g["lr"] for g in again.param_groups] == [1e-3, 16e-3]


def test_a_scheduler_keeps_the_ratio():
    optimizer = LoRAPlus(adapted(target_modules=["first"]), 1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    optimizer.step()
    schedule.step()
    a, b = (g["lr"] for g in optimizer.param_groups)
    assert (a, b) == pytest.approx((5e-4, 8e-3))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: lora_plus_groups(nn.Linear(2, 2), 1e-3),
            ValueError,
            "model: expected trained parameters named lora_A",
        ),
        (lambda: lora_plus_groups(adapted(target_modules=["first"]), 0.0), ValueError, "lr: expected a number > 0"),
        (lambda: lora_plus_groups(adapted(target_modules=["first"]), 1.0, 0.5), ValueError, "ratio: expected"),
        (lambda: LoRAPlus([], 1e-3), TypeError, "model: expected a module"),
        (lambda: ZeroGradientGuard(0), ValueError, "patience: expected an integer >= 1"),
        (lambda: ZeroGradientGuard().attach(None), TypeError, "optimizer: expected an optimizer"),
        (lambda: ZeroGradientGuard().before_step([]), ValueError, "parameters: expected at least one"),
        (lambda: ZeroGradientGuard().after_step(), RuntimeError, "expected before_step first"),
    ],
)
def test_refusals(call, error, text):
    with pytest.raises(error, match=text):
        call()


# ---------------------------------------------------------------------------------------------------------- the guard


def training(patience=1, lr=0.1, size=3):
    weight = nn.Parameter(torch.ones(size))
    optimizer = torch.optim.SGD([weight], lr=lr)
    guard = ZeroGradientGuard(patience)
    return weight, optimizer, guard, guard.attach(optimizer)


def step(weight, optimizer, gradient):
    weight.grad = None if gradient is None else torch.as_tensor(gradient).expand_as(weight).clone()
    optimizer.step()


def test_healthy_steps_pass():
    weight, optimizer, guard, detach = training()
    for number in range(5):
        step(weight, optimizer, 0.5 + number)
    assert (guard.dead, guard.steps, guard.largest) == (0, 5, 4.5)
    detach()
    step(weight, optimizer, 0.0)
    assert guard.steps == 5


@pytest.mark.parametrize(
    ("gradient", "text"),
    [
        (0.0, "gradient of all 1 parameters is zero$"),
        (None, r"is zero \(1 have none\)"),
        (float("nan"), "largest gradient is nan"),
        (float("inf"), "largest gradient is inf"),
    ],
)
def test_dead_gradients_raise_before_the_step(gradient, text):
    weight, optimizer, _, _ = training()
    with pytest.raises(RuntimeError, match=text):
        step(weight, optimizer, gradient)
    assert weight.tolist() == [1.0, 1.0, 1.0]


def test_norms_that_would_under_or_overflow_are_alive():
    weight, optimizer, guard, _ = training(lr=1e30)
    step(weight, optimizer, 1e-30)  # its square is zero in float32
    weight.data.fill_(1.0)
    optimizer.param_groups[0]["lr"] = 1e-30
    weight.grad = torch.full((3,), 1e30)  # its square is infinite
    optimizer.step()
    assert guard.dead == 0


def test_a_step_that_moves_nothing_raises():
    weight, optimizer, _, _ = training(lr=0.0)
    with pytest.raises(RuntimeError, match=r"step 1 \(1 in a row\): the step changed none of 1 parameters"):
        step(weight, optimizer, 1.0)
    weight, optimizer, _, _ = training(lr=1e-9)
    with pytest.raises(RuntimeError, match="changed none"):
        step(weight, optimizer, 1.0)  # lost in rounding
    weight, optimizer, _, _ = training()
    weight.grad = torch.tensor([0.0, 0.0, 1.0])
    optimizer.step()  # one element is enough


def test_one_parameter_that_moves_is_enough():
    still, moving = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = torch.optim.SGD([still, moving], lr=0.1)
    guard = ZeroGradientGuard()
    guard.attach(optimizer)
    moving.grad = torch.ones(2)
    optimizer.step()
    assert guard.dead == 0


def test_patience_counts_steps_in_a_row():
    weight, optimizer, guard, _ = training(patience=3)
    for gradient in (0.0, 0.0, 1.0, 0.0, float("inf")):
        step(weight, optimizer, gradient)
        weight.data.fill_(1.0)
    assert guard.dead == 2
    with pytest.raises(RuntimeError, match=r"step 6 \(3 in a row\)"):
        step(weight, optimizer, 0.0)


def test_a_closure_is_judged_after_its_step():
    weight, optimizer, guard, _ = training()

    def closure(factor):
        optimizer.zero_grad()
        loss = (factor * weight).sum()
        loss.backward()
        return loss

    optimizer.step(lambda: closure(2.0))
    assert guard.largest == 2.0
    with pytest.raises(RuntimeError, match="is zero"):
        optimizer.step(closure=lambda: closure(0.0))


def test_sparse_gradients():
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
    guard = ZeroGradientGuard()
    guard.attach(optimizer)
    table(torch.tensor([1, 1])).sum().backward()
    optimizer.step()
    assert guard.largest == 2.0
