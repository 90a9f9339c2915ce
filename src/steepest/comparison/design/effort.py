"""How much work cells of objectives are: a rough model of their steps, and how many processes share it."""

from __future__ import annotations

import math
import os

import torch
from torch import nn

from ...nn.tabm import TabM
from ..read.images import Images
from ..read.lists import RANKING
from ..read.texts import Texts
from .context import Context
from .levels import Level
from .models import find_model, members_of, on_rows
from .settings import Settings
from .text_models import find_text_model

SPEED = 2e10
"""Floating-point operations a second that the model assumes."""
STEP = 1.5e-3
"""Seconds of a step of a stack, however few models it has."""
SCORED = 3e-4
"""Seconds that the metric of a model takes."""
RUN = 0.6
"""The share of the epochs beyond the patience that a training runs, before any tells."""
IMAGE = 512 * 128 + 128 * 128
"""Multiply-adds that stand for an image."""


def multiply_adds(body: nn.Module, outputs: int) -> int:
    """Multiply-adds of one row through a backbone for tables and its head.

    >>> multiply_adds(nn.Linear(3, 128), 2)
    640
    """
    members = members_of(body) or 1
    every, shared = [body, body.layers] if isinstance(body, TabM) else [body, body]
    once, again = (sum(p.numel() for p in module.parameters() if p.ndim > 1) for module in (every, shared))
    return once + (members - 1) * again + members * 128 * max(outputs, 1)


def work_of(context: Context) -> int:
    """Multiply-adds of one row through the network of a comparison."""
    if isinstance(context.table, Texts):
        split, model = context.split(next(iter(context.folds)), 0), find_text_model(context.settings.model)
        assert split.texts is not None
        body = model.build(split.texts.vocabulary, split.texts.most, 0)
        return split.inputs.shape[1] * sum(p.numel() for p in body.parameters() if p.ndim > 1)
    if isinstance(context.table, Images):
        return IMAGE + 128 * max(context.classes, 1)
    inputs = context.split(next(iter(context.folds)), 0).inputs
    settings = context.settings
    backbone, _ = on_rows(find_model(settings.model, trust=settings.own_parts), inputs)
    with torch.random.fork_rng(devices=[]):
        return multiply_adds(backbone(inputs.shape[1]), context.classes)


def cell_seconds(
    context: Context,
    level: Level,
    *,
    work: int,
    inner: int,
    full: bool = False,
    refit: bool = True,
    speed: float = SPEED,
) -> float:
    """What the model says of a cell of an objective.

    Args:
        context: of the comparison.
        level: of the cell.
        work: multiply-adds of a row, as :func:`work_of` gives them.
        inner: inner folds.
        full: without early stopping.
        refit: with the training of the chosen trial on all rows.
        speed: floating-point operations a second.
    """
    s, rows = context.settings, min(level.rows, context.most_rows)
    epochs = refitted = float(level.epochs)
    if not (full or s.fixed_length) and epochs > s.patience:
        refitted = RUN * (epochs - s.patience)
        epochs = s.patience + refitted
    models = level.trials * inner
    fit = rows * (7 / 8 if s.fixed_length else 3 / 4 if inner == 1 else 2 / 3)
    batch = min(s.batch_size, fit)
    step = 6.0 * batch * work / speed
    alone = isinstance(context.table, Images | Texts)
    stacked = s.vary == "objective" and context.table.task != RANKING
    together = models * step if alone else STEP * (1 if stacked else models) + models * step
    looked = models * (SCORED + 2.0 * (rows - fit) * work / speed)
    seconds = epochs * (math.ceil(fit / batch) * together + looked)
    if refit and not s.fixed_length:
        seconds += refitted * math.ceil(rows / batch) * (STEP + step)
    return seconds


def default_workers(settings: Settings) -> int:
    """As many processes as cores, at most 8; one where own code lives in ``__main__`` or a GPU trains."""
    own = [*settings.objectives, settings.model, settings.metric]
    if settings.device != "cpu" or any(spec.startswith("__main__:") for spec in own):
        return 1
    return max(1, min(8, os.cpu_count() or 1))
