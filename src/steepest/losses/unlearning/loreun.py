"""LoReUn: a forgetting loss that looks hardest at the samples whose own loss is small."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor
from torch.nn.functional import cross_entropy

from ...core.checks import (
    check_choice,
    check_index,
    check_logits,
    check_number,
    check_range,
    check_tensor,
    refuse,
    refuse_type,
    values_visible,
)
from ...core.loss import Loss, Sample
from ...core.reductions import widen
from ...core.terms import kept_terms

NORMALIZATIONS = ("mean", "sum", None)
MODES = ("dynamic", "static")
ForgetTerms = Callable[..., Tensor]


def loreun_weights(
    losses: F[Tensor, " batch"], temperature: float = 1.0, normalize: str | None = "mean"
) -> F[Tensor, " batch"]:
    r"""Weights of a forget batch, exponential in minus each sample's own loss.

    .. math:: w_i = \frac{B\, e^{-l_i / T}}{\sum_j e^{-l_j / T}}

    The number of samples that they leave in effect is :math:`(\sum w)^2 / \sum w^2`; it falls towards 1 with T.

    Args:
        losses: l ``[B]``, what the model, or the original one, loses on each sample under its true label; inf gives a
            weight of 0.
        temperature: T > 0, in the unit of the losses; large: all weights are alike.
        normalize: ``"mean"`` for weights of mean 1, ``"sum"`` for weights of sum 1 (both blind to a constant that is
            added to all losses), None for the exponentials themselves.

    Returns:
        ``[B]`` in float32 or wider, without a gradient. Alike, if all losses are inf.

    Raises:
        ValueError: another shape, temperature <= 0, an unknown normalisation.
        TypeError: not a floating tensor.

    Example:
        >>> loreun_weights(torch.tensor([0.1, 1.0, 3.0]))
        tensor([2.0526, 0.8345, 0.1129])

    Source: LoReUn: Data Itself Implicitly Provides Cues to Improve Machine Unlearning, arXiv:2507.22499.
    """
    check_tensor("losses", losses, ndim=1, floating=True)
    check_number("temperature", temperature, low=0.0, open_low=True)
    check_choice("normalize", normalize, NORMALIZATIONS)
    scores = -widen(losses).detach() / temperature
    if normalize is None:
        return scores.exp()
    if not len(scores):
        return scores
    alike = (scores == -math.inf).all()
    weights = torch.where(alike, torch.zeros_like(scores), scores).softmax(0)
    return weights * len(weights) if normalize == "mean" else weights


class LoReUn(Loss):
    r"""Reweights any forgetting loss of single samples by :func:`loreun_weights`.

    .. math:: L_{forget} = \frac1B \sum_i w_i u_i

    The term of the samples to be retained, with weights of 1, is the caller's to add.

    Args:
        base_loss: u ``[B]`` from ``(logits, labels)``, logits in float32 or wider, and what ``forward`` takes further
            by keyword (random labels, logits of another teacher); ``"ascent"`` is minus the cross-entropy.
        mode: ``"dynamic"`` weighs by the loss at the current logits, so that what is forgotten fades; ``"static"`` by
            ``cached_losses``.
        temperature: T > 0 of the weights.
        cached_losses: ``[N]``, for ``"static"`` alone: the losses of the original model on the forget set, NaN where
            none was measured. Kept in ``state_dict``.

    After a call ``terms`` has the samples in effect, (sum w)^2 / sum w^2.

    Raises:
        ValueError: temperature <= 0, an unknown mode, cached losses with ``"dynamic"`` or none with ``"static"``.
        TypeError: ``base_loss`` is no function.

    Example:
        >>> loss = LoReUn("ascent", temperature=0.5)
        >>> loss(torch.tensor([[2.0, 0.0], [0.5, 0.0]]), torch.tensor([0, 0]))
        tensor(-0.2426)

    Source: LoReUn: Data Itself Implicitly Provides Cues to Improve Machine Unlearning, arXiv:2507.22499.
    """

    name = "loreun"
    gradient = "surrogate"

    cached_losses: Tensor

    def __init__(
        self,
        base_loss: str | ForgetTerms,
        mode: str = "dynamic",
        temperature: float = 1.0,
        cached_losses: F[Tensor, " samples"] | None = None,
    ) -> None:
        super().__init__()
        check_choice("mode", mode, MODES)
        check_number("temperature", temperature, low=0.0, open_low=True)
        if isinstance(base_loss, str):
            check_choice("base_loss", base_loss, ("ascent",))
        elif not callable(base_loss):
            refuse_type("base_loss", '"ascent", or a function of logits and labels', base_loss)
        self.base_loss, self.mode, self.temperature = base_loss, mode, temperature
        if (cached_losses is None) == (mode == "static"):
            refuse("cached_losses", 'losses with mode="static" and with no other', cached_losses)
        if cached_losses is not None:
            check_tensor("cached_losses", cached_losses, ndim=1, floating=True)
            cached_losses = widen(cached_losses).detach().clone()
        self.register_buffer("cached_losses", cached_losses)

    def forward(
        self,
        logits: F[Tensor, "batch classes"],
        labels: I[Tensor, " batch"],
        index: I[Tensor, " batch"] | None = None,
        **further: Any,
    ) -> Tensor:
        """The weighted forgetting loss of a batch; ``index`` are its places among the cached losses."""
        check_logits(logits, argument="logits")
        check_index(labels, logits, argument="labels")
        if index is not None:
            check_tensor("index", index, floating=False, shape=(len(logits),))
        logits, labels = widen(logits), labels.long()
        losses = cross_entropy(logits, labels, reduction="none") if self.mode == "dynamic" else self._cached(index)
        if isinstance(self.base_loss, str):
            terms = -cross_entropy(logits, labels, reduction="none")
        else:
            terms = self.base_loss(logits, labels, **further)
        if not isinstance(terms, Tensor) or terms.shape != logits.shape[:1]:
            refuse("base_loss", "one number a sample", terms)
        weights = loreun_weights(losses, self.temperature).to(terms.dtype)
        self.terms = kept_terms({"samples in effect": weights.sum().square() / weights.square().sum()})
        return (weights * terms).mean()

    def _cached(self, index: Tensor | None) -> Tensor:
        """The cached losses of a batch."""
        if index is None:
            refuse("index", 'places in cached_losses with mode="static"', index)
        if index.dtype == torch.bool:
            refuse_type("index", "places of an integer type", index)
        check_range("index", index, 0, len(self.cached_losses) - 1)
        losses = self.cached_losses[index]
        if values_visible(losses) and bool(losses.isnan().any()):
            refuse("index", "places whose loss was measured", index[losses.isnan()].tolist())
        return losses

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[LoReUn, Sample]]:
        logits = torch.randn(6, 4, generator=generator, dtype=torch.float64).to(device, dtype)
        labels = torch.randint(4, (6,), generator=generator).to(device)
        index = torch.tensor([7, 0, 3, 1, 8, 5], device=device)
        cached = torch.rand(9, generator=generator, dtype=torch.float64).to(device, dtype)
        return [
            (cls("ascent"), ((logits, labels), {})),
            (cls(functools.partial(cross_entropy, reduction="none"), temperature=0.3), ((logits, labels, index), {})),
            (cls("ascent", "static", 0.5, cached), ((logits, labels, index), {})),
        ]
