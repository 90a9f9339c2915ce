"""DiscoPOP: its values and limits, its shape, and the search for preference losses."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch.nn.functional import softplus

from steepest.losses.policy.discopop import (
    DiscoPOPLoss,
    Discovery,
    ObjectiveCandidate,
    RandomExpressions,
    discopop_loss,
    discover_objective,
    failed_test,
    preference_losses,
)

LEAVES = {
    "logistic": lambda x: softplus(-x), "hinge": lambda x: torch.relu(1 - x),
    "logistic^2": lambda x: softplus(-x).square(), "exp(-x)": lambda x: torch.exp(-x),
    "sigmoid(-x)": lambda x: torch.sigmoid(-x), "(x - 1)^2": lambda x: (x - 1).square(),
}  # fmt: skip
LEAF = "(" + "|".join(map(re.escape, LEAVES)) + ")"
FORMS = {
    rf"\([abc] \+ ([\d.]+) {LEAF}\)": lambda x, s, leaf: -x + float(s) * LEAVES[leaf](x),
    rf"\([abc] {LEAF}\)": lambda x, leaf: -x * LEAVES[leaf](x),
    r"[abc]\[([\d.]+) x\]": lambda x, s: -float(s) * x,
    rf"blend\([abc], {LEAF}; ([\d.]+) x\)": lambda x, leaf, s: (
        -x / (1 + torch.exp(float(s) * x)) + LEAVES[leaf](x) / (1 + torch.exp(-float(s) * x))
    ),
}


def at(x, tau=0.05, beta=0.05, dtype=torch.float64):
    """Losses of margins x, the log-probabilities being whatever gives them."""
    chosen = torch.as_tensor(x, dtype=dtype) / beta
    zero = torch.zeros_like(chosen)
    return discopop_loss(chosen - 3, zero - 4, zero - 3, zero - 4, beta, tau, reduction="none")


def naive(x, tau):
    g = 1 / (1 + math.exp(-x / tau))
    return (1 - g) * math.log1p(math.exp(-x)) + g * math.exp(-x)


X = (-1.0, -0.05, 0.0, 0.05, 0.1, 1.0)


@pytest.mark.holds("discopop", 1)
def test_card_values():
    wanted = (1.313262, 0.807966, 0.846574, 0.875181, 0.873792, 0.367879)
    assert at(X).tolist() == pytest.approx(wanted, abs=5e-7)
    assert at(X).tolist() == pytest.approx([naive(x, 0.05) for x in X], rel=1e-12)
    assert at(X, 0.3, 0.7).tolist() == pytest.approx([naive(x, 0.3) for x in X], rel=1e-12)
    zero = torch.zeros(6, dtype=torch.float64)
    x = torch.tensor(X, dtype=torch.float64)
    for loss, value in ((DiscoPOPLoss(), 0.05), (DiscoPOPLoss(0.7, 0.3, "sum"), 0.3)):
        mean = sum(naive(loss.beta * v, value) for v in X) / 6
        assert loss(x, zero, zero, zero).item() == pytest.approx(mean * (6 if loss.reduction == "sum" else 1))
    assert {"chosen_reward", "rejected_reward", "margin", "accuracy"} == set(loss.terms)
    assert loss.terms["chosen_reward"].item() == pytest.approx(0.7 * sum(X) / 6)


@pytest.mark.holds("discopop", 2)
@pytest.mark.parametrize("tau", [1e12, math.inf])
def test_a_wide_blend_is_the_average(tau):
    x = torch.tensor(X, dtype=torch.float64)
    assert torch.allclose(at(x, tau), (softplus(-x) + torch.exp(-x)) / 2, rtol=1e-11, atol=0)


@pytest.mark.holds("discopop", 3)
def test_a_narrow_blend_is_a_switch():
    below, above = torch.tensor([-3.0, -0.1, -0.01]).double(), torch.tensor([0.01, 0.1, 3.0]).double()
    assert torch.allclose(at(below, 1e-5), softplus(-below), rtol=1e-12, atol=0)
    assert torch.allclose(at(above, 1e-5), torch.exp(-above), rtol=1e-12, atol=0)


@pytest.mark.holds("discopop", 5)
def test_not_convex():
    low, high = 0.785924, at([0.3]).item()
    assert at([-0.1186]).item() == pytest.approx(low, abs=5e-7)
    assert at([0.0720]).item() == pytest.approx(0.878290, abs=5e-7)
    along = (0.072 + 0.1186) / (0.3 + 0.1186)
    assert at([0.072]).item() > (1 - along) * low + along * high
    x = torch.tensor([-0.1186, 0.0, 0.0720], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(at(x, beta=1.0).sum(), x)
    assert slope[0].item() == pytest.approx(0.0, abs=2e-3)
    assert slope[2].item() == pytest.approx(0.0, abs=2e-3)
    # between both, pairs at the start included, the loss pulls the chosen answer down: -3/4 + (1 - ln 2) / (4 tau)
    assert slope[1].item() == pytest.approx(-0.75 + (1 - math.log(2)) / 0.2, rel=1e-12)


@pytest.mark.holds("discopop", 6)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_margins_are_finite(dtype):
    x = torch.tensor([-1e4, -1e3, -100.0, -89.0, 0.0, 89.0, 1e3, 1e4], dtype=dtype, requires_grad=True)
    zero = torch.zeros_like(x)
    values = discopop_loss(x, zero, zero, zero, 1.0, reduction="none")
    (slope,) = torch.autograd.grad(values.sum(), x)
    assert values.isfinite().all()
    assert slope.isfinite().all()
    assert values[:4].tolist() == pytest.approx([1e4, 1e3, 100.0, 89.0])
    assert slope[:4].tolist() == [-1.0] * 4


def test_half_precision():
    """exp(-x) is inf in float16 from x = -12 on."""
    x = torch.tensor([-400.0, 3.0], dtype=torch.float16)
    zero = torch.zeros_like(x)
    values = discopop_loss(x, zero, zero, zero, reduction="none")
    assert values.dtype == torch.float32
    assert values[0].item() == pytest.approx(20.0, rel=1e-6)


@pytest.mark.holds("discopop", 7)
@pytest.mark.parametrize("tau", [0.0, -0.05, math.nan])
def test_refused(tau):
    with pytest.raises(ValueError, match="tau: expected a number > 0"):
        at(X, tau)
    with pytest.raises(ValueError, match="tau: expected a number > 0"):
        DiscoPOPLoss(tau=tau)


def test_refused_arguments():
    with pytest.raises(ValueError, match="beta: expected a number > 0"):
        DiscoPOPLoss(beta=0.0)
    with pytest.raises(ValueError, match="reduction: expected one of"):
        DiscoPOPLoss(reduction="median")
    with pytest.raises(ValueError, match="generations: expected an integer >= 0"):
        discover_objective(lambda losses: 0.0, generations=-1)
    with pytest.raises(TypeError, match="seed: expected an integer"):
        discover_objective(lambda losses: 0.0, seed=0.5)
    with pytest.raises(TypeError, match="proposer: expected a function that gives an ObjectiveCandidate"):
        discover_objective(lambda losses: 0.0, lambda archive, generator: torch.exp, 1)
    with pytest.raises(ValueError, match="depth: expected an integer >= 0"):
        RandomExpressions(-1)


def test_registry():
    assert {"sigmoid", "hinge", "ipo", "exponential", "kto_pair", "discopop"} <= set(preference_losses)
    rho, beta = torch.tensor([2.0, -1.0], dtype=torch.float64), 0.4
    x = beta * rho
    wanted = {
        "sigmoid": softplus(-x),
        "hinge": torch.relu(1 - x),
        "ipo": (rho - 1.25) ** 2,
        "exponential": torch.exp(-x),
        "kto_pair": 1 - torch.sigmoid(x),
        "discopop": torch.tensor([naive(v, 0.05) for v in x.tolist()], dtype=torch.float64),
    }
    for name, values in wanted.items():
        assert torch.allclose(preference_losses[name](rho, beta), values, rtol=1e-12, atol=0), name


def no_shape(x):
    return x.sum()


def not_finite(x):
    return torch.exp(-100 * x)


def no_slope(x):
    return torch.zeros_like(x) * x


def infinite_slope(x):
    return x.abs().sqrt()


def fails(x):
    raise RuntimeError("no such operation")


@pytest.mark.parametrize(
    ("losses", "failure"),
    [
        (no_shape, "another shape"),
        (not_finite, "a value that is not finite"),
        (no_slope, "a gradient of 0"),
        (infinite_slope, "a gradient that is not finite"),
        (fails, "RuntimeError: no such operation"),
    ],
)
def test_candidates_are_tested_before_training(losses, failure):
    assert failed_test(losses) == failure
    asked = []

    def evaluate(own):
        asked.append(own)
        return 1.0

    def propose(archive, generator):
        return ObjectiveCandidate("bad", losses)

    search = discover_objective(evaluate, propose, 2, start={"good": softplus})
    assert asked == [softplus]
    assert [c.failure for c in search.archive] == ["", failure, failure]
    assert search.archive[1].score == -math.inf
    assert search.best.text == "good"


def test_search_keeps_every_score_and_the_best():
    scores = iter([0.3, 0.2, 0.5, math.nan, 0.4])
    seen = []

    def propose(archive, generator):
        seen.append([c.score for c in archive])
        return ObjectiveCandidate(f"{len(archive)}", lambda x: -x)

    search = discover_objective(
        lambda losses: next(scores), propose, 3, start={"a": softplus, "b": lambda x: softplus(-x)}
    )
    assert [c.score for c in search.archive] == [0.3, 0.2, 0.5, -math.inf, 0.4]
    assert search.archive[3].failure == "a score of nan"
    assert seen == [[0.3, 0.2], [0.3, 0.2, 0.5], [0.3, 0.2, 0.5, -math.inf]]
    assert search.best_so_far == [0.3, 0.5, 0.5, 0.5]
    assert search.best.text == "2"
    assert isinstance(search, Discovery)
    assert search.started_from == 2


def test_search_starts_from_what_is_known_with_beta_1():
    values = []

    def evaluate(losses):
        values.append(losses(torch.zeros(1)).item())
        return 0.0

    search = discover_objective(evaluate, generations=0)
    assert [c.text for c in search.archive] == list(preference_losses)
    assert dict(zip(preference_losses, values)) == pytest.approx(
        {
            "sigmoid": math.log(2), "robust": math.log(2), "hinge": 1.0, "ipo": 0.25, "exponential": 1.0,
            "kto_pair": 0.5, "discopop": (1 + math.log(2)) / 2,
        }
    )  # fmt: skip


def test_random_expressions_are_what_they_say():
    """Their text, evaluated with the field's names, gives their values; a seed gives the same ones."""
    propose = RandomExpressions()
    leaf = RandomExpressions(0)
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    texts = set()
    for _ in range(40):
        candidate = leaf((), generator)
        texts.add(candidate.text)
        assert torch.equal(candidate.losses(x), LEAVES[candidate.text](x))
    assert texts == set(LEAVES)
    first = [propose((), torch.Generator().manual_seed(3)).text for _ in range(2)]
    assert first[0] == first[1]


