"""The pairwise softmax loss: a milder activation than the exponential between a positive and its negatives."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import check_choice, check_number, check_tensor, refuse, values_visible
from ...core.loss import Loss, Sample
from ...core.reductions import reduce, widen
from ...core.search import Choice, Float, Space

ACTIVATIONS = ("tanh", "atan", "relu", "exp")
FORMS = ("negatives", "pairs")


def pairwise_softmax_loss(
    pos: F[Tensor, " batch"],
    neg: F[Tensor, "batch negatives"],
    *,
    tau: float = 0.1,
    activation: str = "tanh",
    form: str = "negatives",
    score_scale: float = 0.5,
    reduction: str = "mean",
) -> Tensor:
    r"""A log-sum over negatives of an activation of score differences.

    .. math:: \ell_i = \log \sum_j \sigma(d_{ij})^{1/\tau}, \qquad d_{ij} = \tfrac12 (s_{ij} - s_i)

    sigma is 1 + tanh d, 1 + arctan d, max(0, 1 + d) or e^d, which is the softmax loss without the positive in its sum.
    The first three lie between the step function and e^d for d in [-1, 1], so one false negative weighs less. The form
    ``"pairs"`` is one logarithm of the mean over all pairs of the batch, not a mean of logarithms of sums.

    Args:
        pos: cosines s of positives ``[B]``.
        neg: cosines of the N negatives of each ``[B, N]``, without the positive.
        tau: temperature > 0.
        activation: ``"tanh"``, ``"atan"``, ``"relu"`` or ``"exp"``.
        form: ``"negatives"`` or ``"pairs"``.
        score_scale: factor of the cosines, > 0; 1/2 keeps d in [-1, 1].
        reduction: ``"none"`` (not of pairs), ``"mean"`` or ``"sum"`` over positives.

    Returns:
        The loss in float32 or wider; 0 with a graph where there is no pair.

    Raises:
        ValueError: wrong shapes, an unknown activation or form, ``tau`` not above 0; a difference at which 1 + arctan d
            is not positive (d <= -1.557), which cosines can only reach with a larger ``score_scale``.

    Example:
        >>> pairwise_softmax_loss(torch.tensor([0.6]), torch.tensor([[0.0, 0.8, 1.4]]), tau=0.5)
        tensor(1.2853)

    Source: PSL: Rethinking and Improving Softmax Loss from Pairwise Perspective for Recommendation, arXiv:2411.00163.
    """
    _check(tau, activation, form, score_scale)
    check_choice("reduction", reduction, ("none", "mean", "sum") if form == "negatives" else ("mean",))
    check_tensor("pos", pos, ndim=1, floating=True)
    check_tensor("neg", neg, ndim=2, floating=True)
    check_tensor("neg", neg, shape=(pos.shape[0], None))
    d = score_scale * (widen(neg) - widen(pos).unsqueeze(1))
    if not d.numel():
        return d.sum(1) if reduction == "none" else d.sum()
    powers = _log_activation(d, activation) / tau
    if form == "pairs":
        return powers.flatten().logsumexp(0) - math.log(powers.numel())
    return reduce(powers.logsumexp(1), reduction)


def _check(tau: float, activation: str, form: str, score_scale: float) -> None:
    check_number("tau", tau, low=0.0, open_low=True, open_high=True)
    check_choice("activation", activation, ACTIVATIONS)
    check_choice("form", form, FORMS)
    check_number("score_scale", score_scale, low=0.0, open_low=True, open_high=True)


def _log_activation(d: Tensor, activation: str) -> Tensor:
    """log sigma(d), a number far below every other where sigma is 0."""
    if activation == "exp":
        return d
    if activation == "tanh":  # 1 + tanh d = 2 sigmoid(2 d)
        return math.log(2) + torch.nn.functional.logsigmoid(2 * d)
    if activation == "relu":
        inside = ~(d <= -1)  # also what is not a number
        return torch.where(inside, torch.log1p(torch.where(inside, d, 0.0)), torch.finfo(d.dtype).min / 1e6)
    if values_visible(d) and bool((d <= -math.tan(1.0)).any()):
        refuse("neg", "score differences at which 1 + arctan d is positive", float(d.min()))
    return torch.log1p(torch.atan(d))


class PairwiseSoftmaxLoss(Loss):
    """The pairwise softmax loss as a module; see :func:`pairwise_softmax_loss`.

    Args:
        tau: temperature > 0.
        activation: ``"tanh"``, ``"atan"``, ``"relu"`` or ``"exp"``.
        form: ``"negatives"`` or ``"pairs"``.
        score_scale: factor of the cosines, > 0.

    Example:
        >>> PairwiseSoftmaxLoss(tau=0.5)(torch.tensor([0.6]), torch.tensor([[0.0, 0.8, 1.4]]))
        tensor(1.2853)
    """

    name = "pairwise_softmax"
    differentiable = (0, 1)
    search: dict[str, Space] = {"tau": Float(0.02, 0.5, log=True), "activation": Choice(ACTIVATIONS)}

    def __init__(
        self, tau: float = 0.1, activation: str = "tanh", form: str = "negatives", score_scale: float = 0.5
    ) -> None:
        super().__init__()
        _check(tau, activation, form, score_scale)
        self.tau, self.activation, self.form, self.score_scale = tau, activation, form, score_scale

    def forward(self, pos: F[Tensor, " batch"], neg: F[Tensor, "batch negatives"]) -> Tensor:
        """The loss of cosines of positives ``[B]`` and of their negatives ``[B, N]``."""
        return pairwise_softmax_loss(
            pos, neg, tau=self.tau, activation=self.activation, form=self.form, score_scale=self.score_scale
        )

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Every activation, and both forms."""

        def cosines(*shape: int) -> Tensor:
            return torch.tanh(torch.randn(shape, generator=generator, dtype=torch.float64)).to(device, dtype)

        sample: Sample = (cosines(4), cosines(4, 5)), {}
        options: list[dict[str, Any]] = [{"activation": name, "tau": 0.5} for name in ACTIVATIONS]
        return [(cls(**own), sample) for own in [*options, {"form": "pairs", "tau": 0.3, "score_scale": 0.25}]]
