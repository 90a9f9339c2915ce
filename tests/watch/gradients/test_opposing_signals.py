"""Opposing groups: the toy by the numbers of the card and by autograd, planted swings, and what a probe follows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from steepest.core.probe import Moment
from steepest.watch.gradients import OpposingSignalMonitor, OpposingToy, find_opposing_groups


def toy_of(seed, lr, steps=300):
    generator = torch.Generator().manual_seed(seed)
    beta = torch.randn(10, generator=generator, dtype=torch.float64)
    return OpposingToy(2 * beta / beta.norm()).run(lr, steps, generator=generator)


def planted(steps=30, samples=200):
    """Changes of losses: two groups of five that swing against each other, others that hardly move; shuffled."""
    generator = torch.Generator().manual_seed(0)
    swing = torch.randn(steps, 1, generator=generator, dtype=torch.float64)
    changes = 0.05 * torch.randn(steps, samples, generator=generator, dtype=torch.float64) - 0.01
    changes[:, :5] += swing
    changes[:, 5:10] -= swing * (1 + 0.1 * torch.arange(5))
    return changes


@pytest.mark.holds("opposing-signals", 1)
def test_where_the_flow_of_gradients_ends():
    """Also by integration: the curvature at the end of the flow, in steps of 4e-3, which move delta by their size."""
    toy = OpposingToy(torch.tensor([0.0, 2.0]), s=10.0, p=0.1)
    assert toy.limit(0.0) == pytest.approx(20.0, rel=1e-12)
    assert toy.limit(0.0) / (0.1 * 100) == pytest.approx(2.0, rel=1e-12)
    history = toy.run(4e-3, 2000, generator=torch.Generator().manual_seed(0))
    delta = float(history.c[0] ** 2 - history.b[0] @ history.b[0])
    assert float(history.along[-1]) == pytest.approx(toy.limit(delta), rel=2e-3)


@pytest.mark.holds("opposing-signals", 2)
@pytest.mark.parametrize("seed", range(3))
def test_a_small_rate_does_not_swing(seed):
    history = toy_of(seed, 0.05)
    assert float(history.along.max()) < 40
    assert float(history.sharpness[-1]) == pytest.approx(20.4, abs=0.06)
    assert float(history.losses[-1]) == pytest.approx(0.05, abs=1e-6)
    assert bool((history.losses.diff() <= 1e-12).all())


@pytest.mark.holds("opposing-signals", 3)
@pytest.mark.parametrize("seed", range(1, 4))
def test_a_large_rate_swings_and_falls_back(seed):
    history = toy_of(seed, 0.12)
    first = int((history.sharpness > 2 / 0.12).nonzero()[0])
    assert first in (14, 15)
    assert float(history.losses[first:].max()) > 0.5
    assert float(history.sharpness[-1]) == pytest.approx(15.4, abs=0.1)
    changes = history.groups.diff(dim=0)[first : first + 60].numpy()
    assert np.corrcoef(changes.T)[0, 1] == pytest.approx(-0.87, abs=0.01)


def test_the_toy_is_autograd_on_its_samples():
    toy, generator = OpposingToy(torch.tensor([1.0, -1.5]), s=4.0, p=0.22, a=0.7, n=50), torch.Generator()
    history = toy.run(0.1, 5, 0.4, generator=generator.manual_seed(3))
    x, y = toy.samples(generator.manual_seed(3))
    assert int((x[:, -1] == 4).sum()) == 12
    assert float(history.c[0]) == 0.4
    assert torch.equal(history.b[0], 0.01 * torch.randn(3, generator=generator, dtype=torch.float64))
    for step in range(6):
        w = torch.cat([history.c[step][None], history.b[step]]).requires_grad_()

        def loss(w):
            return 0.5 * (w[0] * (x @ w[1:]) - y).square().mean()

        (slope,) = torch.autograd.grad(loss(w), w)
        hessian = torch.autograd.functional.hessian(loss, w.detach())
        assert float(history.losses[step]) == pytest.approx(float(loss(w.detach())), rel=1e-10)
        assert float(history.sharpness[step]) == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-10)
        assert float(history.along[step]) == pytest.approx(float(hessian[-1, -1]), rel=1e-10)
        one = 0.5 * (w[0] * (x @ w[1:]) - y).square().detach()
        torch.testing.assert_close(history.groups[step], one[[0, 9]])
        if step < 5:
            following = torch.cat([history.c[step + 1][None], history.b[step + 1]])
            torch.testing.assert_close(following, (w - 0.1 * slope).detach())
    assert math.isnan(toy.run(1e3, 30).sharpness[-1])


@pytest.mark.holds("opposing-signals", 4)
def test_permuted_samples_and_identical_ones():
    changes = planted()
    before = torch.zeros_like(changes)
    pair = find_opposing_groups(before, changes, k=5)[0]
    assert {tuple(pair.first.tolist()), tuple(pair.second.tolist())} == {(0, 1, 2, 3, 4), (5, 6, 7, 8, 9)}
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    permuted = find_opposing_groups(before, changes[:, order], k=5)[0]
    assert torch.equal(order[permuted.first].sort().values, pair.first)
    assert torch.equal(order[permuted.second].sort().values, pair.second)
    assert permuted.correlation == pytest.approx(pair.correlation)
    for one in (changes[:, :1], torch.zeros(30, 1)):
        assert find_opposing_groups(torch.zeros(30, 50), one.expand(30, 50)) == []


def test_numbers_of_a_pair_by_numpy():
    changes = planted()
    pair = find_opposing_groups(torch.ones_like(changes), 1 + changes, k=5)[0]
    d = changes.numpy()
    a, b = d[:, pair.first], d[:, pair.second]
    assert pair.correlation == pytest.approx(np.corrcoef(a.mean(1), b.mean(1))[0, 1], rel=1e-9)
    moved = np.abs(a.sum(1)).sum() + np.abs(b.sum(1)).sum()
    assert pair.share == pytest.approx(moved / np.abs(d).sum(), rel=1e-9)
    assert math.isnan(pair.cosine)
    assert 5 in pair.first or 9 in pair.first, "the sample that moves most stands in the first group"


def test_gradients_must_oppose_and_be_long():
    changes = planted()
    before = torch.zeros_like(changes)
    gradients = 0.1 * torch.randn(200, 6, dtype=torch.float64)
    gradients[:5, 0], gradients[5:10, 0] = 5.0, -4.0
    pair = find_opposing_groups(before, changes, k=5, gradients=gradients)[0]
    means = [gradients[own].mean(0).numpy() for own in (pair.first, pair.second)]
    wanted = means[0] @ means[1] / np.linalg.norm(means[0]) / np.linalg.norm(means[1])
    assert pair.cosine == pytest.approx(wanted, rel=1e-9)
    for wrong in (gradients.abs(), 0.01 * gradients + torch.ones(200, 6) * torch.tensor([0.0, 1, 0, 0, 0, 0])):
        assert find_opposing_groups(before, changes, k=5, gradients=wrong.double()) == []


def test_thresholds_are_arguments():
    """A pair that correlates by -0.3, with gradients of a cosine of -0.3, 16 times the median's length."""
    generator = torch.Generator().manual_seed(0)
    one, two = torch.linalg.qr(torch.randn(30, 2, generator=generator, dtype=torch.float64))[0].T * 5
    one, two = one - one.mean(), two - two.mean()
    two = two - (one @ two) / (one @ one) * one
    two = (-0.3 * one / one.norm() + math.sqrt(0.91) * two / two.norm()) * one.norm()
    changes = 0.001 * torch.randn(30, 200, generator=generator, dtype=torch.float64)
    changes[:, :5] += one[:, None]
    changes[:, 5:10] += two[:, None]
    gradients = torch.zeros(200, 2, dtype=torch.float64)
    gradients[:, 1], gradients[:5], gradients[5:10] = 0.25, torch.tensor([5.0, 0.0]), torch.tensor([-1.2, 3.816])

    def pairs(**thresholds):
        return find_opposing_groups(torch.zeros_like(changes), changes, 5, **thresholds)

    assert pairs() == []
    assert pairs(correlation=-0.2)[0].correlation == pytest.approx(-0.3, abs=0.01)
    assert pairs(correlation=-0.2, gradients=gradients) == []
    (pair,) = pairs(correlation=-0.2, gradients=gradients, cosine=-0.2, excess=12.0)
    assert pair.cosine == pytest.approx(-0.3, abs=0.001)
    assert {len(pair.first), len(pair.second)} == {5}
    assert pairs(correlation=-0.2, gradients=gradients, cosine=-0.2, excess=17.0) == []
    gradients[5:10] *= 0.1
    assert pairs(correlation=-0.2, gradients=gradients, cosine=-0.2) == [], "both must be long"


