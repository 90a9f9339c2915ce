"""Gradients at displaced weights: perturb, evaluate, restore to the last bit, as if there had been one pass."""

from __future__ import annotations

import ctypes
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from . import native
from .checks import values_visible
from .lists import Memory, plain_lists
from .reductions import widen
from .torch_private import foreach_add_, foreach_copy_, foreach_mul, foreach_norm


@contextmanager
def displaced(parameters: Sequence[Tensor], moves: Sequence[Tensor | None]) -> Iterator[None]:
    """Parameters moved inside the block; afterwards, and after an exception, what they were, to the last bit.

    >>> w = torch.nn.Parameter(torch.tensor([0.1]))
    >>> with displaced([w], [torch.tensor([1.0])]):
    ...     print(w.data)
    tensor([1.1000])
    >>> w.data
    tensor([0.1000])
    """
    before = move(parameters, moves)
    try:
        yield
    finally:
        put_back(before)


Before = tuple[list[Tensor], list[Tensor]]
"""Parameters that were moved, and copies of what they were."""

SOURCE = Path(__file__).with_name("displaced.cpp")


@cache
def _library(level: str) -> ctypes.CDLL | None:
    library = native.library(SOURCE)
    if library is not None:
        library.displaced_squares.restype = ctypes.c_double
    return library


