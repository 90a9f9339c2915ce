"""What to do with the answer, and what to expect of it."""

from __future__ import annotations

import re
from typing import Any

from ..names import varied
from ..statistics import PROBABILITIES, SAME
from .numbers import chance, clean

CLEAR = 0.95
"""The probability from which on the advice calls a choice practically the same."""
STANDING = {"better": "scored better in a test of its own", "worse": "scored worse"}


def advice(results: dict[str, Any]) -> str:
    """One sentence of what to do, by the tests that were declared beforehand.

    A classical learner that wins is to be used; else the winner where choosing the objective helped; else the baseline.

    Args:
        results: as ``results.json`` holds them, with or without ``winner``.

    >>> head = {"verdict": "better", "baseline": "cross_entropy"}
    >>> advice({"headline": head, "winner": {"objective": "focal", "settings": "lr 0.001"}, "rows": []})
    'Use focal with lr 0.001 instead of cross_entropy.'
    """
    head, saved = results["headline"], results.get("winner") or {}
    baseline, winner, classical = head["baseline"], saved.get("objective"), results.get("classical") or {}
    rows = {row["name"]: row for row in results["rows"]}
    if classical.get("wins"):
        name = winner if is_classical(results) else classical["best"]
        text = f"Use {name}, a classical learner: it scored better than the networks"
        return text + ("." if winner in (None, name) else f"; the saved winner, {winner}, is the best network.")
    more = (results.get("basis") or {}).get("undo")
    if more and not any(row["kind"] == "objective" and row["difference"] is not None for row in results["rows"]):
        return f"Take more time before you choose ({more}); until then keep {baseline}{_with(saved.get('settings'))}."
    if head["verdict"] == "better" and winner not in (None, baseline):
        return f"Use {winner}{_with(saved.get('settings'))} instead of {baseline}."
    if head["verdict"] == "better":
        return f"Use {baseline}{_with(saved.get('settings'))}: over all folds together the choice falls on it."
    own = saved.get("settings") if winner == baseline else (rows.get(baseline) or {}).get("settings")
    why = "scored worse" if head["verdict"] == "worse" else "was not shown to score better"
    text = f"Keep {baseline}{_with(own)}: choosing another {varied(results)} {why}{_matters(results)}"
    if winner in (None, baseline):
        return f"{text}."
    standing = STANDING.get((rows.get(winner) or {}).get("tier", ""), "was not told apart from it")
    return f"{text}; the saved winner, {winner}, {standing}."


def _matters(results: dict[str, Any]) -> str:
    """How probable it is that choosing matters, where the test does not tell; "" where differences have no spread."""
    head, rope = results["headline"], results.get("rope")
    better, same, worse = (head.get(key) for key in PROBABILITIES)
    if head["verdict"] != SAME or rope is None or None in (better, same, worse) or head["low"] == head["high"]:
        return ""
    if same >= CLEAR:
        return f", and it is practically the same (within {rope['value']:.4g} with probability {chance(same)})"
    return (
        f" (by more than {rope['value']:.4g} better with probability {chance(better)}, worse with {chance(worse)}, "
        f"else practically the same)"
    )


def expected(results: dict[str, Any]) -> dict[str, Any] | None:
    """The score to expect of the saved winner on rows like these, with its interval; None where there is none.

    It is the outer score of the whole choice, made anew in each fold on other rows than it was scored on: that of the
    winner's own row is too good by what was picked in its favour. Results without it have that of the selected network.

    Args:
        results: as ``results.json`` holds them.
    """
    results = clean(results)
    spread: dict[str, Any] | None = results.get("expected")
    wins = bool((results.get("classical") or {}).get("wins"))
    if is_classical(results) != wins:  # what won is not what is saved
        spread = None
    if spread is None and not is_classical(results):
        procedure = next((row for row in results["rows"] if row["kind"] == "procedure"), {})
        spread = (procedure.get("metrics") or {}).get(results["metric"]["name"])
    return spread if spread and spread["mean"] is not None else None


def is_classical(results: dict[str, Any]) -> bool:
    """Whether what is saved is a classical learner."""
    return bool((results.get("winner") or {}).get("kind") == "classical")


def _with(settings: str | None) -> str:
    """Settings in a sentence, without the count of folds that chose them."""
    text = re.sub(r" \(in \d+ of \d+ folds\)$", "", settings or "")
    return f" with {text}" if text else ""