def test_candidates_that_do_not_move_stand_in_no_group():
    changes = torch.zeros(20, 50)
    changes[:, 7] = torch.arange(20) % 2 - 0.5
    changes[:, [3, 30]] = -changes[:, 7:8]
    (pair,) = find_opposing_groups(torch.ones(20, 50), 1 + changes, k=5)
    assert sorted([pair.first.tolist(), pair.second.tolist()]) == [[3, 30], [7]]
    assert find_opposing_groups(torch.ones(20, 1), torch.ones(20, 1) + changes[:, 7:8]) == []


def two_means(rows):
    """Two means on the circle by loops: from the longest row and the one most opposed to it, until nothing moves."""
    patterns = [row / np.linalg.norm(row) for row in rows]
    start = max(range(len(rows)), key=lambda i: np.abs(rows[i]).mean())
    centres = [patterns[start], min(patterns, key=lambda pattern: pattern @ patterns[start])]
    groups = None
    while True:
        assigned = [int(pattern @ centres[1] > pattern @ centres[0]) for pattern in patterns]
        if assigned == groups:
            return [{i for i, group in enumerate(groups) if group == one} for one in (0, 1)]
        groups = assigned
        for one in (0, 1):
            mean = np.mean([pattern for pattern, group in zip(patterns, groups) if group == one], 0)
            centres[one] = mean / np.linalg.norm(mean)


