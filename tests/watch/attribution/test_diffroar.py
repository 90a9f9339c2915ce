"""Masks by rank, gradients that leave no trace, retraining on masked inputs, images of two blocks."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from steepest.watch.attribution import (
    BlockMNIST,
    DiffROAR,
    attribution_mask,
    block_images,
    diff_roar,
    input_gradient,
)

X, A = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[0.1, 0.4, 0.3, 0.2]])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.holds("diffroar", 1)
def test_the_masks_of_the_card():
    assert attribution_mask(X, A, keep=0.5, side="top").tolist() == [[0, 2, 3, 0]]
    assert attribution_mask(X, A, keep=0.5, side="bottom").tolist() == [[1, 0, 0, 4]]
    assert attribution_mask(X, A, keep=0.5, fill=-1.0).tolist() == [[-1, 2, 3, -1]]


def nearest_mean(x, y, seed):
    """A classifier by class means, with ties by random numbers of the seed."""
    means = torch.stack([x[y == c].flatten(1).mean(0) for c in range(2)])
    noise = 1e-6 * normal(2, seed=seed)
    return lambda rows: noise - torch.cdist(rows.flatten(1), means).square()


@pytest.mark.holds("diffroar", 2)
def test_all_coordinates_change_nothing():
    x, attr = normal(6, 2, 3), normal(6, 2, 3, seed=1)
    for side in ("top", "bottom"):
        assert torch.equal(attribution_mask(x, attr, 1.0, side, fill=9.0), x)
    y = torch.arange(6) % 2
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 2)).double()
    whole = diff_roar(nearest_mean, model, (x, y), (x, y), keeps=[1.0], seeds=(0, 1, 2))[1.0]
    assert torch.equal(whole.top, whole.bottom)
    assert whole.value == 0.0


@pytest.mark.holds("diffroar", 3)
def test_an_oracle_on_one_coordinate():
    """Over all combinations of signs, what is told by the others is right half the time, whatever the classifier."""
    x = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4))).repeat(2, 1)
    y = (x[:, 1] > 0).long()

    def oracle(model, inputs, target):
        return torch.tensor([0.0, 1.0, 0.0, 0.0]).expand_as(inputs)

    def network(inputs, target, seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), target).backward()
            optimizer.step()
        return model

    roar = diff_roar(network, nn.Identity(), (x, y), (x, y), keeps=(0.25, 0.5), attr=oracle, seeds=(0, 1))
    for keep, result in roar.items():
        assert result.keep == keep
        assert result.top.tolist() == [1.0, 1.0]
        assert result.bottom.tolist() == [0.5, 0.5]
        assert result.value == 0.5


@pytest.mark.holds("diffroar", 4)
def test_ranks_are_of_sizes_within_a_sample():
    x, attr = normal(50, 7), normal(50, 7, seed=1)
    for side in ("top", "bottom"):
        plain = attribution_mask(x, attr, 0.4, side)
        assert torch.equal(plain, attribution_mask(x, attr.abs(), 0.4, side))
        assert torch.equal(plain, attribution_mask(x, attr * normal(50, 1, seed=2).exp(), 0.4, side))
        assert torch.equal(plain, attribution_mask(x, -attr, 0.4, side))
    assert attribution_mask(X, torch.tensor([[0.1, -0.4, 0.3, 0.2]]), 0.25).tolist() == [[0, 2, 0, 0]]


@pytest.mark.holds("diffroar", 5)
def test_what_it_refuses():
    for keep in (0.0, -0.1, 1.01, math.nan):
        with pytest.raises(ValueError, match="keep: expected a number > 0 and <= 1"):
            attribution_mask(X, A, keep)
        with pytest.raises(ValueError, match="keeps: expected a number > 0 and <= 1"):
            diff_roar(nearest_mean, nn.Identity(), (X, X[:, 0].long()), (X, X[:, 0].long()), keeps=[keep])
        with pytest.raises(ValueError, match="keep: expected"):
            block_images(torch.rand(2, 4, 4), torch.arange(2)).null_share(torch.rand(2, 8, 4), keep)
    for wrong in (A[:, :3], A[0], A[..., None]):
        with pytest.raises(ValueError, match=r"attr: expected shape \(1, 4\)"):
            attribution_mask(X, wrong)
    with pytest.raises(ValueError, match="attr: expected a dimension of samples"):
        attribution_mask(X[0], A[0])
    with pytest.raises(ValueError, match="side: expected one of 'top', 'bottom'"):
        attribution_mask(X, A, side="left")
    y = torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match="of: expected one of"):
        input_gradient(nn.Identity(), X, y, of="prob")
    with pytest.raises(ValueError, match=r"y: expected values in 0\.\.3"):
        input_gradient(nn.Identity(), X, y + 4)
    with pytest.raises(ValueError, match=r"y: expected shape \(1\)"):
        input_gradient(nn.Identity(), X, y.expand(2))
    with pytest.raises(ValueError, match=r"model\(x\): expected 2 dimensions"):
        input_gradient(nn.Flatten(0), X, y)
    with pytest.raises(ValueError, match="batch_size: expected"):
        input_gradient(nn.Identity(), X, y, batch_size=0)
    for name in ("keeps", "seeds"):
        with pytest.raises(ValueError, match=f"{name}: expected at least one"):
            diff_roar(nearest_mean, nn.Identity(), (X, y), (X, y), **{name: ()})
    with pytest.raises(ValueError, match=r"test: expected shape \(1\)"):
        diff_roar(nearest_mean, nn.Identity(), (X, y), (X, y.expand(2)))
    with pytest.raises(ValueError, match=r"attr: expected shape \(1, 4\)"):
        diff_roar(nearest_mean, nn.Identity(), (X, y), (X, y), attr=lambda m, x, t: x[:, :2])
    with pytest.raises(ValueError, match=r"train_fn\(x, y, seed\)\(x\): expected 2 dimensions"):
        diff_roar(lambda x, y, s: lambda rows: rows[:, 0], nn.Identity(), (X, y), (X, y))
    with pytest.raises(ValueError, match="images: expected at least one"):
        block_images(torch.rand(2, 3, 4), torch.arange(2))
    with pytest.raises(ValueError, match="null: expected one of"):
        block_images(torch.rand(2, 4, 4), torch.arange(2), null="circle")
    with pytest.raises(ValueError, match=r"null: expected shape \(4, 4\)"):
        block_images(torch.rand(2, 4, 4), torch.arange(2), null=torch.zeros(4, 5))
    with pytest.raises(ValueError, match="position: expected one of"):
        block_images(torch.rand(2, 4, 4), torch.arange(2), position="left")
    with pytest.raises(ValueError, match="even height"):
        BlockMNIST(torch.rand(2, 5, 4), torch.arange(2), torch.zeros(2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"labels: expected shape \(2\)"):
        block_images(torch.rand(2, 4, 4), torch.arange(3))


def masked_by_numpy(x, attr, fraction, top):
    """As the publication's code ranks: by sorting sizes, then turned around."""
    rows, sizes = x.reshape(len(x), -1).copy(), np.abs(attr.reshape(len(x), -1))
    order = np.argsort(sizes, axis=1)
    order = order[:, ::-1] if top else order
    for row, places in zip(rows, order):
        row[places[math.ceil(fraction * rows.shape[1]) :]] = 0
    return rows.reshape(x.shape)


