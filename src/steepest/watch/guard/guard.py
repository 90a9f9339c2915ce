"""Guards a run: judges each step before it is taken, skips it, or takes the run back to where it was sound."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from ...core.checks import check_flag, check_number, refuse, refuse_type
from ...core.displaced import length
from ...core.probe import Moment, inner_module, untouched
from ...core.reductions import widen
from ...core.torch_private import foreach_sub
from ...core.wrapper import Wrapper
from ...optim.control.ghost_radius import GhostRadius
from ..journal import Journal
from . import snapshots
from .replay import Batch, Step, loss_of, precision_of, replay
from .rules import GhostCap, LossSpike, ProbeRule, Rule, Signals, logit_sizes, read_rules
from .skips import Skip, innermost, reads_found_inf
from .windows import Windows, spike_score

SERIES = ("loss", "norm", "peak", "partition")
"""What is compared with the steps before: positive numbers, in logarithms."""
FLOORS = (0.03, 0.03, 0.1, 0.1)
"""Their least standard deviations. Logits grow in all sound training, by far most at first: they are compared with a
full window only."""
_PASSED, _FLAGS = 2 * len(SERIES), 2 * len(SERIES) + 1
"""Where these stand behind sizes and scores."""
_GUARDED: WeakKeyDictionary[Optimizer, Guard] = WeakKeyDictionary()


def _second_pass(optimizer: Any) -> bool:
    """Whether a wrapper is in the second of its two passes."""
    while isinstance(optimizer, Wrapper):
        if getattr(optimizer, "_away", None) is not None:
            return True
        optimizer = optimizer.base_optimizer
    return False


class GuardStop(RuntimeError):
    """The guard has stopped a run, after its last attempt; weights are those of the last good snapshot."""


@dataclass
class _Told:
    """What was told of the batches of the step to come."""

    losses: list[Tensor] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    outputs: Any = None


@dataclass
class _Verdict:
    """A step that was judged: what is known of it once somebody reads it.

    Args:
        step: its number.
        batches: that made it.
        rates: of each group.
        packed: of each series the size and the score, whether a scaler had found an overflow, and a flag a rule.
        event: after which ``packed`` is on the host.
        module: the first that is not finite, where that was looked for already.
        looked: whether it was.
    """

    step: int
    batches: list[Batch]
    rates: list[Any]
    packed: Tensor
    event: Any = None
    module: str | None = None
    looked: bool = False

    def numbers(self) -> list[float]:
        """On the host."""
        if self.event is not None:
            self.event.synchronize()
        values: list[float] = self.packed.tolist()
        return values


class Guard:
    r"""Guards a run: two lines in a loop.

    ::

        guard = Guard(model, optimizer, objective)
        for x, y in batches:
            loss = objective(model(x), y)
            guard.observe(loss, x, y)
            optimizer.zero_grad(); loss.backward(); optimizer.step()

    *Before a step* rules judge the loss and the gradients (without a scaler's factor). A step that one of them suspects
    is skipped: no weight, moment or counter changes a bit. Where the optimizer reads ``found_inf`` (fused ones) the
    device decides, and nothing waits for it; what happened is read a step later. Elsewhere the verdict is read once a
    step (``host_reads`` counts), and gradients are taken away for the step.

    *After* ``patience`` suspected steps in a row the guard asks whether it is the data or the weights: a batch from
    before is run again. If its loss is what it was, steps are skipped on, up to a quarter of the window. Otherwise (or
    where nobody can tell: no objective, no inputs) the run goes back to the newest
    snapshot that is older than the suspected cause, and the batches since are replayed without the suspected ones
    (where ``objective``, inputs and targets are known). A second attempt in a row halves the rate, a third once more;
    then the guard stops the run with :class:`GuardStop`. ``calm`` steps without an alarm forgive all attempts.

    On several ranks each judges its own loss, and all act on what any of them suspects: one small ``all_reduce`` a
    step, on every path. An overflow that a gradient scaler handles is a note and no alarm.

    Args:
        model: being trained.
        optimizer: that the loop steps; the rules act at the innermost one inside it.
        objective: ``objective(outputs, targets)``, for replays; None where the model gives outputs with a ``loss``, or
            where there is to be no replay.
        rules: ``"default"``, or names and rules: ``non_finite``, ``loss_spike``, ``gradient_spike``, ``logit_growth``
            and, of a cross-entropy, ``ghost_radius`` (these are the default); ``spectral_alignment``,
            ``adam_instability``.
        budget: attempts in a row to go back, >= 0.
        log: a path that ends in ``.jsonl``, or a function ``(event, facts)`` as a recorder's sinks take: an action is
            one line with step, cause, first module that was not finite, readings, and what was done.
        window: steps that a score compares with, >= 16.
        warmup: steps in the window before losses and gradients are judged, >= 8; logits wait for a full one.
        every: steps between snapshots; 0 keeps none, and skips only.
        patience: suspected steps in a row before weights are suspected, >= 1.
        calm: quiet steps that forgive attempts.
        cut: factor of the rate at a second and each further attempt, in (0, 1].
        floor: the least factor of the rate.
        accumulation: calls of ``observe`` for one step.
        scaler: the gradient scaler of the loop, whose scale a replay uses.
        replays: whether batches are held for a replay: references to inputs and targets since the good snapshot.
        stops: whether it raises at the end of its budget; otherwise it sets ``stopped`` and only skips from there.
        group: of processes that train together; None is all.

    Attributes:
        step: of the optimizer until now, skipped ones too.
        skipped: how many were skipped.
        host_reads: how often the guard has waited for the device.
        rate: factor of the loop's rates, at which steps are taken.
        actions: what was done and noted, in order.

    Raises:
        TypeError: no module, no optimizer, no rule.
        ValueError: numbers outside of their range; an optimizer that runs its closure several times, or that another
            guard holds.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model, objective = nn.Linear(2, 1), nn.MSELoss()
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> x, y = torch.ones(4, 2), torch.zeros(4, 1)
        >>> with Guard(model, optimizer, objective) as guard:
        ...     for step in range(3):
        ...         loss = objective(model(x), y) * (float("nan") if step == 1 else 1.0)
        ...         guard.observe(loss, x, y)
        ...         optimizer.zero_grad(); loss.backward(); optimizer.step()
        >>> guard.skipped, [(line["step"], line["action"], line["cause"]) for line in guard.actions]
        (1, [(2, 'skip', ['non_finite'])])
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        objective: Callable[[Any, Any], Tensor] | None = None,
        *,
        rules: Any = "default",
        budget: int = 3,
        log: str | Path | Callable[[str, Mapping[str, Any]], None] | None = None,
        window: int = 128,
        warmup: int = 20,
        every: int = 50,
        patience: int = 3,
        calm: int = 100,
        cut: float = 0.5,
        floor: float = 0.125,
        accumulation: int = 1,
        scaler: torch.amp.GradScaler | None = None,
        replays: bool = True,
        stops: bool = True,
        group: Any = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            refuse_type("model", "a module", model)
        self.optimizer = innermost(optimizer)
        if not isinstance(self.optimizer, Optimizer):
            refuse_type("optimizer", "an optimizer", optimizer)
        if isinstance(self.optimizer, LBFGS):
            refuse("optimizer", "one gradient a step", optimizer)
        if self.optimizer in _GUARDED:
            refuse("optimizer", "an optimizer without a guard (close the one it has first)", optimizer)
        check_number("budget", budget, low=0, integer=True)
        check_number("window", window, low=16, integer=True)
        check_number("warmup", warmup, low=8, high=window, integer=True)
        check_number("every", every, low=0, integer=True)
        check_number("patience", patience, low=1, integer=True)
        check_number("calm", calm, low=1, integer=True)
        check_number("cut", cut, low=0.0, high=1.0, open_low=True)
        check_number("floor", floor, low=0.0, high=1.0, open_low=True)
        check_number("accumulation", accumulation, low=1, integer=True)
        check_flag("replays", replays)
        check_flag("stops", stops)
        if log is not None and not callable(log) and not str(log).endswith(".jsonl"):
            refuse("log", "a path that ends in .jsonl, or a function", log)
        self.model, self.outer, self.objective = model, optimizer, objective
        self.rules: list[Rule] = read_rules(rules, objective)
        self.budget, self.every, self.patience, self.calm = budget, every, patience, calm
        self.cut, self.floor, self.accumulation = float(cut), float(floor), accumulation
        self.scaler, self.replays, self.stops, self.group = scaler, replays, stops, group
        self._tell: Callable[[str, Mapping[str, Any]], None] | None
        self._tell = log if log is None or callable(log) else Journal(log)

        self.step = self.skipped = self.host_reads = 0
        self.rate = 1.0
        self.stopped = False
        self.actions: list[dict[str, Any]] = []
        self.snapshots = snapshots.Snapshots()
        self._infinite = snapshots.infinite_buffers(model, self.optimizer)
        self.windows = Windows(window, [warmup, warmup, window, window], FLOORS)
        self._history: deque[Step] = deque()
        self._waiting: _Verdict | None = None
        self._new: _Verdict | None = None
        self._row = self._quiet = self._attempts = 0
        self._first_alarm = 0
        self._losses: deque[float] = deque(maxlen=100_000)
        self._told = _Told()
        self._skip = Skip(self.optimizer)
        self._replaying = False
        self._lag = False
        self._ghost = next((rule for rule in self.rules if isinstance(rule, GhostCap)), None)
        self._proposed: tuple[list[Tensor], list[Tensor], Any] | None = None
        self._probes = [rule for rule in self.rules if isinstance(rule, ProbeRule)]
        for rule in self._probes:
            rule.probe.check(model, self.optimizer)
        if self._ghost is not None:
            GhostRadius(model).check_own(p for group in self.optimizer.param_groups for p in group["params"])

        self._handles = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
        ]
        if self.outer is not self.optimizer and isinstance(self.outer, Optimizer):
            self._handles.append(self.outer.register_step_post_hook(self._after_outer))
        _GUARDED[self.optimizer] = self

    # ------------------------------------------------------------------------------------------------------- the loop

    def observe(self, loss: Tensor | float, inputs: Any = None, targets: Any = None, *, outputs: Any = None) -> None:
        """Tell of a batch, after its forward pass and before the step.

        Args:
            loss: of the batch, before anybody scaled it; of several numbers the mean counts.
            inputs, targets: of the batch: they are held for a replay, not copied.
            outputs: of the model, where they are logits: their growth is judged.
        """
        if _second_pass(self.outer):
            return
        if self._told.losses and len(self._told.losses) >= self.accumulation:
            self._pass_over()
        value = loss.detach() if isinstance(loss, Tensor) else torch.tensor(float(loss), dtype=torch.float64)
        self._told.losses.append(value.double().mean())
        self._told.batches.append(Batch(inputs, targets, precision_of(value.device)))
        self._told.outputs = outputs

    def told_again(self, loss: Tensor) -> None:
        """The loss of a step that is replayed."""
        if not _second_pass(self.outer):
            self._told = _Told([loss])

    @property
    def replaying(self) -> bool:
        """Whether steps are being taken again: passes of the model are not the loop's."""
        return self._replaying

    @property
    def alarmed(self) -> bool:
        """Whether so many of the last steps were suspected that it is the weights that are bad."""
        return self._row >= self.patience

    def _pass_over(self) -> None:
        """A step that nobody took: a scaler, or a wrapper, has left it out."""
        finite = math.isfinite(float(torch.stack(self._told.losses).mean()))
        self.host_reads += 1
        self._act("note", step=self.step + 1, cause=["not_stepped"], readings={"loss_is_finite": finite})
        self._told = _Told()

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Judge, now or as soon as the closure has made the gradients."""
        self._skip.undo()  # of a step that was left by an exception
        positional = args[1:2] if args and args[0] is optimizer else args[:1]
        closure = positional[0] if positional else kwargs.get("closure")
        if not callable(closure):
            self._judge()
            return None

        def judging() -> Any:
            loss = closure()
            if not self._told.losses and isinstance(loss, (Tensor, float)):
                self.observe(loss)
            self._judge()
            return loss

        if positional:
            place = args.index(closure)
            return (*args[:place], judging, *args[place + 1 :]), kwargs
        return args, {**kwargs, "closure": judging}

    @torch.no_grad()
    def _judge(self) -> None:
        slopes = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        slopes = [g.coalesce().values() if g.is_sparse else g for g in slopes]
        device = slopes[0].device if slopes else torch.device("cpu")
        norm = length(slopes).to(device)
        attributes = self.optimizer.__dict__
        scale, handled = attributes.get("grad_scale"), attributes.get("found_inf")
        if scale is not None:
            norm = norm / scale.to(device, torch.float64)
        told = bool(self._told.losses)
        nothing = torch.full((), torch.nan, dtype=torch.float64, device=device)
        loss = torch.stack([value.to(device) for value in self._told.losses]).mean() if told else nothing
        peak, partition = nothing, nothing
        outputs = getattr(self._told.outputs, "logits", self._told.outputs)
        if isinstance(outputs, Tensor):
            peak, partition = (value.to(device) for value in logit_sizes(outputs, self._told.batches[-1].targets))
        self.windows.to(device)
        values = torch.stack([loss, norm, peak, partition])
        scores = self.windows.scores(values)
        signals = Signals(loss, told, norm, scores[0], scores[1], peak, partition, scores[2], scores[3])
        flags = torch.stack([rule.suspicious(signals) for rule in self.rules]) if self.rules else norm.new_zeros(1) > 0
        passed = torch.zeros_like(flags[0]) if handled is None else (handled != 0).to(device)
        flags = self._agreed(torch.cat([flags, passed.reshape(1)]))
        passed = flags[-1]
        verdict = flags[:-1].any() & ~passed
        self.windows.add(values, ~(verdict | passed))
        packed = torch.cat([values, scores, passed.reshape(1).double(), flags[:-1].double()])
        rates = [group["lr"] for group in self.optimizer.param_groups]
        new = _Verdict(self.step + 1, self._told.batches, rates, packed)
        self._lag = reads_found_inf(self.optimizer)
        if self._lag:
            self._skip.tell(verdict)
            if packed.is_cuda:
                new.packed = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
                new.packed.copy_(packed, non_blocking=True)
                new.event = torch.cuda.Event()
                new.event.record()
        else:
            new.packed = packed.cpu()
            self.host_reads += 1
            numbers = new.numbers()
            if any(numbers[_FLAGS:]) and not numbers[_PASSED]:
                new.module, new.looked = self._first_broken(numbers, new.batches, slopes=True), True
                self._skip.hide()
        if self.rate != 1.0:
            self._skip.slow(self.rate)
        self._proposed = None
        inputs = self._told.batches[-1].inputs if self._told.batches else None
        if self._ghost is not None and inputs is not None:
            moved = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
            self._proposed = moved, [p.detach().clone() for p in moved], inputs
        self._ask("gradients", new)
        self._new = new
        self._told = _Told()

    def _agreed(self, flags: Tensor) -> Tensor:
        """What any rank says; the same one collective on every path."""
        return self._largest(flags.to(torch.float32)) > 0

    @torch.no_grad()
    def _shorten(self) -> None:
        """Take a part of an update back that leaves the ghost radius."""
        ghost, proposed = self._ghost, self._proposed
        self._proposed = None
        if ghost is None or proposed is None:
            return
        parameters, before, inputs = proposed
        update = list(foreach_sub(parameters, before)) if parameters else []
        size = length(update)
        expected = ghost.r * size / ghost.length if ghost.length > 0 else torch.full_like(size, math.inf)
        expected, size = self._largest(torch.stack([expected, size]).to(self.windows.logs.device)).tolist()
        self.host_reads += 1
        scale = 1.0
        if 0 < size < math.inf and ghost.due(expected):
            r = float(self._largest(GhostRadius(self.model).ratio(parameters, update, inputs, at=before)))
            self.host_reads += 1
            scale = ghost.measured(r, size) if math.isfinite(r) else 1.0
        if scale < 1.0:
            for p, value, change in zip(parameters, before, update):
                p.copy_(widen(value) + scale * widen(change))
            readings = {"r": ghost.r, "scale": scale}
            self._act("shorten", step=self.step + 1, cause=[ghost.name], readings=readings)
        if size > 0 and (factor := ghost.cut(scale, size)) < 1.0:
            self.rate *= factor
            self._act("cut", step=self.step + 1, cause=[ghost.name], rate=self.rate)

    def _ask(self, phase: str, verdict: _Verdict) -> None:
        """Ask the probes that are due; one whose alarm begins cuts the rate."""
        batch = verdict.batches[-1] if verdict.batches else Batch(None, None)
        for rule in self._probes:
            without = "batch" in rule.probe.needs and batch.inputs is None
            if self._replaying or without or not rule.due(verdict.step, phase):
                continue
            facts = {"inputs": batch.inputs, "targets": batch.targets, "objective": self.objective}
            moment = Moment(verdict.step, phase, self.model, optimizer=self.optimizer, **facts)
            with batch.precision():
                reading = rule.probe.measure(moment).numbers.get("alarm", 0.0)
            alarm = torch.as_tensor(reading, dtype=torch.float32).to(self.windows.logs.device)
            self.host_reads += 1
            if rule.rises(float(self._largest(alarm))):
                self.rate = max(self.rate * self.cut, self.floor)
                self._act("cut", step=verdict.step, cause=[rule.name], rate=self.rate)

    def _largest(self, value: Tensor) -> Tensor:
        """That of all ranks."""
        ranks = torch.distributed
        if ranks.is_available() and ranks.is_initialized() and ranks.get_world_size(self.group) > 1:
            ranks.all_reduce(value, ranks.ReduceOp.MAX, group=self.group)
        return value

    def _after_step(self, *_: Any) -> None:
        self._skip.undo()
        self._shorten()
        if self.outer is self.optimizer or not isinstance(self.outer, Optimizer):
            self._finish()

    def _after_outer(self, *_: Any) -> None:
        self._finish()

    def _finish(self) -> None:
        """The step is over, in all that wraps the optimizer: read what it was, act, and keep a copy."""
        new, self._new = self._new, None
        if new is None:
            return
        self.step += 1
        if self.every and self.replays and not self._replaying:
            known = [batch for batch in new.batches if batch.inputs is not None]
            if known and len(known) == len(new.batches):
                self._history.append(Step(new.step, known, new.rates))
        due = self._waiting if self._lag else new
        self._waiting = new if self._lag else None
        if due is not None:
            self._read(due)
        self._ask("stepped", new)
        if self.every and not self._replaying and self.step % self.every == 0:
            self._keep()

    # --------------------------------------------------------------------------------------------------------- actions

    def _read(self, verdict: _Verdict) -> None:
        """What a step was; acts on it."""
        numbers, step = verdict.numbers(), verdict.step
        sizes, scores = numbers[: len(SERIES)], numbers[len(SERIES) : _PASSED]
        passed, flags = bool(numbers[_PASSED]), numbers[_FLAGS:]
        if not self._replaying:
            self._losses.append(sizes[0])
        causes = [rule.name for rule, flag in zip(self.rules, flags) if flag]
        readings = {name: value for name, value in zip(SERIES, sizes) if not math.isnan(value) or name == "loss"}
        readings |= {f"{name}_score": value for name, value in zip(SERIES, scores) if not math.isnan(value)}
        if passed:
            self._act("note", step=step, cause=["scaler_overflow"], readings=readings)
            return
        if not causes:
            self._row = 0
            self._quiet += 1
            if self._quiet >= self.calm:
                self._attempts = 0
            return
        if self._row == 0:
            self._first_alarm = step
        self._row += 1
        self._quiet = 0
        self.skipped += 1
        module = verdict.module if verdict.looked else self._first_broken(numbers, verdict.batches)
        self._act("skip", step=step, cause=causes, module=module, readings=readings)
        if not self.alarmed or self._replaying or self.stopped or not self.every:
            return
        if self._row % self.enough == 0 or not self._sound():
            self._go_back(causes)

    @property
    def enough(self) -> int:
        """So many suspected steps in a row are too many, whatever the weights are like."""
        return max(self.patience, self.windows.size // 4)

    @torch.no_grad()
    def _sound(self) -> bool:
        """Whether the weights are: a batch from before the alarm has the loss of those days."""
        steps = [step for step in self._history if step.number < self._first_alarm - 1]
        loss = None
        if steps:
            with untouched(self.model):
                loss = loss_of(self, steps[-1].batches[-1])
        worse = torch.ones((), device=self.windows.logs.device)
        if loss is not None:
            values = torch.full((len(SERIES),), torch.nan, dtype=torch.float64, device=worse.device)
            values[0] = loss
            score = self.windows.scores(values)[0]
            worse = (~(score <= LossSpike().threshold)).to(torch.float32)
        self.host_reads += 1
        return not float(self._largest(worse))

    def _first_broken(self, numbers: list[float], batches: list[Batch], slopes: bool = False) -> str | None:
        """The first parameter, module's output or gradient that is not finite, by name; None: there is none."""
        if all(map(math.isfinite, numbers[:2])):
            return None
        self.host_reads += 1
        module = inner_module(self.model)
        parameters = dict(module.named_parameters())
        for name, p in parameters.items():
            if not bool(p.isfinite().all()):
                return name
        for batch in batches:
            if batch.inputs is None:
                continue
            try:
                with batch.precision():
                    activations = Moment(self.step, "gradients", module, inputs=batch.inputs).activations()
            except (RuntimeError, TypeError, ValueError):  # a model that is called in another way
                break
            for name, (_, output) in activations.items():
                if isinstance(output, Tensor) and not bool(output.isfinite().all()):
                    return name
        if slopes:
            for name, p in parameters.items():
                if p.grad is not None and not bool(p.grad.isfinite().all()):
                    return f"{name}.grad"
        return None

    def _keep(self) -> None:
        """A snapshot, where the run is quiet and finite; batches before the good one are not needed any more."""
        if self._row or self._quiet < min(self.patience, self.step):
            return
        snapshot = snapshots.take(self.step, self.model, self.outer, self.optimizer)
        snapshot["windows"] = self.windows.state_dict()
        if not snapshots.finite(snapshot, self._infinite):
            return
        self.snapshots.add(snapshot)
        oldest = (self.snapshots.good or self.snapshots.pending or snapshot)["step"]
        while self._history and self._history[0].number <= oldest:
            self._history.popleft()

    def _go_back(self, causes: list[str]) -> None:
        """To the newest snapshot that is older than the suspected cause, and on without the suspected batches."""
        self._attempts += 1
        first = self._first_alarm - 2 ** (self._attempts - 1)
        snapshot = self.snapshots.before(first)
        if snapshot is None or self._attempts > self.budget:
            self._stop(causes, snapshot)
            return
        if self._attempts > 1:
            self.rate = max(self.rate * self.cut, self.floor)
        excluded = [step.number for step in self._history if step.number >= first]
        self._history = deque(step for step in self._history if step.number < first)
        self._restore(snapshot)
        replayed = self._replay([step for step in self._history if step.number > snapshot["step"]])
        self._act(
            "roll_back",
            step=self.step,
            cause=causes,
            snapshot=snapshot["step"],
            excluded=excluded,
            replayed=replayed,
            attempt=self._attempts,
            rate=self.rate,
        )
        self._row = self._quiet = 0

    def _restore(self, snapshot: dict[str, Any]) -> None:
        snapshots.restore(snapshot, self.model, self.outer, self.optimizer)
        self.windows.load_state_dict(snapshot["windows"])
        self._waiting = None
        self.snapshots.doubt()

    def _replay(self, steps: list[Step]) -> int:
        """Take steps again; how many steps were taken."""
        self._replaying = True
        step = self.step
        try:
            self._row = 0
            return replay(self, steps)
        finally:
            self._replaying = False
            self.step, self._row, self._told, self._waiting = step, 0, _Told(), None

    def _stop(self, causes: list[str], snapshot: dict[str, Any] | None) -> None:
        snapshot = snapshot or self.snapshots.good
        if snapshot is not None:
            self._restore(snapshot)
        self.stopped = True
        number = None if snapshot is None else snapshot["step"]
        self._act("stop", step=self.step, cause=causes, snapshot=number, attempt=self._attempts, rate=self.rate)
        if self.stops:
            what = "no snapshot is older than the cause" if snapshot is None else f"weights are those of step {number}"
            raise GuardStop(f"stopped at step {self.step} because of {', '.join(causes)}; {what}")

    def _act(self, action: str, **facts: Any) -> None:
        ranks = torch.distributed
        if ranks.is_available() and ranks.is_initialized():
            facts["rank"] = ranks.get_rank()
        line = {"action": action, **{name: value for name, value in facts.items() if value is not None}}
        if self._replaying:
            line["replay"] = True
        self.actions.append(line)
        if self._tell is not None:
            self._tell("action", line)

    # ------------------------------------------------------------------------------------------------------- the state

    @property
    def spike_score(self) -> float:
        """The share of steps whose loss lies beyond 6 standard deviations of the 128 before."""
        return spike_score(torch.tensor(list(self._losses)))

    def state_dict(self) -> dict[str, Any]:
        """All that decides what comes: numbers, lists and tensors on the CPU, copies.

        Batches are not in it: after loading, a run that goes back replays those that came since.
        """
        own = self._waiting
        waiting = (
            None if own is None else {"step": own.step, "packed": torch.tensor(own.numbers(), dtype=torch.float64)}
        )
        names = ("step", "skipped", "rate", "stopped", "_row", "_quiet", "_attempts", "_first_alarm")
        return {
            "numbers": {name: getattr(self, name) for name in names},
            "windows": self.windows.state_dict(),
            "losses": list(self._losses),
            "snapshots": self.snapshots.state_dict(),
            "waiting": waiting,
            "rules": {rule.name: rule.state_dict() for rule in self.rules},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave, also before the first step."""
        for name, value in state["numbers"].items():
            setattr(self, name, value)
        self.windows.load_state_dict(state["windows"])
        self._losses = deque(state["losses"], maxlen=self._losses.maxlen)
        self.snapshots.load_state_dict(state["snapshots"])
        waiting = state["waiting"]
        self._waiting = None if waiting is None else _Verdict(waiting["step"], [], [], waiting["packed"].clone())
        for rule in self.rules:
            rule.load_state_dict(state["rules"].get(rule.name, {}))
        self._history.clear()
        self._told = _Told()

    def close(self) -> None:
        """Take the hooks away; the run goes on without."""
        self._skip.undo()
        for handle in self._handles:
            handle.remove()
        self._handles = []
        _GUARDED.pop(self.optimizer, None)
        if isinstance(self._tell, Journal):
            self._tell.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Guard({type(self.model).__name__}, rules={[rule.name for rule in self.rules]}, step={self.step})"


__all__ = ["Guard", "GuardStop"]
