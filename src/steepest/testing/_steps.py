"""What the suites of optimizers and wrappers share: members, small problems, snapshots, ranks."""

from __future__ import annotations

import copy
import inspect
import io
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..core.memory import SampleMemory
from ._constructor import seed_torch

Builder = Callable[[Any], Optimizer]
"""Builds an optimizer over parameters or groups."""


@dataclass(frozen=True)
class Member:
    """A class of optimizer as a suite sees it.

    Args:
        cls: the class.
        builders: each builds one of a setting over parameters or groups.
        exempt: names of checks that don't apply, each with its reason.
    """

    cls: type[Optimizer]
    builders: Sequence[Builder]
    exempt: dict[str, str] = field(default_factory=dict)

    @property
    def __name__(self) -> str:
        return self.cls.__name__

    def places(self) -> range:
        """A number for each setting."""
        return range(len(self.builders))

    def over(self, place: int, params: Any) -> Optimizer:
        """A fresh one of a setting."""
        return self.builders[place](params)

    @property
    def two_passes(self) -> bool:
        """Whether ``step(closure)`` takes the gradient twice."""
        return hasattr(self.cls, "second_step")

    @property
    def loss_aware(self) -> bool:
        """Whether a step uses the value of the loss."""
        return "loss" in inspect.signature(self.cls.step).parameters

    def stepping(self, optimizer: Any, closure: Callable[[], Tensor], scaling: Any = None) -> None:
        """A step of one pass after backward, by itself or by a gradient scaler."""
        loss = closure()
        given = {"loss": loss} if self.loss_aware else {}
        if scaling is None:
            optimizer.step(**given)
        else:
            scaling.step(optimizer, **given)


def member_of(
    cls: type[Optimizer], builders: Sequence[Builder] | None = None, exempt: dict[str, str] | None = None
) -> Member:
    """A member from what the class itself declares, unless it is given.

    Raises:
        TypeError: neither the class nor the caller says how it is built.
    """
    if builders is None:
        own: Any = getattr(cls, "builders", None)
        if own is None:
            raise TypeError(f"builders: expected functions params -> optimizer, because {cls.__name__} declares none")
        builders = own()
    return Member(cls, builders, exempt if exempt is not None else dict(getattr(cls, "exempt", {})))


class Closure:
    """One batch of a problem: ``closure()`` zeroes, runs forward and backward and returns the loss.

    Args:
        forward: gives the loss with its graph.
        parameters: whose gradients are zeroed.
        scale: factor of the loss before backward, as a gradient scaler has.
        broken: the number of the run whose gradients become infinite.
        fails: the number of the run that raises in its backward pass.
    """

    def __init__(
        self,
        forward: Callable[[], Tensor],
        parameters: list[Tensor],
        *,
        scale: float = 1.0,
        broken: int = 0,
        fails: int = 0,
    ) -> None:
        self.forward, self.parameters, self.scale, self.broken, self.fails = forward, parameters, scale, broken, fails
        self.runs = 0

    def loss(self) -> Tensor:
        """Forward only."""
        return self.forward()

    def __call__(self) -> Tensor:
        self.runs += 1
        for p in self.parameters:
            p.grad = None
        loss = self.forward()
        (loss * self.scale).backward()
        if self.runs == self.fails:
            raise RuntimeError("the closure fails")
        if self.runs == self.broken:
            for p in self.parameters:
                if p.grad is not None:
                    p.grad.view(-1)[0] = torch.inf
        return loss.detach()


