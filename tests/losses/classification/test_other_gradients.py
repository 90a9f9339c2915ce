"""Losses of rows: what isn't an output gets the same gradient, or none, however the loss is differentiated."""

from __future__ import annotations

import pytest
import torch

from steepest.losses import cross_entropy, focal_loss, ldam_loss, ldr_kl_loss, squared_error

Z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tanh()
Y = torch.tensor([0, 1, 2, 3, 1, 0])
OF_CLASS = torch.linspace(0.5, 1.5, 4, dtype=torch.float64)
OF_ROW = torch.linspace(0.5, 1.5, 6, dtype=torch.float64)
LOSSES = {
    "lam of ldr_kl_loss": (lambda z, v: ldr_kl_loss(z, Y, lam=v, margin=0.5), OF_ROW, False),
    "margins of ldam_loss": (lambda z, v: ldam_loss(z, Y, margins=v, scale=3.0), OF_CLASS, True),
    "class_weight of ldam_loss": (
        lambda z, v: ldam_loss(z, Y, margins=OF_CLASS, scale=3.0, class_weight=v), OF_CLASS, True,
    ),
    "class_weight of cross_entropy": (lambda z, v: cross_entropy(z, Y, class_weight=v), OF_CLASS, True),
    "alpha of focal_loss": (lambda z, v: focal_loss(z, Y, alpha=v), OF_CLASS, True),
    "weight": (lambda z, v: cross_entropy(z, Y, weight=v), OF_ROW, True),
    "target": (lambda z, v: squared_error(z[:, 0], v), OF_ROW, True),
}  # fmt: skip


@pytest.fixture(params=list(LOSSES))
def case(request):
    return LOSSES[request.param]


def by_autograd(loss, z, v):
    return torch.autograd.grad(loss(z, v), (z, v), allow_unused=True, materialize_grads=True)


def test_the_same_gradient_in_every_mode(case):
    loss, v, flows = case
    z, v = Z.clone().requires_grad_(), v.clone().requires_grad_()
    wanted = by_autograd(loss, z, v)
    assert bool(wanted[1].any()) == flows
    torch.testing.assert_close(torch.func.grad(loss, argnums=(0, 1))(z.detach(), v.detach()), wanted)
    mapped = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)))(Z.expand(2, 6, 4), v.detach().expand(2, -1))
    torch.testing.assert_close(tuple(g[1] for g in mapped), wanted)
    torch.testing.assert_close(by_autograd(torch.compile(loss, backend="aot_eager", fullgraph=True), z, v), wanted)
    # outputs that want none
    (alone,) = torch.autograd.grad(loss(Z, v) + 0 * v.sum(), v)
    torch.testing.assert_close(alone, wanted[1])
    tangent = torch.func.jvp(lambda v: loss(Z, v), (v.detach(),), (torch.ones_like(v),))[1]
    torch.testing.assert_close(tangent, wanted[1].sum())
