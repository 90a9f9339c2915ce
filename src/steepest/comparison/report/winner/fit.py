"""The winner of a finished comparison: chosen by inner validation, fitted on all rows, calibrated on held-out ones."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...design.context import Context, Pair, Split
from ...design.deadline import OutOfTime
from ...design.folds import CLASSES, Fold
from ...design.models import build, on_rows
from ...design.settings import Settings
from ...design.trials import Trial, seed_of, words_of_trial
from ...errors import InputError
from ...read import Preprocessor, Table
from ...read.images import Images
from ...read.inputs import fit_inputs
from ...scores.calibration import calibrate
from ...scores.outcome import Outcome
from ...verdict.judge import Judge
from ...work.cells import best_trial, member_of, numpy_seed, operating_point_of, recipe_of
from ...work.classical import fit_learners, outcome_of_split, rounds_of, trials_of_learner
from ...work.store import Store
from ...work.training import Member, outcome_of, train
from .facts import FORMAT, KINDS
from .files import FittedNetwork
from .learner import FittedLearners
from .retrieval import RetrievalWinner, fit_retrieval_winner, raw_winner
from .texts import TextWinner, fit_text_winner
from .winner import Winner


def choose(judge: Judge, kind: str = KINDS[0]) -> tuple[str, int]:
    """The name of a kind and its trial with the best mean on inner validation over all folds; ties go to the first."""
    greater = judge.metric.greater_is_better
    options: list[tuple[str, int]] = []
    means: list[float] = []
    for name in judge.names(kind):
        cells = [judge.cells[name][pair] for pair in judge.pairs]
        for t in range(len(cells[0]["inner"])):
            values = [c["inner"][t] for c in cells]
            options.append((name, t))
            means.append(float("nan") if any(v is None for v in values) else float(np.mean(values)))
    return options[best_trial(means, greater)]


def fit_winner(
    context: Context,
    store: Store,
    kind: str = KINDS[0],
    pairs: Sequence[Pair] | None = None,
    *,
    rows: int | None = None,
    ends_at: float = math.inf,
) -> Winner | TextWinner | RetrievalWinner:
    """Fit what inner validation picks on all rows; its epochs, threshold and calibration come from one more holdout.

    Where the training rows of the cells were cut, so are those of the winner.

    Args:
        context: of the comparison, at the level of the cells that choose.
        store: of its finished cells.
        kind: "objective" for a network, "classical" for a classical learner.
        pairs: the folds that count; None is all.
        rows: that it is fitted on at most; None is as said.
        ends_at: when it has to be fitted, by the system's clock.

    Raises:
        OutOfTime: it is not by then; of a learner, which asks no clock while it fits, what its cells took tells so.
    """
    judge = Judge(context, store, pairs=pairs)
    name, trial = choose(judge, kind)
    if context.table.task == "retrieval":
        if kind != KINDS[0]:
            return raw_winner(context)
        return fit_retrieval_winner(context, name, trial, rows=rows, ends_at=ends_at)
    if context.table.task == "text":
        return fit_text_winner(context, name, trial, rows=rows, ends_at=ends_at)
    whole = Context(context.table, replace(context.settings, noise=0.0, test=""))
    pair = (context.settings.repeats + 1, 0)
    positions = np.arange(len(context.table.target))
    if context.capped or rows is not None:
        seed = seed_of(context.settings.seed, *pair, "prefix")
        most = context.most_rows if context.capped else len(positions)
        positions = context.first_rows(positions, most if rows is None else min(most, rows), seed)
    whole._folds = {pair: Fold(*pair, positions, positions[:1])}
    if kind == KINDS[0]:
        return _fit_network(whole, name, trial, ends_at)
    if not math.isinf(ends_at):
        inner, tried = len(context.inner(judge.pairs[0])), len(trials_of_learner(context, name))
        took = float(np.mean([judge.cells[name][pair]["seconds"] for pair in judge.pairs]))
        if time.time() + took * (inner + 1) / (tried * inner + 1) > ends_at:
            raise OutOfTime
    return _fit_learner(whole, name, trials_of_learner(context, name)[trial])


def _fit_network(whole: Context, name: str, number: int, ends_at: float) -> Winner:
    (pair,) = whole.folds
    cls, settings = whole.objective(name), whole.settings
    trial: Trial = whole.trials(name)[number]
    over = None if math.isinf(ends_at) else lambda: time.time() >= ends_at
    recipe = recipe_of(whole, cls, over, arm=whole.arm(name))
    tuned: list[Member] = [member_of(whole, pair, inner_split, trial) for inner_split in range(len(whole.inner(pair)))]
    with torch.random.fork_rng(devices=[]):
        train(recipe, tuned)
        epochs = max(1, round(float(np.mean([m.epochs for m in tuned]))))
        final = member_of(whole, pair, -1, trial, length=epochs)
        train(recipe, [final])
    assert final.objective is not None and final.state is not None
    width = int(final.split.inputs.shape[1])
    backbone, bins = on_rows(recipe.backbone, final.split.inputs)
    again = cls.from_task(final.info, **trial.hyper)
    network, _ = build(backbone, width, again, final.info, backbone_seed=0, head_seed=0)
    network.load_state_dict(final.state)
    facts = {
        **_shared(whole),
        "kind": KINDS[0],
        "objective": settings.objective or name,
        "hyper": trial.hyper,
        "settings": (f"{name}, " if settings.objective else "") + trial.describe(),
        "model": settings.model,
        "bins": bins or None,
        "info": {**asdict(final.info), "class_counts": list(final.info.class_counts)},
        "epochs": epochs,
        "scale": [np.asarray(values).tolist() for values in final.split.scale],
        **_held_out(whole, [m.split for m in tuned], [_said(m) for m in tuned]),
    }
    scale = final.split.scale
    return Winner.of(facts, FittedNetwork(network, final.objective, whole.table.task, scale), settings.own_parts)


def _said(member: Member) -> Outcome:
    """What a tuned network says of its validation rows."""
    assert member.objective is not None and member.outputs is not None
    return outcome_of(member.objective.eval(), member.outputs, member.split)


def _fit_learner(whole: Context, name: str, hyper: dict[str, Any]) -> Winner:
    (pair,) = whole.folds
    settings, table = whole.settings, whole.table
    seed = seed_of(settings.seed, *pair, "classical")
    options: dict[str, Any] = {
        "classes": whole.classes,
        "rows": len(table.target),
        "seed": seed % 2**31,
        "hyper": hyper,
    }
    splits = [whole.split(pair, inner_split) for inner_split in range(len(whole.inner(pair)))]
    with numpy_seed(seed % 2**32):
        tuned = [fit_learners(name, split, stop=True, **options) for split in splits]
        rounds = rounds_of(tuned)
        fitted = FittedLearners(fit_learners(name, whole.split(pair, -1), rounds=rounds, **options), table.task)
    outcomes = [outcome_of_split(own, split) for own, split in zip(tuned, splits)]
    facts = {
        **_shared(whole),
        "kind": KINDS[1],
        "learner": name,
        "settings": words_of_trial(hyper) if fitted.learners[0].search else "",
        "hyper": hyper,
        "rounds": rounds,
        "task": table.task,
        "rows": options["rows"],
        "seed": options["seed"],
        **fitted.moved,
        **_held_out(whole, splits, outcomes),
    }
    return Winner.of(facts, fitted, settings.own_parts)


def _shared(whole: Context) -> dict[str, Any]:
    """The facts that every winner of a table has."""
    table = whole.table
    prepared = fit_inputs(table, np.arange(len(table.target)))
    tabular = isinstance(prepared, Preprocessor)
    return {
        "format": FORMAT,
        "width": prepared.width if tabular else len(prepared.mean),
        "classes": list(table.classes),
        "target": table.target_name,
        "parts": [{**asdict(target), "classes": list(target.classes)} for target in whole.parts],
        "label_dtype": getattr(table, "label_dtype", "str"),
        "columns": prepared.columns if tabular else [],
        "numeric": prepared.numeric if tabular else [],
        "preprocessing": prepared.to_json(),
        "pixels": list(table.pixels.shape[1:]) if isinstance(table, Images) else [],
        **({"query": table.query_name} if isinstance(table, Table) and table.queries is not None else {}),
    }


def _held_out(whole: Context, splits: Sequence[Split], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Threshold, temperature and calibration from what models, each fitted on one split, say of its other rows."""
    point: dict[str, Any] = {
        **operating_point_of(whole, splits, outcomes),
        "calibration": None,
        "no_probabilities": "",
    }
    if whole.table.task not in (*CLASSES, "multilabel") or all(o.probabilities is not None for o in outcomes):
        return point
    point["temperature"] = None
    scores = [outcome.decision for outcome in outcomes if outcome.decision is not None]
    weights = [split.other_weight for split in splits if split.other_weight is not None]
    if len(scores) < len(outcomes):
        point["no_probabilities"] = "it gives classes and no scores"
        return point
    y = np.concatenate([split.other_target for split in splits])
    fitted = calibrate(np.concatenate(scores), y, np.concatenate(weights) if weights else None)
    if isinstance(fitted, str):
        point["no_probabilities"] = fitted
    else:
        point["calibration"] = {"slope": list(fitted.slope), "offset": list(fitted.offset)}
    return point


