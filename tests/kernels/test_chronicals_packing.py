"""Packing: the bins of a plain best fit, losses and gradients of packed rows, what Transformers makes of them."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from steepest.kernels import best_fit_decreasing, fused_qk_rope, fused_rms_norm, fused_swiglu, pack_sequences
from steepest.kernels.chronicals._fit import Spaces


def fill(bins, lengths, capacity):
    return sum(lengths) / (len(bins) * capacity)


def plain_best_fit(lengths, capacity):
    """One length after another into the fullest bin that takes it: the free spaces that are left, counted."""
    spaces = []
    for length in sorted(lengths, reverse=True):
        fitting = [s for s in spaces if s >= length]
        space = min(fitting, default=capacity)
        if fitting:
            spaces.remove(space)
        spaces.append(space - length)
    return Counter(spaces)


@pytest.mark.holds("chronicals", 4)
def test_bins_of_the_card():
    lengths = (7, 5, 5, 3, 3, 2)
    bins = best_fit_decreasing(lengths, 10)
    assert len(bins) == 3
    assert fill(bins, lengths, 10) == pytest.approx(0.8333, abs=5e-5)
    lengths = (6, 5, 4, 3, 2)
    bins = best_fit_decreasing(lengths, 10)
    assert len(bins) == 2
    assert fill(bins, lengths, 10) == 1.0


@given(st.integers(1, 60).flatmap(lambda cap: st.tuples(st.just(cap), st.lists(st.integers(1, cap), max_size=80))))
@settings(max_examples=150, deadline=None)
def test_bins_are_those_of_a_plain_best_fit(case):
    capacity, lengths = case
    bins = best_fit_decreasing(lengths, capacity)
    assert sorted(index for members in bins for index in members) == list(range(len(lengths)))
    spaces = [capacity - sum(lengths[index] for index in members) for members in bins]
    assert min(spaces, default=0) >= 0
    assert Counter(spaces) == plain_best_fit(lengths, capacity)


def test_bins_of_many_lengths():
    """Against a bound of the optimum: no fewer bins than tokens need, or than lengths above half the capacity."""
    lengths = np.random.default_rng(0).integers(1, 2049, 50_000)
    bins = best_fit_decreasing(lengths, 2048)
    least = max(-(-int(lengths.sum()) // 2048), int((lengths > 1024).sum()))
    assert least <= len(bins) <= 11 / 9 * least + 4
    assert all(lengths[members].sum() <= 2048 for members in bins)


def test_lengths_may_be_tensors():
    assert best_fit_decreasing(torch.tensor([6, 5, 4, 3, 2]), 10) == best_fit_decreasing([6, 5, 4, 3, 2], 10)
    assert best_fit_decreasing([], 10) == []


@given(st.lists(st.integers(0, 1000)), st.lists(st.integers(0, 1000)), st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_spaces(added, removed, size):
    spaces = Spaces(1000)
    for space in added:
        spaces.add(space)
    for space in removed:
        spaces.discard(space)
    assert spaces.least(size) == min((s for s in set(added) - set(removed) if s >= size), default=-1)


# ---------------------------------------------------------------------------------------------------------- the rows


def draw(lengths, vocabulary=17):
    return [torch.randint(1, vocabulary, (length,)) for length in lengths]


class Tiny(torch.nn.Module):
    """One block of a language model out of the fused operations."""

    def __init__(self, vocabulary=17, width=8, heads=2):
        super().__init__()
        self.heads = heads
        self.embed = torch.nn.Embedding(vocabulary, width)
        self.norm = torch.nn.Parameter(torch.randn(width))
        self.qkv = torch.nn.Linear(width, 2 * width, bias=False)
        self.mlp = torch.nn.Linear(width, 2 * width, bias=False)
        self.head = torch.nn.Linear(width, vocabulary)

    def forward(self, ids, positions, mask):
        x = self.embed(ids)
        q, k, v = self.qkv(fused_rms_norm(x, self.norm)).split((8, 4, 4), -1)
        q, k, v = (t.unflatten(-1, (-1, 4)).transpose(1, 2) for t in (q, k, v))
        q, k = fused_qk_rope(q, k, positions=positions)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        x = x + out.transpose(1, 2).flatten(2)
        return self.head(x + fused_swiglu(*self.mlp(fused_rms_norm(x, self.norm)).chunk(2, -1)))


def total_loss(logits, labels):
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")


@pytest.mark.holds("chronicals", 5)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("added", [False, True])
def test_packed_loss_and_gradients_are_the_sums(dtype, tolerance, added):
    model, seqs = Tiny().to(dtype), draw([7, 5, 5, 3, 3, 2, 1])
    packed = pack_sequences(seqs, 10)
    mask = packed.attention_mask(dtype if added else None)
    together = total_loss(model(packed.input_ids, packed.position_ids, mask), packed.labels)
    wanted = torch.autograd.grad(together, list(model.parameters()))
    alone = 0.0
    for seq in seqs:
        length = len(seq)
        causal = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
        alone = alone + total_loss(model(seq[None], torch.arange(length), causal), seq[None])
    got = torch.autograd.grad(alone, list(model.parameters()))
    assert together.item() == pytest.approx(alone.item(), rel=tolerance)
    for a, b in zip(got, wanted):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))
    assert int((packed.labels != -100).sum()) == sum(len(seq) - 1 for seq in seqs)


@pytest.mark.holds("chronicals", 5)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("mask", [False, True])
def test_a_model_of_transformers_takes_the_rows(attention, mask):
    config = LlamaConfig(
        vocab_size=17, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation=attention, use_cache=False,
    )  # fmt: skip
    model, seqs = LlamaForCausalLM(config).double().eval(), draw([7, 5, 5, 3, 3, 2])
    packed = pack_sequences(seqs, 10)
    inputs = packed.model_inputs(mask)
    if mask and attention == "eager":
        inputs["attention_mask"] = packed.attention_mask(torch.float64)  # eager attention adds its mask
    out = model(**inputs)
    for seq, own in zip(seqs, packed.unpack(out.logits)):
        torch.testing.assert_close(own, model(seq[None]).logits[0], rtol=1e-6, atol=1e-8)  # its rotation is float32
    sums = sum(model(seq[None], labels=seq[None]).loss.item() * (len(seq) - 1) for seq in seqs)
    assert out.loss.item() == pytest.approx(sums / sum(len(seq) - 1 for seq in seqs), rel=1e-6)


def test_masks_and_boundaries_by_a_loop():
    packed = pack_sequences(draw([3, 2, 4, 1, 1]), 6)
    seen = packed.attention_mask()
    rows, _, capacity, _ = seen.shape
    for row in range(rows):
        for i in range(capacity):
            for j in range(capacity):
                together = packed.segment_ids[row, i] == packed.segment_ids[row, j]
                assert bool(seen[row, 0, i, j]) == (j <= i and bool(together))
    assert bool(seen.any(-1).all())
    boundaries = packed.cu_seqlens.tolist()
    assert packed.cu_seqlens.dtype == torch.int32
    assert (boundaries[0], boundaries[-1]) == (0, rows * capacity)
    flat = packed.segment_ids.flatten()
    for start, stop in itertools.pairwise(boundaries):
        assert len(set(flat[start:stop].tolist())) == 1
        assert packed.position_ids.flatten()[start:stop].tolist() == list(range(stop - start))
    added = packed.attention_mask(torch.float16)
    assert set(added.unique().tolist()) == {0.0, torch.finfo(torch.float16).min}
    assert torch.equal(added == 0, seen)


@pytest.mark.holds("chronicals", 6)
def test_too_long_is_refused_or_split_never_dropped():
    seqs = [torch.arange(1, 24), torch.tensor([30, 31]), torch.arange(40, 50)]
    with pytest.raises(ValueError, match=r'seqs\[0\]: expected at most 10 tokens \(or too_long="split"\), got 23'):
        pack_sequences(seqs, 10)
    with pytest.raises(ValueError, match=r"lengths: expected values in 1..10, got '11 at index 1'"):
        best_fit_decreasing([3, 11], 10)
    packed = pack_sequences(seqs, 10, too_long="split")
    for seq, own in zip(seqs, packed.unpack(packed.input_ids)):
        assert torch.equal(own, seq)
    assert packed.lengths.tolist() == [10, 10, 3, 2, 10]
    assert packed.sources.tolist() == [0, 0, 0, 1, 2]
    assert int(((packed.labels == -100) & (packed.segment_ids >= 0)).sum()) == 5  # one for each piece
    assert packed.fill == pytest.approx(35 / packed.input_ids.numel())


@given(st.lists(st.integers(1, 25), max_size=30), st.integers(3, 12))
@settings(max_examples=60, deadline=None)
def test_nothing_is_lost(lengths, capacity):
    seqs = draw(lengths)
    packed = pack_sequences(seqs, capacity, too_long="split", pad_id=-1)
    assert all(torch.equal(a, b) for a, b in zip(seqs, packed.unpack(packed.input_ids), strict=True))
    assert int((packed.input_ids == -1).sum()) == packed.input_ids.numel() - sum(lengths)
    assert torch.equal(packed.input_ids == -1, packed.segment_ids == -1)


def test_rows_move_whole():
    packed = pack_sequences([[1, 2, 3], [4, 5]], 5)
    moved = packed.to("meta")
    assert {getattr(moved, name).device.type for name in vars(packed)} == {"meta"}
    assert moved.input_ids.shape == packed.input_ids.shape


def test_labels_of_their_own():
    packed = pack_sequences([[1, 2, 3], [4, 5]], 5, labels=[[-100, -100, 3], torch.tensor([9, 8])])
    assert packed.labels.tolist() == [[-100, -100, 3, -100, 8]]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: pack_sequences([[1], []], 4), ValueError, r"seqs\[1\]: expected at least one token, got 0"),
        (lambda: pack_sequences([[1]], 0), ValueError, "capacity: expected an integer >= 1"),
        (lambda: pack_sequences([[1]], 4, too_long="drop"), ValueError, "too_long: expected one of 'refuse', 'split'"),
        (lambda: pack_sequences([[1.5]], 4), TypeError, r"seqs\[0\]: expected whole numbers"),
        (lambda: pack_sequences([[[1]]], 4), ValueError, r"seqs\[0\]: expected 1 dimension"),
        (lambda: pack_sequences([[1, 2]], 4, labels=[[1]]), ValueError, "labels: expected the lengths of seqs"),
        (lambda: pack_sequences([[1, 2]], 4).unpack(torch.ones(2, 4)), ValueError, "values: expected a shape"),
        (lambda: best_fit_decreasing([0], 4), ValueError, "lengths: expected values in 1..4"),
        (lambda: best_fit_decreasing([1.0], 4), TypeError, "lengths: expected whole numbers"),
        (lambda: best_fit_decreasing([[1]], 4), ValueError, "lengths: expected one dimension"),
    ],
)
def test_refusals(call, error, text):
    with pytest.raises(error, match=text):
        call()
