"""What is assumed of the private names of torch; and that they stand in one module."""

from __future__ import annotations

import ast
from pathlib import Path

import torch
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

import steepest
from steepest.core import torch_private as private

SOURCE = Path(steepest.__file__).parent
X = torch.tensor([3.0, -4.0])
WAITING = {"losses/dependence/wasserstein_dependency.py"}
"""Whose evidence another line would make stale: ``_BatchNorm``."""


def private_names(tree):
    """Where a module takes a private name from torch, as an attribute or by an import."""
    from_torch = {"torch"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").partition(".")[0] == "torch":
            words = [*node.module.split("."), *(alias.name for alias in node.names)]
            from_torch |= {alias.asname or alias.name for alias in node.names if alias.name[0].islower()}
        elif isinstance(node, ast.Import):
            words = [word for alias in node.names if alias.name.startswith("torch.") for word in alias.name.split(".")]
        elif isinstance(node, ast.Attribute):
            words = ast.unparse(node).split(".")
            words = words if words[0] in from_torch and all(map(str.isidentifier, words)) else []
        else:
            continue
        if any(word.startswith("_") and not word.startswith("__") for word in words):
            yield node.lineno


def test_private_names_of_torch_stand_in_one_module():
    places = {
        file.relative_to(SOURCE).as_posix()
        for file in SOURCE.rglob("*.py") if file.name != "torch_private.py"
        if list(private_names(ast.parse(file.read_text(encoding="utf-8"))))
    }  # fmt: skip
    assert places == WAITING
    text = "import torch\nfrom torch.autograd import forward_ad\nfrom torch._x import y\nimport torch._z\n"
    text += "torch._C.a\nforward_ad._level\ntorch.cpu._b()\nself._c\ntorch.sum(_d)\n"
    assert set(private_names(ast.parse(text))) == {3, 4, 5, 6, 7}


def test_transforms_and_what_they_wrap(copied):
    seen = {}

    def note(name):
        def run(x):
            wrapped = private.is_functorch_wrapped_tensor(x)
            inside = private.get_unwrapped(x).shape if wrapped else None
            seen[name] = (private.transform_level() is not None, wrapped, private.is_batchedtensor(x), inside)
            return (x * x).sum()

        return run

    note("eager")(X)
    torch.func.grad(note("grad"))(X)
    torch.func.vmap(note("vmap"))(X[None])
    assert seen == {
        "eager": (False, False, False, None),
        "grad": (True, True, False, X.shape),
        "vmap": (True, True, True, (1, 2)),
    }
    x = X.clone().requires_grad_()
    y, legacy = copied(x, private.is_legacy_batchedtensor)
    torch.autograd.grad(y, x, torch.ones(1, 2), is_grads_batched=True, retain_graph=True)
    torch.autograd.grad(y, x, torch.ones(2))
    assert legacy == [True, False]


def test_what_is_made_under_a_transform_is_bare_once_the_stack_is_cleared():
    bare = []

    def run(x):
        with private.temporarily_clear_interpreter_stack():
            bare.append(not private.is_functorch_wrapped_tensor(torch.zeros(2) + 1))
        bare.append(private.transform_level() is not None)
        return x.sum()

    torch.func.grad(run)(X)
    assert bare == [True, True]


def test_modes():
    seen = {}

    def note(name, x):
        seen[name] = (private.tracing_mode(), private.forward_level(), private.is_fake(x))
        return x * 1

    note("eager", X)
    with forward_ad.dual_level():
        note("dual", X)
    make_fx(lambda x: note("traced", x))(X)
    with private.fake_tensors().FakeTensorMode():
        note("fake", torch.zeros(2))
    assert seen == {"eager": (False, -1, False), "dual": (False, 0, False), "traced": (True, -1, False),
                    "fake": (True, -1, True)}  # fmt: skip


def test_subclasses_can_be_left_out():
    class Refuses(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            raise AssertionError("reached")

    with private.DisableTorchFunctionSubclass():
        assert X.as_subclass(Refuses).shape == (2,)


def test_operations_on_lists():
    a, b = [X, 2 * X], [torch.full((2,), 2.0), torch.full((2,), 4.0)]

    def same(values, *wanted):
        assert all(torch.equal(value, torch.as_tensor(of)) for value, of in zip(values, wanted, strict=True))

    same(private.foreach_norm(a), 5.0, 10.0)
    same(private.foreach_norm(a, float("inf")), 4.0, 8.0)
    same(private.foreach_div(a, b), X / 2, X / 2)
    same(private.foreach_mul(a, b), 2 * X, 8 * X)
    same(private.foreach_sub(a, b), X - 2, 2 * X - 4)
    same(private.foreach_pow(b, 2), [4.0, 4.0], [16.0, 16.0])
    same(private.foreach_neg(a), -X, -2 * X)
    same(private.foreach_sign([X, 0 * X]), [1.0, -1.0], [0.0, 0.0])
    into = [value.clone() for value in a]
    private.foreach_add_(into, 1.0)
    same(into, X + 1, 2 * X + 1)
    private.foreach_lerp_(into, b, 0.25)
    same(into, 0.75 * (X + 1) + 0.5, 0.75 * (2 * X + 1) + 1.0)
    private.foreach_copy_(into, a)
    private.foreach_mul_(into, b)
    private.foreach_div_(into, b)
    same(into, *a)
    private.foreach_clamp_min_(into, 0.0)
    same(into, [3.0, 0.0], [6.0, 0.0])
    same(private.foreach_add(a, b, alpha=2), X + 4, 2 * X + 8)
    same(private.foreach_sqrt(b), b[0].sqrt(), [2.0, 2.0])
    private.foreach_copy_(into, a)
    private.foreach_addcmul_(into, a, a, value=2.0)
    same(into, X + 2 * X * X, 2 * X + 8 * X * X)
    private.foreach_sub_(into, a)
    same(into, 2 * X * X, 8 * X * X)
    private.foreach_lerp_(into, a, 0.5)
    same(into, (2 * X * X + X) / 2, (8 * X * X + 2 * X) / 2)


def test_a_step_of_momentum_in_one_pass():
    w, m = X.clone(), 2 * X
    options = {"weight_decay": 0.5, "momentum": 0.5, "lr": 0.25, "dampening": 0.75}
    private.fused_sgd_([w], [X], [m], nesterov=False, maximize=False, is_first_step=False, **options)
    torch.testing.assert_close(m, X + 0.25 * 1.5 * X)
    torch.testing.assert_close(w, X - 0.25 * m)
    assert torch.equal(private.flatten_dense_tensors([X, X.reshape(1, 2)]), torch.cat([X, X]))


def test_instructions_of_the_processor():
    assert private.is_avx2_supported() in (True, False)
    assert private.is_avx2_supported() or not private.is_avx512_supported()


def test_every_layer_of_dropout_is_known():
    nn = torch.nn
    layers = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
    assert all(issubclass(layer, private.AnyDropout) for layer in layers)
    assert not issubclass(nn.Linear, private.AnyDropout)


def test_trees():
    leaves, spec = private.tree_flatten({"a": (1, [2]), "b": 3})
    assert leaves == private.tree_leaves({"a": (1, [2]), "b": 3}) == [1, 2, 3]
    assert private.tree_unflatten(leaves, spec) == {"a": (1, [2]), "b": 3}
    assert private.tree_map(lambda x: x + 1, {"a": (1, [2])}) == {"a": (2, [3])}
