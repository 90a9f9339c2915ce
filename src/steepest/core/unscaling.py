"""What gradient scalers need of any optimizer: gradients divided once, nothing moved after an overflow; and copies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from .checks import refuse
from .displaced import length
from .torch_private import foreach_mul_


class Unscaling(Optimizer):
    """An optimizer whose ``step`` a gradient scaler may call, with a closure too.

    The gradients that the step uses are those of the loss itself, whoever scaled it; where one of them is not finite,
    nothing moves. Copies and pickles have all attributes.
    """

    _step_supports_amp_scaling = True

    @torch.no_grad()
    def _unscaled(self, scaler: torch.amp.GradScaler | None, *, ran: bool, asked_for: Optimizer | None = None) -> bool:
        """Divide gradients by the scale of who scaled them; whether they are finite, where a scaler asks for that.

        A scaler that calls ``step`` leaves its scale and what it found in the gradients before on the optimizer.

        Args:
            scaler: one that does not call ``step`` itself.
            ran: whether the closure has just made the gradients.
            asked_for: the optimizer under whose name the scaler counts this pass; by default this one.
        """
        if scaler is not None:
            if not scaler.is_enabled():
                return True
            scaler.unscale_(self if asked_for is None else asked_for)
            return bool(self._finite())
        if "found_inf" not in self.__dict__:
            return True
        scale = cast(Tensor | None, self.__dict__.get("grad_scale"))
        if scale is not None:
            for slopes in by_device([p.grad for p in self._with_gradients()]).values():
                foreach_mul_(slopes, scale.double().reciprocal().to(slopes[0].device, torch.float32))
        elif ran:
            refuse("closure", "None after scaler.unscale_, because a closure makes scaled gradients anew", "a closure")
        return not bool(self.__dict__["found_inf"]) and (not ran or bool(self._finite()))

    def _with_gradients(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]

    def _finite(self) -> Tensor:
        return length([_dense(p.grad) for p in self._with_gradients() if p.grad is not None]).isfinite()

    def __getstate__(self) -> dict[str, Any]:
        own = {name: value for name, value in self.__dict__.items() if not name.startswith("_optimizer_")}
        return {name: value for name, value in own.items() if name not in _NOT_KEPT}


_NOT_KEPT = ("step", "_zero_grad_profile_name", "grad_scale", "found_inf", "_away", "_ready", "_memory")
"""What schedules and scalers bind to one object, and what lies between two passes."""


def by_device(gradients: Iterable[Tensor | None]) -> dict[Any, list[Tensor]]:
    """Gradients by device and type; of sparse ones the values."""
    groups: dict[Any, list[Tensor]] = {}
    for gradient in gradients:
        if gradient is not None:
            values = gradient._values() if gradient.is_sparse else gradient
            groups.setdefault((gradient.device, gradient.dtype), []).append(values)
    return groups


def _dense(gradient: Tensor) -> Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient
