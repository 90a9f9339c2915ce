"""Runs of 300 steps in which something breaks at step 200, and those that are to save them."""

from __future__ import annotations

import copy
import json
import math
import os
import tempfile
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, distributed, nn

from steepest.core.optimizer import over_ranks
from steepest.lab.data import cifar10_subset
from steepest.lab.optim.schedules._shakespeare import Transformer, characters
from steepest.watch import Guard, GuardStop

STEPS, FAULT = 300, 200
RATES = {"transformer": 0.01, "cnn": 0.003, "perceptron": 0.01}
"""The best of 1e-3, 3e-3, 1e-2, 3e-2 on seed 100, undisturbed."""
CONTEXT, SYMBOLS = 32, 65
Data = tuple[Tensor, Tensor]


# ------------------------------------------------------------------------------------------------------------ networks
@dataclass(frozen=True)
class Network:
    """A model, its batches, and what it is judged on.

    Args:
        name: of it.
        model: makes one.
        batch: draws one.
        held_out: examples that don't train.
    """

    name: str
    model: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], Data]
    held_out: Data


def objective(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the last dimension."""
    return nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten())


objective.domain = "logits"  # type: ignore[attr-defined]


@cache
def transformer(generated: bool) -> Network:
    """A causal transformer of one block on the characters of tiny Shakespeare."""
    text, rest = characters(generated)
    windows = torch.arange(CONTEXT + 1)

    def batch(generator: torch.Generator) -> Data:
        part = text[torch.randint(len(text) - CONTEXT, (8, 1), generator=generator) + windows]
        return part[:, :-1], part[:, 1:]

    starts = torch.linspace(0, len(rest) - CONTEXT - 1, 200).long().unsqueeze(1)
    held = rest[starts + windows]
    return Network("transformer", lambda: Transformer(1, 32, 2), batch, (held[:, :-1], held[:, 1:]))


@cache
def cnn(generated: bool) -> Network:
    """Two convolutions on 5,000 images of CIFAR-10."""
    if generated:
        pixels = np.random.default_rng(0).random((300, 3, 32, 32))
        x = torch.tensor(pixels, dtype=torch.float32)
        y = (x[:, 0].mean((1, 2)) * 1e4).long() % 10
        data = x[:200], y[:200], x[200:], y[200:]
    else:
        parts = cifar10_subset()
        data = tuple(torch.tensor(a, dtype=torch.int64 if a.ndim == 1 else torch.float32) for a in parts)  # type: ignore[assignment]
    x, y, held_x, held_y = data
    middle, spread = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    x, held_x = (x - middle) / spread, (held_x - middle) / spread

    def model() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 12, 4, 4), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Conv2d(12, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU(), nn.Flatten(), nn.Linear(384, 10),
        )  # fmt: skip

    def batch(generator: torch.Generator) -> Data:
        rows = torch.randint(len(x), (32,), generator=generator)
        return x[rows], y[rows]

    return Network("cnn", model, batch, (held_x[:500], held_y[:500]))


@cache
def perceptron(generated: bool) -> Network:
    """On scikit-learn's digits: where thresholds are looked at."""
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16.0, dtype=torch.float32), torch.tensor(labels)

    def batch(generator: torch.Generator) -> Data:
        rows = torch.randint(1_300, (32,), generator=generator)
        return x[rows], y[rows]

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10))

    return Network("perceptron", model, batch, (x[1_300:], y[1_300:]))


NETWORKS: dict[str, Callable[[bool], Network]] = {"transformer": transformer, "cnn": cnn, "perceptron": perceptron}


# -------------------------------------------------------------------------------------------------------------- faults
@dataclass(frozen=True)
class Fault:
    """What breaks at some passes of the loop, whatever batch they draw.

    Args:
        length: passes from step 200 on.
        rate: factor of the rate.
        data: spoils a batch.
        loss: spoils the loss, from logits and loss.
        slopes: spoils the gradients.
        weights: spoils the weights after the step.
        always: from the first step to the last.
        ranks: processes that train together, each on batches of its own; only the last one's loss is spoiled.
    """

    length: int = 5
    rate: float = 1.0
    data: Callable[[Tensor, Tensor], Data] | None = None
    loss: Callable[[Tensor, Tensor], Tensor] | None = None
    slopes: Callable[[nn.Module], None] | None = None
    weights: Callable[[nn.Module], None] | None = None
    always: bool = False
    ranks: int = 1

    def on(self, turn: int) -> bool:
        """Whether it happens at a pass of the loop, from 1."""
        return self.always or FAULT <= turn < FAULT + self.length


