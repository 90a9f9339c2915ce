"""The softmax loss weighed at a user's top-K threshold."""

from __future__ import annotations

import copy

import pytest
import torch

from steepest.losses.ranking.softmax_at_k import SoftmaxLossAtK, softmax_loss_at_k, topk_quantile

POS, NEG = torch.tensor([0.6], dtype=torch.float64), torch.tensor([[0.5, 0.1, -0.2]], dtype=torch.float64)
BETA = torch.tensor([0.4], dtype=torch.float64)
TRUE = torch.tensor([[True, True]])


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    shapes = ((5,), (5, 7), (5,))
    return [torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1 for shape in shapes]


@pytest.mark.holds("softmax-at-k", 1)
def test_card_values():
    plain = 2 * softmax_loss_at_k(POS, NEG, POS, tau=0.2).item()  # a weight of 1/2
    assert plain == pytest.approx(-0.346822, abs=5e-7)
    value = softmax_loss_at_k(POS, NEG, BETA, tau=0.2, tau_beta=0.25).item()
    assert value / plain == pytest.approx(0.689974, abs=5e-7)
    assert value == pytest.approx(-0.239298, abs=5e-7)


def test_reductions_and_naive_sums(batch):
    pos, neg, beta = batch
    values = [
        torch.sigmoid((p - b) / 0.5) * torch.log(torch.exp((row - p) / 0.2).sum()) for p, row, b in zip(pos, neg, beta)
    ]
    wanted = torch.stack(values)
    options = {"tau": 0.2, "tau_beta": 0.5}
    torch.testing.assert_close(softmax_loss_at_k(pos, neg, beta, **options, reduction="none"), wanted)
    torch.testing.assert_close(softmax_loss_at_k(pos, neg, beta, **options, reduction="sum"), wanted.sum())
    torch.testing.assert_close(softmax_loss_at_k(pos, neg, beta, **options), wanted.mean())


@pytest.mark.holds("softmax-at-k", 2)
def test_quantile():
    pos = torch.tensor([[0.6, 0.3]], dtype=torch.float64)
    assert topk_quantile(pos, TRUE, NEG, 2).item() == 0.5
    padded = torch.tensor([[9.0, 0.6, 0.3, float("nan")]], dtype=torch.float64)
    mask = torch.tensor([[False, True, True, False]])
    for k, value in enumerate((0.6, 0.5, 0.3, 0.1, -0.2), 1):
        assert topk_quantile(padded, mask, NEG, k).item() == value


@pytest.mark.holds("softmax-at-k", 3)
def test_a_wide_weight_is_a_half(batch):
    pos, neg, beta = batch
    plain = ((neg - pos.unsqueeze(1)) / 0.2).logsumexp(1).mean()
    assert torch.equal(softmax_loss_at_k(pos, neg, beta, tau=0.2, tau_beta=float("inf")), plain / 2)


@pytest.mark.holds("softmax-at-k", 4)
def test_thresholds_are_constants_and_options_are_checked(batch):
    pos, neg, beta = batch
    beta.requires_grad_()
    pos.requires_grad_()
    value = softmax_loss_at_k(pos, neg, beta, tau=0.2)
    assert torch.autograd.grad(value, beta, allow_unused=True, retain_graph=True) == (None,)
    assert not topk_quantile(pos.unsqueeze(1), torch.ones(5, 1, dtype=torch.bool), neg, 2).requires_grad
    for k, mask in ((6, TRUE), (5, torch.tensor([[True, False]]))):
        with pytest.raises(ValueError, match=r"^k: expected at most the"):
            topk_quantile(torch.zeros(1, 2), mask, NEG, k)
    for name in ("tau", "tau_beta"):
        for wrong in (0.0, -1.0):
            with pytest.raises(ValueError, match=rf"^{name}: expected"):
                softmax_loss_at_k(POS, NEG, BETA, **{name: wrong})
            with pytest.raises(ValueError, match=rf"^{name}: expected"):
                SoftmaxLossAtK(3, **{name: wrong})


@pytest.mark.holds("softmax-at-k", 5)
def test_values_may_be_negative():
    pos = torch.tensor([0.9], dtype=torch.float64)
    assert softmax_loss_at_k(pos, NEG - 0.7, BETA, tau=0.1).item() < -1


def test_gradient_through_the_weight(batch):
    """Where the logarithm is positive the weight pushes positives down; detached, it does not."""
    pos, neg, beta = batch
    pos.requires_grad_()
    options = {"tau": 0.2, "tau_beta": 0.5, "reduction": "sum"}
    attached, detached = (
        torch.autograd.grad(softmax_loss_at_k(pos, neg, beta, **options, detach_weight=flag), pos)[0]
        for flag in (False, True)
    )
    p = pos.detach()
    weight, plain = torch.sigmoid((p - beta) / 0.5), ((neg - p.unsqueeze(1)) / 0.2).logsumexp(1)
    torch.testing.assert_close(detached, -weight / 0.2)
    torch.testing.assert_close(attached - detached, weight * (1 - weight) / 0.5 * plain)


def test_thresholds_wait_for_the_next_epoch():
    loss = SoftmaxLossAtK(4, k=2, tau=0.2, tau_beta=0.25)
    users = torch.tensor([2, 0, 2], dtype=torch.int32)
    pos = torch.tensor([[0.6, 0.3], [0.9, 0.8], [0.4, 0.2]])
    neg = NEG.float().expand(3, 3)
    before = loss(POS.float(), NEG.float(), torch.tensor([2]))
    loss.update_quantile(users, pos, TRUE.expand(3, 2), neg)
    assert not loss.beta.any()
    assert torch.equal(loss(POS.float(), NEG.float(), torch.tensor([2])), before)
    twin = SoftmaxLossAtK(4, k=2, tau=0.2, tau_beta=0.25)
    twin.load_state_dict(copy.deepcopy(loss.state_dict()))
    for own in (loss, twin):
        own.start_epoch(2, 5)
        assert own.beta.tolist() == pytest.approx([0.8, 0.0, 0.45, 0.0])  # of user 2 the mean of .5 and .4
    value = loss(POS, NEG, torch.tensor([2]))
    wanted = softmax_loss_at_k(POS, NEG, torch.tensor([0.45]), tau=0.2, tau_beta=0.25)
    torch.testing.assert_close(value, wanted)


def test_no_pair():
    for shape in ((0, 3), (2, 0)):
        pos, neg = torch.zeros(shape[0], requires_grad=True), torch.zeros(shape, requires_grad=True)
        value = softmax_loss_at_k(pos, neg, torch.zeros(shape[0]))
        assert value == 0
        assert value.requires_grad


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("num_users", lambda: SoftmaxLossAtK(0)),
        ("k", lambda: SoftmaxLossAtK(3, k=0)),
        ("detach_weight", lambda: SoftmaxLossAtK(3, detach_weight=1)),
        ("user_ids", lambda: SoftmaxLossAtK(3)(POS, NEG, torch.tensor([3]))),
        ("user_ids", lambda: SoftmaxLossAtK(3)(POS, NEG, torch.tensor([0, 1]))),
        ("neg", lambda: softmax_loss_at_k(POS, NEG[0], BETA)),
        ("beta", lambda: softmax_loss_at_k(POS, NEG, BETA.view(1, 1))),
    ],
)
def test_refused(name, call):
    with pytest.raises((ValueError, TypeError), match=rf"^{name}: expected"):
        call()
