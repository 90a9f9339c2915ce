"""Conformance of a wrapper: all that an optimizer keeps, and one optimizer beneath that it shares everything with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR

from ._constructor import seed_torch
from ._steps import (
    Builder,
    Closure,
    Member,
    copied,
    layered,
    member_of,
    same_bits,
    snapshot,
    steps,
    through_a_file,
    trained,
)
from ._suite import Bound, bound, run_all
from .optimizer import COMMON, check_scaled_closure


def check_base(member: Member) -> None:
    """It drives ``base_optimizer``, an optimizer of torch, by ``step()`` without the closure, once a step."""
    for place in member.places():
        model, closure, optimizer = copied(member, place)
        base = optimizer.base_optimizer
        assert isinstance(base, Optimizer) and base is not optimizer, "base_optimizer"
        calls: list[tuple[Any, Any]] = []
        base.register_step_pre_hook(lambda _, args, kwargs, calls=calls: calls.append((args[1:], kwargs)))
        before = snapshot(model)
        steps(optimizer, closure, 2)
        given = [[*args, *kwargs.values()] for args, kwargs in calls]
        assert len(given) == 2, f"{len(given)} steps of the base optimizer in 2"
        assert all(value is None for values in given for value in values), "the base optimizer got the closure"
        assert any(not torch.equal(a, b) for a, b in zip(before, snapshot(model))), "nothing moved"


def check_shared_groups(member: Member) -> None:
    """Groups and state are the base optimizer's own objects, whichever of the two was loaded or got a schedule."""

    def shared(optimizer: Any, when: str) -> None:
        assert optimizer.param_groups is optimizer.base_optimizer.param_groups, f"{when}: other groups"
        assert optimizer.state is optimizer.base_optimizer.state, f"{when}: other state"

    for place in member.places():
        for owner in ("the wrapper", "the base optimizer"):
            _, closure, optimizer = copied(member, place)
            scheduled = optimizer if owner == "the wrapper" else optimizer.base_optimizer
            shared(optimizer, "new")
            rate = optimizer.param_groups[0]["lr"]
            schedule = LinearLR(scheduled, start_factor=1e-3, total_iters=3)
            scheduled.load_state_dict(through_a_file(scheduled.state_dict()))
            shared(optimizer, f"{owner} was loaded")
            for number in range(1, 4):
                optimizer.step(closure)
                schedule.step()
                shared(optimizer, "stepped")
                wanted = rate * (1e-3 + (1 - 1e-3) * number / 3)
                for own in (optimizer, optimizer.base_optimizer):
                    assert abs(own.param_groups[0]["lr"] - wanted) <= 1e-9 * rate, f"a schedule of {owner}"
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
            shared(optimizer, "with a new group")


def check_base_state(member: Member) -> None:
    """It takes the state of a base optimizer that ran alone until now."""
    for place in member.places():
        _, closure, optimizer = copied(member, place)
        base = optimizer.base_optimizer
        closure()
        base.step()
        _, again, fresh = copied(member, place)
        fresh.load_state_dict(through_a_file(base.state_dict()))
        same_bits(snapshot(base), snapshot(fresh.base_optimizer), "the state of the base optimizer")
        steps(fresh, again, 1)


def check_bad_state(member: Member) -> None:
    """A state whose own part is another's is refused, and nothing of it is taken."""
    for place in member.places():
        _, closure, optimizer = copied(member, place)
        if not optimizer.own_state():
            continue
        steps(optimizer, closure, 1)
        _, again, ahead = copied(member, place)
        steps(ahead, again, 3)
        bad = through_a_file(ahead.state_dict())
        bad["wrapper"] = {"nothing": 1}
        before = snapshot(optimizer.base_optimizer, optimizer.own_state(), [g["lr"] for g in optimizer.param_groups])
        try:
            optimizer.load_state_dict(bad)
        except ValueError as error:
            assert "expected " in str(error), f"not the uniform error but {error}"
        else:
            raise AssertionError("a state of another optimizer was taken")
        after = snapshot(optimizer.base_optimizer, optimizer.own_state(), [g["lr"] for g in optimizer.param_groups])
        same_bits(before, after, "a state that was refused")
        steps(optimizer, closure, 1)


