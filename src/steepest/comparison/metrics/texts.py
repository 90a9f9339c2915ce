"""Metrics of language models: of all tokens that are scored, of whole answers, and a user's own of texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import InputError
from ..scores.outcome import Outcome
from .metric import Metric


@dataclass(frozen=True)
class TextOutcome(Outcome):
    """What a language model says about N rows.

    Attributes:
        predicted: ``[N, 2]`` float64: the log-likelihood of a row's tokens in nats, and how many of them were the
            likeliest where they stand.
        wanted, given: how each row goes on, and how the model goes on; empty where no metric reads them.
    """

    wanted: tuple[str, ...] = field(default=(), compare=False)
    given: tuple[str, ...] = field(default=(), compare=False)


def cross_entropy(y: np.ndarray, outcome: Outcome, _: np.ndarray | None) -> float | None:
    """Nats a token, of all tokens of rows with ``y`` tokens.

    >>> cross_entropy(np.array([1, 3]), Outcome(np.array([[-1.0, 0.0], [-7.0, 2.0]])), None)
    2.0
    """
    total = float(y.sum())
    return -float(outcome.predicted[:, 0].sum()) / total if total else None


def perplexity(y: np.ndarray, outcome: Outcome, _: np.ndarray | None) -> float | None:
    """The exponential of the cross-entropy."""
    nats = cross_entropy(y, outcome, None)
    return None if nats is None else float(np.exp(nats))


def token_accuracy(y: np.ndarray, outcome: Outcome, _: np.ndarray | None) -> float | None:
    """The share of tokens that were the likeliest."""
    total = float(y.sum())
    return float(outcome.predicted[:, 1].sum()) / total if total else None


def exact_match(y: np.ndarray, outcome: Outcome, _: np.ndarray | None) -> float:
    """The share of rows of which every token was the likeliest after those before it: so the model answers by itself.

    >>> exact_match(np.array([1, 3]), Outcome(np.array([[-1.0, 1.0], [-7.0, 2.0]])), None)
    0.5
    """
    return float(np.mean(outcome.predicted[:, 1] == y))


_SHARE = (0.0, 1.0)
OF_TEXT: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("cross_entropy", False, "Cross-entropy, nats a token", cross_entropy, "tokens", (0.0, np.inf)),
        Metric("perplexity", False, "Perplexity", perplexity, "tokens", (1.0, np.inf)),
        Metric("token_accuracy", True, "Token accuracy", token_accuracy, "tokens", _SHARE),
    )
}
"""Of a plain text."""
OF_ANSWERS: dict[str, Metric] = {
    "exact_match": Metric("exact_match", True, "Exact match", exact_match, "tokens", _SHARE),
    **OF_TEXT,
}
"""Of prompts and answers."""


def text_metrics(answers: bool) -> dict[str, Metric]:
    """The metrics of a text, the default first.

    >>> list(text_metrics(answers=False)), next(iter(text_metrics(answers=True)))
    (['cross_entropy', 'perplexity', 'token_accuracy'], 'exact_match')
    """
    return OF_ANSWERS if answers else OF_TEXT


def own_text_metric(spec: str, scorer: Any) -> Metric:
    """A user's ``function(wanted, given) -> float`` of two lists of texts: how rows go on, and how a model does."""
    if not callable(scorer):
        raise InputError(f"metric {spec!r}: expected a function of (wanted, given), got {type(scorer).__name__}")
    function: Callable[[list[str], list[str]], float] = scorer

    def of_texts(_: np.ndarray, outcome: Outcome, __: np.ndarray | None) -> float | None:
        if not isinstance(outcome, TextOutcome) or not outcome.wanted:
            return None
        try:
            return float(function(list(outcome.wanted), list(outcome.given)))
        except Exception as error:
            raise InputError(f"metric {spec!r} failed: {error}") from error

    greater = bool(getattr(scorer, "greater_is_better", True))
    return Metric(spec, greater, spec.partition(":")[2], of_texts, "tokens")
