"""results.json from anywhere: refused in one line, or shown; whatever it names is text on the page."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steepest.comparison import InputError
from steepest.comparison.report import write_report
from steepest.comparison.report.across import across_html
from steepest.comparison.report.stored import check_results, read_results
from steepest.comparison.verdict.across import compare_across

Results = dict[str, Any]
Change = Callable[..., None]
EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}&#60;"


def outcomes(whole: Results, numbers: range, folder: Path, shown: int, change: Change) -> dict[str, int]:
    """How many changed files are refused; of the others, ``shown`` are made into a report."""
    counts = {"refused": 0, "accepted": 0, "shown": 0}
    folder.mkdir()
    for number in numbers:
        rng, results = random.Random(number), copy.deepcopy(whole)
        if number % 3:
            change(results, rng)
        else:  # not only in the long parts
            change(results[rng.choice(["data", "headline", "metric", "protocol"])], rng)
        (folder / "results.json").write_text(json.dumps(results))
        read, refusal = None, ""
        try:
            read = read_results(folder)
        except InputError as error:
            refusal = str(error)
        assert "\n" not in refusal
        if read is None:
            counts["refused"] += 1
            continue
        counts["accepted"] += 1
        assert read == results
        if counts["shown"] < shown:
            write_report(read, folder)
            assert "<script>alert" not in (folder / "report.html").read_text()
            counts["shown"] += 1
    return counts


def test_changed_results_are_refused_or_taken(
    make_results: Callable[..., Results], tmp_path: Path, change: Change
) -> None:
    counts = outcomes(make_results(objectives=3, classes=3), range(200), tmp_path / "run", shown=1, change=change)
    assert min(counts.values()) > 0, counts


@pytest.mark.slow
def test_two_thousand_changed_results(make_results: Callable[..., Results], tmp_path: Path, change: Change) -> None:
    whole = make_results(objectives=2, classes=2, folds=9)
    whole["curves"] = {name: {key: values[:4] for key, values in own.items()} for name, own in whole["curves"].items()}
    counts = outcomes(whole, range(2000), tmp_path / "run", shown=100, change=change)
    print(f"\n2,000 changed results: {counts}")


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_what_a_comparison_writes_is_taken(make_results: Callable[..., Results], task: str) -> None:
    check_results(json.loads(json.dumps(make_results(task=task))))


def everywhere(value: Any, keep: frozenset[str], key: str = "") -> Any:
    """The same with markup in every text that is free."""
    if isinstance(value, dict):
        return {name: everywhere(each, keep, name) for name, each in value.items()}
    if isinstance(value, list):
        return [everywhere(each, keep, key) for each in value]
    return value + EVIL if isinstance(value, str) and key not in keep else value


def test_every_text_is_escaped_on_the_page(make_results: Callable[..., Results], tmp_path: Path) -> None:
    """Not only what users name: whatever a file holds as text, in values and in names."""
    closed = frozenset({"kind", "tier", "verdict", "task"})
    whole = make_results(objectives=3, classes=3)
    names = {row["name"]: row["name"] + EVIL for row in whole["rows"]}
    results = everywhere(whole, closed)
    for key in ("fold_scores", "curves", "reliability"):
        results[key] = {names[name]: each for name, each in results[key].items()}
    results["recall"]["rows"] = {names[name]: each for name, each in results["recall"]["rows"].items()}
    for key in ("protocol", "machine", "versions"):
        results[key] = {name + EVIL: each for name, each in results[key].items()}
    for row in results["rows"]:
        row["metrics"] = {name + EVIL: each for name, each in row["metrics"].items()}
    check_results(results)
    write_report(results, tmp_path)
    across = compare_across([results, results])
    pages = [(tmp_path / "report.html").read_text(), across_html([results] * 2, across, ["a", "b"])]
    for page in pages:
        body = page.split("</head>", 1)[1]
        assert "alert(1)" in body
        for raw in ("<script>alert", "<img", "\"'>", "49&#60;", "onerror=alert(2)>"):
            assert raw not in body, raw
    assert "<script>" not in (tmp_path / "leaderboard.md").read_text().replace("\\<script\\>", "")