class Climb:
    """Moves of parameters along their gradients, and back to the last bit, in C++.

    Args:
        parameters, gradients: of float32 on the CPU, as :meth:`runs` asks.
        memory: for copies of the parameters: memory that was used before costs less than fresh one.
    """

    def __init__(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], memory: Tensor) -> None:
        library = _library(native.level())
        assert library is not None
        self._library, self._arrays, self.parameters = library, Memory(), parameters
        self._weights, self._slopes = self._arrays.pointers(parameters), self._arrays.pointers(gradients)
        self._sizes, self._count = self._arrays.sizes(parameters), ctypes.c_int64(len(parameters))
        self._memory, self._before = memory, ctypes.c_void_p(memory.data_ptr())

    @staticmethod
    def runs(parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> bool:
        """Whether it takes these."""
        return bool(parameters) and plain_lists(parameters, gradients) and _library(native.level()) is not None

    def length(self) -> float:
        """That of the gradients."""
        return math.sqrt(self._library.displaced_squares(self._slopes, self._sizes, self._count))

    @torch.no_grad()
    def move(self, factors: Sequence[float]) -> None:
        """``p <- p + factor g``, the product rounded before it is added."""
        own = self._arrays.numbers("f", factors)
        self._library.displaced_climb(self._weights, self._slopes, self._before, self._sizes, own, self._count)
        increment_version(self.parameters)

    @torch.no_grad()
    def put_back(self) -> None:
        """Parameters as they were."""
        self._library.displaced_return(self._weights, self._before, self._sizes, self._count)
        increment_version(self.parameters)


@torch.no_grad()
def move(parameters: Sequence[Tensor], moves: Sequence[Tensor | None]) -> Before:
    """Move parameters, those with None not; gives what :func:`put_back` takes."""
    moved = [p for p, own in zip(parameters, moves) if own is not None]
    before = [p.detach().clone() for p in moved]
    if moved:
        foreach_add_(moved, [own for own in moves if own is not None])
    return moved, before


@torch.no_grad()
def put_back(before: Before | Climb) -> None:
    """Parameters as they were before :func:`move`, to the last bit."""
    if isinstance(before, Climb):
        before.put_back()
        return
    moved, values = before
    if moved:
        foreach_copy_(moved, values)


class Traces:
    """What passes leave in buffers (running statistics, per-sample memories), so that it can be undone.

    Buffers are found by themselves: those of each module that is called inside :meth:`watching`, and of all inside it.

    Args:
        modules: others, whose buffers a pass writes without calling them.

    >>> norm = nn.BatchNorm1d(1)
    >>> traces = Traces()
    >>> with traces.watching():
    ...     _ = norm(torch.tensor([[1.0], [3.0]]))
    >>> norm.running_mean
    tensor([0.2000])
    >>> traces.undo()
    >>> norm.running_mean
    tensor([0.])
    """

    def __init__(self, modules: Iterable[nn.Module] = ()) -> None:
        self._seen: dict[int, nn.Module] = {}
        self._before: dict[int, tuple[dict[str, Tensor | None], str, Tensor, Tensor]] = {}
        for module in modules:
            self.look(module)

    def look(self, module: nn.Module) -> None:
        """Copies of the buffers of a module that was not seen before."""
        if id(module) in self._seen:
            return
        waiting: list[nn.Module | None] = [module]
        while waiting:
            inner = waiting.pop()
            if inner is not None and id(inner) not in self._seen:
                self._seen[id(inner)] = inner
                if inner._buffers:
                    self._copy(inner._buffers)
                waiting.extend(inner._modules.values())

    def _copy(self, buffers: dict[str, Tensor | None]) -> None:
        for name, buffer in buffers.items():
            if buffer is not None and id(buffer) not in self._before:
                self._before[id(buffer)] = (buffers, name, buffer, buffer.detach().clone())

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside the block the buffers of a module are copied before it is called the first time."""
        self.watch()
        try:
            yield
        finally:
            self.look_away()

    def watch(self) -> None:
        """:meth:`watching`, from now on until :meth:`look_away`."""
        _watchers.append(ref(self))
        _hook(True)

    def look_away(self) -> None:
        """End of :meth:`watch`."""
        _watchers[:] = [own for own in _watchers if own() is not None and own() is not self]
        if not _watchers:
            _hook(False)

    @property
    def modules(self) -> list[nn.Module]:
        """Those that were called, and all inside them."""
        return list(self._seen.values())

    @torch.no_grad()
    def undo(self, *, changed: bool = False) -> None:
        """Buffers as they were before the first call.

        Args:
            changed: write only into buffers that have changed, as writing ends the graphs that need the others.
        """
        for buffers, name, buffer, value in self._before.values():
            if not changed or not torch.equal(buffer, value):
                buffer.copy_(value)
            buffers[name] = buffer

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Passes inside the block leave the buffers that were found as they are now."""
        now = Traces()
        for module in self._seen.values():
            if module._buffers:
                now._copy(module._buffers)
        try:
            yield
        finally:
            now.undo()


_watchers: list[ref[Traces]] = []


def _look(module: nn.Module, *_: object) -> None:
    if torch.compiler.is_compiling():  # a compiled module is looked at from outside
        return
    gone = True
    for own in tuple(_watchers):
        watcher = own()
        if watcher is not None:
            gone = False
            if id(module) not in watcher._seen:
                watcher.look(module)
    if gone:  # who asked
        _hook(False)


@cache
def _handle() -> RemovableHandle:
    """The one hook of this module: compiled modules ask for its number, and would be compiled anew for another."""
    warnings.filterwarnings("ignore", "Using `torch.compile.module.` when there are global hooks", UserWarning)
    return register_module_forward_pre_hook(_look)


def _hook(on: bool) -> None:
    handle = _handle()
    hooks: Any = handle.hooks_dict_ref()
    if on:
        hooks[handle.id] = _look
    else:
        hooks.pop(handle.id, None)


@contextmanager
def unrecorded(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Passes that leave no trace in buffers (running statistics, memories): afterwards they are what they were."""
    buffers = list({id(b): b for module in modules for b in module.buffers()}.values())
    before = [b.detach().clone() for b in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before):
                buffer.copy_(value)


@contextmanager
def same_random_numbers(state: dict[str, Tensor]) -> Iterator[None]:
    """Inside the block torch draws what it drew from ``state`` on; afterwards it goes on as without the block."""
    after = random_numbers()
    _set_random_numbers(state)
    try:
        yield
    finally:
        _set_random_numbers(after)


def random_numbers() -> dict[str, Tensor]:
    """The states of torch's generators, of the CPU and of a GPU in use."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_numbers(state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


SINGLE, SMALLEST = 2**20, 1e-12
"""Up to so many numbers a CPU sums squares of float32 in float32, where nothing is lost: unless the length is tiny."""


@torch.no_grad()
def length(tensors: Sequence[Tensor]) -> Tensor:
    """The length of several tensors as one vector, in float64: no square of a tiny or a huge number is lost.

    >>> length([torch.tensor([3.0]), torch.tensor([4e-30])]).item()
    3.0
    """
    if tensors and plain_lists(tensors) and (library := _library(native.level())) is not None:
        memory = Memory()
        pointers, sizes = memory.pointers(tensors), memory.sizes(tensors)
        total = library.displaced_squares(pointers, sizes, ctypes.c_int64(len(tensors)))
        return torch.tensor(math.sqrt(total), dtype=torch.float64)
    for single in (True, False):
        norms: list[Tensor] = []
        for (device, dtype), members in _alike(tensors).items():
            values = [_components(tensors[i]) for i in members]
            quick = single and device.type == "cpu" and dtype == torch.float32
            if quick and max(value.numel() for value in values) <= SINGLE:
                norms.append(torch.stack(foreach_norm(values, 2)).double())
            else:
                norms.append(torch.stack(foreach_norm(values, 2, torch.float64)))
        if not norms:
            break
        joined = norms[0] if len(norms) == 1 else torch.cat([n.to(norms[0].device) for n in norms])
        norm: Tensor = torch.linalg.vector_norm(joined)
        if not single or not values_visible(norm) or SMALLEST < float(norm) < torch.inf:
            return norm
    return torch.zeros((), dtype=torch.float64)


@torch.no_grad()
def ascent(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    rho: float | Sequence[float],
    *,
    adaptive: bool | Sequence[bool] = False,
    p: float = 2.0,
    norm: Tensor | None = None,
) -> list[Tensor | None]:
    r"""The move of length rho that raises the loss most, over all parameters as one vector; 0 where the gradient is.

    .. math:: \epsilon = \rho \, g / \|g\|, \qquad \text{adaptive: } \epsilon = \rho \, T^2 g / \|T g\|, \; T = |w|, \\
        \text{length in } p: \; \epsilon = \rho \operatorname{sign}(g) |g|^{q-1} / \|g\|_q^{q/p}, \; 1/p + 1/q = 1

    A gradient that is not finite gives moves of NaN.

    Args:
        parameters, gradients: tensors of the same shapes; None stays None.
        rho: radius, or one for each parameter.
        adaptive: whether moves are measured relative to each weight, for all or for each.
        p: in which norm moves have length rho; > 1, inf too.
        norm: ``length(gradients)``, where it is known; used for p = 2 and nothing adaptive.

    >>> ascent([torch.zeros(2)], [torch.tensor([3.0, 4.0])], 0.05)
    [tensor([0.0300, 0.0400])]
    """
    places = [i for i, g in enumerate(gradients) if g is not None]
    radii = list(rho) if isinstance(rho, Sequence) else [rho] * len(gradients)
    scaled = list(adaptive) if isinstance(adaptive, Sequence) else [adaptive] * len(gradients)
    own: dict[int, Tensor] = {}
    sizes: dict[int, Tensor] = {}
    for i in places:
        g = gradients[i]
        assert g is not None
        own[i] = widen(_components(g))
        if scaled[i]:
            sizes[i] = widen(_components(parameters[i])).abs()
            own[i] = own[i] * sizes[i]
    if not places:
        return [None] * len(gradients)
    if p != 2.0:
        own = dict(zip(own, _dual(list(own.values()), p)))
    elif norm is None or any(scaled):
        norm = length(list(own.values()))
    moves: list[Tensor | None] = [None] * len(gradients)
    groups: dict[tuple[torch.device, torch.dtype, float], list[int]] = {}
    for i in places:
        groups.setdefault((own[i].device, own[i].dtype, radii[i]), []).append(i)
    for (device, dtype, radius), members in groups.items():
        values = [own[i] for i in members]
        if p == 2.0:
            assert norm is not None
            factor = torch.where(norm == 0, 0.0, radius / norm).where(norm.isfinite(), torch.nan)
            values = list(foreach_mul(values, factor.to(device, dtype)))
        else:
            values = list(foreach_mul(values, radius))
        for i, value in zip(members, values):
            value = value * sizes[i] if scaled[i] else value
            own_type = parameters[i].dtype
            if value.dtype != own_type:
                value = value.to(own_type.to_real())
                value = torch.view_as_complex(value) if own_type.is_complex else value
            moves[i] = value
    return moves


def _dual(gradients: Sequence[Tensor], p: float) -> list[Tensor]:
    """The vector of length 1 in the p norm that has the largest product with the gradient, 0 for 0."""
    q = 1.0 if math.isinf(p) else p / (p - 1.0)
    top = torch.stack([g.abs().amax().double() if g.numel() else torch.zeros(()).double() for g in gradients]).amax()
    unit = [torch.where(top == 0, 0.0, g.abs() / torch.where(top == 0, 1.0, top).to(g.dtype)) for g in gradients]
    total = torch.stack([u.double().pow(q).sum() for u in unit]).sum()
    factor = torch.where(total == 0, 0.0, total.pow(-1.0 / p)).where(top.isfinite(), torch.nan)
    return [g.sign() * u.pow(q - 1.0) * factor.to(g.dtype) for g, u in zip(gradients, unit)]


def _components(value: Tensor) -> Tensor:
    """Complex numbers as pairs."""
    return torch.view_as_real(value) if value.is_complex() else value


def _alike(tensors: Sequence[Tensor]) -> dict[tuple[torch.device, torch.dtype], list[int]]:
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, tensor in enumerate(tensors):
        groups.setdefault((tensor.device, tensor.dtype), []).append(i)
    return groups


def sharpness_aware(
    closure: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    *,
    rho: float,
    adaptive: bool = False,
    modules: Iterable[nn.Module] = (),
) -> tuple[Tensor, list[Tensor | None], list[Tensor | None]]:
    """The loss, its gradient, and its gradient at the worst point within rho: ``(loss, g, g_sam)``.

    The second pass draws the random numbers of the first and leaves the buffers of ``modules`` as the first left them.

    Args:
        closure: runs forward and gives the scalar loss.
        parameters: those that move and are differentiated; None stands where the loss does not depend on one.
        rho: radius >= 0.
        adaptive: whether moves are measured relative to each weight.
        modules: whose buffers (running statistics) the second pass must not change.
    """
    start = random_numbers()
    with torch.enable_grad():
        loss = closure()
        gradients: list[Tensor | None] = list(torch.autograd.grad(loss, parameters, allow_unused=True))
    moves = ascent(parameters, gradients, rho, adaptive=adaptive)
    with displaced(parameters, moves), unrecorded(modules), same_random_numbers(start), torch.enable_grad():
        flat: list[Tensor | None] = list(torch.autograd.grad(closure(), parameters, allow_unused=True))
    return loss.detach(), gradients, flat
