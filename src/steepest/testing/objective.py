"""Conformance of an objective: everything its contract says, checked on what ``samples()`` gives.

``check_objective(cls)`` runs all; ``objective_checks(cls)`` lists ``(name, check)`` for pytest's ``parametrize``.
A member may declare ``exempt = {check name: reason}``.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..core.objective import DOMAINS, NEEDS, TARGETS, TASKS, Objective, TaskInfo

Args = tuple[Tensor, ...]
Case = tuple[Objective, tuple[Args, dict[str, Any]]]
HALF_ROUNDING = 1e-5
"""Relative error allowed to float32 arithmetic on inputs that were rounded beforehand."""


def cases(cls: type[Objective], dtype: torch.dtype = torch.float64, seed: int = 0, device: str = "cpu") -> list[Case]:
    """Fresh instances with the inputs that the member itself supplies; the same for the same seed."""
    torch.manual_seed(seed)
    found: list[Case] = list(cls.samples(torch.Generator().manual_seed(seed), dtype, device))
    assert found, f"{cls.__name__}.samples() gave nothing"
    return found


def value(objective: Objective, args: Args, kwargs: dict[str, Any]) -> Tensor:
    """The loss on a private copy, so that no state moves."""
    loss: Tensor = copy.deepcopy(objective)(*args, **kwargs)
    return loss


def gradient(objective: Objective, args: Args, kwargs: dict[str, Any]) -> Tensor:
    """The gradient of the (summed) loss in the outputs, on a private copy."""
    outputs = args[0].detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(value(objective, (outputs, *args[1:]), kwargs).sum(), outputs)
    return found


def with_reduction(objective: Objective, reduction: str) -> Objective:
    """A copy that reduces otherwise."""
    twin = copy.deepcopy(objective)
    twin.reduction = reduction
    return twin


def close(found: Tensor, wanted: Tensor, tolerance: float, what: str) -> None:
    """Assert agreement relative to the size of what was wanted."""
    found, wanted = found.detach().double(), wanted.detach().double()
    error = (found - wanted).abs().max().item() if found.numel() else 0.0
    size = max(1.0, wanted.abs().max().item() if wanted.numel() else 0.0)
    assert error <= tolerance * size, f"{what}: differs by {error:.3g} where {size:.3g} is the size"


def check_declaration(cls: type[Objective]) -> None:
    """Every attribute is declared, from its closed list."""
    assert cls.name.isidentifier() and cls.name == cls.name.lower(), "name: snake_case"
    assert cls.tasks and set(cls.tasks) <= set(TASKS), "tasks"
    assert cls.domain in DOMAINS and cls.targets and set(cls.targets) <= set(TARGETS), "domain, targets"
    assert cls.unit in ("sample", "batch") and cls.gradient in ("exact", "surrogate"), "unit, gradient"
    assert set(cls.needs) <= set(NEEDS) and cls.views >= 1, "needs, views"
    known = set(inspect.signature(cls.__init__).parameters)
    assert set(cls.search) <= known, f"search: {set(cls.search) - known} are no arguments of __init__"
    assert cls.__doc__ and "Example" in cls.__doc__, "docstring with an example"
    if cls.gradient == "surrogate":
        assert hasattr(cls, "reference_gradient"), "a surrogate gradient needs reference_gradient(outputs, target, ...)"


def check_search(cls: type[Objective]) -> None:
    """Every point of the search space makes a working objective."""
    for task in cls.tasks:
        counts = () if task == "regression" else (9, 12) if task == "binary" else (5, 9, 7)
        info = TaskInfo(task, 21, max(1, len(counts)), counts, feature_dim=6, epochs=10, steps_per_epoch=3, seed=1)
        for u in (0.0, 0.5, 0.999):
            cls.from_task(info, **{name: space.at(u) for name, space in cls.search.items()})


def check_output(cls: type[Objective]) -> None:
    """One finite number in float32 or wider; named parts are detached."""
    for objective, (args, kwargs) in cases(cls):
        outputs = args[0].clone().requires_grad_()
        twin = copy.deepcopy(objective)
        loss = twin(outputs, *args[1:], **kwargs)
        assert loss.shape == () and loss.dtype == torch.float64 and math.isfinite(loss.item())
        assert all(not t.requires_grad for t in twin.terms.values()), "terms must be detached"


def check_reductions(cls: type[Objective]) -> None:
    """none, mean and sum agree; a member of the batch has the mean only."""
    for objective, (args, kwargs) in cases(cls):
        if cls.unit == "batch":
            try:
                cls.__init__(copy.deepcopy(objective), reduction="sum")
            except (ValueError, TypeError):
                continue
            raise AssertionError("reduction='sum' must be refused by a loss of the batch")
        none = value(with_reduction(objective, "none"), args, kwargs)
        assert none.shape == args[0].shape[:1], "none: one number a sample"
        close(value(with_reduction(objective, "sum"), args, kwargs), none.sum(), 1e-12, "sum")
        close(value(objective, args, kwargs), none.mean(), 1e-12, "mean")


def check_weights(cls: type[Objective]) -> None:
    """``weight=`` is sum w l / sum w; a loss of the batch refuses it."""
    for objective, (args, kwargs) in cases(cls):
        rows = args[0].shape[0]
        weight = torch.linspace(0.0, 2.0, rows, dtype=torch.float64)
        if cls.unit == "batch":
            try:
                value(objective, args, {**kwargs, "weight": weight})
            except TypeError:
                continue
            raise AssertionError("weight must be refused by a loss of the batch")
        none = value(with_reduction(objective, "none"), args, kwargs)
        found = value(objective, args, {**kwargs, "weight": weight})
        close(found, (weight * none).sum() / weight.sum(), 1e-12, "weighted mean")
        close(
            value(with_reduction(objective, "sum"), args, {**kwargs, "weight": weight}),
            (weight * none).sum(),
            1e-12,
            "sum",
        )
        close(value(objective, args, {**kwargs, "weight": 7.0 * weight}), found, 1e-12, "weights scale out")


def check_gradient(cls: type[Objective]) -> None:
    """float64 gradcheck in every floating input; a surrogate agrees with its hand-written reference."""
    for objective, (args, kwargs) in cases(cls):
        if cls.gradient == "surrogate":
            wanted = copy.deepcopy(objective).reference_gradient(*args, **kwargs)  # type: ignore[operator]
            close(gradient(objective, args, kwargs), wanted, 1e-12, "surrogate gradient")
            continue
        names = [n for n, t in kwargs.items() if isinstance(t, Tensor) and t.is_floating_point()]
        floats = [args[0], *(kwargs[n] for n in names)]

        def run(
            outputs: Tensor, *rest: Tensor, o: Any = objective, a: Any = args, k: Any = kwargs, n: Any = names
        ) -> Tensor:
            return value(o, (outputs, *a[1:]), {**k, **dict(zip(n, rest))})

        inputs = tuple(t.detach().clone().requires_grad_() for t in floats)
        assert torch.autograd.gradcheck(run, inputs, eps=1e-6, atol=1e-6, rtol=1e-5)


def check_precision(cls: type[Objective]) -> None:
    """Half and float32 inputs give a float32 loss, right for the rounded inputs, and gradients of their type."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for wide, narrow in zip(cases(cls, torch.float64), cases(cls, dtype)):
            objective, (args, kwargs) = wide
            args = tuple(t.to(dtype).double() if t.is_floating_point() else t for t in args)
            kwargs = {
                k: t.to(dtype).double() if isinstance(t, Tensor) and t.is_floating_point() else t
                for k, t in kwargs.items()
            }
            found = value(narrow[0], *narrow[1])
            assert found.dtype == torch.float32, f"{dtype} gives {found.dtype}"
            close(found, value(objective, args, kwargs), HALF_ROUNDING, f"loss in {dtype}")
            slope = gradient(narrow[0], *narrow[1])
            assert slope.dtype == dtype
            epsilon = torch.finfo(dtype).eps
            close(slope, gradient(objective, args, kwargs), HALF_ROUNDING + 4 * epsilon, f"gradient in {dtype}")


