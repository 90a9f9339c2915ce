"""LegendreTron: a proper loss of several classes whose link is learned together with the model."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn
from torch.nn.functional import linear, log_softmax, pad, softplus

from ...core.checks import check_index, check_logits, check_number, check_tensor, refuse
from ...core.logpartition import pick
from ...core.objective import Objective, Sample, TaskInfo
from ...core.reductions import reduce, widen
from ...core.search import Choice, Int

_LEAST_SCALE = 1e-3
"""Added to every scale, so that none is 0."""


def log_softmax_plus(scores: F[Tensor, "*batch scores"]) -> F[Tensor, "*batch classes"]:
    r"""Log-probabilities of K + 1 classes from K scores; the last class is the reference, with score 0.

    .. math:: \log p_k = z_k - \log\Bigl(1 + \sum_j e^{z_j}\Bigr), \qquad z_{K+1} = 0

    Args:
        scores: z ``[..., K]``, K >= 1.

    Returns:
        ``[..., K + 1]`` in float32 or wider, finite for all finite scores.

    Example:
        >>> log_softmax_plus(torch.tensor([1.0, -0.5])).exp()
        tensor([0.6285, 0.1402, 0.2312])

    Source: LegendreTron: Uprising Proper Multiclass Loss Learning, arXiv:2301.11695.
    """
    check_tensor("scores", scores, floating=True)
    return log_softmax(pad(widen(scores), (0, 1)), -1)


class ActNorm(nn.Module):
    """``(x + shift) * (exp(log_scale) + 0.001)`` for each feature, set by the first batch to mean 0 and deviation 1.

    Args:
        features: width of x.
        frozen_shift: the shift is not trained.

    A feature that is constant in the first batch keeps its scale.

    Example:
        >>> norm = ActNorm(2)
        >>> norm.start(torch.tensor([[0.0, 5.0], [4.0, 5.0]]))
        >>> norm(torch.tensor([[4.0, 5.0]]))
        tensor([[1.0020, 0.0000]], grad_fn=<MulBackward0>)
    """

    shift: Tensor

    def __init__(self, features: int, frozen_shift: bool = False) -> None:
        super().__init__()
        if frozen_shift:
            self.register_buffer("shift", torch.zeros(features))
        else:
            self.shift = nn.Parameter(torch.zeros(features))
        self.log_scale = nn.Parameter(torch.zeros(features))

    @property
    def scale(self) -> Tensor:
        """The factor of each feature, > 0."""
        return self.log_scale.exp() + _LEAST_SCALE

    @torch.no_grad()
    def start(self, x: F[Tensor, "batch features"]) -> None:
        """Take shift and scale from a batch."""
        deviation, mean = torch.std_mean(x, dim=0, correction=0)
        self.shift.copy_(-mean)
        constant = deviation <= 1e-6 * mean.abs().clamp_min(1.0)
        self.log_scale.copy_(-torch.where(constant, torch.ones_like(deviation), deviation + 1e-6).log())

    def forward(self, x: F[Tensor, "batch features"]) -> F[Tensor, "batch features"]:
        """The normalised features."""
        return (x + self.shift) * self.scale


def _check_net(hidden: int, depth: int) -> None:
    check_number("hidden", hidden, low=2, integer=True)
    check_number("depth", depth, low=1, integer=True)
    if hidden % 2:
        refuse("hidden", "an even number", hidden)


class InputConvexNet(nn.Module):
    r"""A convex, smooth function of K inputs, and its gradient in closed form.

    .. math:: h_0 = \sigma(W_0 x + c_0), \quad
        h_l = [\sigma(N_l(P_l h_{l-1} + X_l x)),\; \sigma(Y_l x)], \quad
        f(x) = N_L(P_L h_{L-1} + X_L x)

    with softplus for sigma, ActNorm for N (increasing), and P the softplus of its weight over its number of inputs, so
    that no entry is negative: sums and increasing convex functions of convex functions are convex.

    Args:
        inputs: K >= 1.
        hidden: width H >= 2 of a layer, even: one half is fed by the layer before, the other by x alone.
        depth: L >= 1 hidden layers.

    Example:
        >>> net = InputConvexNet(3)
        >>> net(torch.zeros(5, 3)).shape, net.gradient(torch.zeros(5, 3)).shape
        (torch.Size([5]), torch.Size([5, 3]))

    Source: LegendreTron, arXiv:2301.11695, with the network of Convex Potential Flows, arXiv:2012.05942.
    """

    def __init__(self, inputs: int, hidden: int = 2, depth: int = 4) -> None:
        super().__init__()
        check_number("inputs", inputs, low=1, integer=True)
        _check_net(hidden, depth)
        half = hidden // 2
        self.inputs = inputs
        self.first = nn.Linear(inputs, hidden)
        self.positive = nn.ModuleList([nn.Linear(hidden, half) for _ in range(depth - 1)])
        self.direct = nn.ModuleList([nn.Linear(inputs, half) for _ in range(depth - 1)])
        self.beside = nn.ModuleList([nn.Linear(inputs, half) for _ in range(depth - 1)])
        self.norms = nn.ModuleList([ActNorm(half) for _ in range(depth - 1)])
        self.last_positive = nn.Linear(hidden, 1, bias=False)
        self.last_direct = nn.Linear(inputs, 1, bias=False)
        self.last_norm = ActNorm(1, frozen_shift=True)

    @staticmethod
    def _weight(layer: nn.Linear) -> Tensor:
        return softplus(layer.weight) / layer.in_features

    def _layers(self) -> list[tuple[Any, Any, Any, Any]]:
        return list(zip(self.positive, self.direct, self.beside, self.norms))

    def _run(self, x: Tensor, start: bool = False) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        """The value ``[B, 1]`` and what came before each softplus; with ``start`` the norms are set on the way."""
        before: list[tuple[Tensor, ...]] = [(self.first(x),)]
        h = softplus(before[0][0])
        for positive, direct, beside, norm in self._layers():
            inner = linear(h, self._weight(positive), positive.bias) + direct(x)
            if start:
                norm.start(inner)
            before.append((norm(inner), beside(x)))
            h = softplus(torch.cat(before[-1], -1))
        inner = linear(h, self._weight(self.last_positive)) + self.last_direct(x)
        if start:
            self.last_norm.start(inner)
        return self.last_norm(inner), before

    def forward(self, x: F[Tensor, "batch inputs"]) -> F[Tensor, " batch"]:
        """Its value."""
        return self._run(x)[0].squeeze(-1)

    def gradient(self, x: F[Tensor, "batch inputs"]) -> F[Tensor, "batch inputs"]:
        """Its gradient in x, itself differentiable: back through the layers by hand, without autograd."""
        _, before = self._run(x)
        scale = self.last_norm.scale
        slope = scale * self.last_direct.weight  # of the value in x, [1 or B, K]
        flow = (scale * self._weight(self.last_positive)).expand(len(x), -1)  # of the value in h, [B, H]
        for (positive, direct, beside, norm), parts in zip(reversed(self._layers()), reversed(before)):
            through, aside = (flow * torch.sigmoid(torch.cat(parts, -1))).chunk(2, -1)
            through = through * norm.scale
            slope = slope + through @ direct.weight + aside @ beside.weight
            flow = through @ self._weight(positive)
        return slope + (flow * torch.sigmoid(before[0][0])) @ self.first.weight

    @torch.no_grad()
    def start(self, x: F[Tensor, "batch inputs"]) -> None:
        """Set every norm from a batch."""
        self._run(x, start=True)


class ConvexBlock(nn.Module):
    r"""The gradient of a strongly convex function: a map of R^K onto itself with a symmetric, positive Jacobian.

    .. math:: \nabla\Bigl(s(w_1) f(z) + s(w_0) \frac{\|z\|^2}{2}\Bigr) = s(w_1) \nabla f(z) + s(w_0) z

    with s for softplus and f an :class:`InputConvexNet`. No eigenvalue of the Jacobian is below s(w_0).

    Args:
        inputs: K >= 1.
        hidden, depth: of the network.
    """

    def __init__(self, inputs: int, hidden: int = 2, depth: int = 4) -> None:
        super().__init__()
        self.net = InputConvexNet(inputs, hidden, depth)
        self.w0, self.w1 = nn.Parameter(torch.randn(())), nn.Parameter(torch.randn(()))

    def forward(self, z: F[Tensor, "batch scores"]) -> F[Tensor, "batch scores"]:
        """The gradient at z."""
        return softplus(self.w1) * self.net.gradient(z) + softplus(self.w0) * z


class LegendreLink(nn.Module):
    r"""A learned inverse link: from K scores to the log-probabilities of K + 1 classes, the last one the reference.

    .. math:: p = \mathrm{softmax}^+(\nabla F_B \circ \dots \circ \nabla F_1(z))

    Each block is the gradient of a convex function. With one block the negative log-likelihood of p is the canonical
    loss of that link, hence strictly proper and convex in z. A composition of several is still invertible, so the
    likelihood stays proper in p, but it is in general no convex gradient, so the pair need not be canonical. The link
    need not keep the order of scores. The first batch in training mode sets the scales of its norms; that this has
    happened is part of ``state_dict``.

    Args:
        scores: K >= 1.
        blocks: B >= 1.
        hidden, depth: of each :class:`InputConvexNet`.

    Raises:
        ValueError: scores of another shape, an odd ``hidden``.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> link = LegendreLink(2)
        >>> link(torch.randn(8, 2)).exp().sum(-1).allclose(torch.ones(8))
        True

    Source: LegendreTron: Uprising Proper Multiclass Loss Learning, arXiv:2301.11695.
    """

    def __init__(self, scores: int, blocks: int = 2, hidden: int = 2, depth: int = 4) -> None:
        super().__init__()
        check_number("scores", scores, low=1, integer=True)
        check_number("blocks", blocks, low=1, integer=True)
        self.scores = scores
        self.started = False
        self.blocks = nn.ModuleList([ConvexBlock(scores, hidden, depth) for _ in range(blocks)])

    def forward(self, z: F[Tensor, "batch scores"]) -> F[Tensor, "batch classes"]:
        """Log-probabilities in float32 or wider."""
        check_tensor("z", z, floating=True, shape=(None, self.scores))
        z = widen(z)
        if self.training and not self.started and len(z):
            self.start(z)
        for block in self.blocks:
            z = block(z)
        return log_softmax_plus(z)

    @torch.no_grad()
    def start(self, z: F[Tensor, "batch scores"]) -> None:
        """Set every norm from a batch, one block after the other."""
        for block in self.blocks:
            assert isinstance(block, ConvexBlock)
            block.net.start(z)
            z = block(z)
        self.started = True

    def get_extra_state(self) -> Tensor:
        """Whether a batch has set the norms."""
        return torch.tensor(self.started)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore it."""
        self.started = bool(state)


