"""Chronicals: packing against padding, LoRA+ against LoRA, fused operations against eager ones, on one CPU core.

The published 3.51x and 4.10x are of one A100 against another library; the card's three experiments stand for them here.
(a) RMSNorm, SwiGLU and the rotation, forward and backward in float32, against the formulas that Transformers runs
eagerly; the operations are ours as they are, without a compiler. (b) A small character model on lines of Shakespeare's
plays: training steps on the same 64 lines, packed into rows of 128 or padded, collation included, in valid tokens a
second. Padded means to the longest line of the text, as the source pads, and, harder to beat, to the longest of the
batch. (c) The same model trained on the plays, its weights frozen, adapters of rank 4 trained on lines in capitals:
held-out loss after 80 steps, LoRA against LoRA+ with ratio 16, at one rate of A and at the best of four rates for
each; 3e-4, a fifth before, was best for neither on any seed. Seconds are those that the processor spent on the thread,
the least of several rounds that take turns within a seed. The smoke scale reads descriptions of scikit-learn's data
sets instead of the plays.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

from ...kernels.chronicals import (
    LoRAPlus,
    PackedSequences,
    ZeroGradientGuard,
    fused_qk_rope,
    fused_rms_norm,
    fused_swiglu,
    pack_sequences,
    rotary_table,
)
from ..data import shakespeare
from ..experiment import Claim, Evidence

CAPACITY, RANK, RATIO = 128, 4, 16.0
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
ONE_RATE = 1e-3
CLAIMS = (
    Claim(
        "fused", "the three fused operations take less time than eager ones (ratio above 1)", size=0.1, threshold=1.0
    ),
    Claim(
        "packed", "packing gives at least 1.5 times the tokens a second of padding to the longest line of all", 0.5, 1.5
    ),
    Claim("at most", "and at most 3 times", 0.5, 3.0, greater=False, ours=True),
    Claim(
        "batch",
        "packing gives at least 1.5 times those of padding to the longest line of the batch",
        0.5,
        1.5,
        ours=True,
    ),
    Claim("one rate", "LoRA+ has a lower loss than LoRA after equal steps at one rate of A (nats)", size=0.01),
    Claim("best rates", "LoRA+ has a lower loss than LoRA, each at the best of four rates (nats)", size=0.01),
)


def run(scale: str, seed: int) -> Evidence:
    """Times of operations, tokens a second of padded and packed steps, losses of LoRA and LoRA+ by rate."""
    full = scale == "full"
    torch.manual_seed(seed)
    lines = read(full)
    rows: list[dict[str, object]] = []
    effects = {
        "fused": operations(rows, full),
        **packing(rows, lines, seed, full),
        **adapters(rows, lines, seed, full),
    }
    return Evidence(rows, effects)


def read(full: bool) -> list[str]:
    """Lines that are not empty, each with its end, none longer than a row."""
    if full:
        text = shakespeare()
    else:
        from sklearn.datasets import load_breast_cancer, load_wine

        text = load_wine().DESCR + load_breast_cancer().DESCR
    return [line[: CAPACITY - 1] + "\n" for line in text.splitlines() if line.strip()]


# ------------------------------------------------------------------------------------------------- (a) the operations


def eager_norm(x: Tensor, w: Tensor) -> Tensor:
    """As a module of Transformers writes it."""
    return w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def eager_rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """As Transformers writes it, with a table whose two halves are equal."""
    half = q.shape[-1] // 2
    turned = [torch.cat((-t[..., half:], t[..., :half]), -1) for t in (q, k)]
    return q * cos + turned[0] * sin, k * cos + turned[1] * sin


def operations(rows: list[dict[str, object]], full: bool) -> float:
    """The geometric mean of eager over fused times, forward and backward."""
    tokens, width = (2048, 512) if full else (64, 32)
    x, w = torch.randn(tokens, width), torch.randn(width)
    gate, up = torch.randn(tokens, 2 * width), torch.randn(tokens, 2 * width)
    q, k = torch.randn(1, 8, tokens, width // 8), torch.randn(1, 2, tokens, width // 8)
    cos, sin = (torch.cat((t, t), -1) for t in rotary_table(torch.arange(tokens), width // 8))
    pairs: dict[str, tuple[Callable[..., object], Callable[..., object], tuple[Tensor, ...]]] = {
        "RMSNorm": (fused_rms_norm, eager_norm, (x, w)),
        "SwiGLU": (fused_swiglu, lambda g, u: functional.silu(g) * u, (gate, up)),
        "rotation": (lambda q, k: fused_qk_rope(q, k, cos, sin), lambda q, k: eager_rope(q, k, cos, sin), (q, k)),
    }
    total = 0.0
    for name, (fused, eager, inputs) in pairs.items():
        steps = [passes(fn, inputs) for fn in (fused, eager)]
        own, theirs = least(steps, 9 if full else 2)
        rows.append({"arm": f"{name}, fused", "part": "operations", "milliseconds": 1e3 * own})
        rows.append({"arm": f"{name}, eager", "part": "operations", "milliseconds": 1e3 * theirs})
        total += math.log(theirs / own)
    return math.exp(total / len(pairs))


def passes(fn: Callable[..., object], inputs: Sequence[Tensor]) -> Callable[[], None]:
    """One forward and backward pass with gradients of ones."""
    leaves = [t.clone().requires_grad_() for t in inputs]

    def step() -> None:
        out = fn(*leaves)
        outs = out if isinstance(out, tuple) else (out,)
        torch.autograd.grad(outs, leaves, [torch.ones_like(o) for o in outs])

    return step


def least(steps: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """The least seconds of each, in rounds that take turns, after one that does not count."""
    best = [math.inf] * len(steps)
    for number in range(rounds + 1):
        for place, step in enumerate(steps):
            begin = time.process_time()
            step()
            if number:
                best[place] = min(best[place], time.process_time() - begin)
    return best


# ------------------------------------------------------------------------------------------------------- the model


class Block(nn.Module):
    """Attention and a gated unit, each after RMSNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.Parameter(torch.ones(2, width))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gates = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """One block; without a mask it is causal."""
        q, k, v = self.qkv(fused_rms_norm(x, self.norms[0])).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        q, k = fused_qk_rope(q, k, *table, unsqueeze_dim=2)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.down(fused_swiglu(*self.gates(fused_rms_norm(x, self.norms[1])).chunk(2, -1)))


