"""The sentence, tiers, p values and intervals of stored cells, against scipy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import confusion_matrix

from steepest.comparison.design.context import Context
from steepest.comparison.design.settings import Settings
from steepest.comparison.read import table_from_arrays
from steepest.comparison.report.html import report_html
from steepest.comparison.report.stored import check_results
from steepest.comparison.report.tables import leaderboard_markdown
from steepest.comparison.report.terminal import summary
from steepest.comparison.scores.outcome import Outcome
from steepest.comparison.statistics import Look, next_look
from steepest.comparison.verdict.judge import Judge
from steepest.comparison.verdict.results import assemble, sentence
from steepest.comparison.work.cells import CellResult
from steepest.comparison.work.store import Store

NAMES = ("cross_entropy", "comp_sum", "focal")


def classification(blobs: Callable, **changed: object) -> Context:
    x, y = blobs(60, 2)
    values = {"objectives": NAMES, "baseline": "cross_entropy", "metric": "accuracy", "repeats": 2, "folds": 3}
    return Context(table_from_arrays(x, y), Settings(**{**values, **changed}))


def regression(**changed: object) -> Context:
    rng = np.random.default_rng(0)
    table = table_from_arrays(rng.normal(size=(60, 3)), rng.normal(size=60), task="regression")
    values = {"objectives": ("squared_error", "huber"), "baseline": "squared_error", "metric": "rmse"}
    return Context(table, Settings(**{**values, "repeats": 2, "folds": 3, **changed}))


def fill(
    context: Context,
    folder: Path,
    scores: dict[str, list[float | None]],
    inner: dict[str, list[float]],
    outcomes: dict[str, Outcome] | None = None,
) -> Store:
    """A store whose cells have these test and inner scores, fold by fold."""
    store = Store(folder / "handmade")
    for name, values in scores.items():
        kind = "classical" if name in context.settings.classical else "objective"
        for pair, score, best in zip(context.folds, values, inner[name]):
            rows = len(context.split(pair, -1).other_target)
            outcome = Outcome(np.zeros(rows, dtype=np.int64)) if outcomes is None else outcomes[name]
            content = {
                "score": score, "inner": [None, best],
                "metrics": {"ece": 0.1, "ece_calibrated": 0.1, context.metric.name: score},
                "trial_text": "lr 1",
                "diverged": int(score is None), "peak_memory_mb": 1.0, "curve": [best], "temperature": None,
                "recall": [1.0, 0.5], "seconds_per_epoch": 0.1, "seconds": 1.0,
            }  # fmt: skip
            store.put([CellResult(kind, name, *pair, content, outcome, context.level.of(kind))])
    return store


def corrected(differences: np.ndarray, ratio: float) -> tuple[float, float, float, float]:
    """Mean, interval and p of the corrected resampled t test: scipy's t with its scale put in by hand."""
    n = len(differences)
    error = np.sqrt((1 / n + ratio) * np.var(differences, ddof=1))
    low, high = stats.t.interval(0.95, n - 1, loc=np.mean(differences), scale=error)
    return np.mean(differences), low, high, 2 * stats.t.sf(abs(np.mean(differences)) / error, n - 1)


BASE = np.array([0.80, 0.82, 0.81, 0.79, 0.83, 0.80])
GOOD = BASE + np.array([0.10, 0.11, 0.10, 0.12, 0.11, 0.10])
EVEN = BASE + np.array([0.01, -0.02, 0.00, 0.02, -0.01, 0.08])


