"""FLAT: forgetting with forget data alone, by an f-divergence between a template answer and the one to be forgotten."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Self

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor
from torch.nn.functional import softplus

from ...core.checks import check_choice, refuse, values_visible
from ...core.loss import Sample
from ...core.token_reductions import masked, mean_of_sequences, sequence_sums
from ...kernels.token_statistics import token_statistics
from ._forget_retain import ForgetRetainLoss

Pair = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]
_PAIRS: dict[str, Pair] = {
    "kl": (lambda v: -v, lambda v: torch.exp(v - 1)),
    "tv": (lambda v: -torch.tanh(v) / 2, lambda v: torch.tanh(v) / 2),
    "js": (lambda v: softplus(-v) - math.log(2), lambda v: v + softplus(-v) - math.log(2)),
    "pearson": (lambda v: -v, lambda v: v.square() / 4 + v),
    "reverse_kl": (lambda v: torch.exp(-v), lambda v: v - 1),
    "hellinger": (lambda v: torch.exp(-v) - 1, lambda v: torch.exp(v) - 1),
}
DIVERGENCES = tuple(_PAIRS)


def f_divergence_pair(name: str) -> Pair:
    r"""The two functions of a variational f-divergence: :math:`-g(v)` and :math:`f^*(g(v))`.

    =============  ====================  =========================
    name           -g(v)                 f*(g(v))
    =============  ====================  =========================
    kl             -v                    exp(v - 1)
    tv             -tanh(v) / 2          tanh(v) / 2
    js             log(1 + e^-v) - log 2 v + log(1 + e^-v) - log 2
    pearson        -v                    v^2 / 4 + v
    reverse_kl     e^-v                  v - 1
    hellinger      e^-v - 1              e^v - 1
    =============  ====================  =========================

    Args:
        name: one of these.

    Example:
        >>> negative, conjugate = f_divergence_pair("pearson")
        >>> negative(torch.tensor(0.8)) + conjugate(torch.tensor(0.6))
        tensor(-0.1100)
    """
    check_choice("name", name, DIVERGENCES)
    return _PAIRS[name]


def answer_probability(
    logits: F[Tensor, "batch time classes"],
    labels: I[Tensor, "batch time"],
    head: F[Tensor, "classes width"] | None = None,
    *,
    ignore_index: int = -100,
) -> F[Tensor, " batch"]:
    """The mean probability of an answer's tokens, in float32 or wider.

    Args:
        logits: ``[B, T, V]``, or hidden states of a ``head``.
        labels: ``[B, T]``, aligned with them.
        head: ``[V, D]`` or None.
        ignore_index: labels that don't count.

    Returns:
        ``[B]`` in [0, 1]; 0 where a row has no token.

    Example:
        >>> answer_probability(torch.zeros(1, 3, 4), torch.tensor([[0, 1, -100]]))
        tensor([0.2500])
    """
    return _probabilities(logits, labels, head, ignore_index)[0]


def flat_loss(
    template_logits: F[Tensor, "batch time classes"],
    template_labels: I[Tensor, "batch time"],
    forget_logits: F[Tensor, "batch time2 classes"],
    forget_labels: I[Tensor, "batch time2"],
    *,
    divergence: str = "tv",
    ignore_index: int = -100,
) -> Tensor:
    r"""Loss adjustment with forget data alone.

    .. math:: L = -g(P_e) + f^*(g(P_f)), \qquad P = \frac1B \sum_b \frac{1}{|y_b|} \sum_i \mathrm{softmax}(z)_{y_{bi}}

    with the mean probability of template answers, which is to rise, and of the answers to be forgotten.

    Args:
        template_logits: ``[B, T, V]`` on the template answers (for example refusals).
        template_labels: ``[B, T]``, aligned with them.
        forget_logits: ``[B', T', V]`` on the answers to be forgotten.
        forget_labels: ``[B', T']``.
        divergence: "tv" (total variation), "kl", "js" (Jensen and Shannon), "pearson", "reverse_kl" or "hellinger"
            (squared).
        ignore_index: labels that don't count.

    Returns:
        The loss in float32 or wider. Its gradient is bounded.

    Raises:
        ValueError: another divergence, an answer without a token.

    Example:
        >>> z, y = torch.zeros(1, 2, 4), torch.tensor([[1, 2]])
        >>> flat_loss(z, y, z, y)
        tensor(0.)

    Source: LLM Unlearning via Loss Adjustment with Only Forget Data, arXiv:2410.11143.
    """
    loss = FLATLoss(divergence, ignore_index=ignore_index)
    for name, labels in (("template_labels", template_labels), ("forget_labels", forget_labels)):
        if values_visible(labels) and not bool((labels != ignore_index).any(-1).all()):
            refuse(name, "a token that counts in each row", labels)
    value: Tensor = loss(forget_logits, forget_labels, template=template_logits, template_labels=template_labels)
    return value


class FLATLoss(ForgetRetainLoss):
    """Loss adjustment with forget data alone; see :func:`flat_loss`.

    ``forward(forget, forget_labels, head=None, *, template=, template_labels=)``. The divergence is one of means over a
    whole step: losses of micro-batches don't add up to it, so that ``num_forget`` is refused. Rows may be kept besides
    (``retain``), which the method does not ask for.

    Args:
        divergence: "tv", "kl", "js", "pearson", "reverse_kl" or "hellinger".
        retain, weight, ignore_index: as of :class:`~steepest.losses.unlearning.UnlearningObjective`.

    Example:
        >>> z, y = torch.zeros(1, 2, 4), torch.tensor([[1, 2]])
        >>> FLATLoss("kl")(z, y, template=z, template_labels=y)
        tensor(0.2224)
    """

    name = "flat"
    differentiable = (0, 2, "template")
    forget_arguments = ("template", "template_labels")

    def __init__(
        self, divergence: str = "tv", retain: str | None = None, weight: float = 1.0, *, ignore_index: int = -100
    ) -> None:
        super().__init__(retain, weight, ignore_index=ignore_index)
        check_choice("divergence", divergence, DIVERGENCES)
        self.divergence = divergence

    def forget_loss(
        self,
        source: Tensor,
        labels: Tensor,
        head: Tensor | None,
        num_items: float | Tensor | None,
        *,
        template: Tensor | None = None,
        template_labels: Tensor | None = None,
        **further: Any,
    ) -> Tensor:
        if num_items is not None:
            refuse("num_forget", "None: the divergence is one of means over a whole step", num_items)
        if template is None or template_labels is None:
            refuse("template and template_labels", "answers to give in place of those to be forgotten", template)
        negative, conjugate = _PAIRS[self.divergence]
        forget, of_forget = _probabilities(source, labels, head, self.ignore_index)
        given, of_template = _probabilities(template, template_labels, head, self.ignore_index)
        there = of_forget.sum() * of_template.sum() > 0
        value = negative(mean_of_sequences(given, of_template)) + conjugate(mean_of_sequences(forget, of_forget))
        return torch.where(there, value, 0 * value)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Each divergence, one with rows to keep."""
        forget, template, retain = (
            cls.sample_rows(generator, dtype, device, *size) for size in ((3, 4), (3, 2), (2, 5))
        )
        given = {"template": template[0], "template_labels": torch.where(template[1] < 0, 0, template[1])}
        alone: list[tuple[Self, Sample]] = [(cls(name), (forget, given)) for name in DIVERGENCES]
        return [*alone, (cls("kl", "ce", 0.5), ((*forget, *retain), given))]


def _probabilities(source: Tensor, labels: Tensor, head: Tensor | None, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Mean probabilities of the tokens of each row, and how many there are."""
    of_tokens = token_statistics(source, labels, head, want=("log_p",), ignore_index=ignore_index)
    assert of_tokens.log_p is not None
    sums, counts = sequence_sums(masked(of_tokens.log_p.exp(), of_tokens.valid), of_tokens.valid)
    return sums / counts.clamp_min(1.0), counts
