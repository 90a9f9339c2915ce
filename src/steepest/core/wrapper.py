"""The contract of a wrapper, an optimizer that drives another one; with two passes: gradients at moved weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .checks import refuse, refuse_type
from .displaced import Before, Climb, Traces, length, move, put_back, random_numbers, same_random_numbers
from .search import Space
from .torch_private import foreach_copy_
from .unscaling import Unscaling

Params = Iterable[Any]
"""Parameters, pairs with their names, or groups, as for any optimizer."""
_OWN = "wrapper"
"""Where a wrapper's own state stands in its ``state_dict``, beside the parts of the optimizer that it drives."""


def base_of(
    params: Params | Optimizer,
    base_optimizer: type[Optimizer],
    arguments: dict[str, Any],
    *,
    name: str = "base_optimizer",
) -> Optimizer:
    """The optimizer to be driven: the one that was given, or one of a class over parameters.

    Raises:
        TypeError: arguments for one that is already there, or no class of optimizer.
    """
    if isinstance(params, Optimizer):
        if arguments:
            refuse_type(", ".join(arguments), "nothing, because params is an optimizer", arguments)
        return params
    if not (isinstance(base_optimizer, type) and issubclass(base_optimizer, Optimizer)):
        refuse_type(name, "a class of optimizer", base_optimizer)
    return base_optimizer(params, **arguments)


