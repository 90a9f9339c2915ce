"""The page over several data sets."""

from __future__ import annotations

import copy
import html
import re

import numpy as np
import pytest
from scipy.stats import rankdata

from steepest.comparison.report.across import across_html, write_across
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
            "metric": {"name": "accuracy", "label": "Accuracy", "greater_is_better": greater},
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
    text = page(results_of(SCORES, greater))
    means = dict(zip(NAMES, rankdata(-SCORES if greater else SCORES, axis=1).mean(0)))
    order = re.findall(r'<th scope="row" data-value="(\w+)"', text)
    assert order == sorted(NAMES, key=means.__getitem__)
    shown = re.findall(r'</th><td class="num" data-value="([\d.]+)"', text)
    assert [float(v) for v in shown] == pytest.approx([means[n] for n in order])


def test_the_best_of_each_data_set_is_underlined() -> None:
    text = page(results_of(SCORES))
    assert len(re.findall(r"<u>", text)) == 7
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
