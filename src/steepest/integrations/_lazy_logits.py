"""Logits that are not formed until somebody needs more of them than their cross-entropy.

A :class:`LazyLogits` knows its hidden states, its head, and what was done to it since: scales, a bias of the classes,
tanh, casts, views and choices of rows. It answers for shape, type and device, gives its cross-entropy by
:func:`~steepest.kernels.linear_cross_entropy`, and for anything else forms the logits and goes on with those.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core.checks import refuse
from ..core.torch_private import DisableTorchFunctionSubclass
from ..core.transforms import autocast_dtype, valueless
from ..kernels import linear_cross_entropy

_METADATA = {"shape", "dtype", "device", "ndim", "layout", "is_leaf", "grad_fn", "names", "itemsize", "nbytes"}
_METADATA |= {f"is_{kind}" for kind in ("cuda", "cpu", "meta", "sparse", "quantized", "mps", "xpu", "nested")}
_FACTS = {"size", "dim", "numel", "nelement", "ndimension", "is_floating_point", "is_complex", "element_size"}
_FACTS |= {"get_device", "__len__", "stride", "is_contiguous", "is_tensor", "is_signed", "is_conj", "is_neg"}
_SCALES = {"div": -1, "true_divide": -1, "divide": -1, "__truediv__": -1, "mul": 1, "multiply": 1, "__mul__": 1}
_SHIFTS = {"add": 1, "__add__": 1, "__radd__": 1, "sub": -1, "subtract": -1, "__sub__": -1}
_CASTS = {"float": torch.float32, "double": torch.float64, "half": torch.float16, "bfloat16": torch.bfloat16}
_VIEWS = {"view", "reshape", "flatten"}
_SAME = {"contiguous", "requires_grad_"}
_Step = tuple[str, Any]
_TENSOR_TYPES = {
    f"torch{where}.{word}Tensor": (device, dtype)
    for where, device in (("", "cpu"), (".cuda", "cuda"))
    for word, dtype in zip(("Float", "Double", "Half", "BFloat16"), _CASTS.values(), strict=True)
}
"""What ``Tensor.type`` takes beside types: device and type by name."""


@dataclass
class Use:
    """What became of the logits of one forward pass.

    Args:
        options: of :func:`~steepest.kernels.linear_cross_entropy`.
        graph: whether the pass records one.
        fused: how many cross-entropies were taken without logits.
        formed: the operations that logits were formed for.
        differentiable: whether that was ever done where a graph is recorded.
    """

    options: dict[str, Any]
    graph: bool = field(default_factory=torch.is_grad_enabled)
    fused: int = 0
    formed: list[str] = field(default_factory=list)
    differentiable: bool = False

    def note(self, why: str) -> None:
        """Logits were formed for the operation ``why``."""
        self.formed.append(why)
        self.differentiable |= torch.is_grad_enabled()


class LazyLogits(Tensor):
    """h W' + b ``[..., V]`` and what was done to it, without its memory."""

    _hidden: Tensor
    _head: nn.Linear
    _steps: tuple[_Step, ...]
    _use: Use
    _dense: Tensor | None
    _changed: bool
    _shared: bool

    @staticmethod
    def __new__(
        cls, hidden: Tensor, head: nn.Linear, steps: tuple[_Step, ...], dtype: torch.dtype, use: Use
    ) -> LazyLogits:
        shape = (*hidden.shape[:-1], head.weight.shape[0])
        self: LazyLogits = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=hidden.device)
        self._hidden, self._head, self._steps, self._use = hidden, head, steps, use
        self._dense, self._changed, self._shared = None, False, False
        return self

    @classmethod
    def of(cls, head: nn.Linear, hidden: Tensor, use: Use) -> Tensor:
        """What ``head`` would give for ``hidden`` ``[..., D]``."""
        if type(hidden) is not Tensor and not valueless(hidden):
            dense: Tensor = nn.functional.linear(hidden, head.weight, head.bias)
            return dense
        return cls(hidden, head, (), autocast_dtype(hidden) or hidden.dtype, use)

    def formed(self, why: str) -> Tensor:
        """The logits themselves, with their graph."""
        if self._dense is not None:
            return self._dense
        self._use.note(why)
        z = nn.functional.linear(self._hidden, self._head.weight, self._head.bias)
        for name, value in self._steps:
            if name in ("scale", "shift"):
                z = value(z)
            else:
                z = z.tanh() if name == "tanh" else z.to(value)
        if torch.is_grad_enabled() or not self._use.graph:
            self._dense = z
        return z

    def _like(self, step: _Step | None = None, hidden: Tensor | None = None) -> LazyLogits:
        """The same with another step, or of other rows."""
        dtype = _plain(self, "dtype")
        if step is not None and step[0] == "to":
            dtype = step[1]
        elif step is not None and step[0] == "shift":
            dtype = torch.promote_types(dtype, step[1].bias.dtype)
        steps = self._steps if step is None else (*self._steps, step)
        return LazyLogits(self._hidden if hidden is None else hidden, self._head, steps, dtype, self._use)

    def shape_of_head(self) -> tuple[float | None, float, Tensor | None] | None:
        """Softcap, temperature and bias that do what was done, or None where none do."""
        factors, cap, bias = [1.0], 0, self._head.bias
        for name, value in self._steps:
            if name == "scale":
                factors[-1] *= value.factor
            elif name == "tanh":
                factors.append(1.0)
                cap += 1
            elif name == "shift":
                if cap:
                    return None
                own = value.power * value.bias.reshape(-1) / factors[0]
                bias = own if bias is None else bias + own
        if cap > 1 or min(factors) <= 0:
            return None
        before, after = factors[0], factors[-1]
        return (1 / before, 1 / (before * after), bias) if cap else (None, 1 / before, bias)

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        self = args[0] if args and isinstance(args[0], LazyLogits) else None
        if name == "__get__" and self is not None:
            prop = func.__self__.__name__  # type: ignore[attr-defined]
            if prop == "requires_grad":
                shifts = [value.bias for name, value in self._steps if name == "shift"]
                tensors = (self._hidden, self._head.weight, self._head.bias, *shifts)
                return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
            if prop in _METADATA:
                return _plain(self, prop)
            name = prop
        elif name in _FACTS or func is Tensor.__hash__ or (name == "type" and len(args) == 1 and not kwargs):
            with DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        elif func is nn.functional.cross_entropy:
            result = _cross_entropy(*args, **kwargs)
            if result is not None:
                return result
        elif self is not None and not self._changed:
            result = _lazily(self, name, args[1:], kwargs)
            if result is not None:
                return result
        elif name in ("add", "__add__") and len(args) == 2 and isinstance(args[1], LazyLogits) and not args[1]._changed:
            result = _lazily(args[1], name, args[:1], kwargs)  # the bias comes first
            if result is not None:
                return result
        if self is not None and (name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))):
            return self._change(func, name, args, kwargs)
        with DisableTorchFunctionSubclass():
            return func(*_formed(args, name), **_formed(kwargs, name))

    def _change(self, func: Callable, name: str, args: Any, kwargs: Any) -> LazyLogits:
        """An operation in place, on the logits that stand for these from here on."""
        if self._shared:
            raise RuntimeError(f"{name}: logits are changed in place while there are views of them; unpatch the model")
        dense = self.formed(name)
        with DisableTorchFunctionSubclass():
            func(dense, *_formed(args[1:], name), **_formed(kwargs, name))
        self._dense, self._changed = dense, True
        return self

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(f"{func} wants logits that are not formed; give the model logits=True, or unpatch it")