def check_one_trace(member: Member) -> None:
    """A step leaves in buffers and random numbers what one pass leaves, and both passes draw the same."""
    for place in member.places():
        model, forward = layered()
        twin, once = layered()
        optimizer = member.over(place, trained(model))
        seed_torch(7)
        optimizer.step(Closure(forward, trained(model)))  # type: ignore[arg-type]
        here = torch.rand(3)
        seed_torch(7)
        once()
        assert torch.equal(here, torch.rand(3)), "random numbers go on as after several passes"
        same_bits(snapshot(list(twin.buffers())), snapshot(list(model.buffers())), "buffers")
        assert int(model.body[1].num_batches_tracked) == 1, "batch norm"  # type: ignore[arg-type]
        assert all(torch.equal(model.masks[0], mask) for mask in model.masks), "a second pass drew other numbers"


def check_statistics(member: Member) -> None:
    """Running statistics of a batch (1, 3) with momentum 0.1: a mean of 0.2, one batch; also between two steps."""
    for place in member.places():
        for by_hand in (False, True) if member.two_passes else (False,):
            seed_torch(0)
            model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))
            x = torch.tensor([[1.0], [3.0]])
            optimizer: Any = member.over(place, trained(model))
            closure = Closure(lambda model=model, x=x: model(x).square().mean(), trained(model))
            if by_hand:
                closure()
                optimizer.first_step(zero_grad=True)
                closure()
                optimizer.second_step(zero_grad=True)
            else:
                optimizer.step(closure)
            norm: Any = model[0]
            assert abs(float(norm.running_mean) - 0.2) < 1e-6, f"a running mean of {float(norm.running_mean):.3g}"
            assert int(norm.num_batches_tracked) == 1, f"{int(norm.num_batches_tracked)} batches"


def check_overflow(member: Member) -> None:
    """Where two passes are taken, infinite gradients in either change nothing: weights, state, buffers."""
    if not member.two_passes:
        return
    for place in member.places():
        for run in (1, 2):
            model, forward = layered()
            optimizer: Any = member.over(place, trained(model))
            steps(optimizer, Closure(forward, trained(model)), 2)
            before, skipped = snapshot(model, optimizer.base_optimizer), optimizer.skipped
            optimizer.step(Closure(forward, trained(model), broken=run))
            same_bits(before, snapshot(model, optimizer.base_optimizer), f"infinite gradients in pass {run}")
            assert optimizer.skipped == skipped + 1, "it is not counted"
            steps(optimizer, Closure(forward, trained(model)), 1)


def check_half_way(member: Member) -> None:
    """``second_step`` without ``first_step`` is refused; a pass that was left half-way is undone by the next."""
    if not member.two_passes:
        return
    for place in member.places():
        model, closure, optimizer = copied(member, place)
        try:
            optimizer.second_step()
        except ValueError as error:
            assert "second_step: expected " in str(error), f"not the uniform error but {error}"
        else:
            raise AssertionError("second_step without first_step was not refused")
        closure()
        before = snapshot(model)
        optimizer.first_step()
        moved = snapshot(model)
        assert any(not torch.equal(a, b) for a, b in zip(before, moved)), "first_step moves nothing"
        optimizer.first_step()
        same_bits(moved, snapshot(model), "first_step again")
        optimizer.second_step()


OWN: tuple[Callable[[Member], None], ...] = (
    check_base, check_shared_groups, check_base_state, check_bad_state, check_scaled_closure, check_one_trace,
    check_statistics,
    check_overflow, check_half_way,
)  # fmt: skip


def wrapper_checks(
    cls: type[Optimizer], builders: Sequence[Builder] | None = None, exempt: dict[str, str] | None = None
) -> Bound:
    """``(name, check)`` for every check that ``cls`` is not exempt from: those of an optimizer, and a wrapper's own.

    Args:
        cls: a class of wrapper.
        builders: each builds one of a setting over parameters or groups; by default the class's own.
        exempt: names of checks that don't apply, each with its reason; by default the class's own.
    """
    return bound((*COMMON, *OWN), member_of(cls, builders, exempt))


def check_wrapper(
    cls: type[Optimizer], builders: Sequence[Builder] | None = None, exempt: dict[str, str] | None = None
) -> None:
    """Run the whole suite on a class.

    Raises:
        AssertionError: the first promise that the class does not keep.
    """
    run_all(wrapper_checks(cls, builders, exempt), cls)