def test_groups_are_two_means_by_a_loop():
    """Ten samples whose changes mix two series, at random angles: many move to the other mean on the way."""
    generator = np.random.default_rng(0)
    series = np.linalg.qr(generator.normal(size=(24, 2)))[0]
    series -= series.mean(0)
    pairs = 0
    for _ in range(60):
        angles = generator.uniform(0, 2 * np.pi, 10)
        rows = generator.uniform(0.5, 2, (10, 1)) * np.stack([np.cos(angles), np.sin(angles)], 1) @ series.T
        changes = torch.tensor(rows.T)
        for pair in find_opposing_groups(torch.zeros_like(changes), changes, k=10):
            assert [set(pair.first.tolist()), set(pair.second.tolist())] == two_means(rows)
            pairs += 1
    assert pairs > 30


def test_candidates_of_either_sign():
    """Losses that only rise and others that only fall, by much at the same steps."""
    generator = torch.Generator().manual_seed(2)
    swing = torch.rand(30, 1, generator=generator)
    changes = 0.01 * torch.randn(30, 40, generator=generator)
    changes[:, :3] += 0.1 + swing
    changes[:, 3:6] -= 0.1 + swing
    (pair,) = find_opposing_groups(torch.zeros(30, 40), changes, k=3)
    assert sorted([pair.first.tolist(), pair.second.tolist()]) == [[0, 1, 2], [3, 4, 5]]


