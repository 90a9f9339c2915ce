"""What backward passes see, shared by the tests of transforms and of torch's private names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor


@pytest.fixture
def copied() -> Callable[[Tensor, Callable[[Tensor], Any]], tuple[Tensor, list[Any]]]:
    """``copied(x, look)``: ``x`` through a function, and what ``look`` says of each gradient that comes back."""

    def copied(x: Tensor, look: Callable[[Tensor], Any]) -> tuple[Tensor, list[Any]]:
        seen: list[Any] = []

        class Copy(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                return x.clone()

            @staticmethod
            def backward(ctx: Any, upstream: Tensor) -> Tensor:
                seen.append(look(upstream))
                return upstream

        return Copy.apply(x), seen

    return copied
