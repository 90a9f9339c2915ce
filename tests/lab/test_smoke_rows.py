"""Smoke rows tell code beneath a system that moves its results from code that doesn't."""

from __future__ import annotations

import math

import pytest

from steepest.lab import gallery
from steepest.lab.experiment import Evidence
from steepest.lab.smoke import LOOSE, TOLERANCE, differences

ROWS = [{"arm": "a", "error": 80.0, "n": 3}, {"arm": "b", "error": 0.001, "n": 4}]
KEPT = Evidence(ROWS, {"gain": 0.5})


def changed(place: int, **values: object) -> Evidence:
    rows = [dict(row) for row in ROWS]
    rows[place] |= values
    return Evidence(rows, {"gain": 0.5})


@pytest.mark.parametrize(
    "same",
    [
        KEPT,
        changed(0, error=80.0 * (1 + 0.9 * TOLERANCE)),
        changed(1, error=0.001 + 0.9 * TOLERANCE * 0.8),  # a hundredth of 80 is the least that is measured by
        Evidence(ROWS, {"gain": 0.5 * (1 - 0.9 * TOLERANCE)}),
    ],
)
def test_rounding_is_no_difference(same):
    assert differences(KEPT, same) == []


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (changed(0, error=80.0 * (1 + 1.1 * TOLERANCE)), "row 0, error: 80.0 was kept"),
        (changed(1, error=0.001 + 1.1 * TOLERANCE * 0.8), "row 1, error: 0.001 was kept"),
        (changed(1, n=5), "row 1, n: 4 was kept, now 5"),
        (changed(1, arm="c"), "row 1, arm: b was kept, now c"),
        (changed(1, more=1), "row 1: arm, error, n were kept, now arm, error, n, more"),
        (changed(1, arm=1), "row 1, arm: b was kept, now 1"),
        (Evidence(ROWS[:1], {"gain": 0.5}), "2 rows were kept, now 1"),
        (Evidence(ROWS, {"gain": 0.5 * (1 + 1.1 * TOLERANCE)}), "effects, gain: 0.5 was kept"),
        (Evidence(ROWS, {}), "effects: gain were kept"),
    ],
)
def test_other_results_are_a_difference(now, said):
    (only,) = differences(KEPT, now)
    assert only.startswith(said)


def test_a_loose_column_has_its_own_tolerance():
    assert differences(KEPT, changed(0, error=160.0), {"error": math.inf}) == []
    assert differences(KEPT, changed(0, error=81.0), {"error": 0.02}) == []
    assert len(differences(KEPT, changed(0, error=82.0), {"error": 0.02})) == 1
    assert len(differences(KEPT, changed(0, error=160.0, n=9), {"error": math.inf})) == 1


def test_loose_columns_are_those_of_experiments():
    assert set(LOOSE) <= {system.slug for system in gallery.experiments()}
