"""Checks of an objective's numbers: reductions, weights, gradients, precision, extremes, probabilities."""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

import torch
from torch import Tensor

from ..core.objective import CONSTANT_NEEDS, Objective
from ._common import (
    HALF_ROUNDING,
    by_rows,
    cases,
    close,
    gradient,
    gradients_hold,
    keeps_nan,
    rebuilds,
    refused,
    value,
    with_reduction,
)


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
    if cls.unit == "batch":
        for rebuild in rebuilds(cls) if "reduction" in inspect.signature(cls.__init__).parameters else ():
            for reduction in ("sum", "none"):
                refused(f"reduction={reduction!r} of a loss of the batch", rebuild, reduction=reduction)
        return
    for objective, (args, kwargs) in cases(cls):
        none = value(with_reduction(objective, "none"), args, kwargs)
        shapes = (args[0].shape[:1], args[1].shape if cls.tasks == ("multilabel",) else None)
        assert none.shape in shapes, "none: one number a sample"
        close(value(with_reduction(objective, "sum"), args, kwargs), none.sum(), 1e-12, "sum")
        close(value(objective, args, kwargs), none.mean(), 1e-12, "mean")


def check_weights(cls: type[Objective]) -> None:
    """``weight=`` is sum w l / sum w; a loss of the batch refuses it."""
    for objective, (args, kwargs) in cases(cls):
        rows = args[1].shape[0]
        weight = torch.linspace(0.0, 2.0, rows, dtype=torch.float64)
        if cls.unit == "batch":
            refused("weight of a loss of the batch", value, objective, args, {**kwargs, "weight": weight})
            continue
        none = value(with_reduction(objective, "none"), args, kwargs)
        weighted = value(objective, args, {**kwargs, "weight": weight})
        factors = weight.view(-1, *[1] * (none.ndim - 1)).expand_as(none)
        close(
            value(with_reduction(objective, "none"), args, {**kwargs, "weight": weight}),
            factors * none,
            1e-12,
            "weighted",
        )
        close(weighted, (factors * none).sum() / factors.sum(), 1e-12, "weighted mean")
        close(
            value(with_reduction(objective, "sum"), args, {**kwargs, "weight": weight}),
            (factors * none).sum(),
            1e-12,
            "weighted sum",
        )
        close(value(objective, args, {**kwargs, "weight": 7.0 * weight}), weighted, 1e-12, "weights scale out")


def check_gradient(cls: type[Objective]) -> None:
    """float64 gradcheck in every floating input that is no constant; a surrogate agrees with its reference."""
    for objective, (args, kwargs) in cases(cls):
        _check_constants(objective, args, kwargs)
        if cls.gradient == "surrogate":
            wanted = copy.deepcopy(objective).reference_gradient(*args, **kwargs)  # type: ignore[operator]
            close(gradient(objective, args, kwargs), wanted, 1e-12, "surrogate gradient")
            continue
        floating = [n for n, t in kwargs.items() if isinstance(t, Tensor) and t.is_floating_point()]
        names = [n for n in floating if n not in CONSTANT_NEEDS]
        floats = [args[0], *(kwargs[n] for n in names)]

        def run(
            outputs: Tensor, *rest: Tensor, o: Any = objective, a: Any = args, k: Any = kwargs, n: Any = names
        ) -> Tensor:
            return value(o, (outputs, *a[1:]), {**k, **dict(zip(n, rest))})

        inputs = tuple(t.detach().clone().requires_grad_() for t in floats)
        gradients_hold(run, inputs, eps=1e-6, atol=1e-6, rtol=1e-5)


