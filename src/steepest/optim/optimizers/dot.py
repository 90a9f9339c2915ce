"""Distillation with two momenta: the task's gradient and the teacher's each have a buffer, the teacher's a longer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from ...core.checks import check_tensor, refuse, refuse_type
from ...core.optimizer import ListOptimizer, Share, momentum_step, real
from ...core.search import Float
from ...core.wrapper import Params

_TASK, _TEACHER, _RECORDED = "task_buffer", "kd_buffer", "kd_gradient"


class DOT(ListOptimizer):
    r"""SGD with a momentum for the task's gradient and a larger one for that of the distillation loss.

    .. math:: v_{task} \leftarrow (\mu - \Delta)\, v_{task} + g_{task} + \lambda w, \quad
        v_{kd} \leftarrow (\mu + \Delta)\, v_{kd} + g_{kd}, \quad w \leftarrow w - \alpha (v_{task} + v_{kd})

    Both gradients have their loss's weight in them. Parameters with one gradient alone have momentum mu; decay goes
    with the task's gradient, else with the other. Delta 0 is torch's SGD on the sum. Three ways to step:

    - ``kd_loss.backward(retain_graph=True)``, :meth:`step_kd`, ``task_loss.backward()``, ``step()``; a gradient
      scaler's ``step`` at the end divides both, if ``unscale_`` was not called before;
    - ``step(task_loss, kd_loss)`` takes both gradients;
    - ``step(closure)`` or ``step()`` alone, without :meth:`step_kd` before, has the task's gradient only: SGD.

    Args:
        params: parameters or groups.
        lr: alpha >= 0.
        momentum: mu in [0, 1).
        delta: Delta >= 0, mu - Delta >= 0 and mu + Delta < 1; 0.075 for CIFAR-100, 0.09 for ImageNet.
        weight_decay: lambda >= 0, in the gradient.
        foreach: lists of tensors (True, and None), or one tensor after the other.

    Raises:
        ValueError: a value outside its range; scaled gradients recorded before ``unscale_``.
        TypeError: a sparse gradient; one loss that is no tensor.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = DOT([w], lr=0.1)
        >>> for _ in range(3):
        ...     _ = optimizer.step(w.sum(), 2 * w.sum())
        >>> w.data
        tensor([-1.7132])

    Source: DOT: A Distillation-Oriented Trainer, arXiv:2307.08436.
    """

    name = "dot"
    search = {"delta": Float(0.0, 0.09)}
    ranges = {
        "lr": {"low": 0.0},
        "momentum": {"low": 0.0, "high": 1.0, "open_high": True},
        "delta": {"low": 0.0},
        "weight_decay": {"low": 0.0},
    }

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        momentum: float = 0.9,
        delta: float = 0.075,
        weight_decay: float = 0.0,
        *,
        foreach: bool | None = None,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "delta": delta, "weight_decay": weight_decay}
        super().__init__(params, options, foreach=foreach)

    def check_options(self, options: dict[str, Any]) -> None:
        """Refuse options of a group that are out of range."""
        super().check_options(options)
        momentum, delta = options["momentum"], options["delta"]
        if momentum + delta >= 1 or momentum - delta < 0:
            refuse("delta", f"momentum - delta >= 0 and momentum + delta < 1 at momentum {momentum:g}", delta)

    def step_kd(self) -> None:
        """Take the gradients that are there as those of the distillation loss, and leave none: before the task's.

        Raises:
            TypeError: a sparse gradient.
        """
        owned = self._with_gradients()
        for p in owned:
            assert p.grad is not None
            if p.grad.layout != torch.strided:
                refuse_type("params", "dense gradients", p.grad)
        for p in owned:
            self.state[p][_RECORDED], p.grad = p.grad, None

    def step(self, closure: Any = None, kd_loss: Tensor | None = None) -> Any:
        """One step.

        Args:
            closure: zeroes, runs forward and backward of the task and returns its loss; or that loss with its graph,
                if ``kd_loss`` is given; None where all was done.
            kd_loss: the distillation loss with its graph.

        Returns:
            What the closure gave, or the sum of both losses, or None.
        """
        if kd_loss is None:
            return super().step(closure)
        for name, loss in (("task_loss", closure), ("kd_loss", kd_loss)):
            check_tensor(name, loss, ndim=0, floating=True)
        moving = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        with torch.enable_grad():
            teacher = torch.autograd.grad(kd_loss, moving, retain_graph=True, allow_unused=True)
            task = torch.autograd.grad(closure, moving, allow_unused=True)
        for gradients in (teacher, task):
            for p, gradient in zip(moving, gradients):
                p.grad = gradient
            if gradients is teacher:
                self.step_kd()
        super().step()
        return (closure + kd_loss).detach()

    @torch.no_grad()
    def _unscaled(self, scaler: Any, *, ran: bool, asked_for: Any = None) -> bool:
        recorded = [state[_RECORDED] for state in self.state.values() if _RECORDED in state]
        scale = self.__dict__.get("grad_scale")
        if recorded and "found_inf" in self.__dict__:
            if scale is None:
                refuse(
                    "step_kd", "scaler.step without scaler.unscale_ before, because its gradients are scaled", "both"
                )
            for gradient in recorded:
                gradient.mul_(scale.double().reciprocal().to(gradient.device, torch.float32))
        fine = super()._unscaled(scaler, ran=ran, asked_for=asked_for)
        if recorded and "found_inf" in self.__dict__ and fine:
            fine = all(bool(gradient.isfinite().all()) for gradient in recorded)
        if not fine:
            for state in self.state.values():
                state.pop(_RECORDED, None)
        return fine

    def _advance(self) -> None:
        teacher = {id(p): state.pop(_RECORDED) for p, state in self.state.items() if _RECORDED in state}
        owned = [p for group in self.param_groups for p in group["params"]]
        alone = [p for p in owned if id(p) in teacher and p.grad is None]
        for p in alone:
            p.grad = teacher[id(p)]
        try:
            shares = self._shares()
        finally:
            for p in alone:
                p.grad = None
        lonely = {id(p) for p in alone}
        for share in shares:
            kinds = [(_TEACHER if id(p) in lonely else "both") if id(p) in teacher else _TASK for p in share.parameters]
            for kind in ("both", _TASK, _TEACHER):
                places = [i for i, own in enumerate(kinds) if own == kind]
                if places:
                    self._of_kind(kind, share.of(places), teacher)

    def _of_kind(self, kind: str, share: Share, teacher: dict[int, Tensor]) -> None:
        group, momentum = share.group, share.group["momentum"]
        moves = [(kind, share.slopes, momentum, group["weight_decay"])]
        if kind == "both":
            slopes = [real(teacher[id(p)]) for p in share.parameters]
            moves = [
                (_TASK, share.slopes, momentum - group["delta"], group["weight_decay"]),
                (_TEACHER, slopes, momentum + group["delta"], 0.0),
            ]
        for buffer, slopes, factor, decay in moves:
            for p, state in zip(share.parameters, share.states):
                if buffer not in state:
                    state[buffer] = torch.zeros_like(p, memory_format=torch.preserve_format)
            momentum_step(share.weights, slopes, share.state(buffer), group["lr"], factor, decay=decay)

    @classmethod
    def builders(cls) -> list[Callable[[Params], Self]]:
        """The task's gradient alone, with decay and without."""
        return [
            lambda params: cls(params, lr=0.01),
            lambda params: cls(params, lr=0.01, momentum=0.5, delta=0.2, weight_decay=0.01),
        ]


DistillationOrientedTrainer = DOT
