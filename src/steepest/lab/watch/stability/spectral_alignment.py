"""Whether inputs of linear layers lean to one side of the top singular direction before the loss of a run fails.

Set-up of the claim: tiny Shakespeare, a pre-norm transformer of 4 blocks and width 64, batches of 16, AdamW without
clipping, 20 steps of warm-up; at a rate of 0.1 the loss fails at step 512 or 677 of 800, while the mean majority of
signs over a type of layers is at 1 a hundred to several hundred steps earlier; in sound runs at 0.01 that of the
perceptrons' outward layers is below 0.95. What is changed: context 32 (64), and a run at 0.1 ends when it fails, or at
step 400; a seed that is not reported had failed by step 240. The sound run has 120 steps. Readings are ten steps apart.

Claims: the alarm (the card's: the mean of a type above 0.97 in five readings in a row, after a tenth of the 400 steps)
comes before the failure (size: 100 steps); the mean majority of outward layers after that tenth of a sound run is below
0.95 (size: 0.1, as the card has 0.58 to 0.91); the last one before the failure is above the last one of the sound run
(size: 0.1; card: 0.2 and more). Ours: no alarm in the sound run (share of readings with one, size 0.1). A row says when
the alarm came and when the gradient's norm first left three standard deviations over the 50 steps before.

A failure is a mean loss over 10 steps that is 10% above its least so far; of a run that does not fail, the lead is
counted to its end. Both runs have the same seed, batches and initial weights. The sound run must come below 2.8 nats,
which every seed checks. Where the rate grows instead, from 0.01 a hundredfold in 200 steps (width 32, two seeds that
are not reported), the loss rises by 10% at once without any majority near 1: such a failure has no early sign.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

import torch
from matplotlib.figure import Figure

from ....core.probe import Moment
from ....core.random import seed_all
from ....watch.stability.spectral_alignment import SpectralAlignmentMonitor
from ...experiment import Claim, Evidence
from ...figures import arms_figure
from ...optim.schedules._shakespeare import CONTEXT, characters, loss_of
from ...settings import check_sane
from ._transformer import Transformer

SEEDS = 6
DEPTH, WIDTH, HEADS, WARM_UP, EVERY, ROWS, SANITY = 4, 64, 4, 20, 10, 16, -2.8
MEAN, RISE, GRADIENTS = 10, 1.1, 50
SOUND, FAILING = "rate 0.01", "rate 0.1"
RATES = {SOUND: 0.01, FAILING: 0.1}
STEPS = {SOUND: 120, FAILING: 400}
CLAIMS = (
    Claim("lead", "the alarm comes before the loss fails, in steps", size=100),
    Claim("sound", "outward layers of a sound run have a majority below 0.95", 0.1, threshold=0.95, greater=False),
    Claim("apart", "before the failure it is above that of the sound run", size=0.1),
    Claim("quiet", "the sound run has an alarm in at most 0.1 of its readings", 0.1, 0.1, greater=False, ours=True),
)


@dataclass
class Watched:
    """A run: losses, gradient norms, and by reading its step, the majority of each type and types with an alarm."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    majority: list[dict[str, float]] = field(default_factory=list)
    alarms: list[float] = field(default_factory=list)
    failed: bool = False


def run(scale: str, seed: int) -> Evidence:
    """Majorities of the two runs, and when each alarm came."""
    full = scale == "full"
    sound, failing = (watched(arm, seed, full) for arm in (SOUND, FAILING))
    if full:
        check_sane("loss of the sound run, negative", -fmean(sound.losses[-MEAN:]), SANITY)
    end = len(failing.losses)
    alarm = next((step for step, value in zip(failing.steps, failing.alarms) if value), end)
    late = [place for place, step in enumerate(sound.steps) if step > _after(full)]
    rows: list[dict[str, Any]] = [
        {"arm": arm, "step": step, "loss": seen.losses[step - 1], **majority}
        for arm, seen in ((SOUND, sound), (FAILING, failing))
        for step, majority in list(zip(seen.steps, seen.majority))[:: 2 if full else 1]
    ]
    rows.append(
        {
            "arm": "steps",
            "end": end,
            "failed": failing.failed,
            "alarm": alarm,
            "gradient alarm": _gradient_alarm(failing.norms),
        }
    )
    effects = {
        "lead": float(end - alarm),
        "sound": fmean(sound.majority[place]["down"] for place in late),
        "apart": failing.majority[-1]["down"] - sound.majority[-1]["down"],
        "quiet": fmean(float(sound.alarms[place] > 0) for place in late),
    }
    return Evidence(rows, effects)


def _after(full: bool) -> int:
    return STEPS[FAILING] // 10 if full else 2


def watched(arm: str, seed: int, full: bool) -> Watched:
    """Train at a rate, to the end or until the loss has failed."""
    seed_all(seed)
    depth = DEPTH if full else 2
    model = Transformer(depth, WIDTH, HEADS) if full else Transformer(depth, 8, 2).double()
    layers = {"query, key, value": ("query", "key", "value"), "out": ("out",), "up": ("up",), "down": ("down",)}
    names = {
        of_type: [f"blocks.{block}.{layer}" for block in range(depth) for layer in own]
        for of_type, own in layers.items()
    }
    every, warm_up = (EVERY, WARM_UP) if full else (2, 2)
    monitor = SpectralAlignmentMonitor(names, after=_after(full), every=every)
    optimizer = torch.optim.AdamW(model.parameters())
    order = torch.Generator().manual_seed(seed)
    text, _ = characters(not full)
    seen, least = Watched(), math.inf
    for step in range(1, (STEPS[arm] if full else 6) + 1):
        optimizer.param_groups[0]["lr"] = RATES[arm] * min(1.0, step / warm_up)
        starts = torch.randint(len(text) - CONTEXT, (ROWS if full else 4, 1), generator=order)
        windows = text[starts + torch.arange(CONTEXT + 1)]
        loss = loss_of(model, windows)
        optimizer.zero_grad()
        loss.backward()
        seen.losses.append(loss.item())
        norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        seen.norms.append(float(torch.stack(norms).norm()))
        if step % every == 0:
            reading = monitor.measure(Moment(step, "gradients", model, inputs=windows[:, :-1]))
            array = reading.arrays["majority_of_type"]
            seen.steps.append(step)
            seen.majority.append(dict(zip(map(str, array.axes["type"] or ()), array.values.tolist())))
            seen.alarms.append(float(reading.numbers["alarm"]))
        optimizer.step()
        now = fmean(seen.losses[-MEAN:])
        least = min(least, now)
        if full and now > RISE * least:
            seen.failed = True
            break
    return seen


def _gradient_alarm(norms: Sequence[float]) -> int:
    """The first step whose norm is three standard deviations above the mean of those before; the last one if none."""
    for step in range(GRADIENTS, len(norms)):
        before = norms[step - GRADIENTS : step]
        if norms[step] > fmean(before) + 3 * stdev(before):
            return step + 1
    return len(norms)


def figure(evidence: Sequence[Evidence]) -> Figure:
    """The majority of the perceptrons' outward layers in both runs."""
    by_step = [Evidence([row for row in of_seed.rows if "step" in row], {}) for of_seed in evidence]
    drawn: Figure = arms_figure(by_step, x="step", y="down")
    return drawn
