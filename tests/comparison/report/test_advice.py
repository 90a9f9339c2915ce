"""What to do, and what to expect: one sentence from the declared tests, one number from the outer folds."""

from __future__ import annotations

import copy

import pytest

from steepest.comparison.report import leaderboard_markdown, report_html
from steepest.comparison.report.advice import advice, expected

SETTINGS = "lr 0.001, weight decay 0.0001"


def results_of(verdict: str, winner: str, tier: str = "not told apart", **classical: object) -> dict:
    """What the sentence depends on."""
    rows = [
        {"name": "cross_entropy", "tier": "baseline", "settings": f"{SETTINGS} (in 6 of 15 folds)"},
        {"name": "focal", "tier": tier, "settings": ""},
    ]
    return {
        "headline": {"verdict": verdict, "baseline": "cross_entropy"},
        "winner": {"objective": winner, "settings": "lr 0.02"},
        "classical": classical or None,
        "rows": rows,
    }


@pytest.mark.parametrize(
    ("results", "sentence"),
    [
        (results_of("better", "focal"), "Use focal with lr 0.02 instead of cross_entropy."),
        (
            results_of("better", "cross_entropy"),
            "Use cross_entropy with lr 0.02: over all folds together the choice falls on it.",
        ),
        (
            results_of("not told apart", "cross_entropy"),
            "Keep cross_entropy with lr 0.02: choosing another objective was not shown to score better.",
        ),
        (
            results_of("not told apart", "focal"),
            f"Keep cross_entropy with {SETTINGS}: choosing another objective was not shown to score better; "
            "the saved winner, focal, was not told apart from it.",
        ),
        (
            results_of("not told apart", "focal", tier="better"),
            f"Keep cross_entropy with {SETTINGS}: choosing another objective was not shown to score better; "
            "the saved winner, focal, scored better in a test of its own.",
        ),
        (
            results_of("worse", "focal", tier="worse"),
            f"Keep cross_entropy with {SETTINGS}: choosing another objective scored worse; "
            "the saved winner, focal, scored worse.",
        ),
        (
            results_of("better", "svm", best="forest", wins=True)
            | {"winner": {"objective": "svm", "kind": "classical"}},
            "Use svm, a classical learner: it scored better than the networks.",
        ),
        (
            results_of("better", "focal", best="svm", wins=True),
            "Use svm, a classical learner: it scored better than the networks; "
            "the saved winner, focal, is the best network.",
        ),
        (
            results_of("not told apart", "cross_entropy", best="svm", wins=False),
            "Keep cross_entropy with lr 0.02: choosing another objective was not shown to score better.",
        ),
    ],
)
def test_one_sentence_follows_from_the_declared_tests(results, sentence):
    assert advice(results) == sentence


def test_what_to_do_stands_right_under_the_answer(undrawn, make_results, parsed):
    results = make_results(3, 3, multiples=False)
    results["rows"][1]["name"] = results["winner"]["objective"] = "<b>mine"
    answer = parsed(report_html(results)).one("section", id="answer")
    texts = [element for element in answer.inside if not isinstance(element, str)]
    assert texts[1].text == results["sentence"]
    assert texts[2].text == f"So do this: {advice(results)}"
    assert "<b>mine" in texts[2].text
    lines = leaderboard_markdown(make_results(3, 3, multiples=False)).splitlines()
    assert lines[0] == results["sentence"]
    assert lines[2].replace("\\", "") == f"**So do this:** {advice(make_results(3, 3, multiples=False))}"


def test_the_expected_score_stands_beside_the_winner(undrawn, make_results, parsed):
    results = make_results(3, 3, multiples=False)
    results["expected"] |= {"mean": 0.91237, "low": 0.89, "high": 0.9312}
    use = parsed(report_html(results)).one("section", id="use")
    assert use.all("p")[0].text.startswith("Saved is ldr, a network with lr 0.00")
    assert use.one("dt").text == "Accuracy to expect on new rows like these"
    assert use.one("dd").text.startswith("0.9124 95% interval [0.8900, 0.9312]")
    results["winner"] |= {"kind": "classical", "command": "steepest predict <x>"}
    results["classical"]["wins"] = True
    use = parsed(report_html(results)).one("section", id="use")
    assert "Saved is ldr, a classical learner" in use.text
    assert use.one("dd").text.startswith("0.9124")
    assert use.all("pre")[0].text == "steepest predict <x>"


