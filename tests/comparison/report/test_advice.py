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
