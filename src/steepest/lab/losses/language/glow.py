"""GLOW on sums with written steps: wrong traces weighted by gain against right traces alone, in and out of domain.

Set-up of the claim: sums of digits by their last digit, with written steps: "b3a4c9=" asks for the sum of a, b and c,
and "a4b7c6" answers it, each letter with the sum up to there. A character transformer of two blocks is trained first on
right traces of 2 to 5 terms, until it answers some of the longer ones; then it is fine-tuned on 1,280 traces of 2 or 3
terms, of which 30% have one wrong step and so a wrong answer: on the right ones alone, on all, or on all with GLOW
(alpha 2, beta 10), equal steps (8 epochs of all), and each at its own best rate. Measured are right answers, decoded
greedily, of 2 or 3 terms (in domain) and of 4 or 5 (out of domain), and the mean loss of the traces that were trained
on. Expected: out of domain GLOW answers more than right traces alone (5.5 points, which the publication has for a model
of 7 billion parameters; at this size the sign may vary) and more than all traces unweighted; and its training loss is
higher than that of right traces alone (.05 nats).

Added to the set-up: the first training, because the publication fine-tunes models that can do something already, and
because this one, trained on 2 or 3 terms alone, answers longer sums at the level of chance. It is the same for all
seeds, as in the publication; seeds draw traces, their order and the sums that are asked. Terms stand in any order and
rows begin anywhere, so that no position gives the place of a term away. Sums by their last digit alone have no answers
that only longer sums have.

Rates are chosen by right answers in domain, of two seeds that are not reported (:func:`choose_rates`). Right traces
alone must have been learned: nine in ten answers in domain.

Right traces alone did better out of domain, against the claim. Checked: weights, their limits, the first epoch and the
memory are those of the official code; with 640 traces for 16 epochs, 1,280 for 8 and 2,000 for 5, at rates from 1e-4 to
1e-3, right traces alone were ahead of GLOW in six of eight comparisons on seeds that are not reported, GLOW by a point
in the others. A wrong step is drawn at random here and holds nothing that right traces lack; the wrong traces of the
publication are those of a teacher, on the problems that it fails.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ....losses.language.glow import GLOWLoss
from ....losses.language.token_cross_entropy import TokenCrossEntropyLoss
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...language import IGNORED, LanguageModel, Vocabulary, batches, by_loss, complete, fresh, train
from ...settings import best_setting, check_sane

SEEDS = 8
RIGHT, ALL, GLOW = "right traces", "all traces", "all traces, GLOW"
LETTERS = "abcde"
WORDS = Vocabulary("0123456789=" + LETTERS)
SHORT, LONG = (2, 3), (4, 5)
CONTEXT = 4 * LONG[-1] + 2
TRACES, EPOCHS, BATCH, WRONG = {"smoke": 24, "full": 1280}, {"smoke": 3, "full": 8}, {"smoke": 8, "full": 32}, 0.3
FIRST_STEPS, FIRST_BATCH, FIRST_SEED = {"smoke": 4, "full": 1200}, {"smoke": 4, "full": 64}, 1_000
ASKED = {"smoke": 10, "full": 1000}
GRID = (1e-4, 3e-4, 1e-3)
RATES = {RIGHT: 1e-4, ALL: 1e-4, GLOW: 1e-4}
"""Of each arm what :func:`choose_rates` gives: the lowest, since larger ones learn wrong steps by heart."""
SANITY = 90.0
"""Right answers in domain of right traces alone, in per cent."""
CLAIMS = (
    Claim("out of domain", "out of domain more are right than after right traces alone (points; 5.5)", size=5.5),
    Claim("against all", "out of domain more are right than after all traces unweighted (points; 2)", size=2.0),
    Claim("training loss", "the training loss is higher than that of right traces alone (nats; .05)", size=0.05),
)

Pair = tuple[str, str]


def run(scale: str, seed: int) -> Evidence:
    """All three from one model, and that model."""
    before = {"arm": "before", **answered(begun(scale), scale, seed)}
    rows = [measure(arm, RATES[arm], scale, seed) for arm in RATES]
    by_arm = {row["arm"]: row for row in rows}
    if scale == "full":
        check_sane("right answers in domain after right traces", by_arm[RIGHT]["in domain"], SANITY)

    def gain(column: str, over: str) -> float:
        return float(by_arm[GLOW][column] - by_arm[over][column])

    return Evidence(
        [before, *rows],
        {
            "out of domain": gain("out of domain", RIGHT),
            "against all": gain("out of domain", ALL),
            "training loss": gain("training loss", RIGHT),
        },
    )


def traces(count: int, lengths: Sequence[int], rng: np.random.Generator, wrong: float = 0.0) -> list[tuple[Pair, bool]]:
    """Questions with answers in steps, and whether these are right.

    >>> traces(2, (3,), np.random.default_rng(0))
    [(('e2d5c6=', 'c6d1e3'), True), (('a8c9b6=', 'a8b4c3'), True)]
    """
    drawn = []
    for _ in range(count):
        terms = int(rng.choice(lengths))
        first = int(rng.integers(len(LETTERS) - terms + 1))
        letters = LETTERS[first : first + terms]
        digits = rng.integers(10, size=terms)
        question = "".join(f"{letters[place]}{digits[place]}" for place in rng.permutation(terms)) + "="
        right = bool(rng.random() >= wrong)
        if not right:
            digits[rng.integers(1, terms)] += rng.integers(1, 10)  # one step adds another number, and all go on from it
        answer = "".join(f"{letter}{total % 10}" for letter, total in zip(letters, digits.cumsum()))
        drawn.append(((question, answer), right))
    return drawn


def rows_of(pairs: Sequence[Pair], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Tokens and aligned labels ``[B, T]`` of pairs that begin anywhere in their rows."""
    tokens = torch.zeros(len(pairs), CONTEXT, dtype=torch.long)
    labels = torch.full_like(tokens, IGNORED)
    for row, pair in enumerate(pairs):
        (own_tokens,), (own_labels,) = WORDS.rows([pair])
        start = int(rng.integers(CONTEXT - len(own_tokens) + 1))
        tokens[row, start : start + len(own_tokens)] = own_tokens
        labels[row, start : start + len(own_tokens)] = own_labels
    return tokens, labels