def arm_of(winner: Winner | TextWinner | RetrievalWinner, settings: Settings) -> tuple[str, str]:
    """The name under which a winner was compared, and its settings: where the objective does not vary, its arm."""
    text = str(winner.facts["settings"])
    if not settings.objective or winner.facts["kind"] != KINDS[0]:
        return winner.name, text
    name, _, rest = text.partition(", ")
    return name, rest


def saved_winner(folder: Path, context: Context, kind: str = KINDS[0]) -> Winner | TextWinner | RetrievalWinner | None:
    """The winner of this kind that this run has saved; None where it has not, or what lies there cannot be it."""
    settings = context.settings
    if context.table.task in ("text", "retrieval"):
        try:
            saved: TextWinner | RetrievalWinner
            if context.table.task == "text":
                saved = TextWinner.load(folder)
            else:
                saved = RetrievalWinner.load(folder, trust=settings.own_parts)
        except InputError:
            return None
        if kind != KINDS[0]:
            return saved if saved.name in settings.classical else None
        return saved if saved.name in settings.objectives and saved.facts["model"] == settings.model else None
    try:
        winner = Winner.load(folder, trust=settings.own_parts)
    except InputError:
        return None
    networks = (settings.objective,) if settings.objective else settings.objectives
    names = networks if kind == KINDS[0] else settings.classical
    ours = winner.facts["kind"] == kind and winner.name in names
    ours = ours and winner.facts.get("model", settings.model) == settings.model
    return winner if ours and winner.facts["classes"] == list(context.table.classes) else None
