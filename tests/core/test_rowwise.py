"""Losses of rows: the rule runs where it may, gives what the plain form gives, and gives way to it elsewhere."""

from __future__ import annotations

import functools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from steepest.core import rowwise as module
from steepest.core.rowwise import add_at, at, log_probability_rule, rowwise, softmax_into


class Loss:
    """Sum of cubes, and a count of the pieces that its rule saw."""

    def __init__(self):
        self.pieces = []

    def plain(self, z):
        return z.pow(3).sum(1)

    def rule(self, z, g, rows):
        self.pieces.append(rows)
        torch.mul(z.square(), 3, out=g)
        return z.pow(3).sum(1)

    def __call__(self, z):
        return rowwise(z, self.plain, self.rule)


def outputs(rows=5, columns=3, dtype=torch.float64):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0), dtype=dtype).requires_grad_()


@pytest.mark.parametrize("rows", [0, 1, 5, 8, 9])
def test_pieces_cover_all_rows_once(rows, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 4 * 3 * 8)
    loss, z = Loss(), outputs(rows)
    found = loss(z)
    found.sum().backward()
    covered = [i for part in loss.pieces for i in range(part.start, part.stop)]
    assert covered == list(range(rows))
    assert len(loss.pieces) == -(-rows // 4)
    torch.testing.assert_close(found, loss.plain(z))
    torch.testing.assert_close(z.grad, 3 * z.detach().square())


def test_a_row_wider_than_a_piece_is_a_piece(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 8)
    loss, z = Loss(), outputs(3, 5)
    loss(z).sum().backward()
    assert len(loss.pieces) == 3


def test_the_upstream_gradient_weighs_rows():
    z, weight = outputs(), torch.arange(5.0, dtype=torch.float64)
    (Loss()(z) * weight).sum().backward()
    torch.testing.assert_close(z.grad, 3 * z.detach().square() * weight.unsqueeze(1))


def test_two_backward_passes_give_the_same():
    loss, z = Loss(), outputs()
    found = loss(z).sum()
    (first,) = torch.autograd.grad(found, z, retain_graph=True)
    (second,) = torch.autograd.grad(2 * found, z)
    torch.testing.assert_close(second, 2 * first)


def test_the_gradient_can_be_differentiated():
    torch.autograd.gradgradcheck(Loss(), outputs())
    z = outputs()
    (slope,) = torch.autograd.grad(Loss()(z).sum(), z, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), z)
    torch.testing.assert_close(curvature, 6 * z.detach())


def test_many_gradients_in_one_backward_pass():
    loss, z = Loss(), outputs()
    found, upstream = loss(z), torch.randn(4, 5, dtype=torch.float64)
    (wanted,) = torch.autograd.grad(loss.plain(z), z, upstream, is_grads_batched=True)
    for graph in (False, True, False):  # the buffer serves the first pass; a graph goes through the plain form
        options = {"is_grads_batched": True, "retain_graph": True, "create_graph": graph}
        (slopes,) = torch.autograd.grad(found, z, upstream, **options)
        torch.testing.assert_close(slopes, wanted)
    (once,) = torch.autograd.grad(found, z, upstream[0], retain_graph=True)
    torch.testing.assert_close(once, wanted[0])
    torch.testing.assert_close(torch.func.vmap(lambda u: torch.autograd.grad(found, z, u)[0])(upstream), wanted)


