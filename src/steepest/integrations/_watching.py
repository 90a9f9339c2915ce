"""What callbacks of Transformers and Lightning share: a recorder and a guard that begin with the training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..core.checks import refuse, refuse_type
from ..watch.guard import Guard
from ..watch.recorder import Recorder
from ._passes import bare


class Watching:
    """Makes the recorder and the guard of a training, and tells them the loss and the batch of each step once.

    Args:
        recorder: arguments of a :class:`~steepest.watch.Recorder`.
        guard: ``True``, or arguments of a :class:`~steepest.watch.Guard`; None without one.
    """

    def __init__(self, recorder: Mapping[str, Any], guard: Mapping[str, Any] | bool | None) -> None:
        if guard is not None and not isinstance(guard, (bool, Mapping)):
            refuse_type("guard", "True, or a mapping of arguments of a Guard", guard)
        own = dict(guard) if isinstance(guard, Mapping) else {}
        taken = {"model", "optimizer"} & {*recorder, *own}
        if taken:
            refuse("arguments", "those that the trainer does not know itself", sorted(taken))
        self._recorder_arguments = recorder
        guarded = bool(guard) or isinstance(guard, Mapping)
        self._guard_arguments = {"stops": False, **own} if guarded else None  # the trainer ends the run, no exception
        self._state: dict[str, Any] = {}
        self.recorder: Recorder | None = None
        self.guard: Guard | None = None
        self._told: list[tuple[Tensor, Any, Any, bool]] = []

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Training begins, or goes on."""
        self.end()
        optimizer = bare(optimizer)
        self.recorder = Recorder(model, optimizer=optimizer, **self._recorder_arguments)
        if self._guard_arguments is not None:
            self.guard = Guard(model, optimizer, **self._guard_arguments)
        self.load(self._state)

    def tell(self, loss: Tensor, inputs: Any, targets: Any = None, *, share: bool = False) -> None:
        """A micro-batch was run.

        Args:
            loss: of it, not scaled.
            inputs, targets: of it.
            share: whether the losses of a step add up to it; otherwise it is their mean.
        """
        if self.guard is None or not self.guard.replaying:
            self._told.append((loss.detach(), inputs, targets, share))

    def step(self) -> None:
        """All micro-batches of a step have been run, and the optimizer steps next."""
        told, self._told = self._told, []
        if not told:
            return
        losses = torch.stack([loss.mean() for loss, *_ in told])
        loss = losses.sum() if told[-1][3] else losses.mean()
        for watcher in (self.recorder, self.guard):
            if watcher is not None:
                watcher.observe(loss, *told[-1][1:3])

    def end(self) -> None:
        """Training is over."""
        for watcher in (self.recorder, self.guard):
            if watcher is not None:
                watcher.close()

    def state(self) -> dict[str, Any]:
        """Of both."""
        own = {"recorder": self.recorder, "guard": self.guard}
        return {name: watcher.state_dict() for name, watcher in own.items() if watcher is not None}

    def load(self, state: Mapping[str, Any]) -> None:
        """Of both, now or when training begins."""
        self._state = dict(state)
        if self.recorder is not None and "recorder" in state:
            self.recorder.load_state_dict(state["recorder"])
        if self.guard is not None and "guard" in state:
            self.guard.load_state_dict(state["guard"])


class WatchedTraining:
    """What a callback of either library has: its recorder and its guard."""

    _watching: Watching

    @property
    def recorder(self) -> Recorder | None:
        """Of the present training, or None before the first."""
        return self._watching.recorder

    @property
    def guard(self) -> Guard | None:
        """Of the present training, or None."""
        return self._watching.guard