class Wrapper(Unscaling):
    """An optimizer that drives another one, ``base_optimizer``, whose groups, state and defaults are its own.

    The groups are the base optimizer's objects at every moment: what a schedule sets is what the step uses, whichever
    of the two it was built on. ``step(closure)`` runs the closure once and steps the base optimizer without it. A
    gradient scaler's ``step`` works with and without closure: gradients are divided by its scale, and after an overflow
    nothing moves. ``base_optimizer.register_step_pre_hook`` is the place for clipping: gradients are those that the
    step uses (the hook must return None).

    A member overrides :meth:`_advance` (edit gradients, step, correct weights), and where it keeps anything between
    steps :meth:`own_state` and :meth:`load_own_state`.

    Class attributes:
        name: snake_case, unique.
        search: hyper-parameters that a comparison tunes.
        exempt: names of conformance checks that don't apply, each with its reason.
        group_options: of a group of parameters, and their values where it has none.

    Args:
        base_optimizer: what steps.
    """

    name: ClassVar[str] = ""
    search: ClassVar[dict[str, Space]] = {}
    exempt: ClassVar[dict[str, str]] = {}

    def __init__(self, base_optimizer: Optimizer, **group_options: Any) -> None:
        if not isinstance(base_optimizer, Optimizer):
            refuse_type("base_optimizer", "an optimizer", base_optimizer)
        self.base_optimizer = base_optimizer
        self.group_options = group_options
        super().__init__(base_optimizer.param_groups, base_optimizer.defaults)
        self._complete()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's own."""
        return self.base_optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        if groups:  # torch's constructor begins with none
            self.base_optimizer.param_groups = groups

    @property
    def state(self) -> Any:
        """The base optimizer's own."""
        return self.base_optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        if state:
            self.base_optimizer.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """The base optimizer's own."""
        return self.base_optimizer.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.base_optimizer.defaults = defaults

    def _complete(self) -> None:
        for group in self.param_groups:
            for name, value in self.group_options.items():
                group.setdefault(name, value)

    def option(self, group: dict[str, Any], name: str) -> Any:
        """An option of a group, also where a group was given or loaded without it."""
        return group.get(name, self.group_options[name])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer."""
        if not any(param_group is group for group in self.param_groups):
            self.base_optimizer.add_param_group(param_group)
            self._complete()

    def step(self, closure: Callable[[], Any] | None = None, *, scaler: torch.amp.GradScaler | None = None) -> Any:
        """One step.

        Args:
            closure: zeroes, runs forward and backward and returns the loss; None where that was done.
            scaler: the gradient scaler that the closure's backward uses; it is asked to unscale, and learns of an
                overflow; call its ``update`` after. ``scaler.step(optimizer)`` does as well where there is one pass.

        Returns:
            The loss that the closure gave, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._unscaled(scaler, ran=closure is not None):
            self._advance(closure)
        return loss

    def _advance(self, closure: Callable[[], Any] | None) -> None:
        """What a step does once the gradients are there: by default the base optimizer's step, and nothing else.

        Args:
            closure: that which made the gradients, for what it offers beside (its batch, outputs, forward passes).
        """
        self.base_optimizer.step()

    def own_state(self) -> dict[str, Any]:
        """What the wrapper keeps between steps beside the base optimizer: tensors and plain values by name."""
        return {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take what :meth:`own_state` gave."""

    def state_dict(self) -> dict[str, Any]:
        """That of the base optimizer, and :meth:`own_state` beside its parts, where there is any.

        Where the base optimizer is a wrapper too, its own state stands in this one's.
        """
        state = self.base_optimizer.state_dict()
        own = self.own_state()
        if _OWN in state:
            own = {**own, _OWN: state[_OWN]}
        return {**state, _OWN: own} if own else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` gave, or the state of a base optimizer that ran alone; all or nothing.

        Raises:
            ValueError: it is that of another optimizer; this one is then as it was.
        """
        before, own_before = self.base_optimizer.state_dict(), self.own_state()
        try:
            self._load(state_dict)
        except Exception as error:
            self.base_optimizer.load_state_dict(before)
            self._complete()
            if own_before:
                self.load_own_state(own_before)
            if isinstance(error, (KeyError, TypeError, AttributeError)):
                refuse("state_dict", f"the state of a {type(self).__name__}", f"{type(error).__name__}: {error}")
            raise

    def _load(self, state_dict: dict[str, Any]) -> None:
        base = {name: value for name, value in state_dict.items() if name != _OWN}
        own = dict(state_dict.get(_OWN, {}))
        if isinstance(self.base_optimizer, Wrapper) and self.base_optimizer._has_own_state():
            beneath = own.pop(_OWN) if _OWN in own else own
            own = own if beneath is not own else {}
            base |= {_OWN: beneath} if beneath else {}
        self.base_optimizer.load_state_dict(base)
        self._complete()
        if own:
            self.load_own_state(own)

    def _has_own_state(self) -> bool:
        base = self.base_optimizer
        return bool(self.own_state()) or (isinstance(base, Wrapper) and base._has_own_state())

    @classmethod
    def builders(cls) -> list[Callable[[Params], Self]]:
        """Functions that build one over parameters or groups, a setting each: what the conformance suite runs on."""
        raise NotImplementedError


class TwoPassWrapper(Wrapper):
    """A wrapper that takes a second gradient at weights moved along the first, and steps from where it was.

    ``step(closure)`` needs no backward before: it runs the closure twice. The second pass draws the random numbers of
    the first, and leaves batch norm and per-sample memories as the first left them: buffers are found by themselves,
    in every module that a pass calls. Weights come back to the last bit, also after an exception. Where the gradient
    of either pass is not finite, nothing changes: no weight, no state, no buffer; ``skipped`` counts it. A scaler
    that calls ``scaler.step(optimizer, closure)`` learns of an overflow in the second pass only by
    ``optimizer.step(closure, scaler=scaler)``, which also spares the backward before.

    In a loop that runs the passes itself: backward, :meth:`first_step`, backward, :meth:`second_step`. Buffers are
    frozen between them; random numbers are not drawn again. With a scaler: ``scaler.unscale_`` and, after the step,
    ``scaler.update`` around each of the two. Where clipping, callbacks or a scaler come between the second pass and
    the step: backward, the second pass within :meth:`moved`, and ``step()`` without a closure.

    On several ranks whose gradients are averaged in both passes all take one step; a first pass under ``no_sync`` moves
    each rank by its own gradient.

    A member overrides :meth:`_moves`, and :meth:`_joined` where the second gradient alone is not the step's.

    Args:
        base_optimizer: what steps.
        modules: further ones whose buffers a pass writes without calling them.
    """

    keeps_first: ClassVar[bool] = False
    """Whether :meth:`_joined` needs the first gradient."""

    def __init__(self, base_optimizer: Optimizer, *, modules: Iterable[nn.Module] = (), **group_options: Any) -> None:
        super().__init__(base_optimizer, **group_options)
        self.modules = tuple(modules)
        self.skipped = 0

    def _still(self) -> bool:
        """Whether nothing is to move, so that one pass does."""
        return False

    @property
    def passes(self) -> int:
        """How many passes the next step takes."""
        return 1 if self._still() else 2

    def _moves(
        self, parameters: list[Tensor], gradients: list[Tensor], groups: list[dict[str, Any]], norm: Tensor
    ) -> list[Tensor | None]:
        """The way to where the second gradient is taken.

        Args:
            parameters: those with a gradient.
            gradients: of what goes down, so those of a group that maximises with the other sign; dense.
            groups: that of each parameter.
            norm: the length of all gradients, in float64.
        """
        raise NotImplementedError

    def _factor(self, group: dict[str, Any], norm: Tensor) -> float | None:
        """What the gradients of a group are multiplied with where that is the way, on the CPU; else None."""
        return None

    def _joined(
        self, first: list[Tensor], second: list[Tensor], groups: list[dict[str, Any]]
    ) -> Sequence[Tensor] | None:
        """The step's gradient where it is not the second alone."""
        return None

    def step(self, closure: Callable[[], Any] | None = None, *, scaler: torch.amp.GradScaler | None = None) -> Any:
        """One step of two passes; gives the loss of the first.

        Without a closure it is the end of a step whose second pass ran within :meth:`moved`; so it is with a closure
        that runs both passes itself.

        Raises:
            TypeError: no closure, so that there is nothing to run a second time; a sparse gradient.
        """
        if closure is None and self._ready is not None:
            self._finish(self._taken(), fine=self._unscaled(scaler, ran=False))
            return None
        self._ready = None
        if closure is None and not self._still():
            refuse_type(
                "closure",
                "a function that zeroes, runs forward and backward and returns the loss: two passes are due"
                " (or backward, first_step, backward, second_step)",
                None,
            )
        if closure is None or self._still():
            return super().step(closure, scaler=scaler)
        self._end_pass()
        traces = Traces([*self.modules, *getattr(closure, "modules", ())])
        start = random_numbers()
        try:
            with torch.enable_grad(), traces.watching():
                loss = closure()
            fine = self._unscaled(scaler, ran=True)
            if self._ready is not None:
                self._finish(self._taken(), fine=fine)
                return loss
            self._displace(traces)
            # watched again: a compiled model is compiled anew where hooks come or go
            with torch.enable_grad(), traces.frozen(), traces.watching(), same_random_numbers(start):
                closure()
        finally:
            away = self._end_pass()
        if away is not None:
            fine = self._unscaled(scaler, ran=True, asked_for=self.base_optimizer) and fine
            self._finish(away, fine=fine)
        return loss

    def first_step(self, zero_grad: bool = False) -> None:
        """Move the weights to where the second gradient is to be taken; gradients are there already."""
        self._end_pass()
        traces = Traces(self.modules)
        self._displace(traces)
        assert self._away is not None
        traces.watch()
        self._away.watched = True
        if zero_grad:
            self.zero_grad()

    def second_step(self, zero_grad: bool = False) -> None:
        """Move the weights back, and step with the gradients that are there now.

        Raises:
            ValueError: :meth:`first_step` did not come before.
        """
        away = self._end_pass()
        if away is None:
            refuse("second_step", "first_step before it", "none")
        away.traces.undo()
        self._finish(away, fine=True)
        if zero_grad:
            self.zero_grad()

    @contextmanager
    def moved(self, traces: Traces | None = None, *, scaler: torch.amp.GradScaler | None = None) -> Iterator[None]:
        """Inside the block weights are moved along the gradients that are there; the second pass runs in it.

        Afterwards weights and buffers are what they were, and ``step()`` without a closure steps with the gradients
        that are there then. Random numbers are not drawn again by themselves. After an exception there is no step.

        Args:
            traces: of the first pass, where what it left in buffers is to be undone if the step is skipped.
            scaler: the gradient scaler of the first pass's gradients; they are divided by its scale in place.
        """
        self._end_pass()
        self._ready = None
        if scaler is not None and scaler.is_enabled():
            scaler.unscale_(self.base_optimizer)
        traces = Traces(self.modules) if traces is None else traces
        self._displace(traces)
        try:
            with traces.frozen(), traces.watching():
                yield
        except BaseException:
            self._end_pass()
            raise
        self._ready = self._end_pass()
        assert self._ready is not None
        with torch.no_grad():  # clipping is of what the step uses
            self._join(self._ready, 1.0 if scaler is None else scaler.get_scale())

    def skip(self) -> bool:
        """Give up a step whose second pass ran within :meth:`moved`, as after an overflow; whether there was one."""
        if self._ready is None:
            return False
        self._finish(self._taken(), fine=False)
        return True

    def _taken(self) -> _Away:
        away, self._ready = self._ready, None
        assert away is not None
        return away

    _memory: Tensor | None = None
    """Of copies of the weights on the CPU, used again at each step."""
    _away: _Away | None = None
    _ready: _Away | None = None
    """What a second pass within :meth:`moved` has left for the step."""

    @torch.no_grad()
    def _displace(self, traces: Traces) -> None:
        groups = [group for group in self.param_groups for p in group["params"] if p.grad is not None]
        parameters = self._with_gradients()
        gradients = _refused_if_sparse(parameters)
        before: Before | Climb | None = None
        if Climb.runs(parameters, gradients):
            climb = Climb(parameters, gradients, self._memory_for(parameters))
            norm = torch.tensor(climb.length(), dtype=torch.float64)
            known = {id(group): self._factor(group, norm) for group in self.param_groups}
            factors = [known[id(group)] for group in groups]
            if None not in factors:
                climb.move(factors)  # type: ignore[arg-type]
                before = climb
        else:
            norm = length(gradients)
        if before is None:
            down = [-g if group.get("maximize") else g for g, group in zip(gradients, groups)]
            before = move(parameters, self._moves(parameters, down, groups, norm))
        first = [g.clone() for g in gradients] if self.keeps_first else []
        self._away = _Away(before, parameters, first, norm, traces)

    def _memory_for(self, parameters: list[Tensor]) -> Tensor:
        total = sum(map(Tensor.numel, parameters))
        if self._memory is None or self._memory.numel() != total:
            self._memory = torch.empty(total)
        return self._memory

    def _end_pass(self) -> _Away | None:
        """Weights back to where they were, if they are away."""
        away, self._away = self._away, None
        if away is not None:
            put_back(away.before)
            if away.watched:
                away.traces.look_away()
        return away

    @torch.no_grad()
    def _finish(self, away: _Away, *, fine: bool) -> None:
        second = _refused_if_sparse(away.parameters)
        finite = away.norm.isfinite() & length(second).isfinite().to(away.norm.device)
        if not fine or not bool(finite):
            away.traces.undo()
            self.skipped += 1
            return
        self._join(away)
        self.base_optimizer.step()

    def _join(self, away: _Away, factor: float = 1.0) -> None:
        """Write the step's gradient over the second where it is not that alone; ``factor`` is that of the second."""
        first, away.first = away.first, []
        pairs = [(g, p) for g, p in zip(first, away.parameters) if p.grad is not None]
        if not pairs:
            return
        groups = {id(p): group for group in self.param_groups for p in group["params"]}
        own = [g if factor == 1.0 else g * factor for g, _ in pairs]
        second = _refused_if_sparse([p for _, p in pairs])
        joined = self._joined(own, second, [groups[id(p)] for _, p in pairs])
        if joined is not None:
            foreach_copy_(second, list(joined))

    def own_state(self) -> dict[str, Any]:
        """How many steps were skipped."""
        return {"skipped": self.skipped}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take what :meth:`own_state` gave."""
        self.skipped = int(state["skipped"])


class _Away:
    """What lies between two passes."""

    def __init__(
        self, before: Before | Climb, parameters: list[Tensor], first: list[Tensor], norm: Tensor, traces: Traces
    ) -> None:
        self.before, self.parameters, self.first, self.norm, self.traces = before, parameters, first, norm, traces
        self.watched = False


def _refused_if_sparse(parameters: list[Tensor]) -> list[Tensor]:
    """Gradients of parameters that have one, all dense."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if any(g.layout != torch.strided for g in gradients):
        refuse_type("params", "dense gradients", next(g for g in gradients if g.layout != torch.strided))
    return gradients
