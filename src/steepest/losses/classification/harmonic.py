"""The harmonic loss: probability falls as a power of the distance to class centres."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float as F
from torch import Tensor, nn

from ...core.checks import check_number, check_tensor
from ...core.distances import check_distance, distances
from ...core.objective import Objective, TaskInfo
from ...core.reductions import widen
from ...core.search import Choice, Float
from .cross_entropy import cross_entropy


def _check(n: float, eps: float) -> None:
    check_number("n", n, low=0.0, open_low=True)
    check_number("eps", eps, low=0.0)


def harmonic_log_softmax(d: F[Tensor, "*batch classes"], *, n: float = 1.0, eps: float = 1e-4) -> Tensor:
    r"""Log-probabilities that fall as a power of the distance.

    .. math:: \log p_i = -n \log(d_i + \epsilon) - \log \sum_j (d_j + \epsilon)^{-n}

    Args:
        d: distances ``[..., K]`` >= 0.
        n: exponent > 0: near 0 uniform, large one-hot at the smallest distance.
        eps: >= 0; at 0 a distance of 0 has an infinite logit.

    Returns:
        ``[..., K]`` in float32 or wider.

    Raises:
        ValueError: n <= 0, eps < 0.

    Example:
        >>> harmonic_log_softmax(torch.tensor([2.0, 1.0, 5.0**0.5]), n=2.0, eps=0.0).exp()
        tensor([0.1724, 0.6897, 0.1379])

    Source: Rethinking the Harmonic Loss via Non-Euclidean Distance Layers (2026).
    """
    _check(n, eps)
    check_tensor("d", d, floating=True)
    return (-n * torch.log(widen(d) + eps)).log_softmax(-1)


class DistanceHead(nn.Module):
    r"""A head of class centres whose logits are :math:`-n \log(d(x, w_i) + \epsilon)`; no bias.

    Softmax of them is :math:`p_i \propto (d_i + \epsilon)^{-n}`, so any loss of logits can stand on it.

    Args:
        in_features: D, width of the features.
        num_classes: K.
        distance: one of ``euclidean``, ``manhattan``, ``minkowski``, ``chebyshev``, ``cosine``, ``canberra``,
            ``bray_curtis``, ``mahalanobis``, ``hamming``; see :func:`~steepest.core.distances.distances`.
        n: exponent > 0; about sqrt(D) is a usual choice.
        eps: added to distances, >= 0.
        variant: of the distance, or None for its first. For ``mahalanobis`` the metric is learned, from the identity:
            ``"diagonal"`` exp(theta), ``"lower"`` L L' with L lower triangular, ``"full"`` A A' + 0.01 I.
        p: exponent of ``minkowski``, >= 1.
        sharpness: of the smooth Chebyshev distance, > 0.
        temperature: of ``hamming``, > 0.
        floor: of the robust Canberra distance, > 0.

    Raises:
        ValueError: an unknown distance or variant, a number out of range.

    Example:
        >>> head = DistanceHead(2, 3, "manhattan", eps=0.0)
        >>> _ = head.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]))
        >>> head(torch.tensor([[1.0, 2.0]])).softmax(-1)
        tensor([[0.2727, 0.5455, 0.1818]], grad_fn=<SoftmaxBackward0>)

    Source: Rethinking the Harmonic Loss via Non-Euclidean Distance Layers (2026).
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        distance: str = "cosine",
        n: float = 1.0,
        eps: float = 1e-4,
        *,
        variant: str | None = None,
        p: float = 1.5,
        sharpness: float = 10.0,
        temperature: float = 1.0,
        floor: float = 1e-3,
    ) -> None:
        super().__init__()
        check_number("in_features", in_features, low=1, integer=True)
        check_number("num_classes", num_classes, low=1, integer=True)
        _check(n, eps)
        self.distance, self.variant = distance, check_distance(distance, variant)
        self.n, self.eps = n, eps
        self.options = {"p": p, "sharpness": sharpness, "temperature": temperature, "floor": floor}
        self.weight = nn.Parameter(torch.empty(num_classes, in_features))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as nn.Linear
        if distance == "mahalanobis":
            start = {
                "diagonal": torch.zeros(in_features),
                "lower": torch.eye(in_features),
                "full": math.sqrt(0.99) * torch.eye(in_features),
            }
            self.metric = nn.Parameter(start[self.variant])
        distances(self.weight.detach()[:0], self.weight.detach(), **self._how())  # refuses what it cannot use

    def _how(self) -> dict[str, object]:
        how: dict[str, object] = {"distance": self.distance, "variant": self.variant, **self.options}
        if self.distance == "mahalanobis":
            if self.variant == "diagonal":
                how["factor"] = torch.exp(0.5 * self.metric)
            elif self.variant == "lower":
                how["factor"] = torch.tril(self.metric)
            else:  # A A' + 0.01 I is the square of [A, 0.1 I]
                eye = torch.eye(self.metric.shape[0], dtype=self.metric.dtype, device=self.metric.device)
                how["factor"] = torch.cat([self.metric, 0.1 * eye], dim=1)
        return how

    def forward(self, features: F[Tensor, "*batch features"]) -> F[Tensor, "*batch classes"]:
        """Logits ``[..., K]`` in float32 or wider."""
        check_tensor("features", features, floating=True)
        flat = features.reshape(-1, features.shape[-1])
        d = distances(flat, self.weight, **self._how())  # type: ignore[arg-type]
        logits = -self.n * torch.log(d + self.eps)
        return logits.reshape(*features.shape[:-1], self.weight.shape[0])

    def extra_repr(self) -> str:
        classes, width = self.weight.shape
        variant = f", variant={self.variant!r}" if self.variant else ""
        options = "".join(f", {name}={value}" for name, value in self.options.items())
        return f"{width}, {classes}, {self.distance!r}, n={self.n}, eps={self.eps}{variant}{options}"


