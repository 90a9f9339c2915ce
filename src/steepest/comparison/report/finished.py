"""What a comparison gives back: the answer, its tables, the report and the winner."""

from __future__ import annotations

import html
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...core.lazy import late
from ..errors import InputError
from ..own_parts import Trust
from .advice import advice
from .tables import FIELDS, LAST, metric_names
from .tables import prepare as in_order
from .winner.retrieval import RetrievalWinner
from .winner.texts import TextWinner
from .winner.winner import Winner

pd = late("pandas")

TEXT_COLUMNS = ("name", "title", "kind", "tier", "settings")
"""Of the leaderboard."""


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        results: everything, as in ``results.json``.
        folder: of the run: report, leaderboard, store, winner.
        trust: whether the winner may import a user's own parts; those that this comparison's own call named.
    """

    results: dict[str, Any]
    folder: Path
    trust: Trust = False

    @property
    def sentence(self) -> str:
        """The answer to the question that was declared beforehand."""
        return str(self.results["sentence"])

    @property
    def advice(self) -> str:
        """What to do, in one sentence."""
        return advice(self.results)

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder / "report.html"

    @cached_property
    def leaderboard(self) -> pd.DataFrame:
        """One row for each objective, classical learner and the procedure that picks, best mean first.

        Columns: ``name, title, kind, tier`` (text); ``difference, low, high`` to the baseline with its interval,
        ``p, p_holm`` (float64); ``prob_better, prob_same, prob_worse`` that it is, by more than the region of practical
        equivalence, ``detectable`` (float64); the mean over folds of each metric under its name (float64), the metric
        of the comparison first; ``seconds`` (of all its training), ``seconds_per_epoch, peak_memory_mb`` (float64);
        ``diverged`` (int64); ``settings`` that won most folds (text). NaN where there is no value.
        """
        results = in_order(self.results)
        names, rows = metric_names(results), []
        for row in results["rows"]:
            means = {name: (row["metrics"].get(name) or {}).get("mean") for name in names}
            rows.append({key: row[key] for key in FIELDS} | means | {key: row[key] for key in LAST})
        board = pd.DataFrame(rows)
        dtypes = dict.fromkeys(board.columns, "float64") | dict.fromkeys(TEXT_COLUMNS, "str") | {"diverged": "int64"}
        return board.astype(dtypes)

    @property
    def fold_scores(self) -> pd.DataFrame:
        """The metric in each outer fold, a column a name."""
        return pd.DataFrame(self.results["fold_scores"])

    @cached_property
    def winner(self) -> Winner | TextWinner | RetrievalWinner:
        """What won, fitted on all rows: a classical learner or a network, also of texts or of a retrieval."""
        if self.results["data"]["task"] == "text":
            return TextWinner.load(self.folder / "winner")
        if self.results["data"]["task"] == "retrieval":
            return RetrievalWinner.load(self.folder / "winner", trust=self.trust)
        return Winner.load(self.folder / "winner", trust=self.trust)

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The winner's predictions for new rows."""
        return self.winner.predict(frame)

    def predict_proba(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The winner's calibrated probabilities for new rows, a column a class."""
        if isinstance(self.winner, TextWinner | RetrievalWinner):
            raise InputError(f"no probabilities: {self.winner.no_probabilities}")
        return self.winner.predict_proba(frame)

    def _repr_html_(self) -> str:
        words = f"<p>{html.escape(self.sentence)}</p><p>{html.escape(self.advice)}</p>"
        return words + str(self.leaderboard.to_html(float_format="%.4f", na_rep="-"))

    def __repr__(self) -> str:
        return f"<Comparison {self.folder.name}: {self.sentence}>"