def test_a_look_tests_and_takes_its_intervals_at_its_own_level(drawn: None, blobs: Callable, tmp_path: Path) -> None:
    context = classification(blobs)
    near = BASE + np.array([0.022, 0.033, 0.045, 0.045, 0.057, 0.068])
    scores = {"cross_entropy": BASE.tolist(), "comp_sum": GOOD.tolist(), "focal": near.tolist()}
    inner = {"cross_entropy": [0.8] * 6, "comp_sum": [0.7] * 6, "focal": [0.9] * 6}
    store = fill(context, tmp_path, scores, inner)
    look = next_look({"number": 1, "cells": 9}, 18)
    store.set_fact("looks", look.fact)
    assert next_look(store.fact("looks"), 18) == look
    end = {"usage": "", "winner": {"objective": "focal", "settings": ""}}
    alone, second = (assemble(context, store, command="c", version="0", look=of) | end for of in (None, look))
    check_results(alone)
    check_results(second)
    assert [results["headline"]["verdict"] for results in (alone, second)] == ["better", "not told apart"]
    tiers = [{row["name"]: row["tier"] for row in results["rows"]}["focal"] for results in (alone, second)]
    assert tiers == ["better", "not told apart"]
    assert 0.0125 < second["headline"]["p"] == alone["headline"]["p"] < 0.05
    differences = near - BASE
    error = np.sqrt((1 / 6 + 0.5) * np.var(differences, ddof=1))
    half = stats.t.ppf(1 - 0.0125 / 2, 5) * error
    head = second["headline"]
    assert (head["low"], head["high"]) == pytest.approx((differences.mean() - half, differences.mean() + half))
    assert head["detectable"] == pytest.approx(half + stats.t.ppf(0.8, 5) * error)
    assert head["test"] == "corrected resampled t test, 6 differences; look 2: tested at 1.25%"
    assert alone["headline"]["test"] == "corrected resampled t test, 6 differences"
    wider = stats.t.ppf(1 - 0.0125 / 2, 5) / stats.t.ppf(0.975, 5)
    for first, own in zip(alone["rows"], second["rows"], strict=True):
        spans = [row["metrics"]["accuracy"] for row in (first, own)]
        assert spans[1]["mean"] - spans[1]["low"] == pytest.approx(wider * (spans[0]["mean"] - spans[0]["low"]))
    page = report_html(second)
    for said in (second["sentence"], page, leaderboard_markdown(second)):
        assert "98.75% interval" in said
        assert "95%" not in said
    assert "Why the level is 1.25%" in page
    assert "98.75% interval" in summary(second).head


def test_the_declared_question_tiers_holm_and_intervals(blobs: Callable, tmp_path: Path) -> None:
    context = classification(blobs)
    scores = {"cross_entropy": BASE, "comp_sum": GOOD, "focal": EVEN}
    inner = {"cross_entropy": [0.8] * 6, "comp_sum": [0.9] * 5 + [0.1], "focal": [0.7] * 5 + [0.9]}
    store = fill(context, tmp_path, {n: v.tolist() for n, v in scores.items()}, inner)
    results = assemble(context, store, command="c", version="0")
    picked = np.array([*GOOD[:5], EVEN[5]])  # the last fold's inner validation takes focal
    mean, low, high, p = corrected(picked - BASE, 0.5)  # 3 folds: 20 test rows over 40 training rows
    head = results["headline"]
    assert (head["difference"], head["low"], head["high"], head["p"]) == pytest.approx((mean, low, high, p))
    assert head["selected"] == {"comp_sum": 5, "focal": 1}
    assert head["verdict"] == "better"
    assert (head["procedure_mean"], head["baseline_mean"]) == pytest.approx((picked.mean(), BASE.mean()))
    assert head["test"] == "corrected resampled t test, 6 differences"
    assert results["sentence"] == (
        f"Choosing the objective helps: accuracy {picked.mean():.4f} against {BASE.mean():.4f} for tuned cross_entropy "
        f"(difference {mean:+.4f}, 95% interval {low:+.4f} to {high:+.4f}, p = {p:.3g})."
    )
    said = sentence(results, tuned=False)
    assert f"against {BASE.mean():.4f} for cross_entropy (" in said
    rows = {row["name"]: row for row in results["rows"]}
    raw = {n: corrected(scores[n] - BASE, 0.5) for n in ("comp_sum", "focal")}
    small, large = sorted(raw, key=lambda n: raw[n][3])
    expected = {small: min(1, 2 * raw[small][3])}
    expected[large] = max(expected[small], raw[large][3])
    for name in raw:
        row = rows[name]
        assert (row["difference"], row["low"], row["high"], row["p"]) == pytest.approx(raw[name])
        assert row["p_holm"] == pytest.approx(expected[name])
    assert [rows[n]["tier"] for n in NAMES] == ["baseline", "better", "not told apart"]
    assert rows["cross_entropy"]["p"] is None
    assert rows["focal"]["metrics"]["accuracy"]["mean"] == pytest.approx(EVEN.mean())
    assert rows["focal"]["metrics"]["accuracy"]["low"] == pytest.approx(corrected(EVEN, 0.5)[1])
    error = (raw["focal"][2] - raw["focal"][1]) / 2 / stats.t.ppf(0.975, 5)
    assert rows["focal"]["detectable"] == pytest.approx((stats.t.ppf(0.975, 5) + stats.t.ppf(0.8, 5)) * error)
    json.dumps(results, allow_nan=False)


