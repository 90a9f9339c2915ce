"""Self-distillation from the previous epoch."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from steepest.core.objective import TaskInfo
from steepest.losses.distillation.ps_kd import PastPredictions, PSKDLoss, ps_kd_loss

Z = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64)
PAST = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64)
FIRST = torch.tensor([0])


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def batch(generator, rows=6, classes=4):
    logits = 2 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (rows,), generator=generator), torch.randperm(9, generator=generator)[:rows]


def soft_targets(target, past, alpha):
    return (1 - alpha) * nn.functional.one_hot(target, past.shape[1]) + alpha * past


@pytest.mark.holds("ps-kd", 1)
def test_card_values():
    loss = PSKDLoss(5, 3, total_epochs=100, dtype=torch.float64)
    index = torch.tensor([3])
    loss.start_epoch(29)
    loss(PAST.log(), FIRST, index=index)
    loss.start_epoch(30)
    assert loss.share.item() == pytest.approx(0.24)
    z = Z.clone().requires_grad_()
    value = loss(z, FIRST, index=index)
    assert value.item() == pytest.approx(0.527606, abs=5e-7)
    (slope,) = torch.autograd.grad(value, z)
    torch.testing.assert_close(slope, Z.new_tensor([[-0.2388, 0.1727, 0.0660]]), atol=5e-5, rtol=0)
    torch.testing.assert_close(Z.softmax(-1) - slope, Z.new_tensor([[0.904, 0.072, 0.024]]))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_peer_with_probability_targets(alpha, generator):
    logits, target, _ = batch(generator)
    past = torch.randn(6, 4, generator=generator, dtype=torch.float64).softmax(-1)
    weight = torch.rand(6, generator=generator, dtype=torch.float64)
    mixed = soft_targets(target, past, alpha)
    each = nn.functional.cross_entropy(logits, mixed, reduction="none")
    torch.testing.assert_close(ps_kd_loss(logits, target, past_probs=past, alpha=alpha, reduction="none"), each)
    found = ps_kd_loss(logits, target, past_probs=past, alpha=alpha, weight=weight)
    torch.testing.assert_close(found, (weight * each).sum() / weight.sum())


def test_naive_training(generator):
    """Three epochs against a dictionary of past predictions."""
    loss = PSKDLoss(9, 4, total_epochs=3, alpha=0.6, dtype=torch.float64)
    before: dict[int, list[float]] = {}
    for epoch in (1, 2, 3):
        loss.start_epoch(epoch, 3)
        now = {}
        for rows in (4, 3):  # some samples are left out, some come twice
            logits, target, index = batch(generator, rows)
            total = 0.0
            for z, y, i in zip(logits.tolist(), target.tolist(), index.tolist()):
                norm = math.log(sum(math.exp(v) for v in z))
                alpha = 0.6 * epoch / 3 if i in before else 0.0
                for k in range(4):
                    share = (1 - alpha) * (k == y) + (alpha * before[i][k] if i in before else 0.0)
                    total -= share * (z[k] - norm)
                now[i] = [math.exp(v - norm) for v in z]
            assert loss(logits, target, index=index).item() == pytest.approx(total / rows)
        before |= now


@pytest.mark.holds("ps-kd", 2)
def test_first_epoch_and_no_share_are_cross_entropy(generator):
    logits, target, index = batch(generator)
    wanted = nn.functional.cross_entropy(logits, target)
    loss = PSKDLoss(9, 4, 10)
    loss.start_epoch(1, 10)
    for _ in range(2):  # also where one epoch evaluates it twice
        torch.testing.assert_close(loss(logits, target, index=index), wanted)
    none = PSKDLoss(9, 4, 10, alpha=0.0)
    for epoch in range(1, 4):
        none.start_epoch(epoch, 10)
        torch.testing.assert_close(none(logits, target, index=index), wanted)


@pytest.mark.holds("ps-kd", 3)
@pytest.mark.parametrize("topk", [None, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_targets_sum_to_one(topk, dtype, generator):
    memory = PastPredictions(9, 6, topk, dtype)
    index = torch.arange(4)
    memory.write(index, torch.randn(4, 6, generator=generator).softmax(-1))
    memory.turn()
    past = memory.read(torch.arange(9))
    torch.testing.assert_close(past.sum(-1), torch.ones(9))
    assert bool((past >= 0).all())
    torch.testing.assert_close(past[4:], torch.full((5, 6), 1 / 6))
    mixed = soft_targets(torch.zeros(9, dtype=torch.long), past, 0.37)
    torch.testing.assert_close(mixed.sum(-1), torch.ones(9))
    # what the loss uses is such a target: its gradient p - y~ sums to 0
    logits = torch.randn(9, 6, generator=generator).requires_grad_()
    loss = ps_kd_loss(logits, torch.arange(9) % 6, past_probs=past, alpha=0.37, reduction="sum")
    slope = torch.autograd.grad(loss, logits)[0]
    torch.testing.assert_close(slope.sum(-1), torch.zeros(9), atol=1e-6, rtol=0)


@pytest.mark.holds("ps-kd", 3)
def test_past_carries_no_gradient(generator):
    logits, target, index = batch(generator)
    past = torch.randn(6, 4, generator=generator, dtype=torch.float64).softmax(-1).requires_grad_()
    value = ps_kd_loss(logits.requires_grad_(), target, past_probs=past, alpha=0.5)
    assert torch.autograd.grad(value, past, allow_unused=True) == (None,)
    loss = PSKDLoss(9, 4, 10, dtype=torch.float64)
    old = (2 * logits.detach()).requires_grad_()
    loss.start_epoch(1)
    loss(old, target, index=index)
    assert all(not tensor.requires_grad for tensor in loss.state_dict().values())
    loss.start_epoch(2)
    value = loss(logits, target, index=index)
    assert torch.autograd.grad(value, old, allow_unused=True, retain_graph=True) == (None,)
    wanted = (logits.softmax(-1) - soft_targets(target, old.softmax(-1), 0.16)) / 6
    torch.testing.assert_close(torch.autograd.grad(value, logits)[0], wanted.detach())


@pytest.mark.holds("ps-kd", 4)
def test_unseen_samples_keep_their_label(generator):
    logits, target, _ = batch(generator)
    loss = PSKDLoss(9, 4, 10, reduction="none")
    loss.start_epoch(9, 10)
    loss(logits[:3], target[:3], index=torch.arange(3))
    loss.start_epoch(10, 10)
    found = loss(2 * logits, target, index=torch.arange(6))
    exact = nn.functional.cross_entropy(2 * logits, target, reduction="none")
    torch.testing.assert_close(found[3:], exact[3:])
    assert bool((found[:3] != exact[:3]).all())
    past = torch.full((6, 4), 0.25, dtype=torch.float64)
    seen = torch.tensor([True, False] * 3)
    mixed = ps_kd_loss(logits, target, past_probs=past, alpha=0.9, seen=seen, reduction="none")
    plain = nn.functional.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(mixed[~seen], plain[~seen])
    assert bool((mixed[seen] != plain[seen]).all())


@pytest.mark.holds("ps-kd", 5)
@pytest.mark.parametrize("topk", [None, 2])
def test_uniform_past_is_label_smoothing(topk, generator):
    logits, target, index = batch(generator)
    loss = PSKDLoss(9, 4, 10, alpha=0.5, topk=topk)
    loss.start_epoch(1, 10)
    loss(torch.zeros_like(logits), target, index=index)
    loss.start_epoch(4, 10)
    found = loss(logits, target, index=index)
    torch.testing.assert_close(found, nn.functional.cross_entropy(logits, target, label_smoothing=0.2))


@pytest.mark.holds("ps-kd", 6)
@pytest.mark.parametrize("topk", [None, 2])
def test_resuming(topk, generator):
    logits, target, index = batch(generator)
    loss = PSKDLoss(9, 4, 10, topk=topk)
    loss.start_epoch(3, 10)
    loss(logits, target, index=index)
    resumed = PSKDLoss(9, 4, 10, topk=topk)
    resumed.load_state_dict(copy.deepcopy(loss.state_dict()))
    for objective in (loss, resumed):
        objective.start_epoch(4, 10)
    assert torch.equal(resumed(0.3 * logits, target, index=index), loss(0.3 * logits, target, index=index))
    fresh = PSKDLoss(9, 4, 10, topk=topk)
    fresh.start_epoch(4, 10)
    assert not torch.equal(fresh(0.3 * logits, target, index=index), loss(0.3 * logits, target, index=index))


@pytest.mark.holds("ps-kd", 6)
def test_refusals():
    loss = PSKDLoss(9, 3, 10)
    for position in (-1, 9):
        with pytest.raises(ValueError, match=r"index: expected values in 0..8"):
            loss(Z, FIRST, index=torch.tensor([position]))
    for index in (torch.tensor([0, 1]), torch.tensor([True])):
        with pytest.raises(ValueError, match="index: expected"):
            loss(Z, FIRST, index=index)
    with pytest.raises(ValueError, match="outputs: expected shape"):
        loss(torch.zeros(1, 4), FIRST, index=FIRST)
    assert not bool(loss.memory.fresh.seen.any())
    for options in ({"alpha": 1.1}, {"topk": 0}, {"total_epochs": 0}, {"num_samples": 0}, {"num_classes": 1}):
        with pytest.raises(ValueError, match=": expected "):
            PSKDLoss(**{"num_samples": 9, "num_classes": 3, "total_epochs": 10, **options})
    with pytest.raises(ValueError, match="alpha: expected"):
        ps_kd_loss(Z, FIRST, past_probs=PAST, alpha=-0.1)


def test_hard_examples_are_scaled_down_less():
    """The target's gradient against that of cross-entropy: 1 - alpha (1 - P_y) / (1 - p_y)."""
    alpha = 0.4
    for own in (0.1, 0.5, 0.9):
        z = torch.tensor([[own, 1 - own]], dtype=torch.float64).log().requires_grad_()
        past = torch.tensor([[0.7, 0.3]], dtype=torch.float64)
        (slope,) = torch.autograd.grad(ps_kd_loss(z, FIRST, past_probs=past, alpha=alpha), z)
        (plain,) = torch.autograd.grad(nn.functional.cross_entropy(z, FIRST), z)
        assert float(slope[0, 0] / plain[0, 0]) == pytest.approx(1 - alpha * 0.3 / (1 - own))