def test_losses_that_move_together_or_are_not_finite():
    changes = planted().abs()
    assert find_opposing_groups(torch.zeros_like(changes), changes, k=5) == []
    changes[3, 4] = math.nan
    assert find_opposing_groups(torch.zeros_like(changes), changes, k=5) == []
    # two groups that move apart alike at every step do not correlate
    apart = torch.tensor([1.0, 1.0, -1.0, -1.0]).expand(20, 4)
    assert find_opposing_groups(torch.zeros(20, 4), apart) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_changes_of_half_losses_are_not_rounded(dtype):
    before = (0.3 + torch.rand(30, 200, generator=torch.Generator().manual_seed(1))).to(dtype)
    after = (before + 20 * planted()).to(dtype)
    (pair,) = find_opposing_groups(before, after, k=5)
    (wanted,) = find_opposing_groups(before.double(), after.double(), k=5)
    assert (pair.correlation, pair.share) == pytest.approx((wanted.correlation, wanted.share), rel=1e-6)


def test_the_monitor_follows_the_same_samples():
    """A line that swings across two outliers of opposite labels; rows by hand."""
    x, y = torch.tensor([[3.0], [3.0], [0.1]]), torch.tensor([[1.0], [-1.0], [0.0]])
    model, w, rows = nn.Linear(1, 1, bias=False), 0.2, []
    monitor = OpposingSignalMonitor((x, y), k=1, window=4)
    for step in range(1, 8):
        before, w = w, -0.9 * w + 0.01
        model.weight.data.fill_(w)
        rows.append([(v * w - t) ** 2 - (v * before - t) ** 2 for v, t in ((3, 1), (3, -1), (0.1, 0))])
        moment = Moment(
            step, "stepped", model, objective=mse_loss, inputs=x + step, targets=y,
            before={"weight": torch.tensor([[before]])},
        )  # fmt: skip
        reading = monitor.measure(moment)
        assert math.isnan(reading.numbers["pairs"]) == (step < 3)
        assert reading.numbers["change"] == pytest.approx(np.mean(rows[-1]), rel=1e-4, abs=1e-6)
        np.testing.assert_allclose(
            reading.arrays["mean absolute change"].values, np.abs(rows[-4:]).mean(0), rtol=1e-4, atol=1e-6
        )
    assert (reading.numbers["pairs"], reading.numbers["samples"]) == (1.0, 2.0)
    assert reading.numbers["correlation"] < -0.95
    monitor.reset()
    assert math.isnan(monitor.measure(moment).numbers["pairs"])
    unknown = Moment(8, "stepped", model, objective=mse_loss, inputs=x, targets=y)
    assert math.isnan(monitor.measure(unknown).numbers["change"]), "the weights before the step are not known"
    dropping = nn.Sequential(nn.Linear(1, 1), nn.Dropout()).train()
    still = {name: p.detach().clone() for name, p in dropping.named_parameters()}
    x, y = torch.ones(60, 1), torch.ones(60, 1)
    moment = Moment(1, "stepped", dropping, objective=mse_loss, inputs=x, targets=y, before=still)
    reading = OpposingSignalMonitor((x, y)).measure(moment)
    assert reading.arrays["mean absolute change"].values.tolist() == [0.0] * 60
    assert dropping[1].training


