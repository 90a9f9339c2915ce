"""Weights of negatives by hand, all forms against loops in float64, what carries no gradient, what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from steepest.losses.contrastive import SoftInfoNCELoss, clip_loss, negative_weights, soft_infonce_loss

FORMS = ("soft", "weighted", "bce", "kl")


def drawn(rows=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, rows, generator=generator, dtype=torch.float64) for _ in range(2)]


def first_row(values, diagonal, rows=4):
    """Rows that are all alike up to the place of their own column."""
    out = torch.zeros(rows, rows, dtype=torch.float64)
    for i in range(rows):
        places = [j for j in range(rows) if j != i]
        out[i, i] = diagonal
        out[i, places] = torch.tensor(values, dtype=torch.float64)
    return out


def by_definition(s, estimates, form, alpha=1.0, beta=1.0, t=1.0, floor=0.1):
    """A row after the other, as it is written."""
    rows, losses = len(s), []
    for i in range(rows):
        others = [j for j in range(rows) if j != i]
        below = sum(math.exp(estimates[i, j] / t) for j in others)
        r = {j: math.exp(estimates[i, j] / t) / below for j in others}
        total = sum(math.exp(v) for v in s[i])
        p = [math.exp(v) / total for v in s[i]]
        if form == "soft":
            w = {j: max(floor, (beta - alpha * r[j]) / (beta - alpha / len(others))) for j in others}
            own = math.exp(s[i, i])
            losses.append(-math.log(own / (own + sum(w[j] * math.exp(s[i, j]) for j in others))))
        elif form == "weighted":
            losses.append(-beta * math.log(p[i]) - alpha * sum(r[j] * math.log(p[j]) for j in others))
        elif form == "bce":
            terms = [r[j] * math.log(p[j]) + (1 - r[j]) * math.log(1 - p[j]) for j in others]
            losses.append((-beta * math.log(p[i]) - alpha * sum(terms)) / rows)
        else:
            rest = sum(math.exp(s[i, j]) for j in others)
            kl = sum(r[j] * math.log(r[j] / (math.exp(s[i, j]) / rest)) for j in others)
            losses.append(-beta * math.log(p[i]) + alpha * kl)
    return sum(losses) / rows


@pytest.mark.holds("soft-infonce", 1)
def test_a_row_by_hand():
    s, estimates = first_row([2.0, 1.0, 0.0], 3.0), first_row([0.9, 0.3, 0.1], 0.0)
    weights = negative_weights(estimates, estimate_temperature=0.5)
    assert weights[0].tolist() == pytest.approx([1.0, 0.502056, 1.199425, 1.298519], abs=1e-6)
    r = [(1 - w * (1 - 1 / 3)) for w in weights[0, 1:].tolist()]
    assert r == pytest.approx([0.665296, 0.200383, 0.134321], abs=1e-6)
    assert soft_infonce_loss(s, estimates, estimate_temperature=0.5).item() == pytest.approx(0.344774, abs=1e-6)
    assert soft_infonce_loss(s, torch.zeros_like(s)).item() == pytest.approx(0.440190, abs=1e-6)


@pytest.mark.holds("soft-infonce", 2)
def test_without_estimates_it_is_infonce():
    s, estimates = drawn()
    wanted = torch.nn.functional.cross_entropy(s, torch.arange(4))
    torch.testing.assert_close(soft_infonce_loss(s, estimates, alpha=0.0), wanted)
    torch.testing.assert_close(soft_infonce_loss(s, torch.full_like(s, 3.0)), wanted)


@pytest.mark.holds("soft-infonce", 3)
def test_the_mean_weight_is_1_where_the_floor_does_not_act():
    _, estimates = drawn()
    own = torch.eye(4).bool()
    weights = negative_weights(estimates, estimate_temperature=2.0, floor=0.0)
    torch.testing.assert_close(weights.masked_select(~own).reshape(4, 3).mean(1), torch.ones(4, dtype=torch.float64))
    assert (weights.diagonal() == 1).all()
    by_hand = first_row([0.9, 0.3, 0.1], 0.0)
    r = 0.665296
    assert (1 - 2 * r) / (1 - 2 / 3) == pytest.approx(-0.991775, abs=2e-5)
    assert negative_weights(by_hand, alpha=2.0, estimate_temperature=0.5)[0, 1].item() == pytest.approx(0.1)
    assert negative_weights(by_hand, alpha=2.0, estimate_temperature=0.5, floor=0.3)[0, 1].item() == pytest.approx(0.3)


@pytest.mark.holds("soft-infonce", 4)
def test_weights_are_constants_of_the_gradient():
    s, estimates = drawn()
    s.requires_grad_(), estimates.requires_grad_()
    loss = soft_infonce_loss(s, estimates, estimate_temperature=0.5)
    slope, none = torch.autograd.grad(loss, (s, estimates), allow_unused=True)
    assert none is None
    assert not negative_weights(estimates).requires_grad
    terms = negative_weights(estimates, estimate_temperature=0.5) * s.detach().exp()
    wanted = (terms / terms.sum(1, keepdim=True) - torch.eye(4)) / 4
    torch.testing.assert_close(slope, wanted)
    for form in FORMS[1:]:
        slopes = torch.autograd.grad(soft_infonce_loss(s, estimates, form=form), (s, estimates), allow_unused=True)
        assert slopes[1] is None


@pytest.mark.holds("soft-infonce", 5)
@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("beta: expected more than alpha / 3", lambda: negative_weights(torch.zeros(4, 4), alpha=3.0)),
        ("beta: expected more than alpha / 1", lambda: soft_infonce_loss(torch.zeros(2, 2), torch.zeros(2, 2))),
        ("estimates: expected two rows", lambda: soft_infonce_loss(torch.zeros(1, 1), torch.zeros(1, 1), alpha=0.0)),
        ("estimates: expected shape", lambda: negative_weights(torch.zeros(4, 3))),
        ("scores: expected shape", lambda: soft_infonce_loss(torch.zeros(3, 3), torch.zeros(4, 4))),
        ("floor: expected 0.1", lambda: SoftInfoNCELoss(floor=0.2, term="kl")),
        ("term: expected one of", lambda: SoftInfoNCELoss(term="hard")),
    ],
)
def test_what_has_no_meaning_is_refused(words, call):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", [{}, {"alpha": 0.7, "beta": 1.3}], ids=["defaults", "others"])
def test_every_form_is_its_definition(form, options):
    s, estimates = drawn(5)
    result = soft_infonce_loss(s, estimates, estimate_temperature=0.4, form=form, **options)
    assert result.item() == pytest.approx(by_definition(s, estimates, form, t=0.4, **options), rel=1e-12)
    z, teacher = torch.stack([s, torch.eye(5)]), torch.stack([estimates, torch.eye(5)], 1)
    loss = SoftInfoNCELoss(estimate_temperature=0.4, term=form, **options)
    torch.testing.assert_close(loss(z, torch.arange(5), teacher=teacher), result)


def test_embeddings_cosines_and_temperatures():
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    teacher = torch.randn(5, 2, 2, generator=generator, dtype=torch.float64)
    estimates = teacher[:, 0] @ teacher[:, 1].T
    unit = torch.nn.functional.normalize(z, dim=-1)
    result = SoftInfoNCELoss(temperature=0.2, cosine=True)(z, torch.arange(5), teacher=teacher)
    torch.testing.assert_close(result, soft_infonce_loss(unit[0] @ unit[1].T / 0.2, estimates))
    one_way = SoftInfoNCELoss(alpha=0.0, temperature=0.2, cosine=True)
    both = (one_way(z, torch.arange(5), teacher=teacher) + one_way(z.flip(0), torch.arange(5), teacher=teacher)) / 2
    torch.testing.assert_close(both, clip_loss(*z, scale=5.0))


def test_a_duplicate_is_no_negative_and_has_no_share_of_the_relevance():
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
    teacher = torch.randn(6, 2, 2, generator=generator, dtype=torch.float64)
    ids = torch.tensor([0, 1, 2, 3, 4, 0])
    for form in FORMS:
        loss, wanted = SoftInfoNCELoss(term=form), []
        for i in range(6):
            few = [i, *(j for j in range(6) if ids[j] != ids[i])]  # the row and what is left for it
            s, estimates = (z[0] @ z[1].T)[i, few], (teacher[:, 0] @ teacher[:, 1].T)[i, few]
            wanted.append(by_row(s, estimates, form))
        result = loss(z, torch.arange(6), teacher=teacher, ids=ids)
        assert result.item() == pytest.approx(sum(wanted) / 6, rel=1e-10)


def by_row(s, estimates, form):
    """The loss of one row whose own column is the first: every row of a matrix that has it in its own place."""
    rows = len(s)
    whole_s, whole_e = torch.zeros(rows, rows, dtype=s.dtype), torch.zeros(rows, rows, dtype=s.dtype)
    for i in range(rows):
        places = [i, *(j for j in range(rows) if j != i)]
        whole_s[i, places], whole_e[i, places] = s, estimates
    return by_definition(whole_s, whole_e, form)


def test_bce_stays_finite_where_a_negative_has_all_of_the_probability():
    s = torch.tensor([[0.0, 300.0, 1.0], [0.0, 0.0, -300.0], [0.0, 0.0, 0.0]], requires_grad=True)
    loss = soft_infonce_loss(s, torch.zeros(3, 3), form="bce")
    assert loss.isfinite()
    assert torch.autograd.grad(loss, s)[0].isfinite().all()


@pytest.mark.parametrize("form", FORMS[1:])
def test_forms_without_weights_take_any_beta(form):
    s, estimates = drawn(3)
    result = soft_infonce_loss(s, estimates, alpha=1.5, beta=0.5, form=form)
    assert result.item() == pytest.approx(by_definition(s, estimates, form, alpha=1.5, beta=0.5), rel=1e-12)
    with pytest.raises(ValueError, match="beta: expected more than alpha / 2"):
        soft_infonce_loss(s, estimates, alpha=1.5, beta=0.5)
