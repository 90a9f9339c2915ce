"""The saved winner: what inner validation would pick, fitted on all rows, as safetensors and JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ..core.objective import Objective, TaskInfo
from .cells import Context, best_trial, operating_point
from .design import Trial, trials
from .errors import InputError
from .folds import Fold
from .images import ImageScaler, load_images
from .inputs import fit_inputs, restore
from .judge import Judge
from .metrics import Outcome, apply_temperature
from .models import build
from .objectives import find_objective
from .own_parts import Trust
from .read import Preprocessor
from .read.several import Part
from .read.task import label_index
from .store import Store
from .training import Member, Split, outcome_of, train
from .winner_facts import FILE, FORMAT, read_facts
from .winner_files import (
    OBJECTIVE,
    built,
    check_array,
    read_tensors,
    refuse_infinite,
    said_by,
    winner_folder,
    write_tensors,
)


class Winner:
    """A fitted network with its preprocessing, threshold and temperature.

    Load with :meth:`load`; ``predict(frame)`` gives a frame with ``prediction`` and, for classes, calibrated
    probabilities.
    """

    def __init__(self, network: nn.Module, facts: dict[str, Any], objective: Objective) -> None:
        self.network, self.facts = network, facts
        self.prepared = restore(facts["preprocessing"])
        self.parts = [Part.from_json(part) for part in facts["parts"]]
        self.info = TaskInfo(**{**facts["info"], "class_counts": tuple(facts["info"]["class_counts"])})
        self.objective = objective.cpu().eval()

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
        told = read_facts(folder, trust)
        state = read_tensors(folder, told.values.pop("weights"))
        try:
            network, objective = built(told, state)
            winner = cls(network.eval(), told.values, objective)
            winner._try_out()
        except Exception as error:  # whatever a file makes a network or an objective raise
            raise InputError(f"the saved winner in {str(folder)!r} is not whole: {said_by(error)}") from error
        return winner

    def _try_out(self) -> None:
        """Predict two average rows: shapes that don't go together show here, not at the first prediction."""
        if isinstance(self.prepared, ImageScaler):
            inputs = torch.zeros(2, len(self.prepared.mean), 8, 8)
        else:
            inputs = torch.zeros(2, self.prepared.width)
        outcome, classes = self._outcome(inputs), len(self.facts["classes"])
        columns = (len(self.parts),) if self.parts else ()
        check_array("predictions", outcome.predicted, (2, *columns))
        if outcome.probabilities is not None and self.info.task != "multitask":
            check_array("probabilities", outcome.probabilities, (2, classes))
        if self.info.task == "binary" and outcome.decision is not None:
            check_array("decisions", outcome.decision, (2,))

    def save(self, folder: str | Path) -> None:
        """Write ``winner.safetensors``, then ``winner.json`` with its hash, each in one step."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {**self.network.state_dict(), **{OBJECTIVE + k: v for k, v in self.objective.state_dict().items()}}
        facts = {**self.facts, "weights": write_tensors(folder, state)}
        text = folder / f".{FILE}.part"
        text.write_text(json.dumps(facts, indent=1, allow_nan=False), encoding="utf-8")
        os.replace(text, folder / FILE)

    @property
    def warnings(self) -> list[str]:
        """What there was to beware of in the rows predicted last, a line each."""
        return list(getattr(self.prepared, "warnings", ()))

    def outcome(self, rows: Any) -> Outcome:
        """What the network says of rows (frame, array or path), or of images uint8 ``[N, H, W, C]``, uncalibrated."""
        found = self.prepared.transform(np.asarray(rows) if isinstance(self.prepared, ImageScaler) else rows)
        return self._outcome(torch.as_tensor(found, dtype=torch.float32))

    def _outcome(self, inputs: Tensor) -> Outcome:
        scale = tuple(np.asarray(each) for each in self.facts["scale"])
        empty = torch.zeros(0)
        split = Split(empty, empty, None, inputs, np.zeros(0), None, (scale[0], scale[1]), self.info.task)
        with torch.no_grad():
            outputs = torch.cat([self.network(part) for part in inputs.split(4096)])
            return outcome_of(self.objective, outputs, split)

    def predict(self, rows: Any) -> pd.DataFrame:
        """A frame of predictions for rows that have the training columns, or for images.

        Args:
            rows: a frame with the columns ``facts["columns"]``, others are ignored; an array with these columns; a
                path; or images uint8 ``[N, H, W, C]``.

        Returns:
            ``prediction`` (class labels in the dtype of the training labels; for two classes cut at the tuned
            threshold), and ``p_LABEL`` for each class after temperature scaling where the objective gives
            probabilities. With several targets a column for each (and ``p_LABEL`` of each label). The row labels are
            those of a frame.

        Raises:
            InputError: a column is missing, or holds something else than it did in training, or a row lies so far out
                that the network gives no finite number.
        """
        found = self._predictions(self.outcome(rows))
        return found.set_axis(rows.index) if isinstance(rows, pd.DataFrame) else found

    def _predictions(self, outcome: Outcome) -> pd.DataFrame:
        refuse_infinite(outcome)
        classes = self.facts["classes"]
        if self.parts:
            return several_predictions(outcome, self.parts)
        if not classes:
            return pd.DataFrame({"prediction": outcome.predicted})
        codes = outcome.predicted
        if self.facts["threshold"] is not None and outcome.decision is not None:
            codes = (outcome.decision > self.facts["threshold"]).astype(np.int64)
        found = pd.DataFrame({"prediction": label_index(classes, self.facts["label_dtype"]).take(codes)})
        if outcome.probabilities is not None:
            p = apply_temperature(outcome.probabilities, self.facts["temperature"] or 1.0)
            for label, column in zip(classes, p.T):
                found[f"p_{label}"] = column
        return found

    def predict_file(self, path: str | Path, **reading: Any) -> pd.DataFrame:
        """:meth:`predict` for a file, or for images as they were compared.

        Args:
            path: of the file.
            **reading: encoding, separator and header, where they cannot be found by themselves.
        """
        if isinstance(self.prepared, ImageScaler):
            return self.predict(load_images(str(path), split="pool")[0].pixels)
        return self._predictions(self.outcome(self.prepared.rows(path, **reading)))


def choose(judge: Judge) -> tuple[str, int]:
    """The objective and trial with the best mean on inner validation over all folds; ties go to the first."""
    greater = judge.metric.greater_is_better
    options: list[tuple[str, int]] = []
    means: list[float] = []
    for name in judge.names("objective"):
        cells = [judge.cells[name][pair] for pair in judge.pairs]
        for t in range(len(cells[0]["inner"])):
            values = [c["inner"][t] for c in cells]
            options.append((name, t))
            means.append(float("nan") if any(v is None for v in values) else float(np.mean(values)))
    return options[best_trial(means, greater)]


def fit_winner(context: Context, store: Store) -> Winner:
    """Fit what inner validation picks on all rows; its epochs, threshold and temperature come from one more holdout."""
    name, number = choose(Judge(context, store))
    cls, settings = context.objective(name), context.settings
    trial: Trial = trials(cls, settings.trials, settings.seed)[number]
    rows = np.arange(len(context.table.target))
    whole = Context(context.table, replace(settings, noise=0.0, test=""))
    pair = (settings.repeats + 1, 0)
    whole._folds = {pair: Fold(*pair, rows, rows[:1])}
    recipe = whole.recipe(cls)
    tuned: list[Member] = [whole.member(pair, part, trial) for part in range(len(whole.inner(pair)))]
    with torch.random.fork_rng(devices=[]):
        train(recipe, tuned)
        epochs = max(1, round(float(np.mean([m.epochs for m in tuned]))))
        final = whole.member(pair, -1, trial, length=epochs)
        train(recipe, [final])
    assert final.objective is not None and final.state is not None
    prepared = fit_inputs(context.table, rows)
    tabular = isinstance(prepared, Preprocessor)
    width = int(final.split.inputs.shape[1])
    network = build(recipe.backbone, width, final.objective, final.info, backbone_seed=0, head_seed=0)
    network.load_state_dict(final.state)
    facts = {
        "format": FORMAT,
        "objective": name,
        "hyper": trial.hyper,
        "settings": trial.describe(),
        "model": settings.model,
        "width": width,
        "info": asdict(final.info),
        "epochs": epochs,
        "classes": list(context.table.classes),
        "target": context.table.target_name,
        "parts": [asdict(part) for part in context.parts],
        "label_dtype": getattr(context.table, "label_dtype", "str"),
        "columns": prepared.columns if tabular else [],
        "numeric": prepared.numeric if tabular else [],
        "preprocessing": prepared.to_json(),
        "scale": [np.asarray(each).tolist() for each in final.split.scale],
        **operating_point(whole, tuned),
    }
    return Winner(network.eval(), facts, final.objective)


def saved_winner(folder: Path, context: Context) -> Winner | None:
    """The winner that this run has saved; None where it has not, or what lies there cannot be it."""
    settings = context.settings
    try:
        winner = Winner.load(folder, trust=settings.own_parts)
    except InputError:
        return None
    ours = winner.facts["objective"] in settings.objectives and winner.facts["model"] == settings.model
    return winner if ours and winner.facts["classes"] == list(context.table.classes) else None


def several_predictions(outcome: Outcome, parts: Sequence[Part]) -> pd.DataFrame:
    """A column for each target: labels, numbers; ``p_LABEL`` where there are probabilities."""
    found: dict[str, Any] = {}
    for t, part in enumerate(parts):
        column = outcome.predicted[:, t]
        labels = label_index(part.classes, part.dtype) if part.classes else None
        found[part.name] = column if labels is None else labels.take(column.astype(int))
    if outcome.probabilities is not None:
        found |= {f"p_{part.name}": outcome.probabilities[:, t] for t, part in enumerate(parts)}
    return pd.DataFrame(found)


def usage(folder: Path, objective: str, hyper: dict[str, Any], data: str, own_parts: frozenset[str]) -> str:
    """The Python lines that use the winner; ``own_parts`` are those that the run itself named."""
    cls = find_objective(objective, trust=own_parts)
    arguments = ", ".join(f"{k}={v!r}" for k, v in hyper.items())
    home = "steepest.losses" if cls.__module__.startswith("steepest.losses") else cls.__module__
    trust = ", trust=True" if own_parts else ""
    return (
        f"from steepest.comparison import Winner\n\n"
        f"winner = Winner.load({str(folder / 'winner')!r}{trust})\n"
        f"print(winner.predict_file({data!r}))\n\n"
        f"# or its objective in your own loop; info describes your training split (steepest.core.objective.TaskInfo)\n"
        f"from {home} import {cls.__name__}\n\n"
        f"objective = {cls.__name__}.from_task(info, {arguments})\n".replace("(info, )", "(info)")
    )
