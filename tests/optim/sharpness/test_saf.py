"""Sharpness-aware training for free: the facts of its card, and both forms in the one loop."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div

from steepest.core.objective import Batch
from steepest.descent import ArrayBatches, Descent
from steepest.losses import CrossEntropyLoss
from steepest.optim import MESA, SAFLoss, TrajectoryLoss, trajectory_kl

PAST, NOW = torch.tensor([[2.0, 0.0, -1.0]]).double(), torch.tensor([[1.0, 1.0, 0.0]]).double()
Y, INDEX = torch.tensor([0]), torch.tensor([2])


@pytest.mark.holds("saf", 1)
def test_card_values():
    current = NOW.clone().requires_grad_()
    term = 0.3 * trajectory_kl(PAST, current, 5.0)
    assert term.item() == pytest.approx(0.145660, abs=5e-7)
    term.backward()
    torch.testing.assert_close(
        current.grad, torch.tensor([[-0.143786, 0.079058, 0.064727]]).double(), atol=5e-7, rtol=0.0
    )
    assert trajectory_kl(PAST, NOW, 1.0).item() == pytest.approx(0.379738, abs=5e-7)
    loss = TrajectoryLoss(4, 3, delay=2, start=2, dtype=torch.float64)
    for epoch, outputs in ((1, PAST), (2, NOW), (3, NOW)):
        loss.start_epoch(epoch)
        value = loss(outputs, Y, index=INDEX)
    assert value.item() - cross_entropy(NOW, Y).item() == pytest.approx(0.145660, abs=5e-7)


def test_torchs_divergence():
    generator = torch.Generator().manual_seed(0)
    past, now = (torch.randn(6, 4, generator=generator).double() for _ in range(2))
    wanted = 9 * kl_div((now / 3).log_softmax(-1), (past / 3).softmax(-1), reduction="batchmean")
    torch.testing.assert_close(trajectory_kl(past, now, 3.0), wanted)


@pytest.mark.holds("saf", 2)
@pytest.mark.parametrize("tau", [0.5, 5.0])
def test_equal_logits_cost_nothing(tau):
    now = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    term = trajectory_kl(now.detach(), now, tau)
    term.backward()
    assert term.item() == 0.0
    assert now.grad.abs().max() < 1e-7


def trained(lam, epochs=3, start=5):
    loss = SAFLoss(6, 3, lam=lam, delay=1, start=start)
    generator = torch.Generator().manual_seed(2)
    values = []
    for epoch in range(1, epochs + 1):
        loss.start_epoch(epoch)
        outputs = torch.randn(6, 3, generator=generator).requires_grad_()
        value = loss(outputs, torch.arange(6) % 3, index=torch.arange(6))
        value.backward()
        plain = outputs.detach().clone().requires_grad_()
        cross_entropy(plain, torch.arange(6) % 3).backward()
        values.append((value.detach(), outputs.grad, cross_entropy(plain, torch.arange(6) % 3).detach(), plain.grad))
    return values


@pytest.mark.holds("saf", 3)
@pytest.mark.parametrize(("lam", "start"), [(0.0, 0), (0.3, 3)])
def test_no_term_is_cross_entropy_to_the_last_bit(lam, start):
    for value, slope, plain, plain_slope in trained(lam, start=start):
        assert torch.equal(value, plain)
        assert torch.equal(slope, plain_slope)
    value, _, plain, _ = trained(0.3, start=2)[-1]
    assert value > plain


@pytest.mark.holds("saf", 4)
def test_a_shift_changes_nothing_and_the_term_is_not_negative():
    generator = torch.Generator().manual_seed(3)
    past, now = (3 * torch.randn(50, 4, generator=generator).double() for _ in range(2))
    terms = trajectory_kl(past, now, 2.0, reduction="none")
    assert bool((terms >= 0).all())
    torch.testing.assert_close(trajectory_kl(past + 7.0, now - 3.0, 2.0, reduction="none"), terms)


@pytest.mark.holds("saf", 5)
def test_a_large_temperature_gives_half_the_mean_square():
    generator = torch.Generator().manual_seed(4)
    past, now = (torch.randn(7, 4, generator=generator).double() for _ in range(2))
    away = past - now
    wanted = 0.5 * (away - away.mean(-1, keepdim=True)).square().mean()
    errors = [abs(trajectory_kl(past, now, tau).item() - wanted.item()) for tau in (10.0, 100.0, 1000.0)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3 * wanted.item()


@pytest.mark.holds("saf", 6)
@pytest.mark.parametrize("delay", [1, 3])
def test_the_memory_gives_what_was_recorded_so_many_epochs_ago(delay):
    loss = TrajectoryLoss(5, 3, delay=delay, start=0, dtype=torch.float32)
    generator = torch.Generator().manual_seed(5)
    history = {}
    for epoch in range(1, 8):
        loss.start_epoch(epoch)
        rows = torch.randperm(5, generator=generator)[:4]
        outputs = torch.randn(4, 3, generator=generator)
        past, seen = loss.past(torch.arange(5))
        for i in range(5):
            assert bool(seen[i]) == ((epoch - delay, i) in history)
            if seen[i]:
                assert torch.equal(past[i], history[epoch - delay, i])
        for _ in range(2):  # visited twice: the same past
            value = loss(outputs, torch.zeros(4, dtype=torch.int64), index=rows)
        there = torch.tensor([(epoch - delay, int(i)) in history for i in rows])
        term = torch.where(there, trajectory_kl(loss.past(rows)[0], outputs, reduction="none"), 0.0).mean()
        torch.testing.assert_close(value, cross_entropy(outputs, torch.zeros(4, dtype=torch.int64)) + 0.3 * term)
        history |= {(epoch, int(i)): row for i, row in zip(rows, outputs)}


def test_a_repeated_index_writes_the_mean_and_evaluation_writes_nothing():
    loss = TrajectoryLoss(3, 2, delay=1, start=0, dtype=torch.float32)
    loss.start_epoch(1)
    loss(torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 5.0]]), torch.tensor([0, 0, 1]), index=torch.tensor([1, 1, 0]))
    loss.eval()
    loss(torch.tensor([[9.0, 9.0]]), torch.tensor([0]), index=torch.tensor([2]))
    loss.start_epoch(2)
    past, seen = loss.past(torch.arange(3))
    assert past.tolist() == [[5.0, 5.0], [2.0, 1.0], [0.0, 0.0]]
    assert seen.tolist() == [True, True, False]


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.2), nn.Linear(6, 3))


def data():
    generator = torch.Generator().manual_seed(6)
    return torch.randn(24, 4, generator=generator), torch.arange(24) % 3


def test_the_averaged_model():
    """An average by hand, the term with it, buffers copied."""
    model, (x, y) = net(), data()
    mesa, average = MESA(model, decay=0.9, lam=0.5, tau=2.0), copy.deepcopy(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        torch.manual_seed(step)
        loss = mesa.loss(model, Batch(x, y), CrossEntropyLoss())
        loss.backward()
        state = copy.deepcopy(model.state_dict())
        torch.manual_seed(step)
        twin = net()
        twin.load_state_dict(state)
        torch.manual_seed(step)
        outputs = twin(x)
        average.eval()
        wanted = cross_entropy(outputs, y) + 0.5 * trajectory_kl(average(x), outputs, 2.0)
        torch.testing.assert_close(loss.detach(), wanted.detach())
        assert all(module.training for module in model.modules())
        optimizer.step()
        mesa.after_step()
        with torch.no_grad():
            for own, p in zip(average.parameters(), model.parameters()):
                own.copy_(0.9 * own + 0.1 * p)
            for own, buffer in zip(average.buffers(), model.buffers()):
                own.copy_(buffer)


@pytest.mark.parametrize("form", ["memory", "average"])
def test_killed_and_resumed_with_the_same_bits(form, tmp_path):
    def descent():
        model, (x, y) = net(), data()
        objective = TrajectoryLoss(24, 3, delay=1, start=1) if form == "memory" else CrossEntropyLoss()
        method = None if form == "memory" else MESA(decay=0.9)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        batches = ArrayBatches(x, y, batch_size=8, seed=1)
        return Descent(model, objective, batches, method=method, optimizer=optimizer)

    whole = descent().fit(4)
    descent().fit(2).save(tmp_path / "run.pt")
    resumed = descent()
    if form == "average":
        resumed.method._begin(resumed.model)  # what is loaded must be as large
    resumed.resume(tmp_path / "run.pt").fit(4)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters()))


def test_what_it_refuses():
    with pytest.raises(ValueError, match="tau: expected a number > 0"):
        trajectory_kl(PAST, NOW, 0.0)
    with pytest.raises(ValueError, match="past: expected"):
        trajectory_kl(PAST[:, :2], NOW)
    for wrong in ({"lam": -1.0}, {"tau": 0.0}, {"delay": 0}, {"start": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
            TrajectoryLoss(4, 3, **wrong)
    with pytest.raises(ValueError, match="decay: expected"):
        MESA(decay=1.0)
    mesa = MESA(nn.Linear(4, 3))
    with pytest.raises(ValueError, match="model: expected the one that is averaged"):
        mesa._begin(nn.Linear(5, 3))
