"""Neural collapse: how close features and classifier are to the geometry of a minimum, and what that geometry is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float as F
from jaxtyping import Int
from torch import Tensor, nn
from torch.optim import Optimizer

from ...core.checks import check_choice, check_index, check_number, check_tensor, refuse
from ...core.probe import Moment, Probe, Reading, inner_module
from ...core.reductions import widen
from ._layer_inputs import linear_layers, read_by

GEOMETRIES = ("etf", "of", "gof")


def neural_collapse_metrics(
    features: F[Tensor, "batch width"],
    labels: Int[Tensor, " batch"],
    weight: F[Tensor, "classes width"],
    geometry: str = "etf",
    *,
    bias: F[Tensor, " classes"] | None = None,
) -> dict[str, Tensor]:
    r"""The four measures of neural collapse.

    With means :math:`\mu_k` of the classes that occur, K of them, their mean :math:`\mu_G`, the matrix M of means
    (:math:`\mu_k - \mu_G` for the simplex) and the classifier W:

    .. math::
        \mathrm{NC1} &= \tfrac1K \operatorname{tr}(S_W S_B^+), \qquad
        S_W = \tfrac1N \sum_i (h_i - \mu_{y_i})(h_i - \mu_{y_i})^\top, \quad
        S_B = \tfrac1K \sum_k (\mu_k - \mu_G)(\mu_k - \mu_G)^\top \\
        \mathrm{NC2} &= \Bigl\| \frac{M^\top M}{\|M^\top M\|_F} - T \Bigr\|_F, \qquad
        \mathrm{NC3} = \Bigl\| \frac{W M}{\|W M\|_F} - T \Bigr\|_F

    NC4 is the share of samples whose class by the classifier is not that of the nearest mean. The target T is that of
    a simplex equiangular tight frame, :math:`(I - 11^\top / K) / \sqrt{K - 1}` (``"etf"``), of an orthogonal frame of
    equal lengths, :math:`I / \sqrt K` (``"of"``), or of an orthogonal frame of any lengths: the matrix's own diagonal,
    over its norm (``"gof"``, where classes are not balanced). All are 0 at full collapse.

    Centring is at the mean of the class means, so that a simplex is one whatever the counts; where classes are
    balanced, that is the mean of all features. No matrix of ``[width, width]`` is built.

    Args:
        features: what the classifier reads, ``[N, d]``.
        labels: class indices ``[N]``.
        weight: W of the classifier, ``[K, d]``.
        geometry: ``"etf"``, ``"of"`` or ``"gof"``.
        bias: of the classifier, ``[K]``; it counts in NC4 alone.

    Returns:
        ``nc1``, ``nc2``, ``nc3``, ``nc4``, scalars of float32 or wider; NaN where the means coincide.

    Raises:
        ValueError: wrong shapes, an unknown geometry, fewer than two classes that occur.

    Example:
        >>> frame = simplex_etf(3, 4)
        >>> labels = torch.tensor([0, 0, 1, 2])
        >>> measures = neural_collapse_metrics(frame[labels], labels, frame)
        >>> [round(float(value), 5) for value in measures.values()]
        [0.0, 0.0, 0.0, 0.0]

    Source: Neural Collapse in Deep Linear Networks: From Balanced to Imbalanced Data, arXiv:2301.00437.
    """
    check_choice("geometry", geometry, GEOMETRIES)
    check_tensor("features", features, ndim=2, floating=True)
    check_tensor("weight", weight, floating=True, shape=(None, features.shape[1]))
    check_index(labels, features.new_empty(len(features), len(weight)), argument="labels")
    if bias is not None:
        check_tensor("bias", bias, floating=True, shape=(len(weight),))
    h = widen(features.detach())
    w = widen(weight.detach()).to(h.dtype)
    present, place, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    if len(present) < 2:
        refuse("labels", "samples of at least 2 classes", present.tolist())
    means = h.new_zeros(len(present), h.shape[1]).index_add_(0, place, h) / counts[:, None]
    constant = (h == h[:1]).all(0) & h[:1].isfinite().all(0)  # means there are rounded
    centred = torch.where(constant, 0.0, means - means.mean(0))
    within = torch.where(constant, 0.0, h - means[place])
    # tr(S_W pinv(S_B)) / K = |pinv(A) D|^2 / N, with A the centred means and D the deviations
    inverse = torch.linalg.pinv(torch.where(centred.isfinite(), centred, 0.0))
    nc1 = (within @ inverse).square().sum() / len(h)
    m = _unit(centred if geometry == "etf" else means)
    logits = h @ w.T if bias is None else h @ w.T + bias.detach().to(h.dtype)
    nearest = present[torch.cdist(h, means, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)]
    differ = (logits.argmax(1) != nearest).to(h.dtype).mean()
    return {
        "nc1": torch.where((centred == 0).all(), torch.nan, nc1),
        "nc2": _from_frame(m @ m.T, geometry),
        "nc3": _from_frame(_unit(w[present]) @ m.T, geometry),
        "nc4": torch.where(logits.isfinite().all(), differ, torch.nan),
    }


def _unit(rows: Tensor) -> Tensor:
    """With a largest entry of 1, so that no product leaves the type."""
    return rows / rows.abs().amax() if rows.numel() else rows


def _from_frame(gram: Tensor, geometry: str) -> Tensor:
    """The distance of a matrix of norm 1 from the target."""
    classes = len(gram)
    identity = torch.eye(classes, dtype=gram.dtype, device=gram.device)
    if geometry == "etf":
        target = (identity - 1 / classes) / math.sqrt(classes - 1)
    elif geometry == "of":
        target = identity / math.sqrt(classes)
    else:
        target = gram.diagonal().diag()
        target = target / target.norm()
    distance: Tensor = (gram / gram.norm() - target).norm()
    return distance


def simplex_etf(
    classes: int,
    width: int,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
) -> F[Tensor, "classes width"]:
    r"""A simplex equiangular tight frame: unit vectors whose cosines are all :math:`-1/(K - 1)`.

    Args:
        classes: K >= 2. width: >= K - 1. generator: of a random rotation; without one the vectors lie in the first K -
        1 coordinates. dtype: float type, torch's default by default.

    Returns:
        ``[K, width]``, a vector a row.

    Raises:
        ValueError: fewer than two classes, a width in which they have no room.

    Example:
        >>> frame = simplex_etf(3, 2)
        >>> (frame @ frame.T).round(decimals=3)
        tensor([[ 1.0000, -0.5000, -0.5000],
                [-0.5000,  1.0000, -0.5000],
                [-0.5000, -0.5000,  1.0000]])

    Source: Neural Collapse in Deep Linear Networks: From Balanced to Imbalanced Data, arXiv:2301.00437.
    """
    check_number("classes", classes, low=2, integer=True)
    check_number("width", width, low=classes - 1, integer=True)
    kind = torch.get_default_dtype() if dtype is None else dtype
    places = torch.arange(1, classes, dtype=torch.float64)
    rows = torch.arange(classes)[:, None]
    # columns of Helmert's matrix: orthonormal, and orthogonal to ones
    basis = torch.where(rows < places, 1.0, torch.where(rows == places, -places, 0.0)) / (places * (places + 1)).sqrt()
    frame = torch.zeros(classes, width, dtype=torch.float64)
    frame[:, : classes - 1] = math.sqrt(classes / (classes - 1)) * basis
    if generator is not None:
        rotation, _ = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
        frame = frame @ rotation
    return frame.to(kind)


def unconstrained_features_optimum(
    counts: Sequence[int] | Tensor, lams: float | Sequence[float], lam_h: float, depth: int = 1
) -> tuple[F[Tensor, " classes"], F[Tensor, "depth_plus_1 classes"]]:
    r"""The global minimum of a deep linear head without bias on free features, in closed form.

    .. math::
        \min_{W_1 \dots W_M, H} \; \frac{1}{2N} \|W_M \cdots W_1 H - Y\|_F^2
        + \sum_l \frac{\lambda_l}{2} \|W_l\|_F^2 + \frac{\lambda_H}{2} \|H\|_F^2

    With :math:`n_k` samples of class k, all features of a class are one vector, those of different classes are
    orthogonal, and the outputs on class k are :math:`p_k e_k` with the :math:`p_k` in [0, 1] that minimises

    .. math::
        g_k(p) = \frac{n_k}{2N} (p - 1)^2 + \frac{M + 1}{2} t_k, \qquad
        t_k = \Bigl(n_k \lambda_H \prod_l \lambda_l\Bigr)^{\frac{1}{M+1}} p^{\frac{2}{M+1}}

    The direction of class k has the squared singular value :math:`t_k / \lambda_l` in layer l, and the feature has the
    squared length :math:`t_k / (n_k \lambda_H)`. For M = 1, :math:`p_k = \max(0, 1 - N \sqrt{\lambda_W \lambda_H /
    n_k})`: a class of at most :math:`N^2 \lambda_W \lambda_H` samples vanishes. For more layers :math:`p_k` jumps to 0.

    Widths must be at least the number of classes with :math:`p_k > 0`.

    Args:
        counts: samples of each class, ``[K]``, >= 1. lams: of the layers W_1 to W_M, or one for all, > 0. lam_h: of
        the features, > 0. depth: M >= 1.

    Returns:
        p ``[K]``, and squared lengths ``[M + 1, K]``: of the layers, the features last; in float64.

    Raises:
        ValueError: numbers outside their range, another number of ``lams`` than layers.

    Example:
        >>> p, lengths = unconstrained_features_optimum([50, 10, 2], 0.02, 0.02)
        >>> p
        tensor([0.8246, 0.6079, 0.1232], dtype=torch.float64)

    Source: Neural Collapse in Deep Linear Networks: From Balanced to Imbalanced Data, arXiv:2301.00437.
    """
    check_number("depth", depth, low=1, integer=True)
    check_number("lam_h", lam_h, low=0.0, open_low=True)
    of_layers = [float(lam) for lam in lams] if isinstance(lams, Sequence) else [float(lams)] * depth
    if len(of_layers) != depth:
        refuse("lams", f"one number, or one for each of {depth} layers", lams)
    for lam in of_layers:
        check_number("lams", lam, low=0.0, open_low=True)
    n = torch.as_tensor(counts, dtype=torch.float64)
    check_tensor("counts", n, ndim=1)
    if not len(n) or bool((n < 1).any()):
        refuse("counts", "at least one class, and a sample of each", counts)
    share = n / n.sum()
    c = (n * lam_h * math.prod(of_layers)) ** (1 / (depth + 1))

    def cost(p: Tensor) -> Tensor:
        return share / 2 * (p - 1) ** 2 + (depth + 1) / 2 * c * p ** (2 / (depth + 1))

    # g'(p) = 0 where share (1 - p) p^a = c, which falls from its top at a / (1 + a) on: the minimum lies there
    a = (depth - 1) / (depth + 1)
    low = torch.full_like(n, a / (1 + a))
    high = torch.ones_like(n)
    for _ in range(60):
        middle = (low + high) / 2
        above = share * (1 - middle) * middle**a > c
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    inner = (low + high) / 2
    p = torch.where(cost(inner) < cost(torch.zeros_like(n)), inner, 0.0)
    t = c * p ** (2 / (depth + 1))
    return p, torch.stack([*(t / lam for lam in of_layers), t / (n * lam_h)])


class NeuralCollapseMonitor(Probe):
    """A probe of :func:`neural_collapse_metrics`: on what a classifier reads, and its weights.

    Classes of which the batch has no sample don't count; it has to have two of them, else the measures are NaN. Few
    samples a class make all of them larger than those of the whole training set: ``data`` gives fixed samples.
    Where inputs are sequences, every label that is not negative is a sample.

    Args:
        layer: name of the classifier, an ``nn.Linear``, as ``model.named_modules()`` has it; by default the last one.
        geometry: ``"etf"``, ``"of"`` or ``"gof"``.
        data: inputs and labels to measure on, instead of the batch.
        every: steps between measurements.

    Numbers of its reading: ``nc1`` to ``nc4``, ``classes`` and ``samples``.

    Example:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.eye(2))
        >>> moment = Moment(1, "forward", model, inputs=torch.eye(2), targets=torch.tensor([0, 1]))
        >>> round(float(NeuralCollapseMonitor().measure(moment).numbers["nc1"]), 5)
        0.0

    Source: Neural Collapse in Deep Linear Networks: From Balanced to Imbalanced Data, arXiv:2301.00437.
    """

    name = "neural_collapse"
    phases = ("forward",)
    needs = ("batch",)
    cost = "a forward pass without gradient, the SVD of a matrix [classes, width]"

    def __init__(
        self,
        layer: str | None = None,
        geometry: str = "etf",
        *,
        data: tuple[Any, Tensor] | None = None,
        every: int = 50,
    ) -> None:
        check_choice("geometry", geometry, GEOMETRIES)
        check_number("every", every, low=1, integer=True)
        self.layer, self.geometry, self.data, self.every = layer, geometry, data, every

    def _classifier(self, model: nn.Module) -> tuple[str, nn.Linear]:
        linear = linear_layers(model)
        if not linear or (self.layer is not None and self.layer not in linear):
            refuse("layer", "the name of a linear layer" + (f" ({', '.join(linear)})" if linear else ""), self.layer)
        name = list(linear)[-1] if self.layer is None else self.layer
        return name, linear[name]

    def check(self, model: nn.Module, optimizer: Optimizer | None) -> None:
        """Refuse a model without such a layer."""
        self._classifier(inner_module(model))

    def measure(self, moment: Moment) -> Reading:
        """The measures on this batch, or on the fixed samples."""
        name, head = self._classifier(moment.module)
        labels = moment.targets
        if self.data is not None:
            moment, labels = Moment(moment.step, "forward", moment.module, inputs=self.data[0]), self.data[1]
        check_tensor("targets", labels, floating=False)
        features = read_by(moment, name).flatten(0, -2)
        real = labels.flatten() >= 0
        features, labels = features[real], labels.flatten()[real]
        classes = len(labels.unique())
        measures: dict[str, float | Tensor] = dict.fromkeys(("nc1", "nc2", "nc3", "nc4"), math.nan)
        if classes > 1:
            measures |= neural_collapse_metrics(features, labels, head.weight, self.geometry, bias=head.bias)
        return Reading({**measures, "classes": float(classes), "samples": float(len(labels))})
