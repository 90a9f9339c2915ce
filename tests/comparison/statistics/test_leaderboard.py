"""Elo, win rates and improvability against bencheval; the critical difference against Demsar's table."""

import numpy as np
import pandas as pd
import pytest
from bencheval.elo_utils import EloHelper
from bencheval.evaluator import BenchmarkEvaluator
from bencheval.winrate_utils import compute_winrate_matrix
from scipy import optimize

from steepest.comparison.statistics import critical_difference, elo, improvability, win_rates
from steepest.comparison.statistics.across import alike

NAMES = [f"m{i}" for i in range(5)]


def errors_of(sets: int, seed: int = 0) -> np.ndarray:
    """Errors [sets, 5] with ties, and a zero."""
    random = np.random.default_rng(seed)
    errors = (random.uniform(0, 0.4, (sets, 5)) + np.arange(5) * 0.04).round(1)
    errors[0, 1] = 0.0
    return errors


def long(errors: np.ndarray) -> pd.DataFrame:
    """The same as bencheval takes it."""
    return pd.DataFrame(
        [
            {"method": name, "task": f"t{i}", "metric_error": value}
            for i, row in enumerate(errors.tolist())
            for name, value in zip(NAMES, row)
        ]
    )


@pytest.mark.parametrize("greater", [True, False])
def test_elo_ratings_are_benchevals(greater: bool) -> None:
    errors = errors_of(12)
    theirs = EloHelper().compute_mle_elo_from_ranks(long(errors))
    found = elo(1 - errors if greater else errors, greater)
    assert found.ratings == pytest.approx(theirs[NAMES].tolist(), abs=1e-3)
    assert found.message == ""
    assert np.mean(found.ratings) == pytest.approx(1000)


def test_elo_ratings_are_of_maximum_likelihood() -> None:
    errors = errors_of(9, 1)

    def loss(ratings: np.ndarray) -> float:
        value = 0.0
        for row in errors:
            for i in range(5):
                for j in range(5):
                    if i != j:
                        won = 1.0 if row[i] < row[j] else 0.5 if row[i] == row[j] else 0.0
                        value += won * np.log(1 + 10 ** ((ratings[j] - ratings[i]) / 400))
        return value

    found = elo(errors, False)
    best = optimize.minimize(loss, np.array(found.ratings) + np.arange(5) * 30, method="BFGS", options={"gtol": 1e-7}).x
    assert found.ratings == pytest.approx((best - best.mean() + 1000).tolist(), abs=0.05)


def test_elo_intervals_are_of_resampled_data_sets() -> None:
    errors = errors_of(12)
    found = elo(errors, False, rounds=40, seed=4)
    drawn = [
        np.repeat(errors, weights, axis=0)
        for weights in np.random.default_rng(4).multinomial(12, np.full(12, 1 / 12), size=40)
    ]
    own = np.array([elo(rows, False, rounds=1).ratings for rows in drawn])
    theirs = [EloHelper().compute_mle_elo_from_ranks(long(rows))[NAMES].tolist() for rows in drawn]
    assert own == pytest.approx(np.array(theirs), abs=0.05)
    assert found.low == pytest.approx(np.quantile(own, 0.025, axis=0).tolist(), abs=1e-6)
    assert found.high == pytest.approx(np.quantile(own, 0.975, axis=0).tolist(), abs=1e-6)
    assert all(low < rating < high for low, rating, high in zip(found.low, found.ratings, found.high))


def test_who_wins_everything_has_a_finite_rating_and_it_is_said() -> None:
    errors = np.array([[0.1, 0.2, 0.3, 0.4, 0.5]] * 4)
    found = elo(errors, False, rounds=20)
    assert np.isfinite([*found.ratings, *found.low, *found.high]).all()
    assert list(found.ratings) == sorted(found.ratings, reverse=True)
    assert "faint prior" in found.message
    assert found.ratings == pytest.approx(
        EloHelper().compute_mle_elo_from_ranks(long(errors))[NAMES].tolist(), rel=1e-3
    )


def test_where_resamples_determine_no_rating_it_is_said() -> None:
    errors = np.array([[0.1, 0.2, 0.3], [0.2, 0.1, 0.3], [0.1, 0.3, 0.2], [0.3, 0.2, 0.1]])
    found = elo(errors, False)
    assert "so few data sets" in found.message
    assert max(found.high) > 2000
    assert elo(np.tile(errors, (20, 1)), False).message == ""


def test_win_rates_are_benchevals() -> None:
    errors = errors_of(12)
    theirs = compute_winrate_matrix(long(errors), error_col="metric_error").loc[NAMES, NAMES]
    found = win_rates(errors, False)
    assert found == pytest.approx(theirs.to_numpy(), nan_ok=True, abs=1e-6)  # theirs are of float32
    assert np.nan_to_num(found + found.T, nan=1.0) == pytest.approx(np.ones((5, 5)))


def test_improvability_is_benchevals() -> None:
    errors = errors_of(12)
    errors[3] = 0.0  # all are best: nothing can be improved
    evaluator = BenchmarkEvaluator(columns_to_agg_extra=None)
    theirs = evaluator.leaderboard(long(errors), include_elo=False)["improvability"]
    assert improvability(errors) == pytest.approx(theirs[NAMES].to_numpy())
    with pytest.raises(ValueError, match="errors"):
        improvability(errors - 0.1)


@pytest.mark.parametrize(("methods", "quantile"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_the_critical_difference_is_demsars(methods: int, quantile: float) -> None:
    found = critical_difference(methods, 14)
    assert found == pytest.approx(quantile * np.sqrt(methods * (methods + 1) / (6 * 14)), abs=0.001)


def test_groups_are_the_largest_within_the_difference() -> None:
    ranks = [2.0, 1.0, 3.5, 2.4, 6.0]
    found = alike(ranks, 1.5)
    naive = set()
    for low in ranks:
        group = frozenset(i for i, rank in enumerate(ranks) if low <= rank < low + 1.5)
        if len(group) > 1:
            naive.add(group)
    assert {frozenset(group) for group in found} == {g for g in naive if not any(g < other for other in naive)}
    assert alike([1.0, 3.0], 2.0) == []  # not less


def test_refusals() -> None:
    with pytest.raises(ValueError, match="two methods"):
        elo(np.ones((3, 1)))
    with pytest.raises(ValueError, match="scores"):
        win_rates(np.array([[np.nan, 1.0]]))