@dataclass(frozen=True)
class _Scale:
    """z c or z / c, as it was written."""

    value: float
    power: int

    @property
    def factor(self) -> float:
        return self.value if self.power > 0 else 1 / self.value

    def __call__(self, z: Tensor) -> Tensor:
        return z * self.value if self.power > 0 else z / self.value


@dataclass(frozen=True)
class _Shift:
    """z + b or z - b, with one number of b a class."""

    bias: Tensor
    power: int

    def __call__(self, z: Tensor) -> Tensor:
        return z + self.bias if self.power > 0 else z - self.bias


def _plain(logits: LazyLogits, prop: str) -> Any:
    with DisableTorchFunctionSubclass():
        return getattr(logits, prop)


def _formed(value: Any, why: str) -> Any:
    if isinstance(value, LazyLogits):
        return value.formed(why)
    if isinstance(value, dict):
        return {key: _formed(item, why) for key, item in value.items()}
    return type(value)(_formed(item, why) for item in value) if type(value) in (list, tuple) else value


def _lazily(self: LazyLogits, name: str, args: Any, kwargs: Any) -> LazyLogits | None:
    """What needs no logits; None for anything else."""
    inplace = name.endswith("_") and not name.endswith("__")
    word = name.removesuffix("_") if inplace else name
    step: _Step | None = None
    if name in _SAME and not kwargs:
        return self
    if word in _SCALES and len(args) == 1 and not kwargs and isinstance(args[0], (int, float)) and args[0]:
        step = ("scale", _Scale(float(args[0]), _SCALES[word]))
    elif word in _SHIFTS and len(args) == 1 and not kwargs and _of_classes(self, args[0], inplace):
        step = ("shift", _Shift(args[0], _SHIFTS[word]))
    elif word == "tanh" and not args and not kwargs:
        step = ("tanh", None)
    elif name in _CASTS or (name in ("to", "type", "type_as") and (args or kwargs)):
        dtype = _cast(self, name, args, kwargs)
        if dtype is None:
            return None
        return self if dtype == _plain(self, "dtype") else self._like(("to", dtype))
    if step is not None:
        if not inplace:
            return self._like(step)
        if self._shared:
            return None
        self._steps = (*self._steps, step)
        return self
    if name == "clone" and not args and not kwargs:
        return self._like()
    return _rows(self, name, args, kwargs)


