"""Class-conditional Gaussians with one covariance over features: how far is an input from every known class?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from ...core.checks import check_choice, check_number, check_tensor, refuse
from ._detection import detection_metrics as detection_metrics

FeatureFunction = Callable[[Tensor], Tensor]
STEPS = (0.0, 0.0005, 0.001, 0.0014, 0.002, 0.0024, 0.005, 0.01, 0.05, 0.1, 0.2)
"""Input steps to choose from on held-out or attacked inputs."""


class ClassGaussians(NamedTuple):
    """Means ``[C, D]``, the shared covariance ``[D, D]`` (over N, not N - C) and counts ``[C]``, in float64."""

    means: Tensor
    covariance: Tensor
    counts: Tensor


class _Moments:
    """Class means and pooled scatter, batch by batch: merging exact moments gives the same as one large batch."""

    def __init__(self) -> None:
        self.means = self.scatter = self.counts = torch.zeros(0, dtype=torch.float64)

    def add(self, features: Tensor, target: Tensor) -> None:
        _check_features(features, target)
        f, y = features.detach().double(), target.long()
        classes = max(int(y.max()) + 1, len(self.counts))
        if not self.scatter.numel():
            self.means, self.scatter = f.new_zeros(0, f.shape[1]), f.new_zeros(f.shape[1], f.shape[1])
            self.counts = f.new_zeros(0)
        if f.shape[1] != self.means.shape[1]:
            refuse("features", f"{self.means.shape[1]} features in dimension 1", features)
        grow = classes - len(self.counts)
        means, old = nn.functional.pad(self.means, (0, 0, 0, grow)), nn.functional.pad(self.counts, (0, grow))
        new = torch.bincount(y, minlength=classes).to(f)
        own = f.new_zeros(classes, f.shape[1]).index_add_(0, y, f) / new.clamp_min(1)[:, None]
        inner, shift, total = f - own[y], own - means, (old + new).clamp_min(1)
        self.scatter = self.scatter + inner.T @ inner + (shift.T * (old * new / total)) @ shift
        self.means, self.counts = means + shift * (new / total)[:, None], old + new

    def result(self) -> ClassGaussians:
        n = float(self.counts.sum())
        if n < 2:
            refuse("features", "at least two samples", int(n))
        if bool((self.counts == 0).any()):
            refuse("target", "samples of every class below the largest", self.counts.int().tolist())
        return ClassGaussians(self.means, self.scatter / n, self.counts)


def _check_features(features: Tensor, target: Tensor) -> None:
    check_tensor("features", features, ndim=2, floating=True)
    check_tensor("target", target, floating=False, shape=(len(features),))
    if not len(features):
        refuse("features", "at least one row", features)
    if int(target.min()) < 0:
        refuse("target", "classes >= 0", int(target.min()))


def class_gaussian_fit(features: F[Tensor, "samples features"], target: I[Tensor, " samples"]) -> ClassGaussians:
    r"""Class means and their one covariance.

    .. math:: \mu_c = \frac{1}{N_c} \sum_{y_i = c} f_i, \qquad
        \Sigma = \frac1N \sum_c \sum_{y_i = c} (f_i - \mu_c)(f_i - \mu_c)^\top

    Args:
        features: ``[N, D]``, N >= 2.
        target: classes ``[N]``, each of 0..C-1 at least once.

    Raises:
        ValueError: fewer than two samples, a class without samples, wrong shapes.

    Example:
        >>> f = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 4.0], [4.0, 6.0]])
        >>> class_gaussian_fit(f, torch.tensor([0, 0, 1, 1])).covariance.tolist()
        [[0.5, 0.0], [0.0, 0.5]]

    Source: A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks,
    arXiv:1807.03888.
    """
    moments = _Moments()
    moments.add(features, target)
    return moments.result()


def _factor(covariance: Tensor, shrinkage: float) -> Tensor:
    """The lower Cholesky factor of the covariance plus ``shrinkage`` times its mean variance."""
    d = len(covariance)
    variance = covariance.diagonal().mean()
    factor, info = torch.linalg.cholesky_ex(covariance + shrinkage * variance * torch.eye(d).to(covariance))
    # a rounding-sized pivot is a singular covariance that happened to pass
    smallest = factor.diagonal().min() ** 2
    if int(info) or not bool(smallest > d * torch.finfo(torch.float64).eps * variance):
        refuse(
            "covariance", "a positive definite matrix; give more samples than features, or shrinkage > 0", covariance
        )
    return factor


def _by_class(features: Tensor, means: Tensor, factor: Tensor) -> Tensor:
    """Minus the squared distance to each class, ``[B, C]``, differentiable in the features."""
    centre = means.mean(0)
    white = torch.linalg.solve_triangular(factor, (features.double() - centre).T, upper=False).T
    middle = torch.linalg.solve_triangular(factor, (means - centre).T, upper=False).T
    square = white.square().sum(1)[:, None] + middle.square().sum(1) - 2 * white @ middle.T
    return -square.clamp_min(0.0)


def mahalanobis_score(
    features: F[Tensor, "batch features"],
    means: F[Tensor, "classes features"],
    covariance: F[Tensor, "features features"],
    *,
    shrinkage: float = 0.0,
    reduce: bool = True,
) -> Tensor:
    r"""Minus the squared Mahalanobis distance to the nearest class: higher = inlier, more like the training data.

    .. math:: M(f) = \max_c\; -(f - \mu_c)^\top \Sigma^{-1} (f - \mu_c)

    Args:
        features: ``[B, D]``.
        means: ``[C, D]``.
        covariance: ``[D, D]``, positive definite.
        shrinkage: >= 0; this times the mean variance is added to the diagonal.
        reduce: whether to take the maximum, else one number for each class.

    Returns:
        ``[B]``, or ``[B, C]``, in float64; differentiable in the features.

    Raises:
        ValueError: wrong shapes, a singular covariance.

    Example:
        >>> means, covariance = torch.tensor([[1.0, 0.0], [4.0, 5.0]]), torch.diag(torch.tensor([0.5, 0.5]))
        >>> mahalanobis_score(torch.tensor([[2.0, 2.0]]), means, covariance, reduce=False).round(decimals=6).tolist()
        [[-10.0, -26.0]]

    Source: A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks,
    arXiv:1807.03888.
    """
    check_tensor("means", means, ndim=2, floating=True)
    d = means.shape[1]
    check_tensor("features", features, floating=True, shape=(None, d))
    check_tensor("covariance", covariance, floating=True, shape=(d, d))
    check_number("shrinkage", shrinkage, low=0.0)
    of_classes = _by_class(features, means.double(), _factor(covariance.double(), shrinkage))
    return of_classes.max(1).values if reduce else of_classes


def mahalanobis_outlier_score(
    features: F[Tensor, "batch features"],
    means: F[Tensor, "classes features"],
    covariance: F[Tensor, "features features"],
    *,
    shrinkage: float = 0.0,
) -> Tensor:
    """The squared Mahalanobis distance to the nearest class: higher = outlier; minus :func:`mahalanobis_score`.

    Example:
        >>> means, covariance = torch.tensor([[1.0, 0.0], [4.0, 5.0]]), torch.diag(torch.tensor([0.5, 0.5]))
        >>> mahalanobis_outlier_score(torch.tensor([[2.0, 2.0]]), means, covariance).round(decimals=6).tolist()
        [10.0]
    """
    return -mahalanobis_score(features, means, covariance, shrinkage=shrinkage)


class MahalanobisDetector:
    r"""Scores of inputs at several layers, higher = inlier, each after a small step of the input up its own score.

    .. math:: \tilde x = x + \epsilon\, \mathrm{sign} \nabla_x \bigl( -(f - \mu_{c^*})^\top \Sigma^{-1}
        (f - \mu_{c^*}) \bigr), \qquad c^* \text{ the nearest class at } x

    Args:
        feature_fns: one function for each layer, inputs to features ``[B, D]`` or maps ``[B, D, ...]``, which are
            averaged over space. Modules must be in evaluation mode.
        eps: size of the step in units of the input, >= 0; one number, or one for each layer. 0 needs no gradient.
        shrinkage: >= 0, of the covariances; this times the mean variance is added to the diagonal.

    Example:
        >>> x, y = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 4.0], [4.0, 6.0]]), torch.tensor([0, 0, 1, 1])
        >>> detector = MahalanobisDetector([lambda x: x]).fit([(x, y)])
        >>> detector.score(torch.tensor([[2.0, 2.0]])).round(decimals=3).tolist()
        [[-10.0]]

    Source: A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks,
    arXiv:1807.03888.
    """

    def __init__(
        self, feature_fns: Sequence[FeatureFunction], eps: float | Sequence[float] = 0.0, shrinkage: float = 1e-6
    ) -> None:
        if not feature_fns:
            refuse("feature_fns", "at least one function", feature_fns)
        check_number("shrinkage", shrinkage, low=0.0)
        self.feature_fns, self.shrinkage = tuple(feature_fns), shrinkage
        self.set_eps(eps)
        self.gaussians: list[ClassGaussians] = []
        self._factors: list[Tensor] = []

    def set_eps(self, eps: float | Sequence[float]) -> Self:
        """Another input step, with the same Gaussians."""
        values = tuple(eps) if isinstance(eps, Sequence) else (eps,) * len(self.feature_fns)
        if len(values) != len(self.feature_fns):
            refuse("eps", f"one number for each of {len(self.feature_fns)} layers", eps)
        for value in values:
            check_number("eps", value, low=0.0)
        self.eps = values
        return self

    def fit(self, loader: Iterable[tuple[Tensor, Tensor]]) -> Self:
        """Fit the Gaussians of every layer on batches of inputs and classes; batches may come in any sizes."""
        moments = [_Moments() for _ in self.feature_fns]
        with torch.no_grad():
            for inputs, target in loader:
                for layer, of_layer in enumerate(moments):
                    of_layer.add(self._features(layer, inputs), target)
        if not moments[0].counts.numel():
            refuse("loader", "at least one batch", loader)
        self.gaussians = [of_layer.result() for of_layer in moments]
        self._factors = [_factor(of_layer.covariance, self.shrinkage) for of_layer in self.gaussians]
        return self

    def score(self, inputs: Tensor) -> Tensor:
        """``[B, L]``: the score of each input at each layer, higher = inlier.

        Raises:
            RuntimeError: before :meth:`fit`.
        """
        if not self.gaussians:
            raise RuntimeError("MahalanobisDetector: call fit(loader) before score(inputs)")
        with torch.no_grad():
            of_layers = [
                self._at(layer, self.stepped(inputs, layer) if eps else inputs).max(1).values
                for layer, eps in enumerate(self.eps)
            ]
        return torch.stack(of_layers, 1)

    def outlier_score(self, inputs: Tensor) -> Tensor:
        """``[B, L]``, higher = outlier: minus :meth:`score`."""
        return -self.score(inputs)

    def stepped(self, inputs: Tensor, layer: int = 0) -> Tensor:
        """The inputs after the step of one layer."""
        with torch.enable_grad():
            moving = inputs.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(self._at(layer, moving).max(1).values.sum(), moving)
        return inputs.detach() + self.eps[layer] * slope.sign()

    def _at(self, layer: int, inputs: Tensor) -> Tensor:
        features, means = self._features(layer, inputs), self.gaussians[layer].means
        if features.shape[1] != means.shape[1]:
            refuse("inputs", f"what gives {means.shape[1]} features at layer {layer}", features)
        return _by_class(features, means, self._factors[layer])

    def _features(self, layer: int, inputs: Tensor) -> Tensor:
        function = self.feature_fns[layer]
        if isinstance(function, nn.Module) and function.training:
            refuse(f"feature_fns[{layer}]", "a module in evaluation mode", "one in training mode")
        features = function(inputs)
        if features.ndim < 2:
            refuse(f"feature_fns[{layer}]", "features [B, D] or [B, D, ...]", features)
        return features if features.ndim == 2 else features.flatten(2).mean(2)


class FeatureEnsembleDetector:
    """A weighted sum of the layers' scores, higher = inlier, the weights by logistic regression.

    Fit it on scores of held-out and of attacked inputs: choosing weights on the test's own outliers is cheating.

    Args:
        detector: a fitted detector, for :meth:`score`.

    Example:
        >>> x, y = torch.randn(40, 3), torch.arange(40) % 2
        >>> detector = MahalanobisDetector([lambda x: x, lambda x: x[:, :1]]).fit([(x, y)])
        >>> ensemble = FeatureEnsembleDetector(detector).fit(detector.score(x), detector.score(x + 9))
        >>> bool(ensemble.score(x).mean() > ensemble.score(x + 9).mean())
        True

    Source: A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks,
    arXiv:1807.03888.
    """

    def __init__(self, detector: MahalanobisDetector) -> None:
        self.detector = detector
        self.weights = torch.zeros(0, dtype=torch.float64)
        self.bias = 0.0

    def fit(self, scores_in: F[Tensor, "inside layers"], scores_out: F[Tensor, "outside layers"]) -> Self:
        """Fit the weights on the scores of inputs that are to rank high and low."""
        check_tensor("scores_in", scores_in, ndim=2, floating=True)
        check_tensor("scores_out", scores_out, floating=True, shape=(None, scores_in.shape[1]))
        if not len(scores_in) or not len(scores_out):
            refuse("scores_in, scores_out", "at least one row each", (len(scores_in), len(scores_out)))
        x = torch.cat([scores_in, scores_out]).detach().double().cpu().numpy()
        inside = np.arange(len(x)) < len(scores_in)
        scaler, regression = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, inside).named_steps.values()
        weights = regression.coef_[0] / scaler.scale_
        self.weights = torch.as_tensor(weights)
        self.bias = float(regression.intercept_[0] - weights @ scaler.mean_)
        return self

    def combine(self, scores: F[Tensor, "batch layers"]) -> Tensor:
        """One number from the scores of the layers, ``[B]``: the log-odds of being like the training data."""
        if not len(self.weights):
            raise RuntimeError("FeatureEnsembleDetector: call fit(scores_in, scores_out) first")
        return scores.double() @ self.weights.to(scores.device) + self.bias

    def score(self, inputs: Tensor) -> Tensor:
        """:meth:`combine` of the detector's scores of ``inputs``, higher = inlier."""
        return self.combine(self.detector.score(inputs))

    def outlier_score(self, inputs: Tensor) -> Tensor:
        """``[B]``, higher = outlier: minus :meth:`score`."""
        return -self.score(inputs)


