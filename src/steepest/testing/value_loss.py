"""Conformance of losses of values: all that a loss promises, and what one number a transition asks for besides.

``check_value_loss(cls)`` runs all; ``value_loss_checks(cls)`` lists ``(name, check)`` for pytest's ``parametrize``.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.reductions import REDUCTIONS
from ..core.value_loss import ValueLoss
from ._common import close, refused, wrong_weights
from ._constructor import given_arguments
from ._suite import bound, run_all
from .loss import CHECKS as CHECKS_OF_LOSSES
from .loss import loss_cases, of_copy

AT_REST = 1e-12
"""Below this float64's rounding is no gradient."""


def value_cases(cls: type[ValueLoss], dtype: torch.dtype = torch.float64) -> list[Any]:
    """``(loss, args, kwargs)`` of what the member itself supplies; the same each time."""
    return [(loss, args, kwargs) for loss, (args, kwargs) in loss_cases(cls, dtype)]


def reduced_by(loss: Any, reduction: str) -> Any:
    """A copy with another reduction."""
    twin = copy.deepcopy(loss)
    twin.reduction = reduction
    return twin


def slopes(loss: Any, args: Sequence[Tensor], kwargs: Any) -> list[Tensor | None]:
    """The gradient of the sum in each leading argument; None where the graph does not reach."""
    leaves = [a.detach().clone().requires_grad_() for a in args]
    total = of_copy(reduced_by(loss, "sum"), leaves, kwargs)
    if not total.requires_grad:
        return [None] * len(leaves)
    return list(torch.autograd.grad(total, leaves, allow_unused=True))


def reachable(cls: type[ValueLoss]) -> list[int]:
    """The places of leading arguments into which a gradient flows."""
    return [i for i, name in enumerate(cls.values) if name not in cls.stopped]


def check_values(cls: type[ValueLoss]) -> None:
    """Declared values lead the arguments of ``forward``, weights are a keyword; samples are of one shape."""
    parameters = inspect.signature(cls.forward).parameters
    assert tuple(parameters)[1 : 1 + len(cls.values)] == cls.values, "values: the leading arguments of forward"
    assert parameters["weight"].kind is inspect.Parameter.KEYWORD_ONLY, "weight: a keyword of forward"
    assert set(cls.stopped) < set(cls.values), "stopped: some of values"
    assert tuple(reachable(cls)) == cls.differentiable, "differentiable: the places of values that are not stopped"
    for _, args, _ in value_cases(cls):
        assert len({tuple(a.shape) for a in args[: len(cls.values)]}) == 1, "samples of one shape"
        assert args[0].ndim == 1 and len(args[0]) > 2, "samples of three transitions or more"


def check_broadcast(cls: type[ValueLoss]) -> None:
    """Values ``[B]`` beside ``[B, 1]``, ``[1, B]``, a number or fewer rows are refused: never ``[B, B]``."""
    for loss, args, kwargs in value_cases(cls, torch.float32):
        named = {**dict(zip(cls.values, args)), **kwargs}
        for name, tensor in named.items():
            if not isinstance(tensor, Tensor) or tensor.shape != args[0].shape:
                continue
            for what, wrong in (
                ("[B, 1]", tensor.unsqueeze(-1)),
                ("[1, B]", tensor.unsqueeze(0)),
                ("[1]", tensor[:1]),
                ("a number", tensor[0]),
                ("a row less", tensor[1:]),
            ):
                refused(f"{what} for {name}", lambda o=loss, given={**named, name: wrong}: of_copy(o, (), given))
        # all of another shape are values all the same
        wide = {k: t.unsqueeze(-1) if isinstance(t, Tensor) else t for k, t in named.items()}
        close(of_copy(loss, (), wide), of_copy(loss, args, kwargs), 1e-6, "values [B, 1]")


def check_stopped(cls: type[ValueLoss]) -> None:
    """No gradient flows into arguments that are stopped; one does into each of the others."""
    seen = set()
    for loss, args, kwargs in value_cases(cls):
        for name, slope in zip(cls.values, slopes(loss, args, kwargs)):
            moves = slope is not None and bool(slope.any())
            assert not (moves and name in cls.stopped), f"a gradient flows into {name}"
            seen |= {name} if moves else set()
    assert seen == set(cls.values) - set(cls.stopped), f"no gradient flows into {set(cls.values) - seen}"