def poisoned(x: Tensor, y: Tensor) -> Data:
    """Inputs of another kind, one label for all."""
    wrong = torch.zeros_like(y)
    return (torch.full_like(x, SYMBOLS - 1), wrong) if x.dtype == torch.int64 else (100 * x, wrong)


def growing(logits: Tensor, loss: Tensor) -> Tensor:
    """A sign that was mistaken in a z-loss."""
    return loss - torch.logsumexp(logits, -1).square().mean()


def overflowing(model: nn.Module) -> None:
    """Gradients that went through float16 at a scale that is too large, and that nobody looked at."""
    for p in model.parameters():
        if p.grad is not None:
            p.grad = (p.grad * 2.0**30).half().float() / 2.0**30


@torch.no_grad()
def flipped(model: nn.Module) -> None:
    """The largest weight of the last layer is 2^16 times what it was, as if a bit of its exponent had flipped."""
    weight = [p for p in model.parameters() if p.ndim > 1][-1]
    weight.view(-1)[weight.abs().argmax()] *= 2.0**16


def lost(logits: Tensor, loss: Tensor) -> Tensor:
    """No number."""
    return loss * math.nan


FAULTS: dict[str, Fault] = {
    "none": Fault(0),
    "rate x10": Fault(rate=10.0),
    "rate x1000": Fault(rate=1e3),
    "rate x10000": Fault(rate=1e4),
    "poisoned batch": Fault(1, data=poisoned),
    "logit growth": Fault(20, loss=growing),
    "fp16 overflow": Fault(1, slopes=overflowing),
    "rate x30 always": Fault(rate=30.0, always=True),
    "bit flip": Fault(1, weights=flipped),
    "none, two ranks": Fault(0, ranks=2),
    "NaN on one of two ranks": Fault(1, loss=lost, ranks=2),
}
"""By name. The bit flip was added when thresholds had been frozen."""


# ---------------------------------------------------------------------------------------------------------------- arms
class Stopped(Exception):
    """An arm ends the run."""


class Restart(Exception):
    """An arm asks for the last checkpoint, and that batches are left out."""

    def __init__(self, without: list[int]) -> None:
        self.without = without
        super().__init__(without)


class Arm:
    """Nothing: what trains, undefended."""

    def __init__(self, network: Network, model: nn.Module, rate: float, **setting: Any) -> None:
        self.model, self.setting = model, setting
        self.optimizer = self.build(model, rate)
        self.lost = 0
        self.alarms: list[int] = []

    def build(self, model: nn.Module, rate: float) -> torch.optim.Optimizer:
        """The optimizer."""
        return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, fused=True)

    def told(self, step: int, loss: Tensor, logits: Tensor, x: Tensor, y: Tensor) -> None:
        """After the forward pass."""

    def before(self) -> None:
        """Before the step."""

    def after(self, step: int, loss: Tensor) -> None:
        """After the step."""


class Clip(Arm):
    """The gradient norm is at most ``norm``."""

    def before(self) -> None:
        """Clip."""
        nn.utils.clip_grad_norm_(self.model.parameters(), self.setting.get("norm", 1.0))


def agreed(decision: bool, all: bool = True) -> bool:
    """Whether all ranks, or any, decided so."""
    if not distributed.is_initialized():
        return decision
    votes = torch.tensor(int(decision))
    distributed.all_reduce(votes, distributed.ReduceOp.MIN if all else distributed.ReduceOp.MAX)
    return bool(votes)


