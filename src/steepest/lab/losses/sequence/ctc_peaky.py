"""CTC is peaky from a uniform start; a label prior, or no blank, takes that away.

The table model on x = 0^m 1^n 0^m with target "a", from zero logits, gradient descent of 2500 steps at 1 (500 with a
prior), n in {3, 4, 5, 6, 8, 10}. Nothing is random: a seed is a layout, m = 2 + seed, twelve of them, so that claims
are not those of one m (the card names none). Without a blank: x = 0^m 1^n 2^m, a label for each symbol, the target
"bac" whose labels must cover all frames, 500 steps; beside it, deciding nothing, "sas" with one label on both sides,
which is the same as CTC with a blank that must be there. The position-aware model has logits of its own at each frame,
2000 steps; "zero loss" is taken as under 0.01, "still peaky" as "a" above 1/2 at less than half of the frames that show
it, at n = 10. Of the two that the card names, recurrent or position-aware, only the latter is run. Its loss falls
as one over the steps: whether it is under 0.01 is a matter of their number (at 1000 it is 0.011 on average).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ....losses.sequence.ctc_peaky import LabelPriorCTCLoss, ctc_peaky_table
from ...experiment import Claim, Evidence

LENGTHS = (3, 4, 5, 6, 8, 10)
SEEDS = 12
COVERING = {"no blank": (1, 2, 3), "no blank, sas": (1, 2, 1)}
"""Targets whose labels cover all frames, the middle one for the symbol 1; 0 is the impossible blank."""
CLAIMS = (
    Claim("plain fails", "plain CTC's greedy output is empty for every n from 4 on (share of them)",
          size=0.1, threshold=0.9),
    Claim("plain fails at 3", "it is right at n = 3 (share that fails)", size=0.1, threshold=0.1, greater=False),
    Claim("prior fails", "with a label prior it is right at every n (share that fails)",
          size=0.1, threshold=0.1, greater=False),
    Claim("no blank", "without a blank the spike disappears: p(a|1) at the least n is above 0.9",
          size=0.1, threshold=0.9),
    Claim("position loss", "a position-aware model reaches zero loss", size=0.01, threshold=0.01, greater=False),
    Claim("position share", "and is still peaky: at n = 10 its label is above 1/2 at less than half of its frames",
          size=0.25, threshold=0.5, greater=False),
)  # fmt: skip


def run(scale: str, seed: int) -> Evidence:
    """The table of one layout."""
    full = scale == "full"
    m = 2 + seed
    sizes = [(m, n) for n in LENGTHS]
    plain = ctc_peaky_table(sizes, 2500 if full else 50, 1.0)
    prior = ctc_peaky_table(sizes, 500 if full else 50, 1.0, 1.0)
    covered = {arm: without_blank(sizes, target, 500 if full else 50) for arm, target in COVERING.items()}
    losses, shares = position_aware(sizes, 2000 if full else 50)
    rows = [
        {"arm": arm, "n": n, "p(a|1)": result["p_a_given_1"], "p(a|0)": result["p_a_given_0"], "error": result["error"]}
        for arm, table in (("plain CTC", plain), ("label prior", prior))
        for n, result in zip(LENGTHS, table)
    ]
    rows += [
        {"arm": arm, "n": n, "p(a|1)": p}
        for arm, probabilities in covered.items()
        for n, p in zip(LENGTHS, probabilities)
    ]
    rows += [
        {"arm": "position-aware", "n": n, "loss": loss, "share above 1/2": share}
        for n, loss, share in zip(LENGTHS, losses, shares)
    ]
    effects = {
        "plain fails": float(np.mean([row["error"] for row in plain[1:]])),
        "plain fails at 3": plain[0]["error"],
        "prior fails": float(np.mean([row["error"] for row in prior])),
        "no blank": min(covered["no blank"]),
        "position loss": max(losses),
        "position share": shares[-1],
    }
    return Evidence(rows, effects)


def _layout(sizes: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Which symbol each frame shows ``[T, B]``, whether it exists, and the frames of each sequence."""
    frames = torch.tensor([2 * m + n for m, n in sizes])
    before = torch.tensor([m for m, _ in sizes])
    at = torch.arange(int(frames.max()))[:, None]
    return ((at >= before) & (at < frames - before)).long(), at < frames, frames


