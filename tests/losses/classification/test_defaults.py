"""Whoever takes an objective as it comes learns from its docstring where that is cross-entropy."""

from __future__ import annotations

import re

import pytest
import torch
from torch.nn.functional import cross_entropy

from steepest import losses
from steepest.comparison.design.objectives import known_objectives
from steepest.core.objective import TaskInfo

INFO = TaskInfo("multiclass", 24, 5, (8, 6, 4, 4, 2), feature_dim=6, epochs=10, steps_per_epoch=3, seed=1)
ROUNDING = 64 * torch.finfo(torch.float64).eps


def departure(cls):
    """How far losses of rows are from the nearest a CE + b, over their spread; None where there are no such rows."""
    if cls.unit != "sample" or "multiclass" not in cls.tasks or set(cls.needs) - {"index", "features"}:
        return None
    generator = torch.Generator().manual_seed(0)
    objective = cls.from_task(INFO)
    objective.reduction = "none"
    outputs = 2 * torch.randn(20, 5, generator=generator, dtype=torch.float64)
    outputs = outputs.tanh() if cls.domain == "cosine" else -outputs.abs() if "log" in cls.domain else outputs
    target = torch.arange(20) % 5
    have = {"index": torch.arange(20), "features": torch.randn(20, 6, generator=generator, dtype=torch.float64)}
    with torch.no_grad():
        found = objective(outputs, target, **{name: have[name] for name in cls.needs}).double()
    wanted = cross_entropy(outputs, target, reduction="none")
    basis = torch.stack([wanted, torch.ones_like(wanted)], 1)
    rest = found - basis @ torch.linalg.lstsq(basis, found.unsqueeze(1)).solution.squeeze(1)
    return float(rest.abs().max() / found.std())


DEPARTURES = {name: departure(cls) for name, (cls, _) in known_objectives().items()}
ALIKE = [name for name, size in DEPARTURES.items() if size is not None and size < ROUNDING]


def test_which_are_cross_entropy():
    assert ALIKE == ["comp_sum", "cross_entropy", "deferred_reweighting", "ldr", "ps_kd"]
    assert sum(size is not None for size in DEPARTURES.values()) > 15


def says_so(thing):
    sentences = re.split(r"(?<=[.:])\s", " ".join(thing.__doc__.split()))
    return any("cross-entropy" in s and re.search("default|the first epoch", s) for s in sentences)


@pytest.mark.parametrize("name", [name for name in ALIKE if name != "cross_entropy"])
def test_the_docstring_says_so(name):
    cls, _ = known_objectives()[name]
    assert says_so(cls), cls


@pytest.mark.parametrize("function", [losses.comp_sum_loss, losses.ldr_kl_loss])
def test_the_docstring_of_the_function_says_so(function):
    assert says_so(function)
