"""Decay of the weights beside the gradient's step: AdamW, SGDW, decay that fits any length of run, warm restarts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...core.checks import check_choice, check_number, refuse
from ...core.optimizer import ListOptimizer, Share, momentum_step
from ...core.schedule import Curve, Piece, Schedule, check_steps
from ...core.search import Float
from ...core.wrapper import Params

MODES = ("torch", "paper")


def normalized_weight_decay(lam_norm: float, batch: int, samples: int, epochs: float) -> float:
    r"""The decay of a run whose best value does not depend on its length.

    .. math:: \lambda = \lambda_{norm} \sqrt{\frac{b}{B\, T}}

    It is lam_norm over the root of the number of steps, and decay as the publication counts it (``mode="paper"``).

    Args:
        lam_norm: normalised decay >= 0, 0.025 to 0.05 for images.
        batch: samples of a step >= 1.
        samples: training samples >= 1.
        epochs: passes over them, above 0; with warm restarts those of the round.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> round(normalized_weight_decay(0.025, 128, 50_000, 100), 10)
        0.0001264911

    Source: Decoupled Weight Decay Regularization, arXiv:1711.05101.
    """
    check_number("lam_norm", lam_norm, low=0.0, high=math.inf, open_high=True)
    check_number("batch", batch, low=1, integer=True)
    check_number("samples", samples, low=1, integer=True)
    check_number("epochs", epochs, low=0.0, open_low=True)
    return lam_norm * math.sqrt(batch / (samples * epochs))


class _Decay:
    """Decay as the publication counts it, in torch's form: what a schedule multiplies is then the rate alone."""

    def __init__(self, mode: str, decay: float) -> None:
        check_choice("mode", mode, MODES)
        check_number("weight_decay", decay, low=0.0)
        self.mode, self.decay = mode, decay

    def group(self, options: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
        """A group whose decay is in torch's form."""
        decay, rate = options.get("weight_decay", self.decay), options.get("lr", defaults["lr"])
        check_number("weight_decay", decay, low=0.0)
        if self.mode == "paper" and decay:
            alpha = float(rate) or float(defaults["lr"])  # a group at rest has the rate of all
            check_number("lr", alpha, low=0.0, open_low=True)
            decay = decay / alpha
        return {**options, "weight_decay": decay}


class AdamW(torch.optim.AdamW):
    r"""Adam with decay of the weights beside its step: ``torch.optim.AdamW``, and decay as the publication counts it.

    .. math:: m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
        \theta \leftarrow \theta - \eta_t \Big(\alpha \frac{\hat m}{\sqrt{\hat v} + \epsilon} + \lambda\, \theta\Big)

    A schedule moves lr = eta_t alpha. In torch's form the decay is lr times ``weight_decay``; in the publication's it
    is eta_t times ``weight_decay``, whatever alpha is, so that both can be tuned one after the other. The groups hold
    torch's form (lambda / alpha, alpha being the rate with which the group came, or that of all where it came with 0):
    what saves, loads and schedules them needs to know nothing. Biases and parameters of norms decay too, unless their
    group has ``weight_decay=0``.

    Args:
        params: parameters or groups.
        lr: alpha >= 0; above 0 for decay in the publication's form.
        betas: of both averages, in [0, 1).
        eps: added below the line, >= 0.
        weight_decay: >= 0.
        amsgrad: divide by the largest v so far.
        mode: ``"torch"``, or ``"paper"``: what values of the publication are meant in.
        **options: ``foreach``, ``fused``, ``maximize``, ``capturable``, ``differentiable``, as in torch.

    Raises:
        ValueError: a value outside its range; ``fused`` with weights on the CPU that are not contiguous, for which
            torch's step is wrong.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = AdamW([w], lr=0.1, weight_decay=0.5)
        >>> w.grad = torch.tensor([0.3, -0.4])
        >>> optimizer.step()
        >>> w.data
        tensor([ 0.8500, -1.8000])

    Source: Decoupled Weight Decay Regularization, arXiv:1711.05101.
    """

    name = "adamw"
    search = {"weight_decay": Float(1e-4, 1.0, log=True)}

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        mode: str = "torch",
        **options: Any,
    ) -> None:
        if not isinstance(lr, Tensor):
            check_number("lr", lr, low=0.0)
        self.own_decay = _Decay(mode, weight_decay)
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its decay counts as the constructor's does."""
        super().add_param_group(self.own_decay.group(param_group, self.defaults))
        added = self.param_groups[-1]
        gaps = [tuple(p.shape) for p in added["params"] if p.device.type == "cpu" and not p.is_contiguous()]
        if added["fused"] and gaps:
            self.param_groups.pop()
            refuse("fused", "contiguous weights (torch's fused step on the CPU writes into gaps)", gaps)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "own_decay": self.own_decay}

    @classmethod
    def builders(cls) -> list[Callable[[Params], Self]]:
        """Both counts of decay."""
        return [
            lambda params: cls(params, lr=0.02, eps=1e-6),
            lambda params: cls(params, lr=0.05, eps=1e-6, weight_decay=1e-3, amsgrad=True, mode="paper"),
        ]