def t_probabilities(differences: np.ndarray, ratio: float, rope: float) -> list[float]:
    """P(above rope), P(within), P(below) of the posterior t distribution: scipy's, its scale put in by hand."""
    n = len(differences)
    error = np.sqrt((1 / n + ratio) * np.var(differences, ddof=1))
    below, above = stats.t.cdf([-rope, rope], n - 1, loc=np.mean(differences), scale=error)
    return [1 - above, above - below, below]


CHANCES = ("prob_better", "prob_same", "prob_worse")


@pytest.mark.parametrize(("asked", "rope"), [(None, 0.01), (0.05, 0.05)])
def test_probabilities_stand_beside_tiers_that_do_not_move(
    blobs: Callable, tmp_path: Path, asked: float | None, rope: float
) -> None:
    context = classification(blobs)
    scores = {"cross_entropy": BASE.tolist(), "comp_sum": GOOD.tolist(), "focal": EVEN.tolist()}
    inner = {"cross_entropy": [0.8] * 6, "comp_sum": [0.7] * 6, "focal": [0.9] * 6}
    store = fill(context, tmp_path, scores, inner)
    results = assemble(context, store, command="", version="", rope=asked)
    check_results(results | {"usage": "", "winner": {"objective": "focal", "settings": ""}})
    rows = {row["name"]: row for row in results["rows"]}
    assert [rows[n]["tier"] for n in NAMES] == ["baseline", "better", "not told apart"]
    for row, values in ((rows["comp_sum"], GOOD), (rows["focal"], EVEN), (results["headline"], EVEN)):
        assert [row[key] for key in CHANCES] == pytest.approx(t_probabilities(values - BASE, 0.5, rope))
    assert [rows["cross_entropy"][key] for key in CHANCES] == [None] * 3
    words = results["protocol"]["practically the same"]
    assert results["rope"] == {"value": rope, "asked": asked is not None, "words": words}
    assert f"up to {rope:.4g} (" in words
    looked = assemble(context, store, command="", version="", look=Look(3, 18), rope=asked)
    assert [looked["headline"][key] for key in CHANCES] == [results["headline"][key] for key in CHANCES]


def test_of_errors_lower_is_better_by_more_than_a_hundredth_of_the_baselines(tmp_path: Path) -> None:
    context = regression()
    base, own = BASE * 50, BASE * 50 - np.array([0.5, 0.2, 0.9, 0.1, 0.7, 0.6])
    scores = {"squared_error": base.tolist(), "huber": own.tolist()}
    store = fill(context, tmp_path, scores, {"squared_error": [1.0] * 6, "huber": [0.5] * 6})
    results = assemble(context, store, command="", version="")
    assert results["rope"]["value"] == pytest.approx(base.mean() / 100)
    expected = t_probabilities(base - own, 0.5, base.mean() / 100)
    assert [results["headline"][key] for key in CHANCES] == pytest.approx(expected)
    assert expected[0] > expected[2]


def test_without_a_test_there_are_no_probabilities(blobs: Callable, tmp_path: Path) -> None:
    context = classification(blobs, repeats=1, folds=4)
    scores = {n: BASE[:4].tolist() for n in NAMES} | {"focal": EVEN[:4].tolist()}
    store = fill(context, tmp_path, scores, {n: [0.8] * 4 for n in NAMES})
    results = assemble(context, store, command="", version="")
    rows = [results["headline"], *results["rows"]]
    assert all(row[key] is None for row in rows for key in CHANCES)
    assert "P better, same, worse" not in summary(results).head


