"""Units that are left out: a share of them, others at each step, and the same in every form of the code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from steepest.core import dropout
from steepest.core.dropout import rectified_dropout_


def by_hand(x, seed, step, p):
    """Place by place, with whole numbers of Python."""
    low, high = (int(word) for word in np.random.SeedSequence([seed, step]).generate_state(2, np.uint32))
    out = []
    for place, value in enumerate(x.tolist()):
        h = (place * 0x9E3779B1 + low) % 2**32
        h ^= h >> 16
        h = h * 0x85EBCA6B % 2**32
        h ^= (h >> 13) ^ high
        h = h * 0xC2B2AE35 % 2**32
        h ^= h >> 16
        out.append(max(value, 0.0) / (1 - p) if h >= round(p * 2**32) else 0.0)
    return torch.tensor(out)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_units_are_those_of_the_hash(p, native, monkeypatch):
    if not native:
        monkeypatch.setattr(dropout, "_library", lambda level: None)
    x = torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(0))
    y = rectified_dropout_(x.clone(), [3, 2**40], 6, p)
    for m, seed in enumerate((3, 2**40)):
        torch.testing.assert_close(y[m].flatten(), by_hand(x[m].flatten(), seed, 6, p), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("p", [0.02, 0.1, 0.7])
def test_the_share_and_the_mean_are_right_and_places_are_independent(p):
    x = torch.ones(4, 200, 500)
    y = rectified_dropout_(x, [1, 2, 3, 4], 0, p)
    out = (y == 0).float()
    deviation = (p * (1 - p) / out.numel()) ** 0.5
    assert abs(float(out.mean()) - p) < 5 * deviation
    assert abs(float(y.mean()) - 1) < 5 * deviation / (1 - p)
    for a, b in ((out[:, :, 1:], out[:, :, :-1]), (out[:, 1:], out[:, :-1]), (out[1:], out[:-1])):
        both = float((a * b).mean())
        assert abs(both - p * p) < 5 * (p * p * (1 - p * p) / a.numel()) ** 0.5


def test_steps_and_seeds_draw_others_and_neighbours_change_nothing():
    x = torch.ones(1, 1000)
    first = rectified_dropout_(x.clone(), [5], 0, 0.5)
    assert torch.equal(first, rectified_dropout_(x.clone(), [5], 0, 0.5))
    for other in (rectified_dropout_(x.clone(), [5], 1, 0.5), rectified_dropout_(x.clone(), [6], 0, 0.5)):
        assert 0.4 < float((first == other).float().mean()) < 0.6
    among = rectified_dropout_(torch.ones(3, 1000), [9, 5, 1], 0, 0.5)
    assert torch.equal(among[1], first[0])


def test_nothing_is_left_out_at_0_and_other_types_go_the_same_way():
    x = torch.tensor([[-1.0, 2.0]])
    assert rectified_dropout_(x.clone(), [0], 0, 0.0).tolist() == [[0.0, 2.0]]
    x = torch.randn(1, 300, generator=torch.Generator().manual_seed(0))
    single, double = (rectified_dropout_(x.to(t, copy=True), [1], 2, 0.3) for t in (torch.float32, torch.float64))
    torch.testing.assert_close(single.double(), double)
    turned = rectified_dropout_(torch.ones(2, 6, 3).transpose(1, 2), [1, 2], 0, 0.5)
    assert set(turned.flatten().tolist()) == {0.0, 2.0}
    with pytest.raises(ValueError, match="p: expected"):
        rectified_dropout_(x, [0], 0, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_slope_is_that_of_the_units_that_take_part(dtype):
    g, y = torch.randn(2, 3, 50, dtype=dtype), torch.randn(2, 3, 50, dtype=dtype).relu()
    wanted = torch.where(y > 0, g / 0.7, 0.0)
    torch.testing.assert_close(dropout.rectified_dropout_slope(g.clone(), y, 0.3), wanted, rtol=1e-6, atol=0.0)
    turned = dropout.rectified_dropout_slope(g.clone().transpose(1, 2), y.transpose(1, 2), 0.3)
    torch.testing.assert_close(turned.transpose(1, 2), wanted, rtol=1e-6, atol=0.0)
