"""AdamW over a stack of models, each with its own learning rate and weight decay."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core import adamw
from ..core.checks import check_flag, check_number, refuse
from .stack import Stack


class StackedAdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay on all models of a stack at once; the same numbers as torch's AdamW on each.

    .. math:: w \\leftarrow (1 - \\eta_m \\lambda_m) w - \\eta_m \\hat m / (\\sqrt{\\hat v} + \\epsilon)

    The group's ``lr`` is a common factor on the models' own rates, so that any ``LRScheduler`` works.

    Args:
        stack: the models.
        lr: M learning rates > 0.
        weight_decay: M decays >= 0.
        betas: decay rates of the two averages.
        eps: added to the root.
        one_pass: whether float32 on the CPU goes through C++, in a quarter of the time; its square root is the nearest
            float, which torch's is but for the last bit.

    Source: Decoupled Weight Decay Regularization, arXiv:1711.05101.
    """

    def __init__(
        self,
        stack: Stack,
        *,
        lr: Sequence[float],
        weight_decay: Sequence[float],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        one_pass: bool = False,
    ) -> None:
        check_flag("one_pass", one_pass)
        if len(lr) != len(stack) or len(weight_decay) != len(stack):
            refuse("lr, weight_decay", f"{len(stack)} values, one a model", (len(lr), len(weight_decay)))
        for rate, decay in zip(lr, weight_decay):
            check_number("lr", rate, low=0.0, open_low=True)
            check_number("weight_decay", decay, low=0.0)
        super().__init__(list(stack.parameters()), {"lr": 1.0})
        self.stack, self.betas, self.eps, self.one_pass = stack, betas, eps, one_pass
        flat = stack.flat
        self.rate = torch.tensor(lr, dtype=flat.dtype, device=flat.device).unsqueeze(1)
        self.decay = torch.tensor(weight_decay, dtype=flat.dtype, device=flat.device).unsqueeze(1)
        self.first, self.second = torch.zeros_like(flat), torch.zeros_like(flat)
        self.steps = 0
        self._made: tuple[float, Tensor, Tensor] | None = None
        self._step: tuple[tuple[Tensor, ...], adamw.Step | None] | None = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """A group as torch makes it, without the compiler that torch's own call and ``zero_grad`` import: seconds."""
        inspect.unwrap(torch.optim.Optimizer.add_param_group)(self, param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or fill them with zeros."""
        for view in self.stack.views.values():
            if set_to_none or view.grad is None:
                view.grad = None
            else:
                view.grad = torch.zeros_like(view.grad)

    def keep(self, going: Sequence[bool]) -> None:
        """Follow the stack after its own ``keep``."""
        on = torch.as_tensor(going, device=self.first.device)
        self.rate, self.decay, self._made = self.rate[on], self.decay[on], None
        self.first, self.second = self.first[on], self.second[on]
        self.param_groups[0]["params"] = list(self.stack.parameters())

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every model."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.move([_gradient(view) for view in self.stack.views.values()])
        return loss

    def move(self, gradients: Sequence[Tensor]) -> None:
        """One step with these gradients of the stack's parameters, in their order; under ``torch.no_grad()``."""
        self.steps += 1
        b1, b2 = self.betas
        rate, shrink = self._rates()
        if self.one_pass and (move := self._one_pass(rate, shrink)) is not None:
            correction, length = (1 - b2**self.steps) ** -0.5, -1 / (1 - b1**self.steps)
            move(gradients, (1 - b1, b2, 1 - b2, correction, self.eps, length))
            return
        gradient = torch.cat([own.flatten(1) for own in gradients], 1)
        self.first.lerp_(gradient, 1 - b1)
        self.second.mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
        torch.sqrt(self.second, out=gradient)
        gradient.mul_((1 - b2**self.steps) ** -0.5).add_(self.eps)
        torch.div(self.first, gradient, out=gradient)
        flat = self.stack.flat
        flat.mul_(shrink)
        flat.addcmul_(gradient, rate, value=-1 / (1 - b1**self.steps))

    def _one_pass(self, rate: Tensor, shrink: Tensor) -> adamw.Step | None:
        """The step in C++, made when one of its tensors has changed."""
        tensors = (self.stack.flat, self.first, self.second, rate, shrink)
        if self._step is None or any(a is not b for a, b in zip(self._step[0], tensors)):
            step = None
            if adamw.runs(*tensors):
                sizes = [view.numel() // len(self.stack) for view in self.stack.views.values()]
                step = adamw.Step(*tensors[:3], sizes, rate, shrink)
            self._step = tensors, step
        return self._step[1]

    def _rates(self) -> tuple[Tensor, Tensor]:
        """Each model's learning rate, and what its decay leaves of a weight; made when one of them has changed."""
        common = self.param_groups[0]["lr"]
        if self._made is None or self._made[0] != common:
            rate = self.rate * common
            self._made = common, rate, 1 - rate * self.decay
        return self._made[1:]

    def state_dict(self) -> dict[str, Any]:
        """Averages, steps and the common factor of the rates."""
        return {
            "first": self.first.clone(),
            "second": self.second.clone(),
            "steps": self.steps,
            "lr": float(self.param_groups[0]["lr"]),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` gave."""
        if state_dict["first"].shape != self.first.shape:
            refuse("first", f"averages of {len(self.first)} models, as now", state_dict["first"])
        self.first.copy_(state_dict["first"])
        self.second.copy_(state_dict["second"])
        self.steps = int(state_dict["steps"])
        self.param_groups[0]["lr"] = state_dict["lr"]


def _gradient(view: Tensor) -> Tensor:
    return torch.zeros_like(view) if view.grad is None else view.grad
