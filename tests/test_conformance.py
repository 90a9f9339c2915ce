"""Every member of the catalogue keeps the contract of its kind."""

from __future__ import annotations

import importlib
import inspect

import pytest
import torch

from steepest.catalogue import systems, there
from steepest.comparison.design.objectives import known_objectives
from steepest.core.calibrator import Calibrator
from steepest.core.loss import Loss
from steepest.core.method import Method
from steepest.core.objective import Objective
from steepest.testing import calibrator_checks, loss_checks, method_checks, objective_checks
from steepest.testing.objective import check_compile

CLASSES = {name: cls for name, (cls, _) in known_objectives().items()}
SIX = ["cross_entropy", "squentropy", "comp_sum", "focal", "squared_error", "huber"]
SUITES = {Loss: loss_checks, Calibrator: calibrator_checks, Method: method_checks}


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


OTHERS = [
    pytest.param(suite(cls), id=name) for contract, suite in SUITES.items() for name, cls in members(contract).items()
]


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


def test_the_catalogue_has_objectives():
    assert set(SIX) <= set(CLASSES)


def test_the_catalogue_has_penalties_and_methods():
    assert "orthogonal_projection" in members(Loss)
    assert "smooth_adversarial_comp_sum" in members(Method)


@pytest.mark.parametrize("name", CLASSES)
def test_contract(name):
    run((title, check) for title, check in objective_checks(CLASSES[name]) if title != "compile")


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_every_instance_compiles(name):
    run((title, check) for title, check in objective_checks(CLASSES[name]) if title == "compile")


@pytest.mark.parametrize("checks", OTHERS)
def test_contract_of_other_kinds(checks):
    run(checks)


@pytest.mark.parametrize("name", [name for name, cls in CLASSES.items() if "compile" not in cls.exempt])
def test_one_instance_compiles(name):
    check_compile(CLASSES[name], first_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIX)
def test_inductor(name):
    check_compile(CLASSES[name], backend="inductor")
