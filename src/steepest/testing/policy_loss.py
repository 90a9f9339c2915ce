"""Conformance of losses of sampled tokens under two policies: what they promise beyond :mod:`steepest.testing.loss`.

``check_policy_loss(cls)`` runs all on what ``samples()`` gives; ``policy_loss_checks(cls)`` lists ``(name, check)`` for
pytest's ``parametrize``. Samples hold ``(logp, old_logp, advantages, mask)``, where a grouped loss has rewards in the
place of advantages and ``group_ids`` among the keywords, the rows of a group beside each other.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..core.policy_loss import PolicyLoss
from ._common import close
from ._constructor import given_arguments
from ._suite import bound, run_all
from .loss import CHECKS as LOSS_CHECKS
from .loss import loss_cases

Case = tuple[PolicyLoss, tuple[Any, ...], dict[str, Any]]
EXACT = 1e-12


def policy_cases(cls: type[PolicyLoss], dtype: torch.dtype = torch.float64) -> Iterator[Case]:
    """Each instance with its sample."""
    for loss, (args, kwargs) in loss_cases(cls, dtype):
        assert isinstance(loss, PolicyLoss)
        yield loss, args, kwargs


def quietly(loss: PolicyLoss, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
    """Value and gradient in logp, without warnings of single answers."""
    leaf = args[0].detach().clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        value = loss(leaf, *args[1:], **kwargs)
    assert value.requires_grad, "the value carries no graph"
    (slope,) = torch.autograd.grad(value, leaf)
    return value.detach(), slope


def changed(args: Any, kwargs: Any, change: Callable[[str, Tensor], Tensor]) -> tuple[Any, Any]:
    """All tensors of the shape of ``logp`` changed, called by their names."""
    names = ("logp", "old_logp", "advantages", "mask")
    shape = args[0].shape

    def new(name: str, value: Any) -> Any:
        return change(name, value) if isinstance(value, Tensor) and value.shape == shape else value

    return [new(n, a) for n, a in zip(names, args, strict=True)], {k: new(k, v) for k, v in kwargs.items()}


def check_padding(cls: type[PolicyLoss]) -> None:
    """Columns that the mask excludes change nothing: no divisor is the padded width."""

    def padded(name: str, value: Tensor) -> Tensor:
        fill = math.nan if value.is_floating_point() else 0
        return torch.cat([value, torch.full_like(value[:, :1], fill).expand(-1, 4)], 1)

    for loss, args, kwargs in policy_cases(cls):
        value, slope = quietly(loss, args, kwargs)
        wide, wide_slope = quietly(loss, *changed(args, kwargs, padded))
        close(wide, value, EXACT, "padding")
        close(wide_slope[:, : slope.shape[1]], slope, EXACT, "padding, gradient")
        assert not wide_slope[:, slope.shape[1] :].any(), "padding has a gradient"


def check_masked_values(cls: type[PolicyLoss]) -> None:
    """NaN, infinity and huge log-ratios where the mask is false leave value and gradient bit for bit as they were."""
    for loss, args, kwargs in policy_cases(cls, torch.float32):
        mask = args[3].bool()
        assert not mask.all(), "a sample whose mask excludes nothing"
        value, slope = quietly(loss, args, kwargs)
        for bad in (math.nan, math.inf, -math.inf, 200.0):

            def spoilt(name: str, values: Tensor, bad: float = bad, mask: Tensor = mask) -> Tensor:
                return torch.where(mask, values, bad) if values.is_floating_point() else values

            new, new_slope = quietly(loss, *changed(args, kwargs, spoilt))
            assert torch.equal(new, value), f"{bad} under the mask changes the value"
            assert torch.equal(new_slope, slope), f"{bad} under the mask changes the gradient"


def parts(loss: PolicyLoss, args: Any, kwargs: Any) -> list[tuple[Any, Any]]:
    """The rows in two unequal parts; groups stay whole and are numbered anew."""
    rows = len(args[0])
    cut = 2
    if loss.grouped:
        ids = kwargs["group_ids"]
        cut = int((ids == ids[0]).sum())
        assert (ids[:cut] == ids[0]).all() and 0 < cut < rows, "a sample needs two groups, rows beside each other"

    def taken(value: Any, own: slice, name: str = "") -> Any:
        if not isinstance(value, Tensor) or not value.ndim or len(value) != rows:
            return value
        value = value[own]
        return torch.unique(value, return_inverse=True)[1] if name == "group_ids" else value

    return [
        ([taken(a, own) for a in args], {k: taken(v, own, k) for k, v in kwargs.items()})
        for own in (slice(0, cut), slice(cut, rows))
    ]


def check_micro_batches(cls: type[PolicyLoss]) -> None:
    """The parts of a step, each with the count of the whole, add up to its loss and gradient."""
    for loss, args, kwargs in policy_cases(cls):
        value, slope = quietly(loss, args, kwargs)
        segments = {"segments": kwargs["segments"]} if kwargs.get("segments") is not None else {}
        whole = loss.count_items(args[3], **segments)
        split = parts(loss, args, kwargs)
        counts = sum(loss.count_items(a[3], **({"segments": k["segments"]} if segments else {})) for a, k in split)
        close(torch.as_tensor(counts), whole, 1e-6, "items of the parts")
        try:
            sums = [quietly(loss, a, {**k, "num_items": whole}) for a, k in split]
        except ValueError as error:
            assert str(error).startswith("num_items: expected None"), str(error)
            continue
        close(torch.stack([v for v, _ in sums]).sum(), value, 1e-6, "parts of a step")
        close(torch.cat([s for _, s in sums]), slope, 1e-6, "parts of a step, gradient")
        half, _ = quietly(loss, args, {**kwargs, "num_items": 2 * whole})
        close(2 * half, value, 1e-6, "num_items is no divisor")


def check_packing(cls: type[PolicyLoss]) -> None:
    """Two sequences in one row, told apart by ``segments``, count as in rows of their own."""
    if "segments" not in inspect.signature(cls.forward).parameters:
        return
    for loss, args, kwargs in policy_cases(cls):
        if kwargs.get("segments") is not None:
            continue
        rows = len(args[0]) // 2
        logp, old, advantages, mask = (a[: 2 * rows] for a in args)
        args = (logp, old, advantages if advantages.ndim == 2 else advantages[:, None].expand_as(logp), mask)
        kwargs = {k: v[: 2 * rows] if isinstance(v, Tensor) and v.ndim else v for k, v in kwargs.items()}
        value, slope = quietly(loss, args, kwargs)
        packed, named = changed(args, kwargs, lambda _, v, rows=rows: v.reshape(rows, -1))
        steps = logp.shape[1]
        segments = torch.arange(2, device=slope.device).repeat_interleave(steps).expand(rows, -1)
        close(loss.count_items(packed[3], segments), loss.count_items(args[3]), EXACT, "count of packed rows")
        new, new_slope = quietly(loss, packed, {**named, "segments": segments})
        close(new, value, EXACT, "packed rows")
        close(new_slope.reshape(slope.shape), slope, EXACT, "packed rows, gradient")


def check_empty(cls: type[PolicyLoss]) -> None:
    """Nothing valid: 0 that carries a graph, gradients of 0."""
    for loss, args, kwargs in policy_cases(cls):
        value, slope = quietly(loss, [*args[:3], torch.zeros_like(args[3])], kwargs)
        assert value == 0, f"{value} where nothing is valid"
        assert not slope.any(), "a gradient where nothing is valid"


def check_stopped(cls: type[PolicyLoss]) -> None:
    """Old and reference log-probabilities, advantages and rewards get no gradient."""
    for loss, args, kwargs in policy_cases(cls):
        constants = [a.clone().requires_grad_() for a in args[1:3]]
        named = {k: v.clone().requires_grad_() for k, v in kwargs.items() if k == "ref_logp" and v is not None}
        leaf = args[0].clone().requires_grad_()
        value = loss(leaf, *constants, args[3], **{**kwargs, **named})
        slopes = torch.autograd.grad(value, [*constants, *named.values()], allow_unused=True)
        assert all(s is None or not s.any() for s in slopes), "a gradient where there should be none"


def check_extremes(cls: type[PolicyLoss]) -> None:
    """Log-ratios of 200 and log-probabilities of -1e4 leave value and gradient finite in float32."""
    for loss, args, kwargs in policy_cases(cls, torch.float32):
        for shift in (200.0, -200.0, -1e4):
            logp = args[0] + shift
            value, slope = quietly(loss, [logp, *args[1:]], kwargs)
            assert value.isfinite() and slope.isfinite().all(), f"not finite at a log-ratio of {shift}"


def check_alternatives(cls: type[PolicyLoss]) -> None:
    """Each argument of the constructor changes the value or the gradient of some sample, or is refused."""
    names = set(inspect.signature(cls.__init__).parameters) - {"self"}
    assert names == set(cls.alternatives), f"alternatives: expected one for each of {sorted(names)}"
    given = given_arguments(cls, lambda: loss_cases(cls))
    samples = list(policy_cases(cls))
    for name, instead in cls.alternatives.items():
        acts = False
        for arguments, (loss, args, kwargs) in zip(given, samples, strict=True):
            if arguments.get(name) == instead:
                continue
            try:
                varied = cls(**{**arguments, name: instead})
            except ValueError:
                continue
            value, slope = quietly(loss, args, kwargs)
            new, new_slope = quietly(varied, args, kwargs)
            acts = acts or not torch.equal(new, value) or not torch.equal(new_slope, slope)
        assert acts, f"{name} changes nothing"


def check_group_of_one(cls: type[PolicyLoss]) -> None:
    """Grouped losses: single answers give finite numbers, and one warning a call."""
    if not cls.grouped:
        return
    for loss, args, kwargs in policy_cases(cls):
        alone = {**kwargs, "group_ids": torch.arange(len(args[0]), device=args[0].device)}
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            leaf = args[0].clone().requires_grad_()
            value = loss(leaf, *args[1:], **alone)
        assert len(seen) == 1, f"{len(seen)} warnings of groups with a single answer"
        (slope,) = torch.autograd.grad(value, leaf)
        assert value.isfinite() and slope.isfinite().all(), "not finite for groups of one"


CHECKS: tuple[Callable[[type[PolicyLoss]], None], ...] = (
    check_padding, check_masked_values, check_micro_batches, check_packing, check_empty, check_stopped, check_extremes,
    check_alternatives, check_group_of_one,
)  # fmt: skip


def policy_loss_checks(cls: type[PolicyLoss]) -> list[tuple[str, Callable[[], None]]]:
    """``(name, check)`` for every check that ``cls`` is not exempt from, those of any loss included."""
    checks: tuple[Callable[[Any], None], ...] = (*LOSS_CHECKS, *CHECKS)
    return bound(checks, cls)


def check_policy_loss(cls: type[PolicyLoss]) -> None:
    """Run the whole suite on a class.

    Raises:
        AssertionError: the first promise that the class does not keep.
    """
    run_all(policy_loss_checks(cls), cls)