class Lightning(Arm):
    """Lightning's own ``SpikeDetection``, and by its manual: the last checkpoint, without the two batches it names."""

    class Fabric:
        """What it asks of a fabric."""

        global_rank = 1
        """The file of batches is another process's."""

        class strategy:
            """Of one process, or of ranks that vote."""

            root_device = torch.device("cpu")
            barrier = staticmethod(lambda: None)
            reduce_boolean_decision = staticmethod(agreed)

    def __init__(self, network: Network, model: nn.Module, rate: float, **setting: Any) -> None:
        super().__init__(network, model, rate, **setting)
        self.begin()

    def begin(self) -> None:
        """A detector of its own after each restart: its state cannot be loaded."""
        from lightning.fabric.utilities.spike import SpikeDetection

        self.detector, self.calls = SpikeDetection(exclude_batches_path="skip.json", **self.setting), 0

    def after(self, step: int, loss: Tensor) -> None:
        """Detect."""
        from lightning.fabric.utilities.spike import TrainingSpikeException

        try:
            self.detector.on_train_batch_end(self.Fabric, loss.detach(), None, self.calls)  # type: ignore[arg-type]
        except TrainingSpikeException:
            self.alarms.append(step)
            self.begin()
            raise Restart([step - 1, step]) from None
        self.calls += 1


class Foundry(Arm):
    """The rule of llm-foundry's ``KillLossSpike`` with ``log_only=False``, from its documentation."""

    def __init__(self, network: Network, model: nn.Module, rate: float, **setting: Any) -> None:
        super().__init__(network, model, rate, **setting)
        size = setting.get("window_size", 100)
        self.window: deque[float] = deque(maxlen=size)
        self.outliers = 0

    def after(self, step: int, loss: Tensor) -> None:
        """End the run after more than ``patience`` outliers in a row, or where half of a window is above the cap."""
        value, size = float(loss.detach()), self.window.maxlen
        if len(self.window) == size:
            if value >= float(np.mean(self.window)) * self.setting.get("outlier_multiplier", 2):
                self.outliers += 1
            elif self.outliers > 0:
                self.outliers = 0
            high = step >= 2 * size and sum(own > 10 for own in self.window) >= size / 2
            if self.outliers > self.setting.get("patience", 4) or high:
                self.alarms.append(step)
                raise Stopped
        self.window.append(value)


