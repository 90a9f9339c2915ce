"""AdaMixUp: mixing coefficients from an interval learned for each pair, kept off real data by a discriminator."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn

from ...core.checks import check_index, check_number, check_tensor, refuse, values_visible
from ...core.method import Method
from ...core.objective import Batch, Objective
from ...core.random import RandomStream
from ...core.reductions import widen
from ...core.terms import kept_terms
from ...nn.networks import mlp
from ._mixtures import convex, convex_weight, row_losses

_INITIAL_STD = 1e-3
"""Of the last layers' weights: at the start a = b = c = 1/3."""
_LEAST = 1e-6
"""Smallest a, b and c, so that 0 < a and a + b < 1 in float32 for any policy logits."""

RowLosses = Callable[[Tensor, Tensor], Tensor]


class PolicyRegionGenerator(nn.Module):
    r"""The interval [a, a + b] of mixing coefficients that a pair of inputs is given.

    .. math:: (a, b, c) = \mathrm{softmax}\Bigl(W_2 W_1\, g\bigl(\tfrac12 (m_1 x_1 + m_2 x_2)\bigr)\Bigr)

    with g a network and :math:`m_1, m_2` of the shape of the inputs, drawn from a standard normal law cut at 2; each of
    a, b, c is held at 1e-6 or above. The last layers start at a standard deviation of 1e-3: a = b = c = 1/3.

    Args:
        net: g, inputs ``[P, ...]`` to features ``[P, feature_dim]``; in the paper of the classifier's architecture,
            with weights of its own.
        feature_dim: width of its output, >= 1.
        hidden: rows of W_1, >= 1.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> generator = PolicyRegionGenerator(mlp(4, width=8), 8)
        >>> a, b, c = generator(torch.zeros(2, 4), torch.zeros(2, 4)).unbind(-1)
        >>> torch.stack([a, b, c]).detach().round(decimals=2).unique()
        tensor([0.3300])

    Source: MixUp as Locally Linear Out-Of-Manifold Regularization, arXiv:1809.02499.
    """

    def __init__(self, net: nn.Module, feature_dim: int, hidden: int = 100) -> None:
        super().__init__()
        check_number("feature_dim", feature_dim, low=1, integer=True)
        check_number("hidden", hidden, low=1, integer=True)
        self.net = net
        self.layers = nn.Sequential(_small(feature_dim, hidden), _small(hidden, 3))

    def forward(
        self, first: F[Tensor, "pairs ..."], second: F[Tensor, "pairs ..."], generator: torch.Generator | None = None
    ) -> F[Tensor, "pairs 3"]:
        """a, b and c of every pair; the noise comes from ``generator`` (on the CPU) or torch's own."""
        check_tensor("first", first, floating=True)
        check_tensor("second", second, floating=True, shape=tuple(first.shape))
        noise = torch.empty(2, *first.shape)
        nn.init.trunc_normal_(noise, a=-2.0, b=2.0, generator=generator)
        noise = noise.to(first)
        return region(self.layers(self.net((noise[0] * first + noise[1] * second) / 2)))


class IntrusionDiscriminator(nn.Module):
    """Tell real inputs (1) from mixtures (0), by the features of the classifier's trunk.

    Two linear layers, ``feature_dim -> num_classes -> 2``, as in the authors' code.

    Args:
        feature_dim: width of the features, >= 1.
        num_classes: K >= 1.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> discriminator = IntrusionDiscriminator(8, 3)
        >>> discriminator.loss(torch.zeros(4, 8), torch.zeros(2, 8)).detach().round(decimals=2)
        tensor(0.6900)

    Source: MixUp as Locally Linear Out-Of-Manifold Regularization, arXiv:1809.02499.
    """

    def __init__(self, feature_dim: int, num_classes: int) -> None:
        super().__init__()
        check_number("feature_dim", feature_dim, low=1, integer=True)
        check_number("num_classes", num_classes, low=1, integer=True)
        self.layers = nn.Sequential(_small(feature_dim, num_classes), _small(num_classes, 2))

    def forward(self, features: F[Tensor, "rows features"]) -> F[Tensor, "rows 2"]:
        """Logits of "mixture" and "real"."""
        logits: Tensor = self.layers(features)
        return logits

    def loss(self, real: F[Tensor, "rows features"], mixed: F[Tensor, "pairs features"]) -> Tensor:
        """Mean binary cross-entropy over real and mixed rows together."""
        logits = widen(self(torch.cat([real, mixed])))
        label = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        label[: len(real)] = 1
        return nnf.cross_entropy(logits, label)


