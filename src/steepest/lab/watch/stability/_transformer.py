"""A small causal transformer whose embedding, initial weights and attention vary, for the experiments of stability."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ...optim.schedules._shakespeare import CONTEXT, SYMBOLS


class Block(nn.Module):
    """Causal attention and a perceptron, each on normalised inputs and added to them."""

    def __init__(self, width: int, heads: int, norm_of_heads: Callable[[int], nn.Module] | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.perceptron_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads_norm = None if norm_of_heads is None else norm_of_heads(width // heads)

    def queries_and_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of normalised inputs ``[B, T, d]``, both ``[B, heads, T, d / heads]``."""
        q, k = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key))
        return (q, k) if self.heads_norm is None else self.heads_norm(q, k)

    def forward(self, x: Tensor) -> Tensor:
        normal = self.attention_norm(x)
        q, k = self.queries_and_keys(normal)
        v = self.value(normal).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.perceptron_norm(x))))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Characters ``[B, T]`` to logits ``[B, T, 65]``; T at most 32.

    Args:
        depth, width, heads: of its blocks.
        embedding: of characters to vectors; None is torch's.
        norm_of_heads: of the width of a head, a module of queries and keys; None for none.
    """

    def __init__(
        self,
        depth: int = 2,
        width: int = 48,
        heads: int = 3,
        *,
        embedding: nn.Module | None = None,
        norm_of_heads: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.symbols = nn.Embedding(SYMBOLS, width) if embedding is None else embedding
        self.places = nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width, heads, norm_of_heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, SYMBOLS)

    def forward(self, symbols: Tensor) -> Tensor:
        x = self.symbols(symbols) + self.places.weight[: symbols.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits
