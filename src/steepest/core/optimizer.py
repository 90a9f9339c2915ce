"""The contract of an optimizer of ours: groups that are checked, states, steps written once over lists of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from . import moments
from .checks import check_flag, check_number, check_tensor, refuse, refuse_type, values_visible
from .reductions import widen
from .search import Space
from .torch_private import flatten_dense_tensors, foreach_add, foreach_add_, foreach_mul_, foreach_neg, fused_sgd_
from .unscaling import Unscaling
from .wrapper import Params

_OWN = "optimizer"
"""Where what belongs to no parameter stands in a ``state_dict``."""


_Pair = tuple[Tensor, Tensor]
"""A parameter and its gradient."""


@dataclass
class Share:
    """Parameters of one group, one device and one type, that a step moves together; complex numbers as pairs.

    Args:
        group: their options.
        parameters: themselves.
        weights: what moves, in place.
        slopes: gradients of what goes down; those of the parameters themselves, not to be changed.
        states: the state of each.
    """

    group: dict[str, Any]
    parameters: list[Tensor]
    weights: list[Tensor]
    slopes: list[Tensor]
    states: list[dict[str, Any]]

    def state(self, name: str) -> list[Tensor]:
        """A tensor of each state."""
        values = [state[name] for state in self.states]
        return list(map(real, values)) if self.parameters[0].is_complex() else values

    @staticmethod
    def joined(shares: Sequence[Share]) -> Share:
        """All shares of one group as one."""
        if len(shares) == 1:
            return shares[0]
        lists = zip(*((own.parameters, own.weights, own.slopes, own.states) for own in shares))
        return Share(shares[0].group, *(list(chain.from_iterable(values)) for values in lists))

    def of(self, places: Sequence[int]) -> Share:
        """Some of them."""
        lists = (self.parameters, self.weights, self.slopes, self.states)
        return Share(self.group, *([values[i] for i in places] for values in lists))  # type: ignore[arg-type]


class ListOptimizer(Unscaling):
    """An optimizer that steps from the gradients, by operations on lists of tensors, or on one after the other.

    ``step(closure)`` runs the closure once. A gradient scaler's ``step`` works with and without closure. State has the
    type of its parameter; what is loaded keeps the type in which it was saved. Sparse gradients are refused.

    A member overrides :meth:`_advance`, or :meth:`_move` where a share needs no other, and :meth:`_start` where it
    has state. Its constructor calls this one with the options of a group.

    Class attributes:
        name: snake_case, unique.
        search: hyper-parameters that a comparison tunes.
        exempt: names of conformance checks that don't apply, each with its reason.
        ranges: of options that are numbers, as arguments of :func:`steepest.core.checks.check_number`.
        most: numbers that a step moves at once, on the CPU and elsewhere, so that its temporaries stay small; a larger
            tensor moves alone.

    Args:
        params: parameters, pairs with their names, or groups.
        options: of a group, and their values where it has none.
        foreach: lists of tensors (True, and None), or one tensor after the other; the same bits.
        generator: of random numbers, part of the state; None draws from torch's own.
    """

    name: ClassVar[str] = ""
    search: ClassVar[dict[str, Space]] = {}
    exempt: ClassVar[dict[str, str]] = {}
    ranges: ClassVar[dict[str, dict[str, Any]]] = {"lr": {"low": 0.0}}
    most: ClassVar[tuple[int, int]] = (2**17, 2**22)

    def __init__(
        self,
        params: Params,
        options: dict[str, Any],
        *,
        foreach: bool | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if foreach is not None:
            check_flag("foreach", foreach)
        if generator is not None and not isinstance(generator, torch.Generator):
            refuse_type("generator", "a torch.Generator", generator)
        self.generator = generator
        super().__init__(params, {**options, "foreach": foreach})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group.

        Raises:
            TypeError: an option that is no number.
            ValueError: an option outside its range.
        """
        self.check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def check_options(self, options: dict[str, Any]) -> None:
        """Refuse options of a group that are out of range."""
        for name, limits in self.ranges.items():
            check_number(name, options[name], **limits)
        if "maximize" in options:
            check_flag("maximize", options["maximize"])
        if "betas" in options:
            if not isinstance(options["betas"], (tuple, list)) or len(options["betas"]) != 2:
                refuse_type("betas", "two numbers", options["betas"])
            for beta in options["betas"]:
                check_number("betas", beta, low=0.0, high=1.0, open_high=True)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step.

        Args:
            closure: zeroes, runs forward and backward and returns the loss; None where that was done.

        Returns:
            The loss that the closure gave, or None.

        Raises:
            TypeError: a sparse gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._unscaled(None, ran=closure is not None):
            with torch.no_grad():
                self._advance()
        return loss

    def _advance(self) -> None:
        """What a step does once the gradients are there."""
        for share in self._shares():
            self._move(share)

    def _move(self, share: Share) -> None:
        """Move the weights of a share."""
        raise NotImplementedError

    def _start(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
        """The state of a parameter before its first step; its gradient is there."""
        return {}

    def _shares(self) -> list[Share]:
        """All parameters with a gradient. Sparse ones are refused before anything changes."""
        groups = [
            (group, [(p, g) for p in group["params"] if (g := p.grad) is not None]) for group in self.param_groups
        ]
        for _, pairs in groups:
            for _, g in pairs:
                if g.layout != torch.strided:
                    refuse_type("params", "dense gradients", g)
        shares = []
        for group, pairs in groups:
            for p, _ in pairs:
                if p not in self.state:
                    self.state[p] = self._start(group, p)
            for together in self._together(group, pairs):
                parameters, slopes = [p for p, _ in together], [g for _, g in together]
                weights = parameters
                if parameters[0].is_complex():
                    weights, slopes = list(map(real, parameters)), list(map(real, slopes))
                if group.get("maximize"):
                    slopes = list(foreach_neg(slopes))
                states = [self.state[p] for p in parameters]
                shares.append(Share(group, parameters, weights, slopes, states))
        return shares

    def _together(self, group: dict[str, Any], pairs: Sequence[_Pair]) -> Iterator[list[_Pair]]:
        if group.get("foreach") is False:
            yield from ([pair] for pair in pairs)
            return
        kinds: dict[Any, list[_Pair]] = {}
        for pair in pairs:
            kinds.setdefault((pair[0].is_cpu or pair[0].device, pair[0].dtype), []).append(pair)
        for (device, _), alike in kinds.items():
            most = self.most[device is not True]
            bunch: list[_Pair] = []
            numbers = 0
            for pair in alike:
                size = pair[0].numel()
                if bunch and numbers + size > most:
                    yield bunch
                    bunch, numbers = [], 0
                bunch.append(pair)
                numbers += size
            yield bunch

    def own_state(self) -> dict[str, Any]:
        """What is kept between steps and belongs to no parameter: tensors and plain values by name."""
        return {} if self.generator is None else {"generator": self.generator.get_state()}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take what :meth:`own_state` gave."""
        if self.generator is not None and "generator" in state:
            self.generator.set_state(state["generator"].cpu())

    def state_dict(self) -> dict[str, Any]:
        """Groups and state, and :meth:`own_state` beside them, where there is any."""
        state, own = super().state_dict(), self.own_state()
        return {**state, _OWN: own} if own else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` gave."""
        super().load_state_dict({name: value for name, value in state_dict.items() if name != _OWN})
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        now = chain.from_iterable(group["params"] for group in self.param_groups)
        for number, p in zip(saved, now):
            for name, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor) and self.state[p][name].dtype != value.dtype:
                    self.state[p][name] = value.to(p.device, copy=True)  # torch has given it its parameter's type
        if _OWN in state_dict:
            self.load_own_state(state_dict[_OWN])

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if self.generator is not None:
            state["generator"] = (str(self.generator.device), self.generator.get_state())
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # of a state that was saved before an option was there
            for name, value in self.defaults.items():
                if name != "differentiable":  # torch's own, of no group
                    group.setdefault(name, value)
        if isinstance(self.generator, tuple):
            device, numbers = self.generator
            self.generator = torch.Generator(device)
            self.generator.set_state(numbers)

    @classmethod
    def builders(cls) -> list[Callable[[Params], Self]]:
        """Functions that build one over parameters or groups, a setting each: what the conformance suite runs on."""
        raise NotImplementedError


class LossAware(ListOptimizer):
    """An optimizer whose step uses the value of the loss: ``step(closure)``, or ``step(loss=loss)`` after backward.

    The loss is that whose gradients are there: one of a gradient scaler unscaled, one of several micro-batches the sum
    of what was differentiated; over several ranks its mean is taken, as gradients are averaged. Where there is no
    gradient yet, the loss is differentiated here.

    A member overrides :meth:`_advance_with`.
    """

    def step(self, closure: Callable[[], Any] | None = None, loss: Tensor | float | None = None) -> Any:
        """One step.

        Args:
            closure: zeroes, runs forward and backward and returns the loss.
            loss: in place of a closure: what was differentiated, a scalar.

        Returns:
            The loss.

        Raises:
            TypeError: neither closure nor loss, or both; a loss that is no number; a sparse gradient.
            ValueError: a loss that is no scalar.
        """
        if (closure is None) == (loss is None):
            got = "neither" if closure is None else "both"
            refuse_type("closure", "a function that returns the loss, or loss=, exactly one of them", got)
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not isinstance(loss, Tensor):
            check_number("loss", loss)
            assert loss is not None
            loss = torch.tensor(float(loss), dtype=torch.float64)
        check_tensor("loss", loss, ndim=0, floating=True)
        if loss.requires_grad and not self._with_gradients():
            loss.backward()
        if self._unscaled(None, ran=closure is not None):
            with torch.no_grad():
                shares = self._shares()
                if shares:
                    self._advance_with(over_ranks(loss.detach().to(shares[0].weights[0].device)), shares)
        return loss

    def _advance_with(self, loss: Tensor, shares: list[Share]) -> None:
        """What a step does once loss and gradients are there."""
        raise NotImplementedError


def momentum_step(
    weights: list[Tensor],
    slopes: list[Tensor],
    momenta: list[Tensor],
    rate: float,
    momentum: float,
    *,
    gain: float = 1.0,
    decay: float = 0.0,
    shrink: float = 1.0,
) -> None:
    r"""A step along momenta, in place, in one pass where torch can: tensors without gaps, alike in type and order.

    .. math:: m \leftarrow \mu m + \gamma (g + \lambda w), \qquad w \leftarrow s w - \alpha m

    Args:
        weights: w.
        slopes: g.
        momenta: m; none leaves m out: w <- s w - alpha (g + lambda w).
        rate: alpha.
        momentum: mu.
        gain: gamma.
        decay: lambda, where s is 1.
        shrink: s, where lambda is 0.
    """
    if shrink != 1.0:
        if moments.runs(weights, slopes, momenta or slopes):
            moments.momentum_pass(weights, slopes, momenta, rate, momentum, gain, shrink)
            return
        quick = [moments.runs(*([tensor] for tensor in place)) for place in zip(weights, slopes, momenta or slopes)]
        if any(quick):  # each as it would step alone
            for kind in (True, False):
                w, g, m = ([t for t, fits in zip(own, quick) if fits == kind] for own in (weights, slopes, momenta))
                momentum_step(w, g, m, rate, momentum, gain=gain, shrink=shrink)
            return
        foreach_mul_(weights, shrink)
    alike = _alike(weights, slopes, momenta)
    if not all(alike) and any(alike):  # each as it would step alone
        for kind in (True, False):
            w, g, m = ([t for t, fits in zip(own, alike) if fits == kind] for own in (weights, slopes, momenta))
            momentum_step(w, g, m, rate, momentum, gain=gain, decay=decay)
        return
    # torch 2.13's fused form is wrong in half precision on the CPU
    fused = weights[0].is_cuda or (weights[0].is_cpu and weights[0].dtype in (torch.float32, torch.float64))
    if fused and all(alike) and bool(momenta) == (momentum > 0):
        fused_sgd_(
            weights,
            slopes,
            momenta,
            weight_decay=decay,
            momentum=momentum,
            lr=rate,
            dampening=1.0 - gain,
            nesterov=False,
            maximize=False,
            is_first_step=False,
        )
        return
    if decay:
        slopes = list(foreach_add(slopes, weights, alpha=decay))
    if momenta:
        foreach_mul_(momenta, momentum)
        foreach_add_(momenta, slopes, alpha=gain)
    foreach_add_(weights, momenta or slopes, alpha=-rate)


_ORDERS = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)


def _alike(weights: list[Tensor], slopes: list[Tensor], momenta: list[Tensor]) -> list[bool]:
    """Of each weight, whether what steps it has its type, and lies in memory without gaps and in its order.

    torch's fused step runs through the memory from the first number on, whatever the strides: in others it pairs wrong
    numbers, and with gaps it writes over what belongs to no weight. An empty ``slopes`` or ``momenta`` is left out.
    """
    if all(t.is_contiguous() for tensors in (weights, slopes, momenta) for t in tensors):
        layouts = [True] * len(weights)
    else:
        places = zip(*(tensors for tensors in (weights, slopes, momenta) if tensors))
        layouts = [any(all(t.is_contiguous(memory_format=o) for t in place) for o in _ORDERS) for place in places]
    types = [slope.dtype == w.dtype for slope, w in zip(slopes, weights)] or [True] * len(weights)
    return [layout and same for layout, same in zip(layouts, types)]


def over_ranks(value: Tensor) -> Tensor:
    """The mean over ranks; the value itself where there is one."""
    ranks = torch.distributed
    if not (ranks.is_available() and ranks.is_initialized() and ranks.get_world_size() > 1):
        return value
    value = value.detach().clone()
    ranks.all_reduce(value)
    return value / ranks.get_world_size()


def total(values: Iterable[Tensor]) -> Tensor:
    """The sum of scalars, in float64 where they lie on the CPU and in float32 elsewhere: no host waits for it."""
    scalars = list(values)
    device = scalars[0].device
    wide = torch.float64 if device.type in ("cpu", "cuda") else torch.float32
    return torch.stack([value.to(device, wide) for value in scalars]).sum()


def check_loss(loss: Tensor, low: float) -> None:
    """Refuse a loss that is not finite, or below its bound, where its value may be looked at."""
    loss = loss.detach()
    if values_visible(loss) and not (bool(loss.isfinite()) and float(loss) >= low):
        refuse("loss", f"a finite number >= {low:g}", float(loss))


def real(tensor: Tensor) -> Tensor:
    """A tensor without its graph, complex numbers as pairs."""
    return torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor


_SMALL = 2**15
"""Numbers up to which tensors are laid beside each other for one inner product."""


def flat(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Vectors of float32 or wider for :func:`inner`: large tensors alone, small ones of a kind one after the other.

    It depends on the tensors and their order, not on how a step takes them together.
    """
    vectors: list[Tensor] = []
    kinds: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        tensor = widen(tensor)
        if tensor.numel() > _SMALL:
            vectors.append(tensor.reshape(-1))
        else:
            kinds.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    return vectors + [flatten_dense_tensors(alike) for alike in kinds.values()]


def inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """The inner product of two lists of vectors that :func:`flat` gave, in the type of :func:`total`."""
    return total(torch.dot(x, y) for x, y in zip(a, b, strict=True))
