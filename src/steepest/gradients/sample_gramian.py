"""The Gramian of the gradients of single samples, without the Jacobian: a weight for each sample, and little memory."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..core.balancer import as_losses
from ..core.checks import refuse, refuse_type
from ..core.torch_private import AnyBatchNorm


class SampleGramian:
    r"""Collects, in a forward pass, what the Gramian of the samples' gradients needs.

    .. math:: G_{ij} = \nabla L_i \cdot \nabla L_j

    Layer by layer: a linear layer on rows of features needs no gradient of its weights at all, since its part is
    :math:`(x_i \cdot x_j + 1)(\delta_i \cdot \delta_j)` with the slopes :math:`\delta` of its outputs; of other layers
    the gradients of one layer at a time are held. Loss i must depend on sample i alone.

    Args:
        model: its parameters that require gradients, samples in the first dimension of every layer's input and output.

    Raises:
        ValueError: a layer that joins samples (batch normalisation in training), or that gives no tensor of samples.

    Example:
        >>> from steepest.gradients import UPGrad
        >>> model = nn.Linear(2, 1)
        >>> with SampleGramian(model) as gramian:
        ...     losses = model(torch.tensor([[1.0, 0.0], [-1.0, 1.0]])).squeeze(1)
        >>> gramian(losses)
        tensor([[2., 0.],
                [0., 3.]])
        >>> (UPGrad().weights(gramian(losses)) @ losses).backward()
        >>> model.weight.grad
        tensor([[0.0000, 0.5000]])
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            refuse_type("model", "a module", model)
        self.model = model
        self._calls: list[tuple[nn.Module, tuple[Any, ...], Tensor]] = []
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        self._calls = []
        for name, module in self.model.named_modules():
            if any(p.requires_grad for p in module.parameters(recurse=False)):
                self._hooks.append(module.register_forward_hook(self._collect(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _collect(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(module, AnyBatchNorm) and (module.training or module.running_mean is None):
                refuse("model", f"no layer that joins samples, as {name!r} does", type(module).__name__)
            if not isinstance(output, Tensor) or not all(isinstance(value, Tensor) for value in inputs) or not inputs:
                refuse("model", f"layers that take and give tensors of samples, as {name!r} does not", type(module))
            self._calls.append((module, inputs, output))

        return hook

    def __call__(self, losses: Tensor) -> Tensor:
        """The Gramian ``[B, B]``; the graph of the losses is kept for the backward pass with weights.

        Args:
            losses: ``[B]``, of the outputs of the forward pass that was collected.

        Raises:
            ValueError: no forward pass was collected, or the losses don't depend on it.
        """
        losses = as_losses(losses)
        calls = [(m, x, y) for m, x, y in self._calls if y.requires_grad]
        if not calls:
            refuse("losses", "losses of a forward pass within the with-block", losses)
        slopes = torch.autograd.grad(
            losses.sum(), [y for _, _, y in calls], retain_graph=True, allow_unused=True, materialize_grads=True
        )
        samples = len(losses)
        if any(len(slope) != samples for slope in slopes):
            refuse("losses", "one loss for each sample of the forward pass", losses)
        gramian = torch.zeros(samples, samples, dtype=losses.dtype, device=losses.device)
        # gradients of parameters that are used more than once add up before they are multiplied
        uses: dict[int, int] = {}
        for module, _, _ in calls:
            for parameter in _own(module).values():
                uses[id(parameter)] = uses.get(id(parameter), 0) + 1
        once = {name for name, count in uses.items() if count == 1}
        waiting: dict[int, Tensor] = {}
        with torch.no_grad():
            for (module, inputs, _), slope in zip(calls, slopes):
                single = once.issuperset(map(id, _own(module).values()))
                if single and type(module) is nn.Linear and slope.ndim == 2:
                    gramian += _linear(module, inputs[0], slope)
                    continue
                for parameter, rows in _per_sample(module, inputs, slope):
                    if id(parameter) in waiting:
                        rows = rows + waiting.pop(id(parameter))
                    uses[id(parameter)] -= 1
                    if uses[id(parameter)]:
                        waiting[id(parameter)] = rows
                    else:
                        gramian += rows @ rows.T
        return gramian


def _own(module: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in module.named_parameters(recurse=False) if p.requires_grad}


def _linear(module: nn.Linear, x: Tensor, slope: Tensor) -> Tensor:
    own = _own(module)
    inner = torch.zeros(len(x), len(x), dtype=x.dtype, device=x.device)
    if "weight" in own:
        inner += x @ x.T
    if "bias" in own:
        inner += 1.0
    return inner * (slope @ slope.T)


def _per_sample(module: nn.Module, inputs: tuple[Tensor, ...], slope: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each parameter with its gradients ``[B, numbers]``."""
    own = _own(module)
    frozen = {name: value.detach() for name, value in [*module.named_parameters(), *module.named_buffers()]}

    def product(parameters: dict[str, Tensor], one: tuple[Tensor, ...], upstream: Tensor) -> Tensor:
        whole = frozen | parameters
        output: Tensor = torch.func.functional_call(module, whole, tuple(value.unsqueeze(0) for value in one))
        return (output.squeeze(0) * upstream).sum()

    gradients = torch.func.vmap(torch.func.grad(product), in_dims=(None, 0, 0), randomness="error")(
        {name: value.detach() for name, value in own.items()}, inputs, slope
    )
    return [(own[name], rows.flatten(1)) for name, rows in gradients.items()]
