"""h-calibration: the windowed loss, and the two calibrators trained with it."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from sklearn.cluster import KMeans

from steepest.core.allocations import peak_bytes
from steepest.post.calibration import (
    HCalibrationLoss,
    MonotonePiecewiseLinearCalibrator,
    TemperatureEnsembleCalibrator,
    h_calibration_loss,
)
from steepest.post.calibration._h_windows import error_and_slope

CARD = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]], dtype=torch.float64), torch.tensor([0, 1])
PLAIN = {"window": 2, "weighting": "mean", "leave_one_out": False, "scale": 1.0}


def problem(n=40, classes=4, seed=0, sharpness=3.0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return sharpness * z, torch.multinomial(z.softmax(1), 1, generator=generator).squeeze(1)


def naive_errors(pairs, window, eps):
    """Sorted p and t, by the definition."""
    pairs = sorted(pairs)
    r = [p - o for p, o in pairs]
    half = window // 2
    w = [sum(r[max(0, j - half) : j + half + 1]) / (window + 1) for j in range(len(r))]
    return [p for p, _ in pairs], [max(abs(v) - eps, 0.0) for v in w]


def lloyd(values, groups):
    """Group of each value by k-means from equally spaced centres, at most 30 rounds."""
    low, high = values[0], values[-1]
    centres = [low + (high - low) * (g + 0.5) / groups for g in range(groups)]
    for _ in range(30):
        labels = [sum((a + b) / 2 <= v for a, b in itertools.pairwise(centres)) for v in values]
        parts = [[v for v, label in zip(values, labels) if label == g] for g in range(groups)]
        moved = [sum(part) / len(part) if part else c for part, c in zip(parts, centres)]
        if moved == centres:
            break
        centres = moved
    return labels


def naive(p, y, window, weighting="mean", leave_one_out=True, eps=0.0, groups=5):
    classes = p.shape[1]
    values = []
    for e in range(classes) if leave_one_out else [None]:
        pairs = [(p[i, k].item(), float(y[i] == k)) for i in range(len(p)) if y[i] != e for k in range(classes)]
        if not pairs:
            continue
        own, t = naive_errors(pairs, window, eps)
        n, half = len(t), window // 2
        if weighting == "mean":
            values.append(sum(t) / n)
        elif weighting in ("width", "cluster"):
            labels = lloyd(own, groups) if weighting == "cluster" else [min(int(v * groups), groups - 1) for v in own]
            parts = [[t[i] for i in range(n) if labels[i] == g] for g in range(groups)]
            values.append(sum(sum(x) / len(x) for x in parts if x) / sum(bool(x) for x in parts))
        elif weighting == "density":
            values.append(sum(t[j] * (own[min(j + half, n - 1)] - own[max(j - half, 0)]) for j in range(n)) / window)
        else:
            near = [
                [abs(own[j] - own[i]) for i in range(max(j - half, 0), min(j + half + 1, n)) if i != j]
                for j in range(n)
            ]
            values.append(sum(a * sum(d) / len(d) for a, d in zip(t, near)))
    return sum(values) / len(values)


@pytest.mark.holds("h-calibration", 1)
def test_card_values():
    _, t = naive_errors([(0.7, 1), (0.2, 0), (0.1, 0), (0.5, 0), (0.4, 1), (0.1, 0)], 2, 0.0)
    assert t == pytest.approx([0.0667, 0.1333, 0.1, 0.0333, 0.1333, 0.0667], abs=5e-5)
    assert h_calibration_loss(*CARD, **PLAIN).item() == pytest.approx(0.088889, abs=5e-7)


ROUNDING = 160 * 160 * torch.finfo(torch.float64).eps
"""Prefix sums of 160 entries of at most 1, each off by a rounding of a sum of up to 160."""


@pytest.mark.parametrize("weighting", ["cluster", "mean", "width", "density", "distance"])
@pytest.mark.parametrize("leave_one_out", [True, False])
def test_naive_loops(weighting, leave_one_out):
    z, y = problem()
    p = z.softmax(1)
    found = h_calibration_loss(
        p, y, window=10, weighting=weighting, leave_one_out=leave_one_out, eps=0.01, clusters=5, scale=3.0
    )
    wanted = 3 * naive(p, y, 10, weighting, leave_one_out, 0.01)
    assert found.item() == pytest.approx(wanted, abs=3 * ROUNDING)


@pytest.mark.parametrize("weighting", ["cluster", "width"])
@pytest.mark.parametrize("labels", ["one class", "a class without samples", "extremes of one class"])
def test_naive_loops_where_classes_are_odd(weighting, labels):
    z, y = problem(30, 3)
    if labels == "one class":
        y = torch.full_like(y, 1)
    elif labels == "a class without samples":
        y = y.clamp_max(1)
    else:  # both ends of the sorted list are left out with class 2
        y[7], z[7] = 2, torch.tensor([-30.0, 0.0, 30.0])
    p = z.softmax(1)
    found = h_calibration_loss(p, y, window=4, weighting=weighting, clusters=5, scale=1.0)
    assert found.item() == pytest.approx(naive(p, y, 4, weighting), abs=ROUNDING)


def test_one_pass_is_held_at_a_time():
    """Twice the classes at the same number of entries take the same memory, not twice as much."""

    def peak(rows, classes):
        z, y = problem(rows, classes)
        p = z.softmax(1)
        return peak_bytes(lambda: error_and_slope(p, y, 20, 0.0, 15, "cluster", True)) / (8 * rows * classes)

    few, many = peak(400, 5), peak(50, 40)
    assert many < 1.5 * few
    assert many < 40  # arrays of N C numbers


def test_gradient_of_every_weighting_against_differences_of_the_value():
    """With "density" and "distance" the weights are constants: there the value is that of ones that don't move."""
    z, y = problem(12, 3)
    p = z.softmax(1)
    for weighting in ("cluster", "mean", "width"):
        for leave_one_out in (True, False):
            kind = {"window": 4, "weighting": weighting, "leave_one_out": leave_one_out, "scale": 1.0, "clusters": 3}
            assert torch.autograd.gradcheck(lambda x, kind=kind: h_calibration_loss(x, y, **kind), p.requires_grad_())


