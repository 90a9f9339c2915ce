"""What experiments with language models share: a small causal transformer, texts as rows of tokens, training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import islice
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from ..core.loss import Loss
from ..core.method import Method
from ..core.objective import Batch, Objective
from ..core.random import seed_all
from ..core.token_loss import TokenLoss
from ..descent import Batches, Descent, Hook
from ..nn.language_model import LanguageModel, complete
from .data import shakespeare

__all__ = [
    "IGNORED",
    "LanguageModel",
    "Step",
    "Vocabulary",
    "batches",
    "by_loss",
    "characters",
    "complete",
    "fresh",
    "language_descent",
    "sums",
    "train",
    "windows",
]
IGNORED = -100
SMOKE_TEXT = 5_000
"""Numbers that stand for a text in a smoke run, which reads no file."""


def fresh(seed: int, symbols: int, context: int, *, smoke: bool = False, **sizes: int) -> LanguageModel:
    """An untrained model, in float64 as a smoke run."""
    seed_all(seed)
    model = LanguageModel(symbols, context, **sizes)
    return model.double() if smoke else model


class Vocabulary:
    """Characters as tokens; 0 ends an answer and fills rows.

    >>> words = Vocabulary("0123456789+=")
    >>> tokens, labels = words.rows([("1+2=", "3"), ("9+9=", "18")])
    >>> tokens.tolist(), labels.tolist()
    ([[2, 11, 3, 12, 4, 0], [10, 11, 10, 12, 2, 9]], [[-100, -100, -100, 4, 0, -100], [-100, -100, -100, 2, 9, 0]])
    >>> words.text([4, 0, 7])
    '3'
    """

    def __init__(self, characters: str) -> None:
        self.words = ["", *sorted(set(characters), key=characters.index)]
        self.number = {word: place for place, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def tokens(self, text: str) -> list[int]:
        """Of each character."""
        return [self.number[symbol] for symbol in text]

    def text(self, tokens: Sequence[int]) -> str:
        """Up to the first end."""
        row = [*tokens]
        return "".join(self.words[token] for token in (row[: row.index(0)] if 0 in row else row))

    def prompts(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens ``[B, T]``, filled up at the right, and how many there are ``[B]``."""
        rows = [self.tokens(prompt) for prompt in prompts]
        lengths = torch.tensor([len(row) for row in rows])
        return torch.tensor([row + [0] * (int(lengths.max()) - len(row)) for row in rows]), lengths

    def rows(self, pairs: Sequence[tuple[str, str]], *, prompt_counts: bool = False) -> tuple[Tensor, Tensor]:
        """Tokens and aligned labels ``[B, T]`` of prompts and answers; those of prompts count only if asked."""
        tokens, labels = [], []
        for prompt, answer in pairs:
            row = self.tokens(prompt + answer)
            tokens.append(row)
            first = 1 if prompt_counts else len(prompt)
            labels.append([IGNORED] * (first - 1) + row[first:] + [0])
        longest = max(map(len, tokens))
        return (
            torch.tensor([row + [0] * (longest - len(row)) for row in tokens]),
            torch.tensor([row + [IGNORED] * (longest - len(row)) for row in labels]),
        )


def sums(count: int, rng: np.random.Generator, *, below: int = 1000) -> list[tuple[str, str]]:
    """Prompts and answers such as ``("347+58=", "405")``."""
    return [(f"{a}+{b}=", f"{a + b}") for a, b in rng.integers(below, size=(count, 2)).tolist()]


@cache
def characters(smoke: bool = False) -> tuple[Tensor, int]:
    """Tiny Shakespeare as numbers of its characters, and how many there are; a smoke run reads no file."""
    if smoke:
        steps = torch.randint(1, 4, (SMOKE_TEXT,), generator=torch.Generator().manual_seed(0))
        return steps.cumsum(0) % 65, 65
    text = shakespeare()
    number = {symbol: place for place, symbol in enumerate(sorted(set(text)))}
    return torch.tensor([number[symbol] for symbol in text]), len(number)


def windows(text: Tensor, count: int, context: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens and aligned labels ``[count, context]`` of windows at random places of a text."""
    starts = torch.randint(len(text) - context, (count, 1), generator=generator)
    rows = text[starts + torch.arange(context + 1)]
    return rows[:, :-1], rows[:, 1:]


def batches(tokens: Tensor, labels: Tensor, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows in a new order each time they are through, without end; a rest smaller than ``size`` waits for the next."""
    while True:
        for rows in torch.randperm(len(tokens), generator=generator).split(size):
            if len(rows) == min(size, len(tokens)):
                yield tokens[rows], labels[rows]


Step = Callable[[LanguageModel, Tensor, Tensor], Tensor]


def by_loss(loss: TokenLoss) -> Step:
    """The loss of a batch, from hidden states and the head."""
    return lambda model, tokens, labels: loss(model.hidden(tokens), labels, model.head.weight)


def train(
    model: LanguageModel,
    rows: Iterator[tuple[Tensor, Tensor]],
    step: Step,
    *,
    rate: float,
    steps: int,
    warmup: int = 20,
    decay: bool = True,
    watch: Callable[[int], None] | None = None,
) -> None:
    """AdamW as in language models (betas .9 and .95, no weight decay), gradients clipped at length 1.

    Args:
        model: trained in place.
        rows: batches of tokens and labels.
        step: the loss of a batch.
        rate: its peak, after ``warmup`` steps; then it falls linearly to a tenth where ``decay``.
        steps: how many.
        watch: called after each step with its number, 1-based.
    """

    def share(number: int) -> float:
        return min(1.0, (number + 1) / warmup) * (1 - 0.9 * number / max(steps, 1) if decay else 1.0)

    run = language_descent(model, Loss(), Taken(rows, steps), ByStep(step), rate=rate, share=share)
    run.hooks += [] if watch is None else [Watched(watch)]
    run.fit(1)


def language_descent(
    model: LanguageModel,
    loss: Loss,
    rows: Batches,
    method: Method,
    *,
    rate: float,
    share: Callable[[int], float],
) -> Descent:
    """A run with AdamW as in language models (betas .9 and .95, no weight decay), gradients clipped at length 1.

    Args:
        model: trained in place.
        loss: what ``method`` is given.
        rows: batches.
        method: what runs the model.
        rate: the learning rate.
        share: of it, by the step, 0-based.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    objective = cast(Objective, loss)  # the loop asks nothing of it that not every loss has
    return Descent(
        model, objective, rows, method=method, optimizer=optimizer, schedule=schedule, gradients=clipped_gradients
    )


def clipped_gradients(loss: Tensor, model: nn.Module) -> None:
    """Of the loss, all together at most of length 1."""
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)


class ByStep(Method):
    """The loss of a batch of tokens and labels, by a function."""

    name = "by_step"

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def loss(self, model: nn.Module, batch: Batch, objective: Objective) -> Tensor:
        return self.step(cast(LanguageModel, model), batch.inputs, batch.target)


class Taken:
    """So many batches an epoch from where the rows of ``rows`` go on."""

    def __init__(self, rows: Iterator[tuple[Tensor, Tensor]], steps: int) -> None:
        self.rows, self.steps = rows, steps

    def epoch(self, epoch: int) -> Iterator[Batch]:
        return (Batch(tokens, labels) for tokens, labels in islice(self.rows, self.steps))


class Watched(Hook):
    """A function of the step's number, 1-based, called after each."""

    def __init__(self, watch: Callable[[int], None]) -> None:
        self.watch = watch

    def on_step(self, descent: Descent, batch: Batch, loss: Tensor) -> None:
        self.watch(descent.step)
