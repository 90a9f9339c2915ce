"""Hard patches mining: the order of losses, the masks, and the teacher."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from steepest.data.masking import (
    HardPatchMiner,
    absolute_loss_prediction,
    easy_to_hard_mask,
    relative_loss_prediction,
)
from steepest.data.masking.hard_patches_mining import _standardized

L = torch.tensor([[0.5, 0.2, 0.9]], dtype=torch.float64)
P = torch.tensor([[0.1, 0.3, 0.4]], dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def by_loops(pred, losses):
    total, pairs = 0.0, 0
    for p, row in zip(pred.tolist(), losses.tolist()):
        for i in range(len(p)):
            for j in range(len(p)):
                if row[j] > row[i]:
                    total -= math.log(1 / (1 + math.exp(p[i] - p[j])))
                    pairs += 1
                elif row[j] < row[i]:
                    total -= math.log(1 - 1 / (1 + math.exp(p[i] - p[j])))
                    pairs += 1
    return total / pairs


class Small(nn.Module):
    def __init__(self, pixels=4):
        super().__init__()
        self.mixed, self.pixels, self.hardness = nn.Linear(pixels, 8), nn.Linear(8, pixels), nn.Linear(8, 1)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, patches, mask):
        x = self.mixed(patches * ~mask.unsqueeze(-1))
        x = self.dropout(torch.tanh(x + x.mean(1, keepdim=True)))
        if self.training:
            self.seen += 1
        return self.pixels(x), self.hardness(x).squeeze(-1)


@pytest.mark.holds("hard-patches-mining", 1)
def test_three_patches():
    assert relative_loss_prediction(P, L).item() == pytest.approx(0.665630, abs=1e-6)
    assert absolute_loss_prediction(P, L).item() == pytest.approx(0.671068, abs=1e-6)
    wanted = (L.numpy() - L.mean().item()) / math.sqrt(np.var(L.numpy(), ddof=1) + 1e-6)
    np.testing.assert_allclose(_standardized(L).numpy(), wanted)


@pytest.mark.parametrize("seed", range(3))
def test_pairs_by_loops(seed):
    pred = torch.randn(4, 6, generator=seeded(seed), dtype=torch.float64)
    losses = torch.randint(4, (4, 6), generator=seeded(seed + 9)).double()  # with ties
    assert relative_loss_prediction(pred, losses).item() == pytest.approx(by_loops(pred, losses))
    assert torch.autograd.gradcheck(lambda p: relative_loss_prediction(p, losses), pred.requires_grad_())


@pytest.mark.holds("hard-patches-mining", 2)
def test_the_order_alone_counts():
    pred = torch.randn(3, 5, generator=seeded(), dtype=torch.float64)
    losses = torch.rand(3, 5, generator=seeded(1), dtype=torch.float64)
    value = relative_loss_prediction(pred, losses)
    torch.testing.assert_close(relative_loss_prediction(pred + 7.0, losses), value)
    for increasing in (torch.exp, torch.log, lambda row: 3 * row - 2):
        assert torch.equal(relative_loss_prediction(pred, increasing(losses)), value)
    assert relative_loss_prediction(0 * pred + 0.3, losses).item() == pytest.approx(math.log(2))
    assert relative_loss_prediction(-losses, losses) > math.log(2) > relative_loss_prediction(losses, losses)


@pytest.mark.holds("hard-patches-mining", 3)
@pytest.mark.parametrize(("epoch", "hard"), [(0, 0), (99, 36), (199, 73)])
def test_how_many_are_hard(epoch, hard):
    scores = torch.randn(200, 196, generator=seeded())
    mask = easy_to_hard_mask(scores, 0.75, epoch, 200, generator=seeded(1))
    assert (mask.sum(1) == 147).all()
    order = scores.argsort(1, descending=True)
    by_rank = mask.gather(1, order).double().mean(0)
    assert (by_rank[:hard] == 1).all()
    share = (147 - hard) / (196 - hard)
    error = 5 * math.sqrt(share * (1 - share) / 200)
    assert ((by_rank[hard:] - share).abs() < error).all()


@pytest.mark.holds("hard-patches-mining", 4)
@pytest.mark.parametrize(
    ("ratio", "max_hard", "masked", "hard"), [(0.75, 0.5, 8, 4), (0.6, 1.0, 6, 6), (0.5, 0.0, 5, 0)]
)
def test_exactly_as_many_are_masked(ratio, max_hard, masked, hard):
    scores = torch.randn(50, 10, generator=seeded())
    mask = easy_to_hard_mask(scores, ratio, 9, 10, max_hard, seeded(2))
    assert (mask.sum(1) == masked).all()
    assert mask.gather(1, scores.topk(hard, 1).indices).all()
    assert torch.equal(easy_to_hard_mask(scores, ratio, 9, 10, max_hard, seeded(2)), mask)
    assert max_hard == 1.0 or not torch.equal(easy_to_hard_mask(scores, ratio, 9, 10, max_hard, seeded(3)), mask)


@pytest.mark.holds("hard-patches-mining", 5)
def test_what_has_no_gradient():
    pred, losses = P.clone().requires_grad_(), L.clone().requires_grad_()
    for function in (relative_loss_prediction, absolute_loss_prediction):
        (slope,) = torch.autograd.grad(function(pred, losses), pred)
        assert slope.abs().sum() > 0
        assert torch.autograd.grad(function(pred, losses), losses, allow_unused=True) == (None,)
    ties = relative_loss_prediction(pred, torch.ones(1, 3))
    assert ties == 0.0
    assert torch.equal(torch.autograd.grad(ties, pred)[0], torch.zeros_like(P))
    miner = HardPatchMiner(Small())
    patches = torch.randn(3, 8, 4, generator=seeded())
    assert not miner.scores(patches).requires_grad
    miner(patches, miner.mask(patches, 0, 1, generator=seeded())).backward()
    assert all(p.grad is None and not p.requires_grad for p in miner.teacher.parameters())
    assert all(p.grad is not None for p in miner.model.parameters())


def test_the_loss_of_the_student():
    miner = HardPatchMiner(Small().double(), prediction=0.5).eval()
    patches = torch.randn(3, 8, 4, generator=seeded(), dtype=torch.float64)
    mask = miner.mask(patches, 4, 5, generator=seeded())
    loss = miner(patches, mask)
    pixels, hardness = miner.model(patches, mask)
    errors = []
    for n in range(3):
        row = []
        for k in range(8):
            if mask[n, k]:
                target = patches[n, k].numpy()
                target = (target - target.mean()) / math.sqrt(target.var(ddof=1) + 1e-6)
                row.append(float(((pixels[n, k].detach().numpy() - target) ** 2).mean()))
        errors.append(row)
    predicted = torch.stack([hardness[n, mask[n]] for n in range(3)])
    wanted = np.mean(errors) + 0.5 * by_loops(predicted, torch.tensor(errors))
    assert loss.item() == pytest.approx(wanted)
    assert miner.terms["reconstruction"].item() == pytest.approx(np.mean(errors))
    (slope,) = torch.autograd.grad(
        HardPatchMiner(miner.model, prediction=0.0)(patches, mask), [miner.model.hardness.weight]
    )
    assert torch.equal(slope, torch.zeros_like(slope))


def test_the_teacher_follows():
    miner = HardPatchMiner(Small(), 0.5, ema_end=0.9, ema_epochs=10)
    assert [miner.decay(e) for e in (0, 5, 10, 50)] == pytest.approx([0.5, 0.7, 0.9, 0.9])
    assert HardPatchMiner(Small(), 0.5, ema_epochs=0).decay(0) == 0.9999
    assert HardPatchMiner(Small()).decay(50) == pytest.approx(0.99945)
    before = copy.deepcopy(miner.teacher)
    with torch.no_grad():
        for p in miner.model.parameters():
            p.add_(1.0)
        miner.model.seen.fill_(4.0)
    miner.after_step(5)
    for old, new in zip(before.parameters(), miner.teacher.parameters()):
        torch.testing.assert_close(new, old + 0.3)
    assert miner.teacher.seen == 4.0
    miner.train()
    assert miner.model.training
    assert not miner.teacher.training
    patches = torch.randn(2, 8, 4, generator=seeded())
    assert torch.equal(miner.scores(patches), miner.scores(patches)), "without dropout"
    twin = HardPatchMiner(Small(), 0.5)
    twin.load_state_dict(miner.state_dict())
    assert torch.equal(twin.scores(patches), miner.scores(patches))


def test_half_and_nothing():
    assert relative_loss_prediction(P.half() * 1e4, L.half()).isfinite()
    assert relative_loss_prediction(P.half(), L.half()).dtype == torch.float32
    none = torch.zeros(0, 3, requires_grad=True)
    assert relative_loss_prediction(none, torch.zeros(0, 3)) == absolute_loss_prediction(none, torch.zeros(0, 3)) == 0.0
    assert absolute_loss_prediction(P[:, :1], L[:, :1]).item() == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_ratio": 0.0}, "mask_ratio: expected"),
        ({"mask_ratio": 1.0}, "mask_ratio: expected"),
        ({"epoch": 1}, "epoch: expected an integer >= 0 and <= 0"),
        ({"total_epochs": 0}, "total_epochs: expected"),
        ({"max_hard": 1.5}, "max_hard: expected"),
    ],
)
def test_refused_masks(options, message):
    with pytest.raises(ValueError, match=message):
        easy_to_hard_mask(P, **options)


def test_refusals():
    with pytest.raises(ValueError, match="target_loss: expected shape"):
        relative_loss_prediction(P, L[:, :2])
    with pytest.raises(ValueError, match="target_loss: expected shape"):
        absolute_loss_prediction(P, L[:, :2])
    with pytest.raises(TypeError, match="model: expected a module"):
        HardPatchMiner(3)
    for options in ({"ema": 1.5}, {"ema_end": 0.5}, {"ema_epochs": -1}, {"prediction": -1.0}):
        with pytest.raises(ValueError, match=next(iter(options)) + ": expected"):
            HardPatchMiner(Small(), **options)
    with pytest.raises(ValueError, match="mask: expected shape"):
        HardPatchMiner(Small())(torch.zeros(2, 8, 4), torch.zeros(2, 7).bool())
