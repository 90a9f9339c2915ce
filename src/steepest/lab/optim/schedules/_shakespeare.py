"""A small causal transformer on the characters of tiny Shakespeare, for the experiments of schedules."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from ....core.random import seed_all
from ....core.schedule import Schedule
from ...data import shakespeare

SYMBOLS = 65
CONTEXT, BATCH = 32, 16
TRAIN = 1_000_000
"""Characters that train; those after them are held out."""
SMOKE = 4_000
"""The same of the numbers that stand for a text in a smoke run, which reads no file."""


class Block(nn.Module):
    """Causal attention and a perceptron, each on normalised inputs and added to them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.inwards, self.outwards = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inwards(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.outwards(mixed.transpose(1, 2).flatten(2))
        return x + self.perceptron(self.norms[1](x))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Characters ``[B, T]`` to logits ``[B, T, 65]``; T at most :data:`CONTEXT`."""

    def __init__(self, depth: int = 2, width: int = 48, heads: int = 3) -> None:
        super().__init__()
        self.symbols, self.places = nn.Embedding(SYMBOLS, width), nn.Embedding(CONTEXT, width)
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


def loss_of(model: nn.Module, windows: Tensor) -> Tensor:
    """Cross-entropy in nats a character of ``[B, T + 1]``."""
    logits = model(windows[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def batch(generator: torch.Generator, smoke: bool) -> Tensor:
    """Windows of the training text, ``[BATCH, CONTEXT + 1]``."""
    text, _ = characters(smoke)
    starts = torch.randint(len(text) - CONTEXT, (BATCH, 1), generator=generator)
    return text[starts + torch.arange(CONTEXT + 1)]


@cache
def held_out(windows: int, smoke: bool) -> Tensor:
    """Windows of the held-out text, side by side, ``[windows, CONTEXT + 1]``."""
    _, rest = characters(smoke)
    step = (len(rest) - CONTEXT - 1) // windows
    return torch.stack([rest[step * k : step * k + CONTEXT + 1] for k in range(windows)])


@torch.no_grad()
def held_out_loss(model: nn.Module, windows: int, smoke: bool) -> float:
    """Cross-entropy on the held-out text."""
    model.eval()
    value = float(loss_of(model, held_out(windows, smoke)))
    model.train()
    return value


@dataclass
class Run:
    """A model, its optimizer and the order of its data."""

    model: nn.Module
    optimizer: torch.optim.AdamW
    order: torch.Generator
    smoke: bool

    def steps(self, count: int, schedule: Schedule) -> None:
        """So many steps at the rates of a schedule of its optimizer; gradients are clipped at length 1."""
        for _ in range(count):
            self.optimizer.zero_grad()
            loss_of(self.model, batch(self.order, self.smoke)).backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            schedule.step()


def begun(seed: int, rate: float, *, smoke: bool = False) -> Run:
    """A fresh run with AdamW as in language models: betas 0.9 and 0.95, weight decay 0.1; in float64 as a smoke run."""
    seed_all(seed)
    model = Transformer().double() if smoke else Transformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1)
    return Run(model, optimizer, torch.Generator().manual_seed(seed), smoke)
