"""Conformance of losses of pairs, on what ``samples()`` gives: embeddings, labels, and what says which belong together.

``check_pair_loss(cls)`` runs all; ``pair_loss_checks(cls)`` lists ``(name, check)`` for pytest's ``parametrize``. All
that :mod:`~steepest.testing.objective` asks comes first; then what happens to batches in which there is nothing to
compare, to duplicates, to similarities at their ends, and to a batch that is shared out over ranks.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.pair_loss import FORMS, PairLoss
from ._common import by_rows, cases, close, gradient, private, rebuilds, value
from ._constructor import seed_torch
from ._steps import on_two_ranks
from ._suite import bound, run_all
from .objective import CHECKS as OBJECTIVE_CHECKS

ACROSS = 1e-9
"""Relative error allowed to float64 numbers that several ranks sum in another order."""


def pair_cases(cls: type[PairLoss], dtype: torch.dtype = torch.float64) -> list[Any]:
    """Fresh instances with embeddings and labels."""
    return cases(cls, dtype)


def value_and_gradient(objective: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Both, on private copies; the loss must have a graph."""
    outputs = args[0].detach().clone().requires_grad_()
    loss = value(objective, (outputs, *args[1:]), kwargs)
    assert loss.requires_grad, "no graph"
    return loss, torch.autograd.grad(loss, outputs, allow_unused=True, materialize_grads=True)[0]


