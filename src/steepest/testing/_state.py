"""Checks of an objective's state, and of the transforms that a stateless one must go through."""

from __future__ import annotations

import copy
import functools
import io
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..core.objective import Objective
from ._common import Args, cases, close, gradient, value, with_reduction
from ._constructor import same
from ._transforms import derivatives_agree, jacobians_agree, shapes_agree


def _train(objective: Objective, batch: tuple[Args, dict[str, Any]], steps: Iterator[int]) -> list[Tensor]:
    """Two steps an epoch."""
    args, kwargs = batch
    losses = []
    for step in steps:
        if step % 2 == 0:
            objective.start_epoch(step // 2 + 1, 4)
        losses.append(objective(args[0] * (1 + 0.1 * step), *args[1:], **kwargs).detach())
        objective.after_step()
    return losses


def check_state_dict(cls: type[Objective]) -> None:
    """Saved in the middle of an epoch and loaded into a fresh instance, it goes on with the same bits."""
    for (first, batch), (second, _) in zip(cases(cls), cases(cls)):
        first.train()
        second.train()
        _train(first, batch, iter(range(5)))
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        second.load_state_dict(torch.load(file, weights_only=True))
        for a, b in zip(_train(first, batch, iter(range(5, 8))), _train(second, batch, iter(range(5, 8)))):
            assert torch.equal(a, b), "a resumed objective gives other numbers"


def check_eval(cls: type[Objective]) -> None:
    """In eval mode nothing is written."""
    for objective, (args, kwargs) in cases(cls):
        objective.eval()
        before = copy.deepcopy(objective.state_dict())
        objective(*args, **kwargs)
        after = objective.state_dict()
        assert before.keys() == after.keys() and all(same(before[k], after[k]) for k in before), "eval wrote state"


def check_repeated_index(cls: type[Objective]) -> None:
    """Rows of one position in a batch leave the same memory in whatever order they come."""
    if not cls.stateful or "index" not in cls.needs:
        return
    for (first, (args, kwargs)), (second, _) in zip(cases(cls), cases(cls)):
        named = {**kwargs, "index": torch.zeros_like(kwargs["index"])}
        turned = [t.flip(0) for t in args], {name: t.flip(0) for name, t in named.items()}
        for objective, (tensors, others) in ((first, (args, named)), (second, turned)):
            objective.train()
            objective.start_epoch(1, 3)
            objective(*tensors, **others)
        state = second.state_dict()
        for name, wanted in first.state_dict().items():
            close(state[name].double(), wanted.double(), 1e-3, f"{name} of a repeated index")


def check_stateless(cls: type[Objective]) -> None:
    """A member that is not declared ``stateful`` writes nothing in training either."""
    if cls.stateful:
        return
    for objective, (args, kwargs) in cases(cls):
        before = copy.deepcopy(objective.state_dict())
        first = objective.train()(*args, **kwargs)
        again = objective(*args, **kwargs)
        assert torch.equal(first, again) and all(same(before[k], t) for k, t in objective.state_dict().items()), (
            "it writes state: declare stateful = True"
        )


def check_compile(cls: type[Objective], backend: str = "aot_eager", first_only: bool = False) -> None:
    """A stateless member compiles into one graph with the same numbers (``first_only``: the first of its samples)."""
    if cls.stateful:
        return
    for objective, (args, kwargs) in cases(cls)[: 1 if first_only else None]:
        torch.compiler.reset()
        compiled = torch.compile(copy.deepcopy(objective), backend=backend, fullgraph=True)
        outputs = args[0].clone().requires_grad_()
        loss = compiled(outputs, *args[1:], **kwargs)
        close(loss, value(objective, args, kwargs), 1e-10, "compiled loss")
        close(torch.autograd.grad(loss, outputs)[0], gradient(objective, args, kwargs), 1e-10, "compiled gradient")


def check_vmap(cls: type[Objective]) -> None:
    """A stateless member maps over a leading dimension of models, value and gradient."""
    if cls.stateful:
        return
    for objective, (args, kwargs) in cases(cls):
        names = [n for n, t in kwargs.items() if isinstance(t, Tensor)]

        def run(*tensors: Tensor, o: Any = objective, n: Any = names, m: int = len(args)) -> Tensor:
            loss: Tensor = o(*tensors[:m], **dict(zip(n, tensors[m:])))
            return loss

        two = [
            torch.stack([t, 0.5 * t if t.is_floating_point() and i == 0 else t])
            for i, t in enumerate([*args, *(kwargs[n] for n in names)])
        ]
        losses = torch.func.vmap(run)(*two)
        slopes = torch.func.vmap(torch.func.grad(run))(*two)
        for i in range(2):
            single = tuple(t[i] for t in two)
            rest = dict(zip(names, single[len(args) :]))
            close(losses[i], value(objective, single[: len(args)], rest), 1e-10, "vmap")
            close(slopes[i], gradient(objective, single[: len(args)], rest), 1e-10, "vmap of grad")


def check_transforms(cls: type[Objective]) -> None:
    """``torch.func`` and batched backward passes differentiate it as one backward pass does; a stateful one in eval."""
    for objective, (args, kwargs) in cases(cls):
        objective.train(not cls.stateful)
        names = [n for n, t in kwargs.items() if isinstance(t, Tensor) and t.is_floating_point()]

        def run(
            outputs: Tensor, *rest: Tensor, o: Any = objective, a: Any = args, k: Any = kwargs, n: Any = names
        ) -> Tensor:
            return value(o, (outputs, *a[1:]), {**k, **dict(zip(n, rest))})

        derivatives_agree(run, [args[0], *(kwargs[n] for n in names)])
        if cls.unit == "sample":
            unreduced = with_reduction(objective, "none")
            jacobians_agree(functools.partial(run, o=unreduced), args[0])


def check_shapes(cls: type[Objective], first_only: bool = False) -> None:
    """Fake and meta tensors give the shape and type of the loss and of the gradient (``first_only``: of one sample)."""
    for objective, (args, kwargs) in cases(cls)[: 1 if first_only else None]:

        def call(module: Any, given: Any) -> tuple[Tensor, list[Tensor]]:
            (outputs, *rest), named = given
            outputs.requires_grad_()
            return module(outputs, *rest, **named), [outputs]

        loss = value(objective, args, kwargs)
        shapes_agree(call, objective, (args, kwargs), [loss, gradient(objective, args, kwargs)])
