"""Diffusion spectral entropy of a cloud of vectors, and its mutual information with labels or another variable."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import torch
from jaxtyping import Float as F
from torch import Tensor, nn
from torch.optim import Optimizer

from ...core.checks import check_number, check_tensor, refuse
from ...core.probe import Moment, Probe, Reading, inner_module
from ...core.reductions import widen
from ._layer_inputs import layer_inputs, layer_name

MEDIAN = "median"


def diffusion_spectral_entropy(
    x: F[Tensor, "batch width"], sigma: float | str = 10.0, t: float = 1.0, max_n: int = 10_000, *, seed: int = 0
) -> F[Tensor, ""]:
    r"""The entropy, in bits, of the spectrum of a diffusion operator on the graph of the vectors.

    .. math::
        G_{ij} = e^{-\|x_i - x_j\|^2 / (2 \sigma^2)}, \quad d_i = \sum_j G_{ij}, \quad
        K_{ij} = \frac{G_{ij}}{\sqrt{d_i d_j}}; \qquad
        p_i = \frac{|\lambda_i(K)|^t}{\sum_j |\lambda_j(K)|^t}, \quad
        \mathrm{DSE} = -\sum_i p_i \log_2 p_i

    It lies between 0 (all vectors are one) and :math:`\log_2 N` (all are infinitely far apart) and falls as t grows. K
    has the spectrum of the random walk :math:`D^{-1} G`, as in the official code, not that of a walk that normalises
    the rows of K again. ``sigma`` must match the scale of the vectors: under one that is fixed all vectors become
    far apart as features grow. ``"median"`` is a quarter of the median distance between two of them. About one in a
    hundred eigenvalues should stay above .01 after the power t.

    Computed in float64; time grows as N^3, memory as N^2.

    Args:
        x: vectors ``[N, D]``, N >= 1. sigma: width of the kernel, > 0, or ``"median"``. t: diffusion time, > 0. max_n:
        of more rows so many are drawn. seed: of that draw.

    Returns:
        a scalar of float32 or wider; NaN where a value is not finite.

    Raises:
        ValueError: no row, numbers outside their range.

    Example:
        >>> two = torch.tensor([[0.0], [2.0]])
        >>> diffusion_spectral_entropy(two, sigma=1.0), diffusion_spectral_entropy(two, sigma=1.0, t=2)
        (tensor(0.9867), tensor(0.9484))

    Source: Assessing Neural Network Representations During Training Using Noise-Resilient Diffusion Spectral Entropy,
    arXiv:2312.04823.
    """
    _check(x, sigma, t)
    check_number("max_n", max_n, low=1, integer=True)
    rows = widen(x.detach())
    if len(rows) > max_n:
        rows = rows[random.Random(seed).sample(range(len(rows)), max_n)]
    return _entropy(rows[None].double(), _width(rows, sigma), t)[0].to(rows.dtype)


def diffusion_spectral_mutual_information(
    x: F[Tensor, "batch width"],
    reference: Tensor,
    sigma: float | str = 10.0,
    t: float = 1.0,
    repeats: int = 5,
    clusters: int = 10,
    seed: int = 0,
) -> F[Tensor, ""]:
    r"""How much lower the :func:`diffusion_spectral_entropy` of vectors is within the values of a reference, in bits.

    .. math::
        \mathrm{DSMI} = \sum_b \frac{n_b}{N} \Bigl( \frac1R \sum_{r=1}^R \mathrm{DSE}(X_{S_r}) - \mathrm{DSE}(X_{B = b})
        \Bigr), \qquad |S_r| = n_b

    The subsets S_r are drawn anew without replacement from all rows, as many as there are of the value, because the
    entropy grows with their number. It is about 0 for labels that are independent of the vectors. The draws begin at
    ``seed`` for each value, and are those of the official code.

    Args:
        x: vectors ``[N, D]``.
        reference: integer labels ``[N]``; numbers ``[N]`` or ``[N, 1]``, which are binned into ``clusters`` equal
            intervals; or vectors ``[N, D']``, which are clustered once by their graph of nearest neighbours
            (scikit-learn's ``SpectralClustering``): where one reference is used often, cluster it before, and give
            labels.
        sigma: width of the kernel, > 0, or ``"median"``: a quarter of the median distance between all vectors.
        t: diffusion time, > 0.
        repeats: R >= 1.
        clusters: >= 2.
        seed: of the subsets.

    Returns:
        a scalar of float32 or wider; NaN where a value is not finite.

    Raises:
        ValueError: wrong shapes, numbers outside their range.

    Example:
        >>> x = torch.tensor([[0.0], [0.0], [9.0], [9.0]])
        >>> information = diffusion_spectral_mutual_information(x, torch.tensor([0, 0, 1, 1]), sigma=1.0, repeats=200)
        >>> bool(0.6 < information < 0.75)  # two of three random pairs have a bit
        True

    Source: Assessing Neural Network Representations During Training Using Noise-Resilient Diffusion Spectral Entropy,
    arXiv:2312.04823.
    """
    _check(x, sigma, t)
    check_number("repeats", repeats, low=1, integer=True)
    check_number("clusters", clusters, low=2, integer=True)
    check_tensor("reference", reference, ndim=(1, 2))
    if len(reference) != len(x):
        refuse("reference", f"{len(x)} rows, as x", reference)
    labels = _labels(reference.detach(), clusters).to(x.device)
    rows = widen(x.detach())
    width = _width(rows, sigma)
    exact = rows.double()
    information = exact.new_zeros(())
    for value in torch.unique(labels):
        own = (labels == value).nonzero()[:, 0]
        draws = random.Random(seed)
        subsets = [draws.sample(range(len(rows)), len(own)) for _ in range(repeats)]
        places = torch.cat([torch.tensor(subsets, device=x.device), own[None]])
        entropies = torch.cat([_entropy(exact[some], width, t) for some in places.split(_at_once(len(own)))])
        information += len(own) / len(rows) * (entropies[:-1].mean() - entropies[-1])
    return information.to(rows.dtype)


def _check(x: Tensor, sigma: float | str, t: float) -> None:
    check_tensor("x", x, ndim=2, floating=True)
    if not len(x):
        refuse("x", "at least one row", x)
    if sigma != MEDIAN:
        check_number("sigma", sigma, low=0.0, open_low=True)
    check_number("t", t, low=0.0, open_low=True)


def _at_once(rows: int) -> int:
    """How many subsets of so many rows have their matrices in memory together."""
    return max(1, 2**24 // max(1, rows * rows))


def _width(x: Tensor, sigma: float | str) -> Tensor:
    """The width of the kernel; 0 where more than half of the distances are."""
    if isinstance(sigma, str):
        pairs = torch.pdist(x.double())
        return pairs.median() / 4 if len(pairs) else pairs.new_ones(())
    return torch.tensor(float(sigma), dtype=torch.float64, device=x.device)


def _entropy(x: Tensor, width: Tensor, t: float) -> Tensor:
    """Of clouds ``[M, N, D]`` in float64, ``[M]``."""
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    finite = distances.isfinite().all((1, 2))
    scaled = torch.where(distances == 0, 0.0, distances / width)  # 0 / 0 of identical vectors is 0
    kernel = torch.exp(-scaled.square() / 2)
    degrees = kernel.sum(2)
    matrix = kernel / (degrees[:, :, None] * degrees[:, None]).sqrt()
    values = torch.linalg.eigvalsh(torch.where(finite[:, None, None], matrix, 0.0)).abs() ** t
    p = values / values.sum(1, keepdim=True)
    return torch.where(finite, -torch.special.xlogy(p, p).sum(1) / math.log(2), torch.nan)


def _labels(reference: Tensor, clusters: int) -> Tensor:
    """Values of a discrete variable, ``[N]``."""
    if reference.ndim == 2 and reference.shape[1] == 1:
        reference = reference[:, 0]
    if reference.ndim == 1 and not reference.is_floating_point():
        return reference
    values = reference.double()
    if values.ndim == 1:
        low, high = values.aminmax()
        edges = torch.as_tensor(np.linspace(0, 1, clusters + 1)[1:-1], device=values.device)
        return torch.bucketize((values - low) / (high - low), edges, right=True)
    from sklearn.cluster import SpectralClustering

    method = SpectralClustering(
        clusters, affinity="nearest_neighbors", assign_labels="cluster_qr", random_state=0
    )  # fmt: skip
    return torch.as_tensor(method.fit(values.cpu().numpy()).labels_)


class DSE(Probe):
    """A probe of :func:`diffusion_spectral_entropy`, on what a layer reads.

    Args:
        layer: name of the module whose input is measured; by default the last linear layer.
        data: inputs to measure on, instead of the batch.
        sigma: width of the kernel, or ``"median"``, a quarter of the median distance of this moment's vectors.
        t: diffusion time, > 0.
        max_n: of more vectors so many are drawn.
        every: steps between measurements.

    Numbers of its reading: ``dse`` in bits, the ``sigma`` that was used, ``samples``.

    Example:
        >>> moment = Moment(1, "gradients", nn.Linear(1, 1), inputs=torch.tensor([[0.0], [2.0]]))
        >>> round(float(DSE(sigma=1.0).measure(moment).numbers["dse"]), 4)
        0.9867

    Source: Assessing Neural Network Representations During Training Using Noise-Resilient Diffusion Spectral Entropy,
    arXiv:2312.04823.
    """

    name = "dse"
    phases = ("gradients",)
    needs = ("batch",)
    cost = "a forward pass without gradient, the eigenvalues of a matrix [samples, samples]"

    def __init__(
        self,
        layer: str | None = None,
        *,
        data: Any = None,
        sigma: float | str = MEDIAN,
        t: float = 1.0,
        max_n: int = 1000,
        every: int = 50,
    ) -> None:
        if sigma != MEDIAN:
            check_number("sigma", sigma, low=0.0, open_low=True)
        check_number("t", t, low=0.0, open_low=True)
        check_number("max_n", max_n, low=1, integer=True)
        check_number("every", every, low=1, integer=True)
        self.layer, self.data, self.sigma, self.t, self.max_n, self.every = layer, data, sigma, t, max_n, every

    def check(self, model: nn.Module, optimizer: Optimizer | None) -> None:
        """Refuse a model without such a layer."""
        layer_name(inner_module(model), self.layer)

    def measure(self, moment: Moment) -> Reading:
        """The entropy of the features of this batch, or of the fixed inputs."""
        features = layer_inputs(moment, self.layer, self.data, "all")
        samples = float(len(features))
        if len(features) > self.max_n:
            features = features[random.Random(0).sample(range(len(features)), self.max_n)]
        numbers: dict[str, float | Tensor] = {"dse": math.nan, "sigma": math.nan}
        if len(features):
            numbers["sigma"] = _width(widen(features), self.sigma)
            numbers["dse"] = diffusion_spectral_entropy(features, self.sigma, self.t, self.max_n)
        return Reading({**numbers, "samples": samples})


class DSMI(Probe):
    """A probe of :func:`diffusion_spectral_mutual_information` of what a layer reads with the labels.

    In training it rises for labels that the features come to tell, and ends low for labels at random.

    Args:
        layer: name of the module whose input is measured; by default the last linear layer.
        data: inputs and labels to measure on, instead of the batch.
        sigma: width of the kernel, or ``"median"``, a quarter of the median distance of this moment's vectors.
        t: diffusion time, > 0.
        repeats: subsets drawn for each label.
        max_n: of more vectors so many are drawn.
        every: steps between measurements.

    Numbers of its reading: ``dsmi`` in bits, the ``sigma`` that was used, ``samples``; negative labels don't count.

    Example:
        >>> x, y = torch.tensor([[0.0], [0.0], [9.0], [9.0]]), torch.tensor([0, 0, 1, 1])
        >>> moment = Moment(1, "gradients", nn.Linear(1, 2), inputs=x, targets=y)
        >>> bool(DSMI(sigma=1.0).measure(moment).numbers["dsmi"] > 0.3)
        True

    Source: Assessing Neural Network Representations During Training Using Noise-Resilient Diffusion Spectral Entropy,
    arXiv:2312.04823.
    """

    name = "dsmi"
    phases = ("gradients",)
    needs = ("batch",)
    cost = "a forward pass without gradient, the eigenvalues of some matrices [samples of a label, the same]"

    def __init__(
        self,
        layer: str | None = None,
        *,
        data: tuple[Any, Tensor] | None = None,
        sigma: float | str = MEDIAN,
        t: float = 1.0,
        repeats: int = 5,
        max_n: int = 1000,
        every: int = 50,
    ) -> None:
        if sigma != MEDIAN:
            check_number("sigma", sigma, low=0.0, open_low=True)
        check_number("t", t, low=0.0, open_low=True)
        check_number("repeats", repeats, low=1, integer=True)
        check_number("max_n", max_n, low=1, integer=True)
        check_number("every", every, low=1, integer=True)
        self.layer, self.data, self.sigma, self.t = layer, data, sigma, t
        self.repeats, self.max_n, self.every = repeats, max_n, every

    def check(self, model: nn.Module, optimizer: Optimizer | None) -> None:
        """Refuse a model without such a layer."""
        layer_name(inner_module(model), self.layer)

    def measure(self, moment: Moment) -> Reading:
        """The information of the features of this batch, or of the fixed inputs, about their labels."""
        inputs, targets = (None, moment.targets) if self.data is None else self.data
        check_tensor("targets", targets, floating=False)
        features, labels = layer_inputs(moment, self.layer, inputs, "all"), targets.flatten()
        features, labels = features[labels >= 0], labels[labels >= 0]
        samples = float(len(labels))
        if len(features) > self.max_n:
            places = random.Random(0).sample(range(len(features)), self.max_n)
            features, labels = features[places], labels[places]
        numbers: dict[str, float | Tensor] = {"dsmi": math.nan, "sigma": math.nan}
        if len(features):
            numbers["sigma"] = _width(widen(features), self.sigma)
            numbers["dsmi"] = diffusion_spectral_mutual_information(
                features, labels, self.sigma, self.t, self.repeats
            )  # fmt: skip
        return Reading({**numbers, "samples": samples})
