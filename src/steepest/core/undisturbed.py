"""What a rehearsal must not change: random states, and models and optimizers that train in it and go back."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@contextmanager
def same_random_states(*generators: torch.Generator) -> Iterator[None]:
    """After the block, and after an exception in it, all generators are where they were.

    Those are Python's, NumPy's and torch's own, on the CPU and on every GPU in use, and the given ones.

    >>> before = torch.get_rng_state()
    >>> with same_random_states():
    ...     _ = torch.rand(3)
    >>> bool((torch.get_rng_state() == before).all())
    True
    """
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - data sets draw from it
    of_torch = torch.get_rng_state()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    own = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002
        torch.set_rng_state(of_torch)
        for device, state in enumerate(on_gpus):
            torch.cuda.set_rng_state(state, device)
        for generator, state in zip(generators, own):
            generator.set_state(state)


class Snapshot:
    """Where modules and an optimizer are now, to go back there: values, gradients, modes, rates, moments.

    Parameters, buffers and groups stay the objects that they are; their values come back bit for bit.

    Args:
        modules: networks, losses; with whatever ``get_extra_state`` of theirs gives.
        optimizer: one that trains them.

    >>> model = nn.Linear(2, 1); optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    >>> snapshot, before = Snapshot([model], optimizer), model.weight.detach().clone()
    >>> model(torch.ones(1, 2)).sum().backward(); optimizer.step(); snapshot.restore()
    >>> bool((model.weight == before).all()), model.weight.grad
    (True, None)
    """

    def __init__(self, modules: Sequence[nn.Module], optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        own = list({id(inner): inner for module in modules for inner in module.modules()}.values())
        self._modes = [(module, module.training) for module in own]
        self._extra = [
            (module, copy.deepcopy(module.get_extra_state()))
            for module in own
            if type(module).get_extra_state is not nn.Module.get_extra_state
        ]
        tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
        tensors += [p for group in optimizer.param_groups for p in group["params"]]
        unique = list({id(t): t for t in tensors}.values())
        self._values = [(t, t.detach().clone()) for t in unique]
        self._gradients = [(t, t.grad, None if t.grad is None else t.grad.clone()) for t in unique if t.is_leaf]
        self._groups = [
            (group, {name: _copied(value) for name, value in group.items() if name != "params"})
            for group in optimizer.param_groups
        ]
        self._moments = {p: copy.deepcopy(state) for p, state in optimizer.state.items()}

    def restore(self) -> None:
        """Go back."""
        with torch.no_grad():
            for tensor, value in self._values:
                tensor.copy_(value)
            for tensor, gradient, slope in self._gradients:
                if gradient is not None and slope is not None:
                    gradient.copy_(slope)
                tensor.grad = gradient
        for module, mode in self._modes:
            module.training = mode
        for module, extra in self._extra:
            module.set_extra_state(copy.deepcopy(extra))
        for group, values in self._groups:
            for name in set(group) - {*values, "params"}:
                del group[name]
            for name, value in values.items():
                if isinstance(value, Tensor) and isinstance(group.get(name), Tensor):
                    with torch.no_grad():
                        group[name].copy_(value)
                else:
                    group[name] = _copied(value)
        self.optimizer.state.clear()
        self.optimizer.state.update({p: copy.deepcopy(state) for p, state in self._moments.items()})


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
