"""Packing of sequences into rows of one length: best fit decreasing, with exact masks and positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...core.checks import check_choice, check_number, check_tensor, refuse, refuse_type
from ._fit import fill_bins

IGNORED = -100


def best_fit_decreasing(lengths: Sequence[int] | np.ndarray | Tensor, capacity: int) -> list[list[int]]:
    r"""Bins of at most ``capacity``: lengths in descending order, each into the fullest bin that still takes it.

    At most :math:`\tfrac{11}{9} \mathrm{OPT} + 4` bins. Equal lengths are placed together and the fullest bin is found
    in a two-level bit set: about n log n steps, a second or so for a million lengths.

    Args:
        lengths: whole numbers in 1..capacity.
        capacity: of a bin, >= 1.

    Returns:
        For each bin the indices of its lengths, longest first. Each index occurs once.

    Raises:
        ValueError: a length is below 1 or above the capacity.
        TypeError: lengths are no whole numbers.

    Example:
        >>> best_fit_decreasing([6, 5, 4, 3, 2], 10)
        [[0, 2], [1, 3, 4]]

    Source: Chronicals, code Ajwebdevs/Chronicals; Johnson, Near-optimal bin packing algorithms (1973).
    """
    check_number("capacity", capacity, low=1, integer=True)
    sizes = np.asarray(lengths.cpu() if isinstance(lengths, Tensor) else lengths)
    if sizes.ndim != 1:
        refuse("lengths", "one dimension", f"shape {sizes.shape}")
    if sizes.size and sizes.dtype.kind not in "iu":
        refuse_type("lengths", "whole numbers", sizes.dtype)
    for wrong in np.flatnonzero((sizes < 1) | (sizes > capacity))[:1]:
        refuse("lengths", f"values in 1..{capacity}", f"{sizes[wrong]} at index {wrong}")
    return fill_bins(sizes.astype(np.int64), capacity)


@dataclass(frozen=True)
class PackedSequences:
    """Rows of packed sequences and where each lies.

    What is left of a row is padding: token ``pad_id``, label -100, segment -1. Its positions start at 0 again, so that
    for every mask it is one more sequence that nobody sees, and no query is left without a key.

    Args:
        input_ids: ``[rows, capacity]``.
        labels: ``[rows, capacity]``, unshifted as Transformers takes them: -100 in padding and at the first token of
            each sequence, which nothing before it predicts.
        position_ids: ``[rows, capacity]``, from 0 in each sequence.
        segment_ids: ``[rows, capacity]``, which segment a token belongs to; -1 in padding.
        rows, starts, lengths, sources: ``[segments]``: where each segment lies and which sequence it comes from.
    """

    input_ids: Int[Tensor, "rows capacity"]
    labels: Int[Tensor, "rows capacity"]
    position_ids: Int[Tensor, "rows capacity"]
    segment_ids: Int[Tensor, "rows capacity"]
    rows: Int[Tensor, " segments"]
    starts: Int[Tensor, " segments"]
    lengths: Int[Tensor, " segments"]
    sources: Int[Tensor, " segments"]

    def to(self, device: torch.device | str) -> PackedSequences:
        """The same rows on another device."""
        return PackedSequences(*(getattr(self, field.name).to(device) for field in fields(self)))

    @property
    def fill(self) -> float:
        """Share of the places that hold a token."""
        return int(self.lengths.sum()) / max(self.input_ids.numel(), 1)

    @property
    def cu_seqlens(self) -> Int[Tensor, " boundaries"]:
        """Boundaries in the rows laid end to end, int32, each padding a segment: for attention of varying length."""
        first = torch.nonzero(self.position_ids.flatten() == 0).flatten()
        return torch.cat((first, first.new_tensor([self.position_ids.numel()]))).to(torch.int32)

    def attention_mask(self, dtype: torch.dtype | None = None) -> Bool[Tensor, "rows 1 capacity capacity"] | Tensor:
        """The causal mask of blocks, ``[rows, 1, capacity, capacity]``.

        Args:
            dtype: None for booleans, True where a query sees a key, as ``scaled_dot_product_attention`` takes it; a
                floating type for what is added to scores: 0 or the type's least number.
        """
        same = self.segment_ids.unsqueeze(2) == self.segment_ids.unsqueeze(1)
        seen = same.tril_().unsqueeze(1)
        if dtype is None:
            return seen
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)

    def model_inputs(self, mask: bool = False) -> dict[str, Tensor]:
        """Arguments of a causal language model of Transformers.

        Without a mask such a model finds the sequences where positions restart; ``mask=True`` adds it for models that
        don't look.
        """
        inputs = {"input_ids": self.input_ids, "labels": self.labels, "position_ids": self.position_ids}
        return {**inputs, "attention_mask": self.attention_mask()} if mask else inputs

    def unpack(self, values: Float[Tensor, "rows capacity *rest"]) -> list[Tensor]:
        """``values`` of every place, back as one tensor a sequence in the order they came; pieces are joined.

        Raises:
            ValueError: values don't begin with the shape of the rows.
        """
        check_tensor("values", values)
        if values.shape[:2] != self.input_ids.shape:
            refuse("values", f"a shape that begins with {tuple(self.input_ids.shape)}", values)
        parts: list[list[Tensor]] = [[] for _ in range(int(self.sources.max()) + 1 if len(self.sources) else 0)]
        where = torch.stack((self.sources, self.rows, self.starts, self.lengths), 1).tolist()
        for source, row, start, length in where:
            parts[source].append(values[row, start : start + length])
        return [own[0] if len(own) == 1 else torch.cat(own) for own in parts]


def pack_sequences(
    seqs: Sequence[Tensor | Sequence[int]],
    capacity: int,
    *,
    labels: Sequence[Tensor | Sequence[int]] | None = None,
    pad_id: int = 0,
    too_long: str = "refuse",
) -> PackedSequences:
    """Token sequences in rows of ``capacity`` by :func:`best_fit_decreasing`, none dropped and none seen by another.

    The loss of a packed batch is the sum over tokens divided by the number of labels that are not -100, which is what
    the sequences give one by one.

    Args:
        seqs: tokens of each sequence, at least one each: lists, arrays or tensors ``[length]``.
        capacity: tokens of a row, >= 1.
        labels: of each token, of the same lengths; None for the tokens themselves. -100 is ignored.
        pad_id: the token of the padding.
        too_long: ``"refuse"`` a sequence longer than the capacity, or ``"split"`` it into pieces of the capacity, each
            a sequence of its own that knows nothing of the one before.

    Returns:
        The rows with labels, positions, masks and the way back.

    Raises:
        ValueError: an empty sequence; one longer than the capacity where that is refused; labels of other lengths.
        TypeError: tokens are no whole numbers.

    Example:
        >>> packed = pack_sequences([[5, 6, 7], [8, 9], [3]], 4)
        >>> packed.input_ids.tolist(), packed.position_ids.tolist()
        ([[5, 6, 7, 3], [8, 9, 0, 0]], [[0, 1, 2, 0], [0, 1, 0, 1]])
        >>> packed.labels.tolist(), packed.cu_seqlens.tolist()
        ([[-100, 6, 7, -100], [-100, 9, -100, -100]], [0, 3, 4, 6, 8])

    Source: Chronicals, code Ajwebdevs/Chronicals.
    """
    check_number("capacity", capacity, low=1, integer=True)
    check_choice("too_long", too_long, ("refuse", "split"))
    tokens = _tokens("seqs", seqs)
    targets = tokens if labels is None else _tokens("labels", labels)
    sizes = np.array([len(t) for t in tokens], dtype=np.int64)
    for name, wrong, wanted in (
        ("seqs", sizes < 1, "at least one token"),
        ("seqs", (sizes > capacity) & (too_long == "refuse"), f'at most {capacity} tokens (or too_long="split")'),
    ):
        for index in np.flatnonzero(wrong)[:1]:
            refuse(f"{name}[{index}]", wanted, int(sizes[index]))
    if [len(t) for t in targets] != sizes.tolist():
        refuse("labels", "the lengths of seqs", [len(t) for t in targets][:10])
    return _lay(tokens, targets, sizes, capacity, pad_id)


def _tokens(name: str, seqs: Sequence[Any]) -> list[Tensor]:
    tensors = [torch.as_tensor(s) for s in seqs]
    for index, one in enumerate(tensors):
        if one.ndim != 1:
            refuse(f"{name}[{index}]", "1 dimension", one)
        if one.numel() and (one.is_floating_point() or one.is_complex() or one.dtype == torch.bool):
            refuse_type(f"{name}[{index}]", "whole numbers", one)
    return [one.to(torch.int64) for one in tensors]


def _lay(tokens: list[Tensor], targets: list[Tensor], sizes: np.ndarray, capacity: int, pad_id: int) -> PackedSequences:
    """Segments of at most ``capacity`` tokens, in the order of the sequences, put where their bins are."""
    counts = -(-sizes // capacity)
    sources = np.repeat(np.arange(len(sizes)), counts)
    nth = np.arange(len(sources)) - np.repeat(np.cumsum(counts) - counts, counts)
    lengths = np.minimum(sizes[sources] - nth * capacity, capacity)
    bins = best_fit_decreasing(lengths, capacity)
    order = np.array([segment for members in bins for segment in members], dtype=np.int64)
    rows, starts = np.empty_like(order), np.empty_like(order)
    rows[order] = np.repeat(np.arange(len(bins)), [len(members) for members in bins])
    ends = np.cumsum(lengths[order])
    before = np.searchsorted(rows[order], np.arange(len(bins)))  # the first segment of each row
    starts[order] = ends - lengths[order] - (ends - lengths[order])[before][rows[order]]
    # a flat place for every token, without a loop over tokens
    within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    place = torch.from_numpy(np.repeat(rows * capacity + starts, lengths) + within)
    shape = (len(bins), capacity)
    filled = torch.from_numpy(np.bincount(rows, lengths, minlength=len(bins)).astype(np.int64))
    position = torch.arange(capacity) - filled.unsqueeze(1)  # what padding keeps
    ids = torch.full(shape, pad_id)
    label, segment = torch.full(shape, IGNORED), torch.full(shape, -1)
    if len(tokens):
        target = torch.cat(targets).clone()
        target[torch.from_numpy(np.cumsum(lengths) - lengths)] = IGNORED
        ids.view(-1)[place] = torch.cat(tokens).to("cpu")
        label.view(-1)[place] = target.to("cpu")
        position.view(-1)[place] = torch.from_numpy(within)
        segment.view(-1)[place] = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
    where = (torch.from_numpy(a) for a in (rows, starts, lengths, sources))
    return PackedSequences(ids, label, position, segment, *where)
