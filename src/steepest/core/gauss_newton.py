"""The Jacobian of a model's outputs in its parameters, and the generalised Gauss-Newton matrix, as operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap

from .checks import refuse
from .curvature_batches import (
    ParameterFilter,
    batch_weights,
    call_model,
    chosen_parameters,
    flat_type,
    frozen_batches,
    output_curvature,
)
from .frozen_pass import FrozenPass
from .probe import inner_module
from .symmetric import Pieces, SymmetricOperator

Value = TypeVar("Value")


class Jacobian:
    """The Jacobian of a model's outputs for one batch of inputs, in its parameters, by its products.

    Args:
        model: compiled and DDP models are looked into.
        inputs: a tensor, a tuple of arguments, or a dictionary of named ones.
        params: which parameters: a rule ``(name, tensor) -> bool``, names, or all that need gradients.
        forward: outputs of the model for inputs.
        train_mode: what batch norm and dropout in training mode do: see :class:`~.frozen_pass.FrozenPass`.

    Attributes:
        outputs: with their graph, which is kept.
        params: dictionary of the parameters.

    Example:
        >>> layer = nn.Linear(1, 1); inputs = torch.tensor([[2.0], [3.0]])
        >>> jacobian = Jacobian(layer, inputs)
        >>> jacobian.jvp([torch.tensor([[1.0]]), torch.tensor([10.0])])
        tensor([[12.],
                [13.]])
        >>> jacobian.vjp(torch.ones(2, 1))
        [tensor([[5.]]), tensor([2.])]
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        *,
        params: ParameterFilter = None,
        forward: Callable[[nn.Module, Any], Tensor] = call_model,
        train_mode: str = "refuse",
    ) -> None:
        self.model = inner_module(model)
        self.inputs, self.forward = inputs, forward
        self.params = chosen_parameters(self.model, params)
        self._run = FrozenPass(lambda: forward(self.model, inputs), train_mode, [self.model])
        with torch.enable_grad():
            self.outputs = self._run()
        self._backward_twice = False

    def run(self, function: Callable[[], Value]) -> Value:
        """What a function gives under the conditions of the pass."""
        return self._run.run(function)

    def jvp(self, vector: Pieces, count: int | None = None) -> Tensor:
        """The change of outputs along a vector in the shapes of the parameters; ``[k, ...]`` along k stacked ones."""
        if not self._backward_twice:
            try:
                return self._run.run(lambda: self._forward_mode(vector, count))
            except (RuntimeError, NotImplementedError):
                self._backward_twice = True  # an operation without forward mode, or without vmap
        return self._by_backward_twice(vector, count)

    def vjp(self, upstream: Tensor, count: int | None = None) -> Pieces:
        """The gradient of outputs times upstream, in the shapes of the parameters; or of k stacked ones."""
        params = list(self.params.values())
        stack = () if count is None else (count,)
        if not self.outputs.requires_grad:
            return [p.new_zeros(*stack, *p.shape) for p in params]
        rows: Sequence[Tensor | None]
        try:
            rows = torch.autograd.grad(
                self.outputs, params, upstream, retain_graph=True, allow_unused=True, is_grads_batched=count is not None
            )
        except RuntimeError:
            if count is None:
                raise
            columns = [self.vjp(u) for u in upstream]
            rows = [torch.stack(own) for own in zip(*columns)]
        return [p.new_zeros(*stack, *p.shape) if row is None else row for p, row in zip(params, rows)]

    def _forward_mode(self, vector: Pieces, count: int | None) -> Tensor:
        primals = tuple(p.detach() for p in self.params.values())
        tangents = tuple(v.to(p) for v, p in zip(vector, primals))

        def outputs(*values: Tensor) -> Tensor:
            own = {f"model.{name}": value for name, value in zip(self.params, values)}
            changed: Tensor = functional_call(_Forward(self.model, self.forward), own, (self.inputs,))
            return changed

        def along(*own: Tensor) -> Tensor:
            change: Tensor = jvp(outputs, primals, own)[1]
            return change

        with torch.no_grad():
            return along(*tangents) if count is None else vmap(along, randomness="same")(*tangents)

    def _by_backward_twice(self, vector: Pieces, count: int | None) -> Tensor:
        """The derivative, in the upstream gradient, of the gradient, which is linear in it."""
        if count is not None:
            return torch.stack([self._by_backward_twice([v[i] for v in vector], None) for i in range(count)])
        params = list(self.params.values())
        with torch.enable_grad():
            upstream = torch.zeros_like(self.outputs, requires_grad=True)
            rows = torch.autograd.grad(self.outputs, params, upstream, create_graph=True, allow_unused=True)
        pairs = [(row, v.to(row)) for row, v in zip(rows, vector) if row is not None and row.requires_grad]
        if not pairs:
            return torch.zeros_like(self.outputs)
        (change,) = torch.autograd.grad([row for row, _ in pairs], upstream, [v for _, v in pairs])
        return change