def check_extremes(cls: type[Objective]) -> None:
    """Loss, gradient and probabilities stay finite for outputs up to 1e4 in either direction."""
    if cls.domain not in ("logits", "score", "real"):
        return
    for objective, (args, kwargs) in cases(cls, torch.float32):
        largest = args[0].abs().max()
        for size in (1e2, 1e4):
            for sign in (1.0, -1.0):
                wild = (sign * size / largest * args[0], *args[1:])
                assert torch.isfinite(value(objective, wild, kwargs)).all(), f"loss at {sign * size:g}"
                assert torch.isfinite(gradient(objective, wild, kwargs)).all(), f"gradient at {sign * size:g}"
                p = objective.probabilities(wild[0])
                assert p is None or torch.isfinite(p).all(), f"probabilities at {sign * size:g}"


def check_order(cls: type[Objective]) -> None:
    """The order of the batch changes nothing."""
    for objective, (args, kwargs) in cases(cls):
        rows = args[0].shape[0]
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(5))
        moved = {
            k: t[order] if isinstance(t, Tensor) and t.ndim and t.shape[0] == rows else t for k, t in kwargs.items()
        }
        found = value(objective, tuple(t[order] for t in args), moved)
        close(found, value(objective, args, kwargs), 1e-10, "permuted batch")