def _of_classes(self: LazyLogits, value: Any, inplace: bool) -> bool:
    """Whether a tensor is one number a class, for all rows, that may be part of the head's bias."""
    shape, dtype = _plain(self, "shape"), _plain(self, "dtype")
    return (
        isinstance(value, Tensor)
        and not isinstance(value, LazyLogits)
        and value.is_floating_point()
        and value.device == _plain(self, "device")
        and 0 < value.ndim <= len(shape)
        and value.numel() == value.shape[-1] == shape[-1]
        and not (inplace and torch.promote_types(dtype, value.dtype) != dtype)
    )


def _cast(self: LazyLogits, name: str, args: Any, kwargs: Any) -> torch.dtype | None:
    """The type that is asked for, where nothing but a type on the same device is."""
    if name in _CASTS:
        return _CASTS[name] if not args and not kwargs else None
    if set(kwargs) - {"device", "dtype", "non_blocking", "copy"} or kwargs.get("copy"):
        return None
    dtype, device = _plain(self, "dtype"), _plain(self, "device")
    for argument in (*args, kwargs.get("dtype"), kwargs.get("device")):
        if isinstance(argument, torch.dtype):
            dtype = argument
        elif isinstance(argument, Tensor) and argument.device == device:
            dtype = argument.dtype
        elif name == "type" and argument is not None:
            kind = _TENSOR_TYPES.get(
                argument if isinstance(argument, str) else f"{argument.__module__}.{argument.__name__}"
            )
            if kind is None or kind[0] != device.type:
                return None
            dtype = kind[1]
        elif argument is not None and not (isinstance(argument, (str, torch.device)) and _is(argument, device)):
            return None
    return dtype if dtype.is_floating_point else None


def _is(named: str | torch.device, device: torch.device) -> bool:
    try:
        return torch.device(named) == device
    except RuntimeError:  # torch says so itself, of the logits
        return False


