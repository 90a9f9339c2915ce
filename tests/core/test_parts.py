"""Reductions, log-partition forms, search spaces, per-sample memory, random streams, heads, what a method hands on."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from steepest.core import logpartition
from steepest.core.heads import ScalarHead
from steepest.core.memory import SampleMemory
from steepest.core.random import RandomStream
from steepest.core.reductions import reduce, widen
from steepest.core.search import Choice, Float, Int

numbers = st.floats(-100, 100)
rows = st.lists(st.tuples(numbers, st.floats(0.1, 10), st.booleans()), min_size=1, max_size=8)


@given(rows)
def test_reductions_against_a_loop(data):
    loss, weight = (torch.tensor([row[i] for row in data], dtype=torch.float64) for i in (0, 1))
    valid = torch.tensor([row[2] for row in data])
    for w in (None, weight):
        for v in (None, valid):
            each = [(x, 1.0 if w is None else u, v is None or on) for x, u, on in data]
            above = math.fsum(x * u for x, u, on in each if on)
            below = math.fsum(u for _, u, on in each if on)
            none = [x * u if on else 0.0 for x, u, on in each]
            assert reduce(loss, "none", w, v).tolist() == pytest.approx(none)
            assert float(reduce(loss, "sum", w, v)) == pytest.approx(above, abs=1e-9)
            mean = float(reduce(loss, "mean", w, v))
            assert mean == pytest.approx(above / below, abs=1e-9) if below else math.isnan(mean)


def test_an_invalid_row_poisons_nothing():
    loss = torch.tensor([1.0, math.nan, math.inf], requires_grad=True)
    found = reduce(loss, "mean", torch.ones(3), torch.tensor([True, False, False]))
    found.backward()
    assert found.item() == 1.0
    assert loss.grad.tolist() == [1.0, 0.0, 0.0]
    assert reduce(torch.zeros(0)).isnan()


def test_half_is_widened_and_nothing_else():
    for dtype, wanted in ((torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64,) * 2):
        assert widen(torch.zeros(1, dtype=dtype)).dtype == wanted


def test_log_partition_forms():
    z, y = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 2])
    for form, wanted in (
        (logpartition.pick, torch.stack([row[i] for row, i in zip(z, y)])),
        (logpartition.target_log_probability, torch.stack([row.log_softmax(0)[i] for row, i in zip(z, y)])),
        (logpartition.margins_to_target, torch.stack([row - row[i] for row, i in zip(z, y)])),
    ):
        torch.testing.assert_close(form(z, y), wanted)
    assert torch.equal(logpartition.class_mask(y, 4), nn.functional.one_hot(y, 4).bool())
    far = torch.tensor([[1e4, -1e4]])
    assert logpartition.target_log_probability(far, torch.tensor([1])).item() == -2e4
    assert logpartition.target_log_probability(far.half(), torch.tensor([0])).dtype == torch.float32


@given(st.floats(1e-6, 1e3), st.floats(1.001, 1e3), st.floats(0, 1, exclude_max=True), st.booleans())
def test_real_spaces(low, factor, u, log):
    space = Float(low, low * factor, log)
    assert space.low <= space.at(u) <= space.high
    assert space.at(0.0) == low
    middle = low * math.sqrt(factor) if log else low * (1 + factor) / 2
    assert space.at(0.5) == pytest.approx(middle)


def test_other_spaces():
    u = [i / 12 for i in range(12)]
    assert [Int(2, 4).at(v) for v in u] == [2] * 4 + [3] * 4 + [4] * 4
    assert [Choice(("a", "b", None)).at(v) for v in u] == ["a"] * 4 + ["b"] * 4 + [None] * 4
    assert (Int(2, 4).at(1.0), Choice((1, 2)).at(1.0)) == (4, 2)
    for make in (lambda: Float(1, 1), lambda: Float(0, 1, log=True), lambda: Float(math.nan, 1), lambda: Int(2, 1)):
        with pytest.raises(ValueError, match="low, high: expected low <"):
            make()
    with pytest.raises(ValueError, match="options: expected at least one"):
        Choice(())


def test_memory():
    memory = SampleMemory(5, (2,), initial=3.0, dtype=torch.float16)
    new = torch.tensor([[1.0, 2.0], [4.0, 5.0]], requires_grad=True)
    memory.write(torch.tensor([4, 0]), new)
    assert memory.read(torch.tensor([0, 1, 4])).tolist() == [[4.0, 5.0], [3.0, 3.0], [1.0, 2.0]]
    assert memory.seen.tolist() == [True, False, False, False, True]
    assert memory.values.dtype == torch.float16
    assert not memory.read(torch.tensor([0])).requires_grad
    memory.write(torch.tensor([2, 4, 2]), torch.tensor([[1.0, 2.0], [7.0, 7.0], [2.0, 6.0]]))
    assert memory.read(torch.tensor([2, 4])).tolist() == [[1.5, 4.0], [7.0, 7.0]], "the mean of what comes twice"
    numbers = SampleMemory(3)
    numbers.write(torch.tensor([1, 1, 0]), torch.tensor([2.0, 3.0, 5.0]))
    assert numbers.values.tolist() == [5.0, 2.5, 0.0]
    classes = SampleMemory(3, dtype=torch.int64)
    classes.write(torch.tensor([1, 1]), torch.tensor([2, 2]))
    assert classes.values.tolist() == [0, 2, 0]
    twin = SampleMemory(5, (2,), dtype=torch.float16)
    twin.load_state_dict(memory.state_dict())
    assert torch.equal(twin.values, memory.values)
    assert torch.equal(twin.seen, memory.seen)
    memory.check(torch.tensor([0, 4]), 2)
    for bad, message in (
        (torch.tensor([5, 0]), r"index: expected values in 0\.\.4"),
        (torch.tensor([0]), r"index: expected shape \(2\)"),
        (torch.tensor([True, False]), "index: expected integer positions"),
    ):
        with pytest.raises(ValueError, match=message):
            memory.check(bad, 2)
    with pytest.raises(ValueError, match="num_samples: expected an integer >= 1"):
        SampleMemory(0)


def test_a_stream_is_its_owners():
    stream = RandomStream(3)
    before = torch.get_rng_state()
    stream.normal(3)
    twin = copy.deepcopy(nn.ModuleList([stream, stream]))
    assert twin[0] is twin[1]
    file = io.BytesIO()
    torch.save(stream.state_dict(), file)
    file.seek(0)
    loaded = RandomStream(9)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    wanted = stream.normal(2, 3, dtype=torch.float64)
    assert torch.equal(twin[0].normal(2, 3, dtype=torch.float64), wanted)
    assert torch.equal(loaded.normal(2, 3, dtype=torch.float64), wanted)
    assert not torch.equal(RandomStream(3).normal(3), RandomStream(4).normal(3))
    draws = [stream.uniform(-2, 5) for _ in range(2000)]
    assert -2 <= min(draws) < -1.9
    assert 4.9 < max(draws) < 5
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    first = RandomStream().normal(3)
    torch.manual_seed(1)
    assert torch.equal(RandomStream().normal(3), first)


def test_scalar_head():
    head, x = ScalarHead(3), torch.randn(4, 3)
    torch.testing.assert_close(head(x), x @ head.linear.weight[0] + head.linear.bias)
    assert head(x[:1]).shape == (1,)
