"""Gradient entanglement: reports against cases by hand and real steps, coefficients, the normalised step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from steepest.core.preference import PREFERENCE_FORMS, preference_loss
from steepest.losses.policy.gradient_entanglement import (
    entanglement_report,
    margin_loss_coefficients,
    pairwise_normalized_step,
)


class Linear(nn.Module):
    """Log-probabilities with given gradients, in two tensors of parameters."""

    def __init__(self, chosen, rejected):
        super().__init__()
        self.first = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.second = nn.Parameter(torch.tensor([-0.2], dtype=torch.float64))
        self.slopes = {"w": chosen, "l": rejected}

    def log_p(self, which):
        a, b = self.slopes[which]
        return a * self.first + b * self.second.sum()


def report_of(chosen, rejected, **options):
    return entanglement_report(Linear(chosen, rejected), lambda m: m.log_p("w"), lambda m: m.log_p("l"), **options)


@pytest.mark.holds("gradient-entanglement", 1)
def test_both_down():
    report = report_of([1.0, 0.5], [2.0, 0.5])
    assert report == {
        "gw2": 1.25,
        "gl2": 4.25,
        "inner": 2.25,
        "cos": pytest.approx(2.25 / math.sqrt(1.25 * 4.25), rel=1e-14),
        "predicted_dw": -1.0,
        "predicted_dl": -2.0,
        "regime": "both down",
    }
    up = report_of([2.0, 0.5], [1.0, 0.5])
    assert (up["predicted_dw"], up["predicted_dl"], up["regime"]) == (2.0, 1.0, "both up")


@pytest.mark.holds("gradient-entanglement", 2)
def test_healthy():
    report = report_of([1.0, 0.0], [0.3, 1.0])
    assert (report["predicted_dw"], report["predicted_dl"]) == pytest.approx((0.7, -0.79), rel=1e-14)
    assert report["regime"] == "healthy"
    # at the ends of the conditions: an inner product of the smaller squared norm, equal gradients, no gradient
    assert report_of([1.0, 0.0], [1.0, 1.0])["regime"] == "healthy"
    same = report_of([1.0, 2.0], [1.0, 2.0])
    assert (same["predicted_dw"], same["predicted_dl"], same["regime"]) == (0.0, 0.0, "healthy")
    assert math.isnan(report_of([0.0, 0.0], [1.0, 2.0])["cos"])


def test_coefficients_move_the_border():
    """With k = d_W / d_L, w rises where k |gw|^2 >= gw.gl."""
    for k, regime in ((1.79, "both down"), (1.81, "healthy"), (1.88, "healthy"), (1.89, "both up")):
        report = report_of([1.0, 0.5], [2.0, 0.5], coefficients=(0.5 * k, 0.5))
        assert report["regime"] == regime
        assert report["predicted_dw"] == pytest.approx(0.5 * (k * 1.25 - 2.25), rel=1e-12)
        assert report["predicted_dl"] == pytest.approx(0.5 * (k * 2.25 - 4.25), rel=1e-12)


class Tokens(nn.Module):
    """A recurrent language model of 7 symbols."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.symbols, self.core, self.head = nn.Embedding(7, 5), nn.GRU(5, 6, batch_first=True), nn.Linear(6, 7)
        self.unused = nn.Parameter(torch.zeros(2))
        self.double()

    def log_prob(self, text):
        states, _ = self.core(self.symbols(text[None, :-1]))
        return self.head(states)[0].log_softmax(-1).gather(-1, text[1:, None]).sum()


def descend(parameters, rate):
    """One step of plain gradient descent."""
    with torch.no_grad():
        for parameter in parameters:
            if parameter.grad is not None:
                parameter -= rate * parameter.grad


CHOSEN, REJECTED = torch.tensor([0, 3, 1, 4, 6, 2]), torch.tensor([0, 3, 1, 5, 6, 2])


@pytest.mark.holds("gradient-entanglement", 3)
@pytest.mark.parametrize("name", ["sigmoid", "ipo", "cpo"])
def test_predictions_match_a_small_step(name):
    """Plain SGD on the loss itself at a rate of 1e-5."""
    model = Tokens(0)
    pair = [model.log_prob(text).detach() for text in (CHOSEN, REJECTED)]
    refs = [value - shift for value, shift in zip(pair, (0.3, -0.4))] if PREFERENCE_FORMS[name].reference else []
    options = {"beta": 0.5}
    coefficients = margin_loss_coefficients(name, *pair, *refs, **options)
    report = entanglement_report(
        model,
        lambda m: m.log_prob(CHOSEN),
        lambda m: m.log_prob(REJECTED),
        coefficients=tuple(map(float, coefficients)),
    )
    policy = [model.log_prob(text)[None] for text in (CHOSEN, REJECTED)]
    preference_loss(*policy, *(r[None] for r in refs), loss_type=name, **options).losses.sum().backward()
    descend(model.parameters(), 1e-5)
    after = [model.log_prob(text).item() for text in (CHOSEN, REJECTED)]
    for key, new, old in zip(("predicted_dw", "predicted_dl"), after, pair):
        assert (new - old.item()) / (1e-5 * report[key]) == pytest.approx(1.0, abs=1e-3)


