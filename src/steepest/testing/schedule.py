"""Conformance of a schedule: rates that depend on the step alone, whoever builds it, saves it or asks it when."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from ..core.schedule import Schedule
from ._common import refused
from ._constructor import check_keywords, check_numpy, evaluated, given_arguments
from ._suite import bound, run_all

RATES = (0.4, 0.1)
"""Of two groups: their ratio of 4 is exact in binary numbers, whatever both are multiplied with."""
State = list[tuple[float, float]]


def driven(kind: type[Optimizer] = torch.optim.SGD, **settings: Any) -> Optimizer:
    """A fresh optimizer of two groups with their own rates."""
    if kind is torch.optim.SGD:
        settings = {"momentum": 0.9, **settings}
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in RATES]
    return kind([{"params": [w], "lr": rate} for w, rate in zip(weights, RATES)], **settings)


def state_of(optimizer: Optimizer) -> State:
    """The rate and the momentum of each group."""
    groups = optimizer.param_groups
    return [(float(g["lr"]), float(g["betas"][0] if "betas" in g else g.get("momentum", 0.0))) for g in groups]


def go(schedule: Schedule, steps: int) -> list[State]:
    """The state at the present step and after each of so many more."""
    states = [state_of(schedule.optimizer)]
    for _ in range(steps):
        schedule.optimizer.step()
        schedule.step()
        states.append(state_of(schedule.optimizer))
    return states


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """What ``torch.load`` of tensors and plain values alone gives back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def check_declaration(cls: type[Schedule]) -> None:
    """A name, a docstring with an example, samples."""
    assert cls.name.isidentifier() and cls.name == cls.name.lower(), "name: snake_case"
    assert cls.__doc__ and "Example" in cls.__doc__, "docstring with an example"
    assert cls.samples(), "samples"


def check_pure(cls: type[Schedule]) -> None:
    """Rebuilt at any step it gives the uninterrupted list; asked out of order, the same shares."""
    for steps, given in cls.samples():
        whole = go(cls(driven(), **given), steps + 3)
        for step, wanted in enumerate(whole):
            again = cls(driven(), **given, last_epoch=step - 1)
            assert state_of(again.optimizer) == wanted, f"rebuilt at step {step}: {state_of(again.optimizer)}, {wanted}"
        schedule = cls(driven(), **given)
        shares = [schedule.factor(step) for step in range(steps + 3)]
        for step in random.Random(0).sample(range(steps + 3), steps + 3):
            assert schedule.factor(step) == shares[step], f"factor({step}) depends on what was asked before"


