"""Every objective of the catalogue keeps the contract of an objective."""

from __future__ import annotations

import pytest

from steepest.comparison.objectives import known_objectives
from steepest.testing import objective_checks
from steepest.testing.objective import check_compile

CLASSES = {name: cls for name, (cls, _) in known_objectives().items()}
# one instance each is compiled in seconds; all of them with the slow tests
EVERY = [
    pytest.param(check, id=f"{name}-{title}", marks=[pytest.mark.slow] if title == "compile" else [])
    for name, cls in CLASSES.items()
    for title, check in objective_checks(cls)
]
SIX = ["cross_entropy", "squentropy", "comp_sum", "focal", "squared_error", "huber"]


def test_the_catalogue_has_objectives():
    assert set(SIX) <= set(CLASSES)


@pytest.mark.parametrize("check", EVERY)
def test_contract(check):
    check()


@pytest.mark.parametrize("name", [name for name, cls in CLASSES.items() if "compile" not in cls.exempt])
def test_one_instance_compiles(name):
    check_compile(CLASSES[name], first_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIX)
def test_inductor(name):
    check_compile(CLASSES[name], backend="inductor")
