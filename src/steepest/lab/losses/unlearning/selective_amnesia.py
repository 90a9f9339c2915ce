"""Selective amnesia: with a weight that grows, and in the layers that hold the facts, the rest survives forgetting.

Set-up of the claim: a transformer of six blocks on characters has memorised 40 facts such as "q: home of mite? a: lima"
and part of tiny Shakespeare; ten are to be forgotten in eight epochs of three steps of AdamW, each with all ten and
with ten of the others. Arms: ascent in all layers; the adaptive loss in all layers; the adaptive loss in the
perceptrons of the three blocks whose outputs bring most of the answers back (traced over the ten prompts, three draws
of noise). Expected: all raise the loss of the forgotten facts (by a nat a character at least is claimed); the loss of
the others stays near its start with both adaptive arms (rises by less than .5) while it blows up under ascent (rises by
a nat and more).

Five seeds. Rates are chosen alike, of four, by the rise of the forgotten facts' loss, of which three nats count, less
that of the others, on two seeds that are not reported (:func:`choose_rates`). The memorised model must write 90% of
all answers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ....losses.unlearning.npo import UnlearningObjective
from ....losses.unlearning.selective_amnesia import SelectiveAmnesiaLoss, causal_trace, freeze_except
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...language import LanguageModel
from ...settings import best_setting, check_sane
from ...unlearning import Facts, answers, facts, log_probabilities, memorised

SEEDS = 5
ASCENT, ADAPTIVE, TRACED = "ascent", "adaptive", "adaptive, traced layers"
EPOCHS, BLOCKS, DRAWS = 8, 6, 3
GRID = (1e-4, 3e-4, 1e-3, 3e-3)
RATES = {ASCENT: 1e-4, ADAPTIVE: 3e-4, TRACED: 1e-3}
"""Of each arm what :func:`choose_rates` gives."""
SANITY = 90.0
CLAIMS = (
    Claim("forgotten", "all arms raise the loss of the forgotten facts (by a nat)", size=1.0),
    Claim("ascent", "ascent raises the loss of the others by a nat", size=0.5, threshold=0.5),
    Claim("adaptive", "the adaptive loss raises it by less than .5", size=0.5, threshold=0.5, greater=False),
    Claim("traced", "in the traced layers it raises it by less than .5", size=0.5, threshold=0.5, greater=False),
)


def run(scale: str, seed: int) -> Evidence:
    """The three arms from one model."""
    data, model, _ = begun(scale, seed)
    if scale == "full":
        pairs = data.forget + data.retain
        written = answers(model, data.words, pairs)
        right = 100 * sum(text == answer for text, (_, answer) in zip(written, pairs)) / len(pairs)
        check_sane("answers of the memorised model in per cent", right, SANITY)
    rows = [measure(arm, RATES[arm], scale, seed) for arm in RATES]
    rise = {row["arm"]: row["others"] for row in rows}
    return Evidence(
        rows,
        {
            "forgotten": min(row["forgotten"] for row in rows),
            "ascent": rise[ASCENT],
            "adaptive": rise[ADAPTIVE],
            "traced": rise[TRACED],
        },
    )


@cache
def begun(scale: str, seed: int) -> tuple[Facts, LanguageModel, list[int]]:
    """Facts, a model of all of them, and the blocks that hold them."""
    smoke = scale == "smoke"
    data = facts(seed, smoke=smoke, count=40, forget=10)
    model = memorised(data, data.forget + data.retain, seed, smoke=smoke, depth=BLOCKS)
    layers = [block.get_submodule("mlp") for block in model.blocks]
    draws = torch.Generator().manual_seed(seed)
    effects = torch.zeros(len(layers), dtype=torch.float64)
    for prompt, answer in data.forget[: 2 if smoke else None]:
        name = prompt[prompt.index(" of ") + 4 : prompt.index("?")]
        first = prompt.index(name)
        tokens = torch.tensor(data.words.tokens(prompt))
        place = torch.arange(len(tokens))
        subject = (place >= first) & (place < first + len(name))
        traced = causal_trace(
            model, layers, tokens, subject, data.words.number[answer[0]], draws=1 if smoke else DRAWS,
            embedding=model.symbols, generator=draws,
        )  # fmt: skip
        effects += traced.mean(1).double()
    return data, model, sorted(effects.topk(3).indices.tolist())


def measure(arm: str, rate: float, scale: str, seed: int) -> dict[str, Any]:
    """How far the losses of both kinds of facts have risen, in nats a character."""
    data, memory, traced = begun(scale, seed)
    model = copy.deepcopy(memory).train()
    if arm == TRACED:
        freeze_except(model, rf"^blocks\.({'|'.join(map(str, traced))})\.mlp\.")
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    x, y = data.words.rows(data.forget)
    xr, yr = data.words.rows(data.retain)
    ascent, adaptive = UnlearningObjective("ga"), SelectiveAmnesiaLoss()
    order = torch.Generator().manual_seed(seed)
    size = len(data.forget)
    for epoch in range(1, (2 if scale == "smoke" else EPOCHS) + 1):
        adaptive.start_epoch(epoch, EPOCHS)
        for rows in torch.randperm(len(xr), generator=order).split(size):
            optimizer.zero_grad()
            head = model.head.weight
            loss: Tensor = (
                ascent(model.hidden(x), y, head=head)
                if arm == ASCENT
                else adaptive(model.hidden(x), y, model.hidden(xr[rows]), yr[rows], head)
            )
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
    model.eval()
    rise = {}
    for name, pairs in (("forgotten", data.forget), ("others", data.retain)):
        after, before = (log_probabilities(one, data.words, pairs) for one in (model, memory))
        rise[name] = float((before[0].sum() - after[0].sum()) / before[1].sum())
    return {"arm": arm, **rise, "layers": " ".join(map(str, traced)) if arm == TRACED else "all"}


def choose_rates() -> dict[str, float]:
    """Of each arm the rate that forgets most, up to three nats, at the least cost."""

    def score(arm: str, rate: float, seed: int) -> float:
        row = measure(arm, rate, "full", seed)
        return min(float(row["forgotten"]), 3.0) - float(row["others"])

    return {arm: best_setting(GRID, lambda rate, seed, arm=arm: score(arm, rate, seed), (101, 102)) for arm in RATES}


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Rises of the others' loss."""
    return bars_figure(evidence, y="others", label="arm")
