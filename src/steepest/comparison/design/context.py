"""What every cell of a comparison shares: data, settings, folds, and the tensors of each part of a fold."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ...core.objective import TaskInfo
from ..metrics.tables import metric_of
from ..parts import Part
from ..read import Table
from ..read.images import Images
from ..read.inputs import Data, fit_inputs, transform
from ..read.retrieval import RETRIEVAL
from ..read.texts import Texts
from ..read.texts.vocabulary import IGNORED, Vocabulary, encoded, prompts_of
from .arms import PLAIN, Arm, find_arm
from .embeddings import find_embedding_objective
from .folds import CLASSES, Fold, inner_splits, outer_folds
from .levels import Level, prefix
from .ranking import graded, prefix_of_lists, scale_of
from .settings import Settings
from .several import counts_of, objective_for, target_scale
from .text_models import SMALL, find_text_model
from .text_objectives import TextInfo, find_text_objective
from .trials import RATES_OF_TEXT, Trial, seed_of, trials

Pair = tuple[int, int]
"""Repeat and fold."""


@dataclass(frozen=True)
class TextSplit:
    """Of a split of texts what its tensors do not say.

    Attributes:
        vocabulary: learnt on its training rows.
        most, answer: tokens of a row, and of an answer, at most.
        answers: whether rows have prompts.
        others, tests: how the other rows, and those of the outer test part, begin and go on.
    """

    vocabulary: Vocabulary
    most: int
    answer: int
    answers: bool
    others: Sequence[tuple[str, str]]
    tests: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Split:
    """Rows ready for training, and rows to look at: standardised inputs, targets on the training scale.

    Of texts inputs are tokens and targets labels ``[N, T]``; other inputs hold both, ``[M, 2, T]``, and other targets
    count the labels of each row ``[M]``.
    """

    inputs: Tensor
    target: Tensor
    weight: Tensor | None
    other_inputs: Tensor
    other_target: np.ndarray
    other_weight: np.ndarray | None
    scale: tuple[Any, Any] = (0.0, 1.0)
    """Mean and deviation of a regression target (arrays for several); predictions go back to its own units."""
    task: str = "multiclass"
    test_inputs: Tensor | None = None
    """Rows of the outer test part, where the tuned network itself is scored there."""
    texts: TextSplit | None = None
    query: Tensor | None = None
    """Of a ranking the list of each row for training ``[N]``; other targets are then grades and lists ``[M, 2]``."""


class Context:
    """A table and settings, with what every cell of them shares."""

    def __init__(self, table: Data, settings: Settings, test: Data | None = None) -> None:
        self.table, self.settings, self.test = table, settings, test
        self.parts: tuple[Part, ...] = getattr(table, "parts", ())
        self.metric = metric_of(settings.metric, table)
        self.classes = len(table.classes)
        self._split = lru_cache(maxsize=3 if isinstance(table, Images) else 48)(self._make_split)
        self._whole: Context = self
        self._choice = ""
        self._of_rows: dict[int, Context] = {}

    @property
    def most_rows(self) -> int:
        """Rows of the largest training part."""
        return max(len(fold.train) for fold in self.folds.values())

    @property
    def choice(self) -> str:
        """Why this network was chosen, in words; empty where it was asked for."""
        return self._whole._choice

    @choice.setter
    def choice(self, words: str) -> None:
        self._whole._choice = words

    @property
    def level(self) -> Level:
        """The level of its cells."""
        return Level(self.most_rows, self.settings.epochs, self.settings.trials)

    @property
    def capped(self) -> bool:
        """Whether a training part has fewer rows than that of the whole comparison."""
        return self.most_rows < self._whole.most_rows

    def trained_by(self, settings: Settings) -> Context:
        """The same data, folds and splits for another network: settings that differ in it and its training alone."""
        context = copy.copy(self)
        context.settings, context._whole, context._choice, context._of_rows = settings, context, "", {}
        return context

    def at(self, level: Level) -> Context:
        """The same comparison at a level: fewer training rows, epochs or trials; splits of equal rows are shared."""
        whole = self._whole
        context = copy.copy(whole if level.rows >= whole.most_rows else whole._capped(level.rows))
        context.settings = replace(whole.settings, epochs=level.epochs, trials=level.trials)
        return context

    def _capped(self, rows: int) -> Context:
        """The same with at most ``rows`` rows in a training part."""
        if rows not in self._of_rows:
            capped = Context(self.table, self.settings, self.test)
            capped._whole = self
            seed = self.settings.seed
            capped._folds = {
                pair: replace(fold, train=self.first_rows(fold.train, rows, seed_of(seed, *pair, "prefix")))
                for pair, fold in self.folds.items()
            }
            self._of_rows[rows] = capped
        return self._of_rows[rows]

    def first_rows(self, train: np.ndarray, rows: int, seed: int) -> np.ndarray:
        """``rows`` row positions of a training part, in an order of classes, or of whole lists where there are any."""
        table = self.table
        if isinstance(table, Table) and table.queries is not None:
            return prefix_of_lists(train, table.queries, rows, seed)
        return prefix(train, table.target, rows, seed)

    @property
    def folds(self) -> dict[Pair, Fold]:
        """The outer folds; with a fixed test set one a seed, which trains on every row."""
        if not hasattr(self, "_folds"):
            s = self.settings
            if s.test:
                rows = np.arange(len(self.table.target))
                folds = [Fold(repeat, 0, rows, np.arange(0)) for repeat in range(s.repeats)]
            else:
                folds = outer_folds(cast(Table, self.table), repeats=s.repeats, folds=s.folds, seed=s.seed)
            self._folds = {(f.repeat, f.fold): f for f in folds}
        return self._folds

    def inner(self, pair: Pair) -> list[tuple[np.ndarray, np.ndarray]]:
        """Row positions ``(fit, valid)`` inside one outer training part."""
        once = self.settings.fixed_length
        return inner_splits(
            cast(Table, self.table),
            self.folds[pair].train,
            seed=seed_of(self.settings.seed, *pair, "inner"),
            folds=1 if once else None,
            parts=8 if once else 4,
        )

    def training_target(self, pair: Pair) -> np.ndarray:
        """The target with label noise in the training part of this fold, if the settings ask for it."""
        target = self.table.target
        if not self.settings.noise or self.table.task not in CLASSES:
            return target
        target = target.copy()
        rng = np.random.default_rng(seed_of(self.settings.seed, *pair, "noise"))
        rows = self.folds[pair].train
        hit = rows[rng.random(len(rows)) < self.settings.noise]
        target[hit] = (target[hit] + rng.integers(1, self.classes, len(hit))) % self.classes
        return target

    def split(self, pair: Pair, inner_fold: int) -> Split:
        """Inner fold ``0, 1 ..``, or -1: the whole outer training part against the test part."""
        return self._split(pair, inner_fold)

    def _make_split(self, pair: Pair, inner_fold: int) -> Split:
        table, fold = self.table, self.folds[pair]
        if isinstance(table, Texts):
            return self._text_split(table, pair, inner_fold)
        rows, others = (fold.train, fold.test) if inner_fold < 0 else self.inner(pair)[inner_fold]
        target = self.training_target(pair)
        prepared = fit_inputs(table, rows)
        weights = table.weights
        other_target, other_weight = target[others], None if weights is None else weights[others]
        test_inputs = None
        if self.settings.fixed_length and inner_fold >= 0:
            test_inputs = transform(prepared, *((table, fold.test) if self.test is None else (self.test,)))
        if inner_fold < 0 and self.test is not None:
            other_inputs = transform(prepared, self.test)
            other_target, other_weight = self.test.target, self.test.weights
        else:
            other_inputs = transform(prepared, table, others)
        y, scale = target_scale(target[rows], table.task, self.parts)
        if table.task == RETRIEVAL:  # its heads know the classes that are trained on
            y = np.unique(y, return_inverse=True)[1]
        query = None
        if isinstance(table, Table) and table.queries is not None:
            query, scale = torch.as_tensor(table.queries[rows]), scale_of(y)
            other_target = graded(other_target, table.queries[others])
        real = torch.int64 if table.task in ("binary", "multiclass", RETRIEVAL) else torch.float32
        return Split(
            transform(prepared, table, rows),
            torch.as_tensor(y, dtype=real),
            None if weights is None else torch.as_tensor(weights[rows], dtype=torch.float32),
            other_inputs,
            other_target,
            other_weight,
            scale,
            table.task,
            test_inputs,
            query=query,
        )

    def _text_split(self, texts: Texts, pair: Pair, inner_fold: int) -> Split:
        """Tokens and labels, by a vocabulary of the training rows."""
        fold, model = self.folds[pair], find_text_model(self.settings.model)
        rows, others = (fold.train, fold.test) if inner_fold < 0 else self.inner(pair)[inner_fold]
        vocabulary = model.vocabulary([texts.rows[place] for place in rows])
        most = model.most(texts)

        def both(positions: np.ndarray) -> np.ndarray:
            own = [texts.rows[place] for place in positions]
            return np.stack(encoded(vocabulary, own, answers=texts.answers, most=most), 1)

        trained, looked_at = both(rows), both(others)
        return Split(
            torch.as_tensor(trained[:, 0]),
            torch.as_tensor(trained[:, 1]),
            None,
            torch.as_tensor(looked_at),
            (looked_at[:, 1] != IGNORED).sum(1).astype(np.float64),
            None,
            task="text",
            test_inputs=torch.as_tensor(both(fold.test)) if inner_fold >= 0 else None,
            texts=TextSplit(
                vocabulary,
                most,
                model.answer(texts),
                texts.answers,
                prompts_of(texts, others),
                prompts_of(texts, fold.test) if inner_fold >= 0 else (),
            ),
        )

    def text_info(self, pair: Pair, inner_fold: int) -> TextInfo:
        """What a loss of tokens may know of the training split."""
        split = self.split(pair, inner_fold)
        assert split.texts is not None
        rows = len(split.inputs)
        return TextInfo(
            num_samples=rows,
            epochs=self.settings.epochs,
            steps_per_epoch=-(-rows // min(self.settings.batch_size, rows)),
            seed=seed_of(self.settings.seed, *pair, "objective") % 2**31,
            vocabulary=split.texts.vocabulary,
            answers=split.texts.answers,
            tokens=split.inputs,
            pretrained=self.settings.model != SMALL,
        )

    def info(self, pair: Pair, inner_fold: int) -> Any:
        """What an objective may know of the training split: :class:`TaskInfo`, or of texts :class:`TextInfo`."""
        if self.table.task == "text":
            return self.text_info(pair, inner_fold)
        split, task = self.split(pair, inner_fold), self.table.task
        classes = int(split.target.max()) + 1 if task == RETRIEVAL else self.classes
        counts = counts_of(split.target, task, classes, self.parts)
        outputs = sum(p.width for p in self.parts) if task == "multitask" else max(1, classes)
        rows = len(split.inputs)
        batch = min(self.settings.batch_size, rows)
        return TaskInfo(
            task,
            num_samples=rows,
            num_classes=outputs,
            class_counts=counts,
            epochs=self.settings.epochs,
            steps_per_epoch=-(-rows // batch),
            seed=seed_of(self.settings.seed, *pair, "objective") % 2**31,
        )

    def objective(self, name: str) -> Any:
        """The class of the objective that an arm of this name trains with: its own where objectives are compared.

        With several targets of a mix, what stands for it.
        """
        s = self.settings
        if self.table.task == "text":
            return find_text_objective(name, trust=s.own_parts)
        if self.table.task == RETRIEVAL:
            return find_embedding_objective(name, trust=s.own_parts)
        apart = s.vary == "aggregator"
        return objective_for(s.objective or name, self.table.task, self.parts, trust=s.own_parts, apart=apart)

    def arm(self, name: str) -> Arm:
        """The optimizer, schedule and aggregator that train an arm of this name."""
        s = self.settings
        return PLAIN if s.vary == "objective" else find_arm(s.vary, name)

    def trials(self, name: str) -> list[Trial]:
        """The settings that an arm of this name may try."""
        s = self.settings
        if s.vary != "objective":
            return self.arm(name).trials(s.trials, s.seed)
        rates = RATES_OF_TEXT[s.model == SMALL] if self.table.task == "text" else None
        return trials(self.objective(name), s.trials, s.seed, s.model, rates)
