"""The contract of a loss of tokens: logits, or hidden states and a head, and labels that are aligned with them."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from .checks import check_choice, check_number, check_tensor, refuse, refuse_type
from .loss import Loss
from .search import Space
from .token_reductions import MODES, aggregate_tokens, count_items, mean_of_sequences
from .torch_private import WideBuffers


class TokenLoss(WideBuffers, Loss):
    r"""A loss of each token, or of each sequence of tokens, and its mean by counts of all that a step sees.

    Labels are aligned with the outputs: label t belongs to row t of the logits, and nothing is shifted here. Logits
    come as they are, ``source`` ``[B, T, V]``, or as hidden states ``[B, T, D]`` and a head ``[V, D]``, whose logits
    are then never formed as a whole; both take one path through the mathematics. Single sequences ``[T, V]`` have
    labels ``[T]``.

    Members give :meth:`token_losses`, or :meth:`sequence_losses` and ``unit = "sequence"``; a member whose terms are
    means over different tokens gives :meth:`batch_loss` and :meth:`count_items`.

    Tables of a member (costs, values of tokens) are buffers, which keep their precision under ``half()``: losses are in
    float32 or wider whatever the type of the logits.

    Args:
        aggregation: of tokens, see :func:`~steepest.core.token_reductions.aggregate_tokens`; None is the member's own.
        length: of the aggregation "constant".
        ignore_index: label of tokens that don't count.

    Class attributes:
        unit: "token" or "sequence" (the mean over sequences that have a token).
        mean_over: the aggregation that None stands for.
        shift_invariant: whether a constant added to all logits of a token changes nothing.
        further: names of the arguments of ``forward`` beyond labels and head that the member takes.
        alternatives: by name of a hyper-parameter, another value of it that changes the loss or its gradient.
        search: hyper-parameters that a comparison tunes.
    """

    unit: ClassVar[str] = "token"
    mean_over: ClassVar[str] = "token_mean"
    autocast = True
    shift_invariant: ClassVar[bool] = True
    further: ClassVar[tuple[str, ...]] = ()
    per_sequence: ClassVar[tuple[str, ...]] = ("index",)
    alternatives: ClassVar[dict[str, Any]] = {}
    search: ClassVar[dict[str, Space]] = {}

    def __init__(
        self, *, aggregation: str | None = None, length: float | None = None, ignore_index: int = -100
    ) -> None:
        super().__init__()
        check_number("ignore_index", ignore_index, integer=True)
        if self.unit == "sequence" and (aggregation is not None or length is not None):
            refuse_type("aggregation and length", "None with a loss of sequences", aggregation or length)
        self.aggregation = self.mean_over if aggregation is None else aggregation
        check_choice("aggregation", self.aggregation, MODES)
        if self.unit == "token" and (length is None) == (self.aggregation == "constant"):
            refuse("length", 'a number with aggregation="constant" and with no other', length)
        if length is not None:
            check_number("length", length, low=0.0, open_low=True)
        self.length, self.ignore_index = length, ignore_index

    def token_losses(
        self, source: Tensor, labels: Tensor, head: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Losses ``[B, T]`` and where they count ``[B, T]``; ``options`` are bias, softcap and the member's own."""
        raise NotImplementedError

    def sequence_losses(
        self, source: Tensor, labels: Tensor, head: Tensor | None, *, segments: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Losses ``[S]`` of sequences and how many tokens each has ``[S]``, 0 where there is none."""
        raise NotImplementedError

    def count_items(self, labels: Tensor, segments: Tensor | None = None) -> Tensor:
        """How many items the loss of labels ``[B, T]`` is a mean over: tokens, or sequences that have one.

        Its sum over all micro-batches and ranks of a step is the ``num_items`` of each of them.
        """
        return self.count_valid(labels != self.ignore_index, segments)

    def count_valid(self, valid: Tensor, segments: Tensor | None = None) -> Tensor:
        """How many items a mean over valid tokens ``[B, T]`` is over."""
        return count_items(valid, "sequence_sum" if self.unit == "sequence" else self.aggregation, segments)

    def aggregate(
        self, losses: Tensor, valid: Tensor, *, num_items: float | Tensor | None = None, segments: Tensor | None = None
    ) -> Tensor:
        """The mean of losses of tokens ``[B, T]`` as this loss takes means."""
        return aggregate_tokens(
            losses, valid, self.aggregation, num_items=num_items, length=self.length, segments=segments
        )

    def batch_loss(
        self,
        source: Tensor,
        labels: Tensor,
        head: Tensor | None,
        *,
        num_items: float | Tensor | None,
        segments: Tensor | None,
        **options: Any,
    ) -> Tensor:
        """The loss of ``source`` ``[B, T, ...]`` and ``labels`` ``[B, T]``, both checked."""
        if self.unit == "sequence":
            losses, counts = self.sequence_losses(source, labels, head, segments=segments, **options)
            return mean_of_sequences(losses, counts, num_items=num_items)
        losses, valid = self.token_losses(source, labels, head, **options)
        return self.aggregate(losses, valid, num_items=num_items, segments=segments)

    def forward(
        self,
        source: Tensor,
        labels: Tensor,
        head: Tensor | None = None,
        *,
        bias: Tensor | None = None,
        softcap: float | None = None,
        num_items: float | Tensor | None = None,
        segments: Tensor | None = None,
        **further: Any,
    ) -> Tensor:
        """The loss, a scalar in float32 or wider; 0 with a graph where no token counts.

        Args:
            source: logits ``[B, T, V]``, or hidden states ``[B, T, D]``.
            labels: ``[B, T]``.
            head: ``[V, D]``, with ``bias`` ``[V]`` and ``softcap``.
            num_items: the sum of :meth:`count_items` over all micro-batches and ranks of a step; None: this batch's.
            segments: of packed rows, the sequence of each token ``[B, T]``, numbers in 0..T-1 in each row.
            further: what the member wants beside them.
        """
        for name in further:
            if name not in self.further:
                wanted = ", ".join(self.further) or "nothing beside labels and head"
                refuse_type("forward", wanted, name)
        check_tensor("source", source, ndim=(2, 3), floating=True)
        check_tensor("labels", labels, shape=tuple(source.shape[:-1]), floating=False)
        if source.ndim == 2:
            further = {k: v if k in self.per_sequence else _as_row(v, labels) for k, v in further.items()}
            segments = None if segments is None else segments.unsqueeze(0)
            source, labels = source.unsqueeze(0), labels.unsqueeze(0)
        return self.batch_loss(
            source, labels, head, num_items=num_items, segments=segments, bias=bias, softcap=softcap, **further
        )

    @staticmethod
    def sample_tokens(
        generator: torch.Generator,
        dtype: torch.dtype,
        device: str | torch.device,
        *,
        rows: int = 3,
        steps: int = 5,
        classes: int = 7,
        ignore_index: int = -100,
    ) -> tuple[Tensor, Tensor]:
        """Logits ``[rows, steps, classes]`` and labels, some ignored at both ends of a row, for ``samples()``."""
        logits = torch.randn(rows, steps, classes, generator=generator, dtype=torch.float64).to(device, dtype)
        labels = torch.randint(classes, (rows, steps), generator=generator).to(device)
        labels[0, 0] = labels[-1, -2:] = ignore_index
        return logits, labels


def _as_row(value: Any, labels: Tensor) -> Any:
    """What is aligned with the labels of a single sequence, as a batch of one."""
    aligned = isinstance(value, Tensor) and value.shape[:1] == labels.shape
    return value.unsqueeze(0) if aligned else value