@pytest.mark.parametrize("fraction", [0.05, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("top", [True, False])
def test_masks_are_those_of_numpy(fraction, top):
    x, attr = normal(8, 3, 4, 5).numpy(), normal(8, 3, 4, 5, seed=1).numpy()
    got = attribution_mask(torch.as_tensor(x), torch.as_tensor(attr), fraction, "top" if top else "bottom")
    np.testing.assert_array_equal(got, masked_by_numpy(x, attr, fraction, top))


@pytest.mark.parametrize(
    ("keep", "d", "count"), [(0.07, 100, 7), (0.071, 100, 8), (0.1, 30, 3), (0.001, 10, 1), (0.55, 20, 11), (0.9, 3, 3)]
)
def test_how_many_stay(keep, d, count):
    ones = torch.ones(2, d)
    for side in ("top", "bottom"):
        assert attribution_mask(ones, normal(2, d), keep, side).sum(1).tolist() == [count, count]


def test_ties_have_a_fixed_order():
    x = torch.arange(1.0, 41.0)[None]
    for attr in (torch.zeros(1, 40), torch.full((1, 40), 2.0)):
        top, bottom = attribution_mask(x, attr, 0.5), attribution_mask(x, attr, 0.5, "bottom")
        assert torch.equal(top + bottom, x)
        assert torch.equal(top[0, :20], x[0, :20])
    attr = torch.zeros(1, 40)
    attr[0, 33] = torch.nan
    assert attribution_mask(x, attr, 1 / 40)[0, 33] == 34


def test_gradients_by_hand():
    """Of a network with one hidden layer, sample by sample."""
    first, last = normal(5, 3), normal(4, 5, seed=1)
    model = nn.Sequential(nn.Linear(3, 5, bias=False), nn.ReLU(), nn.Linear(5, 4, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(first)
        model[2].weight.copy_(last)
    x, y = normal(7, 3, seed=2), torch.tensor([0, 1, 2, 3, 3, 2, 1])
    logit, loss = input_gradient(model, x, y, batch_size=3), input_gradient(model, x, y, of="loss")
    for row, target, a, b in zip(x.numpy(), y.numpy(), logit.numpy(), loss.numpy()):
        hidden = first.numpy() @ row
        jacobian = last.numpy() @ ((hidden > 0)[:, None] * first.numpy())
        np.testing.assert_allclose(a, np.abs(jacobian[target]), rtol=1e-12)
        logits = last.numpy() @ hidden.clip(0)
        p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        np.testing.assert_allclose(b, np.abs((p - np.eye(4)[target]) @ jacobian), rtol=1e-10)


def test_gradients_leave_no_trace():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model[2].train(False)
    model[0].weight.requires_grad_(False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x, y, random = normal(6, 3).float().requires_grad_(), torch.arange(6) % 2, torch.get_rng_state()
    with torch.no_grad():
        got = input_gradient(model, x, y)
        same = input_gradient(model, x, y, batch_size=1)
    torch.testing.assert_close(got, same)
    assert not got.requires_grad
    assert (model.training, model[2].training, model[1].training) == (True, False, True)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not model[0].weight.requires_grad
    assert x.grad is None
    assert x.requires_grad
    assert torch.equal(torch.get_rng_state(), random)


def test_masks_of_one_model_for_training_and_test():
    train = normal(8, 2, 3), torch.arange(8) % 2
    test = normal(6, 2, 3, seed=1), torch.arange(6) // 3
    maps = {8: normal(8, 2, 3, seed=2), 6: normal(6, 2, 3, seed=3)}
    asked, trained, tested = [], [], []

    def attr(model, x, y):
        asked.append((model, x, y))
        return maps[len(x)]

    def train_fn(x, y, seed):
        trained.append((x, y, seed))

        class Sign(nn.Module):
            def forward(self, rows):
                assert not self.training
                tested.append(rows)
                return torch.stack([rows.flatten(1).sum(1), torch.zeros(len(rows))], 1)

        return Sign()

    model = nn.Identity()
    roar = diff_roar(train_fn, model, train, test, keeps=(0.2, 0.5), attr=attr, fill=0.25, seeds=(4, 5, 6))
    assert list(roar) == [0.2, 0.5]
    assert all(own[0] is model for own in asked)
    assert [len(own[1]) for own in asked] == [8, 6]
    assert torch.equal(asked[0][2], train[1])
    assert torch.equal(asked[1][2], test[1])
    assert [own[2] for own in trained] == [4, 5, 6] * 4
    calls = [(keep, side) for keep in (0.2, 0.5) for side in ("top", "bottom") for _ in range(3)]
    for (keep, side), (x, y, _), rows in zip(calls, trained, tested):
        assert torch.equal(x, attribution_mask(train[0], maps[8], keep, side, 0.25))
        assert torch.equal(y, train[1])
        assert torch.equal(rows, attribution_mask(test[0], maps[6], keep, side, 0.25))
    right = [float(((rows.flatten(1).sum(1) < 0).long() == test[1]).double().mean()) for rows in tested]
    assert roar[0.2].top.tolist() == right[:3]
    assert roar[0.2].bottom.tolist() == right[3:6]
    assert roar[0.5].top.tolist() == right[6:9]


def test_differences_of_seeds():
    roar = DiffROAR(0.1, torch.tensor([0.9, 0.7]), torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(roar.by_seed, torch.tensor([0.4, 0.2]))
    assert roar.value == pytest.approx(0.3)


@pytest.mark.parametrize("channels", [(), (2,)])
def test_blocks(channels):
    images = torch.rand(400, *channels, 8, 9, generator=torch.Generator().manual_seed(0))
    data = block_images(images, torch.arange(400) % 2, generator=torch.Generator().manual_seed(1))
    assert len(data) == 400
    assert data.images.shape == (400, *channels, 16, 9)
    image, label = data[3]
    assert torch.equal(image, data.images[3])
    assert int(label) == 1
    square = torch.full((8, 9), float(images.min()))
    for i, j in itertools.product(range(2, 6), range(2, 7)):
        if i in (2, 5) or j in (2, 6):
            square[i, j] = images.max()
    assert abs(int(data.signal_on_top.sum()) - 200) < 50  # five deviations
    for own, block, on_top, mask in zip(images, data.images, data.signal_on_top.tolist(), data.signal_mask):
        upper, lower = block[..., :8, :], block[..., 8:, :]
        signal, null = (upper, lower) if on_top else (lower, upper)
        assert torch.equal(signal, own)
        assert torch.equal(null, square.expand_as(null))
        assert torch.equal(block[mask].view(own.shape), own)
        assert int(mask.sum()) == own.numel()
    again = block_images(images, torch.arange(400) % 2, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again.images, data.images)


def test_where_and_what_blocks_are():
    images, labels = torch.rand(5, 4, 6), torch.arange(5)
    top, bottom = (block_images(images, labels, "blank", position) for position in ("top", "bottom"))
    assert torch.equal(top.images[:, :4], images)
    assert torch.equal(bottom.images[:, 4:], images)
    assert bool((top.images[:, 4:] == images.min()).all())
    assert top.signal_on_top.all()
    assert not bottom.signal_on_top.any()
    own = torch.rand(4, 6)
    assert torch.equal(block_images(images, labels, own, "bottom").images[:, :4], own.expand(5, 4, 6))


def test_share_of_the_block_without_information():
    data = block_images(torch.rand(12, 4, 5), torch.arange(12) % 2, generator=torch.Generator().manual_seed(0))
    attr = normal(12, 8, 5)
    for keep, count in ((1.0, 40), (0.1, 4), (0.3, 12)):
        for number, share in enumerate(data.null_share(attr, keep).tolist()):
            sizes = sorted(
                ((abs(float(attr[number, i, j])), i) for i, j in itertools.product(range(8), range(5))), reverse=True
            )[:count]
            outside = sum(a for a, i in sizes if (i < 4) != bool(data.signal_on_top[number]))
            assert share == pytest.approx(outside / sum(a for a, _ in sizes))
    assert torch.equal(data.null_share(data.signal_mask.float()), torch.zeros(12))
    assert bool(data.null_share(torch.zeros(12, 8, 5)).isnan().all())
