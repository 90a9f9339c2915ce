"""Every member of the catalogue keeps the contract of its kind."""

from __future__ import annotations

import importlib
import inspect

import pytest
import torch

from steepest.catalogue import systems, there
from steepest.comparison.design.objectives import known_objectives
from steepest.core.aggregator import Aggregator
from steepest.core.balancer import Balancer
from steepest.core.calibrator import Calibrator
from steepest.core.list_loss import ListLoss
from steepest.core.loss import Loss
from steepest.core.method import Method
from steepest.core.objective import Objective
from steepest.core.pair_loss import PairLoss
from steepest.core.policy_loss import PolicyLoss
from steepest.core.preference import LogProbabilityLoss
from steepest.core.probe import Probe
from steepest.core.sampler import EpochSampler
from steepest.core.schedule import Schedule
from steepest.core.token_loss import TokenLoss
from steepest.core.value_loss import ValueLoss
from steepest.core.wrapper import Wrapper
from steepest.testing import (
    aggregator_checks,
    balancer_checks,
    calibrator_checks,
    list_loss_checks,
    loss_checks,
    method_checks,
    objective,
    objective_checks,
    optimizer_checks,
    pair_loss_checks,
    policy_loss_checks,
    preference_checks,
    probe,
    probe_checks,
    sampler_checks,
    schedule_checks,
    token_loss_checks,
    value_loss_checks,
    wrapper_checks,
)
from steepest.watch.vital_signs import DEFAULT

CLASSES = {name: cls for name, (cls, _) in known_objectives().items()}
SIX = ["cross_entropy", "squentropy", "comp_sum", "focal", "squared_error", "huber"]
SUITES = {  # of two that a class belongs to, the later
    Loss: loss_checks,
    TokenLoss: token_loss_checks,
    PolicyLoss: policy_loss_checks,
    ValueLoss: value_loss_checks,
    Calibrator: calibrator_checks,
    Method: method_checks,
    Aggregator: aggregator_checks,
    Balancer: balancer_checks,
    Schedule: schedule_checks,
    EpochSampler: sampler_checks,
    Probe: probe_checks,
}
TORCH = {
    torch.optim.SGD: [
        lambda params: torch.optim.SGD(params, lr=0.01),
        lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.1),
    ],
    torch.optim.AdamW: [lambda params: torch.optim.AdamW(params, lr=0.02, eps=1e-6)],
}
"""Optimizers that the suite must pass as they are."""


def members(contract):
    """The classes under a contract among the public names of what is there, in order of the catalogue."""
    found = {}
    for row in systems():
        if there(row):
            module = importlib.import_module(f"steepest.{row.module}")
            own = [getattr(module, name, None) for name in row.names]
            classes = [c for c in own if inspect.isclass(c) and issubclass(c, contract)]
            found |= {c.name: c for c in classes if not issubclass(c, Objective)}
    return found


def steppers():
    """Optimizers and wrappers, which need no base class of ours: by the kind of their row."""
    found = {}
    for row in systems():
        if row.kind in ("optimizer", "wrapper") and there(row):
            module = importlib.import_module(f"steepest.{row.module}")
            own = [getattr(module, name) for name in row.names]
            classes = [c for c in own if inspect.isclass(c) and issubclass(c, torch.optim.Optimizer)]
            found |= {c.name: (wrapper_checks if issubclass(c, Wrapper) else optimizer_checks)(c) for c in classes}
    return found


OTHERS = {name: suite(cls) for contract, suite in SUITES.items() for name, cls in members(contract).items()}
OTHERS |= {cls.name: probe_checks(cls) for cls in DEFAULT}
for name, cls in members(LogProbabilityLoss).items():
    OTHERS[name] += preference_checks(cls)
STEPPERS = steppers()
CLASSES |= {  # objectives of other rooms than losses
    cls.name: cls
    for row in systems()
    if row.kind == "objective" and row.room.partition(".")[0] != "losses" and there(row)
    for name in row.names
    if inspect.isclass(cls := getattr(importlib.import_module(f"steepest.{row.module}"), name))
    and issubclass(cls, Objective)
}
LOSSES = {name: cls for name, cls in members(Loss).items() if "shapes" not in cls.exempt}
DEAR = ("compile", "shapes", "minimum", "ranks")
"""Checks whose time is that of tracing, of many steps, of processes: among the slow tests, of six losses here."""


def run(checks):
    """All checks of a member, each whatever the others find."""
    broken = []
    for title, check in checks:
        torch.manual_seed(0)
        try:
            check()
        except Exception as error:
            error.add_note(f"the check {title!r}")
            broken.append(error)
    if broken:
        raise ExceptionGroup("promises that are not kept", broken)


@pytest.fixture(scope="session", autouse=True)
def _tracing_has_begun():
    """What torch loads for it is no member's time."""
    torch.compile(torch.sin, backend="aot_eager")(torch.ones(2, requires_grad=True))
    torch.func.vmap(torch.func.grad(torch.sin))(torch.ones(2))
    torch.optim.SGD([torch.ones(2, requires_grad=True)], lr=0.1).step()


def test_the_catalogue_has_objectives():
    assert set(SIX) <= set(CLASSES)


def test_the_catalogue_has_penalties_and_methods():
    assert "orthogonal_projection" in members(Loss)
    assert "smooth_adversarial_comp_sum" in members(Method)


def test_the_catalogue_has_wrappers():
    assert {"perp_grad", "sam"} <= set(STEPPERS)
    assert "saf" in CLASSES, "an objective of another room than losses"


OF_OBJECTIVES = {ListLoss: list_loss_checks, PairLoss: pair_loss_checks}


def checks_of(name):
    """The suite of an objective by its word: lists and pairs have their own."""
    cls = CLASSES[name]
    return next((suite for kind, suite in OF_OBJECTIVES.items() if issubclass(cls, kind)), objective_checks)(cls)


def dear(checks):
    return [(title, check) for title, check in checks if title in DEAR]


def cheap(checks):
    return [(title, check) for title, check in checks if title not in DEAR]


@pytest.mark.parametrize("name", CLASSES)
def test_contract(name):
    run(cheap(checks_of(name)))


@pytest.mark.parametrize("name", OTHERS)
def test_contract_of_other_kinds(name):
    run(cheap(OTHERS[name]))


@pytest.mark.parametrize("name", STEPPERS)
def test_contract_of_steps(name):
    run(cheap(STEPPERS[name]))


@pytest.mark.parametrize("cls", TORCH)
def test_optimizers_of_torch_keep_the_contract(cls):
    exempt = {"declaration": "not ours", "ranks": "functions of a test cannot be sent to another process"}
    run(optimizer_checks(cls, TORCH[cls], exempt))


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPPERS)
def test_steps_of_compiled_models_and_ranks(name):
    run(dear(STEPPERS[name]))


@pytest.mark.slow
def test_probes_on_two_ranks():
    classes = [*members(Probe).values(), *DEFAULT]
    probe.check_on_ranks([cls for cls in classes if "ranks" not in cls.exempt])


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CLASSES, *LOSSES])
def test_every_instance_is_traced(name):
    run(dear(checks_of(name) if name in CLASSES else OTHERS[name]))


@pytest.mark.parametrize("name", SIX)
def test_one_instance_is_traced(name):
    for title, check in (("compile", objective.check_compile), ("shapes", objective.check_shapes)):
        if title not in CLASSES[name].exempt:
            check(CLASSES[name], first_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cross_entropy", "comp_sum", "huber"])
def test_inductor(name):
    objective.check_compile(CLASSES[name], backend="inductor")
