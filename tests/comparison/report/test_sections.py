"""The parts of the page: what each shows, against the numbers that it is made of, and that none is empty."""

from __future__ import annotations

import re

import numpy as np
import pytest

from steepest.comparison.report import leaderboard_markdown, report_html
from steepest.comparison.report.paired import paired
from steepest.comparison.report.stored import check_results
from steepest.comparison.report.views import confusion, fold_scores, paired_folds
from steepest.core.pages.svg import WIDE

EVIL = "<script>alert(1)</script>"


def shares(classes, wrong, seed=0):
    """Shares of all rows: right ones, and ``wrong[c]`` more in the row of class c."""
    random = np.random.default_rng(seed)
    counts = 50.0 * np.eye(classes) + random.uniform(0, 0.01, (classes, classes))
    for c, amount in wrong.items():
        counts[c, (c + 1) % classes] += amount
    return (counts / counts.sum()).tolist()


def test_confusion_is_in_per_cent_of_the_true_class(undrawn, make_results, parsed):
    results = make_results(3, 3, multiples=False)
    labels = results["confusion"]["classes"]
    labels[1] = EVIL
    winner = np.array([[30, 1, 0], [2, 8, 10], [0, 0, 0]]) / 51
    results["confusion"] = {"classes": labels, "winner": winner.tolist(), "baseline": (np.eye(3) / 3).tolist()}
    section = parsed(report_html(results)).one("section", id="confusion")
    first, second = section.all("table")
    assert [table.one("caption").text for table in (first, second)] == [
        "The choice 74.5% right",
        "cross_entropy 100.0% right",
    ]
    cells = [[cell.text for cell in row.all("td")[1:]] for row in first.one("tbody").all("tr")]
    assert cells == [["97", "3", "0"], ["10", "40", "50"], ["–", "–", "–"]]
    assert [row.one("th").text for row in first.one("tbody").all("tr")] == labels
    marked = [
        [cell.attributes["class"] == "right" for cell in row.all("td")[1:]] for row in first.one("tbody").all("tr")
    ]
    assert marked == np.eye(3, dtype=bool).tolist()
    heat = [cell.attributes["class"] for cell in first.one("tbody").all("tr")[1].all("td")[1:]]
    assert heat == ["h4", "right", "h8"]
    assert {head.attributes["scope"] for head in first.all("th")} == {"col", "row"}
    assert "others" not in section.text


def test_of_many_classes_the_most_confused_are_shown(undrawn, make_results, parsed):
    results = make_results(3, 40, multiples=False)
    known = results["confusion"]
    known["winner"], known["baseline"] = shares(40, {3: 9, 20: 5, 30: 2}), shares(40, {11: 7})
    section = parsed(report_html(results)).one("section", id="confusion")
    labels = [row.one("th").text for row in section.all("tbody")[0].all("tr")]
    off = [np.array(known[side]) * (1 - np.eye(40)) for side in ("winner", "baseline")]
    wrong = sum(matrix.sum(0) + matrix.sum(1) for matrix in off)
    naive = sorted(sorted(range(40), key=lambda c: -wrong[c])[:12])
    assert labels == [known["classes"][c] for c in naive]
    assert {3, 4, 20, 21, 30, 31, 11, 12} <= set(naive)
    assert "Shown are the 12 of 40 classes with the most rows confused; “others” holds the rest." in section.text
    assert section.all("thead")[0].all("th")[-1].text == "others"
    row = confusion(results)["tables"][0]["rows"][naive.index(3)]
    assert [cell["text"] for cell in row["cells"]].count("15") == 1
    assert row["cells"][-1]["text"] in ("0", "< 1")


