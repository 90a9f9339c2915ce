"""A small causal transformer on the characters of tiny Shakespeare, with projections of its own for each matrix."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from ....core.random import seed_all
from ...data import shakespeare

SYMBOLS = 65
TRAIN = 1_000_000
"""Characters that train; those after them are held out."""
SMOKE = 4_000
"""The same of the numbers that stand for a text in a smoke run, which reads no file."""


class Block(nn.Module):
    """Causal attention and a perceptron, each on normalised inputs and added to them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_perceptron = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        h = self.before_attention(x)
        q, k, v = (
            layer(h).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o_proj(mixed.transpose(1, 2).flatten(2))
        return x + self.perceptron(self.before_perceptron(x))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Characters ``[B, T]`` to logits ``[B, T, 65]``; T at most ``context``."""

    def __init__(self, width: int, depth: int, heads: int, context: int) -> None:
        super().__init__()
        self.symbols, self.places = nn.Embedding(SYMBOLS, width), nn.Embedding(context, width)
        nn.init.normal_(self.symbols.weight, std=0.1)
        nn.init.normal_(self.places.weight, std=0.1)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, SYMBOLS)

    def forward(self, symbols: Tensor) -> Tensor:
        x = self.symbols(symbols) + self.places.weight[: symbols.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


@cache
def characters(smoke: bool = False) -> tuple[Tensor, Tensor]:
    """The text as numbers of its characters: those that train, and those that are held out."""
    if smoke:
        steps = torch.randint(1, 4, (SMOKE + 1_000,), generator=torch.Generator().manual_seed(0))
        return (steps.cumsum(0) % SYMBOLS).tensor_split([SMOKE])  # type: ignore[return-value]
    text = shakespeare()
    number = {symbol: place for place, symbol in enumerate(sorted(set(text)))}
    numbers = torch.tensor([number[symbol] for symbol in text])
    return numbers[:TRAIN], numbers[TRAIN:]


def windows(text: Tensor, count: int, context: int, generator: torch.Generator) -> Tensor:
    """Windows at random places, ``[count, context + 1]``."""
    starts = torch.randint(len(text) - context, (count, 1), generator=generator)
    return text[starts + torch.arange(context + 1)]


def nats(model: nn.Module, rows: Tensor, since: int = 0) -> Tensor:
    """Cross-entropy of each character after the first ``since`` of them, ``[B, T - since]``, of ``[B, T + 1]``."""
    logits = model(rows[:, :-1])[:, since:]
    return nn.functional.cross_entropy(logits.transpose(1, 2), rows[:, since + 1 :], reduction="none")


def fresh(seed: int, width: int, depth: int, heads: int, context: int, smoke: bool) -> Transformer:
    """An untrained one; in float64 as a smoke run."""
    seed_all(seed)
    model = Transformer(width, depth, heads, context)
    return model.double() if smoke else model


def adamw(model: nn.Module, rate: float) -> torch.optim.AdamW:
    """AdamW as in language models: betas 0.9 and 0.95, weight decay 0.1."""
    return torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1)
