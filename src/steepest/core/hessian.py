"""The Hessian of a loss in parameters as an operator: derived twice, or by differences of gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .checks import check_choice, check_number, check_tensor, refuse
from .curvature_batches import (
    ParameterFilter,
    WorkCount,
    batch_weights,
    call_model,
    chosen_parameters,
    flat_type,
    frozen_batches,
)
from .displaced import length, put_back
from .frozen_pass import FrozenPass
from .probe import inner_module
from .second_order import SecondOrder
from .symmetric import Pieces, SymmetricOperator, inner

LossFunction = Callable[[], Tensor]
STEPS = {torch.float64: 6e-6, torch.float32: 5e-3, torch.float16: 0.1, torch.bfloat16: 0.2}
"""Cube roots of the unit of rounding, where the errors of central differences are least."""
SMALL_WORK = 2**19
"""Up to so many multiplications an operation, many vectors at once are faster on a CPU than one by one."""
TINY_WORK = 2**17
"""Up to so many, products of many vectors at once are faster than forms one by one."""
MANY = 16
MANY_FORMS = 8
"""From so many quadratic forms on a record of the operations, which takes three products to make, pays."""
NEAR = {torch.float32: 1e-5, torch.float64: 1e-12}
"""What a form may differ from that of a product, as a share of the lengths of both vectors."""


class Hessian(SymmetricOperator):
    r"""The Hessian of :math:`\sum_b w_b L_b` in parameters, at the parameters and data of the call.

    Exact products derive the gradient, whose graph is kept and used again: a product costs about two gradients. Where a
    part of the loss has no second derivative, products are central differences of gradients,

    .. math:: H v \approx \frac{g(w + h v) - g(w - h v)}{2 h}, \qquad h = \epsilon \, \|w\| / \|v\|

    with weights that are put back from copies. Of smooth networks they have 9 digits in float64, 4 in float32, one or
    two in bfloat16; across the kinks of ReLU and max-pooling they see jumps of the gradient, which the exact Hessian
    leaves out.

    Attention runs in its plain form, ``.grad``, buffers, flags and random states are as before, and the same bits come
    at each call: see :class:`~.frozen_pass.FrozenPass`. The operator is that of the weights at which it was built:
    after a step build another.

    Args:
        losses: a function that gives the loss, a scalar; or several, one a batch.
        params: tensors that need gradients. Zeros for those on which no loss depends.
        weights: of the losses; default equal, with sum 1.
        method: "exact", "differences", or "auto": exact where torch can.
        eps: :math:`\epsilon`; default 6e-6 in float64, 5e-3 in float32, 0.2 in bfloat16, by the coarsest type.
        keep: whether graphs of gradients stay for later calls; default: where there is one loss. With many batches
            that saves a pass a call and costs memory; samples of a trace on the CPU, from 8 on, then keep what the
            operations of the pass have seen as well.
        chunk: how many vectors of a matrix go through at once, by ``vmap``; default on a GPU and for small operations
            16, else 1.
        train_mode: "refuse" or "freeze" batch norm and dropout in training mode, "evaluate" modules in evaluation mode,
            or "trust" that losses are the same at each call, which saves a look.
        modules: that "evaluate" is about.

    Attributes:
        method: "exact" or "differences", once a product is computed.

    Raises:
        TypeError, ValueError: parameters that are frozen or no real numbers, other counts of weights, a loss that is no
            scalar, or another at each call.

    Example:
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> hessian = Hessian(lambda: w[0] ** 2 * w[1], [w])
        >>> hessian @ torch.tensor([1.0, 0.0])
        tensor([4., 2.])
        >>> hessian @ torch.eye(2)
        tensor([[4., 2.],
                [2., 0.]])
    """

    def __init__(
        self,
        losses: LossFunction | Sequence[LossFunction],
        params: Sequence[Tensor],
        *,
        weights: Sequence[float] | None = None,
        method: str = "auto",
        eps: float | None = None,
        keep: bool | None = None,
        chunk: int | None = None,
        train_mode: str = "refuse",
        modules: Sequence[nn.Module] = (),
    ) -> None:
        params = list(params)
        for p in params:
            check_tensor("params", p, floating=True)
        if not all(p.requires_grad for p in params) or not params:
            refuse("params", "tensors that need gradients", [p.requires_grad for p in params])
        check_choice("method", method, ("auto", "exact", "differences"))
        functions = [losses] if callable(losses) else list(losses)
        if not functions:
            refuse("losses", "one or more", "none")
        if weights is not None and len(weights) != len(functions):
            refuse("weights", f"{len(functions)}, one a loss", len(weights))
        if eps is not None:
            check_number("eps", eps, low=0.0, open_low=True)
        super().__init__([p.shape for p in params], flat_type(params), params[0].device, chunk)
        self.params = params
        self.weights = [1 / len(functions)] * len(functions) if weights is None else [float(w) for w in weights]
        self.method = method
        self.eps = max(STEPS[p.dtype] for p in params) if eps is None else float(eps)
        self.keep = len(functions) == 1 if keep is None else keep
        self._passes = [FrozenPass(function, train_mode, modules) for function in functions]
        self._graphs: dict[int, list[Tensor | None]] = {}
        self._batched = True
        self._many: int | None = None
        self._work: tuple[int, int] | None = None
        self._slope: Tensor | None = None
        self._tried_slope = False
        self._form: SecondOrder | None = None
        self._tried_form = False
        self._versions: list[int] = []

    @classmethod
    def of_model(
        cls,
        model: nn.Module,
        loss: Callable[[Tensor, Any], Tensor],
        batches: Any,
        *,
        params: ParameterFilter = None,
        weights: str | Sequence[float] | None = None,
        forward: Callable[[nn.Module, Any], Tensor] = call_model,
        **options: Any,
    ) -> Hessian:
        """The Hessian of the mean loss over batches, each weighted by what its mean divides by.

        Args:
            model: compiled and DDP models are looked into.
            loss: of outputs and target.
            batches: one pair ``(inputs, target)`` or an iterable of pairs; read once, and kept.
            params: which parameters: a rule ``(name, tensor) -> bool``, names, or all that need gradients.
            weights: see :func:`~.curvature_batches.batch_weights`.
            forward: outputs of the model for inputs.
            options: of :class:`Hessian`.

        >>> layer = nn.Linear(1, 2, bias=False)
        >>> Hessian.of_model(layer, nn.MSELoss(), (torch.ones(1, 1), torch.zeros(1, 2))).matrix()
        tensor([[1., 0.],
                [0., 1.]])
        """
        model = inner_module(model)
        own = list(chosen_parameters(model, params).values())
        pairs = frozen_batches(batches, own[0].device)

        def function_of(inputs: Any, target: Any) -> LossFunction:
            return lambda: loss(forward(model, inputs), target)

        watched = [model, loss] if isinstance(loss, nn.Module) else [model]
        functions = [function_of(inputs, target) for inputs, target in pairs]
        return cls(functions, own, weights=batch_weights(loss, pairs, weights), modules=watched, **options)

    def prepare(self) -> None:
        """Compute now what the first product would: the graphs that are kept."""
        if self.keep and self.method != "differences":
            for number in range(len(self._passes)):
                self._slopes(number, graph=True)

    def gradient(self) -> Pieces:
        """The gradient at the weights of the operator, in the shapes of the parameters."""
        return self._sum([self._slopes(number, graph=False) for number in range(len(self._passes))], self.params)

    def loss(self) -> Tensor:
        """The weighted loss, in float64."""
        with torch.no_grad():
            values = [weight * run().double() for weight, run in zip(self.weights, self._passes)]
        return torch.stack(values).sum()

    def quadratics(self, vectors: Tensor, among: int | None = None) -> Tensor:
        """Of each row v of ``[k, n]``, the product v'Hv, float64.

        Of many, and one loss on the CPU, by a forward sweep over its operations, where all of them are known: see
        :class:`~.second_order.SecondOrder`. It is compared with a product first, along random signs.
        """
        many = (len(vectors) if among is None else among) >= MANY_FORMS
        if many and len(vectors) and not self._tried_form:
            self._tried_form = True
            self._form = self._quick_form(_signs(vectors[0].to(self.dtype)))
        moved = [p._version for p in self.params] != self._versions
        if not many or self._form is None or moved or not len(vectors) or vectors.dtype != self.dtype:
            return super().quadratics(vectors)
        rows = [self._form([v.view(s) for v, s in zip(row.split(self.sizes), self.shapes)]) for row in vectors]
        return self.weights[0] * torch.stack(rows)

    def _quick_form(self, vector: Tensor) -> SecondOrder | None:
        """The form without products, if it is that of the product with one vector."""
        kinds = {p.dtype for p in self.params}
        if len(self._passes) > 1 or not self.keep or self.device.type != "cpu" or kinds != {self.dtype}:
            return None
        expected = self._of_flat(vector)
        if self.method != "exact" or (self._batched and self._work_is_at_most(TINY_WORK)):
            return None
        try:
            form = SecondOrder(self._passes[0], self.params)
            own = form([v.view(s) for v, s in zip(vector.split(self.sizes), self.shapes)])
        except Exception:  # an operation that is not known; what is wrong with a loss was raised by the product
            return None
        allowed = NEAR[self.dtype] * float(length([vector])) * float(length([expected]))
        self._versions = [p._version for p in self.params]
        return form if abs(self.weights[0] * float(own) - inner(expected, vector)) <= allowed else None

    def _of_flat(self, vector: Tensor) -> Tensor:
        if vector.ndim == 1 and self.method == "exact" and self.keep and 0 in self._graphs and len(self._passes) == 1:
            slopes = self._joined_slopes()
            if slopes is not None and vector.shape == slopes.shape and vector.dtype == slopes.dtype:
                images = torch.autograd.grad(slopes, self.params, vector, retain_graph=True, allow_unused=True)
                rows = [p.new_zeros(p.numel()) if v is None else v.reshape(-1) for v, p in zip(images, self.params)]
                image = torch.cat(rows)
                return image if self.weights[0] == 1.0 else image.mul_(self.weights[0])
        return super()._of_flat(vector)

    def _joined_slopes(self) -> Tensor | None:
        """The gradient as one vector, whose products cost less to call than those of many tensors; None of some."""
        if self._slope is None and not self._tried_slope:
            self._tried_slope = True
            slopes = [slope for slope in self._graphs[0] if slope is not None and slope.requires_grad]
            if len(slopes) == len(self.params) and {slope.dtype for slope in slopes} == {self.dtype}:
                with torch.enable_grad():
                    self._slope = torch.cat([slope.reshape(-1) for slope in slopes])
        return self._slope

    def _apply(self, pieces: Pieces, count: int | None) -> Pieces:
        if self.method != "differences":
            try:
                images = self._exact(pieces, count)
            except (RuntimeError, NotImplementedError) as error:
                if self.method == "exact" or not _underivable(error):
                    raise
                self._graphs.clear()
                self._slope = None
            else:
                self.method = "exact"
                return images
        self.method = "differences"
        if count is None:
            return self._differences(pieces)
        columns = [self._differences([v[i] for v in pieces]) for i in range(count)]
        return [torch.stack(rows) for rows in zip(*columns)]

    def _slopes(self, number: int, *, graph: bool) -> list[Tensor | None]:
        """The gradient of one loss, None where it doesn't depend on a parameter."""
        if graph and number in self._graphs:
            return self._graphs[number]
        with torch.enable_grad():
            value = self._passes[number]()
            check_tensor("loss", value, ndim=0, floating=True)
            slopes: list[Tensor | None] = [None] * len(self.params)
            if graph:
                _check_derivable(value)
            if value.requires_grad:
                slopes = list(torch.autograd.grad(value, self.params, create_graph=graph, allow_unused=True))
        if graph and self.keep:
            self._graphs[number] = slopes
        return slopes

    def _exact(self, pieces: Pieces, count: int | None) -> Pieces:
        stack = () if count is None else (count,)
        images: list[list[Tensor | None]] = []
        for number in range(len(self._passes)):
            slopes = self._slopes(number, graph=True)
            pairs = [
                (slope, v.to(p))
                for slope, v, p in zip(slopes, pieces, self.params)
                if slope is not None and slope.requires_grad
            ]
            if not pairs:
                images.append([None] * len(self.params))
                continue
            curved, upstream = [slope for slope, _ in pairs], [v for _, v in pairs]
            images.append(self._rows(curved, upstream, count))
        like = [p.expand((*stack, *p.shape)) for p in self.params]
        return self._sum(images, like)

    def _rows(self, curved: Pieces, upstream: Pieces, count: int | None) -> list[Tensor | None]:
        def row(vectors: Pieces, batched: bool) -> list[Tensor | None]:
            return list(
                torch.autograd.grad(
                    curved, self.params, vectors, retain_graph=True, allow_unused=True, is_grads_batched=batched
                )
            )

        if count is None:
            return row(upstream, False)
        if self._batched and count > 1:
            try:
                return row(upstream, True)
            except RuntimeError:
                self._batched = False  # an operation that vmap can't: one by one
        columns = [row([v[i] for v in upstream], False) for i in range(count)]
        return [None if rows[0] is None else torch.stack(rows) for rows in zip(*columns)]

    def _sum(self, images: Sequence[Sequence[Tensor | None]], like: Sequence[Tensor]) -> Pieces:
        """The weighted sum over losses, zeros where there is nothing."""
        joined: Pieces = []
        for place, tensor in enumerate(like):
            rows = [(w, image[place]) for w, image in zip(self.weights, images) if image[place] is not None]
            total: Tensor | None = None
            for weight, image in rows:
                assert image is not None
                image = image.detach() if weight == 1.0 else weight * image.detach().to(self.dtype)
                total = image if total is None else total + image
            joined.append(torch.zeros_like(tensor, memory_format=torch.contiguous_format) if total is None else total)
        return joined

    def _differences(self, pieces: Pieces) -> Pieces:
        size = float(length(pieces))
        if size == 0.0:
            return [torch.zeros_like(p) for p in self.params]
        h = self.eps * (float(length([p.detach() for p in self.params])) or 1.0) / size
        before = [p.detach().clone() for p in self.params]
        slopes = []
        try:
            for sign in (h, -h):
                with torch.no_grad():
                    for p, value, v in zip(self.params, before, pieces):
                        p.copy_(value.to(self.dtype) + sign * v.to(self.dtype))
                slopes.append(self._sum([self._moved_slopes(i) for i in range(len(self._passes))], self.params))
        finally:
            put_back((list(self.params), before))
        return [(up.to(self.dtype) - down.to(self.dtype)) / (2 * h) for up, down in zip(*slopes)]

    def _moved_slopes(self, number: int) -> list[Tensor | None]:
        run = self._passes[number]
        with torch.enable_grad():
            value = run.run(run.forward)
            if not value.requires_grad:
                return [None] * len(self.params)
            return list(torch.autograd.grad(value, self.params, allow_unused=True))

    def _chunk_size(self) -> int | None:
        if self.chunk is not None:
            return self.chunk
        if self._many is None:
            self._many = MANY if self.device.type != "cpu" or self._work_is_at_most(SMALL_WORK) else 1
        return self._many

    def _work_is_at_most(self, multiplications: int) -> bool:
        """Whether operations have so few: where they do, their time is mostly that of calling them."""
        if self._work is None:
            run = self._passes[0]
            with torch.no_grad(), WorkCount() as work:
                run.run(run.forward)
            self._work = work.multiplications, max(work.operations, 1)
        total, count = self._work
        return total <= multiplications * count


def _check_derivable(value: Tensor) -> None:
    """Raise where a function of the graph says that its backward can't be derived.

    torch itself raises only where the gradient that comes from above depends on parameters, and else takes that
    backward for a constant: a sum of such functions would have no curvature.
    """
    open_nodes = [value.grad_fn] if value.grad_fn is not None else []
    seen = set(open_nodes)
    while open_nodes:
        node: Any = open_nodes.pop()
        backward = getattr(getattr(node, "_forward_cls", None), "backward", None)
        code = getattr(backward, "__code__", None)
        if code is not None and code.co_filename == torch.autograd.function.__file__ and code.co_name == "wrapper":
            raise RuntimeError(f"{type(node).__name__} is once_differentiable, and has no second derivative")
        for below, _ in node.next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                open_nodes.append(below)


def _underivable(error: BaseException) -> bool:
    words = ("not implemented", "once_differentiable", "double backward", "does not currently support double")
    text = str(error)
    return any(word in text for word in words)


def _signs(like: Tensor) -> Tensor:
    """Ones with random signs, the same each time."""
    draws = torch.randint(2, like.shape, generator=torch.Generator().manual_seed(0))
    return (2 * draws - 1).to(like)
