"""Small networks, written out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from steepest.nn.networks import Network, Residual, mlp, residual_mlp


def test_network_is_head_of_backbone():
    backbone, head, x = nn.Linear(3, 4), nn.Linear(4, 2), torch.randn(5, 3)
    model = Network(backbone, head)
    assert torch.equal(model(x), head(backbone(x)))
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"backbone", "head"}


@pytest.mark.parametrize("depth", [1, 3])
def test_mlp(depth):
    model, x = mlp(3, width=5, depth=depth), torch.randn(4, 3)
    h, parameters = x, list(model.parameters())
    assert len(parameters) == 2 * depth
    for weight, bias in zip(parameters[::2], parameters[1::2]):
        h = (h @ weight.T + bias).clamp_min(0)
    torch.testing.assert_close(model(x), h)
    assert h.shape == (4, 5)


def test_residual_mlp():
    model, x = residual_mlp(3, width=5, depth=2), torch.randn(4, 3)

    def norm(h):
        return (h - h.mean(-1, keepdim=True)) / (h.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()

    p = list(model.parameters())
    h = x @ p[0].T + p[1]
    for block in (p[2:8], p[8:14]):
        scale, shift, w1, b1, w2, b2 = block
        h = h + ((norm(h) * scale + shift) @ w1.T + b1).clamp_min(0) @ w2.T + b2
    torch.testing.assert_close(model(x), (norm(h) * p[14] + p[15]).clamp_min(0))


def test_residual():
    x = torch.randn(2, 3)
    assert torch.equal(Residual(nn.Identity())(x), 2 * x)


@pytest.mark.parametrize("make", [mlp, residual_mlp])
def test_refusals(make):
    for bad in ({"in_features": 0}, {"width": 0}, {"depth": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))}: expected an integer >= 1, got 0"):
            make(**{"in_features": 3, **bad})
    with pytest.raises(TypeError, match="width: expected an integer"):
        make(3, width=2.5)
