"""Passes that give the same bits however often they run, can be derived twice, and leave no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .checks import check_choice, refuse
from .displaced import Traces, random_numbers, same_random_numbers
from .torch_private import AnyBatchNorm, AnyDropout

Value = TypeVar("Value")
TRAIN_MODES = ("refuse", "evaluate", "freeze", "trust")


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Inside the block attention has its plain form, which can be derived twice and in forward mode.

    Neither fused attention nor the fused layers of a transformer can. Afterwards, and after an exception, the settings
    are what they were.

    >>> with twice_differentiable():
    ...     torch.backends.cuda.flash_sdp_enabled(), torch.backends.mha.get_fastpath_enabled()
    (False, False)
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class FrozenPass:
    """A pass through modules that gives the same bits whenever it runs, and leaves no trace.

    Each run draws the random numbers of the first, and goes without them outside; buffers that it writes (running
    statistics, memories) are copies, so that those of the modules stay.

    Args:
        forward: gives a tensor: a loss, or outputs.
        train_mode: what is done about modules in training mode.

            - "refuse" a pass through batch norm or dropout in it, and one whose value depends on random numbers, as its
              curvature is that of another function at each call;
            - "evaluate": run modules in evaluation mode, and put their modes back;
            - "freeze" training mode: one mask of dropout for all runs, batch norm by the statistics of its batch;
            - "trust" the pass as it is, with the traces that it leaves.
        modules: that "evaluate" is about.

    Raises:
        ValueError: such a pass, at its first run; or one that gives another value with the same random numbers.

    >>> layer = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    >>> FrozenPass(lambda: layer(torch.ones(1, 2)).sum())()
    Traceback (most recent call last):
    ValueError: train_mode: expected modules in evaluation mode, "evaluate" or "freeze", got 'Dropout in training mode'
    """

    def __init__(
        self, forward: Callable[[], Tensor], train_mode: str = "refuse", modules: Sequence[nn.Module] = ()
    ) -> None:
        check_choice("train_mode", train_mode, TRAIN_MODES)
        if train_mode == "evaluate" and not modules:
            refuse("modules", 'those whose modes train_mode="evaluate" changes', "none")
        self._evaluated = (
            [inner for module in modules for inner in module.modules()] if train_mode == "evaluate" else []
        )
        self.forward = forward
        self.train_mode = train_mode
        self._numbers = random_numbers()
        self._modules: list[nn.Module] = []
        self._first: Tensor | None = None
        self._looked = self._compared = train_mode == "trust"

    def __call__(self) -> Tensor:
        """The value, with its graph where gradients are on; the first time compared with that of another run."""
        value = self.run(self.forward)
        if not self._compared:
            assert self._first is not None
            if not _same(self._first, value):
                given = "with the same random numbers" if self.train_mode == "freeze" else "at another"
                refuse("loss", "the same value at each call", f"another one {given}")
            self._compared = True
        return value

    def run(self, function: Callable[[], Value]) -> Value:
        """Whatever a function gives under the conditions of this pass."""
        if self.train_mode == "trust":
            with twice_differentiable():
                return function()
        if not self._looked:
            self._first, self._looked = self._look(), True
        with (
            copied_buffers(self._modules),
            _evaluating(self._evaluated),
            twice_differentiable(),
            same_random_numbers(self._numbers),
        ):
            return function()

    def _look(self) -> Tensor:
        """A run without a graph, which finds the modules, with other random numbers where those may not matter."""
        numbers = self._numbers
        if self.train_mode != "freeze":
            numbers = {name: _other(name) for name in numbers}
        traces = Traces()
        try:
            with _evaluating(self._evaluated), traces.watching():
                with torch.no_grad(), twice_differentiable(), same_random_numbers(numbers):
                    value = self.forward()
                training = [module for module in traces.modules if module.training]
        finally:
            traces.undo(changed=True)
        norms = [module for module in training if isinstance(module, AnyBatchNorm)]
        dropouts = [module for module in training if isinstance(module, AnyDropout) and module.p > 0]
        if self.train_mode != "freeze" and (norms or dropouts):
            kind = type((norms or dropouts)[0]).__name__
            refuse("train_mode", 'modules in evaluation mode, "evaluate" or "freeze"', f"{kind} in training mode")
        self._modules = traces.modules
        return value.detach()


@contextmanager
def _evaluating(modules: Sequence[nn.Module]) -> Iterator[None]:
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, mode in zip(modules, modes):
            module.training = mode


@contextmanager
def copied_buffers(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Modules with copies of their buffers, which a graph may keep; afterwards with their own."""
    places = [(m._buffers, name, b) for m in modules for name, b in m._buffers.items() if b is not None]
    copies = {id(b): b.detach().clone() for _, _, b in places}
    try:
        for buffers, name, b in places:
            buffers[name] = copies[id(b)]
        yield
    finally:
        for buffers, name, b in places:
            buffers[name] = b


def _other(device: str) -> Tensor:
    """A state of a generator in which it hardly ever is."""
    return torch.Generator(device).manual_seed(0x5EED_0F_A11).get_state()


def _same(first: Tensor, second: Tensor) -> bool:
    """Whether two values are equal up to the order of sums, which a GPU may change."""
    if first.shape != second.shape:
        return False
    a, b = first.double(), second.detach().double()
    allowed = min(1e3 * torch.finfo(second.dtype).eps, 0.05) * float(a.abs().nan_to_num().max()) if a.numel() else 0.0
    return bool(((a == b) | (a.isnan() & b.isnan()) | ((a - b).abs() <= allowed)).all())