def problem(dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A small network and the loss of one batch."""
    seed_torch(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)
    x, y = torch.randn(12, 4).to(dtype), torch.randn(12, 2).to(dtype)
    return model, lambda: nn.functional.mse_loss(model(x), y)


class Layered(nn.Module):
    """Everything that a second pass must not disturb: batch norm, dropout, a memory of each sample."""

    def __init__(self, rows: int = 12) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 2))
        self.memory = SampleMemory(rows, (2,), dtype=torch.float16)
        self.masks: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """Outputs, and their distance to those that are remembered."""
        noise = torch.rand(3)
        self.masks.append(noise)
        outputs: Tensor = self.body(x)
        index = torch.arange(len(x))
        pull = (outputs - self.memory.read(index).to(outputs.dtype)).square().mean()
        self.memory.write(index, outputs)
        return outputs + 0.1 * pull * noise.sum()


def layered(seed: int = 0) -> tuple[Layered, Callable[[], Tensor]]:
    """Such a network and the loss of one batch."""
    seed_torch(seed)
    model = Layered()
    x, y = torch.randn(12, 4), torch.randn(12, 2)
    return model, lambda: nn.functional.mse_loss(model(x), y)


def trained(model: nn.Module) -> list[Tensor]:
    """Its parameters."""
    return list(model.parameters())


def steps(optimizer: Optimizer, closure: Callable[[], Any], number: int) -> list[float]:
    """Losses of so many steps."""
    return [float(optimizer.step(closure)) for _ in range(number)]


def snapshot(*parts: Any) -> list[Tensor]:
    """Copies of all tensors of modules, optimizers, lists: what must not have changed."""
    tensors: list[Tensor] = []

    def collect(value: Any) -> None:
        if isinstance(value, nn.Module):
            collect(list(value.state_dict().values()))
        elif isinstance(value, Optimizer):
            collect(list(value.state_dict()["state"].values()))
        elif isinstance(value, Tensor):
            tensors.append(value.detach().clone())
        elif isinstance(value, dict):
            collect(list(value.values()))
        elif isinstance(value, (list, tuple)):
            for item in value:
                collect(item)
        elif isinstance(value, (int, float)):
            tensors.append(torch.tensor(value))

    collect(list(parts))
    return tensors


def same_bits(before: list[Tensor], after: list[Tensor], what: str) -> None:
    """Assert that nothing has changed, NaN being equal to itself."""
    assert len(before) == len(after), f"{what}: {len(after)} tensors, {len(before)} before"
    for a, b in zip(before, after):
        assert a.dtype == b.dtype and a.shape == b.shape, f"{what}: another type or shape"
        assert torch.equal(a.nan_to_num(1.25), b.nan_to_num(1.25)), f"{what}: other bits"


def through_a_file(state: dict[str, Any]) -> Any:
    """A state written and read as tensors and plain values."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def without_decay(optimizer: Optimizer) -> Optimizer:
    """The same, with every decay of weights at 0."""
    for group in optimizer.param_groups:
        if "weight_decay" in group:
            group["weight_decay"] = 0.0
    return optimizer


@contextmanager
def no_warnings() -> Iterator[None]:
    """What torch warns of inside is no matter of a check."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def scaler(scale: float = 1024.0) -> torch.amp.GradScaler:
    """A gradient scaler of the CPU."""
    scaling = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    scaling.scale(torch.ones(()))  # it begins with the first loss
    return scaling


# ---------------------------------------------------------------------------------------------------------------- ranks


def on_two_ranks(work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What two processes of gloo make of ``work(rank, *arguments)``, each a result of tensors and plain values."""
    with tempfile.TemporaryDirectory() as folder:
        spawn: Any = torch.multiprocessing.spawn  # type: ignore[attr-defined]
        spawn(_rank, (folder, work, arguments), nprocs=2)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2)]


def _rank(rank: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        torch.save(work(rank, *arguments), Path(folder) / f"{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def averaged(rank: int, cls: type[Optimizer]) -> list[list[Tensor]]:
    """Parameters after three steps of each setting of ``cls`` under DDP, each rank with its half of the batch."""
    member = member_of(cls)
    results = []
    for place in member.places():
        for compiled in (False, True) if place == 0 else (False,):
            model, x, y = halves()
            wrapped: nn.Module = nn.parallel.DistributedDataParallel(model)
            if compiled:
                wrapped = torch.compile(wrapped, backend="aot_eager")  # type: ignore[assignment]
            own = slice(6 * rank, 6 * rank + 6)
            forward = _loss(wrapped, x[own], y[own])
            optimizer = member.over(place, trained(model))
            seed_torch(1)
            steps(optimizer, Closure(forward, trained(model)), 3)
            results.append(snapshot(model))
    return results


def halves() -> tuple[nn.Module, Tensor, Tensor]:
    """A network and a batch of 12 rows, in float64: two ranks have six each."""
    model, _ = problem(torch.float64)
    generator = torch.Generator().manual_seed(5)
    x, y = (torch.randn(12, n, generator=generator, dtype=torch.float64) for n in (4, 2))
    return model, x, y


def _loss(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    return lambda: nn.functional.mse_loss(model(x), y)


def on_one_rank(member: Member, place: int) -> list[Tensor]:
    """What :func:`averaged` must give."""
    model, x, y = halves()
    optimizer = member.over(place, trained(model))
    seed_torch(1)
    steps(optimizer, Closure(_loss(model, x, y), trained(model)), 3)
    return snapshot(model)


def copied(member: Member, place: int, groups: list[dict[str, Any]] | None = None) -> Any:
    """A problem, its closure and an optimizer over its parameters, or over groups made of them."""
    model, forward = problem()
    parameters = trained(model)
    given: Any = parameters
    if groups is not None:
        given = [{**copy.copy(options), "params": parameters[i::2]} for i, options in enumerate(groups)]
    return model, Closure(forward, parameters), member.over(place, given)
