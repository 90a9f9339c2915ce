"""Looks at a growing comparison: how they are counted, the level of each, and what all of them reject together."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from steepest.comparison.statistics import ALPHA, Look, corrected_resampled_ttest, next_look
from steepest.comparison.statistics.looks import confidence, percent


def test_a_look_is_counted_only_if_it_rests_on_more_cells() -> None:
    last, seen = None, []
    for cells in (4, 4, 3, 8, 8, 9, 0, 30):
        look = next_look(last, cells)
        last = look.fact
        seen.append((look.number, look.cells))
    assert seen == [(1, 4), (1, 4), (1, 4), (2, 8), (2, 8), (3, 9), (3, 9), (4, 30)]


def test_the_levels_of_all_looks_never_add_up_to_more_than_the_whole() -> None:
    levels = [Fraction(Look(number, 0).alpha) for number in range(1, 200)]
    assert levels[:3] == [Fraction(ALPHA) / 2, Fraction(ALPHA) / 4, Fraction(ALPHA) / 8]
    assert sum(levels) < Fraction(ALPHA)


@pytest.mark.parametrize("wrong", [(0, 1), (1, -1), (1.0, 1), (True, 1)])
def test_what_is_no_look_is_refused(wrong: tuple[int, int]) -> None:
    with pytest.raises((ValueError, TypeError)):
        Look(*wrong)


def test_levels_in_words_never_claim_more_than_they_are() -> None:
    assert [Look(number, 0).words for number in (1, 2)] == ["look 1: tested at 2.5%", "look 2: tested at 1.25%"]
    for number in range(1, 40):
        alpha = ALPHA / 2**number
        assert float(percent(alpha)[:-1]) == pytest.approx(100 * alpha, rel=5e-3)
        assert 100 - float(confidence(alpha)[:-1]) == pytest.approx(100 * alpha, rel=5e-3, abs=5e-9)


def test_looks_reject_a_true_null_at_most_at_the_level_and_plain_tests_do_not() -> None:
    """Fold differences as the corrected test takes them: two of them correlate by n_test / (n_train + n_test)."""
    runs, fraction = 20_000, 0.2
    generator = np.random.default_rng(0)
    shared = generator.normal(size=(runs, 1)) * np.sqrt(fraction)
    differences = shared + generator.normal(size=(runs, 15)) * np.sqrt(1 - fraction)
    pvalues = []
    for folds in (5, 10, 15):
        seen = differences[:, :folds]
        error = np.sqrt((1 / folds + fraction / (1 - fraction)) * seen.var(axis=1, ddof=1))
        pvalues.append(2 * stats.t.sf(np.abs(seen.mean(axis=1)) / error, folds - 1))
        own = [corrected_resampled_ttest(row, test_fraction=fraction).pvalue for row in seen[:20]]
        assert own == pytest.approx(pvalues[-1][:20])
    plain = np.any([p < ALPHA for p in pvalues], axis=0).mean()
    ours = np.any([p < Look(number, 0).alpha for number, p in enumerate(pvalues, start=1)], axis=0).mean()
    spread = 3 * np.sqrt(ALPHA * (1 - ALPHA) / runs)
    assert plain > ALPHA + spread
    assert ours <= ALPHA + spread
