"""The page over several data sets."""

from __future__ import annotations

import copy
import html
import re

import numpy as np
import pandas as pd
import pytest
from bencheval.evaluator import BenchmarkEvaluator
from scipy.stats import rankdata

from steepest.comparison.errors import InputError
from steepest.comparison.report.across import _lanes, across_html, write_across
from steepest.comparison.report.export import write_export
from steepest.comparison.verdict.across import compare_across

NAMES = ("cross_entropy", "comp_sum", "focal")


def results_of(scores: np.ndarray, greater: bool = True) -> list[dict]:
    """Results of data sets (rows) whose objectives (columns) have these scores."""
    return [
        {
            "version": "1.0",
            "created": f"2026-01-0{i + 1}T00:00:00+00:00",
            "sentence": f"Sentence {i} <b>.",
            "fold_scores": {n: [s, s] for n, s in zip(NAMES, row)},
            "rows": [
                {"name": n, "kind": "objective", "tier": t} for n, t in zip(NAMES, ("baseline", "worse", "better"))
            ],
            "metric": {
                "name": "accuracy",
                "label": "Accuracy",
                "greater_is_better": greater,
                "best": 1.0 if greater else 0.0,
            },
            "headline": {"baseline": NAMES[0]},
            "data": {"name": f"<set> {i}", "rows": 100, "task": "binary"},
        }
        for i, row in enumerate(scores.tolist())
    ]


SCORES = np.random.default_rng(0).uniform(0.5, 0.9, (7, 3))


def page(results: list[dict]) -> str:
    return across_html(results, compare_across(results), [f"run{i}/report.html" for i in range(len(results))])


def test_every_data_set_is_named_answered_and_linked() -> None:
    results = results_of(SCORES)
    results[3]["advice"] = "Keep <b>."
    text = page(results)
    assert "Sentence 3 &lt;b&gt;. <b>So do this:</b> Keep &lt;b&gt;.</dd>" in text
    assert text.count("So do this") == 1
    for i in range(7):
        assert f'<a href="run{i}/report.html">&lt;set&gt; {i}</a>' in text
        assert f"Sentence {i} &lt;b&gt;." in text
    assert "<set>" not in text


@pytest.mark.parametrize("greater", [True, False])
def test_rows_stand_in_order_of_mean_rank_and_show_it(greater: bool) -> None:
    text = page(results_of(SCORES, greater)).split('<section id="scores"')[1]
    means = dict(zip(NAMES, rankdata(-SCORES if greater else SCORES, axis=1).mean(0)))
    order = re.findall(r'<th scope="row" data-value="(\w+)"', text)
    assert order == sorted(NAMES, key=means.__getitem__)
    shown = re.findall(r'</th><td class="num" data-value="([\d.]+)"', text)
    assert [float(v) for v in shown] == pytest.approx([means[n] for n in order])


def test_the_best_of_each_data_set_is_underlined() -> None:
    text = page(results_of(SCORES))
    assert len(re.findall(r"<u>", text)) == 7
    text = text.split('<section id="scores"')[1]
    rows = dict(re.findall(r'data-value="(\w+)">[^/]*?</th>(.*?)</tr>', text.replace("<wbr>", "")))
    best = [int(i) for i in SCORES.argmax(1)]
    assert len(re.findall("<u>", rows["focal"])) == best.count(2)


def test_each_data_sets_own_verdict_is_marked() -> None:
    text = page(results_of(SCORES))
    assert text.count("\u202f▼</td>") == text.count("\u202f▲</td>") == 7


def test_nothing_to_compare_still_leads_to_the_reports() -> None:
    results = results_of(SCORES[:2])
    results[1]["metric"] = {"name": "auroc", "label": "AUROC", "greater_is_better": True}
    text = page(results)
    assert "their metrics differ (accuracy, auroc)" in text
    assert "run1/report.html" in text
    assert 'id="scores"' not in text


def test_two_objectives_have_no_ranks_but_scores() -> None:
    results = results_of(SCORES)
    for r in results:
        del r["fold_scores"]["focal"]
    text = page(results)
    assert 'id="scores"' in text
    assert 'id="ranks"' not in text


def test_the_page_asks_nothing_of_the_network() -> None:
    text = page(results_of(SCORES))
    assert "default-src 'none'" in html.unescape(text)
    assert not re.search(r'(?:src|href)="(?:https?:)?//', text)


def test_the_file_lies_beside_the_runs_and_is_the_same_for_the_same_runs(tmp_path) -> None:
    results = results_of(SCORES[:2])
    folders = [tmp_path / "aa", tmp_path / "b b"]
    found = compare_across(results)
    first = write_across(results, found, folders)
    assert first.parent == tmp_path
    assert 'href="b%20b/report.html"' in first.read_text()
    assert write_across(copy.deepcopy(results[::-1]), found, folders[::-1]) == first


def test_a_winner_is_named_in_the_sentence() -> None:
    scores = np.tile(np.linspace(0.5, 0.6, 7)[:, None], (1, 3)) + np.array([0.0, 0.1, -0.1])
    sentence = compare_across(results_of(scores))["sentence"]
    assert re.search(r"comp_sum beats cross_entropy \(p = [\d.]+, Holm\)", sentence)
    assert "focal loses to cross_entropy" in sentence
    lower = compare_across(results_of(scores, greater=False))["sentence"]
    assert "comp_sum loses to cross_entropy" in lower