def test_fold_scores_are_drawn_where_their_numbers_are(make_results):
    results = make_results(3, 3, folds=6, multiples=False)
    rows = paired_folds(results)["rows"]
    drawing = str(paired(rows, "cross_entropy", "accuracy", 3, WIDE, "p"))
    ours, base = results["fold_scores"]["ldr"], results["fold_scores"]["cross_entropy"]
    assert [(row["first"], row["second"]) for row in rows] == list(zip(ours, base))
    strokes = re.findall(r'<path d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"[^>]*stroke:var\(--(better|worse)\)', drawing)
    assert [tone for *_, tone in strokes] == ["better" if a > b else "worse" for a, b in zip(ours, base)]
    ends = np.array([[float(value) for value in stroke[:4]] for stroke in strokes])
    assert ends[:, 0] == pytest.approx(ends[:, 2])
    heights, scores = np.r_[ends[:, 1], ends[:, 3]], np.r_[base, ours]
    slope, constant = np.polyfit(scores, heights, 1)
    assert slope < 0
    assert heights == pytest.approx(slope * scores + constant, abs=0.02)
    steps = np.diff(ends[:, 0])
    pitch = steps.min()
    assert steps == pytest.approx(
        pitch * np.array([2.0 if a[0] != b[0] else 1.0 for a, b in zip(results["folds"], results["folds"][1:])]),
        abs=0.02,
    )
    described = re.search(r"<desc[^>]*>(.*)</desc>", drawing)[1].split("; ")
    assert described == [f"fold {i + 1}: {a:.3f} against {b:.3f}" for i, (a, b) in enumerate(zip(ours, base))]


def test_a_table_says_the_same_as_the_drawing_of_folds(make_results, parsed):
    results = make_results(3, 3, multiples=False)
    results["fold_scores"]["ldr"][4] = None
    section = parsed(report_html(results)).one("section", id="folds")
    table = [[cell.text for cell in row.all()] for row in section.one("tbody").all("tr")]
    assert len(table) == 15
    assert [row[:3] for row in table] == [[str(r + 1), str(f + 1), "ldr"] for r, f in results["folds"]]
    assert table[4][3] == table[4][5] == "–"
    ours, base = (results["fold_scores"][name] for name in ("ldr", "cross_entropy"))
    won = sum(a is not None and a > b for a, b in zip(ours, base))
    assert f"The choice was better in {won} of 15, worse in {14 - won}." in section.text
    assert len(section.all("svg")) == 2


def test_smaller_is_better_for_errors_in_the_drawing_of_folds(make_results):
    results = make_results(3, task="regression", multiples=False)
    name = results["expected"]["by_fold"][0]
    results["fold_scores"][name][0] = results["fold_scores"]["squared_error"][0] - 1
    results["fold_scores"][name][1] = results["fold_scores"]["squared_error"][1] + 1
    assert [row["tone"] for row in paired_folds(results)["rows"][:2]] == ["better", "worse"]


def test_what_holds_nothing_is_left_out(make_results, parsed):
    """Columns without a value, tiers without an objective, and the titles of papers."""
    results = make_results(4, 3, multiples=False)
    for row in results["rows"]:
        row |= {"tier": {"better": "worse"}.get(row["tier"], row["tier"]), "peak_memory_mb": None, "settings": ""}
        row["metrics"]["ece"] = {"mean": None, "low": None, "high": None}
        row["p_holm"] = row["seconds_per_epoch"] = row["prob_same"] = None
    page = parsed(report_html(results))
    board = page.one("table", css="board")
    heads = [head.text for head in board.one("thead").all("th")]
    assert not {"memory, MB", "settings", "ece", "p, Holm", "s per epoch"} & set(heads)
    assert {"name", "tier", "accuracy", "p", "log loss", "diverged"} <= set(heads)
    for row in board.one("tbody").all("tr"):
        assert len(row.all("td")) == len(heads) - 1
    for column in range(len(heads) - 1):
        assert any(row.all("td")[column].attributes["data-value"] for row in board.one("tbody").all("tr"))
    assert not any(row["title"] in board.text for row in results["rows"])
    tiers = page.all("section", css="tier")
    assert len(tiers) == len({row["tier"] for row in results["rows"]} & {"better", "not told apart", "worse"})
    assert all(len(tier.all("svg")) == 2 for tier in tiers)
    heads = leaderboard_markdown(results).splitlines()[4].strip("| ").split(" | ")
    assert heads == ["tier", "Accuracy", "95% interval", "difference to cross_entropy", "95% interval"]
    for row in results["rows"]:
        row["tier"] = row["tier"] if row["name"] == "cross_entropy" else ""
    page = parsed(report_html(results))
    assert not page.all("section", id="tiers")
    assert not page.all("a", href="#tiers")


