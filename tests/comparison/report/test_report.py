"""The four files: determinism, escaping, validity, size, and writing in one step."""

from __future__ import annotations

import copy
import csv
import io
import itertools
import json
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from steepest.comparison.report import files, leaderboard_csv, leaderboard_markdown, report_html, write_report

EVIL = "<script>alert(1)</script>"
NAMES = ["report.html", "leaderboard.csv", "leaderboard.md", "results.json"]


class Page(HTMLParser):
    """Tags with their attributes, text by element, and the ids of a page."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        (self.scripts if self.inside == "script" else self.text).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def large(make_results):
    return report_html(make_results(objectives=20, classes=40, folds=15))


@pytest.fixture(scope="module")
def evil(make_results):
    return make_results(objectives=4, classes=3, evil=True)


def test_same_results_same_bytes(make_results, tmp_path):
    first = [path.read_bytes() for path in write_report(make_results(2, 3), tmp_path / "a")]
    second = [path.read_bytes() for path in write_report(make_results(2, 3), tmp_path / "b")]
    assert first == second


def test_writes_four_files_and_leaves_the_results_alone(make_results, tmp_path):
    results = make_results(2, 3)
    before = copy.deepcopy(results)
    paths = write_report(results, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == NAMES
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == sorted(NAMES)
    assert results == before


def test_largest_page_stays_small(large):
    assert len(large.encode()) < 600_000


def test_user_text_is_text(evil):
    page = Page(report_html(evil))
    assert len(page.all("script")) == 2
    assert sum(EVIL in text for text in page.text) >= 5
    assert not any(EVIL in script for script in page.scripts)
    embedded = json.loads(page.scripts[-1])
    assert embedded["data"]["columns"][0] == embedded["data"]["classes"][0] == EVIL


def test_every_text_of_the_results_is_escaped(make_results):
    text = '"><img src=x onerror=alert(1)></style><b class="x">{{ 7 * 7 }} a & b $x^2$'
    results = make_results(3, 3)

    def poison(value):
        if isinstance(value, dict):
            return {key: poison(item) for key, item in value.items()}
        if isinstance(value, list):
            return [poison(item) for item in value]
        return value + text if isinstance(value, str) else value

    for key in ("data", "machine", "versions", "protocol", "winner", "sentence", "question", "usage", "command", "id"):
        results[key] = poison(results[key])
    results["metric"]["label"] += text
    for row in results["rows"]:
        row["title"] += text
        row["settings"] += text
    page = Page(report_html(results))
    assert not page.all("img")
    assert all(not attributes for attributes in page.all("b"))
    assert len(page.all("style")) == 1
    assert any(part.endswith("digits" + text) for part in page.text)


def test_nothing_is_loaded_from_elsewhere(large):
    page = Page(large)
    for tag, attributes in page.tags:
        for key in ("src", "href", "xlink:href", "action", "srcset"):
            if key in attributes and not (tag == "a" and attributes[key].startswith("https://arxiv.org/abs/")):
                assert attributes[key].startswith(("#", "data:,")), attributes
    outside = re.findall(r"https?://[^\s\"'<]+", re.sub(r'<a href="https://arxiv.org/abs/[\d.]+">', "", large))
    assert set(outside) <= {"http://www.w3.org/2000/svg"}
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")


def test_ids_are_unique_and_references_lead_somewhere(large):
    page = Page(large)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = {attributes["href"][1:] for _, attributes in page.tags if (attributes.get("href") or "").startswith("#")}
    wanted |= {
        word
        for _, attributes in page.tags
        for key in ("aria-labelledby", "aria-describedby")
        for word in (attributes.get(key) or "").split()
    }
    wanted |= set(re.findall(r"url\(#([^)]+)\)", large))
    assert wanted - set(ids) == set()


def test_figures_tables_and_headings_are_accessible(large):
    page = Page(large)
    assert all(
        figure["role"] == "img" and figure["aria-labelledby"] and figure["aria-describedby"]
        for figure in page.all("svg")
    )
    assert all(head.get("scope") in ("col", "row") for head in page.all("th"))
    sortable = [head for head in page.all("th") if "data-order" in head]
    assert all(head["aria-sort"] == "none" for head in sortable)
    assert len(sortable) > 20
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_figures_take_their_colours_from_the_page(large):
    drawings = re.findall(r"<svg.*?</svg>", large, flags=re.DOTALL)
    assert len(drawings) >= 40
    for drawing in drawings:
        assert not re.search(r"#[0-9a-f]{6}\b", drawing), drawing[:300]
        assert "<style" not in drawing
        assert "DejaVu" not in drawing
    assert "var(--better)" in "".join(drawings)


def test_regression_has_no_reliability_and_no_recall(make_results):
    page = Page(report_html(make_results(5, task="regression")))
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert {"answer", "tiers", "leaderboard", "curves", "cost", "protocol", "use", "reading"} <= ids
    assert not {"reliability", "recall"} & ids


def test_missing_values_are_dashes_and_null(make_results, tmp_path):
    results = make_results(4, 3)
    results["classical"] = None
    results["curves"]["ldr"]["valid"][3] = math.nan
    results["headline"] |= dict.fromkeys(("difference", "low", "high", "p", "detectable"))
    for row in results["rows"]:
        row["peak_memory_mb"] = np.float64("nan")
        row["seconds_per_epoch"] = None
        del row["title"]
    page, _, _, data = write_report(results, tmp_path)
    read = json.loads(data.read_text(), parse_constant=pytest.fail)
    assert read["rows"][0]["peak_memory_mb"] is None
    assert read["curves"]["ldr"]["valid"][3] is None
    assert read["rows"][1]["metrics"] == results["rows"][1]["metrics"]
    text = page.read_text()
    assert 'id="cost"' not in text
    assert not re.search(r">\s*(nan|None|inf)\b", text)


def test_an_unfinished_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    files.write_atomically(path, "old")

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        files.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]


def test_the_move_is_within_one_folder_and_the_file_is_whole_by_then(tmp_path, monkeypatch):
    seen = []
    replace = os.replace

    def watch(source, target):
        seen.append((Path(source).parent, Path(target).parent, Path(source).read_text(encoding="utf-8")))
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", watch)
    files.write_atomically(tmp_path / "a.txt", "ä whole text")
    assert seen == [(tmp_path, tmp_path, "ä whole text")]


def test_csv_has_a_row_a_name_with_full_numbers(make_results):
    results = make_results(4, 3)
    read = list(csv.DictReader(io.StringIO(leaderboard_csv(results))))
    assert {row["name"] for row in read} == {row["name"] for row in results["rows"]}
    scores = [float(row["accuracy_mean"]) for row in read]
    assert scores == sorted((row["metrics"]["accuracy"]["mean"] for row in results["rows"]), reverse=True)
    by_name = {row["name"]: row for row in read}
    ldr = results["rows"][1]
    assert float(by_name["ldr"]["difference"]) == ldr["difference"]
    assert by_name["ldr"]["settings"] == ldr["settings"]
    assert by_name["svm"]["p_holm"] == ""
    assert by_name["cross_entropy"]["tier"] == "baseline"


def test_smaller_errors_come_first(make_results):
    read = list(csv.DictReader(io.StringIO(leaderboard_csv(make_results(5, task="regression")))))
    scores = [float(row["rmse_mean"]) for row in read]
    assert scores == sorted(scores)


def test_markdown_is_the_sentence_and_a_table(make_results):
    results = make_results(4, 3)
    results["rows"][1]["name"] = "a|b"
    lines = leaderboard_markdown(results).splitlines()
    assert lines[0] == results["sentence"]
    assert lines[1] == ""
    counts = [len(re.findall(r"(?<!\\)\|", line)) for line in lines[4:]]
    assert len(counts) == 2 + len(results["rows"])
    assert len(set(counts)) == 1
    assert any(line.startswith(r"| a\|b |") for line in lines)


def test_tiers_name_the_smallest_difference_that_would_have_been_found(make_results):
    results = make_results(4, 3, multiples=False)
    row = results["rows"][1] | {"tier": "not told apart", "detectable": 0.0123, "low": -0.004, "high": 0.006}
    results["rows"][1] = row
    page = report_html(results)
    assert "≥ 0.0123" in page
    assert "≥ 0.0123" in page[page.index("Not told apart") : page.index('id="leaderboard"')]


@pytest.mark.parametrize(("verdict", "words"), [
    ("better", "would be rare if the choice made none"),
    ("not told apart", "not proof that both are equal"),
    ("worse", "Stay with"),
])  # fmt: skip
def test_verdict_in_plain_words(undrawn, make_results, verdict, words):
    results = make_results(3, 3)
    results["headline"]["verdict"] = verdict
    assert words in report_html(results)


def test_the_headline_shows_its_own_digits_beside_wider_rows(make_results):
    results = make_results(5, task="regression", multiples=False)
    results["headline"] |= {"difference": -0.0029, "low": -0.023, "high": 0.0171, "detectable": 0.025}
    page = report_html(results)
    assert "−0.003" in page
    assert "[−0.023, +0.017]" in page