class HarmonicLoss(Objective):
    r"""Cross-entropy of probabilities that fall as a power of the distance to class centres.

    .. math:: L = -\log p_y, \qquad p_i = \frac{d_i^{-n}}{\sum_j d_j^{-n}} = \mathrm{softmax}(n z)_i, \qquad z = -\log d

    Its outputs z are the logits of its own head, a :class:`DistanceHead` of exponent 1: the exponent belongs to the
    loss, so that models of different n are one architecture. A head with an exponent of its own goes with plain
    cross-entropy.

    Args:
        n: exponent > 0.
        distance: of the head; any that :class:`DistanceHead` knows.
        eps: added to the distances by the head, >= 0.
        ignore_index: samples with this index don't count.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Example:
        >>> z = -torch.tensor([[2.0, 1.0, 5.0**0.5]]).log()
        >>> HarmonicLoss(n=2.0)(z, torch.tensor([1]))
        tensor(0.3716)

    Source: Rethinking the Harmonic Loss via Non-Euclidean Distance Layers (2026).
    """

    name = "harmonic"
    tasks = ("binary", "multiclass")
    targets = ("index", "soft")
    search = {"n": Float(1.0, 16.0, log=True), "distance": Choice(("euclidean", "cosine", "manhattan"))}

    def __init__(
        self,
        n: float = 8.0,
        distance: str = "euclidean",
        eps: float = 1e-4,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        _check(n, eps)
        check_distance(distance, None)
        check_number("ignore_index", ignore_index, integer=True)
        self.n, self.distance, self.eps, self.ignore_index = n, distance, eps, ignore_index

    def head(self, feature_dim: int, info: TaskInfo) -> DistanceHead:
        """Centres in the space of the features."""
        return DistanceHead(feature_dim, info.num_classes, self.distance, eps=self.eps)

    def forward(self, outputs: F[Tensor, "batch classes"], target: Tensor, *, weight: Tensor | None = None) -> Tensor:
        """The loss of -log d and class indices ``[N]`` or probabilities ``[N, C]``."""
        self.check_call(outputs, target, weight)
        return cross_entropy(
            self.n * widen(outputs),
            target,
            ignore_index=self.ignore_index,
            weight=weight,
            reduction=self.reduction,
        )

    def probabilities(self, outputs: Tensor) -> Tensor:
        """p, proportional to d^-n."""
        return (self.n * widen(outputs)).softmax(-1)
