"""USEFUL: samples that are not learned early are shown twice, so that easy features do not crowd out the others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_number, check_tensor, refuse, refuse_type

Train = Callable[[int], tuple[Tensor, Tensor]]


def useful_weights(
    outputs: F[Tensor, "samples outputs"],
    losses: F[Tensor, " samples"],
    labels: I[Tensor, " samples"],
    upsample: int = 2,
    generator: torch.Generator | None = None,
) -> I[Tensor, " samples"]:
    """How often each sample shall be shown: more often where its class has not learned it.

    The outputs of each class are cut into two clusters by k-means. Of the two the one with the higher mean loss gets
    ``upsample``, everything else 1. A class of one sample, of equal outputs or of equal mean losses is not cut. The
    order of the samples changes nothing.

    Args:
        outputs: of the network early in training, in evaluation mode and without augmentation, ``[N, C]``: logits, or
            probabilities.
        losses: ``[N]``.
        labels: classes ``[N]``, any integers.
        upsample: >= 1; 1 changes nothing.
        generator: of the starts of k-means; None is torch's own.

    Returns:
        ``[N]``, int64, on the device of the labels.

    Raises:
        ValueError: wrong shapes, values that are not finite, ``upsample`` below 1.

    Example:
        >>> outputs = torch.tensor([[0.0], [0.1], [0.05], [3.0], [3.1]])
        >>> useful_weights(outputs, torch.tensor([0.1, 0.2, 0.15, 2.0, 1.8]), torch.zeros(5, dtype=torch.int64))
        tensor([1, 1, 1, 2, 2])

    Source: Changing the Training Data Distribution to Reduce Simplicity Bias Improves In-distribution Generalization,
    arXiv:2404.17768.
    """
    from sklearn.cluster import KMeans  # type: ignore[import-untyped]

    check_tensor("outputs", outputs, ndim=2, floating=True)
    check_tensor("losses", losses, floating=True, shape=(len(outputs),))
    check_tensor("labels", labels, floating=False, shape=(len(outputs),))
    check_number("upsample", upsample, low=1, integer=True)
    for name, value in (("outputs", outputs), ("losses", losses)):
        if not bool(value.isfinite().all()):
            refuse(name, "finite numbers", "others")
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    weights = np.ones(len(outputs), dtype=np.int64)
    points, of_losses = outputs.detach().double().cpu().numpy(), losses.detach().double().cpu().numpy()
    groups = labels.detach().cpu().numpy()
    for label in np.unique(groups):
        rows = np.flatnonzero(groups == label)
        rows = rows[np.lexsort((of_losses[rows], *points[rows].T[::-1]))]  # whatever the order they came in
        own = points[rows]
        if (own == own[0]).all():
            continue
        cluster = KMeans(2, n_init=10, random_state=seed).fit_predict(own)
        first, second = (of_losses[rows[cluster == number]].mean() for number in (0, 1))
        if first != second:
            weights[rows[cluster == int(second > first)]] = upsample
    return torch.from_numpy(weights).to(labels.device)


class EarlyLossUpsampler:
    """The whole procedure: train a little, look, and give the data that a fresh network is then trained on.

    Compare trainings by their steps, not their epochs: the enlarged data have more samples. Where labels are wrong, the
    wrong ones gather among the samples that are shown more often.

    Args:
        train_fn: ``train_fn(epochs) -> (outputs [N, C], losses [N])`` trains a network from its start for so many
            epochs and evaluates it on its training samples, in their order, without augmentation.
        epochs_early: 5 to 10% of a whole training; too many leave nothing to separate.
        upsample: see :func:`useful_weights`.
        generator: see :func:`useful_weights`.

    Attributes:
        weights: ``[N]`` after :meth:`fit`.

    Raises:
        ValueError: numbers below 1.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 1, 1])
        >>> early = torch.tensor([[4.0, 0.0], [4.1, 0.0], [0.2, 0.0], [0.0, 3.0], [0.0, 3.0]])
        >>> losses = torch.nn.functional.cross_entropy(early, labels, reduction="none")
        >>> EarlyLossUpsampler(lambda epochs: (early, losses), epochs_early=1).fit(labels).rows()
        tensor([0, 1, 2, 2, 3, 4])

    Source: Changing the Training Data Distribution to Reduce Simplicity Bias Improves In-distribution Generalization,
    arXiv:2404.17768.
    """

    def __init__(
        self,
        train_fn: Train,
        epochs_early: int = 8,
        upsample: int = 2,
        generator: torch.Generator | None = None,
    ) -> None:
        if not callable(train_fn):
            refuse_type("train_fn", "a function of a number of epochs", train_fn)
        check_number("epochs_early", epochs_early, low=1, integer=True)
        check_number("upsample", upsample, low=1, integer=True)
        self.train_fn, self.epochs_early, self.upsample, self.generator = train_fn, epochs_early, upsample, generator
        self.weights: Tensor | None = None

    def fit(self, labels: I[Tensor, " samples"]) -> EarlyLossUpsampler:
        """Train early and find the weights."""
        outputs, losses = self.train_fn(self.epochs_early)
        self.weights = useful_weights(outputs, losses, labels, self.upsample, self.generator)
        return self

    def rows(self) -> I[Tensor, " enlarged"]:
        """Row numbers of the enlarged data, for ``torch.utils.data.Subset`` or a sampler.

        Raises:
            ValueError: before :meth:`fit`.
        """
        if self.weights is None:
            refuse("rows", "a call of fit before", None)
        return torch.arange(len(self.weights), device=self.weights.device).repeat_interleave(self.weights)


def two_feature_data(
    n: int = 2000,
    d: int = 50,
    patches: int = 4,
    beta_e: float = 2.0,
    beta_d: float = 1.0,
    alpha: float = 0.9,
    sigma: float = 1.0,
    generator: torch.Generator | None = None,
) -> tuple[F[Tensor, "samples patches width"], F[Tensor, " samples"], Tensor]:
    r"""Samples of two classes with an easy feature in most of them and a hard one in all.

    Of the P patches of a sample the first two are :math:`\beta_e\, y\, v_e` (0 in a share :math:`1 - \alpha` of the
    samples) and :math:`\beta_d\, y\, v_d` with :math:`v_e, v_d` the first two unit vectors, the others noise
    :math:`\mathcal N(0, \sigma^2 I / d)`; then the patches of each sample change places.

    Args:
        n: samples.
        d: width of a patch, >= 2.
        patches: P >= 2.
        beta_e, beta_d: strengths >= 0.
        alpha: share of samples with the easy feature, in [0, 1].
        sigma: of the noise, >= 0.
        generator: None is torch's own.

    Returns:
        ``x``, ``y`` in {-1, 1}, and which samples have the easy feature.

    Raises:
        ValueError: numbers outside their ranges.

    Example:
        >>> x, y, easy = two_feature_data(100, 5, 3, generator=torch.Generator().manual_seed(0))
        >>> x.shape, bool((y.abs() == 1).all())
        (torch.Size([100, 3, 5]), True)

    Source: Changing the Training Data Distribution to Reduce Simplicity Bias Improves In-distribution Generalization,
    arXiv:2404.17768.
    """
    check_number("n", n, low=1, integer=True)
    check_number("d", d, low=2, integer=True)
    check_number("patches", patches, low=2, integer=True)
    for name, value in (("beta_e", beta_e), ("beta_d", beta_d), ("sigma", sigma)):
        check_number(name, value, low=0.0)
    check_number("alpha", alpha, low=0.0, high=1.0)
    y = torch.randint(2, (n,), generator=generator).mul(2).sub(1).float()
    easy = torch.rand(n, generator=generator) < alpha
    x = sigma / d**0.5 * torch.randn(n, patches, d, generator=generator)
    x[:, :2] = 0.0
    x[:, 0, 0] = beta_e * y * easy
    x[:, 1, 1] = beta_d * y
    places = torch.rand(n, patches, generator=generator).argsort(1)
    return x.gather(1, places[:, :, None].expand_as(x)), y, easy