def check_reference(cls: type[ValueLoss]) -> None:
    """A surrogate gradient is the one that the member writes by hand."""
    if cls.gradient != "surrogate":
        return
    for loss, args, kwargs in value_cases(cls):
        wanted = cls.reference_gradient(loss, *args, **kwargs)
        assert set(wanted) == set(cls.values) - set(cls.stopped), "reference_gradient: of all that is not stopped"
        for name, slope in zip(cls.values, slopes(loss, args, kwargs)):
            if name in wanted:
                assert slope is not None, f"no gradient flows into {name}"
                close(slope, wanted[name], 1e-12, f"surrogate gradient in {name}")


def check_reductions(cls: type[ValueLoss]) -> None:
    """none, mean and sum agree, with weights and without; weights scale out of the mean."""
    for loss, args, kwargs in value_cases(cls):
        single = of_copy(reduced_by(loss, "none"), args, kwargs)
        assert single.shape == args[0].shape, "none: one number a transition"
        close(of_copy(reduced_by(loss, "sum"), args, kwargs), single.sum(), 1e-12, "sum")
        close(of_copy(reduced_by(loss, "mean"), args, kwargs), single.mean(), 1e-12, "mean")
        weight = torch.linspace(0.0, 2.0, single.numel(), dtype=torch.float64)
        named = {**kwargs, "weight": weight}
        close(of_copy(reduced_by(loss, "none"), args, named), weight * single, 1e-12, "weighted")
        close(of_copy(reduced_by(loss, "sum"), args, named), (weight * single).sum(), 1e-12, "weighted sum")
        mean = (weight * single).sum() / weight.sum()
        close(of_copy(loss, args, named), mean, 1e-12, "weighted mean")
        close(of_copy(loss, args, {**kwargs, "weight": 7 * weight}), mean, 1e-12, "weights scale out")
        for what, wrong in wrong_weights(single.numel()):
            refused(what, of_copy, loss, args, {**kwargs, "weight": wrong})
    given = given_arguments(cls, lambda: loss_cases(cls))[0]
    for reduction in REDUCTIONS:
        assert cls(**{**given, "reduction": reduction}).reduction == reduction, "reduction: kept as it is"
    refused("reduction='median'", lambda: cls(**{**given, "reduction": "median"}))


def check_extremes(cls: type[ValueLoss]) -> None:
    """Loss and gradient stay finite for values up to 1e4, or up to ``largest`` where the member states one."""
    for loss, args, kwargs in value_cases(cls, torch.float32):
        assert loss.largest > 0, "largest"
        for size in (1e2, 1e4):
            bounded = min(size, 0.9 * loss.largest)
            for signs in ((1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)):
                wild = list(args)
                for place in reachable(cls):
                    wild[place] = signs[0] * bounded * args[place] / args[place].abs().max()
                if cls.values[1] in cls.stopped and cls.divergence:
                    wild[1] = signs[1] * bounded * args[1] / args[1].abs().max()
                assert torch.isfinite(of_copy(loss, wild, kwargs)), f"loss at {bounded:g}"
                for slope in slopes(loss, wild, kwargs):
                    assert slope is None or bool(torch.isfinite(slope).all()), f"gradient at {bounded:g}"
        if math.isfinite(loss.largest):
            beyond = [torch.full_like(args[0], s * 4 * loss.largest) for s in (1.0, -1.0)]
            ends = [of_copy(loss, (a, b, *args[2:]), kwargs) for a, b in (beyond, beyond[::-1])]
            assert any(end.isinf() for end in ends), "largest: the loss overflows beyond it"


def check_rest(cls: type[ValueLoss]) -> None:
    """Where values are right no gradient flows; a divergence is 0 there, and above 0 on either side."""
    for loss, args, kwargs in value_cases(cls):
        right = loss.fitted(*args)
        for slope in slopes(loss, right, kwargs):
            assert slope is None or bool((slope.abs() < AT_REST).all()), "a gradient where the values are right"
        single = of_copy(reduced_by(loss, "none"), right, kwargs)
        assert bool((single.abs() < AT_REST).all()), "a loss where the values are right"
        if cls.divergence:
            for step in (-1.0, -1e-3, 1e-3, 1.0):
                moved = of_copy(reduced_by(loss, "none"), (right[0] + step, *right[1:]), kwargs)
                assert bool((moved > 0).all()), f"no loss {step:g} from the right value"


