"""What each objective gets to try."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import qmc

from steepest.comparison.design.objectives import known_objectives
from steepest.comparison.design.trials import RATES, RATES_OF, ROLES, seed_of, trials
from steepest.comparison.design.twins import is_twin
from steepest.core.objective import Objective
from steepest.core.search import Choice, Float, Int
from steepest.losses import CompSumLoss, FocalLoss, LDRLoss


class Searched(Objective):
    name = "searched"
    tasks = ("binary",)
    search = {"tau": Float(0.5, 8.0, log=True), "k": Int(1, 5), "form": Choice(("a", "b"))}


class Bare(Objective):
    name = "bare"
    tasks = ("binary",)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_up_to_three_trials_are_the_defaults_at_the_first_learning_rates(count: int) -> None:
    found = trials(Searched, count, 0)
    assert [t.lr for t in found] == [1e-3, 3e-3, 3e-4][:count]
    assert all(t.hyper == {} and t.weight_decay == 1e-4 for t in found)


@pytest.mark.parametrize("count", [4, 5, 8, 20])
def test_further_trials_are_a_sobol_design_inside_the_ranges(count: int) -> None:
    found = trials(Searched, count, 3)
    assert len(found) == count
    assert [t.lr for t in found[:3]] == list(RATES.first)
    for t in found[3:]:
        assert 1e-4 <= t.lr <= 1e-2
        assert 1e-6 <= t.weight_decay <= 1e-1
        assert 0.5 <= t.hyper["tau"] <= 8.0
        assert t.hyper["k"] in range(1, 6)
        assert t.hyper["form"] in ("a", "b")


def test_the_design_is_scrambled_sobol_by_scipy() -> None:
    engine = qmc.Sobol(2, rng=np.random.default_rng([7, ROLES.index("trials")]))
    points = engine.random(8)[:5]
    rates = 10 ** (-4 + 2 * points[:, 0])
    decays = 10 ** (-6 + 5 * points[:, 1])
    found = trials(Bare, 8, 7)[3:]
    assert [t.lr for t in found] == pytest.approx(rates.tolist())
    assert [t.weight_decay for t in found] == pytest.approx(decays.tolist())


def test_a_sobol_design_fills_the_learning_rates_evenly() -> None:
    rates = np.log10([t.lr for t in trials(Bare, 3 + 16, 0)[3:]])
    counts, _ = np.histogram(rates, bins=4, range=(-4, -2))
    assert counts.tolist() == [4, 4, 4, 4]


def test_a_second_call_gives_the_same_and_another_seed_another_design() -> None:
    assert trials(Searched, 9, 1) == trials(Searched, 9, 1)
    assert trials(Searched, 9, 1)[3:] != trials(Searched, 9, 2)[3:]
    assert trials(Searched, 9, 1)[:3] == trials(Searched, 9, 2)[:3]


def test_objectives_share_the_optimizer_part_of_the_first_point() -> None:
    """Same count and same three learning rates for all: none gets more tries than another."""
    assert len(trials(Bare, 11, 0)) == len(trials(Searched, 11, 0)) == 11


def test_seeds_differ_by_repeat_fold_and_role() -> None:
    keys = [(s, r, f, role) for s in (0, 1) for r in (0, 1) for f in (0, 1) for role in ROLES]
    found = {seed_of(*key) for key in keys}
    assert len(found) == len(keys)
    assert all(0 <= seed < 2**63 for seed in found)


def test_a_design_of_fewer_trials_is_the_start_of_one_of_more() -> None:
    assert trials(Searched, 20, 4)[:9] == trials(Searched, 9, 4)
    assert trials(CompSumLoss, 20, 4)[:2] == trials(CompSumLoss, 2, 4)


def test_twins_of_the_baseline_are_known_by_name() -> None:
    """At their defaults these are the baseline to a factor; a new member that joins them is looked at here."""
    twins = [name for name, (cls, _) in known_objectives().items() if is_twin(cls)]
    assert twins == ["comp_sum", "ldr"]


@pytest.mark.parametrize("objective", [CompSumLoss, LDRLoss])
def test_no_trial_of_a_twin_is_the_baseline(objective: type[Objective]) -> None:
    z = torch.tensor([[1.0, -0.5, 0.25], [0.2, 0.1, -0.7]], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([2, 0])
    (plain,) = torch.autograd.grad(torch.nn.functional.cross_entropy(z, y), z)
    found = trials(objective, 3, 0)
    assert [t.lr for t in found] == list(RATES.first)
    assert all(t.weight_decay == 1e-4 and set(t.hyper) == set(objective.search) for t in found)
    for trial in found:
        (own,) = torch.autograd.grad(objective(**trial.hyper)(z, y), z)
        ratio = (own * plain).sum() / plain.square().sum()
        assert (own - ratio * plain).abs().max() > 1e-3 * own.abs().max()


class LateTwin(Objective):
    """Cross-entropy until the last epoch."""

    name = "late_twin"
    tasks = ("multiclass",)

    def __init__(self) -> None:
        super().__init__()
        self.power = 1.0

    def start_epoch(self, epoch: int, epochs: int) -> None:
        self.power = 2.0 if epoch == epochs else 1.0

    def forward(self, outputs: torch.Tensor, target: torch.Tensor, **_: object) -> torch.Tensor:
        return (torch.nn.functional.cross_entropy(outputs, target, reduction="none") ** self.power).mean()


class Scaled(Objective):
    """Cross-entropy times 7, less 3."""

    name = "scaled"
    tasks = ("multiclass",)

    def forward(self, outputs: torch.Tensor, target: torch.Tensor, **_: object) -> torch.Tensor:
        return 7 * torch.nn.functional.cross_entropy(outputs, target) - 3


def test_a_twin_is_proportional_in_every_epoch() -> None:
    assert is_twin(Scaled)
    assert not is_twin(LateTwin)
    assert not is_twin(FocalLoss)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_a_network_has_its_own_rates(count: int) -> None:
    drawn = trials(Searched, count, 3, "tabm")
    own = RATES_OF["tabm"]
    assert [t.lr for t in drawn[:3]] == list(own.first)[:count]
    assert own.first != RATES.first
    assert all(5e-4 <= t.lr <= 2e-2 for t in drawn[3:])
    assert [t.lr for t in trials(Searched, count, 3, "residual")] == [t.lr for t in trials(Searched, count, 3)]
