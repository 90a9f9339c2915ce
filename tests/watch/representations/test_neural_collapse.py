"""Neural collapse: numbers of the card, the definition with covariance matrices in float64, L-BFGS on free features."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from steepest.core.probe import Moment
from steepest.watch.representations import (
    NeuralCollapseMonitor,
    neural_collapse_metrics,
    simplex_etf,
    unconstrained_features_optimum,
)


def close(got, *wanted, tolerance=5e-7):
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), rtol=0.0, atol=tolerance)


@pytest.mark.holds("neural-collapse", 1)
def test_the_optimum_of_the_card():
    p, lengths = unconstrained_features_optimum((50, 10, 2), 0.02, 0.02)
    close(p, 0.824638, 0.607878, 0.123188)
    close(lengths[0], 5.831068, 1.922278, 0.174214)
    close(lengths[1], *(float(pk) / math.sqrt(n) for pk, n in zip(p, (50, 10, 2))))
    # the threshold, 62 ** 2 * 0.02 ** 2 = 1.5376: N is held while the class shrinks
    p, _ = unconstrained_features_optimum([50.0, 10.4624, 1.5376], 0.02, 0.02)
    assert float(p[2]) < 1e-12
    p, _ = unconstrained_features_optimum([50.0, 10.46, 1.54], 0.02, 0.02)
    assert 0 < float(p[2]) < 1e-2


def free_features(counts, lam, depth, generator, width=4):
    """Loss and gradient of the definition, by hand, and where its parts lie in one vector."""
    labels = np.repeat(np.arange(len(counts)), counts)
    target, total = np.eye(len(counts))[:, labels], len(labels)
    shapes = [(len(counts) if layer == depth - 1 else width, width) for layer in range(depth)] + [(width, total)]
    ends = np.cumsum([a * b for a, b in shapes])

    def matrices(vector):
        return [piece.reshape(shape) for piece, shape in zip(np.split(vector, ends[:-1]), shapes)]

    def loss(vector):
        *weights, h = matrices(vector)
        inputs = [h]
        for w in weights:
            inputs.append(w @ inputs[-1])
        slope = (inputs[-1] - target) / total
        value = (inputs[-1] - target).reshape(-1) @ slope.reshape(-1) / 2 + lam / 2 * (vector @ vector)
        slopes = []
        for w, x in zip(weights[::-1], inputs[-2::-1]):
            slopes.insert(0, slope @ x.T)
            slope = w.T @ slope
        return value, np.concatenate([s.reshape(-1) for s in (*slopes, slope)]) + lam * vector

    return loss, matrices, generator.normal(size=ends[-1]), labels


@pytest.mark.holds("neural-collapse", 1)
@pytest.mark.parametrize(("counts", "lam", "depth"), [((50, 10, 2), 0.02, 1), ((10, 6, 3), 0.005, 2)])
def test_quasi_newton_steps_on_free_features_come_there(counts, lam, depth):
    loss, matrices, begin, labels = free_features(counts, lam, depth, np.random.default_rng(0))
    best = minimize(loss, begin, jac=True, method="L-BFGS-B", options={"ftol": 1e-16, "gtol": 1e-10, "maxiter": 5000})
    *weights, h = matrices(best.x)
    product = np.linalg.multi_dot([*weights[::-1], np.eye(4)])
    p, lengths = unconstrained_features_optimum(counts, lam, lam, depth)
    outputs = product @ h
    np.testing.assert_allclose(outputs[labels, np.arange(len(labels))], p.numpy()[labels], atol=1e-6)
    np.testing.assert_allclose(outputs, p.numpy()[:, None] * np.eye(len(counts))[:, labels], atol=1e-6)
    np.testing.assert_allclose((h**2).sum(0), lengths[-1].numpy()[labels], atol=1e-6)
    for w, squares in zip(weights, lengths):
        values = np.linalg.svd(w, compute_uv=False)[: len(counts)] ** 2
        np.testing.assert_allclose(values, squares.sort(descending=True).values.numpy(), atol=1e-5)


@pytest.mark.holds("neural-collapse", 2)
def test_small_decays_and_two_layers():
    close(unconstrained_features_optimum((50, 10, 2), 1e-3, 1e-3)[0], 0.991232, 0.980394, 0.956159)
    close(unconstrained_features_optimum((50, 10, 2), (1e-3, 1e-3), 1e-3, 2)[0], 0.995425, 0.986582, 0.960413)


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_the_optimum_is_that_of_a_fine_grid(depth):
    counts, lams, lam_h = (40, 20, 10, 5), (0.01, 0.03, 0.02, 0.02, 0.04)[:depth], 0.015
    p, _ = unconstrained_features_optimum(counts, lams, lam_h, depth)
    grid = np.linspace(0, 1, 200_001)
    for n, value in zip(counts, p.tolist()):
        product = (n * lam_h * math.prod(lams)) ** (1 / (depth + 1))
        costs = n / 150 * (grid - 1) ** 2 + (depth + 1) / 2 * product * grid ** (2 / (depth + 1))
        assert value == pytest.approx(grid[costs.argmin()], abs=5e-6)
    assert depth < 3 or float(p[-1]) == 0.0


@pytest.mark.holds("neural-collapse", 3)
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_a_simplex_has_collapsed(classes):
    generator = torch.Generator().manual_seed(0)
    for frame in (
        simplex_etf(classes, classes - 1, dtype=torch.float64),
        simplex_etf(classes, classes + 4, generator=generator, dtype=torch.float64),
    ):
        cosines = frame @ frame.T
        wanted = torch.full((classes, classes), -1 / (classes - 1), dtype=torch.float64).fill_diagonal_(1)
        torch.testing.assert_close(cosines, wanted, rtol=0, atol=1e-12)
        labels = torch.arange(classes).repeat_interleave(torch.arange(1, classes + 1))
        measures = neural_collapse_metrics(frame[labels], labels, 3 * frame)
        assert all(float(value) < 1e-12 for value in measures.values())
        assert measures["nc1"].dtype == torch.float64
    assert simplex_etf(3, 5).dtype == torch.float32


def cloud(seed=0, samples=60, classes=4, width=6):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % classes
    features = torch.randn(samples, width, generator=generator, dtype=torch.float64)
    features += 2 * torch.randn(classes, width, generator=generator, dtype=torch.float64)[labels]
    weight = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    return features, labels, weight


@pytest.mark.parametrize("geometry", ["etf", "of", "gof"])
def test_the_definition_with_covariance_matrices(geometry):
    features, labels, weight = cloud(samples=57)
    bias = torch.tensor([0.0, 1.0, -1.0, 0.5], dtype=torch.float64)
    got = neural_collapse_metrics(features, labels, weight, geometry, bias=bias)
    h, y, w = features.numpy(), labels.numpy(), weight.numpy()
    means = np.stack([h[y == k].mean(0) for k in range(4)])
    middle = means.mean(0)
    within = sum(np.outer(row - means[k], row - means[k]) for row, k in zip(h, y)) / len(h)
    between = sum(np.outer(mean - middle, mean - middle) for mean in means) / 4
    assert float(got["nc1"]) == pytest.approx(np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / 4)
    m = (means - middle if geometry == "etf" else means).T
    for name, gram in (("nc2", m.T @ m), ("nc3", w @ m)):
        target = {
            "etf": (np.eye(4) - np.ones((4, 4)) / 4) / np.sqrt(3),
            "of": np.eye(4) / 2,
            "gof": np.diag(np.diag(gram)) / np.linalg.norm(np.diag(gram)),
        }[geometry]
        assert float(got[name]) == pytest.approx(np.linalg.norm(gram / np.linalg.norm(gram) - target))
    nearest = [min(range(4), key=lambda k, row=row: np.linalg.norm(row - means[k])) for row in h]
    assert float(got["nc4"]) == pytest.approx(np.mean((h @ w.T + bias.numpy()).argmax(1) != nearest))
    assert 0 < float(got["nc4"]) < 1


def test_orthogonal_frames_of_equal_and_of_any_lengths():
    frame = torch.eye(3, 5)
    labels = torch.tensor([0, 1, 1, 2])
    assert all(float(v) < 1e-6 for v in neural_collapse_metrics(frame[labels], labels, frame, "of").values())
    stretched = frame * torch.tensor([[1.0], [2.0], [4.0]])
    assert all(float(v) < 1e-6 for v in neural_collapse_metrics(stretched[labels], labels, frame, "gof").values())
    assert float(neural_collapse_metrics(stretched[labels], labels, frame, "of")["nc2"]) > 0.3


@pytest.mark.holds("neural-collapse", 4)
@pytest.mark.parametrize("geometry", ["etf", "of", "gof"])
def test_rotation_and_scale_change_nothing(geometry):
    features, labels, weight = cloud()
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    before = neural_collapse_metrics(features, labels, weight, geometry)
    after = neural_collapse_metrics(1e-3 * features @ rotation, labels, weight @ rotation, geometry)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value)


@pytest.mark.holds("neural-collapse", 4)
def test_what_it_refuses():
    features, labels, weight = cloud()
    with pytest.raises(ValueError, match="labels: expected samples of at least 2 classes"):
        neural_collapse_metrics(features, torch.zeros_like(labels), weight)
    with pytest.raises(ValueError, match="geometry: expected one of"):
        neural_collapse_metrics(features, labels, weight, "cube")
    with pytest.raises(ValueError, match="weight: expected shape"):
        neural_collapse_metrics(features, labels, weight[:, :5])
    with pytest.raises(ValueError, match=r"labels: expected values in 0\.\.2"):
        neural_collapse_metrics(features, labels, weight[:3])
    with pytest.raises(ValueError, match="width: expected an integer >= 3"):
        simplex_etf(4, 2)
    with pytest.raises(ValueError, match="counts: expected at least one class"):
        unconstrained_features_optimum((3, 0), 0.1, 0.1)
    with pytest.raises(ValueError, match="lams: expected one number, or one for each of 2 layers"):
        unconstrained_features_optimum((3, 2), (0.1,), 0.1, 2)
    with pytest.raises(ValueError, match="lams: expected a number > 0"):
        unconstrained_features_optimum((3, 2), 0.0, 0.1)


@pytest.mark.parametrize("geometry", ["etf", "of", "gof"])
@pytest.mark.parametrize("scale", [1e15, 1e-15])
def test_the_measures_do_not_depend_on_the_scale(geometry, scale):
    generator = torch.Generator().manual_seed(0)
    h, weight = torch.randn(20, 5, generator=generator), torch.randn(3, 5, generator=generator)
    labels = torch.arange(20) % 3
    own = neural_collapse_metrics(h, labels, weight, geometry)
    scaled = neural_collapse_metrics(h * scale, labels, weight * scale, geometry)
    for name, value in own.items():
        assert float(scaled[name]) == pytest.approx(float(value), rel=1e-4), name


def test_equal_samples_have_no_geometry_though_their_means_are_rounded():
    labels = torch.tensor([0] * 3 + [1] * 7)
    for value in (0.1, 1.7):
        measures = neural_collapse_metrics(torch.full((10, 4), value), labels, torch.randn(2, 4))
        assert all(measures[name].isnan() for name in ("nc1", "nc2", "nc3"))


def test_values_that_are_not_finite_and_means_that_coincide():
    features, labels, weight = cloud()
    for wrong in (math.nan, math.inf):
        measures = neural_collapse_metrics(torch.where(labels[:, None] == 0, wrong, features), labels, weight)
        assert all(value.isnan() for value in measures.values())
    same = neural_collapse_metrics(torch.zeros_like(features), labels, weight)
    assert all(same[name].isnan() for name in ("nc1", "nc2", "nc3"))
    assert neural_collapse_metrics(features.half(), labels, weight)["nc1"].dtype == torch.float32


def test_classes_that_do_not_occur_do_not_count():
    features, labels, weight = cloud()
    some = labels != 1
    got = neural_collapse_metrics(features[some], labels[some], weight)
    close_up = torch.tensor([0, -1, 1, 2])[labels[some]]
    wanted = neural_collapse_metrics(features[some], close_up, weight[[0, 2, 3]])
    for name in ("nc1", "nc2", "nc3"):
        torch.testing.assert_close(got[name], wanted[name])


class TestProbe:
    def model(self):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4))

    def test_it_reads_what_the_classifier_reads(self):
        model, x, y = self.model(), torch.randn(12, 3), torch.arange(12) % 4
        y[0] = -100
        reading = NeuralCollapseMonitor().measure(Moment(1, "forward", model, inputs=x, targets=y)).numbers
        features = model[:2](x[1:])
        wanted = neural_collapse_metrics(features, y[1:], model[2].weight, bias=model[2].bias)
        assert {name: float(reading[name]) for name in wanted} == {name: float(v) for name, v in wanted.items()}
        assert (reading["samples"], reading["classes"]) == (11.0, 4.0)

    def test_fixed_samples_and_a_named_layer(self):
        model, x, y = self.model(), torch.randn(12, 3), torch.arange(12) % 4
        moment = Moment(1, "forward", model, inputs=torch.randn(2, 3), targets=torch.zeros(2).long())
        fixed = NeuralCollapseMonitor("2", "of", data=(x, y)).measure(moment).numbers
        wanted = neural_collapse_metrics(model[:2](x), y, model[2].weight, "of", bias=model[2].bias)
        assert float(fixed["nc1"]) == float(wanted["nc1"])
        one_class = NeuralCollapseMonitor().measure(moment).numbers
        assert math.isnan(one_class["nc1"])
        assert one_class["classes"] == 1.0

    def test_sequences(self):
        head = nn.Linear(4, 3)
        x, y = torch.randn(5, 6, 4), torch.randint(3, (5, 6))
        reading = NeuralCollapseMonitor().measure(Moment(1, "forward", head, inputs=x, targets=y)).numbers
        wanted = neural_collapse_metrics(x.flatten(0, 1), y.flatten(), head.weight, bias=head.bias)
        assert float(reading["nc4"]) == float(wanted["nc4"])

    def test_models_without_a_classifier_are_refused(self):
        with pytest.raises(ValueError, match="layer: expected the name of a linear layer"):
            NeuralCollapseMonitor().check(nn.Conv2d(1, 1, 1), None)
        with pytest.raises(ValueError, match=r"layer: expected the name of a linear layer \(0, 2\), got 'head'"):
            NeuralCollapseMonitor("head").check(self.model(), None)
        NeuralCollapseMonitor("0").check(self.model(), None)
