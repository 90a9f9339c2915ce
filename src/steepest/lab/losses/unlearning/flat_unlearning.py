"""FLAT: forgetting facts with a template answer and without other data, beside ascent, NPO and losses that keep rows.

Set-up of the claim: a transformer of two blocks has memorised 60 facts such as "q: home of mite? a: lima", and part of
tiny Shakespeare; 15 of them are to be forgotten, with the template answer "unknown". Compared are ascent, ascent and
likelihood of the template, NPO (beta .1), and FLAT with total variation and Kullback and Leibler; all see the forget
facts alone. Each goes on until at most 10% of the forget answers are still written, 120 steps of Adam at most.
Expected: at that point FLAT leaves the least loss on the other facts and on other text (lower than all three others; 1
and .02 nats a character are the claimed sizes, .5 and .02 before a first record, whose eight seeds could not have found
.5), and after all steps it answers more than 80% of the forgotten questions by the template.

Rates are chosen alike, of three, by the loss on the other facts and on text at that point (the last step, where it is
never reached, counts 10 nats more), on two seeds that are not reported (:func:`choose_rates`). FLAT begins with ten
steps of likelihood of the template, because its gradient vanishes where the template is improbable. The table has four
ways more, which see the other facts: gradient difference, NPO with cross-entropy on them, NPO with the divergence from
the memorised model on them, and FLAT with cross-entropy on them. For all it has forget quality, utility and extraction
strength at the same point. The memorised model must write 90% of all answers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ....losses.language.token_cross_entropy import TokenCrossEntropyLoss
from ....losses.unlearning.flat_unlearning import FLATLoss
from ....losses.unlearning.npo import UnlearningObjective, sequence_logp
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...language import LanguageModel
from ...settings import best_setting, check_sane
from ...unlearning import TEMPLATE, Facts, answers, facts, measures, memorised

SEEDS = 8
STEPS, EVERY = {"smoke": 4, "full": 120}, {"smoke": 2, "full": 3}
FIRST = 10
"""Steps of likelihood of the template before FLAT."""
ENOUGH = 10.0
"""Answers still written, in per cent, at which a way has forgotten."""
ALONE = ("ascent", "ascent, template", "NPO", "FLAT, tv", "FLAT, kl")
WAYS = (*ALONE, "gradient difference", "NPO, likelihood", "NPO, divergence", "FLAT, likelihood")
GRID = (3e-5, 1e-4, 3e-4)
RATES = dict(zip(WAYS, (3e-5, 3e-5, 3e-5, 3e-4, 3e-4, 3e-5, 3e-5, 3e-4, 1e-4)))
"""Of each way what :func:`choose_rates` gives."""
SANITY = 90.0
CLAIMS = (
    Claim("others", "as much forgotten, FLAT leaves less loss on the other facts than the other three (1)", size=1.0),
    Claim("text", "as much forgotten, FLAT leaves less loss on other text than the other three (.02)", size=0.02),
    Claim("template", "FLAT answers more than 80% by the template", size=10.0, threshold=80.0),
)


def run(scale: str, seed: int) -> Evidence:
    """All ways to forget from one model."""
    data, model, retrained = begun(scale, seed)
    start = measures(model, data, retrained)
    if scale == "full":
        check_sane(
            "answers of the memorised model in per cent", min(start["forget right"], start["retain right"]), SANITY
        )
    rows: list[dict[str, Any]] = [{"way": "none", "step": 0, "at the end": start["template"], **start}]
    for way in WAYS:
        rows.append({"way": way, **forget(way, RATES[way], data, model, retrained, scale)})
    by_way = {row["way"]: row for row in rows}
    flat, others = by_way["FLAT, tv"], [by_way[way] for way in ALONE[:3]]
    return Evidence(
        rows,
        {
            "others": min(row["retain loss"] for row in others) - flat["retain loss"],
            "text": min(row["text loss"] for row in others) - flat["text loss"],
            "template": flat["at the end"],
        },
    )


def begun(scale: str, seed: int) -> tuple[Facts, LanguageModel, LanguageModel]:
    """Facts, a model of all of them, and one of those to keep."""
    smoke = scale == "smoke"
    data = facts(seed, smoke=smoke)
    whole = memorised(data, data.forget + data.retain, seed, smoke=smoke)
    return data, whole, memorised(data, data.retain, seed, smoke=smoke)


def forget(
    way: str, rate: float, data: Facts, memorised_model: LanguageModel, retrained: LanguageModel, scale: str
) -> dict[str, Any]:
    """Measures where a way has forgotten, the step, and answers by the template after all steps."""
    model = copy.deepcopy(memorised_model)
    loss = _loss(way, data, memorised_model)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    reached: dict[str, Any] = {}
    for step in range(1, STEPS[scale] + 1):
        optimizer.zero_grad()
        loss(model, step).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if not reached and step % EVERY[scale] == 0:
            written = answers(model, data.words, data.forget)
            right = sum(text == answer for text, (_, answer) in zip(written, data.forget))
            if 100 * right <= ENOUGH * len(written) or step == STEPS[scale]:
                reached = {"step": step, **measures(model, data, retrained)}
    written = answers(model, data.words, data.forget)
    return {**reached, "at the end": 100 * sum(text == TEMPLATE for text in written) / len(written)}


def _loss(way: str, data: Facts, reference: LanguageModel) -> Callable[[LanguageModel, int], Tensor]:
    """Of a model and the number of a step, full batch."""
    (x, y), (xt, yt), (xr, yr) = (
        data.words.rows(pairs)
        for pairs in (data.forget, [(prompt, TEMPLATE) for prompt, _ in data.forget], data.retain)
    )
    with torch.no_grad():
        ref = sequence_logp(reference(x), y)
        states, head = reference.hidden(xr), reference.head.weight
    likelihood = TokenCrossEntropyLoss()
    ascent, npo = UnlearningObjective("ga"), UnlearningObjective("npo")
    keeping = {
        "gradient difference": UnlearningObjective("ga", "ce"),
        "NPO, likelihood": UnlearningObjective("npo", "ce"),
        "NPO, divergence": UnlearningObjective("npo", "kl"),
    }

    def of_template(model: LanguageModel) -> Tensor:
        return likelihood(model.hidden(xt), yt, model.head.weight)  # type: ignore[no-any-return]

    def loss(model: LanguageModel, step: int) -> Tensor:
        weight = model.head.weight
        if way.startswith("FLAT"):
            kind = way.partition(", ")[2]
            flat = FLATLoss("kl" if kind == "kl" else "tv", "ce" if kind == "likelihood" else None)
            if step <= FIRST:
                return of_template(model)
            rows = (model.hidden(xr), yr) if kind == "likelihood" else ()
            value: Tensor = flat(model.hidden(x), y, *rows, head=weight, template=model.hidden(xt), template_labels=yt)
            return value
        if way in keeping:
            further = {} if way.startswith("gradient") else {"forget_ref_logp": ref}
            if way == "NPO, divergence":
                further |= {"retain_reference": states, "reference_head": head}
            both: Tensor = keeping[way](model.hidden(x), y, model.hidden(xr), yr, head=weight, **further)
            return both
        alone: Tensor = (
            npo(model.hidden(x), y, head=weight, forget_ref_logp=ref)
            if way == "NPO"
            else ascent(model.hidden(x), y, head=weight)
        )
        return alone + of_template(model) if way == "ascent, template" else alone

    return loss


def choose_rates() -> dict[str, float]:
    """Of each way the rate that leaves the least loss where it has forgotten."""
    begun_with = {seed: begun("full", seed) for seed in (101, 102)}

    def score(way: str, rate: float, seed: int) -> float:
        row = forget(way, rate, *begun_with[seed], "full")
        return -float(row["retain loss"] + row["text loss"] + (10 if row["forget right"] > ENOUGH else 0))

    return {way: best_setting(GRID, lambda rate, seed, way=way: score(way, rate, seed), (101, 102)) for way in WAYS}


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Loss on the other facts."""
    return bars_figure(evidence, y="retain loss", label="way")