def test_sources_are_named_once_and_arxiv_numbers_are_links(undrawn, make_results, parsed):
    results = make_results(4, 3, multiples=False)
    results["rows"][1]["source"] = "code <i>; arXiv:2006.14567; arXiv:12"
    page = parsed(report_html(results))
    listed = page.one("dl", css="origins")
    names = [term.text for term in listed.all("dt")]
    assert sorted(names) == sorted(row["name"] for row in results["rows"] if row["kind"] == "objective")
    entry = listed.all("dd")[names.index("ldr")]
    assert entry.text == "Ldr loss, code <i>; arXiv:2006.14567; arXiv:12"
    assert [(link.text, link.attributes["href"]) for link in entry.all("a")] == [
        ("arXiv:2006.14567", "https://arxiv.org/abs/2006.14567")
    ]
    assert [link.attributes["href"] for link in listed.all("a")].count("https://arxiv.org/abs/2301.10003") == 1
    outside = [link for link in page.all("a") if not link.attributes["href"].startswith("#")]
    assert all(link.attributes["href"].startswith("https://arxiv.org/abs/") for link in outside)


NEW = ("advice", "expected", "folds", "confusion")


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_results_of_earlier_versions_have_a_page_without_the_parts_they_lack(undrawn, make_results, parsed, task):
    results = make_results(4, 3, task=task, multiples=False)
    ids = {e.attributes.get("id") for e in parsed(report_html(results)).all("section")}
    assert "folds" in ids
    for key in NEW:
        results.pop(key, None)
    del results["winner"]["kind"]
    for row in results["rows"]:
        del row["source"]
    check_results(results)
    page = parsed(report_html(results))
    sections = {section.attributes.get("id") for section in page.all("section")}
    assert sections == ids - {"folds", "confusion"}
    assert {link.attributes["href"] for link in page.one("nav").all("a")} == {f"#{name}" for name in sections if name}
    assert page.one("section", id="answer").one("p", css="advice").text.startswith("So do this: Keep")
    assert page.one("section", id="use").all("dd")


def test_every_wide_table_is_a_region_with_a_name_that_the_keyboard_reaches(undrawn, make_results, parsed):
    page = parsed(report_html(make_results(4, 15, multiples=False)))
    frames = page.all("div", css="scroll")
    assert [len(frame.all("table")) for frame in frames] == [1] * len(frames)
    assert len(frames) == len(page.all("table")) == 7
    for frame in frames:
        assert frame.attributes["tabindex"] == "0"
        assert frame.attributes["role"] == "region"
        assert frame.attributes["aria-label"]


def test_every_fold_score_stands_under_its_name(undrawn, make_results, parsed):
    results = make_results(4, 3, multiples=False)
    results["fold_scores"]["focal"][1] = None
    table = parsed(report_html(results)).one("table", css="folds")
    names = [head.text for head in table.one("thead").all("th")[1:]]
    assert sorted(names) == sorted(results["fold_scores"])
    rows = table.one("tbody").all("tr")
    assert [row.one("th").text for row in rows] == [f"{r + 1}.{f + 1}" for r, f in results["folds"]]
    for name, cells in zip(names, zip(*(row.all("td") for row in rows))):
        values = [cell.attributes["data-value"] for cell in cells]
        assert values == ["" if v is None else str(v) for v in results["fold_scores"][name]]
    results["folds"] = None
    assert [row["label"] for row in fold_scores(results)["rows"]] == [str(i + 1) for i in range(15)]
