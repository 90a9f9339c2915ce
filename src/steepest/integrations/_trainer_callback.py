"""A recorder and a guard beside the Trainer of Transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ..core.probe import being_measured, inner_module
from ._watching import WatchedTraining, Watching

FILE = "steepest_watch.pt"
"""In each checkpoint, beside the trainer's own state."""


class RecorderCallback(WatchedTraining, TrainerCallback):  # type: ignore[misc]
    """Records a training of Transformers' Trainer, and guards it.

    The loss is that of the model's outputs, of every step and as it is: not the Trainer's log, which averages over
    steps and leaves NaN out. Gradients are read where the optimizer steps. What the recorder and the guard keep is
    saved with each checkpoint and loaded with ``resume_from_checkpoint``. A guard that stops ends the training as
    ``control.should_training_stop`` does.

    Args:
        guard: ``True``, or arguments of a :class:`~steepest.watch.Guard`; None guards nothing.
        recorder: arguments of a :class:`~steepest.watch.Recorder`: probes, every, sinks, name.

    Attributes:
        recorder, guard: those of the training, from its beginning on.

    Example::

        watch = RecorderCallback(sinks=["run.jsonl"], guard=True)
        trainer = Trainer(model, args, train_dataset=data, callbacks=[watch])
    """

    def __init__(self, *, guard: Mapping[str, Any] | bool | None = None, **recorder: Any) -> None:
        self._watching = Watching(recorder, guard)
        self._handle: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: Any, optimizer: Any, **_: Any) -> None:
        """Attach."""
        if self._handle is not None:
            self._handle.remove()
        self._watching.begin(model, optimizer)
        self._handle = inner_module(model).register_forward_hook(self._run, with_kwargs=True)
        checkpoint = _checkpoint(args, state)
        if checkpoint is not None and (checkpoint / FILE).is_file():
            self._watching.load(torch.load(checkpoint / FILE, map_location="cpu", weights_only=True))

    def _run(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        if being_measured():
            return
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
        if model.training and torch.is_grad_enabled() and isinstance(loss, Tensor) and loss.requires_grad:
            inputs = dict(kwargs) if not args else tuple(args)
            self._watching.tell(loss, inputs, share=kwargs.get("num_items_in_batch") is not None)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """All micro-batches of the step are run."""
        self._watching.step()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Whether the guard has stopped."""
        if self.guard is not None and self.guard.stopped:
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save beside the trainer's state."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            torch.save(self._watching.state(), folder / FILE)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write what waits."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self._watching.end()


def _checkpoint(args: Any, state: Any) -> Path | None:
    """That from which the trainer goes on: it has loaded the step already, and does not say from where."""
    if not state.global_step:
        return None
    given = getattr(args, "resume_from_checkpoint", None)
    if isinstance(given, str) and Path(given).is_dir():
        return Path(given)
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