class GDAIncrementalClassifier:
    r"""The generative classifier of the Gaussians; classes are added without the data of the others.

    .. math:: \hat y = \arg\max_c\; -\tfrac12 (f - \mu_c)^\top \Sigma^{-1} (f - \mu_c) + \log \pi_c

    A new class takes its mean, and :math:`\Sigma \leftarrow \frac{C}{C + 1} \Sigma + \frac{1}{C + 1} \Sigma_{new}`.

    Args:
        prior: ``"equal"``, or ``"counts"`` for the share of each class.
        shrinkage: >= 0; this times the mean variance is added to the diagonal.

    Example:
        >>> f = torch.tensor([[0.0, 0.0], [2.0, 1.0], [4.0, 4.0], [4.0, 6.0]])
        >>> classifier = GDAIncrementalClassifier().fit(f, torch.tensor([0, 0, 1, 1]))
        >>> classifier.add_class(f + 20).predict(torch.tensor([[1.0, 0.0], [22.0, 23.0]])).tolist()
        [0, 2]

    Source: A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks,
    arXiv:1807.03888.
    """

    def __init__(self, prior: str = "equal", shrinkage: float = 1e-6) -> None:
        check_choice("prior", prior, ("equal", "counts"))
        check_number("shrinkage", shrinkage, low=0.0)
        self.prior, self.shrinkage = prior, shrinkage
        self.gaussians: ClassGaussians | None = None

    def fit(self, features: F[Tensor, "samples features"], target: I[Tensor, " samples"]) -> Self:
        """Fit on features and classes; see :func:`class_gaussian_fit`."""
        self.gaussians = class_gaussian_fit(features, target)
        return self

    def add_class(self, features: F[Tensor, "samples features"]) -> Self:
        """Add one class, whose index is the next, from its samples alone."""
        means, covariance, counts = self._fitted()
        check_tensor("features", features, floating=True, shape=(None, means.shape[1]))
        new = class_gaussian_fit(features, torch.zeros(len(features), dtype=torch.long, device=features.device))
        share = 1 / (len(counts) + 1)
        self.gaussians = ClassGaussians(
            torch.cat([means, new.means]),
            (1 - share) * covariance + share * new.covariance,
            torch.cat([counts, new.counts]),
        )
        return self

    def decision_function(self, features: F[Tensor, "batch features"]) -> Tensor:
        """Log-posteriors up to a constant of the row, ``[B, C]``, float64."""
        means, covariance, counts = self._fitted()
        scores = 0.5 * mahalanobis_score(features, means, covariance, shrinkage=self.shrinkage, reduce=False)
        return scores if self.prior == "equal" else scores + (counts / counts.sum()).log()

    def predict(self, features: F[Tensor, "batch features"]) -> Tensor:
        """Classes ``[B]``."""
        return self.decision_function(features).argmax(1)

    def _fitted(self) -> ClassGaussians:
        if self.gaussians is None:
            raise RuntimeError("GDAIncrementalClassifier: call fit(features, target) first")
        return self.gaussians
