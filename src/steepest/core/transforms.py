"""What torch does with a call beside computing it: transforms, modes, shapes without values.

Code that reads values, writes in place or differentiates by hand asks
:func:`by_hand` first, in its forward and in its backward pass, and takes a form of plain torch operations where it may
not run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import torch_private


def transformed() -> bool:
    """Whether the call is under a transform of ``torch.func``: grad, vjp, jvp, vmap.

    >>> torch.func.vmap(lambda x: x + transformed())(torch.zeros(2)), transformed()
    (tensor([1., 1.]), False)
    """
    return not torch.compiler.is_compiling() and torch_private.transform_level() is not None


def traced() -> bool:
    """Whether operations are recorded or give shapes alone: ``FakeTensorMode``, ``make_fx``, functionalisation."""
    return torch_private.tracing_mode()


def forward_mode() -> bool:
    """Whether tangents go along: ``torch.func.jvp``, ``torch.autograd.forward_ad``."""
    return torch_private.forward_level() >= 0


def eager() -> bool:
    """Whether operations run as they are called: neither compiled, nor traced, nor under a transform."""
    return not torch.compiler.is_compiling() and torch_private.transform_level() is None and not traced()


def valueless(tensor: Tensor) -> bool:
    """Whether a tensor is a shape alone (meta, fake), or one of many at once (batched gradients).

    >>> valueless(torch.empty(2, device="meta")), valueless(torch.empty(2))
    (True, False)
    """
    if tensor.is_meta or torch_private.is_legacy_batchedtensor(tensor):
        return True
    return torch_private.is_fake(tensor)


def by_hand(*tensors: Tensor | None) -> bool:
    """Whether code may go beside torch here: read values, write into buffers, give a gradient of its own.

    Args:
        tensors: what it works on; in a backward pass the upstream gradients, which ``is_grads_batched=True`` makes
            many at once.
    """
    return eager() and not forward_mode() and not any(t is not None and valueless(t) for t in tensors)


def autocast_dtype(like: Tensor) -> torch.dtype | None:
    """The type that autocast computes in on the device of a tensor; None where it is off, or there is none (meta)."""
    kind = like.device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if on else None


def without_autocast(like: Tensor) -> AbstractContextManager[Any]:
    """Operations in the types of their tensors, on the device of a tensor."""
    kind = like.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def on_host(tensor: Tensor) -> np.ndarray:
    """The values of a tensor, also under ``torch.func.grad`` and ``jvp``; zeros where it is a shape alone.

    Raises:
        RuntimeError: under ``vmap``, where there are many values for one.

    >>> torch.func.grad(lambda x: x * float(on_host(x)))(torch.tensor(3.0))
    tensor(3.)
    """
    value = tensor.detach()
    while torch_private.is_functorch_wrapped_tensor(value):
        if torch_private.is_batchedtensor(value):
            raise RuntimeError("this operation works on the values of one tensor at a time, which vmap has not")
        value = torch_private.get_unwrapped(value)
    if valueless(value):
        return np.zeros(value.shape, str(value.dtype).removeprefix("torch."))
    if not transformed():
        return value.detach().cpu().numpy()
    with torch_private.temporarily_clear_interpreter_stack():  # which would wrap what it makes
        return value.detach().cpu().numpy()


def concrete(*tensors: Tensor | None) -> bool:
    """Whether code may write into buffers: :func:`by_hand`, or where ``torch.compile`` traces it (without pointers)."""
    return torch.compiler.is_compiling() or by_hand(*tensors)


def plain_gradients(
    plain: Callable[..., Tensor], inputs: Sequence[Tensor | None], needs: Sequence[bool], upstream: Tensor
) -> list[Tensor | None]:
    """The gradients of ``plain(*inputs)`` in the inputs that need one, by torch, inside a backward pass.

    They can be differentiated again where the pass around records a graph.

    Args:
        plain: a form of torch operations.
        inputs: saved tensors of the pass.
        needs: which of them need a gradient.
        upstream: of the shape of the result; batched or not.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # views: an input may itself be a function of another, as hidden states are of tied weights
        own = [None if t is None else t.view_as(t) for t in inputs]
        wanted = [t for t, need in zip(own, needs) if need and t is not None]
        gradients = iter(torch.autograd.grad(plain(*own), wanted, upstream, create_graph=again))
    return [next(gradients) if need and t is not None else None for t, need in zip(own, needs)]
