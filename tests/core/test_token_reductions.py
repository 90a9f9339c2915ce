"""Means of token losses: hand-made numbers, micro-batches, padding, packed rows, NaN under the mask."""

from __future__ import annotations

import math

import pytest
import torch

from steepest.core.reductions import reduce
from steepest.core.token_reductions import MODES, aggregate_tokens, count_items, masked, sequence_sums


def drawn(rows=5, steps=7):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(rows, steps, generator=generator, dtype=torch.float64)
    mask = torch.rand(rows, steps, generator=generator) < 0.6
    mask[2] = False
    return values, mask


def options(mode):
    return {"length": 11.0} if mode == "constant" else {}


def by_loop(values, mask, mode):
    own = [[float(v) for v, m in zip(*pair) if m] for pair in zip(values, mask)]
    own = [row for row in own if row]
    return {
        "token_mean": sum(map(sum, own)) / sum(map(len, own)),
        "sequence_mean_token_mean": sum(sum(row) / len(row) for row in own) / len(own),
        "sequence_sum": sum(map(sum, own)) / len(own),
        "constant": sum(map(sum, own)) / 11 / len(own),
    }[mode]


@pytest.mark.parametrize("mode", MODES)
def test_against_loops_and_padding(mode):
    values, mask = drawn()
    own = aggregate_tokens(values, mask, mode, **options(mode))
    assert float(own) == pytest.approx(by_loop(values, mask, mode), rel=1e-12)
    wide = torch.cat([values, torch.full((5, 4), math.nan, dtype=values.dtype)], 1)
    more = torch.cat([mask, torch.zeros(5, 4, dtype=torch.bool)], 1)
    torch.testing.assert_close(aggregate_tokens(wide, more, mode, **options(mode)), own, rtol=1e-14, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_any_split_of_a_step_has_the_same_sum_and_gradient(mode):
    values, mask = drawn()
    whole = values.clone().requires_grad_()
    total = aggregate_tokens(whole, mask, mode, **options(mode))
    total.backward()
    count = float(mask.sum()) if mode == "token_mean" else float(mask.any(1).sum())
    for split in ([5], [1, 4], [2, 1, 2]):
        parts = values.clone().requires_grad_()
        pieces = zip(parts.split(split), mask.split(split))
        losses = [aggregate_tokens(v, m, mode, num_items=torch.tensor(count), **options(mode)) for v, m in pieces]
        torch.testing.assert_close(sum(losses), total, rtol=1e-13, atol=0)
        sum(losses).backward()
        torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-13, atol=0)


def test_reported_cases():
    micro = [torch.tensor([[4.0, 9.0, 9.0]]), torch.tensor([[0.0, 0.0, 0.0]])]  # trl#4719
    masks = [torch.tensor([[True, False, False]]), torch.ones(1, 3, dtype=torch.bool)]
    assert sum(float(aggregate_tokens(v, m, num_items=4)) for v, m in zip(micro, masks)) == 1.0
    losses, mask = torch.ones(2, 2), torch.tensor([[True, True], [False, False]])  # trl#6439
    assert float(aggregate_tokens(losses, mask)) == 1.0
    nothing = torch.ones(2, 2, requires_grad=True)
    for mode in MODES:
        loss = aggregate_tokens(nothing * math.inf, torch.zeros(2, 2, dtype=torch.bool), mode, **options(mode))
        assert float(loss.detach()) == 0.0
        loss.backward()


@pytest.mark.parametrize("mode", MODES)
def test_packed_rows_are_their_sequences(mode):
    values, mask = drawn(4, 6)
    mask[2] = torch.tensor([True, False, True, True, False, True])
    segments = torch.tensor([[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1], [0, 1, 1, 2, 2, -5]])
    mask[3] = torch.tensor([True, True, True, True, False, False])
    alone_values, alone_masks = [], []
    for row in range(4):
        for number in range(3):
            own = segments[row] == number
            alone_values.append(values[row])
            alone_masks.append(mask[row] & own)
    wanted = aggregate_tokens(torch.stack(alone_values), torch.stack(alone_masks), mode, **options(mode))
    own = aggregate_tokens(values, mask, mode, segments=segments, **options(mode))
    torch.testing.assert_close(own, wanted, rtol=1e-13, atol=0)