def _check_constants(objective: Objective, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
    """No gradient flows into what comes with the data."""
    constants = {n: kwargs[n] for n in CONSTANT_NEEDS if isinstance(kwargs.get(n), Tensor)}
    leaves = {n: t.detach().clone().requires_grad_() for n, t in constants.items() if t.is_floating_point()}
    outputs = args[0].detach().clone().requires_grad_()
    loss = value(objective, (outputs, *args[1:]), {**kwargs, **leaves})
    for name, leaf in leaves.items():
        (slope,) = torch.autograd.grad(loss, leaf, retain_graph=True, materialize_grads=True, allow_unused=True)
        assert not slope.any(), f"a gradient flows into {name}"


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
            loss = value(narrow[0], *narrow[1])
            assert loss.dtype == torch.float32, f"{dtype} gives {loss.dtype}"
            close(loss, value(objective, args, kwargs), HALF_ROUNDING, f"loss in {dtype}")
            slope = gradient(narrow[0], *narrow[1])
            assert slope.dtype == dtype
            epsilon = torch.finfo(dtype).eps
            close(slope, gradient(objective, args, kwargs), HALF_ROUNDING + 4 * epsilon, f"gradient in {dtype}")


def check_autocast(cls: type[Objective]) -> None:
    """Autocast changes no bit of the loss: it is for models."""
    for first, second in zip(cases(cls, torch.float32), cases(cls, torch.float32)):
        wanted = value(first[0], *first[1])
        with torch.autocast("cpu", torch.bfloat16):
            result = value(second[0], *second[1])
        assert torch.equal(result, wanted), f"{result.item():g} under autocast, {wanted.item():g} without"


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
        order = torch.randperm(args[1].shape[0], generator=torch.Generator().manual_seed(5))
        permuted = value(objective, *by_rows(cls, args, kwargs, lambda t, o=order: t[o]))
        close(permuted, value(objective, args, kwargs), 1e-10, "permuted batch")


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
        counted = {
            k: t[1::2] if isinstance(t, Tensor) and t.ndim and t.shape[0] == rows else t for k, t in kwargs.items()
        }
        close(
            value(objective, (args[0], target), kwargs),
            value(objective, (args[0][1::2], target[1::2]), counted),
            1e-12,
            "ignored",
        )
        target[:] = objective.ignore_index  # type: ignore[assignment]
        assert value(objective, (args[0], target), kwargs).isnan(), "all ignored: NaN as in torch"


def check_empty(cls: type[Objective]) -> None:
    """No rows: NaN as in torch, and no crash; of pairs and of lists 0 with a graph."""
    for objective, (args, kwargs) in cases(cls):
        few, named = by_rows(cls, args, kwargs, lambda t: t[:0])
        few[0].requires_grad_()
        loss = value(objective, few, named)
        if cls.unit == "batch" and set(cls.tasks) & {"retrieval", "ranking"}:
            assert loss == 0, f"{loss} where there is no row"
            assert loss.requires_grad, "no graph where there is no row"
        else:
            assert loss.isnan()


def check_nan(cls: type[Objective]) -> None:
    """NaN where an output counts gives NaN, or is refused: never a number."""
    for objective, (args, kwargs) in cases(cls):
        slope = gradient(objective, args, kwargs).abs()
        if slope.any():
            keeps_nan(lambda t, o=objective, a=args, k=kwargs: value(o, (t, *a[1:]), k), args[0], slope)


def check_seed(cls: type[Objective]) -> None:
    """Same seed, same bits."""
    for (a, batch), (b, again) in zip(cases(cls, torch.float32), cases(cls, torch.float32)):
        assert torch.equal(a(*batch[0], **batch[1]), b(*again[0], **again[1]))


def check_probabilities(cls: type[Objective]) -> None:
    """Where it gives probabilities they are rows of a simplex (of labels: in [0, 1]) and agree with ``predict``."""
    if cls.domain == "embedding":
        return
    for objective, (args, _) in cases(cls):
        outputs = args[0]
        predicted = objective.predict(outputs)
        labels = cls.tasks == ("multilabel",)
        assert predicted.shape == (outputs.shape if labels else outputs.shape[:1]), "predict: one value a sample"
        p = objective.probabilities(outputs)
        if p is None:
            continue
        if labels:
            assert p.shape == outputs.shape and bool(((p >= 0) & (p <= 1)).all()), "probabilities of labels in [0, 1]"
            assert torch.equal((p > 0.5).long(), predicted.long()), "predict is where a probability is above 1/2"
            continue
        classes = getattr(objective, "num_classes", outputs.shape[1]) if outputs.ndim == 2 else 2
        assert p.shape == (outputs.shape[0], classes), "probabilities: a column for each class"
        close(p.sum(-1), torch.ones(p.shape[0]), 1e-6, "probabilities sum to one")
        assert bool((p >= 0).all()) and torch.equal(p.argmax(-1), predicted), "predict is the argmax of probabilities"


def check_cuda(cls: type[Objective]) -> None:
    """The same numbers on a GPU, where there is one."""
    if not torch.cuda.is_available():
        return
    for (here, batch), (there, there_batch) in zip(cases(cls), cases(cls, device="cuda")):
        close(value(there, *there_batch).cpu(), value(here, *batch), 1e-10, "CUDA")
