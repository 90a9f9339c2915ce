"""Measures of calibration, temperature scaling, and the study over classifiers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import kendalltau
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score
from torchmetrics.functional.classification import multiclass_calibration_error

from steepest.post.calibration import (
    TemperatureCalibrator,
    calibration_report,
    calibration_study,
    classwise_ece,
    ece,
    ece_equal_mass,
    kde_calibration_error,
    ks_calibration_error,
    mce,
    mmce,
    temperature_scale,
)

SURE = torch.tensor([0.95, 0.85, 0.75, 0.65, 0.55], dtype=torch.float64)
FIVE = torch.stack([SURE, 1 - SURE], 1), torch.tensor([0, 0, 1, 0, 1])
THREE = (
    torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.2, 0.2, 0.6]], dtype=torch.float64),
    torch.tensor([0, 0, 2]),
)
ERRORS = [ece, ece_equal_mass, mce, classwise_ece, ks_calibration_error, kde_calibration_error, mmce]


def problem(rows=300, classes=4, seed=0, sharpness=2.0):
    """Logits ``sharpness`` times too large, with labels drawn from the softmax without that factor."""
    generator = torch.Generator().manual_seed(seed)
    z = 1.5 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    return sharpness * z, torch.multinomial(z.softmax(1), 1, generator=generator).squeeze(1)


def pairs(p, y):
    """Confidence and correctness, as lists."""
    best = p.max(1)
    return best.values.tolist(), (best.indices == y).double().tolist()


def naive_bins(p, c, bins):
    """Gap and count of each bin that holds something, sample by sample."""
    inside = [[i for i, v in enumerate(p) if b / bins < v <= (b + 1) / bins] for b in range(bins)]
    return [(abs(sum(c[i] - p[i] for i in each)) / len(each), len(each)) for each in inside if each]


@pytest.mark.holds("calibration-benchmark", 1)
def test_card_values():
    assert ece(*FIVE, bins=15) == pytest.approx(0.37)
    assert ece(*FIVE, bins=2) == pytest.approx(0.15)
    assert ece(*FIVE, bins=1) == pytest.approx(0.15)
    assert mce(*FIVE, bins=15) == pytest.approx(0.75)
    assert ks_calibration_error(*FIVE) == pytest.approx(0.19)
    assert mmce(*FIVE) == pytest.approx(0.151945, abs=5e-7)


@pytest.mark.holds("calibration-benchmark", 2)
@pytest.mark.parametrize("function", ERRORS)
def test_a_constant_and_right_confidence_has_no_error(function):
    p = torch.tensor([[0.8, 0.2]], dtype=torch.float64).expand(10, 2)
    for order in (torch.arange(10), torch.tensor([9, 0, 3, 8, 1, 2, 4, 5, 6, 7])):
        y = torch.tensor([0] * 8 + [1] * 2)[order]
        assert function(p, y) == pytest.approx(0.0, abs=1e-7)  # a root of rounding in mmce
    assert function(p, 1 - y) > 0.3


@pytest.mark.holds("calibration-benchmark", 2)
@pytest.mark.parametrize("seed", range(5))
def test_finer_bins_never_lower_it(seed):
    z, y = problem(seed=seed)
    p = z.softmax(1)
    chain = [ece(p, y, bins=b) for b in (1, 5, 10, 20, 100, 200)]
    best = p.max(1)
    right = (best.indices == y).double()
    assert chain[0] == pytest.approx(float((right.mean() - best.values.mean()).abs()))
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(chain))


@pytest.mark.holds("calibration-benchmark", 3)
def test_one_sample_a_bin_is_the_mean_distance():
    z, y = problem(60)
    p, c = pairs(z.softmax(1), y)
    wanted = sum(abs(a - b) for a, b in zip(p, c)) / 60
    assert ece_equal_mass(z.softmax(1), y, bins=60) == pytest.approx(wanted)
    assert ece_equal_mass(z.softmax(1), y, bins=500) == pytest.approx(wanted)


@pytest.mark.holds("calibration-benchmark", 4)
def test_card_values_of_three_classes():
    assert classwise_ece(*THREE, bins=1) == pytest.approx(0.2222, abs=5e-5)
    found = calibration_report(THREE[0].log(), THREE[1], bins=(1,))
    assert found["classwise 1"] == pytest.approx(0.2222, abs=5e-5)
    assert found["brier"] == pytest.approx(0.4133, abs=5e-5)
    assert found["nll"] == pytest.approx(0.6905, abs=5e-5)


@pytest.mark.holds("calibration-benchmark", 5)
def test_temperature_keeps_accuracy_and_is_one_where_calibrated():
    z, y = problem(sharpness=3.0)
    t = temperature_scale(z, y)
    found = calibration_report(z, y, bins=(15,), held_out=(z, y))
    assert torch.equal((z / t).argmax(1), z.argmax(1))
    assert found["ece 15 scaled"] < found["ece 15"]
    assert found["temperature"] == t
    assert temperature_scale(z / t, y) == pytest.approx(1.0, abs=1e-8)
    # labels in the very proportions of the softmax: calibrated by construction
    shares = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64)
    assert temperature_scale(shares.log().expand(10, 3), torch.tensor([0] * 7 + [1, 1, 2])) == pytest.approx(1.0)


@pytest.mark.holds("calibration-benchmark", 7)
def test_a_probability_of_one_is_in_the_last_bin():
    """torchmetrics puts it into a bin of its own, and gives .525."""
    p = torch.tensor([[0.95, 0.05], [1.0, 0.0]], dtype=torch.float64)
    assert ece(p, torch.tensor([0, 1]), bins=15) == pytest.approx(0.475)
    assert multiclass_calibration_error(p, torch.tensor([0, 1]), 2, n_bins=15).item() == pytest.approx(0.525)


@pytest.mark.holds("calibration-benchmark", 7)
def test_temperature_of_four_rows():
    """Three of four right: the optimum has softmax 3/4, a gap of log 3."""
    z, y = torch.tensor([[2.0, 0.0]], dtype=torch.float64).expand(4, 2), torch.tensor([0, 0, 0, 1])
    t = temperature_scale(z, y)
    assert t == pytest.approx(2 / math.log(3), rel=1e-9)
    assert round(t, 6) == 1.820478
    assert round(calibration_report(z, y, bins=(15,), held_out=(z, y))["nll scaled"], 6) == 0.562335


def test_temperature_against_a_search_of_the_likelihood():
    z, y = problem(seed=3, sharpness=0.4)

    def nll(log_t):
        return torch.nn.functional.cross_entropy(z / math.exp(log_t), y).item()

    best = minimize_scalar(nll, bounds=(-5, 5), method="bounded", options={"xatol": 1e-9}).x
    assert temperature_scale(z, y) == pytest.approx(math.exp(best), rel=1e-5)


def test_temperature_at_the_ends_of_its_range():
    z = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    assert temperature_scale(z, torch.tensor([0, 1])) == 1e-3
    assert temperature_scale(z, torch.tensor([1, 0])) == 1e3
    found = TemperatureCalibrator().fit_transform(1e4 * z, torch.tensor([0, 1]))
    assert bool(torch.isfinite(found).all())


@pytest.mark.holds("calibration-benchmark", 6)
@pytest.mark.parametrize("function", ERRORS)
def test_what_is_no_probability_is_refused(function):
    p, y = FIVE
    for bad, label in (
        (2 * p, y),
        (p * 0.9, y),
        (p * float("nan"), y),
        (torch.stack([1 + SURE, -SURE], 1), y),
        (p[:0], y[:0]),
        (p, y + 2),
        (p, y[:-1]),
    ):
        with pytest.raises(ValueError, match="expected"):
            function(bad, label)
    with pytest.raises(TypeError, match="expected"):
        function(p.tolist(), y)


def test_half_precision_is_taken():
    p, y = FIVE
    assert ece(p.bfloat16(), y) == pytest.approx(0.37, abs=0.01)


@pytest.mark.holds("calibration-benchmark", 6)
@pytest.mark.parametrize("bins", [1, 10, 15, 33])
def test_torchmetrics_agrees(bins):
    z, y = problem(500, 5)
    p = z.softmax(1)
    for function, norm in ((ece, "l1"), (mce, "max")):
        wanted = multiclass_calibration_error(p, y, 5, n_bins=bins, norm=norm).item()
        assert function(p, y, bins=bins) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_naive_loops(seed):
    z, y = problem(80, 3, seed)
    probabilities = z.softmax(1)
    p, c = pairs(probabilities, y)
    n = len(p)
    gaps = naive_bins(p, c, 15)
    assert ece(probabilities, y) == pytest.approx(sum(g * k for g, k in gaps) / n)
    assert mce(probabilities, y) == pytest.approx(max(g for g, _ in gaps))
    order = sorted(range(n), key=lambda i: p[i])
    parts = np.array_split(order, 8)
    wanted = sum(abs(sum(c[i] - p[i] for i in part)) for part in parts) / n
    assert ece_equal_mass(probabilities, y, bins=8) == pytest.approx(wanted)
    wanted = 0.0
    for k in range(3):
        own = probabilities[:, k].tolist()
        wanted += sum(g * m for g, m in naive_bins(own, (y == k).double().tolist(), 15)) / n / 3
    assert classwise_ece(probabilities, y) == pytest.approx(wanted)
    total, largest = 0.0, 0.0
    for i in order:
        total += (c[i] - p[i]) / n
        largest = max(largest, abs(total))
    assert ks_calibration_error(probabilities, y) == pytest.approx(largest)
    square = sum((c[i] - p[i]) * (c[j] - p[j]) * math.exp(-abs(p[i] - p[j]) / 0.4) for i in range(n) for j in range(n))
    assert mmce(probabilities, y) == pytest.approx(math.sqrt(square) / n)
    wanted = 0.0
    for a in p:
        weights = [sum(math.exp(-0.5 * ((a - m) / 0.1) ** 2) for m in (b, -b, 2 - b)) for b in p]
        wanted += abs(a - sum(w * o for w, o in zip(weights, c)) / sum(weights)) / n
    assert kde_calibration_error(probabilities, y, width=0.1) == pytest.approx(wanted)


def test_ties_carry_no_order():
    """Saturated confidences in any order give one number."""
    p = torch.tensor([[1.0, 0.0]] * 6 + [[0.6, 0.4]] * 4).repeat(4, 1)
    y = torch.tensor([0, 1, 0, 0, 1, 0, 1, 0, 0, 1]).repeat(4)
    for seed in range(4):
        order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
        for function in ERRORS:
            assert function(p[order], y[order]) == pytest.approx(function(p, y), abs=1e-12)


def test_equal_mass_classwise_over_class_columns():
    z, y = problem(90, 3)
    p = z.softmax(1)
    wanted = 0.0
    for k in range(3):
        order = p[:, k].argsort()
        gap = (y == k).double() - p[:, k]
        wanted += sum(abs(gap[part].sum().item()) for part in order.chunk(9)) / 90 / 3
    assert classwise_ece(p, y, bins=9, equal_mass=True) == pytest.approx(wanted)


def test_report_has_every_measure():
    z, y = problem(200)
    far = {"noise": 0.3 * z.flip(0), "other": 0.1 * z}
    found = calibration_report(z, y, held_out=problem(seed=1), ood_logits=far)
    assert len(found) == 90 + 12 + 2
    assert sum({"5", "500"} & set(name.split()) != set() for name in found) == 20
    p = z.softmax(1)
    assert found["nll"] == pytest.approx(log_loss(y.numpy(), p.numpy()))
    assert found["brier"] == pytest.approx(brier_score_loss(y.numpy(), p.numpy(), scale_by_half=False))
    wanted = roc_auc_score([1] * 200 + [0] * 200, torch.cat([p, far["other"].softmax(1)]).max(1).values.numpy())
    assert found["auroc other"] == pytest.approx(wanted)
    assert found["classwise equal mass 25"] == classwise_ece(p, y, bins=25, equal_mass=True)
    with pytest.raises(ValueError, match="finite"):
        calibration_report(z * float("inf"), y)


def test_study_correlates_ranks():
    sets = {name: (*problem(80, seed=i), *problem(90, seed=i + 5)) for i, name in enumerate("ab")}
    nets = [lambda x, k=k: k * x + 0.1 * k * x.roll(1, 1) for k in (0.3, 0.7, 1.5, 4.0)]
    table = calibration_study({"a": nets, "b": nets}, sets, bins=(15, 50))

    def tau(**where):
        own = table
        for key, value in where.items():
            own = own[own[key] == value]
        assert len(own) == 1
        return own.tau.item()

    values = {
        name: [[f(net(x).softmax(1), y) for net in nets] for f in (ece, mmce)] for name, (_, _, x, y) in sets.items()
    }
    assert tau(study="between data sets", first="ece 15") == pytest.approx(
        kendalltau(values["a"][0], values["b"][0]).statistic
    )
    assert tau(study="between measures", data="b", second="mmce") == pytest.approx(kendalltau(*values["b"]).statistic)
    assert set(table.study) == {"between data sets", "between measures", "accuracy", "accuracy, top", "scaling"}
    with pytest.raises(ValueError, match="datasets: expected"):
        calibration_study({"a": nets}, sets)
    with pytest.raises(ValueError, match="models: expected"):
        calibration_study({"a": nets, "b": nets[:2]}, sets)