def test_gradients_under_the_mask_are_zero_before_an_exponential():
    values = torch.tensor([[0.0, 200.0, math.nan]], requires_grad=True)
    mask = torch.tensor([[True, False, False]])
    aggregate_tokens(masked(values, mask).exp(), mask).backward()
    assert torch.equal(values.grad, torch.tensor([[1.0, 0.0, 0.0]]))


def test_what_it_refuses():
    values, mask = drawn()
    for arguments, named, word in (
        ((values, mask, "mean"), {}, "mode"),
        ((values, mask, "constant"), {}, "length"),
        ((values, mask), {"length": 3.0}, "length"),
        ((values, mask, "constant"), {"length": 0.0}, "length"),
        ((values, mask), {"num_items": 0}, "num_items"),
        ((values, mask[:2]), {}, "mask"),
        ((values[0], mask[0]), {}, "values"),
        ((values, mask), {"segments": torch.full((5, 7), -1)}, "segments"),
    ):
        with pytest.raises(ValueError, match=word):
            aggregate_tokens(*arguments, **named)
    with pytest.raises(ValueError, match="segments"):
        sequence_sums(values, mask, torch.zeros(5, 6, dtype=torch.int64))


@pytest.mark.parametrize("mode", MODES)
def test_a_count_of_nothing_is_no_divisor(mode):
    """A micro-batch of a step in which nothing counts: 0, and no NaN."""
    values = torch.ones(2, 3, requires_grad=True)
    loss = aggregate_tokens(
        values, torch.zeros(2, 3, dtype=torch.bool), mode, num_items=torch.tensor(0), **options(mode)
    )
    loss.backward()
    assert loss == 0
    assert not values.grad.any()
    for wrong in (torch.tensor(-1), torch.tensor([2, 2])):
        with pytest.raises(ValueError, match="num_items: expected"):
            aggregate_tokens(values, torch.ones(2, 3, dtype=torch.bool), mode, num_items=wrong, **options(mode))


def test_half_values_are_summed_in_float32():
    values = torch.ones(1, 70_000, dtype=torch.float16)
    assert aggregate_tokens(values, torch.ones(1, 70_000, dtype=torch.bool)) == 1
    sums, counts = sequence_sums(
        torch.ones(1, 1000).bfloat16(), torch.ones(1, 1000, dtype=torch.bool), torch.zeros(1, 1000).long()
    )
    assert (sums[0].item(), counts[0].item()) == (1000, 1000)


@pytest.mark.parametrize("mode", MODES)
def test_counts_are_what_a_mean_divides_by(mode):
    values, mask = drawn()
    own = aggregate_tokens(values, mask, mode, **options(mode))
    items = count_items(mask, mode)
    assert not items.is_floating_point()
    assert int(items) == (sum(map(sum, mask.tolist())) if mode == "token_mean" else sum(map(any, mask.tolist())))
    assert torch.equal(aggregate_tokens(values, mask, mode, num_items=items, **options(mode)), own)
    segments = torch.where(torch.arange(7) < 3, 0, 1).expand(5, 7)
    packed = count_items(mask, mode, segments)
    by_row = torch.cat([mask[:, :3].any(1), mask[:, 3:].any(1)]).sum()
    assert int(packed) == int(items if mode == "token_mean" else by_row)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_mean_of_no_losses_is_nan_or_zero_with_a_graph(weighted):
    for count in (0, 3) if weighted else (0,):
        losses = torch.ones(count, requires_grad=True)
        weight = torch.zeros(count) if weighted else None
        assert reduce(losses, "mean", weight).isnan()
        value = reduce(losses, "mean", weight, empty="zero")
        assert value == 0
        assert not torch.autograd.grad(value, losses)[0].any()
    nothing = torch.zeros(2, dtype=torch.bool)
    assert reduce(torch.ones(2), "mean", None, nothing, empty="zero") == 0
    assert reduce(torch.tensor([1.0, 3.0]), empty="zero") == 2


def test_divisors_are_constants_that_fit_what_counts():
    values, mask = torch.ones(2, 4, requires_grad=True), torch.ones(2, 4, dtype=torch.bool)
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="num_items: expected a count >= 0"):
            aggregate_tokens(values, mask, num_items=torch.tensor(wrong))
    assert aggregate_tokens(values, ~mask, num_items=torch.tensor(0)) == 0
    divisor = torch.tensor(8.0, requires_grad=True)
    aggregate_tokens(values, mask, num_items=divisor).backward()
    assert divisor.grad is None
