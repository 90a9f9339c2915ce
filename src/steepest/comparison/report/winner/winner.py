"""The saved winner, a network or a classical learner: loaded, asked for predictions and probabilities, written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ....core.lazy import late
from ....core.stored import parse_json
from ...errors import InputError
from ...own_parts import Trust
from ...parts import Part
from ...read.images import ImageScaler, load_images
from ...read.images.raw import size_of
from ...read.images.source import SMALLEST
from ...read.options import read_options
from ...read.task import label_index
from ...scores.operating_point import apply_temperature
from ...scores.outcome import Outcome
from .facts import CLASSES, FILE, WinnerFacts, checked, read_facts
from .files import TENSORS, FittedNetwork, check_array, refuse_infinite, said_by, winner_folder, write_whole
from .learner import LEARNERS, FittedLearners
from .lists import COLUMNS, list_column_of, no_lists, ranked
from .loading import is_text_winner, kind_of_winner
from .trees import TREES

pd = late("pandas")


class Winner:
    """What a comparison found best, fitted on all rows, with its preprocessing, threshold and calibration.

    Load with :meth:`load`; ``predict(rows)`` gives a frame with ``prediction`` and, for classes, calibrated
    probabilities. It works alike for a network and for a classical learner; ``facts["kind"]`` says which it is.
    """

    def __init__(self, facts: WinnerFacts, fitted: FittedNetwork | FittedLearners) -> None:
        self.facts, self._told, self.fitted = facts.values, facts, fitted
        self.prepared, self.parts = facts.prepared, facts.parts
        self._warned: list[str] = []

    @classmethod
    def of(cls, facts: dict[str, Any], fitted: FittedNetwork | FittedLearners, trust: Trust) -> Self:
        """A winner as it would be read back: its facts are checked now.

        Args:
            facts: all of ``winner.json`` but the hash of what was fitted.
            fitted: network or learners.
            trust: own parts that may be imported.
        """
        return cls(checked(parse_json(json.dumps({**facts, "weights": ""}), FILE), trust), fitted)

    @classmethod
    def load(cls, folder: str | Path, *, trust: Trust = False) -> Self:
        """Read a winner's folder; nothing in it is taken unchecked.

        Args:
            folder: of the winner, or of the run that holds it; wherever it was copied.
            trust: whether a network or objective of somebody's own (``module:name`` in ``winner.json``) may be
                imported, which runs that code: True, False, or the names that may be.

        Raises:
            InputError: there is none, it is not whole, contradicts itself, or needs ``trust``.
        """
        folder = winner_folder(folder)
        if is_text_winner(folder):
            raise InputError(f"{str(folder)!r} holds a language model: steepest.comparison.TextWinner.load reads it")
        if kind_of_winner(folder) == "retrieval":
            raise InputError(f"{str(folder)!r} gives embeddings: steepest.comparison.RetrievalWinner.load reads it")
        told = read_facts(folder, trust)
        try:
            winner = cls(told, (FittedLearners if told.network is None else FittedNetwork).read(folder, told))
            winner._try_out()
        except Exception as error:  # whatever a file makes a network, an objective or a learner raise
            said = said_by(error)
            known = isinstance(error, InputError) and "saved winner" in said
            raise InputError(said if known else f"the saved winner in {str(folder)!r} is not whole: {said}") from error
        return winner

    @property
    def name(self) -> str:
        """Of the objective or of the classical learner."""
        return str(self.facts.get("objective") or self.facts["learner"])

    def _try_out(self) -> None:
        """Predict two average rows: shapes that don't go together show here, not at the first prediction."""
        if isinstance(self.prepared, ImageScaler):
            inputs = torch.zeros(2, len(self.prepared.mean), 8, 8)
        else:
            inputs = torch.zeros(2, self.prepared.width)
        outcome, task = self.fitted.outcome(inputs), self._told.task
        columns = (len(self.parts),) if self.parts else ()
        check_array("predictions", outcome.predicted, (2, *columns))
        if outcome.probabilities is not None and task != "multitask":
            check_array("probabilities", outcome.probabilities, (2, len(self.facts["classes"])))
        if task == "binary" and outcome.decision is not None:
            check_array("decisions", outcome.decision, (2,))
        if task == "multilabel" and outcome.decision is not None:
            check_array("decisions", outcome.decision, (2, *columns))
        given = [outcome.probabilities is not None, self._told.calibration is not None]
        if task in (*CLASSES, "multilabel") and sum([*given, bool(self.facts["no_probabilities"])]) != 1:
            raise InputError("expected probabilities, a calibration, or a reason why there are none: one of them")

    def save(self, folder: str | Path) -> None:
        """Write what was fitted, then ``winner.json`` with its hash, each in one step."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**self.facts, "weights": self.fitted.write(folder)}, indent=1, allow_nan=False)
        write_whole(folder / FILE, text.encode())
        for name in {TENSORS, LEARNERS, TREES} - {self.fitted.file}:
            (folder / name).unlink(missing_ok=True)

    @property
    def warnings(self) -> list[str]:
        """What there was to beware of in the rows predicted last, a line each."""
        return [*getattr(self.prepared, "warnings", ()), *self._warned]

    @property
    def no_probabilities(self) -> str:
        """Why it gives no probabilities; empty where it gives them."""
        task = self._told.task
        if task in (*CLASSES, "multilabel"):
            return str(self.facts["no_probabilities"])
        why = {"regression": "the target holds numbers", "ranking": "it gives scores and ranks"}
        return why.get(task, "it has several targets of different kinds")

    @property
    def predicted_columns(self) -> list[str]:
        """Names of the columns that :meth:`predict` gives before those of probabilities."""
        if "query" in self.facts:
            return list(COLUMNS)
        return [target.name for target in self.parts] or ["prediction"]

    def outcome(self, rows: Any) -> Outcome:
        """What it says of rows (frame, array or path), or of images uint8 ``[N, H, W, C]``, uncalibrated."""
        if isinstance(self.prepared, ImageScaler):
            rows = np.asarray(rows)
            if rows.ndim == 4 and list(rows.shape[1:]) != self.facts["pixels"]:
                expected = size_of(self.facts["pixels"])
                raise InputError(f"expected images of {expected}, as they were compared, got {size_of(rows.shape[1:])}")
        inputs = self.prepared.transform(rows)
        return self._finite(torch.as_tensor(inputs, dtype=torch.float32))

    def _finite(self, inputs: Tensor) -> Outcome:
        try:
            outcome = self.fitted.outcome(inputs)
        except ValueError as error:  # a classical learner refuses inputs that are not finite
            refuse_infinite(Outcome(np.where(torch.isfinite(inputs).flatten(1).all(1).numpy(), 0.0, np.nan)))
            raise InputError(f"the winner cannot predict these rows: {said_by(error)}") from error
        refuse_infinite(outcome)
        return outcome

    def predict(self, rows: Any) -> pd.DataFrame:
        """A frame of predictions for rows that have the training columns, or for images.

        Args:
            rows: a frame with the columns ``facts["columns"]``, others are ignored; an array with these columns; a
                path; or images uint8 ``[N, H, W, C]``.

        Returns:
            ``prediction`` (class labels in the dtype of the training labels; for two classes cut at the tuned
            threshold), and ``p_LABEL`` for each class, calibrated, unless ``no_probabilities`` says why there are none.
            With several targets a column for each (and ``p_LABEL`` of each label). The row labels are those of a frame.
            Of a ranking the list of each row, ``score``, and ``rank`` within the list, 1 for the highest score.

        Raises:
            InputError: a column is missing, or holds something else than it did in training, or a row lies so far out
                that no finite number comes out.
        """
        return _labelled(self._ranked(self._predictions(self.outcome(rows)), rows), rows)

    def _ranked(self, predictions: pd.DataFrame, rows: Any, **reading: Any) -> pd.DataFrame:
        """With ranks within lists, where the comparison was of rankings."""
        if "query" not in self.facts:
            return predictions
        name = self.facts["query"]
        queries = list_column_of(rows, name, read_options(**reading))
        self._warned = [no_lists(name)] if queries is None else []
        return ranked(predictions["prediction"].to_numpy(), queries, name)

    def predict_proba(self, rows: Any) -> pd.DataFrame:
        """Calibrated probabilities of rows as :meth:`predict` takes them.

        Returns:
            A column for each class, named by it in the dtype of the training labels, each row of sum 1; of label sets
            the probability of each label. The row labels are those of a frame.

        Raises:
            InputError: there are none, and why; or as :meth:`predict`.
        """
        if self.no_probabilities:
            raise InputError(f"no probabilities: {self.no_probabilities}")
        probabilities = self._probabilities(self.outcome(rows))
        classes = self.facts["classes"]
        names = pd.Index(classes) if self.parts else label_index(classes, self.facts["label_dtype"])
        return _labelled(pd.DataFrame(probabilities, columns=names), rows)

    def _probabilities(self, outcome: Outcome) -> np.ndarray | None:
        """Calibrated, or None."""
        calibration = self._told.calibration
        if calibration is not None and outcome.decision is not None:
            return calibration.probabilities(outcome.decision)
        if outcome.probabilities is None or self.parts:
            return outcome.probabilities
        return apply_temperature(outcome.probabilities, self.facts["temperature"] or 1.0)

    def _predictions(self, outcome: Outcome) -> pd.DataFrame:
        classes = self.facts["classes"]
        if self.parts:
            return several_predictions(outcome.predicted, self._probabilities(outcome), self.parts)
        if not classes:
            return pd.DataFrame({"prediction": outcome.predicted})
        codes = outcome.predicted
        if self.facts["threshold"] is not None and outcome.decision is not None:
            codes = (outcome.decision > self.facts["threshold"]).astype(np.int64)
        predictions = pd.DataFrame({"prediction": label_index(classes, self.facts["label_dtype"]).take(codes)})
        p = self._probabilities(outcome)
        if p is not None:
            for label, column in zip(classes, p.T):
                predictions[f"p_{label}"] = column
        return predictions

    def predict_file(self, path: str | Path, **reading: Any) -> pd.DataFrame:
        """:meth:`predict` for a file, or for images, resized as they were compared.

        Args:
            path: of the file.
            **reading: encoding, separator and header, where they cannot be found by themselves.
        """
        if isinstance(self.prepared, ImageScaler):
            height, width, _ = self.facts["pixels"]
            size = height if height == width >= SMALLEST else None
            return self.predict(load_images(str(path), split="pool", size=size)[0].pixels)
        return self._ranked(self._predictions(self.outcome(self.prepared.rows(path, **reading))), path, **reading)


def _labelled(predictions: pd.DataFrame, rows: Any) -> pd.DataFrame:
    """With the row labels of a frame."""
    return predictions.set_axis(rows.index) if isinstance(rows, pd.DataFrame) else predictions


def several_predictions(predicted: np.ndarray, probabilities: np.ndarray | None, parts: Sequence[Part]) -> pd.DataFrame:
    """A column for each target: labels, numbers; ``p_LABEL`` where there are probabilities."""
    columns: dict[str, Any] = {}
    for t, target in enumerate(parts):
        own = predicted[:, t]
        labels = label_index(target.classes, target.dtype) if target.classes else None
        columns[target.name] = own if labels is None else labels.take(own.astype(int))
    if probabilities is not None:
        columns |= {f"p_{target.name}": probabilities[:, t] for t, target in enumerate(parts)}
    return pd.DataFrame(columns)
