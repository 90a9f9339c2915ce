"""Conformance of losses in their field's own signature, and of penalties, on what ``samples()`` gives.

``check_loss(cls)`` runs all; ``loss_checks(cls)`` lists ``(name, check)`` for pytest's ``parametrize``. Objectives have
a suite of their own, which asks for more.
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.loss import Loss, Sample
from ..core.torch_private import tree_flatten, tree_map, tree_unflatten
from ._common import HALF_ROUNDING, close, gradients_hold, keeps_nan, private, refused
from ._constructor import constructor_checks, same, seed_torch
from ._suite import bound, run_all
from ._transforms import derivatives_agree, shapes_agree, torch_lacks


def loss_cases(cls: type[Loss], dtype: torch.dtype = torch.float64) -> list[tuple[Loss, Sample]]:
    """Fresh instances with the inputs that the member itself supplies; the same each time."""
    seed_torch(0)
    samples: list[tuple[Loss, Sample]] = list(cls.samples(torch.Generator().manual_seed(0), dtype, "cpu"))
    assert samples, f"{cls.__name__}.samples() gave nothing"
    return samples


def of_copy(loss: Loss, args: Any, kwargs: Any) -> Tensor:
    """The value on a private copy, with torch's generator at one place, so that nothing moves."""
    seed_torch(1)
    result: Tensor = private(loss)(*args, **kwargs)
    return result


def check_declaration(cls: type[Loss]) -> None:
    """A name, a kind of gradient, a docstring with an example."""
    assert cls.name.isidentifier() and cls.name == cls.name.lower(), "name: snake_case"
    assert cls.gradient in ("exact", "surrogate"), "gradient"
    assert cls.__doc__ and "Example" in cls.__doc__, "docstring with an example"


def check_output(cls: type[Loss]) -> None:
    """One finite number in the width of the input; named parts are detached; inputs are left as they were."""
    for dtype in (torch.float32, torch.float64):
        for loss, (args, kwargs) in loss_cases(cls, dtype):
            before = copy.deepcopy((args, kwargs))
            result = loss(*args, **kwargs)
            assert result.shape == () and result.dtype == dtype, f"{tuple(result.shape)} {result.dtype}"
            assert math.isfinite(result.item()), "not finite"
            assert all(not t.requires_grad for t in loss.terms.values()), "terms must be detached"
            leaves = zip(tree_flatten(before)[0], tree_flatten((args, kwargs))[0])
            assert all(same(a, b) for a, b in leaves if isinstance(a, Tensor)), "an input was changed"


