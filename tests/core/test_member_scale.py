"""Scales of several members, against torch's own gradients."""

from __future__ import annotations

import pytest
import torch

from steepest.core.member_scale import member_scale, member_scale_backward


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("needed", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 37), (3, 16, 1, 8)])
def test_gradients_are_those_of_torch(shape, needed, dtype):
    models, members, rows, width = shape
    g = torch.Generator().manual_seed(0)
    x = torch.randn(models, rows, width, generator=g, dtype=dtype).requires_grad_()
    scale = torch.randn(models, members, width, generator=g, dtype=dtype).requires_grad_()
    out = member_scale(x, scale)
    assert out.shape == shape
    upstream = torch.randn(shape, generator=g, dtype=dtype)
    of_scale, of_x = torch.autograd.grad(out, [scale, x], upstream)
    with torch.no_grad():
        ours = member_scale_backward(upstream, x, scale, needed)
        turned = upstream.transpose(0, 3).contiguous().transpose(0, 3)
        again = member_scale_backward(turned, x, scale, needed)
    eps = torch.finfo(dtype).eps * 8 * rows * members
    for own, below in (ours, again):
        torch.testing.assert_close(own, of_scale, rtol=eps, atol=eps)
        if needed:
            torch.testing.assert_close(below, of_x, rtol=eps, atol=eps)
        else:
            assert below is None
