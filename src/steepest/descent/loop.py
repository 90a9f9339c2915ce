"""One training loop for the whole project."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..core.checks import check_number, refuse
from ..core.method import Method, Plain
from ..core.objective import Batch, Objective
from .batches import Batches, LoaderBatches
from .hooks import Checkpoint, Hook


class Closure:
    """What ``optimizer.step`` gets: ``closure()`` zeroes, runs forward and backward and returns the loss.

    ``closure.loss()`` runs forward only; ``closure.inputs`` is the batch.
    """

    def __init__(self, descent: Descent, batch: Batch) -> None:
        self.descent, self.inputs = descent, batch

    def loss(self) -> Tensor:
        """The loss of this batch, with its graph."""
        return self.descent.loss(self.inputs)

    def __call__(self) -> Tensor:
        self.descent.optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss = self.loss()
            self.descent.backward(loss)
        return loss.detach()


class Descent:
    """Train a model: batches, method, objective, gradients, optimizer, schedule, hooks.

    Args:
        model: any module; ``backbone`` and ``head`` where an objective needs features.
        objective: an :class:`Objective`; it gets exactly what its ``needs`` declare.
        batches: an :class:`ArrayBatches`, a DataLoader, or anything with ``epoch(n)``.
        method: what runs the model; a plain step by default.
        optimizer: a torch optimizer over the parameters of the model (and of the objective, where it has any);
            default AdamW with torch's defaults.
        schedule: an ``LRScheduler``, stepped after each step.
        gradients: ``gradients(loss, model)`` fills ``.grad``; default ``loss.backward()``. The place for aggregators.
        hooks: see :class:`Hook`; called in order, checkpoints last.
        device: where the batches go; default the model's.
        autocast: a dtype (``torch.bfloat16``) to run forward passes under, or None.

    Example:
        >>> from steepest.descent import ArrayBatches
        >>> from steepest.losses import CompSumLoss
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(64, 2); y = (x[:, 0] > 0).long()
        >>> run = Descent(nn.Linear(2, 2), CompSumLoss(), ArrayBatches(x, y, batch_size=16)).fit(3)
        >>> run.epoch, len(run.history)
        (3, 3)
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        batches: Batches | Any,
        *,
        method: Method | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
        gradients: Callable[[Tensor, nn.Module], None] | None = None,
        hooks: Sequence[Hook] = (),
        device: torch.device | str | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.model, self.objective = model, objective
        self.batches: Batches = batches if isinstance(batches, Batches) else LoaderBatches(batches)
        self.method = Plain() if method is None else method
        trained = [*model.parameters(), *objective.parameters()]
        self.optimizer = torch.optim.AdamW(trained) if optimizer is None else optimizer
        self.schedule, self.gradients = schedule, gradients
        self.hooks = sorted(hooks, key=lambda hook: isinstance(hook, Checkpoint))
        first = next(iter(trained), None)
        self.device = (
            torch.device(device) if device is not None else first.device if first is not None else torch.device("cpu")
        )
        self.autocast = autocast
        self.epoch = 0
        """Finished epochs."""
        self.step = 0
        """Finished steps of the epoch under way."""
        self.epochs = 0
        self.stop = False
        self.history: list[dict[str, float]] = []
        self._sum: Tensor | None = None
        self._random_at_epoch: dict[str, Tensor] | None = None

    def loss(self, batch: Batch) -> Tensor:
        """The method's loss of one batch, under autocast if asked for."""
        cast = torch.autocast(self.device.type, self.autocast) if self.autocast is not None else nullcontext()
        with cast:
            return self.method.loss(self.model, batch, self.objective)

    def backward(self, loss: Tensor) -> None:
        """Fill ``.grad`` from the loss."""
        if self.gradients is not None:
            self.gradients(loss, self.model)
        elif loss.ndim:
            refuse("gradients", "an aggregator, because the method returns several losses", loss)
        else:
            loss.backward()

    def _call(self, moment: str, *args: Any) -> None:
        for hook in self.hooks:
            getattr(hook, moment)(self, *args)

    def _to_device(self, batch: Batch) -> Batch:
        def move(value: Any) -> Any:
            return value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value

        extra = {name: move(tensor) for name, tensor in batch.extra.items()}
        return Batch(move(batch.inputs), move(batch.target), move(batch.index), move(batch.weight), extra)

    def fit(self, epochs: int) -> Self:
        """Train until ``epochs`` are finished, counting those of a resumed run, or a hook sets ``stop``.

        Raises:
            ValueError: ``epochs`` below 0.
        """
        check_number("epochs", epochs, low=0, integer=True)
        self.epochs = epochs
        self._call("on_start")
        while self.epoch < epochs and not self.stop:
            self._one_epoch()
        self._call("on_end")
        return self

    def _one_epoch(self) -> None:
        number, done = self.epoch + 1, self.step
        if done == 0:
            self._random_at_epoch = random_state()
            self.objective.start_epoch(number, self.epochs)
            self.method.start_epoch(number, self.epochs)
            self._call("on_epoch_start")
            source = iter(self.batches.epoch(number))
        else:  # a loader draws its order from the random state at the epoch's start; what was done is skipped
            now = random_state()
            assert self._random_at_epoch is not None
            set_random_state(self._random_at_epoch)
            source = iter(self.batches.epoch(number))
            for _ in range(done):
                next(source)
            set_random_state(now)
        self.model.train()
        self.objective.train()
        for batch in source:
            batch = self._to_device(batch)
            closure = Closure(self, batch)
            loss = torch.as_tensor(self.optimizer.step(closure)).detach()  # type: ignore[arg-type]
            if self.schedule is not None:
                self.schedule.step()
            self.objective.after_step()
            self.method.after_step()
            self.step += 1
            self._sum = loss if self._sum is None else self._sum + loss
            self._call("on_step", batch, loss)
            if self.stop:
                break
        mean = float("nan") if self._sum is None else float(self._sum) / max(self.step, 1)
        self.history.append({"epoch": float(number), "loss": mean})
        self.epoch, self.step, self._sum = number, 0, None
        self._call("on_epoch_end")

    def state_dict(self) -> dict[str, Any]:
        """Everything that an exact resume needs, as tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "objective": self.objective.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "hooks": [hook.state_dict() for hook in self.hooks],
            "epoch": self.epoch,
            "step": self.step,
            "stop": self.stop,
            "sum": self._sum,
            "history": self.history,
            "random": random_state(),
            "random_at_epoch": self._random_at_epoch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a saved moment: the model, objective, optimizer, schedule, hooks and all random states."""
        if len(state["hooks"]) != len(self.hooks):
            refuse("hooks", f"{len(state['hooks'])} hooks, as in the saved run", len(self.hooks))
        self.model.load_state_dict(state["model"])
        self.objective.load_state_dict(state["objective"])
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        for hook, saved in zip(self.hooks, state["hooks"]):
            hook.load_state_dict(saved)
        self.epoch, self.step, self.stop = state["epoch"], state["step"], state["stop"]
        self._sum, self.history = state["sum"], list(state["history"])
        self._random_at_epoch = state["random_at_epoch"]
        set_random_state(state["random"])

    def save(self, path: str | Path) -> None:
        """Write the state atomically: the file is the old one or the new one, never half."""
        path = Path(path)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                torch.save(self.state_dict(), file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def resume(self, path: str | Path) -> Self:
        """Load ``path`` if it exists, otherwise start from the beginning; then call :meth:`fit`."""
        if Path(path).exists():
            self.load_state_dict(torch.load(path, map_location=self.device, weights_only=True))
        return self


def random_state() -> dict[str, Tensor]:
    """Torch's random states: CPU, and each GPU that is in use."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state |= {f"cuda:{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return state


def set_random_state(state: dict[str, Tensor]) -> None:
    """Set what :func:`random_state` gave."""
    torch.set_rng_state(state["cpu"].cpu())
    for name, value in state.items():
        if name != "cpu":
            torch.cuda.set_rng_state(value.cpu(), name)
