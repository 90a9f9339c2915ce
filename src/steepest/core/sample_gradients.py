"""The gradient and the loss of each sample by itself, for several samples at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .checks import check_number, refuse
from .probe import Moment, call_arguments
from .torch_private import AnyBatchNorm


def sample_gradients(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    inputs: Any,
    targets: Any = None,
    *,
    names: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """Gradients of the loss of each sample in each parameter, ``[N, *shape of the parameter]`` by its name.

    The loss is that of a batch of one, so that a mean over a batch and a sum over it give the same. Attention is
    computed in its plain form. What is drawn at random is drawn for each sample. ``.grad`` and buffers stay as they
    are.

    Args:
        model: in the mode in which it is; it must not join samples.
        loss_fn: of outputs and targets of a batch of one; a scalar.
        inputs: ``[N, ...]``, or a tuple or mapping of arguments, of which tensors are taken sample by sample.
        targets: ``[N, ...]``, or what the loss takes for every sample alike.
        names: of parameters; by default those that require a gradient.

    Raises:
        ValueError: batch normalisation in training mode, which joins samples; different numbers of samples, or none; no
            parameter, or one that the model lacks.

    >>> line = nn.Linear(1, 1, bias=False)
    >>> x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.0]])
    >>> _ = nn.init.ones_(line.weight)
    >>> sample_gradients(line, nn.functional.mse_loss, x, y)["weight"].flatten()
    tensor([2., 8.])
    """
    samples_of(model, inputs, targets)
    parameters = dict(model.named_parameters())
    chosen = [name for name, p in parameters.items() if p.requires_grad] if names is None else list(names)
    if not chosen or set(chosen) - set(parameters):
        refuse("names", "parameters of the model, at least one", sorted(set(chosen) - set(parameters)))
    own = {name: parameters[name].detach() for name in chosen}
    one, by_sample = _of_one_sample(model, loss_fn, inputs, targets)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        rows: dict[str, Tensor] = _mapped(torch.func.grad(one), len(by_sample))(own, *by_sample)
    return rows


def sample_losses(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    inputs: Any,
    targets: Any = None,
    *,
    weights: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """The loss of each sample ``[N]``, as that of a batch of one, without a graph.

    Args:
        model, loss_fn, inputs, targets: as for :func:`sample_gradients`; a loss with several values has their mean.
        weights: by name, in place of the parameters that the model has.

    Raises:
        ValueError: batch normalisation in training mode; different numbers of samples, or none.

    >>> line = nn.Linear(1, 1, bias=False)
    >>> x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.0]])
    >>> sample_losses(line, nn.functional.mse_loss, x, y, weights={"weight": torch.ones(1, 1)})
    tensor([1., 4.])
    """
    samples_of(model, inputs, targets)
    one, by_sample = _of_one_sample(model, loss_fn, inputs, targets)
    own = {name: value.detach() for name, value in (weights or {}).items()}
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        losses: Tensor = _mapped(lambda own, *taken: one(own, *taken).mean(), len(by_sample))(own, *by_sample)
    return losses


def _mapped(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """Over samples of ``count`` tensors, after an argument that all samples share."""
    return torch.func.vmap(function, (None, *[0] * count), randomness="different")


def _of_one_sample(
    model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], inputs: Any, targets: Any
) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The loss of one sample by some weights and by what is taken of it; and those tensors of all samples."""
    frozen = {name: value.detach() for name, value in [*model.named_parameters(), *model.named_buffers()]}
    args, kwargs = call_arguments(inputs)
    values = [*args, *kwargs.values(), targets]
    places = [place for place, value in enumerate(values) if _has_samples(value)]

    def loss(own: dict[str, Tensor], *taken: Tensor) -> Tensor:
        whole = list(values)
        for place, value in zip(places, taken):
            whole[place] = value.unsqueeze(0)
        named = dict(zip(kwargs, whole[len(args) :]))
        outputs = torch.func.functional_call(model, frozen | own, tuple(whole[: len(args)]), named)
        return loss_fn(outputs, whole[-1])

    return loss, [values[place] for place in places]


def chunks_of_gradients(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    inputs: Any,
    targets: Any = None,
    *,
    names: Collection[str] | None = None,
    chunk: int = 64,
) -> Iterator[dict[str, Tensor]]:
    """:func:`sample_gradients` of ``chunk`` samples after the others, for sums over more than memory holds."""
    check_number("chunk", chunk, low=1, integer=True)
    for start in range(0, samples_of(model, inputs, targets), chunk):
        x, y = (rows_of(value, slice(start, start + chunk)) for value in (inputs, targets))
        yield sample_gradients(model, loss_fn, x, y, names=names)


def samples_of(model: nn.Module, inputs: Any, targets: Any = None) -> int:
    """How many samples a batch has, for a model that takes them one by one.

    Raises:
        ValueError: batch normalisation by the batch; different numbers of samples, or none.
    """
    for name, module in model.named_modules():
        if isinstance(module, AnyBatchNorm) and (module.training or module.running_mean is None):
            refuse("model", "no layer that joins samples: evaluation mode", f"{name!r}, a {type(module).__name__}")
    args, kwargs = call_arguments(inputs)
    sizes = {len(value) for value in (*args, *kwargs.values(), targets) if _has_samples(value)}
    if len(sizes) != 1 or not min(sizes):
        refuse("inputs, targets", "tensors of equally many samples, at least one", sorted(sizes))
    return sizes.pop()


def count_samples(inputs: Any, targets: Any = None) -> int:
    """The number of samples in a batch; 0 also where there are no tensors.

    >>> count_samples({"x": torch.ones(3, 2), "scale": 2.0}), count_samples(torch.ones(0, 2), torch.ones(0))
    (3, 0)
    """
    args, kwargs = call_arguments(inputs)
    return min((len(value) for value in (*args, *kwargs.values(), targets) if _has_samples(value)), default=0)


def loss_of_moment(moment: Moment) -> Callable[[Any, Any], Tensor]:
    """The objective of a moment, or the loss among the outputs of its model, as a mean."""

    def loss_fn(outputs: Any, targets: Any) -> Tensor:
        if moment.objective is not None:
            return moment.objective(outputs, targets).mean()
        own: Tensor = outputs["loss"] if isinstance(outputs, Mapping) else outputs.loss
        return own.mean()

    return loss_fn


@contextmanager
def frozen_samples(moment: Moment) -> Iterator[nn.Module]:
    """The model of a moment in evaluation mode, and its objective, for passes that leave no trace."""
    with moment.untouched():
        moment.module.eval()
        if isinstance(moment.objective, nn.Module):
            moment.objective.eval()
        yield moment.module


def rows_of(values: Any, rows: slice) -> Any:
    """Some samples of a tensor, or of the tensors in a tuple or mapping of arguments."""
    if isinstance(values, (tuple, list)):
        return tuple(rows_of(value, rows) for value in values)
    if isinstance(values, dict):
        return {name: rows_of(value, rows) for name, value in values.items()}
    return values[rows] if _has_samples(values) else values


def _has_samples(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0
