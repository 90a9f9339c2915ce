"""Positives drawn by their loss among those of their user."""

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

from steepest.losses.ranking.personal_loss_denoising import PersonalLossSampler, personal_loss_resample

SCORES = torch.tensor([[2.0, 1.0, -1.0]], dtype=torch.float64)
LOSSES = softplus(0.5 - SCORES)
CLICKS = torch.tensor([[0, 1], [0, 4], [0, 5], [0, 1], [1, 0], [1, 2], [2, 3], [2, 4], [2, 5], [2, 6], [2, 0]])
ITEMS = 8


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(losses, temperature, count=20_000, **options):
    wide = losses.expand(count, -1)
    mask = options.pop("mask", None)
    mask = None if mask is None else mask.expand(count, -1)
    index, _ = personal_loss_resample(wide, temperature, mask, seeded())
    return torch.bincount(index, minlength=losses.shape[1]) / count


def sampler(**options):
    return PersonalLossSampler(CLICKS, ITEMS, **{"pool": 3, "warmup_epochs": 0, "batch_size": 500, **options})


def flat(users, items):
    return torch.zeros(items.shape)


@pytest.mark.holds("personal-loss-denoising", 1)
def test_card_values_and_the_closed_form():
    assert LOSSES[0].tolist() == pytest.approx([0.201413, 0.474077, 1.701413], abs=5e-7)
    _, prob = personal_loss_resample(LOSSES, 0.5)
    assert prob[0].tolist() == pytest.approx([0.613708, 0.355737, 0.030555], abs=5e-7)
    powers = torch.sigmoid(SCORES - 0.5) ** (1 / 0.5)
    assert torch.allclose(prob, powers / powers.sum(), atol=1e-12)
    assert drawn(LOSSES, 0.5).tolist() == pytest.approx(prob[0].tolist(), abs=0.02)


@pytest.mark.holds("personal-loss-denoising", 2)
def test_temperature_goes_from_the_smallest_loss_to_uniform():
    _, prob = personal_loss_resample(LOSSES, 1e9)
    assert prob[0].tolist() == pytest.approx([1 / 3] * 3, abs=1e-8)
    for losses in (LOSSES, LOSSES + 1e4):
        index, prob = personal_loss_resample(losses, 1e-30)
        assert prob.tolist() == [[1.0, 0.0, 0.0]]
        assert index.tolist() == [0]


@pytest.mark.holds("personal-loss-denoising", 3)
def test_users_never_compete():
    losses = torch.rand(4, 6, generator=seeded(), dtype=torch.float64)
    _, prob = personal_loss_resample(losses, 0.3)
    _, moved = personal_loss_resample(losses + torch.tensor([0.0, 5.0, -2.0, 100.0])[:, None], 0.3)
    assert torch.allclose(prob, moved, atol=1e-12)
    _, alone = personal_loss_resample(losses[2:3], 0.3)
    assert torch.equal(alone, prob[2:3])


@pytest.mark.holds("personal-loss-denoising", 4)
def test_no_gradient_no_masked_entry_and_pools_of_one():
    losses = LOSSES.clone().requires_grad_()
    mask = torch.tensor([[False, True, True]])
    index, prob = personal_loss_resample(losses, 0.5, mask)
    assert not prob.requires_grad
    assert prob[0, 0] == 0.0
    assert prob.sum().item() == pytest.approx(1.0)
    assert drawn(LOSSES, 0.5, mask=mask)[0] == 0.0
    hidden = torch.tensor([[float("nan"), 1.0, 2.0]])  # what stands under the mask is never read
    assert personal_loss_resample(hidden, 0.5, mask)[1].isfinite().all()
    index, prob = personal_loss_resample(LOSSES[:, :1], 0.5)
    assert (index.tolist(), prob.tolist()) == ([0], [[1.0]])
    ordinary = sampler(pool=1)
    shares = torch.zeros(3, ITEMS)
    for epoch in range(40):
        for users, positives, _ in ordinary.epoch(epoch, None):  # nobody is asked for scores
            shares.index_put_((users, positives), torch.ones(len(users)), accumulate=True)
    for user in range(3):
        own = torch.unique(CLICKS[CLICKS[:, 0] == user, 1])
        share = shares[user] / shares[user].sum()
        assert share[own].tolist() == pytest.approx([1 / len(own)] * len(own), abs=0.02)


@pytest.mark.holds("personal-loss-denoising", 5)
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperatures_and_empty_rows_are_refused(temperature):
    with pytest.raises(ValueError, match="temperature: expected"):
        personal_loss_resample(LOSSES, temperature)
    with pytest.raises(ValueError, match="temperature: expected"):
        sampler(temperature=temperature)
    with pytest.raises(ValueError, match="mask: expected an item in every row"):
        personal_loss_resample(LOSSES.expand(2, 3), 0.5, torch.tensor([[True] * 3, [False] * 3]))


