"""Runs probes beside any training loop and writes down what they measure."""

from __future__ import annotations

import math
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..core.checks import refuse, refuse_type
from ..core.errors import InputError
from ..core.probe import Array, Moment, Probe, Reading, inner_module
from ..core.tracking import Hook, tracker_of
from ..core.undisturbed import same_random_states
from ..core.wrapper import Wrapper
from .journal import Journal
from .vital_signs import DEFAULT

if TYPE_CHECKING:
    import pandas

Cadence = int | Callable[[int], bool]
"""Every so many steps, from the first on; or whether a step, counted from 1, is one."""
PATIENCE = 3
"""A probe that raises so many times in a row is not asked any more."""
LOSSES = 50
"""So many losses are brought to the host together."""


def logarithmic(start: float = 0.0, end: float = 5.0, steps: int = 300) -> Callable[[int], bool]:
    """A cadence that is dense at first: ``steps`` points between the steps 10^start and 10^end, evenly in logarithms.

    >>> due = logarithmic(0, 2, 5)
    >>> [step for step in range(1, 101) if due(step)]
    [1, 3, 10, 32, 100]
    """
    if not start < end:
        refuse("start", "a number below end", start)
    points = {round(10 ** (start + (end - start) * k / max(1, steps - 1))) for k in range(steps)}
    return points.__contains__


def default_probes() -> list[Probe]:
    """Those of a recorder for which nobody names probes; it takes those of them that fit its model and optimizer."""
    from .stability.adam_instability import AdamUpdateMonitor

    return [*(cls() for cls in DEFAULT), AdamUpdateMonitor()]


@dataclass
class _Attached:
    """A probe of a recorder.

    Args:
        probe: what measures.
        cadence: at which steps.
        failures: how often it has raised in a row.
    """

    probe: Probe
    cadence: Cadence
    failures: int = 0

    def due(self, step: int) -> bool:
        if self.failures >= PATIENCE:
            return False
        return self.cadence(step) if callable(self.cadence) else (step - 1) % self.cadence == 0


@dataclass
class _Batch:
    """What was told of the batches of the present step.

    Args:
        losses: of each micro-batch, where it is.
        inputs, targets: of the last.
    """

    losses: list[Tensor] = field(default_factory=list)
    inputs: Any = None
    targets: Any = None


