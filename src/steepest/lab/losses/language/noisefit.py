"""NoiseFiT on characters: fine-tuning on little text overfits less, and wrong predictions are less sure.

Set-up of the claim: a transformer of four blocks on characters learns 300 kB of tiny Shakespeare by cross-entropy, then
goes on for 300 steps on another 5 kB with cross-entropy or with NoiseFiT (noise in three of the blocks, those whose
signal stands most above it, and the published alpha .5, lambda .1, T 1), equal steps, and each at its own best rate.
Measured on windows of the last tenth of the text, which nobody trains on. Expected, modest in size: NoiseFiT leaves
less cross-entropy (.02 nats a character are the claimed size, the publication having none of this kind), and where the
likeliest character is wrong, its probability is lower (.02 on average).

Five seeds in place of three. Rates are chosen by cross-entropy on other windows of the last tenth, of two seeds that
are not reported (:func:`choose_rates`). The first model must have learned the text: at most 2.3 nats a character.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ....losses.language.noisefit import AdaptiveNoise, NoiseFiTLoss, select_layers_by_snr
from ....losses.language.token_cross_entropy import TokenCrossEntropyLoss
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...language import LanguageModel, by_loss, characters, fresh, train, windows
from ...settings import best_setting, check_sane

SEEDS = 5
ENTROPY, NOISY = "cross-entropy", "NoiseFiT"
CONTEXT, FIRST, MORE = 48, 300_000, 5_000
STEPS = {"smoke": (3, 3), "full": (600, 300)}
"""Steps before the loss changes, and after."""
GRID = (1e-4, 3e-4, 1e-3)
RATES = {ENTROPY: 1e-4, NOISY: 1e-4}
"""Of each loss what :func:`choose_rates` gives."""
SANITY = 2.3
"""Nats a character of the first model on the held-out text."""
CLAIMS = (
    Claim("held out", "cross-entropy on held-out text is lower (nats; .02)", size=0.02),
    Claim("confidence", "the probability of wrong predictions is lower (.02)", size=0.02),
)


def run(scale: str, seed: int) -> Evidence:
    """Both losses from one model, and the model before."""
    start = measured(begun(scale, seed), scale, held_out=0)
    if scale == "full":
        check_sane("minus nats a character before", -start["held out"], -SANITY)
    rows = [measure(arm, RATES[arm], scale, seed, held_out=0) for arm in RATES]
    plain, noisy = rows
    return Evidence(
        [{"loss": "before", **start}, *rows],
        {
            "held out": plain["held out"] - noisy["held out"],
            "confidence": plain["confidence"] - noisy["confidence"],
        },
    )


def texts(scale: str) -> tuple[Tensor, Tensor, Tensor, int]:
    """What the model learns first, what it goes on with, what is held out, and how many characters there are."""
    text, symbols = characters(scale == "smoke")
    last = len(text) * 9 // 10
    first = min(FIRST, last // 2)
    return text[:first], text[first : first + min(MORE, last - first)], text[last:], symbols


@cache
def begun(scale: str, seed: int) -> LanguageModel:
    """A model of the first part."""
    smoke = scale == "smoke"
    first, _, _, symbols = texts(scale)
    model = fresh(seed, symbols, CONTEXT, smoke=smoke, width=16 if smoke else 64, depth=4)
    order = torch.Generator().manual_seed(seed)
    rows = iter(lambda: windows(first, 2 if smoke else 32, CONTEXT, order), None)
    train(model, rows, by_loss(TokenCrossEntropyLoss()), rate=4e-3, steps=STEPS[scale][0])
    return model


def measure(arm: str, rate: float, scale: str, seed: int, held_out: int) -> dict[str, Any]:
    """What a loss leaves on held-out windows, drawn by the number ``held_out``."""
    smoke = scale == "smoke"
    model = copy.deepcopy(begun(scale, seed))
    _, more, _, _ = texts(scale)
    order, noise = (torch.Generator().manual_seed(seed + number) for number in (1, 2))
    rows = iter(lambda: windows(more, 2 if smoke else 16, CONTEXT, order), None)
    step = by_loss(TokenCrossEntropyLoss())
    if arm == NOISY:
        blocks = list(model.blocks)
        chosen = select_layers_by_snr(model, blocks, next(rows)[0], generator=noise)
        noisy, loss = AdaptiveNoise([blocks[place] for place in chosen], generator=noise), NoiseFiTLoss()

        def step(own: LanguageModel, tokens: Tensor, labels: Tensor) -> Tensor:
            with noisy:
                noisy1, noisy2 = own.hidden(tokens), own.hidden(tokens)
            weight = own.head.weight
            value: Tensor = loss(own.hidden(tokens), labels, weight, noisy1=noisy1, noisy2=noisy2, noisy_head=weight)
            return value

    train(model.train(), rows, step, rate=rate, steps=STEPS[scale][1])
    return {"loss": arm, **measured(model, scale, held_out)}


@torch.no_grad()
def measured(model: LanguageModel, scale: str, held_out: int) -> dict[str, float]:
    """Cross-entropy on held-out windows, accuracy in per cent, and the mean probability of wrong predictions."""
    _, _, rest, _ = texts(scale)
    tokens, labels = windows(rest, 4 if scale == "smoke" else 200, CONTEXT, torch.Generator().manual_seed(held_out))
    logits = model.eval()(tokens)
    best, guess = logits.softmax(-1).max(-1)
    return {
        "held out": float(TokenCrossEntropyLoss()(logits, labels)),
        "right": 100 * float((guess == labels).double().mean()),
        "confidence": float(best[guess != labels].mean()),
    }


def choose_rates() -> dict[str, float]:
    """Of each loss the rate that leaves the least cross-entropy on other held-out windows."""
    return {
        arm: best_setting(
            GRID, lambda rate, seed, arm=arm: -measure(arm, rate, "full", seed, held_out=1)["held out"], (101, 102)
        )
        for arm in RATES
    }


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Cross-entropy on held-out text."""
    return bars_figure(evidence, y="held out", label="loss")
