"""Forgetting some rows while others are kept: what every such objective of token logits does alike."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ...core.checks import check_choice, check_number, check_tensor, refuse
from ...core.kl_estimators import kl_of_logits
from ...core.loss import Loss
from ...core.terms import kept_terms
from ...core.token_reductions import aggregate_tokens, masked, sequence_sums
from ...kernels.linear_distillation import linear_distillation
from ...kernels.token_statistics import token_statistics

RETAIN = (None, "ce", "kl")


def sequence_log_probabilities(
    source: Tensor, labels: Tensor, head: Tensor | None = None, *, ignore_index: int = -100
) -> tuple[Tensor, Tensor]:
    """Log-probabilities ``[B]`` of the labels of each row, and how many there are ``[B]``."""
    check_tensor("source", source, ndim=3, floating=True)
    of_tokens = token_statistics(source, labels, head, want=("log_p",), ignore_index=ignore_index)
    assert of_tokens.log_p is not None
    return sequence_sums(of_tokens.log_p, of_tokens.valid)


def retain_loss(
    kind: str,
    source: Tensor,
    labels: Tensor,
    head: Tensor | None,
    reference: Tensor | None,
    reference_head: Tensor | None,
    num_items: float | Tensor | None,
    ignore_index: int,
) -> Tensor:
    """The mean over tokens of "ce", the cross-entropy, or "kl", the divergence of the model from the reference."""
    if kind == "ce":
        of_tokens = token_statistics(source, labels, head, want=("log_p",), ignore_index=ignore_index)
        assert of_tokens.log_p is not None
        return aggregate_tokens(-of_tokens.log_p, of_tokens.valid, num_items=num_items)
    if reference is None:
        refuse("retain_reference", "logits of the reference, for a divergence from it", None)
    width = source.shape[2] if head is None else None
    check_tensor("retain_reference", reference, floating=True, shape=(*source.shape[:2], width))
    valid = labels != ignore_index
    clean = masked(source, valid.unsqueeze(-1))
    clean_reference = masked(reference.detach(), valid.unsqueeze(-1))
    if head is None:
        losses = kl_of_logits(clean, clean_reference, "forward")
    else:
        own = head if reference_head is None else reference_head
        losses = linear_distillation(
            clean, head, clean_reference, own, token_weight=valid.to(clean.dtype), reduction="none"
        )
    return aggregate_tokens(losses, valid, num_items=num_items)


class ForgetRetainLoss(Loss):
    r"""``forget + weight * retain`` of a batch that holds rows of both kinds.

    Members give :meth:`forget_loss`, of the rows that shall be forgotten; the others are kept by cross-entropy ("ce"),
    by the divergence KL(reference || model) of each token ("kl"), or not at all (None). A kind of row that is missing
    contributes 0. Labels are aligned with the logits.

    ``forward(forget, forget_labels, retain=None, retain_labels=None, head=None, ...)``: logits ``[B, T, V]``, or hidden
    states of one ``head``; ``retain_reference`` are the logits (or hidden states, of ``reference_head``) of the
    reference on the rows that are kept; ``num_forget`` and ``num_retain`` count the sequences that are forgotten and
    the tokens that are kept in all micro-batches and ranks of a step. Members say what else they take of the forgotten
    rows.

    Args:
        retain: None, "ce" or "kl".
        weight: of the rows that are kept, >= 0.
        ignore_index: label of tokens that don't count.
    """

    differentiable: ClassVar[tuple[int | str, ...]] = (0, 2)
    forget_arguments: ClassVar[tuple[str, ...]] = ()
    """What :meth:`forget_loss` takes beyond logits, labels and head."""

    def __init__(self, retain: str | None = None, weight: float = 1.0, *, ignore_index: int = -100) -> None:
        super().__init__()
        check_choice("retain", retain, RETAIN)
        check_number("weight", weight, low=0.0)
        check_number("ignore_index", ignore_index, integer=True)
        if retain is None and weight != 1:
            refuse("weight", "1 with a loss that keeps nothing", weight)
        self.retain, self.weight, self.ignore_index = retain, weight, ignore_index

    def forget_loss(
        self, source: Tensor, labels: Tensor, head: Tensor | None, num_items: float | Tensor | None, **further: Any
    ) -> Tensor:
        """Of the rows that shall be forgotten, a scalar."""
        raise NotImplementedError

    def forward(
        self,
        forget: Tensor,
        forget_labels: Tensor,
        retain: Tensor | None = None,
        retain_labels: Tensor | None = None,
        head: Tensor | None = None,
        *,
        retain_reference: Tensor | None = None,
        reference_head: Tensor | None = None,
        num_forget: float | Tensor | None = None,
        num_retain: float | Tensor | None = None,
        **further: Any,
    ) -> Tensor:
        """The loss, a scalar in float32 or wider."""
        check_tensor("forget", forget, ndim=3, floating=True)
        check_tensor("forget_labels", forget_labels, shape=tuple(forget.shape[:2]), floating=False)
        for name in further:
            if name not in self.forget_arguments:
                refuse("forward", f"of {', '.join(self.forget_arguments) or 'nothing further'}", name)
        forgotten = self.forget_loss(forget, forget_labels, head, num_forget, **further)
        of_divergence = {"retain_reference": retain_reference, "reference_head": reference_head}
        if self.retain != "kl":
            for name, value in of_divergence.items():
                if value is not None:
                    refuse(name, 'None but with retain="kl"', value)
        if reference_head is not None and head is None:
            refuse("reference_head", "None without a head", reference_head)
        if self.retain is None:
            for name, value in (("retain", retain), ("retain_labels", retain_labels), ("num_retain", num_retain)):
                if value is not None:
                    refuse(name, "None with a loss that keeps nothing", value)
            self.terms = kept_terms({"forget": forgotten})
            return forgotten
        if retain is None or retain_labels is None:
            refuse("retain and retain_labels", f"rows to keep, for retain={self.retain!r}", retain)
        check_tensor("retain", retain, ndim=3, floating=True)
        check_tensor("retain_labels", retain_labels, shape=tuple(retain.shape[:2]), floating=False)
        of_others = retain_loss(
            self.retain, retain, retain_labels, head, retain_reference, reference_head, num_retain, self.ignore_index
        )
        self.terms = kept_terms({"forget": forgotten, "retain": of_others})
        return forgotten + self.weight * of_others

    @classmethod
    def sample_rows(
        cls, generator: torch.Generator, dtype: torch.dtype, device: str | torch.device, rows: int, steps: int
    ) -> tuple[Tensor, Tensor]:
        """Logits of seven tokens and labels, some ignored."""
        logits = torch.randn(rows, steps, 7, generator=generator, dtype=torch.float64).to(device, dtype)
        labels = torch.randint(7, (rows, steps), generator=generator).to(device)
        labels[:, 0] = labels[-1, -1] = -100
        return logits, labels
