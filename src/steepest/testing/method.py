"""Conformance of a method: it takes a model, a batch and an objective, and the one loop trains and resumes it."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ..core.method import Method
from ..core.objective import Batch
from ..descent import ArrayBatches, Descent
from ..losses.classification.cross_entropy import CrossEntropyLoss
from ..nn.networks import Network, mlp
from ._constructor import constructor_checks, seed_torch
from ._suite import bound, run_all


def setting(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Batch]:
    """A small network and a batch of 12 rows of 5 numbers in 3 classes, the same each time."""
    seed_torch(0)
    model = Network(mlp(5, width=8, depth=1), nn.Linear(8, 3)).to(dtype)
    inputs = torch.randn(12, 5).to(dtype)
    return model, Batch(inputs, torch.arange(12) % 3, index=torch.arange(12))


def check_declaration(cls: type[Method]) -> None:
    """A name, a docstring with an example."""
    assert cls.name.isidentifier() and cls.name == cls.name.lower(), "name: snake_case"
    assert cls.__doc__ and "Example" in cls.__doc__, "docstring with an example"


def check_loss(cls: type[Method]) -> None:
    """One finite number, with a gradient for every parameter of the model; the batch is left as it was."""
    for method in cls.instances():
        model, batch = setting()
        before = copy.deepcopy((batch.inputs, batch.target))
        loss = method.loss(model, batch, CrossEntropyLoss())
        assert loss.shape == () and math.isfinite(loss.item())
        loss.backward()
        assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters()), "gradient"
        assert any(bool(p.grad.any()) for p in model.parameters() if p.grad is not None), "the gradient is zero"
        assert torch.equal(before[0], batch.inputs) and torch.equal(before[1], batch.target), "the batch was changed"


def check_seed(cls: type[Method]) -> None:
    """The same seed gives the same bits."""
    values = []
    for _ in range(2):
        seed_torch(2)
        methods = cls.instances()
        model, batch = setting()
        seed_torch(3)
        values.append([method.loss(model, batch, CrossEntropyLoss()).item() for method in methods])
    assert values[0] == values[1], "other bits"


def check_resume(cls: type[Method]) -> None:
    """Killed in the middle and resumed from a file, the loop ends with the same parameters, bit for bit."""

    def run(place: int) -> tuple[Descent, nn.Module]:
        seed_torch(0)
        method = cls.instances()[place]
        model, _ = setting()
        generator = torch.Generator().manual_seed(1)
        x, y = torch.randn(24, 5, generator=generator), torch.arange(24) % 3
        batches = ArrayBatches(x, y, batch_size=8, seed=2)
        optimizer = torch.optim.SGD([*model.parameters(), *method.parameters()], lr=0.05)
        seed_torch(4)
        return Descent(model, CrossEntropyLoss(), batches, method=method, optimizer=optimizer), model

    for place in range(len(cls.instances())):
        whole, wanted = run(place)
        whole.fit(3)
        assert any(bool(p.grad is not None) for p in wanted.parameters())
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run.pt"
            first, _ = run(place)
            first.fit(1)
            first.save(path)
            second, model = run(place)
            second.resume(path).fit(3)
        for a, b in zip(wanted.parameters(), model.parameters()):
            assert torch.equal(a, b), "resumed, other parameters"


CHECKS: tuple[Callable[[type[Method]], None], ...] = (
    check_declaration, check_loss, check_seed, check_resume,
    *constructor_checks(lambda cls: cls.instances()),
)  # fmt: skip


def method_checks(cls: type[Method]) -> list[tuple[str, Callable[[], None]]]:
    """``(name, check)`` for every check that ``cls`` is not exempt from."""
    return bound(CHECKS, cls)


def check_method(cls: type[Method]) -> None:
    """Run the whole suite on a class.

    Raises:
        AssertionError: the first promise that the class does not keep.
    """
    run_all(method_checks(cls), cls)
