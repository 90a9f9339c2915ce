"""Metrics of lists against scikit-learn, SciPy and every order of equal scores."""

from itertools import permutations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, ndcg_score

from steepest.comparison.errors import InputError
from steepest.comparison.metrics.ranking import OF_LISTS, RankedLists, list_metric, own_list_metric, plain_word
from steepest.comparison.names import check_names
from steepest.comparison.scores.outcome import Outcome

KS = (1, 3, 10, None)


def lists(seed, ties=False, count=12):
    """Targets and scores of lists whose rows are mixed."""
    rng = np.random.default_rng(seed)
    query = rng.permutation(np.repeat(np.arange(count) * 7 + 3, rng.integers(1, 9, count)))
    grades = rng.integers(0, 4, len(query)).astype(float)
    scores = rng.integers(0, 3, len(query)) * 0.5 if ties else rng.standard_normal(len(query))
    return np.stack([grades, query], 1), scores


def each(y, scores):
    """Grades and scores of the lists that count, in order of their codes."""
    for code in np.unique(y[:, 1]):
        own = y[:, 1] == code
        if len(set(y[own, 0])) > 1:
            yield y[own, 0], scores[own]


def mean_of_orders(grades, scores, value):
    """The mean of ``value(grades in order)`` over all orders in which equal scores may stand."""
    values = []
    for order in permutations(range(len(grades))):
        own = scores[list(order)]
        if (np.diff(own) <= 0).all():
            values.append(value(grades[list(order)]))
    return np.mean(values)


def dcg(grades, k):
    gains = (2**grades - 1)[:k]
    return (gains / np.log2(np.arange(len(gains)) + 2)).sum()


def precision(grades):
    hits = grades > 0
    return (np.cumsum(hits) / (np.arange(len(grades)) + 1))[hits].mean()


def reciprocal(grades):
    return 1 / (1 + np.flatnonzero(grades > 0)[0])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("k", KS)
def test_ndcg_is_that_of_scikit_learn_with_gains_of_powers(k, ties):
    y, scores = lists(0, ties)
    expected = [ndcg_score([2**g - 1], [s], k=k) for g, s in each(y, scores)]
    assert RankedLists.of(y, scores).ndcg(k) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_equal_scores_count_with_their_mean_over_all_orders(seed):
    y, scores = lists(seed, ties=True, count=5)
    y, scores = y[np.isin(y[:, 1], np.unique(y[:, 1])[:4])], scores[np.isin(y[:, 1], np.unique(y[:, 1])[:4])]
    ranked = RankedLists.of(y, scores)
    short = [(g[:6], s[:6]) for g, s in each(y, scores) if len(set(g[:6])) > 1]
    y6 = np.concatenate([np.stack([g, np.full(len(g), i)], 1) for i, (g, _) in enumerate(short)])
    ranked = RankedLists.of(y6, np.concatenate([s for _, s in short]))
    for k in (1, 3, None):
        expected = [mean_of_orders(g, s, lambda o, k=k: dcg(o, k)) / dcg(np.sort(g)[::-1], k) for g, s in short]
        assert ranked.ndcg(k) == pytest.approx(expected, abs=1e-12)
    assert ranked.average_precision() == pytest.approx([mean_of_orders(g, s, precision) for g, s in short], abs=1e-12)
    assert ranked.reciprocal_rank() == pytest.approx([mean_of_orders(g, s, reciprocal) for g, s in short], abs=1e-12)


def test_without_ties_precision_is_that_of_scikit_learn():
    y, scores = lists(1)
    expected = [average_precision_score(g > 0, s) for g, s in each(y, scores)]
    assert RankedLists.of(y, scores).average_precision() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_correlations_are_those_of_scipy(ties):
    y, scores = lists(2, ties)
    pairs = list(each(y, scores))
    with np.errstate(all="ignore"):
        tau = [stats.kendalltau(g, s).statistic if len(set(s)) > 1 else 0.0 for g, s in pairs]
        rho = [stats.spearmanr(g, s).statistic if len(set(s)) > 1 else 0.0 for g, s in pairs]
    ranked = RankedLists.of(y, scores)
    assert ranked.kendall() == pytest.approx(tau, abs=1e-12)
    assert ranked.spearman() == pytest.approx(rho, abs=1e-12)


def test_lists_of_equal_grades_are_not_counted():
    y = np.array([[1.0, 0], [0.0, 0], [2.0, 5], [2.0, 5], [3.0, 9]])
    scores = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    ranked = RankedLists.of(y, scores)
    assert ranked.codes.tolist() == [0.0]
    for metric in OF_LISTS.values():
        assert metric(y, Outcome(scores)) == metric(y[:2], Outcome(scores[:2]))
        assert metric(y[2:], Outcome(scores[2:])) == -np.inf  # no list counts


def test_scores_that_are_all_equal_get_what_chance_gets():
    y, _ = lists(3, count=6)
    draws = np.random.default_rng(0).standard_normal((4000, len(y)))
    for name in ("ndcg@10", "map", "mrr", "kendall", "spearman"):
        by_chance = [OF_LISTS[name](y, Outcome(scores)) for scores in draws[:1500]]
        error = np.std(by_chance) / np.sqrt(len(by_chance))
        assert OF_LISTS[name](y, Outcome(np.zeros(len(y)))) == pytest.approx(np.mean(by_chance), abs=5 * error)


def test_the_right_order_is_1_and_a_scale_changes_nothing():
    y, scores = lists(4)
    for metric in OF_LISTS.values():
        best = metric(y, Outcome(y[:, 0] * 3 - 7))
        assert best == pytest.approx(1.0, abs=1e-12)
        assert metric(y, Outcome(scores)) == pytest.approx(metric(y, Outcome(5 * scores + 2)), abs=1e-12)


def test_the_depth_is_in_the_name():
    y, scores = lists(5)
    at = list_metric("NDCG@3")
    assert (at.name, at.label) == ("ndcg@3", "NDCG@3")
    assert at(y, Outcome(scores)) == pytest.approx(RankedLists.of(y, scores).ndcg(3).mean())
    assert list_metric("ndcg@10") is None
    assert list_metric("map") is None
    assert plain_word("ndcg@7") == "ndcg@10"
    check_names("listnet", "ndcg@5", None)
    with pytest.raises(InputError, match="unknown metric 'ndcg@0'"):
        check_names("listnet", "ndcg@0", None)


def test_a_users_metric_sees_list_by_list():
    y, scores = lists(6)
    metric = own_list_metric("mine:top", lambda grades, s: grades[0])  # rows come the highest score first
    expected = np.mean([g[np.argmax(s)] for g, s in each(y, scores)])
    assert metric(y, Outcome(scores)) == pytest.approx(expected)
    with pytest.raises(InputError, match="expected a function"):
        own_list_metric("mine:top", 3)
    broken = own_list_metric("mine:top", lambda grades, s: 1 / 0)
    with pytest.raises(InputError, match="failed: division"):
        broken(y, Outcome(scores))