def test_transforms_and_compilation():
    z, y = problem(30, 3)
    p = z.softmax(1)

    def loss(x, target=y):
        return h_calibration_loss(x, target, window=4, scale=1.0)

    leaf = p.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(p), wanted)
    direction = torch.randn(30, 3, dtype=torch.float64)
    torch.testing.assert_close(torch.func.jvp(loss, (p,), (direction,))[1], (wanted * direction).sum())
    both = torch.stack([p, p.flip(0)])
    torch.testing.assert_close(torch.vmap(loss)(both), torch.stack([loss(p), loss(p.flip(0))]))
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(both)[0], wanted)
    torch.testing.assert_close(
        torch.vmap(loss, in_dims=(None, 1))(p, torch.stack([y, y.flip(0)], 1)),
        torch.stack([loss(p), loss(p, y.flip(0))]),
    )
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (found,) = torch.autograd.grad(compiled(leaf), leaf)
    torch.testing.assert_close(found, wanted)
    (batched,) = torch.autograd.grad(loss(leaf), leaf, torch.tensor([1.0, 2.0]).double(), is_grads_batched=True)
    torch.testing.assert_close(batched, torch.stack([wanted, 2 * wanted]))
    assert loss(p.to("meta"), y.to("meta")).shape == ()


def test_clusters_against_scikit_learn():
    """The same start, the same groups: then the mean of the groups' means."""
    z, y = problem(60)
    p = z.softmax(1)
    pairs = [(a, float(k == label)) for row, label in zip(p.tolist(), y.tolist()) for k, a in enumerate(row)]
    own, t = naive_errors(pairs, 10, 0.0)
    values = torch.tensor(own, dtype=torch.float64)
    start = values[0] + (values[-1] - values[0]) * (torch.arange(6) + 0.5) / 6
    groups = KMeans(6, init=start[:, None].numpy(), n_init=1, max_iter=30, tol=0.0).fit(values[:, None].numpy())
    errors, labels = torch.tensor(t, dtype=torch.float64), torch.as_tensor(groups.labels_)
    wanted = sum(errors[labels == g].mean().item() for g in range(6)) / 6
    found = h_calibration_loss(p, y, window=10, clusters=6, leave_one_out=False, scale=1.0)
    assert found.item() == pytest.approx(wanted)


