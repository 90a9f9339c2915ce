"""Linear cross-entropy without a logit matrix: memory, time, and what the gradient filter costs, on one CPU core.

The published figures are of an A100 and Gemma-2's head of 2304 by 256,000; the card's CPU experiment stands for them:
2048 tokens, width 512, 32,000 classes, float32, random hidden states and weight, against plain cross-entropy of the
logits. "About .19 of the memory" is taken as less than a quarter, ".8 to .9 of the time" as less than all of it,
"1.05 to 1.35" for slabs of 4,000 classes as less than 1.35. Memory is the most bytes that tensors hold at once in a
forward and backward pass, gradients included; seconds are those that the processor spent on the thread, the least of
three rounds that take turns within a seed.

The filter is judged on a head trained for the purpose: words of Shakespeare's plays (lower case, 12,000 of them), the
last four embedded in 64 dimensions each, one hidden layer of 128, Adam, 400 steps of 512 words, each seed its own start
and order; then the next 2,048 words, threshold 2^-12 as for bfloat16. "On heavy-tailed heads it drops 10-27% of the
mass" is taken as more than 10%. The rank-one tail, which is ours, should at least halve the relative error of the
weight's gradient. The smoke scale has small sizes and words drawn by Zipf's law.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from ...core.allocations import peak_bytes
from ...kernels import GradientFilter, linear_cross_entropy
from ...kernels._cross_entropy_rows import CrossEntropyRows
from ...kernels._engine import Head
from ...kernels._slab import SlabLosses, Slabs
from ..data import shakespeare
from ..experiment import Claim, Evidence
from ..figures import bars_figure

SLAB, CONTEXT, EPS = 4000, 4, 2.0**-12
CLAIMS = (
    Claim("chunk memory", "chunks of rows take less than a quarter of plain's memory", 0.06, 0.25, greater=False),
    Claim("chunk time", "and less time", 0.1, 1.0, greater=False),
    Claim("slab memory", "slabs of 4,000 classes take less than a quarter of it", 0.07, 0.25, greater=False),
    Claim("slab time", "and less than 1.35 times the time", 0.1, 1.35, greater=False),
    Claim("dropped", "on a trained head the filter drops more than 10% of the probability", 0.05, 0.1),
    Claim("tail", "the rank-one tail at least halves the error of the weight's gradient (ratio above 2)", 1.0, 2.0),
)


def run(scale: str, seed: int) -> Evidence:
    """Ratios to plain cross-entropy, and the filter's errors."""
    full = scale == "full"
    generator = torch.Generator().manual_seed(seed)
    rows, width, classes = (2048, 512, 32_000) if full else (64, 16, 500)
    hidden = torch.randn(rows, width, generator=generator).requires_grad_()
    weight = (torch.randn(classes, width, generator=generator) / width**0.5).requires_grad_()
    target = torch.randint(classes, (rows,), generator=generator)

    def slabs(h: Tensor, w: Tensor, b: Tensor | None) -> Slabs:
        return Slabs(Head(h, w, b), CrossEntropyRows(target), SLAB if full else 100)

    def whole(h: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return cross_entropy(linear(h, w, b), target, reduction="none")

    arms: dict[str, Callable[[], Tensor]] = {
        "plain": lambda: cross_entropy(linear(hidden, weight), target),
        "chunks of rows": lambda: _loss(linear_cross_entropy(hidden, weight, target)),
        "slabs of classes": lambda: SlabLosses.apply(hidden, weight, None, slabs, whole)[0].mean(),
    }
    measured = _compare(arms, [hidden, weight], rounds=3 if full else 1)
    plain = measured["plain"]
    table: list[dict[str, Any]] = [{"arm": arm, **found} for arm, found in measured.items()]
    effects = {}
    for short, arm in (("chunk", "chunks of rows"), ("slab", "slabs of classes")):
        effects[f"{short} memory"] = measured[arm]["bytes"] / plain["bytes"]
        effects[f"{short} time"] = measured[arm]["seconds"] / plain["seconds"]
    errors = _filtered(*trained(full, seed))
    table += errors
    effects["dropped"] = errors[0]["dropped"]
    effects["tail"] = errors[0]["weight error"] / errors[1]["weight error"]
    return Evidence(table, effects)


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Relative errors of the weight's gradient on the trained head."""
    kept = [Evidence([row for row in each.rows if "weight error" in row], {}) for each in evidence]
    return bars_figure(kept, y="weight error")


def _loss(found: Any) -> Tensor:
    assert isinstance(found, Tensor)
    return found


def _compare(arms: dict[str, Callable[[], Tensor]], leaves: list[Tensor], rounds: int) -> dict[str, dict[str, float]]:
    """Bytes and seconds of a forward and backward pass of each arm."""
    found: dict[str, dict[str, float]] = {}

    def step(loss: Callable[[], Tensor]) -> None:
        for leaf in leaves:
            leaf.grad = None
        loss().backward()

    for arm, loss in arms.items():
        found[arm] = {"bytes": float(peak_bytes(lambda loss=loss: step(loss))), "seconds": float("inf")}  # type: ignore[misc]
    for _ in range(rounds):
        for arm, loss in arms.items():
            begin = time.thread_time()
            step(loss)
            found[arm]["seconds"] = min(found[arm]["seconds"], time.thread_time() - begin)
    return found


def _words(full: bool, seed: int) -> np.ndarray:
    """Word indices, the most frequent first; 0 stands for all the others."""
    if not full:
        return np.minimum(np.random.default_rng(seed).zipf(1.3, 4000) - 1, 399)
    words = re.findall(r"[a-z']+|[^\sa-z']", shakespeare().lower())
    index = {word: n for n, (word, _) in enumerate(Counter(words).most_common(11_999), 1)}
    return np.array([index.get(word, 0) for word in words])


def trained(full: bool, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states of words never trained on, the weight of a head trained on those before, the words that follow."""
    text = torch.from_numpy(_words(full, seed)).long()
    classes = int(text.max()) + 1
    torch.manual_seed(seed)
    embed = nn.Embedding(classes, 64)
    body = nn.Sequential(nn.Linear(64 * CONTEXT, 128), nn.GELU(), nn.LayerNorm(128))
    head = nn.Parameter(torch.randn(classes, 128) * 0.02)
    optimizer = torch.optim.Adam([*embed.parameters(), *body.parameters(), head], lr=3e-3)
    windows = text.unfold(0, CONTEXT + 1, 1)
    size, test = (512, 2048) if full else (64, 128)
    train = windows[:-test]
    for _ in range(400 if full else 5):
        batch = train[torch.randint(len(train), (size,))]
        optimizer.zero_grad()
        _loss(linear_cross_entropy(body(embed(batch[:, :-1]).flatten(1)), head, batch[:, -1])).backward()
        optimizer.step()
    with torch.no_grad():
        hidden = body(embed(windows[-test:, :-1]).flatten(1))
    return hidden, head.detach(), windows[-test:, -1]


def _filtered(hidden: Tensor, weight: Tensor, target: Tensor) -> list[dict[str, Any]]:
    """Errors of the gradients without and with the tail, relative to the exact ones in float64."""

    def gradients(dtype: torch.dtype, filter: GradientFilter | None) -> list[Tensor]:
        leaves = [t.to(dtype).requires_grad_() for t in (hidden, weight)]
        loss = _loss(linear_cross_entropy(leaves[0], leaves[1], target, filter=filter))
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    exact = gradients(torch.float64, None)
    rows = []
    for tail in (False, True):
        chosen = GradientFilter(EPS, tail=tail)
        found = gradients(torch.float32, chosen)
        off = [float((a.double() - b).norm() / b.norm()) for a, b in zip(found[1:], exact[1:])]
        assert chosen.dropped is not None
        rows.append(
            {
                "arm": "filter with tail" if tail else "filter",
                "loss": float(exact[0]),
                "kept": chosen.kept,
                "dropped": float(chosen.dropped),
                "hidden error": off[0],
                "weight error": off[1],
            }
        )
    return rows