def check_ignore_index(cls: type[Objective]) -> None:
    """With an argument ``ignore_index``: ignored rows count on neither side of the line; all ignored is NaN."""
    if "ignore_index" not in inspect.signature(cls.__init__).parameters:
        return
    for objective, (args, kwargs) in cases(cls):
        if args[1].is_floating_point():
            continue
        target = args[1].clone()
        target[::2] = objective.ignore_index  # type: ignore[assignment]
        rows = args[0].shape[0]
        kept = {k: t[1::2] if isinstance(t, Tensor) and t.ndim and t.shape[0] == rows else t for k, t in kwargs.items()}
        close(
            value(objective, (args[0], target), kwargs),
            value(objective, (args[0][1::2], target[1::2]), kept),
            1e-12,
            "ignored",
        )
        target[:] = objective.ignore_index  # type: ignore[assignment]
        assert value(objective, (args[0], target), kwargs).isnan(), "all ignored: NaN as in torch"


def check_bad_input(cls: type[Objective]) -> None:
    """Wrong input is refused with the uniform error: the argument, what was expected, what came."""
    for objective, (args, kwargs) in cases(cls, torch.float32):
        outputs, target = args[0], args[1]
        wrong: list[tuple[str, tuple[Any, ...]]] = [
            ("a list for outputs", (outputs.tolist(), target)),
            ("a list for target", (outputs, target.tolist())),
            ("integer outputs", (outputs.long(), target)),
            ("a target too short", (outputs, target[:-1])),
            ("outputs with one more dimension", (outputs.unsqueeze(0), target)),
        ]
        if "index" in cls.targets and "regression" not in cls.tasks and outputs.device.type == "cpu":
            out_of_range = target.clone()
            out_of_range[0] = 99
            wrong.append(("a label out of range", (outputs, out_of_range)))
            if outputs.ndim == 2:
                wrong.append(("one class", (outputs[:, :1], torch.zeros_like(target))))
        for what, call in wrong:
            try:
                value(objective, call, kwargs)
            except (ValueError, TypeError) as error:
                assert ": expected " in str(error), f"{what}: not the uniform error but {error}"
            else:
                raise AssertionError(f"{what} was not refused")
    for argument, bad in (("reduction", "median"),):
        try:
            cls.__init__(cases(cls)[0][0], **{argument: bad})
        except (ValueError, TypeError):
            continue
        raise AssertionError(f"{argument}={bad!r} was not refused")


def check_empty(cls: type[Objective]) -> None:
    """No rows: NaN as in torch, and no crash."""
    for objective, (args, kwargs) in cases(cls):
        rows = args[0].shape[0]
        none = {k: t[:0] if isinstance(t, Tensor) and t.ndim and t.shape[0] == rows else t for k, t in kwargs.items()}
        assert value(objective, tuple(t[:0] for t in args), none).isnan()


def _train(objective: Objective, batch: tuple[Args, dict[str, Any]], steps: Iterator[int]) -> list[Tensor]:
    args, kwargs = batch
    losses = []
    for step in steps:
        objective.start_epoch(step + 1, 10)
        losses.append(objective(args[0] * (1 + 0.1 * step), *args[1:], **kwargs).detach())
        objective.after_step()
    return losses


def check_state_dict(cls: type[Objective]) -> None:
    """Saved in mid-training and loaded into a fresh instance, it goes on with the same bits."""
    for (first, batch), (second, _) in zip(cases(cls), cases(cls)):
        first.train()
        second.train()
        _train(first, batch, iter(range(3)))
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        for a, b in zip(_train(first, batch, iter(range(3, 6))), _train(second, batch, iter(range(3, 6)))):
            assert torch.equal(a, b), "a resumed objective gives other numbers"


def _same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)


def check_eval(cls: type[Objective]) -> None:
    """In eval mode nothing is written."""
    for objective, (args, kwargs) in cases(cls):
        objective.eval()
        before = copy.deepcopy(objective.state_dict())
        objective(*args, **kwargs)
        after = objective.state_dict()
        assert before.keys() == after.keys() and all(_same(before[k], after[k]) for k in before), "eval wrote state"


