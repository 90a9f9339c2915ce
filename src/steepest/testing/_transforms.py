"""Checks of what torch does with a loss beside computing it: transforms, batched gradients, shapes alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.torch_private import fake_tensors, tree_map
from ._common import close

Run = Callable[..., Tensor]
ROUNDING = 1e-10
"""Relative to the size of what was wanted: float64 by another order of operations."""


def torch_lacks(error: Exception) -> bool:
    """Whether torch says that one of its own operations has no tangent, or a size that depends on values."""
    tangent = isinstance(error, NotImplementedError) and "Trying to use forward AD" in str(error)
    return tangent or isinstance(error, fake_tensors().DynamicOutputShapeException)


def gradients(run: Run, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The gradient of ``run(*inputs)`` in each input, one backward pass; zeros where none flows."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    return torch.autograd.grad(run(*leaves), leaves, allow_unused=True, materialize_grads=True)


def derivatives_agree(
    run: Run, inputs: Sequence[Tensor], *, lacks: Callable[[Exception], bool] = lambda error: False
) -> None:
    """``torch.func.grad``, ``jvp`` and a backward pass of several gradients at once agree with one.

    Args:
        run: a function of tensors to one number; the same at each call.
        inputs: float64 tensors.
        lacks: whether an error says that torch has no tangent.
    """
    wanted, places = gradients(run, inputs), tuple(range(len(inputs)))
    loss = run(*(t.detach() for t in inputs))
    for a, b in zip(torch.func.grad(run, argnums=places)(*inputs), wanted):
        close(a, b, ROUNDING, "torch.func.grad")
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    many = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)
    batched = torch.autograd.grad(
        run(*leaves), leaves, many, is_grads_batched=True, allow_unused=True, materialize_grads=True
    )
    for a, b in zip(batched, wanted):
        close(a, torch.stack([u * b for u in many]), ROUNDING, "batched backward")
    tangents = tuple(torch.linspace(-1, 1, t.numel(), dtype=t.dtype).reshape(t.shape) for t in inputs)
    try:
        primal, tangent = torch.func.jvp(run, tuple(inputs), tangents)
    except Exception as error:
        if lacks(error):
            return
        raise
    close(primal, loss, ROUNDING, "value under torch.func.jvp")
    # a sum over all entries: so many roundings of their size
    terms = torch.cat([(a * b).reshape(-1) for a, b in zip(wanted, tangents)])
    gap = abs(float(tangent.detach()) - float(terms.sum()))
    assert gap <= ROUNDING * max(1.0, float(terms.abs().sum())), f"torch.func.jvp: differs by {gap:.3g}"


def jacobians_agree(run: Run, inputs: Tensor) -> None:
    """``torch.autograd.functional.jacobian(vectorize=True)`` is what one row after the other gives."""
    wanted = torch.autograd.functional.jacobian(run, inputs)
    close(torch.autograd.functional.jacobian(run, inputs, vectorize=True), wanted, ROUNDING, "vectorised jacobian")


def shapes_agree(
    call: Callable[[Any, Any], tuple[Tensor, list[Tensor]]],
    module: torch.nn.Module,
    given: Any,
    wanted: Sequence[Tensor],
) -> None:
    """Fake and meta tensors give the shape and type of the loss, and of its gradients.

    Args:
        call: ``(module, given) -> (loss, inputs)``; inputs get the gradients.
        module: a loss.
        given: nested tensors.
        wanted: the loss, then gradients.
    """
    fake = fake_tensors()
    mode = fake.FakeTensorMode()
    with fake.FakeCopyMode(mode):
        twin = copy.deepcopy(module)
    of = tree_map(lambda t: mode.from_tensor(t.detach()) if isinstance(t, Tensor) else t, given)
    with mode:
        _same_shapes(call, twin, of, wanted, "fake")
    of = tree_map(lambda t: t.detach().to("meta") if isinstance(t, Tensor) else t, given)
    _same_shapes(call, copy.deepcopy(module).to("meta"), of, wanted, "meta")


def _same_shapes(call: Any, module: Any, given: Any, wanted: Sequence[Tensor], kind: str) -> None:
    loss, inputs = call(module, given)
    slopes = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
    for shape_alone, real in zip((loss, *slopes), wanted, strict=True):
        assert shape_alone.shape == real.shape, f"{kind} tensors give shape {tuple(shape_alone.shape)}"
        assert shape_alone.dtype == real.dtype, f"{kind} tensors give {shape_alone.dtype}"
