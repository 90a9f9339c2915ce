"""Correctness-aware calibration: the loss, and a temperature from transformed copies."""

from __future__ import annotations

import pytest
import torch
from scipy.ndimage import rotate as scipy_rotate
from torch import nn

from steepest.post.calibration import CorrectnessAwareLoss, TransformTemperatureCalibrator, correctness_aware_loss
from steepest.post.calibration.correctness_aware_calibration import rotate


def rows(*values):
    return torch.tensor(values, dtype=torch.float64).log()


CARD = rows([0.9, 0.05, 0.05], [0.6, 0.3, 0.1], [0.4, 0.35, 0.25]), torch.tensor([0, 1, 0])


def problem(n=60, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return z, torch.randint(classes, (n,), generator=generator)


def naive(z, y, balance):
    """Sample by sample in plain floats."""
    confidence, right = [], []
    for row, label in zip(z.tolist(), y.tolist()):
        exponentials = [torch.tensor(v, dtype=torch.float64).exp().item() for v in row]
        confidence.append(max(exponentials) / sum(exponentials))
        right.append(float(row.index(max(row)) == label))
    a = sum(right) / len(right)
    w = [(1 - a) * c + a * (1 - c) if balance and 0 < a < 1 else 1.0 for c in right]
    return sum(k * (m - c) ** 2 for k, m, c in zip(w, confidence, right)) / sum(w)


@pytest.mark.parametrize(("options", "low", "high"), [({}, 0.1, 10.0), ({"low": 0.5, "high": 2.0}, 0.5, 2.0)])
def test_temperatures_stay_in_their_range(options, low, high):
    z, _ = problem()
    calibrator = TransformTemperatureCalibrator(**options)
    for bias, wanted in ((-100.0, low), (100.0, high)):
        nn.init.constant_(calibrator.net[2].bias, bias)
        torch.testing.assert_close(calibrator.temperatures(z), torch.full((len(z),), wanted))


@pytest.mark.holds("correctness-aware-calibration", 1)
def test_card_values():
    assert correctness_aware_loss(*CARD, balance=False).item() == pytest.approx(0.243333, abs=5e-7)
    assert correctness_aware_loss(*CARD).item() == pytest.approx(0.2725)


@pytest.mark.parametrize("balance", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_naive_loop(seed, balance):
    z, y = problem(23, 4, seed)
    assert correctness_aware_loss(z, y, balance=balance).item() == pytest.approx(naive(z, y, balance))


def in_temperature(loss, z, y, t=1.0):
    temperature = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(z / temperature, y), temperature)
    return slope.item()


@pytest.mark.holds("correctness-aware-calibration", 2)
def test_a_narrow_error_is_flattened_where_cross_entropy_sharpens():
    z, y = rows([0.45, 0.40, 0.15]), torch.tensor([1])
    assert in_temperature(nn.functional.cross_entropy, z, y) == pytest.approx(0.0941, abs=5e-5)
    assert in_temperature(correctness_aware_loss, z, y) == pytest.approx(-0.0858, abs=5e-5)


@pytest.mark.holds("correctness-aware-calibration", 3)
def test_the_minimum():
    z = torch.tensor([[1e4, 0.0, 0.0], [0.0, 1e4, 0.0]])
    assert correctness_aware_loss(z, torch.tensor([0, 1])).item() == 0.0
    for seed in range(5):  # a wrong sample is never below 1/K^2, which an even softmax reaches
        z, _ = problem(20, 3, seed)
        wrong = (z.argmax(1) + 1) % 3
        assert correctness_aware_loss(z, wrong).item() > 1 / 9
    assert correctness_aware_loss(torch.zeros(1, 3), torch.tensor([1])).item() == pytest.approx(1 / 9)


@pytest.mark.holds("correctness-aware-calibration", 4)
def test_accuracy_stays_and_labels_may_be_permuted():
    z, y = problem()
    order = torch.tensor([3, 1, 4, 0, 2])
    place = order.argsort()
    assert correctness_aware_loss(z[:, order], place[y]).item() == pytest.approx(correctness_aware_loss(z, y).item())
    calibrator = TransformTemperatureCalibrator(lr=0.05, epochs=30).fit(z, y)
    assert calibrator.temperatures(z).std() > 1e-3
    assert torch.equal(calibrator.transform(z).argmax(1), z.argmax(1))


@pytest.mark.holds("correctness-aware-calibration", 5)
@pytest.mark.parametrize("t", [0.3, 1.0, 4.0])
def test_signs_in_the_temperature(t):
    z, _ = problem()
    for row in z[:, None]:
        best = row.argmax(1)
        assert in_temperature(correctness_aware_loss, row, best, t) >= 0
        assert in_temperature(correctness_aware_loss, row, (best + 1) % 5, t) <= 0


@pytest.mark.holds("correctness-aware-calibration", 6)
def test_refusals():
    z, y = problem()
    with pytest.raises(ValueError, match="at least one row"):
        correctness_aware_loss(z[:0], y[:0])
    with pytest.raises(ValueError, match="pred: expected"):
        CorrectnessAwareLoss()(z, y, pred=y + 5)
    for low in (0.0, -1.0):
        with pytest.raises(ValueError, match="low: expected a number > 0"):
            TransformTemperatureCalibrator(low=low)
    with pytest.raises(ValueError, match="high: expected"):
        TransformTemperatureCalibrator(low=2.0, high=1.0)
    with pytest.raises(ValueError, match="at least k = 6 classes"):
        TransformTemperatureCalibrator(k=6).fit(z, y)
    two = TransformTemperatureCalibrator([torch.abs, torch.neg])
    with pytest.raises(ValueError, match="views: expected logits of the 2 transformed copies"):
        two.fit(z, y)
    with pytest.raises(ValueError, match="views: expected shape"):
        two.fit(z, y, views=z[None])


@pytest.mark.parametrize("right", [True, False])
def test_one_sided_batches_fall_back_to_the_mean(right):
    z, _ = problem()
    y = z.argmax(1) if right else (z.argmax(1) + 1) % 5
    assert torch.equal(correctness_aware_loss(z, y), correctness_aware_loss(z, y, balance=False))
    assert correctness_aware_loss(z, y) > 0


def test_features_of_the_views():
    """The copies' probabilities at the original's best classes, in its order; the network by hand."""
    z, _ = problem(7)
    views = torch.stack([z.flip(1), 0.5 * z])
    calibrator = TransformTemperatureCalibrator([torch.abs, torch.neg], k=3, high=1e6, low=1e-6)
    wanted = []
    for n, row in enumerate(z):
        best = sorted(range(5), key=lambda j: -row[j])[:3]
        g = torch.tensor([v[n].softmax(0)[j] for v in views for j in best]).float()
        wanted.append(calibrator.net(g).item())
    torch.testing.assert_close(calibrator.temperatures(z, views), torch.tensor(wanted).clamp(1e-6, 1e6))
    torch.testing.assert_close(
        calibrator.scaled(z, views), z / calibrator.temperatures(z, views).double()[:, None], check_dtype=False
    )


def test_it_tells_right_from_wrong():
    """Where a view changes its answer only on wrong samples, the temperature learns to be high there."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(400, 5, generator=generator)
    z[torch.arange(400), z.argmax(1)] += 2.0
    wrong = torch.rand(400, generator=generator) < 0.3
    y = torch.where(wrong, (z.argmax(1) + 1) % 5, z.argmax(1))
    views = torch.where(wrong[:, None], z.roll(1, 1), z)[None]
    calibrator = TransformTemperatureCalibrator(lr=0.02, epochs=150)
    before = calibrator.scaled(z, views)
    calibrator.fit(z, y, views=views)
    t = calibrator.temperatures(z, views)
    assert t[wrong].mean() > 2 * t[~wrong].mean()
    assert correctness_aware_loss(calibrator.scaled(z, views), y) < correctness_aware_loss(before, y)


def test_model_stays_as_it_was():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 4)

        def forward(self, x):
            assert not self.training
            return self.head(self.norm(x))

    model, x = Net(), torch.randn(30, 6)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    calibrator = TransformTemperatureCalibrator([torch.neg], epochs=3).fit_model(model, x, torch.arange(30) % 4)
    assert model.training
    assert model.norm.training
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    model.eval()
    torch.testing.assert_close(calibrator.view_logits(model, x)[0], model(-x))


def test_rotation_against_scipy():
    image = torch.zeros(9, 9, dtype=torch.float64)
    image[3:6, 2:7] = torch.rand(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = scipy_rotate(image.numpy(), 20.0, reshape=False, order=1)
    found = rotate(image[None, None], 20.0).squeeze()
    torch.testing.assert_close(found, torch.as_tensor(wanted))
