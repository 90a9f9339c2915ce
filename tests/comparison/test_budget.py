"""The words of a budget: what they mean, in the command and in Python, and one line for what is no time."""

from __future__ import annotations

import random

import numpy as np
import pytest

from steepest.comparison.budget import seconds_of, words_of
from steepest.comparison.errors import InputError
from steepest.comparison.request import Request


@pytest.mark.parametrize(
    ("budget", "seconds"),
    [
        ("90s", 90), ("10m", 600), ("2h", 7200), ("1h30m", 5400), ("1h30m5s", 5405), ("1h5s", 3605), ("0.5h", 1800),
        ("10", 600), (".5", 30), ("1e-2", 0.6), (" 10M ", 600), (10, 600), (0.5, 30), (np.float32(2), 120),
        (np.int64(3), 180),
    ],
)  # fmt: skip
def test_words_and_plain_minutes(budget: object, seconds: float) -> None:
    request = Request("wine", budget=budget)  # type: ignore[arg-type]
    assert request.budget_seconds == pytest.approx(seconds, rel=1e-12)
    assert request.budget is budget


@pytest.mark.parametrize(
    "budget",
    ["", " ", "soon", "10 m", "m", "30m1h", "10m20", "1h30", "-5m", "-1", "0", "0s", "nan", "inf", "1m1m", "1,5h", "٣m",
     "9" * 400, 10**400, 0, -1.0, float("nan"), float("inf"), True, None, [10]],
)  # fmt: skip
def test_what_is_no_time_is_one_line(budget: object) -> None:
    with pytest.raises(InputError) as caught:
        Request("wine", budget=budget)  # type: ignore[arg-type]
    said = str(caught.value)
    assert said.startswith("--budget: expected a time above 0 (90s, 10m, 2h, 1h30m, plain minutes), got ")
    assert len(said) < 180
    assert "\n" not in said


def test_words_of_a_time_are_read_back() -> None:
    rng = random.Random(0)
    for seconds in (1, 59, 60, 61, 3599, 3600, 3660, *(rng.randrange(1, 10**6) for _ in range(200))):
        assert seconds_of(words_of(seconds)) == seconds
        assert seconds_of(words_of(seconds - 0.5)) == seconds  # never less than what is needed