@pytest.mark.holds("h-calibration", 2)
def test_zero():
    z, y = problem()
    assert h_calibration_loss(z.softmax(1), y, window=10, eps=1.0).item() == 0.0
    hot = torch.nn.functional.one_hot(y, 4).double()
    assert h_calibration_loss(hot, y, window=10).item() == 0.0
    assert h_calibration_loss(hot.roll(1, 1), y, window=10).item() > 0.0


@pytest.mark.holds("h-calibration", 3)
@pytest.mark.parametrize("weighting", ["cluster", "mean", "density"])
def test_invariance(weighting):
    z, y = problem()
    p = z.softmax(1)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    classes = torch.tensor([2, 0, 3, 1])
    kind = {"window": 10, "weighting": weighting}
    wanted = h_calibration_loss(p, y, **kind).item()
    assert h_calibration_loss(p[order], y[order], **kind).item() == pytest.approx(wanted, rel=1e-9)
    assert h_calibration_loss(p[:, classes], classes.argsort()[y], **kind).item() == pytest.approx(wanted, rel=1e-9)
    assert h_calibration_loss(p, y.roll(1), **kind).item() != pytest.approx(wanted, rel=1e-3)


@pytest.mark.holds("h-calibration", 4)
def test_temperature_ensemble():
    z, _ = problem()
    torch.testing.assert_close(TemperatureEnsembleCalibrator(1).probabilities(z), z.softmax(1))
    calibrator = TemperatureEnsembleCalibrator(5)
    with torch.no_grad():
        calibrator.inverse.copy_(torch.tensor([-0.1, 0.4, -1.0, 2.0, 3.0]))
        calibrator.weight.copy_(torch.tensor([1.0, -2.0, 0.0, 3.0, 0.5]))
    found = calibrator.probabilities(z)
    wanted = sum(
        w * torch.softmax(a * z, 1) for a, w in zip((0.1, 0.4, 1.0, 2.0, 3.0), torch.tensor([1, 2, 0, 3, 0.5]) / 6.5)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.sum(1), torch.ones(40, dtype=torch.float64))
    assert torch.equal(found.argmax(1), z.argmax(1))


@pytest.mark.holds("h-calibration", 5)
@pytest.mark.parametrize("weighting", ["mean", "cluster"])
def test_gradient_with_order_and_groups_constant(weighting):
    """The sign of each window, over window and group size, spread to the members of the window."""
    z, y = problem(12, 3)
    p = z.softmax(1).requires_grad_()
    loss = h_calibration_loss(p, y, window=4, clusters=3, weighting=weighting, leave_one_out=False, scale=1.0)
    (found,) = torch.autograd.grad(loss, p)
    flat = p.detach().flatten()
    order = flat.argsort()
    r = (flat - torch.nn.functional.one_hot(y, 3).double().flatten())[order]
    sizes = torch.ones(36)
    if weighting == "cluster":
        start = (flat.min() + (flat.max() - flat.min()) * (torch.arange(3) + 0.5) / 3)[:, None].numpy()
        labels = torch.as_tensor(KMeans(3, init=start, n_init=1, tol=0.0).fit(flat[order][:, None].numpy()).labels_)
        sizes = torch.bincount(labels)[labels] * 3
    else:
        sizes = sizes * 36
    wanted = torch.zeros(36, dtype=torch.float64)
    for j in range(36):
        inside = range(max(0, j - 2), min(36, j + 3))
        sign = r[list(inside)].sum().sign()
        for i in inside:
            wanted[order[i]] += sign / 5 / sizes[j]
    torch.testing.assert_close(found.flatten(), wanted)


