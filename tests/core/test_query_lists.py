"""Flat documents and padded lists."""

from __future__ import annotations

import math

import pytest
import torch

from steepest.core.query_lists import (
    check_lists,
    discounts_of,
    gains_of,
    has_order,
    ideal_dcg,
    lists_of,
    mask_from_padding,
    reduce_lists,
)


def test_padding_and_back():
    generator = torch.Generator().manual_seed(0)
    query = torch.randint(-3, 4, (40,), generator=generator)
    values = torch.randn(40, generator=generator, dtype=torch.float64)
    lists = lists_of(query)
    rows = lists.pad(values)
    for row, number in enumerate(sorted(set(query.tolist()))):
        own = [v for v, q in zip(values.tolist(), query.tolist()) if q == number]
        assert rows[row, : len(own)].tolist() == own
        assert lists.mask[row].tolist() == [True] * len(own) + [False] * (rows.shape[1] - len(own))
    assert torch.equal(lists.flatten(rows), values)
    assert rows[~lists.mask].eq(0).all()


def test_shapes_alone_and_transforms_pad_to_the_number_of_documents():
    query, values = torch.tensor([4, 1, 4]), torch.tensor([1.0, 2.0, 3.0])

    def total(query, values):
        lists = lists_of(query)
        assert lists.mask.shape == (3, 3)
        return torch.where(lists.mask, lists.pad(values), 0.0).sum(1)

    mapped = torch.func.vmap(total)(torch.stack([query, query.flip(0)]), torch.stack([values, values]))
    assert mapped.tolist() == [[2.0, 4.0, 0.0], [2.0, 4.0, 0.0]]
    assert lists_of(query.to("meta")).mask.shape == (3, 3)


def test_no_documents():
    lists = lists_of(torch.zeros(0, dtype=torch.long))
    assert lists.pad(torch.zeros(0)).shape[0] == 0
    assert lists.flatten(lists.pad(torch.zeros(0))).shape == (0,)


@pytest.mark.parametrize("query", [torch.zeros(3), torch.zeros(1, 3, dtype=torch.long)])
def test_queries_of_another_kind_are_refused(query):
    with pytest.raises((TypeError, ValueError), match=r"^query: expected"):
        lists_of(query)


def test_masks_of_padding_and_negative_grades():
    grades = torch.tensor([[1, 0, -1]])
    mask = mask_from_padding(grades)
    assert mask.tolist() == [[True, True, False]]
    assert mask_from_padding(grades, 0).tolist() == [[True, False, True]]
    scores, clean, _ = check_lists(torch.tensor([[1.0, 2.0, math.nan]], dtype=torch.float16), grades, mask)
    assert scores.tolist() == [[1.0, 2.0, 0.0]]
    assert scores.dtype == clean.dtype == torch.float32
    with pytest.raises(ValueError, match=r"^grades: expected grades >= 0 \(mask_from_padding"):
        check_lists(torch.zeros(1, 3), grades, None)
    with pytest.raises(TypeError, match=r"^mask: expected a boolean tensor"):
        check_lists(torch.zeros(1, 3), grades, mask.long())
    with pytest.raises(ValueError, match=r"^mask: expected shape"):
        check_lists(torch.zeros(1, 3), grades, mask[0])


def test_what_orders_something():
    grades = torch.tensor([[2.0, 2.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, False], [True, True, False], [False, False, False]])
    assert has_order(grades, mask).tolist() == [False, True, False]
    assert has_order(torch.zeros(2, 0), torch.ones(2, 0, dtype=torch.bool)).tolist() == [False, False]


def test_reduction_over_lists_that_count():
    losses, counted = torch.tensor([1.0, math.nan, 4.0]), torch.tensor([True, False, True])
    assert reduce_lists(losses, counted).item() == 2.5
    assert reduce_lists(losses, counted, "sum").item() == 5.0
    assert reduce_lists(losses, counted, "none").tolist() == [1.0, 0.0, 4.0]
    assert reduce_lists(losses, torch.zeros_like(counted)).item() == 0.0


def test_gains_and_discounts():
    assert gains_of(torch.tensor([3.0])).item() == 7.0
    assert gains_of(torch.tensor([3.0]), powered=False).item() == 3.0
    assert discounts_of(torch.zeros(4, dtype=torch.float64), 3).tolist() == pytest.approx(
        [1.0, 1 / math.log2(3), 0.5, 0.0]
    )
    gains = torch.tensor([[1.0, 7.0, 0.0]], dtype=torch.float64)
    assert ideal_dcg(gains).item() == pytest.approx(7 + 1 / math.log2(3))
    assert ideal_dcg(gains, 1).item() == 7.0


def test_a_grade_that_is_not_a_number_is_not_passed_over():
    grades = torch.tensor([[math.nan, 0.0], [0.0, math.nan], [1.0, 1.0]])
    assert has_order(grades, torch.ones(3, 2, dtype=torch.bool)).tolist() == [True, True, False]
