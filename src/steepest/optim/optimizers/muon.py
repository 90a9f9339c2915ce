"""Muon for matrices, AdamW for all else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from ...core.optimizer import ListOptimizer, Share
from ...core.search import Float
from ...core.torch_private import muon_
from ...core.wrapper import Params


class MuonAndAdamW(ListOptimizer):
    r"""Muon for matrices, AdamW for all else, at one learning rate.

    A matrix ``[A, B]`` moves along the orthogonal factor of its momentum, which torch's Muon approximates, times
    :math:`0.2\,\alpha\sqrt{\max(A, B)}`: its updates have the root mean square of AdamW's, so rate and decay are those
    that suit AdamW. Biases, gains, kernels of convolutions and complex numbers move by AdamW. Which of the two takes a
    parameter is seen from its shape alone: an embedding, or the last layer, that should have AdamW too is given to an
    optimizer of its own.

    Args:
        params: parameters or groups.
        lr: alpha >= 0, of both.
        weight_decay: lambda >= 0, of both, decoupled: weights shrink by alpha lambda a step.
        momentum: of Muon, Nesterov's, in [0, 1).
        betas: of AdamW, each in [0, 1).
        eps: of AdamW, > 0.
        foreach: of AdamW: lists of tensors (True, and None), or one tensor after the other; Muon takes one by one.

    Raises:
        ValueError: a value outside its range.
        TypeError: a sparse gradient.
        RuntimeError: a torch before 2.9, which has no Muon.

    Example:
        >>> layer = torch.nn.Linear(3, 2)
        >>> optimizer = MuonAndAdamW(layer.parameters(), lr=0.01)
        >>> layer(torch.ones(4, 3)).square().sum().backward()
        >>> optimizer.step()
        >>> sorted(optimizer.state[layer.weight]), sorted(optimizer.state[layer.bias])
        (['momentum_buffer'], ['exp_avg', 'exp_avg_sq', 'step'])

    Source: Muon, Keller Jordan et al., 2024; its scale: Muon is Scalable for LLM Training, arXiv:2502.16982.
    """

    name = "muon_and_adamw"
    search = {"momentum": Float(0.8, 0.99)}
    ranges = {
        "lr": {"low": 0.0},
        "weight_decay": {"low": 0.0},
        "momentum": {"low": 0.0, "high": 1.0, "open_high": True},
        "eps": {"low": 0.0, "open_low": True},
    }

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        foreach: bool | None = None,
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise RuntimeError("MuonAndAdamW needs PyTorch 2.9 or later")
        options = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas, "eps": eps}
        super().__init__(params, options, foreach=foreach)

    def _start(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
        if _is_matrix(parameter):
            return {"momentum_buffer": torch.zeros_like(parameter)}
        keep = torch.preserve_format
        return {
            "step": torch.zeros((), dtype=torch.float32),
            "exp_avg": torch.zeros_like(parameter, memory_format=keep),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=keep),
        }

    def _move(self, share: Share) -> None:
        matrices = [i for i, p in enumerate(share.parameters) if _is_matrix(p)]
        if matrices:
            self._along_orthogonal(share.of(matrices))
        if len(matrices) < len(share.parameters):
            taken = set(matrices)
            self._as_adamw(share.of([i for i in range(len(share.parameters)) if i not in taken]))

    def _along_orthogonal(self, share: Share) -> None:
        group = share.group
        muon_(
            share.weights,
            share.slopes,
            share.state("momentum_buffer"),
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
        )

    def _as_adamw(self, share: Share) -> None:
        group, limits = share.group, torch.finfo(share.weights[0].dtype)
        adamw(
            share.weights,
            share.slopes,
            share.state("exp_avg"),
            share.state("exp_avg_sq"),
            [],
            [state["step"] for state in share.states],
            foreach=group["foreach"] is not False,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=max(group["eps"], limits.smallest_normal * limits.eps),  # never 0: halves have none below 6e-8
            maximize=False,
        )

    @classmethod
    def builders(cls) -> list[Callable[[Params], Self]]:
        """Nearly without decay, and with less momentum."""
        return [
            lambda params: cls(params, lr=0.02, weight_decay=1e-3),
            lambda params: cls(params, lr=0.02, weight_decay=0.0, momentum=0.8, betas=(0.8, 0.99)),
        ]


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.ndim == 2 and not parameter.is_complex()