def test_what_the_winner_is_expected_to_reach_and_what_it_confuses(blobs: Callable, tmp_path: Path) -> None:
    """Over the test parts, with what inner validation took in each fold: a network, or a classical learner that won."""
    x, y = blobs(60, 2)
    table = table_from_arrays(np.column_stack([x, np.tile([1.0, 3.0], 30)]), y, weight="c5")
    values = {"objectives": NAMES, "baseline": "cross_entropy", "metric": "accuracy", "repeats": 2, "folds": 3}
    scores = {"cross_entropy": BASE, "comp_sum": GOOD, "focal": EVEN, "ridge": GOOD + 0.05}
    inner = {"cross_entropy": [0.8] * 6, "comp_sum": [0.9] * 5 + [0.1], "focal": [0.7] * 5 + [0.9], "ridge": [0.5] * 6}
    rng = np.random.default_rng(0)
    said = {name: Outcome(rng.integers(0, 2, 20)) for name in scores}
    for classical, by_fold in (((), ["comp_sum"] * 5 + ["focal"]), (("ridge",), ["ridge"] * 6)):
        context = Context(table, Settings(**{**values, "classical": classical}))
        names = [*NAMES, *classical]
        folder = tmp_path / by_fold[0]
        store = fill(context, folder, {n: scores[n].tolist() for n in names}, inner, said)
        results = assemble(context, store, command="", version="")
        own = np.array([scores[name][i] for i, name in enumerate(by_fold)])
        mean, low, high, _ = corrected(own, 0.5)
        assert results["expected"]["by_fold"] == by_fold
        found = [results["expected"][key] for key in ("mean", "low", "high")]
        assert found == pytest.approx([mean, low, min(high, 1.0)])
        assert results["folds"] == [list(pair) for pair in context.folds]
        tests = [fold.test for fold in context.folds.values()]
        rows = np.concatenate(tests)
        assert results["confusion"]["classes"] == ["0", "1"]
        for key, picked in (("winner", by_fold), ("baseline", ["cross_entropy"] * 6)):
            predicted = np.concatenate([said[name].predicted for name in picked])
            expected = confusion_matrix(
                table.target[rows], predicted, sample_weight=table.weights[rows], normalize="all"
            )
            assert np.array(results["confusion"][key]) == pytest.approx(expected, abs=1e-6)
        check_results(results | {"usage": "", "winner": {"objective": "a", "settings": ""}})


