"""Effective ranks of spectra: closed forms, scipy's entropy, spectra without a rank."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import entropy

from steepest.core.effective_rank import effective_rank

KINDS = ("entropy", "participation", "stable")


def test_the_exponential_of_scipys_entropy():
    values = torch.rand(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(effective_rank(values), torch.tensor(entropy(values.numpy(), axis=1)).exp())


@pytest.mark.parametrize("kind", KINDS)
def test_equal_values_count_and_a_single_one_is_1(kind):
    for r in (1, 2, 9):
        equal, one = torch.full((r,), 0.3), torch.zeros(r)
        one[-1] = 7.0
        assert float(effective_rank(equal, kind)) == pytest.approx(r, rel=1e-6)
        assert float(effective_rank(one, kind)) == 1.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-36, 1e-12, 1e12, 1e36])
def test_any_multiple_has_the_same_rank(kind, scale):
    values = torch.tensor([4.0, 2.0, 1.0, 1.0])
    torch.testing.assert_close(effective_rank(values * scale, kind), effective_rank(values, kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("values", [[0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_a_spectrum_without_a_rank_is_nan_beside_one_with(kind, values):
    ranks = effective_rank(torch.tensor([values, [2.0, 2.0]]), kind)
    assert math.isnan(ranks[0])
    assert float(ranks[1]) == pytest.approx(2.0)


def test_rounding_below_the_cut_counts_as_0():
    values = torch.tensor([1.0, 1e-13] + [1e-13] * 30, dtype=torch.float64)
    assert float(effective_rank(values)) == 1.0
    assert float(effective_rank(values, cut=0.0)) > 1.0
    assert float(effective_rank(torch.tensor([9.0, 1.0]), cut=0.2)) == 1.0


def test_types():
    assert effective_rank(torch.tensor([3.0, 1.0], dtype=torch.float16)).dtype == torch.float32
    assert effective_rank(torch.tensor([3.0, 1.0], dtype=torch.float64)).dtype == torch.float64


def test_what_it_refuses():
    with pytest.raises(ValueError, match="values: expected values >= 0"):
        effective_rank(torch.tensor([1.0, -1.0]))
    for empty in (torch.empty(3, 0), torch.tensor(1.0)):
        with pytest.raises(ValueError, match="values: expected at least one value in the last dimension"):
            effective_rank(empty)
    with pytest.raises(ValueError, match="kind: expected one of"):
        effective_rank(torch.ones(2), "rank")
    with pytest.raises(ValueError, match="cut: expected a number"):
        effective_rank(torch.ones(2), cut=1.0)
    with pytest.raises(TypeError, match="values: expected a floating tensor"):
        effective_rank(torch.ones(2, dtype=torch.int64))
