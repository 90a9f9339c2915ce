"""Steps of this package in the Trainer of Transformers."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from ..core.checks import refuse
from ..core.wrapper import TwoPassWrapper, Wrapper
from ._passes import Joint, Window, WithLoss, bare, several, takes_loss, trained

_AGGREGATOR = "aggregator.pt"
"""Where a checkpoint has the state of the aggregator."""


class StepsMixin:
    """Steps in a Trainer that it knows nothing of: two gradients, the loss, or several losses joined into one gradient.

    It stands before a class of trainer: ``class MyTrainer(StepsMixin, SFTTrainer)``. What it adds follows from the
    optimizer, which comes as to any trainer (``optimizers=`` or ``optimizer_cls_and_kwargs=``):

    - one that takes two gradients, as :class:`~steepest.optim.SAM`: the first pass is the trainer's own, over all
      micro-batches of a step; the second runs over the same ones, with the same random numbers, at moved weights.
      Clipping, ``grad_norm`` and callbacks meet the gradient of the step. An overflow in either pass skips the step;
    - one whose ``step`` has an argument ``loss``: it gets that of the step, over its micro-batches and ranks;
    - with ``aggregator``: the gradients of several losses are summed over micro-batches and ranks, and joined once a
      step. Its state is saved and resumed with the optimizer's. The loss that is logged is their sum.

    DeepSpeed and FSDP hold gradients that such steps cannot see, and are refused.

    Args:
        aggregator: from a Jacobian ``[m, n]`` to a direction ``[n]``, ours or TorchJD's; needs m times the memory of
            the gradients.
        shared: the parameters that it is about, as ``model.bert.parameters()``; others get the gradient of the sum of
            the losses. None is all.
        *args, **kwargs: of the trainer.
    """

    optimizer: Any
    accelerator: Any
    args: Any
    add_callback: Any
    compute_loss_context_manager: Any
    _prepare_inputs: Any

    def __init__(
        self, *args: Any, aggregator: Any = None, shared: Iterable[Tensor] | None = None, **kwargs: Any
    ) -> None:
        if aggregator is None and shared is not None:
            refuse("shared", "None where there is no aggregator", shared)
        self.aggregator: Any = aggregator
        self.joint = None if aggregator is None else Joint(aggregator, shared)
        self.window = Window()
        super().__init__(*args, **kwargs)
        self.add_callback(_AroundSteps(self))

    def compute_losses(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        """The losses of a micro-batch, for an aggregator: means over it, a tensor ``[m]``, a sequence or a dict.

        Override it where the model does not give them as ``losses``.

        Args:
            model: as the trainer prepared it.
            inputs: on its device.
        """
        outputs = model(**inputs)
        losses = outputs.get("losses") if hasattr(outputs, "get") else getattr(outputs, "losses", None)
        if losses is None:
            refuse("compute_losses", "a model whose outputs have losses, or a method of your own", type(outputs))
        return losses

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """That of the trainer, which is handed the loss where it takes one."""
        super().create_optimizer(*args, **kwargs)
        own = bare(self.optimizer)
        if takes_loss(own) and not isinstance(own, WithLoss):
            self.optimizer = WithLoss(own)
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """A micro-batch forward and backward, and with the last one of a step what comes before ``optimizer.step``."""
        optimizer = bare(self.optimizer)
        if self.joint is None and not isinstance(optimizer, Wrapper):
            step: Tensor = super().training_step(model, inputs, *args, **kwargs)
            return step
        self._check_engine()
        if isinstance(optimizer, Wrapper):
            optimizer._step_supports_amp_scaling = False
        whole = super().training_step if self.joint is None else self._several

        def run() -> Tensor:
            loss: Tensor = whole(model, copy.copy(inputs), *args, **kwargs)  # what takes labels out must not lack them
            return loss

        loss = self.window.run(run)
        self.window.add(loss)
        if self.accelerator.sync_gradients:
            self._before_step(model, optimizer)
        return loss

    def _check_engine(self) -> None:
        for engine in ("deepspeed", "fsdp"):
            if getattr(self, f"is_{engine}_enabled", False):
                refuse("optimizer", f"one that takes the gradient as it is, under {engine}", bare(self.optimizer))

    def _several(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        assert self.joint is not None
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()
        inputs = self._prepare_inputs(inputs)
        # ranks average Jacobians, not what a backward pass would leave
        with self.compute_loss_context_manager(), self.accelerator.no_sync(model):
            losses = several(self.compute_losses(model, inputs), "compute_losses")
            if not getattr(self, "loss_is_scaled_for_ga", None):
                losses = losses / getattr(
                    self, "current_gradient_accumulation_steps", self.args.gradient_accumulation_steps
                )
            self.joint.add(losses, trained(bare(self.optimizer)), self._scale())
        return losses.detach().sum()

    def _scale(self) -> float:
        scaler = self.accelerator.scaler
        if scaler is None or not scaler.is_enabled():
            return 1.0
        scaler.scale(torch.zeros((), device=self.args.device))  # a scaler begins with the first loss
        return float(scaler.get_scale())

    def _before_step(self, model: nn.Module, optimizer: Any) -> None:
        loss = self.window.loss
        assert loss is not None
        finish = None
        if self.joint is not None:
            mean = functools.partial(self.accelerator.reduce, reduction="mean")
            finish = functools.partial(self.joint.write, mean, self._scale())
            finish()
        if isinstance(optimizer, WithLoss):
            optimizer.loss = self.accelerator.reduce(loss, reduction="mean")
        if isinstance(optimizer, TwoPassWrapper) and optimizer.passes == 2:
            unsynced = functools.partial(self.accelerator.no_sync, model=model)
            scaler = self.accelerator.scaler
            self.window.again(optimizer, model.zero_grad, unsynced, scaler=scaler, finish=finish)
        self.window.clear()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save and self._keeps_state():
            torch.save(self.aggregator.state_dict(), Path(output_dir) / _AGGREGATOR)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        file = None if checkpoint is None else Path(checkpoint) / _AGGREGATOR
        if self._keeps_state() and file is not None and file.is_file():
            state = torch.load(file, map_location=self.args.device, weights_only=True)
            self.aggregator.load_state_dict(state)

    def _keeps_state(self) -> bool:
        return isinstance(self.aggregator, nn.Module)


class _AroundSteps(TrainerCallback):
    """Begins afresh with a training, and gives up second passes whose step a scaler skipped."""

    def __init__(self, trainer: StepsMixin) -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.window.clear()
        if self.trainer.joint is not None:
            self.trainer.joint.jacobian = None

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        optimizer = bare(self.trainer.optimizer)
        if isinstance(optimizer, TwoPassWrapper):
            optimizer.skip()


class SteepestTrainer(StepsMixin, Trainer):
    """The Trainer of Transformers with the steps of this package; see :class:`StepsMixin`."""
