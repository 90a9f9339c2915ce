"""A recorder and a guard beside Lightning's Trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ._watching import WatchedTraining, Watching

try:
    from lightning.pytorch.callbacks import Callback
except ImportError:
    from pytorch_lightning.callbacks import Callback


class RecorderCallback(WatchedTraining, Callback):  # type: ignore[misc]
    """Records a training of Lightning's Trainer, and guards it.

    The loss is what ``training_step`` gives, of every step; gradients are read where the optimizer steps, so that a
    scaler's factor is out of them. The first optimizer is watched. What both keep is saved in Lightning's checkpoints.
    A guard that stops sets ``trainer.should_stop``.

    Args:
        guard: ``True``, or arguments of a :class:`~steepest.watch.Guard`; None guards nothing.
        recorder: arguments of a :class:`~steepest.watch.Recorder`: probes, every, sinks, name. Probes that run the
            model call ``forward`` of the module with the first part of a batch ``(inputs, targets)``.

    Attributes:
        recorder, guard: those of the training, from its beginning on.

    Example::

        trainer = lightning.Trainer(callbacks=[RecorderCallback(sinks=["run.jsonl"], guard=True)])
    """

    def __init__(self, *, guard: Mapping[str, Any] | bool | None = None, **recorder: Any) -> None:
        super().__init__()
        self._watching = Watching(recorder, guard)
        self._batch: Any = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach."""
        self._watching.begin(pl_module, trainer.optimizers[0])

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """The batch, for probes that run the model."""
        self._batch = batch

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """The loss, which Lightning has divided by the number of micro-batches."""
        inputs, targets = self._batch, None
        if isinstance(self._batch, (tuple, list)) and len(self._batch) == 2:
            inputs, targets = self._batch
        self._watching.tell(loss, inputs, targets, share=True)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """All micro-batches of the step are run."""
        self._watching.step()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Whether the guard has stopped."""
        if self.guard is not None and self.guard.stopped:
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Write what waits."""
        self._watching.end()

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoints."""
        return self._watching.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From Lightning's checkpoints, before training begins."""
        self._watching.load(state_dict)
