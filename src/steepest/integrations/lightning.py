"""Steps of this package in Lightning: two gradients, the loss, or several losses joined into one gradient."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..core.wrapper import TwoPassWrapper, Wrapper
from ._passes import Joint, Window, WithLoss, bare, several, takes_loss, trained

__all__ = ["RecorderCallback", "StepsMixin"]  # noqa: F822


def __getattr__(name: str) -> Any:
    if name == "RecorderCallback":  # Lightning itself takes seconds to import
        from ._lightning_callback import RecorderCallback

        return RecorderCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class StepsMixin:
    """Steps in a LightningModule that its loop knows nothing of; it stands before that class among the bases.

    ``class Model(StepsMixin, lightning.LightningModule)``; of ``lightning`` and of ``pytorch_lightning`` alike. What it
    adds in automatic optimization follows from what ``configure_optimizers`` gives:

    - an optimizer that takes two gradients, as :class:`~steepest.optim.SAM`: all micro-batches of a step run a second
      time at moved weights, with the same random numbers and without ``self.log``. Clipping and
      ``on_before_optimizer_step`` meet the gradient of the step, once. An overflow in either pass skips the step. While
      ``self.second_pass`` is true, ``training_step`` should leave its metrics alone;
    - one whose ``step`` has an argument ``loss``: it gets that of the step, over its micro-batches and ranks.

    With ``aggregator``, ``training_step`` returns ``{"loss": ..., "losses": ...}``, where losses are ``[m]``, a
    sequence or a dict of scalars: their gradients are summed over micro-batches and ranks, and joined once a step;
    ``loss`` is only logged. An aggregator that is a module is saved with the model.

    In manual optimization :meth:`manual_step` makes the step.

    Attributes:
        aggregator: from a Jacobian ``[m, n]`` to a direction ``[n]``, ours or TorchJD's; set it in ``__init__``.
        shared: parameters that it is about; others get the gradient of the sum of the losses. None is all.
    """

    second_pass: bool = False
    """Whether ``training_step`` runs the second time on a batch."""

    trainer: Any
    automatic_optimization: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "training_step" in vars(cls):
            setattr(cls, "training_step", _watched(vars(cls)["training_step"]))  # noqa: B010

    @property
    def _window(self) -> Window:
        window: Window = self.__dict__.setdefault("_steps_window", Window())
        return window

    @property
    def _joint(self) -> Joint | None:
        aggregator = getattr(self, "aggregator", None)
        if aggregator is None:
            return None
        joint: Joint | None = self.__dict__.get("_steps_joint")
        if joint is None or joint.aggregator is not aggregator:
            joint = self.__dict__["_steps_joint"] = Joint(aggregator, getattr(self, "shared", None))
        return joint

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Lightning's hook: the last micro-batch of a step, what comes before the step, and the step."""
        own = bare(optimizer)
        if optimizer_closure is None or not self._helps(own):
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            return
        own = self._stepping(own)

        def closure() -> Any:
            with self._unsynced() if self._joint is not None else contextlib.nullcontext():
                result = optimizer_closure()
            if result is not None:
                self._before_step(own)
            return result

        try:
            if isinstance(own, WithLoss):
                self.trainer.strategy.optimizer_step(own, closure, self)
            else:
                super().optimizer_step(epoch, batch_idx, optimizer, closure)
        finally:
            if isinstance(own, TwoPassWrapper):
                own.skip()
            self._window.clear()

    def manual_step(self, optimizer: Any, closure: Callable[[], Tensor]) -> Tensor:
        """A step in manual optimization.

        Args:
            optimizer: of ``self.optimizers()``.
            closure: zeroes gradients, runs forward and ``self.manual_backward``, and returns the loss. It runs twice
                where the optimizer takes two gradients; a scaler is told of both.

        Returns:
            the loss of the first pass.
        """
        own = self._stepping(bare(optimizer))
        losses = []

        def passes() -> Any:
            window = Window()
            losses.append(window.run(closure))
            if isinstance(own, WithLoss):
                own.loss = self.trainer.strategy.reduce(losses[0].detach(), reduce_op="mean")
            if isinstance(own, TwoPassWrapper) and own.passes == 2:
                self._run_again(window, own, lambda: None)
            return losses[0]

        try:
            if isinstance(own, WithLoss):
                optimizer._on_before_step()  # which counts steps
                self.trainer.strategy.optimizer_step(own, passes, self)
                optimizer._on_after_step()
            else:
                optimizer.step(closure=passes)
        finally:
            if isinstance(own, TwoPassWrapper):
                own.skip()
        return losses[0].detach()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Lightning's hook; with an aggregator it is a Jacobian that is taken."""
        losses = self.__dict__.pop("_steps_losses", None)
        if losses is None or self._joint is None:
            super().backward(loss, *args, **kwargs)
            return
        own = trained(bare(self.trainer.optimizers[0]))
        self._joint.add(losses, own, self._scale() / self.trainer.accumulate_grad_batches)

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's; the second pass logs nothing."""
        if not self.second_pass:
            super().log(*args, **kwargs)

    def log_dict(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's; the second pass logs nothing."""
        if not self.second_pass:
            super().log_dict(*args, **kwargs)

    def _helps(self, optimizer: Any) -> bool:
        return self._joint is not None or isinstance(optimizer, Wrapper) or takes_loss(optimizer)

    def _stepping(self, optimizer: Any) -> Any:
        """What steps: the optimizer, or the one that hands it the loss."""
        if takes_loss(optimizer) and not isinstance(optimizer, WithLoss):
            handing = self.__dict__.get("_steps_handing")
            if handing is None or handing.base_optimizer is not optimizer:
                handing = self.__dict__["_steps_handing"] = WithLoss(optimizer)
            optimizer = handing
        if isinstance(optimizer, Wrapper):
            optimizer._step_supports_amp_scaling = False  # Lightning unscales, clips and skips by itself
        return optimizer

    def _scaler(self) -> torch.amp.GradScaler | None:
        scaler: torch.amp.GradScaler | None = getattr(self.trainer.strategy.precision_plugin, "scaler", None)
        return scaler

    def _scale(self) -> float:
        scaler = self._scaler()
        if scaler is None or not scaler.is_enabled():
            return 1.0
        return float(scaler.get_scale())

    def _unsynced(self) -> AbstractContextManager[Any]:
        block: Any = getattr(self.trainer.strategy, "block_backward_sync", contextlib.nullcontext)
        context: AbstractContextManager[Any] = block()
        return context

    def _before_step(self, optimizer: Any) -> None:
        mean = functools.partial(self.trainer.strategy.reduce, reduce_op="mean")
        finish = None
        if self._joint is not None:
            finish = functools.partial(self._joint.write, mean, self._scale())
            finish()
        if isinstance(optimizer, WithLoss):
            assert self._window.loss is not None
            optimizer.loss = mean(self._window.loss)
        if isinstance(optimizer, TwoPassWrapper) and optimizer.passes == 2:
            self._run_again(self._window, optimizer, optimizer.zero_grad, finish)

    def _run_again(
        self,
        window: Window,
        optimizer: TwoPassWrapper,
        zero: Callable[[], Any],
        finish: Callable[[], Any] | None = None,
    ) -> None:
        self.second_pass = True
        try:
            window.again(optimizer, zero, self._unsynced, scaler=self._scaler(), finish=finish)
        finally:
            self.second_pass = False

    def _replay(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A micro-batch forward and backward once more, through the strategy, without its hooks."""
        with self._unsynced() if self._joint is not None else contextlib.nullcontext():
            output = self.trainer.strategy.training_step(*args, **kwargs)
            loss = output["loss"] if isinstance(output, Mapping) else output
            if loss is None:
                return
            loss = loss / self.trainer.accumulate_grad_batches
            scaler = self._scaler()
            self.backward(loss if scaler is None else scaler.scale(loss))


def _watched(training_step: Callable[..., Any]) -> Callable[..., Any]:
    """A ``training_step`` whose batches are remembered until the step, where that needs them."""

    @functools.wraps(training_step)
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        inside = self.__dict__.get("_steps_inside", False)
        trainer = getattr(self, "_trainer", None)
        if inside or trainer is None or not self.training or not self.automatic_optimization:
            return training_step(self, *args, **kwargs)
        optimizers: list[Optimizer] = trainer.optimizers
        if not any(self._helps(bare(optimizer)) for optimizer in optimizers):
            return training_step(self, *args, **kwargs)
        self.__dict__["_steps_inside"] = True  # a step that calls that of its base class is one
        try:
            work = functools.partial(training_step, self, *args, **kwargs)
            if self.second_pass:
                output = work()
            else:
                output = self._window.run(work, functools.partial(self._replay, args, kwargs))
        finally:
            self.__dict__["_steps_inside"] = False
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if loss is not None and not self.second_pass:
            self._window.add(loss / trainer.accumulate_grad_batches)
        if self._joint is not None:
            losses = several(output.get("losses") if isinstance(output, Mapping) else None, "training_step")
            self.__dict__["_steps_losses"] = losses
            output = {**output, "losses": losses.detach()}  # the graph ends with the micro-batch
        return output

    return watched
