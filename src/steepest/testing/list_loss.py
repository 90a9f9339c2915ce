"""Conformance of losses of ranked lists, on what ``samples()`` gives: scores, grades and queries of one batch.

``check_list_loss(cls)`` runs all; ``list_loss_checks(cls)`` lists ``(name, check)`` for pytest's ``parametrize``. All
that :mod:`~steepest.testing.objective` asks comes first; then what padding, other lists of the batch and the order of
documents must not change.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..core.list_loss import ListLoss
from ..core.query_lists import lists_of
from ._common import cases, close, gradient, rebuilds, value
from ._suite import bound, run_all
from .objective import CHECKS as OBJECTIVE_CHECKS

CONTENTS = (math.nan, math.inf, 1e4)
"""What may stand where there is no document."""


def _lists(cls: type[ListLoss], dtype: torch.dtype = torch.float64) -> list[tuple[ListLoss, Tensor, Tensor, Tensor]]:
    """Instances with scores, grades and queries; several lists of several lengths."""
    batches = []
    for loss, ((scores, grades), kwargs) in cases(cls, dtype):
        assert isinstance(loss, ListLoss), "not a ListLoss"
        lengths = torch.unique(kwargs["query"], return_counts=True)[1]
        assert len(torch.unique(lengths)) > 1, "samples(): lists of several lengths"
        batches.append((loss, scores, grades, kwargs["query"]))
    return batches


def _value_and_slope(loss: ListLoss, scores: Tensor, grades: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    args, kwargs = (scores, grades), {"query": query}
    return value(loss, args, kwargs), gradient(loss, args, kwargs)


def check_padding(cls: type[ListLoss]) -> None:
    """Whatever stands under the mask of padded lists changes neither their losses nor gets a gradient."""
    for loss, scores, grades, query in _lists(cls):
        lists = lists_of(query)
        wanted = loss.list_losses(lists.pad(scores), lists.pad(grades), lists.mask)
        more = torch.cat([lists.mask, torch.zeros_like(lists.mask)], 1)
        for content in CONTENTS:
            wide, wide_grades = (torch.cat([lists.pad(t), lists.pad(t)], 1) for t in (scores, grades))
            wide = wide.masked_fill(~more, content).requires_grad_()
            losses = loss.list_losses(wide, wide_grades.masked_fill(~more, -1.0), more)
            close(losses, wanted, 1e-12, f"padding of {content}")
            (slope,) = torch.autograd.grad(losses.sum(), wide)
            assert not slope[~more].any(), f"padding of {content} gets a gradient"
            assert slope.isfinite().all(), f"padding of {content}: a gradient that is not finite"


def check_mates(cls: type[ListLoss]) -> None:
    """The loss is the mean of what its lists give alone, and so is the gradient."""
    for loss, scores, grades, query in _lists(cls):
        whole, slope = _value_and_slope(loss, scores, grades, query)
        numbers = torch.unique(query)
        alone = [_value_and_slope(loss, *(t[query == number] for t in (scores, grades, query))) for number in numbers]
        close(whole, torch.stack([one for one, _ in alone]).mean(), 1e-12, "the lists alone")
        for number, (_, own) in zip(numbers, alone):
            close(slope[query == number], own / len(numbers), 1e-12, "the gradient of a list alone")


def check_names_of_queries(cls: type[ListLoss]) -> None:
    """Other numbers for the same queries, of another type and in another order, change nothing."""
    for loss, scores, grades, query in _lists(cls):
        wanted, slope = _value_and_slope(loss, scores, grades, query)
        result, own = _value_and_slope(loss, scores, grades, (100 - 7 * query).to(torch.int32))
        close(result, wanted, 1e-12, "other numbers of queries")
        close(own, slope, 1e-12, "other numbers of queries, gradient")


def check_nothing_to_order(cls: type[ListLoss]) -> None:
    """A list of one document, or of equal grades, gives 0 with a graph and no gradient, and changes no other list."""
    for loss, scores, grades, query in _lists(cls):
        wanted, slope = _value_and_slope(loss, scores, grades, query)
        for count, grade in ((1, 1.0), (3, 1.0), (3, 0.0)):
            extra = torch.linspace(-1, 1, count, dtype=scores.dtype)
            own = extra, torch.full_like(extra, grade), torch.full_like(query[:1].expand(count), 77)
            alone, alone_slope = _value_and_slope(loss, *own)
            joined = [torch.cat(pair) for pair in zip((scores, grades, query), own)]
            both, both_slope = _value_and_slope(loss, *joined)
            if cls.uses_ties:
                assert both.isfinite(), "a list of equal grades: not finite"
                continue
            assert alone == 0, f"{alone} of {count} documents of equal grades"
            assert not alone_slope.any(), f"a gradient of {count} documents of equal grades"
            close(both, wanted, 1e-12, "beside a list of equal grades")
            close(both_slope[: len(slope)], slope, 1e-12, "gradient beside a list of equal grades")


def check_tied_scores(cls: type[ListLoss]) -> None:
    """Equal scores, as of a model before its first step, give a finite loss whatever the order of the documents."""
    for loss, scores, grades, query in _lists(cls):
        even = torch.zeros_like(scores)
        wanted, slope = _value_and_slope(loss, even, grades, query)
        assert wanted.isfinite(), "equal scores: not finite"
        assert slope.isfinite().all(), "equal scores: a gradient that is not finite"
        turned, own = _value_and_slope(loss, even, grades.flip(0), query.flip(0))
        close(turned, wanted, 1e-12, "equal scores in another order")
        for grade in grades.unique():
            close(
                own.flip(0)[grades == grade].sum(),
                slope[grades == grade].sum(),
                1e-12,
                "gradient of equal scores in another order",
            )


def check_shift(cls: type[ListLoss]) -> None:
    """A constant on all scores of a list changes nothing; where the member says so, it does."""
    for loss, scores, grades, query in _lists(cls):
        wanted, _ = _value_and_slope(loss, scores, grades, query)
        result, _ = _value_and_slope(loss, scores + 0.3 * query.to(scores.dtype), grades, query)
        if cls.shift_invariant:
            close(result, wanted, 1e-11, "a constant on a list")
        else:
            assert (result - wanted).abs() > 1e-9, "shift_invariant: it is"


def check_negative_grades(cls: type[ListLoss]) -> None:
    """Grades below 0, which others read as padding, are refused."""
    for loss, scores, grades, query in _lists(cls):
        wrong = grades.clone()
        wrong[0] = -1.0
        try:
            value(loss, (scores, wrong), {"query": query})
        except ValueError as error:
            assert "grades: expected" in str(error), f"not the uniform error but {error}"
        else:
            raise AssertionError("a negative grade was taken")


def check_bad_query(cls: type[ListLoss]) -> None:
    """Queries of another length or type are refused."""
    for loss, scores, grades, query in _lists(cls):
        for wrong in (query[:-1], query.double(), query.unsqueeze(0), query.tolist()):
            try:
                value(loss, (scores, grades), {"query": wrong})
            except (ValueError, TypeError) as error:
                assert "query: expected" in str(error), f"not the uniform error but {error}"
            else:
                raise AssertionError(f"a query {wrong} was taken")


def check_hyper_parameters(cls: type[ListLoss]) -> None:
    """Every number, flag and word of ``__init__`` has another value in ``alternatives``, which changes the loss."""
    own = inspect.signature(cls.__init__).parameters
    missing = {name for name in own if name != "self"} - set(cls.alternatives)
    assert not missing, f"alternatives: no other value of {sorted(missing)}"
    batches = _lists(cls)
    for name, another in cls.alternatives.items():
        moved = False
        for (loss, scores, grades, query), again in zip(batches, rebuilds(cls)):
            try:
                changed = again(**{name: another})
            except (ValueError, TypeError):  # an option of another case
                continue
            pair = zip(_value_and_slope(changed, scores, grades, query), _value_and_slope(loss, scores, grades, query))
            moved |= not all(torch.equal(a, b) for a, b in pair)
        assert moved, f"{name}={another!r} changes neither the loss nor its gradient"


CHECKS: tuple[Callable[[type[ListLoss]], None], ...] = (
    *OBJECTIVE_CHECKS, check_padding, check_mates, check_names_of_queries, check_nothing_to_order, check_tied_scores,
    check_shift, check_negative_grades, check_bad_query, check_hyper_parameters,
)  # fmt: skip


def list_loss_checks(cls: type[ListLoss]) -> list[tuple[str, Callable[[], None]]]:
    """``(name, check)`` for every check that ``cls`` is not exempt from."""
    return bound(CHECKS, cls)


def check_list_loss(cls: type[ListLoss]) -> None:
    """Run the whole suite on a class.

    Raises:
        AssertionError: the first promise that the class does not keep.
    """
    run_all(list_loss_checks(cls), cls)