@pytest.mark.parametrize("seed", range(4))
def test_proposals_change_the_best(seed):
    best = [ObjectiveCandidate(name, lambda x: -x, score) for name, score in (("a", 3.0), ("b", 2.0), ("c", 1.0))]
    worse = [ObjectiveCandidate("worse", lambda x: x, 0.0), ObjectiveCandidate("broken", torch.log, failure="x")]
    propose, generator = RandomExpressions(1), torch.Generator().manual_seed(seed)
    candidates = [propose([*worse, *best], generator) for _ in range(60)]
    texts = [candidate.text for candidate in candidates]
    assert not any("worse" in text or "broken" in text for text in texts)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    kinds = dict.fromkeys(FORMS, 0)
    for candidate in candidates:
        for form, value in FORMS.items():
            if parts := re.fullmatch(form, candidate.text):
                kinds[form] += 1
                assert torch.allclose(candidate.losses(x), value(x, *parts.groups()), rtol=1e-12)
    assert all(kinds.values())
    assert 15 <= sum(kinds.values()) <= 45


def test_a_search_inside_no_grad_tests_gradients_all_the_same():
    with torch.no_grad():
        search = discover_objective(lambda losses: 1.0, generations=2, start={"good": lambda x: softplus(-x)})
    assert search.archive[0].failure == ""
    assert search.best.score == 1.0