def finite(what: str, objective: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> Tensor:
    """Assert a float32 loss with finite value and gradient; gives the value."""
    loss, slope = value_and_gradient(objective, args, kwargs)
    assert loss.dtype == torch.promote_types(args[0].dtype, torch.float32), f"{what}: a loss in {loss.dtype}"
    assert loss.isfinite(), f"{what}: {loss}"
    assert slope.isfinite().all(), f"{what}: a gradient that is not finite"
    return loss


def check_pairs(cls: type[PairLoss]) -> None:
    """What a loss of pairs declares beside an objective's attributes."""
    assert cls.form in FORMS, "form: 'labels' or 'views'"
    assert (cls.views > 1) == (cls.form == "views"), "views: two and more with form 'views', else one"
    assert cls.domain == "embedding", "domain: 'embedding'"


def check_hyper_parameters(cls: type[PairLoss]) -> None:
    """Every number, flag and word of ``__init__`` has another value in ``alternatives``, which changes the loss."""
    parameters = inspect.signature(cls.__init__).parameters
    plain = {name for name, p in parameters.items() if isinstance(p.default, (bool, int, float, str))}
    missing = plain - set(cls.alternatives)
    assert not missing, f"alternatives: no other value of {sorted(missing)}"
    samples = pair_cases(cls)
    before = [_two_steps(objective, *sample) for objective, sample in samples]
    for name, another in cls.alternatives.items():
        moved = False
        for (_, sample), again, numbers in zip(samples, rebuilds(cls), before):
            try:
                changed = again(**{name: another})
            except ValueError:  # an option of another case
                continue
            try:
                moved |= not all(map(torch.equal, _two_steps(changed, *sample), numbers))
            except ValueError:  # embeddings of another shape are asked for
                moved = True
        assert moved, f"{name}={another!r} changes neither the loss nor its gradient"


def _two_steps(objective: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Values and gradients of two steps: what only state or a learned parameter shows is seen in the second."""
    twin, numbers = copy.deepcopy(objective), []
    for _ in range(2):
        outputs = args[0].detach().clone().requires_grad_()
        parameters = list(twin.parameters())
        seed_torch(1)
        loss = twin(outputs, *args[1:], **kwargs)
        slope, *slopes = torch.autograd.grad(loss, [outputs, *parameters], allow_unused=True, materialize_grads=True)
        numbers += [loss.detach(), slope]
        with torch.no_grad():
            for parameter, own in zip(parameters, slopes):
                parameter.sub_(0.01 * own)
        twin.after_step()
    return numbers


def check_few(cls: type[PairLoss]) -> None:
    """One row, rows of which none has a positive, rows that all have one label: finite numbers with a graph."""
    for objective, (args, kwargs) in pair_cases(cls, torch.float32):
        finite("one row", objective, *by_rows(cls, args, kwargs, lambda t: t[:1]))
        finite("two rows", objective, *by_rows(cls, args, kwargs, lambda t: t[:2]))
        alone = torch.arange(len(args[1]))
        finite("no positive", objective, (args[0], alone, *args[2:]), kwargs)
        finite("one label", objective, (args[0], torch.zeros_like(alone), *args[2:]), kwargs)


def check_duplicates(cls: type[PairLoss]) -> None:
    """An item that occurs twice is told by its id: it changes the loss, and a batch of one item is finite."""
    if "ids" not in cls.needs:
        return
    for objective, (args, kwargs) in pair_cases(cls):
        apart = torch.arange(len(args[1]))
        wanted = value(objective, args, {**kwargs, "ids": None})
        close(value(objective, args, {**kwargs, "ids": apart}), wanted, 1e-12, "ids that are all different")
        told = [torch.where(apart == i, i - 1, apart) for i in apart[1:]]  # each with the one before
        assert any(value(objective, args, {**kwargs, "ids": ids}) != wanted for ids in told), "ids change nothing"
        finite("one item", objective, args, {**kwargs, "ids": torch.zeros_like(apart)})


def check_saturation(cls: type[PairLoss]) -> None:
    """Rows that are equal or opposite, at both ends of the search space: finite in float32, value and gradient."""
    for again, (_, (args, kwargs)) in zip(rebuilds(cls), pair_cases(cls, torch.float32)):
        ends = [again(**{name: space.at(u) for name, space in cls.search.items()}) for u in (0.0, 0.999)]
        axis = torch.zeros_like(args[0])
        axis[..., 0] = 1.0
        signs = torch.ones(args[0].shape[-2])
        signs[1::2] = -1.0
        of_views = torch.ones(args[0].shape[:-1])
        of_views.view(-1, args[0].shape[-2])[-1] = -1.0
        for objective in ends:
            for what, rows in (
                ("equal rows", axis),
                ("opposite rows", axis * signs.unsqueeze(-1)),
                ("opposite views", axis * of_views.unsqueeze(-1)),
                ("large rows", 1e4 * args[0]),
                ("small rows", 1e-4 * args[0]),
            ):
                finite(what, objective, (rows, *args[1:]), kwargs)


def check_zero_rows(cls: type[PairLoss]) -> None:
    """Rows of zeros, in half precision and in float32, give a finite float32 loss and a finite gradient."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for objective, (args, kwargs) in pair_cases(cls, dtype):
            finite("zeros", objective, (torch.zeros_like(args[0]), *args[1:]), kwargs)
            one = args[0].clone()
            one[..., 0, :] = 0.0
            finite("a row of zeros", objective, (one, *args[1:]), kwargs)


def check_layouts(cls: type[PairLoss]) -> None:
    """Labels of another integer type and embeddings that are not contiguous give the same."""
    for objective, (args, kwargs) in pair_cases(cls):
        strided = torch.stack([args[0], args[0]], -1)[..., 0]
        named = {k: t.int() if isinstance(t, Tensor) and t.dtype == torch.int64 else t for k, t in kwargs.items()}
        assert not strided.is_contiguous(), "contiguous"
        result = value(objective, (strided, args[1].int(), *args[2:]), named)
        close(result, value(objective, args, kwargs), 1e-12, "another layout")


def _shared(rank: int, cls: type[PairLoss]) -> list[list[Tensor]]:
    """Of each case the loss and W-th part of the gradients on this rank's rows: two of them, or the others."""
    results = []
    for objective, (args, kwargs) in pair_cases(cls):
        own = slice(0, 2) if rank == 0 else slice(2, None)
        few, named = by_rows(cls, args, kwargs, lambda t, o=own: t[o])
        outputs = few[0].detach().clone().requires_grad_()
        twin = private(objective).over_ranks()
        leaves = [outputs, *twin.parameters()]
        loss = twin(outputs, *few[1:], **named)
        slopes = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        results.append([loss.detach(), *(slope / 2 for slope in slopes)])
    return results


def check_ranks(cls: type[PairLoss]) -> None:
    """On two ranks of unequal batches value and averaged gradients are those of one process with all rows."""
    if cls.ranks != "gather":
        return
    first, second = on_two_ranks(_shared, cls)
    for (objective, (args, kwargs)), (a, *of_first), (b, *of_second) in zip(pair_cases(cls), first, second):
        wanted = value(objective, args, kwargs)
        close(a, wanted, ACROSS, "loss of the first rank")
        close(b, wanted, ACROSS, "loss of the second rank")
        rows = torch.cat([of_first[0], of_second[0]], -2)
        close(rows, gradient(objective, args, kwargs), ACROSS, "averaged gradient")
        parameters = list(objective.parameters())
        if parameters:
            slopes = torch.autograd.grad(private(objective)(*args, **kwargs), parameters)
            for one, two, slope in zip(of_first[1:], of_second[1:], slopes):
                close(one + two, slope, ACROSS, "averaged gradient of a parameter")


CHECKS: tuple[Callable[[type[PairLoss]], None], ...] = (
    *OBJECTIVE_CHECKS, check_pairs, check_hyper_parameters, check_few, check_duplicates, check_saturation,
    check_zero_rows, check_layouts, check_ranks,
)  # fmt: skip


def pair_loss_checks(cls: type[PairLoss]) -> list[tuple[str, Callable[[], None]]]:
    """``(name, check)`` for every check that ``cls`` is not exempt from."""
    return bound(CHECKS, cls)


def check_pair_loss(cls: type[PairLoss]) -> None:
    """Run the whole suite on a class.

    Raises:
        AssertionError: the first promise that the class does not keep.
    """
    run_all(pair_loss_checks(cls), cls)
