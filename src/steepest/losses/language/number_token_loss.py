"""Numbers as numbers: how far a predicted distribution over number tokens lies from the value of the label."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Self

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_choice, check_flag, check_number, check_range, check_tensor, refuse, refuse_type
from ...core.loss import Sample
from ...core.search import Choice, Float
from ...core.terms import kept_terms
from ...core.token_loss import TokenLoss
from ...core.token_reductions import aggregate_tokens
from ...kernels.token_statistics import token_statistics

KINDS = ("was", "mse", "mae", "huber")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?", re.ASCII)
_SPACES = "\u0120\u2581"
"""How tokenizers of bytes and of sentence pieces write a leading space."""


def number_token_values(vocab: Sequence[str]) -> F[Tensor, " classes"]:
    """The values of the tokens of a vocabulary that are numbers, NaN of all others.

    Tokens such as ``"7"``, ``" 12"`` and ``"3.5"`` count, with the signs of a leading space of the common tokenizers.

    Args:
        vocab: V tokens, in the order of their ids; a dictionary of a tokenizer has no such order and is refused.

    Raises:
        TypeError: ``vocab`` is no sequence of texts.

    Example:
        >>> number_token_values(["a", "7", " 12", "3.5", "x2"])
        tensor([    nan,  7.0000, 12.0000,  3.5000,     nan])
    """
    if isinstance(vocab, str) or not isinstance(vocab, Sequence):
        refuse_type("vocab", "a sequence of tokens, in the order of their ids", vocab)
    for token in vocab:
        if not isinstance(token, str):
            refuse_type("vocab", "texts", token)
    tokens = [token.lstrip(_SPACES).strip() for token in vocab]
    return torch.tensor([float(token) if _NUMBER.fullmatch(token) else math.nan for token in tokens])


class NumberTokenLoss(TokenLoss):
    r"""Cross-entropy plus a numeric distance where the label is a number token.

    With p the softmax over the number tokens J alone, and V their values, at each token whose label is one of them:

    .. math:: \mathrm{was} = \sum_{j \in J} p_j |V_y - V_j|, \qquad
        \mathrm{mse} = \Big(V_y - \sum_j p_j V_j\Big)^2

    "was" is the Wasserstein distance to the label's value; "mae" and "huber" are the absolute value and Huber's
    function (with its bend at 1) of the difference that "mse" squares. L = cross-entropy + weight times the mean over
    tokens whose label is a number. A half at 3 and a half at 5 have no "mse" from 4, and a "was" of 1.

    Micro-batches of a step share two counts: ``num_items`` is the sum of :meth:`count_items`, of tokens and of numbers.

    Args:
        values: V ``[classes]``, NaN of tokens that are no numbers; see :func:`number_token_values`. Two at least.
        kind: "was", "mse", "mae" or "huber".
        weight: of the term, >= 0.
        renormalize: p over number tokens alone. False takes probabilities over all tokens, so that moving them to other
            tokens lowers the term.
        squash: with "was", what the largest distance becomes when the least that is not 0 is 1; > 1. For vocabularies
            with numbers of a thousand and more. None: distances as they are.
        aggregation, length: of both terms; see :class:`~steepest.core.token_loss.TokenLoss`.
        ignore_index: label of tokens that don't count; never taken for a number.

    Raises:
        ValueError: fewer than two number tokens, logits of another width, ``squash`` with another kind.

    Example:
        >>> digits = torch.arange(10.0)
        >>> z = torch.zeros(1, 1, 10)
        >>> z[..., 3], z[..., 4], z[..., 9] = 2.0, 1.0, 1.0
        >>> ntl_was(z, torch.tensor([[4]]), digits), ntl_mse(z, torch.tensor([[4]]), digits)
        (tensor(2.0166), tensor(0.1320))
        >>> NumberTokenLoss(digits)(z, torch.tensor([[4]]))
        tensor(2.5920)

    Source: Regress, Don't Guess: A Regression-like Loss on Number Tokens for Language Models, arXiv:2411.02083.
    """

    name = "number_token_loss"
    alternatives = {"kind": "mse", "weight": 1.0, "renormalize": False, "squash": 3.0}
    search = {"kind": Choice(("was", "mse")), "weight": Float(0.03, 3.0, log=True)}

    columns: Tensor
    column_of: Tensor
    numbers: Tensor
    distances: Tensor

    def __init__(
        self,
        values: F[Tensor, " classes"],
        kind: str = "was",
        weight: float = 0.3,
        renormalize: bool = True,
        *,
        squash: float | None = None,
        aggregation: str | None = None,
        length: float | None = None,
        ignore_index: int = -100,
    ) -> None:
        super().__init__(aggregation=aggregation, length=length, ignore_index=ignore_index)
        check_tensor("values", values, ndim=1, floating=True)
        check_choice("kind", kind, KINDS)
        check_number("weight", weight, low=0.0)
        check_flag("renormalize", renormalize)
        self.kind, self.weight, self.renormalize, self.squash = kind, weight, renormalize, squash
        columns = values.isnan().logical_not().nonzero().squeeze(1)
        if len(columns) < 2:
            refuse("values", "two number tokens or more", f"{len(columns)}")
        numbers = values[columns].double()
        if not numbers.isfinite().all():
            refuse("values", "finite numbers, and NaN elsewhere", values)
        distances = (numbers.unsqueeze(1) - numbers).abs()
        if squash is not None:
            if kind != "was":
                refuse("squash", 'None but with kind="was"', squash)
            check_number("squash", squash, low=1.0, open_low=True)
            distances = _squashed(distances, squash)
        column_of = torch.full((len(values),), -1, device=values.device)
        column_of[columns] = torch.arange(len(columns), device=values.device)
        buffers = {"columns": columns, "column_of": column_of, "numbers": numbers, "distances": distances}
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)

    def count_items(self, labels: Tensor, segments: Tensor | None = None) -> Tensor:
        """How many tokens count, or sequences that have one, and the same of numbers: ``[2]``."""
        valid = labels != self.ignore_index, self.is_number(labels)
        return torch.stack([self.count_valid(own, segments) for own in valid])

    def is_number(self, labels: I[Tensor, "*batch"]) -> Tensor:
        """Whether a label is a number token."""
        check_tensor("labels", labels, floating=False)
        check_range("labels", labels, 0, len(self.column_of) - 1, ignore_index=self.ignore_index)
        classes = torch.where(labels == self.ignore_index, 0, labels).long()
        return (self.column_of[classes] >= 0) & (labels != self.ignore_index)

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
        of_tokens, of_numbers = (None, None) if num_items is None else self._counts(num_items)
        losses, valid, distances, numbers = self.parts(source, labels, head, **options)
        entropy = self.aggregate(losses, valid, num_items=of_tokens, segments=segments)
        term = self.aggregate(distances, numbers, num_items=of_numbers, segments=segments)
        self.terms = kept_terms({"cross_entropy": entropy, "number_distance": term})
        return entropy + self.weight * term

    def parts(
        self, source: Tensor, labels: Tensor, head: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Cross-entropies, where they count, distances, and where these count, all ``[B, T]``."""
        classes = source.shape[-1] if head is None else head.shape[0]
        if classes != len(self.column_of):
            refuse("source" if head is None else "head", f"{len(self.column_of)} classes, as values", classes)
        want = ("log_p",) if self.renormalize else ("log_p", "log_z")
        of_tokens = token_statistics(
            source, labels, head, want=want, columns=self.columns, ignore_index=self.ignore_index, **options
        )
        log_p, z = of_tokens.log_p, of_tokens.columns
        assert log_p is not None
        assert z is not None
        is_number = self.is_number(labels)
        log_shares = z.log_softmax(-1) if of_tokens.log_z is None else z - of_tokens.log_z.unsqueeze(-1)
        own = self.column_of[torch.where(is_number, labels.long(), self.columns[0])]
        return -log_p, of_tokens.valid, self._distance(log_shares.exp(), own), is_number

    def _distance(self, p: Tensor, own: Tensor) -> Tensor:
        """Of p ``[B, T, J]`` from the values of columns ``own`` ``[B, T]``."""
        if self.kind == "was":
            return (p * self.distances.to(p)[own]).sum(-1)
        numbers = self.numbers.to(p)
        # sum_j p_j V_j - V_y for p of sum 1, with nothing large taken from something large
        gap = (p * (numbers - numbers[own].unsqueeze(-1))).sum(-1)
        if not self.renormalize:
            gap = gap - (1 - p.sum(-1)) * numbers[own]
        if self.kind == "mse":
            return gap.square()
        return gap.abs() if self.kind == "mae" else torch.nn.functional.huber_loss(gap, gap * 0, reduction="none")

    def _counts(self, num_items: float | Tensor) -> tuple[Tensor, Tensor]:
        if not isinstance(num_items, Tensor) or num_items.shape != (2,):
            refuse("num_items", "the sum of count_items(labels) [2], of tokens and of numbers", num_items)
        return num_items[0].clamp_min(1), num_items[1].clamp_min(1)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Five numbers among seven tokens."""
        values = torch.tensor([math.nan, 0.0, 1.0, 2.0, math.nan, 5.0, 10.0])
        sample: Sample = (cls.sample_tokens(generator, dtype, device), {})
        return [(cls(values.to(device)).to(device), sample), (cls(values.to(device), "huber").to(device), sample)]


NTLoss = NumberTokenLoss


def _squashed(distances: Tensor, largest: float) -> Tensor:
    """Distances on a line from 1, the least that is not 0, to the largest."""
    least = distances[distances > 0].amin() if (distances > 0).any() else distances.new_ones(())
    span = (distances.amax() - least).clamp_min(torch.finfo(distances.dtype).tiny)
    return torch.where(distances > 0, 1 + (distances - least) * (largest - 1) / span, 0.0)


def _term(kind: str, logits: Tensor, labels: Tensor, values: Tensor, renormalize: bool, ignore_index: int) -> Tensor:
    check_tensor("logits", logits, floating=True)
    loss = NumberTokenLoss(values, kind, renormalize=renormalize, ignore_index=ignore_index).to(logits.device)
    _, _, distances, numbers = loss.parts(logits, labels, None)
    return aggregate_tokens(distances, numbers)


def ntl_was(
    logits: F[Tensor, "batch tokens classes"],
    labels: I[Tensor, "batch tokens"],
    values: F[Tensor, " classes"],
    *,
    renormalize: bool = True,
    ignore_index: int = -100,
) -> Tensor:
    """The mean Wasserstein distance over tokens whose label is a number; see :class:`NumberTokenLoss`.

    Args:
        logits: ``[B, T, V]``.
        labels: ``[B, T]``, aligned with them.
        values: ``[V]``, NaN of tokens that are no numbers.
        renormalize: over number tokens alone.
        ignore_index: label of tokens that don't count.

    Returns:
        A scalar; 0 with a graph where no label is a number.
    """
    return _term("was", logits, labels, values, renormalize, ignore_index)


def ntl_mse(
    logits: F[Tensor, "batch tokens classes"],
    labels: I[Tensor, "batch tokens"],
    values: F[Tensor, " classes"],
    *,
    renormalize: bool = True,
    ignore_index: int = -100,
) -> Tensor:
    """The mean squared difference of the predicted mean from the label's value; see :func:`ntl_was`."""
    return _term("mse", logits, labels, values, renormalize, ignore_index)
