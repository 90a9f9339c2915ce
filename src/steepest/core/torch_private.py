"""The private names of torch that steepest uses, all of them: a new torch may change any, and this is where it shows.

Each is here because torch offers no public name for it. What is assumed of them, ``tests/core/test_torch_private.py``
tries out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Self

import torch
from torch import nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

__all__ = [
    "AnyBatchNorm",
    "AnyConvolution",
    "AnyDropout",
    "AnyTransposedConvolution",
    "DisableTorchFunctionSubclass",
    "TorchDispatchMode",
    "WideBuffers",
    "fake_tensors",
    "flatten_dense_tensors",
    "foreach_add",
    "foreach_add_",
    "foreach_addcmul_",
    "foreach_clamp_min_",
    "foreach_copy_",
    "foreach_div",
    "foreach_div_",
    "foreach_lerp_",
    "foreach_mul",
    "foreach_mul_",
    "foreach_neg",
    "foreach_norm",
    "foreach_pow",
    "foreach_sign",
    "foreach_sqrt",
    "foreach_sub",
    "foreach_sub_",
    "forward_level",
    "fused_sgd_",
    "get_unwrapped",
    "is_avx2_supported",
    "is_avx512_supported",
    "is_batchedtensor",
    "is_fake",
    "is_functorch_wrapped_tensor",
    "is_legacy_batchedtensor",
    "muon_",
    "temporarily_clear_interpreter_stack",
    "tracing_mode",
    "transform_level",
    "tree_flatten",
    "tree_leaves",
    "tree_map",
    "tree_unflatten",
]

# transforms of torch.func: the level of the innermost one (None: none), and the tensors that they wrap
transform_level = torch._C._functorch.maybe_current_level
get_unwrapped = torch._C._functorch.get_unwrapped
is_batchedtensor = torch._C._functorch.is_batchedtensor
is_functorch_wrapped_tensor = torch._C._functorch.is_functorch_wrapped_tensor
is_legacy_batchedtensor = torch._C._functorch.is_legacy_batchedtensor

AnyBatchNorm = torch.nn.modules.batchnorm._BatchNorm
"""What all layers of batch normalisation are."""

AnyConvolution = torch.nn.modules.conv._ConvNd
AnyTransposedConvolution = torch.nn.modules.conv._ConvTransposeNd
"""What all convolutions are, and those that are transposed."""

AnyDropout = torch.nn.modules.dropout._DropoutNd
"""What all layers of dropout are."""

DisableTorchFunctionSubclass = torch._C.DisableTorchFunctionSubclass

# operations on lists of tensors, each one kernel on a GPU
foreach_add = torch._foreach_add
foreach_add_ = torch._foreach_add_
foreach_addcmul_ = torch._foreach_addcmul_
foreach_clamp_min_ = torch._foreach_clamp_min_
foreach_copy_ = torch._foreach_copy_
foreach_div = torch._foreach_div
foreach_div_ = torch._foreach_div_
foreach_lerp_ = torch._foreach_lerp_
foreach_mul = torch._foreach_mul
foreach_mul_ = torch._foreach_mul_
foreach_neg = torch._foreach_neg
foreach_norm = torch._foreach_norm
foreach_pow = torch._foreach_pow
foreach_sign = torch._foreach_sign
foreach_sqrt = torch._foreach_sqrt
foreach_sub = torch._foreach_sub
foreach_sub_ = torch._foreach_sub_
flatten_dense_tensors = torch._C._nn.flatten_dense_tensors
fused_sgd_ = torch._fused_sgd_  # one pass over weights, gradients and momenta


def muon_(
    weights: list[torch.Tensor],
    slopes: list[torch.Tensor],
    momenta: list[torch.Tensor],
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
) -> None:
    """A step of torch's Muon with updates of AdamW's size; torch has it from 2.9 on."""
    from torch.optim import _muon as theirs

    theirs.muon(
        weights,
        slopes,
        momenta,
        lr=lr,
        weight_decay=weight_decay,
        momentum=momentum,
        nesterov=True,
        ns_coefficients=(theirs.DEFAULT_A, theirs.DEFAULT_B, theirs.DEFAULT_C),
        ns_steps=theirs.DEFAULT_NS_STEPS,
        eps=theirs.EPS,
        adjust_lr_fn="match_rms_adamw",
        has_complex=False,
    )


is_avx2_supported = torch.cpu._is_avx2_supported
is_avx512_supported = torch.cpu._is_avx512_supported

_TRACED = tuple(getattr(torch._C._TorchDispatchModeKey, key) for key in ("FAKE", "PROXY", "FUNCTIONAL"))


def tracing_mode() -> bool:
    """Whether a mode is on that records operations or computes shapes alone."""
    if not torch._C._len_torch_dispatch_stack():
        return False
    return any(torch._C._get_dispatch_mode(key) is not None for key in _TRACED)


def forward_level() -> int:
    """The level of forward differentiation, -1 without."""
    level: int = forward_ad._current_level
    return level


_FAKE = "torch._subclasses.fake_tensor"


def fake_tensors() -> ModuleType:
    """The module of shapes without values, which takes a while to import."""
    import torch._subclasses.fake_tensor as fake

    return fake


def is_fake(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a shape without values."""
    module = sys.modules.get(_FAKE)
    return module is not None and isinstance(tensor, module.FakeTensor)


class WideBuffers(nn.Module):
    """A module whose floating buffers keep their precision where it is made half, by itself or with its parent.

    >>> module = WideBuffers()
    >>> module.register_buffer("table", torch.tensor([0.1]))
    >>> module.half().table.dtype
    torch.float32
    """

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        tables = [
            (module, name, table)
            for module in self.modules()
            for name, table in module.named_buffers(recurse=False)
            if table.is_floating_point()
        ]
        super()._apply(fn, recurse)
        for module, name, table in tables:
            narrow = getattr(module, name)
            if narrow.dtype.itemsize < table.dtype.itemsize:
                setattr(module, name, table.to(narrow.device))
        return self
