"""Divergences between answers against numeric conjugates, loops over tokens and the numbers of one small case."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import minimize_scalar

from steepest.losses.unlearning import FLATLoss, answer_probability, f_divergence_pair, flat_loss
from steepest.losses.unlearning.flat_unlearning import DIVERGENCES

WANTED = {
    "tv": -0.063494, "kl": -0.129680, "js": 0.022294, "pearson": -0.110000, "reverse_kl": 0.049329,
    "hellinger": 0.271448,
}  # fmt: skip
GENERATORS = {
    "kl": lambda v: v * math.log(v) if v > 0 else 0.0,
    "js": lambda v: (v * math.log(v) if v > 0 else 0.0) - (v + 1) * math.log((v + 1) / 2),
    "pearson": lambda v: (v - 1) ** 2,
    "reverse_kl": lambda v: -math.log(v),
    "hellinger": lambda v: (math.sqrt(v) - 1) ** 2,
}
"""f of each divergence; that of total variation is |v - 1| / 2, whose conjugate is u on [-1/2, 1/2]."""


def logits_of(p, tokens=1):
    """Logits of two classes, of which the first has probability p."""
    return torch.tensor([[[math.log(p), math.log1p(-p)]] * tokens], dtype=torch.float64)


def drawn():
    generator = torch.Generator().manual_seed(0)
    forget, template = torch.randn(2, 3, 5, 7, generator=generator, dtype=torch.float64)
    y, t = torch.randint(7, (2, 3, 5), generator=generator)
    y[:, 0] = y[2, 3:] = t[1, 2:] = -100
    return forget, y, template, t


def naive_probability(logits, labels):
    rows = []
    for z, y in zip(logits, labels):
        p = [(row.exp() / row.exp().sum())[int(label)] for row, label in zip(z, y) if label != -100]
        rows.append(sum(p) / len(p))
    return torch.stack(rows)


@pytest.mark.holds("flat-unlearning", 1)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_numbers_of_the_card(name):
    y = torch.zeros(1, 1, dtype=torch.long)
    value = flat_loss(logits_of(0.8), y, logits_of(0.6), y, divergence=name)
    assert value.item() == pytest.approx(WANTED[name], abs=1e-6)


@pytest.mark.holds("flat-unlearning", 2)
@pytest.mark.parametrize("p", [0.05, 0.5, 0.99])
def test_equal_probabilities(p):
    y = torch.zeros(1, 1, dtype=torch.long)
    assert flat_loss(logits_of(p), y, logits_of(p), y, divergence="tv") == 0
    js = flat_loss(logits_of(p), y, logits_of(p), y, divergence="js").item()
    assert js == pytest.approx(2 * math.log1p(math.exp(-p)) + p - 2 * math.log(2), abs=1e-14)
    assert js >= 0


@pytest.mark.holds("flat-unlearning", 3)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_conjugates_are_those_of_the_generators(name):
    negative, conjugate = f_divergence_pair(name)
    for v in (0.1, 0.4, 0.9):
        u = -negative(torch.tensor(v, dtype=torch.float64)).item()
        given = conjugate(torch.tensor(v, dtype=torch.float64)).item()
        if name == "tv":
            assert abs(u) <= 0.5
            assert given == pytest.approx(u, abs=1e-15)
            continue
        best = minimize_scalar(
            lambda x, u=u, f=GENERATORS[name]: f(x) - u * x, bounds=(1e-9, 50), method="bounded",
            options={"xatol": 1e-10},
        )  # fmt: skip
        assert given == pytest.approx(-best.fun, abs=1e-6)


@pytest.mark.holds("flat-unlearning", 4)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_gradient_is_bounded_and_padding_does_not_count(name):
    y = torch.zeros(1, 1, dtype=torch.long)
    for p in (1e-12, 1e-3, 0.5, 1 - 1e-12):
        z = logits_of(p).requires_grad_()
        (slope,) = torch.autograd.grad(flat_loss(logits_of(0.5), y, z, y, divergence=name), z)
        assert slope.abs().max() <= math.e / 4
    forget, labels, template, t = drawn()
    wanted = FLATLoss(name)(forget, labels, template=template, template_labels=t)
    padded = torch.cat([forget, torch.full((3, 4, 7), math.nan, dtype=torch.float64)], 1).requires_grad_()
    more = torch.cat([labels, torch.full((3, 4), -100)], 1)
    result = FLATLoss(name)(padded, more, template=template, template_labels=t)
    assert result.item() == pytest.approx(wanted.item(), abs=1e-15)
    (slope,) = torch.autograd.grad(result, padded)
    assert slope.isfinite().all()
    assert not slope[:, 5:].any()


@pytest.mark.holds("flat-unlearning", 5)
def test_what_is_refused():
    y, empty = torch.zeros(1, 1, dtype=torch.long), torch.full((1, 1), -100)
    with pytest.raises(ValueError, match="divergence: expected one of"):
        flat_loss(logits_of(0.5), y, logits_of(0.5), y, divergence="chi")
    with pytest.raises(ValueError, match="name: expected one of"):
        f_divergence_pair("chi")
    with pytest.raises(ValueError, match="template_labels: expected a token that counts in each row"):
        flat_loss(logits_of(0.5), empty, logits_of(0.5), y)
    with pytest.raises(ValueError, match="forget_labels: expected a token that counts in each row"):
        flat_loss(logits_of(0.5), y, logits_of(0.5), empty)
    with pytest.raises(ValueError, match="template and template_labels: expected answers to give"):
        FLATLoss()(logits_of(0.5), y)
    with pytest.raises(ValueError, match="num_forget: expected None"):
        FLATLoss()(logits_of(0.5), y, template=logits_of(0.5), template_labels=y, num_forget=3)
    nothing = FLATLoss("kl")(logits_of(0.5).requires_grad_(), empty, template=logits_of(0.5), template_labels=y)
    assert nothing == 0
    assert nothing.requires_grad


@pytest.mark.parametrize("name", DIVERGENCES)
def test_against_a_loop_over_tokens(name):
    forget, y, template, t = drawn()
    torch.testing.assert_close(answer_probability(forget, y), naive_probability(forget, y), rtol=1e-13, atol=0)
    negative, conjugate = f_divergence_pair(name)
    wanted = negative(naive_probability(template, t).mean()) + conjugate(naive_probability(forget, y).mean())
    assert flat_loss(template, t, forget, y, divergence=name).item() == pytest.approx(wanted.item(), rel=1e-12)
    head = torch.randn(7, 3, dtype=torch.float64)
    states, more = torch.randn(2, 3, 5, 3, dtype=torch.float64)
    by_head = FLATLoss(name)(states, y, head=head, template=more, template_labels=t)
    by_logits = FLATLoss(name)(states @ head.T, y, template=more @ head.T, template_labels=t)
    assert by_head.item() == pytest.approx(by_logits.item(), rel=1e-12)


def test_it_falls_with_the_template_and_rises_with_the_answer():
    y = torch.zeros(1, 1, dtype=torch.long)
    for name in DIVERGENCES:
        values = [flat_loss(logits_of(p), y, logits_of(0.5), y, divergence=name).item() for p in (0.1, 0.5, 0.9)]
        assert values == sorted(values, reverse=True)
        values = [flat_loss(logits_of(0.5), y, logits_of(p), y, divergence=name).item() for p in (0.1, 0.5, 0.9)]
        assert values == sorted(values)