def test_a_report_leaves_no_trace():
    model = Tokens(1)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    whole = entanglement_report(model, lambda m: m.log_prob(CHOSEN), lambda m: m.log_prob(REJECTED))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["head.weight"]
    assert (model.head.weight.grad == 1).all()
    parts = [
        entanglement_report(model, lambda m: m.log_prob(CHOSEN), lambda m: m.log_prob(REJECTED), params=params)
        for params in (model.core.parameters(), [*model.head.parameters(), *model.symbols.parameters()])
    ]
    for key in ("gw2", "gl2", "inner"):
        assert whole[key] == pytest.approx(parts[0][key] + parts[1][key], rel=1e-12)
    model.head.requires_grad_(False)
    model.symbols.requires_grad_(False)
    frozen = entanglement_report(model, lambda m: m.log_prob(CHOSEN), lambda m: m.log_prob(REJECTED))
    assert frozen == pytest.approx(parts[0])


def sigma(x):
    return 1 / (1 + math.exp(-x))


W, L, RW, RL, BETA, LW, LL = -3.0, -4.5, -3.5, -4.2, 0.4, 3.0, 5.0
X = BETA * ((W - RW) - (L - RL))
FREE = BETA * (W - L)
PER_TOKEN = BETA * (W / LW - L / LL)
G = sigma(X / 0.05)
DISCO = -BETA * (
    -(1 - G) * sigma(-X) + G * (1 - G) / 0.05 * (math.exp(-X) - math.log1p(math.exp(-X))) - G * math.exp(-X)
)
# slopes of the publications' equations, by hand: -dL/dw and dL/dl
CLOSED = {
    "sigmoid": (BETA * sigma(-X), BETA * sigma(-X)),
    "hinge": (BETA, BETA),
    "ipo": (2 * (1 / (2 * BETA) - X / BETA),) * 2,
    "exponential": (BETA * math.exp(-X),) * 2,
    "kto_pair": (BETA * sigma(X) * sigma(-X),) * 2,
    "discopop": (DISCO, DISCO),
    "nca_pair": (
        BETA * (sigma(-BETA * (W - RW)) - 0.5 * sigma(BETA * (W - RW))),
        0.5 * BETA * sigma(BETA * (L - RL)),
    ),
    "bco_pair": (BETA * sigma(-BETA * (W - RW)), BETA * sigma(BETA * (L - RL))),
    "sppo_hard": (-2 * (W - RW - 0.5 / BETA), 2 * (L - RL + 0.5 / BETA)),
    "apo_zero": tuple(BETA * sigma(BETA * s) * sigma(-BETA * s) for s in (W - RW, L - RL)),
    "apo_down": (
        BETA * (sigma(X) * sigma(-X) - sigma(BETA * (W - RW)) * sigma(-BETA * (W - RW))),
        BETA * sigma(X) * sigma(-X),
    ),
    "cpo": (BETA * sigma(-FREE) + 0.7, BETA * sigma(-FREE)),
    "slic": (BETA + 0.7, BETA),
    "simpo": (BETA / LW * sigma(0.5 - PER_TOKEN), BETA / LL * sigma(0.5 - PER_TOKEN)),
    "sigmoid_norm": (
        BETA / LW * sigma(-BETA * ((W - RW) / LW - (L - RL) / LL)),
        BETA / LL * sigma(-BETA * ((W - RW) / LW - (L - RL) / LL)),
    ),
}


@pytest.mark.holds("gradient-entanglement", 4)
@pytest.mark.parametrize("name", CLOSED)
def test_coefficients_by_hand(name):
    form = PREFERENCE_FORMS[name]
    given = [torch.tensor(v, dtype=torch.float64) for v in ((W, L, RW, RL) if form.reference else (W, L))]
    options = {"nll_weight": 0.7} if "nll_weight" in form.options else {}
    if form.per_token:
        options = {"chosen_length": torch.tensor(LW), "rejected_length": torch.tensor(LL)}
    pair = margin_loss_coefficients(name, *given, beta=BETA, **options)
    assert [float(c) for c in pair] == pytest.approx(CLOSED[name], rel=1e-12)
    assert all(c.shape == () and not c.requires_grad for c in pair)


