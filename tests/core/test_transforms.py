"""Where code may go beside torch, gradients by the plain form, values given with a gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from steepest.core import checks
from steepest.core.closed_form import with_gradient
from steepest.core.transforms import autocast_dtype, by_hand, on_host, plain_gradients, without_autocast

X = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)


def test_where_code_may_go_beside_torch():
    seen = {}

    def note(name):
        def run(x):
            seen[name] = by_hand(x)
            return (x * x).sum()

        return run

    note("eager")(X)
    with FlopCounterMode(display=False):  # a mode that watches
        note("watched")(X)
    torch.func.grad(note("grad"))(X)
    torch.func.vmap(note("vmap"))(X)
    torch.func.jvp(note("jvp"), (X,), (X,))
    with forward_ad.dual_level():
        note("dual")(forward_ad.make_dual(X, X))
    make_fx(note("traced"))(X)
    with FakeTensorMode() as mode:
        fake = torch.randn(2, 2)
        note("fake mode")(fake)
    note("fake")(fake)
    note("fake from outside")(mode.from_tensor(X))
    note("meta")(X.to("meta"))
    assert {name for name, may in seen.items() if may} == {"eager", "watched"}
    compiled = torch.compile(lambda x: x + by_hand(x), backend="eager", fullgraph=True)
    assert torch.equal(compiled(X), X)
    assert by_hand(None, X)


def test_a_backward_pass_knows_that_it_has_many_gradients(copied):
    x = X.clone().requires_grad_()
    copy, seen = copied(x, by_hand)
    y = copy.sum()
    torch.autograd.grad(y, x, torch.ones(3, dtype=torch.float64), is_grads_batched=True, retain_graph=True)
    torch.func.vmap(lambda u: torch.autograd.grad(y, x, u, retain_graph=True)[0])(torch.ones(3, dtype=torch.float64))
    torch.autograd.grad(y, x)
    assert seen == [False, False, True]


def test_no_value_of_a_shape_is_looked_at():
    checks.checks(True)
    try:
        assert checks.values_visible(X)
        assert not checks.values_visible(X.to("meta"))
        assert not checks.values_visible(FakeTensorMode().from_tensor(X))
    finally:
        checks.checks(False)


def test_plain_gradients_of_inputs_that_depend_on_each_other():
    w = X.clone().requires_grad_()
    h = w.exp()
    found = plain_gradients(lambda h, w: (h * w).sum(), (h, w), (True, True), torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(found, [w, h])
    (again,) = torch.autograd.grad(found[0].sum(), w)  # a graph was recorded: they can be differentiated
    torch.testing.assert_close(again, torch.ones_like(w))
    some = plain_gradients(lambda h, w: (h * 3).sum(), (h, None), (True, False), torch.tensor(2.0, dtype=h.dtype))
    torch.testing.assert_close(some[0], torch.full_like(h, 6.0))
    assert some[1] is None


def test_values_on_the_host():
    assert np.array_equal(on_host(X), X.numpy())
    weighed = torch.func.grad(lambda x: (x * torch.from_numpy(on_host(x) + 1)).sum())
    torch.testing.assert_close(weighed(X), X + 1)
    torch.testing.assert_close(torch.func.hessian(lambda x: (x * on_host(x).sum()).sum())(X[0]), 0 * X)
    assert np.array_equal(on_host(X.to("meta")), np.zeros((2, 2)))
    with pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(lambda x: x + on_host(x).sum())(X)


def test_autocast_of_a_device_without_one():
    meta = X.to("meta")
    with torch.autocast("cpu", torch.bfloat16):
        assert autocast_dtype(X) == torch.bfloat16
        with without_autocast(X):
            assert autocast_dtype(X) is None
        assert autocast_dtype(meta) is None
        with without_autocast(meta):
            pass


def size(x):
    return with_gradient(x.detach().square().sum(-1), (x,), lambda: (2 * x.detach(),), "the square")


DERIVATIVES = {
    "autograd": lambda f: torch.autograd.functional.jacobian(f, X),
    "batched": lambda f: torch.autograd.functional.jacobian(f, X, vectorize=True),
    "batched tangents": lambda f: torch.autograd.functional.jacobian(f, X, vectorize=True, strategy="forward-mode"),
    "jacrev": lambda f: torch.func.jacrev(f)(X),
    "jacfwd": lambda f: torch.func.jacfwd(f)(X),
    "vmap of grad": lambda f: torch.func.vmap(torch.func.grad(f))(X),
    "vmap of jvp": lambda f: torch.func.vmap(lambda x, t: torch.func.jvp(f, (x,), (t,))[1])(X, X.flip(0)),
    "compiled": lambda f: torch.autograd.functional.jacobian(torch.compile(f, backend="aot_eager", fullgraph=True), X),
}


@pytest.mark.parametrize("way", DERIVATIVES)
def test_a_gradient_that_is_given(way):
    torch.testing.assert_close(DERIVATIVES[way](size), DERIVATIVES[way](lambda x: x.square().sum(-1)))


SECOND = {
    "autograd": lambda f: torch.autograd.functional.hessian(f, X),
    "batched": lambda f: torch.autograd.functional.hessian(f, X, vectorize=True),
    "hessian": lambda f: torch.func.hessian(f)(X),
    "reverse": lambda f: torch.func.jacrev(torch.func.jacrev(f))(X),
    "forward": lambda f: torch.func.jacfwd(torch.func.jacfwd(f))(X),
    "through": lambda f: torch.autograd.grad(torch.func.grad(f)(leaf()).sum(), leaf.last),
}


def leaf():
    leaf.last = X.clone().requires_grad_()
    return leaf.last


@pytest.mark.parametrize("way", SECOND)
def test_its_derivative_is_refused_not_taken_for_zero(way):
    with pytest.raises(RuntimeError, match="the square has no second derivatives"):
        SECOND[way](lambda x: size(x).sum())