@cache
def begun(scale: str) -> LanguageModel:
    """The model before it is fine-tuned."""
    smoke = scale == "smoke"
    rng = np.random.default_rng(FIRST_SEED)
    drawn = traces(FIRST_STEPS[scale] * FIRST_BATCH[scale], SHORT + LONG, rng)
    tokens, labels = rows_of([pair for pair, _ in drawn], rng)
    model = fresh(FIRST_SEED, len(WORDS), CONTEXT, smoke=smoke, width=16 if smoke else 48)
    order = batches(tokens, labels, FIRST_BATCH[scale], torch.Generator().manual_seed(FIRST_SEED))
    train(model, order, by_loss(TokenCrossEntropyLoss()), rate=6e-3, steps=FIRST_STEPS[scale])
    return model


def measure(arm: str, rate: float, scale: str, seed: int) -> dict[str, Any]:
    """What an arm learns from its traces."""
    rng = np.random.default_rng(seed)
    count, batch, epochs = TRACES[scale], BATCH[scale], EPOCHS[scale]
    drawn = traces(count, SHORT, rng, WRONG)
    tokens, labels = rows_of([pair for pair, _ in drawn], rng)
    own = torch.tensor([place for place, (_, right) in enumerate(drawn) if right or arm != RIGHT])
    model, loss = copy.deepcopy(begun(scale)), GLOWLoss(count)
    plain = TokenCrossEntropyLoss(aggregation="sequence_mean_token_mean")
    index = own[:0]

    def batches_of_epochs(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal index
        epoch = 0
        while True:
            epoch += 1
            loss.start_epoch(epoch, epochs)
            for index in own[torch.randperm(len(own), generator=generator)].split(batch):
                if len(index) == batch:
                    yield tokens[index], labels[index]

    def step(model: LanguageModel, tokens: Tensor, labels: Tensor) -> Tensor:
        hidden, head = model.hidden(tokens), model.head.weight
        value: Tensor = loss(hidden, labels, head, index=index) if arm == GLOW else plain(hidden, labels, head)
        return value

    order = batches_of_epochs(torch.Generator().manual_seed(seed))
    train(model, order, step, rate=rate, steps=epochs * (count // batch))
    with torch.no_grad():
        nats = float(plain(model(tokens[own]), labels[own]))
    return {"arm": arm, **answered(model, scale, seed), "training loss": nats}


def answered(model: LanguageModel, scale: str, seed: int) -> dict[str, float]:
    """Answers whose last letter and sum are right, in and out of domain, in per cent."""
    rng = np.random.default_rng([seed, 1])
    shares = {}
    for domain, lengths in (("in domain", SHORT), ("out of domain", LONG)):
        pairs = [pair for pair, _ in traces(ASKED[scale], lengths, rng)]
        answers = complete(model, *WORDS.prompts([question for question, _ in pairs]), 2 * LONG[-1] + 1)
        ends = [WORDS.text(answer)[-2:] for answer in answers.tolist()]
        shares[domain] = 100 * float(np.mean([end == answer[-2:] for end, (_, answer) in zip(ends, pairs)]))
    return shares


def choose_rates() -> dict[str, float]:
    """Of each arm the rate with the most right answers in domain."""
    return {
        arm: best_setting(GRID, lambda rate, seed, arm=arm: measure(arm, rate, "full", seed)["in domain"], (101, 102))
        for arm in RATES
    }


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Right answers out of domain."""
    return bars_figure(evidence, y="out of domain", label="arm")
