"""The gradient of each sample by itself, for several samples at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .checks import check_number, check_tensor, refuse
from .torch_private import AnyBatchNorm


def sample_gradients(
    model: nn.Module,
    loss_fn: Callable[[Any, Tensor], Tensor],
    inputs: Tensor,
    targets: Tensor,
    *,
    names: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """Gradients of the loss of each sample in each parameter, ``[N, *shape of the parameter]`` by its name.

    The loss is that of a batch of one, so that a mean over a batch and a sum over it give the same. Attention is
    computed in its plain form. ``.grad`` and buffers stay as they are.

    Args:
        model: in the mode in which it is; it must not join samples.
        loss_fn: of outputs and targets of a batch of one; a scalar.
        inputs, targets: ``[N, ...]``.
        names: of parameters; by default those that require a gradient.

    Raises:
        ValueError: batch normalisation in training mode, which joins samples; other numbers of inputs and targets, or
            none; no parameter, or one that the model lacks.

    >>> line = nn.Linear(1, 1, bias=False)
    >>> x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.0]])
    >>> _ = nn.init.ones_(line.weight)
    >>> sample_gradients(line, nn.functional.mse_loss, x, y)["weight"].flatten()
    tensor([2., 8.])
    """
    check_samples(model, inputs, targets)
    parameters = dict(model.named_parameters())
    chosen = [name for name, p in parameters.items() if p.requires_grad] if names is None else list(names)
    if not chosen or set(chosen) - set(parameters):
        refuse("names", "parameters of the model, at least one", sorted(set(chosen) - set(parameters)))
    frozen = {name: value.detach() for name, value in [*parameters.items(), *model.named_buffers()]}

    def loss(own: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        outputs = torch.func.functional_call(model, frozen | own, (x.unsqueeze(0),))
        return loss_fn(outputs, y.unsqueeze(0))

    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        rows: dict[str, Tensor] = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0), randomness="error")(
            {name: frozen[name] for name in chosen}, inputs, targets
        )
    return rows


def chunks_of_gradients(
    model: nn.Module,
    loss_fn: Callable[[Any, Tensor], Tensor],
    inputs: Tensor,
    targets: Tensor,
    *,
    names: Collection[str] | None = None,
    chunk: int = 64,
) -> Iterator[dict[str, Tensor]]:
    """:func:`sample_gradients` of ``chunk`` samples after the others, for sums over more than memory holds."""
    check_number("chunk", chunk, low=1, integer=True)
    check_samples(model, inputs, targets)
    for x, y in zip(inputs.split(chunk), targets.split(chunk)):
        yield sample_gradients(model, loss_fn, x, y, names=names)


def check_samples(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    """Check that a model treats samples one by one, and that there is a target for each.

    Raises:
        ValueError: batch normalisation by the batch; other numbers of inputs and targets, or none.
    """
    for name, module in model.named_modules():
        if isinstance(module, AnyBatchNorm) and (module.training or module.running_mean is None):
            refuse("model", "no layer that joins samples: evaluation mode", f"{name!r}, a {type(module).__name__}")
    check_tensor("inputs", inputs)
    check_tensor("targets", targets)
    if not inputs.ndim or not targets.ndim or len(inputs) != len(targets) or not len(inputs):
        refuse("targets", f"one for each of the inputs {tuple(inputs.shape)}, at least one", targets)