class _Forward(nn.Module):
    """A model with its way of being called, so that any such way gets the parameters of the call."""

    def __init__(self, model: nn.Module, forward: Callable[[nn.Module, Any], Tensor]) -> None:
        super().__init__()
        self.training = model.training
        self.model = model
        self._call = forward

    def forward(self, inputs: Any) -> Tensor:
        return self._call(self.model, inputs)


class GaussNewton(SymmetricOperator):
    r"""The generalised Gauss-Newton matrix :math:`\sum_b w_b J_b^\top H_b J_b`, H_b the loss's Hessian in outputs.

    A product is a Jacobian-vector product in forward mode, a product with H_b, and a vector-Jacobian product: there is
    no second graph, and half the memory of a Hessian. It is positive semi-definite where the loss is convex in outputs,
    and for models linear in their parameters it is the Hessian.

    Args:
        model: compiled and DDP models are looked into.
        loss: of outputs and target; closed forms for cross-entropy and squared error.
        batches: one pair ``(inputs, target)`` or an iterable of pairs; read once, and kept.
        params: which parameters: a rule ``(name, tensor) -> bool``, names, or all that need gradients.
        weights: of batches; default by what the mean of each divides by: :func:`~.curvature_batches.batch_weights`.
        forward: outputs of the model for inputs.
        keep: whether graphs of outputs stay for later calls; default: where there is one batch.
        chunk: how many vectors of a matrix go through at once, by ``vmap``.
        train_mode: what batch norm and dropout in training mode do: see :class:`~.frozen_pass.FrozenPass`.

    Raises:
        ValueError: batches that are no pairs, parameters that are frozen or not there, outputs that differ at each
            call.

    Example:
        >>> layer = nn.Linear(1, 2, bias=False)
        >>> GaussNewton(layer, nn.MSELoss(), (torch.ones(1, 1), torch.zeros(1, 2))).matrix()
        tensor([[1., 0.],
                [0., 1.]])
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Any], Tensor],
        batches: Any,
        *,
        params: ParameterFilter = None,
        weights: str | Sequence[float] | None = None,
        forward: Callable[[nn.Module, Any], Tensor] = call_model,
        keep: bool | None = None,
        chunk: int | None = None,
        train_mode: str = "refuse",
    ) -> None:
        if not callable(loss):
            refuse("loss", "a function of outputs and target", loss)
        model = inner_module(model)
        self.params = list(chosen_parameters(model, params).values())
        super().__init__([p.shape for p in self.params], flat_type(self.params), self.params[0].device, chunk)
        self.batches = frozen_batches(batches, self.device)
        self.weights = batch_weights(loss, self.batches, weights)
        self.keep = len(self.batches) == 1 if keep is None else keep
        self._model, self._loss = model, loss
        self._options: dict[str, Any] = {"params": params, "forward": forward, "train_mode": train_mode}
        self._kept: dict[int, tuple[Jacobian, Callable[[Tensor, int | None], Tensor]]] = {}

    def _factors(self, number: int) -> tuple[Jacobian, Callable[[Tensor, int | None], Tensor]]:
        if number in self._kept:
            return self._kept[number]
        inputs, target = self.batches[number]
        jacobian = Jacobian(self._model, inputs, **self._options)
        curve = jacobian.run(lambda: output_curvature(self._loss, jacobian.outputs, target))
        if self.keep:
            self._kept[number] = jacobian, curve
        return jacobian, curve

    def _apply(self, pieces: Pieces, count: int | None) -> Pieces:
        total: Pieces = []
        for number, weight in enumerate(self.weights):
            jacobian, curve = self._factors(number)
            change = jacobian.jvp(pieces, count)
            rows = jacobian.vjp(weight * curve(change, count).to(jacobian.outputs.dtype), count)
            total = rows if not total else [a + b for a, b in zip(total, rows)]
        return total

    def quadratics(self, vectors: Tensor, among: int | None = None) -> Tensor:
        """Of each row v of ``[k, n]``, the product v'Gv, float64: of the change of outputs alone, nothing goes back."""
        samples = torch.zeros(len(vectors), dtype=torch.float64)
        for begin, end in self._chunks(len(vectors)):
            rows = vectors[begin:end].split(self.sizes, 1)
            pieces, count = [v.reshape(-1, *s) for v, s in zip(rows, self.shapes)], end - begin
            for number, weight in enumerate(self.weights):
                jacobian, curve = self._factors(number)
                change = jacobian.jvp(pieces, count)
                products = (change.double() * curve(change, count).double()).reshape(count, -1).sum(1)
                samples[begin:end] += weight * products.cpu()
        return samples