def _descend(
    start: Tensor, steps: int, log_probs_of: Callable[[Tensor], Tensor], target: Tensor, frames: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradient descent at 1 on the sum of CTC losses, each of a model of its own."""
    loss = LabelPriorCTCLoss(prior_scale=0.0, reduction="none")
    lengths = torch.full((len(frames),), target.shape[1])
    logits = start.requires_grad_()
    for _ in range(steps):
        values = loss(log_probs_of(logits), target, frames, lengths)
        (slope,) = torch.autograd.grad(values.sum(), logits)
        with torch.no_grad():
            logits -= slope
    with torch.no_grad():
        return logits.detach(), loss(log_probs_of(logits), target, frames, lengths)


def without_blank(sizes: Sequence[tuple[int, int]], labels: tuple[int, ...], steps: int) -> list[float]:
    """p(a|1) where three labels cover all frames, each symbol with its own; CTC whose blank is impossible."""
    symbol, _, frames = _layout(sizes)
    kinds = max(labels)
    if kinds == 3:
        after = torch.arange(len(symbol))[:, None] >= torch.tensor([m + n for m, n in sizes])
        symbol = symbol.masked_fill(after, 2)
    model = torch.arange(len(sizes))

    def log_probs(table: Tensor) -> Tensor:
        known = table.log_softmax(-1)[model, symbol]
        return torch.cat([torch.full_like(known[..., :1], -1e4), known], -1)

    target = torch.tensor([labels]).expand(len(sizes), 3)
    start = torch.zeros(len(sizes), kinds, kinds, dtype=torch.float64)
    table, _ = _descend(start, steps, log_probs, target, frames)
    probabilities: list[float] = table.softmax(-1)[:, 1, 1].tolist()
    return probabilities


def position_aware(sizes: Sequence[tuple[int, int]], steps: int) -> tuple[list[float], list[float]]:
    """Loss, and the frames with p(a) > 1/2 as a share of n, where each frame has logits of its own."""
    _, inside, frames = _layout(sizes)
    start = torch.zeros(*inside.shape, 2, dtype=torch.float64)
    logits, losses = _descend(
        start, steps, lambda z: z.log_softmax(-1), torch.ones(len(sizes), 1, dtype=torch.long), frames
    )
    above = ((logits[..., 1] > logits[..., 0]) & inside).sum(0)
    return losses.tolist(), [float(count) / n for count, (_, n) in zip(above, sizes)]


def figure(evidence: Sequence[Evidence]) -> Figure:
    """p(a|1) over n of the three table models, mean and range over layouts."""
    drawn = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = drawn.subplots()
    rows = [row for of_seed in evidence for row in of_seed.rows if "p(a|1)" in row]
    for arm, marker in (("plain CTC", "o"), ("label prior", "s"), ("no blank", "D")):
        values = [[row["p(a|1)"] for row in rows if row["arm"] == arm and row["n"] == n] for n in LENGTHS]
        axes.plot(
            LENGTHS, [np.mean(v) for v in values], marker=marker, label=arm, linewidth=1.5, markersize=5, alpha=0.8
        )
        axes.fill_between(LENGTHS, [min(v) for v in values], [max(v) for v in values], alpha=0.12)
    axes.axhline(0.5, color="#1d2126", linewidth=0.8, linestyle=":")
    axes.set_xlabel("frames that show the label, n")
    axes.set_ylabel("p(a | 1)")
    axes.set_ylim(-0.02, 1.05)
    axes.spines[["right", "top"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    return drawn
