"""Means of histories by hand, weights at their losses of now, a memory that is resumed, what is never flagged."""

from __future__ import annotations

import copy
import io
import math
import statistics

import pytest
import torch

from steepest.losses.contrastive import BadPairMiner, bad_pair_weights, nt_xent_loss, pair_losses

HISTORY = torch.tensor([[1.0, 0.8, 0.6], [2.0, 2.0, 2.0], [0.1, 0.1, 0.1], [1.2, 1.0, 0.7]], dtype=torch.float64)
NOW = torch.tensor([0.5, 1.9, 0.1, 0.6], dtype=torch.float64)
MEANS = (0.146667, 0.4, 0.02, 0.176667)
ONES = {"total_epochs": 10, "beta_noisy": 1.0, "beta_faulty": 1.0}


def mined(history=HISTORY, **options):
    """A miner that has seen a history, at the start of the epoch after it."""
    options = {"warmup": history.shape[1], **ONES, **options}
    miner = BadPairMiner(len(history), **options)
    for epoch, losses in enumerate(history.T, 1):
        miner.start_epoch(epoch)
        seen = ~losses.isnan()
        miner.record(torch.arange(len(losses))[seen], losses[seen])
    miner.start_epoch(history.shape[1] + 1)
    return miner


@pytest.mark.holds("dynamic-bad-pair-mining", 1)
def test_means_of_a_history():
    by_hand = [sum((1 + j) / 10 * loss for j, loss in enumerate(row)) / 3 for row in HISTORY.tolist()]
    assert by_hand == pytest.approx(MEANS, abs=1e-6)
    miner = mined()
    assert miner.mean.item() == pytest.approx(0.185833, abs=1e-6)
    assert miner.deviation.item() == pytest.approx(0.136918, abs=1e-6)
    assert miner.mean.item() == pytest.approx(statistics.fmean(by_hand), rel=1e-6)
    assert miner.deviation.item() == pytest.approx(statistics.pstdev(by_hand), rel=1e-6)


@pytest.mark.holds("dynamic-bad-pair-mining", 2)
def test_both_tails_and_their_weights():
    miner = mined()
    assert miner.faulty.tolist() == [False, True, False, False]
    assert miner.noisy.tolist() == [False, False, True, False]
    weights = bad_pair_weights(HISTORY, NOW, **ONES)
    assert weights.tolist() == pytest.approx([1.0, 2.68e-34, 2.393928, 1.0], rel=2e-3)
    assert weights[2].item() == pytest.approx(2.393928, abs=1e-6)
    normal = statistics.NormalDist(statistics.fmean(MEANS), statistics.pstdev(MEANS))
    assert weights[2].item() == pytest.approx(normal.pdf(0.1), rel=1e-4)
    one = bad_pair_weights(HISTORY, NOW, peak="one", **ONES)
    assert one[2].item() == pytest.approx(0.821602, abs=1e-6)
    assert one[1] < 1e-33
    torch.testing.assert_close(miner.weights(torch.arange(4), NOW), weights, rtol=1e-4, atol=1e-9)
    some = torch.tensor([2, 0])
    torch.testing.assert_close(mined(peak="one").weights(some, NOW[some]), one[some], rtol=1e-4, atol=1e-9)
    assert not mined(beta_noisy=2.0).noisy.any()
    assert not mined(beta_faulty=2.0).faulty.any()


@pytest.mark.holds("dynamic-bad-pair-mining", 3)
def test_no_weight_in_the_warm_up_and_no_gradient_in_weights():
    late = mined(warmup=4)
    assert late.weights(torch.arange(4), NOW).tolist() == [1.0] * 4
    late.record(torch.arange(4), NOW)
    late.start_epoch(5)
    assert (late.weights(torch.arange(4), NOW) != 1).any()
    late.start_epoch(2)
    assert late.weights(torch.arange(4), NOW).tolist() == [1.0] * 4
    losses = NOW.clone().requires_grad_()
    assert not bad_pair_weights(HISTORY, losses, **ONES).requires_grad
    miner = mined()
    loss = miner(losses, torch.arange(4))
    assert loss.item() == pytest.approx(float((miner.weights(torch.arange(4), NOW) * NOW).mean()), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(loss, losses)[0], miner.weights(torch.arange(4), NOW) / 4)
    assert BadPairMiner(2, total_epochs=80).warmup == 50


@pytest.mark.holds("dynamic-bad-pair-mining", 4)
def test_order_of_pairs_and_equal_pairs():
    order = torch.tensor([2, 3, 1, 0])
    weights = bad_pair_weights(HISTORY, NOW, **ONES)
    torch.testing.assert_close(bad_pair_weights(HISTORY[order], NOW[order], **ONES), weights[order])
    for value in (0.1, 1 / 3):
        alike = torch.full((7, 3), value, dtype=torch.float64)
        options = {"total_epochs": 10, "beta_noisy": 0.0, "beta_faulty": 0.0}
        assert bad_pair_weights(alike, torch.arange(7.0), **options).tolist() == [1.0] * 7
    assert bad_pair_weights(HISTORY[:, :0], NOW, **ONES).tolist() == [1.0] * 4
    assert bad_pair_weights(HISTORY[:0], NOW[:0], **ONES).shape == (0,)


