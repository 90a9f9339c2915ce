"""One training loop for the whole project."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ..core.checks import check_number, refuse
from ..core.errors import InputError
from ..core.method import Method, Plain
from ..core.objective import Batch, Objective
from ..core.reductions import widen
from ..core.scalars import plain
from .batches import Batches, LoaderBatches
from .checkpoint import check_optimizer, check_state, check_taken


class Hook:
    """Moments of a run; override what is needed. State goes through ``state_dict``, as plain values and tensors."""

    saves = False
    """Whether it saves the run: it is called after the others, so that its file has their last state."""

    def on_start(self, descent: Descent) -> None:
        """Before the first epoch of ``fit``."""

    def on_epoch_start(self, descent: Descent) -> None:
        """Before an epoch's first step."""

    def on_step(self, descent: Descent, batch: Batch, loss: Tensor) -> None:
        """After each step."""

    def on_epoch_end(self, descent: Descent) -> None:
        """After an epoch; ``descent.epoch`` counts it already."""

    def on_end(self, descent: Descent) -> None:
        """After the last epoch."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` gave."""


class Closure:
    """What ``optimizer.step`` gets: ``closure()`` zeroes, runs forward and backward and returns the loss.

    ``closure.loss()`` runs forward only, and keeps the graph; ``closure.outputs()`` are the model's for the batch, in
    float32 or wider; ``closure.inputs`` is the batch; ``closure.modules`` have the buffers that a pass may write.
    ``closure.next_batch()`` is the closure of the batch after it.
    """

    def __init__(self, descent: Descent, batch: Batch) -> None:
        self.descent, self.inputs = descent, batch
        self.modules = (descent.model, descent.objective, descent.method)

    def outputs(self) -> Tensor:
        """What the model makes of the batch's inputs, with its graph."""
        outputs: Tensor = self.descent.cast(lambda: self.descent.model(self.inputs.inputs))
        return widen(outputs)

    def loss(self) -> Tensor:
        """The loss of this batch, with its graph."""
        return self.descent.loss(self.inputs)

    def next_batch(self) -> Closure | None:
        """The closure of the batch that the loop would have drawn for its next step, for a gradient of other rows.

        It counts as seen: the loop goes on with the batch after it, so that an epoch has fewer steps, and a schedule by
        steps ends earlier. None at the end of an epoch: the step has to do with what it has.
        """
        batch = self.descent.draw()
        return None if batch is None else Closure(self.descent, batch)

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
        hooks: see :class:`Hook`; called in order, checkpoints last; at the end of ``fit`` checkpoints first, so that
            their file holds the state in which training goes on.
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
        self.hooks = sorted(hooks, key=lambda hook: hook.saves)
        first = next(iter(trained), None)
        self.device = (
            torch.device(device) if device is not None else first.device if first is not None else torch.device("cpu")
        )
        self.autocast = autocast
        self.epoch = 0
        """Finished epochs."""
        self.step = 0
        """Finished steps of the epoch under way."""
        self.drawn = 0
        """Batches of the epoch under way that steps drew for themselves, besides the one that each begins with."""
        self.epochs = 0
        self.stop = False
        self.history: list[dict[str, float]] = []
        self._sum: Tensor | None = None
        self._source: Iterator[Batch] = iter(())
        self._random_at_epoch: dict[str, Any] | None = None

    def loss(self, batch: Batch) -> Tensor:
        """The method's loss of one batch, under autocast if asked for."""
        return self.cast(lambda: self.method.loss(self.model, batch, self.objective))

    def cast(self, run: Callable[[], Tensor]) -> Tensor:
        """What ``run()`` gives, under autocast if asked for."""
        with torch.autocast(self.device.type, self.autocast) if self.autocast is not None else nullcontext():
            return run()

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
            if isinstance(value, Tensor):
                return value.to(self.device, non_blocking=True)
            if isinstance(value, dict):
                return {name: move(item) for name, item in value.items()}
            return type(value)(map(move, value)) if type(value) in (list, tuple) else value

        tensors = (batch.inputs, batch.target, batch.index, batch.weight)
        if not batch.extra and all(t is None or (isinstance(t, Tensor) and t.device == self.device) for t in tensors):
            return batch
        extra = {name: move(tensor) for name, tensor in batch.extra.items()}
        return Batch(move(batch.inputs), move(batch.target), move(batch.index), move(batch.weight), extra)

    def fit(self, epochs: int) -> Self:
        """Train until ``epochs`` are finished, counting those of a resumed run, or a hook sets ``stop``.

        Raises:
            ValueError: ``epochs`` below 0.
        """
        check_number("epochs", epochs, low=0, integer=True)
        self.epochs = int(epochs)
        self._call("on_start")
        while self.epoch < epochs and not self.stop:
            self._one_epoch()
        for hook in sorted(self.hooks, key=lambda hook: not hook.saves):
            hook.on_end(self)
        return self

    def _random_state(self) -> dict[str, Any]:
        return random_state() | {"batches": [g.get_state() for g in _generators(self.batches)]}

    def _set_random_state(self, state: dict[str, Any]) -> None:
        set_random_state(state)
        for generator, saved in zip(_generators(self.batches), state["batches"]):
            generator.set_state(saved.cpu())

    def _one_epoch(self) -> None:
        number, done = self.epoch + 1, self.step
        for module in (self.model, self.objective, self.method):
            module.train()
        if done == 0:
            self.objective.start_epoch(number, self.epochs)
            self.method.start_epoch(number, self.epochs)
            self._call("on_epoch_start")
            self._random_at_epoch = self._random_state()
            self.drawn = 0
            source = iter(self.batches.epoch(number))
        else:  # a loader draws its order from the random state at the epoch's start; what was done is skipped
            now = self._random_state()
            assert self._random_at_epoch is not None
            self._set_random_state(self._random_at_epoch)
            source = iter(self.batches.epoch(number))
            for _ in range(done + self.drawn):
                next(source, None)
            self._set_random_state(now)
        self._source = source
        whole = self._whole_step()
        for batch in source:
            batch = self._to_device(batch)
            if whole is not None:
                loss = whole(batch)
            else:
                closure = Closure(self, batch)
                loss = torch.as_tensor(self.optimizer.step(closure)).detach()  # type: ignore[arg-type]
            if self.schedule is not None:
                self.schedule.step()
            self.objective.after_step()
            self.method.after_step()
            self.step += 1
            total = loss.sum() if loss.ndim else loss
            self._sum = total if self._sum is None else self._sum + total
            self._call("on_step", batch, loss)
            if self.stop:
                break
        mean = float("nan") if self._sum is None else float(self._sum) / max(self.step, 1)
        self.history.append({"epoch": float(number), "loss": mean})
        self.epoch, self.step, self.drawn, self._sum, self._source = number, 0, 0, None, iter(())
        self._call("on_epoch_end")

    def draw(self) -> Batch | None:
        """The next batch of the epoch under way, which no step will begin with; None where there is none left."""
        batch = next(self._source, None)
        if batch is None:
            return None
        self.drawn += 1
        return self._to_device(batch)

    def _whole_step(self) -> Callable[[Batch], Tensor] | None:
        if self.schedule is not None or self.gradients is not None or self.autocast is not None:
            return None
        return self.method.whole_step(self.model, self.objective, self.optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Everything that an exact resume needs, as tensors and plain values."""
        state = {
            "model": self.model.state_dict(),
            "objective": self.objective.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "hooks": [hook.state_dict() for hook in self.hooks],
            "epoch": self.epoch,
            "step": self.step,
            "drawn": self.drawn,
            "stop": self.stop,
            "sum": self._sum,
            "history": self.history,
            "random": self._random_state(),
            "random_at_epoch": self._random_at_epoch,
        }
        return {name: plain(value) for name, value in state.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a saved moment: the model, objective, optimizer, schedule, hooks and all random states.

        Raises:
            ValueError: it is not what :meth:`state_dict` gives, or of other hooks, tensors or schedule.
        """
        check_state(state)
        if len(state["hooks"]) != len(self.hooks):
            refuse("hooks", f"{len(state['hooks'])} hooks, as in the saved run", len(self.hooks))
        if (state["schedule"] is None) != (self.schedule is None):
            refuse("schedule", f"{'none' if self.schedule is None else 'one'}, as in this run", state["schedule"])
        self.model.load_state_dict(state["model"])
        self.objective.load_state_dict(state["objective"])
        self.method.load_state_dict(state["method"])
        for name in ("model", "objective", "method"):
            check_taken(name, getattr(self, name).state_dict(), state[name])
        check_optimizer(self.optimizer.state_dict(), state["optimizer"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        for hook, saved in zip(self.hooks, state["hooks"]):
            hook.load_state_dict(saved)
        self.epoch, self.step, self.stop = state["epoch"], state["step"], state["stop"]
        self.drawn = state.get("drawn", 0)  # files of runs before steps could draw batches have none
        self._sum, self.history = state["sum"], list(state["history"])
        self._random_at_epoch = state["random_at_epoch"]
        self._set_random_state(state["random"])

    def save(self, path: str | Path) -> None:
        """Write the state atomically: the file is the old one or the new one, never half."""
        path = Path(path)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with unfinished.open("wb") as file:
                torch.save(self.state_dict(), file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)

    def resume(self, path: str | Path) -> Self:
        """Load ``path`` if it exists, otherwise start from the beginning; then call :meth:`fit`.

        The file is read as tensors and plain values: it can run no code.

        Raises:
            InputError: the file is no checkpoint, or one of another model, objective, optimizer or number of hooks;
                what was loaded until then is undefined.
        """
        if not Path(path).exists():
            return self
        try:
            self.load_state_dict(torch.load(path, map_location=self.device, weights_only=True))
        except Exception as error:  # unpickling, zip and every part's own loading have many
            said = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            raise InputError(f"the checkpoint {str(path)!r} cannot be loaded: {said[:300]}") from error
        return self


def random_state() -> dict[str, Any]:
    """Random states as tensors and plain values: torch's on the CPU and each GPU in use, Python's, NumPy's."""
    _, words, *rest = np.random.get_state()  # noqa: NPY002 - datasets draw from it
    state = {
        "cpu": torch.get_rng_state(),
        "python": list(random.getstate()[1]),
        "python_gauss": random.getstate()[2],
        "numpy": torch.from_numpy(np.asarray(words, dtype=np.int64)),
        "numpy_rest": list(rest),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Set what :func:`random_state` gave."""
    torch.set_rng_state(state["cpu"].cpu())
    random.setstate((3, tuple(state["python"]), state["python_gauss"]))
    np.random.set_state(("MT19937", state["numpy"].cpu().numpy().astype(np.uint32), *state["numpy_rest"]))  # noqa: NPY002
    for device, value in enumerate(state.get("cuda", ())):
        torch.cuda.set_rng_state(value.cpu(), device)


def _generators(batches: Any) -> list[torch.Generator]:
    """The generators that a DataLoader was given, for itself and for its sampler."""
    loader = getattr(batches, "loader", None)
    owners = (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None))
    generators = [getattr(owner, "generator", None) for owner in owners]
    return list({id(g): g for g in generators if isinstance(g, torch.Generator)}.values())