class LegendreTron(Objective):
    r"""The negative log-likelihood of log-probabilities that come through a learned link.

    .. math:: L = -\log p_y

    Its head is a linear layer to C - 1 scores followed by a :class:`LegendreLink`, so the link is trained, stopped and
    saved with the model; the last class is the reference. The paper trains all of it with Adam at 0.01, x0.95 every
    four epochs, and a ridge of 0.005 sum w^2.

    Args:
        blocks: of the link, >= 1; only one block is surely canonical.
        hidden: of the link, even, >= 2.
        depth: of the link, >= 1.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Raises:
        ValueError: wrong shapes, a class out of range.

    Example:
        >>> loss = LegendreTron()
        >>> head = loss.head(6, TaskInfo("multiclass", num_samples=10, num_classes=3))
        >>> log_p = head(torch.randn(10, 6))
        >>> log_p.shape, loss(log_p, torch.arange(10) % 3).ndim
        (torch.Size([10, 3]), 0)

    Source: LegendreTron: Uprising Proper Multiclass Loss Learning, arXiv:2301.11695.
    """

    name = "legendretron"
    tasks = ("binary", "multiclass")
    domain = "log_probabilities"
    search = {"blocks": Int(1, 3), "hidden": Choice((2, 4, 8))}

    def __init__(self, blocks: int = 2, hidden: int = 2, depth: int = 4, reduction: str = "mean") -> None:
        super().__init__(reduction)
        check_number("blocks", blocks, low=1, integer=True)
        _check_net(hidden, depth)
        self.blocks, self.hidden, self.depth = blocks, hidden, depth

    def head(self, feature_dim: int, info: TaskInfo) -> nn.Module:
        """A linear layer to C - 1 scores, then the link."""
        scores = info.num_classes - 1
        return nn.Sequential(nn.Linear(feature_dim, scores), LegendreLink(scores, self.blocks, self.hidden, self.depth))

    def forward(
        self, outputs: F[Tensor, "batch classes"], target: I[Tensor, " batch"], *, weight: Tensor | None = None
    ) -> Tensor:
        """The loss of log-probabilities and class indices."""
        self.check_call(outputs, target, weight)
        check_logits(outputs)
        check_index(target, outputs)
        return reduce(-pick(widen(outputs), target), self.reduction, weight)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """The probabilities themselves."""
        return widen(outputs).exp()

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[LegendreTron, Sample]]:
        """Log-probabilities for two and for five classes."""
        cases = []
        for objective, ((outputs, target), kwargs) in super().samples(generator, torch.float64, device):
            cases.append((objective, ((outputs.log_softmax(-1).to(dtype), target), kwargs)))
        return cases