@pytest.mark.holds("gradient-entanglement", 4)
@pytest.mark.parametrize("name", sorted(set(PREFERENCE_FORMS) - {"hinge", "slic"}))
def test_coefficients_of_every_loss_by_differences(name):
    form = PREFERENCE_FORMS[name]
    given = [torch.tensor(v, dtype=torch.float64) for v in ([W, -1.3], [L, -2.5], [RW, -1.5], [RL, -2.0])]
    args = given if form.reference else given[:2]
    options = {"beta": BETA}
    options |= {"label_smoothing": 0.1} if "label_smoothing" in form.options else {}
    options |= {"kl": 0.3} if "kl" in form.options else {}
    if form.per_token:
        options |= {"chosen_length": torch.tensor([3, 2]), "rejected_length": torch.tensor([5, 2])}
    with torch.no_grad():
        pair = margin_loss_coefficients(name, *args, **options)
    for place, sign, coefficients in zip((0, 1), (-1, 1), pair):
        for entry in range(2):
            ends = []
            for step in (1e-6, -1e-6):
                moved = [a.clone() for a in args]
                moved[place][entry] += step
                ends.append(preference_loss(*moved, loss_type=name, **options).losses.sum().item())
            slope = (ends[0] - ends[1]) / 2e-6
            assert coefficients[entry].item() == pytest.approx(sign * slope, rel=1e-6, abs=1e-8)


@pytest.mark.holds("gradient-entanglement", 5)
@pytest.mark.parametrize("seed", range(4))
def test_the_normalised_step_is_healthy(seed):
    model = Tokens(seed)
    parameters = [*(p for p in model.parameters() if p is not model.unused), model.unused]
    chosen, rejected = (torch.randint(7, (6,), generator=torch.Generator().manual_seed(9 * seed + n)) for n in (0, 1))
    if seed == 3:
        chosen, rejected = CHOSEN, REJECTED
    before = [model.log_prob(text) for text in (chosen, rejected)]
    slopes = [torch.autograd.grad(v, parameters[:-1], retain_graph=True) for v in before]
    units = [[g / math.sqrt(sum(float((s * s).sum()) for s in side)) for g in side] for side in slopes]
    parameters[0].grad = torch.full_like(parameters[0], 7.0)
    pairwise_normalized_step(*before, parameters)
    for parameter, up, down in zip(parameters, *units):
        assert torch.allclose(parameter.grad, down - up, rtol=1e-12, atol=1e-15)
    assert not model.unused.grad.any()
    descend(parameters, 1e-4)
    after = [model.log_prob(text) for text in (chosen, rejected)]
    assert after[0] > before[0]
    assert after[1] < before[1]


@pytest.mark.holds("gradient-entanglement", 5)
def test_equal_gradients_give_no_step():
    p = torch.tensor([0.3, -0.2], requires_grad=True)
    slope = torch.tensor([1.7, 0.4])
    pairwise_normalized_step(p @ slope, p @ slope, [p])
    assert p.grad.tolist() == [0.0, 0.0]
    pairwise_normalized_step(p @ slope, 2 * (p @ slope), [p])
    assert p.grad.abs().max() < 1e-7
    pairwise_normalized_step(p @ slope, (0 * p).sum(), [p])  # no gradient of the rejected answer
    assert torch.allclose(p.grad, -slope / slope.norm())


def test_batches_are_summed():
    p = torch.tensor([0.3, -0.2], requires_grad=True)
    rows = torch.tensor([[1.0, 0.0], [2.0, 4.0]])
    pairwise_normalized_step(rows @ p, p[:1], [p])
    assert torch.allclose(p.grad, torch.tensor([1.0, 0.0]) - torch.tensor([0.6, 0.8]))


def test_refused():
    model, one = Linear([1.0, 0.5], [2.0, 0.5]), torch.ones(1, requires_grad=True)

    def w(m):
        return m.log_p("w")

    for arguments, message in (
        ((model, lambda m: m.second, w), r"chosen_logp_fn: expected shape \(\)"),
        ((model, w, lambda m: m.second), r"rejected_logp_fn: expected shape \(\)"),
        ((model, w, lambda m: m.first.detach()), "rejected_logp_fn: expected a log-probability that depends on"),
        ((model, w, w, []), "params: expected at least one tensor"),
        ((model, w, w, [torch.zeros(2)]), "params: expected tensors that ask for a gradient"),
    ):
        with pytest.raises(ValueError, match=message):
            entanglement_report(*arguments)
    with pytest.raises(ValueError, match=r"coefficients\[1\]: expected a number >= 0"):
        entanglement_report(model, w, w, coefficients=(1.0, -1.0))
    with pytest.raises(TypeError, match="params: expected tensors, got 3"):
        entanglement_report(model, w, w, [3])
    with pytest.raises(ValueError, match="loss_type: expected one of"):
        margin_loss_coefficients("dpo", one, one, one, one)
    with pytest.raises(ValueError, match="logp_l: expected 0 or 1 dimensions"):
        margin_loss_coefficients("sigmoid", one, one[:, None], one, one)
    with pytest.raises(TypeError, match="logp_w: expected a floating tensor"):
        margin_loss_coefficients("sigmoid", torch.tensor(1), one, one, one)
    with pytest.raises(ValueError, match="logp_w: expected 0 or 1 dimensions"):
        pairwise_normalized_step(one[:, None], one, [one])


def test_running_statistics_stay():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).train()
    x, y = torch.randn(2, 5, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = entanglement_report(model, lambda m: m(x).mean(), lambda m: m(y).mean())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert entanglement_report(model, lambda m: m(x).mean(), lambda m: m(y).mean()) == first
