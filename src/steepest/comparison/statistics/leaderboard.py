"""Leaderboards over data sets: win rates, Elo by a Bradley-Terry model, improvability."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...core.arrays import numbers
from ...core.checks import check_number, refuse
from ...core.lazy import late
from .looks import ALPHA

graphs = late("scipy.sparse.csgraph")

SCALE, CENTRE = 400.0, 1000.0
"""Points that make the odds of a win ten times as large, and the mean of all ratings."""
RIDGE = 0.5 / (1e6 * np.log(10) ** 2)
"""On squared log-strengths, as bencheval has it: it moves no rating that the data determine."""


@dataclass(frozen=True)
class Elo:
    """Ratings of methods over data sets.

    Attributes:
        ratings: [methods], 1000 on average; 400 points more are odds of ten to one.
        low, high: [methods] percentile interval over resampled data sets.
        message: where the data, or many resamples of them, determine no finite rating; or "".
    """

    ratings: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    message: str = ""


def win_rates(scores: np.ndarray, greater_is_better: bool = True) -> np.ndarray:
    """The share of data sets on which the method of a row beats that of a column; a tie is half a win.

    Args:
        scores: [datasets, methods], finite.
        greater_is_better: whether a larger score is the better one.

    Returns:
        [methods, methods]; NaN on the diagonal.

    >>> win_rates([[0.9, 0.8], [0.7, 0.7]]).tolist()
    [[nan, 0.75], [0.25, nan]]
    """
    table = _table(scores, greater_is_better)
    wins = (table[:, :, None] > table[:, None, :]) + 0.5 * (table[:, :, None] == table[:, None, :])
    rates: np.ndarray = wins.mean(0)
    np.fill_diagonal(rates, np.nan)
    return rates


def elo(
    scores: np.ndarray,
    greater_is_better: bool = True,
    *,
    rounds: int = 1000,
    confidence: float = 1 - ALPHA,
    seed: int = 0,
) -> Elo:
    """Elo ratings by the Bradley-Terry model, with a bootstrap over data sets.

        P(i beats j) = 1 / (1 + 10^((R_j - R_i) / 400)),  R of maximum likelihood, mean 1000

    Each data set is one comparison of each pair; a tie is half a win for both. Ratings depend on who takes part, and
    those of a method that won or lost everything would be infinite: a faint ridge, the same as in bencheval, keeps them
    finite, and ``message`` says so.

    Args:
        scores: [datasets, methods], finite; at least 2 methods.
        greater_is_better: whether a larger score is the better one.
        rounds: resamples of the data sets.
        confidence: of the interval, in (0, 1).
        seed: of the resamples.

    Raises:
        ValueError: another shape, values that are not finite, or a number out of range.

    >>> found = elo([[0.9, 0.8, 0.7], [0.6, 0.8, 0.7], [0.9, 0.7, 0.8]])
    >>> [round(rating) for rating in found.ratings]
    [1081, 1000, 919]

    Source: Bradley and Terry 1952; Erickson et al., "TabArena", arXiv:2506.16791.
    """
    table = _table(scores, greater_is_better)
    sets, methods = table.shape
    if methods < 2:
        refuse("scores", "at least two methods", table)
    check_number("rounds", rounds, low=1, integer=True)
    check_number("confidence", confidence, low=0.0, high=1.0, open_low=True, open_high=True)
    check_number("seed", seed, low=0, integer=True)
    beaten = (table[:, :, None] > table[:, None, :]) + 0.5 * (table[:, :, None] == table[:, None, :])
    wins = beaten.sum(2) - 0.5  # [datasets, methods], without the tie with itself
    ratings = _ratings(wins.sum(0)[None], sets)[0]
    counts = np.random.default_rng(seed).multinomial(sets, np.full(sets, 1 / sets), size=rounds)
    resampled = _ratings(counts @ wins, sets)
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    message = ""
    if not _determined(beaten.sum(0)):
        message = "some methods lost to others on every data set: a faint prior alone keeps their Elo ratings finite"
    elif np.mean([not _determined(drawn) for drawn in np.tensordot(counts, beaten, 1)]) > (1 - confidence) / 2:
        message = "so few data sets bound Elo badly: of many resamples a faint prior alone keeps the ratings finite"
    return Elo(tuple(ratings.tolist()), tuple(low.tolist()), tuple(high.tolist()), message)


def _determined(beaten: np.ndarray) -> bool:
    """Whether wins [methods, methods] determine finite ratings: a chain of wins leads from each method to each."""
    return bool(graphs.connected_components(beaten > 0, directed=True, connection="strong")[0] == 1)


def _ratings(wins: np.ndarray, sets: int) -> np.ndarray:
    """Ratings [rounds, methods] of wins [rounds, methods] in complete schedules of so many data sets: Newton's method.

    Where all pairs meet equally often, the likelihood knows the data by the wins of each method alone.
    """
    methods = wins.shape[1]
    strength = np.zeros_like(wins, dtype=np.float64)
    diagonal = np.eye(methods)
    for _ in range(200):
        chances = 1 / (1 + np.exp(np.clip(strength[:, None, :] - strength[:, :, None], -500, 500)))
        slope = wins - sets * (chances.sum(2) - 0.5) - 2 * RIDGE * strength
        spread = sets * chances * (1 - chances) * (1 - diagonal)
        curvature = spread.sum(2)[:, :, None] * diagonal - spread + 2 * RIDGE * diagonal
        step = np.linalg.solve(curvature, slope[:, :, None])[:, :, 0]
        step *= np.minimum(1.0, 2.0 / np.maximum(np.abs(step).max(1), 1e-300))[:, None]
        strength += step
        if np.abs(step).max() < 1e-9:
            break
    strength -= strength.mean(1, keepdims=True)
    ratings: np.ndarray = SCALE / np.log(10) * strength + CENTRE
    return ratings


def improvability(errors: np.ndarray) -> np.ndarray:
    """By which share the best method of a data set has less error, on average over data sets; 0 is the best throughout.

        mean over data sets of 1 - best error / error,  0 where both are 0

    Args:
        errors: [datasets, methods], at least 0 and finite.

    Returns:
        [methods] in [0, 1].

    Raises:
        ValueError: another shape, or values below 0 or not finite.

    >>> improvability([[1, 2], [4, 2]]).tolist()
    [0.25, 0.25]
    """
    table = numbers("errors", errors, (None, None), low=0.0)
    best = table.min(1, keepdims=True)
    share = np.divide(best, table, out=np.ones_like(table), where=table > 0)
    means: np.ndarray = (1 - share).mean(0)
    return means


def _table(scores: np.ndarray, greater_is_better: bool) -> np.ndarray:
    table = numbers("scores", scores, (None, None))
    return table if greater_is_better else -table
