"""Number token loss on sums: closer answers early, and no fewer right ones at the end.

Set-up of the claim: strings such as "347+58=405" with operands below 1,000, 20,000 of them to train on and 500 others
to answer; a transformer of two blocks on characters; cross-entropy against cross-entropy plus .3 times the Wasserstein
term, equal steps, and each at its own best rate. Decoded greedily, without an answer for 0. Expected: at step 500 the
mean absolute error of the decoded number falls by 10 to 40% (10% is claimed), by more than at the end, where as many
answers are right.

Batches of 128, 1,500 steps, six seeds in place of three. Rates are chosen by the share of right answers at the end, of
two seeds that are not reported (:func:`choose_rates`). The baseline must have learned: a quarter of its answers are
right at the end. At the end both errors may be near 0, so that the fall there is of a small number: the difference of
the falls is an expectation of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from ....core.token_loss import TokenLoss
from ....losses.language.number_token_loss import NumberTokenLoss, number_token_values
from ....losses.language.token_cross_entropy import TokenCrossEntropyLoss
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...language import LanguageModel, Vocabulary, batches, by_loss, complete, fresh, sums, train
from ...settings import best_setting, check_sane

SEEDS = 6
ENTROPY, NUMBERS = "cross-entropy", "number token loss"
WORDS = Vocabulary("0123456789+=")
GRID = (2e-3, 4e-3, 8e-3)
RATES = {ENTROPY: 4e-3, NUMBERS: 4e-3}
"""Of each loss what :func:`choose_rates` gives."""
STEPS = {"smoke": (4, 8), "full": (500, 1500)}
"""The early step and the last."""
SANITY = 25.0
"""Right answers of cross-entropy at the end, in per cent."""
CLAIMS = (
    Claim("early error", "early, the mean absolute error is lower (share of cross-entropy's; .1 to .4)", size=0.1),
    Claim("right", "at the end, as many answers are right (points; 5 fewer is not)", size=5.0, threshold=-5.0),
    Claim("earlier more", "the share is larger early than at the end (.1 expected)", size=0.1, ours=True),
)


def run(scale: str, seed: int) -> Evidence:
    """Errors and right answers of both losses, early and at the end."""
    rows = [row for arm in RATES for row in measure(arm, RATES[arm], scale, seed)]
    by_arm = {(row["loss"], row["when"]): row for row in rows}
    if scale == "full":
        check_sane("right answers of cross-entropy in per cent", by_arm[ENTROPY, "end"]["right"], SANITY)

    def fall(when: str) -> float:
        before = max(by_arm[ENTROPY, when]["error"], 1e-9)
        return float(1 - by_arm[NUMBERS, when]["error"] / before)

    right = by_arm[NUMBERS, "end"]["right"] - by_arm[ENTROPY, "end"]["right"]
    return Evidence(rows, {"early error": fall("early"), "right": right, "earlier more": fall("early") - fall("end")})


def loss_of(arm: str) -> TokenLoss:
    """The loss of an arm."""
    return NumberTokenLoss(number_token_values(WORDS.words)) if arm == NUMBERS else TokenCrossEntropyLoss()


def measure(arm: str, rate: float, scale: str, seed: int) -> list[dict[str, Any]]:
    """A row early and a row at the end."""
    smoke = scale == "smoke"
    train_rows, test_rows = (200, 20) if smoke else (20_000, 500)
    pairs = sums(train_rows + test_rows, np.random.default_rng(seed))
    tokens, labels = WORDS.rows(pairs[:train_rows])
    model = fresh(seed, len(WORDS), tokens.shape[1] + 1, smoke=smoke, width=16 if smoke else 64)
    early, end = STEPS[scale]
    rows: list[dict[str, Any]] = []

    def watch(step: int) -> None:
        if step in (early, end):
            rows.append({"loss": arm, "when": "early" if step == early else "end", **errors(model, pairs[train_rows:])})

    order = batches(tokens, labels, 128, torch.Generator().manual_seed(seed))
    train(model, order, by_loss(loss_of(arm)), rate=rate, steps=end, warmup=2 if smoke else 20, watch=watch)
    return rows


def errors(model: LanguageModel, pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Mean absolute error of the decoded answers, and right ones in per cent."""
    answers = complete(model, *WORDS.prompts([prompt for prompt, _ in pairs]), 5)
    texts = [WORDS.text(row) for row in answers.tolist()]
    numbers = np.array([int("".join(filter(str.isdigit, text)) or 0) for text in texts])
    truth = np.array([int(answer) for _, answer in pairs])
    right = [text == answer for text, (_, answer) in zip(texts, pairs)]
    return {"error": float(np.abs(numbers - truth).mean()), "right": 100 * float(np.mean(right))}


def choose_rates() -> dict[str, float]:
    """Of each loss the rate with the most right answers at the end."""
    return {
        arm: best_setting(GRID, lambda rate, seed, arm=arm: measure(arm, rate, "full", seed)[-1]["right"], (101, 102))
        for arm in RATES
    }


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Errors early."""
    early = [Evidence([row for row in one.rows if row["when"] == "early"], one.effects) for one in evidence]
    return bars_figure(early, y="error", label="loss")