def _rows(self: LazyLogits, name: str, args: Any, kwargs: Any) -> LazyLogits | None:
    """Views and choices of rows, each with all its classes."""
    shape, width = _plain(self, "shape"), self._hidden.shape[-1]
    if kwargs or any(isinstance(argument, torch.dtype) for argument in args):
        return None
    if name in _VIEWS:
        new_shape = getattr(torch.empty(shape, device="meta"), name)(*args).shape
        if not new_shape or new_shape[-1] != shape[-1] or prod(new_shape[:-1]) != prod(shape[:-1]):
            return None
        hidden = self._hidden.reshape(*new_shape[:-1], width)
    elif name == "__getitem__":
        index = _index(args[0], shape)
        if index is None:
            return None
        hidden = self._hidden[index]
    else:
        return None
    of_rows = self._like(hidden=hidden)
    self._shared = of_rows._shared = True
    return of_rows


def _index(index: Any, shape: torch.Size) -> tuple[Any, ...] | None:
    """The index of rows, or None where it goes into the classes or is of a kind not known here."""
    parts = list(index) if isinstance(index, tuple) else [index]
    count = 0
    for one_index in parts:
        if isinstance(one_index, Tensor) and not isinstance(one_index, LazyLogits):
            count += one_index.ndim if one_index.dtype == torch.bool else 1
        elif isinstance(one_index, slice) or (isinstance(one_index, int) and not isinstance(one_index, bool)):
            count += 1
        elif one_index is not Ellipsis:
            return None
    dots = [place for place, one_index in enumerate(parts) if one_index is Ellipsis]
    if len(dots) > 1 or count > len(shape):
        return None
    if dots:
        parts[dots[0] : dots[0] + 1] = [slice(None)] * (len(shape) - count)
        count = len(shape)
    if count == len(shape):
        last = parts.pop()
        if not isinstance(last, slice) or last.indices(shape[-1]) != (0, shape[-1], 1):
            return None
    return tuple(parts)


class HeadedRows(NamedTuple):
    """Rows of logits, as hidden states and an output layer: softcap(h W' + b) over a temperature.

    Attributes:
        hidden: ``[..., D]``.
        weight: ``[V, D]``.
        bias: ``[V]`` or None.
        softcap: or None.
        temperature: > 0.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    softcap: float | None
    temperature: float


def headed_rows(logits: Any) -> HeadedRows | None:
    """What logits stand for, or None where they are there, or no output layer gives them."""
    if not isinstance(logits, LazyLogits) or logits._changed:
        return None
    shaped = logits.shape_of_head()
    if shaped is None:
        return None
    softcap, temperature, bias = shaped
    return HeadedRows(logits._hidden, logits._head.weight, bias, softcap, temperature)


def _cross_entropy(
    input: Any,
    target: Any,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor | None:
    """``torch.nn.functional.cross_entropy`` without the logits, or None where the kernel has no such form."""
    rows = None if isinstance(target, LazyLogits) else headed_rows(input)
    if rows is None or _plain(input, "ndim") != 2 or size_average is not None or reduce is not None:
        return None
    input._use.fused += 1
    told = dict(input._use.options)
    if weight is not None:
        if told.get("class_weight") is not None:
            refuse("class_weight", "None, since the loss of the model weighs classes itself", told["class_weight"])
        told["class_weight"] = weight
    elif told.get("class_weight") is not None:
        told["class_weight"] = told["class_weight"].to(input._hidden.device)
    told["label_smoothing"] = told.get("label_smoothing") or label_smoothing
    loss = linear_cross_entropy(
        rows.hidden,
        rows.weight,
        target,
        bias=rows.bias,
        ignore_index=ignore_index,
        reduction=reduction,
        softcap=rows.softcap,
        temperature=rows.temperature,
        **told,
    )
    assert isinstance(loss, Tensor)
    return loss
