"""Weights of gains against their formula, the memory between epochs, and what a resumed run does."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import cross_entropy

from steepest.losses.language import GainBasedLossWeighting, GLOWLoss, glow_weights


def weight(gain, **options):
    h, now = torch.tensor([1.0 + gain]).double(), torch.tensor([1.0]).double()
    return glow_weights(h, now, **options).item()


def drawn(rows=4):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, 5, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(7, (rows, 5), generator=generator)
    labels[0, 0] = labels[2, 3:] = -100
    return logits, labels


def of_rows(logits, labels):
    return torch.stack([cross_entropy(z, y) for z, y in zip(logits, labels)])


@pytest.mark.holds("glow", 1)
def test_numbers_of_the_card():
    wanted = {0.0: 1.0, 0.1: 0.537883, -0.1: 1.462117, 0.5: 0.5, -0.5: 1.986614}
    for gain, value in wanted.items():
        assert weight(gain) == pytest.approx(value, abs=1e-6)
    assert weight(0.5, min_w=0.0) == pytest.approx(0.013386, abs=1e-6)
    assert weight(0.0, alpha=1.0) == pytest.approx(0.5)
    assert weight(-0.5, alpha=1.0) == pytest.approx(0.993307, abs=1e-6)
    assert weight(-0.1) == pytest.approx(2 * (1 - 1 / (1 + math.exp(1.0))), rel=1e-7)
    assert weight(-9.0, alpha=20.0) == 5.0


@pytest.mark.holds("glow", 2)
def test_without_a_slope_all_weigh_the_same():
    logits, labels = drawn()
    losses = of_rows(logits, labels)
    for alpha in (1.0, 2.0, 3.0):
        loss = GLOWLoss(9, alpha, beta=0.0)
        for epoch in (1, 2):
            loss.start_epoch(epoch, 2)
            value = loss(logits + epoch, labels, index=torch.arange(4))
        assert value.item() == pytest.approx(alpha / 2 * losses.mean().item(), rel=1e-12)


@pytest.mark.holds("glow", 3)
def test_weights_fall_with_the_gain_and_have_no_gradient():
    gains = torch.linspace(-1, 1, 41).double()
    weights = glow_weights(gains + 1, torch.ones(41).double(), min_w=0.0)
    assert (weights.diff() < 0).all()
    logits, labels = drawn()
    loss = GLOWLoss(9)
    loss.start_epoch(1, 2)
    loss(logits, labels, index=torch.arange(4))
    loss.start_epoch(2, 2)
    z = (logits + 0.05 * torch.randn_like(logits)).requires_grad_()
    own = of_rows(z, labels)
    weights = glow_weights(loss.weighting.memory.read(torch.arange(4)).double(), own.detach())
    (slope,) = torch.autograd.grad(loss(z, labels, index=torch.arange(4)), z)
    (wanted,) = torch.autograd.grad((weights * own).sum() / 4, z)
    torch.testing.assert_close(slope, wanted, rtol=1e-12, atol=1e-15)
    assert weights.std() > 0.01


@pytest.mark.holds("glow", 4)
def test_the_first_epoch_is_the_mean_loss():
    logits, labels = drawn()
    loss = GLOWLoss(9)
    wanted = of_rows(logits, labels).mean().item()
    assert loss(logits, labels, index=torch.arange(4)).item() == pytest.approx(wanted, rel=1e-12)
    loss.start_epoch(1, 5)
    for _ in range(2):  # a row that comes again
        assert loss(logits, labels, index=torch.tensor([1, 1, 8, 0])).item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.holds("glow", 5)
def test_a_resumed_run_has_the_same_weights():
    logits, labels = drawn()
    loss = GLOWLoss(9)
    loss.start_epoch(1, 5)
    loss(logits, labels, index=torch.arange(4))
    loss.start_epoch(2, 5)
    loss(logits[:2] + 0.1, labels[:2], index=torch.arange(2))
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    twin = GLOWLoss(9)
    twin.load_state_dict(torch.load(file, weights_only=True))
    after = logits * 1.1
    for one in (loss, twin):
        one.last = one(after, labels, index=torch.arange(4)).item()
    assert loss.last == twin.last
    assert torch.equal(loss.weighting.visited, twin.weighting.visited)


@pytest.mark.holds("glow", 6)
def test_evaluation_weighs_nothing_and_remembers_nothing():
    logits, labels = drawn()
    loss = GLOWLoss(9)
    loss.start_epoch(1, 5)
    loss(logits, labels, index=torch.arange(4))
    loss.start_epoch(2, 5)
    before = loss.weighting.memory.values.clone()
    value = loss.eval()(logits * 2, labels, index=torch.arange(4))
    assert value.item() == pytest.approx(of_rows(logits * 2, labels).mean().item(), rel=1e-12)
    assert torch.equal(loss.weighting.memory.values, before)


def test_an_example_not_seen_is_compared_with_its_batch():
    weighting = GainBasedLossWeighting(5)
    weighting.start_epoch(1)
    weighting(torch.tensor([1.0]), torch.tensor([0]))
    weighting.start_epoch(2)
    losses = torch.tensor([1.2, 0.9, 2.1])
    weights = weighting.weights(losses, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(weights, glow_weights(torch.tensor([1.0, 1.4, 1.4]), losses))
    normal = GainBasedLossWeighting(5, normalize=True)
    normal.load_state_dict(weighting.state_dict())
    assert normal.weights(losses, torch.tensor([0, 1, 2])).mean().item() == pytest.approx(1.0)


def test_a_loss_that_was_not_finite_is_compared_with_its_batch():
    losses, index = torch.tensor([1.2, 0.9, 2.1]), torch.arange(3)
    weighting = GainBasedLossWeighting(3)
    for bad in (math.nan, math.inf):
        weighting.start_epoch(1)
        weighting(torch.tensor([1.0, bad, 2.0]), index)
        weighting.start_epoch(2)
        wanted = glow_weights(torch.tensor([1.0, 1.4, 2.0]), losses)
        torch.testing.assert_close(weighting.weights(losses, index), wanted)


def test_weights_that_are_all_0_are_equal_once_normalised():
    weighting = GainBasedLossWeighting(2, beta=1e6, min_w=0.0, normalize=True)
    weighting.start_epoch(1)
    weighting(torch.tensor([2.0, 3.0]), torch.arange(2))
    weighting.start_epoch(2)
    assert weighting.weights(torch.tensor([1.0, 1.0]), torch.arange(2)).tolist() == [1.0, 1.0]


def test_a_row_without_a_token_is_no_visit():
    logits, labels = drawn()
    empty = labels.clone()
    empty[1] = -100
    rest = torch.tensor([0, 2, 3])
    for normalize in (False, True):
        loss, alone = GLOWLoss(9, beta=0.5, normalize=normalize), GLOWLoss(9, beta=0.5, normalize=normalize)
        for one in (loss, alone):
            one.start_epoch(2, 3)
        value = loss(logits, empty, index=torch.arange(4))
        assert value.item() == pytest.approx(alone(logits[rest], labels[rest], index=rest).item(), rel=1e-12)
        assert loss.weighting.memory.seen.tolist() == alone.weighting.memory.seen.tolist()


def test_refusals():
    logits, labels = drawn()
    with pytest.raises(ValueError, match="index: expected positions"):
        GLOWLoss(4)(logits, labels)
    with pytest.raises(ValueError, match=r"index: expected values in 0\.\.3"):
        GLOWLoss(4)(logits, labels, index=torch.tensor([0, 1, 2, 4]))
    with pytest.raises(ValueError, match="segments: expected None"):
        GLOWLoss(4)(logits, labels, index=torch.arange(4), segments=torch.zeros(4, 5).long())
    for name, wrong in (("alpha", 0.0), ("beta", -1.0), ("min_w", -0.1), ("max_w", 0.1)):
        with pytest.raises(ValueError, match=f"{name}: expected a number"):
            GLOWLoss(4, **{name: wrong})


RANK = """
import json, sys
import torch
import torch.distributed as dist
from steepest.losses.language import GainBasedLossWeighting

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
weighting = GainBasedLossWeighting(4)
weighting.start_epoch(1)
weighting(torch.tensor([1.0, 2.0]) + 2 * rank, torch.tensor([[0, 1], [1, 2]])[rank])
weighting.start_epoch(2)
print(json.dumps([weighting.memory.values.tolist(), weighting.memory.seen.tolist()]))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_ranks_join_their_memories(tmp_path):
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
        )
        for rank in range(2)
    ]
    for process in processes:
        values, seen = json.loads(process.communicate(timeout=120)[0].splitlines()[-1])
        assert values[:3] == [1.0, 2.5, 4.0], "both saw the second: its mean"
        assert seen == [True, True, True, False]


def test_a_sequence_of_one_token_has_an_index():
    loss = GLOWLoss(4)
    z, labels = torch.randn(1, 6, generator=torch.Generator().manual_seed(0)), torch.zeros(1, dtype=torch.int64)
    wanted = GLOWLoss(4)(z[None], labels[None], index=torch.tensor([2]))
    assert torch.equal(loss(z, labels, index=torch.tensor([2])), wanted)
