"""What every loss promises, whatever its arguments: objectives, penalties, losses in their field's signature."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from .arguments import Arguments

Sample = tuple[tuple[Any, ...], dict[str, Any]]


class Loss(Arguments, nn.Module):
    """Tensors in, one number out.

    A loss of outputs and targets is an :class:`~steepest.core.objective.Objective`, a term of named tensors a
    :class:`~steepest.core.objective.Penalty`; what fits neither (pairs, bags, sequences, plans) derives from this.

    Class attributes:
        name: snake_case, unique.
        gradient: ``"exact"`` (the conformance suite compares it with differences of the value) or ``"surrogate"``.
        differentiable: positions and names of the arguments of ``forward`` that the gradient is exact in.
        stateful: whether ``forward`` or the epoch calls write state.
        autocast: whether matrix products inside follow autocast (a head's); else all is computed in the types of the
            tensors, or wider.
        exempt: names of conformance checks that don't apply, each with its reason.
    """

    name: ClassVar[str] = ""
    gradient: ClassVar[str] = "exact"
    differentiable: ClassVar[tuple[int | str, ...]] = (0,)
    stateful: ClassVar[bool] = False
    autocast: ClassVar[bool] = False
    exempt: ClassVar[dict[str, str]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.terms: dict[str, Tensor] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """``forward``, without autocast: what a model computes in half precision is no reason for its loss to."""
        kind = next((value.device.type for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), "cpu")
        if self.autocast or not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
            return super().__call__(*args, **kwargs)
        with torch.autocast(kind, enabled=False):
            return super().__call__(*args, **kwargs)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Called before each epoch, 1-based: the only channel through which a loss learns of time."""

    def after_step(self) -> None:
        """Called after each optimizer step: projections, dual and temperature updates."""

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Instances with valid ``(args, kwargs)``: what the conformance suite runs on."""
        raise NotImplementedError(f"{cls.__name__} gives no samples")