class SkipStepAdamW(torch.optim.Optimizer):
    """The rule and the arithmetic of OLMo-core's, from its documentation: a step is multiplied by 0 or 1."""

    def __init__(self, params: Any, lr: float, rolling_interval_length: int = 128, sigma_factor: float = 6) -> None:
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01})
        self.size, self.sigma = rolling_interval_length, sigma_factor
        self.losses: deque[Tensor] = deque(maxlen=self.size + 1)
        self.norms: deque[Tensor] = deque(maxlen=self.size + 1)

    def factor(self) -> Tensor:
        """1 where loss and norm are within so many standard deviations of the steps before, 0 elsewhere."""
        if len(self.losses) < max(2, self.size // 2):
            return torch.tensor(1.0)
        good = torch.tensor(True)
        for series in (self.losses, self.norms):
            spread, middle = torch.std_mean(torch.stack(list(series)[:-1]))
            good = good & (series[-1] - middle <= self.sigma * spread)
        return good.float()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step."""
        factor = self.last = self.factor()
        for group in self.param_groups:
            (b1, b2), rate = group["betas"], group["lr"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(step=torch.zeros(()), m=torch.zeros_like(p), v=torch.zeros_like(p))
                step, m, v = state["step"], state["m"], state["v"]
                p.mul_(1 - factor * (rate * group["weight_decay"]))
                m.lerp_(p.grad, factor * (1 - b1))
                v.mul_(1 - factor * (1 - b2)).add_(factor * p.grad * p.grad, alpha=1 - b2)
                small = (v.sqrt() / (1 - b2 ** (step + 1)).sqrt()).add_(group["eps"])
                p.add_(-(rate / (1 - b1 ** (step + 1))) * (m / small) * factor)
                step.add_(factor)


class Olmo(Arm):
    """OLMo-core's ``SkipStepAdamW``."""

    def build(self, model: nn.Module, rate: float) -> torch.optim.Optimizer:
        """Its own optimizer."""
        return SkipStepAdamW(model.parameters(), rate, **self.setting)

    def told(self, step: int, loss: Tensor, logits: Tensor, x: Tensor, y: Tensor) -> None:
        """The loss, of all ranks."""
        self.optimizer.losses.append(over_ranks(loss.detach()))  # type: ignore[attr-defined]

    def before(self) -> None:
        """The norm."""
        slopes = [p.grad for p in self.model.parameters() if p.grad is not None]
        self.optimizer.norms.append(nn.utils.get_total_norm(slopes))  # type: ignore[attr-defined]

    def after(self, step: int, loss: Tensor) -> None:
        """Count."""
        if not float(self.optimizer.last):  # type: ignore[attr-defined]
            self.lost += 1
            self.alarms.append(step)


class Ours(Arm):
    """``steepest.watch.Guard`` at its defaults."""

    def __init__(self, network: Network, model: nn.Module, rate: float, **setting: Any) -> None:
        super().__init__(network, model, rate, **setting)
        self.guard = Guard(model, self.optimizer, objective, **setting)

    def told(self, step: int, loss: Tensor, logits: Tensor, x: Tensor, y: Tensor) -> None:
        """Observe."""
        self.guard.observe(loss, x, y, outputs=logits)

    def finish(self) -> None:
        """Count."""
        actions = [line for line in self.guard.actions if line["action"] not in ("note", "skip")]
        self.alarms = [line["step"] for line in self.guard.actions if line["action"] != "note"]
        self.lost = self.guard.skipped + sum(len(line.get("excluded", ())) for line in actions)
        self.guard.close()


ARMS: dict[str, type[Arm]] = {
    "nothing": Arm, "clipping": Clip, "SpikeDetection": Lightning, "KillLossSpike": Foundry, "SkipStepAdamW": Olmo,
    "guard": Ours,
}  # fmt: skip
GRIDS: dict[str, list[dict[str, Any]]] = {
    "clipping": [{"norm": norm} for norm in (0.1, 0.3, 3.0)],
    "SpikeDetection": [{"rtol": 0.5}, {"rtol": 0.3, "window": 50}, {"rtol": 1.0, "window": 50}],
    "KillLossSpike": [
        {"outlier_multiplier": 1.3, "patience": 0}, {"outlier_multiplier": 1.3, "window_size": 50},
        {"outlier_multiplier": 2, "patience": 0, "window_size": 50},
    ],
    "SkipStepAdamW": [
        {"sigma_factor": 4}, {"sigma_factor": 4, "rolling_interval_length": 64},
        {"sigma_factor": 6, "rolling_interval_length": 64},
    ],
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- runs
@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """In evaluation mode."""
    model.eval()
    try:
        yield
    finally:
        model.train()


class Run:
    """A run that goes on step by step, so that what comes before the fault is run once for all of them.

    Args:
        network: what trains.
        seed: of weights and batches.
        arm_name: who defends it.
        setting: of the arm.
    """

    def __init__(self, network: Network, seed: int, arm_name: str, setting: dict[str, Any]) -> None:
        torch.manual_seed(seed)
        self.network, self.model = network, network.model()
        self.spoiled, batches = True, seed
        if distributed.is_initialized():
            rank, ranks = distributed.get_rank(), distributed.get_world_size()
            self.model = nn.parallel.DistributedDataParallel(self.model)
            self.spoiled, batches = rank == ranks - 1, seed + 1_000 * rank
        self.rate = RATES[network.name]
        self.arm = ARMS[arm_name](network, self.model, self.rate, **setting)
        generator = torch.Generator().manual_seed(batches)
        self.data = [network.batch(generator) for _ in range(STEPS)]
        self.without: set[int] = set()
        self.step = self.turn = self.restarts = 0
        self.ended: int | None = None
        self.checkpoint = self.saved()

    def saved(self) -> tuple[int, dict[str, Any], dict[str, Any]]:
        """What a loop saves every 50 steps."""
        return self.step, copy.deepcopy(self.model.state_dict()), copy.deepcopy(self.arm.optimizer.state_dict())

    def go(self, until: int, fault: Fault) -> None:
        """Train until after a step."""
        while self.step < until and self.ended is None:
            self.step += 1
            if self.step in self.without:
                self.arm.lost += 1
                continue
            self.turn += 1
            try:
                stops = False
                try:
                    self.take(fault, fault.on(self.turn))
                except (Stopped, GuardStop):
                    stops = True
                if agreed(stops, all=False):
                    self.ended = self.step
            except Restart as restart:
                self.restarts += 1
                if self.restarts > 3:
                    self.ended = self.step
                self.without |= set(restart.without)
                self.arm.lost += self.step - self.checkpoint[0]
                self.step = self.checkpoint[0]
                self.model.load_state_dict(self.checkpoint[1])
                self.arm.optimizer.load_state_dict(copy.deepcopy(self.checkpoint[2]))
                continue
            if self.step % 50 == 0:
                self.checkpoint = self.saved()

    def take(self, fault: Fault, on: bool) -> None:
        """A step."""
        arm, model = self.arm, self.model
        x, y = self.data[self.step - 1]
        if fault.data is not None and fault.on(self.step):
            x, y = fault.data(x, y)
        arm.optimizer.param_groups[0]["lr"] = self.rate * (fault.rate if on else 1.0)
        logits = model(x)
        loss = objective(logits, y)
        if on and fault.loss is not None and self.spoiled:
            loss = fault.loss(logits, loss)
        arm.told(self.step, loss, logits, x, y)
        arm.optimizer.zero_grad()
        loss.backward()
        if on and fault.slopes is not None:
            fault.slopes(model)
        arm.before()
        arm.optimizer.step()
        if on and fault.weights is not None:
            fault.weights(model)
        arm.after(self.step, loss)

    def result(self) -> dict[str, Any]:
        """The loss held out at the end (None: ended before, or not finite), steps lost, and where alarms were."""
        if isinstance(self.arm, Ours):
            self.arm.finish()
        with torch.no_grad(), evaluated(self.model):
            model = getattr(self.model, "module", self.model)
            final = float(objective(model(self.network.held_out[0]), self.network.held_out[1]))
        if distributed.is_initialized():  # that of the worst rank
            finals = [torch.zeros(()) for _ in range(distributed.get_world_size())]
            distributed.all_gather(finals, torch.tensor(final))
            final = float(torch.stack(finals).nan_to_num(math.inf).max())
        good = self.ended is None and math.isfinite(final)
        alarms = [int(alarm) for alarm in self.arm.alarms]
        return {
            "final": round(final, 5) if good else None, "lost": self.arm.lost, "ended": self.ended,
            "restarts": self.restarts, "alarms": len(alarms), "before": sum(alarm < FAULT for alarm in alarms),
        }  # fmt: skip


def run(network: Network, seed: int, fault: Fault, arm_name: str, **setting: Any) -> dict[str, Any]:
    """One run."""
    own = Run(network, seed, arm_name, setting)
    own.go(STEPS, fault)
    return own.result()


@contextmanager
def forked(work: Callable[[], dict[str, Any]]) -> Iterator[Callable[[], dict[str, Any]]]:
    """A process that works from here on; the function waits for its result."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            os.write(writer, json.dumps(work()).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writer)

    def result() -> dict[str, Any]:
        with os.fdopen(reader) as pipe:
            given: dict[str, Any] = json.loads(pipe.read())
        return given

    yield result
    os.waitpid(child, 0)


def on_ranks(network: Network, seed: int, fault: Fault, arm_name: str, **setting: Any) -> dict[str, Any]:
    """One run in several processes; alarms are those of the first."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:

        def rank(number: int) -> dict[str, Any]:
            where = f"file://{folder}/ranks"
            distributed.init_process_group("gloo", init_method=where, rank=number, world_size=fault.ranks)
            return run(network, seed, fault, arm_name, **setting)

        results = [stack.enter_context(forked(partial(rank, number))) for number in range(fault.ranks)]
        return results[0]()


def runs(network: Network, seed: int, arm_name: str, faults: list[str], **setting: Any) -> dict[str, dict[str, Any]]:
    """A run for each fault; a process that is forked before the first one goes on with each."""
    results = {}
    for name in faults:
        if FAULTS[name].ranks > 1:
            results[name] = on_ranks(network, seed, FAULTS[name], arm_name, **setting)
        elif FAULTS[name].always:
            results[name] = run(network, seed, FAULTS[name], arm_name, **setting)
    late = [name for name in faults if name not in results]
    if late:
        own = Run(network, seed, arm_name, setting)
        own.go(FAULT - 1, FAULTS["none"])

        def rest(name: str) -> dict[str, Any]:
            own.go(STEPS, FAULTS[name])
            return own.result()

        for name in late:
            with forked(partial(rest, name)) as result:
                results[name] = result()
    return results
