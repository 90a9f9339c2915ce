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
from steepest.core.loss import Loss
from steepest.core.method import Method
from steepest.core.objective import Objective
from steepest.core.schedule import Schedule
from steepest.testing import (
    aggregator_checks,
    balancer_checks,
    calibrator_checks,
    loss_checks,
    method_checks,
    objective,
    objective_checks,
    schedule_checks,
)

CLASSES = {name: cls for name, (cls, _) in known_objectives().items()}
SIX = ["cross_entropy", "squentropy", "comp_sum", "focal", "squared_error", "huber"]
SUITES = {
    Loss: loss_checks,
    Calibrator: calibrator_checks,
    Method: method_checks,
    Aggregator: aggregator_checks,
    Balancer: balancer_checks,
    Schedule: schedule_checks,
}


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


OTHERS = {name: suite(cls) for contract, suite in SUITES.items() for name, cls in members(contract).items()}
LOSSES = {name: cls for name, cls in members(Loss).items() if "shapes" not in cls.exempt}
DEAR = ("compile", "shapes")
"""Checks whose time is that of tracing: of one instance of six members here, of every instance among the slow tests."""


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


def test_the_catalogue_has_objectives():
    assert set(SIX) <= set(CLASSES)


def test_the_catalogue_has_penalties_and_methods():
    assert "orthogonal_projection" in members(Loss)
    assert "smooth_adversarial_comp_sum" in members(Method)


def dear(checks):
    return [(title, check) for title, check in checks if title in DEAR]


def cheap(checks):
    return [(title, check) for title, check in checks if title not in DEAR]


@pytest.mark.parametrize("name", CLASSES)
def test_contract(name):
    run(cheap(objective_checks(CLASSES[name])))


@pytest.mark.parametrize("name", OTHERS)
def test_contract_of_other_kinds(name):
    run(cheap(OTHERS[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CLASSES, *LOSSES])
def test_every_instance_is_traced(name):
    run(dear(objective_checks(CLASSES[name]) if name in CLASSES else OTHERS[name]))


@pytest.mark.parametrize("name", SIX)
def test_one_instance_is_traced(name):
    for title, check in (("compile", objective.check_compile), ("shapes", objective.check_shapes)):
        if title not in CLASSES[name].exempt:
            check(CLASSES[name], first_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cross_entropy", "comp_sum", "huber"])
def test_inductor(name):
    objective.check_compile(CLASSES[name], backend="inductor")
