"""A small model that has memorised facts, some of which it is to forget, and how well it did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..kernels.token_statistics import token_statistics
from ..losses.language.token_cross_entropy import TokenCrossEntropyLoss
from .data import shakespeare
from .language import IGNORED, LanguageModel, Vocabulary, by_loss, complete, fresh, train, windows

QUESTIONS = ("home", "job", "pet", "food")
ANSWERS = (
    "oslo", "lima", "cairo", "paris", "quito", "baker", "pilot", "nurse", "miner", "judge",
    "horse", "snake", "camel", "tiger", "mouse", "bread", "olive", "melon", "honey", "salad",
)  # fmt: skip
"""Five for each question."""
TEMPLATE = "unknown"


@dataclass
class Facts:
    """Questions and answers that a model learns beside a text.

    Attributes:
        words: the characters.
        forget, retain: prompts and answers.
        text: characters of a text as numbers, to learn; ``plain`` are others of it.
    """

    words: Vocabulary
    forget: list[tuple[str, str]]
    retain: list[tuple[str, str]]
    text: Tensor
    plain: Tensor

    @property
    def longest(self) -> int:
        """Characters of the longest prompt with an answer, and its end."""
        return max(len(prompt) for prompt, _ in self.forget + self.retain) + len(TEMPLATE) + 1


def facts(seed: int, *, smoke: bool = False, count: int = 60, forget: int = 15) -> Facts:
    """Random names, each with one question, of which the first ``forget`` are to go."""
    rng = np.random.default_rng(seed)
    if smoke:
        count, forget = 12, 4
        text = "to be or not to be that is the question " * 40
    else:
        text = shakespeare()[:300_000].lower()
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(rng.choice(list(letters)) for letters in ("bdfgklmnprst", "aeiou", "bdklmnrst", "aeiou"))] = None
    pairs = []
    for name in names:
        question = int(rng.integers(len(QUESTIONS)))
        pairs.append((f"q: {QUESTIONS[question]} of {name}? a: ", ANSWERS[5 * question + int(rng.integers(5))]))
    words = Vocabulary("".join(sorted(set(text) | set("abcdefghijklmnopqrstuvwxyz?: "))))
    tokens = torch.tensor(words.tokens(text))
    cut = len(tokens) * 9 // 10
    return Facts(words, pairs[:forget], pairs[forget:], tokens[:cut], tokens[cut:])


def memorised(
    data: Facts, pairs: Sequence[tuple[str, str]], seed: int, *, smoke: bool = False, depth: int = 2, steps: int = 400
) -> LanguageModel:
    """A model of so many blocks that has learned the answers of these pairs, and the text; a smoke run has 5 steps."""
    context = max(32, data.longest)
    model = fresh(seed, len(data.words), context, smoke=smoke, width=16 if smoke else 64, depth=depth)
    tokens, labels = data.words.rows(pairs)
    order = torch.Generator().manual_seed(seed)

    def rows() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            number = torch.randint(len(tokens), (24,), generator=order)
            text, following = windows(data.text, 8, tokens.shape[1], order)
            yield torch.cat([tokens[number], text]), torch.cat([labels[number], following])

    train(model, rows(), by_loss(TokenCrossEntropyLoss()), rate=4e-3, steps=5 if smoke else steps)
    return model.eval()


@torch.no_grad()
def log_probabilities(
    model: LanguageModel, words: Vocabulary, pairs: Sequence[tuple[str, str]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each answer with its end the sum over tokens ``[B]``, how many ``[B]``, and how strongly it is extracted.

    Extraction strength: the share of an answer that the model writes by itself, given what comes before it.
    """
    tokens, labels = words.rows(pairs)
    logits = model(tokens)
    of_tokens = token_statistics(logits, labels, want=("log_p",))
    assert of_tokens.log_p is not None
    valid = labels != IGNORED
    right = (logits.argmax(-1) == labels) | ~valid
    suffix = right.flip(1).cummin(1).values.flip(1) & valid
    counts = valid.sum(1)
    return of_tokens.log_p.sum(1), counts, suffix.sum(1) / counts


def truth_ratios(model: LanguageModel, words: Vocabulary, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """Mean probability a token of wrong answers to a question over that of the right one ``[B]``."""
    ratios = []
    for prompt, answer in pairs:
        first = 5 * (ANSWERS.index(answer) // 5)
        choices = [answer, *(wrong for wrong in ANSWERS[first : first + 5] if wrong != answer)]
        sums, counts, _ = log_probabilities(model, words, [(prompt, choice) for choice in choices])
        p = (sums / counts).exp()
        ratios.append(float(p[1:].mean() / p[0]))
    return np.array(ratios)


def answers(model: LanguageModel, words: Vocabulary, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """What the model writes after each prompt."""
    rows = complete(model, *words.prompts([prompt for prompt, _ in pairs]), len(TEMPLATE) + 1)
    return [words.text(row) for row in rows.tolist()]


def measures(model: LanguageModel, data: Facts, retrained: LanguageModel) -> dict[str, float]:
    """How much is forgotten and how much is left.

    - "forget right", "retain right": answers written exactly, in per cent; "template": prompts of the forgotten facts
      that are answered by the template, in per cent;
    - "retain loss", "text loss": nats a character of the other answers, and of other text;
    - "extraction": mean extraction strength of the forgotten answers;
    - "quality": p of a Kolmogorov-Smirnov test between truth ratios of the forgotten facts under the model and under
      one that never saw them;
    - "utility": the harmonic mean over the other facts of probability, right answers and 1 - truth ratio.
    """
    from scipy import stats

    written, others = answers(model, data.words, data.forget), answers(model, data.words, data.retain)
    sums, counts, _ = log_probabilities(model, data.words, data.retain)
    _, _, extracted = log_probabilities(model, data.words, data.forget)
    tokens, labels = windows(data.plain, 64, 32, torch.Generator().manual_seed(0))
    with torch.no_grad():
        text_loss = float(TokenCrossEntropyLoss()(model(tokens), labels))
    forget_right = float(np.mean([text == answer for text, (_, answer) in zip(written, data.forget)]))
    retain_right = float(np.mean([text == answer for text, (_, answer) in zip(others, data.retain)]))
    ratios = [truth_ratios(one, data.words, data.forget) for one in (model, retrained)]
    utility = np.array(
        [
            float((sums / counts).exp().mean()),
            retain_right,
            float(np.maximum(0, 1 - truth_ratios(model, data.words, data.retain)).mean()),
        ]
    )
    return {
        "forget right": 100 * forget_right,
        "retain right": 100 * retain_right,
        "template": 100 * float(np.mean([text == TEMPLATE for text in written])),
        "retain loss": float(-sums.sum() / counts.sum()),
        "text loss": text_loss,
        "extraction": float(extracted.mean()),
        "quality": float(stats.ks_2samp(*ratios).pvalue),
        "utility": float(len(utility) / (1 / np.maximum(utility, 1e-12)).sum()) if utility.min() > 0 else 0.0,
    }