class AdaMixUpOutput(NamedTuple):
    """What one step of :class:`AdaMixUp` gives, for B rows in P = B/2 pairs.

    Attributes:
        loss: ``cls + intrusion_weight * intrusion``, what is minimised.
        cls: the classifier's loss, a mean over mixtures and the clean first half.
        intrusion: the discriminator's loss.
        lam: the coefficients ``[P]``.
        interval: a and b of each pair, ``[P, 2]``: lam lies in [a, a + b].
        mixed: the mixtures ``[P, ...]``.
        mixed_target: their labels ``[P, K]``.
    """

    loss: Tensor
    cls: Tensor
    intrusion: Tensor
    lam: Tensor
    interval: Tensor
    mixed: Tensor
    mixed_target: Tensor


class AdaMixUp(Method):
    r"""Mixup whose coefficient lies in an interval that a network learns for each pair.

    .. math:: \lambda = a + u b, \quad u \sim U(0, 1), \qquad
        L = \mathrm{mean}\bigl(\{\ell(\tilde x, \tilde y)\} \cup \{\ell(x_1, y_1)\}\bigr)
        + w\, \mathrm{BCE}\bigl(\{x_1, x_s\} \to 1, \{\tilde x\} \to 0\bigr)

    with :math:`\tilde x = \lambda x_1 + (1 - \lambda) x_2` and its label mixed alike. The first half of the batch is
    x_1, a permutation of it x_2; the second half x_s is real data that only the discriminator sees. One optimizer
    minimises the sum over classifier, discriminator and policy, with no sign flipped: give it
    ``[*model.parameters(), *method.parameters()]``. The classifier must have ``backbone`` and ``head``: the
    discriminator reads the backbone's features, which are formed once for mixtures, x_1 and x_s together, so that batch
    normalisation sees real and mixed rows in one batch. The classifier alone is used afterwards.

    Args:
        policy_net: network of the policy, inputs ``[P, ...]`` to ``[P, feature_dim]``.
        feature_dim: width of its features and of the classifier's.
        num_classes: K >= 2.
        intrusion_weight: w >= 0; with 0 there is no discriminator in the loss.
        interval: fixed (a, b) for all pairs in place of the policy's; (0, 1) is mixup with coefficients from U(0, 1),
            beside clean samples.
        seed: of permutations, noise and coefficients; None takes one from torch's generator.

    Example:
        >>> from steepest.nn.networks import Network
        >>> _ = torch.manual_seed(0)
        >>> model = Network(mlp(4, width=8), nn.Linear(8, 3))
        >>> method = AdaMixUp(mlp(4, width=8), 8, 3, seed=0)
        >>> out = method(model, torch.zeros(6, 4), torch.tensor([0, 1, 2, 0, 1, 2]))
        >>> out.mixed_target.shape, bool((out.lam > 0.3).all() and (out.lam < 0.7).all())
        (torch.Size([3, 3]), True)

    Source: MixUp as Locally Linear Out-Of-Manifold Regularization, arXiv:1809.02499.
    """

    name = "adamixup"

    def __init__(
        self,
        policy_net: nn.Module,
        feature_dim: int,
        num_classes: int,
        *,
        intrusion_weight: float = 1.0,
        interval: tuple[float, float] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_number("num_classes", num_classes, low=2, integer=True)
        check_number("intrusion_weight", intrusion_weight, low=0.0)
        if interval is not None:
            a, b = interval
            check_number("interval", a, low=0.0, high=1.0)
            check_number("interval", b, low=0.0, high=1.0 - a)
        self.num_classes, self.intrusion_weight, self.interval = num_classes, intrusion_weight, interval
        self.region = PolicyRegionGenerator(policy_net, feature_dim)
        self.discriminator = IntrusionDiscriminator(feature_dim, num_classes)
        self.stream = RandomStream(seed)
        self.terms: dict[str, Tensor] = {}

    @classmethod
    def instances(cls) -> list[AdaMixUp]:
        def net() -> nn.Module:
            return mlp(5, width=8, depth=1)

        return [cls(net(), 8, 3, seed=0), cls(net(), 8, 3, intrusion_weight=0.0), cls(net(), 8, 3, interval=(0.0, 1.0))]

    def policy(self, first: F[Tensor, "pairs ..."], second: F[Tensor, "pairs ..."]) -> tuple[Tensor, Tensor]:
        """a and b of every pair, ``[P]`` each, under one draw of the noise; the coefficient lies in [a, a + b]."""
        a, b = self._interval(first, second, self._stream().generator).unbind(-1)
        return a, b

    def forward(
        self,
        model: nn.Module,
        inputs: F[Tensor, "batch ..."],
        target: I[Tensor, " batch"] | F[Tensor, "batch classes"],
        *,
        weight: F[Tensor, " batch"] | None = None,
    ) -> AdaMixUpOutput:
        """One step with cross-entropy.

        Args:
            model: the classifier, with ``backbone`` and ``head``.
            inputs: ``[B, ...]``, B even and at least 4.
            target: class indices ``[B]``, or one-hot rows ``[B, K]``.
            weight: sample weights ``[B]`` of the classifier's loss.

        Raises:
            ValueError: an odd or too small batch, wrong labels, a model without ``backbone`` and ``head``.
        """
        return self._step(model, inputs, target, weight, lambda z, y: nnf.cross_entropy(widen(z), y, reduction="none"))

    def loss(self, model: nn.Module, batch: Batch, objective: Objective) -> Tensor:
        """One step's loss, with an objective of samples in the place of cross-entropy."""
        return self._step(
            model, batch.inputs, batch.target, batch.weight, lambda z, y: row_losses(objective, z, y)
        ).loss

    def _step(
        self, model: nn.Module, inputs: Tensor, target: Tensor, weight: Tensor | None, losses: RowLosses
    ) -> AdaMixUpOutput:
        check_tensor("inputs", inputs, floating=True)
        rows = inputs.shape[0]
        if rows % 2 or rows < 4:
            refuse("inputs", "an even number of rows, at least 4", inputs)
        backbone, head = getattr(model, "backbone", None), getattr(model, "head", None)
        if backbone is None or head is None:
            refuse("model", "attributes 'backbone' and 'head': the discriminator reads features", type(model).__name__)
        half, generator = rows // 2, self._stream().generator
        partner = torch.randperm(half, generator=generator).to(inputs.device)
        first, second = inputs[:half], inputs[:half][partner]
        y = self._classes(target, rows)[:half]
        interval = self._interval(first, second, generator)
        lam = coefficients(interval, torch.rand(half, generator=generator).to(interval))
        mixed = convex(lam, first, second)
        features = backbone(torch.cat([mixed, first, inputs[half:]]))
        logits = head(features[: 2 * half])
        own = None if weight is None else weight[:half]
        # each clean row counts once; a mixture counts as much of either sample as there is in it
        share = torch.cat(
            [convex_weight(lam, own), convex_weight(1 - lam, None if own is None else own[partner]),
             convex_weight(torch.ones_like(lam), own)]
        )  # fmt: skip
        row_losses = losses(torch.cat([logits[:half], logits]), torch.cat([y, y[partner], y]))
        cls = (share * row_losses).sum() / share.detach().sum()
        if self.intrusion_weight:
            intrusion = self.discriminator.loss(features[half:], features[:half])
            total = cls + self.intrusion_weight * intrusion
        else:
            intrusion, total = torch.zeros_like(cls), cls
        self.terms = kept_terms({"cls": cls, "intrusion": intrusion})
        labels = nnf.one_hot(y, self.num_classes).to(lam.dtype)
        return AdaMixUpOutput(total, cls, intrusion, lam, interval, mixed, convex(lam, labels, labels[partner]))

    def _stream(self) -> RandomStream:
        return self.stream if self.training else copy.deepcopy(self.stream)

    def _interval(self, first: Tensor, second: Tensor, generator: torch.Generator) -> Tensor:
        if self.interval is None:
            bounds: Tensor = self.region(first, second, generator)[:, :2]
            return bounds
        return widen(first.new_tensor(self.interval)).expand(len(first), 2)

    def _classes(self, target: Tensor, rows: int) -> Tensor:
        if isinstance(target, Tensor) and target.is_floating_point():
            check_tensor("target", target, shape=(rows, self.num_classes))
            if values_visible(target) and not torch.equal(
                target, nnf.one_hot(target.argmax(-1), self.num_classes).to(target)
            ):
                refuse("target", "class indices, or one-hot rows", target)
            return target.argmax(-1)
        like = torch.empty(rows, self.num_classes, device="meta")
        check_index(target, like)
        return target.long()


def region(logits: F[Tensor, "pairs 3"]) -> F[Tensor, "pairs 3"]:
    """a, b and c from the policy's logits: their softmax, each held at 1e-6 or above, in float32 or wider."""
    return (1 - 3 * _LEAST) * widen(logits).softmax(-1) + _LEAST


def coefficients(interval: F[Tensor, "pairs 2"], u: F[Tensor, " pairs"]) -> F[Tensor, " pairs"]:
    """``a + u b`` for u in [0, 1), which may not pass a + b by rounding."""
    a, b = interval.unbind(-1)
    return torch.minimum(a + u * b, a + b)


def _small(in_features: int, out_features: int) -> nn.Linear:
    layer = nn.Linear(in_features, out_features)
    nn.init.normal_(layer.weight, std=_INITIAL_STD)
    nn.init.zeros_(layer.bias)
    return layer
