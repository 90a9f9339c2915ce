"""The output layer of a model of Transformers, and logits that stand for what it would give."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..core.transforms import valueless
from ._lazy_logits import LazyLogits, Use


def inner_model(model: Any) -> Any:
    """The model of Transformers within wrappers."""
    while True:
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod
        elif not hasattr(model, "get_output_embeddings") and isinstance(getattr(model, "module", None), nn.Module):
            model = model.module
        else:
            return model


def output_layer(model: Any) -> Any:
    """The output layer: the model's own, or that of the one part that has one (BLIP); None where there is none."""
    own = model.get_output_embeddings()
    parts = parts_with_layers(model) if own is None else {}
    return next(iter(parts.values())).get_output_embeddings() if len(parts) == 1 else own


def parts_with_layers(model: Any) -> dict[str, Any]:
    """The outermost parts with an output layer of their own, by name."""
    outermost: dict[str, Any] = {}
    for name, module in model.named_modules() if isinstance(model, nn.Module) else ():
        inside = any(name.startswith(f"{outer}.") for outer in outermost)
        if (
            name
            and not inside
            and hasattr(module, "get_output_embeddings")
            and module.get_output_embeddings() is not None
        ):
            outermost[name] = module
    return outermost


@contextmanager
def standing_in(model: Any, use: Use, warn: Callable[[str], None]) -> Iterator[None]:
    """Let the output layer give :class:`LazyLogits`, where it is one that they can stand for."""
    head = output_layer(model)
    own = type(head).__module__.partition(".")[0] == "peft"
    layers = [candidate for candidate in (head.modules() if own else [head]) if is_plain(candidate)]
    widest = max((len(candidate.weight) for candidate in layers), default=0)
    layers = [candidate for candidate in layers if len(candidate.weight) == widest]
    if not layers:
        warn(f"the output layer of {type(model).__name__} is no plain linear layer ({type(head).__name__}, or "
                   "hooks, or a weight that isn't one tensor): logits are formed as before")  # fmt: skip
    try:
        for layer in layers:
            layer.__dict__["forward"] = functools.partial(LazyLogits.of, layer, use=use)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def is_plain(layer: Any) -> bool:
    """Whether a layer is h W' + b of tensors at hand, and nobody watches it."""
    if layer is None:
        return False
    if type(layer).forward is not nn.Linear.forward or "forward" in layer.__dict__:
        return False
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(layer, kind) for kind in kinds):
        return False
    weight: Tensor = layer.weight
    known = type(weight) in (nn.Parameter, Tensor) or valueless(weight)
    return known and weight.is_floating_point() and weight.dtype.itemsize > 1