def test_largest_entries_are_kept_and_the_rest_is_even():
    memory = PastPredictions(3, 4, topk=2)
    memory.write(torch.tensor([1]), torch.tensor([[0.1, 0.5, 0.06, 0.34]]))
    assert not bool(memory.seen(torch.tensor([1])))
    memory.turn()
    assert memory.seen(torch.arange(3)).tolist() == [False, True, False]
    torch.testing.assert_close(memory.read(torch.tensor([1])), torch.tensor([[0.08, 0.5, 0.08, 0.34]]))
    memory.turn()  # an epoch without a visit
    torch.testing.assert_close(memory.read(torch.tensor([1])), torch.tensor([[0.08, 0.5, 0.08, 0.34]]))
    assert PastPredictions(3, 4, topk=4).topk is None


def test_from_task(generator):
    loss = PSKDLoss.from_task(TaskInfo("multiclass", 9, 4, (3, 2, 2, 2), epochs=20), alpha=0.5)
    loss.start_epoch(10, 20)
    assert loss.share.item() == pytest.approx(0.25)
    loss.start_epoch(10)
    assert loss.share.item() == pytest.approx(0.25)
    logits, target, index = batch(generator)
    loss.eval()(logits, target, index=index)
    assert not bool(loss.memory.fresh.seen.any())
