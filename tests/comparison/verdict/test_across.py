"""Several data sets in one call."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from bencheval.evaluator import BenchmarkEvaluator
from scipy import stats

from steepest.comparison.verdict.across import compare_across

NAMES = ("cross_entropy", "comp_sum", "focal")


def results_of(scores: np.ndarray, metric: str = "accuracy", greater: bool = True, names: tuple = NAMES) -> list[dict]:
    """Result dicts of data sets (rows) whose objectives (columns) have these means over three folds."""
    return [
        {
            "fold_scores": {**{n: [s - 0.01, s, s + 0.01] for n, s in zip(names, row)}, "ridge": [0.5] * 3},
            "rows": [{"name": "selected procedure", "kind": "procedure"}, {"name": "ridge", "kind": "classical"}]
            + [{"name": n, "kind": "objective"} for n in names],
            "metric": {"name": metric, "greater_is_better": greater, "best": 1.0 if greater else 0.0},
            "headline": {"baseline": names[0]},
            "data": {"name": f"set {i}"},
        }
        for i, row in enumerate(scores.tolist())
    ]


@pytest.mark.parametrize("greater", [True, False])
def test_p_values_are_scipys(greater: bool) -> None:
    scores = np.random.default_rng(3).uniform(0.5, 0.9, (8, 3))
    scores[:, 1] += 0.1
    found = compare_across(results_of(scores, "accuracy" if greater else "nll", greater))
    assert found["objectives"] == list(NAMES)
    assert found["data_sets"] == [f"set {i}" for i in range(8)]
    assert found["friedman_p"] == pytest.approx(stats.friedmanchisquare(*scores.T).pvalue)
    sign = -1 if greater else 1
    assert found["ranks"] == pytest.approx(stats.rankdata(sign * scores, axis=1).mean(0).tolist())
    raw = [stats.wilcoxon(scores[:, k] - scores[:, 0]).pvalue for k in (1, 2)]
    small, large = min(raw), max(raw)
    holm = {small: min(1.0, 2 * small), large: max(min(1.0, 2 * small), large)}
    assert found["wilcoxon_holm"] == {"comp_sum": pytest.approx(holm[raw[0]]), "focal": pytest.approx(holm[raw[1]])}
    assert any(f"p = {found['friedman_p']:.3g}" in line for line in found["lines"])


def test_two_data_sets_have_no_power_and_it_says_so() -> None:
    found = compare_across(results_of(np.array([[0.5, 0.6, 0.7], [0.4, 0.6, 0.5]])))
    assert "no power" in found["message"]
    assert "no power" in found["lines"][-1]
    assert min(found["wilcoxon_holm"].values()) >= 0.05


def test_two_objectives_need_no_friedman() -> None:
    scores = np.random.default_rng(0).uniform(0.5, 0.9, (7, 2))
    found = compare_across(results_of(scores, names=NAMES[:2]))
    assert "friedman_p" not in found
    assert found["wilcoxon_holm"]["comp_sum"] == pytest.approx(stats.wilcoxon(scores[:, 1] - scores[:, 0]).pvalue)


def test_only_objectives_that_all_data_sets_ran_are_used() -> None:
    results = results_of(np.random.default_rng(0).uniform(size=(6, 3)))
    del results[2]["fold_scores"]["focal"]
    assert compare_across(results)["objectives"] == ["cross_entropy", "comp_sum"]


def test_different_metrics_are_not_ranked_together() -> None:
    results = results_of(np.full((3, 3), 0.5)) + results_of(np.full((3, 3), 0.5), "auroc")
    found = compare_across(results)
    assert "accuracy, auroc" in found["lines"][0]
    assert "friedman_p" not in found


def test_classes_and_numbers_are_not_ranked_together() -> None:
    numbers = results_of(np.full((3, 2), 2.0), "rmse", False, ("squared_error", "huber"))
    found = compare_across(results_of(np.full((3, 3), 0.5)) + numbers)
    assert "nothing to compare" in found["lines"][0]


def test_an_objective_without_any_finite_score_ties_with_the_worst() -> None:
    results = results_of(np.random.default_rng(1).uniform(0.5, 0.9, (6, 3)))
    for r in results:
        r["fold_scores"]["focal"] = [None, None, None]
    found = compare_across(results)
    assert max(found["ranks"]) == found["ranks"][2]
    assert np.isfinite(found["friedman_p"])


@pytest.mark.parametrize("greater", [True, False])
def test_the_leaderboard_is_benchevals(greater: bool) -> None:
    scores = np.random.default_rng(5).uniform(0.3, 0.9, (9, 3)).round(1)
    found = compare_across(results_of(scores, "accuracy" if greater else "nll", greater))
    errors = 1 - scores if greater else scores
    rows = [
        {"method": name, "task": f"t{i}", "metric_error": error}
        for i, row in enumerate(errors.round(10).tolist())
        for name, error in zip(NAMES, row)
    ]
    board = BenchmarkEvaluator(columns_to_agg_extra=None).leaderboard(
        pd.DataFrame(rows), elo_kwargs={"BOOTSTRAP_ROUNDS": 1, "round_decimals": None}
    )
    for own, theirs in (("elo", "elo"), ("win_rate", "winrate"), ("improvability", "improvability"), ("ranks", "rank")):
        assert found[own] == pytest.approx(board.loc[list(NAMES), theirs].tolist(), rel=1e-4), own
    assert found["win_rates"][0][0] is None
    assert found["critical_difference"] == pytest.approx(2.3437 * (12 / 54) ** 0.5, abs=1e-3)
    lines = "\n".join(found["lines"])
    assert f"{NAMES[0]} {found['elo'][0]:.0f} [{found['elo_low'][0]:.0f}, {found['elo_high'][0]:.0f}]" in lines
    assert f"{NAMES[1]} {100 * found['improvability'][1]:.1f}%" in lines


def test_without_a_best_value_there_is_no_improvability() -> None:
    results = results_of(np.random.default_rng(5).uniform(0.3, 0.9, (6, 3)), "mine:gain")
    for r in results:
        del r["metric"]["best"]
    found = compare_across(results)
    assert found["improvability"] is None
    assert "improvability" not in "\n".join(found["lines"])


def test_who_never_wins_has_an_elo_by_the_prior_alone_and_that_is_said() -> None:
    found = compare_across(results_of(np.array([[0.5, 0.6, 0.7]] * 6)))
    assert any("faint prior" in line for line in found["lines"])
    assert found["elo"] == sorted(found["elo"])