def differentiable(
    loss: Loss, args: Any, kwargs: Any, call: Callable[..., Tensor] = of_copy
) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The loss as a function of the tensors in its differentiable arguments, and these tensors."""
    places = [p for p in loss.differentiable if (p < len(args) if isinstance(p, int) else p in kwargs)]
    assert places, "differentiable: none of these arguments is there"
    leaves, form = tree_flatten([args[p] if isinstance(p, int) else kwargs[p] for p in places])

    def run(*given: Tensor) -> Tensor:
        values = dict(zip(places, tree_unflatten(list(given), form)))
        positional = [values.get(i, a) for i, a in enumerate(args)]
        return call(loss, positional, {k: values.get(k, v) for k, v in kwargs.items()})

    return run, [leaf.detach().clone() for leaf in leaves if isinstance(leaf, Tensor)]


def check_gradient(cls: type[Loss]) -> None:
    """float64 gradcheck in every argument that is declared ``differentiable``."""
    if cls.gradient != "exact":
        return
    for loss, (args, kwargs) in loss_cases(cls):
        run, leaves = differentiable(loss, args, kwargs)
        inputs = tuple(leaf.requires_grad_() for leaf in leaves)
        gradients_hold(run, inputs, atol=1e-5, rtol=1e-4)


def check_transforms(cls: type[Loss]) -> None:
    """``torch.func.grad``, ``jvp`` and batched backward passes differentiate it as one backward pass does.

    A tangent that torch lacks for one of its own operations is torch's to add.
    """
    for loss, (args, kwargs) in loss_cases(cls):
        run, leaves = differentiable(loss.train(not cls.stateful), args, kwargs)
        if run(*(leaf.clone().requires_grad_() for leaf in leaves)).requires_grad:
            derivatives_agree(run, leaves, lacks=torch_lacks)


def check_shapes(cls: type[Loss]) -> None:
    """Fake and meta tensors give the shape and type of the loss and of its gradients.

    Where a size depends on values, torch says so.
    """

    def of_shapes(loss: Any, given: Any) -> tuple[Tensor, list[Tensor]]:
        run, leaves = differentiable(loss, *given, call=lambda o, a, k: o(*a, **k))
        inputs = [leaf.requires_grad_() for leaf in leaves]
        return run(*inputs), inputs

    for loss, (args, kwargs) in loss_cases(cls):
        run, leaves = differentiable(loss, args, kwargs)
        inputs = [leaf.requires_grad_() for leaf in leaves]
        wanted = run(*inputs)
        if not wanted.requires_grad:
            continue
        slopes = torch.autograd.grad(wanted, inputs, allow_unused=True, materialize_grads=True)
        try:
            shapes_agree(of_shapes, loss, (args, kwargs), [wanted, *slopes])
        except Exception as error:
            if not torch_lacks(error):
                raise


def check_nan(cls: type[Loss]) -> None:
    """NaN where a differentiable argument counts gives NaN, or is refused: never a number."""
    for loss, (args, kwargs) in loss_cases(cls):
        run, leaves = differentiable(loss, args, kwargs)
        result = run(*[leaf.requires_grad_() for leaf in leaves])
        slopes = torch.autograd.grad(result, leaves, allow_unused=True) if result.requires_grad else []
        for place, slope in enumerate(slopes):
            if slope is not None and slope.any():
                keeps_nan(lambda t, i=place, r=run, v=leaves: r(*v[:i], t, *v[i + 1 :]), leaves[place], slope)


def check_precision(cls: type[Loss]) -> None:
    """Half inputs give a float32 loss: that of the rounded inputs in float32."""
    for half in (torch.bfloat16, torch.float16):
        for loss, (args, kwargs) in loss_cases(cls, half):
            wide = tree_map(
                lambda t: t.float() if isinstance(t, Tensor) and t.is_floating_point() else t, (args, kwargs)
            )
            result = of_copy(loss, args, kwargs)
            assert result.dtype == torch.float32, f"half inputs give {result.dtype}"
            close(result, of_copy(loss, *wide), 10 * HALF_ROUNDING, "half inputs")


def check_autocast(cls: type[Loss]) -> None:
    """Autocast changes no bit of the loss: it is for models."""
    for loss, (args, kwargs) in loss_cases(cls, torch.float32):
        wanted = of_copy(loss, args, kwargs)
        with torch.autocast("cpu", torch.bfloat16):
            result = of_copy(loss, args, kwargs)
        assert torch.equal(result, wanted), f"{result.item():g} under autocast, {wanted.item():g} without"


def check_seed(cls: type[Loss]) -> None:
    """The same seed gives the same bits."""
    for (first, (args, kwargs)), (second, _) in zip(loss_cases(cls), loss_cases(cls)):
        assert torch.equal(of_copy(first, args, kwargs), of_copy(second, args, kwargs)), "other bits"


def check_state(cls: type[Loss]) -> None:
    """A saved state goes on with the same numbers; nothing is written in eval mode, or without ``stateful``."""
    for (first, (args, kwargs)), (second, _) in zip(loss_cases(cls), loss_cases(cls)):
        for training in (False, True):
            first.train(training)
            before = copy.deepcopy(first.state_dict())
            seed_torch(1)
            first(*args, **kwargs)
            after = first.state_dict()
            still = before.keys() == after.keys() and all(same(before[k], after[k]) for k in before)
            assert still or (training and cls.stateful), "state was written"
        first.after_step()
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        second.train()
        second.load_state_dict(torch.load(file, weights_only=True))
        for _ in range(2):
            assert torch.equal(of_copy(first, args, kwargs), of_copy(second, args, kwargs)), "resumed, other numbers"


def check_bad_input(cls: type[Loss]) -> None:
    """A list in place of a tensor, or integers in place of numbers, is refused with the uniform error."""
    for loss, (args, kwargs) in loss_cases(cls, torch.float32):
        for place, value in [*enumerate(args), *kwargs.items()]:
            if not isinstance(value, Tensor):
                continue
            wrong: list[tuple[str, Any]] = [("a list", value.tolist())]
            if place in cls.differentiable and value.is_floating_point():
                wrong.append(("integers", value.long()))
            for what, bad in wrong:
                positional = [bad if i == place else a for i, a in enumerate(args)]
                named = {k: bad if k == place else v for k, v in kwargs.items()}
                refused(f"{what} for argument {place!r}", of_copy, loss, positional, named)


CHECKS: tuple[Callable[[type[Loss]], None], ...] = (
    check_declaration, check_output, check_gradient, check_precision, check_autocast, check_seed, check_nan,
    check_state, check_bad_input, check_transforms, check_shapes, *constructor_checks(loss_cases),
)  # fmt: skip


def loss_checks(cls: type[Loss]) -> list[tuple[str, Callable[[], None]]]:
    """``(name, check)`` for every check that ``cls`` is not exempt from."""
    return bound(CHECKS, cls)


def check_loss(cls: type[Loss]) -> None:
    """Run the whole suite on a class.

    Raises:
        AssertionError: the first promise that the class does not keep.
    """
    run_all(loss_checks(cls), cls)
