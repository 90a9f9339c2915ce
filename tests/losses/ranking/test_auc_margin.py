"""The min-max form of AUC maximisation, and its optimizer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from steepest.losses.ranking.auc_margin import PESG, AUCMarginLoss, auc_margin_loss
from steepest.testing import optimizer_checks

H = torch.tensor([0.8, 0.4, 0.3, 0.1, 0.6], dtype=torch.float64)
Y = torch.tensor([1, 1, 0, 0, 0])


def at(values, a, b, alpha, **options):
    return auc_margin_loss(values, Y, a, b, alpha, **options).item()


@pytest.mark.holds("auc-margin", 1)
def test_card_values():
    assert at(H, 0.5, 0.2, 0.3) == pytest.approx(0.1104)
    assert at(H, 0.5, 0.2, 0.3, version="v2") == pytest.approx(0.46)
    loss = AUCMarginLoss(sigmoid=False)
    with torch.no_grad():
        for scalar, number in ((loss.a, 0.5), (loss.b, 0.2), (loss.alpha, 0.3)):
            scalar.fill_(number)
    assert loss(H, Y).item() == pytest.approx(0.1104)
    loss.sigmoid = True
    assert loss(torch.logit(H), Y).item() == pytest.approx(0.1104)


def naive(h, y, a, b, alpha, m, p):
    """Row by row, with the prior p."""
    total = 0.0
    for s, t in zip(h, y):
        total += (1 - p) * (s - a) ** 2 if t else p * (s - b) ** 2
        total += 2 * alpha * (p * (1 - p) * m + (-(1 - p) * s if t else p * s))
    return total / len(y) - p * (1 - p) * alpha**2


@pytest.mark.parametrize("prior", [None, 0.1])
def test_rows_one_by_one(prior):
    wanted = naive(H.tolist(), Y.tolist(), 0.6, 0.1, 0.7, 0.8, 0.4 if prior is None else prior)
    assert at(H, 0.6, 0.1, 0.7, margin=0.8, prior=prior) == pytest.approx(wanted)


def best(values, margin):
    high, low = values[Y == 1], values[Y == 0]
    a, b = high.mean().item(), low.mean().item()
    alpha = max(0.0, margin + b - a)
    return a, b, alpha, (high.var(correction=0) + low.var(correction=0)).item() + alpha**2


@pytest.mark.holds("auc-margin", 2)
@pytest.mark.parametrize("margin", [1.0, 0.2])
def test_value_at_the_best_scalars(margin):
    a, b, alpha, wanted = best(H, margin)
    assert at(H, a, b, alpha, margin=margin, version="v2") == pytest.approx(wanted)
    assert at(H, a, b, alpha, margin=margin) == pytest.approx(0.4 * 0.6 * wanted)
    if margin == 1.0:
        assert wanted == pytest.approx(0.62)
        assert 0.24 * wanted == pytest.approx(0.1488)


@pytest.mark.holds("auc-margin", 3)
def test_pairs():
    a, b, alpha, value = best(H, 1.0)
    pairs = (1.0 - (H[Y == 1].unsqueeze(1) - H[Y == 0])).square().mean().item()
    assert at(H, a, b, alpha, version="v2") == pytest.approx(pairs)
    assert value == pytest.approx(pairs)
    a, b, alpha, value = best(H, 0.2)  # a gap of .2667: m + b - a is negative
    assert alpha == 0.0
    high, low = H[Y == 1], H[Y == 0]
    spread = (high.var(correction=0) + low.var(correction=0)).item()
    assert at(H, a, b, alpha, margin=0.2, version="v2") == pytest.approx(spread)


@pytest.mark.holds("auc-margin", 4)
def test_alpha_and_batches_of_one_class():
    loss = AUCMarginLoss(margin=0.2)
    with torch.no_grad():
        loss.a.fill_(0.9)
    for _ in range(5):
        loss.after_step()
        assert loss.alpha == 0.0
    with torch.no_grad():
        loss.b.fill_(0.8)
    for _ in range(200):
        loss.after_step()
        assert loss.alpha >= 0.0
    assert loss.alpha.item() == pytest.approx(0.1)
    for labels in (torch.zeros(5), torch.ones(5)):
        with pytest.raises(ValueError, match=r"^target: expected both classes in the batch"):
            auc_margin_loss(H, labels, 0.0, 0.0, 0.1, version="v2")
        with pytest.warns(UserWarning, match="a batch of one class"):
            value = auc_margin_loss(H, labels, 0.0, 0.0, 0.1)
        assert value.isfinite()


@pytest.mark.holds("auc-margin", 5)
def test_bounded_scores_and_the_square_loss():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        values = torch.rand(5, generator=generator, dtype=torch.float64)
        a, b, alpha, _ = best(values, 1.0)
        assert 1.0 + b - a >= 0
        pairs = (1.0 - (values[Y == 1].unsqueeze(1) - values[Y == 0])).square().mean()
        assert at(values, a, b, alpha, version="v2") == pytest.approx(pairs.item())
    easy = torch.tensor([0.95, 0.9, 0.1, 0.05, 0.1], dtype=torch.float64)
    a, b, alpha, value = best(easy, 0.5)
    assert value < (0.5 - (easy[Y == 1].unsqueeze(1) - easy[Y == 0])).square().mean()


@pytest.mark.holds("auc-margin", 6)
def test_numbers_of_the_library():
    """LibAUC's v1 has these; its v2 divides the sum of negative scores by the whole batch (.38, .45125)."""
    assert at(H, 0.5, 0.2, 0.3, prior=0.4) == pytest.approx(at(H, 0.5, 0.2, 0.3))
    h, y = torch.tensor([0.1, 0.4, 0.35, 0.8], dtype=torch.float64), torch.tensor([0, 0, 1, 1])
    assert auc_margin_loss(h, y, 0.3, 0.2, 0.5, version="v2").item() == pytest.approx(0.57625)
    assert auc_margin_loss(h, y, 0.3, 0.2, 0.5, prior=0.5).item() == pytest.approx(0.57625 / 4)


