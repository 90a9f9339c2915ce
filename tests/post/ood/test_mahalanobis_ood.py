"""Mahalanobis scores: Gaussians, the detector with its input step, the ensemble, the incremental classifier."""

from __future__ import annotations

import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from torch import nn

from steepest.post.ood import (
    FeatureEnsembleDetector,
    GDAIncrementalClassifier,
    MahalanobisDetector,
    class_gaussian_fit,
    detection_metrics,
    mahalanobis_outlier_score,
    mahalanobis_score,
)

CARD = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 4.0], [4.0, 6.0]], dtype=torch.float64), torch.tensor([0, 0, 1, 1])
POINT = torch.tensor([[2.0, 2.0]], dtype=torch.float64)


def problem(n=90, d=4, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    centres = 3 * torch.randn(classes, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing + centres[y], y


def same(x):
    return x


@pytest.mark.holds("mahalanobis-ood", 1)
def test_card_values():
    means, covariance, counts = class_gaussian_fit(*CARD)
    assert means.tolist() == [[1.0, 0.0], [4.0, 5.0]]
    assert covariance.tolist() == [[0.5, 0.0], [0.0, 0.5]]
    assert counts.tolist() == [2.0, 2.0]
    by_class = mahalanobis_score(POINT, means, covariance, reduce=False)
    torch.testing.assert_close(by_class, torch.tensor([[-10.0, -26.0]], dtype=torch.float64))
    assert mahalanobis_score(POINT, means, covariance).item() == pytest.approx(-10.0)


@pytest.mark.holds("mahalanobis-ood", 2)
def test_card_step():
    means, covariance, _ = class_gaussian_fit(*CARD)
    x = POINT.clone().requires_grad_()
    (slope,) = torch.autograd.grad(mahalanobis_score(x, means, covariance).sum(), x)
    torch.testing.assert_close(slope, torch.tensor([[-4.0, -8.0]], dtype=torch.float64))
    detector = MahalanobisDetector([same], eps=0.1, shrinkage=0.0).fit([CARD])
    moved = torch.tensor([[1.9, 1.9]], dtype=torch.float64)
    torch.testing.assert_close(detector.stepped(POINT), moved)
    assert detector.score(POINT).item() == pytest.approx(-(0.9**2 + 1.9**2) / 0.5)
    assert POINT.tolist() == [[2.0, 2.0]]


@pytest.mark.holds("mahalanobis-ood", 3)
def test_affine_maps_and_the_identity():
    f, y = problem()
    matrix = torch.randn(4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    wanted = mahalanobis_score(f, *class_gaussian_fit(f, y)[:2], reduce=False)
    g = f @ matrix + 7.0
    torch.testing.assert_close(mahalanobis_score(g, *class_gaussian_fit(g, y)[:2], reduce=False), wanted)
    means = class_gaussian_fit(f, y).means
    nearest = torch.cdist(f, means).square().min(1).values
    torch.testing.assert_close(mahalanobis_score(f, means, torch.eye(4, dtype=torch.float64)), -nearest)


def test_scipy_agrees():
    f, y = problem()
    means, covariance, _ = class_gaussian_fit(f, y)
    inverse = torch.linalg.inv(covariance).numpy()
    wanted = [max(-(mahalanobis(row, m, inverse) ** 2) for m in means.numpy()) for row in f.numpy()]
    torch.testing.assert_close(mahalanobis_score(f, means, covariance), torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.holds("mahalanobis-ood", 4)
@pytest.mark.parametrize("seed", range(3))
def test_linear_discriminant_analysis(seed):
    f, y = problem(60, seed=seed)
    other, _ = problem(200, seed=seed + 10)
    peer = LinearDiscriminantAnalysis(solver="lsqr", priors=[1 / 3] * 3).fit(f.numpy(), y.numpy())
    ours = GDAIncrementalClassifier(shrinkage=0.0).fit(f, y)
    assert ours.predict(other).tolist() == peer.predict(other.numpy()).tolist()
    # the peer's covariance is over N here as well: the margins agree too
    wanted = torch.as_tensor(peer.decision_function(other.numpy()))
    found = ours.decision_function(other)
    torch.testing.assert_close(found - found[:, :1], wanted - wanted[:, :1])


def test_priors_of_counts():
    f, y = problem()
    rows = torch.cat([torch.arange(30), (y == 0).nonzero().squeeze(1)])
    ours = GDAIncrementalClassifier("counts", shrinkage=0.0).fit(f[rows], y[rows])
    peer = LinearDiscriminantAnalysis(solver="lsqr").fit(f[rows].numpy(), y[rows].numpy())
    wanted = torch.as_tensor(peer.decision_function(f.numpy()))
    found = ours.decision_function(f)
    torch.testing.assert_close(found - found[:, :1], wanted - wanted[:, :1])


def test_a_class_is_added():
    f, y = problem()
    old = y < 2
    ours = GDAIncrementalClassifier(shrinkage=0.0).fit(f[old], y[old]).add_class(f[~old])
    a, b, c = (torch.cov(f[y == k].T, correction=0) for k in range(3))
    torch.testing.assert_close(ours.gaussians.covariance, (2 / 3) * (a + b) / 2 + c / 3)
    torch.testing.assert_close(ours.gaussians.means[2], f[~old].mean(0))
    # with equal counts that is the fit of all
    torch.testing.assert_close(
        ours.decision_function(f), GDAIncrementalClassifier(shrinkage=0.0).fit(f, y).decision_function(f)
    )


@pytest.mark.holds("mahalanobis-ood", 5)
def test_no_step_needs_no_gradient():
    class NoGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, slope):
            raise AssertionError("a gradient was asked for")

    f, y = problem()
    detector = MahalanobisDetector([NoGradient.apply]).fit([(f, y)])
    assert not detector.score(f).requires_grad
    with pytest.raises(AssertionError, match="a gradient was asked for"):
        detector.set_eps(0.1).score(f)


@pytest.mark.holds("mahalanobis-ood", 5)
def test_refusals():
    f, y = problem()
    with pytest.raises(ValueError, match="at least two samples"):
        class_gaussian_fit(f[:1], y[:1])
    assert class_gaussian_fit(f[:2], torch.zeros_like(y[:2])).counts.tolist() == [2.0]
    with pytest.raises(ValueError, match="samples of every class"):
        class_gaussian_fit(f, 2 * y)
    few, labels = problem(6, 20)
    with pytest.raises(ValueError, match="covariance: expected a positive definite"):
        MahalanobisDetector([same], shrinkage=0.0).fit([(few, labels)])
    assert torch.isfinite(MahalanobisDetector([same]).fit([(few, labels)]).score(few)).all()
    detector = MahalanobisDetector([same]).fit([(f, y)])
    with pytest.raises(ValueError, match="what gives 4 features"):
        detector.score(f[:, :3])
    with pytest.raises(ValueError, match="4 features"):
        MahalanobisDetector([same]).fit([(f, y), (f[:, :3], y)])
    with pytest.raises(ValueError, match="features: expected shape"):
        GDAIncrementalClassifier().fit(f, y).add_class(f[:, :2])
    with pytest.raises(ValueError, match="eps: expected one number"):
        MahalanobisDetector([same], eps=[0.1, 0.2])
    with pytest.raises(ValueError, match="evaluation mode"):
        MahalanobisDetector([nn.Identity()]).fit([(f, y)])
    with pytest.raises(ValueError, match="at least one batch"):
        MahalanobisDetector([same]).fit([])
    with pytest.raises(RuntimeError, match="fit"):
        MahalanobisDetector([same]).score(f)


@pytest.mark.holds("mahalanobis-ood", 6)
def test_streaming_equals_one_batch():
    f, y = problem(120)
    f = f + 1e4  # where sums of squares would lose their digits
    order = y.argsort()  # classes turn up one after the other
    whole = MahalanobisDetector([same, torch.relu]).fit([(f, y)])
    parts = zip(f[order].split([1, 2, 50, 67]), y[order].split([1, 2, 50, 67]))
    streamed = MahalanobisDetector([same, torch.relu]).fit(parts)
    for a, b in zip(whole.gaussians, streamed.gaussians):
        for found, wanted in zip(b, a):
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    a, b, c = (torch.cov(f[y == k].T, correction=0) for k in range(3))
    torch.testing.assert_close(whole.gaussians[0].covariance, (a + b + c) / 3)


@pytest.mark.holds("mahalanobis-ood", 7)
@pytest.mark.parametrize("factor", [1e-9, 1e-4, 1.0, 1e6])
@pytest.mark.parametrize("constant", [False, True])
def test_shrinkage_is_relative_to_the_features(factor, constant):
    """A ridge of 1e-6 in the features' own units would give -.0498 and -.1294 at 1e-4."""
    (f, y), x = CARD, POINT
    if constant:
        f, x = (torch.cat([part, torch.full((len(part), 1), 3.0, dtype=torch.float64)], 1) for part in (f, x))
    means, covariance, _ = class_gaussian_fit(factor * f, y)
    found = mahalanobis_score(factor * x, means, covariance, shrinkage=1e-6, reduce=False)
    wanted = torch.tensor([[-10.0, -26.0]], dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0.0)
    detector = MahalanobisDetector([same]).fit([(factor * f, y)])
    torch.testing.assert_close(detector.score(factor * x), wanted[:, :1], rtol=1e-5, atol=0.0)
    # the mean variance is .5 in two columns, and a third of 1 in three
    exact = -10 * 0.5 / (0.5 + 0.1 * (1 / 3 if constant else 0.5))
    shrunk = mahalanobis_score(factor * x, means, covariance, shrinkage=0.1)
    torch.testing.assert_close(shrunk, torch.tensor([exact], dtype=torch.float64), rtol=1e-9, atol=0.0)


def test_outlier_scores_are_the_scores_turned_round():
    f, y = problem()
    means, covariance, _ = class_gaussian_fit(f, y)
    far = f + 20.0
    assert torch.equal(
        mahalanobis_outlier_score(f, means, covariance, shrinkage=0.1),
        -mahalanobis_score(f, means, covariance, shrinkage=0.1),
    )
    detector = MahalanobisDetector([same, lambda x: x[:, :2]], eps=0.01).fit([(f, y)])
    ensemble = FeatureEnsembleDetector(detector).fit(detector.score(f), detector.score(far))
    for member in (detector, ensemble):
        assert torch.equal(member.outlier_score(f), -member.score(f))
        assert member.outlier_score(far).mean() > member.outlier_score(f).mean()


@pytest.mark.parametrize(
    "scored",
    [mahalanobis_score, MahalanobisDetector, MahalanobisDetector.score, FeatureEnsembleDetector,
     FeatureEnsembleDetector.score, mahalanobis_outlier_score, MahalanobisDetector.outlier_score,
     FeatureEnsembleDetector.outlier_score],
)  # fmt: skip
def test_the_first_line_says_which_way_a_score_points(scored):
    first = scored.__doc__.strip().splitlines()[0]
    assert ("higher = outlier" if "outlier" in scored.__name__ else "higher = inlier") in first


def test_maps_are_averaged_and_layers_have_their_own_step():
    images, y = torch.randn(60, 3, 5, 5, dtype=torch.float64), torch.arange(60) % 2
    layers = [same, lambda x: (2 * x).tanh().mean((2, 3))]
    detector = MahalanobisDetector(layers, eps=[0.0, 0.05], shrinkage=0.0).fit([(images, y)])
    flat = images.mean((2, 3))
    found = detector.score(images)
    assert found.shape == (60, 2)
    torch.testing.assert_close(found[:, 0], mahalanobis_score(flat, *class_gaussian_fit(flat, y)[:2]))
    unmoved = detector.set_eps(0.0).score(images)
    assert torch.equal(unmoved[:, 0], found[:, 0])
    assert (found[:, 1] > unmoved[:, 1]).double().mean() > 0.9  # the step goes up


def test_ensemble_is_a_logistic_regression():
    f, y = problem()
    detector = MahalanobisDetector([same, lambda x: x[:, :2]]).fit([(f, y)])
    inside, outside = detector.score(f), detector.score(f + 2.0)
    ensemble = FeatureEnsembleDetector(detector).fit(inside, outside)
    both = torch.cat([inside, outside])
    scaled = ((both - both.mean(0)) / both.std(0, correction=0)).numpy()
    labels = [1] * 90 + [0] * 90
    wanted = LogisticRegression().fit(scaled, labels).decision_function(scaled)
    torch.testing.assert_close(ensemble.combine(both), torch.as_tensor(wanted))
    torch.testing.assert_close(ensemble.score(f), ensemble.combine(inside))
    with pytest.raises(RuntimeError, match="fit"):
        FeatureEnsembleDetector(detector).score(f)
    with pytest.raises(ValueError, match="scores_out: expected shape"):
        FeatureEnsembleDetector(detector).fit(inside, outside[:, :1])


def test_metrics_by_counting():
    inside, outside = torch.tensor([3.0, 2.0, 1.0, 5.0]), torch.tensor([0.0, 2.5, -1.0, 0.5, 0.2])
    found = detection_metrics(inside, outside)
    pairs = [(a > b).double().item() for a in inside for b in outside]
    assert found["auroc"] == pytest.approx(sum(pairs) / 20)
    assert found["tnr at 95% tpr"] == pytest.approx(4 / 5)  # all four inside lie at 1 or above
    assert found["detection accuracy"] == pytest.approx(0.5 * (1 + 4 / 5))
    # inside at ranks 1, 2, 4, 5 of the scores
    assert found["aupr in"] == pytest.approx((1 + 1 + 3 / 4 + 4 / 5) / 4)
    assert found["aupr out"] == pytest.approx((4 + 5 / 7) / 5)
    with pytest.raises(ValueError, match="at least one score"):
        detection_metrics(inside, outside[:0])
