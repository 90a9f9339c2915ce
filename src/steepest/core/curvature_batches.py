"""Batches of a model as curvature needs them: frozen, weighted as means, with the parameters that count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from .checks import refuse, refuse_type
from .probe import call_arguments
from .torch_private import TorchDispatchMode, tree_map
from .undisturbed import same_random_states

ParameterFilter = Callable[[str, Tensor], bool] | Iterable[str] | Mapping[str, Tensor] | None
"""Which parameters: a rule of name and tensor, names, a dictionary, or all that need gradients."""


def chosen_parameters(model: nn.Module, params: ParameterFilter = None) -> dict[str, Tensor]:
    """Parameters of a model by name, those of a layer alone for its own Hessian; a shared one once.

    Raises:
        ValueError: a name that isn't there, a frozen parameter, none at all.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    >>> list(chosen_parameters(net, lambda name, p: name.startswith("1.")))
    ['1.weight', '1.bias']
    """
    own: dict[str, Tensor] = dict(model.named_parameters())
    if params is None:
        chosen = {name: p for name, p in own.items() if p.requires_grad}
    elif callable(params):
        chosen = {name: p for name, p in own.items() if params(name, p)}
    else:
        names = list(params)
        missing = [name for name in names if name not in own]
        if missing:
            refuse("params", "names of parameters of the model", missing[0])
        chosen = {name: own[name] for name in names}
    frozen = [name for name, p in chosen.items() if not p.requires_grad]
    if frozen:
        refuse("params", "parameters that need gradients", f"{frozen[0]}, which doesn't")
    if not any(p.numel() for p in chosen.values()):
        refuse("params", "one or more parameters with entries", list(chosen))
    return chosen


def flat_type(params: Sequence[Tensor]) -> torch.dtype:
    """The type of vectors over all parameters: float32, or float64 if one is."""
    kind = torch.float32
    for p in params:
        kind = torch.promote_types(kind, p.dtype)
    return kind


def frozen_batches(batches: Any, device: torch.device) -> list[tuple[Any, Any]]:
    """Pairs of inputs and targets, read once and kept, on a device.

    Args:
        batches: one pair ``(inputs, target)``, or an iterable of pairs, such as a ``DataLoader``: random states, and
            the seed that a new iterator draws, are what they were.

    Raises:
        ValueError: no batch, or one that is no pair.
    """
    if isinstance(batches, tuple) and len(batches) == 2 and isinstance(batches[1], Tensor):
        batches = [batches]
    with same_random_states():
        pairs = list(batches)
    if not pairs:
        refuse("batches", "one or more pairs of inputs and target", "none")
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            refuse("batches", "pairs of inputs and target", pair)
    return [tree_map(lambda t: t.to(device) if isinstance(t, Tensor) else t, tuple(pair)) for pair in pairs]


def call_model(model: nn.Module, inputs: Any) -> Tensor:
    """Outputs for inputs: a tensor, a tuple of arguments, or a dictionary of named ones."""
    args, kwargs = call_arguments(inputs)
    outputs = model(*args, **kwargs)
    if not isinstance(outputs, Tensor):
        refuse_type("model", "one that gives a tensor, or forward= that does", outputs)
    return outputs


def batch_weights(
    loss: Callable[[Tensor, Any], Tensor],
    batches: Sequence[tuple[Any, Any]],
    weights: str | Sequence[float] | None = None,
) -> list[float]:
    """What each batch's loss counts for, so that the sum is the loss of all samples together.

    Args:
        loss: its ``reduction`` is looked at: sums count 1, means by what they divide by. That is the number of samples,
            and for cross-entropy the valid targets, weighted as its classes are.
        batches: pairs of inputs and target.
        weights: "mean" or "sum", where the loss doesn't say; or the numbers themselves.

    >>> x, y = torch.ones(3, 1), torch.tensor([0, 1, 1])
    >>> batch_weights(nn.CrossEntropyLoss(), [(x[:1], y[:1]), (x[1:], y[1:])])
    [0.3333333333333333, 0.6666666666666666]
    """
    if weights is not None and not isinstance(weights, str):
        if len(weights) != len(batches):
            refuse("weights", f"{len(batches)}, one a batch", len(weights))
        return [float(weight) for weight in weights]
    reduction = getattr(loss, "reduction", "mean") if weights is None else weights
    if reduction not in ("mean", "sum"):
        refuse("weights", '"mean", "sum", or a number for each batch', reduction)
    if reduction == "sum":
        return [1.0] * len(batches)
    counts = [_divisor(loss, inputs, target) for inputs, target in batches]
    return [count / sum(counts) for count in counts]


def _divisor(loss: Callable[[Tensor, Any], Tensor], inputs: Any, target: Any) -> float:
    if isinstance(target, Tensor) and not target.is_floating_point():
        if isinstance(loss, nn.CrossEntropyLoss):
            valid = target[target != loss.ignore_index]
            return float(valid.numel() if loss.weight is None else loss.weight[valid].double().sum())
        if loss is cross_entropy:
            return float((target != -100).sum())
    args, kwargs = call_arguments(inputs)
    tensors = [t for t in (target, *args, *kwargs.values()) if isinstance(t, Tensor) and t.ndim]
    return float(tensors[0].shape[0] if tensors else 1)


def output_curvature(
    loss: Callable[[Tensor, Any], Tensor], outputs: Tensor, target: Any
) -> Callable[[Tensor, int | None], Tensor]:
    r"""The Hessian of a loss in its outputs, as a product with ``u``, or with a stack ``[k, ...]`` of ``k`` of them.

    Closed forms for cross-entropy, :math:`s \, (p \odot u - p \, p^\top u)` with s the sum of a sample's targets over
    the divisor, and for squared error; any other loss is derived twice in its outputs alone.

    >>> product = output_curvature(nn.functional.mse_loss, torch.zeros(2, 3), torch.ones(2, 3))
    >>> product(torch.full((2, 3), 6.0), None)
    tensor([[2., 2., 2.],
            [2., 2., 2.]])
    """
    outputs = outputs.detach()
    if loss is mse_loss or type(loss) is nn.MSELoss:
        shared = isinstance(target, Tensor) and target.shape == outputs.shape
        reduction = getattr(loss, "reduction", "mean")
        if shared and reduction != "none":
            factor = 2.0 / outputs.numel() if reduction == "mean" else 2.0
            return lambda u, count: factor * u
    if loss is cross_entropy:
        loss = nn.CrossEntropyLoss()
    if type(loss) is nn.CrossEntropyLoss and loss.reduction != "none" and isinstance(target, Tensor) and outputs.ndim:
        return _of_cross_entropy(loss, outputs, target)
    return _of_any_loss(loss, outputs, target)


def _of_cross_entropy(
    loss: nn.CrossEntropyLoss, outputs: Tensor, target: Tensor
) -> Callable[[Tensor, int | None], Tensor]:
    axis = 0 if outputs.ndim == 1 else 1
    classes = outputs.shape[axis]
    p = outputs.softmax(axis)
    own = torch.ones(classes, device=outputs.device, dtype=p.dtype) if loss.weight is None else loss.weight.to(p)
    smoothing = loss.label_smoothing
    if target.is_floating_point():
        soft = (1 - smoothing) * target + smoothing / classes
        sums = (soft * own.view(-1, *[1] * (outputs.ndim - 1 - axis))).sum(axis, keepdim=True)
        divisor = float(sums.numel())
    else:
        valid = (target != loss.ignore_index).unsqueeze(axis)
        weights = own[target.clamp(0, classes - 1)].unsqueeze(axis)
        sums = ((1 - smoothing) * weights + smoothing * own.mean()) * valid
        divisor = float((weights * valid).double().sum())
    scale = p * (sums / divisor if loss.reduction == "mean" else sums)

    def product(u: Tensor, count: int | None) -> Tensor:
        along = axis if count is None else axis + 1
        return scale * (u - (p * u).sum(along, keepdim=True))

    return product


def _of_any_loss(
    loss: Callable[[Tensor, Any], Tensor], outputs: Tensor, target: Any
) -> Callable[[Tensor, int | None], Tensor]:
    leaf = outputs.clone().requires_grad_()
    with torch.enable_grad():
        value = loss(leaf, target)
        slope = torch.autograd.grad(value, leaf, create_graph=True)[0] if value.requires_grad else None

    def product(u: Tensor, count: int | None) -> Tensor:
        if slope is None or not slope.requires_grad:
            return torch.zeros_like(u)
        (image,) = torch.autograd.grad(slope, leaf, u, retain_graph=True, is_grads_batched=count is not None)
        return image

    return product


class WorkCount(TorchDispatchMode):
    """Multiplications in products of matrices and in convolutions, and how many of those there are.

    >>> with WorkCount() as work:
    ...     _ = torch.ones(2, 3) @ torch.ones(3, 4)
    >>> work.multiplications, work.operations
    (24, 1)
    """

    def __init__(self) -> None:
        super().__init__()
        self.multiplications, self.operations = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        inner = 0
        if name in ("mm", "bmm"):
            inner = args[0].shape[-1]
        elif name in ("addmm", "baddbmm"):
            inner = args[1].shape[-1]
        elif name == "convolution":
            inner = args[1].numel() // max(args[1].shape[0], 1)
        if inner and isinstance(result, Tensor):
            self.multiplications += inner * result.numel()
            self.operations += 1
        return result