def test_a_matrix_of_many_classes_is_not_kept(blobs: Callable, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("steepest.comparison.verdict.results.MOST_CONFUSED", 1)
    context = classification(blobs)
    store = fill(context, tmp_path, {n: BASE.tolist() for n in NAMES}, {n: [0.8] * 6 for n in NAMES})
    assert "confusion" not in assemble(context, store, command="", version="")


def test_ties_on_inner_validation_go_to_the_baseline(blobs: Callable, tmp_path: Path) -> None:
    context = classification(blobs)
    scores = {n: BASE.tolist() for n in NAMES}
    judge = Judge(context, fill(context, tmp_path, scores, {n: [0.8] * 6 for n in NAMES}))
    assert judge.procedure(judge.names("objective")) == ["cross_entropy"] * 6
    assert judge.names("objective")[0] == "cross_entropy"


def test_nothing_shown_names_what_could_have_been_found(blobs: Callable, tmp_path: Path) -> None:
    context = classification(blobs)
    inner = {"cross_entropy": [0.5] * 6, "comp_sum": [0.4] * 6, "focal": [0.6] * 6}
    scores = {"cross_entropy": BASE.tolist(), "comp_sum": GOOD.tolist(), "focal": EVEN.tolist()}
    results = assemble(context, fill(context, tmp_path, scores, inner), command="", version="")
    assert results["sentence"].startswith("Choosing the objective was not shown to help: accuracy")
    assert f"would have found a difference of {results['headline']['detectable']:.4f}." in results["sentence"]
    assert results["rows"][2]["tier"] == "better"  # what did better outside changes nothing above


@pytest.mark.parametrize(("shift", "verdict"), [(-0.2, "better"), (0.2, "worse")])
def test_smaller_is_better_for_regression(tmp_path: Path, shift: float, verdict: str) -> None:
    context = regression()
    wobble = np.array([0.01, -0.01, 0.02, 0.0, 0.01, -0.02])
    base, other = np.full(6, 2.0), 2.0 + shift + wobble
    store = fill(
        context, tmp_path, {"squared_error": base.tolist(), "huber": other.tolist()},
        {"squared_error": [1.0] * 6, "huber": [0.5] * 6},
    )  # fmt: skip
    results = assemble(context, store, command="", version="")
    head = results["headline"]
    assert head["selected"] == {"huber": 6}  # the smaller inner score is picked
    assert head["verdict"] == verdict
    assert (head["difference"], head["low"], head["high"], head["p"]) == pytest.approx(corrected(other - base, 0.5))
    start = {"better": "Choosing the objective helps: RMSE", "worse": "Choosing the objective hurts here: RMSE"}
    assert results["sentence"].startswith(start[verdict])
    assert {row["name"]: row["tier"] for row in results["rows"]}["huber"] == verdict


def test_five_by_two_uses_the_combined_f_test(blobs: Callable, tmp_path: Path) -> None:
    context = classification(blobs, repeats=5, folds=2)
    rng = np.random.default_rng(2)
    base = rng.uniform(0.7, 0.8, 10)
    gaps = rng.normal(0.03, 0.02, 10)
    scores = {"cross_entropy": base.tolist(), "comp_sum": (base + gaps).tolist(), "focal": base.tolist()}
    inner = {"cross_entropy": [0.5] * 10, "comp_sum": [0.6] * 10, "focal": [0.4] * 10}
    results = assemble(context, fill(context, tmp_path, scores, inner), command="", version="")
    halves = gaps.reshape(5, 2)
    spread = ((halves - halves.mean(1, keepdims=True)) ** 2).sum()
    assert results["headline"]["p"] == pytest.approx(stats.f.sf((halves**2).sum() / (2 * spread), 10, 5))
    assert results["headline"]["test"] == "combined 5x2cv F test"
    rows = {row["name"]: row for row in results["rows"]}
    assert rows["focal"]["p"] == 1.0
    assert rows["focal"]["tier"] == "not told apart"


def test_five_by_two_without_spread_inside_a_replication_still_ends(blobs: Callable, tmp_path: Path) -> None:
    context = classification(blobs, repeats=5, folds=2)
    scores = {"cross_entropy": [0.5] * 10, "comp_sum": [0.75] * 10, "focal": [0.5] * 10}
    inner = {"cross_entropy": [0.5] * 10, "comp_sum": [0.6] * 10, "focal": [0.4] * 10}
    results = assemble(context, fill(context, tmp_path, scores, inner), command="", version="")
    assert 0 < results["headline"]["p"] <= 1
    assert results["headline"]["difference"] == pytest.approx(0.25)


@pytest.mark.parametrize("look", [None, Look(3, 9)])
def test_a_fixed_test_set_uses_the_paired_bootstrap(blobs: Callable, tmp_path: Path, look: Look | None) -> None:
    x, y = blobs(60, 2)
    tx, ty = blobs(200, 2, seed=5)
    settings = Settings(objectives=NAMES, baseline="cross_entropy", metric="accuracy", repeats=1, test="abc")
    context = Context(table_from_arrays(x, y), settings, table_from_arrays(tx, ty))
    assert len(context.folds) == 1
    rng = np.random.default_rng(1)
    said = {n: np.where(rng.random(200) < share, ty, 1 - ty) for n, share in zip(NAMES, (0.6, 0.9, 0.6))}
    right = {n: (said[n] == ty).astype(float) for n in NAMES}
    store = fill(
        context, tmp_path, {n: [right[n].mean()] for n in NAMES},
        {"cross_entropy": [0.5], "comp_sum": [0.7], "focal": [0.6]}, {n: Outcome(said[n]) for n in NAMES},
    )  # fmt: skip
    results = assemble(context, store, command="", version="", look=look)
    head = results["headline"]
    gaps = right["comp_sum"] - right["cross_entropy"]
    alpha = 0.05 if look is None else 0.05 / 8
    found = stats.bootstrap(
        (gaps,), np.mean, method="percentile", n_resamples=4000, confidence_level=1 - alpha,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    words = "paired bootstrap on the fixed test set"
    assert head["test"] == (words if look is None else f"{words}; look 3: tested at 0.625%")
    power = 1 + stats.norm.ppf(0.8) / stats.norm.ppf(1 - alpha / 2)
    assert head["detectable"] == pytest.approx((head["high"] - head["low"]) / 2 * power)
    assert head["difference"] == pytest.approx(gaps.mean())
    assert head["low"] == pytest.approx(found.confidence_interval.low, abs=0.02)
    assert head["high"] == pytest.approx(found.confidence_interval.high, abs=0.02)
    assert 0 < head["p"] < 0.01
    assert {r["name"]: r["tier"] for r in results["rows"]}["comp_sum"] == "better"
    assert results["protocol"]["outer design"] == "a fixed test set"


def test_a_diverged_model_on_a_fixed_test_set_is_worse(blobs: Callable, tmp_path: Path) -> None:
    x, y = blobs(60, 2)
    settings = Settings(objectives=NAMES[:2], baseline="cross_entropy", metric="nll", repeats=1, test="abc")
    context = Context(table_from_arrays(x, y), settings, table_from_arrays(x, y))
    fine = Outcome(y, np.where(np.eye(2)[y] == 1, 0.9, 0.1), y - 0.5)
    lost = Outcome(y, np.full((60, 2), np.nan), y - 0.5)
    store = fill(
        context, tmp_path, {"cross_entropy": [0.105], "comp_sum": [None]},
        {"cross_entropy": [0.1], "comp_sum": [0.2]}, {"cross_entropy": fine, "comp_sum": lost},
    )  # fmt: skip
    results = assemble(context, store, command="", version="")
    row = {r["name"]: r for r in results["rows"]}["comp_sum"]
    assert row["tier"] == "worse"
    assert row["difference"] == pytest.approx(np.log(2) - 0.105)


@pytest.mark.parametrize("wins", [True, False])
def test_a_winning_classical_learner_is_named_first(blobs: Callable, tmp_path: Path, wins: bool) -> None:
    context = classification(blobs, classical=("ridge", "forest"))
    step = np.array([0.15, 0.16, 0.15, 0.17, 0.16, 0.15]) * (1 if wins else -1)
    scores = {**{n: BASE.tolist() for n in NAMES}, "ridge": (BASE + step).tolist(), "forest": [0.1] * 6}
    inner = {**{n: [0.8] * 6 for n in NAMES}, "ridge": [0.7] * 6, "forest": [0.6] * 6}
    results = assemble(context, fill(context, tmp_path, scores, inner), command="", version="")
    classical = results["classical"]
    assert (classical["difference"], classical["low"], classical["high"], classical["p"]) == pytest.approx(
        corrected(step, 0.5)
    )
    assert classical["wins"] is wins
    if wins:
        assert results["sentence"].startswith("A classical learner wins: ridge reaches accuracy")
        assert "Choosing the objective" in results["sentence"]
    else:
        assert results["sentence"].startswith("Choosing the objective")
        assert "Ridge does worse than the networks:" in classical["sentence"]
    assert all(r["tier"] == "" and r["p"] is None for r in results["rows"] if r["kind"] == "classical")


@pytest.mark.parametrize("make", ["accuracy", "rmse"])
def test_what_diverges_ends_as_the_worst(blobs: Callable, tmp_path: Path, make: str) -> None:
    """Also beside the baseline alone: a model that knows nothing sets the mark."""
    if make == "accuracy":
        context = classification(blobs, objectives=NAMES[:2])
        base, other = "cross_entropy", "comp_sum"
        fine = [0.9, 0.95, 0.9, 0.85, 0.9, 0.95]
    else:
        context, base, other = regression(), "squared_error", "huber"
        fine = [0.1, 0.2, 0.1, 0.15, 0.1, 0.2]
    inner = {base: [0.5] * 6, other: [0.5] * 6}
    results = assemble(context, fill(context, tmp_path, {base: fine, other: [None] * 6}, inner), command="", version="")
    row = {r["name"]: r for r in results["rows"]}[other]
    assert row["tier"] == "worse"
    assert row["diverged"] == 6
    mean = row["metrics"][context.metric.name]["mean"]
    blind = []
    for fold in context.folds.values():
        train, test = context.table.target[fold.train], context.table.target[fold.test]
        if make == "accuracy":
            blind.append(np.mean(test == np.bincount(train).argmax()))
        else:
            blind.append(np.sqrt(np.mean((test - train.mean()) ** 2)))
    assert mean == pytest.approx(np.mean(blind), rel=1e-5)
    json.dumps(results, allow_nan=False)


def test_an_unfinished_objective_is_left_out(blobs: Callable, tmp_path: Path) -> None:
    context = classification(blobs)
    scores = {"cross_entropy": BASE.tolist(), "comp_sum": GOOD.tolist(), "focal": EVEN.tolist()[:4]}
    judge = Judge(context, fill(context, tmp_path, scores, {n: [0.8] * 6 for n in NAMES}))
    assert judge.names("objective") == ["cross_entropy", "comp_sum"]
    assert not judge.complete("focal")