def check_stateless(cls: type[Objective]) -> None:
    """A member that is not declared ``stateful`` writes nothing in training either."""
    if cls.stateful:
        return
    for objective, (args, kwargs) in cases(cls):
        before = copy.deepcopy(objective.state_dict())
        objective.train()(*args, **kwargs)
        assert all(_same(before[k], t) for k, t in objective.state_dict().items()), (
            "it writes state: declare stateful = True"
        )


def check_compile(cls: type[Objective], backend: str = "aot_eager") -> None:
    """A stateless member compiles into one graph with the same numbers."""
    if cls.stateful:
        return
    for objective, (args, kwargs) in cases(cls):
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
        found = torch.func.vmap(run)(*two)
        slopes = torch.func.vmap(torch.func.grad(run))(*two)
        for i in range(2):
            single = tuple(t[i] for t in two)
            rest = dict(zip(names, single[len(args) :]))
            close(found[i], value(objective, single[: len(args)], rest), 1e-10, "vmap")
            close(slopes[i], gradient(objective, single[: len(args)], rest), 1e-10, "vmap of grad")


def check_seed(cls: type[Objective]) -> None:
    """Same seed, same bits."""
    for (a, batch), (b, other) in zip(cases(cls, torch.float32), cases(cls, torch.float32)):
        assert torch.equal(a(*batch[0], **batch[1]), b(*other[0], **other[1]))


def check_probabilities(cls: type[Objective]) -> None:
    """Where it gives probabilities they are rows of a simplex and agree with ``predict``."""
    for objective, (args, _) in cases(cls):
        outputs = args[0]
        predicted = objective.predict(outputs)
        assert predicted.shape == outputs.shape[:1], "predict: one value a sample"
        p = objective.probabilities(outputs)
        if p is None:
            continue
        assert p.shape == (outputs.shape[0], outputs.shape[1] if outputs.ndim == 2 else 2)
        close(p.sum(-1), torch.ones(p.shape[0]), 1e-6, "probabilities sum to one")
        assert bool((p >= 0).all()) and torch.equal(p.argmax(-1), predicted), "predict is the argmax of probabilities"


def check_head(cls: type[Objective]) -> None:
    """Its own head maps features to outputs that it takes."""
    for objective, (args, kwargs) in cases(cls, torch.float32):
        regression = args[1].is_floating_point() and args[1].ndim == 1
        classes = 1 if regression else 2 if args[0].ndim == 1 else args[0].shape[1]
        task = "regression" if regression else "binary" if classes == 2 else "multiclass"
        counts = () if regression else tuple([5] * classes)
        info = TaskInfo(task, 21, classes, counts, feature_dim=6, epochs=10, steps_per_epoch=3, seed=1)
        outputs = objective.head(6, info)(torch.randn(args[0].shape[0], 6))
        assert outputs.shape == args[0].shape, f"head gives {tuple(outputs.shape)}"
        assert torch.isfinite(value(objective, (outputs, *args[1:]), kwargs))


def check_cuda(cls: type[Objective]) -> None:
    """The same numbers on a GPU, where there is one."""
    if not torch.cuda.is_available():
        return
    for (here, batch), (there, other) in zip(cases(cls), cases(cls, device="cuda")):
        close(value(there, *other).cpu(), value(here, *batch), 1e-10, "CUDA")


CHECKS: tuple[Callable[[type[Objective]], None], ...] = (
    check_declaration, check_search, check_output, check_reductions, check_weights, check_gradient, check_precision,
    check_extremes, check_order, check_ignore_index, check_bad_input, check_empty, check_state_dict, check_eval,
    check_stateless, check_compile, check_vmap, check_seed, check_probabilities, check_head, check_cuda,
)  # fmt: skip


def objective_checks(cls: type[Objective]) -> list[tuple[str, Callable[[], None]]]:
    """``(name, check)`` for every check that ``cls`` is not exempt from.

    Raises:
        ValueError: an exemption from a check that doesn't exist.
    """
    names = {check.__name__.removeprefix("check_") for check in CHECKS}
    unknown = set(cls.exempt) - names
    if unknown:
        raise ValueError(f"exempt: expected names of checks, got {sorted(unknown)}")

    def bind(check: Callable[[type[Objective]], None]) -> Callable[[], None]:
        return lambda: check(cls)

    return [
        (name, bind(check)) for check in CHECKS if (name := check.__name__.removeprefix("check_")) not in cls.exempt
    ]


def check_objective(cls: type[Objective]) -> None:
    """Run the whole conformance suite on an objective class.

    Raises:
        AssertionError: the first promise that the class does not keep.
    """
    for name, check in objective_checks(cls):
        try:
            check()
        except Exception as error:
            raise AssertionError(f"{cls.__name__}, {name}: {error}") from error
