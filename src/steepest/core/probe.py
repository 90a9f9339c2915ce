"""The contract of a probe: it measures a moment of a training run, gives a reading, and leaves no trace of itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .arguments import Arguments
from .checks import refuse, refuse_type
from .frozen_pass import copied_buffers
from .undisturbed import same_random_states

T = TypeVar("T")
PHASES = ("forward", "gradients", "proposed", "stepped")
"""The phases of a step: the loss is known; gradients are there, weights are old; an optimizer has moved the weights,
which may be taken back; the step is done."""
NEEDS = ("objective", "optimizer", "batch", "losses")
"""What a probe may need beside the model."""


@dataclass(frozen=True)
class Array:
    """Named numbers of a reading: a spectrum, a histogram, a plane.

    Args:
        values: of any shape.
        axes: the name of each dimension, in order, and where its entries stand; None is 0, 1, 2, ...
    """

    values: Tensor
    axes: Mapping[str, Sequence[float] | Sequence[str] | None]

    def __post_init__(self) -> None:
        sizes = [None if ticks is None else len(ticks) for ticks in self.axes.values()]
        shape = list(self.values.shape)
        if len(sizes) != len(shape) or any(size not in (None, n) for size, n in zip(sizes, shape)):
            refuse("axes", f"an axis for each dimension of {tuple(shape)}", dict(zip(self.axes, sizes)))


@dataclass(frozen=True)
class Reading:
    """What a probe has measured.

    Args:
        numbers: by name; tensors of no dimension stay on their device until somebody reads them.
        arrays: by name.

    >>> Reading({"norm": torch.tensor(2.0)}).numbers["norm"]
    tensor(2.)
    """

    numbers: Mapping[str, float | Tensor] = field(default_factory=dict)
    arrays: Mapping[str, Array] = field(default_factory=dict)


def inner_module(model: nn.Module) -> nn.Module:
    """The module inside those that compile or distribute it."""
    while True:
        inside = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else None
        inside = getattr(model, "_orig_mod", inside)
        if not isinstance(inside, nn.Module):
            return model
        model = inside


def call_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a model is called with its inputs: a tensor, a tuple of arguments, or a mapping of them."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, (tuple, list)) else ((inputs,), {})


_depth = 0


def being_measured() -> bool:
    """Whether passes are those of a probe: hooks that count passes of a training leave them out."""
    return _depth > 0


@contextmanager
def untouched(*modules: nn.Module) -> Iterator[None]:
    """Passes inside the block, and whatever they raise, leave no trace.

    Afterwards random states (also those of generators that modules hold), buffers, modes, ``requires_grad`` and
    ``.grad`` are what they were, and the fast path of attention, which has no derivative, is as it was.
    """
    own = list({id(inner): inner for module in modules for inner in module.modules()}.values())
    modes = [(module, module.training) for module in own]
    flags = [(p, p.requires_grad, p.grad) for module in own for p in module._parameters.values() if p is not None]
    generators = [value for module in own for value in vars(module).values() if isinstance(value, torch.Generator)]
    terms = [(module, vars(module)["terms"]) for module in own if "terms" in vars(module)]
    fast = torch.backends.mha.get_fastpath_enabled()
    global _depth
    _depth += 1
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with same_random_states(*generators), copied_buffers(own):
            yield
    finally:
        _depth -= 1
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, training in modes:
            module.training = training
        for p, flag, gradient in flags:
            p.requires_grad_(flag)
            p.grad = gradient
        for module, value in terms:
            module.terms = value


class Moment:
    """A point of a training step, with what is known at it, and what several probes compute once.

    Args:
        step: number of the optimizer's step, from 1.
        phase: one of :data:`PHASES`.
        model: being trained; of a compiled or distributed one ``module`` is the module inside.
        optimizer: that trains it.
        objective: ``objective(outputs, targets)``, a scalar or a loss for each sample; None where the model gives
            outputs with a ``loss``.
        inputs: of the batch: a tensor, a tuple of arguments or a mapping of them.
        targets: of the batch.
        losses: the loss of the batch, a scalar or ``[B]``, as it was before anybody scaled or filtered it.
        scale: factor by which gradients in ``.grad`` are too large.
        before: parameters before the step, by name, in the phases ``proposed`` and ``stepped``.
        slopes: gradients by name, where ``.grad`` does not hold them any more; not scaled.

    Raises:
        ValueError: another phase.
        TypeError: no module.
    """

    def __init__(
        self,
        step: int,
        phase: str,
        model: nn.Module,
        *,
        optimizer: Optimizer | None = None,
        objective: Callable[[Any, Any], Tensor] | None = None,
        inputs: Any = None,
        targets: Any = None,
        losses: Tensor | None = None,
        scale: float | Tensor | None = None,
        before: Mapping[str, Tensor] | None = None,
        slopes: Mapping[str, Tensor] | None = None,
    ) -> None:
        if phase not in PHASES:
            refuse("phase", f"one of {', '.join(PHASES)}", phase)
        if not isinstance(model, nn.Module):
            refuse_type("model", "a module", model)
        self.step, self.phase, self.model = step, phase, model
        self.module = inner_module(model)
        self.optimizer, self.objective = optimizer, objective
        self.inputs, self.targets, self.losses, self.scale = inputs, targets, losses, scale
        self.before = before
        self._slopes = slopes
        self._shared: dict[Any, Any] = {}

    def shared(self, key: Any, compute: Callable[[], T]) -> T:
        """What ``compute`` gives, computed once in this moment, for all probes that name it by the same key."""
        if key not in self._shared:
            self._shared[key] = compute()
        value: T = self._shared[key]
        return value

    def parameters(self) -> dict[str, Tensor]:
        """Parameters that are trained, by name."""
        return self.shared(
            "parameters", lambda: {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        )

    def gradients(self) -> dict[str, Tensor]:
        """The gradients of the loss by name, without a gradient scaler's factor; sparse ones dense.

        They may be the objects in ``.grad``: nobody writes into them.
        """

        def read() -> dict[str, Tensor]:
            if self._slopes is not None:
                return dict(self._slopes)
            slopes = {name: p.grad for name, p in self.parameters().items() if p.grad is not None}
            slopes = {name: g.to_dense() if g.is_sparse else g for name, g in slopes.items()}
            if self.scale is None:
                return slopes
            return {name: g / (self.scale if g.dtype.is_complex else _as(g, self.scale)) for name, g in slopes.items()}

        return self.shared("gradients", read)

    def untouched(self) -> Any:
        """A block in which passes of model and objective leave no trace: see :func:`untouched`."""
        objective = [self.objective] if isinstance(self.objective, nn.Module) else []
        return untouched(self.module, *objective)

    def outputs(self, graph: bool = True) -> Any:
        """The outputs of the model for this batch; to be called inside :meth:`untouched`.

        Args:
            graph: whether they can be differentiated.

        Raises:
            ValueError: the moment has no batch.
        """
        if self.inputs is None:
            refuse("inputs", "the batch of this moment", None)
        args, kwargs = call_arguments(self.inputs)
        with torch.set_grad_enabled(graph):
            return self.module(*args, **kwargs)

    def loss(self, reduce: bool = True) -> Tensor:
        """The loss of this batch with its graph, computed anew; to be called inside :meth:`untouched`.

        Args:
            reduce: whether losses of samples become their mean.
        """
        outputs = self.outputs()
        with torch.enable_grad():
            if self.objective is not None:
                loss = self.objective(outputs, self.targets)
            else:
                own = outputs["loss"] if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
                if not isinstance(own, Tensor):
                    refuse("objective", "a function of outputs and targets, or a model that gives a loss", outputs)
                loss = own
            return loss.mean() if reduce else loss

    def activations(self, names: Sequence[str] | None = None) -> dict[str, tuple[tuple[Any, ...], Any]]:
        """Inputs and outputs of modules by name, from one more pass without gradient that leaves no trace.

        Modules that are called several times give their last call; those that are not called are missing.

        Args:
            names: as ``model.named_modules()`` has them; None is every module without children.

        Raises:
            ValueError: a name that no module has, no batch.
        """
        modules = dict(self.module.named_modules())
        wanted = [name for name, m in modules.items() if not any(m.children())] if names is None else list(names)
        missing = sorted(set(wanted) - set(modules))
        if missing:
            refuse("names", "names of modules of the model", missing[0])

        def read() -> dict[str, tuple[tuple[Any, ...], Any]]:
            values: dict[str, tuple[tuple[Any, ...], Any]] = {}
            handles = [
                modules[name].register_forward_hook(
                    lambda _, args, kwargs, output, name=name: values.update(
                        {name: ((*args, *kwargs.values()), output)}
                    ),
                    with_kwargs=True,
                )
                for name in wanted
            ]
            try:
                args, kwargs = call_arguments(self.inputs)
                if self.inputs is None:
                    refuse("inputs", "the batch of this moment", None)
                with self.untouched(), torch.no_grad():
                    self.module(*args, **kwargs)
            finally:
                for handle in handles:
                    handle.remove()
            return values

        return self.shared(("activations", tuple(wanted)), read)


def _as(gradient: Tensor, scale: float | Tensor) -> float | Tensor:
    return scale.to(gradient.device, gradient.dtype) if isinstance(scale, Tensor) else scale


class Probe(Arguments):
    """Measures moments of a run.

    A probe is told every moment whose phase it declares, at its cadence, and leaves no trace: the run goes on with the
    same bits as without it. It never raises because of the values of tensors: NaN, infinities, constants and empty
    tensors give readings.

    Class attributes:
        name: snake_case, unique.
        phases: of :data:`PHASES`, those that it measures.
        needs: of :data:`NEEDS`, what a moment must hold beside the model.
        cost: what it computes, in words.
        every: at which steps, by default: every so many.
        exempt: names of conformance checks that don't apply, each with its reason.
    """

    name: ClassVar[str] = ""
    phases: ClassVar[tuple[str, ...]] = ("gradients",)
    needs: ClassVar[tuple[str, ...]] = ()
    cost: ClassVar[str] = ""
    every: int = 50
    exempt: ClassVar[dict[str, str]] = {}

    def measure(self, moment: Moment) -> Reading:
        """Measure one moment."""
        raise NotImplementedError

    def check(self, model: nn.Module, optimizer: Optimizer | None) -> None:
        """Refuse what it can never measure.

        Raises:
            ValueError, TypeError: a model or an optimizer of another kind.
        """

    def state_dict(self) -> dict[str, Any]:
        """What it keeps between moments: numbers, lists and tensors, copies of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        if state:
            refuse("state", "nothing, because this probe keeps nothing", sorted(state))

    def reset(self) -> None:
        """Forget what was kept between moments."""

    def again(self) -> Self:
        """A copy with a state of its own."""
        return copy.deepcopy(self)

    @classmethod
    def instances(cls) -> list[Self]:
        """Those that the conformance suite runs; by default one of the defaults."""
        return [cls()]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"