def test_the_monitor_goes_on_from_its_state():
    """It keeps the first 256 samples of the first batch that has any, and copies of everything."""
    torch.manual_seed(0)
    x, model = torch.randn(300, 2), nn.Linear(2, 1, bias=False)

    def moments():
        for step in range(1, 7):
            before = {"weight": model.weight.detach().clone()}
            model.weight.data.neg_().mul_(0.99)
            yield Moment(
                step, "stepped", model, objective=mse_loss, inputs=x + step, targets=torch.ones(300, 1), before=before
            )

    whole, halves, resumed = OpposingSignalMonitor(k=3), OpposingSignalMonitor(k=3), OpposingSignalMonitor(k=3)
    empty = Moment(1, "stepped", model, objective=mse_loss, inputs=x[:0], targets=x[:0, :1], before={})
    assert math.isnan(whole.measure(empty).numbers["change"])
    assert math.isnan(whole.measure(Moment(1, "stepped", model, objective=mse_loss)).numbers["change"])
    for moment in moments():
        reading = whole.measure(moment)
        if moment.step < 5:
            halves.measure(moment)
        if moment.step == 3:
            state = halves.state_dict()
            rows_then = [row.clone() for row in state["rows"]]
        if moment.step == 4:
            assert len(state["rows"]) == 3
            for tensor in (*halves._samples, *halves._rows):
                tensor.mul_(0)
            assert all(torch.equal(a, b) for a, b in zip(state["rows"], rows_then))
            resumed.load_state_dict(state)
            state["rows"].clear(), state["samples"][0].mul_(0)
        if moment.step >= 4:
            again = resumed.measure(moment)
    assert len(reading.arrays["mean absolute change"].values) == 256
    assert torch.equal(reading.arrays["mean absolute change"].values, again.arrays["mean absolute change"].values)
    assert reading.numbers == pytest.approx(again.numbers, nan_ok=True)
    given = OpposingSignalMonitor((x, x[:, :1]))
    assert given.state_dict()["samples"] is None
    given.load_state_dict(given.state_dict())
    assert given._samples is given.data


def test_what_it_refuses():
    before = torch.zeros(5, 4)
    with pytest.raises(ValueError, match="loss_after: expected shape"):
        find_opposing_groups(before, before[:, :3])
    with pytest.raises(ValueError, match=r"loss_before: expected losses \[steps, samples\] of at least three steps"):
        find_opposing_groups(before[:2], before[:2])
    with pytest.raises(ValueError, match="k: expected an integer >= 1"):
        find_opposing_groups(before, before, 0)
    with pytest.raises(ValueError, match=r"loss_before: expected losses \[steps, samples\] of at least three steps"):
        find_opposing_groups(before[:, :0], before[:, :0])
    for name, value in (
        ("correlation", -1.1),
        ("correlation", 1.1),
        ("cosine", -1.1),
        ("cosine", 1.1),
        ("excess", 0.0),
    ):
        with pytest.raises(ValueError, match=f"{name}: expected a number"):
            find_opposing_groups(before, before, **{name: value})
    with pytest.raises(ValueError, match="gradients: expected shape"):
        find_opposing_groups(before, before, gradients=torch.ones(3, 2))
    with pytest.raises(ValueError, match="p: expected a share with two outliers"):
        OpposingToy(torch.ones(2), p=0.01, n=20)
    for name, value in (("s", 0.0), ("p", 0.0), ("p", 1.0), ("p", math.nan), ("a", -1.0), ("n", 1)):
        with pytest.raises(ValueError, match=f"{name}: expected a"):
            OpposingToy(torch.ones(2), **{name: value})
    with pytest.raises(ValueError, match="p: expected a share with two outliers"):
        OpposingToy(torch.ones(2), p=0.99, n=20)
    with pytest.raises(ValueError, match="lr: expected a number > 0"):
        OpposingToy(torch.ones(2)).run(0.0)
    with pytest.raises(ValueError, match="steps: expected an integer >= 1"):
        OpposingToy(torch.ones(2)).run(0.1, 0)
    with pytest.raises(ValueError, match="c0: expected a"):
        OpposingToy(torch.ones(2)).run(0.1, c0=math.nan)
    for name, value in (("k", 0), ("window", 2), ("every", -1)):
        with pytest.raises(ValueError, match=f"{name}: expected an integer >="):
            OpposingSignalMonitor(**{name: value})
    with pytest.raises(ValueError, match="every: expected an odd number"):
        OpposingSignalMonitor(every=4)