def test_other_arguments_are_refused():
    with pytest.raises(TypeError, match="mask: expected a boolean"):
        personal_loss_resample(LOSSES, 0.5, torch.ones(1, 3))
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="losses: expected finite numbers"):
            personal_loss_resample(LOSSES * wrong, 0.5)
    with pytest.raises(ValueError, match="at least one item without the user, got 'user 0 with all'"):
        PersonalLossSampler(torch.tensor([[0, 0], [0, 1]]), 2)
    with pytest.raises(ValueError, match="at least one interaction, got 'user 1 with none'"):
        PersonalLossSampler(torch.tensor([[0, 0], [2, 1]]), 4)
    with pytest.raises(ValueError, match=r"items in 0\.\.2, got 3"):
        PersonalLossSampler(torch.tensor([[0, 3]]), 3)
    for options in ({"pool": 0}, {"loss": "mse"}, {"warmup_epochs": -1}, {"batch_size": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            sampler(**options)
    with pytest.raises(ValueError, match="score: expected"):
        next(sampler().epoch(0, lambda users, items: torch.zeros(2)))


def test_half_losses_give_float32_and_empty_batches_nothing():
    index, prob = personal_loss_resample(LOSSES.half(), 0.5)
    assert prob.dtype == torch.float32
    index, prob = personal_loss_resample(torch.zeros(0, 3), 0.5)
    assert (index.shape, prob.shape) == ((0,), (0, 3))


def test_pools_are_of_the_user_and_distinct_where_there_are_enough():
    own = sampler()
    users = torch.randint(3, (300,), generator=seeded())
    pools = own.pools(users, 3, seeded(1))
    for user, pool in zip(users.tolist(), pools.tolist()):
        items = {*CLICKS[CLICKS[:, 0] == user, 1].tolist()}
        assert {*pool} <= items
        if len(items) >= 3:
            assert len({*pool}) == 3
    assert len({tuple(sorted(p)) for p in pools[users == 2].tolist()}) == 10  # all subsets of five items
    wide = own.pools(users, 20, seeded(1))
    assert wide.shape == (300, 20)


def test_negatives_are_uniform_over_what_the_user_has_nothing_to_do_with():
    own = sampler()
    for user in range(3):
        negatives = own.negatives(torch.full((6000,), user), seeded(user))
        free = [item for item in range(ITEMS) if item not in CLICKS[CLICKS[:, 0] == user, 1].tolist()]
        shares = torch.bincount(negatives, minlength=ITEMS) / 6000
        assert shares[free].tolist() == pytest.approx([1 / len(free)] * len(free), abs=0.03)
        assert shares.sum().item() == pytest.approx(shares[free].sum().item())


@pytest.mark.parametrize("loss", ["bpr", "bce"])
def test_positives_are_drawn_by_the_losses_of_the_model_as_it_is(loss):
    table = torch.randn(3, ITEMS, generator=seeded(3), dtype=torch.float64)
    own = sampler(pool=5, temperature=0.4, loss=loss, batch_size=20_000)
    ((users, positives, negatives),) = own.epoch(0, lambda users, items: table[users[:, None], items])
    items = torch.unique(CLICKS[CLICKS[:, 0] == 2, 1])  # five: the pool is all of them
    for negative in (1, 2, 7):
        rows = (users == 2) & (negatives == negative)
        margin = table[2, items] - (table[2, negative] if loss == "bpr" else 0.0)
        powers = torch.sigmoid(margin) ** (1 / 0.4)
        shares = torch.bincount(positives[rows], minlength=ITEMS)[items] / int(rows.sum())
        assert shares.tolist() == pytest.approx((powers / powers.sum()).tolist(), abs=0.04)


def test_the_first_epochs_are_ordinary_and_seeds_decide():
    own = sampler(warmup_epochs=2)
    asked = []

    def score(users, items):
        asked.append(items.shape)
        return flat(users, items)

    for epoch in range(3):
        before = len(asked)
        batches = list(own.epoch(epoch, score))
        assert len(batches) == len(own) == 1
        assert len(asked) - before == (epoch == 2)
    assert asked[-1] == (500, 4)

    def batches_of(seed, epoch):
        return [torch.stack(batch) for batch in sampler(seed=seed).epoch(epoch, flat)]

    for first, again, other, later in zip(batches_of(1, 0), batches_of(1, 0), batches_of(2, 0), batches_of(1, 1)):
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert not torch.equal(first, later)


def test_what_comes_twice_counts_once_and_users_come_uniformly():
    own = sampler(batch_size=9000)
    assert own.counts.tolist() == [3, 2, 5]
    ((users, _, _),) = own.epoch(0, flat)
    assert np.bincount(users.numpy()) / 9000 == pytest.approx([1 / 3] * 3, abs=0.02)
    assert len(sampler(batch_size=3)) == 4


def test_scoring_leaves_no_graph():
    weight = torch.randn(3, ITEMS, requires_grad=True)
    seen = []

    def score(users, items):
        scores = weight[users[:, None], items]
        seen.append(scores.requires_grad)
        return scores

    list(sampler().epoch(0, score))
    assert seen == [False]