class Recorder:
    r"""Records a run: the loss of every batch, and at some steps what probes measure. It changes no bit of the run.

    Two lines in a loop::

        recorder = Recorder(model, objective, optimizer, sinks=["runs/first.jsonl"])
        for x, y in batches:
            loss = objective(model(x), y)
            recorder.observe(loss, x, y)
            loss.backward()
            optimizer.step()

    Gradients are read where the optimizer steps, whoever calls that: a loop, Transformers, Lightning, accelerate, a
    gradient scaler. A step that a scaler leaves out is none. Nothing is read from the device between readings: losses
    and readings wait there, and are brought to the host together (``host_reads`` counts). On several ranks the
    first one measures.

    A probe that raises is warned of once and the run goes on; one that raises three times in a row rests.

    Args:
        model: being trained.
        objective: ``objective(outputs, targets)``; None where the model gives outputs with a ``loss``.
        optimizer: whose steps are watched; None where the loop calls :meth:`before_step` and :meth:`after_step`.
        probes: ``"default"``, or probes.
        every: a cadence of all probes, or of some by name; others have their own. ``int`` n is the steps 1, n + 1, ...
        sinks: paths of files ``.jsonl``, ``"tensorboard[:FOLDER]"``, ``"mlflow[:URI]"``, or functions
            ``(event, facts)``. Events: ``run_begin``, ``losses`` (steps, values), ``reading`` (step, phase, probe,
            numbers, arrays), ``alarm`` (step, cause, readings; where a probe reads a number ``alarm`` above 0),
            ``warning``, ``run_resume`` (step), ``run_end``.
        name: of the run; None is a new one.

    Attributes:
        step: steps of the optimizer until now.
        host_reads: how often this recorder has waited for the device.
        failures: how often each probe has raised, by name.

    Raises:
        TypeError: no module, no optimizer, no probe.
        ValueError: a probe that can never measure this model or optimizer, two of one name, a cadence below 1.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model, loss = nn.Linear(2, 1), nn.MSELoss()
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with Recorder(model, loss, optimizer, every=2) as recorder:
        ...     for _ in range(3):
        ...         value = loss(model(torch.ones(4, 2)), torch.ones(4, 1))
        ...         recorder.observe(value, torch.ones(4, 2), torch.ones(4, 1))
        ...         optimizer.zero_grad(); value.backward(); optimizer.step()
        >>> frame = recorder.frame()
        >>> list(frame.index), int(frame["gradient_norms/norm"].count())
        ([1, 2, 3], 2)
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Callable[[Any, Any], Tensor] | None = None,
        optimizer: Optimizer | None = None,
        probes: str | Sequence[Probe] = "default",
        *,
        every: Cadence | Mapping[str, Cadence] | None = None,
        sinks: Iterable[Any] = (),
        name: str | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            refuse_type("model", "a module", model)
        if objective is not None and not callable(objective):
            refuse_type("objective", "a function of outputs and targets, or None", objective)
        if optimizer is not None and not isinstance(optimizer, Optimizer):
            refuse_type("optimizer", "an optimizer, or None", optimizer)
        if any(type(p.data).__name__ == "DTensor" or type(p).__name__ == "FlatParameter" for p in model.parameters()):
            refuse_type("model", "a module whose parameters are whole on each rank", "one that is sharded")
        self.model, self.objective, self.optimizer = model, objective, optimizer
        self.name = uuid.uuid4().hex[:8] if name is None else name
        self.step = 0
        self.host_reads = 0
        self.failures: dict[str, int] = {}
        self._attached = self._attach(probes, every)
        self._sinks = [_sink(word) for word in sinks]
        self._batch = _Batch()
        self._told = 0
        self._before: dict[str, Tensor] | None = None
        self._pending: list[tuple[int, Tensor]] = []
        self._readings: list[tuple[int, str, str, Reading]] = []
        self._rows: dict[int, dict[str, float]] = {}
        self._losses: list[tuple[int, float]] = []
        self.arrays: dict[str, tuple[int, Array]] = {}
        """The last array of each name, ``probe/array``, on the host, and its step."""
        self._open = True
        self._writes = _first_rank()
        self._handles: list[Any] = []
        if optimizer is not None:
            inner: Optimizer = optimizer
            while isinstance(inner, Wrapper):
                inner = inner.base_optimizer
            self._handles.append(inner.register_step_pre_hook(self._on_step))
            self._handles.append(inner.register_step_post_hook(self._on_stepped))
        self._tell("run_begin", self._facts())

    def _attach(self, probes: Any, every: Any) -> list[_Attached]:
        if probes == "default":
            chosen: list[Probe] = []
            for probe in default_probes():
                if "optimizer" in probe.needs and self.optimizer is None:
                    continue
                try:
                    probe.check(inner_module(self.model), self.optimizer)
                except (TypeError, ValueError):
                    continue
                chosen.append(probe)
        else:
            if isinstance(probes, str) or not isinstance(probes, Iterable):
                refuse("probes", "'default' or probes", probes)
            chosen = list(probes)
            for probe in chosen:
                if not isinstance(probe, Probe):
                    refuse_type("probes", "probes", probe)
                probe.check(inner_module(self.model), self.optimizer)
        names = [probe.name for probe in chosen]
        if len(set(names)) < len(names):
            refuse("probes", "probes of different names", names)
        by_name = every if isinstance(every, Mapping) else {}
        unknown = sorted(set(by_name) - set(names))
        if unknown:
            refuse("every", f"names of probes: {', '.join(names)}", unknown[0])
        attached = []
        for probe in chosen:
            cadence = by_name.get(probe.name, probe.every if every is None or by_name else every)
            if not callable(cadence) and (isinstance(cadence, bool) or not isinstance(cadence, int) or cadence < 1):
                refuse("every", "steps >= 1, or a function of a step", cadence)
            attached.append(_Attached(probe, cadence))
        return attached

    @property
    def probes(self) -> list[Probe]:
        """What measures."""
        return [attached.probe for attached in self._attached]

    def _facts(self) -> dict[str, Any]:
        module = inner_module(self.model)
        return {
            "id": self.name,
            "model": type(module).__name__,
            "parameters": sum(p.numel() for p in module.parameters()),
            "trained": sum(p.numel() for p in module.parameters() if p.requires_grad),
            "optimizer": None if self.optimizer is None else type(self.optimizer).__name__,
            "objective": None if self.objective is None else _name_of(self.objective),
            "probes": [probe.name for probe in self.probes],
            "started": round(time.time(), 3),
        }

    # ------------------------------------------------------------------------------------------------------- the loop

    def observe(self, loss: Tensor | float, inputs: Any = None, targets: Any = None) -> None:
        """Tell the loss of a batch or micro-batch, after it is computed and before the optimizer steps.

        Args:
            loss: as it is, not scaled for half precision or accumulation; a scalar, or that of each sample.
            inputs: of the model, for probes that run it: a tensor, a tuple of arguments, or a mapping of them.
            targets: of the objective.
        """
        if not self._open:
            return
        step = self.step + 1
        value = loss.detach().clone() if isinstance(loss, Tensor) else torch.tensor(float(loss))
        mean = (value if value.ndim == 0 else value.mean()).double()
        self._pending.append((step, mean))
        first = not self._batch.losses
        self._batch.losses.append(value)
        due = [a for a in self._attached if a.due(step)]
        if any(a.probe.needs for a in due):
            self._batch.inputs, self._batch.targets = inputs, targets
        if first:
            self._measure("forward", due)
        if len(self._pending) >= LOSSES and not due:
            self.flush()
        self._told += 1
        if self._told == 1000 and self.step == 0:
            self._warn("no step of the optimizer was seen in 1000 batches: is it the one that was given?")

    def before_step(self, scale: float | Tensor | None = None) -> None:
        """Gradients are there and the optimizer is about to step; called by itself where there is an optimizer.

        Args:
            scale: factor by which gradients are too large, where a scaler has not divided them.
        """
        if not self._open:
            return
        due = [a for a in self._attached if a.due(self.step + 1)]
        self._measure("gradients", due, scale=scale)
        self._before = self._weights(due)

    def _weights(self, due: list[_Attached]) -> dict[str, Tensor] | None:
        """Copies of the weights before a step, where a probe compares with them."""
        if not self._writes or not any({"proposed", "stepped"} & set(a.probe.phases) for a in due):
            return None
        module = inner_module(self.model)
        return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}

    def after_step(self) -> None:
        """The optimizer has stepped; called by itself where there is an optimizer."""
        if not self._open:
            return
        due = [a for a in self._attached if a.due(self.step + 1)]
        self._measure("proposed", due, before=self._before)
        self._measure("stepped", due, before=self._before)
        self.step += 1
        self._before = None
        self._batch = _Batch()
        if due:
            self.flush()

    def _on_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._with_closure = any(callable(value) for value in (*args[1:], *kwargs.values()))
        if self._with_closure:  # it makes the gradients of this step, so that they can be read afterwards alone
            self._before = self._weights([a for a in self._attached if a.due(self.step + 1)])
        else:
            self.before_step(vars(optimizer).get("grad_scale"))

    def _on_stepped(self, *_: Any) -> None:
        if self._with_closure:
            due = [a for a in self._attached if a.due(self.step + 1)]
            self._measure("gradients", due)
        self.after_step()

    _with_closure = False

    # ---------------------------------------------------------------------------------------------------- measurement

    def _measure(self, phase: str, due: list[_Attached], **more: Any) -> None:
        due = [a for a in due if phase in a.probe.phases]
        if not due or not self._writes:
            return
        losses = self._batch.losses[-1] if self._batch.losses else None
        moment = Moment(
            self.step + 1,
            phase,
            self.model,
            optimizer=self.optimizer,
            objective=self.objective,
            inputs=self._batch.inputs,
            targets=self._batch.targets,
            losses=losses,
            **more,
        )
        known = {
            "objective": self.objective is not None or self._batch.inputs is not None,
            "optimizer": self.optimizer is not None,
            "batch": self._batch.inputs is not None,
            "losses": losses is not None,
        }
        for attached in due:
            probe = attached.probe
            if not all(known[need] for need in probe.needs):
                continue
            try:
                with same_random_states():
                    reading = probe.measure(moment)
                self._readings.append((self.step + 1, phase, probe.name, _resting(reading)))
                attached.failures = 0
            except Exception as error:
                attached.failures += 1
                self.failures[probe.name] = self.failures.get(probe.name, 0) + 1
                if self.failures[probe.name] == 1:
                    self._warn(f"{probe.name} failed at step {self.step + 1}: {type(error).__name__}: {error}")

    def flush(self) -> None:
        """Bring what waits on the device to the host, and tell the sinks."""
        if not (self._pending or self._readings):
            return
        pending, readings = self._pending, self._readings
        self._pending, self._readings = [], []
        if not self._writes:
            return
        waiting = [value for _, value in pending]
        for _, _, _, reading in readings:
            waiting += [v for v in reading.numbers.values() if isinstance(v, Tensor)]
            waiting += [array.values for array in reading.arrays.values()]
        numbers = iter(self._to_host(waiting))
        if pending:
            losses = [(step, float(next(numbers)[0])) for step, _ in pending]
            self._losses += losses
            self._tell("losses", {"steps": [s for s, _ in losses], "values": [v for _, v in losses]})
        for step, phase, name, reading in readings:
            values = {
                key: float(next(numbers)[0]) if isinstance(value, Tensor) else float(value)
                for key, value in reading.numbers.items()
            }
            arrays = {
                key: Array(next(numbers).reshape(array.values.shape), array.axes)
                for key, array in reading.arrays.items()
            }
            self._rows.setdefault(step, {}).update({f"{name}/{key}": value for key, value in values.items()})
            self.arrays |= {f"{name}/{key}": (step, array) for key, array in arrays.items()}
            facts = {"step": step, "phase": phase, "probe": name, "numbers": values}
            shown = {
                key: {"values": array.values.tolist(), "axes": {a: _ticks(t) for a, t in array.axes.items()}}
                for key, array in arrays.items()
            }
            self._tell("reading", {**facts, "arrays": shown})
            if values.get("alarm", 0.0) > 0:
                finite = {key: value for key, value in values.items() if key != "alarm" and math.isfinite(value)}
                self._tell("alarm", {"step": step, "cause": [name], "readings": finite})

    def _to_host(self, tensors: list[Tensor]) -> list[Tensor]:
        """All values as flat float64 on the host, by one read a device."""
        values: dict[int, Tensor] = {}
        by_device: dict[torch.device, list[int]] = {}
        for i, tensor in enumerate(tensors):
            by_device.setdefault(tensor.device, []).append(i)
        for device, places in by_device.items():
            sizes = [tensors[i].numel() for i in places]
            wide = torch.float32 if device.type == "mps" else torch.float64
            joined = torch.cat([tensors[i].reshape(-1).to(wide) for i in places]).to("cpu", torch.float64)
            self.host_reads += 1
            values |= dict(zip(places, joined.split(sizes)))
        return [values[i] for i in range(len(tensors))]

    def _tell(self, event: str, facts: dict[str, Any]) -> None:
        if not self._writes:
            return
        for sink in list(self._sinks):
            try:
                sink(event, facts)
            except Exception as error:
                self._sinks.remove(sink)
                self._warn(f"a sink failed and is told no more: {type(error).__name__}: {error}")

    def _warn(self, text: str) -> None:
        warnings.warn(f"Recorder: {text}", RuntimeWarning, stacklevel=3)
        self._tell("warning", {"step": self.step + 1, "text": text})

    # -------------------------------------------------------------------------------------------------------- results

    def frame(self) -> pandas.DataFrame:
        """A row a step, columns ``loss`` (the mean of its batches) and ``probe/number``; NaN where none was due."""
        import pandas

        self.flush()
        sums: dict[int, list[float]] = {}
        for step, value in self._losses:
            sums.setdefault(step, []).append(value)
        rows = {step: {"loss": math.fsum(v) / len(v) if all(map(math.isfinite, v)) else sum(v) / len(v)}
                for step, v in sums.items()}  # fmt: skip
        for step, values in self._rows.items():
            rows.setdefault(step, {}).update(values)
        frame = pandas.DataFrame.from_dict(rows, orient="index").sort_index()
        frame.index.name = "step"
        return frame

    def state_dict(self) -> dict[str, Any]:
        """Where the recorder is: the step, and what probes keep; plain numbers, lists and tensors."""
        self.flush()
        return {"step": self.step, "probes": {probe.name: probe.state_dict() for probe in self.probes}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint; sinks that can take back what was written after it do.

        Raises:
            ValueError: of other probes.
        """
        names = {probe.name for probe in self.probes}
        if set(state.get("probes", {})) != names or not isinstance(state.get("step"), int):
            refuse("state", f"that of a recorder with the probes {', '.join(sorted(names))}", sorted(state))
        for probe in self.probes:
            probe.load_state_dict(state["probes"][probe.name])
        self.step = state["step"]
        self._pending, self._readings = [], []
        self._losses = [(step, value) for step, value in self._losses if step <= self.step]
        self._rows = {step: row for step, row in self._rows.items() if step <= self.step}
        self._tell("run_resume", {"step": self.step})

    def close(self) -> None:
        """Write what waits, and watch no more."""
        if not self._open:
            return
        self.flush()
        self._open = False
        for handle in self._handles:
            handle.remove()
        self._tell("run_end", {"steps": self.step})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"Recorder({type(self.model).__name__}, probes={[probe.name for probe in self.probes]}, step={self.step})"
        )


def _sink(word: Any) -> Hook:
    if callable(word):
        given: Hook = word
        return given
    if isinstance(word, Path) or (isinstance(word, str) and word.endswith(".jsonl")):
        return Journal(word)
    tracker = tracker_of(word) if isinstance(word, str) else None
    if tracker is None:
        raise InputError(
            f"sinks: expected a path that ends in .jsonl, tensorboard, mlflow or a function, got {word!r:.80}"
        )
    return tracker


def _name_of(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _ticks(ticks: Any) -> list[Any] | None:
    return None if ticks is None else [tick if isinstance(tick, str) else float(tick) for tick in ticks]


def _resting(reading: Reading) -> Reading:
    """A reading without graphs, whose tensors nobody changes while they wait."""
    numbers = {k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in reading.numbers.items()}
    arrays = {k: Array(a.values.detach().clone(), a.axes) for k, a in reading.arrays.items()}
    return Reading(numbers, arrays)


def _first_rank() -> bool:
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized() and distributed.get_rank() > 0)