def test_ratings_and_win_rates_stand_in_tables_the_highest_rated_first(parsed) -> None:
    results = results_of(SCORES)
    across = compare_across(results)
    section = parsed(page(results)).one("section", id="ratings")
    board, rates = section.all("table")
    rows = board.one("tbody").all("tr")
    order = sorted(range(3), key=lambda i: -across["elo"][i])
    assert [row.one("th").attributes["data-value"] for row in rows] == [NAMES[i] for i in order]
    for row, i in zip(rows, order):
        texts = ["".join(cell.text.split()).replace("−", "-") for cell in row.all("td")]
        assert texts[0] == f"{across['elo'][i]:.0f}[{across['elo_low'][i]:.0f},{across['elo_high'][i]:.0f}]"
        assert texts[1:] == [f"{100 * across['win_rate'][i]:.0f}", f"{100 * across['improvability'][i]:.1f}"]
    cells = [[cell.text for cell in row.all("td")] for row in rates.one("tbody").all("tr")]
    beaten = (SCORES[:, :, None] > SCORES[:, None, :]).mean(0)
    assert cells == [["–" if i == j else f"{100 * beaten[i, j]:.0f}" for j in order] for i in order]


def test_bars_join_what_the_critical_difference_does_not_tell_apart(parsed) -> None:
    scores = np.tile(np.linspace(0.5, 0.6, 12)[:, None], (1, 3)) + np.array([0.0, 0.1, -0.1])
    scores[::2, 0] += 0.15  # baseline and comp_sum share the first place, focal is always last
    across = compare_across(results_of(scores))
    assert across["groups"] == [[0, 1]]
    figures = parsed(page(results_of(scores))).one("section", id="ranks").all("svg")
    for figure in figures:
        said = figure.one("desc").text
        assert (
            f"Critical difference {across['critical_difference']:.2f}; not told apart: cross_entropy, comp_sum" in said
        )
        assert f"critical difference {across['critical_difference']:.2f}" in figure.text
        bars = [path for path in figure.all("path") if "stroke-width:4" in path.attributes.get("style", "")]
        assert len(bars) == 1


def test_bars_that_overlap_have_lanes_of_their_own() -> None:
    assert _lanes([(0, 1), (1, 2), (3, 4)], [0, 1, 2, 3, 4]) == [0, 1, 0]
    assert _lanes([(4, 3, 2), (3, 2, 1), (2, 1, 0)], [4, 3, 2, 1, 0]) == [0, 1, 2]


def test_the_export_is_the_frame_that_bencheval_takes(tmp_path) -> None:
    results = results_of(SCORES)
    for place, r in enumerate(results):
        r["id"] = f"run{place}"
        r["fold_scores"] |= {"cross_entropy": [0.6, 0.7], "ridge": [0.5, 0.4], "chosen": [0.1, 0.1]}
        r["rows"] += [{"name": "ridge", "kind": "classical", "seconds": 3.0}, {"name": "chosen", "kind": "procedure"}]
        r["fold_seconds"] = {"cross_entropy": [1.25, 2.5]}
    results[2]["fold_scores"]["focal"] = [0.5, None]
    results[1]["data"]["name"] = results[0]["data"]["name"]
    path = write_export(results, [tmp_path / f"run{i}" for i in range(7)])
    assert path.parent == tmp_path
    frame = pd.read_csv(path)
    assert frame.columns.tolist() == ["method", "task", "metric_error", "seed", "time_train_s", "time_infer_s"]
    assert set(frame["method"]) == {"cross_entropy", "comp_sum", "ridge"}  # focal has a hole
    assert set(frame["task"]) == {"<set> 0 (run0)", "<set> 0 (run1)", *(f"<set> {i}" for i in range(2, 7))}
    first = frame[(frame["task"] == "<set> 3")].set_index(["method", "seed"])
    assert first["metric_error"].to_dict() == pytest.approx(
        {("cross_entropy", 0): 0.4, ("cross_entropy", 1): 0.3, ("ridge", 0): 0.5, ("ridge", 1): 0.6}
        | {("comp_sum", seed): 1 - SCORES[3, 1] for seed in (0, 1)}
    )
    assert first["time_train_s"]["cross_entropy"].tolist() == [1.25, 2.5]
    assert first["time_train_s"]["ridge"].tolist() == [1.5, 1.5]
    assert frame["time_infer_s"].isna().all()
    evaluator = BenchmarkEvaluator(seed_column="seed", columns_to_agg_extra=None)
    evaluator.verify_data(frame)
    board = evaluator.leaderboard(frame, average_seeds=True, include_elo=False)
    assert set(board.index) == {"cross_entropy", "comp_sum", "ridge"}
    for r in results:
        r["metric"] |= {"name": "rmse", "greater_is_better": False, "best": 0.0}
    lower = pd.read_csv(write_export(results[:1], [tmp_path]))
    assert lower["metric_error"][:2].tolist() == [0.6, 0.7]
    results[0]["metric"]["best"] = None
    with pytest.raises(InputError, match="--export: nothing says how good Accuracy can be"):
        write_export(results, [tmp_path])