def test_another_tensor_that_wants_a_gradient_gets_it():
    class Factor(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.f = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def plain(self, z):
            return self.f * z.sum(1)

    def rule(z, g, rows):
        g.fill_(float(factor.f))
        return float(factor.f) * z.sum(1)

    factor, z = Factor(), outputs()
    f, own = factor.f, factor.plain
    pair = (1, f)
    for plain in (
        factor.plain, lambda z: f * z.sum(1), functools.partial(lambda f, z: f * z.sum(1), f), lambda z: own(z),
        lambda z, f=f: f * z.sum(1), lambda z: pair[1] * z.sum(1),
    ):  # fmt: skip
        (slope,) = torch.autograd.grad(rowwise(z, plain, rule).sum(), f)
        torch.testing.assert_close(slope, z.detach().sum())
    f.requires_grad_(False)
    seen = []
    rowwise(z, lambda z: f * z.sum(1), lambda z, g, rows: seen.append(rows) or rule(z, g, rows))
    assert seen, "nothing else wants a gradient: the rule runs"


@pytest.mark.parametrize("kind", ["fake", "meta"])
def test_shapes_come_from_the_plain_form(kind):
    with FakeTensorMode() if kind == "fake" else torch.device("meta"):
        loss, z = Loss(), torch.randn(5, 3, requires_grad=True)
        found = loss(z)
        found.sum().backward()
    assert found.shape == (5,)
    assert z.grad.shape == z.shape
    assert loss.pieces == []


def test_the_plain_form_runs_where_the_rule_may_not():
    loss, z = Loss(), outputs()
    torch.func.grad(lambda z: loss(z).sum())(z.detach())
    torch.func.vmap(loss)(z.detach().expand(2, 5, 3))
    torch.func.jvp(loss, (z.detach(),), (torch.ones_like(z),))
    torch.compile(loss, backend="eager", fullgraph=True)(z)
    with torch.inference_mode():
        loss(z)
    assert loss.pieces == []


def test_the_rule_gives_values_alone_too(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 2 * 3 * 8)
    loss, z = Loss(), outputs()
    torch.testing.assert_close(loss(z.detach()), loss.plain(z.detach()))
    with torch.no_grad():
        torch.testing.assert_close(loss(z), loss.plain(z))
    assert len(loss.pieces) == 6


@pytest.mark.parametrize("rows", [5, 70_000])
@pytest.mark.parametrize("how", ["mean", "sum", "weights", "scaled"])
def test_the_gradient_of_any_reduction(rows, how):
    """A mean has its gradient as it stands; every other gets it scaled."""
    loss, z = Loss(), outputs(rows)
    weight = torch.rand(rows, dtype=torch.float64)
    losses = loss(z)
    total = {
        "mean": losses.mean(),
        "sum": losses.sum(),
        "weights": (weight * losses).sum(),
        "scaled": 3 * losses.mean(),
    }
    (slope,) = torch.autograd.grad(total[how], z)
    factor = {"mean": 1 / rows, "sum": 1.0, "weights": weight.unsqueeze(1), "scaled": 3 / rows}[how]
    torch.testing.assert_close(slope, 3 * z.detach().square() * factor)


def test_outputs_with_any_strides():
    z = outputs(3, 5).detach().mT.requires_grad_()
    Loss()(z).sum().backward()
    torch.testing.assert_close(z.grad, 3 * z.detach().square())


@pytest.mark.parametrize("columns", [2, 32, 33, 500])
def test_softmax_and_its_partition(columns):
    z = 30 * outputs(7, columns).detach()
    g = torch.empty_like(z)
    partition = softmax_into(z, g)
    torch.testing.assert_close(g, z.softmax(1))
    torch.testing.assert_close(partition.squeeze(1), torch.logsumexp(z, 1))
    wild = torch.tensor([[1e4, -1e4] + [0.0] * (columns - 2), [-1e4] * columns])
    found = softmax_into(wild, torch.empty_like(wild))
    torch.testing.assert_close(found.squeeze(1), torch.logsumexp(wild, 1))


def test_places():
    z, y = outputs().detach(), torch.tensor([0, 2, 1, 1, 0])
    assert torch.equal(at(z, y).squeeze(1), z[torch.arange(5), y])
    g = z.clone()
    add_at(g, y, -1.0)
    add_at(g, y, torch.full((5, 1), 3.0, dtype=torch.float64))
    torch.testing.assert_close(g - z, 2.0 * torch.nn.functional.one_hot(y, 3).double())


def test_a_loss_of_the_log_probability():
    z, y = outputs(), torch.tensor([0, 2, 1, 1, 0])
    rule = log_probability_rule(y, lambda p, rows: (p.square(), 2 * p))
    found = rowwise(z, lambda z: z.log_softmax(1)[torch.arange(5), y].square(), rule)
    torch.testing.assert_close(found, z.log_softmax(1)[torch.arange(5), y].square())
    assert torch.autograd.gradcheck(lambda z: rowwise(z, lambda z: z, rule), z)