class SGDW(ListOptimizer):
    r"""SGD with momentum and decay of the weights beside its step; the rate stands inside the momentum.

    .. math:: m \leftarrow \beta_1 m + \eta_t \alpha\, g, \qquad \theta \leftarrow \theta - m - \eta_t \lambda\, \theta

    theta on the right is that before the step, and m starts at 0. With a constant rate and no decay it is torch's SGD;
    with momentum 0 and decay it is SGD with the same decay in its gradient (lambda / alpha). lr and both counts of
    decay are as in :class:`AdamW`.

    Args:
        params: parameters or groups.
        lr: alpha >= 0; above 0 for decay in the publication's form.
        momentum: beta_1 in [0, 1).
        weight_decay: >= 0.
        mode: ``"torch"``: the decay is lr times ``weight_decay``; ``"paper"``: eta_t times.
        maximize: climb.
        foreach: lists of tensors (True, and None), or one tensor after the other.

    Raises:
        ValueError: a value outside its range.
        TypeError: a sparse gradient.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = SGDW([w], lr=0.1, weight_decay=0.5)
        >>> w.grad = torch.tensor([0.0, 1.0])
        >>> optimizer.step()
        >>> w.data
        tensor([ 0.9500, -2.0000])

    Source: Decoupled Weight Decay Regularization, arXiv:1711.05101.
    """

    name = "sgdw"
    search = {"weight_decay": Float(1e-4, 1.0, log=True)}
    ranges = {
        "lr": {"low": 0.0},
        "momentum": {"low": 0.0, "high": 1.0, "open_high": True},
        "weight_decay": {"low": 0.0},
    }

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        mode: str = "torch",
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        self.own_decay = _Decay(mode, weight_decay)
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, options, foreach=foreach)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its decay counts as the constructor's does."""
        self.check_options({**self.defaults, **param_group})
        super().add_param_group(self.own_decay.group(param_group, self.defaults))

    def _start(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
        return {"momentum_buffer": torch.zeros_like(parameter, memory_format=torch.preserve_format)}

    def _move(self, share: Share) -> None:
        rate, decay = share.group["lr"], share.group["weight_decay"]
        momenta, momentum = share.state("momentum_buffer"), share.group["momentum"]
        momentum_step(share.weights, share.slopes, momenta, 1.0, momentum, gain=rate, shrink=1 - rate * decay)

    @classmethod
    def builders(cls) -> list[Callable[[Params], Self]]:
        """With momentum and without, both counts of decay."""
        return [
            lambda params: cls(params, lr=0.01, weight_decay=0.01),
            lambda params: cls(params, lr=0.05, momentum=0.0, weight_decay=1e-3, mode="paper"),
        ]


class CosineWarmRestarts(Schedule):
    r"""Rounds of a cosine, each longer than the one before; with each the decay that fits its length (AdamWR, SGDWR).

    .. math:: \eta_t = \eta_{min} + \tfrac{1}{2} (\eta_{max} - \eta_{min}) \big(1 + \cos(\pi T_{cur} / T_i)\big), \quad
        T_{i+1} = T_{mult} T_i, \quad \lambda_i = \lambda_{norm} / \sqrt{T_i}

    in steps: lambda_i is :func:`normalized_weight_decay` of the round's epochs. ``T_mult`` below 1 gives rounds that
    get shorter, the last of which holds its end.

    Args:
        optimizer: any; with ``normalized_decay`` one of :class:`AdamW`'s kind, with a decay of lr times
            ``weight_decay``.
        T_0: steps of the first round >= 1.
        T_mult: above 0.
        eta_min, eta_max: shares of each group's own rate, 0 <= eta_min <= eta_max.
        normalized_decay: lam_norm >= 0, written into the groups at each round; groups without decay keep none. None
            leaves decays alone.
        last_epoch: None goes on where the optimizer is; see :class:`steepest.core.schedule.Schedule`.

    Raises:
        ValueError: a value outside its range; groups without ``weight_decay`` or with a rate of 0, and a normalised
            decay.

    Example:
        >>> optimizer = AdamW([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        >>> schedule = CosineWarmRestarts(optimizer, T_0=2, T_mult=2)
        >>> rates = []
        >>> for _ in range(7):
        ...     rates.append(round(schedule.get_last_lr()[0], 4))
        ...     optimizer.step(); schedule.step()
        >>> rates
        [0.1, 0.05, 0.1, 0.0854, 0.05, 0.0146, 0.1]

    Source: Decoupled Weight Decay Regularization, arXiv:1711.05101.
    """

    name = "cosine_warm_restarts"

    def __init__(
        self,
        optimizer: Optimizer,
        T_0: int,
        T_mult: float = 2,
        eta_min: float = 0.0,
        eta_max: float = 1.0,
        normalized_decay: float | None = None,
        last_epoch: int | None = None,
    ) -> None:
        check_steps("T_0", T_0)
        check_number("T_mult", T_mult, low=0.0, high=math.inf, open_low=True, open_high=True)
        check_number("eta_max", eta_max, low=0.0, high=math.inf, open_high=True)
        check_number("eta_min", eta_min, low=0.0, high=eta_max)
        if normalized_decay is not None:
            check_number("normalized_decay", normalized_decay, low=0.0, high=math.inf, open_high=True)
            if not all(g.get("weight_decay") is not None and float(g["lr"]) > 0 for g in optimizer.param_groups):
                refuse("optimizer", "a rate > 0 and weight_decay in each group", optimizer.param_groups[0].keys())
        self.T_0, self.T_mult, self.normalized_decay = T_0, T_mult, normalized_decay
        self.eta_min, self.eta_max = eta_min, eta_max
        shape = "constant" if eta_min == eta_max else "cosine"
        self.curve = Curve([Piece(T_0, eta_max, eta_min, shape)], stretch=T_mult)
        super().__init__(optimizer, last_epoch)

    def round_length(self, step: int) -> float:
        """Steps of the round to which a step belongs."""
        check_steps("step", step, low=0)
        begin, length = 0.0, float(self.T_0)
        if self.T_mult == 1:
            return length
        while step >= begin + length and length * self.T_mult >= 1.0:
            begin += length
            length *= self.T_mult
        return length

    def _write(self) -> None:
        super()._write()
        if self.normalized_decay is None:
            return
        decay = self.normalized_decay / math.sqrt(self.round_length(self.last_epoch))
        for group in self.optimizer.param_groups:
            if group["weight_decay"]:
                group["weight_decay"] = decay / float(group["initial_lr"])

    @classmethod
    def spanning(cls, optimizer: Optimizer, steps: int) -> Self:
        """Three rounds, of a seventh, two and four sevenths."""
        check_steps("steps", steps)
        return cls(optimizer, max(1, -(-steps // 7)))

    @classmethod
    def samples(cls) -> list[tuple[int, dict[str, Any]]]:
        return [
            (14, {"T_0": 2}),
            (20, {"T_0": 5, "T_mult": 1, "eta_min": 0.1}),
            (20, {"T_0": 9, "T_mult": 0.5, "eta_max": 2.0, "eta_min": 0.5}),
        ]