def check_rate_before(cls: type[Schedule]) -> None:
    """The rate before is not read: who overwrites it has changed one step."""
    for steps, given in cls.samples():
        whole = go(cls(driven(), **given), steps)
        schedule = cls(driven(), **given)
        go(schedule, steps // 2)
        for group in schedule.optimizer.param_groups:
            group["lr"] = 123.0
        assert go(schedule, steps - steps // 2)[1:] == whole[steps // 2 + 1 :], "it multiplies the rate before"


def check_resume(cls: type[Schedule]) -> None:
    """Saved and loaded with the optimizer it goes on; building it on a loaded optimizer changes no rate."""
    for steps, given in cls.samples():
        schedule = cls(driven(), **given)
        whole = go(schedule, 0)
        saved = []
        for _ in range(steps + 1):
            saved.append((through_a_file(schedule.optimizer.state_dict()), through_a_file(schedule.state_dict())))
            whole += go(schedule, 1)[1:]
        for step in (0, 1, steps // 3, steps // 2, steps - 1, steps):
            of_optimizer, of_schedule = saved[step]
            optimizer = driven()
            optimizer.load_state_dict(of_optimizer)
            again = cls(optimizer, **given)
            assert state_of(optimizer) == whole[step], f"building it at step {step} has reset the loaded optimizer"
            again.load_state_dict(of_schedule)
            assert go(again, steps + 1 - step) == whole[step:], f"loaded at step {step}, other rates"
            late = cls(driven(), **given)
            late.load_state_dict(of_schedule)
            assert state_of(late.optimizer) == whole[step], f"loaded at step {step}, the rates are those of the start"


def check_ratios(cls: type[Schedule]) -> None:
    """Groups keep the ratio of their rates at every step; their own rates stand in ``initial_lr``; new groups join."""
    for steps, given in cls.samples():
        schedule = cls(driven(), **given)
        first, second = (group["initial_lr"] for group in schedule.optimizer.param_groups)
        assert first == 4 * second, f"own rates {first}, {second}"
        for states in go(schedule, steps):
            assert states[0][0] == 4 * states[1][0], f"rates {states[0][0]}, {states[1][0]}"
        schedule.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": first})
        rates = [state[0] for state in go(schedule, 1)[-1]]
        assert rates[2] == rates[0], f"a group that came later has {rates[2]}, not {rates[0]}"


def check_bounds(cls: type[Schedule]) -> None:
    """Every share lies within the bounds that it states, long after the end too."""
    for steps, given in cls.samples():
        schedule = cls(driven(), **given)
        low, high = schedule.bounds
        assert 0.0 <= low <= high < math.inf and high > 0.0, f"bounds {low}, {high}"
        for step in (*range(2 * steps), 10 * steps, 10**4):
            assert low <= schedule.factor(step) <= high, f"step {step}: {schedule.factor(step)} in [{low}, {high}]"


def check_lengths(cls: type[Schedule]) -> None:
    """A run of any length has finite rates, some above 0; no run has fewer than one step."""
    for steps in (*range(1, 13), 100, 997):
        schedule = cls.spanning(driven(), steps)
        shares = [schedule.factor(step) for step in range(steps + 3)]
        assert all(0.0 <= share < math.inf for share in shares), f"{steps} steps: {shares[:20]}"
        assert max(shares[:steps]) > 0.0, f"{steps} steps, all at rate 0"
    for wrong in (0, -1, 1.5, True, "10", None):
        refused(f"{wrong!r} steps", cls.spanning, driven(), wrong)


def check_momentum(cls: type[Schedule]) -> None:
    """Momentum is cycled where there is one, as Adam's first beta too, or is left alone."""
    for steps, given in cls.samples():
        plain, adam = driven(), driven(torch.optim.Adam, betas=(0.9, 0.97))
        schedule = cls(plain, **given)
        if schedule.momentum(0) is None:
            assert {m for states in go(schedule, steps) for _, m in states} == {0.9}, "momentum was changed"
            continue
        values = [states[0][1] for states in go(schedule, steps)]
        assert values == [schedule.momentum(step) for step in range(steps + 1)], f"momentum {values}"
        assert [states[0][1] for states in go(cls(adam, **given), steps)] == values, "Adam's first beta"
        assert all(group["betas"][1] == 0.97 for group in adam.param_groups), "Adam's second beta was changed"
        refused("an optimizer without momentum", cls, driven(torch.optim.Adagrad), **given)


def check_tensor_rate(cls: type[Schedule]) -> None:
    """A rate that is a tensor stays that tensor, as a captured graph needs it."""
    for steps, given in cls.samples():
        rate = torch.tensor(0.5, dtype=torch.float64)
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=rate, momentum=0.9)
        schedule = cls(optimizer, **given)
        for step in range(min(steps, 10)):
            (group,) = optimizer.param_groups
            assert group["lr"] is rate, "another tensor"
            wanted = float(group["initial_lr"]) * schedule.factor(step)
            assert math.isclose(float(rate), wanted, rel_tol=1e-12), f"step {step}: {float(rate)}, {wanted}"
            go(schedule, 1)


def check_bad_input(cls: type[Schedule]) -> None:
    """What is no optimizer, and what is no step, is refused."""
    for _, given in cls.samples():
        refused("parameters for an optimizer", cls, [torch.ones(2)], **given)
        refused("last_epoch -2", lambda given=given: cls(driven(), **given, last_epoch=-2))
        refused("last_epoch 1.5", lambda given=given: cls(driven(), **(given | {"last_epoch": 1.5})))
        schedule = cls(driven(), **given)
        three = driven()
        three.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.1})
        refused("the state of two groups for three", cls(three, **given).load_state_dict, schedule.state_dict())


def _make(cls: type[Schedule]) -> None:
    for _, given in cls.samples():
        cls(driven(), **given)


def check_constructor(cls: type[Schedule]) -> None:
    """Numbers of numpy, misspelt keywords, a ``repr`` that builds the same again."""
    check_numpy(cls, lambda: _make(cls))  # type: ignore[arg-type]
    check_keywords(cls, lambda: _make(cls))  # type: ignore[arg-type]
    for given in given_arguments(cls, lambda: _make(cls)):  # type: ignore[arg-type]
        own = {name: value for name, value in given.items() if name != "optimizer"}
        schedule = cls(driven(), **own)
        text = schedule.extra_repr()
        if "<" in text or "..." in text:
            continue
        again = evaluated(cls, text, driven())  # type: ignore[arg-type]
        assert repr(again) == repr(schedule) and go(again, 5) == go(schedule, 5), f"{text} builds another"


CHECKS: tuple[Callable[[type[Schedule]], None], ...] = (
    check_declaration, check_pure, check_rate_before, check_resume, check_ratios, check_bounds, check_lengths,
    check_momentum, check_tensor_rate, check_bad_input, check_constructor,
)  # fmt: skip


def schedule_checks(cls: type[Schedule]) -> list[tuple[str, Callable[[], None]]]:
    """``(name, check)`` for every check that ``cls`` is not exempt from."""
    return bound(CHECKS, cls)


def check_schedule(cls: type[Schedule]) -> None:
    """Run the whole suite on a class.

    Raises:
        AssertionError: the first promise that the class does not keep.
    """
    run_all(schedule_checks(cls), cls)