class Model(nn.Module):
    """A small causal model of characters."""

    def __init__(self, symbols: int, width: int, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.Parameter(torch.ones(width))
        self.head = nn.Linear(width, symbols, bias=False)
        self.size = width // heads

    def forward(self, ids: Tensor, positions: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
        """The mean loss over the labels that count."""
        x, table = self.embed(ids), rotary_table(positions, self.size)
        for block in self.blocks:
            x = block(x, table, mask)
        logits = self.head(fused_rms_norm(x, self.norm))[:, :-1]
        return functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())


def packed_loss(model: nn.Module, rows: PackedSequences) -> Tensor:
    """The loss of packed rows."""
    return model(rows.input_ids, rows.position_ids, rows.labels, rows.attention_mask())


# -------------------------------------------------------------------------------------------------- (b) the packing


def packing(rows: list[dict[str, object]], lines: list[str], seed: int, full: bool) -> dict[str, float]:
    """Tokens a second of packed over padded training steps on the same lines."""
    symbols = alphabet(lines)
    rng = np.random.default_rng([seed, 1])
    model = Model(len(symbols), 128 if full else 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ZeroGradientGuard().attach(optimizer)  # a step that does nothing would be fast
    longest = max(map(len, lines))
    arms = ("padded to all", "padded to batch", "packed")
    seconds, places, tokens = [0.0] * 3, [0] * 3, 0
    for _ in range(4 if full else 1):
        batch = [encode(lines[i], symbols) for i in rng.permutation(len(lines))[:64]]

        def padded(length: int, batch: list[Tensor] = batch) -> int:
            ids, labels = (pad(batch, length, value) for value in (0, -100))
            descend(optimizer, model(ids, torch.arange(length), labels))
            return ids.numel()

        def packed(batch: list[Tensor] = batch) -> int:
            packed = pack_sequences(batch, CAPACITY)
            descend(optimizer, packed_loss(model, packed))
            return packed.input_ids.numel()

        steps: list[Callable[[], int]] = [partial(padded, longest), partial(padded, max(map(len, batch))), packed]
        places = [total + step() for total, step in zip(places, steps)]
        seconds = [total + best for total, best in zip(seconds, least(steps, 3 if full else 1))]
        tokens += sum(map(len, batch))
    parameters = sum(p.numel() for p in model.parameters())
    for arm, spent, place in zip(arms, seconds, places):
        rate = tokens / spent
        row = {"arm": arm, "part": "packing", "tokens a second": rate, "fill": tokens / place}
        rows.append({**row, "GFLOP a second": 6e-9 * parameters * rate})
    all_, own, ours = seconds
    return {"packed": all_ / ours, "at most": all_ / ours, "batch": own / ours}


def pad(batch: list[Tensor], length: int, value: int) -> Tensor:
    """Lines in rows of one length."""
    rows = torch.full((len(batch), length), value)
    for row, line in zip(rows, batch):
        row[: len(line)] = line
    return rows


def alphabet(lines: list[str]) -> dict[str, int]:
    """Characters, small and capital, by number; 0 is the padding."""
    return {symbol: 1 + i for i, symbol in enumerate(sorted({*"".join(lines), *"".join(lines).upper()}))} | {"": 0}


def encode(line: str, symbols: dict[str, int]) -> Tensor:
    """The numbers of a line."""
    return torch.tensor([symbols[c] for c in line])


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


# ------------------------------------------------------------------------------------------------- (c) the adapters


class Adapter(nn.Module):
    """A frozen linear layer plus (alpha / r) B A with alpha = 2 r; A ~ N(0, 1 / width), B = 0."""

    def __init__(self, layer: nn.Linear, generator: torch.Generator) -> None:
        super().__init__()
        self.layer = layer
        start = torch.randn(RANK, layer.in_features, generator=generator) / math.sqrt(layer.in_features)
        self.lora_A = nn.Parameter(start)
        self.lora_B = nn.Parameter(torch.zeros(layer.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        """W x + (alpha / r) B A x."""
        return self.layer(x) + 2.0 * functional.linear(functional.linear(x, self.lora_A), self.lora_B)


def adapters(rows: list[dict[str, object]], lines: list[str], seed: int, full: bool) -> dict[str, float]:
    """Held-out loss on capitals of LoRA less that of LoRA+."""
    symbols = alphabet(lines)
    order = np.random.default_rng([seed, 2]).permutation(len(lines))
    held, trained = order[: 200 if full else 20], order[200 if full else 20 :]
    base = Model(len(symbols), 64 if full else 16)
    optimizer = torch.optim.AdamW(base.parameters(), lr=3e-3)
    for chosen in batches(trained, seed, 200 if full else 3):
        descend(optimizer, packed_loss(base, pack([lines[i] for i in chosen], symbols)))
    test = pack([lines[i].upper() for i in held], symbols)
    with torch.no_grad():
        rows.append({"arm": "before", "part": "adapters", "rate": 0.0, "loss": float(packed_loss(base, test))})
    train = [
        pack([lines[i].upper() for i in chosen], symbols) for chosen in batches(trained, seed + 1000, 80 if full else 2)
    ]
    loss: dict[tuple[str, float], float] = {}
    for rate in RATES if full else RATES[:2]:
        for arm, ratio in (("LoRA", 1.0), ("LoRA+", RATIO)):
            loss[arm, rate] = tuned(base, train, test, rate, ratio, seed)
            rows.append({"arm": arm, "part": "adapters", "rate": rate, "loss": loss[arm, rate]})
    best = {arm: min(value for (own, _), value in loss.items() if own == arm) for arm in ("LoRA", "LoRA+")}
    return {
        "one rate": loss["LoRA", ONE_RATE] - loss["LoRA+", ONE_RATE],
        "best rates": best["LoRA"] - best["LoRA+"],
    }


def batches(indices: np.ndarray, seed: int, number: int) -> list[np.ndarray]:
    """Random sets of 32 lines."""
    rng = np.random.default_rng([seed, 3])
    return [rng.choice(indices, min(32, len(indices)), replace=False) for _ in range(number)]


def pack(lines: list[str], symbols: dict[str, int]) -> PackedSequences:
    """Lines in rows."""
    return pack_sequences([encode(line, symbols) for line in lines], CAPACITY)


def tuned(
    base: nn.Module, train: list[PackedSequences], test: PackedSequences, rate: float, ratio: float, seed: int
) -> float:
    """The held-out loss after training adapters of a copy; the same start and batches for every rate and ratio."""
    generator = torch.Generator().manual_seed(seed)
    model: Any = copy.deepcopy(base).requires_grad_(False)
    for block in model.blocks:
        for name in ("qkv", "out", "gates", "down"):
            setattr(block, name, Adapter(getattr(block, name), generator))
    optimizer = LoRAPlus(model, rate, ratio)
    for batch in train:
        descend(optimizer, packed_loss(model, batch))
    with torch.no_grad():
        return float(packed_loss(model, test))


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Times, throughput and losses, one panel each: dots are seeds, lines are means."""
    figure = Figure(figsize=(8.4, 2.9), layout="constrained")
    times, rates, losses = figure.subplots(1, 3)
    rows = [row for of_seed in evidence for row in of_seed.rows]
    for axes, workload, key in ((times, "operations", "milliseconds"), (rates, "packing", "tokens a second")):
        arms = list(dict.fromkeys(row["arm"] for row in rows if row["part"] == workload))
        for place, arm in enumerate(arms):
            own = [row[key] for row in rows if row["arm"] == arm]
            axes.plot(own, [place] * len(own), "o", color="#0b5c94", alpha=0.4, markersize=4)
            axes.plot([sum(own) / len(own)] * 2, [place - 0.3, place + 0.3], color="#1d2126", linewidth=2)
        axes.set_yticks(range(len(arms)), arms, fontsize=7)
        axes.set_xlim(left=0.0)
        axes.invert_yaxis()
        axes.set_xlabel(key, fontsize=8)
    for arm, marker in (("LoRA", "o"), ("LoRA+", "s")):
        own = [row for row in rows if row["arm"] == arm]
        places = sorted({row["rate"] for row in own})
        values = [[row["loss"] for row in own if row["rate"] == place] for place in places]
        losses.plot(places, [sum(v) / len(v) for v in values], marker=marker, label=arm, linewidth=1.5, markersize=4)
        losses.fill_between(places, [min(v) for v in values], [max(v) for v in values], alpha=0.12)
    losses.set_xscale("log")
    losses.set_xlabel("rate of A", fontsize=8)
    losses.set_ylabel("held-out loss (nats)", fontsize=8)
    losses.legend(fontsize=8, frameon=False)
    for axes in (times, rates, losses):
        axes.tick_params(labelsize=7)
        axes.spines[["right", "top"]].set_visible(False)
    return figure
