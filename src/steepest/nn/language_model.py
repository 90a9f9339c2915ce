"""A small causal transformer, and how a language model goes on from prompts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.checks import check_number, refuse


class Block(nn.Module):
    """Causal attention and a perceptron, each on normalised inputs and added to them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.perceptron_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inwards, self.outwards = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inwards(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.outwards(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.perceptron_norm(x))  # type: ignore[no-any-return]


class LanguageModel(nn.Module):
    """Tokens ``[B, T]`` to logits ``[B, T, V]`` of the next ones.

    Args:
        symbols: V.
        context: the largest T.
        width, depth, heads: of its blocks.
    """

    def __init__(self, symbols: int, context: int, width: int = 64, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.symbols, self.places = nn.Embedding(symbols, width), nn.Embedding(context, width)
        nn.init.normal_(self.symbols.weight, std=0.1)
        nn.init.normal_(self.places.weight, std=0.1)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, symbols, bias=False)

    def hidden(self, tokens: Tensor) -> Tensor:
        """What the head reads, ``[B, T, width]``."""
        if tokens.shape[1] > len(self.places.weight):
            refuse("tokens", f"at most {len(self.places.weight)} in a row, the context", tokens)
        x = self.symbols(tokens) + self.places.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)  # type: ignore[no-any-return]

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.hidden(tokens))  # type: ignore[no-any-return]


@torch.no_grad()
def complete(
    model: nn.Module,
    prompts: Tensor,
    lengths: Tensor,
    steps: int,
    *,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    end: int = 0,
) -> Tensor:
    """So many tokens after each prompt ``[B, steps]``; after an end only ends.

    Args:
        model: of tokens, with ``hidden`` and ``head`` as :class:`LanguageModel` has them.
        prompts: ``[B, T]``, filled up at the right.
        lengths: how many tokens each has ``[B]``.
        steps: tokens that follow.
        temperature: of the draws; 0 takes the likeliest.
        generator: of the draws.
        end: the token that ends an answer.
    """
    check_number("temperature", temperature, low=0.0)
    count, longest = prompts.shape
    rows = torch.cat([prompts, prompts.new_full((count, steps), end)], 1)
    each_row = torch.arange(count, device=prompts.device)
    open_rows = torch.ones(count, dtype=torch.bool, device=prompts.device)
    answers = prompts.new_full((count, steps), end)
    for number in range(steps):
        last = lengths + number - 1
        hidden = model.hidden(rows[:, : longest + number])[each_row, last]  # type: ignore[operator]
        logits = model.head(hidden)  # type: ignore[operator]
        if temperature > 0:
            p = (logits.float() / temperature).softmax(-1)
            token = torch.multinomial(p, 1, generator=generator).squeeze(1)
        else:
            token = logits.argmax(-1)
        token = torch.where(open_rows, token, end)
        rows[each_row, last + 1] = answers[:, number] = token
        open_rows = open_rows & (token != end)
        if not open_rows.any():
            break
    return answers