@pytest.mark.holds("h-calibration", 6)
def test_windows():
    z, y = problem(6, 3)
    p = z.softmax(1)
    for call in (lambda: h_calibration_loss(p, y, window=3), lambda: HCalibrationLoss(window=1)):
        with pytest.raises(ValueError, match="window: expected an even number"):
            call()
    with pytest.warns(UserWarning, match="window: 200 is more than 18 entries allow, 16 is used"):
        found = h_calibration_loss(p, y, leave_one_out=False)
    assert found == h_calibration_loss(p, y, window=16, leave_one_out=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        h_calibration_loss(p, y, window=16, leave_one_out=False)


def test_two_classes_take_one_pass_and_an_empty_event_is_left():
    z, y = problem(20, 2)
    p = z.softmax(1)
    assert h_calibration_loss(p, y, window=4) == h_calibration_loss(p, y, window=4, leave_one_out=False)
    z, _ = problem(20, 3)
    same = torch.zeros(20, dtype=torch.long)
    every = [naive(z.softmax(1), same, 4, leave_one_out=False)]
    found = h_calibration_loss(z.softmax(1), same, window=4, weighting="mean", scale=1.0)
    assert found.item() == pytest.approx(every[0])


def test_refusals():
    p, y = CARD
    with pytest.raises(ValueError, match=r"values in 0\.\.1"):
        h_calibration_loss(p + 1, y)
    assert h_calibration_loss(p * (1 + 1e-7), y, **PLAIN).item() == pytest.approx(0.088889, abs=1e-6)
    assert h_calibration_loss(torch.tensor([[1 + 1.2e-7, 0.0, 0.0]]), torch.tensor([0]), window=0) < 1.0
    with pytest.raises(ValueError, match="at least one row"):
        h_calibration_loss(p[:0], y[:0])
    with pytest.raises(ValueError, match="weighting: expected one of"):
        HCalibrationLoss(weighting="median")


def test_piecewise_linear_map_is_the_integral_of_its_slopes():
    calibrator = MonotonePiecewiseLinearCalibrator(50)
    with torch.no_grad():
        calibrator.slopes.copy_(torch.randn(50, generator=torch.Generator().manual_seed(0)))
    z, _ = problem(10, 3, sharpness=30.0)
    z[0] *= 10
    depth = -z.log_softmax(1)
    slopes = calibrator.slopes.detach().abs().double()

    def integral(u):
        whole = sum(slopes[s].item() * min(max(u - 2 * s, 0.0), 2.0) for s in range(50))
        return whole + max(u - 100.0, 0.0) * slopes[-1].item()

    wanted = torch.tensor([[-integral(u) for u in row] for row in depth.tolist()], dtype=torch.float64)
    torch.testing.assert_close(calibrator.probabilities(z), wanted.softmax(1))
    torch.testing.assert_close(MonotonePiecewiseLinearCalibrator(7).probabilities(z), z.softmax(1))


@pytest.mark.parametrize("kind", [TemperatureEnsembleCalibrator, MonotonePiecewiseLinearCalibrator])
def test_training_lowers_the_loss_and_keeps_the_best(kind):
    z, y = problem(150, 3, sharpness=4.0)
    loss = HCalibrationLoss(window=40, scale=1.0)
    values = []
    calibrator = kind(loss=lambda p, t: values.append(loss(p, t)) or values[-1], lr=0.05, epochs=40)
    before = loss(calibrator.probabilities(z), y)
    calibrator.fit(z, y)
    assert loss(calibrator.transform(z), y).item() == pytest.approx(min(v.item() for v in values))
    assert min(values) < 0.7 * before