def test_gradients_and_who_gets_them():
    loss = AUCMarginLoss(margin=0.7, sigmoid=False).double()
    loss.alpha.fill_(0.4)
    h = H.clone().requires_grad_()
    loss(h, Y).backward()
    assert {name for name, _ in loss.named_parameters()} == {"a", "b"}
    assert not loss.alpha.requires_grad
    assert loss.a.grad.item() == pytest.approx(-2 * 0.6 * 1.2 / 5)
    wanted = [0.6 * (2 * s - 0.8) / 5 if t else 0.4 * (2 * s + 0.8) / 5 for s, t in zip(H.tolist(), Y.tolist())]
    assert h.grad.tolist() == pytest.approx(wanted)


def test_steps_of_the_optimizer():
    """Against a loop over numbers, through two stages."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    y = torch.tensor([1, 0, 0, 1, 0, 0, 1, 0])
    loss = AUCMarginLoss(margin=0.5).double()
    w = nn.Parameter(torch.tensor([0.5, -30.0], dtype=torch.float64))
    options = {"lr": 0.2, "momentum": 0.7, "clip_value": 0.01, "weight_decay": 0.1, "epoch_decay": 0.3}
    optimizer = PESG([w], loss, **options)
    twin = copy.deepcopy(loss)
    v = [w.detach().clone(), twin.a.detach().clone(), twin.b.detach().clone()]
    reference, total, momenta, alpha, rate = [t.clone() for t in v], [0 * t for t in v], [None] * 3, 0.0, 0.2
    for step in range(6):
        optimizer.zero_grad()
        loss(x @ w, y).backward()
        optimizer.step()
        loss.after_step()
        leaves = [t.clone().requires_grad_() for t in v]
        value = auc_margin_loss(torch.sigmoid(x @ leaves[0]), y, leaves[1], leaves[2], alpha, margin=0.5)
        for i, slope in enumerate(torch.autograd.grad(value, leaves)):
            g = slope.clamp(-0.01, 0.01) + 0.3 * (v[i] - reference[i]) + 0.1 * v[i]
            momenta[i] = g if step == 0 else 0.3 * momenta[i] + 0.7 * g
            v[i] = v[i] - rate * momenta[i]
            total[i] = total[i] + v[i]
        alpha = max(0.0, alpha + rate * (2 * (0.5 + v[2] - v[1]).item() - 2 * alpha))
        if step == 2:
            optimizer.update_regularizer(4.0)
            reference, total, rate = [t / 3 for t in total], [0 * t for t in v], 0.05
        for ours, wanted in zip((w, loss.a, loss.b), v):
            torch.testing.assert_close(ours.detach(), wanted)
        assert loss.alpha.item() == pytest.approx(alpha)
    assert loss.dual_lr == 0.05


def test_contract_of_the_optimizer():
    slow = {"minimum": "many steps", "ranks": "processes", "compile": "tracing", "convergence": "pulled to a reference"}
    for title, check in optimizer_checks(PESG):
        if title not in slow:
            check()


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("margin", lambda: AUCMarginLoss(0.0)),
        ("prior", lambda: AUCMarginLoss(prior=1.0)),
        ("prior", lambda: AUCMarginLoss(prior=0.5, version="v2")),
        ("version", lambda: AUCMarginLoss(version="v3")),
        ("dual_lr", lambda: AUCMarginLoss(dual_lr=0.0)),
        ("sigmoid", lambda: AUCMarginLoss(sigmoid=1)),
        ("momentum", lambda: PESG([nn.Parameter(torch.zeros(1))], momentum=0.0)),
        ("clip_value", lambda: PESG([nn.Parameter(torch.zeros(1))], clip_value=0.0)),
        ("loss_fn", lambda: PESG([nn.Parameter(torch.zeros(1))], nn.MSELoss())),
    ],
)
def test_refused(name, call):
    with pytest.raises((ValueError, TypeError), match=rf"^{name}: expected"):
        call()


def test_scores_in_0_to_1_are_cut_in_the_middle():
    scores = torch.tensor([0.1, 0.2, 0.9])
    assert AUCMarginLoss(sigmoid=False).predict(scores).tolist() == [0, 0, 1]
    assert AUCMarginLoss().predict(torch.tensor([-1.0, 0.2])).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("centres", "message"),
    [
        ((torch.zeros(2, 1), 0.2, 0.3), "a: expected shape"),
        ((0.5, torch.zeros(2), 0.3), "b: expected shape"),
        ((0.5, 0.2, torch.ones(2)), "alpha: expected shape"),
        ((0.5, 0.2, -3.0), "alpha: expected a number >= 0"),
        (("x", 0.2, 0.3), "a: expected a number"),
    ],
)
def test_centres_are_single_numbers(centres, message):
    with pytest.raises((ValueError, TypeError), match=message):
        auc_margin_loss(torch.tensor([0.8, 0.4]), torch.tensor([1, 0]), *centres)