def test_without_a_stored_one_a_network_has_the_score_of_the_choice(undrawn, make_results, parsed):
    results = make_results(3, 3, multiples=False)
    results["expected"] = None
    procedure = next(row for row in results["rows"] if row["kind"] == "procedure")
    assert expected(results) == procedure["metrics"]["accuracy"]
    network = copy.deepcopy(results)
    network["classical"]["wins"] = True
    network["expected"] = {"by_fold": [], "mean": 0.5, "low": 0.4, "high": 0.6}
    assert expected(network) == procedure["metrics"]["accuracy"], "a network was asked for though a learner won"
    classical = copy.deepcopy(results)
    classical["winner"]["kind"] = "classical"
    assert expected(classical) is None
    procedure["metrics"]["accuracy"] = dict.fromkeys(("mean", "low", "high"), float("nan"))
    assert expected(results) is None
    assert not parsed(report_html(results)).one("section", id="use").all("dl")


def chances(better: float, same: float, worse: float, **changed: object) -> dict:
    """Results whose test does not tell, with these probabilities."""
    results = results_of("not told apart", "cross_entropy")
    results["headline"] |= {"low": -0.01, "high": 0.02, "prob_better": better, "prob_same": same, "prob_worse": worse}
    results["headline"] |= changed
    return results | {"rope": {"value": 0.01, "asked": False}}


def test_where_the_test_does_not_tell_the_advice_says_how_probable_it_is_that_choosing_matters():
    start = "Keep cross_entropy with lr 0.02: choosing another objective was not shown to score better"
    assert advice(chances(0.62, 0.36, 0.02)) == (
        f"{start} (by more than 0.01 better with probability 0.62, worse with 0.02, else practically the same)."
    )
    assert (
        advice(chances(0.03, 0.96, 0.01))
        == f"{start}, and it is practically the same (within 0.01 with probability 0.96)."
    )
    for changed in ({"low": 0.0, "high": 0.0}, {"prob_same": None}):  # no spread, no test
        assert advice(chances(0.03, 0.96, 0.01, **changed)) == f"{start}."
    assert "probability" not in advice(chances(0.03, 0.96, 0.01, verdict="worse"))


def test_the_probabilities_stand_in_every_table(undrawn, make_results, parsed):
    results = make_results(4, 3, multiples=False)
    results["rows"][1] |= {"prob_better": 0.8004, "prob_same": 0.1969, "prob_worse": 0.0027}
    page = parsed(report_html(results))
    facts = page.one("section", id="answer").one("dl", css="facts")
    assert "Better, practically the same, worse 0.31, 0.66, 0.03 probabilities" in facts.text.replace(
        "worse0", "worse 0"
    )
    table = page.one("table", css="chances")
    rows = {row.one("th").text: row for row in table.one("tbody").all("tr")}
    assert set(rows) == {row["name"] for row in results["rows"][1:4]}, "the baseline has none"
    assert [cell.text for cell in rows["ldr"].all("td")] == ["0.80", "0.20", "<0.01", ""]
    widths = [bar.attributes["style"] for bar in rows["ldr"].one("span", css="stack").all("span")]
    assert widths == ["width:80.0%", "width:19.7%", "width:0.3%"]
    board = page.one("section", id="leaderboard").all("table")[0]
    place = [head.text for head in board.one("thead").all("th")].index("P(better)") - 1
    cells = {row.one("th").text: row.all("td")[place].text for row in board.one("tbody").all("tr")}
    assert cells["ldr"] == "0.80same 0.20, worse <0.01"
    assert cells["cross_entropy"] == "–"
    (line,) = (line for line in leaderboard_markdown(results).splitlines() if line.startswith("| ldr"))
    assert "0.80, 0.20, \\<0.01" in line
    for row in (results["headline"], *results["rows"]):
        row |= dict.fromkeys(("prob_better", "prob_same", "prob_worse"))
    page = parsed(report_html(results))
    assert not page.all("table", css="chances")
    assert "practically the same" not in page.one("section", id="answer").text