def check_parameters(cls: type[ValueLoss]) -> None:
    """Every argument of the constructor changes losses or gradients; NaN and text are refused."""
    names = set(inspect.signature(cls.__init__).parameters) - {"self", "reduction"}
    assert names == set(cls.alternatives), f"alternatives: of {sorted(names)}"
    cases = value_cases(cls)
    given = given_arguments(cls, lambda: loss_cases(cls))
    for name, options in cls.alternatives.items():
        changes = 0
        for arguments, (_, args, kwargs) in zip(given, cases):
            seen = []
            for option in options:
                try:
                    loss: ValueLoss = cls(**{**arguments, name: option})
                except ValueError:  # refused beside the others
                    continue
                numbers = [of_copy(loss, args, kwargs), *slopes(loss, args, kwargs)]
                seen.append([t.tolist() for t in numbers if t is not None])
            changes += any(a != b for a, b in itertools.pairwise(seen))
        assert changes, f"{name} changes nothing"
        for wrong in (math.nan, "1"):
            refused(f"{name}={wrong!r}", lambda n=name, w=wrong: cls(**{**given[0], n: w}))


def check_gradient_types(cls: type[ValueLoss]) -> None:
    """Gradients come in the type of their values; a target of another width changes no type."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for loss, args, kwargs in value_cases(cls, dtype):
            for slope in slopes(loss, args, kwargs):
                assert slope is None or slope.dtype == dtype, f"{dtype} gives gradients in {slope.dtype}"
            mixed = of_copy(loss, (args[0], *(a.double() for a in args[1:])), kwargs)
            assert mixed.dtype == torch.float32, f"{dtype} beside float64 gives {mixed.dtype}"


def check_empty(cls: type[ValueLoss]) -> None:
    """No transitions: NaN as in torch, and no crash."""
    for loss, args, kwargs in value_cases(cls):
        none = {k: t[:0] if isinstance(t, Tensor) else t for k, t in kwargs.items()}
        assert of_copy(loss, [a[:0] for a in args], none).isnan()


def check_vmap(cls: type[ValueLoss]) -> None:
    """It maps over a leading dimension of models, value and gradient."""
    places = tuple(reachable(cls))
    for loss, args, kwargs in value_cases(cls):
        two = [torch.stack([a, 0.5 * a]) for a in args]

        def run(*given: Tensor, o: Any = loss, k: Any = kwargs) -> Tensor:
            return of_copy(o, given, k)

        losses = torch.func.vmap(run)(*two)
        mapped = torch.func.vmap(torch.func.grad(run, argnums=places))(*two)
        for i in range(2):
            single = [t[i] for t in two]
            close(losses[i], of_copy(loss, single, kwargs), 1e-10, "vmap")
            leaves = [t.detach().clone().requires_grad_() for t in single]
            wanted = torch.autograd.grad(of_copy(loss, leaves, kwargs), [leaves[p] for p in places])
            for slope, right in zip(mapped, wanted):
                close(slope[i], right, 1e-10, "vmap of grad")


def check_compile(cls: type[ValueLoss], backend: str = "aot_eager") -> None:
    """It compiles into one graph with the same numbers."""
    for loss, args, kwargs in value_cases(cls):
        torch.compiler.reset()
        compiled = torch.compile(copy.deepcopy(loss), backend=backend, fullgraph=True)
        close(compiled(*args, **kwargs), of_copy(loss, args, kwargs), 1e-10, "compiled loss")


CHECKS: tuple[Callable[[type[ValueLoss]], None], ...] = (
    *CHECKS_OF_LOSSES, check_values, check_broadcast, check_stopped, check_reference, check_reductions,
    check_extremes, check_rest, check_parameters, check_gradient_types, check_empty, check_vmap, check_compile,
)  # fmt: skip


def value_loss_checks(cls: type[ValueLoss]) -> list[tuple[str, Callable[[], None]]]:
    """``(name, check)`` for every check that ``cls`` is not exempt from."""
    return bound(CHECKS, cls)


def check_value_loss(cls: type[ValueLoss]) -> None:
    """Run the whole suite on a class.

    Raises:
        AssertionError: the first promise that the class does not keep.
    """
    run_all(value_loss_checks(cls), cls)