@pytest.mark.holds("dynamic-bad-pair-mining", 5)
def test_a_pair_that_was_missing_has_the_mean_of_its_own_entries():
    history = HISTORY.clone()
    history[0, 1] = history[3, 2] = math.nan
    means = [(0.1 * 1.0 + 0.3 * 0.6) / 2, 0.4, 0.02, (0.1 * 1.2 + 0.2 * 1.0) / 2]
    miner = mined(history)
    assert miner.mean.item() == pytest.approx(statistics.fmean(means), rel=1e-6)
    assert miner.deviation.item() == pytest.approx(statistics.pstdev(means), rel=1e-6)
    wanted = statistics.NormalDist(statistics.fmean(means), statistics.pstdev(means)).pdf(0.1)
    assert bad_pair_weights(history, NOW, **ONES)[2].item() == pytest.approx(wanted, rel=1e-9)
    never = torch.cat([history, torch.full((1, 3), math.nan, dtype=torch.float64)])
    weights = bad_pair_weights(never, torch.cat([NOW, NOW[:1]]), **ONES)
    torch.testing.assert_close(weights[:4], bad_pair_weights(history, NOW, **ONES))
    assert weights[4] == 1


def test_losses_of_pairs_are_both_directions_and_their_mean_is_nt_xent():
    views = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = torch.nn.functional.normalize(views, dim=-1).flatten(0, 1)
    losses = []
    for i in range(8):
        partner = (i + 4) % 8
        terms = [math.exp(float(z[i] @ z[j]) / 0.2) for j in range(8) if j != i]
        losses.append(-math.log(math.exp(float(z[i] @ z[partner]) / 0.2) / sum(terms)))
    result = pair_losses(views)
    assert result.tolist() == pytest.approx([(losses[i] + losses[i + 4]) / 2 for i in range(4)], rel=1e-9)
    torch.testing.assert_close(result.mean(), nt_xent_loss(views, temperature=0.2))
    assert pair_losses(views[:, :0]).shape == (0,)
    assert pair_losses(views[:, :1]).tolist() == [0.0]
    assert pair_losses(views.half()).dtype == torch.float32


def test_the_state_is_whole_and_only_training_writes_it():
    miner = mined()
    file = io.BytesIO()
    torch.save(miner.state_dict(), file)
    file.seek(0)
    again = BadPairMiner(4, warmup=3, **ONES)
    again.load_state_dict(torch.load(file, weights_only=True))
    index = torch.tensor([1, 2])
    assert torch.equal(again(NOW[index], index), miner(NOW[index], index))
    before = copy.deepcopy(miner.state_dict())
    miner.eval()(NOW, torch.arange(4))
    for name, value in miner.state_dict().items():
        torch.testing.assert_close(value, before[name], equal_nan=True, rtol=0, atol=0)


def test_what_is_not_finite_is_not_remembered_and_repeats_are_averaged():
    miner = BadPairMiner(3, **ONES)
    miner.start_epoch(1)
    miner.record(torch.tensor([0, 1, 1, 2]), torch.tensor([math.inf, 1.0, 3.0, math.nan]))
    assert miner.memory.values[:, 0].isnan().tolist() == [True, False, True]
    assert miner.memory.values[1, 0] == 2.0
    miner.record(torch.tensor([1]), torch.tensor([5.0]))
    assert miner.memory.values[1, 0] == 5.0
    assert miner.memory.values[:, 1:].isnan().all()
    assert miner(torch.zeros(0, requires_grad=True), torch.zeros(0, dtype=torch.int64)) == 0
    assert miner(torch.ones(2).half(), torch.tensor([0, 1], dtype=torch.int32)).dtype == torch.float32


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("record: expected a call of start_epoch", lambda: BadPairMiner(2, 3).record(torch.arange(2), torch.ones(2))),
        ("epoch: expected", lambda: BadPairMiner(2, 3).start_epoch(4)),
        ("epoch: expected", lambda: BadPairMiner(2, 3).start_epoch(0)),
        ("epochs: expected 3", lambda: BadPairMiner(2, 3).start_epoch(1, 5)),
        ("warmup: expected", lambda: BadPairMiner(2, 3, warmup=4)),
        ("peak: expected", lambda: BadPairMiner(2, 3, peak="two")),
        ("beta_noisy: expected", lambda: BadPairMiner(2, 3, beta_noisy=-1.0)),
        ("index: expected", lambda: BadPairMiner(2, 3).weights(torch.tensor([2]), torch.ones(1))),
        ("history: expected at most 2", lambda: bad_pair_weights(HISTORY, NOW, total_epochs=2)),
        ("losses: expected shape", lambda: bad_pair_weights(HISTORY, NOW[:2], total_epochs=3)),
        ("views: expected", lambda: pair_losses(torch.zeros(3, 2, 2))),
    ],
)
def test_wrong_arguments_are_named(words, call):
    with pytest.raises(ValueError, match=words):
        call()
