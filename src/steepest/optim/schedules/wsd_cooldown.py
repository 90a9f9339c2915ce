"""Warm-up, a stable rate, a cooldown of some shape; and the study of cooldowns from one stable checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float as F
from torch import Tensor
from torch.optim import Optimizer

from ...core.checks import check_choice, check_number, check_tensor, refuse
from ...core.schedule import Curve, Piece, Schedule, check_optimizer, check_steps

SHAPES = (
    "linear", "cosine", "mirror_cosine", "square", "sqrt", "lowered_linear", "lowered_sqrt", "piecewise", "exponential",
    "inverse",
)  # fmt: skip
WARM_UP = {"linear": "linear", "cosine": "cosine", "1-sqrt": "sqrt"}
"""Shapes of a warm-up and, but for names, of a decay in ``transformers.get_wsd_schedule``."""


def cooldown_shape(
    name: str, u: float, alpha: float = 0.7, final: float = 0.0, power: float = 0.5, levels: Sequence[float] = ()
) -> float:
    r"""The share of the stable rate after a share u of the cooldown.

    .. math:: w = f + (1 - f)\, s(u), \quad s: \text{ linear } 1 - u, \text{ cosine } (1 + \cos \pi u) / 2,
        \text{ mirror cosine } 2 (1 - u) - (1 + \cos \pi u) / 2, \text{ square } 1 - u^2, \text{ sqrt } 1 - u^p \\
        \text{lowered linear } \alpha + (f - \alpha) u, \quad \text{lowered sqrt } f + (\alpha - f)(1 - u^p), \quad
        \text{exponential } f^u, \quad \text{inverse } (1 - u + u / f)^{-1}

    ``"piecewise"`` runs in straight lines through alpha, the levels and f, equally spaced in u. Lowered and piecewise
    shapes drop to alpha at once.

    Args:
        name: one of those above.
        u: in [0, 1].
        alpha: where lowered and piecewise shapes begin, in [final, 1].
        final: f in [0, 1], above 0 for ``"exponential"`` and ``"inverse"``.
        power: p > 0 of the sqrt shapes.
        levels: of ``"piecewise"``, between alpha and final.

    Raises:
        ValueError: an unknown shape, or a value outside its range.

    Example:
        >>> cooldown_shape("sqrt", 0.25), cooldown_shape("lowered_linear", 0.5, final=0.1)
        (0.5, 0.4)

    Source: Training Dynamics of the Cooldown Stage in Warmup-Stable-Decay Learning Rate Scheduler, arXiv:2508.01483.
    """
    check_number("u", u, low=0.0, high=1.0)
    return Curve(_cooldown(name, 0.0, 1.0, alpha, final, power, levels))(u)


def _cooldown(
    name: str, begin: float, steps: float, alpha: float, final: float, power: float, levels: Sequence[float]
) -> list[Piece]:
    check_choice("shape", name, SHAPES)
    positive = name in ("exponential", "inverse")
    check_number("final", final, low=0.0, high=1.0, open_low=positive)
    heights = [1.0, final]
    if name in ("lowered_linear", "lowered_sqrt", "piecewise"):
        check_number("alpha", alpha, low=final, high=1.0)
        heights = [alpha, *(levels if name == "piecewise" else ()), final]
        if heights != sorted(heights, reverse=True):
            refuse("levels", f"levels that fall from alpha {alpha:g} to final {final:g}", levels)
    shape = {"lowered_linear": "linear", "lowered_sqrt": "sqrt", "piecewise": "linear"}.get(name, name)
    count = len(heights) - 1
    return [
        Piece(begin + steps * (number + 1) / count, heights[number], heights[number + 1], shape, power)
        for number in range(count)
    ]


class WSD(Schedule):
    r"""Warm-up, a stable rate, a cooldown.

    .. math:: w = \begin{cases} t / W + (1 - t / W)\, w_0 & t < W \\ 1 & t < T_0 = W + S \\
        \text{cooldown\_shape}((t - T_0) / T_c) & t < T_0 + T_c \\ f & \text{afterwards} \end{cases}

    A cooldown begins from any stable checkpoint: load the optimizer, and build the schedule with the stable steps that
    it has had. The steps that a run of ``warmup + stable + cooldown`` steps uses end at u = 1 - 1 / cooldown.

    Args:
        optimizer: any; each group's own rate is its stable one.
        warmup: W >= 0, steps.
        stable: S >= 0, steps; None takes what ``total_steps`` leaves.
        cooldown: steps >= 0; with 0 the rate stays stable.
        shape: of the cooldown, a name of :func:`cooldown_shape`.
        final: f, the last share.
        alpha, power, levels: as for :func:`cooldown_shape`.
        start: w_0 in [0, 1], the share at step 0.
        warmup_shape: ``"linear"``, ``"cosine"`` or ``"sqrt"``, which is steep at its end.
        total_steps: warmup + stable + cooldown, where stable is None.
        last_epoch: None goes on where the optimizer is; see :class:`steepest.core.schedule.Schedule`.

    Raises:
        ValueError: a value outside its range, an unknown shape, no stable steps to be had.
        TypeError: not an optimizer.

    Example:
        >>> optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=1e-3)
        >>> schedule = WSD(optimizer, warmup=100, stable=700, cooldown=200)
        >>> [schedule.factor(step) for step in (0, 100, 800, 850, 1000)]
        [0.01, 1.0, 1.0, 0.5, 0.0]

    Source: Training Dynamics of the Cooldown Stage in Warmup-Stable-Decay Learning Rate Scheduler, arXiv:2508.01483.
    """

    name = "wsd"

    def __init__(
        self,
        optimizer: Optimizer,
        warmup: int,
        stable: int | None,
        cooldown: int,
        shape: str = "sqrt",
        final: float = 0.0,
        *,
        alpha: float = 0.7,
        power: float = 0.5,
        levels: Sequence[float] = (),
        start: float = 0.01,
        warmup_shape: str = "linear",
        total_steps: int | None = None,
        last_epoch: int | None = None,
    ) -> None:
        check_optimizer(optimizer)
        check_steps("warmup", warmup, low=0)
        check_steps("cooldown", cooldown, low=0)
        stable = _stable(warmup, stable, cooldown, total_steps)
        check_number("start", start, low=0.0, high=1.0)
        check_choice("warmup_shape", warmup_shape, ("linear", "cosine", "sqrt"))
        begin = warmup + stable
        cooling = _cooldown(shape, begin, cooldown, alpha, final, power, levels) if cooldown else []
        up = [Piece(warmup, start, 1.0, warmup_shape)] if warmup else []
        self.curve = Curve([*up, Piece(begin, 1.0, 1.0, "constant"), *cooling])
        super().__init__(optimizer, last_epoch)

    @classmethod
    def from_num_steps(
        cls,
        optimizer: Optimizer,
        num_warmup_steps: int,
        num_decay_steps: int,
        num_training_steps: int | None = None,
        num_stable_steps: int | None = None,
        warmup_type: str = "linear",
        decay_type: str = "cosine",
        min_lr_ratio: float = 0.0,
        num_cycles: float = 0.5,
        last_epoch: int | None = None,
    ) -> Self:
        """With the arguments of ``transformers.get_wsd_schedule``, and its rates.

        That one warms up from ``min_lr_ratio``, and needs ``num_training_steps`` or ``num_stable_steps``.

        Raises:
            ValueError: an unknown type; ``num_cycles`` other than 0.5, with which a decay would rise again.

        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
        >>> [WSD.from_num_steps(optimizer, 10, 20, 100).factor(step) for step in (0, 5, 10, 80, 90, 100)]
        [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]
        """
        check_choice("warmup_type", warmup_type, WARM_UP)
        check_choice("decay_type", decay_type, WARM_UP)
        check_choice("num_cycles", num_cycles, (0.5,))
        check_steps("num_warmup_steps", num_warmup_steps, low=0)
        check_steps("num_decay_steps", num_decay_steps, low=0)
        stable = _stable(num_warmup_steps, num_stable_steps, num_decay_steps, num_training_steps)
        return cls(
            optimizer, num_warmup_steps, stable, num_decay_steps, WARM_UP[decay_type], min_lr_ratio,
            start=min_lr_ratio, warmup_shape=WARM_UP[warmup_type], last_epoch=last_epoch,
        )  # fmt: skip

    @classmethod
    def spanning(cls, optimizer: Optimizer, steps: int) -> Self:
        """A tenth of the steps warms up, at most 300; a fifth cools down."""
        check_steps("steps", steps)
        return cls(optimizer, min(300, steps // 10), None, steps // 5, total_steps=steps)

    @classmethod
    def samples(cls) -> list[tuple[int, dict[str, Any]]]:
        own: dict[str, dict[str, Any]] = {
            "piecewise": {"levels": [0.5, 0.2]}, "exponential": {"final": 0.01}, "inverse": {"final": 0.1},
            "sqrt": {"power": 0.3},
        }  # fmt: skip
        shapes = [
            (20, {"warmup": 5, "stable": 7, "cooldown": 8, "shape": shape, **own.get(shape, {})}) for shape in SHAPES
        ]
        flat = {"warmup": 3, "stable": None, "cooldown": 0, "total_steps": 6, "warmup_shape": "cosine"}
        return [*shapes, (6, flat), (4, {"warmup": 0, "stable": 0, "cooldown": 4, "final": 0.5})]


def _stable(warmup: int, stable: int | None, cooldown: int, total: int | None) -> int:
    """The stable steps, given or left by the others."""
    if stable is not None:
        check_steps("stable", stable, low=0)
        return stable
    if total is None:
        refuse("stable", "its steps, or those of the whole run", None)
    check_steps("total_steps", total)
    if total < warmup + cooldown:
        refuse("total_steps", f"at least {warmup + cooldown}, for warm-up and cooldown", total)
    return total - warmup - cooldown


@dataclass(frozen=True)
class CooldownErrors:
    """How far the ends of one shape's cooldowns are from the best, split in two.

    Attributes:
        loss: mean loss of the ends.
        bias: loss of their mean minus the lowest such loss of any shape: too little exploration.
        variance: mean loss of the ends minus the loss of their mean: noise that was not averaged.
        spread: mean squared distance of the ends from their mean.
    """

    loss: float
    bias: float
    variance: float
    spread: float


def bias_variance_of_cooldown(
    weights: Mapping[str, F[Tensor, "repeats n"]], loss: Callable[[Tensor], float]
) -> dict[str, CooldownErrors]:
    r"""Bias and variance of cooldowns that began at one checkpoint and differ by the order of the data.

    .. math:: \text{variance} = \frac{1}{R} \sum_r L(\theta_r) - L(\bar\theta), \qquad
        \text{bias} = L(\bar\theta) - \min_{\text{shapes}} L(\bar\theta)

    The best averaged model over the shapes as the reference of the bias is a choice of this library.

    Args:
        weights: by shape the ends ``[R, n]``, R >= 2.
        loss: of one vector of weights ``[n]``.

    Raises:
        ValueError: no shapes, fewer than two repeats.

    Example:
        >>> ends = {"a": torch.tensor([[1.0], [-1.0]]), "b": torch.tensor([[2.0], [2.0]])}
        >>> bias_variance_of_cooldown(ends, lambda w: float(w @ w))["a"]
        CooldownErrors(loss=1.0, bias=0.0, variance=1.0, spread=1.0)

    Source: Training Dynamics of the Cooldown Stage in Warmup-Stable-Decay Learning Rate Scheduler, arXiv:2508.01483.
    """
    if not weights:
        refuse("weights", "the ends of at least one shape", weights)
    losses, of_means, spreads = {}, {}, {}
    for shape, ends in weights.items():
        check_tensor("weights", ends, ndim=2, floating=True)
        if len(ends) < 2:
            refuse("weights", "at least two cooldowns of each shape", ends)
        mean = ends.double().mean(0)
        losses[shape] = math.fsum(float(loss(end)) for end in ends) / len(ends)
        of_means[shape] = float(loss(mean.to(ends.dtype)))
        spreads[shape] = float((ends.double() - mean).square().sum(1).mean())
    best = min(of_means.values())
    return {
        shape: CooldownErrors(losses[shape], of_means[shape] - best, losses[shape] - of_means[shape], spreads[shape])
        for shape in weights
    }


class CooldownStudy:
    """Cooldowns of several shapes from one stable checkpoint, each with several orders of the data.

    Args:
        train_fn: ``train_fn(checkpoint, shape, repeat, **changes) -> weights [n]``: loads the checkpoint, optimizer
            state included, runs one cooldown and gives the weights as one vector; ``changes`` hold during the cooldown
            alone (betas, weight decay, batch).
        checkpoint: whatever ``train_fn`` loads.
        loss: of one vector of weights ``[n]``.

    Example:
        >>> def train(checkpoint, shape, repeat, noise=1.0):
        ...     return checkpoint + noise * (-1.0) ** repeat * torch.ones(1)
        >>> study = CooldownStudy(train, torch.zeros(1), lambda w: float(w @ w))
        >>> study.run(["sqrt"], 2, noise=2.0)["sqrt"].variance
        4.0

    Source: Training Dynamics of the Cooldown Stage in Warmup-Stable-Decay Learning Rate Scheduler, arXiv:2508.01483.
    """

    def __init__(self, train_fn: Callable[..., Tensor], checkpoint: Any, loss: Callable[[Tensor], float]) -> None:
        self.train_fn, self.checkpoint, self.loss = train_fn, checkpoint, loss
        self.weights: dict[str, Tensor] = {}
        """By shape the ends ``[R, n]`` of the last run."""

    def run(self, shapes: Sequence[str], repeats: int, **changes: Any) -> dict[str, CooldownErrors]:
        """Run every shape so many times; by shape what :func:`bias_variance_of_cooldown` says.

        Raises:
            ValueError: an unknown shape, fewer than two repeats.
        """
        for shape in shapes:
            check_choice("shapes", shape, SHAPES)
        check_steps("repeats", repeats, low=2)
        self.weights = {
            shape: torch.stack(
                [self.train_fn(self.checkpoint, shape, repeat, **changes).detach() for repeat in range(repeats)]
            )
            for shape in shapes
        }
        return bias_variance_of_cooldown(self.weights, self.loss)

    def plane(
        self, start: F[Tensor, " n"], end: F[Tensor, " n"], gradient: F[Tensor, " n"], points: int = 11
    ) -> tuple[F[Tensor, "2 n"], F[Tensor, "points points"]]:
        """The loss around a cooldown: along its river, from start to end, and up its hill, along the gradient.

        Args:
            start, end: weights at the beginning and the mean of those at the end of cooldowns.
            gradient: the loss's at ``start``; its part across the river is the second axis, at the river's length.
            points: in each direction, from -0.5 to 1.5 river lengths, and from -1 to 1.

        Returns:
            both axes, and the losses with the river down the rows.

        Raises:
            ValueError: start and end, or gradient and river, have no direction.
        """
        check_steps("points", points, low=2)
        river = end - start
        if not bool(river.norm() > 0):
            refuse("end", "other weights than the start", end)
        across = gradient - (gradient @ river) / (river @ river) * river
        if not bool(across.norm() > 1e-6 * gradient.norm()):
            refuse("gradient", "a part across the river", gradient)
        axes = torch.stack([river, across * (river.norm() / across.norm())])
        along, up = torch.linspace(-0.5, 1.5, points).tolist(), torch.linspace(-1.0, 1.0, points).tolist()
        grid = [[float(self.loss(start + a * axes[0] + b * axes[1])) for b in up] for a in along]
        return axes, torch.tensor(grid, dtype=torch.float64)
